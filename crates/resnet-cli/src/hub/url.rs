//! URLs: how a file's is built, who may be asked, and which redirects are followed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;

use ureq::http::Uri;

use super::names::{RepoId, Revision};

/// Scheme, host and port: the unit of trust. A token goes to one origin only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) https: bool,
    /// Lower case; an IPv6 address without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Origin {
    /// The origin of an absolute URL, or the reason why it is none that we ask.
    pub(super) fn of(url: &Uri) -> Result<Self, &'static str> {
        let https = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("the URL is neither http nor https"),
        };
        let authority = url.authority().ok_or("the URL has no host")?;
        if authority.as_str().contains('@') {
            return Err("the URL holds a user name or password");
        }
        let host = authority.host().trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        if host.is_empty() {
            return Err("the URL has no host");
        }
        let default = if https { 443 } else { 80 };
        Ok(Self { https, host, port: authority.port_u16().unwrap_or(default) })
    }

    /// The reach of the host, as far as its spelling tells.
    pub(super) fn literal_reach(&self) -> Option<Reach> {
        if self.host == "localhost" || self.host.ends_with(".localhost") {
            return Some(Reach::Loopback);
        }
        self.host.parse::<IpAddr>().ok().map(Reach::of)
    }

    /// The widest-ruling reach among the host's addresses; `None` where it has none (yet).
    pub(super) fn reach(&self, timeout: Duration) -> Option<Reach> {
        if let Some(reach) = self.literal_reach() {
            return Some(reach);
        }
        // The system's resolver has no timeout of its own.
        let (sender, receiver) = mpsc::channel();
        let name = (self.host.clone(), self.port);
        std::thread::spawn(move || {
            let found = name.to_socket_addrs().ok();
            let _ = sender.send(found.and_then(|all| all.map(|a| Reach::of(a.ip())).max()));
        });
        receiver.recv_timeout(timeout).ok().flatten()
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.literal_reach() == Some(Reach::Loopback)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if self.port != if self.https { 443 } else { 80 } { write!(f, ":{}", self.port) } else { Ok(()) }
    }
}

/// From where an address can be reached; a later one is asked for with more reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    Public,
    /// A local network.
    Private,
    /// This machine.
    Loopback,
    /// Link-local (where clouds serve credentials), multicast, broadcast.
    Special,
}

impl Reach {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => {
                if let Some(v4) = v6.to_ipv4_mapped() {
                    Self::of_v4(v4)
                } else if v6.is_loopback() || v6.is_unspecified() {
                    Self::Loopback
                } else if v6.is_unicast_link_local() || v6.is_multicast() {
                    Self::Special
                } else if v6.is_unique_local() {
                    Self::Private
                } else {
                    Self::Public
                }
            }
        }
    }

    fn of_v4(v4: Ipv4Addr) -> Self {
        let [a, b, ..] = v4.octets();
        if v4.is_loopback() || a == 0 {
            Self::Loopback
        } else if v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() {
            Self::Special
        } else if v4.is_private() || (a == 100 && (64..128).contains(&b)) {
            Self::Private
        } else {
            Self::Public
        }
    }
}

/// Whether a redirect from `from` to `to` may be followed on behalf of `endpoint`; otherwise the reason.
///
/// `reach` looks up where a host is; it is asked only for another origin than the endpoint's.
pub(super) fn check_redirect(
    endpoint: &Origin,
    from: &Origin,
    to: &Origin,
    reach: impl Fn(&Origin) -> Option<Reach>,
) -> Result<(), String> {
    if from.https && !to.https {
        return Err(format!("https leads to plain http at {to}"));
    }
    if to == endpoint {
        return Ok(());
    }
    let allowed = match reach(to) {
        // A host without an address fails to connect; that message is the better one.
        None | Some(Reach::Public) => true,
        Some(Reach::Private) => matches!(reach(endpoint), Some(Reach::Private | Reach::Loopback)),
        Some(Reach::Loopback) => reach(endpoint) == Some(Reach::Loopback),
        Some(Reach::Special) => false,
    };
    if allowed { Ok(()) } else { Err(format!("{to} is an address of a private network or of this machine")) }
}

