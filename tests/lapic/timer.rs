//! The timer, on a clock that stands still until it is told.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{ApicId, LocalApic, LocalApicParts, LocalApics, LocalApicsConfig},
    },
    bus::BusDevice,
    interrupt::level_from_fn,
    time::{ManualClock, alarm_from_fn},
};

use crate::guest::*;

const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;
/// Divide by 1.
const BY_1: u32 = 0b1011;

fn machine() -> Machine {
    let machine = Machine::enabled(1);
    machine.cpus[0].write(DIVIDE, BY_1);
    machine
}

const fn us(microseconds: u64) -> Duration {
    Duration::from_micros(microseconds)
}

#[test]
fn one_shot_counts_down_interrupts_once_and_stays_at_zero() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, 0x41);
    cpu.write(INITIAL_COUNT, 1_000_000);
    assert_eq!(cpu.apic.deadline(), Some(us(1000)));
    assert_eq!(*cpu.heard.deadlines.lock().unwrap(), [Some(us(1000))]);
    machine.pass(us(400));
    assert_eq!((cpu.read(CURRENT_COUNT), cpu.take()), (600_000, None), "expired early");
    machine.pass(us(600));
    assert_eq!(cpu.take(), Some(0x41));
    cpu.eoi();
    machine.pass(us(5000));
    assert_eq!((cpu.read(CURRENT_COUNT), cpu.take()), (0, None));
    assert_eq!((cpu.read(INITIAL_COUNT), cpu.apic.deadline()), (1_000_000, None));
}

#[test]
fn periodic_neither_drifts_nor_storms_after_a_pause() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, PERIODIC | 0x41);
    cpu.write(INITIAL_COUNT, 1_000_000);
    machine.pass(us(1300));
    assert_eq!(cpu.take(), Some(0x41));
    cpu.eoi();
    assert_eq!(cpu.apic.deadline(), Some(us(2000)), "late by 300 µs, and on time again");
    machine.pass(us(1_000_000));
    assert_eq!(cpu.take(), Some(0x41));
    cpu.eoi();
    assert_eq!(cpu.take(), None, "999 periods were missed");
    assert_eq!(cpu.apic.deadline(), Some(us(1_002_000)));
}

#[test]
fn a_period_that_is_no_whole_number_of_nanoseconds_does_not_drift() {
    let config = LocalApicsConfig {
        timer_hz: 3,
        ..LocalApicsConfig::default()
    };
    let machine = Machine::with(config, &[0]);
    let cpu = &machine.cpus[0];
    cpu.enable();
    cpu.write(DIVIDE, BY_1);
    cpu.write(LVT_TIMER, PERIODIC | 0x41);
    cpu.write(INITIAL_COUNT, 1);
    for _ in 0..3000 {
        let deadline = cpu.apic.deadline().unwrap();
        machine.clock.advance_to(deadline);
        cpu.apic.expire();
        assert_eq!(cpu.take(), Some(0x41));
        cpu.eoi();
    }
    assert_eq!(cpu.apic.deadline(), Some(Duration::from_nanos(1_000_333_333_334)));
}

#[test]
fn a_short_period_does_not_set_the_alarm_more_often_than_configured() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, PERIODIC | 0x41);
    cpu.write(INITIAL_COUNT, 1);
    for _ in 0..10 {
        let now = devisor::time::Clock::now(&*machine.clock);
        let deadline = cpu.apic.deadline().unwrap();
        assert!(deadline >= now + us(200), "{deadline:?} at {now:?}");
        machine.clock.advance_to(deadline);
        cpu.apic.expire();
        assert_eq!(cpu.take(), Some(0x41));
        cpu.eoi();
    }
}

#[test]
fn every_divide_configuration_divides_as_the_manual_says() {
    for (divide, by) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let machine = machine();
        let cpu = &machine.cpus[0];
        cpu.write(DIVIDE, divide);
        cpu.write(LVT_TIMER, 0x41);
        cpu.write(INITIAL_COUNT, 1000);
        assert_eq!(
            cpu.apic.deadline(),
            Some(Duration::from_nanos(1000 * by)),
            "{divide:#b}"
        );
    }
}

#[test]
fn a_count_lasts_for_all_of_its_divided_ticks() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, 0x41);
    // By 4, of a nanosecond each.
    cpu.write(DIVIDE, 0b0001);
    cpu.write(INITIAL_COUNT, 2);
    let counts = [2, 2, 2, 2, 1, 1, 1, 1, 0];
    for (nanosecond, count) in counts.into_iter().enumerate() {
        assert_eq!(cpu.read(CURRENT_COUNT), count, "after {nanosecond} ns");
        assert_eq!(cpu.has(IRR, 0x41), count == 0, "zero is when it interrupts");
        machine.pass(Duration::from_nanos(1));
    }
}

