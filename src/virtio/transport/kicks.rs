//! Which queues were kicked, and who looks at them.
//!
//! Kicks come from any thread, one thread at a time does the work, and none waits for another. A kick marks its queue and
//! counts itself. Who counts from zero does the work of all and goes on until the count has not moved; who finds it under
//! way leaves. So a vCPU that kicks a busy device returns to its guest, an interrupt whose handler runs inside `trigger`
//! and kicks again does not deadlock, and no kick is lost: it is counted after its mark is set, and the worker takes the
//! count back only if it has seen all of it.
//!
//! While paused, kicks mark their queue and nobody works. What is marked then is looked at after the pause.

use std::mem;

use crate::{
    sync::{AtomicU64, Ordering},
    virtio::Round,
};

/// Why nobody is to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Pause {
    /// The embedder says so.
    Embedder = 1 << 0,
    /// The bus does not let the device at memory.
    Bus = 1 << 1,
}

pub(super) struct Kicks {
    /// A bit a queue.
    marks: Box<[AtomicU64]>,
    /// Calls of `run` since the last worker left; zero when there is none.
    requests: AtomicU64,
    /// Why nobody is to work: a bit a reason.
    paused: AtomicU64,
}

impl Kicks {
    pub fn new(queues: usize) -> Self {
        let marks = (0..queues.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self {
            marks,
            requests: AtomicU64::new(0),
            paused: AtomicU64::new(0),
        }
    }

    /// Lets nobody begin a round from here on, or again if there is no other reason. Who ends a pause calls
    /// [`Self::run`] after it. Whether this changed anything.
    pub fn pause(&self, reason: Pause, pause: bool) -> bool {
        let bit = reason as u64;
        let before = match pause {
            true => self.paused.fetch_or(bit, Ordering::SeqCst),
            false => self.paused.fetch_and(!bit, Ordering::SeqCst),
        };
        (before & bit != 0) != pause
    }

    /// Whether nobody is to work now. A round asks this again once it has the device.
    pub fn is_paused(&self) -> bool {
        // A store of the other thread that comes before its count is seen by who has seen the count.
        self.paused.load(Ordering::SeqCst) != 0
    }

    /// Marks a queue as kicked. Follow it with [`Self::run`], here or on a worker.
    pub fn mark(&self, queue: usize) {
        self.marks[queue / 64].fetch_or(1 << (queue % 64), Ordering::SeqCst);
    }

    /// Forgets all marks.
    pub fn clear(&self) {
        for marks in &self.marks {
            marks.store(0, Ordering::SeqCst);
        }
    }

    /// Looks at every marked queue until none is marked, a round of each in turn; or leaves that to the thread which is
    /// doing so already.
    pub fn run(&self, mut round: impl FnMut(usize) -> Round) {
        if self.requests.fetch_add(1, Ordering::SeqCst) != 0 {
            return;
        }
        let mut seen = 1;
        let working = Working(&self.requests);
        loop {
            for (word, marks) in self.marks.iter().enumerate() {
                let mut marked = marks.load(Ordering::SeqCst);
                while marked != 0 && !self.is_paused() {
                    let bit = marked.trailing_zeros();
                    marked &= marked - 1;
                    marks.fetch_and(!(1 << bit), Ordering::SeqCst);
                    if round(64 * word + bit as usize) == Round::More {
                        marks.fetch_or(1 << bit, Ordering::SeqCst);
                        self.requests.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
            match self
                .requests
                .compare_exchange(seen, 0, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return mem::forget(working),
                Err(now) => seen = now,
            }
        }
    }
}

/// Dropped only if a round panics: the next call works then, and finds the marks of those who relied on this one. Without
/// it, a panic of an embedder's line would be the last thing that the device has done.
struct Working<'a>(&'a AtomicU64);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::{
        sync::{Arc, atomic::AtomicU64},
        thread,
    };
    use std::sync::atomic::Ordering::{Relaxed, SeqCst};

    use super::*;

    #[test]
    fn loom_no_kick_is_lost_and_one_thread_works_at_a_time() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let kicks = Arc::new(Kicks::new(2));
            let offered = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let handled = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let workers = Arc::new(AtomicU64::new(0));
            let kick = {
                let (kicks, offered, handled) = (kicks.clone(), offered.clone(), handled.clone());
                move |queue: usize| {
                    offered[queue].fetch_add(1, Relaxed);
                    kicks.mark(queue);
                    kicks.run(|queue| {
                        assert_eq!(workers.fetch_add(1, SeqCst), 0, "two threads work");
                        // One request a round, so that a backlog asks for another one.
                        let (done, there) = (handled[queue].load(Relaxed), offered[queue].load(Relaxed));
                        if done < there {
                            handled[queue].store(done + 1, Relaxed);
                        }
                        workers.fetch_sub(1, SeqCst);
                        if done + 1 < there { Round::More } else { Round::Drained }
                    });
                }
            };
            let vcpus: Vec<_> = [0, 1]
                .map(|queue| {
                    let kick = kick.clone();
                    thread::spawn(move || kick(queue))
                })
                .into();
            kick(0);
            for vcpu in vcpus {
                vcpu.join().unwrap();
            }
            for queue in [0, 1] {
                assert_eq!(
                    handled[queue].load(Relaxed),
                    offered[queue].load(Relaxed),
                    "queue {queue}"
                );
            }
        });
    }

    #[test]
    fn loom_a_kick_around_a_pause_is_looked_at_after_it() {
        loom::model(|| {
            let kicks = Arc::new(Kicks::new(1));
            let (offered, handled) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let run = {
                let (kicks, offered, handled) = (kicks.clone(), offered.clone(), handled.clone());
                move || {
                    kicks.run(|_| {
                        handled.store(offered.load(Relaxed), Relaxed);
                        Round::Drained
                    });
                }
            };
            let vcpu = {
                let (kicks, run) = (kicks.clone(), run.clone());
                thread::spawn(move || {
                    offered.fetch_add(1, Relaxed);
                    kicks.mark(0);
                    run();
                })
            };
            kicks.pause(Pause::Embedder, true);
            kicks.pause(Pause::Embedder, false);
            run();
            vcpu.join().unwrap();
            assert_eq!(handled.load(Relaxed), 1);
        });
    }
}
