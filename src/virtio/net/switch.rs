//! A switch in memory, for guests of one process.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use vm_memory::VolatileSlice;

use super::{
    Header, MAX_FRAME, Mac, Offloads, Port, PortOffloads, Progress, Received, Waker,
    port::{Attached, copy_from, copy_to, length},
};
use crate::sync::lock;

/// How a switch is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchOptions {
    /// Frames that wait for a guest at most; and never more than [`bytes`](Self::bytes), and one frame. Further ones are dropped, as
    /// by any switch.
    pub frames: usize,
    /// Bytes that wait for a guest at most.
    pub bytes: usize,
    /// Addresses that the switch remembers; a power of two is made of it. One that shares its place with another displaces it, and
    /// frames to it go to all ports until it is heard of again.
    pub addresses: usize,
    /// What guests may leave to each other. Partial checksums are completed for those that do not take them; large packets that one does
    /// not take are dropped for it, so offer segmentation only if all guests take it.
    pub offloads: Offloads,
}

impl Default for SwitchOptions {
    fn default() -> Self {
        Self {
            frames: 512,
            bytes: 4 << 20,
            addresses: 1024,
            offloads: Offloads::CHECKSUM,
        }
    }
}

/// A switch: [ports](Self::port) for any number of guests, addresses learned from what they send.
///
/// *Between guests*: one that sends more than another takes loses frames, and holds up nobody. What a guest claims as its address is
/// believed, as by any switch.
///
/// ```
/// use devisor::virtio::net::{Net, NetOptions, Switch, SwitchOptions};
///
/// let switch = Switch::new(SwitchOptions::default());
/// let nics: Vec<_> = (0..2).map(|_| Net::new([switch.port()], NetOptions::default())).collect();
/// assert!(nics.iter().all(Result::is_ok));
/// ```
#[derive(Clone)]
pub struct Switch(Arc<Inner>);

struct Inner {
    options: SwitchOptions,
    /// At the place of each port; empty, once it is gone. Who sends looks at a copy, for those who are woken may change it.
    ports: RwLock<Arc<[Option<Arc<Shared>>]>>,
    /// An address, and the number of its port in the low 16 bits; all ones where there is none.
    addresses: Box<[AtomicU64]>,
}

const NOWHERE: u64 = u64::MAX;

/// What has happened to frames at a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SwitchCounters {
    /// Frames for its guest that were dropped since too many waited.
    pub full: u64,
    /// Frames for its guest that it does not take.
    pub untaken: u64,
}

/// A port of a switch. Dropped, it is gone from it.
pub struct SwitchPort {
    switch: Arc<Inner>,
    shared: Arc<Shared>,
}

/// A port as the others see it.
struct Shared {
    number: u16,
    waiting: Mutex<Waiting>,
    active: AtomicBool,
    /// What its guest takes: features.
    takes: AtomicU64,
    waker: Attached,
    full: AtomicU64,
    untaken: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Stored>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

struct Stored {
    header: Header,
    len: usize,
    /// At least so long.
    data: Vec<u8>,
}

/// Buffers that are kept are this long, or nothing much would be saved.
const KEPT: usize = 2048;

impl Switch {
    /// A switch without ports.
    pub fn new(options: SwitchOptions) -> Self {
        let addresses = options.addresses.clamp(1, 1 << 20).next_power_of_two();
        Self(Arc::new(Inner {
            options,
            ports: RwLock::new(Arc::new([])),
            addresses: (0..addresses).map(|_| AtomicU64::new(NOWHERE)).collect(),
        }))
    }

    /// Another port: the first that is free.
    ///
    /// # Panics
    /// If there are 65535 already.
    pub fn port(&self) -> SwitchPort {
        let mut ports = self.0.ports.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = ports.to_vec();
        let free = changed.iter().position(Option::is_none).unwrap_or(changed.len());
        assert!(free < usize::from(u16::MAX), "a switch has 65535 ports at most");
        if free == changed.len() {
            changed.push(None);
        }
        let shared = Arc::new(Shared {
            number: free as u16,
            waiting: Mutex::default(),
            active: AtomicBool::new(false),
            takes: AtomicU64::new(0),
            waker: Attached::default(),
            full: AtomicU64::new(0),
            untaken: AtomicU64::new(0),
        });
        changed[free] = Some(Arc::clone(&shared));
        *ports = changed.into();
        let switch = Arc::clone(&self.0);
        SwitchPort { switch, shared }
    }

