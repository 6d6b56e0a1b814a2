//! The MC146818, driven through its ports as a guest would and by a clock that a test advances.

use std::{
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use devisor::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, NoInterrupt, level_from_fn},
    platform::mc146818::{Mc146818, Mc146818State, Mc146818StateError, NoMemory},
    time::{Alarm, Clock, ManualClock},
};

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const DAY_OF_WEEK: u8 = 0x06;
const DATE: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const UIP: u8 = 0x80;
const SET: u8 = 0x80;
const PIE: u8 = 0x40;
const AIE: u8 = 0x20;
const UIE: u8 = 0x10;
const SQWE: u8 = 0x08;
const DM: u8 = 0x04;
const HOURS_24: u8 = 0x02;
const IRQF: u8 = 0x80;
const PF: u8 = 0x40;
const AF: u8 = 0x20;
const UF: u8 = 0x10;
const NO_RATE: u8 = 0x20;
const HELD: u8 = 0x70;

/// 2023-11-14, a Tuesday, 22:13:20 in UTC.
const NOW: u64 = 1_700_000_000;
const SECOND: Duration = Duration::from_secs(1);

trait Guest {
    fn get(&self, register: u8) -> u8;
    fn put(&self, register: u8, value: u8);
}

impl<T: BusDevice> Guest for T {
    fn get(&self, register: u8) -> u8 {
        self.write(0, &[register]);
        let mut data = [0xa5];
        self.read(1, &mut data);
        data[0]
    }

    fn put(&self, register: u8, value: u8) {
        self.write(0, &[register]);
        self.write(1, &[value]);
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

type Silent = Mc146818<NoInterrupt, Arc<ManualClock>, ()>;

fn at(time: Duration) -> (Arc<ManualClock>, Silent) {
    let clock = Arc::new(ManualClock::new(time));
    let rtc = Mc146818::new(NoInterrupt, Arc::clone(&clock), ());
    (clock, rtc)
}

fn now() -> (Arc<ManualClock>, Silent) {
    at(Duration::from_secs(NOW))
}

/// Century, year, month, date, day of the week, hours, minutes and seconds.
fn time(rtc: &impl Guest) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DATE, DAY_OF_WEEK, HOURS, MINUTES, SECONDS].map(|register| rtc.get(register))
}

/// Lets time pass, and the embedder call when it is to.
fn pass<L: LevelInterrupt, A: Alarm>(rtc: &Mc146818<L, Arc<ManualClock>, A>, clock: &ManualClock, time: Duration) {
    let end = clock.now() + time;
    while let Some(deadline) = rtc.deadline().filter(|deadline| *deadline <= end) {
        clock.advance_to(deadline);
        rtc.expire();
    }
    clock.advance_to(end);
}

// Time.

#[test]
fn a_clock_with_a_battery_tells_the_time_as_the_firmware_of_a_pc_wants_it() {
    let (clock, rtc) = now();
    assert_eq!(time(&rtc), [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]);
    assert_eq!(
        [A, B, C, D].map(|register| rtc.get(register)),
        [0x26, HOURS_24, 0, 0x80]
    );
    clock.advance(Duration::from_secs(3 * 86400 + 2 * 3600));
    assert_eq!(time(&rtc), [0x20, 0x23, 0x11, 0x18, 7, 0x00, 0x13, 0x20]);
}

#[test]
fn a_guest_sets_the_time_while_updates_are_inhibited() {
    let (clock, rtc) = now();
    rtc.put(B, SET | DM);
    for (register, value) in [
        (CENTURY, 19),
        (YEAR, 99),
        (MONTH, 12),
        (DATE, 31),
        (DAY_OF_WEEK, 6),
        (HOURS, 0x80 | 11),
        (MINUTES, 59),
        (SECONDS, 59),
    ] {
        rtc.put(register, value);
    }
    clock.advance(10 * SECOND);
    assert_eq!(time(&rtc), [19, 99, 12, 31, 6, 0x8b, 59, 59], "it stands");
    assert_eq!(rtc.get(C) & (UF | AF), 0, "there was no update");

    rtc.put(B, DM);
    clock.advance(SECOND);
    assert_eq!(time(&rtc), [20, 0, 1, 1, 7, 12, 0, 0], "midnight is twelve");
}

