//! What floor 0 promises: level lines, shared lines, the edge-to-level adapter, messages, and the bus that decodes
//! addresses. The schedules of several threads are `tests/loom.rs`.
#![cfg(not(loom))]

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use devisor::interrupt::{
    EdgeToLevel, FnLevelInterrupt, Interrupt, LevelInterrupt, LevelOutput, LineSource, MsiMessage, MsiSink, MsiVectors,
    NoInterrupt, RequesterId, SharedLine, SinkVectors, TooManySources, from_fn, level_from_fn,
};
use proptest::prelude::*;

/// Logs what it is told, and refuses while it is told to.
#[derive(Clone, Default)]
struct Heard {
    calls: Arc<Mutex<Vec<bool>>>,
    refuse: Arc<AtomicBool>,
}

impl Heard {
    fn line(&self) -> FnLevelInterrupt<impl Fn(bool) -> io::Result<()> + Send + Sync + use<>> {
        let heard = self.clone();
        level_from_fn(move |up| {
            if heard.refuse.load(SeqCst) {
                return Err(io::Error::other("refused"));
            }
            heard.calls.lock().unwrap().push(up);
            Ok(())
        })
    }

    fn calls(&self) -> Vec<bool> {
        self.calls.lock().unwrap().clone()
    }

    fn is_up(&self) -> bool {
        self.calls().last() == Some(&true)
    }

    fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, SeqCst);
    }
}

mod shared_line {
    use super::*;

    #[test]
    fn stays_up_until_both_devices_have_let_go() {
        let heard = Heard::default();
        let wire = SharedLine::new(heard.line());
        let (uart, clock) = (wire.source().unwrap(), wire.source().unwrap());
        uart.trigger().unwrap();
        clock.trigger().unwrap();
        uart.clear().unwrap();
        assert_eq!(heard.calls(), [true]);
        clock.clear().unwrap();
        assert_eq!(heard.calls(), [true, false]);
    }

    #[test]
    fn hears_transitions_and_no_repeats() {
        let heard = Heard::default();
        let wire = SharedLine::new(heard.line());
        let source = wire.source().unwrap();
        source.clear().unwrap();
        source.trigger().unwrap();
        source.trigger().unwrap();
        source.clear().unwrap();
        source.clear().unwrap();
        source.trigger().unwrap();
        assert_eq!(heard.calls(), [true, false, true]);
    }

    #[test]
    fn falls_when_the_device_that_holds_it_up_is_dropped() {
        let heard = Heard::default();
        let wire = SharedLine::new(heard.line());
        let source = wire.source().unwrap();
        source.trigger().unwrap();
        drop(wire);
        drop(source);
        assert_eq!(heard.calls(), [true, false]);
    }

    #[test]
    fn refuses_a_source_too_many_and_names_the_limit() {
        let wire = SharedLine::new(NoInterrupt);
        let limit = SharedLine::<NoInterrupt>::MAX_SOURCES;
        let sources: Vec<_> = (0..limit).map(|_| wire.source().unwrap()).collect();
        assert_eq!(wire.source().err(), Some(TooManySources));
        assert!(TooManySources.to_string().contains(&limit.to_string()));
        drop(sources);
        assert!(wire.source().is_ok());
    }

    #[test]
    fn gives_the_place_of_a_dropped_source_to_the_next_which_starts_down() {
        let heard = Heard::default();
        let wire = SharedLine::new(heard.line());
        let mut sources: Vec<_> = (0..48).map(|_| wire.source().unwrap()).collect();
        sources[17].trigger().unwrap();
        sources.remove(17);
        assert_eq!(heard.calls(), [true, false]);

        let late = wire.source().unwrap();
        assert_eq!(wire.source().err(), Some(TooManySources));
        late.trigger().unwrap();
        drop(sources);
        assert!(heard.is_up(), "the place is its own");
        late.clear().unwrap();
        assert!(!heard.is_up());
    }

    #[test]
    fn carries_another_shared_line_where_48_sources_are_not_enough() {
        let heard = Heard::default();
        let wire = SharedLine::new(heard.line());
        let branch = SharedLine::new(wire.source().unwrap());
        let (near, far) = (wire.source().unwrap(), branch.source().unwrap());
        far.trigger().unwrap();
        near.trigger().unwrap();
        far.clear().unwrap();
        assert!(heard.is_up());
        near.clear().unwrap();
        assert_eq!(heard.calls(), [true, false]);
    }

