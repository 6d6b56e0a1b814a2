//! What an edge costs from a device's line to a vector that is pending in a software local APIC, with the message in
//! between and the wake line of the vCPU, and the kernel's in the same run.
//!
//! An edge to a vCPU that has looked must wake it, so a raise alone is measured over many machines: each of their vCPUs is
//! woken once, and what makes them look again is not timed. None of it may grow with the pins or the CPUs.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use devisor::{
    backends::irqchip::{
        CpuId,
        ioapic::{EdgeLine, IoApic, IoApicConfig, LevelLine, Pin},
        lapic::{ApicId, LocalApic, LocalApicParts, LocalApics, LocalApicsConfig},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt},
    time::ManualClock,
};

criterion_group!(benches, edge, level, kernel, side_by_side);
criterion_main!(benches);

/// Machines that are raised in turn: enough to hide what reading the time costs, few enough to stay in a cache.
const MACHINES: usize = 64;
const VECTOR: u32 = 0x41;
/// Pins and CPUs.
const SIZES: [(u32, u32); 4] = [(24, 1), (240, 1), (24, 8), (24, 64)];
const CPUS: [u32; 3] = [1, 8, 64];

/// How the entry of a pin names the CPU.
#[derive(Clone, Copy)]
enum Destination {
    Physical,
    Logical,
    LowestPriority,
}

impl Destination {
    const ALL: [Self; 3] = [Self::Physical, Self::Logical, Self::LowestPriority];

    fn name(self) -> &'static str {
        match self {
            Self::Physical => "physical",
            Self::Logical => "logical",
            Self::LowestPriority => "lowest priority",
        }
    }

    /// The fields of the entry.
    fn entry(self) -> u32 {
        match self {
            Self::Physical => 0,
            Self::Logical => 1 << 11,
            Self::LowestPriority => 1 << 11 | 1 << 8,
        }
    }
}

struct Machine {
    ioapic: IoApic,
    /// Of the CPU that the last pin interrupts: the last one.
    apic: LocalApic,
    pin: Pin,
}

impl Machine {
    fn new(pins: u32, cpus: u32, level: bool) -> Self {
        Self::with(pins, cpus, level, Destination::Physical)
    }

    fn with(pins: u32, cpus: u32, level: bool, destination: Destination) -> Self {
        let parts = (0..cpus).map(|id| LocalApicParts {
            id: ApicId(id),
            wake: Box::new(NoInterrupt),
            alarm: Box::new(()),
        });
        let clock = Arc::new(ManualClock::default());
        let apics = LocalApics::new(LocalApicsConfig::default(), clock, parts.collect()).unwrap();
        let apic = apics.cpu(CpuId(cpus - 1)).unwrap();
        let mut state = apic.save();
        (state.svr, state.waits_for_start_up) = (0x1ff, false);
        apic.restore(&state).unwrap();
        // The last one has a logical ID of the flat model, and no other.
        apic.write(0x0d0, &(1_u32 << 24).to_le_bytes());
        let named = match destination {
            Destination::Physical => cpus - 1,
            _ => 1,
        };

        let config = IoApicConfig {
            pins,
            ..IoApicConfig::default()
        };
        let ioapic = IoApic::new(config, apics).unwrap();
        let pin = Pin(pins - 1);
        for (index, value) in [
            (0x11 + 2 * pin.0, named << 24),
            (0x10 + 2 * pin.0, u32::from(level) << 15 | destination.entry() | VECTOR),
        ] {
            ioapic.write(0x00, &index.to_le_bytes());
            ioapic.write(0x10, &value.to_le_bytes());
        }
        let machine = Self { ioapic, apic, pin };
        machine.look();
        machine
    }

    fn look(&self) {
        assert!(!self.apic.needs_attention());
    }

    fn edge(&self) -> EdgeLine {
        self.ioapic.edge_line(self.pin).unwrap()
    }

    fn level(&self) -> LevelLine {
        self.ioapic.level_line(self.pin).unwrap()
    }

