//! A device whose requests end when somebody else says so.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use devisor::virtio::{DeviceId, Fault, Handle, QueueHandler, QueueIndex, Round, VirtioDevice, queue::OwnedChain};

/// The requests that are under way, in the order in which they were taken.
#[derive(Clone, Default)]
pub struct Held(Arc<Requests>);

#[derive(Default)]
struct Requests {
    chains: Mutex<Vec<OwnedChain>>,
    obey: AtomicBool,
}

impl Held {
    pub fn count(&self) -> usize {
        self.0.chains.lock().unwrap().len()
    }

    /// Whether the device ends its requests when it is asked to cancel them: the first, third and so on are completed, the others
    /// given back.
    pub fn obey(&self, obey: bool) {
        self.0.obey.store(obey, SeqCst);
    }

    fn drain(&self) -> Vec<OwnedChain> {
        mem::take(&mut *self.0.chains.lock().unwrap())
    }

    /// Takes one of those that are under way, for the caller to end.
    pub fn take(&self, which: usize) -> Option<OwnedChain> {
        let mut held = self.0.chains.lock().unwrap();
        (which < held.len()).then(|| held.remove(which))
    }

    /// Ends one of them: fills what is writable. Whether there is such a one.
    pub fn complete(&self, which: usize) -> bool {
        let chain = self.take(which);
        chain.map(fill).is_some()
    }

    /// Gives one of them back untouched.
    pub fn give_back(&self, which: usize) -> bool {
        self.take(which).map(OwnedChain::give_back).is_some()
    }

    pub fn complete_all(&self) {
        self.drain().into_iter().for_each(fill);
    }
}

/// The byte that it writes.
pub const FILLED: u8 = 0x5a;

fn fill(chain: OwnedChain) {
    let len = chain.writable_len();
    // Whoever takes memory away has taken the data with it.
    let filled = chain.writer().fill(FILLED, len);
    chain.complete(filled.map_or(0, |()| len));
}

/// What becomes of a request that is under way when its queue is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It had an effect, and goes on.
    GoesOn,
    /// It had none, and is given back.
    IsReturned,
}

/// Takes every request. [`Held`] ends them.
pub struct Late {
    sizes: Vec<u16>,
    stopped: Stopped,
    held: Held,
    handle: Arc<Mutex<Option<Handle>>>,
}

impl Late {
    pub fn new(sizes: &[u16], stopped: Stopped) -> Self {
        Self {
            sizes: sizes.to_vec(),
            stopped,
            held: Held::default(),
            handle: Arc::default(),
        }
    }

    pub fn held(&self) -> Held {
        self.held.clone()
    }

    /// Its way to its transport, once it has one.
    pub fn handle(&self) -> Option<Handle> {
        self.handle.lock().unwrap().clone()
    }
}

impl VirtioDevice for Late {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn attach(&mut self, handle: Handle) {
        *self.handle.lock().unwrap() = Some(handle);
    }

    fn cancel(&mut self, _queue: QueueIndex) {
        if self.held.0.obey.load(SeqCst) {
            let end = |(number, chain): (usize, OwnedChain)| match number % 2 {
                0 => fill(chain),
                _ => chain.give_back(),
            };
            self.held.drain().into_iter().enumerate().for_each(end);
        }
    }

    fn start(&mut self, _queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Taker {
            stopped: self.stopped,
            held: self.held(),
        })
    }
}

struct Taker {
    stopped: Stopped,
    held: Held,
}

impl QueueHandler for Taker {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            let chain = chain.take();
            self.held.0.chains.lock().unwrap().push(chain);
        }
        Ok(())
    }

    fn pause(&mut self) {
        if self.stopped == Stopped::IsReturned {
            drop(self.held.drain());
        }
    }
}
