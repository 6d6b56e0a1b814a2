//! Accesses that were refused, and how the driver is told of them (virtio 1.2, section 5.13.6.9).

use std::collections::VecDeque;

use vm_memory::Permissions;

use super::{
    registers::{FAULT_F_ADDRESS, FAULT_F_READ, FAULT_F_WRITE, FAULT_LEN},
    tables::FaultReason,
};
use crate::virtio::queue::OwnedChain;

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

    pub(super) fn tell(&self, buffer: OwnedChain) {
        match buffer.writer().write(&self.bytes()) {
            Ok(()) => buffer.complete(FAULT_LEN),
            Err(_) => buffer.refuse(),
        }
    }
}

/// What is known of faults, and where the next can be told.
#[derive(Default)]
pub(super) struct Faults {
    pub buffers: VecDeque<OwnedChain>,
    pub backlog: VecDeque<AccessFault>,
    pub faults: u64,
    pub lost: u64,
}

impl Faults {
    /// A fault, and the buffer that it is told by if there is one.
    pub fn add(&mut self, fault: AccessFault, limit: usize) -> Option<OwnedChain> {
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
