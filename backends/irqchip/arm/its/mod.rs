//! Arm's Interrupt Translation Service, which turns the messages of devices into LPIs of a GICv3 (IHI 0069, chapter 5).
//!
//! A message carries who sent it (the DeviceID, from PCI's requester ID) and what it says (the EventID). The guest maps
//! the two to an LPI and a redistributor, by commands that it queues in its memory and by tables there that the
//! [`Its`] fills.
//!
//! | what | here |
//! |---|---|
//! | tables of devices and of collections | flat or of two levels, pages of 4, 16 and 64 KB |
//! | targets | by processor number (GITS_TYPER.PTA is clear); all collections in memory (HCC is 0) |
//! | commands | MAPD, MAPC, MAPTI, MAPI, MOVI, MOVALL, INV, INVALL, INT, CLEAR, DISCARD, SYNC |
//! | a bad command | is ignored: [`Its::refused_commands`] counts it, GITS_CREADR advances |
//! | no memory where a command or a table of it should be | GITS_CREADR.Stalled, until the guest sets GITS_CWRITER.Retry |
//! | an unmapped message | is dropped: [`Its::dropped_messages`] counts it |
//! | writes to GITS_CBASER and GITS_BASERn while enabled | are ignored |
//! | virtual LPIs, GITS_UMSIR, MPAM | are not there |
//!
//! Registers are accessed as 32-bit words, those of 64 bits also as a whole. All other accesses read as zero and write
//! nothing.
//!
//! # Tables
//!
//! An entry is 8 bytes, little-endian; one that is not valid is zero. This is format 1 ([`TABLE_FORMAT`]), which
//! GITS_IIDR.Revision tells and which a saved state names, for the tables are part of it.
//!
//! | table | bit 63 | other fields |
//! |---|---|---|
//! | device | valid | 51:8 address of the interrupt translation table, 4:0 its bits of EventID less one |
//! | collection | valid | 31:16 processor number |
//! | interrupt translation | valid | 47:32 collection, 31:0 INTID |
//!
//! The tables are the ITS's while they are in use. A guest that writes to them is not noticed: its interrupts go where the
//! tables say, or where they said, and at no time further than its own redistributors.
//!
//! # A device's message
//! ```
//! use devisor::{
//!     backends::irqchip::{
//!         CpuId,
//!         gicv3::{CpuOutputs, GicV3, GicV3Config, LpiSupport},
//!         its::{EventId, Its, ItsConfig},
//!     },
//!     bus::BusDevice,
//!     interrupt::{MsiSink, NoInterrupt, RequesterId},
//! };
//! use std::sync::Arc;
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
//! let memory = Arc::new(memory);
//! let config = GicV3Config { lpis: LpiSupport::Its, ..GicV3Config::new(1) };
//! let outputs = CpuOutputs { irq: Box::new(NoInterrupt), fiq: Box::new(NoInterrupt) };
//! let gic = GicV3::with_lpis(config, vec![outputs], Arc::clone(&memory))?;
//! let its = Its::new(ItsConfig::default(), &gic, Arc::clone(&memory))?;
//!
//! // What the guest does: tell the redistributor where its tables of LPIs are, and the ITS where its own are.
//! let redistributor = gic.redistributor(CpuId(0))?;
//! redistributor.write(0x70, &(0x5_0000_u64 | 15).to_le_bytes()); // GICR_PROPBASER: INTIDs of 16 bits
//! redistributor.write(0x78, &0x8_0000_u64.to_le_bytes()); // GICR_PENDBASER
//! redistributor.write(0x00, &1_u32.to_le_bytes()); // GICR_CTLR.EnableLPIs
//! let registers = its.control_frame();
//! let valid = 1 << 63;
//! registers.write(0x080, &(valid | 0x1_0000_u64).to_le_bytes()); // GITS_CBASER
//! registers.write(0x100, &(valid | 0x2_0000_u64).to_le_bytes()); // GITS_BASER0: devices
//! registers.write(0x108, &(valid | 0x3_0000_u64).to_le_bytes()); // GITS_BASER1: collections
//! registers.write(0x000, &1_u32.to_le_bytes()); // GITS_CTLR.Enabled
//!
//! // And map event 3 of device 00:01.0 to LPI 8192.
//! let device = 8 << 32;
//! let commands: [[u64; 4]; 3] = [
//!     [0x09, 0, valid, 0],                       // MAPC: collection 0 is processor 0
//!     [device | 0x08, 4, valid | 0x4_0000, 0],   // MAPD: 2^5 events, their table is at 0x4_0000
//!     [device | 0x0a, 8192 << 32 | 3, 0, 0],     // MAPTI
//! ];
//! for (word, index) in commands.as_flattened().iter().zip(0..) {
//!     memory.write_obj(word.to_le(), GuestAddress(0x1_0000 + index * 8))?;
//! }
//! registers.write(0x088, &96_u64.to_le_bytes()); // GITS_CWRITER
//!
//! // What a device does.
//! its.send(RequesterId(8), its.message(EventId(3)))?;
//! assert_eq!((its.refused_commands(), its.dropped_messages()), (0, 0));
//!
//! // The LPI is pending, as the redistributor's table says once the state is taken.
//! gic.save();
//! let pending: u8 = memory.read_obj(GuestAddress(0x8_0000 + 8192 / 8))?;
//! assert_eq!(pending, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod commands;
mod describe;
mod execute;
mod faces;
mod messages;
mod model;
mod registers;
mod snapshot;
mod tables;
#[cfg(test)]
mod tests;
mod translations;

