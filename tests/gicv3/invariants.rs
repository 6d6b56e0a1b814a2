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
