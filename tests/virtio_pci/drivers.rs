//! Guest drivers that others wrote, over our bus, woken by recorded messages and wires.
#![cfg(feature = "recorder")]

use std::{ops::Range, rc::Rc, sync::Arc, time::Duration};

use devisor::{
    backends::recorder::Recorder,
    bus::Bus,
    interrupt::{LevelInterrupt, MsiMessage, NoInterrupt, SinkVectors},
    pci::{DeviceFunction, HostBridge, RootBus},
    virtio::{
        QueueIndex, VirtioDevice, VirtioPci, VirtioTransport,
        block::{Block, BlockOptions, MemoryStorage},
        entropy::{Entropy, SeededRandom, Source},
        features,
        queue::QueueCounters,
    },
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{
    guest::{Disk, Rng, Sectors},
    guest_cpu::{Cpu, RecorderCpu},
    guest_drivers::give_dma_memory,
    guest_pci::{Messages, PciTransport, guest_bus},
    worker::{Bell, Worker},
};

/// How long a test waits for an interrupt that must come.
const PATIENCE: Duration = Duration::from_secs(20);
const LINE: &str = "device";
/// What the drivers have of the guest's memory.
const DMA: Range<u64> = 0x1000..1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    MsiX,
    Intx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunsOn {
    Kick,
    Worker,
}

struct Machine<D> {
    device: Arc<VirtioPci<D>>,
    bus: Arc<Bus>,
    recorder: Recorder,
    wire: Wire,
    worker: Option<Worker>,
}

impl<D: VirtioDevice + 'static> Machine<D> {
    fn new(device: D, wire: Wire, runs_on: RunsOn) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        give_dma_memory(&memory, DMA);
        let recorder = Recorder::new();
        // Device 1 pulls the second wire. The other way to interrupt is recorded too: nothing must come there.
        let (messages, intx) = match wire {
            Wire::MsiX => (LINE, "other"),
            Wire::Intx => ("other", LINE),
        };
        let silent = || Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>;
        let wires = [silent(), Arc::new(recorder.level(intx)), silent(), silent()];
        let root = RootBus::new(wires, Arc::new(SinkVectors::new(Arc::new(recorder.sink(messages)))));
        let bridge = HostBridge::new(root.slot(DeviceFunction::new(0, 0).unwrap()).unwrap());
        root.insert(Arc::new(bridge)).unwrap();
        let slot = root.slot(DeviceFunction::new(1, 0).unwrap()).unwrap();
        let device = VirtioPci::new(device, Arc::new(memory), slot).unwrap();
        let bell = Bell::default();
        let device = match runs_on {
            RunsOn::Kick => Arc::new(device),
            RunsOn::Worker => Arc::new(device.with_doorbell(bell.clone())),
        };
        root.insert(Arc::clone(&device) as _).unwrap();
        let worker = (runs_on == RunsOn::Worker).then(|| {
            let device = Arc::clone(&device);
            Worker::spawn(&bell, move || device.run()).unwrap()
        });
        let bus = guest_bus(&root);
        Self {
            device,
            bus,
            recorder,
            wire,
            worker,
        }
    }

    /// The transport, and the CPU that takes the device's interrupts.
    fn plug(&self) -> (PciTransport, Rc<dyn Cpu>) {
        let message = |data| MsiMessage {
            address: 0xfee0_0000,
            data,
        };
        let messages = match self.wire {
            Wire::MsiX => Messages::MsiX(vec![message(0x40), message(0x41)]),
            Wire::Intx => Messages::Intx,
        };
        let transport = PciTransport::new(&self.bus, &messages).unwrap();
        let isr = transport.isr_status();
        let wire = self.wire;
        let line = self.recorder.line(LINE).unwrap();
        let cpu = RecorderCpu::new(line, PATIENCE, move || wire == Wire::MsiX || !isr.read().is_empty());
        (transport, Rc::new(cpu))
    }

    fn raised(&self, line: &str) -> u64 {
        self.recorder.line(line).unwrap().counts().raised
    }

    /// Sleeps until the device has asked for the next kick. In a blocking call, a driver whose kicks are suppressed polls.
    fn settle(&self) {
        self.worker.iter().for_each(Worker::settle);
    }
}

