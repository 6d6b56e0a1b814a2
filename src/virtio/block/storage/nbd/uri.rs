//! Where an export is (`doc/uri.md` of the NBD protocol).

use std::{path::PathBuf, str::FromStr};

use super::NbdError;

/// An export: which server, and what it calls it. As text a URI:
///
/// | URI | what it is |
/// |---|---|
/// | `nbd://HOST[:PORT]/EXPORT` | over TCP, port 10809 if there is none |
/// | `nbd+unix:///EXPORT?socket=PATH` | over a Unix socket |
/// | `nbds://HOST[:PORT]/EXPORT`, `nbds+unix:///EXPORT?socket=PATH` | the same with TLS, and never without |
///
/// The export may be empty: the server's default. `%` and two digits stand for a byte.
///
/// ```
/// use devisor::virtio::block::{NbdServer, NbdUri};
///
/// let uri: NbdUri = "nbd+unix:///disk?socket=/run/nbd%20socket".parse()?;
/// assert_eq!(uri.server, NbdServer::Unix("/run/nbd socket".into()));
/// assert_eq!((uri.export.as_str(), uri.tls), ("disk", false));
/// let uri: NbdUri = "nbds://[::1]/a/b".parse()?;
/// assert_eq!(uri.server, NbdServer::Tcp { host: "::1".into(), port: 10809 });
/// assert_eq!((uri.export.as_str(), uri.tls), ("a/b", true));
/// # Ok::<(), devisor::virtio::block::NbdError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Who serves it.
    pub server: NbdServer,
    /// What the server calls it.
    pub export: String,
    /// It has to be encrypted.
    pub tls: bool,
}

/// Where an NBD server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdServer {
    /// On TCP.
    Tcp {
        /// A name or an address. Looked up when a storage is made, and not again.
        host: String,
        /// The port; 10809 is NBD's.
        port: u16,
    },
    /// On a Unix socket.
    Unix(PathBuf),
}

/// IANA's for NBD.
const PORT: u16 = 10809;
/// The most that a server takes (`NBD_MAX_STRING`).
const MAX_EXPORT: usize = 4096;

impl FromStr for NbdUri {
    type Err = NbdError;

    fn from_str(uri: &str) -> Result<Self, NbdError> {
        parse(uri).map_err(|why| NbdError::Uri { uri: uri.into(), why })
    }
}

fn parse(uri: &str) -> Result<NbdUri, &'static str> {
    let (scheme, rest) = uri.split_once("://").ok_or("it has no scheme")?;
    let (tls, unix) = match scheme {
        "nbd" | "nbd+tcp" => (false, false),
        "nbds" | "nbds+tcp" => (true, false),
        "nbd+unix" => (false, true),
        "nbds+unix" => (true, true),
        _ => return Err("its scheme is none of nbd, nbds, nbd+unix, nbds+unix"),
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(path)?;
    if export.len() > MAX_EXPORT || export.contains('\0') {
        return Err("the name of its export is too long, or has a zero in it");
    }
    let mut socket = None;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("socket", path)) if unix && socket.is_none() => socket = Some(decode(path)?),
            _ => return Err("of parameters only one socket=PATH is taken, and only of a Unix socket"),
        }
    }
    let server = match (unix, socket) {
        (true, Some(path)) if authority.is_empty() && !path.is_empty() => NbdServer::Unix(path.into()),
        (true, _) => return Err("of a Unix socket it has to have the form nbd+unix:///EXPORT?socket=PATH"),
        _ => tcp(authority)?,
    };
    Ok(NbdUri { server, export, tls })
}

fn tcp(authority: &str) -> Result<NbdServer, &'static str> {
    if authority.contains('@') {
        return Err("it names a user, for which there is no use here");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("a bracket of its host is not closed")?;
            match after.strip_prefix(':') {
                None if !after.is_empty() => return Err("something follows the bracket of its host"),
                port => (host, port),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err("it has no host");
    }
    let port = match port {
        Some(port) => port.parse().map_err(|_| "its port is no number up to 65535")?,
        None => PORT,
    };
    Ok(NbdServer::Tcp {
        host: decode(host)?,
        port,
    })
}

fn decode(text: &str) -> Result<String, &'static str> {
    const WRONG: &str = "a % is not followed by two hexadecimal digits, or what it stands for is not UTF-8";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push((high << 4 | low) as u8),
            _ => return Err(WRONG),
        }
    }
    String::from_utf8(bytes).map_err(|_| WRONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_uri_of_ours_is_refused_with_the_reason() {
        for (uri, why) in [
            ("disk.img", "scheme"),
            ("http://host/", "scheme is none"),
            ("nbd:///export", "no host"),
            ("nbd://host:99999/", "port"),
            ("nbd://[::1/", "bracket"),
            ("nbd://[::1]x/", "follows"),
            ("nbd://user@host/", "user"),
            ("nbd+unix:///disk", "form"),
            ("nbd+unix://host/disk?socket=/s", "form"),
            ("nbd://host/?socket=/s", "parameters"),
            ("nbd://host/%4", "digits"),
            ("nbd://host/%ff", "UTF-8"),
            ("nbd://host/%00", "zero"),
        ] {
            let error = uri.parse::<NbdUri>().expect_err(uri).to_string();
            assert!(error.contains(why), "{uri}: {error}");
        }
    }

    #[test]
    fn an_export_may_be_empty_and_a_port_given() {
        let uri: NbdUri = "nbd://localhost:1234".parse().unwrap();
        assert_eq!(uri.export, "");
        let (host, port) = ("localhost".into(), 1234);
        assert_eq!(uri.server, NbdServer::Tcp { host, port });
    }
}
