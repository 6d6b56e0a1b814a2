//! What the tour asks of a backend: a line for a device, and a CPU that takes its interrupts.

use std::{
    error::Error,
    rc::Rc,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use devisor::{
    backends::recorder::{Line as Recorded, Recorder},
    bus::BusDevice,
    event_loop::EventLoop,
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiVectors},
    virtio::transport::mmio::Line,
};
use vm_memory::GuestMemoryMmap;

use crate::{guest_cpu::Cpu, guest_drivers::acknowledge, guest_pci::IsrStatus, row::PATIENCE};

/// One way in which a backend interrupts.
#[derive(Clone, Copy)]
pub struct Wiring {
    /// Name of the backend.
    pub backend: &'static str,
    /// What kind of line it is.
    pub line: &'static str,
    /// Builds it.
    pub plug: fn(&Bench) -> Result<Board, PlugError>,
}

/// What a board is built on.
pub struct Bench {
    /// The guest's memory. The first 64 KiB are for a program.
    pub memory: GuestMemoryMmap,
    /// Where lines are recorded.
    pub trace: Trace,
    /// What a worker runs.
    pub events: EventLoop,
}

/// A way to interrupt for a device, and the CPU at its other end.
pub struct Board {
    /// What the device is given.
    pub attach: Attach,
    /// Starts the CPU, once the device is there whose interrupts it handles.
    pub start: Box<Start>,
}

/// What a device interrupts by, and so its transport.
pub enum Attach {
    /// Virtio-mmio, by a line.
    Mmio(Line),
    /// Virtio-pci, by INTx that ends at this wire.
    Intx(Arc<dyn LevelInterrupt>),
    /// Virtio-pci, by MSI-X.
    MsiX {
        /// Where messages go.
        vectors: Arc<dyn MsiVectors>,
        /// What the guest programs the vector of the queue with.
        message: MsiMessage,
    },
}

/// How a CPU is started that takes interrupts by this handler.
pub type Start = dyn FnOnce(Handler) -> Result<Rc<dyn Cpu>, Box<dyn Error>>;

/// There is no board.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// This machine does not have what the backend needs.
    #[error("cannot run here: {0}")]
    Unavailable(String),
    /// It does, and something went wrong.
    #[error("set-up: {0}")]
    Failed(String),
}

impl PlugError {
    /// Something went wrong.
    pub fn failed(error: impl ToString) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What the guest does with an interrupt.
pub struct Handler {
    /// What it does at the device.
    pub acknowledge: Acknowledge,
    /// Its line, as it was recorded.
    pub line: Recorded,
    /// Triggered when the guest has taken an interrupt.
    pub taken: Arc<dyn Interrupt>,
}

/// What a guest does at a device that has interrupted.
pub enum Acknowledge {
    /// Reads InterruptStatus of virtio-mmio registers and acknowledges what it read.
    Mmio(Arc<dyn BusDevice>),
    /// Reads the ISR status, which clears it.
    Isr(IsrStatus),
    /// Nothing: a message has a reason.
    Message,
}

impl Handler {
    /// The guest has taken the interrupt.
    pub fn taken(&self) {
        // It leads nowhere but to the recorder.
        let _ = self.taken.trigger();
    }

    /// The whole handler: takes the interrupt and acknowledges it at the device. Returns whether that had a reason for it.
    pub fn handle(&self) -> bool {
        self.taken();
        match &self.acknowledge {
            Acknowledge::Mmio(registers) => !acknowledge(&**registers).is_empty(),
            Acknowledge::Isr(isr) => !isr.read().is_empty(),
            Acknowledge::Message => true,
        }
    }
}

/// Records the lines of one row, and once more for the waveform of the whole tour if one was asked for.
pub struct Trace {
    /// The row's own recorder.
    pub recorder: Recorder,
    /// The tour's, and what the row is called there.
    pub waveform: Option<(Recorder, String)>,
}

impl Trace {
    /// Records an edge line.
    pub fn edge(&self, name: &str, line: impl Interrupt + 'static) -> Arc<dyn Interrupt> {
        let line = self.recorder.wrap_edge(name, line);
        match &self.waveform {
            Some((recorder, row)) => Arc::new(recorder.wrap_edge(&format!("{row} {name}"), line)),
            None => Arc::new(line),
        }
    }

    /// Records a level line.
    pub fn level(&self, name: &str, line: impl LevelInterrupt + 'static) -> Arc<dyn LevelInterrupt> {
        let line = self.recorder.wrap_level(name, line);
        match &self.waveform {
            Some((recorder, row)) => Arc::new(recorder.wrap_level(&format!("{row} {name}"), line)),
            None => Arc::new(line),
        }
    }
}

impl Trace {
    /// Records vectors: the first that is asked for as `name.0`, the second as `name.1` and so on.
    pub fn vectors(&self, name: &str, vectors: impl MsiVectors + 'static) -> Arc<dyn MsiVectors> {
        let vectors = self.recorder.wrap_vectors(name, vectors);
        match &self.waveform {
            Some((recorder, row)) => Arc::new(recorder.wrap_vectors(&format!("{row} {name}"), vectors)),
            None => Arc::new(vectors),
        }
    }
}

/// Where drivers sleep whose interrupts another thread takes, a vCPU's. A wake before the sleep is kept; several are one.
#[derive(Clone, Default)]
pub struct Wake {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl Wake {
    /// Ends the sleep, or the next one.
    pub fn wake(&self) {
        let (woken, changed) = &*self.shared;
        *woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }

    /// Sleeps until woken. Returns whether it was.
    pub fn sleep(&self) -> bool {
        let (woken, changed) = &*self.shared;
        let woken = woken.lock().unwrap_or_else(PoisonError::into_inner);
        let result = changed.wait_timeout_while(woken, PATIENCE, |woken| !*woken);
        std::mem::take(&mut *result.unwrap_or_else(PoisonError::into_inner).0)
    }
}
