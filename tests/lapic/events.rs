//! INIT, start-up, NMI and SMI.

use std::sync::atomic::Ordering::SeqCst;

use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{CpuEvent, Lint, LocalSource, Request, Vector},
    },
    interrupt::{Interrupt, LevelInterrupt},
};

use crate::guest::*;

const INIT: u32 = 0x500;
const START_UP: u32 = 0x600;

fn command(machine: &Machine, low: u32) {
    machine.cpus[0].write(ICR_HIGH, 1 << 24);
    machine.cpus[0].write(ICR_LOW, low);
}

#[test]
fn init_and_two_start_ups_start_an_application_processor_once() {
    let machine = Machine::new(2);
    let cpu = &machine.cpus[1];
    assert!(cpu.apic.waits_for_start_up() && !machine.cpus[0].apic.waits_for_start_up());
    command(&machine, INIT | 1 << 14);
    assert!(
        cpu.heard.awake.load(SeqCst),
        "also a CPU that is disabled by software is reset"
    );
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
    assert_eq!(cpu.apic.next_event(), None);
    command(&machine, START_UP | 0x9a);
    command(&machine, START_UP | 0x9b);
    assert!(cpu.apic.needs_attention());
    command(&machine, START_UP | 0x9d);
    assert!(cpu.apic.needs_attention());
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::StartUp(Vector(0x9a))));
    assert!(!cpu.apic.waits_for_start_up());
    command(&machine, START_UP | 0x9c);
    assert!(!cpu.apic.needs_attention(), "it runs");
    assert_eq!(cpu.apic.next_event(), None);
}

#[test]
fn a_start_up_that_came_before_init_is_forgotten_and_one_after_it_kept() {
    let machine = Machine::new(2);
    let cpu = &machine.cpus[1];
    command(&machine, START_UP | 0x10);
    command(&machine, INIT);
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
    assert_eq!(cpu.apic.next_event(), None);
    command(&machine, INIT);
    command(&machine, START_UP | 0x20);
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::StartUp(Vector(0x20))));
}

#[test]
fn of_two_start_ups_the_first_counts_also_if_its_vector_is_0() {
    let machine = Machine::new(2);
    command(&machine, START_UP);
    command(&machine, START_UP | 0x10);
    assert_eq!(machine.cpus[1].apic.next_event(), Some(CpuEvent::StartUp(Vector(0))));
    assert_eq!(machine.cpus[1].apic.next_event(), None);
}

/// The vCPU has looked meanwhile, and has not taken the event yet.
#[test]
fn a_start_up_that_was_seen_before_init_came_is_forgotten_too() {
    let machine = Machine::new(2);
    let cpu = &machine.cpus[1];
    command(&machine, START_UP | 0x10);
    assert!(cpu.apic.needs_attention());
    command(&machine, INIT);
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
    assert_eq!(cpu.apic.next_event(), None);
    assert!(cpu.apic.waits_for_start_up());
}

#[test]
fn an_init_by_a_pin_ends_what_came_before_it_as_one_by_a_message_does() {
    let machine = Machine::enabled(2);
    let cpu = &machine.cpus[1];
    let pin = machine.apics.lint_line(CpuId(1), Lint::One).unwrap();
    cpu.write(LVT_LINT1, INIT);
    // It runs, and has seen a start-up message that it will ignore.
    command(&machine, START_UP | 0x10);
    command(&machine, 0x700);
    machine.send(1 << 12, 0x700);
    assert!(cpu.apic.request().is_some());
    pin.trigger().unwrap();
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
    assert_eq!(cpu.apic.next_event(), None, "a start-up of before");
    assert!(cpu.apic.waits_for_start_up());
}

#[test]
fn an_nmi_that_has_come_is_taken_also_if_the_apic_is_disabled_then() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    machine.send(0, 0x400);
    cpu.apic.write_msr(APIC_BASE, 0xfee0_0100).unwrap();
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Nmi));
}

