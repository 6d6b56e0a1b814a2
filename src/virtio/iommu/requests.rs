//! `requestq` (virtio 1.2, section 5.13.6).

use std::sync::Arc;

use super::{
    F_BYPASS_CONFIG, F_MAP_UNMAP, F_MMIO, F_PROBE,
    pending::{Waiting, answer},
    registers::{
        ATTACH_F_BYPASS, MAP_F_MMIO, MAP_F_READ, MAP_F_WRITE, REQUEST_MAX, Status, TAIL, request, request_len,
    },
    shared::Shared,
};
use crate::{
    bus::read_le,
    memory::Ticket,
    sync::lock,
    virtio::{ChainError, Fault, QueueHandler, Round, queue::Chain},
};

/// What a request comes to.
enum Outcome {
    /// It is answered, with so many bytes.
    Now(u32),
    /// It has had its effect, and is answered when what it has taken back is no longer in use.
    Later(Arc<Waiting>),
}

/// The readable part of a request.
struct Request {
    bytes: [u8; REQUEST_MAX],
    len: usize,
}

impl Request {
    /// Whether these are all zero.
    fn is_zero(&self, from: usize) -> bool {
        self.bytes[from..self.len].iter().all(|&byte| byte == 0)
    }

    fn word(&self, at: usize) -> u32 {
        read_le(&self.bytes[at..at + 4]) as u32
    }

    fn long(&self, at: usize) -> u64 {
        read_le(&self.bytes[at..at + 8])
    }
}

pub(super) struct RequestQueue {
    shared: Arc<Shared>,
    features: u64,
}

impl RequestQueue {
    pub fn new(shared: Arc<Shared>, features: u64) -> Self {
        Self { shared, features }
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Performs a request. The error is of one that cannot be told apart, or has no room for its status.
    fn perform(&self, chain: &Chain<'_, '_>) -> Result<Outcome, ChainError> {
        let mut reader = chain.reader();
        if chain.writable_len() < TAIL {
            return Err(ChainError::Request("no room for the status"));
        }
        let mut kind = [0; 4];
        reader.read(&mut kind)?;
        let [kind, ..] = kind;
        let len = request_len(kind).ok_or(ChainError::Request("a type that there is not"))?;
        let mut bytes = [0; REQUEST_MAX];
        reader.read(&mut bytes[4..len])?;
        let request = Request { bytes, len };
        let changed = match kind {
            // As one that is not recognised (section 5.13.6.7).
            request::PROBE if !self.has(F_PROBE) => return Err(ChainError::Request("PROBE was not negotiated")),
            request::PROBE => return self.probe(chain, &request),
            request::MAP | request::UNMAP if !self.has(F_MAP_UNMAP) => Err(Status::Unsupported),
            request::MAP => self.map(&request).map(|()| None),
            request::UNMAP => self.unmap(&request).map(Some),
            request::ATTACH => self.attach(&request).map(Some),
            _ => self.detach(&request).map(Some),
        };
        let status = match changed {
            Ok(Some(waiting)) if Arc::strong_count(&waiting) != 1 => return Ok(Outcome::Later(waiting)),
            Ok(_) => Status::Ok,
            Err(status) => status,
        };
        Ok(Outcome::Now(answer(&mut chain.writer(), status)?))
    }

    /// Who has the only clone of what this returns has nobody to wait for.
    fn take_back(
        &self,
        change: impl FnOnce(&mut super::tables::Tables) -> Result<Option<super::tables::Change>, Status>,
    ) -> Result<Arc<Waiting>, Status> {
        let waiting = Arc::<Waiting>::default();
        let ticket: Ticket = Arc::clone(&waiting) as _;
        self.shared.change(&ticket, change)?;
        Ok(waiting)
    }

    /// Section 5.13.6.3.
    fn attach(&self, request: &Request) -> Result<Arc<Waiting>, Status> {
        let [domain, endpoint, flags] = [4, 8, 12].map(|at| request.word(at));
        let known = if self.has(F_BYPASS_CONFIG) { ATTACH_F_BYPASS } else { 0 };
        if flags & !known != 0 || !request.is_zero(16) {
            return Err(Status::Invalid);
        }
        self.take_back(|tables| tables.attach(domain, endpoint, flags & ATTACH_F_BYPASS != 0))
    }

    /// Section 5.13.6.4.
    fn detach(&self, request: &Request) -> Result<Arc<Waiting>, Status> {
        let [domain, endpoint] = [4, 8].map(|at| request.word(at));
        self.take_back(|tables| tables.detach(domain, endpoint))
    }

    /// Section 5.13.6.5.
    fn map(&self, request: &Request) -> Result<(), Status> {
        let [first, last, physical] = [8, 16, 24].map(|at| request.long(at));
        let (domain, flags) = (request.word(4), request.word(32));
        let mmio = if self.has(F_MMIO) { MAP_F_MMIO } else { 0 };
        if flags & !(MAP_F_READ | MAP_F_WRITE | mmio) != 0 {
            return Err(Status::Invalid);
        }
        // What was not there before was learnt by nobody.
        lock(&self.shared.tables).map(domain, first..=last, physical, flags)
    }

    /// Section 5.13.6.6.
    fn unmap(&self, request: &Request) -> Result<Arc<Waiting>, Status> {
        let [first, last] = [8, 16].map(|at| request.long(at));
        if !request.is_zero(24) {
            return Err(Status::Invalid);
        }
        self.take_back(|tables| tables.unmap(request.word(4), first..=last))
    }

    /// Section 5.13.6.7: properties, zeros up to `probe_size`, then the status.
    fn probe(&self, chain: &Chain<'_, '_>, request: &Request) -> Result<Outcome, ChainError> {
        let size = self.shared.probe_size;
        let room = chain.writable_len() - TAIL;
        let properties = self.shared.properties(request.word(4));
        let status = match properties {
            _ if room < size => Status::Invalid,
            None => Status::NoEntry,
            Some(_) => Status::Ok,
        };
        // Where the driver has the status: after the room that it gave, if that is too small.
        let size = size.min(room);
        let (mut writer, mut tail) = chain.writer().split_at(size)?;
        let properties = properties.filter(|_| status == Status::Ok).unwrap_or_default();
        writer.write(properties)?;
        let rest = writer.remaining();
        writer.fill(0, rest)?;
        Ok(Outcome::Now(size + answer(&mut tail, status)?))
    }
}

impl QueueHandler for RequestQueue {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            let head = chain.head();
            let before = lock(&self.shared.pending).resume(head);
            let outcome = match before {
                Some(Some(waiting)) => Ok(Outcome::Later(waiting)),
                Some(None) => answer(&mut chain.writer(), Status::Ok).map(Outcome::Now),
                None => self.perform(&chain),
            };
            match outcome {
                Ok(Outcome::Now(written)) => chain.complete(written)?,
                Ok(Outcome::Later(waiting)) => {
                    waiting.keep(chain.take());
                    lock(&self.shared.pending).add(head, &waiting);
                    // The last one, perhaps.
                    drop(waiting);
                }
                Err(error) => chain.refuse_for(&error)?,
            }
        }
        Ok(())
    }

    fn pause(&mut self) {
        let chains = lock(&self.shared.pending).stop();
        chains.into_iter().for_each(|(_, chain)| chain.give_back());
    }
}

impl Drop for RequestQueue {
    fn drop(&mut self) {
        self.pause();
        // Heads of the next are others.
        lock(&self.shared.pending).restore(&[]);
    }
}
