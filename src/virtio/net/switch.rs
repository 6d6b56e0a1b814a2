//! A switch in memory, for guests of one process.

mod sending;

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use vm_memory::VolatileSlice;

use super::{
    Header, Holder, Incoming, MAX_FRAME, MIN_FRAME, Mac, Offloads, Outgoing, Port, PortOffloads, Progress, Received,
    Waker,
    backlog::frame_buffer,
    burst::Burst,
    cut::Cut,
    header::HEADROOM,
    port::{Attached, copy_from, copy_to, length},
    transmit::{Ends, Sink as _, ends},
};
use crate::sync::lock;
use sending::Sending;

/// How a switch is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchOptions {
    /// Frames that wait for a guest at most; and never more than [`bytes`](Self::bytes), and one frame. Further ones are dropped, as
    /// by any switch.
    pub frames: usize,
    /// Bytes that wait for a guest at most. The switch keeps memory for twice as many, and a hundred more for each frame.
    pub bytes: usize,
    /// Addresses that the switch remembers; a power of two is made of it. One that shares its place with another displaces it, and
    /// frames to it go to all ports until it is heard of again.
    pub addresses: usize,
    /// What guests may leave to each other. For those that do not take it, partial checksums are completed, and large packets are cut:
    /// as far as there is room for the pieces.
    pub offloads: Offloads,
}

