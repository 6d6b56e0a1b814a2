//! The channel of the back end's own requests: what is said there, and what the front end answers.

use std::{
    collections::VecDeque,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use crate::virtio::vhost_user::{BackRequest, Header, Message, Received, Socket, Word, send_at_once};

/// So many answers are waited for at a time.
pub(super) const MOST: usize = 256;

/// Who hears of an object that was looked up.
pub(super) type Found = Box<dyn FnOnce(Option<OwnedFd>) + Send>;

/// What an answer is for.
pub(super) enum Expected {
    /// A translation that is missing: of which page, and what is to be done there.
    Translation(u64, u8),
    /// An object that another device may have.
    Object(Found),
}

impl Expected {
    fn request(&self) -> BackRequest {
        match self {
            Self::Translation(..) => BackRequest::IotlbMsg,
            Self::Object(_) => BackRequest::SharedObjectLookup,
        }
    }
}

pub(super) struct Channel {
    descriptor: OwnedFd,
    /// The same, to be read; if the system has had a descriptor left, and as long as what comes is answers.
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

    /// What was answered, and how. Without an answer: what is not to be answered any more.
    pub fn next_answer(&mut self) -> Option<(Expected, Option<Message>)> {
        if self.expected.is_empty() {
            return None;
        }
        let answered = match self.answers.as_mut().map(Socket::receive) {
            Some(Ok(Received::Nothing)) => return None,
            Some(Ok(Received::Message(message))) => self.place_of(message.header).zip(Some(message)),
            Some(Err(_)) | None => None,
        };
        match answered {
            Some((at, message)) => Some((self.expected.remove(at)?, Some(message))),
            None => {
                // With what it holds of a message: who has sent that is not listened to again.
                self.answers = None;
                Some((self.expected.pop_front()?, None))
            }
        }
    }

    /// What is expected of a channel that is over.
    pub fn into_expected(self) -> VecDeque<Expected> {
        self.expected
    }

    /// What an answer is to: the first that it names.
    fn place_of(&self, header: Header) -> Option<usize> {
        let mut all = self.expected.iter();
        let place = all.position(|expected| expected.request() as u32 == header.request);
        place.filter(|_| header.is_reply())
    }
}

/// The file that comes with an answer which says that there is one.
pub(super) fn file_of(message: Message) -> Option<OwnedFd> {
    let mut files = message.descriptors;
    let is_done = Word::from_bytes(&message.payload) == Some(Word(0));
    files.pop().filter(|_| is_done && files.is_empty())
}
