//! A queue that the back end leaves to us: the event queue of a socket device in the kernel.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use super::super::shared::Shared;
use crate::virtio::{Fault, QueueHandler, Round};

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.2, section 5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// Tells the driver that all connections have ended, when the device has moved or the kernel's was opened anew: the next has none of them.
pub(in super::super) struct OurRing(pub Arc<Shared>);

impl QueueHandler for OurRing {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        if !self.0.has_ended.load(SeqCst) {
            return Ok(());
        }
        while let Some(chain) = round.next()? {
            let event = TRANSPORT_RESET.to_le_bytes();
            let written = chain.writer().write(&event);
            if written.is_err() {
                chain.refuse()?;
                continue;
            }
            chain.complete(event.len() as u32)?;
            self.0.has_ended.store(false, SeqCst);
            break;
        }
        Ok(())
    }
}
