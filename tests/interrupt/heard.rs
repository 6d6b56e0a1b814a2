//! A line that tells what it was told.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use devisor::interrupt::{FnLevelInterrupt, level_from_fn};

/// Logs what it is told, and refuses while it is told to.
#[derive(Clone, Default)]
pub struct Heard {
    pub calls: Arc<Mutex<Vec<bool>>>,
    pub refuse: Arc<AtomicBool>,
}

impl Heard {
    pub fn line(&self) -> FnLevelInterrupt<impl Fn(bool) -> io::Result<()> + Send + Sync + use<>> {
        let heard = self.clone();
        level_from_fn(move |up| {
            if heard.refuse.load(SeqCst) {
                return Err(io::Error::other("refused"));
            }
            heard.calls.lock().unwrap().push(up);
            Ok(())
        })
    }

    pub fn calls(&self) -> Vec<bool> {
        self.calls.lock().unwrap().clone()
    }

    pub fn is_up(&self) -> bool {
        self.calls().last() == Some(&true)
    }

    pub fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, SeqCst);
    }
}
