//! What an SPI costs from its line to a CPU's IRQ input, through distributor and CPU interface.
//!
//! A line that is up cannot be raised again, so a raise alone is measured over many GICs: each of their CPUs hears one,
//! and what lowers them again is not timed. None of it must depend on how many SPIs there are, nor on how many others
//! are pending.

use criterion::{BenchmarkId, Criterion};
use devisor::{
    backends::irqchip::{
        CpuId, Spi,
        gicv2::{CpuOutputs, GicV2, GicV2Config},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt, level_from_fn},
};
use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// GICs that are raised in turn: enough to hide what reading the time costs, few enough to stay in a cache.
const GICS: usize = 64;

/// A GIC on which every SPI is enabled and goes to CPU 0, at the same priority but for the last, which comes first.
fn gic(spis: u32) -> (GicV2, Arc<AtomicBool>) {
    let irq = Arc::new(AtomicBool::new(false));
    let pin = Arc::clone(&irq);
    let outputs = CpuOutputs {
        irq: Box::new(level_from_fn(move |up| {
            pin.store(up, Relaxed);
            Ok(())
        })),
        fiq: Box::new(NoInterrupt),
    };
    let config = GicV2Config {
        spis,
        ..GicV2Config::default()
    };
    let gic = GicV2::new(config, vec![outputs]).unwrap();
    let distributor = gic.distributor(CpuId(0)).unwrap();
    for word in 1..=spis.div_ceil(32) {
        distributor.write(0x100 + u64::from(word) * 4, &u32::MAX.to_le_bytes());
    }
    for intid in 32..32 + u64::from(spis) {
        distributor.write(0x400 + intid, &[0xa0]);
    }
    distributor.write(0x400 + 31 + u64::from(spis), &[0x80]);
    distributor.write(0x000, &1_u32.to_le_bytes());
    let cpu = gic.cpu_interface(CpuId(0)).unwrap();
    cpu.write(0x004, &0xff_u32.to_le_bytes());
    cpu.write(0x000, &1_u32.to_le_bytes());
    (gic, irq)
}

/// From the line to the CPU's input, and nothing else.
pub fn raise(c: &mut Criterion) {
    let mut group = c.benchmark_group("gicv2/raise");
    for spis in [32, 988] {
        let gics: Vec<_> = (0..GICS).map(|_| gic(spis)).collect();
        let lines: Vec<_> = gics
            .iter()
            .map(|(gic, _)| gic.level_line(Spi(spis - 1)).unwrap())
            .collect();
        group.bench_function(BenchmarkId::new("spis", spis), |b| {
            b.iter_custom(|raises| {
                let mut time = Duration::ZERO;
                let mut left = raises as usize;
                while left > 0 {
                    let round = &lines[..left.min(GICS)];
                    let start = Instant::now();
                    for line in round {
                        line.trigger().unwrap();
                    }
                    time += start.elapsed();
                    for (line, (_, irq)) in round.iter().zip(&gics) {
                        assert!(irq.load(Relaxed));
                        line.clear().unwrap();
                        assert!(!irq.load(Relaxed));
                    }
                    left -= round.len();
                }
                time
            });
        });
    }
    group.finish();
}

pub fn raise_and_lower(c: &mut Criterion) {
    let mut group = c.benchmark_group("gicv2/raise+lower");
    for spis in [32, 988] {
        let (gic, irq) = gic(spis);
        let line = gic.level_line(Spi(spis - 1)).unwrap();
        group.bench_function(BenchmarkId::new("spis", spis), |b| {
            b.iter(|| {
                line.trigger().unwrap();
                assert!(black_box(irq.load(Relaxed)));
                line.clear().unwrap();
                assert!(!black_box(irq.load(Relaxed)));
            });
        });
    }
    group.finish();
}

/// All the others are pending, so the line makes no difference to the CPU: what the arbitration itself costs.
pub fn raise_among_pending(c: &mut Criterion) {
    let mut group = c.benchmark_group("gicv2/raise+lower, others pending");
    for spis in [32, 988] {
        let (gic, _irq) = gic(spis);
        for spi in 0..spis - 1 {
            gic.edge_line(Spi(spi)).unwrap().trigger().unwrap();
        }
        let line = gic.level_line(Spi(spis - 1)).unwrap();
        group.bench_function(BenchmarkId::new("spis", spis), |b| {
            b.iter(|| {
                line.trigger().unwrap();
                line.clear().unwrap();
            });
        });
    }
    group.finish();
}

/// What a guest does for each interrupt: GICC_IAR, then GICC_EOIR, after a pulse of the line.
pub fn pulse_acknowledge_end(c: &mut Criterion) {
    let (gic, _irq) = gic(988);
    let (line, cpu) = (gic.edge_line(Spi(500)).unwrap(), gic.cpu_interface(CpuId(0)).unwrap());
    c.bench_function("gicv2/pulse, GICC_IAR, GICC_EOIR", |b| {
        b.iter(|| {
            line.trigger().unwrap();
            let mut iar = [0; 4];
            cpu.read(0x00c, &mut iar);
            assert_eq!(u32::from_le_bytes(iar), 532);
            cpu.write(0x010, &iar);
        });
    });
}
