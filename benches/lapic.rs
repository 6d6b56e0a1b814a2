//! What a message costs from its sender to a vector that is pending in a local APIC, and the kernel's in the same run.
//!
//! A message to a vCPU that has not looked finds its wake line up; one to a vCPU that has must raise it. The first is
//! measured by itself, the second with the acknowledge and the EOI that make it repeatable. None may grow with the
//! CPUs, whatever the mode of its destination, but for those that it is for.

use std::{hint::black_box, sync::Arc, time::Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{ApicId, LocalApic, LocalApicParts, LocalApics, LocalApicsConfig},
    },
    bus::BusDevice,
    interrupt::{MsiMessage, MsiSink, NoInterrupt, RequesterId},
    time::ManualClock,
};

criterion_group!(benches, message, logical, interprocessor, kernel, side_by_side);
criterion_main!(benches);

const SIZES: [u32; 3] = [1, 8, 64];

/// Local APICs that are enabled, in xAPIC mode.
fn machine(cpus: u32) -> (LocalApics, LocalApic) {
    let parts = (0..cpus).map(|id| LocalApicParts {
        id: ApicId(id),
        wake: Box::new(NoInterrupt),
        alarm: Box::new(()),
    });
    let clock = Arc::new(ManualClock::default());
    let apics = LocalApics::new(LocalApicsConfig::default(), clock, parts.collect()).unwrap();
    for cpu in 0..cpus {
        write(&apics.cpu(CpuId(cpu)).unwrap(), 0x0f0, 0x1ff);
    }
    let first = apics.cpu(CpuId(0)).unwrap();
    (apics, first)
}

fn write(apic: &LocalApic, offset: u64, value: u32) {
    apic.write(offset, &value.to_le_bytes());
}

fn message(criterion: &mut Criterion) {
    let to = MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };
    let mut group = criterion.benchmark_group("lapic/message to vector pending");
    for cpus in SIZES {
        let (apics, _) = machine(cpus);
        group.bench_function(BenchmarkId::new("cpus", cpus), |bencher| {
            bencher.iter(|| apics.send(RequesterId(0), black_box(to)).unwrap());
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("lapic/message, acknowledge, EOI");
    for cpus in SIZES {
        let (apics, apic) = machine(cpus);
        group.bench_function(BenchmarkId::new("cpus", cpus), |bencher| {
            bencher.iter(|| {
                apics.send(RequesterId(0), black_box(to)).unwrap();
                assert!(apic.acknowledge().is_some());
                write(&apic, 0x0b0, 0);
            });
        });
    }
    group.finish();
}

/// What a logical destination and lowest priority add. In xAPIC mode a logical destination is one of 8 bits, and the CPUs
/// beyond those have none; in x2APIC mode it is a cluster of up to 16.
fn logical(criterion: &mut Criterion) {
    for (kind, lowest) in [("logical", false), ("lowest priority", true)] {
        let mut group = criterion.benchmark_group(format!("lapic/{kind} message to vector pending"));
        for cpus in SIZES {
            let (apics, _) = flat(cpus);
            group.bench_function(BenchmarkId::new("cpus", cpus), |bencher| {
                bencher.iter(|| apics.send(RequesterId(0), black_box(to_flat(1, lowest))).unwrap());
            });
        }
        let (apics, _) = flat(8);
        group.bench_function("8 of 8 cpus", |bencher| {
            bencher.iter(|| apics.send(RequesterId(0), black_box(to_flat(0xfe, lowest))).unwrap());
        });
        group.finish();

        let mut group = criterion.benchmark_group(format!("lapic/{kind} IPI of x2APIC mode to vector pending"));
        for cpus in SIZES {
            let cpus = cpus.max(2);
            let sender = x2apic(cpus);
            let command = to_first_of_cluster(cpus, lowest);
            group.bench_function(BenchmarkId::new("cpus", cpus), |bencher| {
                bencher.iter(|| sender.write_msr(0x830, black_box(command)).unwrap());
            });
        }
        group.finish();
    }
}

/// In the flat model: the first eight have a bit each.
fn flat(cpus: u32) -> (LocalApics, LocalApic) {
    let (apics, first) = machine(cpus);
    for cpu in 0..cpus.min(8) {
        write(&apics.cpu(CpuId(cpu)).unwrap(), 0x0d0, 1 << (24 + cpu));
    }
    (apics, first)
}

fn to_flat(destination: u64, lowest: bool) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0004 | destination << 12,
        data: u32::from(lowest) << 8 | 0x41,
    }
}

/// All in x2APIC mode. The second one sends.
fn x2apic(cpus: u32) -> LocalApic {
    let (apics, _) = machine(cpus);
    for cpu in 0..cpus {
        let apic = apics.cpu(CpuId(cpu)).unwrap();
        let base = apic.read_msr(0x1b).unwrap();
        apic.write_msr(0x1b, base | 1 << 10).unwrap();
    }
    apics.cpu(CpuId(1)).unwrap()
}

/// An interrupt command for the first CPU of the last cluster, alone or as the only candidate.
fn to_first_of_cluster(cpus: u32, lowest: bool) -> u64 {
    u64::from((cpus - 1) >> 4 << 16 | 1) << 32 | u64::from(lowest) << 8 | 1 << 11 | 0x41
}

