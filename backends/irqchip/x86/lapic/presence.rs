//! What senders know of a local APIC: whether it is there, and as whom it is addressed (SDM 12.6.2).

use super::{
    config::ApicId,
    logical::{self, Places},
    registers::{DFR_CLUSTER, DFR_FLAT},
};
use crate::sync::{AtomicU64, Ordering};

/// The mode that IA32_APIC_BASE puts a local APIC into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Disabled,
    XApic,
    X2Apic,
}

/// What senders know of a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Presence {
    pub mode: Mode,
    /// Software-enabled: vectors are accepted.
    pub enabled: bool,
    /// The ID that the guest has given it in xAPIC mode, if it is not its own.
    pub moved: Option<u8>,
    /// The logical ID: 8 bits in xAPIC mode, 32 in x2APIC mode.
    pub ldr: u32,
    /// The model of the destination format.
    pub dfr: u8,
    /// The processor priority's class.
    pub class: u8,
}

impl Presence {
    pub fn is_present(self) -> bool {
        self.mode != Mode::Disabled
    }

    pub fn accepts_vectors(self) -> bool {
        self.is_present() && self.enabled
    }

    /// Whether the same messages are for it as `before`, and accepted.
    pub fn takes_the_same_as(self, before: Self) -> bool {
        let class = before.class;
        Self { class, ..self } == before
    }

    /// The lists of the index that it belongs to.
    pub fn places(self) -> Places {
        let id = self.ldr as u8;
        let places = match (self.mode, self.dfr) {
            (Mode::XApic, DFR_FLAT) => logical::flat(id),
            (Mode::XApic, DFR_CLUSTER) => logical::cluster(id),
            // Its first 8 members have logical IDs of as many bits, too.
            (Mode::X2Apic, _) if self.ldr >> 16 == 0 => logical::flat(id),
            _ => 0,
        };
        places | if self.moved.is_some() { logical::MOVED } else { 0 }
    }

    pub fn matches_logical(self, destination: u32) -> bool {
        let Self { ldr, dfr, mode, .. } = self;
        match (mode, dfr) {
            (Mode::X2Apic, _) => matches_x2apic(ldr, destination),
            (Mode::XApic, _) if destination > 0xff => false,
            (Mode::XApic, DFR_FLAT) => ldr & destination != 0,
            (Mode::XApic, DFR_CLUSTER) => ldr >> 4 == destination >> 4 && ldr & destination & 0xf != 0,
            // No model that the manual knows: addressed by broadcasts alone.
            _ => false,
        }
    }

    /// Whether it is there with this ID. `own` is the one that it was made with.
    pub fn is_named(self, own: ApicId, destination: ApicId) -> bool {
        self.is_present() && destination == self.moved.map_or(own, |id| ApicId(id.into()))
    }

    /// DFR's model and the class have 4 bits.
    fn pack(self) -> u64 {
        let Self {
            mode,
            enabled,
            moved,
            ldr,
            dfr,
            class,
        } = self;
        let low = u64::from(ldr) | u64::from(dfr) << 32 | u64::from(class) << 36 | (mode as u64) << 40;
        let moved = moved.map_or(0, |id| 1 << 43 | u64::from(id) << 48);
        low | u64::from(enabled) << 42 | moved
    }

    fn unpack(word: u64) -> Self {
        Self {
            mode: match word >> 40 & 3 {
                0 => Mode::Disabled,
                1 => Mode::XApic,
                _ => Mode::X2Apic,
            },
            enabled: word >> 42 & 1 != 0,
            moved: (word >> 43 & 1 != 0).then_some((word >> 48) as u8),
            ldr: word as u32,
            dfr: (word >> 32 & 0xf) as u8,
            class: (word >> 36 & 0xf) as u8,
        }
    }
}

/// The logical ID of x2APIC mode, which follows from the ID (12.12.10.2).
pub(super) fn x2apic_logical_id(id: ApicId) -> u32 {
    id.0 >> 4 << 16 | 1 << (id.0 & 0xf)
}

pub(super) fn matches_x2apic(logical_id: u32, destination: u32) -> bool {
    logical_id >> 16 == destination >> 16 && logical_id & destination & 0xffff != 0
}

/// A [`Presence`] that the owner publishes and senders look at, none waiting for another.
pub(super) struct Published(AtomicU64);

impl Published {
    pub fn new(presence: Presence) -> Self {
        Self(AtomicU64::new(presence.pack()))
    }

    pub fn set(&self, presence: Presence) {
        self.0.store(presence.pack(), Ordering::Release);
    }

    pub fn get(&self) -> Presence {
        Presence::unpack(self.0.load(Ordering::Acquire))
    }
}
