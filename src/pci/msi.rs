//! MSI (PCI Local Bus 3.0, section 6.8.1) with 64-bit addresses and a mask for each vector. Its registers are in configuration
//! space; here is what they say.

#[cfg(unix)]
use std::os::fd::OwnedFd;
use std::{fmt, io, sync::Mutex};

use super::{
    messages::Messages,
    signal::{Gate, Signalled},
};
use crate::{interrupt::MsiMessage, sync::lock};

/// The MSI vectors of an [`Endpoint`](super::Endpoint).
///
/// The guest gives one message for all of them, and as many vectors as it likes to spend: up to those that the function
/// asked for, told apart by the low bits of the data. Otherwise they are as those of [`MsiX`](super::MsiX).
pub struct Msi {
    messages: Messages,
    control: Mutex<MsiControl>,
}

/// What the capability's registers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MsiControl {
    pub enabled: bool,
    /// The function may not master the bus.
    pub masked: bool,
    pub message: MsiMessage,
    /// How many vectors the guest has given: a power of two, and not more than the function has.
    pub allocated: u16,
    /// Mask bits.
    pub mask: u32,
}

impl MsiControl {
    fn gate(&self, vector: usize) -> Gate {
        match *self {
            Self { enabled: false, .. } => Gate::Off,
            Self { masked, mask, .. } if masked || mask >> vector & 1 != 0 => Gate::Masked,
            // Nothing signals those that were not given, so they take nothing of the platform.
            Self { allocated, .. } if vector >= allocated.into() => Gate::Masked,
            _ => Gate::Open,
        }
    }

    /// The function changes the low bits alone (section 6.8.1.6).
    fn message(&self, vector: usize) -> MsiMessage {
        let MsiMessage { address, data } = self.message;
        let low = u32::from(self.allocated.max(1)) - 1;
        let data = data & !low | vector as u32 & low;
        MsiMessage { address, data }
    }
}

impl Msi {
    pub(super) fn new(messages: Messages) -> Self {
        let control = Mutex::default();
        Self { messages, control }
    }

    /// Signals `vector`, if MSI is enabled. Where the guest has given fewer vectors than the function has, they are used
    /// in turn: vector 5 of 4 is 1.
    ///
    /// # Errors
    /// The function has no such vector, or the platform refused: the pending bit is set then, and the next trigger or
    /// unmask carries it.
    pub fn trigger(&self, vector: u16) -> io::Result<Signalled> {
        let given = self.given(vector);
        self.messages.trigger(given, || self.message(given.into()))
    }

    /// A descriptor that signals `vector`, as [`MsiX::export`](super::MsiX::export). It signals the vector that is used for
    /// `vector` now: ask for another when the guest gives more of them or fewer, for which it disables MSI.
    ///
    /// # Errors
    /// As there.
    #[cfg(unix)]
    pub fn export(&self, vector: u16) -> io::Result<OwnedFd> {
        let given = self.given(vector);
        self.messages.export(given, || self.message(given.into()))
    }

    /// The vector that is used for `vector`.
    fn given(&self, vector: u16) -> u16 {
        let allocated = lock(&self.control).allocated.max(1);
        if vector < self.len() {
            vector & (allocated - 1)
        } else {
            vector
        }
    }

    /// How many vectors the function has.
    #[allow(clippy::len_without_is_empty, reason = "there is always at least one")]
    pub fn len(&self) -> u16 {
        self.messages.len()
    }

    /// Whether the guest has enabled MSI, so that the function must not use its INTx.
    pub fn is_enabled(&self) -> bool {
        lock(&self.control).enabled
    }

    /// The pending bit of `vector`.
    pub fn is_pending(&self, vector: u16) -> bool {
        self.messages.is_pending(vector.into())
    }

    /// How often the platform refused a vector, a message or a signal.
    pub fn failures(&self) -> u64 {
        self.messages.failures()
    }

    fn message(&self, vector: usize) -> MsiMessage {
        lock(&self.control).message(vector)
    }

    pub(super) fn settle_all(&self) {
        for vector in 0..self.len().into() {
            self.messages.settle(vector, || self.message(vector));
        }
    }

    /// Takes over what the registers say; calls nobody. Whether to [`settle_all`](Self::settle_all) after the unlock.
    pub(super) fn set_control(&self, control: MsiControl) -> bool {
        let mut now = lock(&self.control);
        if *now == control {
            return false;
        }
        let before = std::mem::replace(&mut *now, control);
        for vector in 0..self.len().into() {
            if before.message(vector) != control.message(vector) {
                self.messages.rewritten(vector);
            }
            self.messages.set(vector, control.gate(vector));
        }
        true
    }

    /// The pending register.
    pub(super) fn pending(&self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|byte| self.messages.pending_byte(8 * byte)))
    }

    /// Takes over the pending register of a saved state; calls nobody.
    pub(super) fn restore(&self, pending: u32) {
        for vector in 0..self.len().into() {
            self.messages.set_pending(vector, pending >> vector & 1 != 0);
        }
    }
}

impl fmt::Debug for Msi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Msi")
            .field("control", &*lock(&self.control))
            .field("failures", &self.failures())
            .finish_non_exhaustive()
    }
}
