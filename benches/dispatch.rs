//! What finding the device costs: a read of 32 bits through [`Bus`], beside the same read by a direct call.
//!
//! `cargo bench --bench dispatch` ends with the ratios of its own run.

use std::{
    cell::RefCell,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion};
use devisor::{
    bus::{Bus, BusDevice, read_le, write_le},
    interrupt::NoInterrupt,
    platform::pl011::{Pl011, Pl011Config},
};

const BASE: u64 = 0x0900_0000;
const SIZE: u64 = 0x1000;
const UARTFR: u64 = 0x018;

/// The least that a device can do.
struct Scratch(AtomicU32);

impl BusDevice for Scratch {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        write_le(data, self.0.load(Ordering::Relaxed).into());
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.store(read_le(data) as u32, Ordering::Relaxed);
    }
}

fn devices(count: u32) -> Vec<Arc<dyn BusDevice>> {
    (0..count)
        .map(|index| Arc::new(Scratch(AtomicU32::new(index))) as Arc<dyn BusDevice>)
        .collect()
}

fn bus(devices: &[Arc<dyn BusDevice>]) -> Bus {
    let mut bus = Bus::new();
    for (index, device) in devices.iter().enumerate() {
        bus.insert(BASE + index as u64 * SIZE, SIZE, Arc::clone(device))
            .expect("regions side by side");
    }
    bus
}

/// The best time of one iteration of each benchmark.
#[derive(Default)]
struct Best(RefCell<Vec<(String, f64)>>);

impl Best {
    fn measure(&self, name: &str, iterations: u64, mut read: impl FnMut(u64) -> u32) -> Duration {
        let start = Instant::now();
        for iteration in 0..iterations {
            black_box(read(black_box(iteration)));
        }
        let elapsed = start.elapsed();
        let each = elapsed.as_secs_f64() * 1e9 / iterations as f64;
        let mut best = self.0.borrow_mut();
        match best.iter_mut().find(|(known, _)| known == name) {
            Some((_, best)) => *best = best.min(each),
            None => best.push((name.to_owned(), each)),
        }
        elapsed
    }

    fn of(&self, name: &str) -> Option<f64> {
        self.0
            .borrow()
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, best)| *best)
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let best = Best::default();
    let mut group = criterion.benchmark_group("dispatch");

    for count in [1u32, 64] {
        // Another device each time, with a stride that visits them all.
        let which = |iteration: u64| iteration.wrapping_mul(37) % u64::from(count);
        let devices = devices(count);
        let name = format!("direct/{count}");
        group.bench_function(BenchmarkId::new("direct", count), |bencher| {
            bencher.iter_custom(|iterations| {
                best.measure(&name, iterations, |iteration| {
                    let mut data = [0; 4];
                    devices[which(iteration) as usize].read(black_box(UARTFR), &mut data);
                    u32::from_le_bytes(data)
                })
            });
        });

        let bus = bus(&devices);
        let name = format!("bus/{count}");
        group.bench_function(BenchmarkId::new("bus", count), |bencher| {
            bencher.iter_custom(|iterations| {
                best.measure(&name, iterations, |iteration| {
                    let mut data = [0; 4];
                    let address = BASE + which(iteration) * SIZE + UARTFR;
                    bus.read(black_box(address), &mut data).expect("there is a device");
                    u32::from_le_bytes(data)
                })
            });
        });
    }

    // A device with a lock and registers to decode, for scale.
    let uart: Arc<dyn BusDevice> = Arc::new(Pl011::new(Pl011Config::default(), NoInterrupt, std::io::sink()));
    let bus = bus(&[uart]);
    group.bench_function("bus/pl011", |bencher| {
        bencher.iter_custom(|iterations| {
            best.measure("bus/pl011", iterations, |_| {
                let mut data = [0; 4];
                bus.read(black_box(BASE + UARTFR), &mut data)
                    .expect("there is a device");
                u32::from_le_bytes(data)
            })
        });
    });

    group.finish();
    criterion.final_summary();

    // Nothing to say about benchmarks that a filter left out.
    for (name, base) in [
        ("bus/1", "direct/1"),
        ("bus/64", "direct/64"),
        ("bus/64", "bus/1"),
        ("bus/pl011", "bus/1"),
    ] {
        if let (Some(time), Some(base_time)) = (best.of(name), best.of(base)) {
            println!("{name}: {time:.1} ns, {:.2} of {base}", time / base_time);
        }
    }
}
