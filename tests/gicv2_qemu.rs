//! The same random sequence to our GICv2 and to QEMU's: every read and every output compared.
//!
//! QEMU takes the accesses of the qtest protocol as those of CPU 0, and only while its GIC has one CPU, so one CPU is what
//! is compared here. What differs by design is named where it is handled: search for "QEMU:". All of it was seen with
//! QEMU 7.2.
//!
//! `DEVISOR_SEED` replaces the seeds. A failure prints its seed and the last steps.

#![cfg(feature = "irqchip")]

#[path = "support/qtest.rs"]
mod qtest;

use devisor::{
    backends::irqchip::{
        CpuId, Group, InterruptState, Ppi, Spi, TriggerMode,
        gicv2::{CpuInterface, CpuOutputs, Distributor, EdgeLine, GicV2, GicV2Config, GicV2State, LevelLine},
    },
    bus::{BusDevice, read_le},
    interrupt::{Interrupt, LevelInterrupt, level_from_fn},
};
use qtest::Qtest;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

const SEEDS: [u64; 6] = [1, 2, 3, 0x5eed, 0xdead_beef, 0x0123_4567_89ab_cdef];
const STEPS: u32 = 5_000;
/// All registers are compared after every so many steps.
const SWEEP: u32 = 50;
/// Everything is made lively again after every so many steps.
const EPISODE: u32 = 100;

/// Where QEMU's `virt` machine has its GIC, and how many SPIs that has.
const GIC: &str = "/machine/unattached/device[1]";
const CPU: &str = "/machine/unattached/device[0]";
const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
const SPIS: u32 = 256;
const INTERRUPTS: u32 = 32 + SPIS;

const GICD_CTLR: u64 = 0x000;
const GICD_IGROUPR: u64 = 0x080;
const GICD_ISENABLER: u64 = 0x100;
const GICD_ICENABLER: u64 = 0x180;
const GICD_ISPENDR: u64 = 0x200;
const GICD_ICPENDR: u64 = 0x280;
const GICD_ISACTIVER: u64 = 0x300;
const GICD_ICACTIVER: u64 = 0x380;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_ITARGETSR: u64 = 0x800;
const GICD_ICFGR: u64 = 0xc00;
const GICD_SGIR: u64 = 0xf00;
const GICD_CPENDSGIR: u64 = 0xf10;
const GICD_SPENDSGIR: u64 = 0xf20;

const GICC_CTLR: u64 = 0x00;
const GICC_PMR: u64 = 0x04;
const GICC_BPR: u64 = 0x08;
const GICC_IAR: u64 = 0x0c;
const GICC_EOIR: u64 = 0x10;
const GICC_RPR: u64 = 0x14;
const GICC_HPPIR: u64 = 0x18;
const GICC_ABPR: u64 = 0x1c;
const GICC_APR: u64 = 0xd0;
const GICC_IIDR: u64 = 0xfc;
const GICC_DIR: u64 = 0x1000;

const ACK_CTL: u32 = 1 << 2;
const CBPR: u32 = 1 << 4;
const IDLE: u32 = 0xff;
const SPURIOUS: u32 = 1023;

#[test]
fn behaves_as_qemus_model_does() {
    let seeds = match std::env::var("DEVISOR_SEED") {
        Ok(seed) => vec![seed.parse().expect("DEVISOR_SEED is a number")],
        Err(_) => SEEDS.to_vec(),
    };
    let mut counts = Counts::default();
    for seed in seeds {
        let machine = ["-M", "virt,gic-version=2", "-cpu", "cortex-a57"];
        let qemu = match Qtest::start("qemu-system-aarch64", &machine) {
            Ok(qemu) => qemu,
            Err(why) => return println!("skipped: {why}"),
        };
        let mut pair = Pair::new(qemu, seed);
        for step in 0..STEPS {
            pair.step(step);
        }
        counts.add(&pair.counts);
    }
    let Counts {
        steps,
        reads,
        outputs,
        acknowledged,
        excluded,
    } = counts;
    println!(
        "GICv2 beside QEMU's: {steps} steps, {reads} reads and {outputs} outputs compared, \
         {acknowledged} interrupts acknowledged, {excluded} comparisons excluded"
    );
    assert!(acknowledged > steps / 50, "the sequence is too dull to prove anything");
    assert!(excluded < reads / 20, "too much is excluded to prove anything");
}

