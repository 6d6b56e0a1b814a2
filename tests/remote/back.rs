//! Back ends of ours: a device that counts, behind a vhost-user socket, on a thread of its own.

use std::{
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use devisor::virtio::{
    DeviceId, DeviceState, DeviceStateError, Fault, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioTransport,
    Wait,
    queue::OwnedChain,
    transport::vhost_user::{VhostUser, VhostUserOptions},
};

pub const QUEUES: usize = 3;
pub const CONFIG: usize = 8;
/// A feature of the device type.
pub const FEATURE: u64 = 1 << 5;

/// What all back ends of a test share, as the file behind a disk.
#[derive(Default)]
pub struct World {
    /// The numbers that were answered, in their order.
    pub answered: Mutex<Vec<u64>>,
    /// Numbers are kept from here on, and answered when this is over.
    pub holds: AtomicBool,
    /// The same for even numbers alone.
    pub holds_even: AtomicBool,
    pub config: Mutex<[u8; CONFIG]>,
    /// What each of them keeps, and moves with its device.
    pub kept: Mutex<Vec<u8>>,
}

impl World {
    pub fn assert_each_answered_once(&self, asked: impl IntoIterator<Item = u64>) {
        let answered = self.answered.lock().unwrap();
        for number in asked {
            let times = answered.iter().filter(|other| **other == number).count();
            assert_eq!(times, 1, "{number} was answered {times} times");
        }
    }
}

/// Answers each number with the one after it.
pub struct Counter(pub Arc<World>);

struct Queue {
    world: Arc<World>,
    held: Vec<OwnedChain>,
}

impl VirtioDevice for Counter {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn features(&self) -> u64 {
        FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64; QUEUES]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = *self.0.config.lock().unwrap();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.0.config.lock().unwrap();
        // The last byte is not the driver's.
        for (at, byte) in (offset as usize..CONFIG - 1).zip(data) {
            config[at] = *byte;
        }
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Queue {
            world: Arc::clone(&self.0),
            held: Vec::new(),
        })
    }

    fn save(&self) -> DeviceState {
        let data = self.0.kept.lock().unwrap().clone();
        DeviceState::Other { version: 1, data }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Other { version: 1, data } = state else {
            return Err(DeviceStateError::kind(state, "one of this test's"));
        };
        *self.0.kept.lock().unwrap() = data.clone();
        Ok(())
    }
}

impl Queue {
    fn answer(&self, chain: OwnedChain) {
        let mut number = [0; 8];
        chain.reader().read(&mut number).unwrap();
        let number = u64::from_le_bytes(number);
        chain.writer().write(&(number + 1).to_le_bytes()).unwrap();
        self.world.answered.lock().unwrap().push(number);
        chain.complete(8);
    }
}

impl QueueHandler for Queue {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        if !self.world.holds.load(SeqCst) && !self.world.holds_even.load(SeqCst) {
            let held = std::mem::take(&mut self.held);
            held.into_iter().for_each(|chain| self.answer(chain));
        }
        while let Some(chain) = round.next()? {
            let chain = chain.take();
            let mut number = [0; 8];
            let even = chain.reader().read(&mut number).is_ok() && number[0] % 2 == 0;
            match self.world.holds.load(SeqCst) || even && self.world.holds_even.load(SeqCst) {
                true => self.held.push(chain),
                false => self.answer(chain),
            }
        }
        Ok(())
    }

    fn pause(&mut self) {
        for chain in self.held.drain(..) {
            chain.give_back();
        }
    }
}

/// A back end on a thread, until it is dropped.
pub struct Back {
    pub device: Arc<VhostUser<Counter>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Back {
    pub fn new(world: &Arc<World>, stream: UnixStream) -> Self {
        Self::with(world, stream, VhostUserOptions::default())
    }

    pub fn with(world: &Arc<World>, stream: UnixStream, options: VhostUserOptions) -> Self {
        let device = Arc::new(VhostUser::new(Counter(Arc::clone(world)), options).unwrap());
        device.connect(stream).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (device, stop) = (Arc::clone(&device), Arc::clone(&stop));
            move || serve(&device, &stop)
        });
        Self {
            device,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let ended = self.thread.take().unwrap().join();
        if ended.is_err() && !thread::panicking() {
            panic!("the back end has panicked");
        }
    }
}

fn serve(device: &VhostUser<Counter>, stop: &AtomicBool) {
    while !stop.load(SeqCst) {
        let queues = (0..QUEUES as u16).map(QueueIndex);
        let mut waits = device.connection_waits();
        waits.extend(queues.clone().flat_map(|queue| device.waits(queue)));
        let mut polled: Vec<_> = waits
            .iter()
            .filter_map(|wait| match wait {
                Wait::Readable(fd) => Some((*fd, libc::POLLIN)),
                Wait::Writable(fd) => Some((*fd, libc::POLLOUT)),
                _ => None,
            })
            .map(|(fd, events)| libc::pollfd { fd, events, revents: 0 })
            .collect();
        // SAFETY: the entries outlive the call.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, 5) };
        if device.serve_connection().is_err() {
            return;
        }
        queues.for_each(|queue| _ = device.serve(queue));
    }
    // As when a process ends: nothing is said any more.
    device.disconnect();
}

/// A pair of sockets: the back end is on a thread at the other end.
pub fn pair() -> (UnixStream, UnixStream) {
    let (front, back) = UnixStream::pair().unwrap();
    assert!(front.as_raw_fd() >= 0);
    (front, back)
}
