//! Single requests: the host, the headers, and the meaning of the response.

use std::io;
use std::path::Path;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use crate::config::{Config, Limits, Token};
use crate::error::{Error, Missing, Result, Target, printable};
use crate::names::{Commit, Etag};
use crate::origin::{self, Origin};

const MAX_REDIRECTS: u32 = 10;

/// The properties of a file that an endpoint announces before it sends the bytes.
#[derive(Debug, Clone)]
pub(crate) struct Announced {
    pub(crate) etag: Etag,
    pub(crate) commit: Commit,
    /// In bytes.
    pub(crate) size: u64,
}

/// The response to a HEAD request.
pub(crate) enum Head {
    File(Announced),
    /// The repository does not have the file at this commit.
    NoFile {
        commit: Option<Commit>,
        error: Error,
    },
}

/// An endpoint and the HTTP agents for it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// For http and https.
    agents: [Agent; 2],
    origin: Origin,
    token: Option<Token>,
    limits: Limits,
}

impl Endpoint {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let setting = |reason: &str| Error::Setting { name: "HF_ENDPOINT", reason: reason.into() };
        let url: Uri = config
            .endpoint
            .parse()
            .map_err(|_| setting("invalid URL, expected one like https://huggingface.co"))?;
        let origin = Origin::from_url(&url).map_err(setting)?;
        if url.query().is_some() {
            return Err(setting("the URL has a query"));
        }
        let roots = match &config.ca_bundle {
            Some(path) => read_certificates(path)?,
            None if has_platform_roots() => RootCerts::PlatformVerifier,
            None => RootCerts::WebPki,
        };
        let agent = |url: &Option<String>, name| {
            let proxy = proxy(url, &config.proxies.bypass, name)?;
            Ok(agent(&config.limits, proxy, roots.clone()))
        };
        Ok(Self {
            agents: [
                agent(&config.proxies.http, "HTTP_PROXY")?,
                agent(&config.proxies.https, "HTTPS_PROXY")?,
            ],
            origin,
            token: config.token.clone(),
            limits: config.limits.clone(),
        })
    }

    /// Returns the host for messages.
    pub(crate) fn host(&self) -> String {
        self.origin.to_string()
    }

    /// Sends HEAD and follows redirects until the whole announcement is known.
    pub(crate) fn head(&self, target: &Target, url: &str) -> Result<Head> {
        let mut url = parse(target, url)?;
        let (mut etag, mut commit, mut size) = (None, None, None);
        let mut linked = false;
        for _ in 0..=MAX_REDIRECTS {
            let (origin, response) = self.send(target, &url, Method::Head)?;
            let headers = response.headers();
            commit = text(headers, "x-repo-commit").or(commit);
            if let Some(value) = text(headers, "x-linked-etag") {
                (etag, linked) = (Some(value), true);
            } else if !linked && (origin == self.origin || etag.is_none()) {
                etag = text(headers, "etag").or(etag);
            }
            size = text(headers, "x-linked-size").or(size);
            if response.status().is_redirection() {
                let (next, to) = self.follow(target, &url, &origin, &response)?;
                // An endpoint redirects within its host to another name of the file, and to another host for the bytes,
                // unless it is a mirror that only redirects.
                if to != self.origin && (etag.is_some() || commit.is_some()) {
                    return announced(target, etag, commit, size).map(Head::File);
                }
                url = next;
                continue;
            }
            return match self.check_status(target, &origin, &response) {
                Err(error @ Error::NotFound { missing: Missing::File, .. }) => {
                    Ok(Head::NoFile { commit: commit.as_deref().and_then(Commit::parse), error })
                }
                Err(error) => Err(error),
                // If the length of the body differs from the linked size, the GET request detects it.
                Ok(()) => {
                    let size = size.or_else(|| text(headers, "content-length"));
                    announced(target, etag, commit, size).map(Head::File)
                }
            };
        }
        Err(too_many_redirects(target))
    }

    /// Sends GET for the bytes from `offset` on and follows redirects. The status is 200, 206 or 416.
    pub(crate) fn get(&self, target: &Target, url: &str, offset: u64) -> Result<(Target, Response<Body>)> {
        let mut url = parse(target, url)?;
        for _ in 0..=MAX_REDIRECTS {
            let (origin, response) = self.send(target, &url, Method::Get { offset })?;
            if response.status().is_redirection() {
                url = self.follow(target, &url, &origin, &response)?.0;
                continue;
            }
            if response.status().as_u16() != 416 {
                self.check_status(target, &origin, &response)?;
            }
            return Ok((at(target, &origin), response));
        }
        Err(too_many_redirects(target))
    }

    /// Converts an error of ureq. `found` and `expected` are bytes of the body; `expected` is `None` before it.
    pub(crate) fn error(
        &self,
        target: &Target,
        error: ureq::Error,
        found: u64,
        expected: Option<u64>,
    ) -> Error {
        use ureq::Timeout;
        let target = Box::new(target.clone());
        let stalled = match &error {
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                let reason = format!("no connection within {} s", self.limits.connect.as_secs_f64());
                return Error::Connect { target, reason };
            }
            ureq::Error::Timeout(_) => true,
            ureq::Error::Io(e) => e.kind() == io::ErrorKind::TimedOut,
            _ => false,
        };
        let reason = match stalled {
            true => format!("no data for {} s", self.limits.stall.as_secs_f64()),
            false if expected.is_none() => return Error::Connect { target, reason: reason(&error) },
            false => format!("connection lost ({})", reason(&error)),
        };
        Error::Interrupted { target, found, expected, reason }
    }

    fn send(&self, target: &Target, url: &Uri, method: Method) -> Result<(Origin, Response<Body>)> {
        let origin = Origin::from_url(url).map_err(|reason| rejected(target, reason))?;
        let agent = &self.agents[usize::from(origin.https)];
        let mut request = match method {
            Method::Head => agent.head(url),
            Method::Get { .. } => agent.get(url),
        };
        // A compressed body has neither the announced size nor the announced hash.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Method::Get { offset: offset @ 1.. } = method {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| origin == self.origin) {
            if !origin.https && !origin.is_loopback() {
                let reason = "a token is never sent over plain http; use https, or unset HF_TOKEN and set \
                              HF_HUB_DISABLE_IMPLICIT_TOKEN=1";
                return Err(Error::Setting { name: "HF_ENDPOINT", reason: reason.into() });
            }
            request = request.header(header::AUTHORIZATION, token.header());
        }
        match request.call() {
            Ok(response) => Ok((origin, response)),
            Err(error) => Err(self.error(&at(target, &origin), error, 0, None)),
        }
    }

    /// Returns the URL of a redirect and its origin, if a request may be sent there.
    fn follow(
        &self,
        target: &Target,
        url: &Uri,
        origin: &Origin,
        response: &Response<Body>,
    ) -> Result<(Uri, Origin)> {
        let target = at(target, origin);
        let rejected = |reason: &str| rejected(&target, reason);
        let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
        let location = location.ok_or_else(|| rejected("it has no Location"))?;
        let next = origin::resolve(url, location).ok_or_else(|| rejected("invalid URL in Location"))?;
        let to = Origin::from_url(&next).map_err(rejected)?;
        origin::check_redirect(&self.origin, origin, &to).map_err(|reason| rejected(&reason))?;
        Ok((next, to))
    }

    fn check_status(&self, target: &Target, origin: &Origin, response: &Response<Body>) -> Result<()> {
        let status = response.status().as_u16();
        let code = text(response.headers(), "x-error-code").unwrap_or_default();
        let token = self.token.is_some();
        let target = Box::new(at(target, origin));
        Err(match status {
            200 | 206 => return Ok(()),
            // For anonymous requests the Hub does not distinguish missing from private repositories.
            401 if code == "RepoNotFound" => Error::NotFound { target, missing: Missing::Repo, token },
            401 | 403 => Error::Denied { target, status, gated: code == "GatedRepo", token },
            404 => {
                let missing = match code.as_str() {
                    "RepoNotFound" => Missing::Repo,
                    "RevisionNotFound" => Missing::Revision,
                    "EntryNotFound" => Missing::File,
                    _ => Missing::Unknown,
                };
                Error::NotFound { target, missing, token }
            }
            429 => {
                let seconds = text(response.headers(), "retry-after").and_then(|v| v.trim().parse().ok());
                Error::RateLimited { target, retry_after: seconds.map(Duration::from_secs) }
            }
            _ => Error::Status { target, status },
        })
    }
}

