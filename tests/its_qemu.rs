//! The same random commands and messages to our ITS and GICv3 and to QEMU's: registers and pending LPIs compared.
//!
//! What differs by design is named where it is handled: search for "QEMU:". All of it was seen with QEMU 7.2.
//!
//! `DEVISOR_SEED` replaces the seeds. A failure prints its seed and the last steps.

#![cfg(feature = "irqchip")]

#[path = "support/its.rs"]
mod command;
#[path = "support/qtest.rs"]
mod qtest;
#[path = "support/skip.rs"]
mod skip;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use command::{Command, VALID};
use devisor::{
    backends::irqchip::{
        CpuId,
        gicv3::{CpuOutputs, GicV3, GicV3Config, LpiSupport, Redistributor},
        its::{ControlFrame, DeviceId, EventId, Its, ItsConfig},
    },
    bus::{BusDevice, read_le},
    interrupt::NoInterrupt,
};
use qtest::Qtest;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SEEDS: [u64; 6] = [1, 2, 3, 0x5eed, 0xdead_beef, 0x0123_4567_89ab_cdef];
const STEPS: u32 = 2_000;
/// Everything is made anew after every so many steps, or when the queue has stalled.
const EPISODE: u32 = 150;
/// Ours is saved, and another restored in its place, after every so many steps.
const MIGRATION: u32 = 37;

const CPUS: u32 = 4;
/// Where QEMU's `virt` machine has its ITS and its redistributors.
const GITS: u64 = 0x0808_0000;
const TRANSLATER: u64 = 0x0809_0040;
const GICR: u64 = 0x080a_0000;
const GICR_SIZE: u64 = 0x2_0000;

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 0x0800_0000;
/// What is cleared for each episode.
const AREA: u64 = 0x0020_0000;
const QUEUE: u64 = RAM;
const DEVICE_TABLE: u64 = RAM + 0x4_0000;
const COLLECTION_TABLE: u64 = RAM + 0x8_0000;
const LEVEL_2: u64 = RAM + 0xc_0000;
const ITTS: u64 = RAM + 0x10_0000;
const ITT_SIZE: u64 = 0x1000;
const PENDING_TABLES: u64 = RAM + 0x40_0000;
const CONFIGURATION_TABLE: u64 = RAM + 0x50_0000;
/// Where no memory is, whatever is added to it.
const NOWHERE: u64 = 0x4000_0000_0000;

const CTLR: u64 = 0x0000;
const TYPER: u64 = 0x0008;
const CBASER: u64 = 0x0080;
const CWRITER: u64 = 0x0088;
const CREADR: u64 = 0x0090;
const BASER: u64 = 0x0100;
const QUIESCENT: u64 = 1 << 31;
const STALLED: u64 = 1;
const INDIRECT: u64 = 1 << 62;

const GICR_CTLR: u64 = 0x0000;
const GICR_PROPBASER: u64 = 0x0070;
const GICR_PENDBASER: u64 = 0x0078;

/// The LPIs that the sequences play with are some of the first.
const LPIS: std::ops::Range<u32> = 8192..8448;

#[test]
fn behaves_as_qemus_model_does() {
    let seeds = match std::env::var("DEVISOR_SEED") {
        Ok(seed) => vec![seed.parse().expect("DEVISOR_SEED is a number")],
        Err(_) => SEEDS.to_vec(),
    };
    let mut counts = Counts::default();
    for seed in seeds {
        let machine = ["-M", "virt,gic-version=3,its=on", "-cpu", "cortex-a57", "-smp", "4"];
        let qemu = match Qtest::start("qemu-system-aarch64", &machine) {
            Ok(qemu) => qemu,
            Err(why) => return skip::skipped(why),
        };
        let mut pair = Pair::new(qemu, seed);
        pair.compare_identification();
        for step in 0..STEPS {
            pair.step(step);
        }
        counts.add(&pair.counts);
    }
    let Counts {
        steps,
        reads,
        pending,
        refused,
        stalls,
    } = counts;
    println!(
        "ITS beside QEMU's: {steps} steps, {reads} reads compared, {pending} times the pending LPIs changed, \
         {refused} commands refused, {stalls} stalls"
    );
    assert!(pending > steps / 10, "the sequence is too dull to prove anything");
    assert!(
        refused > steps / 20 && stalls > 10,
        "too little goes wrong to prove anything"
    );
}