    /// Behind which port an address is, as far as is known: ports count from zero.
    pub fn whereabouts(&self, mac: Mac) -> Option<u16> {
        self.0.find(mac)
    }
}

fn number(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

impl Inner {
    fn ports(&self) -> Arc<[Option<Arc<Shared>>]> {
        Arc::clone(&self.ports.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn place(&self, mac: Mac) -> &AtomicU64 {
        let mixed = number(mac).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.addresses[mixed as usize & (self.addresses.len() - 1)]
    }

    fn learn(&self, mac: Mac, port: u16) {
        let entry = number(mac) << 16 | u64::from(port);
        let place = self.place(mac);
        if place.load(Relaxed) != entry {
            place.store(entry, Relaxed);
        }
    }

    fn find(&self, mac: Mac) -> Option<u16> {
        let entry = self.place(mac).load(Relaxed);
        (entry != NOWHERE && entry >> 16 == number(mac)).then_some(entry as u16)
    }

    /// Forgets all that was behind a port.
    fn forget(&self, port: u16) {
        for place in &self.addresses {
            let entry = place.load(Relaxed);
            if entry != NOWHERE && entry as u16 == port {
                // What was learned meanwhile stays.
                let _ = place.compare_exchange(entry, NOWHERE, Relaxed, Relaxed);
            }
        }
    }
}

impl Shared {
    /// Has a frame wait for the guest. Whether that is to be woken.
    fn deliver(&self, options: &SwitchOptions, header: &Header, frame: &[VolatileSlice<'_>], len: usize) -> bool {
        if !self.active.load(Relaxed) {
            return false;
        }
        if header.is_large()
            && header
                .checked(len, Offloads::from_guest(self.takes.load(Relaxed)))
                .is_err()
        {
            self.untaken.fetch_add(1, Relaxed);
            return false;
        }
        let mut waiting = lock(&self.waiting);
        if waiting.frames.len() >= options.frames || waiting.bytes >= options.bytes {
            drop(waiting);
            self.full.fetch_add(1, Relaxed);
            return false;
        }
        let mut data = waiting.spare.pop().unwrap_or_default();
        if data.len() < len {
            data.resize(len.max(KEPT), 0);
        }
        // At most as long as it was: the guest that sends it cannot make it longer.
        let len = copy_from(frame, &mut data[..len]);
        let header = *header;
        waiting.bytes += len;
        waiting.frames.push_back(Stored { header, len, data });
        waiting.frames.len() == 1
    }

    fn wake(&self) {
        self.waker.receive();
    }
}

impl SwitchPort {
    /// Its number: from zero.
    pub fn number(&self) -> u16 {
        self.shared.number
    }

    /// What was dropped at it.
    pub fn counters(&self) -> SwitchCounters {
        SwitchCounters {
            full: self.shared.full.load(Relaxed),
            untaken: self.shared.untaken.load(Relaxed),
        }
    }
}

impl Port for SwitchPort {
    fn offloads(&self) -> PortOffloads {
        let offloads = self.switch.options.offloads;
        PortOffloads {
            send: offloads,
            receive: offloads,
        }
    }

    fn attach(&self, waker: Waker) {
        self.shared.waker.set(waker);
    }

    /// A port that is not in use has nothing wait for it.
    fn set_active(&self, active: bool) -> io::Result<()> {
        self.shared.active.store(active, Relaxed);
        if !active {
            *lock(&self.shared.waiting) = Waiting::default();
        }
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.shared.takes.store(offloads.guest(), Relaxed);
        Ok(())
    }

    fn send(&self, header: &Header, frame: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
        let mut ends = [0; 12];
        if copy_from(frame, &mut ends) < ends.len() {
            return Ok(Progress::Done(()));
        }
        let len = length(frame).min(MAX_FRAME);
        let mac = |at: usize| Mac(std::array::from_fn(|byte| ends[at + byte]));
        let (to, from) = (mac(0), mac(6));
        let Self { switch, shared } = self;
        if from.is_station() {
            switch.learn(from, shared.number);
        }
        let known = if to.is_group() { None } else { switch.find(to) };
        let deliver =
            |port: &Arc<Shared>| port.number != shared.number && port.deliver(&switch.options, header, frame, len);
        if let Some(number) = known {
            let ports = switch.ports.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(Some(port)) = ports.get(usize::from(number)) {
                let woken = deliver(port).then(|| Arc::clone(port));
                // With nothing locked.
                drop(ports);
                woken.inspect(|port| port.wake());
                return Ok(Progress::Done(()));
            }
        }
        let ports = switch.ports();
        for port in ports.iter().flatten() {
            if deliver(port) {
                port.wake();
            }
        }
        Ok(Progress::Done(()))
    }

    fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>> {
        let mut waiting = lock(&self.shared.waiting);
        let Some(Stored { header, len, data }) = waiting.frames.pop_front() else {
            return Ok(Progress::Later(None));
        };
        waiting.bytes -= len;
        copy_to(&data[..len], room, overflow);
        if data.len() == KEPT {
            // As many as have waited at a time.
            waiting.spare.push(data);
        }
        Ok(Progress::Done(Received { header, len }))
    }
}

impl Drop for SwitchPort {
    fn drop(&mut self) {
        let number = self.shared.number;
        let mut ports = self.switch.ports.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = ports.to_vec();
        if let Some(port) = changed.get_mut(usize::from(number)) {
            *port = None;
        }
        *ports = changed.into();
        // Before somebody else has its number.
        self.switch.forget(number);
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.0.ports();
        f.debug_struct("Switch")
            .field("options", &self.0.options)
            .field("ports", &ports.iter().flatten().count())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SwitchPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwitchPort")
            .field("number", &self.shared.number)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
