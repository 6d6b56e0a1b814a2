//! The same random sequence to our GICv3 and to QEMU's: every register of the distributor and of four redistributors
//! compared.
//!
//! Through the qtest protocol there is no CPU that could reach the system registers of a CPU interface, so nothing is
//! acknowledged here. What differs by design is named where it is handled: search for "QEMU:". All of it was seen with
//! QEMU 7.2.
//!
//! `DEVISOR_SEED` replaces the seeds. A failure prints its seed and the last steps.

#![cfg(feature = "irqchip")]

#[path = "support/qtest.rs"]
mod qtest;
#[path = "support/skip.rs"]
mod skip;

use devisor::{
    backends::irqchip::{
        CpuId, Ppi, Spi,
        gicv3::{CpuOutputs, Distributor, GicV3, GicV3Config, LevelLine, LpiSupport, RedistributorRegion},
    },
    bus::{BusDevice, read_le},
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt},
};
use qtest::Qtest;
use std::{collections::VecDeque, sync::Arc};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const SEEDS: [u64; 4] = [1, 2, 0x5eed, 0xdead_beef];
const STEPS: u32 = 4_000;
/// All registers are compared after every so many steps.
const SWEEP: u32 = 50;
/// Ours is saved, and another restored in its place, after every so many steps.
const MIGRATION: u32 = 37;

/// Where QEMU's `virt` machine has its GIC, and how many of its SPIs GICD_TYPER tells of.
const CPUS: u32 = 4;
const GIC: &str = "/machine/unattached/device[4]";
const GICD: u64 = 0x0800_0000;
const GICR: u64 = 0x080a_0000;
const SPIS: u32 = 224;
/// QEMU: 32 SPIs more than GICD_TYPER tells of are there.
const QEMU_SPIS: u32 = 256;
const RAM: u64 = 0x4000_0000;

const REDISTRIBUTOR: u64 = 0x2_0000;
const SGI_BASE: u64 = 0x1_0000;
const IGROUPR: u64 = 0x080;
const ISENABLER: u64 = 0x100;
const ISPENDR: u64 = 0x200;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
const GICD_IROUTER: u64 = 0x6000;
const GICR_CTLR: u64 = 0x00;
const GICR_TYPER: u64 = 0x08;
const GICR_WAKER: u64 = 0x14;
const GICR_PROPBASER: u64 = 0x70;
const GICR_PENDBASER: u64 = 0x78;

#[test]
fn registers_behave_as_qemus_do() {
    let seeds = match std::env::var("DEVISOR_SEED") {
        Ok(seed) => vec![seed.parse().expect("DEVISOR_SEED is a number")],
        Err(_) => SEEDS.to_vec(),
    };
    let (mut steps, mut reads, mut pending) = (0, 0, 0);
    for seed in seeds {
        let machine = ["-M", "virt,gic-version=3,its=on", "-cpu", "cortex-a57", "-smp", "4"];
        let qemu = match Qtest::start("qemu-system-aarch64", &machine) {
            Ok(qemu) => qemu,
            Err(why) => return skip::skipped(why),
        };
        let mut pair = Pair::new(qemu, seed);
        for step in 0..STEPS {
            pair.step(step);
        }
        steps += pair.steps;
        reads += pair.reads;
        pending += pair.pending;
    }
    println!("GICv3 beside QEMU's: {steps} steps, {reads} reads compared, {pending} of them showed pending interrupts");
    assert!(
        reads > steps * 8 && pending > steps / 2,
        "too little is compared to prove anything"
    );
}

struct Ours {
    gic: GicV3,
    distributor: Distributor,
    redistributors: RedistributorRegion,
    /// The PPIs of each CPU, then the SPIs.
    lines: Vec<LevelLine>,
    memory: Arc<GuestMemoryMmap>,
}

