//! Origins, redirects between them, and the URL of a file.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ureq::http::Uri;

use crate::names::RepoId;

/// Scheme, host and port: the unit of trust. The token is sent to one origin only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) https: bool,
    /// Lower case; an IPv6 address without brackets.
    host: String,
    port: u16,
}

impl Origin {
    /// Returns the origin of an absolute URL, or the reason why no request is sent to it.
    pub(crate) fn from_url(url: &Uri) -> Result<Self, &'static str> {
        let https = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("the URL is neither http nor https"),
        };
        let authority = url.authority().ok_or("the URL has no host")?;
        if authority.as_str().contains('@') {
            return Err("the URL contains a user name or password");
        }
        let host = authority.host().trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        if host.is_empty() {
            return Err("the URL has no host");
        }
        Ok(Self { https, host, port: authority.port_u16().unwrap_or(if https { 443 } else { 80 }) })
    }

    /// Returns the network of a literal address; a host name counts as public.
    fn network(&self) -> Network {
        let localhost = self.host == "localhost" || self.host.ends_with(".localhost");
        match self.host.parse() {
            Ok(IpAddr::V4(v4)) => Network::from_ipv4(v4),
            Ok(IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
                Some(v4) => Network::from_ipv4(v4),
                None if v6.is_loopback() || v6.is_unspecified() => Network::Loopback,
                None if v6.is_unicast_link_local() || v6.is_multicast() => Network::LinkLocal,
                None if v6.is_unique_local() => Network::Private,
                None => Network::Public,
            },
            Err(_) if localhost => Network::Loopback,
            Err(_) => Network::Public,
        }
    }

    pub(crate) fn is_loopback(&self) -> bool {
        self.network() == Network::Loopback
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if self.port != if self.https { 443 } else { 80 } { write!(f, ":{}", self.port) } else { Ok(()) }
    }
}

/// The network of an address, by increasing distrust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Network {
    Public,
    Private,
    Loopback,
    /// Link-local (where clouds serve credentials), multicast, broadcast.
    LinkLocal,
}

impl Network {
    fn from_ipv4(v4: Ipv4Addr) -> Self {
        let [a, b, ..] = v4.octets();
        if v4.is_loopback() || a == 0 {
            Self::Loopback
        } else if v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() {
            Self::LinkLocal
        } else if v4.is_private() || (a == 100 && (64..128).contains(&b)) {
            Self::Private
        } else {
            Self::Public
        }
    }
}

/// Checks a redirect from `from` to `to` on behalf of `endpoint`.
///
/// A public endpoint must not redirect to a literal address of a private network. Host names are not resolved: such a
/// request carries no token, and the response is used only if it has the hash that the endpoint announced.
pub(crate) fn check_redirect(endpoint: &Origin, from: &Origin, to: &Origin) -> Result<(), String> {
    if from.https && !to.https {
        return Err(format!("https leads to plain http at {to}"));
    }
    let network = to.network();
    let limit = endpoint.network().min(Network::Loopback);
    if to == endpoint || network == Network::Public || network <= limit {
        return Ok(());
    }
    Err(format!("{to} is an address of a private network or of this machine"))
}

/// Returns the target of a `Location` header: an absolute URL, `//host/path` or `/path`.
pub(crate) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let location = location.split('#').next().unwrap_or(location);
    let text = match location {
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => location.to_owned(),
    };
    text.parse().ok().filter(|url: &Uri| url.scheme().is_some())
}

/// Returns the URL of a file at an endpoint.
pub(crate) fn file_url(endpoint: &str, repo: &RepoId, file: &str) -> String {
    let (endpoint, name) = (endpoint.trim_end_matches('/'), repo.name());
    format!("{endpoint}/{name}/resolve/{}/{}", encode(repo.revision(), b""), encode(file, b"/"))
}

fn encode(text: &str, keep: &[u8]) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || keep.contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Origin {
        Origin::from_url(&url.parse().unwrap()).unwrap()
    }

    #[test]
    fn origins() {
        assert_eq!(origin("https://Huggingface.co./x").to_string(), "huggingface.co");
        assert_eq!(origin("http://[::1]:80/x").host, "::1");
        for invalid in ["ftp://a/", "/a", "https://user:pass@a/"] {
            assert!(Origin::from_url(&invalid.parse().unwrap()).is_err(), "{invalid}");
        }
    }

    #[test]
    fn networks() {
        for (network, hosts) in [
            (Network::Public, &["8.8.8.8", "huggingface.co"][..]),
            (Network::Loopback, &["127.3.2.1", "0.0.0.0", "localhost", "[::1]"]),
            (Network::Private, &["[::ffff:10.0.0.1]", "172.16.0.1", "100.64.0.1", "[fd00::1]"]),
            (Network::LinkLocal, &["169.254.169.254", "[fe80::1]"]),
        ] {
            for host in hosts {
                assert_eq!(origin(&format!("http://{host}/")).network(), network, "{host}");
            }
        }
    }

    #[test]
    fn redirects() {
        let check = |endpoint: &str, from: &str, to: &str, allowed: bool| {
            let result = check_redirect(&origin(endpoint), &origin(from), &origin(to));
            assert_eq!(result.is_ok(), allowed, "{from} to {to}");
        };
        let hub = "https://huggingface.co";
        check(hub, hub, "https://cdn.hf.co", true);
        check(hub, hub, "http://cdn.hf.co", false);
        check(hub, "https://cdn.hf.co", hub, true);
        for host in ["127.0.0.1", "localhost:1", "10.0.0.1", "169.254.169.254", "[::1]"] {
            check(hub, hub, &format!("https://{host}"), false);
        }
        let lan = "http://10.0.0.1:8080";
        check(lan, lan, "http://10.0.0.2", true);
        check(lan, lan, "https://cdn.hf.co", true);
        check(lan, lan, "http://127.0.0.1", false);
        check(lan, lan, "http://169.254.169.254", false);
        let local = "http://127.0.0.1:1";
        check(local, local, "http://127.0.0.1:2", true);
        check(local, local, "http://10.0.0.1", true);
        check(local, local, "http://169.254.169.254", false);
    }

    #[test]
    fn locations() {
        let base = "https://a:1/x/y?q".parse().unwrap();
        for (location, expected) in [
            ("https://b/c?d=e:f", "https://b/c?d=e:f"),
            ("//b/c", "https://b/c"),
            ("/c?d#e", "https://a:1/c?d"),
        ] {
            assert_eq!(resolve(&base, location).unwrap(), expected, "{location}");
        }
        for invalid in ["https://b/ c", "c", "?d", ""] {
            assert!(resolve(&base, invalid).is_none(), "{invalid}");
        }
    }

    #[test]
    fn file_urls() {
        let repo = RepoId::parse("timm/x@refs/pr/1").unwrap();
        assert_eq!(
            file_url("http://h/p/", &repo, "a b/ü?.json"),
            "http://h/p/timm/x/resolve/refs%2Fpr%2F1/a%20b/%C3%BC%3F.json"
        );
    }
}
