//! Requests that take translations back which are in use: they come back when nobody uses these any more.

use std::sync::{Arc, Mutex, Weak};

use super::registers::{Status, TAIL};
use crate::{
    sync::lock,
    virtio::queue::{ChainError, OwnedChain, Writer},
};

/// The end of what a request has taken back. Dropped with its last clone, by who has used that last.
#[derive(Default)]
pub(super) struct Waiting(Mutex<Option<OwnedChain>>);

impl Waiting {
    /// Answers `chain` at the end.
    pub fn keep(&self, chain: OwnedChain) {
        *lock(&self.0) = Some(chain);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(chain) = lock(&self.0).take() {
            match answer(&mut chain.writer(), Status::Ok) {
                Ok(written) => chain.complete(written),
                Err(_) => chain.refuse(),
            }
        }
    }
}

/// Writes `struct virtio_iommu_req_tail`.
pub(super) fn answer(writer: &mut Writer<'_>, status: Status) -> Result<u32, ChainError> {
    writer.write(&[status as u8, 0, 0, 0])?;
    Ok(TAIL)
}

/// Who waits, by the head of its chain.
#[derive(Default)]
pub(super) struct Pending {
    out: Vec<(u16, Weak<Waiting>)>,
    /// Given back for the time of a stop, after they had their effect.
    given_back: Vec<(u16, Weak<Waiting>)>,
}

impl Pending {
    pub fn add(&mut self, head: u16, waiting: &Arc<Waiting>) {
        self.out.retain(|(_, waiting)| waiting.strong_count() != 0);
        self.out.push((head, Arc::downgrade(waiting)));
    }

    /// Takes all chains that are still waiting, to be given back with nothing locked.
    pub fn stop(&mut self) -> Vec<(Arc<Waiting>, OwnedChain)> {
        let mut chains = Vec::new();
        for (head, weak) in self.out.drain(..) {
            let Some(waiting) = weak.upgrade() else { continue };
            let chain = lock(&waiting.0).take();
            if let Some(chain) = chain {
                self.given_back.push((head, weak));
                chains.push((waiting, chain));
            }
        }
        chains
    }

    /// Whether the request at `head` has had its effect; and who waits for the end of it, unless that has come.
    pub fn resume(&mut self, head: u16) -> Option<Option<Arc<Waiting>>> {
        let at = self.given_back.iter().position(|(other, _)| *other == head)?;
        Some(self.given_back.swap_remove(at).1.upgrade())
    }

    pub fn heads(&self) -> Vec<u16> {
        self.given_back.iter().map(|(head, _)| *head).collect()
    }

    pub fn restore(&mut self, heads: &[u16]) {
        self.out.clear();
        self.given_back = heads.iter().map(|&head| (head, Weak::new())).collect();
    }
}
