//! Split rings alone, and what a queue does behind a transport.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
};

use crate::{
    packed_ring::{DESC, DISABLE, ENABLE, PackedRing},
    ring::{self, Buffer, INDIRECT, NEXT, Ring, WRITE, memory, readable, writable},
    split::setup::{ALL, NO_EVENT_IDX, SIZE, Setup, Signals, setup},
};
use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    memory::Memory,
    virtio::{
        DeviceId, Fault, Queue, QueueError, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioMmio, VirtioTransport,
        entropy::Entropy,
        features,
        queue::{MAX_SEGMENTS, OwnedChain, QueueLayout, QueueState, QueueStateError, Rest, Silent},
        transport::{TransportOptions, mmio::Line},
    },
};
use proptest::prelude::*;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions,
    guest_memory::GuestMemorySliceIterator,
};

impl Setup {
    /// What has been offered breaks the rules: it comes back empty, is counted, and a good one after it is answered. The same
    /// once more the other way around: what follows another one in its round is found by a shorter way.
    fn costs_itself(&mut self, head: u16, what: &str) {
        let good = SIZE - 1;
        self.ring.descriptor(good, 0xf000, 4, WRITE, 0);
        for again in [false, true] {
            let (before, signals) = (self.queue.counters(), self.signals());
            let mut expected = [(head.into(), 0), (good.into(), 4)];
            self.ring.offer(good);
            if again {
                self.ring.set_used_event(self.ring.used_idx());
                self.ring.offer(head);
                expected.reverse();
            }
            let rest = self.serve(|chain| {
                assert_eq!(chain.head(), good, "{what}");
                Ok(4)
            });
            assert_eq!(rest, Rest::Drained, "{what}");
            assert_eq!(self.ring.used(), expected, "{what}");
            let after = self.queue.counters();
            assert_eq!(
                (after.requests, after.malformed),
                (before.requests + 2, before.malformed + 1),
                "{what}"
            );
            assert!(self.signals() > signals, "{what}: the driver waits for it");
        }
    }
}

/// Guest memory with a driver that offers a request just after each time the device has looked, and withdraws it again.
struct Flickering {
    memory: Arc<GuestMemoryMmap>,
    avail_idx: GuestAddress,
    looks: AtomicU32,
}

impl GuestMemory for Flickering {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemory::check_range(&*self.memory, address, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        if address == self.avail_idx {
            // It gives up at some time, so that a round which waits for it fails the test and does not hang it.
            let look = self.looks.fetch_add(1, Ordering::SeqCst);
            let idx = if look < 10_000 { look as u16 % 2 } else { 0 };
            self.memory.write_obj(idx, address)?;
        }
        GuestMemory::get_slices(&*self.memory, address, count, access)
    }
}

#[test]
fn chains_that_were_taken_are_completed_on_other_threads_while_the_queue_is_served() {
    const REQUESTS: u32 = 2000;
    let mut s = setup(NO_EVENT_IDX);
    let (mut next, mut seen) = (0u32, Vec::new());
    thread::scope(|scope| {
        let (give, taken) = mpsc::channel::<OwnedChain>();
        let taken = Arc::new(Mutex::new(taken));
        for _ in 0..2 {
            let taken = Arc::clone(&taken);
            scope.spawn(move || {
                loop {
                    let Ok(chain) = taken.lock().unwrap().recv() else {
                        return;
                    };
                    let mut request = [0; 4];
                    chain.reader().read(&mut request).unwrap();
                    chain.writer().write(&request).unwrap();
                    chain.complete(4);
                }
            });
        }
        while seen.len() < REQUESTS as usize {
            for (head, len) in s.ring.used() {
                assert_eq!(len, 4);
                let slot = u64::from(head) * 0x100;
                let (asked, got) = (s.ring.get::<u32>(0x8000 + slot), s.ring.get::<u32>(0x9000 + slot));
                assert_eq!(asked, got);
                seen.push(asked);
            }
            // Two descriptors a chain, four chains.
            let busy = next - seen.len() as u32;
            if busy == 0 && next < REQUESTS {
                for head in [0u16, 2, 4, 6] {
                    let slot = u64::from(head) * 0x100;
                    s.ring.put(0x8000 + slot, next);
                    next += 1;
                    s.ring.descriptor(head, 0x8000 + slot, 4, NEXT, head + 1);
                    s.ring.descriptor(head + 1, 0x9000 + slot, 4, WRITE, 0);
                    s.ring.offer(head);
                }
            }
            let mut round = s.queue.round().unwrap();
            while let Some(chain) = round.next().unwrap() {
                match chain.head() {
                    // Every fourth in its round.
                    0 => {
                        let request: u32 = chain.reader().read_obj().unwrap();
                        chain.writer().write_obj(&request).unwrap();
                        chain.complete(4).unwrap();
                    }
                    _ => give.send(chain.take()).unwrap(),
                }
            }
            let _ = round.end().unwrap();
        }
    });
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..next), "each request is answered once");
    assert_eq!(s.queue.counters().requests, u64::from(next));
}