#[test]
fn init_resets_the_registers_and_keeps_id_and_mode() {
    let machine = Machine::enabled(2);
    let cpu = &machine.cpus[1];
    cpu.x2apic();
    for (msr, value) in [(0x808, 0x20), (0x832, 0x41), (0x838, 1000)] {
        cpu.apic.write_msr(msr, value).unwrap();
    }
    machine.send(1 << 12, 0x41);
    machine.send(1 << 12, 0x51);
    assert_eq!(cpu.take(), Some(0x51));
    machine.send(1 << 12, 0x61);
    // An error in ESR, and one to come.
    machine.send(1 << 12, 0x05);
    cpu.apic.write_msr(0x828, 0).unwrap();
    machine.send(1 << 12, 0x05);
    assert!(cpu.apic.request().is_some());
    command(&machine, INIT);
    assert_eq!(cpu.apic.request(), None, "nothing is taken before the reset");
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
    let read = |msr| cpu.apic.read_msr(msr).unwrap();
    assert_eq!((read(0x802), read(APIC_BASE)), (1, 0xfee0_0c00));
    assert_eq!((read(0x808), read(0x80f), read(0x838)), (0, 0xff, 0));
    assert_eq!(read(0x832), 1 << 16);
    assert!((0x810..0x828).all(|msr| read(msr) == 0), "IRR, ISR, TMR");
    assert_eq!(read(0x828), 0);
    cpu.apic.write_msr(0x828, 0).unwrap();
    assert_eq!(read(0x828), 0);
    assert_eq!(cpu.apic.deadline(), None);
    assert!(cpu.apic.waits_for_start_up());
}

#[test]
fn pins_stay_as_they_are_over_init_and_a_reset_of_the_machine() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let pin = machine.apics.lint_line(CpuId(0), Lint::Zero).unwrap();
    pin.trigger().unwrap();
    let resets: [fn(&Machine); 2] = [
        |machine| {
            machine.send(0, INIT);
            assert_eq!(machine.cpus[0].apic.next_event(), Some(CpuEvent::Init));
        },
        |machine| machine.cpus[0].apic.reset(),
    ];
    for reset in resets {
        reset(&machine);
        cpu.enable();
        assert_eq!(cpu.apic.request(), None);
        cpu.write(LVT_LINT0, 0x700);
        assert_eq!(cpu.apic.request(), Some(Request::External));
    }
}

#[test]
fn the_bootstrap_processor_does_not_wait_after_init() {
    let machine = Machine::enabled(2);
    machine.send(0, INIT);
    assert_eq!(machine.cpus[0].apic.next_event(), Some(CpuEvent::Init));
    assert!(!machine.cpus[0].apic.waits_for_start_up());
}

#[test]
fn nmi_and_smi_wait_for_the_start_up_and_init_ends_those_before_it() {
    let machine = Machine::new(2);
    let cpu = &machine.cpus[1];
    command(&machine, 0x400);
    command(&machine, INIT);
    command(&machine, 0x200);
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
    assert_eq!(cpu.apic.next_event(), None);
    command(&machine, 0x400);
    assert_eq!(cpu.apic.next_event(), None);
    assert!(!cpu.apic.needs_attention());
    command(&machine, START_UP | 1);
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::StartUp(Vector(1))));
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Smi), "it came after INIT");
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Nmi));
    assert_eq!(cpu.apic.next_event(), None);
}

