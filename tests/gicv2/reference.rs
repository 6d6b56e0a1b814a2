//! Three CPUs beside a reference that has no order but the specification's: lists that are searched each time, and outputs
//! that are derived from nothing but the state. One CPU is compared with QEMU's model elsewhere.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        CpuId, Ppi, Spi,
        gicv2::{GicV2Config, LevelLine},
    },
    interrupt::{Interrupt, LevelInterrupt},
};
use proptest::{prelude::*, sample::select};
use std::collections::BTreeSet;

const CPUS: usize = 3;
const ALL_CPUS: u8 = 0b111;
const CONFIG: GicV2Config = GicV2Config {
    cpus: CPUS as u32,
    spis: 32,
    priority_bits: 5,
};
/// The interrupts that the sequences play with, few, so that they meet: SGIs, a PPI and SPIs.
const SGIS: [u32; 2] = [0, 5];
const PPI: u32 = 27;
const SPIS: [u32; 4] = [32, 33, 40, 63];
const SPECIALS: [u32; 4] = [1020, 1022, 1023, 700];

/// One interrupt (2.2, 3.2.4).
#[derive(Clone, Default)]
struct Source {
    enabled: bool,
    group: usize,
    edge: bool,
    priority: u8,
    line: bool,
    latch: bool,
    active: bool,
    /// Of an SGI at one CPU: who has sent it.
    senders: u8,
    targets: u8,
}

impl Source {
    fn pending(&self) -> bool {
        self.latch || self.senders != 0 || (self.line && !self.edge)
    }
}

/// One CPU interface.
#[derive(Clone)]
struct Interface {
    control: u32,
    mask: u8,
    binary_points: [u8; 2],
    /// The active group priorities of each group.
    active: [BTreeSet<u8>; 2],
}

#[derive(Clone)]
struct Reference {
    control: u32,
    /// By INTID. Those below 32 are there for each CPU.
    private: Vec<Vec<Source>>,
    shared: Vec<Source>,
    interfaces: Vec<Interface>,
}

impl Reference {
    fn new() -> Self {
        let private = |cpu| {
            (0..32)
                .map(|intid| Source {
                    enabled: intid < 16,
                    edge: intid < 16,
                    targets: 1_u8 << cpu,
                    ..Source::default()
                })
                .collect()
        };
        Self {
            control: 0,
            private: (0..CPUS).map(private).collect(),
            shared: vec![Source::default(); CONFIG.spis as usize],
            interfaces: vec![
                Interface {
                    control: 0,
                    mask: 0,
                    binary_points: [2, 3],
                    active: Default::default(),
                };
                CPUS
            ],
        }
    }

    fn get(&mut self, cpu: usize, intid: u32) -> Option<&mut Source> {
        match intid {
            0..32 => self.private[cpu].get_mut(intid as usize),
            _ => self.shared.get_mut(intid as usize - 32),
        }
    }

    /// The most urgent that GICD_CTLR lets through to a CPU: its priority, INTID and group.
    fn highest(&self, cpu: usize) -> Option<(u8, u32, usize)> {
        let all = self.private[cpu].iter().chain(&self.shared);
        (0..)
            .zip(all)
            .filter(|(_, source)| source.enabled && source.pending() && !source.active)
            .filter(|(_, source)| source.targets >> cpu & 1 != 0 && self.control >> source.group & 1 != 0)
            .map(|(intid, source)| (source.priority, intid, source.group))
            .min()
    }

    fn running(&self, cpu: usize) -> Option<u8> {
        let [zero, one] = &self.interfaces[cpu].active;
        zero.iter().chain(one).min().copied()
    }

    /// The group priority as table 3-2 has it.
    fn group_priority(&self, cpu: usize, group: usize, priority: u8) -> u8 {
        let interface = &self.interfaces[cpu];
        let point = match group {
            1 if interface.control & CBPR == 0 => interface.binary_points[1] - 1,
            _ => interface.binary_points[0],
        };
        let subpriorities = 1_u16 << (point + 1);
        (u16::from(priority) / subpriorities * subpriorities) as u8
    }