#[derive(Clone, Copy)]
enum Method {
    Head,
    Get { offset: u64 },
}

fn agent(limits: &Limits, proxy: Option<Proxy>, roots: RootCerts) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(proxy)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .user_agent(concat!("resnet-hub/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(limits.connect))
        .timeout_connect(Some(limits.connect))
        .timeout_send_request(Some(limits.stall))
        .timeout_recv_response(Some(limits.stall))
        .timeout_per_read(Some(limits.stall))
        .build()
        .into()
}

/// Reads the certificates of a PEM file.
fn read_certificates(path: &Path) -> Result<RootCerts> {
    let setting = |reason| Error::Setting { name: "SSL_CERT_FILE or REQUESTS_CA_BUNDLE", reason };
    let pem = std::fs::read(path).map_err(|e| setting(format!("`{}`: {e}", path.display())))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(setting(format!("`{}`: expected certificates in PEM format", path.display())));
    }
    Ok(RootCerts::from(certificates))
}

/// Returns `true` if the operating system has root certificates. A minimal container has none; Mozilla's are used there.
fn has_platform_roots() -> bool {
    cfg!(any(windows, target_vendor = "apple", target_os = "android"))
        || [
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/ssl/certs/ca-bundle.crt",
            "/etc/pki/tls/certs/ca-bundle.crt",
            "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
            "/etc/ssl/ca-bundle.pem",
            "/etc/ssl/cert.pem",
        ]
        .iter()
        .any(|path| Path::new(path).is_file())
}

