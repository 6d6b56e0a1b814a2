//! What a CPU reads and writes at its interface, acknowledges and ends (IHI 0069, chapter 4 and 12.2).

use super::{
    super::gic::Group,
    Shared,
    cpu::Cpu,
    cpu_interface::CpuInterface,
    registers::{self, SPURIOUS, icc_ctlr},
    sysreg::SysReg,
};

/// What an acknowledge finds.
pub(super) enum Acknowledged {
    /// This INTID, which may be a special one.
    Done(u32),
    /// An SPI, which the distributor has to acknowledge.
    Spi,
}

/// What an end of interrupt leaves to do.
enum Ended {
    Done,
    /// The distributor has to deactivate this SPI.
    Spi(u32),
}

/// A register that is there, by what it does.
#[derive(Clone, Copy)]
enum Register {
    PriorityMask,
    BinaryPoint(Group),
    Control,
    SystemRegisterEnable,
    GroupEnable(Group),
    RunningPriority,
    HighestPending(Group),
    ActivePriorities(Group, usize),
    Acknowledge(Group),
    EndOfInterrupt(Group),
    Deactivate,
    /// Whether only SGIs of Group 0 are sent.
    GenerateSgi {
        group_0_only: bool,
    },
}

impl Register {
    fn of(register: SysReg) -> Option<Self> {
        use Group::{One, Zero};
        Some(match register {
            SysReg::ICC_PMR_EL1 => Self::PriorityMask,
            SysReg::ICC_BPR0_EL1 => Self::BinaryPoint(Zero),
            SysReg::ICC_BPR1_EL1 => Self::BinaryPoint(One),
            SysReg::ICC_CTLR_EL1 => Self::Control,
            SysReg::ICC_SRE_EL1 => Self::SystemRegisterEnable,
            SysReg::ICC_IGRPEN0_EL1 => Self::GroupEnable(Zero),
            SysReg::ICC_IGRPEN1_EL1 => Self::GroupEnable(One),
            SysReg::ICC_RPR_EL1 => Self::RunningPriority,
            SysReg::ICC_HPPIR0_EL1 => Self::HighestPending(Zero),
            SysReg::ICC_HPPIR1_EL1 => Self::HighestPending(One),
            SysReg::ICC_IAR0_EL1 => Self::Acknowledge(Zero),
            SysReg::ICC_IAR1_EL1 => Self::Acknowledge(One),
            SysReg::ICC_EOIR0_EL1 => Self::EndOfInterrupt(Zero),
            SysReg::ICC_EOIR1_EL1 => Self::EndOfInterrupt(One),
            SysReg::ICC_DIR_EL1 => Self::Deactivate,
            // With a single security state ICC_SGI1R_EL1 reaches SGIs of either group, the other two those of Group 0.
            SysReg::ICC_SGI1R_EL1 => Self::GenerateSgi { group_0_only: false },
            SysReg::ICC_SGI0R_EL1 | SysReg::ICC_ASGI1R_EL1 => Self::GenerateSgi { group_0_only: true },
            _ => {
                let of = |array: [SysReg; 4]| array.iter().position(|&entry| entry == register);
                let group_0 = of(SysReg::ICC_AP0R_EL1).map(|index| Self::ActivePriorities(Zero, index));
                group_0.or_else(|| of(SysReg::ICC_AP1R_EL1).map(|index| Self::ActivePriorities(One, index)))?
            }
        })
    }
}

impl Shared {
    /// A read of a register of a CPU interface; an acknowledge changes state. `None` where it is UNDEFINED.
    pub(super) fn read_sysreg(&self, cpu: usize, register: SysReg) -> Option<u64> {
        let register = Register::of(register)?;
        if let Register::Acknowledge(group) = register {
            return Some(self.acknowledge(cpu, group).into());
        }
        self.cpus[cpu].look(|cpu| {
            let interface = &cpu.interface;
            let preemption = &interface.preemption;
            Some(match register {
                Register::PriorityMask => preemption.priority_mask().into(),
                Register::BinaryPoint(Group::Zero) => preemption.binary_point().into(),
                Register::BinaryPoint(Group::One) => interface.binary_point_1().into(),
                Register::Control => {
                    let extended = cpu.layout.extended_spis != 0 || cpu.layout.extended_ppis != 0;
                    let mut value = interface.control | icc_ctlr::A3V;
                    value |= (cpu.layout.priority_bits - 1) << icc_ctlr::PRI_BITS_SHIFT;
                    value |= if self.config.range_selector() { icc_ctlr::RSS } else { 0 };
                    value |= if extended { icc_ctlr::EXT_RANGE } else { 0 };
                    value.into()
                }
                Register::SystemRegisterEnable => registers::ICC_SRE,
                Register::GroupEnable(group) => interface.enables(group).into(),
                Register::RunningPriority => {
                    let running = preemption.active.running();
                    running.map_or(registers::IDLE_PRIORITY, u32::from).into()
                }
                Register::HighestPending(group) => cpu.highest_pending(group).into(),
                Register::ActivePriorities(group, index) => {
                    cpu.implements(index)?;
                    preemption.active.register(group, index).into()
                }
                Register::Acknowledge(_)
                | Register::EndOfInterrupt(_)
                | Register::Deactivate
                | Register::GenerateSgi { .. } => return None,
            })
        })
    }

