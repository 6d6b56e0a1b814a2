//! One row of the table: a device on a line of a backend, a guest that uses it, and what came of it.

use std::{rc::Rc, sync::Arc, thread, time::Duration};

use devisor::{
    backends::recorder::{Action, Event, Outcome, Recorder},
    event_loop::EventLoop,
    interrupt::NoInterrupt,
    time::Clock,
    virtio::{
        QueueIndex, VirtioDevice,
        block::{Block, BlockError, BlockOptions, MemoryStorage},
        entropy::{Entropy, SeededRandom, Source},
        queue::QueueCounters,
    },
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{
    board::{Bench, Board, Handler, PlugError, Trace, Wiring},
    completion::{Completion, Gate, completed, shuffle},
    guest::{Disk, GuestError, Rng, Sectors},
    guest_cpu::Cpu,
    guest_drivers::{Sleeping, give_dma_memory},
    machine::{Machine, Plugged, plug},
    worker::Worker,
};

/// How long a guest waits for an interrupt before it is said to be lost. In the tests some are.
pub const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 8 } else { 20 });

/// The guest's memory: 64 KiB for a program of its own, and above the place where a PC has a hole what the drivers use.
const PROGRAM: (GuestAddress, usize) = (GuestAddress(0), 64 << 10);
const DRIVERS: (GuestAddress, usize) = (GuestAddress(1 << 20), 1 << 20);

/// How many lines of a timeline are printed for a row that failed.
const TIMELINE: usize = 40;

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// virtio-blk.
    Block,
    /// virtio-rng.
    Entropy,
}

/// Which thread the device runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunsOn {
    /// The one that kicks: the guest's.
    Kick,
    /// A worker's, which a doorbell wakes. A disk completes its requests as this says.
    Worker(Completion),
}

/// What came of a row.
pub struct Row {
    /// Requests that the guest made.
    pub requests: u64,
    /// Bytes that the guest compared with what they must be.
    pub bytes: u64,
    /// How often the line was raised.
    pub raised: u64,
    /// Completions that the guest did not want to hear of.
    pub suppressed: u64,
    /// Interrupts that the guest took.
    pub taken: u64,
    /// The median of the time from a raise to the moment at which the guest took it.
    pub latency: Duration,
}

/// A row is not good.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// There is no board for it.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// It does not get as far as its guest.
    #[error("set-up: {0}")]
    SetUp(String),
    /// The guest is not content.
    #[error("{error}\n{timeline}")]
    Guest {
        /// What it says.
        error: String,
        /// The end of what the lines did.
        timeline: String,
    },
    /// The guest is content, but the numbers contradict each other.
    #[error("{0}")]
    Numbers(String),
}

impl RowError {
    /// Errors leave the guest's thread as text: not all of them can be sent.
    fn set_up(error: impl ToString) -> Self {
        Self::SetUp(error.to_string())
    }
}