const SECTOR: usize = 512;
const SECTORS: usize = 512;

fn disk() -> (Block, Arc<MemoryStorage>) {
    let storage = Arc::new(MemoryStorage::new(SECTORS * SECTOR));
    let options = BlockOptions {
        id: "drivers".into(),
        ..BlockOptions::default()
    };
    (Block::new(Arc::clone(&storage), options).unwrap(), storage)
}

/// The whole disk in pieces, with random contents.
fn pieces(sectors: usize) -> Vec<Sectors> {
    let mut random = SeededRandom::new(1);
    (0..SECTORS)
        .step_by(sectors)
        .map(|first| {
            let mut data = vec![0; sectors * SECTOR];
            random.fill(&mut data).unwrap();
            Sectors { first, data }
        })
        .collect()
}

#[test]
fn a_disk_is_written_flushed_and_read_back_by_messages_and_by_wire() {
    for wire in [Wire::MsiX, Wire::Intx] {
        for runs_on in [RunsOn::Kick, RunsOn::Worker] {
            for hidden in [0, features::INDIRECT_DESC | features::EVENT_IDX] {
                let case = format!("{wire:?} {runs_on:?} without {hidden:#x}");
                let (disk, storage) = disk();
                let machine = Machine::new(disk, wire, runs_on);
                let (transport, cpu) = machine.plug();
                let mut disk = Disk::over(transport.without(hidden), cpu).unwrap();
                assert_eq!(disk.driver().capacity(), SECTORS as u64);
                // Without EVENT_IDX the driver does not kick a device that is looking already, and so would poll.
                machine.settle();
                assert_eq!(disk.id().unwrap(), "drivers", "{case}");

                let mut written = pieces(4);
                disk.write(&mut written, 16).unwrap();
                machine.settle();
                disk.flush().unwrap();
                let bytes: Vec<_> = written.iter().flat_map(|piece| piece.data.clone()).collect();
                assert!(storage.contents() == bytes, "{case}");

                let mut read = written.clone();
                read.iter_mut().for_each(|piece| piece.data.fill(0));
                disk.read(&mut read, 16).unwrap();
                assert!(read == written, "{case}");

                // A signal is counted when it has been delivered, and the driver may be faster.
                machine.settle();
                let QueueCounters {
                    requests,
                    bytes,
                    malformed,
                    malformed_by: _,
                    wanted,
                    suppressed,
                    delivered,
                    failed,
                } = machine.device.queue_counters(QueueIndex(0)).unwrap();
                assert_eq!(requests, disk.requests(), "{case}");
                assert_eq!((wanted + suppressed, failed, malformed), (requests, 0, 0), "{case}");
                assert_eq!(delivered, wanted, "one at a time: {case}");
                assert!(bytes > 2 * storage.contents().len() as u64, "{case}");
                assert!(machine.raised(LINE) > 0 && machine.raised(LINE) <= delivered, "{case}");
                assert_eq!(machine.raised("other"), 0, "{case}");
            }
        }
    }
}

#[test]
fn a_blocking_call_is_woken_by_one_interrupt() {
    for wire in [Wire::MsiX, Wire::Intx] {
        for runs_on in [RunsOn::Kick, RunsOn::Worker] {
            let machine = Machine::new(Entropy::seeded(7), wire, runs_on);
            let (transport, cpu) = machine.plug();
            let mut rng = Rng::over(transport, cpu).unwrap();
            let mut random = SeededRandom::new(7);
            for _ in 0..50 {
                let mut expected = vec![0; 512];
                random.fill(&mut expected).unwrap();
                assert_eq!(rng.request(512).unwrap(), expected);
                machine.settle();
            }
            assert_eq!((rng.requests(), machine.raised(LINE)), (50, 50), "{wire:?} {runs_on:?}");
        }
    }
}