    /// A write of a register of a CPU interface. `None` where it is UNDEFINED.
    pub(super) fn write_sysreg(&self, cpu: usize, register: SysReg, value: u64) -> Option<()> {
        match Register::of(register)? {
            Register::EndOfInterrupt(group) => self.end_of_interrupt(cpu, group, value),
            Register::Deactivate => self.deactivate_register(cpu, value),
            Register::GenerateSgi { group_0_only } => self.generate_sgi(cpu, value, group_0_only),
            Register::GroupEnable(group) => {
                let enable = group.enable() * (value as u32 & 1);
                self.with_distributor(|distributor| {
                    distributor.change_participation(cpu, |cpu| {
                        let groups = &mut cpu.interface.enabled_groups;
                        *groups = *groups & !group.enable() | enable;
                    });
                });
            }
            Register::SystemRegisterEnable => {}
            register => {
                return self.with_cpu(cpu, |cpu| cpu.write_interface(register, value));
            }
        }
        Some(())
    }

    /// ICC_IAR0_EL1 and ICC_IAR1_EL1: the most urgent interrupt becomes active, if it is urgent enough and of this group.
    fn acknowledge(&self, cpu: usize, group: Group) -> u32 {
        // The outputs are settled also if there is nothing: an input may have refused to be told so.
        match self.with_cpu(cpu, |cpu| cpu.acknowledge(group, false)) {
            Acknowledged::Done(intid) => intid,
            Acknowledged::Spi => self.acknowledge_spi(cpu, group),
        }
    }

    /// The same with the distributor at hand: whatever is the most urgent by now.
    fn acknowledge_spi(&self, cpu: usize, group: Group) -> u32 {
        self.with_distributor(|distributor| distributor.acknowledge(cpu, group))
    }

    /// ICC_EOIR0_EL1 and ICC_EOIR1_EL1: drops the priority, and deactivates unless ICC_DIR_EL1 is to do that.
    fn end_of_interrupt(&self, cpu: usize, group: Group, value: u64) {
        let intid = (value & registers::INTID) as u32;
        if let Ended::Spi(intid) = self.with_cpu(cpu, |cpu| cpu.end(group, intid)) {
            self.deactivate_spi(intid);
        }
    }

    /// ICC_DIR_EL1. UNPREDICTABLE while ICC_CTLR_EL1.EOImode is clear: ignored then.
    fn deactivate_register(&self, cpu: usize, value: u64) {
        let intid = (value & registers::INTID) as u32;
        let ended = self.with_cpu(cpu, |cpu| match cpu.interface.control & icc_ctlr::EOI_MODE {
            0 => Ended::Done,
            _ => cpu.deactivate(intid),
        });
        if let Ended::Spi(intid) = ended {
            self.deactivate_spi(intid);
        }
    }

    fn deactivate_spi(&self, intid: u32) {
        self.with_distributor(|distributor| distributor.change(intid, |source| source.state.active = false));
    }
}

impl Cpu {
    fn write_interface(&mut self, register: Register, value: u64) -> Option<()> {
        if let Register::ActivePriorities(_, index) = register {
            self.implements(index)?;
        }
        let common = self.interface.common_binary_point();
        let CpuInterface {
            control, preemption, ..
        } = &mut self.interface;
        match register {
            Register::PriorityMask => preemption.set_priority_mask(value as u8),
            Register::BinaryPoint(Group::Zero) => preemption.set_binary_point(value as u8),
            Register::BinaryPoint(Group::One) if common => {}
            Register::BinaryPoint(Group::One) => preemption.set_aliased_binary_point(value as u8),
            Register::Control => *control = value as u32 & icc_ctlr::WRITABLE,
            Register::ActivePriorities(group, index) => preemption.active.set_register(group, index, value as u32),
            _ => return None,
        }
        Some(())
    }

    /// There are as many active priorities registers as there are levels to show.
    fn implements(&self, index: usize) -> Option<()> {
        (self.interface.preemption.active.register_mask(index) != 0).then_some(())
    }

    /// ICC_HPPIR0_EL1 and ICC_HPPIR1_EL1: what is forwarded if it is of this group, whatever its priority. A CPU interface
    /// that has the group disabled has released it.
    fn highest_pending(&self, group: Group) -> u32 {
        match self.forwarded() {
            Some((candidate, found)) if found == group && self.interface.enables(group) => candidate.intid,
            _ => SPURIOUS,
        }
    }

