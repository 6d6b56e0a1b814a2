//! What a CPU reads and writes at its interface, acknowledges and ends (IHI 0048B, 3.2, 3.3 and 4.4).

use super::{
    super::gic::{Group, ids::SGIS},
    model::Model,
    registers::{self, CpuInterface as Register, gicc_ctlr},
};

/// Which of the two faces of the acknowledge registers is used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Face {
    /// GICC_IAR, GICC_EOIR, GICC_HPPIR: Group 0, and Group 1 too if GICC_CTLR.AckCtl.
    Plain,
    /// GICC_AIAR, GICC_AEOIR, GICC_AHPPIR: Group 1.
    Aliased,
}

impl Model {
    /// A read of a CPU interface register of 32 bits; an acknowledge changes state.
    pub(super) fn read_cpu_interface(&mut self, cpu: usize, register: Register) -> u32 {
        let interface = &self.interfaces[cpu];
        match register {
            Register::Control => interface.control,
            Register::PriorityMask => interface.preemption.priority_mask().into(),
            Register::BinaryPoint => interface.preemption.binary_point().into(),
            Register::AliasedBinaryPoint => interface.preemption.aliased_binary_point().into(),
            Register::RunningPriority => {
                let running = interface.preemption.active.running();
                running.map_or(registers::IDLE_PRIORITY, u32::from)
            }
            Register::HighestPending => self.highest_pending(cpu, Face::Plain),
            Register::AliasedHighestPending => self.highest_pending(cpu, Face::Aliased),
            Register::Acknowledge => self.acknowledge(cpu, Face::Plain),
            Register::AliasedAcknowledge => self.acknowledge(cpu, Face::Aliased),
            Register::ActivePriorities(index) => interface.preemption.active.register(Group::Zero, index),
            Register::NonSecureActivePriorities(index) => interface.preemption.active.register(Group::One, index),
            Register::InterfaceId => registers::GICC_IIDR,
            Register::EndOfInterrupt | Register::AliasedEndOfInterrupt | Register::Deactivate => 0,
        }
    }

    /// A write of a CPU interface register of 32 bits.
    pub(super) fn write_cpu_interface(&mut self, cpu: usize, register: Register, value: u32) {
        self.news.cpus |= 1 << cpu;
        let interface = &mut self.interfaces[cpu];
        let preemption = &mut interface.preemption;
        match register {
            Register::Control => interface.control = value & gicc_ctlr::WRITABLE,
            Register::PriorityMask => preemption.set_priority_mask(value as u8),
            Register::BinaryPoint => preemption.set_binary_point(value as u8),
            Register::AliasedBinaryPoint => preemption.set_aliased_binary_point(value as u8),
            Register::EndOfInterrupt => self.end_of_interrupt(cpu, Face::Plain, value),
            Register::AliasedEndOfInterrupt => self.end_of_interrupt(cpu, Face::Aliased, value),
            Register::Deactivate => self.deactivate_register(cpu, value),
            Register::ActivePriorities(index) => preemption.active.set_register(Group::Zero, index, value),
            Register::NonSecureActivePriorities(index) => preemption.active.set_register(Group::One, index, value),
            Register::RunningPriority
            | Register::HighestPending
            | Register::AliasedHighestPending
            | Register::Acknowledge
            | Register::AliasedAcknowledge
            | Register::InterfaceId => {}
        }
    }

    /// GICC_HPPIR and GICC_AHPPIR: the same choice as for an acknowledge, but whatever the priority.
    fn highest_pending(&self, cpu: usize, face: Face) -> u32 {
        match self.forwarded(cpu) {
            Some((candidate, group)) if self.interfaces[cpu].enables(group) => {
                self.visible(cpu, face, group).unwrap_or_else(|| {
                    let sender = self.sgi_sender(cpu, candidate.intid).unwrap_or(0);
                    candidate.intid | sender << registers::SOURCE_CPU_SHIFT
                })
            }
            _ => registers::SPURIOUS,
        }
    }

    /// GICC_IAR and GICC_AIAR: the most urgent interrupt becomes active, if it is urgent enough (3.2.4).
    fn acknowledge(&mut self, cpu: usize, face: Face) -> u32 {
        // Also if there is nothing: its input may have refused to be told so.
        self.news.cpus |= 1 << cpu;
        let Some((candidate, group)) = self.forwarded(cpu) else {
            return registers::SPURIOUS;
        };
        let interface = &mut self.interfaces[cpu];
        if !interface.admits(candidate.priority, group) {
            return registers::SPURIOUS;
        }
        if let Some(special) = self.visible(cpu, face, group) {
            return special;
        }
        let interface = &mut self.interfaces[cpu];
        let common = interface.common_binary_point();
        interface.preemption.activate(candidate.priority, group, common);

        let mut value = candidate.intid;
        let mut still_sent = false;
        if let Some(sender) = self.sgi_sender(cpu, candidate.intid) {
            let senders = &mut self.sgi_senders[cpu][candidate.intid as usize];
            *senders &= !(1 << sender);
            still_sent = *senders != 0;
            value |= sender << registers::SOURCE_CPU_SHIFT;
        }
        self.change(cpu, candidate.intid, |source| {
            source.state.active = true;
            source.state.latch = still_sent;
        });
        value
    }

    /// What is read in place of an interrupt of this group, if this face does not show it (3.2.5).
    fn visible(&self, cpu: usize, face: Face, group: Group) -> Option<u32> {
        let ack_ctl = self.interfaces[cpu].control & gicc_ctlr::ACK_CTL != 0;
        match (face, group) {
            (Face::Plain, Group::One) if !ack_ctl => Some(registers::GROUP_1_PENDING),
            (Face::Aliased, Group::Zero) => Some(registers::SPURIOUS),
            _ => None,
        }
    }

    /// The CPU whose request of an SGI is acknowledged next: the architecture leaves the choice open (4.4.4).
    fn sgi_sender(&self, cpu: usize, intid: u32) -> Option<u32> {
        (intid < SGIS).then(|| self.sgi_senders[cpu][intid as usize].trailing_zeros() & 7)
    }

    /// GICC_EOIR and GICC_AEOIR: drops the priority, and deactivates unless GICC_DIR is to do that.
    ///
    /// Writing anything but the last acknowledged interrupt is UNPREDICTABLE. Here the named interrupt says which group's
    /// priority drops; an interrupt that does not exist, or an end with nothing active, is ignored.
    fn end_of_interrupt(&mut self, cpu: usize, face: Face, value: u32) {
        let intid = value & registers::INTID;
        let Some(group) = self.source(cpu, intid).map(|source| source.state.group) else {
            return;
        };
        let interface = &mut self.interfaces[cpu];
        if interface.preemption.active.running().is_none() || (face == Face::Aliased && group == Group::Zero) {
            return;
        }
        interface.preemption.active.drop_priority(group);
        if interface.control & gicc_ctlr::EOI_MODE == 0 {
            self.deactivate(cpu, intid);
        }
    }

    /// GICC_DIR. UNPREDICTABLE while GICC_CTLR.EOImode is clear: ignored then.
    fn deactivate_register(&mut self, cpu: usize, value: u32) {
        if self.interfaces[cpu].control & gicc_ctlr::EOI_MODE != 0 {
            self.deactivate(cpu, value & registers::INTID);
        }
    }

    fn deactivate(&mut self, cpu: usize, intid: u32) {
        self.change(cpu, intid, |source| source.state.active = false);
    }
}
