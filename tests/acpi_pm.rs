//! The fixed hardware of ACPI, driven through its register blocks as a guest would, by buttons, and by a clock that a test advances.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use devisor::{
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt, level_from_fn},
    platform::acpi_pm::{AcpiPm, AcpiPmConfig, AcpiPmError, AcpiPmState, AcpiPmStateError, TimerWidth},
    time::{Clock, ManualClock},
};

const TMR: u16 = 1 << 0;
const GBL: u16 = 1 << 5;
const PWRBTN: u16 = 1 << 8;
const SLPBTN: u16 = 1 << 9;
const RTC: u16 = 1 << 10;
const WAK: u16 = 1 << 15;
const SCI_EN: u16 = 1 << 0;
const SLP_EN: u16 = 1 << 13;

/// A machine with the registers in it.
struct Machine {
    pm: AcpiPm,
    clock: Arc<ManualClock>,
    sci: Arc<Mutex<Vec<bool>>>,
    sleeps: Arc<Mutex<Vec<u8>>>,
}

impl Machine {
    fn new() -> Self {
        Self::with(AcpiPmConfig::default())
    }

    fn with(config: AcpiPmConfig) -> Self {
        let clock = Arc::new(ManualClock::default());
        let sci = Arc::new(Mutex::new(Vec::new()));
        let sleeps = Arc::new(Mutex::new(Vec::new()));
        let (heard, slept) = (Arc::clone(&sci), Arc::clone(&sleeps));
        let line = level_from_fn(move |up| {
            heard.lock().unwrap().push(up);
            Ok(())
        });
        let sleep = move |kind| slept.lock().unwrap().push(kind);
        let pm = AcpiPm::new(config, line, sleep, Arc::clone(&clock), ()).unwrap();
        Self { pm, clock, sci, sleeps }
    }

    fn heard(&self) -> Vec<bool> {
        std::mem::take(&mut self.sci.lock().unwrap())
    }

    fn status(&self) -> u16 {
        word(&self.pm.event_block(), 0)
    }

    fn clear(&self, bits: u16) {
        self.pm.event_block().write(0, &bits.to_le_bytes());
    }

    fn enable(&self, bits: u16) {
        self.pm.event_block().write(2, &bits.to_le_bytes());
    }

    fn control(&self, value: u16) {
        self.pm.control_block().write(0, &value.to_le_bytes());
    }

    fn timer(&self) -> u32 {
        let mut data = [0xa5; 4];
        self.pm.timer_block().read(0, &mut data);
        u32::from_le_bytes(data)
    }

    fn gpe(&self, at: u64) -> u8 {
        let mut byte = [0xa5];
        self.pm.gpe_block().read(at, &mut byte);
        byte[0]
    }

    fn set_gpe(&self, at: u64, value: u8) {
        self.pm.gpe_block().write(at, &[value]);
    }
}

fn word(block: &impl BusDevice, at: u64) -> u16 {
    let mut data = [0xa5; 2];
    block.read(at, &mut data);
    u16::from_le_bytes(data)
}

/// So many ticks of the timer, and a little more.
fn ticks(count: u64) -> Duration {
    Duration::from_nanos(count * 1_000_000_000 / 3_579_545 + 1)
}

// Events.

#[test]
fn each_event_sets_its_status_and_interrupts_if_it_is_enabled() {
    for bit in [PWRBTN, SLPBTN, RTC] {
        let machine = Machine::new();
        match bit {
            PWRBTN => machine.pm.press_power_button(),
            SLPBTN => machine.pm.press_sleep_button(),
            _ => machine.pm.rtc_alarm(),
        }
        assert_eq!(machine.status(), bit);
        assert_eq!(machine.heard(), []);
        machine.enable(bit);
        assert_eq!(machine.heard(), [true]);
        machine.clear(!bit);
        assert_eq!(machine.heard(), [], "ones clear, and nothing else does");
        machine.clear(bit);
        assert_eq!(machine.status(), 0);
        assert_eq!(machine.heard(), [false]);
    }
}

