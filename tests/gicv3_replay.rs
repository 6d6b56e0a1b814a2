//! Recordings of QEMU's GICv3 and ITS, asked of ours: every read and every interrupt taken is the same.
//!
//! Who recorded what is in `tests/recordings/README.md`. What differs by design is named where it is handled: search for
//! "QEMU:". All of it was seen with QEMU 7.2.
//!
//! `DEVISOR_RECORDING` names a file to replay in place of those in the tree. A failure prints the last events.

#![cfg(feature = "irqchip")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use devisor::{
    backends::irqchip::{
        CpuId, Ppi, Spi,
        gicv3::{
            CpuInterface, CpuOutputs, Distributor, GicV3, GicV3Config, LevelLine, LpiSupport, RedistributorRegion,
            SysReg,
        },
        its::{ControlFrame, DeviceId, EventId, Its, ItsConfig},
    },
    bus::{BusDevice, read_le, write_le},
    interrupt::{Interrupt, LevelInterrupt, level_from_fn},
};
use flate2::read::GzDecoder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// SPIs that GICD_TYPER tells of on QEMU's `virt`.
const SPIS: u32 = 224;
const REDISTRIBUTOR: u64 = 0x2_0000;
/// The guest's RAM, and some that it does not know of (see `tests/guest/gicv3_trace.py`).
const RAM: [(GuestAddress, usize); 2] = [
    (GuestAddress(0x4000_0000), 256 << 20),
    (GuestAddress(0x6000_0000), 1 << 20),
];
/// The state moves to another GIC and another ITS after every so many events.
const MIGRATION: usize = 97;

#[test]
fn a_program_at_random_gets_the_answers_that_qemu_gave_it() {
    let mut all = Counts::default();
    for cpus in [1, 2, 4] {
        all.add(&replay(&format!("arm64-{cpus}-cpus"), usize::MAX));
    }
    println!("at random: {all}");
    assert!(all.reads > 10_000 && all.taken > 2_000 && all.outputs > 20_000, "{all}");
    assert!(all.lpis > 100 && all.migrations == 0, "{all}");
}

/// Those of the CPU interface that are read and written, read, and written, where there are 32 priorities.
const READ_AND_WRITTEN: [&str; 9] = [
    "PMR", "BPR0", "BPR1", "AP0R0", "AP1R0", "CTLR", "SRE", "IGRPEN0", "IGRPEN1",
];
const READ: [&str; 5] = ["IAR0", "IAR1", "HPPIR0", "HPPIR1", "RPR"];
const WRITTEN: [&str; 6] = ["EOIR0", "EOIR1", "DIR", "SGI0R", "SGI1R", "ASGI1R"];
const CBPR: u64 = 1 << 0;
const EOI_MODE: u64 = 1 << 1;

#[test]
fn the_programs_at_random_reach_every_register_of_the_cpu_interface_in_every_mode() {
    for cpus in [1, 2, 4] {
        let name = format!("arm64-{cpus}-cpus");
        // ICC_CTLR_EL1 of each CPU, as it was last read: the program reads it before and after it writes it.
        let mut controls = BTreeMap::new();
        // Which was read or written, and in which mode.
        let mut found = BTreeSet::new();
        let lines = recording(&name);
        for line in &lines[1..] {
            let words: Vec<&str> = line.split(' ').collect();
            let Some(&[kind, cpu, register]) = words.first_chunk() else {
                continue;
            };
            if !["sr", "sw", "sru", "swu"].contains(&kind) {
                continue;
            }
            let control = controls.entry(cpu).or_insert(0);
            if (kind, register) == ("sr", "CTLR") {
                *control = hex(words[3]) & (CBPR | EOI_MODE);
            }
            found.insert((kind, register, *control));
        }
        let reads = [&READ_AND_WRITTEN[..], &READ].concat();
        let writes = [&READ_AND_WRITTEN[..], &WRITTEN].concat();
        let accesses = reads.iter().map(|register| ("sr", *register));
        let accesses: Vec<_> = accesses
            .chain(writes.iter().map(|register| ("sw", *register)))
            .collect();
        for &(kind, register) in &accesses {
            let modes: &[u64] = match (kind, register) {
                // Once, when a CPU starts.
                ("sw", "SRE") => &[0],
                // While EOImode is clear, what this does is UNPREDICTABLE.
                ("sw", "DIR") => &[EOI_MODE, EOI_MODE | CBPR],
                _ => &[0, CBPR, EOI_MODE, EOI_MODE | CBPR],
            };
            for mode in modes {
                let access = (kind, register, *mode);
                assert!(found.contains(&access), "{name} never does {access:?}");
            }
        }
        // None is compared that is missing above.
        let undefined = [("sru", "AP0R1"), ("sru", "AP1R3")];
        let known: BTreeSet<_> = accesses.into_iter().chain(undefined).collect();
        let there: BTreeSet<_> = found.iter().map(|&(kind, register, _)| (kind, register)).collect();
        assert_eq!(there, known, "{name}");
    }
}

