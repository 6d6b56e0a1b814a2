//! `eventq` (virtio 1.2, section 5.13.6.9): faults, told to the driver by whoever meets them.
//!
//! Buffers are taken as they come, so that a fault is told at once, from the thread of the device that was refused.

use std::{collections::VecDeque, sync::Arc};

use vm_memory::Permissions;

use super::{
    registers::{FAULT_F_ADDRESS, FAULT_F_READ, FAULT_F_WRITE, FAULT_LEN},
    shared::Shared,
    tables::FaultReason,
};
use crate::{
    sync::lock,
    virtio::{Fault, QueueHandler, Round, queue::OwnedChain},
};

/// An access that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessFault {
    /// Why.
    pub reason: FaultReason,
    /// Who.
    pub endpoint: u32,
    /// The first byte that could not be accessed.
    pub address: u64,
    /// It was to be read.
    pub read: bool,
    /// It was to be written.
    pub write: bool,
}

impl AccessFault {
    pub(super) fn new(reason: FaultReason, endpoint: u32, address: u64, access: Permissions) -> Self {
        Self {
            reason,
            endpoint,
            address,
            read: access.allow(Permissions::Read),
            write: access.allow(Permissions::Write),
        }
    }

    /// `struct virtio_iommu_fault`.
    fn bytes(&self) -> [u8; FAULT_LEN as usize] {
        let &Self {
            reason,
            endpoint,
            address,
            read,
            write,
        } = self;
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = FAULT_F_ADDRESS | flag(read, FAULT_F_READ) | flag(write, FAULT_F_WRITE);
        let mut bytes = [0; FAULT_LEN as usize];
        bytes[0] = reason as u8;
        bytes[4..8].copy_from_slice(&flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&endpoint.to_le_bytes());
        bytes[16..].copy_from_slice(&address.to_le_bytes());
        bytes
    }

    fn tell(&self, buffer: OwnedChain) {
        match buffer.writer().write(&self.bytes()) {
            Ok(()) => buffer.complete(FAULT_LEN),
            Err(_) => buffer.refuse(),
        }
    }
}

/// What is known of faults, and where the next can be told.
#[derive(Default)]
pub(super) struct Events {
    buffers: VecDeque<OwnedChain>,
    pub backlog: VecDeque<AccessFault>,
    pub faults: u64,
    pub lost: u64,
}

impl Events {
    /// A fault, and the buffer that it is told by if there is one.
    fn add(&mut self, fault: AccessFault, limit: usize) -> Option<OwnedChain> {
        self.faults += 1;
        if self.backlog.is_empty()
            && let Some(buffer) = self.buffers.pop_front()
        {
            return Some(buffer);
        }
        match self.backlog.len() < limit {
            true => self.backlog.push_back(fault),
            false => self.lost += 1,
        }
        None
    }
}

impl Shared {
    /// Tells of a fault. Nothing of the IOMMU is locked.
    pub fn fault(&self, fault: AccessFault) {
        let buffer = lock(&self.events).add(fault, self.max_faults);
        if let Some(buffer) = buffer {
            fault.tell(buffer);
        }
    }
}

pub(super) struct EventQueue(pub Arc<Shared>);

impl QueueHandler for EventQueue {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            // The report is not spread over several buffers.
            if !chain.readable().is_empty() || chain.writable_len() < FAULT_LEN {
                chain.refuse()?;
                continue;
            }
            let mut events = lock(&self.0.events);
            let Some(fault) = events.backlog.pop_front() else {
                events.buffers.push_back(chain.take());
                continue;
            };
            drop(events);
            fault.tell(chain.take());
        }
        Ok(())
    }

    fn pause(&mut self) {
        // With nothing locked.
        let buffers = std::mem::take(&mut lock(&self.0.events).buffers);
        buffers.into_iter().for_each(OwnedChain::give_back);
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        self.pause();
    }
}
