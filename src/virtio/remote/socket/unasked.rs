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

use super::super::{objects::Member, windows::Windows};
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
    objects: Option<Arc<Member>>,
    /// It has said that its configuration space has changed.
    config_changed: bool,
}

impl Unasked {
    /// A new channel, and the back end's end of it.
    pub fn new(windows: Arc<Mutex<Windows>>, objects: Option<Arc<Member>>) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        let unasked = Self {
            stream: ours.try_clone()?,
            socket: Socket::new(ours),
            windows,
            objects,
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

    /// Whether the configuration space has changed, as [`take_config_changed`](Self::take_config_changed) is to say.
    pub fn config_changed(&self) -> bool {
        self.config_changed
    }

    /// Whether the configuration space has changed since this was last asked.
    pub fn take_config_changed(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    /// Does a bounded number of requests, and one alone that others have to be asked for. Who does not read answers is not heard.
    pub fn serve(&mut self) -> io::Result<()> {
        for _ in 0..TURN {
            self.socket.flush()?;
            if self.socket.is_full() {
                return Ok(());
            }
            let Received::Message(mut message) = self.socket.receive()? else {
                return Ok(());
            };
            let header = message.header;
            let (done, file, answered) = match BackRequest::new(header.request) {
                // It is always answered.
                Some(BackRequest::SharedObjectLookup) => match self.look_up(&message) {
                    Ok(file) => (true, Some(file), true),
                    Err(_) => (false, None, true),
                },
                _ => (self.perform(&mut message).is_ok(), None, header.needs_reply()),
            };
            if answered {
                // Not zero: it was not done.
                let answer = Word(u64::from(!done)).to_bytes();
                self.socket
                    .send(Header::reply(header.request, answer.len()), &answer, file)?;
            }
            if header.request == BackRequest::SharedObjectLookup as u32 {
                return Ok(());
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
            Some(BackRequest::SharedObjectAdd) => self.objects()?.add(uuid_of(message)?),
            Some(BackRequest::SharedObjectRemove) => self.objects()?.remove(uuid_of(message)?),
            // Memory that is translated is not shared.
            Some(BackRequest::IotlbMsg | BackRequest::SharedObjectLookup) | None => {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
    }

    fn objects(&self) -> io::Result<&Member> {
        self.objects.as_deref().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn look_up(&self, message: &Message) -> io::Result<OwnedFd> {
        self.objects()?.look_up(uuid_of(message)?)
    }
}

/// `VhostUserShared`.
fn uuid_of(message: &Message) -> io::Result<[u8; 16]> {
    let uuid = message.payload.first_chunk().copied();
    uuid.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// What others still have of it, to wait for, does not keep the other end from seeing that it is over.
impl Drop for Unasked {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