#[test]
fn a_head_that_was_given_back_untouched_is_still_in_flight() {
    let mut s = setup(ALL);
    let [chain] = s.take_new();
    chain.give_back();
    s.ring.offer(0);
    let mut round = s.queue.round().unwrap();
    let again = round.next().unwrap().unwrap();
    assert_eq!(again.head(), 0);
    let again = again.take();
    assert_eq!(round.next().map(|_| ()), Err(QueueError::InFlight(0)));
    drop((round, again));
}

// Signals and their suppression (sections 2.7.7 and 2.7.10).

#[test]
fn event_index_arithmetic_wraps() {
    let mut s = setup(ALL);
    s.ring.start_at(0xfffe);
    let state = QueueState {
        next_avail: 0xfffe,
        next_used: 0xfffe,
        ..s.queue.save()
    };
    s.queue = s.restore(&state).unwrap();
    s.ring.set_used_event(0xffff);
    for expected in [0, 1, 1] {
        s.ring.request(&[writable(0x8000, 1)]);
        s.answer(1);
        assert_eq!(s.signals(), expected);
    }
    assert_eq!(s.ring.used_idx(), 1);
    s.ring.set_used_event(1);
    s.ring.request(&[writable(0x8000, 1)]);
    assert_eq!(s.serve(|_| Ok(1)), Rest::Drained);
    assert_eq!((s.signals(), s.ring.avail_event()), (2, 2));
}

// Kicks.

#[test]
fn kicks_are_suppressed_while_serving_and_expected_after() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        let no_notify = features & features::EVENT_IDX == 0;
        for served in 1..=3u16 {
            s.ring.request(&[writable(0x8000, 1)]);
            let mut round = s.queue.round().unwrap();
            let chain = round.next().unwrap().unwrap();
            assert_eq!(s.ring.used_flags(), u16::from(no_notify));
            chain.complete(1).unwrap();
            assert!(round.next().unwrap().is_none());
            assert_eq!(round.end().unwrap(), Rest::Drained);
            assert_eq!(s.ring.used_flags(), 0);
            if !no_notify {
                assert_eq!(s.ring.avail_event(), served);
            }
        }
    }
}

#[test]
fn a_round_that_leaves_chains_wants_no_kicks_for_more_of_them() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        s.ring.request(&[writable(0x8000, 1)]);
        s.ring.request(&[writable(0x8000, 1)]);
        let mut round = s.queue.round().unwrap();
        round.next().unwrap().unwrap().complete(1).unwrap();
        assert_eq!(round.next().unwrap().unwrap().head(), 1);
        assert_eq!(round.end().unwrap(), Rest::Left);
        let no_notify = features & features::EVENT_IDX == 0;
        assert_eq!((s.ring.used_flags(), s.ring.avail_event()), (u16::from(no_notify), 0));
    }
}

#[test]
fn a_round_is_bounded_though_the_driver_never_stops() {
    let mut s = setup(ALL);
    let mut served = 0;
    s.ring.request(&[writable(0x8000, 1)]);
    let mut round = s.queue.round().unwrap();
    while let Some(chain) = round.next().unwrap() {
        served += 1;
        // The next one: the other half of the descriptors, so that the head is not in flight.
        let other = (chain.head() + 4) % SIZE;
        s.ring.descriptor(other, 0x8000, 1, WRITE, 0);
        s.ring.offer(other);
        match served % 2 {
            0 => chain.complete(1).unwrap(),
            _ => chain.take().complete(1),
        }
    }
    assert_eq!(round.end().unwrap(), Rest::More);
    assert_eq!(served, SIZE);
}

