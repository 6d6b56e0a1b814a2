//! The state of one interrupt, as every version of the architecture has it (IHI 0048B, 3.2.4).

/// The group an interrupt belongs to. What it means is up to the guest: usually FIQ or IRQ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Group {
    /// Group 0: what a GIC resets to, and what is signalled as FIQ if the guest asks for FIQs.
    #[default]
    Zero,
    /// Group 1: always signalled as IRQ.
    One,
}

impl Group {
    /// Its bit in GICD_CTLR and GICC_CTLR.
    pub(in super::super) fn enable(self) -> u32 {
        1 << self as u32
    }
}

/// How an interrupt's input line is understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TriggerMode {
    /// Pending as long as the line is up.
    #[default]
    Level,
    /// Becomes pending when the line rises, and stays so until it is acknowledged.
    Edge,
}

/// One interrupt: what the guest has configured, and how far its handling has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct InterruptState {
    /// Forwarded to CPUs at all.
    pub enabled: bool,
    /// The group it is forwarded in.
    pub group: Group,
    /// How `line` is understood.
    pub trigger: TriggerMode,
    /// Lower is more urgent. Only the implemented bits, the topmost, are ever set.
    pub priority: u8,
    /// The level of the input line.
    pub line: bool,
    /// The pending latch: set by an edge, by a message or by the guest; cleared by the guest or its acknowledge.
    pub latch: bool,
    /// Acknowledged and not deactivated yet.
    pub active: bool,
}

impl InterruptState {
    /// Whether it is pending: latched, or level-sensitive with its line up.
    pub fn pending(&self) -> bool {
        self.latch || (self.line && self.trigger == TriggerMode::Level)
    }

    /// Whether it competes for a CPU. One that is active does not, even while it is pending again.
    pub(in super::super) fn competes(&self) -> bool {
        self.enabled && self.pending() && !self.active
    }

    /// The input line moves to `up`. A rise latches an edge-triggered interrupt.
    pub(in super::super) fn set_line(&mut self, up: bool) {
        if up && !self.line && self.trigger == TriggerMode::Edge {
            self.latch = true;
        }
        self.line = up;
    }
}

/// An interrupt, what its input is plugged into, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Source<R> {
    /// How many line handles hold the input up.
    holders: u32,
    /// The guest has seen the input up before a restore, and its device has not driven it again yet: when it does, that
    /// is no new edge.
    seen_up: bool,
    /// What the guest can see and change.
    pub(in super::super) state: InterruptState,
    /// The CPUs it is for.
    pub(in super::super) route: R,
}

impl<R> Source<R> {
    pub fn new(state: InterruptState, route: R) -> Self {
        Self {
            holders: 0,
            seen_up: false,
            state,
            route,
        }
    }

    /// A line handle takes hold of the input, or lets go of it.
    pub fn hold(&mut self, up: bool) {
        self.holders = match up {
            true => self.holders.saturating_add(1),
            false => self.holders.saturating_sub(1),
        };
        if up && self.seen_up {
            self.seen_up = false;
            self.state.line = true;
        } else {
            self.state.set_line(self.holders != 0);
        }
    }

    /// A pulse on the input, or a message: pending whatever the level of the line.
    pub fn pulse(&mut self) {
        self.state.latch = true;
    }

    /// The state as the guest has seen it: a line that was up before a restore counts as up.
    pub fn saved(&self) -> InterruptState {
        let line = self.state.line || self.seen_up;
        InterruptState { line, ..self.state }
    }

    /// Puts a state back. The line stays as the handles hold it; that it was up before is no new edge.
    pub fn restore(&mut self, saved: &InterruptState) {
        let held = self.holders != 0;
        self.seen_up = saved.line && !held;
        self.state = InterruptState {
            line: saved.line && held,
            ..*saved
        };
        self.state.set_line(held);
    }
}
