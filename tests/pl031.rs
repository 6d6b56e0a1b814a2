//! The PL031, driven through its registers as a guest would and by a clock that a test advances.

use std::{
    io,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use devisor::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, NoInterrupt, level_from_fn},
    platform::pl031::{Pl031, Pl031State},
    time::{Alarm, Clock, ManualClock},
};
use proptest::prelude::*;

const DR: u64 = 0x000;
const MR: u64 = 0x004;
const LR: u64 = 0x008;
const CR: u64 = 0x00c;
const IMSC: u64 = 0x010;
const RIS: u64 = 0x014;
const MIS: u64 = 0x018;
const ICR: u64 = 0x01c;

const WRAP: u64 = 1 << 32;

/// When the tests begin: a date that a guest could see, and a third of a second into it.
const NOW: u64 = 1_700_000_000;
const FRACTION: Duration = Duration::from_millis(333);

trait Guest {
    fn get(&self, register: u64) -> u32;
    fn put(&self, register: u64, value: u32);
}

impl<T: BusDevice> Guest for T {
    fn get(&self, register: u64) -> u32 {
        let mut data = [0xa5; 4];
        self.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }
}

/// What a line has heard.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<bool>>>);

impl Heard {
    fn line(&self) -> impl LevelInterrupt + 'static {
        let log = Arc::clone(&self.0);
        level_from_fn(move |up| {
            log.lock().unwrap().push(up);
            Ok(())
        })
    }

    fn all(&self) -> Vec<bool> {
        self.0.lock().unwrap().clone()
    }
}

/// What an alarm was told, in seconds.
#[derive(Default)]
struct Deadlines(Mutex<Vec<Option<u64>>>);

impl Alarm for Deadlines {
    fn set(&self, deadline: Option<Duration>) {
        assert!(deadline.is_none_or(|deadline| deadline.subsec_nanos() == 0));
        self.0.lock().unwrap().push(deadline.map(|deadline| deadline.as_secs()));
    }
}

impl Deadlines {
    fn take(&self) -> Vec<Option<u64>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Duration::from_secs(NOW) + FRACTION))
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn silent(clock: &Arc<ManualClock>) -> Pl031<NoInterrupt, Arc<ManualClock>, ()> {
    Pl031::new(NoInterrupt, Arc::clone(clock), ())
}

// Registers.

#[test]
fn a_clock_with_a_battery_runs_and_tells_the_time() {
    let clock = clock();
    let rtc = silent(&clock);
    for (register, value) in [
        (DR, NOW as u32),
        (MR, 0),
        (LR, 0),
        (CR, 1),
        (IMSC, 0),
        (RIS, 0),
        (MIS, 0),
    ] {
        assert_eq!(rtc.get(register), value, "register {register:#x}");
    }
}

#[test]
fn a_clock_at_reset_stands_at_zero_until_it_is_started_and_cannot_be_stopped() {
    let clock = clock();
    let rtc = Pl031::at_reset(NoInterrupt, Arc::clone(&clock), ());
    for register in [DR, MR, LR, CR, IMSC, RIS, MIS] {
        assert_eq!(rtc.get(register), 0, "register {register:#x}");
    }
    clock.advance(seconds(10));
    assert_eq!(rtc.get(DR), 0);
    rtc.put(CR, 0xffff_fffe);
    assert_eq!(rtc.get(CR), 0, "only bit 0 starts it");
    rtc.put(CR, 1);
    clock.advance(seconds(10));
    assert_eq!((rtc.get(CR), rtc.get(DR)), (1, 10));
    rtc.put(CR, 0);
    clock.advance(seconds(1));
    assert_eq!((rtc.get(CR), rtc.get(DR)), (1, 11));
}

#[test]
fn registers_keep_what_is_written_to_them() {
    let rtc = silent(&clock());
    for (register, value) in [(MR, 0x1234_5678), (LR, 0x9abc_def0), (IMSC, 1)] {
        rtc.put(register, value);
        assert_eq!(rtc.get(register), value);
    }
    assert_eq!(rtc.get(MR), 0x1234_5678);
    rtc.put(IMSC, 0xffff_fffe);
    assert_eq!(rtc.get(IMSC), 0, "only bit 0 exists");
}