#[test]
fn chains_that_break_the_rules_count_against_the_bound_of_a_round() {
    let mut s = setup(ALL);
    for head in 0..SIZE - 1 {
        s.ring.descriptor(head, u64::MAX, 1, 0, 0);
        s.ring.offer(head);
    }
    s.ring.descriptor(SIZE - 1, 0x8000, 1, WRITE, 0);
    s.ring.offer(SIZE - 1);
    let mut round = s.queue.round().unwrap();
    let chain = round.next().unwrap().unwrap();
    assert_eq!(chain.head(), SIZE - 1);
    s.ring.offer(0);
    chain.complete(1).unwrap();
    assert!(round.next().unwrap().is_none(), "as many as the queue is long");
    assert_eq!(round.end().unwrap(), Rest::More);
    assert_eq!(s.queue.counters().malformed, u64::from(SIZE) - 1);
}

#[test]
fn an_avail_index_that_comes_and_goes_does_not_hold_a_round() {
    let memory = memory();
    let ring = Ring::new(&memory, 0x1000, SIZE);
    let flickering = Arc::new(Flickering {
        memory: Arc::clone(&memory),
        avail_idx: GuestAddress(ring.layout.driver_area + 2),
        looks: AtomicU32::new(0),
    });
    let space = Memory::new(flickering.clone());
    let mut queue = Queue::new(
        QueueIndex(3),
        SIZE,
        ring.layout,
        ALL,
        &space,
        Arc::new(Signals::default()),
    )
    .unwrap();
    // Every other look finds the request withdrawn, as if the driver's store raced with each of the device's loads.
    let mut round = queue.round().unwrap();
    assert!(round.next().unwrap().is_none());
    assert_eq!(round.end().unwrap(), Rest::More);
    assert!(flickering.looks.load(Ordering::SeqCst) <= 2 * u32::from(SIZE));
}

#[test]
fn a_round_of_long_chains_ends_early() {
    // Each runs through all descriptors, and is then found to be too long.
    let size = 1 << 15;
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
    let mut ring = Ring::new(&memory, 0x1000, size);
    let queue = Queue::new(
        QueueIndex(3),
        size,
        ring.layout,
        0,
        &Memory::new(memory),
        Arc::new(Silent),
    );
    let mut queue = queue.unwrap();
    for index in 0..size {
        ring.descriptor(index, 0, 0, NEXT, (index + 1) % size);
        ring.put(ring.layout.driver_area + 4 + 2 * u64::from(index), index);
    }
    ring.set_avail_idx(size);
    let mut round = queue.round().unwrap();
    assert!(round.next().unwrap().is_none());
    assert_eq!(round.end().unwrap(), Rest::More);
    assert!((1..=64).contains(&ring.used_idx()), "{}", ring.used_idx());
}

#[test]
fn a_round_of_large_requests_ends_early() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 32 << 20)]).expect("32 MiB");
    let memory = Arc::new(memory);
    let mut ring = Ring::new(&memory, 0x1000, SIZE);
    let space = Memory::new(memory.clone());
    let queue = Queue::new(
        QueueIndex(3),
        SIZE,
        ring.layout,
        ALL,
        &space,
        Arc::new(Signals::default()),
    );
    let mut queue = queue.expect("a valid layout");
    for _ in 0..4 {
        ring.request(&[writable(1 << 20, 9 << 20)]);
    }
    let mut served = 0;
    let mut serve = || {
        let mut round = queue.round().unwrap();
        round
            .each(|_| {
                served += 1;
                Ok(0)
            })
            .unwrap();
        (round.end().unwrap(), served)
    };
    assert_eq!(serve(), (Rest::More, 2), "18 MiB are enough for one round");
    assert_eq!(serve(), (Rest::More, 4));
    assert_eq!(serve(), (Rest::Drained, 4));
}

/// A device that notes what its driver is asked about kicks, and answers as many requests as it is told.
struct Waiting {
    ring: QueueLayout,
    memory: Arc<GuestMemoryMmap>,
    answers: Arc<AtomicU32>,
    asked: Asked,
    /// What the driver does while a request is looked at.
    meanwhile: Box<dyn FnMut() + Send>,
}

struct Front(Option<Waiting>);

impl VirtioDevice for Front {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn start(&mut self, _queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(self.0.take().expect("started once"))
    }
}

impl QueueHandler for Waiting {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            (self.meanwhile)();
            let get = |address| self.memory.read_obj::<u16>(GuestAddress(address)).unwrap();
            let event = get(self.ring.device_area + 4 + 8 * u64::from(SIZE));
            self.asked.lock().unwrap().push((get(self.ring.device_area), event));
            let left = |answers: u32| answers.checked_sub(1);
            if self
                .answers
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left)
                .is_err()
            {
                return Ok(());
            }
            chain.complete(0)?;
        }
        Ok(())
    }
}