    /// Acknowledges what is the most urgent. If that is an SPI, `with_distributor` says that the distributor is locked and
    /// will make it active.
    pub(super) fn acknowledge(&mut self, group: Group, with_distributor: bool) -> Acknowledged {
        let Some((candidate, found)) = self.forwarded() else {
            return Acknowledged::Done(SPURIOUS);
        };
        if found != group || !self.interface.admits(candidate.priority, group) {
            return Acknowledged::Done(SPURIOUS);
        }
        let intid = candidate.intid;
        if self.layout.private(intid).is_some() {
            self.change(intid, |source| {
                source.state.active = true;
                source.state.latch = false;
            });
        } else if self.layout.is_lpi(intid) {
            // It has no active state.
            self.set_lpi(intid, false);
        } else if !with_distributor {
            return Acknowledged::Spi;
        }
        let common = self.interface.common_binary_point();
        self.interface.preemption.activate(candidate.priority, group, common);
        Acknowledged::Done(intid)
    }

    /// Writing anything but the last acknowledged interrupt is UNPREDICTABLE. Here an interrupt that does not exist is
    /// ignored, and so is one where nothing is active, or where what runs is of the other group.
    fn end(&mut self, group: Group, intid: u32) -> Ended {
        let preemption = &mut self.interface.preemption;
        if !self.layout.exists(intid) || preemption.active.running_group() != Some(group) {
            return Ended::Done;
        }
        preemption.active.drop_priority(group);
        if self.interface.control & icc_ctlr::EOI_MODE != 0 {
            return Ended::Done;
        }
        self.deactivate(intid)
    }

    fn deactivate(&mut self, intid: u32) -> Ended {
        if self.layout.shared(intid).is_some() {
            return Ended::Spi(intid);
        }
        self.change(intid, |source| source.state.active = false);
        Ended::Done
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{
        super::{
            super::gic::{IntId, Ppi},
            CpuOutputs, GicV3, GicV3Config, LpiSupport,
            mutex::lock,
        },
        *,
    };
    use crate::{
        backends::irqchip::CpuId,
        bus::BusDevice,
        interrupt::{Interrupt, LevelInterrupt, NoInterrupt},
    };
    use std::{
        sync::{Arc, mpsc},
        thread,
        time::Duration,
    };
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    #[test]
    fn private_interrupts_come_and_go_while_the_distributor_and_all_other_cpus_are_locked() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap();
        memory.write_obj(0x81_u8, GuestAddress(0)).unwrap();
        let config = GicV3Config {
            lpis: LpiSupport::Direct,
            ..GicV3Config::new(2)
        };
        let outputs = [0, 1].map(|_| CpuOutputs {
            irq: Box::new(NoInterrupt),
            fiq: Box::new(NoInterrupt),
        });
        let gic = GicV3::with_lpis(config, outputs.into(), Arc::new(memory)).unwrap();
        let redistributor = gic.redistributor(CpuId(1)).unwrap();
        gic.distributor().write(0, &2_u32.to_le_bytes());
        for (offset, value) in [
            (0x14, 0),
            (0x1_0080, u32::MAX),
            (0x1_0100, u32::MAX),
            (0x70, 15),
            (0x78, 0x1_0000),
            (0x00, 1),
        ] {
            redistributor.write(offset, &value.to_le_bytes());
        }
        let cpu = gic.cpu_interface(CpuId(1)).unwrap();
        cpu.write_sysreg(SysReg::ICC_PMR_EL1, 0xff).unwrap();
        cpu.write_sysreg(SysReg::ICC_IGRPEN1_EL1, 1).unwrap();

        let shared = Arc::clone(&gic.shared);
        let (_distributor, _other) = (lock(&shared.distributor), lock(&shared.cpus[0].model));
        let (done, is_done) = mpsc::channel();
        let worker = thread::spawn(move || {
            let line = gic.ppi_line(CpuId(1), Ppi(4)).unwrap();
            let pend: [(u64, &dyn Fn()); 3] = [
                (3, &|| cpu.write_sysreg(SysReg::ICC_SGI1R_EL1, 3 << 24 | 0b10).unwrap()),
                (20, &|| line.trigger().unwrap()),
                (8192, &|| gic.send_lpi(CpuId(1), IntId(8192)).unwrap()),
            ];
            for (intid, pend) in pend {
                pend();
                assert_eq!(cpu.read_sysreg(SysReg::ICC_IAR1_EL1), Some(intid));
                line.clear().unwrap();
                cpu.write_sysreg(SysReg::ICC_EOIR1_EL1, intid).unwrap();
                assert_eq!(cpu.read_sysreg(SysReg::ICC_IAR1_EL1), Some(1023));
            }
            done.send(()).unwrap();
        });
        let answer = is_done.recv_timeout(Duration::from_secs(60));
        assert!(answer.is_ok(), "it waits for a lock that is not its own: {answer:?}");
        worker.join().unwrap();
    }
}
