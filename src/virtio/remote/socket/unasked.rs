//! What a back end asks for by itself, on a channel of its own.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex},
};

use super::super::windows::Windows;
use crate::{
    sync::lock,
    virtio::vhost_user::{BackRequest, Header, Message, Received, Socket, Word},
};

/// How many requests are done at a time.
const TURN: usize = 16;

pub(super) struct Unasked {
    socket: Socket,
    stream: UnixStream,
    windows: Arc<Mutex<Windows>>,
    /// It has said that its configuration space has changed.
    config_changed: bool,
}

impl Unasked {
    /// A new channel, and the back end's end of it.
    pub fn new(windows: Arc<Mutex<Windows>>) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        let unasked = Self {
            stream: ours.try_clone()?,
            socket: Socket::new(ours),
            windows,
            config_changed: false,
        };
        Ok((unasked, theirs.into()))
    }

    pub fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.stream.try_clone()?.into())
    }

    /// Whether the configuration space has changed since this was last asked.
    pub fn take_config_changed(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    /// Does a bounded number of requests. Who does not read answers is not heard.
    pub fn serve(&mut self) -> io::Result<()> {
        for _ in 0..TURN {
            self.socket.flush()?;
            if self.socket.is_full() {
                return Ok(());
            }
            let Received::Message(mut message) = self.socket.receive()? else {
                return Ok(());
            };
            // Not zero: it was not done.
            let answer = u64::from(self.perform(&mut message).is_err());
            let header = message.header;
            if header.needs_reply() {
                let answer = Word(answer).to_bytes();
                self.socket
                    .send(Header::reply(header.request, answer.len()), &answer, None)?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, message: &mut Message) -> io::Result<()> {
        match BackRequest::new(message.header.request) {
            Some(BackRequest::ConfigChangeMsg) => {
                self.config_changed = true;
                Ok(())
            }
            Some(BackRequest::ShmemMap) => lock(&self.windows).map(message),
            Some(BackRequest::ShmemUnmap) => lock(&self.windows).unmap(message),
            // Memory that is translated is not shared.
            Some(BackRequest::IotlbMsg) | None => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// What others still have of it, to wait for, does not keep the other end from seeing that it is over.
impl Drop for Unasked {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