/// The driver's ring, how many requests the device answers, and what the driver was asked about kicks.
type Behind = (VirtioMmio<Front>, Arc<Mutex<Ring>>, Arc<AtomicU32>, Asked);
/// The flags of the used ring and `avail_event` at each look.
type Asked = Arc<Mutex<Vec<(u16, u16)>>>;

/// Who looks at a queue, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kicks {
    /// Who kicks.
    Serve,
    /// The embedder, when it has heard of a kick.
    Ring,
    /// The embedder, again and again.
    Polled,
}

/// The device of [`Waiting`] behind virtio-mmio, with a driver that is ready.
fn behind_mmio(features: u64, kicks: Kicks, meanwhile: impl FnMut(&mut Ring) + Send + 'static) -> Behind {
    let memory = memory();
    let ring = Arc::new(Mutex::new(Ring::new(&memory, 0x1000, SIZE)));
    let (answers, asked) = (Arc::new(AtomicU32::new(0)), Arc::default());
    let mut meanwhile = meanwhile;
    let layout = ring.lock().unwrap().layout;
    let device = Waiting {
        ring: layout,
        memory: memory.clone(),
        answers: Arc::clone(&answers),
        asked: Arc::clone(&asked),
        meanwhile: Box::new({
            let ring = Arc::clone(&ring);
            move || meanwhile(&mut ring.lock().unwrap())
        }),
    };
    let options = TransportOptions {
        polled: kicks == Kicks::Polled,
        ..TransportOptions::default()
    };
    let line = Line::Edge(Arc::new(NoInterrupt));
    let mut mmio = VirtioMmio::with_options(Front(Some(device)), memory, line, &options).unwrap();
    if kicks != Kicks::Serve {
        mmio = mmio.with_doorbell(|_| Ok(()));
    }
    drive(&mmio, features, layout);
    (mmio, ring, answers, asked)
}

/// Brings a device up, and its first queue.
fn drive(mmio: &impl BusDevice, features: u64, layout: QueueLayout) {
    let write = |register: u64, value: u32| mmio.write(register, &value.to_le_bytes());
    // ACKNOWLEDGE, DRIVER, features, FEATURES_OK, queue 0, DRIVER_OK.
    write(0x70, 1);
    write(0x70, 3);
    for (sel, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
        write(0x24, sel);
        write(0x20, half);
    }
    write(0x70, 11);
    write(0x38, SIZE.into());
    for (register, area) in [
        (0x80, layout.descriptor_area),
        (0x90, layout.driver_area),
        (0xa0, layout.device_area),
    ] {
        write(register, area as u32);
    }
    write(0x44, 1);
    write(0x70, 15);
}

fn kick(mmio: &VirtioMmio<Front>) {
    mmio.write(0x50, &0u32.to_le_bytes());
}

#[test]
fn without_a_doorbell_kicks_stay_enabled_while_a_queue_is_served() {
    for features in [ALL, NO_EVENT_IDX] {
        let event_idx = features & features::EVENT_IDX != 0;
        for kicks in [Kicks::Serve, Kicks::Ring] {
            let doorbell = kicks == Kicks::Ring;
            let (mmio, ring, answers, asked) = behind_mmio(features, kicks, |_| ());
            answers.store(2, Ordering::SeqCst);
            for _ in 0..2 {
                ring.lock().unwrap().request(&[writable(0x8000, 1)]);
            }
            kick(&mmio);
            if doorbell {
                mmio.run();
            }
            let asked = asked.lock().unwrap().clone();
            // The flags of the used ring, and avail_event: up to the next entry, or not moved.
            let expected = match (event_idx, doorbell) {
                (false, true) => (1, 0),
                (true, false) => (0, 2),
                _ => (0, 0),
            };
            assert_eq!(asked, [expected; 2], "event index {event_idx}, doorbell {doorbell}");
        }
    }
}