impl Ours {
    fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        let config = GicV3Config {
            spis: SPIS,
            one_of_n: false,
            message_based_spis: false,
            lpis: LpiSupport::Its,
            ..GicV3Config::new(CPUS)
        };
        let output = |_| CpuOutputs {
            irq: Box::new(NoInterrupt),
            fiq: Box::new(NoInterrupt),
        };
        let gic = GicV3::with_lpis(config, (0..CPUS).map(output).collect(), memory.clone()).unwrap();
        let ppis = (0..CPUS * 16).map(|line| gic.ppi_line(CpuId(line / 16), Ppi(line % 16)).unwrap());
        let spis = (0..SPIS).map(|spi| gic.level_line(Spi(spi)).unwrap());
        Self {
            distributor: gic.distributor(),
            redistributors: gic.redistributors(0).unwrap(),
            lines: ppis.chain(spis).collect(),
            gic,
            memory,
        }
    }

    /// Another GIC in the place of this one, with its state, and with the lines that its devices drive.
    fn migrated(&self) -> Self {
        let state = self.gic.save();
        let new = Self::new(self.memory.clone());
        new.gic.restore(&state).unwrap();
        let ppis = state.cpus.iter().flat_map(|cpu| &cpu.private[16..]);
        let inputs = ppis.chain(state.spis.iter().map(|spi| &spi.state));
        for (line, _) in new.lines.iter().zip(inputs).filter(|(_, input)| input.line) {
            line.trigger().unwrap();
        }
        assert_eq!(new.gic.save(), state);
        new
    }
}

struct Pair {
    qemu: Qtest,
    ours: Ours,
    random: Random,
    seed: u64,
    log: VecDeque<String>,
    steps: u32,
    reads: u32,
    /// Reads that showed a pending interrupt.
    pending: u32,
}

