//! MSI-X (PCI Local Bus 3.0, section 6.8.2): the table, the pending bits, and both masks.

#[cfg(unix)]
use std::os::fd::OwnedFd;
use std::{fmt, io, sync::Mutex};

use super::{
    bar::BarIndex,
    config::MsiXLayout,
    error::StateError,
    messages::Messages,
    registers::*,
    signal::{Gate, Signalled},
};
use crate::{bus::read_le, interrupt::MsiMessage, sync::lock};

/// The MSI-X vectors of an [`Endpoint`](super::Endpoint).
///
/// A vector is asked of the platform when the guest first lets it through, programmed anew when the guest rewrites its
/// message, without a message while anything masks it, and given back when the guest disables MSI-X, on reset and on
/// drop. Until the function may master the bus it is as if all vectors were masked, for a message is a write to memory.
///
/// A signal that was decided before the guest wrote a mask may still arrive after it, as a posted write in flight would.
///
/// ```
/// # use devisor::{interrupt::*, pci::*};
/// # use std::{io, sync::{Arc, Mutex}};
/// # #[derive(Default)]
/// # struct Log(Mutex<Vec<u32>>);
/// # impl MsiSink for Log {
/// #     fn send(&self, _: RequesterId, message: MsiMessage) -> io::Result<()> {
/// #         Ok(self.0.lock().unwrap().push(message.data))
/// #     }
/// # }
/// let sent = Arc::new(Log::default());
/// let mut config = EndpointConfig::new(Identity::default())?;
/// config.msix(BarIndex::Bar1, 2)?;
/// let vectors = Arc::new(SinkVectors::new(Arc::clone(&sent)));
/// let slot = Slot::new(DeviceFunction::new(3, 0).unwrap(), Box::new(NoInterrupt), vectors);
/// let endpoint = Endpoint::new(config, slot);
/// let msix = endpoint.msix().unwrap();
/// assert_eq!(msix.trigger(1)?, Signalled::Disabled);
///
/// // The guest enables MSI-X and lets the function master the bus.
/// endpoint.write_config(0x42, &[0, 0x80]);
/// endpoint.write_config(0x04, &[0x04, 0]);
/// assert_eq!(msix.trigger(1)?, Signalled::Pending);
///
/// // It gives vector 1 its data, and unmasks it.
/// endpoint.write_bar(BarIndex::Bar1, 0x18, &0x41u64.to_le_bytes());
/// assert_eq!(*sent.0.lock().unwrap(), [0x41]);
/// assert_eq!(msix.trigger(1)?, Signalled::Sent);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct MsiX {
    layout: MsiXLayout,
    messages: Messages,
    table: Mutex<Table>,
}

/// The words of an entry, in the order of the table.
#[derive(Clone, Copy)]
enum Field {
    Address,
    UpperAddress,
    Data,
    VectorControl,
}

#[derive(Clone, Debug)]
struct Table {
    control: Control,
    entries: Box<[MsiXEntry]>,
}

/// What the configuration space says about all vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Control {
    /// MSI-X Enable.
    pub enabled: bool,
    /// Function Mask, or no Bus Master.
    pub masked: bool,
}

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiXEntry {
    /// Message Address and Message Upper Address; the two lowest bits are clear.
    pub address: u64,
    /// Message Data.
    pub data: u32,
    /// The mask bit of Vector Control.
    pub masked: bool,
}

impl MsiXEntry {
    /// Every vector is masked until the guest says otherwise.
    const RESET: Self = Self {
        address: 0,
        data: 0,
        masked: true,
    };

    fn bytes(&self) -> [u8; MSIX_ENTRY as usize] {
        let mut bytes = [0; MSIX_ENTRY as usize];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12] = u8::from(self.masked);
        bytes
    }

    fn write(&mut self, field: Field, value: u32) {
        const LOW: u64 = 0xffff_ffff;
        match field {
            Field::Address => self.address = self.address & !LOW | u64::from(value & !3),
            Field::UpperAddress => self.address = self.address & LOW | u64::from(value) << 32,
            Field::Data => self.data = value,
            Field::VectorControl => self.masked = value & MSIX_VECTOR_MASKED != 0,
        }
    }

    fn message(&self) -> MsiMessage {
        let Self { address, data, .. } = *self;
        MsiMessage { address, data }
    }
}

