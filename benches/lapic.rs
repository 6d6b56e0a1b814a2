//! What a message costs from its sender to a vector that is pending in a local APIC, and the kernel's in the same run.
//!
//! A message to a vCPU that has not looked finds its wake line up; one to a vCPU that has must raise it. The first is
//! measured by itself, the second with the acknowledge and the EOI that make it repeatable. None may grow with the
//! CPUs.

use std::{hint::black_box, sync::Arc};

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

criterion_group!(benches, message, interprocessor, kernel);
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

/// KVM_SIGNAL_MSI to the kernel's local APIC, whose vCPU does not run.
#[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
fn kernel(criterion: &mut Criterion) {
    use kvm_bindings::kvm_msi;

    let made = kvm_ioctls::Kvm::new().and_then(|kvm| {
        let vm = kvm.create_vm()?;
        vm.create_irq_chip()?;
        let vcpu = vm.create_vcpu(0)?;
        let mut lapic = vcpu.get_lapic()?;
        lapic.regs[0xf1] = 1;
        vcpu.set_lapic(&lapic)?;
        Ok((vm, vcpu))
    });
    let (vm, vcpu) = match made {
        Ok(made) => made,
        Err(error) => return println!("skipped: no VM with a local APIC: {error}"),
    };
    let message = kvm_msi {
        address_lo: 0xfee0_0000,
        data: 0x41,
        ..Default::default()
    };
    criterion.bench_function("kvm/KVM_SIGNAL_MSI to vector pending", |bencher| {
        bencher.iter(|| vm.signal_msi(black_box(message)).unwrap());
    });
    assert_eq!(vcpu.get_lapic().unwrap().regs[0x220] & 2, 2, "it is pending");
}

#[cfg(not(all(feature = "kvm", target_os = "linux", target_arch = "x86_64")))]
fn kernel(_: &mut Criterion) {
    println!("skipped: no KVM in this build");
}
