//! What a message costs through an ITS to an LPI that is pending, beside the GICv3 alone in the same run.
//!
//! The ITS remembers the way of each event, so a message reads one cache line of its own. It must not grow with the
//! devices and events that the guest has mapped, nor may senders on different threads hold each other up. What a first
//! message costs, which reads the guest's tables, and what a command costs stand beside it.

#[path = "../tests/support/its.rs"]
mod command;

use std::{hint::black_box, sync::Arc, thread, time::Instant};

use command::{Command, VALID};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use devisor::{
    backends::irqchip::{
        CpuId,
        gicv3::{CpuOutputs, GicV3, GicV3Config, LpiSupport},
        its::{ControlFrame, DeviceId, EventId, Its, ItsConfig},
    },
    bus::{BusDevice, read_le},
    interrupt::{MsiSink, NoInterrupt, RequesterId},
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

criterion_group!(benches, warm, threads, cold, commands);
criterion_main!(benches);

const RAM: u64 = 0x4000_0000;
const QUEUE: u64 = RAM;
const DEVICE_TABLE: u64 = RAM + 0x10_0000;
const COLLECTION_TABLE: u64 = RAM + 0x20_0000;
const CONFIGURATION_TABLE: u64 = RAM + 0x30_0000;
const PENDING_TABLES: u64 = RAM + 0x40_0000;
const ITTS: u64 = RAM + 0x80_0000;

const CTLR: u64 = 0x0000;
const CBASER: u64 = 0x0080;
const CWRITER: u64 = 0x0088;
const CREADR: u64 = 0x0090;
const BASER: u64 = 0x0100;

struct Machine {
    its: Its,
    frame: ControlFrame,
    memory: Arc<GuestMemoryMmap>,
    _gic: GicV3,
}

impl Machine {
    /// Two CPUs with LPIs, and devices with so many events each. Event e of device d is LPI 8192 + d * events + e.
    fn new(devices: u32, events: u32) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x0200_0000)]).unwrap();
        let memory = Arc::new(memory);
        let config = GicV3Config {
            lpis: LpiSupport::Its,
            ..GicV3Config::new(2)
        };
        let outputs = (0..2).map(|_| CpuOutputs {
            irq: Box::new(NoInterrupt),
            fiq: Box::new(NoInterrupt),
        });
        let gic = GicV3::with_lpis(config, outputs.collect(), Arc::clone(&memory)).unwrap();
        for cpu in 0..2 {
            let redistributor = gic.redistributor(CpuId(cpu)).unwrap();
            redistributor.write(0x70, &(CONFIGURATION_TABLE | 15).to_le_bytes());
            let table = PENDING_TABLES + u64::from(cpu) * 0x1_0000;
            redistributor.write(0x78, &(table | 1 << 62).to_le_bytes());
            redistributor.write(0x00, &1_u32.to_le_bytes());
        }
        let its = Its::new(ItsConfig::default(), &gic, Arc::clone(&memory)).unwrap();
        let frame = its.control_frame();
        for (offset, value) in [
            (CBASER, QUEUE | 0xff),
            (BASER, DEVICE_TABLE | 2 << 8),
            (BASER + 8, COLLECTION_TABLE),
        ] {
            frame.write(offset, &(VALID | value).to_le_bytes());
        }
        frame.write(CTLR, &1_u32.to_le_bytes());
        let machine = Self {
            its,
            frame,
            memory,
            _gic: gic,
        };
        machine.run(&[command::mapc(0, 0), command::mapc(1, 1)]);
        for device in 0..devices {
            let itt = ITTS + u64::from(device) * u64::from(events.next_power_of_two().max(32)) * 8;
            machine.run(&[command::mapd(device, itt, events.next_power_of_two().ilog2().max(1))]);
            let commands: Vec<_> = (0..events)
                .map(|event| command::mapti(device, event, 8192 + device * events + event, 0))
                .collect();
            machine.run(&commands);
        }
        assert_eq!(machine.its.refused_commands(), 0);
        machine
    }

    fn read(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.frame.read(offset, &mut data);
        read_le(&data)
    }

    fn run(&self, commands: &[Command]) {
        use vm_memory::Bytes;
        let mut at = self.read(CWRITER);
        for command in commands {
            for (word, index) in command.iter().zip(0..) {
                self.memory
                    .write_obj(word.to_le(), GuestAddress(QUEUE + at + index * 8))
                    .unwrap();
            }
            at = (at + 32) % 0x10_0000;
        }
        self.frame.write(CWRITER, &at.to_le_bytes());
        assert_eq!(self.read(CREADR), at);
    }

    fn message(&self, device: u32, event: u32) {
        let message = self.its.message(EventId(event));
        self.its.send(RequesterId(device as u16), message).unwrap();
    }
}

/// Each LPI is pending already: what is measured is the way to it. It is not enabled, so nothing is told.
fn warm(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("its/message to pending LPI");
    for (devices, events) in [(1, 1), (1, 1000), (1000, 1), (32, 32)] {
        let machine = Machine::new(devices, events);
        let all: Vec<_> = (0..devices)
            .flat_map(|device| (0..events).map(move |event| (device, event)))
            .collect();
        for &(device, event) in &all {
            machine.message(device, event);
        }
        let name = BenchmarkId::from_parameter(format!("{devices} devices of {events} events"));
        let mut next = all.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let &(device, event) = next.next().unwrap();
                machine.message(black_box(device), black_box(event));
            });
        });
        assert_eq!(machine.its.dropped_messages(), 0);
    }
    group.finish();
}

/// Two threads, each with a device of its own and a CPU of its own: the time of a message of one.
fn threads(criterion: &mut Criterion) {
    let machine = Machine::new(2, 1);
    machine.run(&[command::movi(1, 0, 1)]);
    let mut group = criterion.benchmark_group("its/message while others send");
    for threads in [1, 2] {
        group.bench_function(BenchmarkId::new("threads", threads), |bencher| {
            bencher.iter_custom(|count| {
                let start = Instant::now();
                thread::scope(|scope| {
                    for device in 0..threads {
                        let machine = &machine;
                        scope.spawn(move || {
                            for _ in 0..count {
                                machine.message(black_box(device), 0);
                            }
                        });
                    }
                });
                start.elapsed()
            });
        });
    }
    group.finish();
}

/// Each message finds that a table has changed since.
fn cold(criterion: &mut Criterion) {
    let machine = Machine::new(1, 1);
    let forget = [command::mapc(1, 1)];
    let mut group = criterion.benchmark_group("its/cold");
    group.bench_function("a command", |bencher| bencher.iter(|| machine.run(&forget)));
    group.bench_function("a command, and a message that reads the tables", |bencher| {
        bencher.iter(|| {
            machine.run(&forget);
            machine.message(black_box(0), 0);
        });
    });
    group.finish();
}

fn commands(criterion: &mut Criterion) {
    let machine = Machine::new(1, 32);
    let mut group = criterion.benchmark_group("its/commands");
    let all: Vec<_> = (0..1000)
        .map(|turn| command::movi(0, turn % 32, (turn / 32 % 2) as u16))
        .collect();
    group.bench_function("1000 MOVI", |bencher| bencher.iter(|| machine.run(&all)));
    group.bench_function("INT through the queue", |bencher| {
        bencher.iter(|| machine.run(&[command::int(0, 0)]));
    });
    machine.its.signal(DeviceId(0), EventId(0));
    group.finish();
}