#[test]
fn a_program_at_random_does_not_see_a_migration() {
    let mut all = Counts::default();
    for cpus in [1, 2, 4] {
        all.add(&replay(&format!("arm64-{cpus}-cpus"), MIGRATION));
    }
    println!("at random, migrated: {all}");
    assert!(all.migrations > 500, "{all}");
}

#[test]
fn linux_gets_the_answers_that_qemu_gave_it() {
    for (cpus, taken) in [(1, 1_000), (2, 3_000), (4, 6_000)] {
        let counts = replay(&format!("linux-{cpus}-cpus"), usize::MAX);
        println!("Linux on {cpus} CPUs: {counts}");
        assert!(
            counts.taken > taken && counts.reads > taken && counts.outputs > taken / 10,
            "{counts}"
        );
        assert!(counts.lpis > 50, "{counts}");
    }
}

#[test]
fn linux_does_not_see_a_migration() {
    let counts = replay("linux-4-cpus", MIGRATION);
    println!("Linux on 4 CPUs, migrated: {counts}");
    assert!(counts.migrations > 200, "{counts}");
}

/// What was compared.
#[derive(Default)]
struct Counts {
    events: usize,
    /// Reads of which all bits were compared, and those of which none or not all were.
    reads: usize,
    partly: usize,
    /// Acknowledges that took an interrupt, and those among them that took an LPI.
    taken: usize,
    lpis: usize,
    /// Comparisons of what CPUs are told.
    outputs: usize,
    /// Accesses that are undefined.
    undefined: usize,
    migrations: usize,
}

impl Counts {
    fn compare(&mut self, ours: u64, theirs: u64, determined: u64) -> Result<(), String> {
        match determined {
            u64::MAX => self.reads += 1,
            _ => self.partly += 1,
        }
        match (ours ^ theirs) & determined {
            0 => Ok(()),
            _ => Err(format!("ours is {ours:x}")),
        }
    }

    fn add(&mut self, other: &Self) {
        let Self {
            events,
            reads,
            partly,
            taken,
            lpis,
            outputs,
            undefined,
            migrations,
        } = self;
        *events += other.events;
        *reads += other.reads;
        *partly += other.partly;
        *taken += other.taken;
        *lpis += other.lpis;
        *outputs += other.outputs;
        *undefined += other.undefined;
        *migrations += other.migrations;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            events,
            reads,
            partly,
            taken,
            lpis,
            outputs,
            undefined,
            migrations,
        } = self;
        write!(
            f,
            "{events} events: {reads} reads equal and {partly} more but for what is of the implementation, {taken} \
             interrupts taken, {lpis} of them LPIs, {outputs} looks at what CPUs are told, {undefined} undefined accesses, \
             {migrations} migrations"
        )
    }
}

