//! What one CPU has of its own: private interrupts, LPIs and what competes for it. Nothing here calls out.

use std::sync::Arc;

use super::{
    super::gic::{
        Group, InterruptState, TriggerMode,
        arbiter::{Candidate, Competitors},
        ids::SGIS,
        memory::Tables,
        outputs::Signals,
        state,
    },
    config::Layout,
    cpu_interface::CpuInterface,
    lpi::Lpis,
};

/// Everything behind the lock of a CPU: the state of its redistributor and of its CPU interface.
pub(super) struct Cpu {
    // Configured.
    pub(super) layout: Layout,
    // What the guest can change.
    /// SGIs, PPIs and extended PPIs.
    pub(super) private: Vec<Source>,
    pub(super) lpis: Lpis,
    /// The DPG bits of GICR_CTLR.
    pub(super) control: u32,
    /// GICR_WAKER.ProcessorSleep.
    pub(super) asleep: bool,
    pub(super) interface: CpuInterface,
    // What follows from the rest.
    /// What competes: private interrupts, LPIs, and the SPIs that the distributor has filed here.
    pub(super) competing: Competitors,
    /// The groups that GICD_CTLR forwards.
    pub(super) forwarded_groups: u32,
}

/// A private interrupt, and where it competes now.
pub(super) type Source = state::Source<Option<Filed>>;

/// How an interrupt competes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filed {
    pub(super) group: Group,
    pub(super) priority: u8,
}

impl Filed {
    /// How an interrupt in this state competes, if it does.
    pub(super) fn of(state: &InterruptState) -> Option<Self> {
        state.competes().then_some(Self {
            group: state.group,
            priority: state.priority,
        })
    }

    pub(super) fn candidate(self, intid: u32) -> Candidate {
        let priority = self.priority;
        Candidate { priority, intid }
    }
}

impl Cpu {
    /// As it is after a reset.
    pub(super) fn new(layout: Layout, tables: Option<Arc<dyn Tables>>) -> Self {
        let private = |place| {
            let trigger = if place < SGIS {
                TriggerMode::Edge
            } else {
                TriggerMode::Level
            };
            let state = InterruptState {
                trigger,
                ..InterruptState::default()
            };
            Source::new(state, None)
        };
        Self {
            layout,
            private: (0..layout.privates()).map(private).collect(),
            lpis: Lpis::new(tables, layout.priority_bits),
            control: 0,
            asleep: !layout.redistributors_awake,
            interface: CpuInterface::new(layout.priority_bits),
            competing: Competitors::new(layout.priority_bits),
            forwarded_groups: 0,
        }
    }

    /// A private interrupt, if it exists.
    pub(super) fn source(&self, intid: u32) -> Option<&Source> {
        self.private.get(self.layout.private(intid)?)
    }

    /// Changes a private interrupt, if it exists, and files it where it now belongs.
    pub(super) fn change(&mut self, intid: u32, change: impl FnOnce(&mut Source)) {
        let Some(source) = self.layout.private(intid).and_then(|place| self.private.get_mut(place)) else {
            return;
        };
        change(source);
        let filed = Filed::of(&source.state);
        let old = std::mem::replace(&mut source.route, filed);
        self.refile(intid, old, filed);
    }

    /// An interrupt competes otherwise than before.
    pub(super) fn refile(&mut self, intid: u32, old: Option<Filed>, new: Option<Filed>) {
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.competing.remove(old.group, old.candidate(intid));
        }
        if let Some(new) = new {
            self.competing.insert(new.group, new.candidate(intid));
        }
    }

    /// What reaches the CPU interface: the most urgent interrupt of the groups that GICD_CTLR enables, while the CPU is
    /// awake.
    pub(super) fn forwarded(&self) -> Option<(Candidate, Group)> {
        if self.asleep {
            return None;
        }
        self.competing.best(self.forwarded_groups)
    }

    /// The outputs of the CPU interface: the only place that derives them.
    pub(super) fn signals(&self) -> Signals {
        match self.forwarded() {
            Some((candidate, group)) if self.interface.admits(candidate.priority, group) => Signals {
                irq: group == Group::One,
                fiq: group == Group::Zero,
            },
            _ => Signals::default(),
        }
    }

    /// Whether something waits for the CPU that would be forwarded to it if it were awake: the redistributor's
    /// WakeRequest.
    pub(super) fn wake_request(&self) -> bool {
        self.asleep && self.competing.best(self.forwarded_groups).is_some()
    }

    /// Whether it takes interrupts of a group that can go to any one CPU (chapter 4).
    pub(super) fn participates(&self, group: Group) -> bool {
        !self.asleep
            && self.interface.enables(group)
            && self.control & super::registers::gicr_ctlr::DPG[group as usize] == 0
    }

    /// An SGI arrives. A register for Group 0 reaches no SGI that is of Group 1.
    pub(super) fn send_sgi(&mut self, intid: u32, group_0_only: bool) {
        self.change(intid, |source| {
            if !(group_0_only && source.state.group == Group::One) {
                source.pulse();
            }
        });
    }

    pub(super) fn set_lpi(&mut self, intid: u32, pending: bool) {
        self.lpis.set_pending(intid, pending, &mut self.competing);
    }
}