#[test]
fn the_driver_of_a_polled_queue_is_not_asked_to_kick_when_nothing_is_left_and_what_it_adds_is_found() {
    for features in [ALL, NO_EVENT_IDX] {
        let event_idx = features & features::EVENT_IDX != 0;
        let (mmio, ring, answers, _) = behind_mmio(features, Kicks::Polled, |_| ());
        answers.store(u32::MAX, Ordering::SeqCst);
        for number in 1..=3 {
            ring.lock().unwrap().request(&[writable(0x8000, 1)]);
            assert!(!mmio.serve(QueueIndex(0)), "nothing is known to be left");
            let ring = ring.lock().unwrap();
            assert_eq!(ring.used_idx(), number);
            // The event index is not moved.
            let flags = if event_idx { 0 } else { 1 };
            assert_eq!(
                (ring.used_flags(), ring.avail_event()),
                (flags, 0),
                "event index {event_idx}"
            );
        }
        // As a kick that comes all the same, this ends.
        mmio.run();
        assert!(!mmio.serve(QueueIndex(0)));
    }
}

#[test]
fn the_driver_of_a_packed_queue_that_is_polled_is_asked_to_kick_when_who_goes_on_with_it_does_not_poll() {
    for event_idx in [0, features::EVENT_IDX] {
        let features = features::VERSION_1 | features::RING_PACKED | event_idx;
        let memory = memory();
        let mut ring = PackedRing::new(&memory, 0x1000, SIZE);
        let device = |polled| {
            let options = TransportOptions {
                packed: true,
                polled,
                ..TransportOptions::default()
            };
            let line = Line::Edge(Arc::new(NoInterrupt));
            let device = VirtioMmio::with_options(Entropy::seeded(1), Arc::clone(&memory), line, &options);
            device.unwrap().with_doorbell(|_| Ok(()))
        };
        let polled = device(true);
        drive(&polled, features, ring.layout);
        // More than a lap.
        for _ in 0..SIZE + 2 {
            ring.request(&[writable(0x8000, 1)]);
            assert!(!polled.serve(QueueIndex(0)), "nothing is known to be left");
            assert!(!polled.serve(QueueIndex(0)));
            assert_eq!(ring.used().len(), 1);
            assert_eq!(ring.get::<u16>(ring.layout.device_area + 2), DISABLE);
        }
        polled.pause();
        let state = polled.save().unwrap();
        let other = device(false);
        other.restore(&state).unwrap();
        other.resume();
        other.run();
        let asked = ring.get::<[u16; 2]>(ring.layout.device_area);
        match event_idx {
            0 => assert_eq!(asked[1], ENABLE),
            _ => assert_eq!(asked, [ring.next.raw(), DESC]),
        }
    }
}

#[test]
fn without_a_doorbell_a_chain_that_was_left_is_served_with_the_next_kick_that_the_driver_is_asked_for() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut more = 1;
        let (mmio, ring, answers, asked) = behind_mmio(features, Kicks::Serve, move |ring| {
            // Comes after the device has said up to where it knows, and before it could be heard.
            if more != 0 {
                more -= 1;
                ring.request(&[writable(0x8000, 1)]);
            }
        });
        ring.lock().unwrap().request(&[writable(0x8000, 1)]);
        kick(&mmio);
        assert_eq!(ring.lock().unwrap().used_idx(), 0, "it waits for the outside world");
        answers.store(u32::MAX, Ordering::SeqCst);
        // The driver kicks for its next one if it is asked to (section 2.7.10).
        let wanted = {
            let mut ring = ring.lock().unwrap();
            let old = ring.avail_idx();
            ring.request(&[writable(0x8000, 1)]);
            match features & features::EVENT_IDX {
                0 => ring.used_flags() == 0,
                _ => {
                    ring.avail_idx().wrapping_sub(ring.avail_event()).wrapping_sub(1)
                        < ring.avail_idx().wrapping_sub(old)
                }
            }
        };
        assert!(wanted, "after {:?}", asked.lock().unwrap());
        kick(&mmio);
        assert_eq!(ring.lock().unwrap().used_idx(), 3);
    }
}

// Rings that are broken: nothing can be given back.

#[test]
fn an_avail_index_too_far_ahead_breaks_the_ring() {
    let mut s = setup(ALL);
    s.ring.request(&[readable(0x8000, 1)]);
    for ahead in [SIZE + 1, 0xffff] {
        s.ring.set_avail_idx(ahead);
        assert_eq!(s.broken(), QueueError::AvailIndex { ahead, size: SIZE });
    }
}

#[test]
fn a_head_out_of_range_breaks_the_ring() {
    let mut s = setup(ALL);
    s.ring.offer(SIZE);
    assert_eq!(s.broken(), QueueError::Head { head: SIZE, size: SIZE });
    assert_eq!(s.ring.used_idx(), 0);
}