use std::{
    fmt, mem,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use vm_memory::GuestAddressSpace;

use self::{commands::Effect, model::Model, translations::Translations};
use super::{
    gic::{lpis::Lpis, memory::Tables},
    gicv3::{GicV3, LpiSupport},
};
use crate::sync::lock;

pub use describe::describe;
pub use faces::{ControlFrame, TranslationFrame};
pub use messages::RootComplex;
pub use snapshot::{ItsState, ItsStateError};

/// The format of the tables in guest memory. See the [module](self).
pub const TABLE_FORMAT: u32 = 1;

/// Bits of an INTID, as GICD_TYPER.IDbits of a [`GicV3`] says.
const LPI_BITS: u32 = 16;

/// Who sends messages, as an ITS counts them: 32 bits, of which it may have fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u32);

/// Which of a device's messages it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub u32);

/// What an [`Its`] has. The guest reads it from GITS_TYPER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ItsConfig {
    /// Guest physical address of the control frame, a multiple of 64 KB. The translation frame follows it.
    pub base: u64,
    /// Bits of DeviceID: 1 to 32.
    pub device_bits: u32,
    /// Bits of EventID: 1 to 32.
    pub event_bits: u32,
    /// Bits of the number of a collection: 1 to 16.
    pub collection_bits: u32,
}

impl Default for ItsConfig {
    /// At 0x808_0000, where QEMU's `virt` board has it, and 16 bits each.
    fn default() -> Self {
        Self {
            base: 0x0808_0000,
            device_bits: 16,
            event_bits: 16,
            collection_bits: 16,
        }
    }
}

impl ItsConfig {
    fn check(&self) -> Result<(), ItsError> {
        let Self {
            base,
            device_bits,
            event_bits,
            collection_bits,
        } = *self;
        let frame = registers::FRAME_SIZE;
        if !base.is_multiple_of(frame) || base.checked_add(2 * frame - 1).is_none() {
            return Err(ItsError::Base(base));
        }
        if !(1..=32).contains(&device_bits) {
            return Err(ItsError::DeviceBits(device_bits));
        }
        if !(1..=32).contains(&event_bits) {
            return Err(ItsError::EventBits(event_bits));
        }
        if !(1..=16).contains(&collection_bits) {
            return Err(ItsError::CollectionBits(collection_bits));
        }
        Ok(())
    }
}

/// An [`Its`] cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ItsError {
    /// [`ItsConfig::base`].
    #[error("an ITS at {0:#x}: it must be a multiple of 0x10000, with 0x20000 bytes of address space")]
    Base(u64),
    /// [`ItsConfig::device_bits`].
    #[error("{0} bits of DeviceID: an ITS has 1 to 32")]
    DeviceBits(u32),
    /// [`ItsConfig::event_bits`].
    #[error("{0} bits of EventID: an ITS has 1 to 32")]
    EventBits(u32),
    /// [`ItsConfig::collection_bits`].
    #[error("{0} bits of collection: an ITS has 1 to 16")]
    CollectionBits(u32),
    /// The GIC was made without LPIs, or with such as no ITS sends.
    #[error("a GIC with {0:?} LPIs: its configuration must say LpiSupport::Its")]
    Lpis(LpiSupport),
}

/// How many bits the numbers have that an ITS deals with.
#[derive(Clone, Copy, Debug)]
struct Limits {
    device_bits: u32,
    event_bits: u32,
    collection_bits: u32,
    /// Bits of the INTID of an LPI, as the GIC has them.
    lpi_bits: u32,
}