#[derive(Default)]
struct Counts {
    steps: u32,
    reads: u32,
    pending: u32,
    refused: u32,
    stalls: u32,
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.steps += other.steps;
        self.reads += other.reads;
        self.pending += other.pending;
        self.refused += other.refused;
        self.stalls += other.stalls;
    }
}

/// Our models, with a memory of their own.
struct Ours {
    gic: GicV3,
    its: Its,
    frame: ControlFrame,
    redistributors: Vec<Redistributor>,
    memory: Arc<GuestMemoryMmap>,
}

impl Ours {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE as usize)]).unwrap();
        Self::over(Arc::new(memory))
    }

    fn over(memory: Arc<GuestMemoryMmap>) -> Self {
        let config = GicV3Config {
            lpis: LpiSupport::Its,
            ..GicV3Config::new(CPUS)
        };
        let outputs = (0..CPUS).map(|_| CpuOutputs {
            irq: Box::new(NoInterrupt),
            fiq: Box::new(NoInterrupt),
        });
        let gic = GicV3::with_lpis(config, outputs.collect(), Arc::clone(&memory)).unwrap();
        let its = Its::new(ItsConfig::default(), &gic, Arc::clone(&memory)).unwrap();
        Self {
            frame: its.control_frame(),
            redistributors: (0..CPUS).map(|cpu| gic.redistributor(CpuId(cpu)).unwrap()).collect(),
            gic,
            its,
            memory,
        }
    }

    /// Another GIC and another ITS in the place of these, over the same memory.
    fn migrated(&self) -> Self {
        let new = Self::over(Arc::clone(&self.memory));
        new.gic.restore(&self.gic.save()).unwrap();
        new.its.restore(&self.its.save()).unwrap();
        new
    }
}

/// The two models, and what the generator remembers.
struct Pair {
    qemu: Qtest,
    ours: Ours,
    random: Random,
    seed: u64,
    /// Where the next command goes.
    at: u64,
    queue_size: u64,
    /// The last that were pending.
    pending: BTreeSet<(u32, u32)>,
    log: VecDeque<String>,
    counts: Counts,
}

impl Pair {
    fn new(qemu: Qtest, seed: u64) -> Self {
        let mut pair = Self {
            qemu,
            ours: Ours::new(),
            random: Random(seed),
            seed,
            at: 0,
            queue_size: 0x1000,
            pending: BTreeSet::new(),
            log: VecDeque::new(),
            counts: Counts::default(),
        };
        for cpu in 0..CPUS {
            pair.write_both(
                GICR + u64::from(cpu) * GICR_SIZE + GICR_PROPBASER,
                8,
                CONFIGURATION_TABLE | 15,
            );
            let table = PENDING_TABLES + u64::from(cpu) * 0x1_0000;
            pair.write_both(GICR + u64::from(cpu) * GICR_SIZE + GICR_PENDBASER, 8, table | 1 << 62);
            pair.write_both(GICR + u64::from(cpu) * GICR_SIZE + GICR_CTLR, 4, 1);
        }
        pair
    }

    fn compare_identification(&mut self) {
        // QEMU: its interrupt translation tables have entries of 12 bytes. GITS_IIDR says who made it.
        let entry_size = 0xf << 4;
        let (qemu, ours) = (self.read_qemu(GITS + TYPER, 8), self.read_ours(GITS + TYPER, 8));
        self.compare("GITS_TYPER", qemu & !entry_size, ours & !entry_size);
        for offset in (0xffd0..0x1_0000).step_by(4) {
            self.compare_read(GITS + offset, 4);
        }
        self.compare_registers();
    }

