//! Settings of a [`Client`](super::Client), and the one place that knows the environment's names for them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{HubError, Result};

/// The public Hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where files come from, where they are kept, and how long to wait.
#[derive(Debug, Clone)]
pub struct Config {
    /// URL of the Hub, such as `https://huggingface.co`; a path is kept as a prefix.
    pub endpoint: String,
    /// The cache's folder (with `models--owner--name` in it), shared with Python's `huggingface_hub`.
    /// `None` where no home folder is known.
    pub cache_dir: Option<PathBuf>,
    /// Sent to the endpoint only, never to a host that it redirects to.
    pub token: Option<Token>,
    /// Opens no socket; what is not in the cache is an error.
    pub offline: bool,
    /// Hashes cached files again, even those that did not change since they were last verified.
    pub verify: bool,
    /// Takes a lock file so that two processes don't download the same file twice. Correctness does not rest on it.
    pub locks: bool,
    /// Proxies by scheme.
    pub proxies: Proxies,
    /// Timeouts, rates and numbers of attempts.
    pub limits: Limits,
}

impl Default for Config {
    /// The public Hub with no cache folder, token or proxy.
    fn default() -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.into(),
            cache_dir: None,
            token: None,
            offline: false,
            verify: false,
            locks: true,
            proxies: Proxies::default(),
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// Reads the settings from the environment, with the names and the precedence of Python's `huggingface_hub`:
    /// `HF_ENDPOINT`, `HF_HUB_CACHE` (before it `HUGGINGFACE_HUB_CACHE`), `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE`, `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`,
    /// `NO_PROXY` and the home folder. `get` looks a variable up.
    ///
    /// # Errors
    ///
    /// [`HubError::Setting`] for a token that cannot be sent in a header.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name: &str| get(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let is_true = |name: &str| {
            get(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_ascii_uppercase().as_str()))
        };
        let home = get("HOME").or_else(|| get("USERPROFILE")).map(PathBuf::from);
        let path = |name: &str| get(name).map(|v| expand(&v, home.as_deref()));

        let hf_home = path("HF_HOME").or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|h| h.join(".cache")))?;
            Some(cache.join("huggingface"))
        });
        let cache_dir = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hf_home.as_ref().map(|h| h.join("hub")));

        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.map(|h| h.join("token")));
        let token = if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else if let Some(text) = get("HF_TOKEN") {
            Some(Token::new(&text)?)
        } else {
            let text = token_file.and_then(|f| std::fs::read_to_string(f).ok()).unwrap_or_default();
            if text.trim().is_empty() { None } else { Some(Token::new(&text)?) }
        };

        let proxy = |names: [&str; 4]| names.iter().find_map(|n| get(n));
        let bypass = get("NO_PROXY").or_else(|| get("no_proxy")).unwrap_or_default();
        Ok(Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into()),
            cache_dir,
            token,
            offline: is_true("HF_HUB_OFFLINE"),
            proxies: Proxies {
                http: proxy(["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
                https: proxy(["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
                bypass: bypass.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect(),
            },
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
    /// Takes a token; white space around it is dropped.
    ///
    /// # Errors
    ///
    /// [`HubError::Setting`] where it is empty or holds a character that no token has.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || text.len() > 1024 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            let reason = "the token must be one line of printable ASCII characters".into();
            return Err(HubError::Setting { name: "HF_TOKEN", reason });
        }
        Ok(Self(text.into()))
    }

    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Proxies by the scheme of the request; hosts of the loopback interface are always asked directly.
#[derive(Clone, Default)]
pub struct Proxies {
    /// URL of the proxy for `http://` requests.
    pub http: Option<String>,
    /// URL of the proxy for `https://` requests.
    pub https: Option<String>,
    /// Hosts asked directly: names, `.suffix` or `*`.
    pub bypass: Vec<String>,
}

impl fmt::Debug for Proxies {
    /// Proxy URLs may hold passwords, so they are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |p: &Option<String>| if p.is_some() { "…" } else { "none" };
        write!(
            f,
            "Proxies {{ http: {}, https: {}, bypass: {:?} }}",
            set(&self.http),
            set(&self.https),
            self.bypass
        )
    }
}

/// How long to wait, how slow is too slow, how often to try again.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time to look a host up, and again to connect to it.
    pub connect: Duration,
    /// Time without a byte after which a connection counts as dead.
    pub stall: Duration,
    /// Least rate in bytes per second, measured over `rate_window`.
    pub min_rate: u64,
    /// Time over which the rate is measured.
    pub rate_window: Duration,
    /// Attempts after the first that brings nothing; progress starts the count again.
    pub retries: u32,
    /// Wait before the first new attempt; doubles with each, up to 16 times as long.
    pub backoff: Duration,
    /// No new attempt is begun that could end later than this after the last progress.
    pub give_up: Duration,
    /// Longest `Retry-After` that is waited for.
    pub longest_wait: Duration,
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
            longest_wait: Duration::from_secs(60),
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
        check(&[("HF_TOKEN", "hf_var"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None);
        check(&[("HF_TOKEN_PATH", "/nonexistent/token")], None);
    }

    #[test]
    fn switches_and_proxies() {
        for (value, expected) in
            [("1", true), ("true", true), ("ON", true), ("0", false), ("", false), ("no", false)]
        {
            assert_eq!(config(&[("HF_HUB_OFFLINE", value)]).offline, expected, "{value:?}");
        }
        assert_eq!(config(&[]).endpoint, DEFAULT_ENDPOINT);
        let c = config(&[("ALL_PROXY", "http://all"), ("https_proxy", "http://tls"), ("NO_PROXY", "a, .b,")]);
        assert_eq!(c.proxies.http.as_deref(), Some("http://all"));
        assert_eq!(c.proxies.https.as_deref(), Some("http://tls"));
        assert_eq!(c.proxies.bypass, ["a", ".b"]);
    }

    #[test]
    fn secrets_are_not_shown() {
        let c = config(&[("HF_TOKEN", "hf_secret"), ("HTTPS_PROXY", "http://user:secret@proxy")]);
        assert!(!format!("{c:?}").contains("secret"));
        for bad in ["a\nb", "a b", "ä", "\u{1b}[0m"] {
            let error = Config::from_env(|n| (n == "HF_TOKEN").then(|| bad.into())).unwrap_err();
            assert!(!error.to_string().contains(bad), "{error}");
        }
    }
}