/// Runs one row, on a thread that is the guest's.
///
/// # Errors
/// [`RowError`].
pub fn run(
    wiring: &Wiring,
    device: Device,
    runs_on: RunsOn,
    clock: Arc<dyn Clock>,
    waveform: Option<&Recorder>,
) -> Result<Row, RowError> {
    let trace = Trace {
        recorder: Recorder::builder().clock(clock).build(),
        waveform: waveform.map(|recorder| {
            let row = format!("{} {} {device:?}", wiring.backend, wiring.line);
            (recorder.clone(), row)
        }),
    };
    let guest = || match device {
        Device::Block => {
            // Who completes requests is not who takes them.
            let elsewhere = EventLoop::new().map_err(RowError::set_up)?;
            let _worker = Worker::spawn(&elsewhere).map_err(RowError::set_up)?;
            let disk = |events: &EventLoop| disk(runs_on, events, &elsewhere);
            with_guest(wiring, trace, runs_on, disk, UseDisk)
        }
        Device::Entropy => with_guest(wiring, trace, runs_on, |_| Ok(Entropy::seeded(SEED)), UseRng),
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("guest".into());
        let thread = thread.spawn_scoped(scope, guest).map_err(RowError::set_up)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What a guest has done.
struct Work {
    requests: u64,
    bytes: u64,
    /// What the device's queue did meanwhile.
    queue: QueueCounters,
}

/// A guest that has a use for a device.
trait Guest {
    fn work<T: Sleeping>(
        &self,
        transport: T,
        cpu: Rc<dyn Cpu>,
        queue: &dyn Fn() -> QueueCounters,
    ) -> Result<Work, GuestError>;
}

fn with_guest<D: VirtioDevice + 'static>(
    wiring: &Wiring,
    trace: Trace,
    runs_on: RunsOn,
    device: impl FnOnce(&EventLoop) -> Result<D, BlockError>,
    guest: impl Guest,
) -> Result<Row, RowError> {
    let memory = GuestMemoryMmap::from_ranges(&[PROGRAM, DRIVERS]).map_err(RowError::set_up)?;
    give_dma_memory(&memory, DRIVERS.0.0..DRIVERS.0.0 + DRIVERS.1 as u64);
    let events = EventLoop::new().map_err(RowError::set_up)?;
    let device = device(&events).map_err(RowError::set_up)?;
    let bench = Bench { memory, trace, events };
    let Board { attach, start } = (wiring.plug)(&bench)?;
    let Bench { memory, trace, events } = bench;

    let seat = (runs_on != RunsOn::Kick).then(|| events.seat());
    let Machine {
        device,
        transport,
        acknowledge,
        line,
    } = plug(device, memory, attach, &trace, seat.as_ref())?;
    let worker = Worker::spawn(&events).map_err(RowError::set_up)?;

    let taken = trace.edge("taken", NoInterrupt);
    let recorded = |name| {
        trace
            .recorder
            .line(name)
            .ok_or_else(|| RowError::set_up("a line is not recorded"))
    };
    let (line, marks) = (recorded(line)?, recorded("taken")?);
    let handler = Handler {
        acknowledge,
        line: line.clone(),
        taken,
    };
    let cpu = start(handler).map_err(RowError::set_up)?;
    // A signal is counted when it has been delivered, and the driver may be faster. A device that is still has none under way.
    let queue = || {
        device.pause();
        device.wait_until_still(Some(PATIENCE));
        let counters = device.queue_counters(QueueIndex(0)).unwrap_or_default();
        device.resume();
        counters
    };
    let work = match transport {
        Plugged::Mmio(transport) => guest.work(transport, cpu, &queue),
        Plugged::Pci(transport) => guest.work(transport, cpu, &queue),
    };
    let work = work.map_err(|error| RowError::Guest {
        error: error.to_string(),
        timeline: end_of(&trace.recorder),
    })?;
    drop(worker);

    let counts = line.counts();
    let row = Row {
        requests: work.requests,
        bytes: work.bytes,
        raised: counts.raised,
        suppressed: work.queue.suppressed,
        taken: marks.counts().raised,
        latency: median(latencies(&line.events(), &marks.events())).unwrap_or_default(),
    };
    check(&row, &work.queue, counts.failed)?;
    Ok(row)
}

/// Whether the numbers of a guest that is content agree with each other.
fn check(row: &Row, queue: &QueueCounters, refused: u64) -> Result<(), RowError> {
    let &QueueCounters {
        requests,
        bytes,
        malformed,
        wanted,
        suppressed,
        delivered,
        failed,
    } = queue;
    let complaint = if requests != row.requests {
        format!("{} requests, of which {requests} were answered", row.requests)
    } else if bytes == 0 {
        "requests of no bytes".into()
    } else if malformed != 0 {
        format!("{malformed} requests were malformed")
    } else if wanted + suppressed != requests || delivered != wanted {
        format!("{delivered} interrupts for {wanted} completions, and none for {suppressed}, of {requests}")
    } else if failed + refused != 0 {
        format!("the line refused {refused} calls")
    } else if row.raised == 0 || row.taken == 0 || row.latency.is_zero() {
        "no interrupt was raised and taken".into()
    } else {
        return Ok(());
    };
    Err(RowError::Numbers(complaint))
}

/// For each interrupt that was taken, the time since the first raise that it is for. As with a pending bit, one
/// interrupt is for all raises since the last one.
fn latencies(raises: &[Event], taken: &[Event]) -> Vec<Duration> {
    let is_raise = |event: &&Event| event.outcome == Outcome::Delivered && event.action != Action::Clear;
    let mut raises = raises.iter().filter(is_raise).peekable();
    let mut latencies = Vec::new();
    for taken in taken {
        let mut first = None;
        while let Some(raise) = raises.next_if(|raise| raise.number < taken.number) {
            first = first.or(Some(raise));
        }
        latencies.extend(first.map(|raise| taken.time.saturating_sub(raise.time)));
    }
    latencies
}

fn median(mut values: Vec<Duration>) -> Option<Duration> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// The end of a recorder's timeline, with its heading.
fn end_of(recorder: &Recorder) -> String {
    let timeline = recorder.to_string();
    let lines: Vec<_> = timeline.lines().collect();
    let heading = lines.iter().take(1);
    let end = lines.iter().skip(1.max(lines.len().saturating_sub(TIMELINE)));
    heading.chain(end).copied().collect::<Vec<_>>().join("\n")
}

// The guests.

/// The seed of everything that is random here.
const SEED: u64 = 0x5eed;
const DISK_ID: &str = "tour";
const SECTOR: usize = 512;
/// How the disk is written and read: in so many pieces, of so many sectors, with so many in flight.
const PIECES: usize = 256;
const PIECE_SECTORS: usize = 4;
const DEPTH: usize = 8;
/// How often the guest asks for entropy, and for how much.
const RNG_REQUESTS: usize = 256;
const RNG_BYTES: usize = 512;

/// A disk that runs on `events`, and completes its requests there or `elsewhere`.
fn disk(runs_on: RunsOn, events: &EventLoop, elsewhere: &EventLoop) -> Result<Box<dyn VirtioDevice>, BlockError> {
    let options = BlockOptions {
        id: DISK_ID.into(),
        ..BlockOptions::default()
    };
    let storage = Arc::new(MemoryStorage::new(PIECES * PIECE_SECTORS * SECTOR));
    let block = Block::new(Arc::clone(&storage), options)?;
    let completion = match runs_on {
        RunsOn::Kick => Completion::Round,
        RunsOn::Worker(completion) => completion,
    };
    let events = if completion == Completion::Thread {
        elsewhere
    } else {
        events
    };
    Ok(completed(block, storage, completion, events, Gate::default()))
}

/// Writes the whole disk in random order, flushes, reads all of it back in another order and compares.
struct UseDisk;

impl Guest for UseDisk {
    fn work<T: Sleeping>(
        &self,
        transport: T,
        cpu: Rc<dyn Cpu>,
        queue: &dyn Fn() -> QueueCounters,
    ) -> Result<Work, GuestError> {
        let mut disk = Disk::over(transport, cpu)?;
        let id = disk.id()?;
        if id != DISK_ID {
            return Err(GuestError::Wrong(format!(
                "the disk is called `{id}` and not `{DISK_ID}`"
            )));
        }
        let mut random = SeededRandom::new(SEED);
        let mut written: Vec<_> = (0..PIECES)
            .map(|piece| {
                let mut data = vec![0; PIECE_SECTORS * SECTOR];
                fill(&mut random, &mut data);
                let first = piece * PIECE_SECTORS;
                Sectors { first, data }
            })
            .collect();
        shuffle(&mut random, &mut written);
        disk.write(&mut written, DEPTH)?;
        disk.flush()?;

        shuffle(&mut random, &mut written);
        let blank = |sectors: &Sectors| Sectors {
            data: vec![0; sectors.data.len()],
            ..*sectors
        };
        let mut read: Vec<_> = written.iter().map(blank).collect();
        disk.read(&mut read, DEPTH)?;
        if let Some((read, _)) = read.iter().zip(&written).find(|(read, written)| read != written) {
            let first = read.first;
            return Err(GuestError::Wrong(format!(
                "sectors from {first} on read back as they were not written"
            )));
        }
        Ok(Work {
            requests: disk.requests(),
            bytes: (id.len() + PIECES * PIECE_SECTORS * SECTOR) as u64,
            queue: queue(),
        })
    }
}

/// Asks for entropy and compares it with what follows from the seed.
struct UseRng;

impl Guest for UseRng {
    fn work<T: Sleeping>(
        &self,
        transport: T,
        cpu: Rc<dyn Cpu>,
        queue: &dyn Fn() -> QueueCounters,
    ) -> Result<Work, GuestError> {
        let mut rng = Rng::over(transport, cpu)?;
        let mut random = SeededRandom::new(SEED);
        let mut expected = [0; RNG_BYTES];
        for _ in 0..RNG_REQUESTS {
            fill(&mut random, &mut expected);
            if rng.request(RNG_BYTES)? != expected {
                return Err(GuestError::Wrong(
                    "the entropy is not what follows from the seed".into(),
                ));
            }
        }
        Ok(Work {
            requests: rng.requests(),
            bytes: (RNG_REQUESTS * RNG_BYTES) as u64,
            queue: queue(),
        })
    }
}

fn fill(random: &mut SeededRandom, bytes: &mut [u8]) {
    random.fill(bytes).expect("this source does not fail");
}