    /// The guest takes the interrupt and finishes it.
    fn serve(&self) {
        assert!(self.apic.acknowledge().is_some());
        self.apic.write(0x0b0, &[0; 4]);
    }
}

/// How long `raises` of `raise` take, with `restore` between two of the same machine, which is not timed.
fn timed<L>(raises: u64, lines: &[L], raise: impl Fn(&L), restore: impl Fn(usize, &L)) -> Duration {
    let mut time = Duration::ZERO;
    let mut left = raises as usize;
    while left > 0 {
        let round = &lines[..left.min(lines.len())];
        let start = Instant::now();
        round.iter().for_each(&raise);
        time += start.elapsed();
        round.iter().enumerate().for_each(|(at, line)| restore(at, line));
        left -= round.len();
    }
    time
}

fn edge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ioapic/edge to vector pending");
    for (pins, cpus) in SIZES {
        let machines: Vec<_> = (0..MACHINES).map(|_| Machine::new(pins, cpus, false)).collect();
        let lines: Vec<_> = machines.iter().map(Machine::edge).collect();
        group.bench_function(
            BenchmarkId::from_parameter(format!("{pins} pins, {cpus} CPUs")),
            |bencher| {
                let raise = |line: &EdgeLine| black_box(line).trigger().unwrap();
                bencher.iter_custom(|raises| timed(raises, &lines, raise, |at, _| machines[at].serve()));
            },
        );
    }
    group.finish();

    for destination in [Destination::Logical, Destination::LowestPriority] {
        let mut group = criterion.benchmark_group(format!("ioapic/edge to vector pending, {}", destination.name()));
        for cpus in CPUS {
            let machines: Vec<_> = (0..MACHINES)
                .map(|_| Machine::with(24, cpus, false, destination))
                .collect();
            let lines: Vec<_> = machines.iter().map(Machine::edge).collect();
            group.bench_function(BenchmarkId::new("cpus", cpus), |bencher| {
                let raise = |line: &EdgeLine| black_box(line).trigger().unwrap();
                bencher.iter_custom(|raises| timed(raises, &lines, raise, |at, _| machines[at].serve()));
            });
        }
        group.finish();
    }

    // Without a wake-up: the vCPU has not looked since the last one.
    let machine = Machine::new(24, 1, false);
    let line = machine.edge();
    criterion.bench_function("ioapic/edge to vector that is pending already", |bencher| {
        bencher.iter(|| black_box(&line).trigger().unwrap());
    });
}

fn level(criterion: &mut Criterion) {
    let machines: Vec<_> = (0..MACHINES).map(|_| Machine::new(24, 1, true)).collect();
    let lines: Vec<_> = machines.iter().map(Machine::level).collect();
    criterion.bench_function("ioapic/level to vector pending", |bencher| {
        let raise = |line: &LevelLine| black_box(line).trigger().unwrap();
        bencher.iter_custom(|raises| {
            timed(raises, &lines, raise, |at, line| {
                line.clear().unwrap();
                machines[at].serve();
                machines[at]
                    .ioapic
                    .eoi(devisor::backends::irqchip::Vector(VECTOR as u8));
            })
        });
    });
}

/// A VM whose vCPU does not run, with a pin of the kernel's IOAPIC that is open and leads to its local APIC.
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
mod kvm {
    use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
    use kvm_ioctls::{Error, Kvm, VcpuFd, VmFd};

    use super::VECTOR;

    pub const PIN: u32 = 20;

    pub struct Machine {
        pub vm: VmFd,
        pub vcpu: VcpuFd,
    }

    impl Machine {
        pub fn new() -> Result<Self, Error> {
            let vm = Kvm::new()?.create_vm()?;
            vm.create_irq_chip()?;
            let vcpu = vm.create_vcpu(0)?;
            let mut lapic = vcpu.get_lapic()?;
            lapic.regs[0xf1] = 1;
            vcpu.set_lapic(&lapic)?;
            let mut chip = kvm_irqchip {
                chip_id: KVM_IRQCHIP_IOAPIC,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)?;
            // SAFETY: the kernel has filled in the IOAPIC, as asked; every bit pattern is an entry.
            unsafe { chip.chip.ioapic.redirtbl[PIN as usize].bits = VECTOR.into() };
            vm.set_irqchip(&chip)?;
            Ok(Self { vm, vcpu })
        }