    fn step(&mut self, step: u32) {
        self.counts.steps += 1;
        if step.is_multiple_of(EPISODE) || self.read_ours(GITS + CREADR, 8) & STALLED != 0 {
            self.begin_episode();
        }
        match self.random.below(100) {
            0..8 => self.message(),
            8..12 => self.registers(),
            12..14 => self.level_1_entry(),
            14..17 => self.position(),
            _ => self.commands(),
        }
        if step % MIGRATION == MIGRATION - 1 {
            self.note("migration".into());
            self.ours = self.ours.migrated();
        }
        self.compare_registers();
        self.compare_pending();
    }

    // What a step can be.

    /// Lays out tables and queue anew. What is pending stays.
    fn begin_episode(&mut self) {
        self.write_both(GITS + CTLR, 4, 0);
        self.qemu.fill(RAM, AREA, 0);
        self.ours
            .memory
            .write_slice(&vec![0; AREA as usize], GuestAddress(RAM))
            .unwrap();
        let pages = self.random.below(4);
        self.queue_size = u64::from(pages + 1) * 0x1000;
        self.at = 0;
        // QEMU: reads commands where no memory is as zeros, where ours stalls. So the queue is always in memory.
        self.write_both(GITS + CBASER, 8, VALID | QUEUE | u64::from(pages));
        // Some guests may leave it, and find what the queue had before carried out again.
        if self.random.below(4) != 0 {
            self.write_both(GITS + CWRITER, 8, 0);
        }
        for (index, table) in [DEVICE_TABLE, COLLECTION_TABLE].into_iter().enumerate() {
            let table = if self.random.below(32) == 0 { NOWHERE } else { table };
            let page_size = self.random.below(3);
            let indirect = if self.random.below(2) == 0 { INDIRECT } else { 0 };
            let valid = if self.random.below(32) == 0 { 0 } else { VALID };
            let value = valid | indirect | table | u64::from(page_size) << 8;
            self.write_both(GITS + BASER + index as u64 * 8, 8, value);
        }
        // Mostly what is used is there.
        for table in [DEVICE_TABLE, COLLECTION_TABLE] {
            if self.read_ours(GITS + BASER + if table == DEVICE_TABLE { 0 } else { 8 }, 8) & INDIRECT != 0 {
                let page = LEVEL_2 + if table == DEVICE_TABLE { 0 } else { 0x1_0000 };
                self.write_memory(table, &(VALID | page).to_le_bytes());
            }
        }
        self.write_both(GITS + CTLR, 4, 1);
        for cpu in 0..CPUS {
            self.command(command::mapc(cpu as u16, cpu));
        }
        for device in 0..3 {
            self.command(command::mapd(device, itt(device), 5));
            for event in 0..4 {
                let collection = self.random.below(CPUS) as u16;
                self.command(command::mapti(
                    device,
                    event,
                    LPIS.start + device * 8 + event,
                    collection,
                ));
            }
        }
    }

    /// One or several, in one go.
    fn commands(&mut self) {
        for _ in 0..self.random.below(4) {
            let command = self.random_command();
            self.put(command);
        }
        let command = self.random_command();
        self.command(command);
    }

    fn random_command(&mut self) -> Command {
        let device = self.device();
        let event = self.event();
        let collection = self.collection();
        let processor = self.processor();
        match self.random.below(100) {
            0..8 => {
                let itt = match self.random.below(24) {
                    0 => NOWHERE,
                    _ => itt(self.random.below(6)),
                };
                let bits = self.random.pick(&[1, 2, 3, 5, 5, 5, 8, 16, 17, 32]);
                command::mapd(device, itt, bits)
            }
            // QEMU: also looks at the size of one that unmaps. Here it is zero.
            8..10 => command::unmapd(device),
            10..16 => command::mapc(collection, processor),
            16..18 => command::unmapc(collection),
            18..36 => command::mapti(device, event, self.lpi(), collection),
            36..40 => command::mapi(device, self.lpi(), collection),
            40..52 => command::movi(device, event, collection),
            52..72 => command::int(device, event),
            72..78 => command::clear(device, event),
            78..84 => command::discard(device, event),
            84..87 => command::inv(device, event),
            87..89 => command::invall(collection),
            89..91 => command::sync(processor),
            91..96 => command::movall(processor, self.processor()),
            _ => std::array::from_fn(|_| self.random.next()),
        }
    }