#[test]
fn what_comes_after_init_is_kept_whether_the_cpu_has_looked_in_between_or_not() {
    for (low, event) in [(0x400, CpuEvent::Nmi), (0x200, CpuEvent::Smi)] {
        // Not at all, at its registers, or at its events.
        for looks in 0..3 {
            let machine = Machine::new(2);
            let cpu = &machine.cpus[1];
            command(&machine, low);
            command(&machine, INIT);
            if looks == 1 {
                assert!(cpu.apic.save().init);
            } else if looks == 2 {
                assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
            }
            command(&machine, low);
            if looks < 2 {
                assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
            }
            assert_eq!(cpu.apic.next_event(), None, "it waits");
            command(&machine, START_UP | 8);
            assert_eq!(cpu.apic.next_event(), Some(CpuEvent::StartUp(Vector(8))));
            assert_eq!(cpu.apic.next_event(), Some(event), "looks: {looks}");
            assert_eq!(cpu.apic.next_event(), None, "once");
        }
    }
}

/// INIT masks the entry, also while the CPU has not seen it.
#[test]
fn a_pin_that_rises_between_init_and_the_reset_is_masked() {
    let machine = Machine::enabled(2);
    let cpu = &machine.cpus[1];
    cpu.write(LVT_LINT1, 0x400);
    let line = machine.apics.lint_line(CpuId(1), Lint::One).unwrap();
    command(&machine, INIT);
    assert!(cpu.apic.save().init);
    line.trigger().unwrap();
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
    command(&machine, START_UP | 8);
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::StartUp(Vector(8))));
    assert_eq!(cpu.apic.next_event(), None);
}

#[test]
fn an_init_of_a_pin_ends_what_came_before_it() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    cpu.write(LVT_LINT0, 0x500);
    machine.send(0, 0x400);
    assert_eq!(cpu.apic.save().nmis, 1);
    let line = machine.apics.lint_line(CpuId(0), Lint::Zero).unwrap();
    line.trigger().unwrap();
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Init));
    assert_eq!(cpu.apic.next_event(), None);
}

#[test]
fn an_nmi_is_taken_while_the_apic_is_disabled_by_software() {
    let machine = Machine::new(1);
    machine.send(0, 0x400);
    machine.send(0, 0x200);
    assert!(machine.cpus[0].apic.needs_attention());
    assert_eq!(machine.cpus[0].apic.next_event(), Some(CpuEvent::Smi));
    assert_eq!(machine.cpus[0].apic.next_event(), Some(CpuEvent::Nmi));
}

#[test]
fn the_pins_are_intr_and_nmi_while_the_apic_is_disabled() {
    let machine = Machine::new(1);
    let cpu = &machine.cpus[0];
    let pins = [Lint::Zero, Lint::One].map(|pin| machine.apics.lint_line(CpuId(0), pin).unwrap());
    cpu.apic.write_msr(APIC_BASE, 0xfee0_0100).unwrap();
    assert!(!cpu.apic.needs_attention());
    pins[0].trigger().unwrap();
    assert_eq!(cpu.apic.next_event(), None, "INTR is no NMI");
    pins[1].trigger().unwrap();
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Nmi));
    assert_eq!(cpu.apic.next_event(), None);
    assert_eq!(cpu.apic.request(), Some(Request::External));
}

#[test]
fn pins_can_be_nmi_smi_and_init_and_other_sources_no_init() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let pin = machine.apics.lint_line(CpuId(0), Lint::One).unwrap();
    // With the bit of a level, which is for fixed delivery alone.
    let modes = [(0x400, CpuEvent::Nmi), (0x200, CpuEvent::Smi), (0x500, CpuEvent::Init)];
    for (mode, event) in modes {
        cpu.write(LVT_LINT1, mode | 0x8041);
        pin.trigger().unwrap();
        assert_eq!(cpu.apic.next_event(), Some(event));
        assert!(!cpu.apic.needs_attention(), "once a rise");
        pin.clear().unwrap();
    }
    cpu.enable();
    let thermal = machine.apics.local_line(CpuId(0), LocalSource::Thermal).unwrap();
    for mode in [0x100, 0x300, 0x500, 0x600, 0x700] {
        cpu.write(LVT_THERMAL, mode | 0x41);
        thermal.trigger().unwrap();
        assert!(!cpu.apic.needs_attention(), "{mode:#x} is not for it");
    }
}

