//! Virtqueues: what a well-behaved driver gets, and what becomes of one that is not.

#[path = "support/ring.rs"]
mod ring;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread,
};

use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    memory::Memory,
    virtio::{
        ChainError, DeviceId, Fault, Queue, QueueError, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioMmio,
        features,
        queue::{
            Chain, MAX_INDIRECT, MAX_SEGMENTS, OwnedChain, QueueCounters, QueueLayout, QueueState, QueueStateError,
            Rest, Silent, Slices, VirtioInterrupt,
        },
        transport::mmio::Line,
    },
};
use proptest::prelude::*;
use ring::{Buffer, INDIRECT, NEXT, Ring, WRITE, memory, readable, writable};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions,
    guest_memory::GuestMemorySliceIterator,
};

const SIZE: u16 = 8;
const ALL: u64 = features::COMMON;
const NO_EVENT_IDX: u64 = features::COMMON & !features::EVENT_IDX;

/// Counts signals, and refuses them on demand.
#[derive(Default)]
struct Signals {
    used: AtomicU32,
    refuse: AtomicBool,
}

impl VirtioInterrupt for Signals {
    fn used(&self, queues: &[QueueIndex]) -> io::Result<()> {
        assert_eq!(queues, [QueueIndex(3)]);
        if self.refuse.load(Ordering::SeqCst) {
            return Err(io::Error::other("refused"));
        }
        self.used.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn config_changed(&self) -> io::Result<()> {
        unreachable!("a queue changes no configuration")
    }

    fn reset(&self) {
        unreachable!("a queue resets nothing")
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

struct Setup {
    memory: Arc<GuestMemoryMmap>,
    ring: Ring,
    queue: Queue,
    signals: Arc<Signals>,
}

fn setup(features: u64) -> Setup {
    let memory = memory();
    let ring = Ring::new(&memory, 0x1000, SIZE);
    let signals = Arc::new(Signals::default());
    let space = Memory::new(memory.clone());
    let queue = Queue::new(QueueIndex(3), SIZE, ring.layout, features, &space, signals.clone());
    Setup {
        memory,
        ring,
        queue: queue.expect("a valid layout"),
        signals,
    }
}

impl Setup {
    fn signals(&self) -> u32 {
        self.signals.used.load(Ordering::SeqCst)
    }

    /// A round in which each chain is answered.
    fn serve(&mut self, answer: impl FnMut(&Chain<'_, '_>) -> Result<u32, ChainError>) -> Rest {
        let mut round = self.queue.round().expect("a valid ring");
        round.each(answer).expect("a valid ring");
        round.end().expect("a valid ring")
    }

    /// A round that is to find nothing.
    fn serve_nothing(&mut self) -> Rest {
        self.serve(|chain| unreachable!("{chain:?}"))
    }

    /// Answers the next chain with `written`.
    fn answer(&mut self, written: u32) {
        self.look(|chain| chain.complete(written).expect("a valid ring"));
    }

    /// What `f` makes of the next chain, in a round of its own.
    fn look<R>(&mut self, f: impl FnOnce(Chain<'_, '_>) -> R) -> R {
        let mut round = self.queue.round().expect("a valid ring");
        let result = f(round.next().expect("a valid ring").expect("a chain"));
        let _ = round.end().expect("a valid ring");
        result
    }

    /// Takes the next chain away.
    fn take(&mut self) -> OwnedChain {
        self.look(|chain| chain.take())
    }

    /// Makes `count` chains of one byte available and takes them.
    fn take_new<const N: usize>(&mut self) -> [OwnedChain; N] {
        [(); N].map(|()| {
            self.ring.request(&[writable(0x8000, 1)]);
            self.take()
        })
    }

    /// Heads in the order in which they are found and answered.
    fn heads(&mut self) -> Vec<u16> {
        let mut heads = Vec::new();
        let _ = self.serve(|chain| {
            heads.push(chain.head());
            Ok(0)
        });
        heads
    }

    /// What the next look at a broken ring says.
    fn broken(&mut self) -> QueueError {
        let mut round = self.queue.round().expect("it was in memory");
        round
            .next()
            .map(|chain| chain.map(|chain| chain.head()))
            .expect_err("the ring breaks the rules")
    }

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

    fn restore(&mut self, state: &QueueState) -> Result<Queue, QueueStateError> {
        let space = Memory::new(self.memory.clone());
        Queue::restore(QueueIndex(3), SIZE, state, &space, self.signals.clone())
    }
}

#[test]
fn a_chain_is_read_written_and_used() {
    let mut s = setup(ALL);
    s.memory.write_slice(b"hello ", GuestAddress(0x8000)).unwrap();
    s.memory.write_slice(b"world", GuestAddress(0x9000)).unwrap();
    let head = s.ring.request(&[
        readable(0x8000, 6),
        readable(0x9000, 5),
        writable(0xa000, 2),
        writable(0xb000, 9),
    ]);

    let mut round = s.queue.round().unwrap();
    let chain = round.next().unwrap().unwrap();
    assert_eq!(
        (chain.head(), chain.readable_len(), chain.writable_len()),
        (head, 11, 11)
    );
    let mut text = [0; 11];
    chain.reader().read(&mut text).unwrap();
    assert_eq!(&text, b"hello world");
    chain.writer().write(&text).unwrap();
    chain.complete(11).unwrap();
    assert!(round.next().unwrap().is_none());
    assert_eq!(round.end().unwrap(), Rest::Drained);

    let mut back = [0; 9];
    s.memory.read_slice(&mut back, GuestAddress(0xb000)).unwrap();
    assert_eq!(&back, b"llo world");
    assert_eq!(s.ring.used(), [(head.into(), 11)]);
    assert_eq!(s.signals(), 1);
}

#[test]
fn an_indirect_table_is_followed_and_may_be_longer_than_the_queue_up_to_a_bound() {
    for (len, found) in [
        (1, true),
        (SIZE, true),
        (SIZE + 1, true),
        (MAX_INDIRECT, true),
        (MAX_INDIRECT + 1, false),
    ] {
        let mut s = setup(ALL);
        let buffers: Vec<_> = (0..u64::from(len)).map(|n| readable(0x10000 + n, 1)).collect();
        let head = s.ring.add_indirect(0x20000, &buffers);
        s.ring.offer(head);
        if found {
            assert_eq!(s.look(|chain| chain.readable().len()), usize::from(len));
            let taken = s.take();
            assert_eq!((taken.readable().len(), taken.readable_len()), (len.into(), len.into()));
            assert_eq!(
                taken.readable()[usize::from(len) - 1].address,
                0x10000 + u64::from(len) - 1
            );
        } else {
            s.costs_itself(head, "one more than the bound");
        }
    }
}

#[test]
fn a_chain_after_a_long_one_is_its_own() {
    let mut s = setup(ALL);
    let long: Vec<_> = (0..20).map(|n| readable(0x10000 + n, 1)).collect();
    let head = s.ring.add_indirect(0x20000, &long);
    s.ring.offer(head);
    s.ring.request(&[readable(0x8000, 3), writable(0x9000, 2)]);
    let long = s.take();
    let lens = |segments: &[devisor::memory::Segment]| segments.iter().map(|s| (s.address, s.len)).collect::<Vec<_>>();
    let short = s.take();
    assert_eq!(
        (lens(short.readable()), lens(short.writable())),
        (vec![(0x8000, 3)], vec![(0x9000, 2)])
    );
    assert_eq!(long.readable().len(), 20);
    // The room of the long one is used again.
    long.complete(0);
    s.ring.request(&[writable(0xa000, 1)]);
    let again = s.take();
    assert_eq!(
        (lens(again.readable()), lens(again.writable())),
        (vec![], vec![(0xa000, 1)])
    );
}

#[test]
fn slices_of_a_chain_are_the_guests_memory() {
    let mut s = setup(ALL);
    s.ring
        .request(&[writable(0x8000, 3), writable(0x9000, 0), writable(0x9001, 4)]);
    let lengths = s.look(|chain| {
        let (_, tail) = chain.writer().split_at(2).unwrap();
        tail.with_slices(&mut Slices::default(), |slices| {
            slices.iter().for_each(|slice| slice.copy_from(&vec![7u8; slice.len()]));
            slices.iter().map(|slice| slice.len()).collect::<Vec<_>>()
        })
    });
    assert_eq!(lengths.unwrap(), [1, 4]);
    assert_eq!(s.ring.get::<[u8; 4]>(0x8000), [0, 0, 7, 0]);
    assert_eq!(s.ring.get::<[u8; 6]>(0x9000), [0, 7, 7, 7, 7, 0]);
}

#[test]
fn reading_or_writing_beyond_a_chain_is_refused_whole() {
    let mut s = setup(ALL);
    s.ring.request(&[readable(0x8000, 4), writable(0x9000, 4)]);
    s.look(|chain| {
        assert_eq!(chain.reader().read(&mut [0; 6]), Err(ChainError::Short(2)));
        assert_eq!(chain.writer().write(&[1; 5]), Err(ChainError::Short(1)));
        assert_eq!(chain.writer().fill(1, 5), Err(ChainError::Short(1)));
        assert!(chain.writer().split_at(5).is_err());
        assert!(chain.reader().split_at(5).is_err());
    });
    assert_eq!(s.ring.get::<u32>(0x9000), 0);
}

// Rounds: what a handler finds, leaves, takes, gives back.

#[test]
fn a_chain_that_was_looked_at_and_left_is_found_again() {
    let mut s = setup(ALL);
    let heads = [
        s.ring.request(&[writable(0x8000, 1)]),
        s.ring.request(&[writable(0x9000, 1)]),
    ];
    let mut round = s.queue.round().unwrap();
    for _ in 0..3 {
        assert_eq!(round.next().unwrap().unwrap().head(), heads[0]);
    }
    assert_eq!(round.end().unwrap(), Rest::Left);
    assert_eq!((s.ring.used_idx(), s.signals()), (0, 0));
    // The first is answered and the second left.
    let mut round = s.queue.round().unwrap();
    round.next().unwrap().unwrap().complete(1).unwrap();
    assert_eq!(round.next().unwrap().unwrap().head(), heads[1]);
    assert_eq!(round.end().unwrap(), Rest::Left);
    assert_eq!(
        s.queue.save().in_flight,
        [0u16; 0],
        "it is in the ring, and not in flight"
    );
    assert_eq!(s.heads(), [heads[1]]);
}

#[test]
fn a_round_that_stops_early_says_that_there_may_be_more() {
    let mut s = setup(ALL);
    s.ring.request(&[writable(0x8000, 1)]);
    let mut round = s.queue.round().unwrap();
    round.next().unwrap().unwrap().complete(1).unwrap();
    assert_eq!(
        round.end().unwrap(),
        Rest::More,
        "nobody has looked whether there is another"
    );
    let round = s.queue.round().unwrap();
    assert_eq!(round.end().unwrap(), Rest::Left, "nobody has looked at all");
    assert_eq!(s.serve_nothing(), Rest::Drained);
}

#[test]
fn chains_that_are_put_are_seen_at_once_and_signalled_once() {
    for publish in [true, false] {
        let mut s = setup(NO_EVENT_IDX);
        for _ in 0..3 {
            s.ring.request(&[writable(0x8000, 1)]);
        }
        let mut round = s.queue.round().unwrap();
        while let Some(chain) = round.next().unwrap() {
            chain.put(1).unwrap();
        }
        assert_eq!((s.ring.used_idx(), s.signals.used.load(Ordering::SeqCst)), (0, 0));
        if publish {
            round.publish().unwrap();
            assert_eq!((s.ring.used_idx(), s.signals.used.load(Ordering::SeqCst)), (3, 1));
        }
        assert_eq!(round.end().unwrap(), Rest::Drained);
        assert_eq!(s.ring.used(), [(0, 1), (1, 1), (2, 1)]);
        assert_eq!(s.signals(), 1);
        assert_eq!(s.queue.counters().requests, 3);
    }
}

#[test]
fn chains_that_are_put_are_seen_with_one_that_is_completed() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.request(&[writable(0x8000, 1)]);
    s.ring.request(&[writable(0x8000, 1)]);
    let mut round = s.queue.round().unwrap();
    round.next().unwrap().unwrap().put(1).unwrap();
    round.next().unwrap().unwrap().complete(1).unwrap();
    assert_eq!((s.ring.used_idx(), s.signals.used.load(Ordering::SeqCst)), (2, 1));
    let _ = round.end().unwrap();
    assert_eq!(s.signals(), 1);
}

#[test]
fn what_was_put_in_a_round_that_never_ended_is_seen_and_signalled_with_the_next() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.request(&[writable(0x8000, 1)]);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut round = s.queue.round().unwrap();
        round.next().unwrap().unwrap().put(1).unwrap();
        panic!("a handler's");
    }));
    assert!(panicked.is_err());
    assert_eq!(s.serve_nothing(), Rest::Drained);
    assert_eq!(s.ring.used(), [(0, 1)]);
    assert_eq!(s.signals(), 1);
}