impl Default for SwitchOptions {
    fn default() -> Self {
        Self {
            frames: 512,
            bytes: 4 << 20,
            addresses: 1024,
            offloads: Offloads::ALL,
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
    /// Large packets for its guest that it does not take, and that cannot be cut: their headers are not those of their kind.
    pub untaken: u64,
}

/// A port of a switch. Dropped, it is gone from it.
pub struct SwitchPort {
    switch: Arc<Inner>,
    shared: Arc<Shared>,
    /// For frames that come one by one.
    scratch: Mutex<Box<[u8]>>,
}

/// A port as the others see it.
struct Shared {
    number: u16,
    waiting: Mutex<Waiting>,
    /// What its guest is at. Who receives has it for all of a round.
    reading: Mutex<Reading>,
    /// Frames and bytes that are left of it.
    left: (AtomicUsize, AtomicUsize),
    /// Moves when what waits is to be forgotten.
    forgets: AtomicU64,
    waker: Attached,
    /// Addresses of the last frame from it.
    last: Mutex<Option<Ends>>,
    full: AtomicU64,
    untaken: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    burst: Burst,
    active: bool,
    /// What its guest takes.
    takes: Offloads,
}

#[derive(Default)]
struct Reading {
    burst: Burst,
    /// As of when.
    forgets: u64,
}

/// As many frames at most are put by who has a port locked.
const AT_ONCE: usize = 64;

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
            reading: Mutex::default(),
            left: Default::default(),
            forgets: AtomicU64::new(0),
            last: Mutex::default(),
            waker: Attached::default(),
            full: AtomicU64::new(0),
            untaken: AtomicU64::new(0),
        });
        changed[free] = Some(Arc::clone(&shared));
        *ports = changed.into();
        let switch = Arc::clone(&self.0);
        SwitchPort {
            switch,
            shared,
            scratch: Mutex::default(),
        }
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
    /// For how many frames there is room, and for how many bytes of all but the last of them.
    fn room(&self, waiting: &Waiting, options: &SwitchOptions) -> (usize, usize) {
        let (frames, bytes) = waiting.burst.waiting();
        let (left, left_bytes) = &self.left;
        let (frames, bytes) = (frames + left.load(Relaxed), bytes + left_bytes.load(Relaxed));
        (
            options.frames.saturating_sub(frames),
            options.bytes.saturating_sub(bytes),
        )
    }

    /// Whether there is no room for another frame.
    fn is_full(&self, waiting: &Waiting, options: &SwitchOptions) -> bool {
        let (frames, bytes) = self.room(waiting, options);
        frames == 0 || bytes == 0
    }

    /// Has a frame wait for the guest, of which `packet` has room for a header in front; in pieces, if the guest does not take it whole.
    fn put(&self, waiting: &mut Waiting, options: &SwitchOptions, header: &Header, packet: &[u8]) {
        if !waiting.active {
            return;
        }
        let frame = &packet[HEADROOM..];
        if header.is_large() && header.checked(frame.len(), waiting.takes).is_err() {
            self.put_cut(waiting, options, header, frame);
        } else if self.is_full(waiting, options) {
            self.full.fetch_add(1, Relaxed);
        } else {
            waiting.burst.room(packet.len())[..packet.len()].copy_from_slice(packet);
            waiting.burst.push(*header, frame.len());
        }
    }

    /// In pieces, as far as there is room.
    #[cold]
    fn put_cut(&self, waiting: &mut Waiting, options: &SwitchOptions, header: &Header, frame: &[u8]) {
        let Some(mut cut) = Cut::new(header, frame) else {
            self.untaken.fetch_add(1, Relaxed);
            return;
        };
        while let Some(piece) = cut.next() {
            if self.is_full(waiting, options) {
                self.full.fetch_add(1, Relaxed);
                return;
            }
            let room = &mut waiting.burst.room(HEADROOM + piece.len())[HEADROOM..];
            piece.write(&mut room[..piece.len()]);
            waiting.burst.push(Header::default(), piece.len());
        }
    }

    fn wake(&self) {
        self.waker.receive();
    }

    /// What waits is forgotten.
    fn forget(&self, waiting: &mut Waiting) {
        waiting.burst = Burst::default();
        self.forgets.fetch_add(1, SeqCst);
        // Who receives now does so when done.
        if let Ok(mut reading) = self.reading.try_lock() {
            *reading = Reading::default();
            self.tell_left(&reading.burst);
        }
    }

    /// Whether there is anything to read, from here on or still.
    fn read_on(&self, reading: &mut Reading) -> bool {
        if reading.forgets != self.forgets.load(SeqCst) {
            reading.burst = Burst::default();
        }
        if reading.burst.is_empty() {
            let mut waiting = lock(&self.waiting);
            reading.burst.clear();
            std::mem::swap(&mut reading.burst, &mut waiting.burst);
            // Nothing of before is in it.
            reading.forgets = self.forgets.load(SeqCst);
            self.tell_left(&reading.burst);
        }
        !reading.burst.is_empty()
    }

    #[inline]
    fn tell_left(&self, burst: &Burst) {
        let (frames, bytes) = burst.waiting();
        self.left.0.store(frames, Relaxed);
        self.left.1.store(bytes, Relaxed);
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
    fn set_active(&self, by: Holder, active: bool) -> io::Result<()> {
        let shared = &self.shared;
        shared.waker.if_held(by, || {
            let mut waiting = lock(&shared.waiting);
            waiting.active = active;
            if !active {
                shared.forget(&mut waiting);
            }
        });
        Ok(())
    }

    fn set_offloads(&self, by: Holder, offloads: Offloads) -> io::Result<()> {
        let shared = &self.shared;
        shared.waker.if_held(by, || lock(&shared.waiting).takes = offloads);
        Ok(())
    }

    fn send(&self, header: &Header, frame: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
        let len = length(frame).min(MAX_FRAME);
        if len < MIN_FRAME {
            return Ok(Progress::Done(()));
        }
        let ports = self.switch.ports();
        let mut kept = lock(&self.scratch);
        if kept.is_empty() {
            *kept = frame_buffer();
        }
        let mut sending = Sending::new(&self.switch, &self.shared, &ports, std::mem::take(&mut kept));
        let packet = &mut sending.room(HEADROOM + len, 0)[..HEADROOM + len];
        copy_from(frame, &mut packet[HEADROOM..]);
        let ends = ends(packet);
        let sent = sending.send(header, len, &ends);
        *kept = sending.end();
        sent
    }

    fn send_all(&self, frames: &mut Outgoing<'_, '_>) {
        let ports = self.switch.ports();
        let mut sending = Sending::new(&self.switch, &self.shared, &ports, frames.take_scratch());
        frames.each_copied(&mut sending);
        frames.put_scratch(sending.end());
    }

    fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>> {
        let mut reading = lock(&self.shared.reading);
        if !self.shared.read_on(&mut reading) {
            return Ok(Progress::Later(None));
        }
        let Some((header, packet)) = reading.burst.first() else {
            return Ok(Progress::Later(None));
        };
        let frame = &packet[HEADROOM..];
        copy_to(frame, room, overflow);
        let len = frame.len();
        reading.burst.pop();
        self.shared.tell_left(&reading.burst);
        Ok(Progress::Done(Received { header, len }))
    }

    fn receive_all(&self, frames: &mut Incoming<'_, '_>) {
        let shared = &*self.shared;
        let mut reading = lock(&shared.reading);
        while shared.read_on(&mut reading) {
            loop {
                if frames.deliver_short(&mut reading.burst) == 0 {
                    let Some((header, packet)) = reading.burst.first() else {
                        break;
                    };
                    if !frames.deliver(header, packet) {
                        return;
                    }
                    reading.burst.pop();
                }
                shared.tell_left(&reading.burst);
            }
        }
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