/// The table and the pending bits, as they are saved. What the configuration space says is saved with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsiXState {
    /// All of the table.
    pub entries: Vec<MsiXEntry>,
    /// The pending bits, lowest vector first, as the guest reads them; bits without a vector are clear.
    pub pending: Vec<u64>,
}

impl MsiX {
    pub(super) fn new(layout: MsiXLayout, messages: Messages) -> Self {
        let entries = vec![MsiXEntry::RESET; layout.count.into()].into();
        let control = Control::default();
        Self {
            layout,
            messages,
            table: Mutex::new(Table { control, entries }),
        }
    }

    /// Signals `vector`, if MSI-X is enabled.
    ///
    /// # Errors
    /// The function has no such vector, or the platform refused: the pending bit is set then, and the next trigger or
    /// unmask carries it.
    #[inline]
    pub fn trigger(&self, vector: u16) -> io::Result<Signalled> {
        self.messages.trigger(vector, || self.message(vector.into()))
    }

    /// Asks the platform for `vector` now, and not when the guest first lets it through: a device that tells its driver
    /// whether it can use a vector has to know. Does nothing while MSI-X is not enabled.
    ///
    /// # Errors
    /// The function has no such vector, or the platform has none to give.
    pub fn reserve(&self, vector: u16) -> io::Result<()> {
        self.messages.reserve(vector, || self.message(vector.into()))
    }

    /// A descriptor that signals `vector` when 8 bytes with the number 1 are written to it, for who is to do that in the
    /// device's place: vhost, another process. Only some platforms have any. The platform's vector is asked
    /// for now, if the guest has not let it through yet.
    ///
    /// The descriptor follows the table. What is signalled while the vector is masked waits, sets the pending bit, and is
    /// sent as one message on the unmask. It is dead once the guest has disabled MSI-X, and after a reset, a
    /// [`release`](Self::release) or a restore: ask for another then.
    ///
    /// # Errors
    /// `NotConnected` while MSI-X is disabled; `Unsupported` if the platform's vectors have no descriptor; `WouldBlock` if
    /// another thread is changing this vector right now, so ask again; else the function has no such vector, or what the
    /// platform or the operating system answered.
    #[cfg(unix)]
    pub fn export(&self, vector: u16) -> io::Result<OwnedFd> {
        self.messages.export(vector, || self.message(vector.into()))
    }

    pub(super) fn bar(&self) -> BarIndex {
        self.layout.bar
    }

    /// How many vectors there are.
    #[allow(clippy::len_without_is_empty, reason = "there is always at least one")]
    #[inline]
    pub fn len(&self) -> u16 {
        self.messages.len()
    }

    /// Whether the guest has enabled MSI-X, so that the function must not use its INTx.
    pub fn is_enabled(&self) -> bool {
        self.messages.are_on()
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
        lock(&self.table).entries[vector].message()
    }

    fn settle(&self, vector: usize) {
        self.messages.settle(vector, || self.message(vector));
    }

    pub(crate) fn settle_all(&self) {
        (0..self.len().into()).for_each(|vector| self.settle(vector));
    }

    /// Takes over what the configuration space says; calls nobody. Whether to [`settle_all`](Self::settle_all) after the
    /// unlock.
    pub(super) fn set_control(&self, control: Control) -> bool {
        let mut table = lock(&self.table);
        if table.control == control {
            return false;
        }
        table.control = control;
        table.derive(&self.messages);
        true
    }

    /// Forgets what is pending and gives every vector back to the platform, whatever masks it; the table and the registers stay
    /// as they are. A vector is asked for again when it is next signalled or unmasked. For a device that was reset by its
    /// driver: nothing is pending any more, but its function is where the guest has put it.
    ///
    /// Calls the platform: use it with nothing locked. A signal that comes meanwhile is dropped, or sent as one that came
    /// after.
    pub fn release(&self) {
        self.forget();
        self.settle_all();
    }

    /// The first half of [`release`](Self::release): calls nobody, and what comes after this is kept. Follow it with
    /// [`settle_all`](Self::settle_all) after the unlock.
    pub(crate) fn forget(&self) {
        self.messages.release();
    }

