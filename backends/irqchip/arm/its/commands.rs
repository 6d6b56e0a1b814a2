//! The commands of an ITS (IHI 0069, 5.3): what 32 bytes of the queue say, and what may come of it.

use super::{
    registers::VALID,
    tables::{Collection, Device, Translation},
    translations::Target,
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
