//! The host side as Unix sockets, by the protocol that Firecracker has.

mod handshake;
mod stream;

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            ffi::OsStrExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{Host, Incoming, Ready, SocketKind, Stream, Token, Waker};
use crate::{sync::lock, virtio::Wait};
use handshake::{Asked, Handshake};
use stream::UnixEnd;

/// How many programs may be saying whom they want at a time.
const HANDSHAKES: usize = 32;
/// How long one may take for that.
const HANDSHAKE_TIME: Duration = Duration::from_secs(2);
/// How long nobody is let in after the host could not.
const RETRY_TIME: Duration = Duration::from_millis(100);
/// Events that are asked for at a time.
const EVENTS: usize = 64;

/// Unix sockets of the host.
///
/// *Host to guest*: a program connects to the socket at the device's path, and writes `CONNECT 52\n` for the guest's port 52. When the
/// guest has answered, it reads `OK 1073741824\n`, with the port of the host's end, and the connection is the guest's from there on. It
/// is closed if the guest refuses. A program that does not write that line within two seconds is dropped.
///
/// *Guest to host*: a connection of the guest to port 52 is one to the socket at the path with `_52` behind it, where a program
/// listens. If none does, the guest is refused.
///
/// That is for stream sockets. *Seqpacket sockets* go over Unix streams as well, since the host's own SOCK_SEQPACKET has neither
/// records nor messages beyond its buffer: the program writes `CONNECT 52 SEQPACKET\n`, or listens at the path with `_52_seqpacket`
/// behind it, and data is in fragments. Each has a header of four bytes, little-endian: its length in the lower 30 bits, bit 30 if a
/// message ends with it, bit 31 if a record does as well.
///
/// *Half-closing* is that of the sockets, in both directions.
///
/// ```
/// use devisor::virtio::vsock::UnixHost;
///
/// # let path = std::env::temp_dir().join(format!("devisor-vsock-doc-{}", std::process::id()));
/// let host = UnixHost::bind(&path)?;
/// assert!(path.exists());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct UnixHost {
    path: PathBuf,
    listener: UnixListener,
    /// Tells of everything else.
    events: Arc<OwnedFd>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// There may be somebody at the listener.
    knocked: bool,
    /// Nobody is let in before that: the last time, the host could not.
    retry: Option<Duration>,
    waker: Option<Waker>,
    /// Those who have not said whom they want, by their number.
    handshakes: HashMap<u64, Handshake>,
    last: u64,
    asked: VecDeque<(Asked, UnixStream)>,
}

impl State {
    fn has_room(&self) -> bool {
        self.handshakes.len() + self.asked.len() < HANDSHAKES
    }

    fn failed(&self, error: io::Error) {
        if let Some(waker) = &self.waker {
            waker.failed(error);
        }
    }
}

/// Numbers of handshakes at the poller have this bit, tokens have not.
const HANDSHAKE: u64 = 1 << 63;
/// The listener's.
const LISTENER: u64 = HANDSHAKE;

impl UnixHost {
    /// Listens at `path`, which must not be there, and is removed when this is dropped.
    ///
    /// # Errors
    /// The operating system refused.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_path_buf();
        // SAFETY: no memory is involved.
        let events = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if events < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just made, and nobody else knows it.
        let events = Arc::new(unsafe { OwnedFd::from_raw_fd(events) });
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        watch(&events, listener.as_raw_fd(), LISTENER, libc::EPOLL_CTL_ADD, false)?;
        Ok(Self {
            path,
            listener,
            events,
            state: Mutex::default(),
        })
    }

    /// Where the guest's connections to `port` lead.
    fn path_of(&self, port: u32, kind: SocketKind) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        if kind == SocketKind::Seqpacket {
            path.push("_seqpacket");
        }
        path.into()
    }

    /// Who has come, as far as there is room for them.
    fn greet(&self, now: Duration) {
        let mut state = lock(&self.state);
        state.handshakes.retain(|_, handshake| handshake.deadline > now);
        if state.retry.is_some_and(|retry| now < retry) {
            return;
        }
        state.retry = None;
        while state.knocked && state.has_room() {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.welcome(&mut state, stream, now) {
                        state.failed(error);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => state.knocked = false,
                // They have gone again.
                Err(error)
                    if [io::ErrorKind::Interrupted, io::ErrorKind::ConnectionAborted].contains(&error.kind()) => {}
                Err(error) => {
                    // Without descriptors, say. They are still there, and nothing tells when it is worth while to try again.
                    state.retry = Some(now.saturating_add(RETRY_TIME));
                    state.failed(error);
                    return;
                }
            }
        }
    }

    fn welcome(&self, state: &mut State, stream: UnixStream, now: Duration) -> io::Result<()> {
        state.last += 1;
        let number = HANDSHAKE | state.last;
        stream.set_nonblocking(true)?;
        watch(&self.events, stream.as_raw_fd(), number, libc::EPOLL_CTL_ADD, false)?;
        let deadline = now.saturating_add(HANDSHAKE_TIME);
        state.handshakes.insert(state.last, Handshake { stream, deadline });
        Ok(())
    }

    /// Somebody goes on saying whom they want.
    fn hear(&self, number: u64) {
        let mut state = lock(&self.state);
        let Some(handshake) = state.handshakes.get(&number) else {
            return;
        };
        match handshake.read() {
            Ok(None) => {}
            Ok(Some(asked)) => {
                if let Some(handshake) = state.handshakes.remove(&number) {
                    state.asked.push_back((asked, handshake.stream));
                }
            }
            Err(_) => _ = state.handshakes.remove(&number),
        }
    }
}