    /// What is signalled to a CPU, if anything.
    fn signalled(&self, cpu: usize) -> Option<(u8, u32, usize)> {
        self.highest(cpu).filter(|&(priority, _, group)| {
            let preempts = match self.running(cpu) {
                None => true,
                Some(running) => self.group_priority(cpu, group, priority) < self.group_priority(cpu, group, running),
            };
            self.interfaces[cpu].control >> group & 1 != 0 && priority < self.interfaces[cpu].mask && preempts
        })
    }

    fn inputs(&self, cpu: usize) -> (bool, bool) {
        let fiq_enabled = self.interfaces[cpu].control & FIQ_EN != 0;
        match self.signalled(cpu) {
            None => (false, false),
            Some((_, _, group)) => (!(group == 0 && fiq_enabled), group == 0 && fiq_enabled),
        }
    }

    /// The special INTID that hides an interrupt of `group` from GICC_IAR or GICC_AIAR.
    fn hides(&self, cpu: usize, aliased: bool, group: usize) -> Option<u32> {
        match (aliased, group) {
            (false, 1) if self.interfaces[cpu].control & ACK_CTL == 0 => Some(1022),
            (true, 0) => Some(SPURIOUS),
            _ => None,
        }
    }

    /// What GICC_IAR reads for an interrupt: with the CPU that sent it, the lowest first.
    fn value(&mut self, cpu: usize, intid: u32) -> u32 {
        match intid {
            0..16 => intid | self.private[cpu][intid as usize].senders.trailing_zeros() << 10,
            _ => intid,
        }
    }

    fn highest_pending(&mut self, cpu: usize, aliased: bool) -> u32 {
        match self.highest(cpu) {
            Some((_, intid, group)) if self.interfaces[cpu].control >> group & 1 != 0 => self
                .hides(cpu, aliased, group)
                .unwrap_or_else(|| self.value(cpu, intid)),
            _ => SPURIOUS,
        }
    }

    fn acknowledge(&mut self, cpu: usize, aliased: bool) -> u32 {
        let Some((priority, intid, group)) = self.signalled(cpu) else {
            return SPURIOUS;
        };
        if let Some(special) = self.hides(cpu, aliased, group) {
            return special;
        }
        let value = self.value(cpu, intid);
        let group_priority = self.group_priority(cpu, group, priority);
        self.interfaces[cpu].active[group].insert(group_priority);
        let source = self.get(cpu, intid).unwrap();
        source.active = true;
        source.latch = false;
        source.senders &= !(1 << (value >> 10));
        value
    }

    fn end(&mut self, cpu: usize, aliased: bool, intid: u32) {
        let Some(group) = self.get(cpu, intid).map(|source| source.group) else {
            return;
        };
        if self.running(cpu).is_none() || (aliased && group == 0) {
            return;
        }
        self.interfaces[cpu].active[group].pop_first();
        if self.interfaces[cpu].control & EOI_MODE == 0 {
            self.get(cpu, intid).unwrap().active = false;
        }
    }

    fn deactivate(&mut self, cpu: usize, intid: u32) {
        if self.interfaces[cpu].control & EOI_MODE != 0
            && let Some(source) = self.get(cpu, intid)
        {
            source.active = false;
        }
    }

    fn set_line(&mut self, cpu: usize, intid: u32, up: bool) {
        let source = self.get(cpu, intid).unwrap();
        source.latch |= up && !source.line && source.edge;
        source.line = up;
    }
}

#[derive(Clone, Debug)]
enum Step {
    Line {
        cpu: usize,
        intid: u32,
        up: bool,
    },
    Pulse {
        intid: u32,
    },
    SendSgi {
        filter: u32,
        list: u8,
        intid: u32,
    },
    Senders {
        intid: u32,
        senders: u8,
        set: bool,
    },
    Bit {
        array: u64,
        intid: u32,
    },
    Group {
        intid: u32,
        group: u32,
    },
    Edge {
        intid: u32,
        edge: bool,
    },
    Priority {
        intid: u32,
        priority: u8,
    },
    Targets {
        intid: u32,
        targets: u8,
    },
    Forward {
        groups: u32,
    },
    Interface {
        register: u64,
        value: u32,
    },
    ActivePriorities {
        group: usize,
        value: u32,
    },
    Acknowledge {
        aliased: bool,
    },
    /// Ends the last that this CPU has acknowledged.
    End,
    /// Ends anything, which may be another CPU's.
    EndAny {
        register: u64,
        intid: u32,
    },
    Migrate,
}