#[test]
fn a_byte_that_is_no_time_is_taken_for_the_nearest_that_is_one() {
    let (clock, rtc) = now();
    for register in [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DATE, MONTH, YEAR, CENTURY] {
        rtc.put(register, 0xff);
    }
    assert_eq!(rtc.get(SECONDS), 0x7f, "the highest bit is read-only");
    assert_eq!(rtc.get(MINUTES), 0xff);
    clock.advance(SECOND);
    assert_eq!(time(&rtc), [0, 0, 1, 1, 1, 0, 0, 0]);
}

#[test]
fn an_update_is_in_progress_before_the_second_changes_and_its_flag_comes_with_the_change() {
    let (clock, rtc) = now();
    // 244 microseconds before, and 1984 that it takes.
    clock.advance(Duration::from_micros(1_000_000 - 2300));
    assert_eq!(rtc.get(A) & UIP, 0);
    clock.advance(Duration::from_micros(100));
    assert_eq!(rtc.get(A) & UIP, UIP);
    assert_eq!(rtc.get(SECONDS), 0x20);
    assert_eq!(rtc.get(C) & UF, 0);
    clock.advance(Duration::from_micros(2200));
    assert_eq!(rtc.get(A) & UIP, 0);
    assert_eq!(rtc.get(SECONDS), 0x21);
    assert_eq!(rtc.get(C) & UF, UF);
    clock.advance(Duration::from_micros(999_999));
    rtc.put(B, SET | HOURS_24);
    assert_eq!(rtc.get(A) & UIP, 0, "there is none to come");
}

#[test]
fn the_first_update_comes_half_a_second_after_the_divider_is_released() {
    let (clock, rtc) = at(Duration::from_millis(NOW * 1000 + 123));
    rtc.put(A, HELD);
    clock.advance(10 * SECOND);
    assert_eq!(rtc.get(SECONDS), 0x20);
    assert_eq!(rtc.get(C), 0, "no tap has moved");
    rtc.put(A, NO_RATE);
    clock.advance(Duration::from_millis(499));
    assert_eq!(rtc.get(SECONDS), 0x20);
    clock.advance(Duration::from_millis(2));
    assert_eq!(rtc.get(SECONDS), 0x21);
    clock.advance(Duration::from_millis(998));
    assert_eq!(rtc.get(SECONDS), 0x21);
    clock.advance(Duration::from_millis(2));
    assert_eq!(rtc.get(SECONDS), 0x22);
}

// Interrupts.

#[test]
fn flags_come_without_interrupts_and_are_gone_once_read() {
    let (clock, rtc) = now();
    for alarm in [SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM] {
        rtc.put(alarm, 0xc0);
    }
    clock.advance(SECOND);
    assert!(!rtc.interrupt().is_up());
    assert_eq!(rtc.deadline(), None);
    assert_eq!(rtc.get(C), PF | AF | UF);
    assert_eq!(rtc.get(C), 0);
}

#[test]
fn an_interrupt_that_is_enabled_while_its_flag_is_set_is_there_at_once() {
    let (clock, rtc) = now();
    clock.advance(SECOND);
    rtc.put(B, UIE | HOURS_24);
    assert!(rtc.interrupt().is_up());
    rtc.put(B, HOURS_24);
    assert!(!rtc.interrupt().is_up());
}

#[test]
fn the_line_stays_up_from_an_interrupt_until_register_c_is_read() {
    let heard = Heard::default();
    let clock = Arc::new(ManualClock::new(Duration::from_secs(NOW)));
    let rtc = Mc146818::new(heard.line(), Arc::clone(&clock), ());
    rtc.put(A, NO_RATE);
    rtc.put(B, UIE | HOURS_24);
    assert_eq!(rtc.deadline(), Some(Duration::from_secs(NOW + 1)));
    pass(&rtc, &clock, 5 * SECOND);
    assert_eq!(heard.all(), [true]);
    assert_eq!(rtc.deadline(), None, "there is nothing to hear before it is read");
    assert_eq!(rtc.get(C), IRQF | UF);
    assert_eq!(heard.all(), [true, false]);
    pass(&rtc, &clock, SECOND);
    assert_eq!(heard.all(), [true, false, true]);
}

