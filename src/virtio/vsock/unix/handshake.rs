//! What a program says first that wants a connection to the guest.

use std::{
    io::{self, Read},
    os::{fd::AsRawFd, unix::net::UnixStream},
    time::Duration,
};

use super::super::SocketKind;

/// Bytes of the longest line.
const LINE: usize = 64;

/// A program that has not said yet whom it wants.
pub(super) struct Handshake {
    pub stream: UnixStream,
    pub deadline: Duration,
}

/// Whom it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub port: u32,
    pub kind: SocketKind,
}

impl Handshake {
    /// What it has said. `None`, if that is not all of it. What is behind the line stays where it is.
    pub fn read(&self) -> io::Result<Option<Asked>> {
        let mut line = [0; LINE];
        // SAFETY: there is room for as many bytes as is said.
        let peeked = unsafe {
            libc::recv(
                self.stream.as_raw_fd(),
                line.as_mut_ptr().cast(),
                LINE,
                libc::MSG_PEEK | libc::MSG_DONTWAIT,
            )
        };
        let len = match usize::try_from(peeked) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(_) => {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                    _ => Err(error),
                };
            }
        };
        let Some(end) = line[..len].iter().position(|byte| *byte == b'\n') else {
            return match len {
                LINE => Err(io::ErrorKind::InvalidData.into()),
                _ => Ok(None),
            };
        };
        let asked = parse(&line[..end]).ok_or(io::ErrorKind::InvalidData)?;
        (&self.stream).read_exact(&mut line[..=end])?;
        Ok(Some(asked))
    }
}

fn parse(line: &[u8]) -> Option<Asked> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.strip_suffix('\r').unwrap_or(line).split(' ');
    let asked = match (words.next()?, words.next()?, words.next()) {
        ("CONNECT", port, kind) => Asked {
            // `parse` would take a sign.
            port: port
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| port.parse().ok())??,
            kind: match kind {
                None => SocketKind::Stream,
                Some("SEQPACKET") => SocketKind::Seqpacket,
                Some(_) => return None,
            },
        },
        _ => return None,
    };
    words.next().is_none().then_some(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_port_and_perhaps_a_type() {
        let stream = |port| {
            Some(Asked {
                port,
                kind: SocketKind::Stream,
            })
        };
        let seqpacket = |port| {
            Some(Asked {
                port,
                kind: SocketKind::Seqpacket,
            })
        };
        for (line, asked) in [
            ("CONNECT 52", stream(52)),
            ("CONNECT 52\r", stream(52)),
            ("CONNECT 4294967295", stream(u32::MAX)),
            ("CONNECT 1 SEQPACKET", seqpacket(1)),
            ("CONNECT 4294967296", None),
            ("CONNECT -1", None),
            ("CONNECT +1", None),
            ("CONNECT ", None),
            ("CONNECT", None),
            ("connect 1", None),
            ("CONNECT 1 2", None),
            ("CONNECT 1 SEQPACKET x", None),
            ("CONNECT  1", None),
            ("GET / HTTP/1.1", None),
            ("", None),
        ] {
            assert_eq!(parse(line.as_bytes()), asked, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT \xff"), None);
    }
}
