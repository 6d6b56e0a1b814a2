//! A host side in memory: for tests, and for programs that are the other end themselves.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt, io,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use vm_memory::VolatileSlice;

use super::{Boundary, Direction, Host, Incoming, Ready, Received, SocketKind, Stream, Token, Waker};
use crate::{
    sync::lock,
    virtio::{
        Wait,
        bytes::{put_back, take_front},
    },
};

/// Connections of the guest that wait for a program to accept them, a port: further ones are refused.
const BACKLOG: usize = 128;

/// A [`Host`] whose sockets are objects of this process. Clones are the same.
///
/// Each direction of a connection holds so many bytes at most, and as many messages. Of the guest's connections to a port, 128 wait to
/// be accepted.
///
/// ```
/// use devisor::virtio::vsock::{MemoryHost, SocketKind};
///
/// let host = MemoryHost::new(4096);
/// host.listen(80, SocketKind::Stream);
/// assert!(host.accept(80, SocketKind::Stream).is_none());
/// ```
#[derive(Clone)]
pub struct MemoryHost(Arc<Shared>);

struct Shared {
    bound: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waker: Option<Waker>,
    listening: HashSet<(u32, SocketKind)>,
    /// The guest's, for who listens.
    accepted: HashMap<(u32, SocketKind), VecDeque<MemorySocket>>,
    /// For the guest, with its port.
    asked: VecDeque<(u32, SocketKind, Arc<Pair>)>,
    /// What has become possible.
    ready: Vec<Token>,
}

/// Both directions of a connection.
struct Pair {
    host: Weak<Shared>,
    bound: usize,
    kind: SocketKind,
    ends: Mutex<Ends>,
}

#[derive(Default)]
struct Ends {
    token: Option<Token>,
    to_guest: Pipe,
    to_host: Pipe,
    /// The port of the host's end.
    port: Option<u32>,
    /// The guest has answered.
    established: bool,
    /// The device has let go.
    device_gone: bool,
    /// The program has let go.
    host_gone: bool,
}

/// One direction.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// Of a seqpacket connection: the length of each piece, and what ends with it.
    pieces: VecDeque<(usize, Boundary)>,
    /// Nothing more is sent.
    ended: bool,
    /// Nothing more is taken.
    refused: bool,
}

