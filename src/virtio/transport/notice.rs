//! Telling the driver that the configuration has changed: owed until it is told, and told by one thread.

use std::io;

use crate::sync::{AtomicU64, Ordering};

/// The driver is owed it.
const OWED: u64 = 1 << 0;
/// Nothing is told for now.
const PAUSED: u64 = 1 << 1;
/// A thread is telling.
const TELLING: u64 = 1 << 2;

/// What a device owes its driver, and who tells it, in one word: a pause sees every thread that tells, and none begins after it.
pub(super) struct Notice(AtomicU64);

impl Notice {
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    fn has(&self, bit: u64) -> bool {
        self.0.load(Ordering::SeqCst) & bit != 0
    }

    /// Also while it is told, for it may be refused.
    #[inline]
    pub fn is_owed(&self) -> bool {
        let bits = self.0.load(Ordering::SeqCst);
        bits & OWED != 0 || bits >= TELLING
    }

    pub fn owe(&self) {
        self.0.fetch_or(OWED, Ordering::SeqCst);
    }

    /// The driver is owed nothing: it was reset.
    pub fn forget(&self) {
        self.0.fetch_and(!OWED, Ordering::SeqCst);
    }

    #[inline]
    pub fn is_paused(&self) -> bool {
        self.has(PAUSED)
    }

    /// Lets nobody begin to tell.
    pub fn pause(&self) {
        self.0.fetch_or(PAUSED, Ordering::SeqCst);
    }

    pub fn resume(&self) {
        self.0.fetch_and(!PAUSED, Ordering::SeqCst);
    }

    /// Whether it is paused, and nobody tells any more.
    pub fn is_still(&self) -> bool {
        let bits = self.0.load(Ordering::SeqCst);
        bits & PAUSED != 0 && bits < TELLING
    }

    /// Tells what is owed, by `tell`. A refusal is owed again, and what a line has heard that panics. Calls `reached` if this was the
    /// last thing that a pause waits for.
    pub fn tell(&self, tell: impl FnOnce() -> io::Result<()>, reached: impl Fn()) {
        let begun = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |bits| {
            (bits & (OWED | PAUSED) == OWED).then_some((bits & !OWED) + TELLING)
        });
        if begun.is_err() {
            return;
        }
        let mut telling = Telling {
            notice: &self.0,
            owed: OWED,
            reached,
        };
        if tell().is_ok() {
            telling.owed = 0;
        }
    }
}

/// A thread that tells, until it has, or the line has panicked.
struct Telling<'a, F: Fn()> {
    notice: &'a AtomicU64,
    /// What is left when it ends.
    owed: u64,
    reached: F,
}

impl<F: Fn()> Drop for Telling<'_, F> {
    fn drop(&mut self) {
        let after = |bits: u64| (bits - TELLING) | self.owed;
        let ended = self
            .notice
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |bits| Some(after(bits)));
        if ended.is_ok_and(|before| before & PAUSED != 0 && after(before) < TELLING) {
            (self.reached)();
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::{sync::Arc, thread};
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;

    /// A device whose line has heard so often, and refuses the first so many.
    struct World {
        notice: Notice,
        changes: AtomicU64,
        heard: AtomicU64,
        refuses: AtomicU64,
        inside: AtomicU64,
    }

    impl World {
        fn new(refuses: u64) -> Arc<Self> {
            Arc::new(Self {
                notice: Notice::new(),
                changes: AtomicU64::new(0),
                heard: AtomicU64::new(0),
                refuses: AtomicU64::new(refuses),
                inside: AtomicU64::new(0),
            })
        }

        fn change(&self) {
            self.changes.fetch_add(1, SeqCst);
            self.notice.owe();
            self.tell();
        }

        fn tell(&self) {
            self.notice.tell(
                || {
                    self.inside.fetch_add(1, SeqCst);
                    let refused = self
                        .refuses
                        .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
                        .is_ok();
                    if !refused {
                        // What the driver reads when it is interrupted.
                        let now = self.changes.load(SeqCst);
                        self.heard.fetch_max(now, SeqCst);
                    }
                    self.inside.fetch_sub(1, SeqCst);
                    if refused {
                        Err(io::Error::other("refused"))
                    } else {
                        Ok(())
                    }
                },
                || (),
            );
        }
    }

    #[test]
    fn loom_of_two_changes_the_last_is_heard_also_if_the_line_refuses_once() {
        for refuses in [0, 1] {
            loom::model(move || {
                let world = World::new(refuses);
                let other = {
                    let world = world.clone();
                    thread::spawn(move || world.change())
                };
                world.change();
                other.join().unwrap();
                // The next kick.
                world.tell();
                assert_eq!(world.heard.load(SeqCst), 2);
                assert!(!world.notice.is_owed());
            });
        }
    }

    #[test]
    fn loom_a_change_beside_a_pause_is_told_before_it_is_still_or_after_it() {
        loom::model(|| {
            let world = World::new(0);
            let device = {
                let world = world.clone();
                thread::spawn(move || world.change())
            };
            world.notice.pause();
            let still = world.notice.is_still();
            let inside = world.inside.load(SeqCst);
            assert!(!still || inside == 0, "an interrupt is under way");
            let heard = world.heard.load(SeqCst);
            device.join().unwrap();
            if still {
                assert_eq!(world.heard.load(SeqCst), heard, "told while it was still");
            }
            assert!(world.notice.is_still());
            world.notice.resume();
            world.tell();
            assert_eq!(world.heard.load(SeqCst), 1);
        });
    }
}
