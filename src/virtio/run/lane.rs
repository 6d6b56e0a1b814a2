//! A queue that runs: its handler and who serves it.

use std::sync::{Arc, Mutex, TryLockError};

use super::{
    SharedWord,
    turn::{Turn, is_serving},
};
use crate::{
    sync::lock,
    virtio::{
        device::QueueHandler,
        queue::{Begin, End, Face, Fault, Queue, QueueCounters, Rest, Stillness, Stop, Word},
    },
};

/// A handler and its queue. Fields drop in this order: chains that the handler keeps go back first.
pub(crate) struct Running {
    pub handler: Box<dyn QueueHandler>,
    pub queue: Queue,
}

pub(crate) struct Lane {
    pub word: SharedWord,
    /// Locked by who serves, or when it is still.
    running: Mutex<Option<Running>>,
    /// What can be asked while it is served.
    face: Mutex<Option<Face>>,
}

impl Lane {
    pub fn new(stillness: crate::sync::Arc<Stillness>) -> Self {
        Self {
            word: Arc::new(Word::new(stillness)),
            running: Mutex::new(None),
            face: Mutex::new(None),
        }
    }

    /// The driver has enabled the queue.
    pub fn start(&self, running: Running) {
        *lock(&self.face) = Some(running.queue.face());
        *lock(&self.running) = Some(running);
        self.word.start();
    }

    /// Takes the handler and the queue away. The lane is still.
    pub fn finish(&self) {
        let running = lock(&self.running).take();
        *lock(&self.face) = None;
        self.word.finish();
        // Outside of the lock: a handler's own.
        drop(running);
    }

    /// Serves the lane if it is marked. `patient`: waits for the round of another thread, if nobody does so yet. `stay`: goes on
    /// until nothing is left or another thread relieves this one. Whether there was a round.
    #[inline]
    pub fn serve(&self, patient: bool, stay: bool, fail: &dyn Fn(Fault)) -> bool {
        if self.word.begin(patient && !is_serving()) == Begin::Leave {
            return false;
        }
        self.take_turn(End::Again, stay, fail);
        true
    }

    #[inline]
    fn take_turn(&self, first: End, stay: bool, fail: &dyn Fn(Fault)) {
        let round = || match self.round() {
            Ok(rest) => rest == Rest::More,
            Err(fault) => {
                fail(fault);
                false
            }
        };
        Turn::new(&self.word).take(first, stay, round, || self.tell());
    }

    #[inline]
    fn round(&self) -> Result<Rest, Fault> {
        let mut running = lock(&self.running);
        let Some(Running { handler, queue }) = &mut *running else {
            return Ok(Rest::Drained);
        };
        let mut round = queue.begin(self.word.is_stopped())?;
        handler.serve(&mut round)?;
        Ok(round.end()?)
    }

    /// Lets nobody begin from here on, and has the handler told of it. If the stop has ended again by then, this thread goes on as
    /// one that serves, for those who came meanwhile and relied on it.
    pub fn stop(&self, reason: Stop, fail: &dyn Fn(Fault)) {
        if self.word.stop(reason) == End::Tell {
            self.take_turn(End::Tell, true, fail);
        }
    }

    /// Tells the handler of a stop. This thread serves the lane.
    fn tell(&self) {
        if let Some(Running { handler, queue }) = &mut *lock(&self.running) {
            handler.pause();
            queue.let_go();
        }
    }

    /// Nothing is written to the ring any more.
    pub fn close(&self) {
        if let Some(face) = &*lock(&self.face) {
            face.close();
        }
    }

    pub fn counters(&self) -> Option<QueueCounters> {
        lock(&self.face).as_ref().map(Face::counters)
    }

    /// Guest memory has changed: lets go of what is no longer in it. A round that is under way is followed by another one.
    pub fn memory_changed(&self) {
        // First, so that a round which has the lock finds the mark when it ends.
        self.word.kick();
        match self.running.try_lock() {
            Ok(mut running) => {
                if let Some(Running { queue, .. }) = &mut *running {
                    queue.let_go();
                }
            }
            Err(TryLockError::Poisoned(poisoned)) => {
                if let Some(Running { queue, .. }) = &mut *poisoned.into_inner() {
                    queue.let_go();
                }
            }
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// The queue's state, if it runs. The lane is still.
    pub fn save(&self) -> Option<crate::virtio::queue::QueueState> {
        lock(&self.running).as_ref().map(|running| running.queue.save())
    }
}
