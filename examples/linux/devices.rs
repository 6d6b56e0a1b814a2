//! The devices that are the same on both boards: a disk and a source of random numbers, and what runs them.

use std::{
    error::Error,
    io,
    path::Path,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use devisor::{
    bus::Bus,
    event_loop::EventLoop,
    virtio::{
        VirtioTransport,
        block::{Block, BlockOptions, FileStorage},
        entropy::{Entropy, OsRandom},
    },
};
use vm_memory::GuestMemoryMmap;

use crate::{
    completion::{Completion, Gate, completed},
    disk::NotedReads,
    virtio::{Place, Slots},
    watch::{Watch, WatchedSource},
};

/// The disk and the entropy device. They do not run within the guest's kick but after it, by an event loop on the thread of all
/// the rest.
pub struct Devices {
    virtio: [Arc<dyn VirtioTransport>; 2],
    events: EventLoop,
    /// Held while the cores run.
    cores_run: Gate,
    disk_was_read: Arc<AtomicBool>,
}

impl Devices {
    /// Plugs them into `slots`, in which their places are `disk_at` and `entropy_at`. `bus` is that of registers in memory.
    pub fn new(
        [disk_at, entropy_at]: &[Place; 2],
        slots: &Slots<'_>,
        bus: &mut Bus,
        memory: GuestMemoryMmap,
        disk: &Path,
        completion: Completion,
        watch: &Arc<Watch>,
    ) -> Result<Self, Box<dyn Error>> {
        let events = EventLoop::new()?;
        let cores_run = Gate::default();
        // Where another thread is to complete requests, it runs a loop of its own.
        let completing = match completion {
            Completion::Thread => {
                let elsewhere = EventLoop::new()?;
                let run = elsewhere.clone();
                // It ends with the process.
                thread::Builder::new().name("disk".into()).spawn(move || run.run())?;
                elsewhere
            }
            _ => events.clone(),
        };
        let memory = Arc::new(memory);
        let disk_was_read = Arc::new(AtomicBool::new(false));
        let storage = Arc::new(NotedReads::new(FileStorage::open(disk)?, Arc::clone(&disk_was_read)));
        let block = Block::new(Arc::clone(&storage), BlockOptions::default())?;
        let block = completed(block, storage, completion, &completing, Arc::clone(&cores_run));
        let entropy = Entropy::new(WatchedSource::new(OsRandom, Arc::clone(watch)));
        let virtio = [
            slots.plug(disk_at, block, &memory, &events, bus)?,
            slots.plug(entropy_at, entropy, &memory, &events, bus)?,
        ];
        Ok(Self {
            virtio,
            events,
            cores_run,
            disk_was_read,
        })
    }

    /// Runs the cores by `run`, during which no request of the disk ends. `forget` is called before if something of the disk has
    /// got into RAM.
    pub fn with_cores(&self, forget: impl FnOnce(), run: impl FnOnce()) {
        let _runs = self.cores_run.lock().unwrap_or_else(PoisonError::into_inner);
        if self.disk_was_read.swap(false, Ordering::SeqCst) {
            forget();
        }
        run();
    }

    /// Runs the devices that the guest has kicked. Returns whether requests are under way.
    pub fn run(&self) -> io::Result<bool> {
        while self.events.run_once(Duration::ZERO)? {}
        Ok(self.virtio.iter().any(|device| !device.waiting().is_empty()))
    }
}