#[test]
fn what_was_put_in_a_round_that_never_ended_is_seen_after_a_restore() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.request(&[writable(0x8000, 1)]);
    let mut round = s.queue.round().unwrap();
    round.next().unwrap().unwrap().put(1).unwrap();
    drop(round);
    let state = s.queue.save();
    s.queue = s.restore(&state).unwrap();
    assert_eq!(s.serve_nothing(), Rest::Drained);
    assert_eq!(s.ring.used(), [(0, 1)]);
    assert_eq!(s.signals(), 1);
}

#[test]
fn chains_that_were_taken_are_completed_in_any_order() {
    let mut s = setup(NO_EVENT_IDX);
    let [first, second, third] = s.take_new();
    assert_eq!(s.serve_nothing(), Rest::Drained);
    assert_eq!(s.queue.save().in_flight, [0, 1, 2]);
    third.complete(1);
    first.complete(0);
    second.complete(1);
    assert_eq!(s.ring.used(), [(2, 1), (0, 0), (1, 1)]);
    assert_eq!((s.signals(), s.queue.save().in_flight.len()), (3, 0));
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
fn chains_that_are_given_back_untouched_are_found_first_in_the_order_in_which_they_were_taken() {
    let mut s = setup(ALL);
    let [first, second, third] = s.take_new();
    let fresh = s.ring.request(&[writable(0x8000, 1)]);
    third.give_back();
    drop(first);
    assert_eq!((s.ring.used_idx(), s.signals()), (0, 0));
    assert_eq!(s.queue.save().in_flight, [0, 1, 2], "in a saved state too");
    assert_eq!(s.look(|chain| chain.head()), 0, "one of them may be left");
    assert_eq!(s.heads(), [0, 2, fresh]);
    second.give_back();
    assert_eq!(s.heads(), [1]);
    assert_eq!(s.queue.save().in_flight, [0u16; 0]);
    // They keep their place when they are taken again.
    let [first, second] = s.take_new();
    let heads = [first.head(), second.head()];
    first.give_back();
    let first = s.take();
    assert_eq!(first.head(), heads[0]);
    second.give_back();
    first.give_back();
    assert_eq!(s.heads(), heads);
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

#[test]
fn chains_that_were_taken_and_are_put_are_shown_together() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        s.ring.request(&[writable(0x8000, 4)]);
        s.ring.request(&[writable(0x9000, 4)]);
        let [first, second] = [(); 2].map(|()| s.take());
        let mut round = s.queue.round().unwrap();
        round.put(second, 2).unwrap();
        round.put(first, 9).unwrap();
        assert_eq!(s.ring.used(), [], "the driver sees neither of them");
        round.publish().unwrap();
        assert_eq!(s.ring.used(), [(1, 2), (0, 4)]);
        assert_eq!(round.end(), Ok(Rest::Left), "nothing was looked for");
        assert_eq!((s.queue.counters().requests, s.signals()), (2, 1));
    }
}