    #[test]
    fn falls_with_the_next_call_when_the_drop_of_its_last_holder_was_refused() {
        let heard = Heard::default();
        let wire = SharedLine::new(heard.line());
        let (gone, other) = (wire.source().unwrap(), wire.source().unwrap());
        gone.trigger().unwrap();
        heard.refuse(true);
        drop(gone);
        assert!(heard.is_up() && !wire.output().is_up());
        assert_eq!(wire.output().failures(), 1);
        heard.refuse(false);
        other.clear().unwrap();
        assert_eq!(heard.calls(), [true, false]);
    }

    #[test]
    fn is_not_held_by_a_device_whose_refused_raise_has_lost_its_cause() {
        let heard = Heard::default();
        let wire = SharedLine::new(heard.line());
        let (device, other) = (LevelOutput::new(wire.source().unwrap()), wire.source().unwrap());
        heard.refuse(true);
        assert!(device.drive(true).is_err());
        heard.refuse(false);
        // The device knows that the wire was not raised, and does not lower it.
        device.drive(false).unwrap();
        other.trigger().unwrap();
        other.clear().unwrap();
        assert!(!heard.is_up());
    }

    #[test]
    fn is_held_by_a_device_whose_refused_lowering_was_followed_by_another_cause() {
        let heard = Heard::default();
        let wire = SharedLine::new(heard.line());
        let (device, other) = (LevelOutput::new(wire.source().unwrap()), wire.source().unwrap());
        device.drive(true).unwrap();
        heard.refuse(true);
        assert!(device.drive(false).is_err());
        heard.refuse(false);
        // The device knows that the wire was not lowered, and does not raise it.
        device.drive(true).unwrap();
        other.trigger().unwrap();
        other.clear().unwrap();
        assert!(heard.is_up());
    }

    proptest! {
        /// Against the naive model: a set of who holds the line up.
        #[test]
        fn is_the_or_of_its_sources_after_every_step(
            steps in proptest::collection::vec((0..6_usize, 0..5_u8), 1..80)
        ) {
            let heard = Heard::default();
            let wire = SharedLine::new(heard.line());
            let mut sources: Vec<Option<(LineSource<_>, bool)>> = (0..6).map(|_| None).collect();
            for (at, step) in steps {
                match (step, &mut sources[at]) {
                    (0, slot) => *slot = None,
                    (1, slot) => *slot = Some((wire.source().unwrap(), false)),
                    (2, Some((source, up))) => {
                        source.clear().unwrap();
                        *up = false;
                    }
                    (_, Some((source, up))) => {
                        source.trigger().unwrap();
                        *up = true;
                    }
                    (_, None) => {}
                }
                let or = sources.iter().flatten().any(|(_, up)| *up);
                prop_assert_eq!(heard.is_up(), or);
            }
            let calls = heard.calls();
            prop_assert!(calls.iter().enumerate().all(|(n, &up)| up == (n % 2 == 0)), "a repeat: {:?}", calls);
        }
    }
}

mod level_output {
    use super::*;

    #[test]
    fn is_up_while_any_cause_is_and_not_for_notes() {
        let heard = Heard::default();
        let output = LevelOutput::new(heard.line());
        let notes = LevelOutput::<NoInterrupt>::NOTES;
        for (bits, up) in [
            (notes, false),
            (notes | 1, true),
            (1 << 47, true),
            (notes, false),
            (u64::MAX, true),
        ] {
            output.update(|_| bits);
            output.settle().unwrap();
            assert_eq!(heard.is_up(), up, "{bits:#x}");
            assert_eq!(output.is_up(), up, "{bits:#x}");
            assert_eq!(
                output.bits(),
                bits & (notes | LevelOutput::<NoInterrupt>::CAUSES),
                "{bits:#x}"
            );
        }
        assert_eq!(heard.calls(), [true, false, true]);
    }

    #[test]
    fn returns_from_update_what_was_there_before() {
        let output = LevelOutput::new(NoInterrupt);
        assert_eq!(output.update(|causes| causes | 5), 0);
        assert_eq!(output.update(|causes| causes & !1), 5);
        assert_eq!(output.bits(), 4);
    }