/// An ITS. Clones are handles to the same one, which lives as long as any of them or of its faces.
///
/// All methods can be called from any thread. Messages of events that are in use take no lock of the ITS and do not
/// wait for each other. A command's effects on the redistributors, and so on the outputs of the GIC, come from the thread
/// that writes GITS_CWRITER, with no lock held.
#[derive(Clone)]
pub struct Its {
    shared: Arc<Shared>,
}

/// What is behind the handles.
struct Shared {
    config: ItsConfig,
    model: Mutex<Model>,
    lpis: Arc<dyn Lpis>,
    translations: Arc<Translations>,
    dropped: AtomicU64,
}

impl Its {
    /// An ITS of `gic` as it is after a reset. Its tables and its command queue are in `memory`: the guest's, as
    /// `Arc<GuestMemoryMmap>` or anything else that is a [`GuestAddressSpace`]. A GIC can have several.
    ///
    /// # Errors
    /// [`ItsError`] if the configuration is not one that an ITS can have, or the GIC has no LPIs for one.
    pub fn new<A>(config: ItsConfig, gic: &GicV3, memory: A) -> Result<Self, ItsError>
    where
        A: GuestAddressSpace + Send + Sync + 'static,
    {
        match gic.config().lpis {
            LpiSupport::Its => Self::before(config, gic.lpis(), LPI_BITS, Arc::new(memory)),
            lpis => Err(ItsError::Lpis(lpis)),
        }
    }

    /// The same before any redistributors.
    fn before(
        config: ItsConfig,
        lpis: Arc<dyn Lpis>,
        lpi_bits: u32,
        memory: Arc<dyn Tables>,
    ) -> Result<Self, ItsError> {
        config.check()?;
        let ItsConfig {
            base: _,
            device_bits,
            event_bits,
            collection_bits,
        } = config;
        let limits = Limits {
            device_bits,
            event_bits,
            collection_bits,
            lpi_bits,
        };
        let translations = Arc::new(Translations::new());
        let model = Model::new(limits, memory, Arc::clone(&lpis), Arc::clone(&translations));
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                model: Mutex::new(model),
                lpis,
                translations,
                dropped: AtomicU64::new(0),
            }),
        })
    }

    /// A reset of the system: the registers go back to what they were at the start. Stop the vCPUs first.
    pub fn reset(&self) {
        lock(&self.shared.model).reset();
    }

    /// What this ITS was made with.
    pub fn config(&self) -> ItsConfig {
        self.shared.config
    }

    /// How many commands were ignored because what they name does not exist, is not mapped or is out of range.
    pub fn refused_commands(&self) -> u64 {
        lock(&self.shared.model).refused
    }
}

impl fmt::Debug for Its {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Its")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

/// How much one access carries out at most, counted in commands that concern one event: as many as the largest queue has.
const SHARE: u32 = 0x8000;

impl Shared {
    /// Carries out the commands that wait, unless another thread is at it. At most its share of them, so that neither dear
    /// commands nor those that another CPU queues meanwhile keep this one.
    fn carry_out(&self) {
        let mut model = lock(&self.model);
        if model.executing || !model.has_commands() {
            return;
        }
        model.executing = true;
        drop(model);
        // An output of the GIC may unwind: the queue goes on with the next access.
        let executing = Executing(self);
        let mut left = SHARE;
        while left > 0 {
            let mut model = lock(&self.model);
            let Some(effect) = model.step() else {
                // Under the lock that found nothing to do: who comes now looks for itself.
                model.executing = false;
                mem::forget(executing);
                return;
            };
            left = left.saturating_sub(effect.cost());
            if effect != Effect::None {
                drop(model);
                self.apply(effect);
                model = lock(&self.model);
            }
            model.complete();
        }
    }

    fn apply(&self, effect: Effect) {
        let lpis = &*self.lpis;
        match effect {
            Effect::None => {}
            Effect::Pending { at, pending } => lpis.set_pending(at.cpu, at.lpi, pending),
            Effect::Invalidate(at) => lpis.invalidate(at.cpu, at.lpi),
            Effect::InvalidateAll(cpu) => lpis.invalidate_all(cpu),
            Effect::Move { from, to } => lpis.move_pending(from.cpu, to, from.lpi),
            Effect::MoveAll { from, to } => lpis.move_all_pending(from, to),
        }
    }
}

/// A thread is at the command queue, until this is dropped.
struct Executing<'a>(&'a Shared);

impl Drop for Executing<'_> {
    fn drop(&mut self) {
        lock(&self.0.model).executing = false;
    }
}
