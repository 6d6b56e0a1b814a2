//! Who may change a file in direct I/O: many who write whole blocks, or one who reads a block and writes it back with a part changed.

use std::{sync::Mutex, task::Waker};

use crate::sync::lock;

#[derive(Debug, Default)]
pub struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    shared: usize,
    /// Who wants to be alone, and holds up the others.
    wanting: usize,
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
        let mut state = lock(&self.0);
        if state.shared != 0 {
            state.sleep(waker);
            return None;
        }
        // Under the lock: another one that wants to be alone waits for it.
        let result = alone();
        drop(state);
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
