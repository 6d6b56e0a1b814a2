//! A connection: requests with their answers until a deadline, and what the back end says unasked.

use std::{
    io,
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Mutex},
    time::Instant,
};

use super::{
    super::{
        event::Ends,
        objects::Member,
        peer::{timed_out, wrong},
        windows::Windows,
    },
    unasked::Unasked,
};
use crate::virtio::vhost_user::{FrontRequest, Header, Message, Received, Socket, Word};

pub(super) struct Channel {
    socket: Socket,
    stream: UnixStream,
    /// For the back end's own requests.
    unasked: Option<Unasked>,
    ends: Arc<Ends>,
    /// REPLY_ACK is negotiated.
    pub acknowledges: bool,
}

impl Channel {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self {
            ends: Arc::new(Ends([Some(stream.try_clone()?.into()), None])),
            socket: Socket::new(stream.try_clone()?),
            stream,
            unasked: None,
            acknowledges: false,
        })
    }

    pub fn ends(&self) -> Arc<Ends> {
        Arc::clone(&self.ends)
    }

    /// A channel for the back end's own requests: its end. Before anybody waits for this connection.
    pub fn open_unasked(&mut self, windows: Arc<Mutex<Windows>>, objects: Option<Arc<Member>>) -> io::Result<OwnedFd> {
        let (unasked, theirs) = Unasked::new(windows, objects)?;
        let main = self.stream.try_clone()?.into();
        self.ends = Arc::new(Ends([Some(main), Some(unasked.share()?)]));
        self.unasked = Some(unasked);
        Ok(theirs)
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
        self.ask_with(request, payload, Vec::new(), deadline)
    }

    /// The same with descriptors.
    pub fn ask_with(
        &mut self,
        request: FrontRequest,
        payload: &[u8],
        descriptors: Vec<OwnedFd>,
        deadline: Instant,
    ) -> io::Result<Message> {
        self.send(request, payload, descriptors, false, deadline)?;
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

    /// Looks at what comes unasked: whether the configuration space has changed. On the connection itself that can be its end alone.
    pub fn look(&mut self) -> io::Result<bool> {
        if let Received::Message(message) = self.socket.receive()? {
            return Err(wrong(format!(
                "message {} that nobody asked for",
                message.header.request
            )));
        }
        self.serve_unasked()?;
        Ok(self.unasked.as_mut().is_some_and(Unasked::take_config_changed))
    }

    /// Whether that was said already, while something was asked.
    pub fn config_changed(&self) -> bool {
        self.unasked.as_ref().is_some_and(Unasked::config_changed)
    }

    fn serve_unasked(&mut self) -> io::Result<()> {
        match &mut self.unasked {
            Some(unasked) => unasked.serve(),
            None => Ok(()),
        }
    }

    /// Waits for the connection.
    fn wait(&mut self, events: i16, deadline: Instant) -> io::Result<()> {
        let descriptor = self.socket.descriptor();
        self.wait_for(descriptor, events, deadline)
    }

    /// Waits for a descriptor. A back end that waits for an answer of ours before it gives its own is given it.
    pub fn wait_for(&mut self, descriptor: libc::c_int, events: i16, deadline: Instant) -> io::Result<()> {
        self.serve_unasked()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(timed_out("the back end has not answered in time"));
        }
        let poll = |fd, events| libc::pollfd { fd, events, revents: 0 };
        // A negative one is left out.
        let unasked = self.unasked.as_ref().map_or(-1, Unasked::descriptor);
        let mut all = [poll(descriptor, events), poll(unasked, libc::POLLIN)];
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
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
