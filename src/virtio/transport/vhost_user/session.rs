//! A connection: what the front end has said so far, and the request that is being worked on.

use std::{
    any::Any,
    sync::{Arc, Weak},
};

use super::{
    error::ConnectionError,
    inflight::{Part, Table},
    log::Log,
    regions::Regions,
    ring::Ring,
    transfer::Transfer,
};
use crate::virtio::{
    features,
    vhost_user::{FrontRequest, Header, Message, Socket},
};

/// What has to come to rest before a request can be done.
pub(super) enum Rest {
    /// Nothing.
    Nothing,
    /// These rings.
    Rings(Vec<usize>),
    /// Translations that were taken back and are in use, which this counts; all rings go on then.
    Unused(Weak<dyn Any + Send + Sync>),
    /// All of them, which go on then.
    All,
    /// The transfer of the device's state.
    Transfer,
    /// The device, which is reset.
    Device,
}

/// A request that has begun.
pub(super) struct Begun {
    pub request: FrontRequest,
    pub message: Message,
    pub rest: Rest,
}

impl Begun {
    /// What it waits for is the device's to end.
    pub fn hangs_on_device(&self) -> bool {
        !matches!(self.rest, Rest::Transfer)
    }
}

/// What a request comes to.
pub(super) enum Answer {
    /// Done; there is nothing to say but that, if it is asked.
    Done,
    /// It was not done. The connection stands if the front end has asked for an answer.
    Refused(String),
    /// A payload.
    Payload(Vec<u8>),
    /// It was done, and is answered when nobody uses what was taken back, which this counts.
    Unused(Weak<dyn Any + Send + Sync>),
    /// A payload and a descriptor.
    WithDescriptor(Vec<u8>, std::os::fd::OwnedFd),
}

/// A connection.
pub(super) struct Session {
    pub socket: Socket,
    pub begun: Option<Begun>,
    /// What SET_FEATURES has said, with the bits that are vhost's.
    pub features: Option<u64>,
    pub protocol: u64,
    /// What SET_STATUS has said.
    pub status: u8,
    /// The driver has accepted what the device cannot do, and is to find FEATURES_OK missing.
    pub disagreed: bool,
    pub rings: Box<[Ring]>,
    pub regions: Regions,
    pub log: Option<Arc<Log>>,
    pub inflight: Option<Table>,
    pub transfer: Option<Transfer>,
}

impl Session {
    pub fn new(socket: Socket, queues: usize) -> Self {
        Self {
            socket,
            begun: None,
            features: None,
            protocol: 0,
            status: 0,
            disagreed: false,
            rings: (0..queues).map(|_| Ring::default()).collect(),
            regions: Regions::default(),
            log: None,
            inflight: None,
            transfer: None,
        }
    }

    /// Whether a protocol feature was negotiated.
    pub fn has(&self, feature: u64) -> bool {
        self.protocol & feature == feature
    }

    /// Whether rings are packed.
    pub fn is_packed(&self) -> bool {
        self.features
            .is_some_and(|accepted| accepted & features::RING_PACKED != 0)
    }

    pub fn ring(&mut self, index: impl TryInto<usize>) -> Result<(usize, &mut Ring), String> {
        let count = self.rings.len();
        let index = index.try_into().unwrap_or(usize::MAX);
        match self.rings.get_mut(index) {
            Some(ring) => Ok((index, ring)),
            None => Err(format!("queue {index} of {count}")),
        }
    }

    /// The part of a ring of this size in the table of requests in flight, if there is one: a table is of rings as they were when it was
    /// given.
    pub fn part(&self, index: usize, size: u16) -> Option<Part> {
        let table = self.inflight.as_ref()?;
        (table.is_packed() == self.is_packed())
            .then(|| table.queue(index, size))
            .flatten()
    }

    pub fn runs_any(&self) -> bool {
        self.rings.iter().any(|ring| ring.runs.is_some())
    }

    /// Sends an answer. `needed`: the front end waits for one, whatever it is.
    pub fn answer(&mut self, request: FrontRequest, needed: bool, answer: Answer) -> Result<(), ConnectionError> {
        let number = request as u32;
        let (payload, descriptor) = match answer {
            Answer::Done if needed => (0u64.to_ne_bytes().to_vec(), None),
            Answer::Done | Answer::Unused(_) => return Ok(()),
            Answer::Refused(_) if needed => (1u64.to_ne_bytes().to_vec(), None),
            Answer::Refused(reason) => {
                return Err(ConnectionError::Payload {
                    request: number,
                    reason,
                });
            }
            Answer::Payload(payload) => (payload, None),
            Answer::WithDescriptor(payload, descriptor) => (payload, Some(descriptor)),
        };
        let header = Header::reply(number, payload.len());
        Ok(self.socket.send(header, &payload, descriptor)?)
    }
}
