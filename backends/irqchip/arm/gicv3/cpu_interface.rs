//! The registers of a CPU interface, and what it admits (IHI 0069, chapter 4 and 12.2).

use super::{
    super::gic::{Group, preemption::Preemption},
    registers::icc_ctlr,
};

/// The registers of one CPU interface.
#[derive(Clone, Debug)]
pub(super) struct CpuInterface {
    /// ICC_CTLR_EL1, the bits that can be written.
    pub(super) control: u32,
    /// ICC_IGRPEN0_EL1 and ICC_IGRPEN1_EL1, a bit each.
    pub(super) enabled_groups: u32,
    /// ICC_PMR_EL1, ICC_BPR0_EL1, ICC_BPR1_EL1 and the active priorities.
    pub(super) preemption: Preemption,
}

impl CpuInterface {
    pub(super) fn new(priority_bits: u32) -> Self {
        Self {
            control: 0,
            enabled_groups: 0,
            preemption: Preemption::new(priority_bits),
        }
    }

    /// Whether ICC_BPR0_EL1 counts for both groups.
    pub(super) fn common_binary_point(&self) -> bool {
        self.control & icc_ctlr::CBPR != 0
    }

    pub(super) fn enables(&self, group: Group) -> bool {
        self.enabled_groups & group.enable() != 0
    }

    /// Whether an interrupt is urgent enough to be signalled: for the mask, and for what runs now.
    pub(super) fn admits(&self, priority: u8, group: Group) -> bool {
        self.enables(group) && self.preemption.admits(priority, group, self.common_binary_point())
    }

    /// ICC_BPR1_EL1. While ICC_BPR0_EL1 is common it follows that one, and cannot be written (12.2).
    pub(super) fn binary_point_1(&self) -> u8 {
        match self.common_binary_point() {
            true => (self.preemption.binary_point() + 1).min(7),
            false => self.preemption.aliased_binary_point(),
        }
    }
}
