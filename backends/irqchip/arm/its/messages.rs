//! Messages on their way into an ITS: who sent them, and what they say.

use std::{
    fmt, io,
    sync::{Arc, atomic::Ordering},
};

use super::{DeviceId, EventId, Its, Shared, registers::TRANSLATER};
use crate::{
    backends::irqchip::{CpuId, IntId},
    interrupt::{MsiMessage, MsiSink, RequesterId},
    sync::lock,
};

impl Its {
    /// The address that messages go to: that of GITS_TRANSLATER.
    pub fn doorbell(&self) -> u64 {
        self.shared.doorbell()
    }

    /// What a function that is to send `event` is programmed with.
    pub fn message(&self, event: EventId) -> MsiMessage {
        MsiMessage {
            address: self.doorbell(),
            data: event.0,
        }
    }

    /// The sink for the functions of a root complex whose requester 0 has the DeviceID `first`: each has `first` plus its
    /// requester ID. Say the same to the guest: `msi-map` in a device tree, the ID mappings of IORT.
    ///
    /// The ITS itself is the sink of the root complex with `first` 0.
    pub fn root_complex(&self, first: DeviceId) -> RootComplex {
        let its = Arc::clone(&self.shared);
        RootComplex { its, first }
    }

    /// An event of a device, as if its message had arrived: for what is no PCI function. What is not mapped changes
    /// nothing.
    pub fn signal(&self, device: DeviceId, event: EventId) {
        self.shared.signal(device, event);
    }

    /// Where an event goes now: the redistributor and the INTID of the LPI that the guest has mapped to it, if it has. For who
    /// traces messages or debugs a guest; walks the tables in guest memory.
    pub fn target(&self, device: DeviceId, event: EventId) -> Option<(CpuId, IntId)> {
        let target = lock(&self.shared.model).translate_message(device.0, event.0)?;
        Some((target.cpu, IntId(target.lpi)))
    }

    /// How many messages were dropped because the guest has mapped no LPI to them, or had the ITS disabled.
    pub fn dropped_messages(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn doorbell(&self) -> u64 {
        self.config.base + super::registers::FRAME_SIZE + TRANSLATER
    }

    fn signal(&self, DeviceId(device): DeviceId, EventId(event): EventId) {
        let walk = || lock(&self.model).translate_message(device, event);
        if !self.translations.deliver(&*self.lpis, device, event, walk) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn send(&self, first: DeviceId, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        let MsiMessage { address, data } = message;
        if address != self.doorbell() {
            let doorbell = self.doorbell();
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("message to {address:#x}: this ITS takes them at {doorbell:#x}"),
            ));
        }
        match first.0.checked_add(requester.0.into()) {
            Some(device) => self.signal(DeviceId(device), EventId(data)),
            // There is no such DeviceID, so the guest has none mapped.
            None => drop(self.dropped.fetch_add(1, Ordering::Relaxed)),
        }
        Ok(())
    }
}

impl MsiSink for Its {
    /// The DeviceID is the requester ID, the EventID what the message says. What the guest has not mapped is dropped, as
    /// by hardware: see [`dropped_messages`](Its::dropped_messages).
    ///
    /// # Errors
    /// `AddrNotAvailable` if the message is not for this ITS.
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        self.shared.send(DeviceId(0), requester, message)
    }
}

/// The [`MsiSink`] of one of several root complexes before an ITS. See [`Its::root_complex`].
#[derive(Clone)]
pub struct RootComplex {
    its: Arc<Shared>,
    first: DeviceId,
}

impl MsiSink for RootComplex {
    /// As to the [`Its`], with another DeviceID.
    ///
    /// # Errors
    /// `AddrNotAvailable` if the message is not for this ITS.
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        self.its.send(self.first, requester, message)
    }
}

impl fmt::Debug for RootComplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootComplex")
            .field("first", &self.first)
            .finish_non_exhaustive()
    }
}