    fn device(&mut self) -> u32 {
        match self.random.below(16) {
            0 => self.random.pick(&[511, 512, 2047, 2048, 8191, 8192, 0xffff]),
            1 => self.random.pick(&[0x1_0000, 0x1_0001, u32::MAX]),
            _ => self.random.below(4),
        }
    }

    fn event(&mut self) -> u32 {
        match self.random.below(16) {
            0 => self.random.pick(&[31, 32, 33, 255, 0xffff, 0x1_0000, u32::MAX]),
            _ => self.random.below(5),
        }
    }

    fn collection(&mut self) -> u16 {
        match self.random.below(16) {
            0 => self.random.pick(&[511, 512, 2048, 8191, 8192, u16::MAX]),
            _ => self.random.below(5) as u16,
        }
    }

    fn processor(&mut self) -> u32 {
        match self.random.below(16) {
            0 => self.random.pick(&[CPUS, 0xffff]),
            _ => self.random.below(CPUS),
        }
    }

    fn lpi(&mut self) -> u32 {
        match self.random.below(16) {
            0 => self.random.pick(&[0, 31, 1023, 8191, 0x1_0000, u32::MAX]),
            _ => LPIS.start + self.random.below(40),
        }
    }

    /// QEMU: a store through qtest is one of requester 0. A CPU's own store is none of a device with us, so the message
    /// comes by the other way.
    fn message(&mut self) {
        let event = self.event();
        self.note(format!("message {event:#x}"));
        self.qemu.write(TRANSLATER, 4, event.into());
        self.ours.its.signal(DeviceId(0), EventId(event));
    }

    /// Disabled for a moment, writes to what is frozen, and to what cannot be written.
    fn registers(&mut self) {
        match self.random.below(4) {
            0 => {
                self.write_both(GITS + CTLR, 4, 0);
                self.compare_registers();
                let command = self.random_command();
                self.put(command);
                self.write_both(GITS + CWRITER, 8, self.at);
                self.compare_registers();
                self.write_both(GITS + CTLR, 4, 1);
            }
            1 => {
                let value = self.random.next();
                let offset = BASER + u64::from(self.random.below(8)) * 8;
                self.write_both(GITS + offset, 8, value);
                self.write_both(GITS + CBASER, 8, value);
            }
            2 => {
                let offset = self
                    .random
                    .pick(&[0x0004, 0x0008, 0x000c, 0x0010, 0x0040, 0x0048, 0x0200, 0xffe8]);
                self.write_both(GITS + offset, 4, u64::MAX);
                self.compare_read(GITS + offset.max(0x10), 4);
            }
            _ => {
                for offset in [
                    CBASER,
                    CBASER + 4,
                    CWRITER,
                    CWRITER + 4,
                    CREADR + 4,
                    BASER,
                    BASER + 4,
                    BASER + 12,
                ] {
                    self.compare_read(GITS + offset, 4);
                }
            }
        }
    }

    /// The guest takes a page of the second level away, or puts it back, or elsewhere.
    fn level_1_entry(&mut self) {
        let (index, table) = self.random.pick(&[(0, DEVICE_TABLE), (1, COLLECTION_TABLE)]);
        if self.read_ours(GITS + BASER + index * 8, 8) & INDIRECT == 0 {
            return;
        }
        let page = match self.random.below(8) {
            0 => 0,
            1 => VALID | NOWHERE,
            _ => VALID | (LEVEL_2 + index * 0x1_0000),
        };
        let entry = self.random.pick(&[0_u64, 0, 1]);
        self.write_memory(table + entry * 8, &page.to_le_bytes());
        // What is remembered of the table is forgotten with the next command that changes one.
        self.command(command::mapc(3, 3));
    }

    /// A position beyond the queue, and then the right one again.
    fn position(&mut self) {
        let beyond = self.queue_size + u64::from(self.random.below(4)) * 32;
        self.write_both(GITS + CWRITER, 8, beyond);
        self.compare_registers();
        self.write_both(GITS + CWRITER, 8, self.at);
    }

