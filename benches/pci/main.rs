//! What PCI adds between a device and its platform: a message beside the bare sink, masks, configuration space, a doorbell.
//!
//! Read what stands beside each other in one run; absolute times are the machine's. The last lines compare in turns.

mod doorbell;
mod driven;
mod kvm;

use std::{hint::black_box, sync::Arc, time::Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use devisor::{
    bus::{Bus, BusDevice},
    interrupt::{MsiMessage, MsiSink, MsiVectors, NoInterrupt, RequesterId, SinkVectors},
    pci::{BarIndex, DeviceFunction, Endpoint, EndpointConfig, Function, Identity, NoMessages, RootBus, Slot},
};
use driven::Counter;

criterion_group!(
    benches,
    message,
    mask,
    configuration,
    kvm::message,
    kvm::mask,
    doorbell::kick
);
criterion_main!(benches);

const MSIX: BarIndex = BarIndex::Bar0;
const COUNTS: [u16; 2] = [1, 2048];

/// A function with `count` vectors, the last of which is open.
pub fn function(count: u16, vectors: Arc<dyn MsiVectors>) -> Endpoint {
    let mut config = EndpointConfig::new(Identity::default()).unwrap();
    config.msix(MSIX, count).unwrap();
    let slot = Slot::new(DeviceFunction::new(1, 0).unwrap(), Box::new(NoInterrupt), vectors);
    let endpoint = Endpoint::new(config, slot);
    endpoint.write_config(0x04, &[6, 0]);
    endpoint.write_config(0x42, &0x8000u16.to_le_bytes());
    let entry = u64::from(count - 1) * 16;
    endpoint.write_bar(MSIX, entry, &0xfee0_0000u64.to_le_bytes());
    endpoint.write_bar(MSIX, entry + 8, &0x41u64.to_le_bytes());
    endpoint
}

fn sink_vectors() -> (Arc<Counter>, Arc<dyn MsiVectors>) {
    let sink = Arc::new(Counter::default());
    (Arc::clone(&sink), Arc::new(SinkVectors::new(sink)))
}

fn message(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pci/message");
    let (sink, vectors) = sink_vectors();
    let to = MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };
    let sink = black_box(&*sink as &dyn MsiSink);
    let bare = || sink.send(RequesterId(8), black_box(to)).unwrap();
    group.bench_function("bare sink", |bencher| bencher.iter(bare));
    let functions = COUNTS.map(|count| (count, function(count, Arc::clone(&vectors))));
    let triggers = functions.each_ref().map(|(count, endpoint)| {
        let msix = endpoint.msix().unwrap();
        move || _ = msix.trigger(black_box(count - 1)).unwrap()
    });
    for (count, trigger) in COUNTS.iter().zip(&triggers) {
        group.bench_function(BenchmarkId::new("MSI-X, vectors", count), |bencher| {
            bencher.iter(trigger)
        });
    }
    group.finish();
    for (count, trigger) in COUNTS.iter().zip(&triggers) {
        compare(&format!("MSI-X trigger, {count} vectors"), trigger, "bare sink", &bare);
    }
}

fn mask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pci/mask");
    let (_, vectors) = sink_vectors();
    for count in COUNTS {
        let endpoint = function(count, Arc::clone(&vectors));
        group.bench_function(BenchmarkId::new("and unmask one, vectors", count), |bencher| {
            bencher.iter(|| mask_and_unmask(&endpoint, count))
        });
        group.bench_function(BenchmarkId::new("and unmask the function, vectors", count), |bencher| {
            bencher.iter(|| {
                endpoint.write_config(0x42, &0xc000u16.to_le_bytes());
                endpoint.write_config(0x42, &0x8000u16.to_le_bytes());
            })
        });
    }
    group.finish();
}

/// The last of `count` vectors.
pub fn mask_and_unmask(endpoint: &Endpoint, count: u16) {
    let control = u64::from(count - 1) * 16 + 12;
    endpoint.write_bar(MSIX, control, &1u32.to_le_bytes());
    endpoint.write_bar(MSIX, control, &0u32.to_le_bytes());
}

fn configuration(criterion: &mut Criterion) {
    struct Bare(Endpoint);
    impl Function for Bare {
        fn endpoint(&self) -> &Endpoint {
            &self.0
        }
        fn read_bar(&self, _bar: BarIndex, _offset: u64, _data: &mut [u8]) {}
        fn write_bar(&self, _bar: BarIndex, _offset: u64, _data: &[u8]) {}
    }

    let mut group = criterion.benchmark_group("pci/configuration read of 4 bytes");
    let silent = [(); 4].map(|()| Arc::new(NoInterrupt) as _);
    let root = RootBus::new(silent, Arc::new(NoMessages));
    for device in 1..32 {
        let slot = root.slot(DeviceFunction::new(device, 0).unwrap()).unwrap();
        let mut config = EndpointConfig::new(Identity::default()).unwrap();
        config.msix(MSIX, 2048).unwrap();
        root.insert(Arc::new(Bare(Endpoint::new(config, slot)))).unwrap();
    }
    let (_, vectors) = sink_vectors();
    let endpoint = function(2048, vectors);
    let mut data = [0; 4];
    group.bench_function("of the function", |bencher| {
        bencher.iter(|| endpoint.read_config(black_box(0x04), &mut data))
    });
    let ecam = root.ecam();
    group.bench_function("by ECAM, 31 functions", |bencher| {
        bencher.iter(|| ecam.read(black_box(31 << 15 | 4), &mut data))
    });
    let mut bus = Bus::new();
    bus.insert(0x3000_0000, 1 << 20, Arc::new(root.ecam())).unwrap();
    group.bench_function("by ECAM on a bus", |bencher| {
        bencher.iter(|| bus.read(black_box(0x3000_0000 + (31 << 15 | 4)), &mut data))
    });
    group.finish();
}

/// Prints what the one costs beside the other. In turns, and each first every other time, so that a machine that changes
/// its pace in between does not decide.
pub fn compare(name: &str, one: &dyn Fn(), than: &str, other: &dyn Fn()) {
    const ROUNDS: usize = 101;
    const CALLS: u32 = 2_000;
    let time = |call: &dyn Fn()| {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call());
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    };
    let mut rounds: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|round| {
            if round % 2 == 0 {
                let other = time(other);
                (time(one), other)
            } else {
                let one = time(one);
                (one, time(other))
            }
        })
        .collect();
    rounds.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    let (one, other) = rounds[ROUNDS / 2];
    println!(
        "{name}: {one:.1} ns, {:+.1} ns and {:.2} of {than}, the median of {ROUNDS} rounds",
        one - other,
        one / other
    );
}
