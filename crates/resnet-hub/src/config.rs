//! Settings of a [`Client`](crate::Client), and the environment variables that set them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

/// The public Hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Endpoint, cache, credentials and timeouts.
#[derive(Debug, Clone)]
pub struct Config {
    /// URL of the Hub; a path is kept as a prefix.
    pub endpoint: String,
    /// The folder that contains `models--owner--name`, shared with Python's `huggingface_hub`.
    /// `None` if the home folder is unknown.
    pub cache_dir: Option<PathBuf>,
    /// The access token. It is sent to the endpoint only, never to a host that it redirects to.
    pub token: Option<Token>,
    /// Opens no socket. A file that is not in the cache is an error.
    pub offline: bool,
    /// Asks the endpoint which commit a branch is at, even if that is cached.
    pub refresh: bool,
    /// Hashes cached files again, even those that have not changed since they were last verified.
    pub verify: bool,
    /// Takes a lock file so that two processes do not download the same file twice. Correctness does not depend on it.
    pub locks: bool,
    /// Proxies by scheme.
    pub proxies: Proxies,
    /// A PEM file of root certificates that replaces those of the operating system.
    pub ca_bundle: Option<PathBuf>,
    /// Timeouts, minimum speed and number of attempts.
    pub limits: Limits,
}

impl Default for Config {
    /// Returns the public Hub without a cache folder, token or proxy.
    fn default() -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.into(),
            cache_dir: None,
            token: None,
            offline: false,
            refresh: false,
            verify: false,
            locks: true,
            proxies: Proxies::default(),
            ca_bundle: None,
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// Reads the environment variables of Python's `huggingface_hub`, with its precedence. `get` looks up a variable.
    ///
    /// Variables: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`,
    /// `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE`,
    /// `TRANSFORMERS_OFFLINE`, `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, `REQUESTS_CA_BUNDLE`,
    /// `SSL_CERT_FILE`, `HOME` and `USERPROFILE`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a token that cannot be sent in a header.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name: &str| get(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| get(name));
        let is_true = |name: &str| {
            get(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_ascii_uppercase().as_str()))
        };
        let home = first(if cfg!(windows) { &["USERPROFILE", "HOME"] } else { &["HOME", "USERPROFILE"] });
        let home = home.map(PathBuf::from);
        let path = |names: &[&str]| first(names).map(|v| expand(&v, home.as_deref()));

        let hf_home = path(&["HF_HOME"]).or_else(|| {
            let cache = path(&["XDG_CACHE_HOME"]).or_else(|| home.as_ref().map(|h| h.join(".cache")))?;
            Some(cache.join("huggingface"))
        });
        let token = if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else if let Some(text) = first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
            Some(Token::new(&text)?)
        } else {
            let file = path(&["HF_TOKEN_PATH"]).or_else(|| hf_home.as_ref().map(|h| h.join("token")));
            let text = file.and_then(|f| std::fs::read_to_string(f).ok()).unwrap_or_default();
            if text.trim().is_empty() { None } else { Some(Token::new(&text)?) }
        };
        let bypass = first(&["NO_PROXY", "no_proxy"]).unwrap_or_default();
        Ok(Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into()),
            cache_dir: path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
                .or_else(|| hf_home.as_ref().map(|h| h.join("hub"))),
            token,
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
            proxies: Proxies {
                http: first(&["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
                https: first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
                bypass: bypass.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect(),
            },
            ca_bundle: path(&["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"]),
            ..Self::default()
        })
    }
}

fn expand(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with(['/', '\\']) => home.join(&rest[1..]),
        _ => path.into(),
    }
}

/// An access token. It has no `Display`, and its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Returns a token without surrounding white space.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if it is empty, too long, or not one line of printable ASCII characters.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || text.len() > 1024 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            let reason = "invalid token, expected one line of printable ASCII characters".into();
            return Err(Error::Setting { name: "HF_TOKEN", reason });
        }
        Ok(Self(text.into()))
    }

    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Proxies by the scheme of the request: `http://`, `socks4://`, `socks4a://`, `socks5://` or `socks5h://`. Requests to
/// the loopback interface are always sent directly.
#[derive(Clone, Default)]
pub struct Proxies {
    /// URL of the proxy for `http://` requests.
    pub http: Option<String>,
    /// URL of the proxy for `https://` requests.
    pub https: Option<String>,
    /// Hosts without a proxy: names, `.suffix` or `*`.
    pub bypass: Vec<String>,
}

impl fmt::Debug for Proxies {
    /// Omits the URLs: they may contain passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (http, https) = (self.http.is_some(), self.https.is_some());
        write!(f, "Proxies {{ http: {http}, https: {https}, bypass: {:?} }}", self.bypass)
    }
}

