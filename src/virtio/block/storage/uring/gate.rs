//! Who may change a file in direct I/O: many who write whole blocks, or one who reads a block and writes it back with a part changed.

use std::{sync::Mutex, task::Waker};

use crate::sync::lock;

#[derive(Debug, Default)]
pub struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    shared: usize,
    /// Who wants to be alone, or is, and holds up the others.
    wanting: usize,
    /// One of them is.
    alone: bool,
    sleeping: Vec<Waker>,
}

impl Gate {
    /// Passes with others. If not, `waker` is called when it may be tried again.
    pub fn share(&self, waker: &Waker) -> bool {
        let mut state = lock(&self.0);
        match state.wanting {
            0 => {
                state.shared += 1;
                true
            }
            _ => {
                state.sleep(waker);
                false
            }
        }
    }

    pub fn leave(&self) {
        let woken = {
            let mut state = lock(&self.0);
            state.shared -= 1;
            match state.shared {
                0 => std::mem::take(&mut state.sleeping),
                _ => return,
            }
        };
        woken.iter().for_each(Waker::wake_by_ref);
    }

    /// From here on nobody else passes.
    pub fn want(&self) {
        lock(&self.0).wanting += 1;
    }

    /// Does `alone` with nobody else inside, if that is so: then it is not [wanted](Self::want) any more. If not, `waker` is called
    /// when it may be tried again.
    pub fn alone<R>(&self, waker: &Waker, alone: impl FnOnce() -> R) -> Option<R> {
        {
            let mut state = lock(&self.0);
            if state.shared != 0 || state.alone {
                state.sleep(waker);
                return None;
            }
            state.alone = true;
        }
        // Nothing is locked: it takes as long as the disk does, and whoever serves another queue must not wait so long.
        let result = alone();
        lock(&self.0).alone = false;
        self.want_no_more();
        Some(result)
    }

    /// Who wanted to be alone does not.
    pub fn want_no_more(&self) {
        let woken = {
            let mut state = lock(&self.0);
            state.wanting -= 1;
            std::mem::take(&mut state.sleeping)
        };
        woken.iter().for_each(Waker::wake_by_ref);
    }
}

impl State {
    fn sleep(&mut self, waker: &Waker) {
        if !self.sleeping.iter().any(|other| other.will_wake(waker)) {
            self.sleeping.push(waker.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_is_alone_holds_up_nobody_who_asks_and_wakes_them_then() {
        let (gate, woken) = (Gate::default(), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        gate.want();
        gate.want();
        let noop = Waker::noop();
        let done = gate.alone(noop, || {
            // From the threads of other queues: refused at once, where the disk has yet to answer.
            assert!(!gate.share(&waker));
            assert_eq!(gate.alone(&waker, || panic!("two are alone")), None::<()>);
            7
        });
        assert_eq!((done, woken.0.load(Ordering::Relaxed)), (Some(7), 1));
        assert!(!gate.share(noop), "the other one is still to come");
        assert_eq!(gate.alone(noop, || 8), Some(8));
        assert!(gate.share(noop));
        gate.want();
        assert_eq!(gate.alone(noop, || panic!("somebody is inside")), None::<i32>);
        gate.leave();
        assert_eq!(gate.alone(noop, || 9), Some(9));
    }
}