#[test]
fn waking_is_a_status_that_interrupts_nobody() {
    let machine = Machine::new();
    machine.enable(0xffff);
    machine.pm.wake();
    assert_eq!(machine.status(), WAK);
    assert_eq!(machine.heard(), []);
    assert_eq!(word(&machine.pm.event_block(), 2), TMR | GBL | PWRBTN | SLPBTN | RTC);
}

#[test]
fn registers_can_be_accessed_by_the_byte_and_all_at_once() {
    let machine = Machine::new();
    machine.pm.event_block().write(3, &[1]);
    machine.pm.press_power_button();
    machine.pm.press_sleep_button();
    let mut block = [0; 6];
    machine.pm.event_block().read(0, &mut block);
    assert_eq!(block, [0, 3, 0, 1, 0, 0]);
    machine.pm.event_block().write(0, &[0, 2, 0, 0, 0xff]);
    machine.pm.event_block().read(0, &mut block);
    assert_eq!(block, [0, 1, 0, 0, 0, 0]);
}

#[test]
fn events_are_no_interrupts_of_a_guest_that_has_not_entered_acpi_mode() {
    let machine = Machine::with(AcpiPmConfig {
        acpi_mode: false,
        ..AcpiPmConfig::default()
    });
    let port = machine.pm.smi_command(0xa1, 0xa0);
    machine.enable(PWRBTN);
    machine.pm.press_power_button();
    assert_eq!(word(&machine.pm.control_block(), 0) & SCI_EN, 0);
    machine.control(SCI_EN);
    assert_eq!(
        word(&machine.pm.control_block(), 0) & SCI_EN,
        0,
        "it is not the guest's to set"
    );
    assert_eq!(machine.heard(), []);
    port.write(0, &[0xa1]);
    assert_eq!(word(&machine.pm.control_block(), 0) & SCI_EN, SCI_EN);
    assert_eq!(machine.heard(), [true]);
    machine.control(0);
    assert_eq!(word(&machine.pm.control_block(), 0) & SCI_EN, SCI_EN);
    port.write(0, &[0x55]);
    port.write(0, &[0xa0]);
    assert_eq!(machine.heard(), [false]);
}

#[test]
fn an_access_anywhere_else_reads_as_zero_and_writes_nothing() {
    let machine = Machine::new();
    let state = machine.pm.save();
    let (events, control, timer) = (
        machine.pm.event_block(),
        machine.pm.control_block(),
        machine.pm.timer_block(),
    );
    let gpes = machine.pm.gpe_block();
    let blocks: [&dyn BusDevice; 4] = [&events, &control, &timer, &gpes];
    for block in blocks {
        for offset in [4, 5, u64::MAX - 1, u64::MAX] {
            let mut data = [0xa5; 16];
            block.read(offset, &mut data);
            assert_eq!(data, [0; 16]);
            block.write(offset, &[0xff; 16]);
        }
    }
    assert_eq!(machine.pm.save(), state);
}

// Sleep.

#[test]
fn a_guest_sleeps_as_it_says_once_it_says_so() {
    let machine = Machine::new();
    machine.control(5 << 10);
    assert_eq!(*machine.sleeps.lock().unwrap(), []);
    machine.control(5 << 10 | SLP_EN);
    assert_eq!(*machine.sleeps.lock().unwrap(), [5]);
    assert_eq!(
        word(&machine.pm.control_block(), 0),
        5 << 10 | SCI_EN,
        "SLP_EN is write-only"
    );
    machine
        .pm
        .control_block()
        .write(1, &[(3 << 10 | SLP_EN).to_le_bytes()[1]]);
    assert_eq!(*machine.sleeps.lock().unwrap(), [5, 3]);
}

#[test]
fn a_hook_may_use_the_device_that_calls_it() {
    let clock = Arc::new(ManualClock::default());
    let me: Arc<Mutex<Option<AcpiPm>>> = Arc::default();
    let wakes = Arc::clone(&me);
    let sleep = move |_| wakes.lock().unwrap().as_ref().expect("it is there").wake();
    let pm = AcpiPm::new(AcpiPmConfig::default(), NoInterrupt, sleep, clock, ()).unwrap();
    *me.lock().unwrap() = Some(pm.clone());
    pm.control_block().write(0, &SLP_EN.to_le_bytes());
    assert_eq!(word(&pm.event_block(), 0), WAK);
    *me.lock().unwrap() = None;
}