#[test]
fn a_head_in_flight_is_not_accepted_again_but_one_that_was_used_is() {
    let mut s = setup(ALL);
    let [chain] = s.take_new();
    let head = chain.head();
    s.ring.offer(head);
    assert_eq!(s.broken(), QueueError::InFlight(head));
    chain.complete(0);
    assert_eq!(s.heads(), [head]);
}

// Chains that are broken: each costs itself.

#[test]
fn a_next_out_of_range_costs_its_chain_and_is_no_shorter_one() {
    let mut s = setup(ALL);
    s.ring.descriptor(0, 0x8000, 1, NEXT, SIZE);
    s.ring.offer(0);
    s.costs_itself(0, "in the ring's table");
    let mut s = setup(ALL);
    s.ring
        .add_indirect(0x20000, &[readable(0x8000, 1), readable(0x9000, 1)]);
    // The last one goes on, to where the table has ended.
    let last = ring::Descriptor {
        address: 0x9000,
        len: 1,
        flags: NEXT,
        next: 2,
    };
    s.ring.write_descriptor(0x20000, 1, last);
    s.ring.offer(0);
    s.costs_itself(0, "in an indirect table");
}

#[test]
fn a_loop_costs_its_chain() {
    for indirect in [false, true] {
        let mut s = setup(ALL);
        let table = if indirect {
            0x20000
        } else {
            s.ring.layout.descriptor_area
        };
        for index in 0..2 {
            let descriptor = ring::Descriptor {
                address: 0x8000,
                len: 1,
                flags: NEXT,
                next: 1 - index,
            };
            s.ring.write_descriptor(table, index, descriptor);
        }
        if indirect {
            s.ring.descriptor(0, table, 32, INDIRECT, 0);
        }
        s.ring.offer(0);
        s.costs_itself(
            0,
            if indirect {
                "in an indirect table"
            } else {
                "in the ring's table"
            },
        );
    }
}

#[test]
fn indirect_tables_cost_their_chain_where_there_must_be_none() {
    for (what, features, len, flags, nested) in [
        ("not negotiated", ALL & !features::INDIRECT_DESC, 16, INDIRECT, 0),
        ("nested", ALL, 16, INDIRECT, INDIRECT),
        ("no multiple of 16", ALL, 17, INDIRECT, 0),
        ("empty", ALL, 0, INDIRECT, 0),
        ("with a next", ALL, 16, INDIRECT | NEXT, 0),
        ("endless", ALL, 0xffff_fff0, INDIRECT, 0),
    ] {
        let mut s = setup(features);
        s.ring.descriptor(0, 0x20000, len, flags, 1);
        s.ring.write_descriptor(
            0x20000,
            0,
            ring::Descriptor {
                address: 0x8000,
                len: 16,
                flags: nested,
                next: 0,
            },
        );
        s.ring.offer(0);
        s.costs_itself(0, what);
    }
}

#[test]
fn an_indirect_table_may_follow_other_descriptors_and_ends_the_chain() {
    let mut s = setup(ALL);
    s.ring.add(&[readable(0x8000, 1), readable(0, 0)]);
    s.ring
        .add_indirect(0x20000, &[readable(0x9000, 2), writable(0xa000, 4)]);
    s.ring.descriptor(1, 0x20000, 32, INDIRECT, 0);
    s.ring.offer(0);
    let lens = s.look(|chain| (chain.readable().len(), chain.readable_len(), chain.writable_len()));
    assert_eq!(lens, (2, 3, 4));
}

#[test]
fn lengths_that_overflow_cost_their_chain() {
    // No single buffer is out of memory: the sum must be too much.
    let big = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 31)]);
    let big = Arc::new(big.expect("address space for 2 GiB"));
    let mut ring = Ring::new(&big, 0x1000, SIZE);
    let space = Memory::new(big.clone());
    let mut queue = Queue::new(
        QueueIndex(3),
        SIZE,
        ring.layout,
        ALL,
        &space,
        Arc::new(Signals::default()),
    )
    .unwrap();
    ring.request(&[readable(1 << 32, 1 << 31), readable(1 << 32, 1 << 31)]);
    ring.request(&[readable(1 << 32, 1 << 31), readable(1 << 32, (1 << 31) - 1)]);
    let mut round = queue.round().unwrap();
    assert!(
        round.next().unwrap().is_none(),
        "what it has looked at is enough for one round"
    );
    assert_eq!(round.end().unwrap(), Rest::More);
    assert_eq!(ring.used(), [(0, 0)]);
    let mut round = queue.round().unwrap();
    assert_eq!(round.next().unwrap().unwrap().readable_len(), u32::MAX);
    drop(round);
    assert_eq!(queue.counters().malformed, 1);
}