#[test]
fn read_only_registers_ignore_writes_and_the_write_only_one_reads_as_zero() {
    let rtc = silent(&clock());
    let before = rtc.save();
    for register in [DR, RIS, MIS, 0xfe0, 0xff0] {
        rtc.put(register, u32::MAX);
    }
    assert_eq!(rtc.save(), before);
    assert_eq!(rtc.get(ICR), 0);
}

#[test]
fn the_identification_is_that_of_a_pl031() {
    let rtc = silent(&clock());
    let id: Vec<u32> = (0xfe0..0x1000).step_by(4).map(|register| rtc.get(register)).collect();
    assert_eq!(id, [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn registers_answer_to_accesses_of_8_16_and_32_bits_and_nothing_else_does() {
    let rtc = silent(&clock());
    rtc.put(MR, 0x1234_5678);
    let mut data = [0; 2];
    rtc.read(MR, &mut data);
    assert_eq!(data, [0x78, 0x56]);
    let mut data = [0; 1];
    rtc.read(MR, &mut data);
    assert_eq!(data, [0x78]);
    rtc.write(IMSC, &[1]);
    assert_eq!(rtc.get(IMSC), 1);

    let before = rtc.save();
    for len in [0, 3, 5, 8, 16] {
        rtc.write(MR, &vec![0xff; len]);
        let mut data = vec![0xa5; len];
        rtc.read(MR, &mut data);
        assert_eq!(data, vec![0; len], "{len} bytes");
    }
    for offset in [MR + 1, MR + 2, 0x20, 0xfdc, 0x1004, u64::MAX] {
        rtc.put(offset, u32::MAX);
        assert_eq!(rtc.get(offset), 0, "offset {offset:#x}");
    }
    assert_eq!(rtc.save(), before);
}

#[test]
fn a_reset_clears_the_registers_and_not_the_time() {
    let (clock, heard) = (clock(), Heard::default());
    let rtc = Pl031::new(heard.line(), Arc::clone(&clock), ());
    rtc.put(LR, 500);
    rtc.put(MR, 500);
    rtc.put(IMSC, 1);
    clock.advance(seconds(7));
    rtc.reset();
    for (register, value) in [(DR, 507), (MR, 0), (LR, 0), (CR, 1), (IMSC, 0), (RIS, 0)] {
        assert_eq!(rtc.get(register), value, "register {register:#x}");
    }
    assert_eq!(heard.all(), [true, false]);
}

// Counting.

#[test]
fn the_counter_goes_up_with_each_whole_second_of_the_clock() {
    let clock = clock();
    let rtc = silent(&clock);
    clock.advance_to(seconds(NOW + 1) - Duration::from_nanos(1));
    assert_eq!(rtc.get(DR), NOW as u32);
    clock.advance(Duration::from_nanos(1));
    assert_eq!(rtc.get(DR), NOW as u32 + 1);
    clock.advance(seconds(1_000_000));
    assert_eq!(rtc.get(DR), NOW as u32 + 1_000_001, "a pause costs no second");
}

#[test]
fn loading_sets_the_counter_and_counting_goes_on_from_there() {
    let clock = clock();
    let rtc = silent(&clock);
    rtc.put(LR, 42);
    assert_eq!(rtc.get(DR), 42);
    clock.advance(seconds(8));
    assert_eq!((rtc.get(DR), rtc.get(LR)), (50, 42));
}

#[test]
fn a_stopped_clock_can_be_loaded() {
    let clock = clock();
    let rtc = Pl031::at_reset(NoInterrupt, Arc::clone(&clock), ());
    rtc.put(LR, 42);
    clock.advance(seconds(8));
    assert_eq!(rtc.get(DR), 42);
}

#[test]
fn the_counter_wraps() {
    let clock = clock();
    let rtc = silent(&clock);
    rtc.put(LR, u32::MAX);
    clock.advance(seconds(1));
    assert_eq!(rtc.get(DR), 0);
}

#[test]
fn a_clock_that_runs_backwards_stops_the_counter_and_does_not_turn_it_back() {
    struct Wall(Mutex<u64>);
    impl Clock for Wall {
        fn now(&self) -> Duration {
            Duration::from_secs(*self.0.lock().unwrap())
        }
    }
    let wall = Arc::new(Wall(Mutex::new(1000)));
    let rtc = Pl031::new(NoInterrupt, Arc::clone(&wall), ());
    *wall.0.lock().unwrap() = 900;
    assert_eq!(rtc.get(DR), 1000);
    *wall.0.lock().unwrap() = 1001;
    assert_eq!(rtc.get(DR), 1001);
}

// The match interrupt.

#[test]
fn the_match_interrupts_when_the_counter_comes_to_it_and_not_before() {
    let (clock, heard, alarm) = (clock(), Heard::default(), Arc::new(Deadlines::default()));
    let rtc = Pl031::new(heard.line(), Arc::clone(&clock), Arc::clone(&alarm));
    rtc.put(MR, NOW as u32 + 5);
    rtc.put(IMSC, 1);
    assert_eq!(alarm.take(), [Some(NOW + 5)]);
    clock.advance_to(seconds(NOW + 5) - Duration::from_nanos(1));
    rtc.expire();
    assert_eq!((rtc.get(RIS), heard.all()), (0, vec![]), "early is harmless");
    assert_eq!(alarm.take(), [Some(NOW + 5)], "a timer that has gone off is set again");
    clock.advance(Duration::from_nanos(1));
    rtc.expire();
    assert_eq!(heard.all(), [true]);
    assert_eq!((rtc.get(RIS), rtc.get(MIS)), (1, 1));
    assert_eq!(alarm.take(), [None], "nothing can change until the guest clears it");
    rtc.expire();
    assert_eq!(heard.all(), [true], "twice is harmless");
}

#[test]
fn a_late_call_finds_the_match_that_has_passed() {
    let (clock, heard) = (clock(), Heard::default());
    let rtc = Pl031::new(heard.line(), Arc::clone(&clock), ());
    rtc.put(MR, NOW as u32 + 5);
    rtc.put(IMSC, 1);
    clock.advance(seconds(3600));
    rtc.expire();
    assert_eq!(heard.all(), [true]);
}

#[test]
fn the_guest_sees_a_match_without_any_alarm() {
    let clock = clock();
    let rtc = silent(&clock);
    rtc.put(MR, NOW as u32 + 1);
    clock.advance(seconds(1));
    assert_eq!(rtc.get(RIS), 1);
}

#[test]
fn clearing_lasts_through_the_matching_second_and_a_whole_turn() {
    let (clock, heard, alarm) = (clock(), Heard::default(), Arc::new(Deadlines::default()));
    let rtc = Pl031::new(heard.line(), Arc::clone(&clock), Arc::clone(&alarm));
    rtc.put(MR, NOW as u32 + 1);
    rtc.put(IMSC, 1);
    clock.advance(seconds(1));
    rtc.expire();
    alarm.take();
    rtc.put(ICR, 0);
    assert_eq!(heard.all(), [true], "writing zero clears nothing");
    rtc.put(ICR, 1);
    rtc.expire();
    assert_eq!((rtc.get(RIS), heard.all()), (0, vec![true, false]));
    assert_eq!(
        alarm.take(),
        [Some(NOW + 1 + WRAP); 2],
        "also for an expiry that comes early"
    );
    clock.advance(seconds(WRAP - 1));
    assert_eq!(rtc.get(RIS), 0);
    clock.advance(seconds(1));
    assert_eq!(rtc.get(RIS), 1);
}

#[test]
fn a_match_value_in_the_past_is_reached_after_the_wrap() {
    let (clock, alarm) = (clock(), Arc::new(Deadlines::default()));
    let rtc = Pl031::new(NoInterrupt, Arc::clone(&clock), Arc::clone(&alarm));
    rtc.put(IMSC, 1);
    alarm.take();
    rtc.put(MR, NOW as u32 - 1);
    assert_eq!(rtc.get(RIS), 0);
    assert_eq!(alarm.take(), [Some(NOW + WRAP - 1)]);
    clock.advance_to(seconds(NOW + WRAP - 2));
    assert_eq!(rtc.get(RIS), 0);
    clock.advance_to(seconds(NOW + WRAP - 1));
    assert_eq!(rtc.get(RIS), 1);
}

#[test]
fn setting_match_or_counter_to_the_other_is_a_match() {
    let clock = clock();
    let rtc = silent(&clock);
    rtc.put(MR, NOW as u32);
    assert_eq!(rtc.get(RIS), 1);
    rtc.put(MR, 7);
    assert_eq!(rtc.get(RIS), 1, "it stays until it is cleared");
    rtc.put(ICR, 1);
    rtc.put(LR, 7);
    assert_eq!(rtc.get(RIS), 1);
}

#[test]
fn loading_moves_the_deadline() {
    let (clock, alarm) = (clock(), Arc::new(Deadlines::default()));
    let rtc = Pl031::new(NoInterrupt, Arc::clone(&clock), Arc::clone(&alarm));
    rtc.put(MR, 100);
    rtc.put(IMSC, 1);
    alarm.take();
    rtc.put(LR, 90);
    assert_eq!(alarm.take(), [Some(NOW + 10)]);
    rtc.put(LR, 101);
    assert_eq!(alarm.take(), [Some(NOW + WRAP - 1)]);
}

#[test]
fn a_load_does_not_skip_a_match_that_the_clock_had_reached() {
    let clock = clock();
    let rtc = silent(&clock);
    rtc.put(MR, NOW as u32 + 1);
    clock.advance(seconds(2));
    rtc.put(LR, 5);
    assert_eq!(rtc.get(RIS), 1);
}

#[test]
fn a_stopped_clock_has_no_match_and_no_deadline_until_it_starts() {
    let (clock, alarm) = (clock(), Arc::new(Deadlines::default()));
    let rtc = Pl031::at_reset(NoInterrupt, Arc::clone(&clock), Arc::clone(&alarm));
    rtc.put(IMSC, 1);
    rtc.put(LR, 9);
    rtc.put(MR, 9);
    clock.advance(seconds(10));
    rtc.expire();
    assert_eq!((rtc.get(RIS), alarm.take()), (0, vec![]));
    rtc.put(MR, 12);
    rtc.put(CR, 1);
    assert_eq!((rtc.get(RIS), alarm.take()), (0, vec![Some(NOW + 13)]));
}

#[test]
fn starting_a_clock_that_stands_at_its_match_is_a_match() {
    let rtc = Pl031::at_reset(NoInterrupt, clock(), ());
    rtc.put(CR, 1);
    assert_eq!(rtc.get(RIS), 1);
    rtc.put(ICR, 1);
    rtc.put(CR, 1);
    assert_eq!(rtc.get(RIS), 0, "it runs already");
}

// Line and alarm.

#[test]
fn unmasking_a_pending_match_raises_the_line_and_masking_lowers_it() {
    let heard = Heard::default();
    let rtc = Pl031::new(heard.line(), clock(), ());
    rtc.put(IMSC, 1);
    rtc.put(IMSC, 0);
    assert_eq!(heard.all(), [], "a mask with nothing pending raises nothing");
    rtc.put(MR, NOW as u32);
    assert_eq!((rtc.get(RIS), rtc.get(MIS), heard.all()), (1, 0, vec![]));
    rtc.put(IMSC, 1);
    assert_eq!((rtc.get(MIS), heard.all()), (1, vec![true]));
    rtc.put(IMSC, 0);
    assert_eq!(heard.all(), [true, false]);
}

#[test]
fn the_alarm_is_told_changes_only_and_nothing_while_the_interrupt_is_masked() {
    let (clock, alarm) = (clock(), Arc::new(Deadlines::default()));
    let rtc = Pl031::new(NoInterrupt, Arc::clone(&clock), Arc::clone(&alarm));
    rtc.put(MR, NOW as u32 + 60);
    assert_eq!((alarm.take(), rtc.deadline()), (vec![], None));
    rtc.put(IMSC, 1);
    assert_eq!(rtc.deadline(), Some(seconds(NOW + 60)));
    for _ in 0..50 {
        clock.advance(seconds(1));
        rtc.get(DR);
    }
    assert_eq!(alarm.take(), [Some(NOW + 60)]);
    rtc.expire();
    assert_eq!(
        alarm.take(),
        [Some(NOW + 60)],
        "a timer that went off early is set again"
    );
    rtc.get(DR);
    assert_eq!(alarm.take(), [], "once");
    rtc.put(IMSC, 0);
    assert_eq!(alarm.take(), [None]);
}

#[test]
fn a_line_that_fails_loses_nothing() {
    let fails = Arc::new(AtomicBool::new(true));
    let heard = Heard::default();
    let (broken, log) = (Arc::clone(&fails), Arc::clone(&heard.0));
    let line = level_from_fn(move |up| {
        if broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("not now"));
        }
        log.lock().unwrap().push(up);
        Ok(())
    });
    let rtc = Pl031::new(line, clock(), ());
    rtc.put(IMSC, 1);
    rtc.put(MR, NOW as u32);
    assert_eq!((rtc.interrupt().failures(), rtc.get(MIS)), (1, 1));
    fails.store(false, Ordering::SeqCst);
    rtc.expire();
    assert_eq!(heard.all(), [true]);
}

/// Calls a clock back from its line and its alarm.
#[derive(Clone, Default)]
struct CallsBack(Arc<OnceLock<Weak<dyn BusDevice>>>);

impl CallsBack {
    fn clear(&self) {
        if let Some(rtc) = self.0.get().and_then(Weak::upgrade) {
            rtc.put(ICR, rtc.get(MIS));
        }
    }
}

impl Alarm for CallsBack {
    fn set(&self, _deadline: Option<Duration>) {
        self.clear();
    }
}

#[test]
fn line_and_alarm_may_call_the_clock() {
    let back = CallsBack::default();
    let device = back.clone();
    let line = level_from_fn(move |_| {
        device.clear();
        Ok(())
    });
    let rtc: Arc<dyn BusDevice> = Arc::new(Pl031::new(line, clock(), back.clone()));
    assert!(back.0.set(Arc::downgrade(&rtc)).is_ok());
    rtc.put(IMSC, 1);
    rtc.put(MR, NOW as u32);
    assert_eq!(rtc.get(MIS), 0);
}

#[test]
fn a_deadline_that_changes_while_the_alarm_is_told_another_is_told_last() {
    /// Holds up the first telling until told to go on.
    struct Slow(Mutex<Option<mpsc::Receiver<()>>>, mpsc::Sender<()>, Arc<Deadlines>);
    impl Alarm for Slow {
        fn set(&self, deadline: Option<Duration>) {
            if let Some(go) = self.0.lock().unwrap().take() {
                self.1.send(()).unwrap();
                go.recv().unwrap();
            }
            self.2.set(deadline);
        }
    }
    let (go, gone) = mpsc::channel();
    let (started, start) = mpsc::channel();
    let deadlines = Arc::new(Deadlines::default());
    let alarm = Slow(Mutex::new(Some(gone)), started, Arc::clone(&deadlines));
    let rtc = Pl031::new(NoInterrupt, clock(), alarm);
    rtc.put(MR, NOW as u32 + 50);
    thread::scope(|scope| {
        scope.spawn(|| rtc.put(IMSC, 1));
        start.recv().unwrap();
        rtc.put(MR, NOW as u32 + 20);
        go.send(()).unwrap();
    });
    assert_eq!(deadlines.take(), [Some(NOW + 50), Some(NOW + 20)]);
}

// State.

fn saved() -> Pl031State {
    Pl031State {
        seconds: NOW - 100,
        dr: 5000,
        mr: 5200,
        lr: 17,
        started: true,
        imsc: true,
        ris: false,
    }
}

#[test]
fn every_field_survives_save_and_restore() {
    for state in [
        Pl031State {
            seconds: NOW,
            ..saved()
        },
        Pl031State {
            seconds: NOW,
            dr: 1,
            mr: 2,
            lr: 3,
            started: false,
            imsc: false,
            ris: true,
        },
    ] {
        let rtc = silent(&clock());
        rtc.restore(&state);
        assert_eq!(rtc.save(), state);
    }
}

#[test]
fn time_goes_on_while_saved_and_the_deadline_stays() {
    let (clock, heard, alarm) = (clock(), Heard::default(), Arc::new(Deadlines::default()));
    let rtc = Pl031::new(heard.line(), Arc::clone(&clock), Arc::clone(&alarm));
    rtc.restore(&saved());
    assert_eq!((rtc.get(DR), heard.all()), (5100, vec![]));
    assert_eq!(alarm.take(), [Some(NOW + 100)]);
    clock.advance(seconds(100));
    rtc.expire();
    assert_eq!((rtc.get(DR), heard.all()), (5200, vec![true]));
}

#[test]
fn a_match_that_was_reached_while_saved_interrupts_on_restore() {
    let heard = Heard::default();
    let rtc = Pl031::new(heard.line(), clock(), ());
    rtc.restore(&Pl031State { mr: 5050, ..saved() });
    assert_eq!((rtc.get(RIS), heard.all()), (1, vec![true]));
}

#[test]
fn a_match_that_the_guest_has_cleared_does_not_come_back_with_a_restore() {
    let (clock, heard) = (clock(), Heard::default());
    let rtc = Pl031::new(heard.line(), Arc::clone(&clock), ());
    rtc.put(IMSC, 1);
    rtc.put(MR, NOW as u32);
    rtc.put(ICR, 1);
    let state = rtc.save();
    rtc.restore(&state);
    assert_eq!((rtc.get(RIS), heard.all()), (0, vec![true, false]));
}

#[test]
fn a_restore_repeats_no_edge() {
    let heard = Heard::default();
    let rtc = Pl031::new(heard.line(), clock(), ());
    let pending = Pl031State { ris: true, ..saved() };
    rtc.restore(&pending);
    rtc.restore(&pending);
    assert_eq!(heard.all(), [true]);
    rtc.restore(&saved());
    assert_eq!(heard.all(), [true, false]);
}

#[test]
fn on_a_clock_that_reads_less_the_time_goes_on_from_where_it_was() {
    let clock = clock();
    let rtc = silent(&clock);
    rtc.restore(&Pl031State {
        seconds: u64::MAX,
        ..saved()
    });
    assert_eq!(rtc.get(DR), 5000);
    clock.advance(seconds(1));
    assert_eq!(rtc.get(DR), 5001);
}

// Anything that a guest and the world can do.

#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Advance(u64),
    Expire,
    Reset,
    SaveAndRestore,
}