#[test]
fn the_periodic_interrupt_comes_at_each_rate_that_the_data_sheet_has() {
    for (rate, hertz) in [
        (1, 256),
        (2, 128),
        (3, 8192),
        (4, 4096),
        (5, 2048),
        (6, 1024),
        (7, 512),
        (8, 256),
        (9, 128),
        (10, 64),
        (11, 32),
        (12, 16),
        (13, 8),
        (14, 4),
        (15, 2),
    ] {
        let (clock, rtc) = now();
        rtc.put(A, NO_RATE | rate);
        rtc.put(B, PIE | HOURS_24);
        let (mut count, end) = (0, clock.now() + SECOND);
        while let Some(deadline) = rtc.deadline().filter(|deadline| *deadline <= end) {
            clock.advance_to(deadline);
            rtc.expire();
            assert_eq!(rtc.get(C) & (IRQF | PF), IRQF | PF);
            count += 1;
        }
        assert_eq!(count, hertz, "rate {rate}");
    }
    let (clock, rtc) = now();
    rtc.put(A, NO_RATE);
    rtc.put(B, PIE | HOURS_24);
    assert_eq!(rtc.deadline(), None);
    clock.advance(SECOND);
    assert_eq!(rtc.get(C) & PF, 0);
}

#[test]
fn the_periodic_interrupt_goes_on_while_the_time_is_being_set() {
    let (clock, rtc) = now();
    rtc.put(B, SET | PIE | HOURS_24);
    pass(&rtc, &clock, Duration::from_millis(1));
    assert!(rtc.interrupt().is_up());
}

#[test]
fn an_alarm_comes_once_a_day_or_as_often_as_its_bytes_are_any() {
    for (bytes, period) in [
        ([0x00, 0x30, 0x06], 86400),
        ([0x00, 0x30, 0xff], 3600),
        ([0x00, 0xc0, 0xff], 60),
        ([0xff, 0xff, 0xff], 1),
    ] {
        let (clock, rtc) = now();
        for (register, byte) in [SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM].into_iter().zip(bytes) {
            rtc.put(register, byte);
        }
        rtc.put(B, AIE | HOURS_24);
        let mut previous = None;
        for _ in 0..3 {
            let deadline = rtc.deadline().expect("it comes");
            clock.advance_to(deadline);
            rtc.expire();
            assert_eq!(rtc.get(C) & (IRQF | AF), IRQF | AF);
            let is_time = |register: u8, byte: u8| byte >= 0xc0 || rtc.get(register) == byte;
            assert!(
                [SECONDS, MINUTES, HOURS]
                    .into_iter()
                    .zip(bytes)
                    .all(|(register, byte)| is_time(register, byte))
            );
            if let Some(previous) = previous.replace(deadline) {
                assert_eq!(deadline - previous, Duration::from_secs(period));
            }
        }
    }
}

#[test]
fn an_alarm_that_no_time_comes_to_has_no_deadline() {
    let (clock, rtc) = now();
    rtc.put(HOURS_ALARM, 0x24);
    rtc.put(B, AIE | HOURS_24);
    assert_eq!(rtc.deadline(), None);
    clock.advance(Duration::from_secs(3 * 86400));
    assert_eq!(rtc.get(C) & AF, 0);
}

#[test]
fn setting_the_time_disables_the_interrupt_of_its_updates() {
    let (_clock, rtc) = now();
    rtc.put(B, UIE | AIE | HOURS_24);
    rtc.put(B, SET | UIE | AIE | HOURS_24);
    assert_eq!(rtc.get(B), SET | AIE | HOURS_24);
}