    #[test]
    fn keeps_the_notes_when_a_device_with_one_cause_sets_it() {
        let output = LevelOutput::new(NoInterrupt);
        output.update(|_| 1 << 48);
        output.set(true);
        assert_eq!(output.bits(), 1 << 48 | 1);
        output.set(false);
        assert_eq!(output.bits(), 1 << 48);
    }

    #[test]
    fn tells_nothing_before_it_settles() {
        let heard = Heard::default();
        let output = LevelOutput::new(heard.line());
        output.set(true);
        assert_eq!(heard.calls(), []);
        output.settle().unwrap();
        assert_eq!(heard.calls(), [true]);
    }

    #[test]
    fn loses_nothing_when_a_trigger_fails() {
        let heard = Heard::default();
        let output = LevelOutput::new(heard.line());
        heard.refuse(true);
        assert!(output.drive(true).is_err());
        assert!(
            output.drive(true).is_err(),
            "as long as the line refuses, each signal says so"
        );
        assert!(output.is_up(), "the cause stands");
        heard.refuse(false);
        output.settle().unwrap();
        assert_eq!((heard.calls(), output.failures()), (vec![true], 2));
    }

    #[test]
    fn loses_nothing_when_a_clear_fails() {
        let heard = Heard::default();
        let output = LevelOutput::new(heard.line());
        output.drive(true).unwrap();
        heard.refuse(true);
        assert!(output.drive(false).is_err());
        heard.refuse(false);
        output.settle().unwrap();
        assert_eq!((heard.calls(), output.failures()), (vec![true, false], 1));
    }

    #[test]
    fn tells_nothing_of_a_cause_that_went_before_the_line_took_it() {
        let heard = Heard::default();
        let output = LevelOutput::new(heard.line());
        heard.refuse(true);
        assert!(output.drive(true).is_err());
        heard.refuse(false);
        output.drive(false).unwrap();
        assert_eq!(heard.calls(), []);
    }

    #[test]
    fn tells_of_a_rise_after_a_fall_that_was_not_told_or_refused() {
        let heard = Heard::default();
        let output = LevelOutput::new(heard.line());
        output.drive(true).unwrap();
        output.set(false);
        output.set(true);
        output.settle().unwrap();
        assert_eq!(heard.calls(), [true, false, true]);

        heard.refuse(true);
        assert!(output.drive(false).is_err());
        assert!(output.drive(true).is_err(), "the fall is still to be told");
        heard.refuse(false);
        output.settle().unwrap();
        assert_eq!(heard.calls(), [true, false, true, false, true]);
        output.settle().unwrap();
        output.update(|causes| causes | 2);
        output.update(|causes| causes & 2);
        output.settle().unwrap();
        assert_eq!(heard.calls().len(), 5, "a cause was there all the time");

        output.set(false);
        output.set(true);
        output.set(false);
        output.settle().unwrap();
        assert_eq!(heard.calls()[5..], [false]);
    }

    /// A device as the book says: registers under a lock, the line told after it. Its backend calls straight back.
    struct Device {
        pending: Mutex<u32>,
        output: LevelOutput<Box<dyn LevelInterrupt>>,
    }

    impl Device {
        fn with_line(line: impl Fn(&Device, bool) + Send + Sync + 'static) -> Arc<Self> {
            let device: Arc<OnceLock<Weak<Device>>> = Arc::default();
            let this = Arc::clone(&device);
            let line = level_from_fn(move |up| {
                line(&this.get().unwrap().upgrade().unwrap(), up);
                Ok(())
            });
            let made = Arc::new(Self {
                pending: Mutex::new(0),
                output: LevelOutput::new(Box::new(line)),
            });
            device.set(Arc::downgrade(&made)).unwrap();
            made
        }

        fn change(&self, change: impl FnOnce(&mut u32)) {
            let mut pending = self.pending.lock().unwrap();
            change(&mut pending);
            self.output.set(*pending != 0);
            drop(pending);
            self.output.settle().unwrap();
        }
    }