#[test]
fn a_chain_that_breaks_when_it_comes_again_costs_itself() {
    let mut s = setup(ALL);
    let [chain] = s.take_new();
    let head = chain.head();
    s.ring.descriptor(head, u64::MAX, 1, WRITE, 0);
    chain.give_back();
    s.costs_itself(head, "changed while it was in flight");
    assert_eq!(s.queue.save().in_flight, [0u16; 0]);
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let memory = memory();
    let good = Ring::new(&memory, 0x1000, SIZE).layout;
    let refused = |layout: QueueLayout| {
        let signals = Arc::new(Signals::default());
        Queue::new(QueueIndex(3), SIZE, layout, ALL, &Memory::new(memory.clone()), signals).expect_err("it cannot be")
    };
    for size in [0, 3, 2 * SIZE, 0xffff] {
        assert_eq!(
            refused(QueueLayout { size, ..good }),
            QueueError::Size {
                size,
                max: SIZE,
                packed: false
            }
        );
    }
    for layout in [
        QueueLayout {
            descriptor_area: 0x1008,
            ..good
        },
        QueueLayout {
            driver_area: 0x2001,
            ..good
        },
        QueueLayout {
            device_area: 0x3002,
            ..good
        },
    ] {
        assert!(matches!(refused(layout), QueueError::Alignment { .. }));
    }
    for address in [1 << 20, (1 << 20) - 16, u64::MAX - 15, u64::MAX - 0xfff] {
        for layout in [
            QueueLayout {
                descriptor_area: address,
                ..good
            },
            QueueLayout {
                driver_area: address,
                ..good
            },
            QueueLayout {
                device_area: address,
                ..good
            },
        ] {
            assert!(matches!(refused(layout), QueueError::Outside { .. }), "{layout:x?}");
        }
    }
}

// State.

#[test]
fn requests_in_flight_are_handed_out_again_in_the_order_in_which_they_were_taken() {
    let mut s = setup(ALL);
    let heads = [5, 1, 7, 2];
    let mut chains = Vec::new();
    for head in heads {
        s.ring.descriptor(head, 0x8000, 1, WRITE, 0);
        s.ring.offer(head);
        chains.push(s.take());
    }
    // The second is answered; its head comes again, now as the last one.
    chains.remove(1).complete(1);
    s.ring.offer(1);
    chains.push(s.take());

    let state = s.queue.save();
    assert_eq!(state.in_flight, [5, 7, 2, 1]);
    // The first is taken again, and comes after the restored ones neither now nor in the next state.
    s.queue = s.restore(&state).unwrap();
    let again = s.take();
    assert_eq!(again.head(), 5);
    assert_eq!(
        s.queue.save(),
        state,
        "one that was handed out again is still in flight"
    );
    again.give_back();
    assert_eq!(s.heads(), [5, 7, 2, 1]);
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    let mut s = setup(ALL);
    let good = s.queue.save();
    for bad in [
        QueueState {
            next_avail: 1,
            ..good.clone()
        },
        QueueState {
            in_flight: vec![1],
            ..good.clone()
        },
        QueueState {
            next_avail: 2,
            in_flight: vec![1, 1],
            ..good.clone()
        },
        QueueState {
            next_avail: 1,
            in_flight: vec![SIZE],
            ..good.clone()
        },
        QueueState {
            layout: QueueLayout { size: 7, ..good.layout },
            ..good.clone()
        },
    ] {
        let error = s.restore(&bad).expect_err("a contradiction");
        assert!(
            matches!(error, QueueStateError::InFlight { .. } | QueueStateError::Layout(_)),
            "{bad:?}: {error}"
        );
    }
}

fn buffer() -> impl Strategy<Value = Buffer> {
    let address = prop_oneof![0u64..1 << 20, (1u64 << 20) - 64..(1 << 20) + 64, any::<u64>()];
    let len = prop_oneof![0u32..64, any::<u32>()];
    (address, len, any::<bool>()).prop_map(|(address, len, writable)| Buffer { address, len, writable })
}

