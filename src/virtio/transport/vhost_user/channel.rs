//! The channel of the back end's own requests: what is said there, and what the front end answers.

use std::{
    collections::VecDeque,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use crate::virtio::vhost_user::{Header, Message, Received, Socket, Word, send_at_once};

/// So many answers are waited for at a time.
const MOST: usize = 256;

/// What an answer is for.
pub(super) enum Expected {
    /// A translation that is missing: of which page, and what is to be done there.
    Translation(u64, u8),
    /// An object that another device may have.
    Object(Box<dyn FnOnce(Option<OwnedFd>) + Send>),
}

pub(super) struct Channel {
    descriptor: OwnedFd,
    /// The same, to be read; if the system has had a descriptor left.
    answers: Option<Socket>,
    /// In the order in which they are answered.
    expected: VecDeque<Expected>,
}

impl Channel {
    pub fn new(descriptor: OwnedFd) -> Self {
        let answers = descriptor
            .try_clone()
            .ok()
            .map(|own| Socket::new(UnixStream::from(own)));
        Self {
            descriptor,
            answers,
            expected: VecDeque::new(),
        }
    }

    pub fn descriptor(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }

    pub fn say(&self, header: Header, payload: &[u8]) -> io::Result<()> {
        send_at_once(self.descriptor.as_fd(), header, payload)
    }

    /// Whether more answers can be waited for.
    pub fn has_room(&self) -> bool {
        self.answers.is_some() && self.expected.len() < MOST
    }

    /// The same, which is answered.
    pub fn ask(&mut self, header: Header, payload: &[u8], expected: impl FnOnce() -> Expected) -> io::Result<()> {
        self.say(header.with_answer(), payload)?;
        self.expected.push_back(expected());
        Ok(())
    }

    pub fn awaits(&self) -> bool {
        !self.expected.is_empty()
    }

    /// Whether the same translation was asked for once more.
    pub fn expects(&self, page: u64, access: u8) -> bool {
        let mut all = self.expected.iter();
        all.any(|other| matches!(other, Expected::Translation(at, what) if (*at, *what) == (page, access)))
    }

    /// What was answered, and how, as far as the answer is one.
    pub fn next_answer(&mut self) -> Option<(Expected, Option<Message>)> {
        if self.expected.is_empty() {
            return None;
        }
        let message = match self.answers.as_mut()?.receive() {
            Ok(Received::Nothing) => return None,
            Ok(Received::Message(message)) => Some(message).filter(|message| message.header.is_reply()),
            // Nobody answers.
            Err(_) => None,
        };
        Some((self.expected.pop_front()?, message))
    }
}

/// The file that comes with an answer which says that there is one.
pub(super) fn file_of(message: Message) -> Option<OwnedFd> {
    let mut files = message.descriptors;
    let is_done = Word::from_bytes(&message.payload) == Some(Word(0));
    files.pop().filter(|_| is_done && files.is_empty())
}

/// Nobody answers any more.
impl Drop for Channel {
    fn drop(&mut self) {
        for expected in self.expected.drain(..) {
            if let Expected::Object(found) = expected {
                found(None);
            }
        }
    }
}