/// The target of a `Location` header, which may be relative to the URL that answered.
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let location = location.split('#').next().unwrap_or(location);
    let colon = location.find(':').unwrap_or(usize::MAX);
    let absolute = colon < location.find(['/', '?']).unwrap_or(usize::MAX);
    let text = if absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let path = base.path();
        let folder = if location.starts_with('?') { path } else { &path[..=path.rfind('/')?] };
        format!("{scheme}://{authority}{folder}{location}")
    };
    text.parse().ok()
}

/// The URL at which a Hub serves a file.
pub(super) fn of_file(endpoint: &str, repo: &RepoId, revision: &Revision, file: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    format!("{endpoint}/{repo}/resolve/{}/{}", encode(revision.as_str(), b""), encode(file, b"/"))
}

fn encode(text: &str, keep: &[u8]) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || keep.contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Origin {
        Origin::of(&url.parse().unwrap()).unwrap()
    }

    #[test]
    fn origins() {
        assert_eq!(origin("https://Huggingface.co./x").to_string(), "huggingface.co");
        assert_eq!(origin("http://[::1]:80/x").host, "::1");
        for bad in ["ftp://a/", "/a", "https://user:pass@a/"] {
            assert!(Origin::of(&bad.parse().unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn reaches() {
        let check = |host: &str, expected| {
            assert_eq!(origin(&format!("http://{host}/")).literal_reach(), expected, "{host}");
        };
        check("8.8.8.8", Some(Reach::Public));
        check("127.3.2.1", Some(Reach::Loopback));
        check("0.0.0.0", Some(Reach::Loopback));
        check("localhost", Some(Reach::Loopback));
        check("[::1]", Some(Reach::Loopback));
        check("[::ffff:10.0.0.1]", Some(Reach::Private));
        check("172.16.0.1", Some(Reach::Private));
        check("100.64.0.1", Some(Reach::Private));
        check("[fd00::1]", Some(Reach::Private));
        check("169.254.169.254", Some(Reach::Special));
        check("[fe80::1]", Some(Reach::Special));
        check("huggingface.co", None);
        // A number is an address to the system's resolver, and is looked up there.
        check("2130706433", None);
    }

    #[test]
    fn redirects() {
        let hosts = |o: &Origin| o.literal_reach().or(Some(Reach::Public));
        let check = |endpoint: &str, from: &str, to: &str, allowed: bool| {
            let (endpoint, from, to) = (origin(endpoint), origin(from), origin(to));
            assert_eq!(check_redirect(&endpoint, &from, &to, hosts).is_ok(), allowed, "{from} to {to}");
        };
        let hub = "https://huggingface.co";
        check(hub, hub, "https://cdn.hf.co", true);
        check(hub, hub, "http://cdn.hf.co", false);
        check(hub, "https://cdn.hf.co", hub, true);
        for private in [
            "https://127.0.0.1",
            "https://localhost:1",
            "https://10.0.0.1",
            "https://169.254.169.254",
            "https://[::1]",
        ] {
            check(hub, hub, private, false);
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
        let check = |location: &str, expected: &str| {
            assert_eq!(resolve(&base, location).unwrap(), expected, "{location}");
        };
        check("https://b/c?d=e:f", "https://b/c?d=e:f");
        check("//b/c", "https://b/c");
        check("/c?d#e", "https://a:1/c?d");
        check("c", "https://a:1/x/c");
        check("?d", "https://a:1/x/y?d");
        assert!(resolve(&base, "https://b/ c").is_none());
    }

    #[test]
    fn file_urls() {
        let (repo, revision) = RepoId::parse("timm/x@refs/pr/1").unwrap();
        assert_eq!(
            of_file("http://h/p/", &repo, &revision, "a b/ü?.json"),
            "http://h/p/timm/x/resolve/refs%2Fpr%2F1/a%20b/%C3%BC%3F.json"
        );
    }
}