// The timer.

#[test]
fn the_timer_counts_at_its_rate_and_wraps_at_its_width() {
    for (timer, mask) in [(TimerWidth::Bits24, 0xff_ffff), (TimerWidth::Bits32, u32::MAX)] {
        let machine = Machine::with(AcpiPmConfig {
            timer,
            ..AcpiPmConfig::default()
        });
        machine.clock.advance(Duration::from_secs(1));
        assert_eq!(machine.timer(), 3_579_545);
        machine.pm.timer_block().write(0, &[0; 4]);
        machine.clock.advance(Duration::from_secs(1999));
        assert_eq!(machine.timer(), (3_579_545_u64 * 2000) as u32 & mask);
    }
}

#[test]
fn the_timer_interrupts_when_its_highest_bit_changes() {
    for (timer, half) in [(TimerWidth::Bits24, 1 << 23), (TimerWidth::Bits32, 1_u64 << 31)] {
        let machine = Machine::with(AcpiPmConfig {
            timer,
            ..AcpiPmConfig::default()
        });
        assert_eq!(machine.pm.deadline(), None);
        machine.enable(TMR);
        for turn in 1..4 {
            let deadline = machine.pm.deadline().expect("it comes");
            assert_eq!(deadline, ticks(turn * half), "turn {turn}");
            machine.clock.advance_to(deadline - Duration::from_micros(1));
            machine.pm.expire();
            assert_eq!(machine.heard(), []);
            machine.clock.advance_to(deadline);
            machine.pm.expire();
            assert_eq!(machine.heard(), [true]);
            assert_eq!(machine.pm.deadline(), None, "it is up");
            machine.clear(TMR);
            assert_eq!(machine.heard(), [false]);
        }
    }
}

#[test]
fn an_overflow_that_nobody_looked_at_is_there_afterwards() {
    let machine = Machine::new();
    machine.clock.advance(ticks(3 << 32));
    assert_eq!(machine.status(), TMR);
    machine.clear(TMR);
    assert_eq!(machine.status(), 0);
}

// General-purpose events.

#[test]
fn an_event_that_happens_stays_until_it_is_cleared() {
    let machine = Machine::new();
    assert_eq!(machine.pm.gpe_block_len(), 4);
    machine.set_gpe(3, 0b10);
    machine.pm.raise_gpe(8).unwrap();
    assert_eq!(machine.heard(), []);
    machine.pm.raise_gpe(9).unwrap();
    assert_eq!(machine.heard(), [true]);
    assert_eq!([0, 1, 2, 3, 4].map(|at| machine.gpe(at)), [0, 0b11, 0, 0b10, 0]);
    machine.set_gpe(1, 0b10);
    assert_eq!(machine.gpe(1), 0b01);
    assert_eq!(machine.heard(), [false]);
}

#[test]
fn an_event_that_lasts_cannot_be_cleared_before_it_ends() {
    let machine = Machine::new();
    let (line, other) = (machine.pm.gpe_line(3).unwrap(), machine.pm.gpe_line(3).unwrap());
    machine.set_gpe(2, 1 << 3);
    line.trigger().unwrap();
    line.trigger().unwrap();
    other.trigger().unwrap();
    machine.set_gpe(0, 1 << 3);
    assert_eq!(machine.gpe(0), 1 << 3);
    line.clear().unwrap();
    machine.set_gpe(0, 1 << 3);
    assert_eq!(machine.gpe(0), 1 << 3, "the other holds it");
    drop(other);
    assert_eq!(machine.gpe(0), 1 << 3, "it was, and nobody has cleared it");
    assert_eq!(machine.heard(), [true]);
    machine.set_gpe(0, 1 << 3);
    assert_eq!(machine.gpe(0), 0);
    assert_eq!(machine.heard(), [false]);
}