#[derive(Default)]
struct Counts {
    steps: u32,
    reads: u32,
    outputs: u32,
    acknowledged: u32,
    excluded: u32,
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.steps += other.steps;
        self.reads += other.reads;
        self.outputs += other.outputs;
        self.acknowledged += other.acknowledged;
        self.excluded += other.excluded;
    }
}

/// The two models, and what the generator remembers.
struct Pair {
    qemu: Qtest,
    gic: GicV2,
    distributor: Distributor,
    cpu: CpuInterface,
    irq: Arc<AtomicBool>,
    fiq: Arc<AtomicBool>,
    lines: Vec<LevelLine>,
    pulses: Vec<EdgeLine>,
    random: Random,
    seed: u64,
    /// The interrupts that this episode plays with, so that they meet.
    favourites: Vec<u32>,
    acknowledged: Vec<u32>,
    /// SPIs that were made active by GICD_ISACTIVERn.
    forced_active: BTreeSet<u32>,
    log: VecDeque<String>,
    counts: Counts,
}

impl Pair {
    fn new(mut qemu: Qtest, seed: u64) -> Self {
        qemu.intercept_inputs(CPU);
        let wire = || {
            let level = Arc::new(AtomicBool::new(false));
            let pin = Arc::clone(&level);
            (
                level,
                Box::new(level_from_fn(move |up| {
                    assert_ne!(pin.swap(up, SeqCst), up, "an output is told a level twice");
                    Ok(())
                })),
            )
        };
        let ((irq, irq_pin), (fiq, fiq_pin)) = (wire(), wire());
        let config = GicV2Config {
            cpus: 1,
            spis: SPIS,
            priority_bits: 8,
        };
        let gic = GicV2::new(
            config,
            vec![CpuOutputs {
                irq: irq_pin,
                fiq: fiq_pin,
            }],
        )
        .unwrap();
        let cpu = CpuId(0);
        // PPIs first: the index of a line is its INTID less 16.
        let ppis = (0..16).map(|ppi| gic.ppi_line(cpu, Ppi(ppi)).unwrap());
        let spis = (0..SPIS).map(|spi| gic.level_line(Spi(spi)).unwrap());
        Self {
            qemu,
            distributor: gic.distributor(cpu).unwrap(),
            cpu: gic.cpu_interface(cpu).unwrap(),
            irq,
            fiq,
            lines: ppis.chain(spis).collect(),
            pulses: (0..SPIS).map(|spi| gic.edge_line(Spi(spi)).unwrap()).collect(),
            gic,
            random: Random(seed),
            seed,
            favourites: Vec::new(),
            acknowledged: Vec::new(),
            forced_active: BTreeSet::new(),
            log: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    fn step(&mut self, step: u32) {
        self.counts.steps += 1;
        if step % EPISODE == 0 {
            self.begin_episode();
        }
        match self.random.below(100) {
            0..12 => self.line(),
            12..20 => self.pulse(),
            20..42 => self.acknowledge(),
            42..60 => self.end_of_interrupt(),
            60..66 => self.send_sgi(),
            66..84 => self.write_distributor(),
            84..89 => self.write_cpu_interface(),
            89..90 => self.write_active_priorities(),
            90..94 => self.forbidden_access(),
            94..97 => self.read_distributor(),
            _ => self.read_cpu_interface(),
        }
        self.compare_outputs();
        if step % SWEEP == SWEEP - 1 {
            self.sweep();
        }
    }

    // What a step can be.

    /// Ends what is under way, and enables a fresh set of interrupts of few priorities.
    fn begin_episode(&mut self) {
        self.favourites = (0..20)
            .map(|_| match self.random.below(4) {
                0 => self.random.below(32),
                _ => self.random.below(INTERRUPTS),
            })
            .collect();
        self.drop_all_priorities();
        self.acknowledged.clear();
        self.forced_active.clear();
        for word in 0..INTERRUPTS / 32 {
            self.write_both(GICD, GICD_ICACTIVER + u64::from(word * 4), 4, u32::MAX);
            self.enable(word, u32::MAX);
        }
        for intid in self.favourites.clone() {
            let priority = self.random.priority();
            self.write_both(GICD, GICD_IPRIORITYR + u64::from(intid), 1, priority);
        }
        let control = self.random.pick(&[0x03, 0x07, 0x07, 0x0f, 0x0f, 0x1f, 0x207, 0x20f]);
        let binary_point = self.random.pick(&[0, 0, 1, 2, 3, 4, 5, 6, 7]);
        self.write_both(GICD, GICD_CTLR, 4, 3);
        self.write_both(GICC, GICC_CTLR, 4, control);
        self.write_both(GICC, GICC_PMR, 4, 0xff);
        self.write_both(GICC, GICC_BPR, 4, binary_point);
        self.write_both(GICC, GICC_ABPR, 4, binary_point + 1);
    }

    /// Leaves nothing running, by way of GICC_APRn as in [`write_active_priorities`](Self::write_active_priorities).
    fn drop_all_priorities(&mut self) {
        if self.read_ours(GICC, GICC_RPR, 4) == IDLE {
            return;
        }
        let group = self.interrupt_state(0).group;
        for register in 0..8 {
            // The last level of the group that the end of INTID 0 drops.
            let value = if register == group as u64 * 4 + 3 { 1 << 31 } else { 0 };
            self.write_both(GICC, GICC_APR + register * 4, 4, value);
        }
        self.write_both(GICC, GICC_EOIR, 4, 0);
        self.compare_read(GICC, GICC_RPR, 4);
    }

    fn line(&mut self) {
        let intid = self.interrupt().max(16);
        let up = self.random.below(2) == 0;
        self.note(format!("line of INTID {intid}: {up}"));
        // QEMU: the inputs are the SPIs, then 32 for each CPU of which the SGIs are not connected.
        let input = if intid < 32 { SPIS + intid } else { intid - 32 };
        self.qemu.set_input(GIC, input, up);
        let line = &self.lines[intid as usize - 16];
        if up { line.trigger() } else { line.clear() }.unwrap();
    }

    fn pulse(&mut self) {
        let intid = self.interrupt().max(32);
        self.note(format!("pulse of INTID {intid}"));
        let state = self.interrupt_state(intid);
        match state.trigger {
            TriggerMode::Edge => {
                self.qemu.set_input(GIC, intid - 32, !state.line);
                self.qemu.set_input(GIC, intid - 32, state.line);
            }
            // QEMU: nothing is left of a pulse on a level-sensitive interrupt. Ours latches it, as this does.
            TriggerMode::Level => {
                self.qemu
                    .write(GICD + GICD_ISPENDR + u64::from(intid / 32 * 4), 4, 1 << (intid % 32))
            }
        }
        self.pulses[intid as usize - 32].trigger().unwrap();
    }

    fn acknowledge(&mut self) {
        let view = self.view();
        if view.disabled_group_first() || view.binary_point_moved() {
            // QEMU: takes an interrupt of a disabled group, and one whose group priority is not enough since the binary point
            // moved. The state would part for good.
            self.counts.excluded += 1;
            return;
        }
        let (qemu, ours) = (self.read_qemu(GICC, GICC_IAR, 4), self.read_ours(GICC, GICC_IAR, 4));
        // QEMU: "Group 1 is pending" also if it is not urgent enough to be signalled (3.2.5 has it as 1023).
        let hidden = view.first.is_some_and(|(_, group)| group == Group::One)
            && view.interface_control & ACK_CTL == 0
            && !view.preempts();
        let qemu = if hidden && qemu == 1022 && ours == SPURIOUS {
            SPURIOUS
        } else {
            qemu
        };
        self.compare("GICC_IAR", qemu, ours);
        if ours < 1020 || (ours & 0x3ff) < 16 {
            self.acknowledged.push(ours);
            self.counts.acknowledged += 1;
        }
    }

    fn end_of_interrupt(&mut self) {
        let value = match self.random.below(20) {
            // Whatever a guest may write.
            0 => self.random.next() as u32,
            1 => self.random.below(1024),
            // Out of order.
            2 if !self.acknowledged.is_empty() => {
                let index = self.random.below(self.acknowledged.len() as u32);
                self.acknowledged.remove(index as usize)
            }
            _ => match self.acknowledged.pop() {
                Some(value) => value,
                None => return,
            },
        };
        let register = self.random.pick(&[GICC_EOIR, GICC_EOIR, GICC_EOIR, GICC_DIR]);
        self.write_both(GICC, register, 4, value);
        if register == GICC_EOIR && self.random.below(4) != 0 {
            self.write_both(GICC, GICC_DIR, 4, value);
        }
        self.release_forced(value & 0x3ff);
    }

    /// QEMU: GICD_ISACTIVERn makes an SPI active on eight CPUs, the end of the interrupt deactivates it on one, and
    /// GICD_ISACTIVERn goes on to show the others. The architecture has one state: make it one in QEMU too.
    fn release_forced(&mut self, intid: u32) {
        if self.forced_active.contains(&intid) && !self.interrupt_state(intid).active {
            self.forced_active.remove(&intid);
            self.write_both(GICD, GICD_ICACTIVER + u64::from(intid / 32 * 4), 4, 1 << (intid % 32));
        }
    }

    fn send_sgi(&mut self) {
        let intid = self.random.below(16);
        match self.random.below(6) {
            // QEMU: takes the reserved filter as "all", and remembers senders that do not exist. Ours: nobody.
            0 => self.write_nothing(GICD_SGIR, 4, 0x03ff_0000 | intid),
            1 => {
                let strangers = self.random.below(256) & 0xfe;
                self.write_nothing(GICD_SPENDSGIR + u64::from(intid), 1, strangers);
            }
            // QEMU: a zero byte makes the SGI pending without a sender, and ends QEMU at its acknowledge.
            2 => self.write_both(GICD, GICD_SPENDSGIR + u64::from(intid & !3), 4, 0x0101_0101),
            3 => self.write_both(GICD, GICD_SPENDSGIR + u64::from(intid), 1, 0x01),
            4 => {
                let value = self.random.next() as u32;
                match self.random.below(2) {
                    0 => self.write_both(GICD, GICD_CPENDSGIR + u64::from(intid), 1, value & 0xff),
                    _ => self.write_both(GICD, GICD_CPENDSGIR + u64::from(intid & !3), 4, value & 0x0303_0303),
                }
            }
            _ => {
                let filter = self.random.below(3) << 24;
                let list = self.random.below(256) << 16;
                self.write_both(GICD, GICD_SGIR, 4, filter | list | intid);
            }
        }
    }

    fn write_distributor(&mut self) {
        let intid = self.interrupt();
        let word = u64::from(intid / 32 * 4);
        // One of the favourites, or a handful.
        let bits = match self.random.below(3) {
            0 => (self.random.next() & self.random.next() & self.random.next()) as u32,
            _ => 1 << (intid % 32),
        };
        match self.random.below(24) {
            0 => {
                let value = self.random.pick(&[0, 1, 2, 3, 3, 3, 3, 3, 3, u32::MAX]);
                self.write_both(GICD, GICD_CTLR, 4, value);
            }
            1 | 2 => {
                let groups = self.read_ours(GICD, GICD_IGROUPR + word, 4);
                self.write_both(GICD, GICD_IGROUPR + word, 4, groups ^ bits);
            }
            3..=5 => self.enable(intid / 32, bits),
            6 | 7 => self.write_both(GICD, GICD_ICENABLER + word, 4, bits),
            8..=10 => self.write_both(GICD, GICD_ISPENDR + word, 4, bits),
            11 | 12 => self.write_both(GICD, GICD_ICPENDR + word, 4, bits),
            13 => {
                self.write_both(GICD, GICD_ISACTIVER + word, 4, bits);
                let spis = (0..32)
                    .filter(|bit| bits >> bit & 1 != 0)
                    .map(|bit| intid / 32 * 32 + bit);
                self.forced_active.extend(spis.filter(|&intid| intid >= 32));
            }
            14..=16 => self.write_both(GICD, GICD_ICACTIVER + word, 4, bits),
            17..=19 => {
                let priority = self.random.priority();
                self.write_both(GICD, GICD_IPRIORITYR + u64::from(intid), 1, priority);
            }
            20 => {
                let value = self.random.next() as u32;
                self.write_both(GICD, GICD_IPRIORITYR + u64::from(intid & !3), 4, value);
            }
            21 => {
                let value = self.random.next() as u32;
                self.write_both(GICD, GICD_ITARGETSR + u64::from(intid & !3), 4, value);
                self.write_both(GICD, GICD_ITARGETSR + u64::from(intid), 1, value & 0xff);
            }
            22 => {
                let register = GICD_ICFGR + u64::from(intid / 16 * 4);
                let config = self.read_ours(GICD, register, 4);
                let random = self.random.next() as u32;
                let value = self.random.pick(&[config ^ 2 << (intid % 16 * 2), random]);
                self.write_both(GICD, register, 4, value);
            }
            // Read-only, reserved, and interrupts that do not exist.
            _ => {
                let offset = self
                    .random
                    .pick(&[0x004, 0x008, 0x00c, 0x040, 0x07c, 0xd00, 0xe00, 0xf04, 0xf30, 0xfe8]);
                let value = self.random.next() as u32;
                self.write_both(GICD, offset, 4, value);
                let array = self
                    .random
                    .pick(&[GICD_IGROUPR, GICD_ISENABLER, GICD_ISPENDR, GICD_ISACTIVER]);
                self.write_both(GICD, array + u64::from(INTERRUPTS / 8), 4, value);
                self.write_both(GICD, GICD_IPRIORITYR + u64::from(INTERRUPTS), 4, value);
            }
        }
    }

    /// GICD_ISENABLERn.
    ///
    /// QEMU: latches a level-sensitive interrupt whose line is up, so that it stays pending when the line drops. The
    /// architecture has no such latch: clear it in both.
    fn enable(&mut self, word: u32, bits: u32) {
        self.write_both(GICD, GICD_ISENABLER + u64::from(word * 4), 4, bits);
        let latched = (0..32)
            .filter(|bit| bits >> bit & 1 != 0)
            .filter(|bit| {
                let state = self.interrupt_state(word * 32 + bit);
                state.trigger == TriggerMode::Level && state.line
            })
            .fold(0, |mask, bit| mask | 1 << bit);
        if latched != 0 {
            self.write_both(GICD, GICD_ICPENDR + u64::from(word * 4), 4, latched);
        }
    }

    fn write_cpu_interface(&mut self) {
        let value = self.random.next() as u32;
        match self.random.below(8) {
            0 | 1 => {
                let control = self
                    .random
                    .pick(&[value, 0x03, 0x07, 0x07, 0x07, 0x0f, 0x0f, 0x1f, 0x207, 0x20f]);
                self.write_both(GICC, GICC_CTLR, 4, control);
            }
            2 | 3 => {
                // Most telling is the priority of what waits.
                let first = self.view().first.map_or(0xff, |(priority, _)| u32::from(priority));
                let mask = self
                    .random
                    .pick(&[0xff, 0xff, 0xff, 0xf0, first, first.wrapping_add(1), value]);
                self.write_both(GICC, GICC_PMR, 4, mask);
            }
            4 => self.write_both(GICC, GICC_BPR, 4, value),
            5 => self.write_both(GICC, GICC_ABPR, 4, value),
            _ => {
                let register = self
                    .random
                    .pick(&[GICC_IAR, GICC_RPR, GICC_HPPIR, GICC_IIDR, 0x2c, 0xf0, 0x1004]);
                self.write_both(GICC, register, 4, value);
            }
        }
    }

    /// GICC_APRn and GICC_NSAPRn.
    ///
    /// QEMU: the running priority follows at the next end of an interrupt only, and only if one is running.
    fn write_active_priorities(&mut self) {
        if self.read_ours(GICC, GICC_RPR, 4) == IDLE {
            return;
        }
        let register = GICC_APR + u64::from(self.random.below(8) * 4);
        let value = (self.random.next() & self.random.next() & self.random.next()) as u32;
        self.write_both(GICC, register, 4, value);
        if self.read_ours(GICC, GICC_RPR, 4) == IDLE {
            // Ours is idle now and would ignore the end that QEMU waits for.
            self.write_both(GICC, register, 4, 1);
        }
        let intid = self.random.below(INTERRUPTS);
        self.write_both(GICC, GICC_EOIR, 4, intid);
        self.release_forced(intid);
    }

    /// An access that the architecture does not require to work (4.1.4): read as zero, write ignored. QEMU: takes bytes
    /// and halves everywhere, and cuts 64 bits in two. So it goes to ours alone, and must change nothing.
    fn forbidden_access(&mut self) {
        let (base, size) = self.random.pick(&[(GICD, 0x1000), (GICC, 0x2000)]);
        let width = self.random.pick(&[1, 2, 4, 8]);
        let mut offset = u64::from(self.random.below(size));
        let bytes = [GICD_IPRIORITYR..GICD_ICFGR, GICD_CPENDSGIR..0xf30];
        match width {
            1 if base == GICD && bytes.iter().any(|range| range.contains(&offset)) => return,
            // A word is forbidden only where it is not aligned.
            4 => offset |= 1,
            _ => {}
        }
        let value = self.random.next();
        self.note(format!("forbidden access of {width} bytes at {:#x}", base + offset));
        let before = self.gic.save();
        let face: &dyn BusDevice = if base == GICD { &self.distributor } else { &self.cpu };
        face.write(offset, &value.to_le_bytes()[..width]);
        let mut data = [0xff; 8];
        face.read(offset, &mut data[..width]);
        if data[..width] != [0; 8][..width] || before != self.gic.save() {
            self.fail("a forbidden access had an effect, or read something");
        }
    }

    fn read_distributor(&mut self) {
        let intid = self.interrupt();
        let offset = match self.random.below(4) {
            0 => u64::from(self.random.below(0x400) * 4),
            1 => return self.compare_read(GICD, GICD_IPRIORITYR + u64::from(intid), 1),
            2 => return self.compare_read(GICD, GICD_ITARGETSR + u64::from(intid), 1),
            _ => return self.compare_read(GICD, GICD_SPENDSGIR + u64::from(intid % 16), 1),
        };
        self.compare_read(GICD, offset, 4);
    }

    fn read_cpu_interface(&mut self) {
        let register = self.random.pick(&[
            GICC_CTLR, GICC_PMR, GICC_BPR, GICC_EOIR, GICC_RPR, GICC_ABPR, 0x2c, 0x40, GICC_APR, 0xe0, 0xf0, GICC_IIDR,
            GICC_DIR,
        ]);
        // Not 0x20 to 0x28. QEMU: has no GICC_AIAR, GICC_AEOIR and GICC_AHPPIR.
        self.compare_read(GICC, register, 4);
        self.compare_highest_pending();
    }

    // What is compared.

    fn compare_outputs(&mut self) {
        let view = self.view();
        if view.binary_point_moved() {
            // QEMU: compares a whole priority with the running one, which is the same only while the running one was
            // made with the binary point as it is now.
            self.counts.excluded += 1;
            return;
        }
        let (mut irq, mut fiq) = (self.irq.load(SeqCst), self.fiq.load(SeqCst));
        if view.distributor_hides() {
            // QEMU: a pending interrupt of a group that GICD_CTLR disables hides those of the other (the choice that
            // IGNORE_GROUP_ENABLE names in 3.8). Ours made the other choice.
            (irq, fiq) = (false, false);
        }
        self.compare("IRQ", self.qemu.level(0).into(), irq.into());
        self.compare("FIQ", self.qemu.level(1).into(), fiq.into());
        self.counts.reads -= 2;
        self.counts.outputs += 2;
    }

    fn compare_highest_pending(&mut self) {
        let view = self.view();
        if view.disabled_group_first() {
            // QEMU: shows interrupts of disabled groups.
            self.counts.excluded += 1;
            return;
        }
        let (qemu, mut ours) = (self.read_qemu(GICC, GICC_HPPIR, 4), self.read_ours(GICC, GICC_HPPIR, 4));
        if view.first.is_some_and(|(priority, _)| priority >= view.priority_mask) {
            // QEMU: shows only what GICC_PMR lets pass; the architecture does not ask for that.
            ours = SPURIOUS;
        }
        self.compare("GICC_HPPIR", qemu, ours);
    }

    fn sweep(&mut self) {
        for offset in [0x000, 0x004, 0x008].into_iter().chain((0xf00..0x1000).step_by(4)) {
            self.compare_read(GICD, offset, 4);
        }
        for word in 0..=INTERRUPTS / 32 {
            for array in (GICD_IGROUPR..GICD_IPRIORITYR).step_by(0x80) {
                self.compare_read(GICD, array + u64::from(word * 4), 4);
            }
        }
        for word in 0..=INTERRUPTS / 16 {
            self.compare_read(GICD, GICD_ICFGR + u64::from(word * 4), 4);
        }
        for intid in self.favourites.clone() {
            self.compare_read(GICD, GICD_IPRIORITYR + u64::from(intid & !3), 4);
            self.compare_read(GICD, GICD_ITARGETSR + u64::from(intid & !3), 4);
        }
        for register in [GICC_CTLR, GICC_PMR, GICC_BPR, GICC_RPR, GICC_ABPR]
            .into_iter()
            .chain((0xd0..0x100).step_by(4))
        {
            self.compare_read(GICC, register, 4);
        }
        self.compare_highest_pending();
    }

    fn compare_read(&mut self, base: u64, offset: u64, width: usize) {
        let (qemu, ours) = (self.read_qemu(base, offset, width), self.read_ours(base, offset, width));
        self.compare(&format!("{:#x}", base + offset), qemu, ours);
    }

    fn compare(&mut self, what: &str, qemu: u32, ours: u32) {
        self.counts.reads += 1;
        if qemu != ours {
            self.fail(&format!("{what}: QEMU has {qemu:#x}, ours {ours:#x}"));
        }
    }

    fn fail(&self, what: &str) -> ! {
        for line in &self.log {
            println!("  {line}");
        }
        panic!(
            "{what}\nat step {} of DEVISOR_SEED={}\n{:?}",
            self.counts.steps,
            self.seed,
            self.view()
        );
    }

    // How the two are reached.

    fn write_both(&mut self, base: u64, offset: u64, width: usize, value: u32) {
        self.note(format!("write of {width} bytes at {:#x}: {value:#x}", base + offset));
        self.qemu.write(base + offset, width, value.into());
        self.write_ours(base, offset, width, value);
    }

    /// A write to the distributor that does nothing in ours. What QEMU makes of it instead is said where it is called.
    fn write_nothing(&mut self, offset: u64, width: usize, value: u32) {
        self.note(format!(
            "write without effect of {width} bytes at {offset:#x}: {value:#x}"
        ));
        let before = self.gic.save();
        self.write_ours(GICD, offset, width, value);
        if before != self.gic.save() {
            self.fail("a write that does nothing did something");
        }
    }

    fn write_ours(&mut self, base: u64, offset: u64, width: usize, value: u32) {
        let data = &value.to_le_bytes()[..width];
        if base == GICD {
            self.distributor.write(offset, data)
        } else {
            self.cpu.write(offset, data)
        }
    }

    fn read_ours(&mut self, base: u64, offset: u64, width: usize) -> u32 {
        let mut data = [0; 4];
        let data = &mut data[..width];
        if base == GICD {
            self.distributor.read(offset, data)
        } else {
            self.cpu.read(offset, data)
        }
        read_le(data) as u32
    }

    fn read_qemu(&mut self, base: u64, offset: u64, width: usize) -> u32 {
        self.note(format!("read of {width} bytes at {:#x}", base + offset));
        self.qemu.read(base + offset, width) as u32
    }

    fn note(&mut self, line: String) {
        if self.log.len() == 60 {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }

    fn interrupt(&mut self) -> u32 {
        match self.random.below(8) {
            0 => self.random.below(INTERRUPTS),
            _ => self.random.pick(&self.favourites),
        }
    }

    fn interrupt_state(&self, intid: u32) -> InterruptState {
        let GicV2State { cpus, spis, .. } = self.gic.save();
        match intid.checked_sub(32) {
            None => cpus[0].private[intid as usize],
            Some(spi) => spis.get(spi as usize).map(|spi| spi.state).unwrap_or_default(),
        }
    }

    fn view(&self) -> View {
        let state = self.gic.save();
        let cpu = &state.cpus[0];
        let all = cpu.private.iter().chain(state.spis.iter().map(|spi| &spi.state));
        let first = all
            .enumerate()
            .filter(|(_, state)| state.enabled && state.pending() && !state.active)
            .min_by_key(|(intid, state)| (state.priority, *intid))
            .map(|(_, state)| (state.priority, state.group));
        let levels = cpu.active_priorities.iter().zip(&cpu.non_secure_active_priorities);
        let running = levels
            .enumerate()
            .find(|(_, (zero, one))| *zero | *one != 0)
            .map(|(word, (zero, one))| (word as u32 * 32 + (zero | one).trailing_zeros()) << 1);
        View {
            distributor_control: state.control,
            interface_control: cpu.control,
            priority_mask: cpu.priority_mask,
            binary_point: cpu.binary_point,
            aliased_binary_point: cpu.aliased_binary_point,
            first,
            running,
        }
    }
}

/// What decides whether QEMU is expected to differ.
#[derive(Debug)]
struct View {
    distributor_control: u32,
    interface_control: u32,
    priority_mask: u8,
    binary_point: u8,
    aliased_binary_point: u8,
    /// The most urgent of all that are enabled, pending and not active, whether or not its group is enabled.
    first: Option<(u8, Group)>,
    running: Option<u32>,
}

impl View {
    fn distributor_hides(&self) -> bool {
        self.first
            .is_some_and(|(_, group)| self.distributor_control >> group as u32 & 1 == 0)
    }

    /// The most urgent interrupt is of a group that is disabled, while neither the distributor nor the CPU interface is
    /// off altogether.
    fn disabled_group_first(&self) -> bool {
        let enabled = self.distributor_control & self.interface_control;
        let on = self.distributor_control & 3 != 0 && self.interface_control & 3 != 0;
        on && self.first.is_some_and(|(_, group)| enabled >> group as u32 & 1 == 0)
    }

    fn group_mask(&self, group: Group) -> u32 {
        let point = match group {
            Group::One if self.interface_control & CBPR == 0 => self.aliased_binary_point - 1,
            _ => self.binary_point,
        };
        u32::MAX << (point + 1)
    }

    fn preempts(&self) -> bool {
        let (Some((priority, group)), Some(running)) = (self.first, self.running) else {
            return true;
        };
        let mask = self.group_mask(group);
        u32::from(priority) & mask < running & mask
    }

    /// The masked comparison that the architecture asks for differs from the one of whole priorities.
    fn binary_point_moved(&self) -> bool {
        match (self.first, self.running) {
            (Some((priority, _)), Some(running)) => (u32::from(priority) < running) != self.preempts(),
            _ => false,
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u32) -> u32 {
        (self.next() % u64::from(limit)) as u32
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }

    /// Mostly one of a few, so that some are equal and some differ below the binary point only.
    fn priority(&mut self) -> u32 {
        match self.below(4) {
            0 => self.below(256),
            _ => self.pick(&[0x00, 0x20, 0x40, 0x41, 0x48, 0x60, 0x80, 0xa0, 0xf0, 0xff]),
        }
    }
}