impl MemoryHost {
    /// A host side where nobody listens, with room for `bound` bytes in each direction of a connection.
    pub fn new(bound: usize) -> Self {
        Self(Arc::new(Shared {
            bound,
            state: Mutex::default(),
        }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    /// Listens for the guest at `port`.
    pub fn listen(&self, port: u32, kind: SocketKind) {
        self.state().listening.insert((port, kind));
    }

    /// The next connection of the guest to `port`.
    pub fn accept(&self, port: u32, kind: SocketKind) -> Option<MemorySocket> {
        self.state().accepted.get_mut(&(port, kind))?.pop_front()
    }

    /// Asks for a connection to the guest's `port`.
    pub fn connect(&self, port: u32, kind: SocketKind) -> MemorySocket {
        let pair = self.pair(kind, None);
        let waker = {
            let mut state = self.state();
            state.asked.push_back((port, kind, Arc::clone(&pair)));
            state.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        MemorySocket(pair)
    }

    fn pair(&self, kind: SocketKind, token: Option<Token>) -> Arc<Pair> {
        Arc::new(Pair {
            host: Arc::downgrade(&self.0),
            bound: self.0.bound,
            kind,
            ends: Mutex::new(Ends {
                token,
                ..Ends::default()
            }),
        })
    }
}

impl Host for MemoryHost {
    fn attach(&self, waker: Waker) {
        self.state().waker = Some(waker);
    }

    fn connect(&self, port: u32, guest_port: u32, kind: SocketKind, token: Token) -> io::Result<Box<dyn Stream>> {
        let _ = guest_port;
        let mut state = self.state();
        if !state.listening.contains(&(port, kind)) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let waiting = state.accepted.entry((port, kind)).or_default();
        if waiting.len() >= BACKLOG {
            // Those that have ended are kept as well: for what the guest has sent.
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let pair = self.pair(kind, Some(token));
        lock(&pair.ends).port = Some(port);
        lock(&pair.ends).established = true;
        waiting.push_back(MemorySocket(Arc::clone(&pair)));
        Ok(Box::new(End(pair)))
    }

    fn accept(&self, token: Token) -> Option<Incoming> {
        let (port, kind, pair) = self.state().asked.pop_front()?;
        lock(&pair.ends).token = Some(token);
        Some(Incoming {
            port,
            kind,
            stream: Box::new(End(pair)),
        })
    }

    fn poll(&self, _: Duration, tell: &mut dyn FnMut(Token, Ready)) {
        let ready = std::mem::take(&mut self.state().ready);
        for token in ready {
            tell(
                token,
                Ready {
                    readable: true,
                    writable: true,
                    ended: false,
                },
            );
        }
    }

    fn waits(&self, _: bool, _: &mut dyn FnMut(Wait)) {}
}

impl fmt::Debug for MemoryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryHost")
            .field("listening", &self.state().listening)
            .finish_non_exhaustive()
    }
}

impl Pair {
    /// The program has done something.
    fn news(&self) {
        let token = lock(&self.ends).token;
        let (Some(token), Some(host)) = (token, self.host.upgrade()) else {
            return;
        };
        let waker = {
            let mut state = lock(&host.state);
            if !state.ready.contains(&token) {
                state.ready.push(token);
            }
            state.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Pipe {
    fn take(&mut self, kind: SocketKind, room: &[VolatileSlice<'_>]) -> io::Result<Received> {
        let end = if self.ended {
            Ok(Received::End)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        };
        match kind {
            SocketKind::Stream if self.bytes.is_empty() => end,
            SocketKind::Stream => Ok(Received::Data(take_front(&mut self.bytes, room)?, Boundary::None)),
            SocketKind::Seqpacket => {
                let Some((left, boundary)) = self.pieces.front_mut() else {
                    return end;
                };
                let mut taken = 0;
                for slice in room {
                    let len = slice.len().min(*left);
                    let Ok(part) = slice.subslice(0, len) else { break };
                    if len != 0 {
                        taken += take_front(&mut self.bytes, &[part])?;
                        *left -= len;
                    }
                }
                if *left != 0 {
                    return Ok(Received::Data(taken, Boundary::None));
                }
                let boundary = *boundary;
                self.pieces.pop_front();
                Ok(Received::Data(taken, boundary))
            }
        }
    }
}

/// The device's end.
struct End(Arc<Pair>);

impl Stream for End {
    fn established(&self, port: u32) -> io::Result<()> {
        let mut ends = lock(&self.0.ends);
        (ends.port, ends.established) = (Some(port), true);
        Ok(())
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<Received> {
        lock(&self.0.ends).to_guest.take(self.0.kind, room)
    }

    fn write(&self, data: &[VolatileSlice<'_>], boundary: Boundary) -> io::Result<usize> {
        let mut ends = lock(&self.0.ends);
        let pipe = &mut ends.to_host;
        if pipe.refused {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // Empty messages need no bytes.
        let full = pipe.pieces.len() >= self.0.bound.max(1);
        if full && pipe.pieces.back().is_some_and(|(_, last)| *last != Boundary::None) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let total: usize = data.iter().map(VolatileSlice::len).sum();
        let written = match total {
            0 => 0,
            _ => put_back(&mut pipe.bytes, data, self.0.bound)?,
        };
        if self.0.kind == SocketKind::Seqpacket {
            let boundary = if written == total { boundary } else { Boundary::None };
            // One message has many pieces, and is one for who reads it.
            match pipe.pieces.back_mut() {
                Some((len, last @ Boundary::None)) => (*len, *last) = (*len + written, boundary),
                _ => pipe.pieces.push_back((written, boundary)),
            }
        }
        Ok(written)
    }

    fn shutdown(&self, direction: Direction) {
        let mut ends = lock(&self.0.ends);
        match direction {
            Direction::Send => ends.to_host.ended = true,
            Direction::Receive => ends.to_guest.refused = true,
        }
    }

    fn is_gone(&self) -> bool {
        lock(&self.0.ends).host_gone
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut ends = lock(&self.0.ends);
        (ends.device_gone, ends.to_host.ended, ends.to_guest.refused) = (true, true, true);
    }
}

/// The program's end of a connection. It is closed by being dropped.
pub struct MemorySocket(Arc<Pair>);

impl MemorySocket {
    fn ends(&self) -> std::sync::MutexGuard<'_, Ends> {
        lock(&self.0.ends)
    }

    /// Whether the guest has answered, and the connection is there.
    pub fn is_open(&self) -> bool {
        let ends = self.ends();
        ends.established && !ends.device_gone
    }

    /// Whether the connection was there, or asked for, and is no more.
    pub fn is_closed(&self) -> bool {
        self.ends().device_gone
    }

    /// The port of the host's end, once it has one.
    pub fn port(&self) -> Option<u32> {
        self.ends().port
    }

    /// Sends bytes, or a part of a message that is not its last. Returns for how much of it there is room.
    pub fn write(&self, bytes: &[u8]) -> usize {
        self.send(bytes, Boundary::None).unwrap_or(0)
    }

    /// Sends a message as a whole. Whether there was room for it.
    pub fn send_message(&self, message: &[u8], boundary: Boundary) -> bool {
        let room = {
            let ends = self.ends();
            self.0.bound.saturating_sub(ends.to_guest.bytes.len())
        };
        message.len() <= room && self.send(message, boundary).is_some()
    }

    fn send(&self, bytes: &[u8], boundary: Boundary) -> Option<usize> {
        let len = {
            let mut ends = self.ends();
            let pipe = &mut ends.to_guest;
            if pipe.refused || pipe.ended {
                return None;
            }
            let len = bytes.len().min(self.0.bound.saturating_sub(pipe.bytes.len()));
            pipe.bytes.extend(&bytes[..len]);
            if self.0.kind == SocketKind::Seqpacket && (len != 0 || boundary != Boundary::None) {
                pipe.pieces.push_back((len, boundary));
            }
            len
        };
        self.0.news();
        Some(len)
    }

    /// All bytes that the guest has sent, and this has not read yet.
    pub fn read(&self) -> Vec<u8> {
        let bytes = {
            let mut ends = self.ends();
            ends.to_host.pieces.clear();
            ends.to_host.bytes.drain(..).collect()
        };
        self.0.news();
        bytes
    }

    /// The next whole message, and what ended with it.
    pub fn read_message(&self) -> Option<(Vec<u8>, Boundary)> {
        let message = {
            let mut ends = self.ends();
            let pipe = &mut ends.to_host;
            let &(len, boundary) = pipe.pieces.front()?;
            if boundary == Boundary::None {
                return None;
            }
            pipe.pieces.pop_front();
            (pipe.bytes.drain(..len).collect(), boundary)
        };
        self.0.news();
        Some(message)
    }

    /// Whether the guest sends nothing more than what can be read now.
    pub fn has_ended(&self) -> bool {
        self.ends().to_host.ended
    }

    /// Whether the guest takes nothing more.
    pub fn is_refused(&self) -> bool {
        self.ends().to_guest.refused
    }

    /// Sends nothing more.
    pub fn end(&self) {
        self.ends().to_guest.ended = true;
        self.0.news();
    }

    /// Takes nothing more.
    pub fn refuse(&self) {
        self.ends().to_host.refused = true;
        self.0.news();
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        {
            let mut ends = self.ends();
            (ends.host_gone, ends.to_guest.ended, ends.to_host.refused) = (true, true, true);
        }
        self.0.news();
    }
}

impl fmt::Debug for MemorySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySocket")
            .field("kind", &self.0.kind)
            .finish_non_exhaustive()
    }
}
