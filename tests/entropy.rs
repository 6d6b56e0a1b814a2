//! The entropy device: what a driver gets, and what it never gets.

#[path = "support/ring.rs"]
mod ring;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    memory::Memory,
    virtio::{
        DeviceId, DeviceState, Fault, Queue, QueueHandler, QueueIndex, VirtioDevice, VirtioMmio, VirtioTransport,
        entropy::{Entropy, EntropyState, MAX_BYTES_PER_REQUEST, SeededRandom, Source},
        features,
        queue::{Rest, VirtioInterrupt},
        transport::mmio::Line,
    },
};
use proptest::prelude::*;
use ring::{Buffer, Ring, memory, readable, writable};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const DATA: u64 = 0x4_0000;

/// Counts signals, and refuses them on demand.
#[derive(Default)]
struct Signals {
    used: AtomicU32,
    refuse: AtomicBool,
}

impl VirtioInterrupt for Signals {
    fn used(&self, _: &[QueueIndex]) -> io::Result<()> {
        if self.refuse.load(Ordering::SeqCst) {
            return Err(io::Error::other("refused"));
        }
        self.used.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn config_changed(&self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&self) {}
}

/// An entropy device without a transport.
struct Setup {
    memory: Arc<GuestMemoryMmap>,
    ring: Ring,
    queue: Queue,
    handler: Box<dyn QueueHandler>,
    rng: Entropy,
    signals: Arc<Signals>,
}

impl Setup {
    fn new(rng: Entropy) -> Self {
        Self::negotiated(rng, features::COMMON & !features::EVENT_IDX)
    }

    fn negotiated(mut rng: Entropy, accepted: u64) -> Self {
        let memory = memory();
        let ring = Ring::new(&memory, 0x1000, 64);
        let signals = Arc::new(Signals::default());
        let space = Memory::new(Arc::clone(&memory));
        let queue = Queue::new(QueueIndex(0), 64, ring.layout, accepted, &space, signals.clone() as _);
        Self {
            ring,
            queue: queue.expect("a valid layout"),
            handler: rng.start(QueueIndex(0)),
            rng,
            memory,
            signals,
        }
    }

    fn round(&mut self) -> Result<Rest, Fault> {
        let mut round = self.queue.round()?;
        self.handler.serve(&mut round)?;
        Ok(round.end()?)
    }

    /// Has the device look at its queue. What was used, and what is left.
    fn look(&mut self) -> (Vec<u32>, Rest) {
        let rest = self.round().expect("a ring that keeps the rules");
        (self.ring.used().into_iter().map(|(_, len)| len).collect(), rest)
    }

    /// The same, where nothing is left.
    fn process(&mut self) -> Vec<u32> {
        let (used, rest) = self.look();
        assert_eq!(rest, Rest::Drained);
        used
    }

    /// Asks for `len` bytes in one buffer. What was used of it, and that nothing else was touched.
    fn ask(&mut self, len: u32) -> Vec<u8> {
        self.fill(&vec![0xee; len as usize + 1]);
        self.ring.request(&[writable(DATA, len)]);
        let used = self.process();
        assert_eq!(used.len(), 1);
        let mut bytes = self.get(len as usize + 1);
        let rest = bytes.split_off(used[0] as usize);
        assert!(rest.iter().all(|&byte| byte == 0xee), "written beyond the used length");
        bytes
    }

    fn fill(&self, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(DATA))
            .expect("in guest memory");
    }

    fn get(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(DATA))
            .expect("in guest memory");
        bytes
    }
}

/// Gives so many times, then fails until it is given more.
#[derive(Clone, Default)]
struct Rationed(Arc<AtomicU32>);

impl Rationed {
    fn give(&self, calls: u32) {
        self.0.store(calls, Ordering::SeqCst);
    }
}

impl Source for Rationed {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        // Also what it then fails at.
        bytes.fill(0x77);
        let take = |left: u32| left.checked_sub(1);
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        left.map(|_| ()).map_err(|_| io::Error::other("nothing left"))
    }
}

#[test]
fn a_request_is_filled_from_its_first_to_its_last_byte() {
    for len in [1, 7, 8, 511, 512, 513, 4096] {
        let mut s = Setup::new(Entropy::seeded(1));
        let mut expected = vec![0; len as usize];
        SeededRandom::new(1).fill(&mut expected).unwrap();
        assert_eq!(s.ask(len), expected, "{len}");
    }
}