#[test]
fn a_new_divide_configuration_goes_on_from_the_current_count() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, 0x41);
    cpu.write(INITIAL_COUNT, 1000);
    machine.pass(Duration::from_nanos(400));
    cpu.write(DIVIDE, 0);
    assert_eq!(cpu.read(CURRENT_COUNT), 600);
    assert_eq!(cpu.apic.deadline(), Some(Duration::from_nanos(1600)));
}

#[test]
fn an_initial_count_of_zero_stops_the_timer() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, PERIODIC | 0x41);
    cpu.write(INITIAL_COUNT, 1_000_000);
    cpu.write(INITIAL_COUNT, 0);
    assert_eq!(cpu.apic.deadline(), None);
    assert_eq!(*cpu.heard.deadlines.lock().unwrap(), [Some(us(1000)), None]);
    machine.pass(us(2000));
    assert_eq!((cpu.take(), cpu.read(CURRENT_COUNT)), (None, 0));
}

#[test]
fn a_masked_timer_counts_and_what_it_would_have_said_is_lost() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, MASKED | PERIODIC | 0x41);
    cpu.write(INITIAL_COUNT, 1_000_000);
    assert_eq!(cpu.apic.deadline(), None, "nothing would happen");
    machine.pass(us(1400));
    assert_eq!(cpu.read(CURRENT_COUNT), 600_000);
    cpu.write(LVT_TIMER, PERIODIC | 0x41);
    assert_eq!(cpu.take(), None);
    assert_eq!(cpu.apic.deadline(), Some(us(2000)));
}

#[test]
fn tsc_deadline_interrupts_once_when_the_counter_comes_to_it_and_disarms_itself() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, DEADLINE | 0x41);
    cpu.apic.set_tsc(5_000_000);
    cpu.apic.write_msr(TSC_DEADLINE, 6_000_000).unwrap();
    assert_eq!(cpu.apic.deadline(), Some(us(1000)));
    machine.pass(us(999));
    assert_eq!((cpu.take(), cpu.apic.tsc()), (None, 5_999_000));
    machine.pass(us(1));
    assert_eq!(cpu.apic.read_msr(TSC_DEADLINE), Ok(0));
    assert_eq!([cpu.take(), cpu.take()], [Some(0x41), None]);
    assert_eq!(cpu.apic.deadline(), None);
    cpu.eoi();
    cpu.apic.write_msr(TSC_DEADLINE, 1).unwrap();
    assert_eq!(cpu.take(), Some(0x41), "a deadline that has passed is due at once");
}

#[test]
fn a_tsc_deadline_outlives_a_write_of_the_entry_that_keeps_the_mode() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, DEADLINE | 0x40);
    cpu.apic.write_msr(TSC_DEADLINE, 1000).unwrap();
    cpu.write(LVT_TIMER, DEADLINE | MASKED | 0x40);
    assert_eq!(cpu.apic.deadline(), None, "nobody is to be woken for it");
    cpu.write(LVT_TIMER, DEADLINE | 0x41);
    assert_eq!(cpu.apic.read_msr(TSC_DEADLINE), Ok(1000));
    machine.pass(cpu.apic.deadline().expect("it is armed"));
    assert_eq!(cpu.take(), Some(0x41));
}

/// The guest looks before the embedder comes round to it.
#[test]
fn what_has_passed_has_happened_before_the_guests_access() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, DEADLINE | 0x41);
    cpu.apic.write_msr(TSC_DEADLINE, 1000).unwrap();
    machine.clock.advance(us(2));
    assert_eq!(cpu.apic.read_msr(TSC_DEADLINE), Ok(0));
    assert_eq!(cpu.take(), Some(0x41));
    cpu.eoi();
    // Each of these would keep it from coming, had it not come.
    let ends: [fn(&Cpu); 5] = [
        |cpu| cpu.write(SVR, 0xff),
        |cpu| cpu.write(LVT_TIMER, MASKED | 0x42),
        |cpu| cpu.write(LVT_TIMER, DEADLINE | 0x42),
        |cpu| cpu.write(INITIAL_COUNT, 0),
        |cpu| cpu.write(DIVIDE, 0),
    ];
    for end in ends {
        cpu.enable();
        cpu.write(LVT_TIMER, 0x42);
        cpu.write(INITIAL_COUNT, 1000);
        machine.clock.advance(us(1));
        end(cpu);
        assert_eq!(cpu.take(), Some(0x42));
        cpu.eoi();
        cpu.write(DIVIDE, BY_1);
    }
}