    #[test]
    fn is_called_with_no_lock_held_so_that_the_backend_may_read_the_device() {
        let seen: Arc<Mutex<Vec<(bool, u32)>>> = Arc::default();
        let log = Arc::clone(&seen);
        let device = Device::with_line(move |device, up| {
            let pending = device.pending.try_lock().expect("the device's lock is free");
            log.lock().unwrap().push((up, *pending));
        });
        device.change(|pending| *pending = 4);
        device.change(|pending| *pending = 0);
        assert_eq!(*seen.lock().unwrap(), [(true, 4), (false, 0)]);
    }

    #[test]
    fn takes_a_backend_whose_guest_acknowledges_from_inside_trigger() {
        let calls: Arc<Mutex<Vec<bool>>> = Arc::default();
        let log = Arc::clone(&calls);
        let device = Device::with_line(move |device, up| {
            log.lock().unwrap().push(up);
            if up {
                device.change(|pending| *pending = 0);
                assert!(
                    *log.lock().unwrap().last().unwrap(),
                    "told after this call, not within it"
                );
            }
        });
        device.change(|pending| *pending = 1);
        device.change(|pending| *pending = 1);
        assert_eq!(*calls.lock().unwrap(), [true, false, true, false]);
    }

    /// An edge-triggered input, or a thread that was woken and has looked since, would not hear of the second.
    #[test]
    fn tells_of_a_rise_after_a_fall_also_if_both_came_while_the_line_was_being_told() {
        let calls: Arc<Mutex<Vec<bool>>> = Arc::default();
        let log = Arc::clone(&calls);
        let again = AtomicBool::new(true);
        let device = Device::with_line(move |device, up| {
            log.lock().unwrap().push(up);
            if again.swap(false, SeqCst) {
                device.change(|pending| *pending = 0);
                device.change(|pending| *pending = 1);
            }
        });
        device.change(|pending| *pending = 1);
        assert_eq!(*calls.lock().unwrap(), [true, false, true]);
    }

    #[test]
    fn goes_on_after_a_line_that_panicked() {
        for panicking in [true, false] {
            let level = AtomicBool::new(false);
            let panics = AtomicBool::new(true);
            let output = LevelOutput::new(level_from_fn(|up| {
                if up == panicking && panics.swap(false, SeqCst) {
                    panic!("a bug of the embedder's");
                }
                level.store(up, SeqCst);
                Ok(())
            }));
            let drive = || output.drive(true).and_then(|()| output.drive(false));
            assert!(catch_unwind(AssertUnwindSafe(drive)).is_err());
            output.settle().unwrap();
            assert_eq!(level.load(SeqCst), panicking, "what the call that panicked did not say");
        }
    }

    #[test]
    fn remembers_what_the_line_took_before_it_panicked_in_the_same_round() {
        let level = Arc::new(AtomicBool::new(false));
        let panics = AtomicBool::new(true);
        let wire = Arc::clone(&level);
        let device = Device::with_line(move |device, up| {
            if !up && panics.swap(false, SeqCst) {
                panic!("a bug of the embedder's");
            }
            wire.store(up, SeqCst);
            if up {
                device.change(|pending| *pending = 0);
            }
        });
        let raise = || device.change(|pending| *pending = 1);
        assert!(catch_unwind(AssertUnwindSafe(raise)).is_err());
        device.output.settle().unwrap();
        assert!(!level.load(SeqCst), "the line is still up, with no cause");
    }
}

mod edge_to_level {
    use super::*;

