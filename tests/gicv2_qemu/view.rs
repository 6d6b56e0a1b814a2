//! What decides whether QEMU is expected to differ.

use crate::registers::*;
use devisor::backends::irqchip::Group;

/// What decides whether QEMU is expected to differ.
#[derive(Debug)]
pub struct View {
    pub distributor_control: u32,
    pub interface_control: u32,
    pub priority_mask: u8,
    pub binary_point: u8,
    pub aliased_binary_point: u8,
    /// The most urgent of all that are enabled, pending and not active, whether or not its group is enabled.
    pub first: Option<(u8, Group)>,
    pub running: Option<u32>,
}

impl View {
    pub fn distributor_hides(&self) -> bool {
        self.first
            .is_some_and(|(_, group)| self.distributor_control >> group as u32 & 1 == 0)
    }

    /// The most urgent interrupt is of a group that is disabled, while neither the distributor nor the CPU interface is
    /// off altogether.
    pub fn disabled_group_first(&self) -> bool {
        let enabled = self.distributor_control & self.interface_control;
        let on = self.distributor_control & 3 != 0 && self.interface_control & 3 != 0;
        on && self.first.is_some_and(|(_, group)| enabled >> group as u32 & 1 == 0)
    }

    pub fn group_mask(&self, group: Group) -> u32 {
        let point = match group {
            Group::One if self.interface_control & CBPR == 0 => self.aliased_binary_point - 1,
            _ => self.binary_point,
        };
        u32::MAX << (point + 1)
    }

    pub fn preempts(&self) -> bool {
        let (Some((priority, group)), Some(running)) = (self.first, self.running) else {
            return true;
        };
        let mask = self.group_mask(group);
        u32::from(priority) & mask < running & mask
    }

    /// The masked comparison that the architecture asks for differs from the one of whole priorities.
    pub fn binary_point_moved(&self) -> bool {
        match (self.first, self.running) {
            (Some((priority, _)), Some(running)) => (u32::from(priority) < running) != self.preempts(),
            _ => false,
        }
    }
}