#[test]
fn there_are_as_many_events_as_a_block_has() {
    let new = |gpes| {
        let config = AcpiPmConfig {
            gpes,
            ..AcpiPmConfig::default()
        };
        AcpiPm::new(config, NoInterrupt, |_| (), ManualClock::default(), ()).map(|_| ())
    };
    for gpes in [0, 8, 128, 1016] {
        assert_eq!(new(gpes), Ok(()));
    }
    for gpes in [1, 12, 1024] {
        assert_eq!(new(gpes), Err(AcpiPmError::Gpes(gpes)));
    }
    let machine = Machine::new();
    let none = AcpiPmError::NoGpe { gpe: 16, count: 16 };
    assert_eq!(machine.pm.raise_gpe(16), Err(none));
    assert_eq!(machine.pm.gpe_line(16).map(|_| ()), Err(none));
}

// State.

#[test]
fn a_reset_forgets_all_but_the_time_and_what_lines_hold() {
    let machine = Machine::new();
    let line = machine.pm.gpe_line(0).unwrap();
    line.trigger().unwrap();
    machine.pm.raise_gpe(1).unwrap();
    machine.set_gpe(2, 3);
    machine.enable(PWRBTN);
    machine.pm.press_power_button();
    machine.control(5 << 10);
    machine.clock.advance(Duration::from_secs(1));
    machine.pm.reset();
    assert_eq!(machine.heard(), [true, false]);
    assert_eq!((machine.status(), word(&machine.pm.event_block(), 2)), (0, 0));
    assert_eq!(word(&machine.pm.control_block(), 0), SCI_EN);
    assert_eq!([0, 2].map(|at| machine.gpe(at)), [1, 0]);
    assert_eq!(machine.timer(), 3_579_545);
}

#[test]
fn a_restored_device_goes_on_as_the_saved_one() {
    let saved = Machine::new();
    saved.clock.advance(Duration::from_secs(7));
    saved.enable(PWRBTN | TMR);
    saved.pm.press_power_button();
    saved.pm.raise_gpe(4).unwrap();
    saved.control(5 << 10);
    let state = saved.pm.save();
    let restored = Machine::new();
    restored.clock.advance(Duration::from_secs(1000));
    restored.pm.restore(&state).unwrap();
    assert_eq!(restored.pm.save(), state);
    assert_eq!(restored.heard(), [true]);
    assert_eq!(restored.timer(), 7 * 3_579_545);
    for machine in [&saved, &restored] {
        machine.clear(PWRBTN);
    }
    let left = |machine: &Machine| machine.pm.deadline().unwrap() - machine.clock.now();
    assert!(left(&saved).abs_diff(left(&restored)) < Duration::from_micros(1));
}

#[test]
fn a_state_that_no_such_device_can_have_is_refused() {
    let machine = Machine::with(AcpiPmConfig {
        timer: TimerWidth::Bits24,
        ..AcpiPmConfig::default()
    });
    let good = machine.pm.save();
    let with = |change: &dyn Fn(&mut AcpiPmState)| {
        let mut state = good.clone();
        change(&mut state);
        machine.pm.restore(&state)
    };
    let bits = |register, value, mask| Err(AcpiPmStateError::Bits { register, value, mask });
    assert_eq!(with(&|state| state.status = 2), bits("PM1 status", 2, 0x8721));
    assert_eq!(with(&|state| state.enable = WAK), bits("PM1 enable", WAK, 0x0721));
    assert_eq!(
        with(&|state| state.control = SLP_EN),
        bits("PM1 control", SLP_EN, 0x1c03)
    );
    let (timer, mask) = (1 << 24, 0xff_ffff);
    assert_eq!(
        with(&|state| state.timer = timer),
        Err(AcpiPmStateError::Timer { timer, mask })
    );
    let gpes = AcpiPmStateError::Gpes {
        status: 3,
        enable: 2,
        here: 2,
    };
    assert_eq!(with(&|state| state.gpe_status.push(0)), Err(gpes));
    assert_eq!(machine.pm.save(), good);
}