/// A step and the CPU that makes it.
fn step() -> impl Strategy<Value = (usize, Step)> {
    let sgi = || select(&SGIS[..]);
    let spi = || select(&SPIS[..]);
    let any_of_them = || prop_oneof![1 => sgi(), 1 => Just(PPI), 3 => spi()];
    let priority = || select(&[0x00, 0x10, 0x28, 0x40, 0x47, 0xa0, 0xf0, 0xff][..]);
    let arrays = [
        GICD_ISENABLER,
        GICD_ISENABLER,
        GICD_ICENABLER,
        GICD_ISPENDR,
        GICD_ICPENDR,
        GICD_ISACTIVER,
        GICD_ICACTIVER,
    ];
    let control = prop_oneof![
        4 => Just(ENABLE_GRP0 | ENABLE_GRP1 | ACK_CTL),
        1 => any::<u32>(),
    ];
    let interface = prop_oneof![
        control.prop_map(|value| (GICC_CTLR, value)),
        prop_oneof![3 => Just(0xff), 1 => any::<u32>()].prop_map(|value| (GICC_PMR, value)),
        any::<u32>().prop_map(|value| (GICC_BPR, value)),
        any::<u32>().prop_map(|value| (GICC_ABPR, value)),
    ];
    let ended = prop_oneof![4 => any_of_them(), 1 => select(&SPECIALS[..])];
    let step = prop_oneof![
        6 => (0..CPUS, prop_oneof![1 => Just(PPI), 4 => spi()], any::<bool>())
            .prop_map(|(cpu, intid, up)| Step::Line { cpu, intid, up }),
        4 => spi().prop_map(|intid| Step::Pulse { intid }),
        4 => (0..4_u32, any::<u8>(), sgi()).prop_map(|(filter, list, intid)| Step::SendSgi { filter, list, intid }),
        1 => (sgi(), any::<u8>(), any::<bool>())
            .prop_map(|(intid, senders, set)| Step::Senders { intid, senders, set }),
        4 => (select(arrays.to_vec()), any_of_them()).prop_map(|(array, intid)| Step::Bit { array, intid }),
        2 => (any_of_them(), 0..2_u32).prop_map(|(intid, group)| Step::Group { intid, group }),
        1 => (any_of_them(), any::<bool>()).prop_map(|(intid, edge)| Step::Edge { intid, edge }),
        3 => (any_of_them(), priority()).prop_map(|(intid, priority)| Step::Priority { intid, priority }),
        2 => (any_of_them(), any::<u8>()).prop_map(|(intid, targets)| Step::Targets { intid, targets }),
        1 => prop_oneof![2 => Just(3), 1 => any::<u32>()].prop_map(|groups| Step::Forward { groups }),
        3 => interface.prop_map(|(register, value)| Step::Interface { register, value }),
        1 => (0..2_usize, prop_oneof![2 => Just(0), 1 => any::<u32>()])
            .prop_map(|(group, value)| Step::ActivePriorities { group, value }),
        12 => prop_oneof![3 => Just(false), 1 => Just(true)].prop_map(|aliased| Step::Acknowledge { aliased }),
        8 => Just(Step::End),
        3 => (select(&[GICC_EOIR, GICC_AEOIR, GICC_DIR, GICC_DIR][..]), ended)
            .prop_map(|(register, intid)| Step::EndAny { register, intid }),
        1 => Just(Step::Migrate),
    ];
    (0..CPUS, step)
}

/// The two, with what is plugged into ours.
struct Pair {
    guest: Guest,
    lines: Vec<LevelLine>,
    reference: Reference,
    /// What each CPU has acknowledged and not ended.
    taken: [Vec<u32>; CPUS],
}

