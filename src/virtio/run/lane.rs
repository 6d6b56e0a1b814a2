//! A queue that runs: its handler and who serves it.

use std::{
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    SharedWord,
    order::{Held, Rank},
    turn::Turn,
};
use crate::{
    sync::{Guarded, lock, yield_now},
    virtio::{
        Wait,
        device::QueueHandler,
        queue::{Begin, End, Face, Fault, Queue, QueueCounters, Rest, Stillness, Stop, Word, is_inside},
    },
};

/// A handler and its queue. Fields drop in this order: chains that the handler keeps go back first.
pub(crate) struct Running {
    pub handler: Box<dyn QueueHandler>,
    pub queue: Queue,
}

/// Lanes are served at the same time: none shares a cache line with another.
#[repr(align(128))]
pub(crate) struct Lane {
    pub word: SharedWord,
    /// Of who serves, or holds the word.
    running: Guarded<Option<Running>>,
    /// What can be asked while it is served.
    face: Mutex<Option<Face>>,
    /// What the handler waits for, as it said last.
    waits: Mutex<Vec<Wait>>,
    /// That is anything.
    waiting: AtomicBool,
}

/// What a lane tells those around it.
pub(crate) trait Around {
    /// The device needs a reset.
    fn failed(&self, fault: Fault);
    /// The handler waits for this, and for nothing else any more. This thread has the lane.
    fn waits(&self, waits: &[Wait]);
}

/// A lane whose handler does not know yet that it is stopped. It is not still before that.
pub(crate) struct Untold<'a> {
    lane: &'a Lane,
    turn: Turn<'a>,
}

impl Untold<'_> {
    /// Tells it, with nothing locked. If the stop has ended again by then, this thread goes on as one that serves, for those who came
    /// meanwhile and relied on it.
    pub fn tell(self, around: &dyn Around) {
        self.lane.take_turn(self.turn, End::Tell, true, around);
    }
}

impl Lane {
    pub fn new(stillness: crate::sync::Arc<Stillness>) -> Self {
        Self {
            word: Arc::new(Word::new(stillness)),
            running: Guarded::new(None),
            face: Mutex::new(None),
            waits: Mutex::default(),
            waiting: AtomicBool::new(false),
        }
    }

    /// The driver has enabled the queue.
    pub fn start(&self, running: Running) {
        *lock(&self.face) = Some(running.queue.face());
        self.with_idle(true, |place| *place = Some(running));
        self.word.start();
    }

    /// Takes the handler and the queue away. The lane is still.
    pub fn finish(&self, around: &dyn Around) {
        // While the descriptors are there.
        self.end_waits(around);
        let running = self.with_idle(true, Option::take);
        *lock(&self.face) = None;
        self.word.finish();
        // When it is held no more: a handler's own.
        drop(running);
    }

    /// Opens a lane that no thread serves: for a moment, in which nothing is waited for. If one does: waits for it, or not.
    fn with_idle<R>(&self, patient: bool, f: impl FnOnce(&mut Option<Running>) -> R) -> Option<R> {
        while !self.word.hold() {
            if !patient {
                return None;
            }
            // It is about to end.
            yield_now();
        }
        let _holding = Holding(&self.word);
        // SAFETY: this thread holds the word, so nobody else does, nor serves before that ends.
        let mut running = unsafe { self.running.open() };
        Some(f(&mut running))
    }

    /// Serves the lane if it is marked. `patient`: waits for the round of another thread, if nobody does so yet. `stay`: goes on
    /// until nothing is left or another thread relieves this one. Whether there was a round.
    #[inline]
    pub fn serve(&self, patient: bool, stay: bool, around: &dyn Around) -> bool {
        let begun = self.word.begin(patient && !is_inside()) == Begin::Serve;
        if begun {
            self.take_turn(Turn::new(&self.word), End::Again, stay, around);
        }
        begun
    }

