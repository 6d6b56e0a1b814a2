//! The state of an ITS: its registers, its command queue, and the way from an event to an LPI. Nothing here calls out but
//! to guest memory and to translate a processor number, and nothing waits.

use std::sync::Arc;

use super::{
    super::gic::{lpis::Lpis, memory::Tables},
    Limits,
    commands::{Command, Effect},
    registers::{
        BASERS, COLLECTIONS, DEVICES, ENABLED, IDENTIFICATION, IIDR, QUEUE_OFFSET, QUIESCENT, RETRY, Register, STALLED,
        VALID, baser, cbaser, typer,
    },
    tables::{Collection, Device, ENTRY, Fault, Translation, entry_address, read_entry, write_entry},
    translations::{Target, Translations},
};
use crate::backends::irqchip::CpuId;

/// The first INTID that is an LPI.
const FIRST_LPI: u32 = 8192;
/// Size of a command in bytes.
const COMMAND: u64 = 32;

/// Everything behind the lock of an ITS, and what it is plugged into.
pub(super) struct Model {
    pub(super) config: Limits,
    pub(super) memory: Arc<dyn Tables>,
    pub(super) lpis: Arc<dyn Lpis>,
    /// What it remembers of the tables: its one writer is who holds this model.
    pub(super) translations: Arc<Translations>,

    /// GITS_CTLR.Enabled.
    pub(super) enabled: bool,
    /// GITS_CBASER.
    pub(super) command_base: u64,
    /// GITS_CWRITER: the offset.
    pub(super) command_write: u64,
    /// GITS_CREADR: the offset.
    pub(super) command_read: u64,
    /// GITS_CREADR.Stalled.
    pub(super) stalled: bool,
    /// GITS_BASERn.
    pub(super) tables: [u64; BASERS],

    /// Somebody is at the command queue.
    pub(super) executing: bool,
    /// Where the command is whose effect is under way.
    pub(super) under_way: Option<u64>,
    /// Commands that were ignored.
    pub(super) refused: u64,
}

impl Model {
    /// An ITS as it is after a reset.
    pub(super) fn new(
        config: Limits,
        memory: Arc<dyn Tables>,
        lpis: Arc<dyn Lpis>,
        translations: Arc<Translations>,
    ) -> Self {
        Self {
            config,
            memory,
            lpis,
            translations,
            enabled: false,
            command_base: 0,
            command_write: 0,
            command_read: 0,
            stalled: false,
            tables: std::array::from_fn(baser::reset),
            executing: false,
            under_way: None,
            refused: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        self.set_enabled(false);
        self.command_base = 0;
        self.command_write = 0;
        self.command_read = 0;
        self.stalled = false;
        self.tables = std::array::from_fn(baser::reset);
        self.under_way = None;
    }

    // Registers.

    pub(super) fn read(&self, register: Register) -> u64 {
        match register {
            Register::Control => {
                let quiescent = !self.enabled && !self.executing;
                let enabled = if self.enabled { ENABLED } else { 0 };
                (enabled | if quiescent { QUIESCENT } else { 0 }).into()
            }
            Register::ImplementerId => IIDR.into(),
            Register::Type => self.typer(),
            Register::CommandBase => self.command_base,
            Register::CommandWrite => self.command_write,
            Register::CommandRead => self.command_read | if self.stalled { STALLED } else { 0 },
            Register::Table(index) => self.tables[index],
            Register::Identification(index) => IDENTIFICATION[index].into(),
        }
    }

    /// Writes the bits of `mask`. Commands are carried out by [`step`](Self::step) after that.
    pub(super) fn write(&mut self, register: Register, value: u64, mask: u64) {
        let merge = |old: u64, writable: u64| old & !(mask & writable) | value & mask & writable;
        // What a write to these does while they are in use is unpredictable: nothing.
        let in_use = self.enabled || self.executing;
        match register {
            Register::Control => self.set_enabled(value as u32 & ENABLED != 0),
            Register::CommandBase if !in_use => {
                self.command_base = merge(self.command_base, cbaser::WRITABLE);
                self.command_read = 0;
                self.stalled = false;
            }
            Register::CommandWrite => {
                self.command_write = merge(self.command_write, QUEUE_OFFSET);
                if value & mask & RETRY != 0 {
                    self.stalled = false;
                }
            }
            Register::Table(index) if !in_use && baser::FIXED[index] != 0 => {
                self.tables[index] = merge(self.tables[index], baser::WRITABLE);
            }
            Register::CommandBase
            | Register::Table(_)
            | Register::ImplementerId
            | Register::Type
            | Register::CommandRead
            | Register::Identification(_) => {}
        }
    }

    fn typer(&self) -> u64 {
        let Limits {
            device_bits,
            event_bits,
            collection_bits,
            lpi_bits: _,
        } = self.config;
        let less_one = |count: u32, shift: u32| u64::from(count - 1) << shift;
        typer::PHYSICAL
            | (ENTRY - 1) << typer::ITT_ENTRY_SIZE_SHIFT
            | less_one(event_bits, typer::ID_BITS_SHIFT)
            | less_one(device_bits, typer::DEV_BITS_SHIFT)
            | less_one(collection_bits, typer::CID_BITS_SHIFT)
            | typer::CIL
    }

    /// What GITS_CBASER and GITS_BASERn say is frozen while it is enabled, so what is remembered of the tables goes with
    /// the bit.
    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.translations.forget();
    }