proptest! {
    /// Whatever lies in the ring's memory: no panic, no endless loop, and a chain that comes out is a valid one.
    #[test]
    fn any_ring_is_contained(
        bytes in proptest::collection::vec(any::<u8>(), 16 * usize::from(SIZE)),
        avail in proptest::collection::vec(any::<u16>(), 3 + usize::from(SIZE)),
        features in prop_oneof![Just(ALL), Just(NO_EVENT_IDX)],
        late in any::<u8>(),
    ) {
        let mut s = setup(features);
        s.memory.write_slice(&bytes, GuestAddress(s.ring.layout.descriptor_area)).unwrap();
        for (at, entry) in (0u64..).zip(&avail) {
            s.ring.put(s.ring.layout.driver_area + 2 * at, entry % 12);
        }
        let mut taken = Vec::new();
        let mut round = s.queue.round().expect("in memory");
        let broken = loop {
            let chain = match round.next() {
                Ok(Some(chain)) => chain,
                Ok(None) => break false,
                Err(_) => break true,
            };
            let mut all = vec![0; chain.readable_len() as usize];
            chain.reader().read(&mut all).expect("it was checked");
            chain.writer().fill(0x5a, chain.writable_len()).expect("it was checked");
            match late >> (chain.head() % 8) & 1 {
                0 => chain.complete(u32::MAX).expect("in memory"),
                _ => taken.push(chain.take()),
            }
        };
        drop(round);
        taken.into_iter().for_each(|chain| chain.complete(0));
        prop_assert!(broken || s.queue.counters().requests <= u64::from(SIZE));
    }

    /// A chain is found exactly if each of its buffers is in memory, in order and not too long in all.
    #[test]
    fn a_chain_is_found_if_and_only_if_it_is_valid(
        buffers in proptest::collection::vec(buffer(), 1..=usize::from(SIZE)),
        indirect in any::<bool>(),
    ) {
        let mut s = setup(ALL);
        let head = if indirect { s.ring.add_indirect(0x80000, &buffers) } else { s.ring.add(&buffers) };
        s.ring.offer(head);
        let inside = |b: &Buffer| b.len == 0 || b.address.checked_add(b.len.into()).is_some_and(|end| end <= 1 << 20);
        let ordered = buffers.is_sorted_by_key(|buffer| buffer.writable);
        let total: u64 = buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
        let valid = ordered && total < 1 << 32 && buffers.iter().all(inside);
        let mut round = s.queue.round().expect("in memory");
        let found = round.next().expect("an intact ring").map(|chain| chain.readable().len());
        prop_assert_eq!(found.is_some(), valid);
        let expected = buffers.iter().filter(|buffer| !buffer.writable).count();
        prop_assert!(found.is_none_or(|found| found == expected));
        drop(round);
        prop_assert_eq!(s.ring.used_idx(), u16::from(!valid));
    }
}

#[test]
fn a_guest_has_a_device_hold_so_many_segments_and_no_more() {
    // Heads that all begin the same long chain.
    const LONG: u16 = 4096;
    let memory: Arc<GuestMemoryMmap> = memory();
    let mut ring = Ring::new(&memory, 0x1000, LONG);
    for index in 0..LONG {
        let flags = if index + 1 < LONG { NEXT } else { 0 };
        ring.descriptor(index, 0x8_0000, 1, flags, index + 1);
    }
    let space = Memory::new(Arc::clone(&memory));
    let mut queue = Queue::new(QueueIndex(0), LONG, ring.layout, 0, &space, Arc::new(Silent)).unwrap();
    let mut taken = Vec::new();
    let mut segments = 0;
    for head in 0..LONG {
        ring.offer(head);
        let mut round = queue.round().unwrap();
        if let Some(chain) = round.next().unwrap() {
            // Short ones have room of their own.
            segments += Some(chain.readable().len()).filter(|&len| len > 6).unwrap_or(0);
            taken.push(chain.take());
        }
        let _ = round.end().unwrap();
    }
    assert!(segments <= MAX_SEGMENTS as usize && segments > MAX_SEGMENTS as usize - usize::from(LONG));
    assert_eq!(
        taken.len() + ring.used().len(),
        usize::from(LONG),
        "the others came back"
    );
    taken.into_iter().for_each(|chain| chain.complete(0));
    ring.offer(0);
    let mut round = queue.round().unwrap();
    assert!(round.next().unwrap().is_some(), "there is room again");
}
