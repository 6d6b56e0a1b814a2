//! The same over KVM: a vector is an irqfd with a route, so a message is a `write(2)` and a mask an ioctl.

use std::{hint::black_box, os::fd::AsRawFd, sync::Arc};

use criterion::Criterion;
use devisor::{
    backends::kvm::KvmIrqs,
    interrupt::{MsiMessage, MsiSink, RequesterId},
};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::{compare, function, mask_and_unmask};

/// A VM with one local APIC that takes messages, and a vCPU that does not run.
fn machine() -> Option<(KvmIrqs, VcpuFd)> {
    let made = Kvm::new().and_then(|kvm| kvm.create_vm()).and_then(|vm| {
        vm.create_irq_chip()?;
        let vcpu = vm.create_vcpu(0)?;
        let mut apic = vcpu.get_lapic()?;
        // Spurious-interrupt vector register: enabled by software.
        apic.regs[0xf1] = 1;
        vcpu.set_lapic(&apic)?;
        Ok((Arc::new(vm), vcpu))
    });
    let made = made.inspect_err(|error| println!("skipped: no VM with an interrupt controller: {error}"));
    let (vm, vcpu) = made.ok()?;
    Some((KvmIrqs::new(vm, 0..=23).unwrap(), vcpu))
}

pub fn message(criterion: &mut Criterion) {
    let Some((irqs, _vcpu)) = machine() else { return };
    let messages = Arc::new(irqs.messages());
    let endpoint = function(2048, Arc::clone(&messages) as _);
    let msix = endpoint.msix().unwrap();
    let descriptor = msix.export(2047).unwrap();
    let write = || {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the descriptor is open, and `one` has the eight bytes.
        let written = unsafe { libc::write(black_box(descriptor.as_raw_fd()), one.as_ptr().cast(), one.len()) };
        assert_eq!(written, 8);
    };
    let trigger = || _ = msix.trigger(black_box(2047)).unwrap();
    let to = MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };
    let mut group = criterion.benchmark_group("pci/kvm/message");
    group.bench_function("raw write(2) to the irqfd", |bencher| bencher.iter(write));
    group.bench_function("MSI-X trigger", |bencher| bencher.iter(trigger));
    group.bench_function("KVM_SIGNAL_MSI", |bencher| {
        bencher.iter(|| messages.send(RequesterId(8), black_box(to)).unwrap())
    });
    group.finish();
    compare("KVM, MSI-X trigger", &trigger, "raw write(2)", &write);
}

pub fn mask(criterion: &mut Criterion) {
    let Some((irqs, _vcpu)) = machine() else { return };
    let mut group = criterion.benchmark_group("pci/kvm/mask");
    let endpoint = function(1, Arc::new(irqs.messages()));
    group.bench_function("and unmask, an irqfd off and on", |bencher| {
        bencher.iter(|| mask_and_unmask(&endpoint, 1))
    });
    let mut data = 0x41_u64;
    group.bench_function("rewrite a live message, a route", |bencher| {
        bencher.iter(|| {
            data ^= 1;
            endpoint.write_bar(crate::MSIX, 8, &data.to_le_bytes())
        })
    });
    group.finish();
}