    // The command queue.

    /// Whether commands wait that can be carried out.
    pub(super) fn has_commands(&self) -> bool {
        self.enabled
            && !self.stalled
            && self.command_base & VALID != 0
            && self.command_read != self.command_write
            // Beyond the queue it is no position in it: nothing is done until the guest writes another.
            && self.command_write < self.queue_size()
    }

    pub(super) fn queue_size(&self) -> u64 {
        cbaser::queue_size(self.command_base)
    }

    /// Carries out the next command as far as the tables go. The effect is for who calls, followed by
    /// [`complete`](Self::complete). `None`: there is none, or it stalled.
    pub(super) fn step(&mut self) -> Option<Effect> {
        if !self.has_commands() {
            return None;
        }
        let done = self.next_command().and_then(|command| {
            let command = command.ok_or(Fault::Refused)?;
            self.execute(command)
        });
        let effect = match done {
            Ok(effect) => effect,
            Err(Fault::Refused) => {
                self.refused += 1;
                Effect::None
            }
            Err(Fault::Memory) => {
                self.stalled = true;
                return None;
            }
        };
        self.under_way = Some(self.command_read);
        Some(effect)
    }

    /// The command of the last [`step`](Self::step) is complete: the guest may know, unless a reset or a restore came in
    /// between.
    pub(super) fn complete(&mut self) {
        if let Some(at) = self.under_way.take() {
            self.command_read = (at + COMMAND) % self.queue_size();
        }
    }

    fn next_command(&self) -> Result<Option<Command>, Fault> {
        let address = (self.command_base & cbaser::ADDRESS) + self.command_read;
        let mut bytes = [0; COMMAND as usize];
        self.memory.read(address, &mut bytes)?;
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = crate::bus::read_le(bytes);
        }
        Ok(Command::decode(words))
    }

    // The tables.

    pub(super) fn device_address(&self, device: u32) -> Result<u64, Fault> {
        let table = self.tables[DEVICES];
        entry_address(&*self.memory, table, self.config.device_bits, device)
    }

    pub(super) fn collection_address(&self, collection: u16) -> Result<u64, Fault> {
        let table = self.tables[COLLECTIONS];
        entry_address(&*self.memory, table, self.config.collection_bits, collection.into())
    }

    /// A mapped device.
    pub(super) fn device(&self, device: u32) -> Result<Device, Fault> {
        let entry = read_entry(&*self.memory, self.device_address(device)?)?;
        Device::unpack(entry).ok_or(Fault::Refused)
    }

    /// Where a mapped collection leads.
    pub(super) fn collection(&self, collection: u16) -> Result<CpuId, Fault> {
        let entry = read_entry(&*self.memory, self.collection_address(collection)?)?;
        let collection = Collection::unpack(entry).ok_or(Fault::Refused)?;
        self.redistributor(collection.processor)
    }

    pub(super) fn redistributor(&self, processor: u32) -> Result<CpuId, Fault> {
        self.lpis.redistributor(processor).ok_or(Fault::Refused)
    }

    /// A mapped event, and where its entry is.
    pub(super) fn event(&self, device: u32, event: u32) -> Result<(u64, Translation), Fault> {
        let address = self.device(device)?.event_address(event)?;
        let entry = read_entry(&*self.memory, address)?;
        let translation = Translation::unpack(entry).ok_or(Fault::Refused)?;
        Ok((address, translation))
    }

    /// Whether an INTID is one of an LPI.
    pub(super) fn is_lpi(&self, intid: u32) -> bool {
        intid >= FIRST_LPI && u64::from(intid) >> self.config.lpi_bits == 0
    }

    /// The way from an event to an LPI.
    pub(super) fn translate(&self, device: u32, event: u32) -> Result<Target, Fault> {
        let (_, Translation { lpi, collection }) = self.event(device, event)?;
        if !self.is_lpi(lpi) {
            // The guest has written to a table that is the ITS's.
            return Err(Fault::Refused);
        }
        let cpu = self.collection(collection)?;
        Ok(Target { cpu, lpi })
    }

    /// The same for a message, remembered for the next one.
    pub(super) fn translate_message(&mut self, device: u32, event: u32) -> Option<Target> {
        let target = self.enabled.then(|| self.translate(device, event).ok()).flatten()?;
        self.translations.remember(device, event, target);
        Some(target)
    }

    /// Changes an entry of a table. What was remembered of the tables before is forgotten first.
    pub(super) fn change(&mut self, address: u64, entry: u64) -> Result<(), Fault> {
        self.translations.forget();
        write_entry(&*self.memory, address, entry)
    }
}
