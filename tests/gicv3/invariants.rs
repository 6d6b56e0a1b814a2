//! What holds whatever a guest and its devices do: no interrupt is lost or comes twice, none comes that ICC_PMR_EL1 masks,
//! and no two are active at one priority level.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        CpuId, IntId, Spi,
        gicv3::{GicV3Config, LpiSupport, SysReg},
    },
    interrupt::Interrupt,
};
use proptest::{prelude::*, sample::select};
use std::collections::BTreeMap;

const CPUS: usize = 2;
const SGIS: [u32; 2] = [1, 9];
const SPIS: [u32; 3] = [32, 40, 95];
const LPIS: [u32; 2] = [8192, 8300];

#[derive(Clone, Debug)]
enum Step {
    Sgi { target: usize, intid: u32 },
    Pulse { intid: u32 },
    Lpi { target: usize, intid: u32 },
    Priority { target: usize, intid: u32, priority: u8 },
    Enable { target: usize, intid: u32, on: bool },
    Route { intid: u32, router: u64 },
    Mask { cpu: usize, value: u8 },
    Sleep { cpu: usize, asleep: bool },
    Forward { on: bool },
    Acknowledge { cpu: usize },
    End { cpu: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let cpu = || 0..CPUS;
    let wired = || prop_oneof![select(&SGIS[..]), select(&SPIS[..])];
    let often = || prop_oneof![3 => Just(true), 1 => Just(false)];
    prop_oneof![
        4 => (cpu(), select(&SGIS[..])).prop_map(|(target, intid)| Step::Sgi { target, intid }),
        4 => select(&SPIS[..]).prop_map(|intid| Step::Pulse { intid }),
        4 => (cpu(), select(&LPIS[..])).prop_map(|(target, intid)| Step::Lpi { target, intid }),
        3 => (cpu(), wired(), any::<u8>())
            .prop_map(|(target, intid, priority)| Step::Priority { target, intid, priority }),
        2 => (cpu(), wired(), often()).prop_map(|(target, intid, on)| Step::Enable { target, intid, on }),
        2 => (select(&SPIS[..]), select(&[0, 1, ONE_OF_N][..])).prop_map(|(intid, router)| Step::Route { intid, router }),
        2 => (cpu(), prop_oneof![Just(0xff), any::<u8>()]).prop_map(|(cpu, value)| Step::Mask { cpu, value }),
        1 => (cpu(), often()).prop_map(|(cpu, awake)| Step::Sleep { cpu, asleep: !awake }),
        1 => often().prop_map(|on| Step::Forward { on }),
        10 => cpu().prop_map(|cpu| Step::Acknowledge { cpu }),
        8 => cpu().prop_map(|cpu| Step::End { cpu }),
    ]
}

/// By the CPU that it is for, if it is private, and by INTID.
type Key = (usize, u32);

struct Machine {
    guest: Guest,
    /// How many requests have not been taken yet: several of one interrupt before its acknowledge are one.
    requested: BTreeMap<Key, bool>,
    /// What each CPU has acknowledged, with the running priority since.
    nested: [Vec<(u64, u64)>; CPUS],
}

fn key(cpu: usize, intid: u32) -> Key {
    let shared = (32..8192).contains(&intid);
    (if shared { 0 } else { cpu }, intid)
}

impl Machine {
    fn acknowledge(&mut self, number: usize) {
        let cpu = &self.guest.cpus[number];
        let (signalled, mask) = (cpu.irq(), cpu.read(SysReg::ICC_PMR_EL1));
        let intid = cpu.acknowledge();
        assert_eq!(intid != SPURIOUS, signalled, "signalled is what can be acknowledged");
        if intid == SPURIOUS {
            return;
        }
        let taken = self.requested.insert(key(number, intid as u32), false);
        assert_eq!(taken, Some(true), "INTID {intid} comes without a request, or twice");
        let running = cpu.read(SysReg::ICC_RPR_EL1);
        assert!(running < mask, "below the mask");
        assert!(
            self.nested[number].iter().all(|&(_, outer)| running < outer),
            "{running:#x} among {:x?}",
            self.nested[number]
        );
        self.nested[number].push((intid, running));
    }

