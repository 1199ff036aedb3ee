//! One request at a time: who is asked, with which headers, and what an answer means.

use std::io;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri, header};
use ureq::{Agent, Body, Proxy};

use super::config::{Config, Limits, Token};
use super::error::{HubError, Missing, Result, Target, printable};
use super::names::{Commit, Etag};
use super::url::{self, Origin};

const MOST_REDIRECTS: u32 = 10;

/// Something went wrong; is it worth another attempt?
pub(super) struct Fault {
    pub(super) error: HubError,
    pub(super) again: Again,
}

/// When to ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// The answer will be the same.
    Never,
    /// It may go better.
    Later,
    /// Nobody answers: not worth as many attempts.
    Connect,
    /// The server says when.
    After(Duration),
}

impl Fault {
    pub(super) fn later(error: HubError) -> Self {
        Self { error, again: Again::Later }
    }
}

impl From<HubError> for Fault {
    fn from(error: HubError) -> Self {
        Self { error, again: Again::Never }
    }
}

/// What an endpoint says of a file before it sends it.
#[derive(Debug, Clone)]
pub(super) struct Announced {
    pub(super) etag: Etag,
    pub(super) commit: Commit,
    /// In bytes.
    pub(super) size: u64,
}

/// An endpoint and the means to ask it.
#[derive(Debug)]
pub(super) struct Net {
    agents: [Agent; 2],
    endpoint: Origin,
    token: Option<Token>,
    proxied: [Option<Proxy>; 2],
    limits: Limits,
}