/// A GIC with its ITS, memory and all that surrounds them.
struct Machine {
    cpus: u32,
    memory: Arc<GuestMemoryMmap>,
    gic: GicV3,
    its: Its,
    distributor: Distributor,
    redistributors: RedistributorRegion,
    control_frame: ControlFrame,
    interfaces: Vec<CpuInterface>,
    /// Of each CPU: whether it is told of an FIQ, and of an IRQ.
    outputs: Vec<[Arc<AtomicBool>; 2]>,
    ppis: Vec<LevelLine>,
    spis: Vec<LevelLine>,
}

impl Machine {
    fn new(cpus: u32, memory: Arc<GuestMemoryMmap>) -> Self {
        let config = GicV3Config {
            spis: SPIS,
            one_of_n: false,
            message_based_spis: false,
            lpis: LpiSupport::Its,
            ..GicV3Config::new(cpus)
        };
        let outputs: Vec<[Arc<AtomicBool>; 2]> = (0..cpus).map(|_| Default::default()).collect();
        let pin = |up: &Arc<AtomicBool>| {
            let up = Arc::clone(up);
            Box::new(level_from_fn(move |level| {
                up.store(level, SeqCst);
                Ok(())
            }))
        };
        let hooked = outputs.iter().map(|[fiq, irq]| CpuOutputs {
            irq: pin(irq),
            fiq: pin(fiq),
        });
        let gic = GicV3::with_lpis(config, hooked.collect(), Arc::clone(&memory)).unwrap();
        let its = Its::new(ItsConfig::default(), &gic, Arc::clone(&memory)).unwrap();
        Self {
            cpus,
            distributor: gic.distributor(),
            redistributors: gic.redistributors(0).unwrap(),
            control_frame: its.control_frame(),
            interfaces: (0..cpus).map(|cpu| gic.cpu_interface(CpuId(cpu)).unwrap()).collect(),
            ppis: (0..cpus * 16)
                .map(|line| gic.ppi_line(CpuId(line / 16), Ppi(line % 16)).unwrap())
                .collect(),
            spis: (0..SPIS).map(|spi| gic.level_line(Spi(spi)).unwrap()).collect(),
            outputs,
            memory,
            gic,
            its,
        }
    }

    /// Others in the place of these, with their state, and with the lines that devices drive.
    fn migrated(&self) -> Self {
        let (state, its) = (self.gic.save(), self.its.save());
        let new = Self::new(self.cpus, Arc::clone(&self.memory));
        new.gic.restore(&state).unwrap();
        new.its.restore(&its).unwrap();
        let ppis = state.cpus.iter().flat_map(|cpu| &cpu.private[16..]);
        let inputs = ppis.chain(state.spis.iter().map(|spi| &spi.state));
        for (line, _) in new
            .ppis
            .iter()
            .chain(&new.spis)
            .zip(inputs)
            .filter(|(_, input)| input.line)
        {
            line.trigger().unwrap();
        }
        assert_eq!(new.gic.save(), state);
        assert_eq!(new.its.save(), its);
        new
    }

    /// What all CPUs are told: a bit each for FIQ, and for IRQ.
    fn told(&self) -> [u64; 2] {
        [0, 1].map(|kind| {
            let up = |cpu: &[Arc<AtomicBool>; 2]| u64::from(cpu[kind].load(SeqCst));
            self.outputs.iter().rev().fold(0, |all, cpu| all << 1 | up(cpu))
        })
    }

    fn frame(&self, frame: &str) -> &dyn BusDevice {
        match frame {
            "d" => &self.distributor,
            "r" => &self.redistributors,
            _ => &self.control_frame,
        }
    }
}

