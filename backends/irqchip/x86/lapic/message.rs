//! Messages between local APICs and from devices, as they are written (SDM 12.6.1, 12.11).

use super::{
    config::ApicId,
    presence::Mode,
    registers::{DeliveryMode, ICR_ASSERT, ICR_LEVEL, ICR_LOGICAL, ICR_SHORTHAND_SHIFT},
    vectors::Vector,
};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub mode: DeliveryMode,
    pub vector: Vector,
    pub level: bool,
    pub target: Target,
}

/// Whom it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Own,
    All,
    Others,
    Physical(ApicId),
    Logical(u32),
}

impl Message {
    /// The message of an Interrupt Command (12.6.1), to a destination of 8 bits or, in x2APIC mode, 32. `None` if the
    /// command sends nothing.
    pub fn command(low: u32, destination: u32, mode: Mode) -> Option<Self> {
        let broadcast = match mode {
            Mode::X2Apic => u32::MAX,
            _ => 0xff,
        };
        let target = match low >> ICR_SHORTHAND_SHIFT & 3 {
            // With a shorthand some delivery modes are invalid; the manual does not say what happens. They are sent.
            1 => Target::Own,
            2 => Target::All,
            3 => Target::Others,
            _ => Target::of(low & ICR_LOGICAL != 0, destination, broadcast),
        };
        // ExtINT is for messages and pins: here its code is reserved.
        let mode = DeliveryMode::of(low).filter(|mode| *mode != DeliveryMode::ExtInt)?;
        // The de-assertion of INIT once synchronised arbitration IDs. Others have none: see below.
        if mode == DeliveryMode::Init && low & ICR_LEVEL != 0 && low & ICR_ASSERT == 0 {
            return None;
        }
        Some(Self {
            mode,
            vector: Vector(low as u8),
            // "The local APIC will override the bit setting and issue the interrupt as an edge" (table 12-3, note 1).
            level: false,
            target,
        })
    }

    /// The message that a device or an IOAPIC writes, in the format of 12.11. `None` if its delivery mode is reserved.
    /// Data bit 14, the level, is not looked at: a device that de-asserts has nothing to say.
    pub fn written(address: u32, data: u32) -> Option<Self> {
        const REDIRECTION_HINT: u32 = 1 << 3;
        const LOGICAL: u32 = 1 << 2;
        let mode = match DeliveryMode::of(data)? {
            DeliveryMode::Fixed if address & REDIRECTION_HINT != 0 => DeliveryMode::LowestPriority,
            mode => mode,
        };
        Some(Self {
            mode,
            vector: Vector(data as u8),
            level: data & ICR_LEVEL != 0,
            target: Target::of(address & LOGICAL != 0, address >> 12 & 0xff, 0xff),
        })
    }
}

impl Target {
    fn of(logical: bool, destination: u32, broadcast: u32) -> Self {
        match (logical, destination) {
            (_, destination) if destination == broadcast => Self::All,
            (true, destination) => Self::Logical(destination),
            (false, destination) => Self::Physical(ApicId(destination)),
        }
    }
}
