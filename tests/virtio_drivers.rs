//! Guest drivers that others wrote, over virtio-mmio, woken by recorded interrupts.

#[path = "../examples/tour/guest.rs"]
mod guest;
#[path = "support/guest_drivers.rs"]
mod guest_drivers;
#[path = "../examples/tour/worker.rs"]
mod worker;

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use devisor::{
    backends::recorder::Recorder,
    bus::{BusDevice, read_le, write_le},
    virtio::{
        DeviceId, QueueError, QueueIndex, Queues, Round, VirtioDevice, VirtioMmio, features, queue::QueueCounters,
        transport::mmio::Line,
    },
};
use guest::{GuestError, Rng};
use guest_drivers::{CallError, Cpu, GuestDma, MmioTransport, RecorderCpu, acknowledge, dma_in_use, give_dma_memory};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};
use worker::{Bell, Worker};

/// How long a test waits for an interrupt that must come.
const PATIENCE: Duration = Duration::from_secs(20);

type Memory = Arc<GuestMemoryMmap>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Edge,
    Level,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunsOn {
    Kick,
    Worker,
}

/// A device behind virtio-mmio, the CPU that takes its interrupts, and memory for its drivers.
struct Machine<D> {
    device: Arc<VirtioMmio<Memory, D>>,
    recorder: Recorder,
    worker: Option<Worker>,
    offer: u64,
    patience: Duration,
}

const LINE: &str = "device";

impl<D: VirtioDevice<GuestMemoryMmap> + 'static> Machine<D> {
    fn new(device: D, wire: Wire, runs_on: RunsOn) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        give_dma_memory(&memory, 0x1000..1 << 20);
        let recorder = Recorder::new();
        let line = match wire {
            Wire::Edge => Line::Edge(Arc::new(recorder.edge(LINE))),
            Wire::Level => Line::Level(Arc::new(recorder.level(LINE))),
        };
        let device = VirtioMmio::new(device, Arc::new(memory), line).unwrap();
        let bell = Bell::default();
        let device = match runs_on {
            RunsOn::Kick => Arc::new(device),
            RunsOn::Worker => Arc::new(device.with_doorbell(bell.clone())),
        };
        let worker = (runs_on == RunsOn::Worker).then(|| {
            let device = Arc::clone(&device);
            Worker::spawn(&bell, move || device.run()).unwrap()
        });
        Self {
            device,
            recorder,
            worker,
            offer: u64::MAX,
            patience: PATIENCE,
        }
    }

    /// Hides features from the driver.
    fn without(mut self, features: u64) -> Self {
        self.offer &= !features;
        self
    }

    fn registers(&self) -> Arc<dyn BusDevice> {
        Arc::new(Offer {
            device: Arc::clone(&self.device) as _,
            mask: self.offer,
            selected: AtomicU32::new(0),
        })
    }

    fn cpu(&self) -> Rc<dyn Cpu> {
        let device = Arc::clone(&self.device);
        let line = self.recorder.line(LINE).unwrap();
        Rc::new(RecorderCpu::new(line, self.patience, move || {
            !acknowledge(&*device).is_empty()
        }))
    }

    /// How often the line was raised.
    fn raised(&self) -> u64 {
        self.recorder.line(LINE).unwrap().counts().raised
    }

    fn counters(&self) -> QueueCounters {
        self.device.queue_counters(QueueIndex(0)).unwrap()
    }

    /// Sleeps until the device has asked for the next kick.
    fn settle(&self) {
        self.worker.iter().for_each(Worker::settle);
    }
}

/// Registers through which a driver is offered less than the device offers.
struct Offer {
    device: Arc<dyn BusDevice>,
    mask: u64,
    selected: AtomicU32,
}

impl BusDevice for Offer {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read(offset, data);
        if offset == 0x010 {
            let word = match self.selected.load(Ordering::SeqCst) {
                0 => self.mask,
                1 => self.mask >> 32,
                _ => 0,
            };
            write_le(data, read_le(data) & word);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0x014 {
            self.selected.store(read_le(data) as u32, Ordering::SeqCst);
        }
        self.device.write(offset, data);
    }
}

/// Gives 0, 1, 2 and so on, and starts again after a reset.
#[derive(Default)]
struct Counter(u8);

impl<M: GuestMemory> VirtioDevice<M> for Counter {
    fn device_id(&self) -> DeviceId {
        DeviceId::ENTROPY
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn process(&mut self, index: QueueIndex, queues: &mut Queues<'_, M>) -> Result<Round, QueueError> {
        let Some((queue, memory)) = queues.get(index) else {
            return Ok(Round::Drained);
        };
        queue.serve(memory, |chain, memory| {
            let mut room = chain.writer(memory);
            let len = room.remaining();
            for _ in 0..len {
                room.fill(self.0, 1)?;
                self.0 = self.0.wrapping_add(1);
            }
            Ok(len)
        })
    }

    fn reset(&mut self) {
        self.0 = 0;
    }
}

#[test]
fn a_blocking_call_is_woken_by_the_interrupt() {
    for wire in [Wire::Edge, Wire::Level] {
        for runs_on in [RunsOn::Kick, RunsOn::Worker] {
            let machine = Machine::new(Counter::default(), wire, runs_on);
            let mut rng = Rng::new(machine.registers(), machine.cpu()).unwrap();
            for start in 0..50_u8 {
                assert_eq!(rng.request(3).unwrap(), [start * 3, start * 3 + 1, start * 3 + 2]);
            }
            assert_eq!(machine.raised(), 50, "{wire:?} {runs_on:?}");
        }
    }
}

#[test]
fn an_interrupt_that_is_lost_is_an_error_and_no_hang() {
    let mut machine = Machine::new(Counter::default(), Wire::Edge, RunsOn::Kick);
    machine.patience = Duration::from_millis(50);
    let mut rng = Rng::new(machine.registers(), machine.cpu()).unwrap();
    machine.recorder.line(LINE).unwrap().fail_always();
    let error = rng.request(3).unwrap_err();
    assert!(matches!(error, GuestError::Call(CallError::NotWoken(_))), "{error}");
    assert!(
        error.to_string().contains("failed as told"),
        "the timeline is in it: {error}"
    );
}