impl Net {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let setting = |name, reason: &str| HubError::Setting { name, reason: reason.into() };
        let url: Uri = config
            .endpoint
            .parse()
            .map_err(|_| setting("HF_ENDPOINT", "not a URL; expected one like https://huggingface.co"))?;
        let endpoint = Origin::of(&url).map_err(|reason| setting("HF_ENDPOINT", reason))?;
        if url.query().is_some() {
            return Err(setting("HF_ENDPOINT", "the URL has a query"));
        }
        if config.token.is_some() && !endpoint.https && !endpoint.is_loopback() {
            let reason = "a token is never sent over plain http; use https, or unset HF_TOKEN and set \
                          HF_HUB_DISABLE_IMPLICIT_TOKEN=1";
            return Err(setting("HF_ENDPOINT", reason));
        }
        let proxied = [
            proxy(&config.proxies.http, &config.proxies.bypass, "HTTP_PROXY")?,
            proxy(&config.proxies.https, &config.proxies.bypass, "HTTPS_PROXY")?,
        ];
        Ok(Self {
            agents: [agent(&config.limits, &proxied[0]), agent(&config.limits, &proxied[1])],
            endpoint,
            token: config.token.clone(),
            proxied,
            limits: config.limits.clone(),
        })
    }

    /// The endpoint, as messages name it.
    pub(super) fn host(&self) -> String {
        self.endpoint.to_string()
    }

    /// Asks for the announcement of a file: HEAD, through redirects until all of it is known.
    pub(super) fn head(&self, target: &Target, url: &str) -> Result<Announced, Fault> {
        let mut url = parse(target, url)?;
        let (mut etag, mut commit, mut size) = (None, None, None);
        let mut linked = false;
        for _ in 0..=MOST_REDIRECTS {
            let (origin, answer) = self.send(target, &url, Method::Head)?;
            let headers = answer.headers();
            commit = text(headers, "x-repo-commit").or(commit);
            if let Some(value) = text(headers, "x-linked-etag") {
                (etag, linked) = (Some(value), true);
            } else if !linked && (origin == self.endpoint || etag.is_none()) {
                etag = text(headers, "etag").or(etag);
            }
            size = text(headers, "x-linked-size").or(size);
            if answer.status().is_redirection() {
                let (next, to) = self.follow(target, &url, &origin, &answer)?;
                // On its own host an endpoint redirects to a better name of the file; to another host, to the bytes,
                // unless it is a mirror that knows nothing itself.
                if to != self.endpoint && (etag.is_some() || commit.is_some()) {
                    return announced(target, etag, commit, size);
                }
                url = next;
                continue;
            }
            self.check_status(target, &origin, &answer)?;
            // A body of another length than the linked one shows when it is fetched.
            let size = size.or_else(|| text(headers, "content-length"));
            return announced(target, etag, commit, size);
        }
        Err(too_many(target).into())
    }

    /// Asks for a file's bytes from `offset` on: GET, through redirects. The status is 200, 206 or 416.
    pub(super) fn get(
        &self,
        target: &Target,
        url: &str,
        offset: u64,
    ) -> Result<(Target, Response<Body>), Fault> {
        let mut url = parse(target, url)?;
        for _ in 0..=MOST_REDIRECTS {
            let (origin, answer) = self.send(target, &url, Method::Get { offset })?;
            if answer.status().is_redirection() {
                url = self.follow(target, &url, &origin, &answer)?.0;
                continue;
            }
            if answer.status().as_u16() != 416 {
                self.check_status(target, &origin, &answer)?;
            }
            return Ok((at(target, &origin), answer));
        }
        Err(too_many(target).into())
    }

    /// What an error of the network below means.
    pub(super) fn fault(
        &self,
        target: &Target,
        error: ureq::Error,
        found: u64,
        expected: Option<u64>,
    ) -> Fault {
        use ureq::Timeout;
        let target = Box::new(target.clone());
        let error = match error {
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                let reason = format!("no connection within {} s", self.limits.connect.as_secs_f64());
                return Fault { error: HubError::Connect { target, reason }, again: Again::Connect };
            }
            ureq::Error::Timeout(_) => {
                HubError::Stalled { target, found, expected, after: self.limits.stall }
            }
            ureq::Error::Io(e) if e.kind() == io::ErrorKind::TimedOut => {
                HubError::Stalled { target, found, expected, after: self.limits.stall }
            }
            error => match expected {
                Some(expected) => HubError::Broken { target, found, expected, reason: reason(&error) },
                None => {
                    let again = if is_final(&error) { Again::Never } else { Again::Connect };
                    return Fault { error: HubError::Connect { target, reason: reason(&error) }, again };
                }
            },
        };
        Fault::later(error)
    }

    fn send(&self, target: &Target, url: &Uri, method: Method) -> Result<(Origin, Response<Body>), Fault> {
        let origin = Origin::of(url).map_err(|reason| refused(target, reason.into()))?;
        let agent = &self.agents[usize::from(origin.https)];
        let mut request = match method {
            Method::Head => agent.head(url),
            Method::Get { .. } => agent.get(url),
        };
        // A compressed answer would have neither the size nor the hash that was announced.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Method::Get { offset: offset @ 1.. } = method {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| origin == self.endpoint) {
            request = request.header(header::AUTHORIZATION, token.header());
        }
        match request.call() {
            Ok(answer) => Ok((origin, answer)),
            Err(error) => Err(self.fault(&at(target, &origin), error, 0, None)),
        }
    }

    /// The next URL and its origin, if it may be asked.
    fn follow(
        &self,
        target: &Target,
        url: &Uri,
        origin: &Origin,
        answer: &Response<Body>,
    ) -> Result<(Uri, Origin), HubError> {
        let target = at(target, origin);
        let refused = |reason: String| refused(&target, reason);
        let location = answer.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
        let location = location.ok_or_else(|| refused("it has no Location".into()))?;
        let next = url::resolve(url, location).ok_or_else(|| refused("its Location is no URL".into()))?;
        let to = Origin::of(&next).map_err(|reason| refused(reason.into()))?;
        let by_proxy = self.proxied[usize::from(to.https)].as_ref().is_some_and(|p| !p.is_no_proxy(&next));
        url::check_redirect(&self.endpoint, origin, &to, |host| {
            // Behind a proxy it is the proxy that looks names up.
            if by_proxy { host.literal_reach() } else { host.reach(self.limits.connect) }
        })
        .map_err(refused)?;
        Ok((next, to))
    }

    fn check_status(&self, target: &Target, origin: &Origin, answer: &Response<Body>) -> Result<(), Fault> {
        let status = answer.status().as_u16();
        let code = text(answer.headers(), "x-error-code").unwrap_or_default();
        let token = self.token.is_some();
        let target = Box::new(at(target, origin));
        let error = match status {
            200 | 206 => return Ok(()),
            // To anonymous callers the Hub does not tell a missing repository from a private one.
            401 if code == "RepoNotFound" => HubError::NotFound { target, missing: Missing::Repo, token },
            401 | 403 => HubError::Denied { target, status, gated: code == "GatedRepo", token },
            404 => {
                let missing = match code.as_str() {
                    "RepoNotFound" => Missing::Repo,
                    "RevisionNotFound" => Missing::Revision,
                    "EntryNotFound" => Missing::File,
                    _ => Missing::Unknown,
                };
                HubError::NotFound { target, missing, token }
            }
            429 => {
                let seconds = text(answer.headers(), "retry-after").and_then(|v| v.trim().parse().ok());
                let retry_after = seconds.map(Duration::from_secs);
                let again = match retry_after {
                    Some(wait) if wait > self.limits.longest_wait => Again::Never,
                    Some(wait) => Again::After(wait),
                    None => Again::Later,
                };
                return Err(Fault { error: HubError::RateLimited { target, retry_after }, again });
            }
            408 | 500 | 502 | 503 | 504 => return Err(Fault::later(HubError::Status { target, status })),
            _ => HubError::Status { target, status },
        };
        Err(error.into())
    }
}