fn step() -> impl Strategy<Value = Step> {
    let offset = || prop_oneof![8 => (0u64..8).prop_map(|register| register * 4), 1 => 0u64..0x1010, 1 => any::<u64>()];
    let data = prop_oneof![
        // Values around each other, so that matches happen.
        4 => (0u32..20).prop_map(|value| value.to_le_bytes().to_vec()),
        1 => (0u32..20).prop_map(|value| value.wrapping_neg().to_le_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..17),
    ];
    prop_oneof![
        3 => (offset(), 0usize..17).prop_map(|(offset, len)| Step::Read(offset, len)),
        6 => (offset(), data).prop_map(|(offset, data)| Step::Write(offset, data)),
        3 => prop_oneof![0u64..10, Just(WRAP - 1), Just(WRAP), 0..=WRAP].prop_map(Step::Advance),
        2 => Just(Step::Expire),
        1 => Just(Step::Reset),
        1 => Just(Step::SaveAndRestore),
    ]
}

/// A clock without a fraction, and with room for many turns of the counter.
struct Seconds(AtomicU64);

impl Clock for Seconds {
    fn now(&self) -> Duration {
        seconds(self.0.load(Ordering::SeqCst))
    }
}

proptest! {
    #[test]
    fn no_access_panics_and_line_and_alarm_follow_the_registers(
        running in any::<bool>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let (heard, alarm) = (Heard::default(), Arc::new(Deadlines::default()));
        let clock = Arc::new(Seconds(AtomicU64::new(1)));
        let make = if running { Pl031::new } else { Pl031::at_reset };
        let rtc = make(heard.line(), Arc::clone(&clock), Arc::clone(&alarm));
        for step in steps {
            match step {
                Step::Read(offset, len) => rtc.read(offset, &mut vec![0; len]),
                Step::Write(offset, data) => rtc.write(offset, &data),
                Step::Advance(step) => _ = clock.0.fetch_add(step, Ordering::SeqCst),
                Step::Expire => rtc.expire(),
                Step::Reset => rtc.reset(),
                Step::SaveAndRestore => rtc.restore(&rtc.save()),
            }
            let state = rtc.save();
            let mis = rtc.get(MIS) != 0;
            prop_assert_eq!(mis, state.ris && state.imsc);
            prop_assert_eq!(heard.all().last().copied().unwrap_or(false), mis);
            let armed = alarm.0.lock().unwrap().last().copied().flatten();
            prop_assert_eq!(armed, rtc.deadline().map(|deadline| deadline.as_secs()));
            prop_assert_eq!(armed.is_some(), state.started && state.imsc && !state.ris);
            if let Some(deadline) = armed {
                let left = deadline - clock.now().as_secs();
                prop_assert!((1..=WRAP).contains(&left));
                prop_assert_eq!(state.dr.wrapping_add(left as u32), state.mr);
            }
        }
        let heard = heard.all();
        prop_assert!(heard.windows(2).all(|pair| pair[0] != pair[1]), "transitions only: {:?}", heard);
    }
}
