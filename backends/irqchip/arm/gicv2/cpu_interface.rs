//! The registers of a CPU interface, and what it signals (IHI 0048B, 3.2, 3.3 and 4.4).

use super::{
    super::gic::{Group, outputs::Signals, preemption::Preemption},
    registers::gicc_ctlr,
};

/// The registers of one CPU interface.
#[derive(Clone, Debug)]
pub(super) struct CpuInterface {
    /// GICC_CTLR.
    pub(super) control: u32,
    /// GICC_PMR, GICC_BPR, GICC_ABPR, GICC_APRn and GICC_NSAPRn.
    pub(super) preemption: Preemption,
}

impl CpuInterface {
    pub(super) fn new(priority_bits: u32) -> Self {
        Self {
            control: 0,
            preemption: Preemption::new(priority_bits),
        }
    }

    /// Whether GICC_BPR counts for both groups.
    pub(super) fn common_binary_point(&self) -> bool {
        self.control & gicc_ctlr::CBPR != 0
    }

    pub(super) fn enables(&self, group: Group) -> bool {
        self.control & group.enable() != 0
    }

    /// Whether an interrupt is urgent enough to be signalled: for the mask, and for what runs now.
    pub(super) fn admits(&self, priority: u8, group: Group) -> bool {
        self.enables(group) && self.preemption.admits(priority, group, self.common_binary_point())
    }

    /// The outputs while the distributor forwards this interrupt.
    pub(super) fn signals(&self, priority: u8, group: Group) -> Signals {
        let up = self.admits(priority, group);
        let as_fiq = group == Group::Zero && self.control & gicc_ctlr::FIQ_EN != 0;
        Signals {
            irq: up && !as_fiq,
            fiq: up && as_fiq,
        }
    }
}
