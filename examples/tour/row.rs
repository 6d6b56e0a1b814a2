//! One row of the table: a device on a line of a backend, a guest that uses it, and what came of it.

use std::{
    fs::File,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use devisor::{
    backends::recorder::{Action, Event, Outcome, Recorder},
    event_loop::EventLoop,
    interrupt::NoInterrupt,
    time::Clock,
    virtio::{VirtioDevice, queue::QueueCounters},
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{
    board::{Bench, Board, Handler, PlugError, Trace, Wiring},
    completion::Completion,
    devices::Guest,
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

impl Row {
    /// The same of two guests that made it together, with the longer of their times.
    pub fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            bytes: self.bytes + other.bytes,
            raised: self.raised + other.raised,
            suppressed: self.suppressed + other.suppressed,
            taken: self.taken + other.taken,
            latency: self.latency.max(other.latency),
        }
    }
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
    /// Neither of two guests is content: one may be waiting for what the other has not done.
    #[error("{0}\n{1}")]
    Guests(Box<RowError>, Box<RowError>),
    /// The guest is content, but the numbers contradict each other.
    #[error("{0}")]
    Numbers(String),
}

impl RowError {
    /// Errors leave the guest's thread as text: not all of them can be sent.
    pub fn set_up(error: impl ToString) -> Self {
        Self::SetUp(error.to_string())
    }
}

/// What a row is run on.
pub struct Setting<'a> {
    /// How its devices interrupt.
    pub wiring: &'a Wiring,
    /// Where they run.
    pub runs_on: RunsOn,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where its lines are recorded besides.
    pub waveform: Option<&'a Recorder>,
    /// Where the next row that has frames writes them to.
    pub capture: &'a Mutex<Option<File>>,
}

impl Setting<'_> {
    /// Runs one guest and its device, `name`, on a thread of their own. The device may use the event loop that runs it.
    ///
    /// # Errors
    /// [`RowError`].
    pub fn guest<D: VirtioDevice + 'static, E: ToString>(
        &self,
        name: &str,
        device: impl FnOnce(&EventLoop) -> Result<D, E> + Send,
        guest: impl Guest + Send,
    ) -> Result<Row, RowError> {
        let trace = Trace {
            recorder: Recorder::builder().clock(self.clock.clone()).build(),
            waveform: self.waveform.map(|recorder| {
                let row = format!("{} {} {name}", self.wiring.backend, self.wiring.line);
                (recorder.clone(), row)
            }),
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("guest".into());
            let run = || with_guest(self.wiring, trace, self.runs_on, device, guest);
            let thread = thread.spawn_scoped(scope, run).map_err(RowError::set_up)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn with_guest<D: VirtioDevice + 'static, E: ToString, G: Guest>(
    wiring: &Wiring,
    trace: Trace,
    runs_on: RunsOn,
    device: impl FnOnce(&EventLoop) -> Result<D, E>,
    guest: G,
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
    let queues = || {
        device.pause();
        device.wait_until_still(Some(PATIENCE));
        let counters = device.counters();
        device.resume();
        counters
    };
    let sleeper = match &transport {
        Plugged::Mmio(transport) => transport.sleeper(),
        Plugged::Pci(transport) => transport.sleeper(),
    };
    let work = match transport {
        Plugged::Mmio(transport) => guest.work(transport, cpu, &queues),
        Plugged::Pci(transport) => guest.work(transport, cpu, &queues),
    };
    let work = work.map_err(|error| RowError::Guest {
        error: error.to_string(),
        timeline: end_of(&trace.recorder),
    })?;
    drop(worker);
    let found = sleeper.found();
    if runs_on == RunsOn::Kick && found != 0 {
        return Err(RowError::Numbers(format!(
            "{found} calls without a kick, in which the device runs"
        )));
    }

    let counts = line.counts();
    let row = Row {
        requests: work.requests,
        bytes: work.bytes,
        raised: counts.raised,
        suppressed: work.queues.suppressed,
        taken: marks.counts().raised,
        latency: median(latencies(&line.events(), &marks.events())).unwrap_or_default(),
    };
    check(&row, &work.queues, counts.failed, G::ONCE_A_ROUND)?;
    Ok(row)
}

/// Whether the numbers of a guest that is content agree with each other.
fn check(row: &Row, queues: &QueueCounters, refused: u64, once_a_round: bool) -> Result<(), RowError> {
    let &QueueCounters {
        requests,
        bytes,
        malformed,
        malformed_by: _,
        wanted,
        suppressed,
        delivered,
        failed,
    } = queues;
    let told = match once_a_round {
        true => (1..=wanted).contains(&delivered),
        false => delivered == wanted,
    };
    let complaint = if requests != row.requests {
        format!("{} requests, of which {requests} were answered", row.requests)
    } else if bytes == 0 {
        "requests of no bytes".into()
    } else if malformed != 0 {
        format!("{malformed} requests were malformed")
    } else if wanted + suppressed != requests || !told {
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
