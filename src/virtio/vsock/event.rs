//! The event queue (virtio 1.2, section 5.10.6.7).

use std::sync::{Arc, atomic::Ordering};

use super::{registers::EVENT_TRANSPORT_RESET, table::Shared};
use crate::virtio::{Fault, QueueHandler, Round};

/// Serves `event`.
pub(super) struct Events(pub Arc<Shared>);

impl QueueHandler for Events {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while self.0.event_owed.load(Ordering::SeqCst) {
            let Some(chain) = round.next()? else { return Ok(()) };
            let event = EVENT_TRANSPORT_RESET.to_le_bytes();
            if !chain.readable().is_empty() || chain.writer().write(&event).is_err() {
                chain.refuse()?;
                continue;
            }
            chain.complete(event.len() as u32)?;
            self.0.event_owed.store(false, Ordering::SeqCst);
        }
        Ok(())
    }
}
