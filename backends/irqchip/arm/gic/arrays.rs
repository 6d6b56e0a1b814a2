//! Registers that have a field for each interrupt: what their words read, and what a write does to each interrupt.

use super::{Group, InterruptState, TriggerMode, preemption::implemented};

/// An array of registers, as the distributor has them, and the redistributors of a GICv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Array {
    /// IGROUPRn.
    Group,
    /// ISENABLERn.
    SetEnable,
    /// ICENABLERn.
    ClearEnable,
    /// ISPENDRn.
    SetPending,
    /// ICPENDRn.
    ClearPending,
    /// ISACTIVERn.
    SetActive,
    /// ICACTIVERn.
    ClearActive,
    /// IPRIORITYRn.
    Priority,
    /// ICFGRn.
    Config,
}

/// ICFGRn of an edge-triggered interrupt. That of an SGI is read-only: to be looked after where writes arrive.
const EDGE: u32 = 0b10;

/// What a write does to one interrupt.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Change {
    Group(Group),
    Enabled(bool),
    Latch(bool),
    Active(bool),
    Priority(u8),
    Trigger(TriggerMode),
}

impl Change {
    pub fn make(self, state: &mut InterruptState) {
        match self {
            Self::Group(group) => state.group = group,
            Self::Enabled(enabled) => state.enabled = enabled,
            Self::Latch(latch) => state.latch = latch,
            Self::Active(active) => state.active = active,
            Self::Priority(priority) => state.priority = priority,
            Self::Trigger(trigger) => state.trigger = trigger,
        }
    }
}

impl Array {
    /// How many interrupts share a word.
    pub fn interrupts(self) -> u32 {
        32 / self.width()
    }

    /// The bits that each interrupt has of a word.
    fn width(self) -> u32 {
        match self {
            Self::Priority => 8,
            Self::Config => 2,
            _ => 1,
        }
    }

    /// A word, where `state` knows the interrupts that share it, counted from 0. Those that do not exist are zero.
    pub fn read<'a>(self, state: impl Fn(u32) -> Option<&'a InterruptState>) -> u32 {
        let width = self.width();
        (0..self.interrupts()).fold(0, |word, index| {
            let field = state(index).map_or(0, |state| self.field(state));
            word | field << (index * width)
        })
    }

    fn field(self, state: &InterruptState) -> u32 {
        match self {
            Self::Group => state.group as u32,
            Self::SetEnable | Self::ClearEnable => state.enabled.into(),
            Self::SetPending | Self::ClearPending => state.pending().into(),
            Self::SetActive | Self::ClearActive => state.active.into(),
            Self::Priority => state.priority.into(),
            Self::Config => match state.trigger {
                TriggerMode::Level => 0,
                TriggerMode::Edge => EDGE,
            },
        }
    }

    /// What a write of `value` changes, and of which interrupts of the word, where only the bits of `written` are. Of
    /// priorities so many bits are implemented.
    pub fn changes(self, value: u32, written: u32, priority_bits: u32) -> impl Iterator<Item = (u32, Change)> {
        let width = self.width();
        (0..self.interrupts()).filter_map(move |index| {
            let shift = index * width;
            let field = value >> shift & (0xff >> (8 - width));
            let change = match self {
                _ if written >> shift & 1 == 0 => return None,
                Self::Group if field == 0 => Change::Group(Group::Zero),
                Self::Group => Change::Group(Group::One),
                Self::Priority => Change::Priority(field as u8 & implemented(priority_bits)),
                Self::Config if field & EDGE == 0 => Change::Trigger(TriggerMode::Level),
                Self::Config => Change::Trigger(TriggerMode::Edge),
                // Of the others a zero changes nothing.
                _ if field == 0 => return None,
                Self::SetEnable => Change::Enabled(true),
                Self::ClearEnable => Change::Enabled(false),
                Self::SetPending => Change::Latch(true),
                Self::ClearPending => Change::Latch(false),
                Self::SetActive => Change::Active(true),
                Self::ClearActive => Change::Active(false),
            };
            Some((index, change))
        })
    }
}

/// Where the arrays are in a distributor, for INTIDs below 1024, and for all private interrupts in a redistributor: which one
/// a word is of, and the offset where that one begins.
pub(in super::super) fn array(word: u64) -> Option<(Array, u64)> {
    Some(match word {
        0x080..0x100 => (Array::Group, 0x080),
        0x100..0x180 => (Array::SetEnable, 0x100),
        0x180..0x200 => (Array::ClearEnable, 0x180),
        0x200..0x280 => (Array::SetPending, 0x200),
        0x280..0x300 => (Array::ClearPending, 0x280),
        0x300..0x380 => (Array::SetActive, 0x300),
        0x380..0x400 => (Array::ClearActive, 0x380),
        0x400..0x800 => (Array::Priority, 0x400),
        0xc00..0xd00 => (Array::Config, 0xc00),
        _ => return None,
    })
}