// Signals and their suppression (sections 2.7.7 and 2.7.10).

#[test]
fn the_no_interrupt_flag_is_honoured_without_event_idx() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.set_no_interrupt(true);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    assert_eq!(s.signals(), 0);
    s.ring.set_no_interrupt(false);
    let [taken] = s.take_new();
    taken.complete(1);
    assert_eq!(s.signals(), 1);
    assert_eq!(
        s.queue.counters(),
        QueueCounters {
            requests: 2,
            bytes: 2,
            malformed: 0,
            malformed_by: Default::default(),
            wanted: 1,
            suppressed: 1,
            delivered: 1,
            failed: 0
        }
    );
}

#[test]
fn nothing_is_signalled_when_nothing_was_added() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        s.queue.round().unwrap().publish().unwrap();
        assert_eq!(s.serve_nothing(), Rest::Drained);
        let [taken] = s.take_new();
        taken.give_back();
        assert_eq!(s.signals(), 0);
    }
}

#[test]
fn with_event_idx_the_driver_hears_when_its_index_is_passed() {
    let mut s = setup(ALL);
    s.ring.set_used_event(2);
    for expected in [0, 0, 1, 1] {
        s.ring.request(&[writable(0x8000, 1)]);
        s.answer(1);
        assert_eq!(s.signals(), expected, "after {} buffers", s.ring.used_idx());
    }
    s.ring.set_used_event(5);
    for expected in [1, 2, 2] {
        let [taken] = s.take_new();
        taken.complete(1);
        assert_eq!(s.signals(), expected, "after {} buffers", s.ring.used_idx());
    }
}

