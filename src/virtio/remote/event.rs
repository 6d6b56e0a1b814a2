//! Event descriptors: a kick, a call, an error; and what else is waited for.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::{Arc, Mutex},
};

use crate::{
    sync::lock,
    virtio::{Descriptor, vhost_user::event},
};

pub(super) struct Event(OwnedFd);

impl Event {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes numbers, and its result is a descriptor that nobody else has, or none.
        unsafe {
            match libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) {
                ..0 => Err(io::Error::last_os_error()),
                descriptor => Ok(Self(OwnedFd::from_raw_fd(descriptor))),
            }
        }
    }

    /// One that somebody else has made.
    pub fn of(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    pub fn descriptor(&self) -> Descriptor {
        self.0.as_raw_fd()
    }

    pub fn borrow(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    /// The same event, for the other end.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// It has come. One that is full has.
    pub fn signal(&self) {
        // Who shares it and has closed it sees to that.
        let _ = event::signal(&self.0);
    }

    /// Whether it has come since this was last asked.
    pub fn take(&self) -> bool {
        event::take(&self.0)
    }
}

/// The three events of a ring.
pub(super) struct Events {
    pub kick: Event,
    pub call: Event,
    pub error: Event,
    /// What the back end calls in the place of `call`, if it is not us.
    direct: Mutex<Option<Arc<OwnedFd>>>,
}

impl Events {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            kick: Event::new()?,
            call: Event::new()?,
            error: Event::new()?,
            direct: Mutex::default(),
        })
    }

    /// Has the back end call something else, once it is told.
    pub fn set_direct(&self, direct: Option<OwnedFd>) {
        *lock(&self.direct) = direct.map(Arc::new);
    }

    /// What the back end calls, as it is told.
    pub fn called(&self) -> io::Result<OwnedFd> {
        let direct = lock(&self.direct).clone();
        match direct {
            Some(direct) => direct.try_clone(),
            None => self.call.share(),
        }
    }
}

/// What is readable when a back end has something to say, or is gone: at most two descriptors. Open for as long as somebody waits.
#[derive(Default)]
pub(super) struct Ends(pub [Option<OwnedFd>; 2]);

impl Ends {
    /// What to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = Descriptor> {
        self.0.iter().flatten().map(AsRawFd::as_raw_fd)
    }

    /// Whether something is there to look at, here or at the events; and which of the events.
    pub fn ready(&self, events: [Descriptor; 2]) -> (bool, [bool; 2]) {
        let poll = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // A negative one is left out.
        let [first, second] = self.0.each_ref().map(|end| end.as_ref().map_or(-1, AsRawFd::as_raw_fd));
        let mut all = [first, second, events[0], events[1]].map(poll);
        // SAFETY: the entries outlive the call, which does not wait.
        let ready = unsafe { libc::poll(all.as_mut_ptr(), all.len() as _, 0) };
        let is_ready = |at: usize| ready > 0 && all[at].revents != 0;
        (is_ready(0) || is_ready(1), [is_ready(2), is_ready(3)])
    }
}
