//! A thread of the embedder's that runs a device: the doorbell wakes it.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use devisor::virtio::{QueueIndex, transport::Doorbell};

/// Keeps a ring until the worker comes for it. Clones are the same bell.
#[derive(Clone, Default)]
pub struct Bell {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    rung: bool,
    busy: bool,
    stop: bool,
}

impl Bell {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.shared.1.notify_all();
    }

    fn sleep_while(&self, mut condition: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        let woken = self.shared.1.wait_while(self.state(), |state| condition(state));
        woken.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Doorbell for Bell {
    fn ring(&self, _queue: QueueIndex) -> io::Result<()> {
        self.change(|state| state.rung = true);
        Ok(())
    }
}

/// A running worker. Dropping it stops the thread.
pub struct Worker {
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Calls `run`, the device's, each time that `bell` has rung.
    ///
    /// # Errors
    /// The operating system has no thread.
    pub fn spawn(bell: &Bell, run: impl Fn() + Send + 'static) -> io::Result<Self> {
        let bell = bell.clone();
        let thread = thread::Builder::new().name("device".into()).spawn({
            let bell = bell.clone();
            move || {
                loop {
                    let mut state = bell.sleep_while(|state| !state.rung && !state.stop);
                    if state.stop {
                        return;
                    }
                    (state.rung, state.busy) = (false, true);
                    drop(state);
                    run();
                    bell.change(|state| state.busy = false);
                }
            }
        })?;
        let thread = Some(thread);
        Ok(Self { bell, thread })
    }

    /// Sleeps until the device has nothing to do: it has asked the driver to kick again.
    pub fn settle(&self) {
        drop(self.bell.sleep_while(|state| state.rung || state.busy));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.bell.change(|state| state.stop = true);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