/// The bits of a register that an architecture and a configuration determine, so that all models answer alike.
fn determined(frame: &str, offset: u64, theirs: u64) -> u64 {
    match (frame, offset % REDISTRIBUTOR) {
        // QEMU: says that it is Arm's. GICD_IIDR, GICR_IIDR and GITS_IIDR name who made it, and PIDR2 only the
        // architecture in bits 7:4.
        ("d", 0x0008) | ("r", 0x0004) | ("i", 0x0004) => 0,
        (_, 0xffe8) => 0xf0,
        // GICR_PENDBASER.PTZ. QEMU: reads as it was written; it is RAZ.
        ("r", 0x0078) => !(1 << 62),
        // GITS_CTLR.Quiescent has a meaning while the ITS is disabled. QEMU: is set otherwise, too.
        ("i", 0x0000) if theirs & 1 != 0 => !(1 << 31),
        // GITS_TYPER.ITT_entry_size. QEMU: 12 bytes, and ours has 8.
        ("i", 0x0008) => !0xf0,
        _ => !0,
    }
}

fn sysreg(name: &str) -> SysReg {
    match name {
        "PMR" => SysReg::ICC_PMR_EL1,
        "IAR0" => SysReg::ICC_IAR0_EL1,
        "IAR1" => SysReg::ICC_IAR1_EL1,
        "EOIR0" => SysReg::ICC_EOIR0_EL1,
        "EOIR1" => SysReg::ICC_EOIR1_EL1,
        "HPPIR0" => SysReg::ICC_HPPIR0_EL1,
        "HPPIR1" => SysReg::ICC_HPPIR1_EL1,
        "BPR0" => SysReg::ICC_BPR0_EL1,
        "BPR1" => SysReg::ICC_BPR1_EL1,
        "DIR" => SysReg::ICC_DIR_EL1,
        "RPR" => SysReg::ICC_RPR_EL1,
        "CTLR" => SysReg::ICC_CTLR_EL1,
        "SRE" => SysReg::ICC_SRE_EL1,
        "IGRPEN0" => SysReg::ICC_IGRPEN0_EL1,
        "IGRPEN1" => SysReg::ICC_IGRPEN1_EL1,
        "SGI0R" => SysReg::ICC_SGI0R_EL1,
        "SGI1R" => SysReg::ICC_SGI1R_EL1,
        "ASGI1R" => SysReg::ICC_ASGI1R_EL1,
        _ => {
            let (group, number) = name[2..]
                .split_once('R')
                .unwrap_or_else(|| panic!("no register {name}"));
            let number: usize = number.parse().unwrap();
            match group {
                "0" => SysReg::ICC_AP0R_EL1[number],
                _ => SysReg::ICC_AP1R_EL1[number],
            }
        }
    }
}

/// The lines of a recording.
fn recording(name: &str) -> Vec<String> {
    let path = match std::env::var_os("DEVISOR_RECORDING") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/recordings/{name}.txt.gz")),
    };
    let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if path.extension().is_some_and(|extension| extension == "gz") {
        BufReader::new(GzDecoder::new(file))
            .lines()
            .map(Result::unwrap)
            .collect()
    } else {
        BufReader::new(file).lines().map(Result::unwrap).collect()
    }
}

/// Asks all that a recording asks. The state migrates after every `migration` events.
fn replay(name: &str, migration: usize) -> Counts {
    let lines = recording(name);
    let cpus = lines[0].strip_prefix("cpus ").expect("a recording");
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&RAM).unwrap());
    let mut machine = Machine::new(hex(cpus) as u32, memory);
    let mut counts = Counts::default();
    for (number, line) in lines.iter().enumerate().skip(1) {
        counts.events += 1;
        if let Err(difference) = machine.event(line, &mut counts) {
            let before = lines[number.saturating_sub(40)..number].join("\n");
            panic!("{name}, line {}: {difference}\n{before}\n{line}   <- here", number + 1);
        }
        if number % migration == migration - 1 {
            machine = machine.migrated();
            counts.migrations += 1;
        }
    }
    counts
}

fn hex(word: &str) -> u64 {
    u64::from_str_radix(word, 16).unwrap_or_else(|_| panic!("{word:?} is no number"))
}

