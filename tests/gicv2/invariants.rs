//! What holds whatever a guest and its devices do.

use crate::guest::*;
use devisor::{
    backends::irqchip::{Group, Spi, TriggerMode, gicv2::GicV2Config},
    interrupt::{Interrupt, LevelInterrupt},
};
use proptest::prelude::*;

const CPUS: usize = 2;
const SPIS: u32 = 32;

#[derive(Clone, Debug)]
enum Step {
    Line { spi: u32, up: bool },
    Pulse { spi: u32 },
    Sgi { cpu: usize, value: u32 },
    Distributor { cpu: usize, offset: u64, value: u32 },
    Priority { intid: u32, priority: u8 },
    Interface { cpu: usize, offset: u64, value: u32 },
    Acknowledge { cpu: usize },
    End { cpu: usize },
}

fn step() -> impl Strategy<Value = Step> {
    // Few interrupts, so that they meet.
    let spi = || 0..4_u32;
    let cpu = || 0..CPUS;
    let arrays = prop::sample::select(vec![
        GICD_CTLR,
        GICD_IGROUPR,
        GICD_IGROUPR + 4,
        GICD_ISENABLER + 4,
        GICD_ICENABLER + 4,
        GICD_ISPENDR + 4,
        GICD_ICPENDR + 4,
        GICD_ITARGETSR + 32,
        GICD_ICFGR + 8,
    ]);
    let interface = prop::sample::select(vec![GICC_CTLR, GICC_PMR, GICC_BPR, GICC_ABPR]);
    prop_oneof![
        3 => (spi(), any::<bool>()).prop_map(|(spi, up)| Step::Line { spi, up }),
        2 => spi().prop_map(|spi| Step::Pulse { spi }),
        1 => (cpu(), 0..4_u32).prop_map(|(cpu, sgi)| Step::Sgi { cpu, value: 3 << 16 | sgi }),
        2 => (cpu(), arrays, any::<u32>()).prop_map(|(cpu, offset, value)| Step::Distributor { cpu, offset, value }),
        2 => (32..36_u32, any::<u8>()).prop_map(|(intid, priority)| Step::Priority { intid, priority }),
        1 => (cpu(), interface, any::<u32>()).prop_map(|(cpu, offset, value)| Step::Interface {
            cpu,
            offset,
            // EOImode stays off, so that an end deactivates; both groups stay on.
            value: if offset == GICC_CTLR { value & 0x1f | 7 } else { value },
        }),
        6 => cpu().prop_map(|cpu| Step::Acknowledge { cpu }),
        4 => cpu().prop_map(|cpu| Step::End { cpu }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn preemption_nests_the_mask_holds_and_no_level_is_lost(steps in prop::collection::vec(step(), 1..120)) {
        let guest = Guest::ready(GicV2Config { cpus: CPUS as u32, spis: SPIS, priority_bits: 5 });
        let lines: Vec<_> = (0..4).map(|spi| guest.gic.level_line(Spi(spi)).unwrap()).collect();
        let mut wires = [false; 4];
        // What each CPU has acknowledged and not ended, and the running priority that came of it.
        let mut nested: [Vec<(u32, u32)>; CPUS] = Default::default();

        for step in steps {
            match step {
                Step::Line { spi, up } => {
                    let line = &lines[spi as usize];
                    wires[spi as usize] = up;
                    if up { line.trigger() } else { line.clear() }.unwrap();
                }
                Step::Pulse { spi } => guest.gic.edge_line(Spi(spi)).unwrap().trigger().unwrap(),
                Step::Sgi { cpu, value } => guest.cpus[cpu].set(GICD_SGIR, value),
                Step::Distributor { cpu, offset, value } => guest.cpus[cpu].set(offset, value),
                Step::Priority { intid, priority } => guest.cpus[0].set_priority(intid, priority),
                Step::Interface { cpu, offset, value } => guest.cpus[cpu].write(offset, value),
                Step::Acknowledge { cpu } => {
                    let (number, cpu) = (cpu, &guest.cpus[cpu]);
                    let before = guest.gic.save();
                    let (signalled, running) = (cpu.irq() || cpu.fiq(), cpu.read(GICC_RPR));
                    let acknowledged = cpu.acknowledge();
                    prop_assert_eq!(acknowledged != SPURIOUS, signalled, "signalled is what can be acknowledged");
                    if acknowledged == SPURIOUS {
                        continue;
                    }
                    let intid = acknowledged & 0x3ff;
                    let (state, targets) = match intid.checked_sub(32) {
                        None => (before.cpus[number].private[intid as usize], 1 << number),
                        Some(spi) => (before.spis[spi as usize].state, before.spis[spi as usize].targets),
                    };
                    prop_assert!(state.enabled && state.pending() && !state.active);
                    prop_assert!(targets >> number & 1 != 0);
                    prop_assert!(state.priority < before.cpus[number].priority_mask);
                    prop_assert!(before.control >> (state.group == Group::One) as u32 & 1 != 0);
                    // More urgent than all that runs here, so no two are active at one preemption level.
                    let now = cpu.read(GICC_RPR);
                    prop_assert!(nested[number].iter().all(|&(_, level)| now < level), "{} in {:x?}", now, nested);
                    prop_assert!(now < running);
                    nested[number].push((acknowledged, now));
                }
                Step::End { cpu } => {
                    if let Some((acknowledged, _)) = nested[cpu].pop() {
                        // A guest that has moved what is active to the other group would end it there: that is its own fault.
                        let group = group_of_running(&guest, cpu).expect("it is active");
                        guest.cpus[cpu].set_group(acknowledged & 0x3ff, group as u32);
                        guest.cpus[cpu].end(acknowledged);
                        let outer = nested[cpu].last().map_or(0xff, |&(_, level)| level);
                        prop_assert_eq!(guest.cpus[cpu].read(GICC_RPR), outer);
                    }
                }
            }

            // A level-sensitive interrupt is pending while its line is up; and then it is active, held back, or signalled.
            let state = guest.gic.save();
            for (spi, up) in wires.into_iter().enumerate() {
                let interrupt = state.spis[spi].state;
                prop_assert_eq!(interrupt.line, up);
                prop_assert!(!(up && interrupt.trigger == TriggerMode::Level) || interrupt.pending());
            }
            for (number, cpu) in guest.cpus.iter().enumerate() {
                let enabled = |group: Group| state.control >> group as u32 & 1 != 0;
                let waiting = state.cpus[number].private.iter().map(|state| (state, true)).chain(
                    state.spis.iter().map(|spi| (&spi.state, spi.targets >> number & 1 != 0)),
                );
                let most_urgent = waiting
                    .filter(|(state, here)| *here && state.enabled && state.pending() && !state.active && enabled(state.group))
                    .map(|(state, _)| u32::from(state.priority))
                    .min();
                let idle = cpu.read(GICC_RPR) == 0xff;
                let expected = most_urgent.is_some_and(|priority| priority < u32::from(state.cpus[number].priority_mask));
                if idle {
                    prop_assert_eq!(cpu.irq() || cpu.fiq(), expected, "an idle CPU is signalled what waits for it");
                }
                prop_assert!(!(cpu.irq() && cpu.fiq()));
            }
        }
    }
}

/// The group in whose active priorities the running one is.
fn group_of_running(guest: &Guest, cpu: usize) -> Option<Group> {
    let (zero, one) = (guest.cpus[cpu].read(GICC_APR), guest.cpus[cpu].read(GICC_NSAPR));
    match (zero, one) {
        (0, 0) => None,
        _ if (zero | one).trailing_zeros() == zero.trailing_zeros() => Some(Group::Zero),
        _ => Some(Group::One),
    }
}
