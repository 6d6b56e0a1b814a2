//! Save and restore.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{ApicId, CpuEvent, Lint, LocalApicState, LocalApicStateError, Vector},
    },
    interrupt::Interrupt,
};

use crate::guest::*;

/// A state in which nothing is as after power-up.
fn busy() -> LocalApicState {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    for (offset, value) in [
        (TPR, 0x21),
        (LDR, 0x05 << 24),
        (DFR, 0x0fff_ffff),
        (SVR, 0x11f0),
        (LVT_TIMER, 2 << 16 | 0x41),
        (LVT_LINT0, 0x8061),
        (LVT_ERROR, 0x51),
        (DIVIDE, 1),
        (INITIAL_COUNT, 1_000_000),
        (ICR_HIGH, 7 << 24),
        (ICR_LOW, 0x0f),
    ] {
        cpu.write(offset, value);
    }
    cpu.write(ESR, 0);
    cpu.write(0x3f0, 0);
    let line = machine.apics.lint_line(CpuId(0), Lint::Zero).unwrap();
    line.trigger().unwrap();
    machine.send(0, 0x8071);
    machine.send(0, 0x91);
    assert_eq!(cpu.take(), Some(0x91));
    for event in [0x400, 0x200, 0x700] {
        machine.send(0, event);
    }
    cpu.apic.set_tsc(777);
    cpu.apic.save()
}

#[test]
fn every_field_survives_and_the_guest_goes_on_where_it_was() {
    let state = busy();
    let machine = Machine::new(1);
    let cpu = &machine.cpus[0];
    cpu.apic.restore(&state).unwrap();
    assert_eq!(cpu.apic.save(), state);
    let expected = [
        (TPR, 0x21),
        (LDR, 0x05 << 24),
        (DFR, 0x0fff_ffff),
        (SVR, 0x11f0),
        (ESR, 1 << 5),
        (LVT_LINT0, 0xc061),
        (INITIAL_COUNT, 1_000_000),
        (ICR_HIGH, 7 << 24),
    ];
    for (offset, value) in expected {
        assert_eq!(cpu.read(offset), value, "{offset:#x}");
    }
    assert!(cpu.has(ISR, 0x91) && cpu.has(IRR, 0x71) && cpu.has(TMR, 0x71) && cpu.has(IRR, 0x61));
    assert!(cpu.heard.awake.load(SeqCst) || cpu.apic.needs_attention());
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Smi));
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Nmi));
    assert_eq!(cpu.apic.next_event(), None);
    cpu.apic.acknowledge();
    cpu.eoi();
    assert_eq!(cpu.take(), Some(0x71));
}

#[test]
fn a_restored_timer_is_armed_for_what_is_left_on_the_new_clock() {
    for (lvt, left, again) in [(0x41, 600, None), (2 << 16 | 0x41, 600, Some(1600))] {
        let machine = Machine::enabled(1);
        machine.cpus[0].write(DIVIDE, 0b1011);
        machine.cpus[0].write(LVT_TIMER, lvt);
        machine.cpus[0].write(INITIAL_COUNT, 1_000_000);
        machine.clock.advance(Duration::from_micros(400));
        let state = machine.cpus[0].apic.save();

        let other = Machine::new(1);
        let start = Duration::from_secs(1000);
        other.clock.advance(start);
        let cpu = &other.cpus[0];
        cpu.apic.restore(&state).unwrap();
        let deadline = start + Duration::from_micros(left);
        assert_eq!(*cpu.heard.deadlines.lock().unwrap(), [Some(deadline)]);
        other.pass(Duration::from_micros(left));
        assert_eq!(cpu.take(), Some(0x41));
        assert_eq!(cpu.apic.deadline(), again.map(|us| start + Duration::from_micros(us)));
    }
}

#[test]
fn a_restored_tsc_deadline_is_as_far_away_as_it_was() {
    let machine = Machine::enabled(1);
    machine.cpus[0].write(LVT_TIMER, 2 << 17 | 0x41);
    machine.cpus[0].apic.set_tsc(1 << 40);
    machine.cpus[0].apic.write_msr(TSC_DEADLINE, (1 << 40) + 5000).unwrap();
    let state = machine.cpus[0].apic.save();
    let other = Machine::new(1);
    other.clock.advance(Duration::from_secs(7));
    other.cpus[0].apic.restore(&state).unwrap();
    let deadline = Duration::from_secs(7) + Duration::from_micros(5);
    assert_eq!(other.cpus[0].apic.deadline(), Some(deadline));
    assert_eq!(other.cpus[0].apic.tsc(), 1 << 40);
}