/// Timeouts, minimum speed and number of attempts.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time to resolve a host name, and again to connect.
    pub connect: Duration,
    /// Time without a byte after which a connection counts as dead.
    pub stall: Duration,
    /// Minimum speed in bytes per second, measured over `rate_window`.
    pub min_rate: u64,
    /// Time over which the speed is measured.
    pub rate_window: Duration,
    /// Attempts after the first one without progress; progress resets the count.
    pub retries: u32,
    /// Wait before the first retry. It doubles with each retry, up to 16 times.
    pub backoff: Duration,
    /// Time since the last progress after which no attempt may end.
    pub give_up: Duration,
    /// Longest accepted `Retry-After`.
    pub max_wait: Duration,
    /// Age from which a partial file of another download is removed.
    pub stale: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            min_rate: 10,
            rate_window: Duration::from_secs(30),
            retries: 5,
            backoff: Duration::from_millis(500),
            give_up: Duration::from_secs(120),
            max_wait: Duration::from_secs(60),
            stale: Duration::from_secs(24 * 60 * 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vars: &[(&str, &str)]) -> Config {
        let get = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
        Config::from_env(get).unwrap()
    }

    #[test]
    fn cache_folder() {
        let check = |vars: &[(&str, &str)], expected: Option<&str>| {
            assert_eq!(config(vars).cache_dir, expected.map(PathBuf::from), "{vars:?}");
        };
        check(&[], None);
        check(&[("HOME", "/h")], Some("/h/.cache/huggingface/hub"));
        check(&[("USERPROFILE", "/u")], Some("/u/.cache/huggingface/hub"));
        check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/x/huggingface/hub"));
        check(&[("HOME", "/h"), ("HF_HOME", "/f"), ("XDG_CACHE_HOME", "/x")], Some("/f/hub"));
        check(&[("HOME", "/h"), ("HF_HOME", "~/f")], Some("/h/f/hub"));
        check(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], Some("/c"));
        check(&[("HF_HUB_CACHE", " "), ("HF_HOME", "/f")], Some("/f/hub"));
        check(&[("HUGGINGFACE_HUB_CACHE", "/o")], Some("/o"));
    }

    #[test]
    fn token_comes_from_variable_then_file() {
        let dir = tempfile::tempdir().unwrap();
        let (home, other) = (dir.path().join("home"), dir.path().join("other"));
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join("token"), "hf_home\n").unwrap();
        std::fs::write(&other, "hf_other").unwrap();
        let (home, other) = (home.to_str().unwrap(), other.to_str().unwrap());
        let check = |vars: &[(&str, &str)], expected: Option<&str>| {
            assert_eq!(config(vars).token.map(|t| t.0), expected.map(String::from), "{vars:?}");
        };
        check(&[], None);
        check(&[("HF_HOME", home)], Some("hf_home"));
        check(&[("HF_HOME", home), ("HF_TOKEN_PATH", other)], Some("hf_other"));
        check(&[("HF_HOME", home), ("HF_TOKEN", " hf_var ")], Some("hf_var"));
        check(&[("HUGGING_FACE_HUB_TOKEN", "hf_old")], Some("hf_old"));
        check(&[("HF_TOKEN", "hf_var"), ("HUGGING_FACE_HUB_TOKEN", "hf_old")], Some("hf_var"));
        check(&[("HF_TOKEN", "hf_var"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None);
        check(&[("HF_TOKEN_PATH", "/nonexistent/token")], None);
    }

    #[test]
    fn switches_and_proxies() {
        for (value, expected) in
            [("1", true), ("true", true), ("ON", true), ("0", false), ("", false), ("no", false)]
        {
            for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
                assert_eq!(config(&[(name, value)]).offline, expected, "{name}={value}");
            }
        }
        assert_eq!(config(&[]).endpoint, DEFAULT_ENDPOINT);
        let c = config(&[("ALL_PROXY", "http://all"), ("https_proxy", "http://tls"), ("NO_PROXY", "a, .b,")]);
        assert_eq!(c.proxies.http.as_deref(), Some("http://all"));
        assert_eq!(c.proxies.https.as_deref(), Some("http://tls"));
        assert_eq!(c.proxies.bypass, ["a", ".b"]);
        let c = config(&[("SSL_CERT_FILE", "/s.pem"), ("REQUESTS_CA_BUNDLE", "~/r.pem"), ("HOME", "/h")]);
        assert_eq!(c.ca_bundle, Some(PathBuf::from("/h/r.pem")));
    }

    #[test]
    fn secrets_are_not_shown() {
        let c = config(&[("HF_TOKEN", "hf_secret"), ("HTTPS_PROXY", "http://user:secret@proxy")]);
        assert!(!format!("{c:?}").contains("secret"));
        for invalid in ["a\nb", "a b", "ä", "\u{1b}[0m"] {
            let error = Config::from_env(|n| (n == "HF_TOKEN").then(|| invalid.into())).unwrap_err();
            assert!(!error.to_string().contains(invalid), "{error}");
        }
    }
}
