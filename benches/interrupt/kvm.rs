//! What the KVM backend adds to the system call that signals.
//!
//! The wires are masked at their controller and no vCPU runs: this is the device's side alone.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::Criterion;
use devisor::{
    backends::kvm::{Gsi, KvmIrqs},
    interrupt::{Interrupt, LevelInterrupt},
};
use kvm_ioctls::{Kvm, VmFd};

/// A VM with a controller whose inputs are masked, as they are after its reset.
fn vm() -> Option<Arc<VmFd>> {
    let made = Kvm::new().and_then(|kvm| kvm.create_vm()).and_then(|vm| {
        vm.create_irq_chip()?;
        Ok(Arc::new(vm))
    });
    made.inspect_err(|error| println!("skipped: no VM with an interrupt controller: {error}"))
        .ok()
}

pub fn signals(criterion: &mut Criterion) {
    let Some(vm) = vm() else { return };
    let irqs = KvmIrqs::new(vm, 0..=23).unwrap();
    let claim = |gsi| irqs.claim(Gsi(gsi), "bench").unwrap();
    let mut group = criterion.benchmark_group("kvm");

    let irqfd = claim(20).irqfd().unwrap();
    let write = || {
        let one = 1_u64.to_ne_bytes();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&irqfd);
        // SAFETY: the descriptor is that of `irqfd`, and `one` has the eight bytes.
        let written = unsafe { libc::write(black_box(fd), one.as_ptr().cast(), one.len()) };
        assert_eq!(written, 8);
    };
    let trigger = || black_box(&irqfd as &dyn Interrupt).trigger().unwrap();
    group.bench_function("raw write(2) to the irqfd", |bencher| bencher.iter(write));
    group.bench_function("irqfd trigger", |bencher| bencher.iter(trigger));

    let pulse = claim(21).irq_pulse().unwrap();
    group.bench_function("KVM_IRQ_LINE pulse", |bencher| {
        bencher.iter(|| black_box(&pulse).trigger())
    });
    let line = claim(22).irq_line().unwrap();
    group.bench_function("KVM_IRQ_LINE up and down", |bencher| {
        bencher.iter(|| (black_box(&line).trigger(), line.clear()))
    });
    let resampled = claim(23).resample_irqfd().unwrap();
    group.bench_function("irqfd with resample, up and down", |bencher| {
        bencher.iter(|| (black_box(&resampled).trigger(), resampled.clear()))
    });
    group.finish();

    ratio(write, trigger);
}

/// Prints how the line compares with the bare system call. In turns, and each first every other time, so that a machine
/// that changes its pace in between does not decide.
fn ratio(write: impl Fn(), trigger: impl Fn()) {
    const ROUNDS: usize = 101;
    const SIGNALS: u32 = 2_000;
    let time = |signal: &dyn Fn()| {
        let start = Instant::now();
        (0..SIGNALS).for_each(|_| signal());
        start.elapsed() / SIGNALS
    };
    let mut rounds: Vec<(f64, Duration, Duration)> = (0..ROUNDS)
        .map(|round| {
            let (written, triggered) = if round % 2 == 0 {
                (time(&write), time(&trigger))
            } else {
                let triggered = time(&trigger);
                (time(&write), triggered)
            };
            (triggered.as_secs_f64() / written.as_secs_f64(), written, triggered)
        })
        .collect();
    rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (ratio, written, triggered) = rounds[ROUNDS / 2];
    println!("kvm: trigger / raw write(2) = {ratio:.3} (median of {ROUNDS}; {triggered:?} and {written:?})");
}