#[test]
fn a_message_that_came_before_the_restore_is_not_lost() {
    // Also with the redirection hint.
    for address in [0, 1 << 3] {
        let state = Machine::enabled(1).cpus[0].apic.save();
        let machine = Machine::new(1);
        machine.send(address, 0x41);
        machine.cpus[0].apic.restore(&state).unwrap();
        assert!(machine.cpus[0].heard.awake.load(SeqCst));
        assert_eq!(machine.cpus[0].take(), Some(0x41));
    }
}

#[test]
fn a_pin_that_is_still_up_after_a_restore_is_no_second_edge() {
    let machine = Machine::enabled(1);
    machine.cpus[0].write(LVT_LINT1, 0x41);
    let line = machine.apics.lint_line(CpuId(0), Lint::One).unwrap();
    line.trigger().unwrap();
    assert_eq!(machine.cpus[0].take(), Some(0x41));
    machine.cpus[0].eoi();
    let state = machine.cpus[0].apic.save();

    let other = Machine::new(1);
    let line = other.apics.lint_line(CpuId(0), Lint::One).unwrap();
    other.cpus[0].apic.restore(&state).unwrap();
    line.trigger().unwrap();
    assert_eq!(other.cpus[0].take(), None);
}

/// The device may be restored before the local APIC: its line is driven already.
#[test]
fn a_pin_that_was_driven_before_the_restore_is_no_second_edge_and_a_new_one_is_not_lost() {
    for (was_up, lvt, taken) in [(true, 0x41, None), (false, 0x41, Some(0x41)), (true, 0x400, None)] {
        let machine = Machine::enabled(1);
        machine.cpus[0].write(LVT_LINT1, lvt);
        let line = machine.apics.lint_line(CpuId(0), Lint::One).unwrap();
        if was_up {
            line.trigger().unwrap();
            while machine.cpus[0].apic.next_event().is_some() || machine.cpus[0].take().is_some() {}
            machine.cpus[0].eoi();
        }
        let state = machine.cpus[0].apic.save();

        let other = Machine::new(1);
        let line = other.apics.lint_line(CpuId(0), Lint::One).unwrap();
        line.trigger().unwrap();
        other.cpus[0].apic.restore(&state).unwrap();
        assert_eq!(other.cpus[0].take(), taken, "the line was up: {was_up}");
        assert_eq!(other.cpus[0].apic.next_event(), None);
        assert!(other.cpus[0].apic.save().lint[1], "and is up");
    }
}

#[test]
fn messages_reach_a_restored_apic_where_its_state_says() {
    let machine = Machine::enabled(2);
    machine.cpus[1].x2apic();
    let state = machine.cpus[1].apic.save();
    let other = Machine::new(2);
    other.cpus[1].apic.restore(&state).unwrap();
    other.send(1 << 12 | 1 << 2, 0x41);
    assert_eq!(other.cpus[1].apic.read_msr(0x822), Ok(0), "logical 1 is APIC 0");
    other.send(2 << 12 | 1 << 2, 0x41);
    assert_eq!(other.cpus[1].apic.read_msr(0x822), Ok(2));
}

#[test]
fn a_start_up_in_flight_survives() {
    let machine = Machine::new(2);
    machine.send(1 << 12, 0x500);
    machine.send(1 << 12, 0x622);
    let state = machine.cpus[1].apic.save();
    assert_eq!((state.init, state.start_up), (true, Some(Vector(0x22))));
    let other = Machine::new(2);
    other.cpus[1].apic.restore(&state).unwrap();
    assert_eq!(other.cpus[1].apic.next_event(), Some(CpuEvent::Init));
    assert_eq!(other.cpus[1].apic.next_event(), Some(CpuEvent::StartUp(Vector(0x22))));
}