    fn end(&mut self, number: usize) {
        if let Some((intid, _)) = self.nested[number].pop() {
            let cpu = &self.guest.cpus[number];
            cpu.end(intid);
            let outer = self.nested[number].last().map_or(IDLE, |&(_, level)| level);
            assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), outer);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_doubled_the_mask_holds_and_levels_nest(steps in prop::collection::vec(step(), 1..150)) {
        let guest = Guest::with_lpis(GicV3Config { lpis: LpiSupport::Direct, ..config(CPUS as u32) });
        for intid in SPIS {
            guest.set_edge_triggered(0, intid, true);
        }
        let mut machine = Machine { guest, requested: BTreeMap::new(), nested: Default::default() };
        for step in steps {
            let Machine { guest, requested, .. } = &mut machine;
            match step {
                Step::Sgi { target, intid } => {
                    guest.cpus[0].write(SysReg::ICC_SGI1R_EL1, u64::from(intid) << 24 | 1 << target);
                    requested.insert(key(target, intid), true);
                }
                Step::Pulse { intid } => {
                    guest.gic.edge_line(Spi(intid - 32)).unwrap().trigger().unwrap();
                    requested.insert(key(0, intid), true);
                }
                Step::Lpi { target, intid } => {
                    guest.gic.send_lpi(CpuId(target as u32), IntId(intid)).unwrap();
                    requested.insert(key(target, intid), true);
                }
                Step::Priority { target, intid, priority } => guest.set_priority(target, intid, priority),
                Step::Enable { target, intid, on } => {
                    guest.set_bit(if on { Array::SetEnable } else { Array::ClearEnable }, target, intid);
                }
                Step::Route { intid, router } => guest.route(intid, router),
                Step::Mask { cpu, value } => guest.cpus[cpu].write(SysReg::ICC_PMR_EL1, value.into()),
                Step::Sleep { cpu, asleep } => {
                    guest.cpus[cpu].set_redistributor(GICR_WAKER, 4, u64::from(asleep) << 1);
                }
                Step::Forward { on } => guest.set(GICD_CTLR, 4, u64::from(on) << 1),
                Step::Acknowledge { cpu } => machine.acknowledge(cpu),
                Step::End { cpu } => machine.end(cpu),
            }
        }
        // Everything on again: what was requested comes, and nothing else.
        for cpu in 0..CPUS {
            while !machine.nested[cpu].is_empty() {
                machine.end(cpu);
            }
        }
        machine.guest.make_ready();
        for cpu in 0..CPUS {
            while machine.guest.cpus[cpu].irq() {
                machine.acknowledge(cpu);
                machine.end(cpu);
            }
        }
        let lost: Vec<_> = machine.requested.iter().filter(|&(_, &waiting)| waiting).collect();
        prop_assert!(lost.is_empty(), "{:?}", lost);
    }
}

/// Where an access goes.
#[derive(Clone, Debug)]
enum Access {
    Distributor {
        offset: u64,
        width: usize,
        value: u64,
    },
    Redistributor {
        cpu: usize,
        offset: u64,
        width: usize,
        value: u64,
    },
    SystemRegister {
        cpu: usize,
        register: u16,
        value: u64,
    },
    AnySystemRegister {
        cpu: usize,
        register: u16,
        value: u64,
    },
    Migrate,
}

fn access() -> impl Strategy<Value = Access> {
    let value = || prop_oneof![any::<u64>(), Just(u64::MAX), Just(0), 0..0x1_0000_u64, Just(RAM | 15)];
    let width = || select(&[1, 2, 4, 4, 4, 8, 8, 16][..]);
    let offset = |size: u64| prop_oneof![0..size, (0..0x1000 / 4_u64).prop_map(|word| word * 4)];
    // CRn 12, CRm 8 to 12: where nearly all registers of the interface are.
    let near = (8..13_u16, 0..8_u16).prop_map(|(crm, op2)| 0xc600 | crm << 3 | op2);
    prop_oneof![
        8 => (offset(0x1_0000), width(), value())
            .prop_map(|(offset, width, value)| Access::Distributor { offset, width, value }),
        8 => (0..CPUS, offset(0x2_0000), any::<bool>(), width(), value()).prop_map(|(cpu, offset, sgi, width, value)| {
            Access::Redistributor { cpu, offset: offset % 0x1_0000 + if sgi { SGI_BASE } else { 0 }, width, value }
        }),
        12 => (0..CPUS, near, value()).prop_map(|(cpu, register, value)| Access::SystemRegister { cpu, register, value }),
        2 => (0..CPUS, any::<u16>(), value())
            .prop_map(|(cpu, register, value)| Access::AnySystemRegister { cpu, register, value }),
        1 => Just(Access::Migrate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn no_access_panics_and_every_state_that_a_guest_can_make_is_restored(
        accesses in prop::collection::vec(access(), 1..200),
    ) {
        use devisor::bus::BusDevice;

        let config = GicV3Config {
            extended_spis: 64,
            extended_ppis: 64,
            priority_bits: 8,
            lpis: LpiSupport::Direct,
            ..config(CPUS as u32)
        };
        let mut guest = Guest::with_lpis(config.clone());
        for access in accesses {
            let mut data = [0; 16];
            match access {
                Access::Distributor { offset, width, value } => {
                    guest.distributor.read(offset, &mut data[..width]);
                    data[..8].copy_from_slice(&value.to_le_bytes());
                    guest.distributor.write(offset, &data[..width]);
                }
                Access::Redistributor { cpu, offset, width, value } => {
                    guest.cpus[cpu].redistributor.read(offset, &mut data[..width]);
                    data[..8].copy_from_slice(&value.to_le_bytes());
                    guest.cpus[cpu].redistributor.write(offset, &data[..width]);
                }
                Access::SystemRegister { cpu, register, value } | Access::AnySystemRegister { cpu, register, value } => {
                    guest.cpus[cpu].interface.read_sysreg(register.into());
                    let _ = guest.cpus[cpu].interface.write_sysreg(register.into(), value);
                }
                Access::Migrate => {
                    let state = guest.gic.save();
                    let new = Guest::with_memory(config.clone(), guest.memory.clone(), |_| Ok(()));
                    new.gic.restore(&state).unwrap();
                    prop_assert_eq!(new.gic.save(), state);
                    guest = new;
                }
            }
        }
    }
}