#[test]
fn a_request_in_many_buffers_is_filled_through_all_of_them() {
    let mut s = Setup::new(Entropy::seeded(3));
    let whole = s.ask(1200);
    let mut s = Setup::new(Entropy::seeded(3));
    let pieces = [1, 0, 510, 2, 687].iter().scan(DATA, |at, &len| {
        *at += u64::from(len);
        Some(writable(*at - u64::from(len), len))
    });
    let pieces: Vec<_> = pieces.collect();
    s.ring.request(&pieces);
    assert_eq!(s.process(), [1200]);
    assert_eq!(s.get(1200), whole);
}

#[test]
fn no_request_is_given_more_than_the_maximum() {
    let mut s = Setup::new(Entropy::seeded(1));
    let bytes = s.ask(MAX_BYTES_PER_REQUEST + 1);
    assert_eq!(bytes.len(), MAX_BYTES_PER_REQUEST as usize);
}

#[test]
fn every_request_in_the_queue_gets_its_own_bytes() {
    let mut s = Setup::new(Entropy::from_os());
    for request in 0..64 {
        s.ring.request(&[writable(DATA + 32 * request, 32)]);
    }
    // A queue's length is a round's budget.
    assert_eq!(s.look(), (vec![32; 64], Rest::More));
    assert!(s.process().is_empty());
    let bytes = s.get(64 * 32);
    let distinct: std::collections::HashSet<_> = bytes.chunks(32).collect();
    assert_eq!(distinct.len(), 64);
}

#[test]
fn the_operating_system_does_not_repeat_itself() {
    let one = Setup::new(Entropy::from_os()).ask(64);
    let two = Setup::new(Entropy::from_os()).ask(64);
    assert_ne!(one, two);
    assert_eq!(one.len(), 64);
}

#[test]
fn equal_seeds_give_equal_bytes_and_others_do_not() {
    let bytes = |seed| Setup::new(Entropy::seeded(seed)).ask(64);
    assert_eq!(bytes(5), bytes(5));
    assert_ne!(bytes(5), bytes(6));
}

// Sources that fail.

#[test]
fn a_request_that_the_source_fails_waits_and_is_answered_later() {
    for accepted in [features::COMMON, features::COMMON & !features::EVENT_IDX] {
        let source = Rationed::default();
        let mut s = Setup::negotiated(Entropy::new(source.clone()), accepted);
        s.fill(&[0xee; 16]);
        s.ring.request(&[writable(DATA, 16)]);
        assert_eq!(s.look(), (Vec::new(), Rest::Left));
        assert_eq!(s.look(), (Vec::new(), Rest::Left));
        assert_eq!(s.get(16), [0xee; 16]);
        assert_eq!(s.rng.host_failures().count, 2);
        source.give(1);
        assert_eq!(s.process(), [16]);
        assert_eq!(s.get(16), [0x77; 16]);
    }
}

#[test]
fn a_request_that_the_source_fails_midway_gets_what_there_was() {
    let source = Rationed::default();
    source.give(2);
    let mut s = Setup::new(Entropy::new(source));
    let bytes = s.ask(2000);
    assert!(!bytes.is_empty() && bytes.len() < 2000);
    assert!(bytes.iter().all(|&byte| byte == 0x77));
    assert_eq!(s.rng.host_failures().count, 1);
}

#[test]
fn a_waiting_request_is_in_no_ones_hands() {
    let source = Rationed::default();
    let mut s = Setup::new(Entropy::new(source.clone()));
    s.ring.request(&[writable(DATA, 16)]);
    assert_eq!(s.look(), (Vec::new(), Rest::Left));
    let queue = s.queue.save();
    assert_eq!((queue.next_avail, queue.in_flight), (0, vec![]));
}

#[test]
fn a_refused_interrupt_is_tried_again_also_while_the_source_fails() {
    let source = Rationed::default();
    source.give(1);
    let mut s = Setup::new(Entropy::new(source));
    s.signals.refuse.store(true, Ordering::SeqCst);
    s.ring.request(&[writable(DATA, 16)]);
    assert_eq!(s.process(), [16]);
    assert_eq!(s.signals.used.load(Ordering::SeqCst), 0);
    s.signals.refuse.store(false, Ordering::SeqCst);
    s.ring.request(&[writable(DATA, 16)]);
    assert_eq!(s.look(), (Vec::new(), Rest::Left));
    assert_eq!(s.signals.used.load(Ordering::SeqCst), 1);
}

#[test]
fn an_empty_queue_costs_no_randomness() {
    let mut s = Setup::new(Entropy::seeded(9));
    for _ in 0..3 {
        assert!(s.process().is_empty());
    }
    assert_eq!(s.rng.save(), DeviceState::Entropy(EntropyState::Seeded(9)));
}