    /// An edge that counts, and refuses while it is told to.
    fn counted() -> (Arc<AtomicU64>, Arc<AtomicBool>, EdgeToLevel<impl Interrupt>) {
        let (edges, refuse) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, refusing) = (Arc::clone(&edges), Arc::clone(&refuse));
        let line = EdgeToLevel::new(from_fn(move || {
            if refusing.load(SeqCst) {
                return Err(io::Error::other("refused"));
            }
            count.fetch_add(1, SeqCst);
            Ok(())
        }));
        (edges, refuse, line)
    }

    #[test]
    fn triggers_again_while_the_guest_finishes_and_the_level_is_up() {
        let (edges, _, line) = counted();
        line.trigger().unwrap();
        for n in 2..5 {
            line.guest_done().unwrap();
            assert_eq!(edges.load(SeqCst), n);
        }
        line.clear().unwrap();
        line.guest_done().unwrap();
        assert_eq!(edges.load(SeqCst), 4);
    }

    #[test]
    fn sends_one_edge_a_rise_however_often_it_is_asserted() {
        let (edges, _, line) = counted();
        for n in 1..4 {
            line.trigger().unwrap();
            line.trigger().unwrap();
            assert_eq!(edges.load(SeqCst), n);
            line.clear().unwrap();
            line.clear().unwrap();
        }
    }

    #[test]
    fn sends_nothing_for_a_guest_that_finishes_what_was_never_raised() {
        let (edges, _, line) = counted();
        line.guest_done().unwrap();
        assert_eq!((edges.load(SeqCst), line.is_up()), (0, false));
    }

    #[test]
    fn carries_a_refused_rise_with_the_next_trigger() {
        let (edges, refuse, line) = counted();
        refuse.store(true, SeqCst);
        assert!(line.trigger().is_err());
        assert!(line.trigger().is_err());
        refuse.store(false, SeqCst);
        line.trigger().unwrap();
        assert_eq!((edges.load(SeqCst), line.is_up()), (1, true));
    }

    #[test]
    fn owes_the_edge_that_was_refused_when_the_guest_finished() {
        for retry in [EdgeToLevel::trigger, EdgeToLevel::guest_done] {
            let (edges, refuse, line) = counted();
            line.trigger().unwrap();
            refuse.store(true, SeqCst);
            assert!(line.guest_done().is_err());
            assert!(retry(&line).is_err());
            refuse.store(false, SeqCst);
            retry(&line).unwrap();
            assert_eq!((edges.load(SeqCst), line.is_up()), (2, true));
            line.trigger().unwrap();
            assert_eq!(edges.load(SeqCst), 2, "paid");
        }
    }

    #[test]
    fn owes_nothing_for_a_level_that_went() {
        let (edges, refuse, line) = counted();
        line.trigger().unwrap();
        refuse.store(true, SeqCst);
        assert!(line.guest_done().is_err());
        line.clear().unwrap();
        refuse.store(false, SeqCst);
        line.guest_done().unwrap();
        assert_eq!(edges.load(SeqCst), 1);
    }

    #[test]
    fn does_not_storm_after_a_refused_rise_whose_cause_went() {
        let (edges, refuse, line) = counted();
        let device = LevelOutput::new(&line);
        refuse.store(true, SeqCst);
        assert!(device.drive(true).is_err());
        refuse.store(false, SeqCst);
        device.drive(false).unwrap();
        line.guest_done().unwrap();
        assert_eq!((edges.load(SeqCst), line.is_up()), (0, false));
    }
}

mod msi {
    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<(u16, MsiMessage)>>);

    impl MsiSink for Sent {
        fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
            self.0.lock().unwrap().push((requester.0, message));
            Ok(())
        }
    }

    #[test]
    fn vectors_over_a_sink_send_the_message_that_they_were_last_given() {
        let sink = Arc::new(Sent::default());
        let vectors = SinkVectors::new(Arc::clone(&sink));
        let (a, b) = (
            vectors.vector(RequesterId(8)).unwrap(),
            vectors.vector(RequesterId(9)).unwrap(),
        );
        let message = |data| MsiMessage {
            address: 0xfee0_0000,
            data,
        };
        a.program(Some(message(1))).unwrap();
        b.program(Some(message(2))).unwrap();
        a.trigger().unwrap();
        b.trigger().unwrap();
        a.program(Some(message(3))).unwrap();
        a.trigger().unwrap();
        assert_eq!(
            *sink.0.lock().unwrap(),
            [(8, message(1)), (9, message(2)), (8, message(3))]
        );
    }

    #[test]
    fn a_vector_whose_message_was_taken_away_is_an_error_and_silent() {
        let sink = Arc::new(Sent::default());
        let vector = SinkVectors::new(Arc::clone(&sink)).vector(RequesterId(8)).unwrap();
        vector.program(Some(MsiMessage::default())).unwrap();
        vector.program(None).unwrap();
        assert_eq!(vector.trigger().unwrap_err().kind(), io::ErrorKind::NotConnected);
        assert!(sink.0.lock().unwrap().is_empty());
    }

    /// The PCI layer takes vectors generically, an embedder has them behind a pointer.
    #[test]
    fn vectors_behind_a_pointer_are_vectors() {
        fn program(vectors: impl MsiVectors) -> io::Result<()> {
            let vector = vectors.vector(RequesterId(8))?;
            fn generic(vector: impl devisor::interrupt::MsiVector) -> io::Result<()> {
                vector.program(Some(MsiMessage::default()))?;
                vector.trigger()
            }
            generic(vector)
        }
        let sink = Arc::new(Sent::default());
        let vectors: Arc<dyn MsiVectors> = Arc::new(SinkVectors::new(Arc::clone(&sink)));
        program(&vectors).unwrap();
        program(vectors).unwrap();
        assert_eq!(sink.0.lock().unwrap().len(), 2);
    }
}