    /// Disables MSI-X, then empties the table: in this order, so that nobody signals along a message of zeros. Calls nobody.
    pub(super) fn reset(&self) {
        let mut table = lock(&self.table);
        table.control = Control::default();
        table.derive(&self.messages);
        table.entries.fill(MsiXEntry::RESET);
    }

    /// A read of the BAR. Any width and alignment answers; what is neither table nor PBA is zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let table = lock(&self.table);
        for (at, byte) in addresses(offset).zip(data) {
            let entry = table.entries.get((at / MSIX_ENTRY) as usize);
            *byte = match (entry, at.checked_sub(self.layout.pba)) {
                (Some(entry), _) => entry.bytes()[(at % MSIX_ENTRY) as usize],
                (None, Some(byte)) if byte < MSIX_VECTORS.into() => self.messages.pending_byte(8 * byte as usize),
                _ => 0,
            };
        }
    }

    /// A write to the BAR. Aligned accesses of 4 and 8 bytes are what the specification allows (6.8.2); others write
    /// nothing, and neither does any to the PBA.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        let vector = (offset / MSIX_ENTRY) as usize;
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) || vector >= self.len().into() {
            return;
        }
        {
            let mut table = lock(&self.table);
            let entry = &mut table.entries[vector];
            let before = entry.message();
            for (at, word) in (offset % MSIX_ENTRY..).step_by(4).zip(data.chunks(4)) {
                let field = match at {
                    0 => Field::Address,
                    4 => Field::UpperAddress,
                    8 => Field::Data,
                    _ => Field::VectorControl,
                };
                entry.write(field, read_le(word) as u32);
            }
            if entry.message() != before {
                self.messages.rewritten(vector);
            }
            self.messages.set(vector, table.gate(vector));
        }
        self.settle(vector);
    }

    pub(super) fn save(&self) -> MsiXState {
        let Table { control: _, entries } = &*lock(&self.table);
        let words = self.layout.count.div_ceil(64).into();
        let pending = (0..words).map(|word: usize| {
            let bytes = std::array::from_fn(|byte| self.messages.pending_byte(64 * word + 8 * byte));
            u64::from_le_bytes(bytes)
        });
        MsiXState {
            entries: entries.to_vec(),
            pending: pending.collect(),
        }
    }

    pub(super) fn check(&self, state: &MsiXState, enabled: bool) -> Result<(), StateError> {
        let MsiXState { entries, pending } = state;
        let count = usize::from(self.layout.count);
        if entries.len() != count || pending.len() != count.div_ceil(64) {
            let (entries, words) = (entries.len(), pending.len());
            return Err(StateError::MsiXLength { count, entries, words });
        }
        if let Some(vector) = entries.iter().position(|entry| entry.address & 3 != 0) {
            return Err(StateError::MsiXAddress { vector });
        }
        let exists = |vector: usize| enabled && vector < count;
        let stray = (0..64 * pending.len()).find(|&v| pending[v / 64] >> (v % 64) & 1 != 0 && !exists(v));
        stray.map_or(Ok(()), |vector| Err(StateError::Pending { vector }))
    }

    /// Takes over a state that was [checked](Self::check); calls nobody. MSI-X is disabled now, and gets its control from the
    /// configuration space after this.
    pub(super) fn restore(&self, state: &MsiXState) {
        let MsiXState { entries, pending } = state;
        let mut table = lock(&self.table);
        table.entries.copy_from_slice(entries);
        for vector in 0..entries.len() {
            let owed = pending[vector / 64] >> (vector % 64) & 1 != 0;
            self.messages.set_pending(vector, owed);
            self.messages.rewritten(vector);
        }
    }
}

impl Table {
    fn gate(&self, vector: usize) -> Gate {
        match self.control {
            Control { enabled: false, .. } => Gate::Off,
            Control { masked, .. } if masked || self.entries[vector].masked => Gate::Masked,
            _ => Gate::Open,
        }
    }

    fn derive(&self, messages: &Messages) {
        for vector in 0..self.entries.len() {
            messages.set(vector, self.gate(vector));
        }
    }
}

impl fmt::Debug for MsiX {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsiX")
            .field("control", &lock(&self.table).control)
            .field("vectors", &self.len())
            .field("failures", &self.failures())
            .finish_non_exhaustive()
    }
}