#[test]
fn local_sources_are_delivered_as_their_entries_say() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let line = |source| machine.apics.local_line(CpuId(0), source).unwrap();
    let (thermal, performance) = (line(LocalSource::Thermal), line(LocalSource::Performance));
    thermal.trigger().unwrap();
    assert!(!cpu.apic.needs_attention(), "it is masked");
    cpu.write(LVT_THERMAL, 0x41);
    cpu.write(LVT_PERFORMANCE, 0x400);
    thermal.trigger().unwrap();
    performance.trigger().unwrap();
    assert_eq!(cpu.take(), Some(0x41));
    assert_eq!(cpu.apic.next_event(), Some(CpuEvent::Nmi));
    assert_eq!(cpu.read(LVT_PERFORMANCE), 0x400 | MASKED, "it has masked itself");
    performance.trigger().unwrap();
    assert_eq!(cpu.apic.next_event(), None);
}

#[test]
fn a_reset_of_the_machine_leads_back_to_power_up() {
    let machine = Machine::enabled(2);
    let cpu = &machine.cpus[1];
    let fresh = Machine::new(2).cpus[1].apic.save();
    cpu.x2apic();
    machine.send(1 << 12, 0x41);
    machine.send(1 << 12, 0x400);
    cpu.apic.reset();
    assert_eq!(cpu.apic.save(), fresh);
}

#[test]
fn a_guest_that_gives_up_the_bootstrap_flag_has_it_back_after_a_reset_of_the_machine() {
    let machine = Machine::new(1);
    let apic = &machine.cpus[0].apic;
    apic.write_msr(APIC_BASE, 0xfee0_0800).unwrap();
    machine.send(0, INIT);
    assert_eq!(apic.next_event(), Some(CpuEvent::Init));
    assert!(apic.waits_for_start_up());
    apic.reset();
    assert_eq!(apic.read_msr(APIC_BASE), Ok(0xfee0_0900));
    assert!(!apic.waits_for_start_up());
}

/// SDM volume 3, 6.7.1: while one is handled, one more is latched.
#[test]
fn a_cpu_takes_one_nmi_and_latches_one_more() {
    let machine = Machine::enabled(3);
    let cpu = &machine.cpus[2];
    let nmis = || std::iter::from_fn(|| cpu.apic.next_event()).collect::<Vec<_>>();
    let other = |from: usize| {
        machine.cpus[from].write(ICR_HIGH, 2 << 24);
        machine.cpus[from].write(ICR_LOW, 0x400);
    };
    other(0);
    other(1);
    assert_eq!(nmis(), [CpuEvent::Nmi; 2], "it has not looked in between");
    // Also if it looks in between and takes none, and by a pin that rises twice.
    other(0);
    assert!(cpu.apic.needs_attention());
    other(1);
    other(0);
    assert_eq!(nmis(), [CpuEvent::Nmi; 2], "a third is lost");
    cpu.write(LVT_LINT1, 0x400);
    let pin = machine.apics.lint_line(CpuId(2), Lint::One).unwrap();
    for _ in 0..3 {
        pin.trigger().unwrap();
        pin.clear().unwrap();
    }
    assert_eq!(nmis(), [CpuEvent::Nmi; 2]);
    other(0);
    other(1);
    machine.send(2 << 12, INIT);
    assert_eq!(nmis(), [CpuEvent::Init], "INIT ends both");
}

#[test]
fn both_nmis_are_there_after_a_move() {
    let machine = Machine::enabled(1);
    machine.send(0, 0x400);
    machine.send(0, 0x400);
    let state = machine.cpus[0].apic.save();
    assert_eq!(state.nmis, 2);
    let other = Machine::new(1);
    other.cpus[0].apic.restore(&state).unwrap();
    let events: Vec<_> = std::iter::from_fn(|| other.cpus[0].apic.next_event()).collect();
    assert_eq!(events, [CpuEvent::Nmi; 2]);
}