/// The inputs of a GIC that are level lines: each CPU's PPI, then the SPIs.
fn lines(guest: &Guest) -> Vec<LevelLine> {
    let ppis = (0..CPUS as u32).map(|cpu| guest.gic.ppi_line(CpuId(cpu), Ppi(PPI - 16)).unwrap());
    let spis = SPIS.iter().map(|intid| guest.gic.level_line(Spi(intid - 32)).unwrap());
    ppis.chain(spis).collect()
}

impl Pair {
    /// All is enabled, with SPIs for all CPUs.
    fn new() -> Self {
        let guest = Guest::new(CONFIG);
        let mut pair = Self {
            lines: lines(&guest),
            guest,
            reference: Reference::new(),
            taken: Default::default(),
        };
        for intid in SPIS {
            pair.make(
                0,
                Step::Bit {
                    array: GICD_ISENABLER,
                    intid,
                },
            );
            pair.make(0, Step::Targets { intid, targets: 0xff });
        }
        pair.make(0, Step::Forward { groups: 3 });
        for cpu in 0..CPUS {
            pair.make(
                cpu,
                Step::Bit {
                    array: GICD_ISENABLER,
                    intid: PPI,
                },
            );
            for (register, value) in [(GICC_PMR, 0xff), (GICC_CTLR, ENABLE_GRP0 | ENABLE_GRP1 | ACK_CTL)] {
                pair.make(cpu, Step::Interface { register, value });
            }
        }
        pair
    }

    fn make(&mut self, number: usize, step: Step) {
        let Self {
            guest,
            lines,
            reference,
            taken,
        } = self;
        let cpu = &guest.cpus[number];
        match step {
            Step::Line { cpu, intid, up } => {
                let index = match SPIS.iter().position(|&spi| spi == intid) {
                    Some(spi) => CPUS + spi,
                    None => cpu,
                };
                if up {
                    lines[index].trigger()
                } else {
                    lines[index].clear()
                }
                .unwrap();
                reference.set_line(cpu, intid, up);
            }
            Step::Pulse { intid } => {
                guest.gic.edge_line(Spi(intid - 32)).unwrap().trigger().unwrap();
                reference.get(0, intid).unwrap().latch = true;
            }
            Step::SendSgi { filter, list, intid } => {
                cpu.set(GICD_SGIR, filter << 24 | u32::from(list) << 16 | intid);
                let receivers = match filter {
                    0 => list,
                    1 => !(1 << number),
                    2 => 1 << number,
                    _ => 0,
                };
                for receiver in (0..CPUS).filter(|receiver| receivers >> receiver & 1 != 0) {
                    reference.get(receiver, intid).unwrap().senders |= 1 << number;
                }
            }
            Step::Senders { intid, senders, set } => {
                let array = if set { GICD_SPENDSGIR } else { GICD_CPENDSGIR };
                cpu.set_byte(array + u64::from(intid), senders);
                let source = reference.get(number, intid).unwrap();
                match set {
                    true => source.senders |= senders & ALL_CPUS,
                    false => source.senders &= !senders,
                }
            }
            Step::Bit { array, intid } => {
                cpu.set_bit(array, intid);
                let source = reference.get(number, intid).unwrap();
                match array {
                    GICD_ISENABLER => source.enabled = true,
                    GICD_ISACTIVER => source.active = true,
                    GICD_ICACTIVER => source.active = false,
                    _ if intid < 16 => (),
                    GICD_ICENABLER => source.enabled = false,
                    GICD_ISPENDR => source.latch = true,
                    GICD_ICPENDR => source.latch = false,
                    _ => unreachable!(),
                }
            }
            Step::Group { intid, group } => {
                cpu.set_group(intid, group);
                reference.get(number, intid).unwrap().group = group as usize;
            }
            Step::Edge { intid, edge } => {
                let register = GICD_ICFGR + u64::from(intid / 16) * 4;
                let field = 0b10 << (intid % 16 * 2);
                let others = cpu.get(register) & !field;
                cpu.set(register, if edge { others | field } else { others });
                reference.get(number, intid).unwrap().edge = edge || intid < 16;
            }
            Step::Priority { intid, priority } => {
                cpu.set_priority(intid, priority);
                reference.get(number, intid).unwrap().priority = priority & 0xf8;
            }
            Step::Targets { intid, targets } => {
                cpu.set_byte(GICD_ITARGETSR + u64::from(intid), targets);
                if intid >= 32 {
                    reference.get(number, intid).unwrap().targets = targets & ALL_CPUS;
                }
            }
            Step::Forward { groups } => {
                cpu.set(GICD_CTLR, groups);
                reference.control = groups & 3;
            }
            Step::Interface { register, value } => {
                cpu.write(register, value);
                let interface = &mut reference.interfaces[number];
                let point = value as u8 % 8;
                match register {
                    GICC_CTLR => interface.control = value & 0x21f,
                    GICC_PMR => interface.mask = value as u8 & 0xf8,
                    GICC_BPR => interface.binary_points[0] = point.max(2),
                    _ => interface.binary_points[1] = point.max(3),
                }
            }
            Step::ActivePriorities { group, value } => {
                cpu.write([GICC_APR, GICC_NSAPR][group], value);
                let levels = (0..32_u8).filter(|level| value >> level & 1 != 0);
                reference.interfaces[number].active[group] = levels.map(|level| level << 3).collect();
            }
            Step::Acknowledge { aliased } => {
                let value = cpu.read(if aliased { GICC_AIAR } else { GICC_IAR });
                assert_eq!(value, reference.acknowledge(number, aliased), "acknowledged");
                if value & 0x3ff < 1020 {
                    taken[number].push(value);
                }
            }
            Step::End => {
                if let Some(value) = taken[number].pop() {
                    cpu.end(value);
                    reference.end(number, false, value & 0x3ff);
                    cpu.write(GICC_DIR, value);
                    reference.deactivate(number, value & 0x3ff);
                }
            }
            Step::EndAny { register, intid } => {
                cpu.write(register, intid);
                match register {
                    GICC_DIR => reference.deactivate(number, intid),
                    _ => reference.end(number, register == GICC_AEOIR, intid),
                }
            }
            Step::Migrate => {
                let state = guest.gic.save();
                let new = Guest::new(CONFIG);
                let new_lines = self::lines(&new);
                new.gic.restore(&state).unwrap();
                for (index, line) in new_lines.iter().enumerate() {
                    let up = match index.checked_sub(CPUS) {
                        None => reference.private[index][PPI as usize].line,
                        Some(spi) => reference.get(0, SPIS[spi]).unwrap().line,
                    };
                    if up {
                        line.trigger().unwrap();
                    }
                }
                assert_eq!(new.gic.save(), state);
                (*lines, *guest) = (new_lines, new);
            }
        }
    }