#[test]
fn lines_behind_pointers_are_lines() {
    fn pulse(line: impl LevelInterrupt) {
        line.trigger().unwrap();
        line.clear().unwrap();
    }
    let heard = Heard::default();
    let line: Arc<dyn LevelInterrupt> = Arc::new(heard.line());
    pulse(&line);
    pulse(Box::new(Arc::clone(&line)) as Box<dyn LevelInterrupt>);
    pulse(line);
    assert_eq!(heard.calls(), [true, false].repeat(3));
}

mod time {
    use devisor::time::{Clock, ManualClock};
    use std::time::Duration;

    #[test]
    fn a_clock_stops_at_the_end_of_time_and_never_runs_backwards() {
        let clock = ManualClock::new(Duration::from_nanos(u64::MAX - 1));
        clock.advance(Duration::from_nanos(1));
        clock.advance(Duration::from_nanos(5));
        assert_eq!(clock.now(), Duration::from_nanos(u64::MAX));
        clock.advance(Duration::MAX);
        clock.advance_to(Duration::ZERO);
        assert_eq!(clock.now(), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn advancing_to_a_time_that_has_passed_changes_nothing() {
        let clock = ManualClock::new(Duration::from_secs(2));
        clock.advance_to(Duration::from_secs(1));
        assert_eq!(clock.now(), Duration::from_secs(2));
        clock.advance_to(Duration::from_secs(3));
        assert_eq!(clock.now(), Duration::from_secs(3));
    }
}

mod bus {
    use super::*;
    use devisor::bus::{Bus, BusDevice, BusError, Unclaimed, read_le, write_le};

    /// Answers every byte of a read with its name, and logs accesses as (offset, length).
    struct Named {
        name: u8,
        reads: Mutex<Vec<(u64, usize)>>,
        writes: Mutex<Vec<(u64, Vec<u8>)>>,
    }

    impl BusDevice for Named {
        fn read(&self, offset: u64, data: &mut [u8]) {
            self.reads.lock().unwrap().push((offset, data.len()));
            data.fill(self.name);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.writes.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn named(name: u8) -> Arc<Named> {
        Arc::new(Named {
            name,
            reads: Mutex::default(),
            writes: Mutex::default(),
        })
    }

    fn unclaimed<T>(address: u64, len: usize) -> Result<T, Unclaimed> {
        Err(Unclaimed { address, len })
    }

    #[test]
    fn a_device_has_its_first_byte_its_last_and_no_other() {
        let (device, mut bus) = (named(7), Bus::new());
        bus.insert(0x1000, 0x100, device.clone()).unwrap();
        let mut data = [0; 4];
        bus.read(0x1000, &mut data).unwrap();
        bus.read(0x10fc, &mut data).unwrap();
        bus.read(0x10ff, &mut data[..1]).unwrap();
        assert_eq!(*device.reads.lock().unwrap(), [(0, 4), (0xfc, 4), (0xff, 1)]);
        for (address, len) in [(0xfff, 1), (0x1100, 1), (0xffc, 4), (0, 4), (u64::MAX, 1)] {
            data.fill(0);
            assert_eq!(bus.read(address, &mut data[..len]), unclaimed(address, len));
            assert_eq!(data[..len], [0xff; 4][..len]);
            assert_eq!(bus.write(address, &data[..len]), unclaimed(address, len));
        }
        assert_eq!(device.reads.lock().unwrap().len(), 3);
        assert!(device.writes.lock().unwrap().is_empty());
    }

    #[test]
    fn an_access_that_leaves_its_device_reaches_none() {
        let (low, high, mut bus) = (named(1), named(2), Bus::new());
        bus.insert(0x1000, 0x10, low.clone()).unwrap();
        bus.insert(0x1010, 0x10, high.clone()).unwrap();
        let mut data = [0; 4];
        for address in [0xffe, 0x100d, 0x100e, 0x100f, 0x101e] {
            data.fill(0);
            assert_eq!(bus.read(address, &mut data), unclaimed(address, 4), "{address:#x}");
            assert_eq!(data, [0xff; 4], "no byte of a device is in it");
            assert_eq!(bus.write(address, &[1; 4]), unclaimed(address, 4));
        }
        for device in [low, high] {
            assert!(device.reads.lock().unwrap().is_empty() && device.writes.lock().unwrap().is_empty());
        }
    }

    #[test]
    fn a_write_brings_the_offset_and_all_its_bytes() {
        let (device, mut bus) = (named(1), Bus::new());
        bus.insert(0x4000, 0x20, device.clone()).unwrap();
        bus.write(0x4008, &[1, 2, 3]).unwrap();
        assert_eq!(*device.writes.lock().unwrap(), [(8, vec![1, 2, 3])]);
    }

    #[test]
    fn an_access_of_no_bytes_is_claimed_where_a_device_is_and_nowhere_else() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, named(1)).unwrap();
        assert_eq!(bus.read(0x100f, &mut []), Ok(()));
        assert_eq!(bus.write(0x1000, &[]), Ok(()));
        assert_eq!(bus.read(0x1010, &mut []), unclaimed(0x1010, 0));
        assert_eq!(bus.write(0xfff, &[]), unclaimed(0xfff, 0));
    }

    #[test]
    fn a_device_may_end_with_the_address_space_and_an_access_may_not_pass_it() {
        let (device, mut bus) = (named(3), Bus::new());
        bus.insert(u64::MAX - 7, 8, device.clone()).unwrap();
        let mut data = [0; 8];
        bus.read(u64::MAX - 7, &mut data).unwrap();
        bus.read(u64::MAX, &mut data[..1]).unwrap();
        assert_eq!(bus.read(u64::MAX, &mut data[..2]), unclaimed(u64::MAX, 2));
        assert_eq!(bus.read(u64::MAX - 6, &mut data), unclaimed(u64::MAX - 6, 8));
        assert_eq!(*device.reads.lock().unwrap(), [(0, 8), (7, 1)]);
    }

    #[test]
    fn a_device_may_have_all_of_the_address_space_but_its_last_byte() {
        let (device, mut bus) = (named(3), Bus::new());
        bus.insert(0, u64::MAX, device.clone()).unwrap();
        bus.read(u64::MAX - 4, &mut [0; 4]).unwrap();
        assert_eq!(*device.reads.lock().unwrap(), [(u64::MAX - 4, 4)]);
        assert_eq!(bus.read(u64::MAX, &mut [0]), unclaimed(u64::MAX, 1));
        bus.insert(u64::MAX, 1, named(4)).unwrap();
        bus.read(u64::MAX, &mut [0]).unwrap();
    }

    #[test]
    fn a_region_without_bytes_or_past_the_end_is_refused_by_name() {
        let mut bus = Bus::new();
        for (base, len) in [(0x1000, 0), (u64::MAX, 2), (2, u64::MAX), (u64::MAX, u64::MAX)] {
            let error = bus.insert(base, len, named(1)).unwrap_err();
            assert_eq!(error, BusError::Bounds { base, len });
            assert!(error.to_string().contains(&format!("{base:#x}")), "{error}");
        }
    }

    #[test]
    fn an_overlap_is_refused_and_names_what_is_there() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x100, named(1)).unwrap();
        bus.insert(0x2000, 0x100, named(2)).unwrap();
        for (base, len, taken) in [
            (0x1000, 0x100, 0x1000..=0x10ff),
            (0x10ff, 1, 0x1000..=0x10ff),
            (0xfff, 2, 0x1000..=0x10ff),
            (0x1040, 0x10, 0x1000..=0x10ff),
            (0x0, 0x8000, 0x1000..=0x10ff),
            (0x1100, 0xf01, 0x2000..=0x20ff),
        ] {
            let error = bus.insert(base, len, named(3)).unwrap_err();
            assert_eq!(error, BusError::Overlap { base, len, taken });
        }
        bus.insert(0x1100, 0xf00, named(3)).unwrap();
        bus.insert(0xfff, 1, named(4)).unwrap();
        let mut data = [0];
        for (address, name) in [(0xfff, 4), (0x10ff, 1), (0x1100, 3), (0x1fff, 3), (0x2000, 2)] {
            bus.read(address, &mut data).unwrap();
            assert_eq!(data, [name], "{address:#x}");
        }
    }

