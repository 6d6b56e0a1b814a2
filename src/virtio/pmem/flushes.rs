//! `req_vq` (section 5.19.6): flushes.

use std::sync::Arc;

use super::{
    registers::{FAILURE, REQ_TYPE_FLUSH, REQUEST, RESPONSE, SUCCESS},
    shared::Shared,
};
use crate::virtio::{
    ChainError, Fault, QueueHandler, Round,
    queue::{Chain, OwnedChain},
};

/// Serves the queue. Flushes that are there together are one for the host: each of them wants what was written before it was made
/// available, which is before the host is asked.
pub(super) struct Flushes {
    pub shared: Arc<Shared>,
    /// Of one round, in the order in which they came. No longer than the queue.
    pub together: Vec<OwnedChain>,
}

/// What a request is.
enum Kind {
    Flush,
    Unknown,
}

fn kind(chain: &Chain<'_, '_>) -> Result<Kind, ChainError> {
    if chain.readable_len() < REQUEST || chain.writable_len() < RESPONSE {
        return Err(ChainError::Request(
            "a PMEM request has no type, or no room for its response",
        ));
    }
    let mut request = [0; REQUEST as usize];
    chain.reader().read(&mut request)?;
    Ok(match u32::from_le_bytes(request) {
        REQ_TYPE_FLUSH => Kind::Flush,
        _ => Kind::Unknown,
    })
}

impl Flushes {
    /// Takes all flushes that there are, and answers the rest.
    fn find(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            match kind(&chain) {
                Ok(Kind::Flush) => self.together.push(chain.take()),
                Ok(Kind::Unknown) => match chain.writer().write(&FAILURE.to_le_bytes()) {
                    Ok(()) => chain.complete(RESPONSE)?,
                    Err(_) => chain.refuse()?,
                },
                Err(_) => chain.refuse()?,
            }
        }
        Ok(())
    }

    /// Flushes once, and answers all.
    fn flush(&mut self) {
        if self.together.is_empty() {
            return;
        }
        let ret = match self.shared.persist.flush() {
            Ok(()) => SUCCESS,
            Err(error) => {
                self.shared.failures.record(error);
                FAILURE
            }
        };
        for chain in self.together.drain(..) {
            match chain.writer().write(&ret.to_le_bytes()) {
                Ok(()) => chain.complete(RESPONSE),
                // The embedder has taken the memory away.
                Err(_) => chain.refuse(),
            }
        }
    }
}

impl QueueHandler for Flushes {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let found = self.find(round);
        // Also if the ring turned out to be broken: what was found before that is not.
        self.flush();
        found
    }
}
