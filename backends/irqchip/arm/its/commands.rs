//! The commands of an ITS (IHI 0069, 5.3): what 32 bytes of the queue say, and what comes of it.
//!
//! What an ITS does about a command with a bad parameter is left to it, within limits. Here, as in KVM and QEMU, the
//! command is ignored and the queue goes on; a command that needs a table where there is no memory stalls the queue, as
//! does one that cannot be read.

use super::{
    model::{Model, Target},
    registers::{COLLECTIONS, VALID},
    tables::{Collection, Device, Fault, Translation, first_address},
};
use crate::backends::irqchip::CpuId;

/// A command of the queue. MAPI is a MAPTI whose INTID is the event's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Movi { device: u32, event: u32, collection: u16 },
    Int { device: u32, event: u32 },
    Clear { device: u32, event: u32 },
    Sync { processor: u32 },
    Mapd { device: u32, to: Option<Device> },
    Mapc { collection: u16, to: Option<Collection> },
    Mapti { device: u32, event: u32, to: Translation },
    Inv { device: u32, event: u32 },
    Invall { collection: u16 },
    Movall { from: u32, to: u32 },
    Discard { device: u32, event: u32 },
}

impl Command {
    /// `None` for what is reserved, and for the commands of virtual LPIs.
    pub(super) fn decode(words: [u64; 4]) -> Option<Self> {
        let [first, second, third, fourth] = words;
        let device = (first >> 32) as u32;
        let event = second as u32;
        let collection = third as u16;
        let valid = third & VALID != 0;
        Some(match first as u8 {
            0x01 => Self::Movi {
                device,
                event,
                collection,
            },
            0x03 => Self::Int { device, event },
            0x04 => Self::Clear { device, event },
            0x05 => Self::Sync {
                processor: Collection::processor(third),
            },
            0x08 => Self::Mapd {
                device,
                to: valid.then_some(Device {
                    itt: third & Device::ITT,
                    event_bits: (second & Device::SIZE) as u32 + 1,
                }),
            },
            0x09 => Self::Mapc {
                collection,
                to: valid.then(|| Collection {
                    processor: Collection::processor(third),
                }),
            },
            0x0a => Self::Mapti {
                device,
                event,
                to: Translation {
                    lpi: (second >> 32) as u32,
                    collection,
                },
            },
            0x0b => Self::Mapti {
                device,
                event,
                to: Translation { lpi: event, collection },
            },
            0x0c => Self::Inv { device, event },
            0x0d => Self::Invall { collection },
            0x0e => Self::Movall {
                from: Collection::processor(third),
                to: Collection::processor(fourth),
            },
            0x0f => Self::Discard { device, event },
            _ => return None,
        })
    }
}

/// What a command asks of the redistributors, to be done once the tables are as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Pending { at: Target, pending: bool },
    Invalidate(Target),
    InvalidateAll(CpuId),
    Move { from: Target, to: CpuId },
    MoveAll { from: CpuId, to: CpuId },
}

impl Effect {
    /// In commands that concern one event. With all LPIs of a redistributor it takes about a millisecond, so that an
    /// access carries out 64 of these.
    pub(super) fn cost(self) -> u32 {
        match self {
            Self::InvalidateAll(_) | Self::MoveAll { .. } => 512,
            Self::None | Self::Pending { .. } | Self::Invalidate(_) | Self::Move { .. } => 1,
        }
    }
}

impl Model {
    /// Changes the tables as `command` says. A command that faults has changed nothing.
    pub(super) fn execute(&mut self, command: Command) -> Result<Effect, Fault> {
        match command {
            Command::Mapd { device, to } => self.map_device(device, to).map(|()| Effect::None),
            Command::Mapc { collection, to } => self.map_collection(collection, to).map(|()| Effect::None),
            Command::Mapti { device, event, to } => self.map_event(device, event, to).map(|()| Effect::None),
            Command::Movi {
                device,
                event,
                collection,
            } => self.move_event(device, event, collection),
            Command::Int { device, event } => {
                let at = self.translate(device, event)?;
                Ok(Effect::Pending { at, pending: true })
            }
            Command::Clear { device, event } => {
                let at = self.translate(device, event)?;
                Ok(Effect::Pending { at, pending: false })
            }
            Command::Discard { device, event } => self.discard(device, event),
            Command::Inv { device, event } => self.translate(device, event).map(Effect::Invalidate),
            Command::Invall { collection } => self.collection(collection).map(Effect::InvalidateAll),
            Command::Movall { from, to } => {
                let (from, to) = (self.redistributor(from)?, self.redistributor(to)?);
                Ok(match from == to {
                    true => Effect::None,
                    false => Effect::MoveAll { from, to },
                })
            }
            // Each command is complete before the next is looked at.
            Command::Sync { processor } => self.redistributor(processor).map(|_| Effect::None),
        }
    }

    fn map_device(&mut self, device: u32, to: Option<Device>) -> Result<(), Fault> {
        if to.is_some_and(|to| to.event_bits > self.config.event_bits) {
            return Err(Fault::Refused);
        }
        let address = self.device_address(device)?;
        self.change(address, to.map_or(0, Device::pack))
    }

    fn map_collection(&mut self, collection: u16, to: Option<Collection>) -> Result<(), Fault> {
        if let Some(to) = to {
            self.redistributor(to.processor)?;
        }
        let address = self.collection_address(collection)?;
        self.change(address, to.map_or(0, Collection::pack))
    }

    /// The collection may be mapped later, and the guest may give its table a page for it later.
    fn map_event(&mut self, device: u32, event: u32, to: Translation) -> Result<(), Fault> {
        let address = self.device(device)?.event_address(event)?;
        first_address(
            self.tables[COLLECTIONS],
            self.config.collection_bits,
            to.collection.into(),
        )?;
        match self.is_lpi(to.lpi) {
            true => self.change(address, to.pack()),
            false => Err(Fault::Refused),
        }
    }

    fn move_event(&mut self, device: u32, event: u32, collection: u16) -> Result<Effect, Fault> {
        let (address, was) = self.event(device, event)?;
        let cpu = self.collection(was.collection)?;
        let to = self.collection(collection)?;
        self.change(address, Translation { collection, ..was }.pack())?;
        let from = Target { cpu, lpi: was.lpi };
        Ok(match cpu == to {
            true => Effect::None,
            false => Effect::Move { from, to },
        })
    }

    fn discard(&mut self, device: u32, event: u32) -> Result<Effect, Fault> {
        let (address, was) = self.event(device, event)?;
        let cpu = self.collection(was.collection)?;
        self.change(address, 0)?;
        let at = Target { cpu, lpi: was.lpi };
        Ok(Effect::Pending { at, pending: false })
    }
}