/// Has the poller tell of what becomes possible at `fd`: of room to write as well, if it is `blocked`.
fn watch(events: &OwnedFd, fd: RawFd, number: u64, operation: libc::c_int, blocked: bool) -> io::Result<()> {
    let writable = if blocked { libc::EPOLLOUT } else { 0 };
    let mut event = libc::epoll_event {
        events: (libc::EPOLLIN | writable | libc::EPOLLRDHUP | libc::EPOLLET) as u32,
        u64: number,
    };
    // SAFETY: the structure is there for the call.
    match unsafe { libc::epoll_ctl(events.as_raw_fd(), operation, fd, &mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Connects without waiting for who listens.
fn connect(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: a structure of plain numbers.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // With a NUL.
    if bytes.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: no memory is involved.
    let socket = unsafe {
        libc::socket(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            0,
        )
    };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and nobody else knows it.
    let stream = unsafe { UnixStream::from_raw_fd(socket) };
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is there for the call, and as long as is said.
    match unsafe { libc::connect(socket, (&raw const address).cast(), len) } {
        0 => Ok(stream),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Host for UnixHost {
    fn attach(&self, waker: Waker) {
        lock(&self.state).waker = Some(waker);
    }

    fn connect(&self, port: u32, _guest_port: u32, kind: SocketKind, token: Token) -> io::Result<Box<dyn Stream>> {
        let stream = connect(&self.path_of(port, kind))?;
        watch(&self.events, stream.as_raw_fd(), token.0, libc::EPOLL_CTL_ADD, false)?;
        Ok(Box::new(UnixEnd::new(stream, kind, &self.events, token)))
    }

    fn accept(&self, token: Token) -> Option<Incoming> {
        loop {
            let (asked, stream) = lock(&self.state).asked.pop_front()?;
            // What has come meanwhile is told of again, under the new number.
            if watch(&self.events, stream.as_raw_fd(), token.0, libc::EPOLL_CTL_MOD, false).is_ok() {
                let Asked { port, kind } = asked;
                let stream = Box::new(UnixEnd::new(stream, kind, &self.events, token));
                return Some(Incoming { port, kind, stream });
            }
        }
    }

    fn tells_of_more(&self) -> bool {
        true
    }

    fn poll(&self, now: Duration, tell: &mut dyn FnMut(Token, Ready)) {
        // Who came before, and had to wait.
        self.greet(now);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        loop {
            // SAFETY: there is room for as many as is said; it does not wait.
            let count = unsafe { libc::epoll_wait(self.events.as_raw_fd(), events.as_mut_ptr(), EVENTS as i32, 0) };
            let count = usize::try_from(count).unwrap_or(0);
            for event in &events[..count] {
                let (number, bits) = (event.u64, event.events as i32);
                if number == LISTENER {
                    lock(&self.state).knocked = true;
                    self.greet(now);
                    continue;
                }
                if number & HANDSHAKE != 0 {
                    self.hear(number & !HANDSHAKE);
                    continue;
                }
                let ended = libc::EPOLLHUP | libc::EPOLLERR;
                let ready = Ready {
                    readable: bits & (libc::EPOLLIN | libc::EPOLLRDHUP | ended) != 0,
                    writable: bits & (libc::EPOLLOUT | ended) != 0,
                    ended: bits & (libc::EPOLLRDHUP | ended) != 0,
                };
                tell(Token(number), ready);
            }
            if count < EVENTS {
                return;
            }
        }
    }

    fn waits(&self, full: bool, wait: &mut dyn FnMut(Wait)) {
        wait(Wait::Readable(self.events.as_raw_fd()));
        let state = lock(&self.state);
        match state.retry {
            Some(retry) => wait(Wait::Until(retry)),
            None if state.knocked && !full && state.has_room() => wait(Wait::Readable(self.listener.as_raw_fd())),
            None => {}
        }
        if let Some(deadline) = state.handshakes.values().map(|handshake| handshake.deadline).min() {
            wait(Wait::Until(deadline));
        }
    }
}

impl Drop for UnixHost {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl fmt::Debug for UnixHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnixHost")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