    // What is compared.

    fn compare_registers(&mut self) {
        for offset in [CBASER, CWRITER, CREADR].into_iter().chain((BASER..0x140).step_by(8)) {
            self.compare_read(GITS + offset, 8);
        }
        // QEMU: says Quiescent while it is enabled, too.
        let (qemu, ours) = (self.read_qemu(GITS + CTLR, 4), self.read_ours(GITS + CTLR, 4));
        let quiescent = if ours & 1 != 0 { QUIESCENT } else { 0 };
        self.compare("GITS_CTLR", qemu & !quiescent, ours);
    }

    fn compare_pending(&mut self) {
        // Ours are in the table when the state is taken.
        self.ours.gic.save();
        let mut all = [BTreeSet::new(), BTreeSet::new()];
        for cpu in 0..CPUS {
            let address = PENDING_TABLES + u64::from(cpu) * 0x1_0000 + u64::from(LPIS.start / 8);
            let mut ours = vec![0; LPIS.len() / 8];
            self.ours.memory.read_slice(&mut ours, GuestAddress(address)).unwrap();
            let qemu = self.qemu.read_bytes(address, ours.len());
            for (all, bytes) in all.iter_mut().zip([&qemu, &ours]) {
                let pending = LPIS.filter(|lpi| {
                    let bit = lpi - LPIS.start;
                    bytes[bit as usize / 8] >> (bit % 8) & 1 != 0
                });
                all.extend(pending.map(|lpi| (cpu, lpi)));
            }
        }
        let [qemu, ours] = all;
        self.counts.reads += CPUS;
        if qemu != ours {
            let only = |one: &BTreeSet<_>, other| one.difference(other).copied().collect::<Vec<(u32, u32)>>();
            self.fail(&format!(
                "pending with QEMU only {:?}, with ours only {:?}; before {:?}",
                only(&qemu, &ours),
                only(&ours, &qemu),
                self.pending
            ));
        }
        if ours != self.pending {
            self.counts.pending += 1;
            self.pending = ours;
        }
    }

    fn compare_read(&mut self, address: u64, width: usize) {
        let (qemu, ours) = (self.read_qemu(address, width), self.read_ours(address, width));
        self.compare(&format!("{address:#x}"), qemu, ours);
    }

    fn compare(&mut self, what: &str, qemu: u64, ours: u64) {
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
            "{what}\nat step {} of DEVISOR_SEED={}\n{:x?}",
            self.counts.steps,
            self.seed,
            self.ours.its.save()
        );
    }

    // How the two are reached.

    /// Puts a command into the queue, and says so only with the next one that is carried out.
    fn put(&mut self, command: Command) {
        self.note(format!("command at {:#x}: {command:x?}", self.at));
        let bytes: Vec<u8> = command.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write_memory(QUEUE + self.at, &bytes);
        self.at = (self.at + 32) % self.queue_size;
    }

    fn command(&mut self, command: Command) {
        let refused = self.ours.its.refused_commands();
        self.put(command);
        self.write_both(GITS + CWRITER, 8, self.at);
        self.counts.refused += (self.ours.its.refused_commands() - refused) as u32;
        self.counts.stalls += (self.read_ours(GITS + CREADR, 8) & STALLED) as u32;
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) {
        self.qemu.write_bytes(address, data);
        self.ours.memory.write_slice(data, GuestAddress(address)).unwrap();
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
        read_le(&data)
    }

    fn face(&self, address: u64) -> (&dyn BusDevice, u64) {
        match address.checked_sub(GICR) {
            None => (&self.ours.frame, address - GITS),
            Some(offset) => {
                let cpu = (offset / GICR_SIZE) as usize;
                (&self.ours.redistributors[cpu], offset % GICR_SIZE)
            }
        }
    }

    fn read_qemu(&mut self, address: u64, width: usize) -> u64 {
        self.qemu.read(address, width)
    }

    fn note(&mut self, line: String) {
        if self.log.len() == 60 {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }
}

/// An interrupt translation table.
fn itt(number: u32) -> u64 {
    ITTS + u64::from(number) * ITT_SIZE
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
