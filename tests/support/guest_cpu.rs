//! How the drivers of a guest wait: asleep, until the guest has taken an interrupt.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    rc::Rc,
    sync::atomic::{Ordering, fence},
    time::Duration,
};

use devisor::backends::recorder::{Awaited, Counts, Line};
use virtio_drivers::Error;

use crate::guest_drivers::Rings;

/// The guest's processor, as its drivers use it.
pub trait Cpu {
    /// Sleeps until the device's interrupt is there, takes it, and handles it: acknowledges it at the device, and ends it.
    /// Goes on sleeping after one for which the device has no reason: a level that was still up for a moment.
    ///
    /// # Errors
    /// It did not come. The text says what did.
    fn take_interrupt(&self) -> Result<(), String>;
}

/// Takes interrupts where a recorder is all that there is: sleeps until the recorded line is raised.
pub struct RecorderCpu {
    line: Line,
    patience: Duration,
    handler: Box<dyn Fn() -> bool>,
    /// How many raises were taken. As with a pending bit, one interrupt is for all raises before it.
    taken: Cell<u64>,
}

impl RecorderCpu {
    /// Takes the interrupts of `line`, by `handler`, which returns whether the device had a reason. An interrupt that does
    /// not come within `patience` is lost.
    pub fn new(line: Line, patience: Duration, handler: impl Fn() -> bool + 'static) -> Self {
        let handler = Box::new(handler);
        let taken = Cell::new(0);
        Self {
            line,
            patience,
            handler,
            taken,
        }
    }
}

impl Cpu for RecorderCpu {
    fn take_interrupt(&self) -> Result<(), String> {
        let wait_for = |awaited, nth| {
            let event = self.line.wait_for(awaited, nth, self.patience);
            event.map(|_| ()).map_err(|error| error.to_string())
        };
        loop {
            // A level that the last acknowledgement left up is not raised again.
            if !self.line.is_up() {
                wait_for(Awaited::Raised, self.taken.get() + 1)?;
            }
            let Counts {
                raised,
                cleared,
                failed,
                ..
            } = self.line.counts();
            self.taken.set(raised);
            if (self.handler)() {
                return Ok(());
            }
            if self.line.is_up() {
                // Who raised it is about to lower it. A real CPU would take the interrupt again and again until then.
                wait_for(Awaited::Any, raised + cleared + failed + 1)?;
            }
        }
    }
}

/// The barrier between telling the device from where on to interrupt and looking at the used ring for the last time
/// (virtio 1.2, section 2.7.10.1). `virtio-drivers` 0.13 leaves it out, so who sleeps until the next interrupt has it here.
pub fn barrier_before_sleep() {
    fence(Ordering::SeqCst);
}

/// Lets a driver sleep where it spins: some of its calls put in a request, kick, and then look at the used ring until
/// the request is there. If the kick itself sleeps until the device has interrupted, the first look finds it.
#[derive(Clone, Default)]
pub struct Sleeper {
    state: Rc<RefCell<Sleep>>,
    /// Where the two rings of each queue are that was set up.
    rings: Rc<RefCell<BTreeMap<u16, Rings>>>,
    found: Rc<Cell<u64>>,
}

#[derive(Default)]
struct Sleep {
    cpu: Option<Rc<dyn Cpu>>,
    kicks: u64,
}

/// A call of a driver went wrong.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The driver says so.
    #[error("the driver says: {0}")]
    Driver(#[from] Error),
    /// The interrupt that it was to be woken by did not come.
    #[error("lost interrupt: {0}")]
    NotWoken(String),
    /// It put in nothing, or it did not kick and the device has not said that it need not: it polled.
    #[error("the driver did not kick for its request: it polled for it")]
    Polled,
}

impl Sleeper {
    /// Runs `call`, during which each kick sleeps until `cpu` has taken an interrupt and the device has used all requests:
    /// have none in flight. A driver that [need not kick](Self::was_found) does not sleep.
    ///
    /// If the interrupt does not come, the driver would spin for ever: it is unwound then. Drop it.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn sleeping<R>(
        &self,
        cpu: &Rc<dyn Cpu>,
        call: impl FnOnce() -> virtio_drivers::Result<R>,
    ) -> Result<R, CallError> {
        let cpu = Some(Rc::clone(cpu));
        *self.state.borrow_mut() = Sleep { cpu, kicks: 0 };
        let before: Vec<_> = self
            .rings
            .borrow()
            .values()
            .map(|rings| rings.made_available())
            .collect();
        // What the call borrows is of no use after it was unwound, as the caller is told.
        let result = panic::catch_unwind(AssertUnwindSafe(call));
        let kicks = self.state.take().kicks;
        match result {
            Ok(result) if kicks > 0 => Ok(result?),
            Ok(result) if self.was_found(&before) => {
                self.found.set(self.found.get() + 1);
                Ok(result?)
            }
            Ok(_) => Err(CallError::Polled),
            Err(payload) => match payload.downcast::<NotWoken>() {
                Ok(error) => Err(CallError::NotWoken(error.0)),
                Err(payload) => panic::resume_unwind(payload),
            },
        }
    }

    /// Whether something was made available since `before`, and the device has found all of it by itself: it asks to be kicked
    /// for what comes next. The look that is due when a driver has started its device can find the first request between the
    /// driver's index and its look at `avail_event`, and so can a round that has not ended the one after its own. The driver
    /// need not kick then (virtio 1.2, section 2.7.10); and as `avail_event` does not go back, it still says so.
    fn was_found(&self, before: &[u16]) -> bool {
        let rings = self.rings.borrow();
        let mut put = rings
            .values()
            .zip(before)
            .filter(|(rings, before)| rings.made_available() != **before)
            .peekable();
        put.peek().is_some() && put.all(|(rings, _)| rings.made_available() == rings.kick_wanted_for())
    }

    /// For how many calls the device has found by itself what they had put in: for none, if it runs in the kick.
    #[allow(dead_code, reason = "for who knows where the device runs")]
    pub fn found(&self) -> u64 {
        self.found.get()
    }

    /// What a transport calls when its driver has set up a queue.
    pub fn queue_set(&self, queue: u16, rings: Rings) {
        self.rings.borrow_mut().insert(queue, rings);
    }

    /// What it calls when that is gone.
    pub fn queue_unset(&self, queue: u16) {
        self.rings.borrow_mut().remove(&queue);
    }

    /// What it calls when it has kicked: sleeps, if it is to.
    pub fn kicked(&self, queue: u16) {
        let mut state = self.state.borrow_mut();
        state.kicks += 1;
        let Some(cpu) = state.cpu.clone() else { return };
        drop(state);
        let rings = self.rings.borrow()[&queue];
        // The interrupt first, then a look: one that a look at the ring would not have needed must come all the same.
        loop {
            if let Err(error) = cpu.take_interrupt() {
                panic::resume_unwind(Box::new(NotWoken(error)));
            }
            if rings.are_even() {
                return;
            }
        }
    }
}

/// What unwinds a driver that would spin for ever.
struct NotWoken(String);