#[test]
fn a_time_stamp_counter_that_is_moved_moves_the_deadline() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, DEADLINE | 0x41);
    cpu.apic.write_msr(TSC_DEADLINE, 1_000_000).unwrap();
    cpu.apic.set_tsc(400_000);
    assert_eq!(cpu.apic.deadline(), Some(us(600)));
    cpu.apic.set_tsc(u64::MAX);
    assert_eq!(cpu.take(), Some(0x41));
}

#[test]
fn a_deadline_just_before_the_counter_wraps_around_is_not_missed() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, DEADLINE | 0x41);
    cpu.apic.set_tsc(u64::MAX - 1000);
    cpu.apic.write_msr(TSC_DEADLINE, u64::MAX - 500).unwrap();
    machine.pass(us(5));
    assert!(cpu.apic.tsc() < 5000, "wrapped around");
    assert_eq!(cpu.take(), Some(0x41));
    assert_eq!((cpu.apic.deadline(), cpu.apic.read_msr(TSC_DEADLINE)), (None, Ok(0)));
}

#[test]
fn a_deadline_beyond_what_a_clock_can_tell_never_comes() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, DEADLINE | 0x41);
    machine.pass(us(1));
    cpu.apic.write_msr(TSC_DEADLINE, u64::MAX).unwrap();
    assert_eq!(cpu.apic.read_msr(TSC_DEADLINE), Ok(u64::MAX));
    cpu.apic.set_tsc(0);
    assert_eq!((cpu.apic.deadline(), cpu.take()), (None, None));
}

#[test]
fn the_deadline_and_the_counts_are_each_out_of_use_in_the_others_mode() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, 0x41);
    cpu.apic.write_msr(TSC_DEADLINE, 1000).unwrap();
    assert_eq!(cpu.apic.read_msr(TSC_DEADLINE), Ok(0));
    cpu.write(INITIAL_COUNT, 1000);
    cpu.write(LVT_TIMER, DEADLINE | 0x41);
    assert_eq!((cpu.apic.deadline(), cpu.read(INITIAL_COUNT)), (None, 0), "disarmed");
    cpu.write(INITIAL_COUNT, 1000);
    assert_eq!((cpu.read(INITIAL_COUNT), cpu.read(CURRENT_COUNT)), (0, 0));
    cpu.apic.write_msr(TSC_DEADLINE, 1000).unwrap();
    cpu.write(LVT_TIMER, 0x41);
    assert_eq!((cpu.apic.deadline(), cpu.apic.read_msr(TSC_DEADLINE)), (None, Ok(0)));
}

#[test]
fn switching_between_one_shot_and_periodic_lets_the_count_go_on() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, 0x41);
    cpu.write(INITIAL_COUNT, 1_000_000);
    machine.pass(us(400));
    cpu.write(LVT_TIMER, PERIODIC | 0x41);
    assert_eq!(cpu.read(CURRENT_COUNT), 600_000);
    machine.pass(us(600));
    assert_eq!(cpu.take(), Some(0x41));
    assert_eq!(cpu.apic.deadline(), Some(us(2000)));
}

#[test]
fn the_reserved_mode_does_not_run() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, 3 << 17 | 0x41);
    cpu.write(INITIAL_COUNT, 1000);
    cpu.apic.write_msr(TSC_DEADLINE, 1000).unwrap();
    machine.pass(us(1000));
    assert_eq!((cpu.take(), cpu.apic.deadline()), (None, None));

    // Nor does what was armed before, which does not come back either.
    cpu.write(LVT_TIMER, DEADLINE | 0x41);
    cpu.apic.write_msr(TSC_DEADLINE, u64::MAX).unwrap();
    cpu.write(LVT_TIMER, 3 << 17 | 0x41);
    assert_eq!(cpu.apic.read_msr(TSC_DEADLINE), Ok(0));
    cpu.apic.restore(&cpu.apic.save()).expect("a state that there can be");
}