#[derive(Clone, Copy)]
enum Method {
    Head,
    Get { offset: u64 },
}

fn agent(limits: &Limits, proxy: &Option<Proxy>) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(proxy.clone())
        .user_agent(concat!("resnet-cli/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(limits.connect))
        .timeout_connect(Some(limits.connect))
        .timeout_send_request(Some(limits.stall))
        .timeout_recv_response(Some(limits.stall))
        .timeout_per_read(Some(limits.stall))
        .build()
        .into()
}

fn proxy(url: &Option<String>, bypass: &[String], name: &'static str) -> Result<Option<Proxy>> {
    let Some(url) = url else { return Ok(None) };
    let broken = |_| HubError::Setting { name, reason: "not the URL of a proxy".into() };
    let plain = Proxy::new(url).map_err(broken)?;
    let mut builder = Proxy::builder(plain.protocol()).host(plain.host()).port(plain.port());
    if let Some(user) = plain.username() {
        builder = builder.username(user);
    }
    if let Some(password) = plain.password() {
        builder = builder.password(password);
    }
    for host in ["localhost", "127.*", "[::1]"].into_iter().chain(bypass.iter().map(String::as_str)) {
        builder = builder.no_proxy(host);
        // Everywhere but in this library a name also stands for the names below it.
        if !host.starts_with(['.', '*', '[']) && host.contains(char::is_alphabetic) {
            builder = builder.no_proxy(&format!(".{host}"));
        }
    }
    builder.build().map(Some).map_err(broken)
}

fn announced(
    target: &Target,
    etag: Option<String>,
    commit: Option<String>,
    size: Option<String>,
) -> Result<Announced, Fault> {
    let header = |header, found: Option<String>, expected: &str| HubError::Header {
        target: Box::new(target.clone()),
        header,
        found: found.map(|f| printable(f.as_bytes())),
        expected: expected.into(),
    };
    let Some(valid_etag) = etag.as_deref().and_then(|e| Etag::from_header(e.as_bytes())) else {
        return Err(header("ETag", etag, Etag::EXPECTED).into());
    };
    let Some(valid_commit) = commit.as_deref().and_then(|c| Commit::parse(c.as_bytes())) else {
        return Err(header("X-Repo-Commit", commit, "40 hexadecimal digits").into());
    };
    let digits = |s: &&str| s.bytes().all(|b| b.is_ascii_digit());
    let Some(valid_size) = size.as_deref().filter(digits).and_then(|s| s.parse().ok()) else {
        return Err(header("X-Linked-Size", size, "a number of bytes").into());
    };
    Ok(Announced { etag: valid_etag, commit: valid_commit, size: valid_size })
}

/// A header's value, with what is not text in it replaced.
pub(super) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
}

fn parse(target: &Target, url: &str) -> Result<Uri, Fault> {
    url.parse().map_err(|_| refused(target, "the file's URL is none".into()).into())
}

fn at(target: &Target, origin: &Origin) -> Target {
    Target { host: origin.to_string(), ..target.clone() }
}

fn refused(target: &Target, reason: String) -> HubError {
    HubError::Redirect { target: Box::new(target.clone()), reason }
}

fn too_many(target: &Target) -> HubError {
    refused(target, format!("there were more than {MOST_REDIRECTS}"))
}

/// Errors that another attempt does not mend.
fn is_final(error: &ureq::Error) -> bool {
    !matches!(error, ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed)
        || matches!(error, ureq::Error::Io(e) if e.kind() == io::ErrorKind::InvalidData)
}

fn reason(error: &ureq::Error) -> String {
    let text = match error {
        ureq::Error::Io(e) => e.to_string(),
        ureq::Error::HostNotFound => "the host's name has no address".into(),
        // Their texts quote the URL, which may be signed.
        ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => "the URL cannot be asked".into(),
        ureq::Error::ConnectProxyFailed(_) => "the proxy refuses".into(),
        other => other.to_string(),
    };
    printable(text.as_bytes())
}