impl Machine {
    fn event(&self, line: &str, counts: &mut Counts) -> Result<(), String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| hex(words[index]);
        match words[0] {
            "dr" | "ir" => self.read(&words[0][..1], number(1), number(2), number(3), counts)?,
            "rr" => self.read("r", REDISTRIBUTOR * number(1) + number(2), number(3), number(4), counts)?,
            "dw" | "iw" => self.write(&words[0][..1], number(1), number(2), number(3)),
            "rw" => self.write("r", REDISTRIBUTOR * number(1) + number(2), number(3), number(4)),
            "sr" => {
                let ours = self.interfaces[number(1) as usize].read_sysreg(sysreg(words[2]));
                let ours = ours.ok_or("ours is undefined")?;
                // ICC_CTLR_EL1.IDbits. QEMU: 24 bits of INTID; 16 are all that an LPI has there and with us.
                let determined = if words[2] == "CTLR" { !(0b111 << 11) } else { !0 };
                counts.compare(ours, number(3), determined)?;
                if words[2].starts_with("IAR") && !(1020..1024).contains(&number(3)) {
                    counts.taken += 1;
                    counts.lpis += usize::from(number(3) >= 8192);
                }
            }
            "sw" => self.interfaces[number(1) as usize]
                .write_sysreg(sysreg(words[2]), number(3))
                .ok_or("ours is undefined")?,
            "sru" | "swu" => {
                counts.undefined += 1;
                let interface = &self.interfaces[number(1) as usize];
                let defined = match words.get(3) {
                    None => interface.read_sysreg(sysreg(words[2])).is_some(),
                    Some(value) => interface.write_sysreg(sysreg(words[2]), hex(value)).is_some(),
                };
                if defined {
                    return Err("ours is defined".into());
                }
            }
            "l" => set(&self.spis[number(1) as usize - 32], number(2)),
            "p" => set(&self.ppis[(16 * number(1) + number(2)) as usize - 16], number(3)),
            "v" => self.its.signal(DeviceId(number(1) as u32), EventId(number(2) as u32)),
            "c" => self.gic.reset_cpu_interface(CpuId(number(1) as u32)).unwrap(),
            "m" => self
                .memory
                .write_obj(number(2).to_le(), GuestAddress(number(1)))
                .unwrap(),
            "mf" => {
                let bytes = vec![number(3) as u8; number(2) as usize];
                self.memory.write_slice(&bytes, GuestAddress(number(1))).unwrap();
            }
            "o" => {
                counts.outputs += 1;
                let told = self.told();
                if told != [number(1), number(2)] {
                    return Err(format!("ours tells {told:x?}"));
                }
            }
            "i" => {
                counts.outputs += 1;
                let told = self.told().map(|all| all >> number(1) & 1);
                if told != [number(2), number(3)] {
                    return Err(format!("ours tells {told:x?}"));
                }
            }
            "ti" | "tf" => {
                let told = self.told()[usize::from(words[0] == "ti")] >> number(1) & 1;
                if told != 1 {
                    return Err("ours tells nothing".into());
                }
            }
            _ => panic!("{line:?} is no event"),
        }
        Ok(())
    }

    fn read(&self, frame: &str, offset: u64, size: u64, theirs: u64, counts: &mut Counts) -> Result<(), String> {
        let mut data = [0; 8];
        let data = &mut data[..size as usize];
        self.frame(frame).read(offset, data);
        counts.compare(read_le(data), theirs, determined(frame, offset, theirs))
    }

    fn write(&self, frame: &str, offset: u64, size: u64, value: u64) {
        let mut data = [0; 8];
        let data = &mut data[..size as usize];
        write_le(data, value);
        self.frame(frame).write(offset, data);
    }
}

fn set(line: &LevelLine, level: u64) {
    match level {
        0 => line.clear(),
        _ => line.trigger(),
    }
    .unwrap();
}