#[test]
fn a_state_that_cannot_be_is_refused_and_changes_nothing() {
    let good = busy();
    let change = |change: &dyn Fn(&mut LocalApicState)| {
        let mut state = good.clone();
        change(&mut state);
        let machine = Machine::enabled(1);
        let before = machine.cpus[0].apic.save();
        let error = machine.cpus[0].apic.restore(&state).unwrap_err();
        assert_eq!(machine.cpus[0].apic.save(), before, "{error}");
        error
    };
    let id = LocalApicStateError::Id {
        state: ApicId(4),
        own: ApicId(0),
    };
    assert_eq!(change(&|state| state.id = ApicId(4)), id);
    for base in [0xfee0_0400, 0xfee0_0801, u64::MAX] {
        let error = LocalApicStateError::ApicBase(base);
        assert_eq!(change(&|state| state.apic_base = base), error);
    }
    type Wrong<'a> = (&'a str, &'a dyn Fn(&mut LocalApicState));
    let reserved: [Wrong; 10] = [
        ("DFR", &|state| state.destination_model = 16),
        ("SVR", &|state| state.svr |= 1 << 10),
        ("ESR", &|state| state.esr = 1),
        ("errors", &|state| state.errors = 1),
        ("ICR", &|state| state.icr = 1 << 13),
        ("LVT", &|state| state.lvt[0] |= 1 << 8),
        ("IRR", &|state| state.irr[0] |= 1 << 15),
        ("ISR", &|state| state.isr[0] |= 1),
        ("TMR", &|state| state.tmr[0] |= 1),
        ("divide", &|state| state.divide = 4),
    ];
    for (name, wrong) in reserved {
        let error = change(wrong).to_string();
        assert!(error.starts_with(name), "{error}");
    }
    assert_eq!(
        change(&|state| state.svr = 0xff),
        LocalApicStateError::Unmasked(good.lvt[0])
    );
    assert!(matches!(
        change(&|state| state.timer_left = Some(u64::MAX)),
        LocalApicStateError::TimerLeft { left: u64::MAX, .. }
    ));
    assert!(matches!(
        change(&|state| state.initial_count = 0),
        LocalApicStateError::TimerLeft { most: 0, .. }
    ));
    assert_eq!(
        change(&|state| state.tsc_deadline = 5),
        LocalApicStateError::TscDeadline(5)
    );
    let disarmed = |mode: u32| {
        change(&|state| {
            state.lvt[0] = mode << 17 | 0x41;
            state.timer_left = None;
        })
    };
    for mode in [2, 3] {
        assert_eq!(disarmed(mode), LocalApicStateError::InitialCount(1_000_000));
    }
    // Edge-triggered; NMI; with a vector that is neither requested nor in service.
    for entry in [0x4061, 0xc461, 0xc062] {
        let error = LocalApicStateError::RemoteIrr(entry);
        assert_eq!(change(&|state| state.lvt[3] = entry), error);
    }
}

#[test]
fn a_local_apic_that_is_disabled_has_the_registers_of_a_reset() {
    let machine = Machine::enabled(1);
    let apic = &machine.cpus[0].apic;
    machine.cpus[0].write(LVT_LINT0, 0x8041);
    machine.send(0, 0x51);
    machine.send(0, 0x400);
    apic.set_tsc(1 << 40);
    apic.write_msr(APIC_BASE, 0xfee0_0100).unwrap();
    apic.set_cr8(7).unwrap();
    let good = apic.save();
    apic.restore(&good).expect("what a guest can bring about");
    assert_eq!(apic.save(), good);
    let wrong: [&dyn Fn(&mut LocalApicState); 8] = [
        &|state| state.irr[1] = 2,
        &|state| state.isr[1] = 2,
        &|state| state.tmr[3] = 2,
        &|state| state.svr = 0x1ff,
        &|state| state.logical_id = 1,
        &|state| state.initial_count = 1,
        &|state| state.ext_int = true,
        &|state| state.init = true,
    ];
    for (number, wrong) in wrong.into_iter().enumerate() {
        let mut state = good.clone();
        wrong(&mut state);
        let error = LocalApicStateError::Disabled(0xfee0_0100);
        assert_eq!(apic.restore(&state), Err(error), "{number}");
        assert_eq!(apic.save(), good);
    }
}

#[test]
fn requests_survive_while_the_apic_is_disabled_by_software() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    machine.send(0, 0x51);
    assert!(cpu.has(IRR, 0x51));
    cpu.write(SVR, 0xff);
    let state = cpu.apic.save();
    let other = Machine::new(1);
    other.cpus[0].apic.restore(&state).unwrap();
    assert!(other.cpus[0].has(IRR, 0x51));
}

#[test]
fn more_nmis_than_a_cpu_latches_and_an_id_that_cannot_be_written_are_refused() {
    let machine = Machine::enabled(1);
    let apic = &machine.cpus[0].apic;
    let state = LocalApicState { nmis: 3, ..apic.save() };
    assert_eq!(apic.restore(&state), Err(LocalApicStateError::Nmis(3)));
    machine.cpus[0].x2apic();
    let (xapic_id, id) = (7, ApicId(0));
    let state = LocalApicState {
        xapic_id,
        ..apic.save()
    };
    assert_eq!(apic.restore(&state), Err(LocalApicStateError::XApicId { xapic_id, id }));
}