#[test]
fn a_reset_disables_and_forgets_interrupts_and_leaves_time_and_memory() {
    let (clock, rtc) = now();
    rtc.put(B, PIE | AIE | UIE | SQWE | HOURS_24);
    rtc.put(0x40, 0x77);
    clock.advance(SECOND);
    rtc.expire();
    assert!(rtc.interrupt().is_up());
    rtc.reset();
    assert!(!rtc.interrupt().is_up());
    assert_eq!([B, C].map(|register| rtc.get(register)), [HOURS_24, 0]);
    assert_eq!(rtc.get(0x40), 0x77);
    assert_eq!(rtc.get(SECONDS), 0x21);
}

// Ports and memory.

#[test]
fn the_index_port_masks_nmis_and_does_not_read_back() {
    let (_clock, rtc) = now();
    rtc.write(0, &[0x80 | SECONDS]);
    assert!(rtc.masks_nmi());
    let mut both = [0; 4];
    rtc.read(0, &mut both);
    assert_eq!(both, [0xff, 0x20, 0, 0], "there are two ports");
    rtc.write(0, &[SECONDS]);
    assert!(!rtc.masks_nmi());
}

#[test]
fn memory_keeps_what_guest_and_host_put_there() {
    let (_clock, rtc) = now();
    rtc.set_memory(0x5f, &[3]).unwrap();
    assert_eq!(rtc.get(0x5f), 3);
    rtc.put(0x7f, 9);
    assert_eq!(rtc.get(0x7f), 9);
    for (index, bytes) in [(0x0d, &[0; 1][..]), (0x31, &[0; 2]), (0x7f, &[0; 2]), (0x80, &[0; 1])] {
        let count = bytes.len();
        assert_eq!(rtc.set_memory(index, bytes), Err(NoMemory { index, count }));
    }
}

#[test]
fn firmware_finds_the_size_of_memory() {
    let (_clock, rtc) = now();
    let word = |at: u8| u16::from_le_bytes([rtc.get(at), rtc.get(at + 1)]);
    rtc.set_memory_size(3 << 30, 5 << 30);
    assert_eq!(
        [0x15, 0x17, 0x30, 0x34].map(word),
        [640, 0xffff, 0xffff, (3 << 14) - 256]
    );
    assert_eq!([rtc.get(0x5b), rtc.get(0x5c), rtc.get(0x5d)], [0x00, 0x40, 0x01]);
    rtc.set_memory_size(8 << 20, 0);
    assert_eq!([0x15, 0x17, 0x30, 0x34, 0x5b].map(word), [640, 7 << 10, 7 << 10, 0, 0]);
}

#[test]
fn registers_c_and_d_are_read_only() {
    let (_clock, rtc) = now();
    rtc.put(C, 0xff);
    rtc.put(D, 0);
    assert_eq!([C, D].map(|register| rtc.get(register)), [0, 0x80]);
    rtc.put(A, UIP | 0x26);
    assert_eq!(rtc.get(A), 0x26);
}

// Alarms of the embedder, and threads.

/// What an alarm was told.
#[derive(Default)]
struct Deadlines(Mutex<Vec<Option<Duration>>>);

impl Alarm for Deadlines {
    fn set(&self, deadline: Option<Duration>) {
        self.0.lock().unwrap().push(deadline);
    }
}

#[test]
fn the_alarm_is_told_what_changes() {
    let clock = Arc::new(ManualClock::new(Duration::from_secs(NOW)));
    let told = Arc::new(Deadlines::default());
    let rtc = Mc146818::new(NoInterrupt, Arc::clone(&clock), Arc::clone(&told));
    rtc.put(A, NO_RATE);
    rtc.put(B, UIE | HOURS_24);
    rtc.put(0x40, 1);
    rtc.put(B, HOURS_24);
    assert_eq!(*told.0.lock().unwrap(), [Some(Duration::from_secs(NOW + 1)), None]);
}