    /// All that can be seen without changing it.
    fn compare(&mut self) {
        let Self { guest, reference, .. } = self;
        for (number, cpu) in guest.cpus.iter().enumerate() {
            assert_eq!(
                (cpu.irq(), cpu.fiq()),
                reference.inputs(number),
                "inputs of CPU {number}"
            );
            let running = reference.running(number).map_or(0xff, u32::from);
            assert_eq!(cpu.read(GICC_RPR), running, "GICC_RPR of CPU {number}");
            for (register, aliased) in [(GICC_HPPIR, false), (GICC_AHPPIR, true)] {
                let expected = reference.highest_pending(number, aliased);
                assert_eq!(cpu.read(register), expected, "{register:#x} of CPU {number}");
            }
            for intid in SGIS.into_iter().chain([PPI]).chain(SPIS) {
                let source = reference.get(number, intid).unwrap();
                let seen = [GICD_ISENABLER, GICD_ISPENDR, GICD_ISACTIVER].map(|array| cpu.bit(array, intid));
                assert_eq!(seen, [source.enabled, source.pending(), source.active], "INTID {intid}");
                if intid < 16 {
                    assert_eq!(cpu.get_byte(GICD_SPENDSGIR + u64::from(intid)), source.senders);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn three_cpus_see_what_the_specification_says(steps in prop::collection::vec(step(), 1..150)) {
        let mut pair = Pair::new();
        for (cpu, step) in steps {
            pair.make(cpu, step);
            pair.compare();
        }
    }
}
