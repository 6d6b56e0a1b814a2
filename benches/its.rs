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
        CpuId, IntId,
        gicv3::{CpuInterface, CpuOutputs, GicV3, GicV3Config, LpiSupport, SysReg},
        its::{ControlFrame, DeviceId, EventId, Its, ItsConfig},
    },
    bus::{BusDevice, read_le},
    interrupt::{MsiSink, NoInterrupt, RequesterId},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

criterion_group!(benches, pending, taken, threads, cold, commands);
criterion_main!(benches);

/// Devices, and events of each.
const SIZES: [(u32, u32); 3] = [(1, 1), (1, 1000), (1000, 1)];

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

/// Two CPUs that take interrupts of any priority. All LPIs are enabled.
fn gic(lpis: LpiSupport, memory: &Arc<GuestMemoryMmap>) -> GicV3 {
    memory
        .write_slice(&[0xa1; 0x1_0000 - 8192], GuestAddress(CONFIGURATION_TABLE))
        .unwrap();
    let config = GicV3Config {
        lpis,
        ..GicV3Config::new(2)
    };
    let outputs = (0..2).map(|_| CpuOutputs {
        irq: Box::new(NoInterrupt),
        fiq: Box::new(NoInterrupt),
    });
    let gic = GicV3::with_lpis(config, outputs.collect(), Arc::clone(memory)).unwrap();
    gic.distributor().write(0x000, &0b10_u32.to_le_bytes());
    for cpu in 0..2 {
        let redistributor = gic.redistributor(CpuId(cpu)).unwrap();
        redistributor.write(0x14, &0_u32.to_le_bytes());
        redistributor.write(0x70, &(CONFIGURATION_TABLE | 15).to_le_bytes());
        let table = PENDING_TABLES + u64::from(cpu) * 0x1_0000;
        redistributor.write(0x78, &(table | 1 << 62).to_le_bytes());
        redistributor.write(0x00, &1_u32.to_le_bytes());
        let interface = gic.cpu_interface(CpuId(cpu)).unwrap();
        interface.write_sysreg(SysReg::ICC_PMR_EL1, 0xff).unwrap();
        interface.write_sysreg(SysReg::ICC_IGRPEN1_EL1, 1).unwrap();
    }
    gic
}

/// The CPU acknowledges an interrupt and ends it.
fn take(cpu: &CpuInterface) -> u64 {
    let intid = cpu.read_sysreg(SysReg::ICC_IAR1_EL1).unwrap();
    cpu.write_sysreg(SysReg::ICC_EOIR1_EL1, intid).unwrap();
    intid
}

struct Machine {
    its: Its,
    frame: ControlFrame,
    memory: Arc<GuestMemoryMmap>,
    gic: GicV3,
    size: (u32, u32),
}

impl Machine {
    /// Two CPUs with LPIs, and devices with so many events each. Event e of device d is LPI 8192 + d * events + e.
    fn new(devices: u32, events: u32) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x0200_0000)]).unwrap();
        let memory = Arc::new(memory);
        let gic = gic(LpiSupport::Its, &memory);
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
            gic,
            size: (devices, events),
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

    /// Every event of every device, by its number of an LPI.
    fn each(&self) -> impl Iterator<Item = (u32, u32)> + Clone + use<> {
        let (devices, events) = self.size;
        (0..devices).flat_map(move |device| (0..events).map(move |event| (device, event)))
    }

    fn message(&self, device: u32, event: u32) {
        let message = self.its.message(EventId(event));
        self.its.send(RequesterId(device as u16), message).unwrap();
    }
}

/// Each LPI is pending already: what is measured is the way to it, and beside it the GICv3's own.
fn pending(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("its/message to an LPI that is pending");
    for lpis in [1, 1000] {
        let gic = gic(LpiSupport::Direct, &Machine::new(0, 1).memory);
        let mut next = (8192..8192 + lpis).cycle();
        group.bench_function(BenchmarkId::new("GICv3 alone, LPIs", lpis), |bencher| {
            bencher.iter(|| gic.send_lpi(CpuId(0), black_box(IntId(next.next().unwrap()))).unwrap());
        });
    }
    for (devices, events) in SIZES {
        let machine = Machine::new(devices, events);
        let mut next = machine.each().cycle();
        let name = format!("{devices} devices of {events} events");
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                let (device, event) = next.next().unwrap();
                machine.message(black_box(device), black_box(event));
            });
        });
        assert_eq!(machine.its.dropped_messages(), 0);
    }
    group.finish();
}

/// Each LPI becomes pending, raises the CPU's input, and is acknowledged and ended.
fn taken(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("its/message, acknowledge, end");
    for lpis in [1, 1000] {
        let gic = gic(LpiSupport::Direct, &Machine::new(0, 1).memory);
        let cpu = gic.cpu_interface(CpuId(0)).unwrap();
        let mut next = (8192..8192 + lpis).cycle();
        group.bench_function(BenchmarkId::new("GICv3 alone, LPIs", lpis), |bencher| {
            bencher.iter(|| {
                gic.send_lpi(CpuId(0), black_box(IntId(next.next().unwrap()))).unwrap();
                assert_ne!(take(&cpu), 1023);
            });
        });
    }
    for (devices, events) in SIZES {
        let machine = Machine::new(devices, events);
        let cpu = machine.gic.cpu_interface(CpuId(0)).unwrap();
        let mut next = machine.each().cycle();
        let name = format!("{devices} devices of {events} events");
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                let (device, event) = next.next().unwrap();
                machine.message(black_box(device), black_box(event));
                assert_ne!(take(&cpu), 1023);
            });
        });
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

    // All the LPIs that there can be are pending at CPU 0.
    let redistributor = machine.gic.redistributor(CpuId(0)).unwrap();
    redistributor.write(0x00, &0_u32.to_le_bytes());
    let pending = GuestAddress(PENDING_TABLES + 8192 / 8);
    machine.memory.write_slice(&[0xff; 0x2000 - 8192 / 8], pending).unwrap();
    redistributor.write(0x00, &1_u32.to_le_bytes());
    let invall = [command::invall(0)];
    group.bench_function("INVALL while 57344 are pending", |bencher| {
        bencher.iter(|| machine.run(&invall))
    });
    let there_and_back = [command::movall(0, 1), command::movall(1, 0)];
    group.bench_function("2 MOVALL of 57344 that are pending", |bencher| {
        bencher.iter(|| machine.run(&there_and_back));
    });
    group.finish();
}
