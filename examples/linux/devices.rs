//! The virtio devices: on every board a disk and a source of random numbers, with `--devices all` those of `more/`; and what runs
//! them.

use std::{
    error::Error,
    io,
    sync::{
        Arc, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use devisor::{
    bus::Bus,
    event_loop::EventLoop,
    virtio::{
        QueueIndex, VirtioTransport, Wait,
        block::BlockOptions,
        entropy::{Entropy, OsRandom},
        iommu::{EndpointId, Iommu},
    },
};

use crate::{
    completion::{Completion, Gate},
    more::{self, Around, More, Room},
    ram::Ram,
    verdict::Check,
    virtio::{Place, Slots},
    watch::WatchedSource,
    wing::Plan,
};

/// All virtio devices of a board. They do not run within the guest's kick but after it, by an event loop on the thread of all
/// the rest.
pub struct Devices {
    virtio: Vec<Arc<dyn VirtioTransport>>,
    /// What is not on every board.
    more: Vec<More>,
    events: EventLoop,
    /// Held while the cores run.
    cores_run: Gate,
    disk_was_read: Arc<AtomicBool>,
    disk_requests: OnceLock<Vec<u64>>,
}

impl Devices {
    /// Plugs them into `slots`, in which the places of the two that are always there are `disk_at` and `entropy_at`. `bus` is that
    /// of registers in memory. `iommu` has made what some see of memory, and one of its endpoints accesses what it may not.
    pub fn new(
        plan: &Plan<'_>,
        [disk_at, entropy_at]: &[Place; 2],
        room: &Room,
        slots: &Slots<'_>,
        bus: &mut Bus,
        ram: &Ram,
        iommu: Option<(Place, Iommu, EndpointId)>,
    ) -> Result<Self, Box<dyn Error>> {
        let (completion, memory) = (plan.options.completion, ram.memory());
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
        let disk_was_read = Arc::new(AtomicBool::new(false));
        let options = BlockOptions {
            queues: plan.options.queues,
            ..BlockOptions::default()
        };
        let ends = (completion, &completing, Arc::clone(&cores_run));
        let block = plan
            .disk
            .device(options, plan.options.runs, &events, &disk_was_read, ends)?;
        let entropy = Entropy::new(WatchedSource::new(OsRandom, Arc::clone(plan.watch)));
        let mut virtio = vec![
            slots.plug(disk_at, block, memory, &events, bus)?.transport(),
            slots.plug(entropy_at, entropy, memory, &events, bus)?.transport(),
        ];
        let mut others = Vec::new();
        for (place, plug) in plan.options.devices.more(room) {
            let (device, added) = plug(Around {
                place,
                room,
                slots,
                memory,
                events: &events,
                bus,
                persistent: ram.file(),
            })?;
            virtio.push(device);
            others.push(added);
        }
        if let Some((place, iommu, endpoint)) = iommu {
            let around = Around {
                place,
                room,
                slots,
                memory,
                events: &events,
                bus,
                persistent: None,
            };
            let (device, added) = more::iommu::plug(around, iommu, endpoint)?;
            virtio.push(device);
            others.push(added);
        }
        Ok(Self {
            virtio,
            more: others,
            events,
            cores_run,
            disk_was_read,
            disk_requests: OnceLock::new(),
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

    /// The guest has printed a line.
    pub fn hear(&self, line: &str) -> Result<(), Box<dyn Error>> {
        if line.starts_with("guest: disk has") {
            let counters = (0..).map_while(|queue| self.virtio[DISK].queue_counters(QueueIndex(queue)));
            self.disk_requests
                .get_or_init(|| counters.map(|counters| counters.requests).collect());
        }
        self.more.iter().try_for_each(|more| more.hear(line))
    }

    /// What has come of what is not on every board.
    pub fn check(&self, console: &str) -> Vec<(&'static str, Check)> {
        self.more.iter().flat_map(|more| more.check(console)).collect()
    }

    /// Runs the devices that the guest has kicked, or for which the host has something.
    pub fn run(&self) -> io::Result<()> {
        while self.events.run_once(Duration::ZERO)? {}
        Ok(())
    }

    /// The same, once there is something to run, but for no longer than `limit`.
    pub fn wait(&self, limit: Duration) -> io::Result<()> {
        self.events.run_once(limit)?;
        Ok(())
    }

    /// Whether something is awaited that takes the host's time: requests that are under way, or what a device has behind it.
    pub fn awaits_host(&self) -> bool {
        (0..).zip(&self.virtio).any(|(number, device)| {
            let mut queues = device.waiting().into_iter();
            // A disk without a request under way has nothing to tell.
            queues.any(|(queue, under_way)| {
                under_way != 0 || number != DISK && device.waits(queue).iter().any(is_of_host)
            })
        })
    }

    /// How many requests each queue of the disk has had, until the guest has told how many queues it has.
    pub fn disk_requests(&self) -> &[u64] {
        self.disk_requests.get().map_or(&[], Vec::as_slice)
    }
}

/// Its place in the list.
const DISK: usize = 0;

fn is_of_host(wait: &Wait) -> bool {
    matches!(wait, Wait::Readable(_) | Wait::Writable(_))
}
