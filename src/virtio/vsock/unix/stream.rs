//! A connection over a Unix socket.

use std::{
    io::{self, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use vm_memory::VolatileSlice;

use super::super::{Boundary, Direction, Received, SocketKind, Stream, Token};
use crate::{sync::lock, virtio::host_io};

/// Fields of the header of a fragment.
const LEN: u32 = (1 << 30) - 1;
const MESSAGE: u32 = 1 << 30;
const RECORD: u32 = 1 << 31;
/// Bytes of it.
const HEADER: usize = 4;

pub(super) struct UnixEnd {
    stream: UnixStream,
    events: Arc<OwnedFd>,
    token: Token,
    /// The poller is to tell of room to write.
    blocked: AtomicBool,
    /// Where both directions are, of a seqpacket connection.
    framing: Option<Mutex<Framing>>,
}

/// Where the fragments of both directions are.
#[derive(Default)]
struct Framing {
    /// What has come of the header of the fragment that is read.
    header: [u8; HEADER],
    header_len: usize,
    /// Bytes of it that are to be read.
    unread: usize,
    /// What is left of the header of the fragment that is written.
    promise: [u8; HEADER],
    promise_left: usize,
    /// Bytes of it that are to be written.
    unwritten: usize,
}

impl UnixEnd {
    pub fn new(stream: UnixStream, kind: SocketKind, events: &Arc<OwnedFd>, token: Token) -> Self {
        Self {
            stream,
            events: Arc::clone(events),
            token,
            blocked: AtomicBool::new(false),
            framing: (kind == SocketKind::Seqpacket).then(Mutex::default),
        }
    }

    /// Fills `room` as far as there is anything, however many pieces it is in: the poller does not tell again of what is left.
    fn receive(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let fd = self.stream.as_raw_fd();
        let (first, more) = room.split_at(room.len().min(host_io::PIECES));
        let mut received = host_io::read(fd, first)?;
        let mut full = received == bytes(first);
        let mut calls = more.chunks(host_io::PIECES);
        while full && let Some(pieces) = calls.next() {
            // What has failed has been told of.
            let len = host_io::read(fd, pieces).unwrap_or(0);
            received += len;
            full = len == bytes(pieces);
        }
        Ok(received)
    }

    /// Room is told of only while it is waited for: each read of the other end would be an event.
    fn send(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let sent = host_io::send(self.stream.as_raw_fd(), data);
        let blocked = matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        if blocked || self.blocked.load(Ordering::Relaxed) {
            self.blocked.store(blocked, Ordering::Relaxed);
            let fd = self.stream.as_raw_fd();
            super::watch(&self.events, fd, self.token.0, libc::EPOLL_CTL_MOD, blocked)?;
        }
        sent
    }

    fn read_framed(&self, framing: &mut Framing, room: &[VolatileSlice<'_>]) -> io::Result<Received> {
        while framing.header_len < HEADER {
            let rest = &mut framing.header[framing.header_len..];
            match self.receive(&[VolatileSlice::from(rest)])? {
                0 => return Ok(Received::End),
                len => framing.header_len += len,
            }
            if framing.header_len == HEADER {
                framing.unread = (u32::from_le_bytes(framing.header) & LEN) as usize;
            }
        }
        let mut len = 0;
        if framing.unread != 0 {
            len = with_first(room, framing.unread, |room| self.receive(room))?;
            if len == 0 {
                return Ok(Received::End);
            }
            framing.unread -= len;
        }
        if framing.unread != 0 {
            return Ok(Received::Data(len, Boundary::None));
        }
        let header = u32::from_le_bytes(framing.header);
        framing.header_len = 0;
        let boundary = match header {
            header if header & RECORD != 0 => Boundary::Record,
            header if header & MESSAGE != 0 => Boundary::Message,
            _ => Boundary::None,
        };
        Ok(Received::Data(len, boundary))
    }

    fn write_framed(&self, framing: &mut Framing, data: &[VolatileSlice<'_>], boundary: Boundary) -> io::Result<usize> {
        let total = bytes(data).min(LEN as usize);
        if framing.promise_left == 0 && framing.unwritten == 0 {
            let flags = match boundary {
                Boundary::None => 0,
                Boundary::Message => MESSAGE,
                Boundary::Record => MESSAGE | RECORD,
            };
            framing.promise = (total as u32 | flags).to_le_bytes();
            (framing.promise_left, framing.unwritten) = (HEADER, total);
        }
        while framing.promise_left != 0 {
            let rest = &mut framing.promise[HEADER - framing.promise_left..];
            framing.promise_left -= self.send(&[VolatileSlice::from(rest)])?;
        }
        // The same data comes again until it is taken.
        let len = framing.unwritten.min(total);
        if len == 0 {
            return Ok(0);
        }
        let written = with_first(data, len, |data| self.send(data))?;
        framing.unwritten -= written;
        Ok(written)
    }
}

fn bytes(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// Calls `f` with the first `len` bytes of `slices`, which are some, or with fewer, but some.
fn with_first<R>(slices: &[VolatileSlice<'_>], len: usize, f: impl FnOnce(&[VolatileSlice<'_>]) -> R) -> R {
    let mut sum = 0;
    let whole = slices.iter().take_while(|slice| {
        sum += slice.len();
        sum <= len
    });
    let whole = &slices[..whole.count()];
    if whole.iter().any(|slice| !slice.is_empty()) {
        return f(whole);
    }
    // All of it is in the next.
    match slices.get(whole.len()).and_then(|slice| slice.subslice(0, len).ok()) {
        Some(part) => f(&[part]),
        None => f(whole),
    }
}

impl Stream for UnixEnd {
    fn established(&self, port: u32) -> io::Result<()> {
        // It is the first that is written: there is room.
        (&self.stream).write_all(format!("OK {port}\n").as_bytes())
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<Received> {
        match &self.framing {
            Some(framing) => self.read_framed(&mut lock(framing), room),
            None => match self.receive(room)? {
                0 => Ok(Received::End),
                len => Ok(Received::Data(len, Boundary::None)),
            },
        }
    }

    fn write(&self, data: &[VolatileSlice<'_>], boundary: Boundary) -> io::Result<usize> {
        match &self.framing {
            Some(framing) => self.write_framed(&mut lock(framing), data, boundary),
            None => self.send(data),
        }
    }

    fn shutdown(&self, direction: Direction) {
        let how = match direction {
            Direction::Send => Shutdown::Write,
            Direction::Receive => Shutdown::Read,
        };
        // If the other end has gone, there is nothing to tell.
        let _ = self.stream.shutdown(how);
    }

    fn is_gone(&self) -> bool {
        host_io::poll(self.stream.as_raw_fd(), 0) & (libc::POLLHUP | libc::POLLERR) != 0
    }
}
