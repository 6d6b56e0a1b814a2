//! `eventq` (virtio 1.2, section 5.13.6.9): faults, told to the driver by whoever meets them.
//!
//! Buffers are taken as they come, so that a fault is told at once, from the thread of the device that was refused. Where there is none,
//! the queue is looked at.

use std::sync::Arc;

use super::{registers::FAULT_LEN, shared::Shared};
use crate::{
    sync::lock,
    virtio::{Fault, QueueHandler, Round, queue::OwnedChain},
};

pub(super) struct EventQueue(pub Arc<Shared>);

impl QueueHandler for EventQueue {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            // The report is not spread over several buffers.
            if !chain.readable().is_empty() || chain.writable_len() < FAULT_LEN {
                chain.refuse()?;
                continue;
            }
            let mut faults = lock(&self.0.faults);
            let Some(fault) = faults.backlog.pop_front() else {
                faults.buffers.push_back(chain.take());
                continue;
            };
            drop(faults);
            fault.tell(chain.take());
        }
        Ok(())
    }

    fn pause(&mut self) {
        // With nothing locked.
        let buffers = std::mem::take(&mut lock(&self.0.faults).buffers);
        buffers.into_iter().for_each(OwnedChain::give_back);
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        self.pause();
    }
}