fn proxy(url: &Option<String>, bypass: &[String], name: &'static str) -> Result<Option<Proxy>> {
    let Some(url) = url else { return Ok(None) };
    let invalid = |_| Error::Setting { name, reason: "invalid URL of a proxy".into() };
    let plain = Proxy::new(url).map_err(invalid)?;
    let mut builder = Proxy::builder(plain.protocol()).host(plain.host()).port(plain.port());
    if let Some(user) = plain.username() {
        builder = builder.username(user);
    }
    if let Some(password) = plain.password() {
        builder = builder.password(password);
    }
    for host in ["localhost", "127.*", "[::1]"].into_iter().chain(bypass.iter().map(String::as_str)) {
        builder = builder.no_proxy(host);
        // By convention, but not in ureq, a name includes its subdomains.
        if !host.starts_with(['.', '*', '[']) && host.contains(char::is_alphabetic) {
            builder = builder.no_proxy(&format!(".{host}"));
        }
    }
    builder.build().map(Some).map_err(invalid)
}

fn announced(
    target: &Target,
    etag: Option<String>,
    commit: Option<String>,
    size: Option<String>,
) -> Result<Announced> {
    let invalid = |name, found: Option<String>, expected| header_error(target, name, found, expected);
    let Some(valid_etag) = etag.as_deref().and_then(Etag::from_header) else {
        return Err(invalid("ETag", etag, "40 or 64 hexadecimal digits"));
    };
    let Some(valid_commit) = commit.as_deref().and_then(Commit::parse) else {
        return Err(invalid("X-Repo-Commit", commit, "40 hexadecimal digits"));
    };
    let digits = |s: &&str| s.bytes().all(|b| b.is_ascii_digit());
    let Some(valid_size) = size.as_deref().filter(digits).and_then(|s| s.parse().ok()) else {
        return Err(invalid("X-Linked-Size", size, "a number of bytes"));
    };
    Ok(Announced { etag: valid_etag, commit: valid_commit, size: valid_size })
}

/// Returns the error for a missing or invalid header.
pub(crate) fn header_error(
    target: &Target,
    header: &'static str,
    found: Option<String>,
    expected: &str,
) -> Error {
    let (target, found) = (Box::new(target.clone()), found.map(|f| printable(f.as_bytes())));
    Error::Header { target, header, found, expected: expected.into() }
}

/// Returns the value of a header, lossily decoded.
pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
}

fn parse(target: &Target, url: &str) -> Result<Uri> {
    url.parse().map_err(|_| rejected(target, "invalid URL"))
}

fn at(target: &Target, origin: &Origin) -> Target {
    Target { host: origin.to_string(), ..target.clone() }
}

fn rejected(target: &Target, reason: &str) -> Error {
    Error::Redirect { target: Box::new(target.clone()), reason: reason.into() }
}

fn too_many_redirects(target: &Target) -> Error {
    rejected(target, &format!("more than {MAX_REDIRECTS}"))
}

fn reason(error: &ureq::Error) -> String {
    let text = match error {
        ureq::Error::Io(e) => e.to_string(),
        ureq::Error::HostNotFound => "the host name has no address".into(),
        // The texts of these errors quote the URL, which may be signed.
        ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => "invalid URL".into(),
        ureq::Error::ConnectProxyFailed(_) => "the proxy rejected the connection".into(),
        other => other.to_string(),
    };
    let hint = match text.contains("certificate") {
        true => "; SSL_CERT_FILE selects a file with the root certificates of your network",
        false => "",
    };
    printable(text.as_bytes()) + hint
}