    #[test]
    fn a_device_that_was_removed_leaves_its_place_free() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x100, named(1)).unwrap();
        assert!(bus.remove(0x1001).is_none(), "not where it starts");
        let removed = bus.remove(0x1000).unwrap();
        let mut data = [0];
        removed.read(0, &mut data);
        assert_eq!(data, [1]);
        assert!(bus.remove(0x1000).is_none());
        assert_eq!(bus.read(0x1000, &mut data), unclaimed(0x1000, 1));
        bus.insert(0x1080, 0x100, named(2)).unwrap();
    }

    #[test]
    fn a_clone_shares_devices_and_not_places() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x100, named(1)).unwrap();
        let clone = bus.clone();
        bus.remove(0x1000).unwrap();
        assert!(clone.read(0x1000, &mut [0]).is_ok());
        assert!(bus.read(0x1000, &mut [0]).is_err());
    }

    #[test]
    fn little_endian_helpers_take_any_length() {
        for len in 0..=16_usize {
            let mut data = vec![0xaa; len];
            write_le(&mut data, 0x0807_0605_0403_0201);
            let expected: Vec<u8> = (1..=16).map(|n| if n <= 8 { n } else { 0 }).take(len).collect();
            assert_eq!(data, expected);
            let mask = u64::MAX.checked_shr(64 - 8 * len.min(8) as u32).unwrap_or(0);
            assert_eq!(read_le(&data), 0x0807_0605_0403_0201 & mask, "{len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Up to 64 regions and as many removals, against a table with one entry a byte.
        #[test]
        fn decodes_as_a_table_with_one_entry_a_byte_does(
            at_the_end in any::<bool>(),
            steps in proptest::collection::vec((0..600_u64, 0..24_u64, 0..5_u8), 1..160),
            accesses in proptest::collection::vec((0..640_u64, 0..10_usize), 100),
        ) {
            const SPACE: u64 = 640;
            // The last bytes of the address space, or the first.
            let origin = if at_the_end { u64::MAX - (SPACE - 1) } else { 0 };
            let mut table: Vec<Option<(u8, u64)>> = vec![None; SPACE as usize];
            let mut bus = Bus::new();
            let mut devices = Vec::new();
            for (base, len, kind) in steps {
                let bytes = base as usize..(base + len) as usize;
                if kind == 0 {
                    let here = table[base as usize].filter(|(_, offset)| *offset == 0);
                    prop_assert_eq!(bus.remove(origin + base).is_some(), here.is_some());
                    if let Some((name, _)) = here {
                        table.iter_mut().filter(|entry| entry.is_some_and(|(n, _)| n == name)).for_each(|entry| *entry = None);
                    }
                } else if devices.len() < 64 {
                    let name = devices.len() as u8;
                    let device = named(name);
                    let free = len > 0 && table[bytes.clone()].iter().all(Option::is_none);
                    prop_assert_eq!(bus.insert(origin + base, len, device.clone()).is_ok(), free);
                    if free {
                        devices.push(device);
                        table[bytes].iter_mut().zip(0..).for_each(|(entry, offset)| *entry = Some((name, offset)));
                    }
                }
            }
            for (address, len) in accesses {
                let bytes = table.get(address as usize..address as usize + len.max(1));
                let first = table[address as usize];
                let owner = first.filter(|(name, _)| {
                    bytes.is_some_and(|bytes| bytes.iter().all(|entry| entry.is_some_and(|(n, _)| n == *name)))
                });
                let mut data = vec![0; len];
                let result = bus.read(origin + address, &mut data);
                prop_assert_eq!(result.is_ok(), owner.is_some());
                match owner {
                    Some((name, offset)) => {
                        prop_assert_eq!(&data, &vec![name; len]);
                        let last = devices[name as usize].reads.lock().unwrap().last().copied();
                        prop_assert_eq!(last, Some((offset, len)));
                    }
                    None => prop_assert_eq!(&data, &vec![0xff; len]),
                }
            }
        }
    }
}
