//! A connection that is being made.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use super::{
    NbdError,
    handshake::{Export, Handshake, Progress},
    socket::{self, Stream},
};
use crate::virtio::Wait;

/// Gives sockets to a server.
pub type Connect = dyn Fn() -> io::Result<OwnedFd> + Send + Sync;

/// Where connections lead.
#[derive(Clone)]
pub enum Target {
    /// In the order in which they are tried.
    Tcp(Vec<SocketAddr>),
    Unix(PathBuf),
    Given(Arc<Connect>),
}

impl Target {
    /// The socket of the `attempt`th attempt in a row.
    fn socket(&self, attempt: usize) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(addresses) => socket::tcp(&addresses[attempt % addresses.len()]),
            Self::Unix(path) => socket::unix(path),
            Self::Given(connect) => socket::prepare(connect()?),
        }
    }

    /// How many attempts it takes to have tried everything.
    pub fn ways(&self) -> usize {
        match self {
            Self::Tcp(addresses) => addresses.len(),
            _ => 1,
        }
    }
}

/// What is asked of a server.
pub struct Wanted {
    pub target: Target,
    pub export: String,
    #[cfg(feature = "nbd-tls")]
    pub tls: Option<super::tls::Client>,
}

impl Wanted {
    fn is_secured(&self) -> bool {
        #[cfg(feature = "nbd-tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "nbd-tls"))]
        false
    }
}

pub struct Opening {
    stream: Stream,
    connected: bool,
    handshake: Handshake,
    input: Vec<u8>,
    /// Something is to be sent.
    sending: bool,
}

/// Bytes that are read at a time.
const READ: usize = 4096;

impl Opening {
    pub fn begin(wanted: &Wanted, attempt: usize) -> Result<Self, NbdError> {
        let socket = wanted.target.socket(attempt).map_err(NbdError::Connect)?;
        Ok(Self {
            stream: Stream::Plain(Arc::new(socket)),
            connected: false,
            handshake: Handshake::new(&wanted.export, wanted.is_secured()),
            input: Vec::new(),
            sending: false,
        })
    }

    pub fn socket(&self) -> &Arc<OwnedFd> {
        self.stream.socket()
    }

    /// Goes on as far as that is possible without waiting. The export, once all is agreed.
    pub fn step(&mut self, wanted: &Wanted) -> Result<Option<Export>, NbdError> {
        if !self.connected {
            self.connected = socket::is_connected(self.stream.socket()).map_err(NbdError::Connect)?;
            if !self.connected {
                return Ok(None);
            }
        }
        loop {
            self.send()?;
            let mut room = [0; READ];
            match self.stream.read_bytes(&mut room) {
                Ok(0) => return Err(NbdError::Connect(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.input.extend(&room[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // TLS answers by itself.
                    self.send()?;
                    return Ok(None);
                }
                Err(error) => return Err(NbdError::Connect(error)),
            }
            if let Some(export) = self.consume(wanted)? {
                return Ok(Some(export));
            }
        }
    }

    fn consume(&mut self, wanted: &Wanted) -> Result<Option<Export>, NbdError> {
        let mut consumed = 0;
        loop {
            let (count, progress) = self.handshake.feed(&self.input[consumed..])?;
            consumed += count;
            let rest = self.input.len() - consumed;
            match progress {
                Progress::More if count == 0 => break,
                Progress::More => {}
                // What was sent in the clear must not be taken for what is secured.
                _ if rest != 0 => return Err(NbdError::Protocol("it sends what it was not asked for")),
                Progress::StartTls => {
                    self.input.clear();
                    self.secure(wanted)?;
                    self.handshake.secured();
                    return Ok(None);
                }
                Progress::Done(export) => return Ok(Some(export)),
            }
        }
        self.input.drain(..consumed);
        Ok(None)
    }

    #[cfg(feature = "nbd-tls")]
    fn secure(&mut self, wanted: &Wanted) -> Result<(), NbdError> {
        if let Some(client) = &wanted.tls {
            let socket = Arc::clone(self.stream.socket());
            self.stream = Stream::Tls(Box::new(client.stream(socket)?));
        }
        Ok(())
    }

    #[cfg(not(feature = "nbd-tls"))]
    fn secure(&mut self, _: &Wanted) -> Result<(), NbdError> {
        Err(NbdError::NoTls)
    }

    fn send(&mut self) -> Result<(), NbdError> {
        let output = self.handshake.output();
        self.sending = false;
        while !output.is_empty() {
            match self.stream.write_bytes(output) {
                Ok(count) => _ = output.drain(..count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.sending = true;
                    break;
                }
                Err(error) => return Err(NbdError::Connect(error)),
            }
        }
        self.sending |= self.stream.flush().map_err(NbdError::Connect)?;
        Ok(())
    }

    /// What it waits for.
    pub fn waits(&self) -> [Option<Wait>; 2] {
        let fd = self.stream.socket().as_raw_fd();
        let writable = Some(Wait::Writable(fd));
        match self.connected {
            false => [writable, None],
            true => [Some(Wait::Readable(fd)), writable.filter(|_| self.sending)],
        }
    }

    pub fn into_stream(self) -> Stream {
        self.stream
    }
}
