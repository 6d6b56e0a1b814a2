//! Three CPUs beside a reference that has no order but the specification's: lists that are searched each time, and outputs
//! that are derived from nothing but the state. The registers are compared with QEMU's model elsewhere.

use crate::{
    guest::*,
    steps::{CPUS, LPIS, PPIS, SGIS, SPIS, Step, step},
};
use devisor::{
    backends::irqchip::{
        CpuId, IntId, Ppi, Spi,
        gicv3::{GicV3Config, LevelLine, LpiSupport, SysReg},
    },
    interrupt::{Interrupt, LevelInterrupt},
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn gic_config() -> GicV3Config {
    GicV3Config {
        spis: 32,
        extended_spis: 32,
        extended_ppis: 32,
        lpis: LpiSupport::Direct,
        ..GicV3Config::new(CPUS as u32)
    }
}

#[derive(Clone, Default)]
struct Source {
    enabled: bool,
    group: usize,
    edge: bool,
    priority: u8,
    line: bool,
    latch: bool,
    active: bool,
    /// Of an SPI: GICD_IROUTERn, and where it has gone of those that it could go to.
    router: u64,
    chosen: Option<usize>,
}

impl Source {
    fn competes(&self) -> bool {
        self.enabled && !self.active && (self.latch || (self.line && !self.edge))
    }
}

#[derive(Clone, Default)]
struct Cpu {
    private: BTreeMap<u32, Source>,
    lpis: BTreeSet<u32>,
    lpis_on: bool,
    dpg: [bool; 2],
    asleep: bool,
    enabled: [bool; 2],
    common: bool,
    eoi_mode: bool,
    mask: u8,
    binary_points: [u8; 2],
    /// The active group priorities of each group.
    active: [BTreeSet<u8>; 2],
}

#[derive(Clone)]
struct Reference {
    forwarded: [bool; 2],
    shared: BTreeMap<u32, Source>,
    cpus: Vec<Cpu>,
    /// The configuration of each LPI: its priority, if it is enabled.
    lpis: BTreeMap<u32, Option<u8>>,
}

impl Reference {
    fn new() -> Self {
        let private = || {
            SGIS.iter().chain(&PPIS).map(|&intid| {
                let edge = intid < 16;
                (
                    intid,
                    Source {
                        edge,
                        ..Source::default()
                    },
                )
            })
        };
        let cpu = || Cpu {
            private: private().collect(),
            asleep: true,
            binary_points: [2, 3],
            ..Cpu::default()
        };
        Self {
            forwarded: [false; 2],
            shared: SPIS.iter().map(|&intid| (intid, Source::default())).collect(),
            cpus: (0..CPUS).map(|_| cpu()).collect(),
            lpis: LPIS.iter().map(|&intid| (intid, None)).collect(),
        }
    }

    fn get(&mut self, cpu: usize, intid: u32) -> Option<&mut Source> {
        self.cpus[cpu].private.get_mut(&intid).or(self.shared.get_mut(&intid))
    }

    /// Every SPI for any CPU finds one, or stays where it is, or waits.
    fn choose(&mut self) {
        for (&intid, source) in &mut self.shared {
            let group = source.group;
            let takes_part = |cpu: usize| {
                let Cpu {
                    asleep, enabled, dpg, ..
                } = &self.cpus[cpu];
                !asleep && enabled[group] && !dpg[group]
            };
            source.chosen = match () {
                _ if !source.competes() => None,
                _ if source.router & ONE_OF_N == 0 => Some(source.router as usize).filter(|&cpu| cpu < CPUS),
                _ => source.chosen.filter(|&cpu| takes_part(cpu)).or_else(|| {
                    let candidates = (0..CPUS).map(|step| (intid as usize + step) % CPUS);
                    candidates.into_iter().find(|&cpu| takes_part(cpu))
                }),
            };
        }
    }

    /// The most urgent that reaches a CPU interface: its priority, INTID and group.
    fn highest(&self, cpu: usize) -> Option<(u8, u32, usize)> {
        let this = &self.cpus[cpu];
        let private = this.private.iter().filter(|(_, source)| source.competes());
        let shared = self.shared.iter().filter(|(_, source)| source.chosen == Some(cpu));
        let wired = private
            .chain(shared)
            .map(|(&intid, source)| (source.priority, intid, source.group));
        let lpis = this.lpis.iter().filter(|_| this.lpis_on);
        let lpis = lpis.filter_map(|intid| Some((self.lpis[intid]?, *intid, 1)));
        wired
            .chain(lpis)
            .filter(|&(_, _, group)| self.forwarded[group] && !this.asleep)
            .min()
    }

    fn running(&self, cpu: usize) -> Option<(u8, usize)> {
        let [zero, one] = &self.cpus[cpu].active;
        let zero = zero.iter().map(|&level| (level, 0));
        zero.chain(one.iter().map(|&level| (level, 1))).min()
    }

    fn group_priority(&self, cpu: usize, group: usize, priority: u8) -> u8 {
        let this = &self.cpus[cpu];
        let point = match group {
            1 if !this.common => this.binary_points[1] - 1,
            _ => this.binary_points[0],
        };
        let subpriorities = 1_u16 << (point + 1);
        (u16::from(priority) / subpriorities * subpriorities) as u8
    }

    fn signalled(&self, cpu: usize) -> Option<(u8, u32, usize)> {
        self.highest(cpu).filter(|&(priority, _, group)| {
            let preempts = self.running(cpu).is_none_or(|(running, _)| {
                self.group_priority(cpu, group, priority) < self.group_priority(cpu, group, running)
            });
            self.cpus[cpu].enabled[group] && priority < self.cpus[cpu].mask && preempts
        })
    }

    fn acknowledge(&mut self, cpu: usize, group: usize) -> u64 {
        let Some((priority, intid, _)) = self.signalled(cpu).filter(|&(_, _, found)| found == group) else {
            return SPURIOUS;
        };
        let group_priority = self.group_priority(cpu, group, priority);
        self.cpus[cpu].active[group].insert(group_priority);
        if let Some(source) = self.get(cpu, intid) {
            (source.active, source.latch) = (true, false);
        }
        self.cpus[cpu].lpis.remove(&intid);
        intid.into()
    }

    /// Those that the sequences leave alone are there too.
    fn exists(intid: u32) -> bool {
        matches!(intid, 0..64 | 1056..1088 | 4096..4128 | 8192..65536)
    }

    fn end(&mut self, cpu: usize, group: usize, intid: u32) {
        if !Self::exists(intid) || self.running(cpu).is_none_or(|(_, running)| running != group) {
            return;
        }
        self.cpus[cpu].active[group].pop_first();
        if !self.cpus[cpu].eoi_mode {
            self.deactivate(cpu, intid);
        }
    }

    fn deactivate(&mut self, cpu: usize, intid: u32) {
        if let Some(source) = self.get(cpu, intid) {
            source.active = false;
        }
    }
}

/// The two, with what is plugged into ours.
struct Pair {
    guest: Guest,
    lines: BTreeMap<(usize, u32), LevelLine>,
    reference: Reference,
    /// What each CPU has acknowledged and not ended, and in which group.
    taken: [Vec<(u64, usize)>; CPUS],
    acknowledged: u32,
}

fn lines(guest: &Guest) -> BTreeMap<(usize, u32), LevelLine> {
    let ppis = (0..CPUS).flat_map(|cpu| PPIS.map(|intid| (cpu, intid)));
    let spis = SPIS.map(|intid| (0, intid));
    let line = |(cpu, intid): (usize, u32)| match PPIS.contains(&intid) {
        true => guest.gic.ppi_line(CpuId(cpu as u32), Ppi(intid - 16)).unwrap(),
        false => guest.gic.level_line(Spi(intid - 32)).unwrap(),
    };
    ppis.chain(spis).map(|input| (input, line(input))).collect()
}

const EOIRS: [SysReg; 2] = [SysReg::ICC_EOIR0_EL1, SysReg::ICC_EOIR1_EL1];
const IARS: [SysReg; 2] = [SysReg::ICC_IAR0_EL1, SysReg::ICC_IAR1_EL1];
const HPPIRS: [SysReg; 2] = [SysReg::ICC_HPPIR0_EL1, SysReg::ICC_HPPIR1_EL1];
const IGRPENS: [SysReg; 2] = [SysReg::ICC_IGRPEN0_EL1, SysReg::ICC_IGRPEN1_EL1];
const BPRS: [SysReg; 2] = [SysReg::ICC_BPR0_EL1, SysReg::ICC_BPR1_EL1];
const APRS: [SysReg; 2] = [SysReg::ICC_AP0R_EL1[0], SysReg::ICC_AP1R_EL1[0]];

impl Pair {
    /// All is enabled.
    fn new() -> Self {
        let guest = Guest::new(gic_config());
        for (number, cpu) in guest.cpus.iter().enumerate() {
            cpu.set_redistributor(GICR_PROPBASER, 8, PROPERTIES | 15);
            cpu.set_redistributor(GICR_PENDBASER, 8, pending_table(number));
        }
        let mut pair = Self {
            lines: lines(&guest),
            guest,
            reference: Reference::new(),
            taken: Default::default(),
            acknowledged: 0,
        };
        for cpu in 0..CPUS {
            for intid in SGIS.into_iter().chain(PPIS) {
                let array = Array::SetEnable;
                pair.make(cpu, Step::Bit { array, intid });
            }
            for group in 0..2 {
                pair.make(cpu, Step::Enable { group, on: true });
            }
            pair.make(cpu, Step::Mask { value: 0xff });
            pair.make(cpu, Step::Sleep { asleep: false });
            pair.make(cpu, Step::EnableLpis { on: true });
        }
        for intid in SPIS {
            let array = Array::SetEnable;
            pair.make(0, Step::Bit { array, intid });
        }
        for intid in LPIS {
            let (entry, all) = (0xa1, true);
            pair.make(0, Step::ConfigureLpi { intid, entry, all });
        }
        pair.make(0, Step::Forward { groups: 3 });
        pair
    }

    fn make(&mut self, number: usize, step: Step) {
        let Self {
            guest,
            lines,
            reference,
            taken,
            acknowledged,
        } = self;
        let cpu = &guest.cpus[number];
        match step {
            Step::Line { cpu, intid, up } => {
                let cpu = if PPIS.contains(&intid) { cpu } else { 0 };
                let line = &lines[&(cpu, intid)];
                if up { line.trigger() } else { line.clear() }.unwrap();
                let source = reference.get(cpu, intid).unwrap();
                source.latch |= up && !source.line && source.edge;
                source.line = up;
            }
            Step::Pulse { intid } => {
                guest.gic.edge_line(Spi(intid - 32)).unwrap().trigger().unwrap();
                reference.get(0, intid).unwrap().latch = true;
            }
            Step::SendSgi {
                register,
                list,
                to_others,
                intid,
            } => {
                cpu.write(register, u64::from(to_others) << 40 | u64::from(intid) << 24 | list);
                for target in 0..CPUS {
                    let named = if to_others {
                        target != number
                    } else {
                        list >> target & 1 != 0
                    };
                    let source = reference.get(target, intid).unwrap();
                    source.latch |= named && (register == SysReg::ICC_SGI1R_EL1 || source.group == 0);
                }
            }
            Step::Lpi { intid, pending } => {
                let register = if pending { GICR_SETLPIR } else { GICR_CLRLPIR };
                cpu.set_redistributor(register, 8, intid.into());
                let this = &mut reference.cpus[number];
                match pending {
                    _ if !this.lpis_on => false,
                    true => this.lpis.insert(intid),
                    false => this.lpis.remove(&intid),
                };
            }
            Step::MessageLpi { cpu, intid } => {
                guest.gic.send_lpi(CpuId(cpu), IntId(intid)).unwrap();
                let this = &mut reference.cpus[cpu as usize];
                if this.lpis_on {
                    this.lpis.insert(intid);
                }
            }
            Step::ConfigureLpi { intid, entry, all } => {
                guest.write_memory(PROPERTIES + u64::from(intid) - 8192, entry);
                for cpu in &guest.cpus {
                    match all {
                        true => cpu.set_redistributor(GICR_INVALLR, 8, 0),
                        false => cpu.set_redistributor(GICR_INVLPIR, 8, intid.into()),
                    }
                }
                reference.lpis.insert(intid, (entry & 1 != 0).then_some(entry & 0xf8));
            }
            Step::EnableLpis { on } => {
                let others = cpu.redistributor(GICR_CTLR, 4) & !ENABLE_LPIS;
                cpu.set_redistributor(GICR_CTLR, 4, others | u64::from(on));
                reference.cpus[number].lpis_on = on;
            }
            Step::Bit { array, intid } => {
                guest.set_bit(array, number, intid);
                let source = reference.get(number, intid).unwrap();
                match array {
                    Array::SetEnable => source.enabled = true,
                    Array::ClearEnable => source.enabled = false,
                    Array::SetPending => source.latch = true,
                    Array::ClearPending => source.latch = false,
                    Array::SetActive => source.active = true,
                    Array::ClearActive => source.active = false,
                    Array::Group => unreachable!(),
                }
            }
            Step::Group { intid, group } => {
                guest.set_group(number, intid, group);
                reference.get(number, intid).unwrap().group = group as usize;
            }
            Step::Edge { intid, edge } => {
                guest.set_edge_triggered(number, intid, edge);
                reference.get(number, intid).unwrap().edge = edge || intid < 16;
            }
            Step::Priority { intid, priority } => {
                guest.set_priority(number, intid, priority);
                reference.get(number, intid).unwrap().priority = priority & 0xf8;
            }
            Step::Route { intid, router } => {
                guest.route(intid, router);
                let source = reference.get(0, intid).unwrap();
                // What is rerouted to any CPU stays where it is if that one takes part.
                source.router = router;
            }
            Step::Forward { groups } => {
                guest.set(GICD_CTLR, 4, groups);
                reference.forwarded = [groups & 1 != 0, groups & 2 != 0];
            }
            Step::Sleep { asleep } => {
                cpu.set_redistributor(GICR_WAKER, 4, u64::from(asleep) << 1);
                reference.cpus[number].asleep = asleep;
            }
            Step::OptOut { dpg } => {
                let lpis = cpu.redistributor(GICR_CTLR, 4) & ENABLE_LPIS;
                let bits = [(dpg[0], DPG0), (dpg[1], DPG1)].map(|(on, bit)| if on { bit } else { 0 });
                cpu.set_redistributor(GICR_CTLR, 4, lpis | bits[0] | bits[1]);
                reference.cpus[number].dpg = dpg;
            }
            Step::Enable { group, on } => {
                cpu.write(IGRPENS[group], on.into());
                reference.cpus[number].enabled[group] = on;
            }
            Step::Mask { value } => {
                cpu.write(SysReg::ICC_PMR_EL1, value);
                reference.cpus[number].mask = value as u8 & 0xf8;
            }
            Step::BinaryPoint { group, value } => {
                cpu.write(BPRS[group], value);
                let this = &mut reference.cpus[number];
                if group == 0 || !this.common {
                    this.binary_points[group] = (value as u8 & 7).max(2 + group as u8);
                }
            }
            Step::Control { value } => {
                cpu.write(SysReg::ICC_CTLR_EL1, value);
                let this = &mut reference.cpus[number];
                (this.common, this.eoi_mode) = (value & CBPR != 0, value & EOI_MODE != 0);
            }
            Step::ActivePriorities { group, value } => {
                cpu.write(APRS[group], value.into());
                let levels = (0..32).filter(|level| value >> level & 1 != 0);
                reference.cpus[number].active[group] = levels.map(|level| level << 3).collect();
            }
            Step::Acknowledge { group } => {
                let (ours, theirs) = (cpu.read(IARS[group]), reference.acknowledge(number, group));
                assert_eq!(ours, theirs, "acknowledged");
                if ours != SPURIOUS {
                    taken[number].push((ours, group));
                    *acknowledged += 1;
                }
            }
            Step::End => {
                if let Some((intid, group)) = taken[number].pop() {
                    cpu.write(EOIRS[group], intid);
                    reference.end(number, group, intid as u32);
                }
            }
            Step::EndAny { group, intid } => {
                cpu.write(EOIRS[group], intid.into());
                reference.end(number, group, intid);
            }
            Step::Deactivate { intid } => {
                cpu.write(SysReg::ICC_DIR_EL1, intid.into());
                if reference.cpus[number].eoi_mode {
                    reference.deactivate(number, intid);
                }
            }
            Step::Migrate => {
                let state = guest.gic.save();
                let new = Guest::with_memory(gic_config(), guest.memory.clone(), |_| Ok(()));
                new.gic.restore(&state).unwrap();
                let new_lines = self::lines(&new);
                for (input @ &(cpu, intid), line) in &new_lines {
                    if reference.get(cpu, intid).unwrap().line {
                        line.trigger().unwrap();
                    }
                    assert!(lines.contains_key(input));
                }
                // The old lines let go of the old GIC.
                (*lines, *guest) = (new_lines, new);
                // Where what is for any CPU has gone is not a part of the state: it is chosen anew.
                for source in reference.shared.values_mut() {
                    source.chosen = None;
                }
            }
        }
        self.reference.choose();
        self.compare();
    }

    #[expect(clippy::needless_range_loop, reason = "a group indexes more than one list")]
    fn compare(&mut self) {
        for (number, cpu) in self.guest.cpus.iter().enumerate() {
            let signalled = self.reference.signalled(number).map(|(_, _, group)| group);
            assert_eq!(cpu.irq(), signalled == Some(1), "IRQ of CPU {number}");
            assert_eq!(cpu.fiq(), signalled == Some(0), "FIQ of CPU {number}");
            let highest = self.reference.highest(number);
            for group in 0..2 {
                let enabled = self.reference.cpus[number].enabled[group];
                let expected = highest.filter(|highest| highest.2 == group && enabled);
                let expected = expected.map_or(SPURIOUS, |(_, intid, _)| intid.into());
                assert_eq!(cpu.read(HPPIRS[group]), expected, "HPPIR{group} of CPU {number}");
            }
            let running = self
                .reference
                .running(number)
                .map_or(IDLE, |(running, _)| running.into());
            assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), running, "RPR of CPU {number}");
            for (&intid, source) in self.reference.cpus[number].private.iter().chain(&self.reference.shared) {
                let pending = source.latch || (source.line && !source.edge);
                assert_eq!(
                    self.guest.bit(Array::SetPending, number, intid),
                    pending,
                    "INTID {intid}"
                );
                assert_eq!(
                    self.guest.bit(Array::SetActive, number, intid),
                    source.active,
                    "INTID {intid}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn three_cpus_see_what_the_specification_says(steps in prop::collection::vec(step(), 1..150)) {
        let mut pair = Pair::new();
        for (cpu, step) in steps {
            pair.make(cpu, step);
        }
    }
}
