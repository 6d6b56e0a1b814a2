//! The generic event device, driven through its registers as a guest would, and by buttons.

use std::sync::{Arc, Mutex};

use devisor::{
    bus::BusDevice,
    interrupt::{FnLevelInterrupt, NoInterrupt, level_from_fn},
    platform::ged::{Ged, GedState, GedStateError, PowerRequest},
};

const POWER: u32 = 1 << 1;
const SLEEP: u32 = 1 << 16;

type Line = Box<dyn devisor::interrupt::LevelInterrupt>;

struct Machine {
    ged: Ged<Line>,
    heard: Arc<Mutex<Vec<bool>>>,
    requests: Arc<Mutex<Vec<PowerRequest>>>,
}

impl Machine {
    fn new() -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, asked) = (Arc::clone(&heard), Arc::clone(&requests));
        let line: FnLevelInterrupt<_> = level_from_fn(move |up| {
            log.lock().unwrap().push(up);
            Ok(())
        });
        let ged = Ged::new(Box::new(line) as Line, move |request| {
            asked.lock().unwrap().push(request)
        });
        Self { ged, heard, requests }
    }

    fn heard(&self) -> Vec<bool> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    fn requests(&self) -> Vec<PowerRequest> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    fn events(&self) -> u32 {
        let mut data = [0xa5; 4];
        self.ged.selector().read(0, &mut data);
        u32::from_le_bytes(data)
    }

    fn register(&self, offset: u64) -> u8 {
        let mut data = [0xa5];
        self.ged.registers().read(offset, &mut data);
        data[0]
    }

    fn set(&self, offset: u64, value: u8) {
        self.ged.registers().write(offset, &[value]);
    }
}

#[test]
fn the_line_is_up_until_the_events_are_read() {
    let machine = Machine::new();
    machine.ged.press_power_button();
    assert_eq!(machine.heard(), [true]);
    machine.ged.press_sleep_button();
    machine.ged.press_power_button();
    assert_eq!(machine.heard(), []);
    assert_eq!(machine.events(), POWER | SLEEP);
    assert_eq!(machine.heard(), [false]);
    assert_eq!(machine.events(), 0);
    machine.ged.press_power_button();
    assert_eq!(machine.heard(), [true], "an event after the read interrupts again");
    assert_eq!(machine.events(), POWER);
}

#[test]
fn no_access_but_a_read_of_the_whole_selector_takes_events() {
    let machine = Machine::new();
    machine.ged.press_power_button();
    let selector = machine.ged.selector();
    for (offset, len) in [(0, 0), (0, 1), (0, 2), (0, 8), (1, 4), (2, 2), (4, 4), (u64::MAX, 4)] {
        let mut data = vec![0xa5; len];
        selector.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset} {len}");
        selector.write(offset, &data);
    }
    selector.write(0, &[0xff; 4]);
    assert_eq!(machine.events(), POWER);
}

#[test]
fn a_guest_sleeps_as_it_says_once_it_says_so() {
    let machine = Machine::new();
    machine.set(0, 5 << 2);
    assert_eq!(machine.requests(), []);
    assert_eq!(machine.register(0), 5 << 2);
    machine.set(0, 3 << 2 | 1 << 5);
    assert_eq!(machine.requests(), [PowerRequest::Sleep(3)]);
    assert_eq!(machine.register(0), 3 << 2, "SLP_EN reads as zero");
    machine.set(0, 0xff);
    assert_eq!(machine.requests(), [PowerRequest::Sleep(7)]);
    assert_eq!(machine.register(0), 7 << 2);
}

#[test]
fn waking_is_a_status_that_a_one_clears() {
    let machine = Machine::new();
    machine.ged.wake();
    assert_eq!(machine.register(1), 0x80);
    machine.set(1, 0x7f);
    assert_eq!(machine.register(1), 0x80);
    machine.set(1, 0x80);
    assert_eq!(machine.register(1), 0);
    machine.set(1, 0x80);
    assert_eq!(machine.register(1), 0, "and it does not set it");
    assert_eq!(machine.heard(), [], "it interrupts nobody");
}

#[test]
fn one_value_resets_and_no_other() {
    let machine = Machine::new();
    for value in 0..=0xff {
        machine.set(2, value);
        let expected: &[_] = if value == 0x42 { &[PowerRequest::Reset] } else { &[] };
        assert_eq!(machine.requests(), expected, "{value:#x}");
        assert_eq!(machine.register(2), 0);
    }
}

#[test]
fn wide_accesses_and_those_elsewhere_read_as_zero_and_ask_for_nothing() {
    let machine = Machine::new();
    machine.set(0, 1 << 2);
    machine.ged.wake();
    let state = machine.ged.save();
    let registers = machine.ged.registers();
    for (offset, len) in [
        (0, 0),
        (0, 2),
        (0, 4),
        (1, 2),
        (2, 2),
        (3, 1),
        (u64::MAX, 1),
        (u64::MAX, 8),
    ] {
        let mut data = vec![0xa5; len];
        registers.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset} {len}");
        registers.write(offset, &vec![0x42; len]);
        registers.write(offset, &vec![0xff; len]);
    }
    assert_eq!(machine.requests(), []);
    assert_eq!(machine.ged.save(), state);
}

#[test]
fn a_state_is_taken_back_and_drives_the_line() {
    let machine = Machine::new();
    machine.ged.press_sleep_button();
    machine.set(0, 5 << 2);
    machine.ged.wake();
    let state = machine.ged.save();
    let expected = GedState {
        events: SLEEP,
        sleep_type: 5,
        woken: true,
    };
    assert_eq!(state, expected);

    let other = Machine::new();
    other.ged.restore(&state).unwrap();
    assert_eq!(other.heard(), [true]);
    assert_eq!(other.requests(), [], "what was asked for was heard before");
    assert_eq!(other.events(), SLEEP);

    other.ged.reset();
    assert_eq!(other.ged.save(), GedState::default());
}

#[test]
fn a_state_that_cannot_be_is_refused_whole() {
    let ged = Ged::new(NoInterrupt, |_| ());
    ged.press_power_button();
    let state = ged.save();
    let events = GedState { events: 1, ..state };
    assert_eq!(ged.restore(&events), Err(GedStateError::Events(1)));
    let sleep_type = GedState { sleep_type: 8, ..state };
    assert_eq!(ged.restore(&sleep_type), Err(GedStateError::SleepType(8)));
    assert_eq!(ged.save(), state);
    let text = GedStateError::Events(1).to_string();
    assert_eq!(text, "events 0x00000001: there are none but 0x00010002");
}

#[test]
fn the_hook_and_the_line_may_call_the_device() {
    let handle: Arc<Mutex<Option<Ged<Line>>>> = Arc::default();
    let (from_line, from_hook) = (Arc::clone(&handle), Arc::clone(&handle));
    let save = |handle: &Mutex<Option<Ged<Line>>>| handle.lock().unwrap().clone().map(|ged| ged.save());
    let line = level_from_fn(move |_| {
        save(&from_line);
        Ok(())
    });
    let ged = Ged::new(Box::new(line) as Line, move |_| {
        save(&from_hook);
    });
    *handle.lock().unwrap() = Some(ged.clone());
    ged.press_power_button();
    ged.registers().write(2, &[0x42]);
    assert!(ged.interrupt().is_up());
    *handle.lock().unwrap() = None;
}