/// From the write to ICR, by a CPU that is not the target.
fn interprocessor(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lapic/IPI to vector pending");
    for cpus in SIZES {
        let (apics, _) = machine(cpus.max(2));
        let sender = apics.cpu(CpuId(1)).unwrap();
        group.bench_function(BenchmarkId::new("cpus", cpus.max(2)), |bencher| {
            bencher.iter(|| write(&sender, 0x300, black_box(0x41)));
        });
    }
    group.finish();
}

/// A VM with the kernel's local APIC, whose vCPU does not run.
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
mod kvm {
    use kvm_bindings::kvm_msi;
    use kvm_ioctls::{Error, Kvm, VcpuFd, VmFd};

    pub struct Machine {
        vm: VmFd,
        vcpu: VcpuFd,
    }

    impl Machine {
        pub fn new() -> Result<Self, Error> {
            let vm = Kvm::new()?.create_vm()?;
            vm.create_irq_chip()?;
            let vcpu = vm.create_vcpu(0)?;
            let mut lapic = vcpu.get_lapic()?;
            lapic.regs[0xf1] = 1;
            vcpu.set_lapic(&lapic)?;
            Ok(Self { vm, vcpu })
        }

        pub fn send(&self) {
            let message = kvm_msi {
                address_lo: 0xfee0_0000,
                data: 0x41,
                ..Default::default()
            };
            self.vm.signal_msi(std::hint::black_box(message)).unwrap();
        }

        pub fn is_pending(&self) -> bool {
            self.vcpu.get_lapic().unwrap().regs[0x220] & 2 != 0
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

        pub fn send(&self) {}

        pub fn is_pending(&self) -> bool {
            true
        }
    }
}

fn kernels() -> Option<kvm::Machine> {
    kvm::Machine::new()
        .inspect_err(|error| println!("skipped: no VM with a local APIC: {error}"))
        .ok()
}

fn kernel(criterion: &mut Criterion) {
    let Some(machine) = kernels() else { return };
    criterion.bench_function("kvm/KVM_SIGNAL_MSI to vector pending", |bencher| {
        bencher.iter(|| machine.send());
    });
    machine.send();
    assert!(machine.is_pending());
}

/// Prints all of them beside each other, in turns, so that a machine that changes its pace in between does not decide. The
/// fastest round is the one that nobody else's work got into.
fn side_by_side(_: &mut Criterion) {
    const ROUNDS: usize = 501;
    const EACH: u32 = 64;
    let to = MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };
    let machines = SIZES.map(|cpus| flat(cpus.max(2)));
    let clusters = SIZES.map(|cpus| (cpus.max(2), x2apic(cpus.max(2))));
    let senders = machines.each_ref().map(|(apics, _)| apics.cpu(CpuId(1)).unwrap());
    let kernel = kernels();
    let mut costs: Vec<(String, Box<dyn Fn() + '_>)> = Vec::new();
    for ((cpus, (apics, apic)), sender) in SIZES.iter().zip(&machines).zip(&senders) {
        let cpus = cpus.max(&2);
        let message = move || apics.send(RequesterId(0), black_box(to)).unwrap();
        costs.push((format!("message to vector pending, {cpus} CPUs"), Box::new(message)));
        let command = move || write(sender, 0x300, black_box(0x41));
        costs.push((format!("IPI to vector pending, {cpus} CPUs"), Box::new(command)));
        let served = move || {
            write(sender, 0x300, black_box(0x41));
            assert!(apic.acknowledge().is_some());
            write(apic, 0x0b0, 0);
        };
        costs.push((format!("IPI, wake-up, acknowledge, EOI, {cpus} CPUs"), Box::new(served)));
        for (kind, lowest) in [("logical", false), ("lowest priority", true)] {
            let to = to_flat(1, lowest);
            let message = move || apics.send(RequesterId(0), black_box(to)).unwrap();
            costs.push((
                format!("{kind} message to vector pending, {cpus} CPUs"),
                Box::new(message),
            ));
        }
    }
    for (cpus, sender) in &clusters {
        for (kind, lowest) in [("logical", false), ("lowest priority", true)] {
            let command = to_first_of_cluster(*cpus, lowest);
            let command = move || sender.write_msr(0x830, black_box(command)).unwrap();
            let name = format!("{kind} IPI of x2APIC mode to vector pending, {cpus} CPUs");
            costs.push((name, Box::new(command)));
        }
    }
    if let Some(kernel) = &kernel {
        costs.push(("KVM_SIGNAL_MSI to vector pending".into(), Box::new(|| kernel.send())));
    }
    let mut rounds = vec![vec![]; costs.len()];
    for _ in 0..ROUNDS {
        for ((_, cost), rounds) in costs.iter().zip(&mut rounds) {
            let start = Instant::now();
            (0..EACH).for_each(|_| cost());
            rounds.push(start.elapsed() / EACH);
        }
    }
    for ((name, _), mut rounds) in costs.iter().zip(rounds) {
        rounds.sort_unstable();
        let (fastest, median) = (rounds[0], rounds[rounds.len() / 2]);
        println!("{name}: {fastest:?}, median {median:?} of {ROUNDS} rounds in turns");
    }
}
