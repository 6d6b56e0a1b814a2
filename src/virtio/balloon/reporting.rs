//! `reporting_vq` (section 5.5.6.5): the pages themselves are the buffers.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use super::{registers::feature, shared::Shared};
use crate::virtio::{ChainError, Fault, QueueHandler, Round};

pub(super) struct ReportingQueue(pub Arc<Shared>);

impl QueueHandler for ReportingQueue {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let Self(shared) = self;
        // What is read there afterwards is zeros, and "MUST NOT [be] a value other than poison_val".
        let keep = shared.has(feature::PAGE_POISON) && shared.poison.load(SeqCst) != 0;
        round.each(|chain| {
            if !chain.readable().is_empty() || chain.writable_len() == 0 {
                return Err(ChainError::Request("not a report of pages"));
            }
            for page in chain.writable() {
                shared.counters.reported.fetch_add(page.len.into(), SeqCst);
                if !keep && page.len != 0 {
                    shared.discard(page.address, page.len.into());
                }
            }
            Ok(0)
        })?;
        Ok(())
    }
}
