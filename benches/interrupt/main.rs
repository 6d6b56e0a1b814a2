//! What an interrupt costs on its way out of the device, line by line.
//!
//! Read what stands beside each other in one run; absolute times are the machine's.

mod gicv2;
mod kvm;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use devisor::{
    backends::recorder::Recorder,
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt, SharedLine},
};

criterion_group!(
    benches,
    kvm::signals,
    gicv2::raise,
    gicv2::raise_and_lower,
    gicv2::raise_among_pending,
    gicv2::pulse_acknowledge_end,
    shared_line,
    recorder
);
criterion_main!(benches);

fn shared_line(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shared line");
    let wire = SharedLine::new(NoInterrupt);
    let (uart, clock) = (wire.source().unwrap(), wire.source().unwrap());
    group.bench_function("one source up and down", |bencher| {
        bencher.iter(|| (black_box(&uart).trigger(), uart.clear()))
    });
    clock.trigger().unwrap();
    group.bench_function("one source up and down while another is up", |bencher| {
        bencher.iter(|| (black_box(&uart).trigger(), uart.clear()))
    });
    group.finish();
}

fn recorder(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recorder");
    let recorder = Recorder::new();
    let line = recorder.edge("line");
    group.bench_function("trigger", |bencher| bencher.iter(|| black_box(&line).trigger()));
    let around = recorder.wrap_edge("around", NoInterrupt);
    group.bench_function("trigger of a line that is wrapped", |bencher| {
        bencher.iter(|| black_box(&around).trigger())
    });
    group.finish();
}