#[test]
fn a_line_may_read_the_clock_that_drives_it() {
    let me: Arc<OnceLock<Weak<dyn BusDevice>>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let line = {
        let (me, seen) = (Arc::clone(&me), Arc::clone(&seen));
        level_from_fn(move |up| {
            if up {
                let rtc = me.get().and_then(Weak::upgrade).expect("it is there");
                seen.lock().unwrap().push(rtc.get(C));
            }
            Ok(())
        })
    };
    let clock = Arc::new(ManualClock::new(Duration::from_secs(NOW)));
    let rtc = Arc::new(Mc146818::new(line, Arc::clone(&clock), ()));
    let face: Arc<dyn BusDevice> = rtc.clone();
    assert!(me.set(Arc::downgrade(&face)).is_ok(), "once");
    rtc.put(A, NO_RATE);
    rtc.put(B, UIE | HOURS_24);
    pass(&rtc, &clock, 2 * SECOND);
    assert_eq!(*seen.lock().unwrap(), [IRQF | UF, IRQF | UF]);
    assert!(!rtc.interrupt().is_up());
}

// State.

#[test]
fn a_restored_clock_has_the_time_that_has_passed_meanwhile() {
    let (clock, rtc) = now();
    rtc.put(A, NO_RATE);
    rtc.put(B, AIE | HOURS_24);
    for (register, byte) in [(SECONDS_ALARM, 0x30), (MINUTES_ALARM, 0xff), (HOURS_ALARM, 0xff)] {
        rtc.put(register, byte);
    }
    let state = rtc.save();
    assert!(!rtc.interrupt().is_up());
    clock.advance(20 * SECOND);

    let heard = Heard::default();
    let moved = Mc146818::new(heard.line(), Arc::clone(&clock), ());
    moved.restore(&state).unwrap();
    assert_eq!(heard.all(), [true], "the alarm was ten seconds ago");
    assert_eq!(moved.get(SECONDS), 0x40);
    rtc.expire();
    moved.write(0, &[HOURS_ALARM]);
    assert_eq!(
        moved.save(),
        rtc_with_index(&rtc, HOURS_ALARM),
        "as if it had not moved"
    );
}

fn rtc_with_index(rtc: &Silent, index: u8) -> Mc146818State {
    rtc.write(0, &[index]);
    rtc.save()
}

#[test]
fn a_clock_that_reads_less_than_the_saved_one_loses_no_time_and_gains_none() {
    let (_clock, rtc) = now();
    let state = rtc.save();
    let (clock, earlier) = at(Duration::from_secs(1000));
    earlier.restore(&state).unwrap();
    assert_eq!(time(&earlier), time(&rtc));
    clock.advance(SECOND);
    assert_eq!(earlier.get(SECONDS), 0x21);
}

#[test]
fn a_clock_that_reads_less_goes_on_within_the_second_where_it_was() {
    let tenths = |tenths: u64| Duration::from_millis(100 * tenths);
    let (_clock, rtc) = at(tenths(109));
    rtc.put(A, NO_RATE);
    rtc.put(B, UIE | HOURS_24);
    let state = rtc.save();
    for began in [50_u64, 53, 109] {
        let (clock, earlier) = at(tenths(began));
        earlier.restore(&state).unwrap();
        let until = earlier.deadline().unwrap() - clock.now();
        assert!(
            until.abs_diff(tenths(1)) < Duration::from_millis(1),
            "{until:?} from {began}"
        );
    }
}

#[test]
fn a_state_that_no_clock_can_be_in_is_refused() {
    let (_clock, rtc) = now();
    let good = rtc.save();
    let with = |change: &dyn Fn(&mut Mc146818State)| {
        let mut state = good.clone();
        change(&mut state);
        rtc.restore(&state)
    };
    let bits = |index: u8, value, mask| {
        Err(Mc146818StateError::Bits {
            index: index.into(),
            value,
            mask,
        })
    };
    assert_eq!(with(&|state| state.registers[0] = 0x80), bits(SECONDS, 0x80, 0x7f));
    assert_eq!(with(&|state| state.registers[10] = 0xa6), bits(A, 0xa6, 0x7f));
    assert_eq!(with(&|state| state.registers[12] = 0xc0), bits(C, 0xc0, 0x70));
    assert_eq!(
        with(&|state| state.registers[13] = 0),
        Err(Mc146818StateError::RegisterD(0))
    );
    assert_eq!(
        with(&|state| state.ahead = 32768),
        Err(Mc146818StateError::Divider(32768))
    );
    assert_eq!(rtc.save(), good);
    assert_eq!(with(&|_| ()), Ok(()));
}