// Malformed requests.

#[test]
fn a_readable_buffer_or_no_room_costs_that_request_alone() {
    let refused = |buffers: &[Buffer]| {
        let mut s = Setup::new(Entropy::seeded(1));
        s.fill(&[0xee; 16]);
        s.ring.request(buffers);
        assert_eq!(s.process(), [0], "{buffers:?}");
        assert_eq!(s.queue.counters().malformed, 1);
        assert_eq!(s.get(16), [0xee; 16]);
        assert_eq!(
            s.rng.save(),
            DeviceState::Entropy(EntropyState::Seeded(1)),
            "no randomness is lost"
        );
        assert_eq!(s.ask(8).len(), 8, "it goes on");
    };
    refused(&[readable(DATA, 16)]);
    refused(&[readable(DATA, 16), writable(DATA, 16)]);
    refused(&[readable(DATA, 0), writable(DATA, 16)]);
    refused(&[writable(DATA, 0)]);
}

// State.

#[test]
fn a_restored_sequence_goes_on() {
    let mut s = Setup::new(Entropy::seeded(1));
    s.ask(100);
    let state = s.rng.save();
    let next = s.ask(100);

    let mut restored = Entropy::seeded(99);
    restored.restore(&state).unwrap();
    assert_eq!(Setup::new(restored).ask(100), next);
}

#[test]
fn a_state_of_another_kind_of_source_is_refused() {
    let mut seeded = Entropy::seeded(1);
    let error = seeded.restore(&Entropy::from_os().save()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the device was made otherwise: with a seeded generator, where the state needs an external source"
    );
    assert_eq!(seeded.save(), DeviceState::Entropy(EntropyState::Seeded(1)));
    let other = DeviceState::Other {
        version: 1,
        data: vec![1],
    };
    for other in [DeviceState::None, other] {
        assert!(seeded.restore(&other).is_err(), "{other:?}");
    }
    assert!(
        Entropy::from_os()
            .restore(&DeviceState::Entropy(EntropyState::Seeded(1)))
            .is_err()
    );
    assert_eq!(
        Entropy::from_os().restore(&DeviceState::Entropy(EntropyState::External)),
        Ok(())
    );
}

#[test]
fn the_debug_output_does_not_tell_the_seed() {
    assert!(!format!("{:?}", Entropy::seeded(0x1234_5678)).contains(&0x1234_5678.to_string()));
}

// Behind virtio-mmio.

#[test]
fn a_driver_at_the_registers_gets_random_bytes() {
    let memory = memory();
    let mut ring = Ring::new(&memory, 0x1000, 8);
    let line = Line::Edge(Arc::new(NoInterrupt));
    let source = Rationed::default();
    let mmio = VirtioMmio::new(Entropy::new(source.clone()), Arc::clone(&memory), line).unwrap();
    let write = |register, value: u32| mmio.write(register, &value.to_le_bytes());
    let mut id = [0; 4];
    mmio.read(0x08, &mut id);
    assert_eq!(u32::from_le_bytes(id), DeviceId::ENTROPY.0);
    for (register, value) in [
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        // VERSION_1.
        (0x20, 1),
        (0x70, 11),
        (0x38, 8),
        (0x80, ring.layout.descriptor_area as u32),
        (0x90, ring.layout.driver_area as u32),
        (0xa0, ring.layout.device_area as u32),
        (0x44, 1),
        (0x70, 15),
    ] {
        write(register, value);
    }
    ring.request(&[writable(DATA, 24)]);
    write(0x50, 0);
    assert_eq!(ring.used(), []);
    // The source has recovered: the embedder says so.
    source.give(1);
    mmio.process(QueueIndex(0));
    assert_eq!(ring.used(), [(0, 24)]);
}

proptest! {
    #[test]
    fn any_chain_is_answered_or_refused(
        buffers in prop::collection::vec((DATA..0x9_0000_u64, 0..70_000_u32, prop::bool::weighted(0.9)), 1..8),
    ) {
        let mut s = Setup::new(Entropy::seeded(1));
        let chain: Vec<_> = buffers
            .iter()
            .map(|&(address, len, writable)| Buffer { address, len, writable })
            .collect();
        s.ring.request(&chain);
        let room: u32 = chain.iter().map(|buffer| buffer.len).sum();
        let broken = room == 0 || chain.iter().any(|buffer| !buffer.writable);
        prop_assert_eq!(s.process(), vec![if broken { 0 } else { room.min(MAX_BYTES_PER_REQUEST) }]);
        prop_assert_eq!(s.queue.counters().malformed, u64::from(broken));
    }
}
