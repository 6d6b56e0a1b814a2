//! A connection: requests with their answers until a deadline, and what the back end says unasked.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Instant,
};

use crate::virtio::vhost_user::{BackRequest, FrontRequest, Header, Message, Received, Socket, Word};

/// How many requests of the back end's are done at a time.
const TURN: usize = 16;

/// The ends of a connection, to be waited for: open for as long as somebody waits.
pub(super) struct Ends {
    pub main: UnixStream,
    pub back: Option<UnixStream>,
}

pub(super) struct Channel {
    socket: Socket,
    /// For the back end's own requests.
    back: Option<Socket>,
    pub ends: Arc<Ends>,
    /// REPLY_ACK is negotiated.
    pub acknowledges: bool,
    /// The back end has said that its configuration space has changed.
    pub config_changed: bool,
}

/// What an answer should not be.
pub(super) fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Channel {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let main = stream.try_clone()?;
        Ok(Self {
            socket: Socket::new(stream),
            back: None,
            ends: Arc::new(Ends { main, back: None }),
            acknowledges: false,
            config_changed: false,
        })
    }

    /// A channel for the back end's own requests: its end. Before anybody waits for this connection.
    pub fn open_back(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        self.ends = Arc::new(Ends {
            main: self.ends.main.try_clone()?,
            back: Some(ours.try_clone()?),
        });
        self.back = Some(Socket::new(ours));
        Ok(theirs.into())
    }

    fn send(
        &mut self,
        request: FrontRequest,
        payload: &[u8],
        descriptors: Vec<OwnedFd>,
        answered: bool,
        deadline: Instant,
    ) -> io::Result<()> {
        let header = Header::request(request as u32, payload.len());
        let header = if answered { header.with_answer() } else { header };
        self.socket.send_with(header, payload, descriptors)?;
        while self.socket.is_full() {
            self.wait(libc::POLLOUT, deadline)?;
            self.socket.flush()?;
        }
        Ok(())
    }

    fn receive(&mut self, request: FrontRequest, deadline: Instant) -> io::Result<Message> {
        loop {
            match self.socket.receive()? {
                Received::Message(message) => {
                    let header = message.header;
                    if header.is_reply() && header.request == request as u32 {
                        return Ok(message);
                    }
                    return Err(wrong(format!(
                        "message {} with flags {:#x}, where an answer to {request:?} was due",
                        header.request, header.flags
                    )));
                }
                Received::Nothing => self.wait(libc::POLLIN, deadline)?,
            }
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, request: FrontRequest, payload: &[u8], deadline: Instant) -> io::Result<Message> {
        self.send(request, payload, Vec::new(), false, deadline)?;
        self.receive(request, deadline)
    }

    /// Asks for a number.
    pub fn ask_word(&mut self, request: FrontRequest, deadline: Instant) -> io::Result<u64> {
        let message = self.ask(request, &[], deadline)?;
        match Word::from_bytes(&message.payload) {
            Some(Word(word)) if message.payload.len() == size_of::<u64>() && message.descriptors.is_empty() => Ok(word),
            _ => Err(wrong(format!(
                "an answer of {} bytes to {request:?}",
                message.payload.len()
            ))),
        }
    }

    /// Says something, and hears whether it was done, if the back end can say so.
    pub fn tell(
        &mut self,
        request: FrontRequest,
        payload: &[u8],
        descriptors: Vec<OwnedFd>,
        deadline: Instant,
    ) -> io::Result<()> {
        let answered = self.acknowledges;
        self.send(request, payload, descriptors, answered, deadline)?;
        if !answered {
            return Ok(());
        }
        let message = self.receive(request, deadline)?;
        match Word::from_bytes(&message.payload) {
            Some(Word(0)) => Ok(()),
            Some(Word(error)) => Err(wrong(format!("the back end refuses {request:?}: {error:#x}"))),
            None => Err(wrong(format!(
                "an answer of {} bytes to {request:?}",
                message.payload.len()
            ))),
        }
    }

    /// Looks at what comes unasked. On the connection itself that can be its end alone.
    pub fn look(&mut self) -> io::Result<()> {
        match self.socket.receive()? {
            Received::Nothing => self.serve_back(),
            Received::Message(message) => Err(wrong(format!(
                "message {} that nobody asked for",
                message.header.request
            ))),
        }
    }

    fn serve_back(&mut self) -> io::Result<()> {
        let Some(back) = &mut self.back else { return Ok(()) };
        for _ in 0..TURN {
            back.flush()?;
            if back.is_full() {
                return Ok(());
            }
            let Received::Message(Message { header, .. }) = back.receive()? else {
                return Ok(());
            };
            let known = header.request == BackRequest::ConfigChangeMsg as u32;
            self.config_changed |= known;
            if header.needs_reply() {
                // Not zero: it was not done.
                let answer = Word(u64::from(!known)).to_bytes();
                back.send(Header::reply(header.request, answer.len()), &answer, None)?;
            }
        }
        Ok(())
    }

    /// Waits for the connection. A back end that waits for an answer of ours before it gives its own is given it.
    fn wait(&mut self, events: i16, deadline: Instant) -> io::Result<()> {
        self.serve_back()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the back end has not answered in time",
            ));
        }
        let poll = |fd, events| libc::pollfd { fd, events, revents: 0 };
        // A negative one is left out.
        let back = self.back.as_ref().map_or(-1, Socket::descriptor);
        let mut all = [poll(self.socket.descriptor(), events), poll(back, libc::POLLIN)];
        // At least one, or the last millisecond is spent turning around.
        let limit = left.as_millis().clamp(1, 60_000) as i32;
        // SAFETY: both entries outlive the call.
        let ready = unsafe { libc::poll(all.as_mut_ptr(), all.len() as _, limit) };
        match ready {
            ..0 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                error => Err(error),
            },
            _ => Ok(()),
        }
    }
}

/// What others still have of it, to wait for, does not keep the other end from seeing that it is over.
impl Drop for Channel {
    fn drop(&mut self) {
        let _ = self.ends.main.shutdown(Shutdown::Both);
        if let Some(back) = &self.ends.back {
            let _ = back.shutdown(Shutdown::Both);
        }
    }
}

impl Ends {
    /// Whether something is there to look at, here or at the events; and which of the events.
    pub fn ready(&self, events: [libc::c_int; 2]) -> (bool, [bool; 2]) {
        let poll = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let back = self.back.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let mut all = [self.main.as_raw_fd(), back, events[0], events[1]].map(poll);
        // SAFETY: the entries outlive the call, which does not wait.
        let ready = unsafe { libc::poll(all.as_mut_ptr(), all.len() as _, 0) };
        let is_ready = |at: usize| ready > 0 && all[at].revents != 0;
        (is_ready(0) || is_ready(1), [is_ready(2), is_ready(3)])
    }
}