        pub fn set(&self, up: bool) {
            self.vm.set_irq_line(std::hint::black_box(PIN), up).unwrap();
        }

        pub fn is_pending(&self) -> bool {
            let byte = VECTOR as usize / 32 * 16 + VECTOR as usize % 32 / 8;
            self.vcpu.get_lapic().unwrap().regs[0x200 + byte] >> (VECTOR % 8) & 1 != 0
        }
    }
}

#[cfg(not(all(feature = "kvm", target_os = "linux", target_arch = "x86_64")))]
mod kvm {
    pub struct Machine;

    impl Machine {
        pub fn new() -> Result<Self, &'static str> {
            Err("no KVM in this build")
        }

        pub fn set(&self, _: bool) {}

        pub fn is_pending(&self) -> bool {
            true
        }
    }
}

fn kernels() -> Option<kvm::Machine> {
    kvm::Machine::new()
        .inspect_err(|error| println!("skipped: no VM with an IOAPIC: {error}"))
        .ok()
}

/// KVM_IRQ_LINE to the kernel's IOAPIC and local APIC: the rise alone, and the pulse, which takes two calls.
fn kernel(criterion: &mut Criterion) {
    let Some(machine) = kernels() else { return };
    criterion.bench_function("kvm/KVM_IRQ_LINE to vector pending", |bencher| {
        bencher.iter_custom(|raises| timed(raises, &[()], |()| machine.set(true), |_, ()| machine.set(false)));
    });
    criterion.bench_function("kvm/KVM_IRQ_LINE up and down", |bencher| {
        bencher.iter(|| (machine.set(true), machine.set(false)));
    });
    machine.set(true);
    assert!(machine.is_pending());
}

/// Prints ours beside the kernel's, in turns, so that a machine that changes its pace in between does not decide. The fastest
/// round is the one that nobody else's work got into.
fn side_by_side(_: &mut Criterion) {
    const ROUNDS: usize = 501;
    let (mut names, mut ours) = (vec![], vec![]);
    for destination in Destination::ALL {
        let sizes = match destination {
            Destination::Physical => SIZES.to_vec(),
            _ => CPUS.map(|cpus| (24, cpus)).to_vec(),
        };
        for (pins, cpus) in sizes {
            let name = destination.name();
            names.push(format!("edge to vector pending, {name}, {pins} pins, {cpus} CPUs"));
            let machine = |_| Machine::with(pins, cpus, false, destination);
            ours.push((0..MACHINES).map(machine).collect::<Vec<_>>());
        }
    }
    let kernels = kernels();
    let mut rounds = vec![vec![]; ours.len() + 1];
    for _ in 0..ROUNDS {
        for (machines, rounds) in ours.iter().zip(&mut rounds) {
            let lines: Vec<_> = machines.iter().map(Machine::edge).collect();
            let raise = |line: &EdgeLine| black_box(line).trigger().unwrap();
            let time = timed(MACHINES as u64, &lines, raise, |at, _| machines[at].serve());
            rounds.push(time / MACHINES as u32);
        }
        if let (Some(machine), Some(rounds)) = (&kernels, rounds.last_mut()) {
            let time = timed(8, &[()], |()| machine.set(true), |_, ()| machine.set(false));
            rounds.push(time / 8);
        }
    }
    names.push("KVM_IRQ_LINE to vector pending".into());
    for (name, mut rounds) in names.into_iter().zip(rounds) {
        rounds.sort_unstable();
        if let Some(fastest) = rounds.first() {
            let median = rounds[rounds.len() / 2];
            println!("{name}: {fastest:?}, median {median:?} of {ROUNDS} rounds in turns");
        }
    }
}