/// As an event loop does that asks for the deadline, and one that keeps what the alarm was told.
#[test]
fn once_expired_there_is_no_deadline_until_the_vcpu_has_looked() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    let told = || cpu.heard.deadlines.lock().unwrap().last().copied().flatten();
    cpu.write(LVT_TIMER, PERIODIC | 0x41);
    cpu.write(INITIAL_COUNT, 1_000_000);
    machine.pass(us(1000));
    assert_eq!((cpu.apic.deadline(), told()), (None, None), "the vCPU is paused");
    machine.pass(us(1000));
    assert_eq!((cpu.apic.deadline(), told()), (None, None), "for long");
    assert_eq!(cpu.take(), Some(0x41));
    assert_eq!((cpu.apic.deadline(), told()), (Some(us(3000)), Some(us(3000))));
}

#[test]
fn an_expiry_that_comes_early_sets_the_alarm_again() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    // A timer that is used up when it goes off.
    let told = || {
        std::mem::take(&mut *cpu.heard.deadlines.lock().unwrap())
            .last()
            .copied()
            .flatten()
    };
    cpu.write(LVT_TIMER, 0x41);
    cpu.write(INITIAL_COUNT, 1_000_000);
    assert_eq!(told(), Some(us(1000)));
    machine.pass(us(999));
    assert!(!cpu.apic.needs_attention());
    assert_eq!(told(), Some(us(1000)));
    machine.pass(us(1));
    assert_eq!(cpu.take(), Some(0x41));
    assert_eq!((told(), cpu.apic.deadline()), (None, None));
}

/// The expiry finds that the vCPU has looked when it comes to the alarm.
#[test]
fn an_expiry_that_comes_early_sets_the_alarm_again_if_the_vcpu_looks_in_the_middle_of_it() {
    let told = Arc::new(AtomicU64::new(0));
    let vcpu: Arc<OnceLock<LocalApic>> = Arc::default();
    let (count, looks) = (Arc::clone(&told), Arc::clone(&vcpu));
    let parts = LocalApicParts {
        id: ApicId(0),
        wake: Box::new(level_from_fn(move |up| {
            if let (true, Some(apic)) = (up, looks.get()) {
                apic.needs_attention();
            }
            Ok(())
        })),
        alarm: Box::new(alarm_from_fn(move |deadline: Option<Duration>| {
            count.fetch_add(deadline.is_some().into(), SeqCst);
        })),
    };
    let clock = Arc::new(ManualClock::default());
    let apics = LocalApics::new(LocalApicsConfig::default(), clock, vec![parts]).unwrap();
    let apic = apics.cpu(CpuId(0)).unwrap();
    for (offset, value) in [(SVR, ENABLE), (LVT_TIMER, 0x41), (INITIAL_COUNT, 1000)] {
        apic.write(offset, &value.to_le_bytes());
    }
    assert!(vcpu.set(apic.clone()).is_ok());
    assert_eq!(told.load(SeqCst), 1);
    apic.expire();
    assert_eq!(told.load(SeqCst), 2, "it was used up");
}

#[test]
fn a_restored_timer_that_is_due_is_taken_by_the_first_look_and_one_that_is_not_has_its_deadline() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, DEADLINE | 0x41);
    cpu.apic.write_msr(TSC_DEADLINE, 5000).unwrap();
    let mut state = cpu.apic.save();
    let other = Machine::new(1);
    other.cpus[0].apic.restore(&state).unwrap();
    assert_eq!(other.cpus[0].apic.deadline(), Some(us(5)));
    state.tsc = 6000;
    other.cpus[0].apic.restore(&state).unwrap();
    assert_eq!(other.cpus[0].apic.deadline(), None, "it is woken to look");
    assert_eq!(other.cpus[0].take(), Some(0x41));
}

#[test]
fn an_expiry_from_another_thread_wakes_the_vcpu() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, 0x41);
    cpu.write(INITIAL_COUNT, 1000);
    machine.clock.advance(us(1));
    let apic = cpu.apic.clone();
    std::thread::spawn(move || apic.expire()).join().unwrap();
    assert!(cpu.heard.awake.load(std::sync::atomic::Ordering::SeqCst));
    assert_eq!(cpu.take(), Some(0x41));
}

#[test]
fn a_periodic_timer_stops_at_the_end_of_the_clock_instead_of_interrupting_for_ever() {
    let machine = machine();
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, PERIODIC | 0x41);
    cpu.write(INITIAL_COUNT, 1_000_000);
    machine.pass(Duration::MAX);
    assert_eq!((cpu.take(), cpu.apic.deadline()), (Some(0x41), None));
    cpu.eoi();
    cpu.apic.expire();
    assert_eq!(cpu.take(), None);
}