impl Pair {
    fn new(qemu: Qtest, seed: u64) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x10_0000)]).unwrap();
        Self {
            qemu,
            ours: Ours::new(Arc::new(memory)),
            random: Random(seed),
            seed,
            log: VecDeque::new(),
            steps: 0,
            reads: 0,
            pending: 0,
        }
    }

    fn step(&mut self, step: u32) {
        self.steps += 1;
        match self.random.below(100) {
            0..25 => self.line(),
            25..55 => self.write_distributor(),
            55..80 => self.write_private(),
            80..86 => self.write_redistributor(),
            86..92 => self.forbidden_access(),
            _ => self.read_anything(),
        }
        if step % MIGRATION == MIGRATION - 1 {
            self.note("migration".into());
            self.ours = self.ours.migrated();
        }
        if step % SWEEP == SWEEP - 1 {
            self.sweep();
        }
    }

    fn line(&mut self) {
        let line = self.random.below(CPUS * 16 + SPIS);
        let up = self.random.below(2) == 0;
        self.note(format!("line {line}: {up}"));
        // QEMU: the inputs are the SPIs, then 32 for each CPU of which the SGIs are not connected.
        let input = match line.checked_sub(CPUS * 16) {
            Some(spi) => spi,
            None => QEMU_SPIS + line / 16 * 32 + 16 + line % 16,
        };
        self.qemu.set_input(GIC, input, up);
        let line = &self.ours.lines[line as usize];
        if up { line.trigger() } else { line.clear() }.unwrap();
    }

    /// A word of an array: where it begins, and the value for it.
    fn array(&mut self, words: u32) -> (u64, u64) {
        let value = match self.random.below(3) {
            0 => self.random.next(),
            _ => 1 << self.random.below(32),
        };
        match self.random.below(10) {
            bits @ 0..7 => (
                IGROUPR + u64::from(bits * 0x80 + self.random.below(words) * 4),
                value & 0xffff_ffff,
            ),
            7 | 8 => (
                IPRIORITYR + u64::from(self.random.below(words * 8) * 4),
                value & 0xffff_ffff,
            ),
            _ => (ICFGR + u64::from(self.random.below(words * 2) * 4), value & 0xffff_ffff),
        }
    }

    fn write_distributor(&mut self) {
        match self.random.below(12) {
            0 => {
                let value = self.random.pick(&[0, 1, 2, 3, 3]);
                self.write_both(GICD, 4, value);
            }
            1..=3 => {
                let intid = u64::from(32 + self.random.below(SPIS));
                let near = u64::from(self.random.below(CPUS + 1));
                let far = self.random.next() & 0xff_00ff_ffff;
                let router = self.random.pick(&[near, near, far]);
                match self.random.below(4) {
                    0 => self.write_both(GICD + GICD_IROUTER + intid * 8, 4, router & 0xffff_ffff),
                    1 => self.write_both(GICD + GICD_IROUTER + intid * 8 + 4, 4, router >> 32),
                    _ => self.write_both(GICD + GICD_IROUTER + intid * 8, 8, router),
                }
            }
            4 => {
                let intid = u64::from(self.random.below(32 + SPIS));
                let value = self.random.next() & 0xff;
                self.write_implemented(GICD + IPRIORITYR + intid, 1, value);
            }
            // Read-only and reserved.
            5 => {
                let offset = self
                    .random
                    .pick(&[0x004, 0x008, 0x800, 0x820, 0xf00, 0xf10, 0xf20, 0xffe8]);
                let value = self.random.next() & 0xffff_ffff;
                self.write_both(GICD + offset, 4, value);
            }
            _ => {
                // Word 0 is the redistributors'.
                let (offset, value) = self.array(32 / 32 + SPIS / 32);
                self.write_implemented(GICD + offset, 4, value);
            }
        }
    }

    fn write_private(&mut self) {
        let base = self.sgi_base();
        if self.random.below(6) == 0 {
            let intid = u64::from(self.random.below(32));
            let value = self.random.next() & 0xff;
            self.write_implemented(base + IPRIORITYR + intid, 1, value);
        } else {
            let (offset, value) = self.array(1);
            self.write_implemented(base + offset, 4, value);
        }
    }

    fn write_redistributor(&mut self) {
        let base = GICR + REDISTRIBUTOR * u64::from(self.random.below(CPUS));
        let value = self.random.next();
        match self.random.below(6) {
            0 => {
                let value = self.random.pick(&[0, 2]);
                self.write_both(base + GICR_WAKER, 4, value);
            }
            // QEMU: keeps reserved bits, and PTZ, which is write-only.
            1 => self.write_both(base + GICR_PROPBASER, 8, value & 0x070f_ffff_ffff_ff9f),
            2 => self.write_both(base + GICR_PENDBASER, 8, value & 0x070f_ffff_ffff_0f80),
            3 => {
                let register = self.random.pick(&[GICR_PROPBASER, GICR_PENDBASER]);
                let (half, mask) = self.random.pick(&[(0, 0xffff_0f80), (4, 0x070f_ffff)]);
                self.write_both(base + register + half, 4, value & mask);
            }
            // LPIs on, and off again, with tables that are in memory: QEMU's is zero, and ours.
            4 => {
                self.write_both(base + GICR_PROPBASER, 8, RAM | 15);
                self.write_both(base + GICR_PENDBASER, 8, RAM + 0x2_0000);
                self.write_both(base + GICR_CTLR, 4, 1);
                self.compare_read(base + GICR_CTLR, 4);
                self.write_both(base + GICR_CTLR, 4, 0);
            }
            _ => {
                let offset = self.random.pick(&[0x04, 0x08, 0x0c, 0xffe8]);
                self.write_both(base + offset, 4, value & 0xffff_ffff);
            }
        }
        self.compare_read(base + GICR_PROPBASER, 8);
        self.compare_read(base + GICR_PENDBASER, 8);
    }

    /// An access that the architecture does not require to work: read as zero, write ignored. QEMU: takes some of them.
    /// So it goes to ours alone, and must change nothing.
    fn forbidden_access(&mut self) {
        let width = self.random.pick(&[1, 2, 4, 8]);
        let mut offset = u64::from(self.random.below(0x2_0000));
        let distributor = self.random.below(2) == 0;
        let priorities = [0x400..0x800, 0x2000..0x2400, 0x1_0400..0x1_0800];
        match width {
            1 if priorities.iter().any(|range| range.contains(&offset)) => return,
            // A word is forbidden only where it is not aligned.
            4 | 8 => offset |= 1,
            _ => {}
        }
        let value = self.random.next();
        self.note(format!("forbidden access of {width} bytes at {offset:#x}"));
        let before = self.ours.gic.save();
        let face: &dyn BusDevice = match distributor {
            true => &self.ours.distributor,
            false => &self.ours.redistributors,
        };
        face.write(offset, &value.to_le_bytes()[..width]);
        let mut data = [0xff; 8];
        face.read(offset, &mut data[..width]);
        if data[..width] != [0; 8][..width] || before != self.ours.gic.save() {
            self.fail("a forbidden access had an effect, or read something");
        }
    }

    fn read_anything(&mut self) {
        let word = u64::from(self.random.below(0x1000 / 4) * 4);
        let intid = u64::from(self.random.below(32 + SPIS));
        let base = self.sgi_base();
        match self.random.below(4) {
            0 => self.compare_read(GICD + word, 4),
            1 => self.compare_read(base + word, 4),
            2 => self.compare_read(GICD + IPRIORITYR + intid, 1),
            _ => self.compare_read(GICD + GICD_IROUTER + intid * 8, 8),
        }
    }

    fn sweep(&mut self) {
        for offset in [0x000, 0x004, 0x008].into_iter().chain((0xffd0..0x1_0000).step_by(4)) {
            self.compare_read(GICD + offset, 4);
        }
        for word in 0..(32 + SPIS) / 32 {
            for array in (IGROUPR..IPRIORITYR).step_by(0x80) {
                self.compare_read(GICD + array + u64::from(word * 4), 4);
            }
        }
        for word in 0..(32 + SPIS) / 16 {
            self.compare_read(GICD + ICFGR + u64::from(word * 4), 4);
        }
        for word in 0..(32 + SPIS) / 4 {
            self.compare_read(GICD + IPRIORITYR + u64::from(word * 4), 4);
        }
        for intid in 32..32 + SPIS {
            self.compare_read(GICD + GICD_IROUTER + u64::from(intid * 8), 8);
        }
        for cpu in 0..CPUS {
            let base = GICR + REDISTRIBUTOR * u64::from(cpu);
            for offset in [GICR_CTLR, 0x04, GICR_TYPER, GICR_TYPER + 4, 0x10, GICR_WAKER, 0xc0]
                .into_iter()
                .chain((0xffd0..0x1_0000).step_by(4))
            {
                self.compare_read(base + offset, 4);
            }
            self.compare_read(base + GICR_TYPER, 8);
            let arrays = (IGROUPR..IPRIORITYR)
                .step_by(0x80)
                .chain((IPRIORITYR..IPRIORITYR + 0x20).step_by(4))
                .chain([ICFGR, ICFGR + 4]);
            for offset in arrays {
                self.compare_read(base + SGI_BASE + offset, 4);
            }
        }
    }

    fn sgi_base(&mut self) -> u64 {
        GICR + REDISTRIBUTOR * u64::from(self.random.below(CPUS)) + SGI_BASE
    }

    fn compare_read(&mut self, address: u64, width: usize) {
        self.reads += 1;
        let (qemu, ours) = (self.qemu.read(address, width), self.read_ours(address, width));
        if qemu != ours {
            self.fail(&format!("{address:#x}: QEMU has {qemu:#x}, ours {ours:#x}"));
        }
        self.pending += u32::from(ours != 0 && (ISPENDR..ISPENDR + 0x80).contains(&(address & 0xffff)));
    }

    fn fail(&self, what: &str) -> ! {
        for line in &self.log {
            println!("  {line}");
        }
        panic!("{what}\nat step {} of DEVISOR_SEED={}", self.steps, self.seed);
    }

    fn face(&self, address: u64) -> (&dyn BusDevice, u64) {
        match address.checked_sub(GICR) {
            Some(offset) => (&self.ours.redistributors, offset),
            None => (&self.ours.distributor, address - GICD),
        }
    }

    /// QEMU: keeps all bits of a priority in the distributor and the redistributors; ours has 5 of them.
    fn write_implemented(&mut self, address: u64, width: usize, value: u64) {
        let within = if address < GICR {
            address - GICD
        } else {
            (address - GICR) % REDISTRIBUTOR - SGI_BASE
        };
        let priorities = (IPRIORITYR..IPRIORITYR + 0x400).contains(&within);
        let mask = if priorities { 0xf8f8_f8f8 } else { 0xffff_ffff };
        self.write_both(address, width, value & mask);
    }

    fn write_both(&mut self, address: u64, width: usize, value: u64) {
        self.note(format!("write of {width} bytes at {address:#x}: {value:#x}"));
        self.qemu.write(address, width, value);
        let (face, offset) = self.face(address);
        face.write(offset, &value.to_le_bytes()[..width]);
    }

    fn read_ours(&self, address: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        let (face, offset) = self.face(address);
        face.read(offset, &mut data[..width]);
        read_le(&data[..width])
    }

    fn note(&mut self, line: String) {
        if self.log.len() == 60 {
            self.log.pop_front();
        }
        self.log.push_back(line);
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
}
