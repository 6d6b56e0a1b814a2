//! A machine with a device that a back end serves, and its driver.

use std::{
    fs::File,
    io,
    os::{fd::FromRawFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use devisor::{
    interrupt::{Interrupt, MsiVectors},
    time::{Clock, HostClock},
    virtio::{
        DeviceId,
        remote::{ConfigSpace, Connect, Remote, RemoteOptions},
        transport::{TransportOptions, vhost_user::VhostUserOptions},
    },
};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::{
    back::{Back, CONFIG, QUEUES, World, pair},
    machine::{Bus, Machine},
    poll::poll,
    ring::{readable, writable},
};

pub const MEMORY: u64 = 16 << 20;

pub fn memfd(len: u64) -> File {
    // SAFETY: the name is a string, and the descriptor nobody else's.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len).unwrap();
    file
}

/// Guest memory that can be shared, in so many regions that adjoin.
pub fn shared_memory(regions: u64) -> Arc<GuestMemoryMmap> {
    let len = MEMORY / regions;
    let regions = (0..regions).map(|at| {
        let file = FileOffset::new(memfd(len), 0);
        (GuestAddress(at * len), len as usize, Some(file))
    });
    Arc::new(GuestMemoryMmap::from_ranges_with_files(regions).unwrap())
}

pub fn options() -> RemoteOptions {
    let mut options = RemoteOptions::new(DeviceId(42));
    options.queues = Some(QUEUES as u16);
    options.queue_size = 64;
    options.config = ConfigSpace::BackEnd(CONFIG as u16);
    options.patience = Duration::from_secs(5);
    options.retry = Duration::from_millis(1);
    options
}

/// How often the driver was interrupted.
#[derive(Default)]
pub struct Interrupts(pub AtomicU64);

impl Interrupt for Interrupts {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, SeqCst);
        Ok(())
    }
}

/// Back ends come when they are called for: each from `make`, at the end of a socket.
pub type Backs = Arc<Mutex<Vec<Back>>>;

pub fn connect_to(world: &Arc<World>) -> (impl FnMut() -> io::Result<UnixStream> + Send + use<>, Backs) {
    connect_with(world, VhostUserOptions::default())
}

pub fn connect_with(
    world: &Arc<World>,
    options: VhostUserOptions,
) -> (impl FnMut() -> io::Result<UnixStream> + Send + use<>, Backs) {
    let backs = Backs::default();
    let (world, made) = (Arc::clone(world), Arc::clone(&backs));
    let connect = move || {
        let (front, back) = pair();
        made.lock().unwrap().push(Back::with(&world, back, options.clone()));
        Ok(front)
    };
    (connect, backs)
}

pub struct Front {
    pub machine: Machine<Remote>,
    pub interrupts: Arc<Interrupts>,
    clock: HostClock,
    next: u64,
    /// Numbers that were asked, by queue, in the order of the ring.
    asked: Vec<(u16, u64, u64)>,
}

impl Front {
    pub fn cold(
        bus: Bus,
        connect: impl Connect + 'static,
        memory: Arc<GuestMemoryMmap>,
        options: RemoteOptions,
    ) -> Self {
        let device = Remote::new(connect, Arc::clone(&memory), options).unwrap();
        let device = device.with_clock(HostClock::starting_at(Duration::ZERO));
        let interrupts = Arc::new(Interrupts::default());
        let machine = Machine::with_interrupt(bus, device, memory, Arc::clone(&interrupts) as _);
        Self::of(machine, interrupts)
    }

    /// Behind virtio-mmio, of these options.
    pub fn cold_with(
        connect: impl Connect + 'static,
        memory: Arc<GuestMemoryMmap>,
        options: RemoteOptions,
        transport: &TransportOptions,
    ) -> Self {
        let device = Remote::new(connect, Arc::clone(&memory), options).unwrap();
        let device = device.with_clock(HostClock::starting_at(Duration::ZERO));
        Self::of(Machine::with_options(device, memory, transport), Arc::default())
    }

    /// Behind PCI, with vectors that somebody hears.
    pub fn with_vectors(connect: impl Connect + 'static, vectors: Arc<dyn MsiVectors>) -> Self {
        let memory = shared_memory(1);
        let device = Remote::new(connect, Arc::clone(&memory), options()).unwrap();
        let device = device.with_clock(HostClock::starting_at(Duration::ZERO));
        Self::of(Machine::with_vectors(device, memory, vectors), Arc::default())
    }

    fn of(machine: Machine<Remote>, interrupts: Arc<Interrupts>) -> Self {
        Self {
            machine,
            interrupts,
            clock: HostClock::starting_at(Duration::ZERO),
            next: 1000,
            asked: Vec::new(),
        }
    }

    pub fn started(bus: Bus, connect: impl Connect + 'static, features: u64) -> Self {
        let mut front = Self::cold(bus, connect, shared_memory(1), options());
        front.machine.start(features);
        front
    }

    /// Reset by its driver: what was asked before is forgotten.
    pub fn forget(&mut self) {
        self.asked.clear();
        self.machine.set_status(0);
        assert_eq!(self.machine.transport().status(), 0);
    }

    /// The same, and driven anew.
    pub fn restart(&mut self, features: u64) {
        self.forget();
        self.machine.start(features);
    }

    /// The driver of `other`, and what it has asked, are this one's.
    pub fn take_driver(&mut self, other: &mut Self) {
        self.machine.take_driver(&mut other.machine);
        self.asked.append(&mut other.asked);
        self.next = other.next;
    }

    /// Works as an event loop does until `done`. Whether it came in time.
    pub fn work_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        loop {
            poll(&self.machine, self.clock.now());
            if done(self) {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks the next number on `queue`.
    pub fn ask(&mut self, queue: u16) -> u64 {
        let number = self.next;
        self.next += 1;
        let (at, answer) = (self.machine.place(queue, 8), self.machine.place(queue, 8));
        self.machine.fill(at, &number.to_le_bytes());
        self.machine.fill(answer, &[0; 8]);
        self.machine.offer(queue, &[readable(at, 8), writable(answer, 8)]);
        self.asked.push((queue, number, answer));
        number
    }

    /// Whether all that was asked is answered, and used as often as it was asked.
    pub fn is_answered(&mut self) -> bool {
        let bytes = |at| u64::from_le_bytes(self.machine.bytes(at, 8).try_into().unwrap());
        let answered = self.asked.iter().all(|(_, number, at)| bytes(*at) == number + 1);
        let used = |queue: u16| {
            let ring = &self.machine.rings[usize::from(queue)];
            ring.used_idx() == ring.avail_idx()
        };
        answered && (0..self.machine.rings.len() as u16).all(used)
    }

    pub fn settle(&mut self) {
        let answered = self.work_until(Duration::from_secs(10), Self::is_answered);
        assert!(answered, "not answered; failures: {:?}", self.failures());
    }

    pub fn failures(&self) -> devisor::virtio::HostFailures {
        self.machine.with_device(|device| device.host_failures())
    }

    pub fn returns(&self) -> u64 {
        self.machine.with_device(|device| device.returns())
    }
}