#[test]
fn a_batch_that_passes_the_event_index_is_signalled() {
    for (event, expected) in [(0, 1), (2, 1), (3, 0), (0xffff, 0)] {
        let mut s = setup(ALL);
        s.ring.set_used_event(event);
        for _ in 0..3 {
            s.ring.request(&[writable(0x8000, 1)]);
        }
        let mut round = s.queue.round().unwrap();
        while let Some(chain) = round.next().unwrap() {
            chain.put(1).unwrap();
        }
        let _ = round.end().unwrap();
        assert_eq!(s.signals(), expected, "used_event {event}");
    }
}

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

#[test]
fn a_refused_signal_is_carried_by_the_next_call_even_if_that_one_is_suppressed() {
    let mut s = setup(ALL);
    s.signals.refuse.store(true, Ordering::SeqCst);
    s.ring.request(&[writable(0x8000, 1)]);
    s.look(|chain| chain.complete(1).unwrap());
    assert_eq!(s.ring.used().len(), 1, "the buffer is used all the same");
    let [taken] = s.take_new();
    s.signals.refuse.store(false, Ordering::SeqCst);
    // used_event is still 0: this completion alone would not be signalled.
    taken.complete(1);
    assert_eq!(s.signals(), 1);

    s.signals.refuse.store(true, Ordering::SeqCst);
    s.ring.set_used_event(2);
    let [taken] = s.take_new();
    taken.complete(1);
    s.signals.refuse.store(false, Ordering::SeqCst);
    assert_eq!(s.serve_nothing(), Rest::Drained);
    assert_eq!(s.signals(), 2, "an idle round carries it too");
    assert!(s.queue.counters().failed >= 2);
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
fn a_request_that_comes_before_kicks_are_expected_again_is_found() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        s.ring.request(&[writable(0x8000, 1)]);
        let mut round = s.queue.round().unwrap();
        round.next().unwrap().unwrap().complete(1).unwrap();
        assert!(round.next().unwrap().is_none());
        s.ring.request(&[writable(0x8000, 1)]);
        assert_eq!(round.end().unwrap(), Rest::More);
        assert_eq!(s.serve(|_| Ok(1)), Rest::Drained);
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

/// The device of [`Waiting`] behind virtio-mmio, with a driver that is ready.
fn behind_mmio(features: u64, doorbell: bool, meanwhile: impl FnMut(&mut Ring) + Send + 'static) -> Behind {
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
    let mut mmio = VirtioMmio::new(Front(Some(device)), memory, Line::Edge(Arc::new(NoInterrupt))).unwrap();
    if doorbell {
        mmio = mmio.with_doorbell(|_| Ok(()));
    }
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
    (mmio, ring, answers, asked)
}

fn kick(mmio: &VirtioMmio<Front>) {
    mmio.write(0x50, &0u32.to_le_bytes());
}

#[test]
fn without_a_doorbell_kicks_stay_enabled_while_a_queue_is_served() {
    for features in [ALL, NO_EVENT_IDX] {
        let event_idx = features & features::EVENT_IDX != 0;
        for doorbell in [false, true] {
            let (mmio, ring, answers, asked) = behind_mmio(features, doorbell, |_| ());
            answers.store(2, Ordering::SeqCst);
            for _ in 0..2 {
                ring.lock().unwrap().request(&[writable(0x8000, 1)]);
            }
            kick(&mmio);
            if doorbell {
                devisor::virtio::VirtioTransport::run(&mmio);
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
fn without_a_doorbell_a_chain_that_was_left_is_served_with_the_next_kick_that_the_driver_is_asked_for() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut more = 1;
        let (mmio, ring, answers, asked) = behind_mmio(features, false, move |ring| {
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
fn memory_that_is_not_the_guests_is_not_touched() {
    let top = 1 << 20;
    for (address, len) in [
        (top, 1),
        (top - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (1 << 40, 0x1000),
    ] {
        for flags in [0, WRITE, INDIRECT] {
            let mut s = setup(ALL);
            let len = if flags == INDIRECT { 16 } else { len };
            let address = if flags == INDIRECT {
                address.max(top - 15)
            } else {
                address
            };
            s.ring.descriptor(0, address, len, flags, 0);
            s.ring.offer(0);
            s.costs_itself(0, &format!("{len} at {address:#x}, flags {flags}"));
        }
    }
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
fn readable_after_writable_costs_its_chain() {
    let mut s = setup(ALL);
    let head = s.ring.request(&[writable(0x8000, 1), readable(0x9000, 1)]);
    s.costs_itself(head, "the wrong way around");
}

#[test]
fn a_request_that_is_refused_comes_back_empty_and_is_counted() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.request(&[writable(0x8000, 1)]);
    s.ring.request(&[writable(0x8000, 1)]);
    s.look(|chain| chain.refuse().unwrap());
    assert_eq!(
        s.serve(|chain| Err(chain.writer().write(&[0; 2]).unwrap_err())),
        Rest::Drained
    );
    assert_eq!(s.ring.used(), [(0, 0), (1, 0)]);
    let counters = s.queue.counters();
    assert_eq!((counters.requests, counters.malformed, s.signals()), (2, 2, 2));
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
fn used_length_is_never_more_than_there_is_room_for() {
    let mut s = setup(ALL);
    s.ring.request(&[readable(0x8000, 9), writable(0x9000, 5)]);
    s.answer(u32::MAX);
    s.ring.request(&[readable(0x8000, 9), writable(0x9000, 5)]);
    s.take().complete(u32::MAX);
    assert_eq!(s.ring.used(), [(0, 5), (2, 5)]);
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
fn requests_in_flight_are_handed_out_again_after_a_restore() {
    let mut s = setup(ALL);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    let [_in_flight] = s.take_new();
    s.ring.request(&[writable(0x8000, 1)]);
    let state = s.queue.save();
    assert_eq!(state.in_flight, [1]);
    s.queue = s.restore(&state).unwrap();
    assert_eq!(s.queue.save(), state);
    assert_eq!(s.heads(), [1, 2]);
    assert_eq!(s.ring.used_idx(), 3);
}

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
fn a_request_that_is_taken_after_a_restore_comes_after_those_that_were_in_flight() {
    let mut s = setup(ALL);
    let [first, second] = s.take_new();
    let state = s.queue.save();
    drop((first, second));
    s.queue = s.restore(&state).unwrap();
    let again = [s.take(), s.take()];
    let [fresh] = s.take_new();
    assert_eq!(s.queue.save().in_flight, [0, 1, 2]);
    drop(fresh);
    drop(again);
    assert_eq!(s.heads(), [0, 1, 2]);
}

#[test]
fn a_signal_that_was_refused_before_the_save_comes_after_the_restore() {
    let mut s = setup(ALL);
    s.signals.refuse.store(true, Ordering::SeqCst);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    s.signals.refuse.store(false, Ordering::SeqCst);
    let state = s.queue.save();
    s.queue = s.restore(&state).unwrap();
    assert_eq!(s.signals(), 0, "nothing is raised by the restore itself");
    assert_eq!(s.serve_nothing(), Rest::Drained);
    assert_eq!(s.signals(), 1);
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