    /// Marks the lane and serves it, as a kick does which nobody else hears. Whether there was a round.
    #[inline]
    pub fn kick_and_serve(&self, around: &dyn Around) -> bool {
        let begun = self.word.kick_and_begin(|| !is_inside()) == Begin::Serve;
        if begun {
            self.take_turn(Turn::new(&self.word), End::Again, true, around);
        }
        begun
    }

    #[inline(never)]
    fn take_turn(&self, turn: Turn<'_>, first: End, stay: bool, around: &dyn Around) {
        let round = || match self.round(around) {
            Ok(rest) => rest == Rest::More,
            Err(fault) => {
                around.failed(fault);
                false
            }
        };
        turn.take(first, stay, round, || self.tell(around));
    }

    #[inline(always)]
    fn round(&self, around: &dyn Around) -> Result<Rest, Fault> {
        let _held = Held::new(self.word.device(), Rank::Lane);
        // SAFETY: this thread serves, as the word says.
        let mut running = unsafe { self.running.open() };
        let Some(Running { handler, queue }) = &mut *running else {
            return Ok(Rest::Drained);
        };
        let rest = {
            let mut round = queue.begin(self.word.is_stopped())?;
            handler.serve(&mut round)?;
            let rest = round.finish()?;
            round.settle();
            // Nothing is left to drop: what that does is not compiled into here twice.
            mem::forget(round);
            rest
        };
        if !queue.waits().is_empty() || self.waiting.load(Ordering::Relaxed) {
            self.tell_waits(queue.waits_mut(), around);
        }
        Ok(rest)
    }

    /// Lets nobody begin from here on. If there is something to tell the handler, it is told with nothing locked.
    #[must_use]
    pub fn begin_stop(&self, reason: Stop) -> Option<Untold<'_>> {
        let tell = self.word.stop(reason) == End::Tell;
        tell.then(|| Untold {
            lane: self,
            turn: Turn::new(&self.word),
        })
    }

    /// Tells the handler of a stop. This thread serves the lane.
    fn tell(&self, around: &dyn Around) {
        let _held = Held::new(self.word.device(), Rank::Lane);
        // SAFETY: this thread serves, as the word says.
        if let Some(Running { handler, queue }) = &mut *unsafe { self.running.open() } {
            handler.pause();
            queue.let_go();
            // What ends the requests under way is still waited for.
            if self.word.chains() == 0 && self.waiting.load(Ordering::Relaxed) {
                queue.waits_mut().clear();
                self.tell_waits(queue.waits_mut(), around);
            }
        }
    }

    /// Tells what the handler waits for now. What counts once is told once: the same again is news.
    #[cold]
    fn tell_waits(&self, waits: &mut Vec<Wait>, around: &dyn Around) {
        let mut said = lock(&self.waits);
        mem::swap(&mut *said, waits);
        self.waiting.store(!said.is_empty(), Ordering::Relaxed);
        around.waits(&said);
    }

    /// Nothing is waited for any more.
    pub fn end_waits(&self, around: &dyn Around) {
        if self.waiting.load(Ordering::Relaxed) {
            self.tell_waits(&mut Vec::new(), around);
        }
    }

    /// What the handler waits for: nothing while the queue is still, also if its last request has ended on a thread that cannot say so.
    pub fn waits(&self) -> Vec<Wait> {
        match self.word.is_still() {
            true => Vec::new(),
            false => lock(&self.waits).clone(),
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
        // First, so that a round which is under way finds the mark when it ends.
        self.word.kick();
        self.with_idle(false, |running| {
            if let Some(Running { queue, .. }) = running {
                queue.let_go();
            }
        });
    }

    /// The queue's state, if it runs. The lane is still.
    pub fn save(&self) -> Option<crate::virtio::queue::QueueState> {
        let save = |running: &mut Option<Running>| Some(running.as_ref()?.queue.save());
        self.with_idle(true, save).flatten()
    }
}

/// Holds a word until it is dropped, by a panic too.
struct Holding<'a>(&'a Word);

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.let_go();
    }
}
