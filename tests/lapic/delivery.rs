//! Priorities, acknowledge, EOI.

use std::sync::{Arc, Mutex, atomic::Ordering::SeqCst};

use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{Lint, LocalApicsConfig, Request},
    },
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, RequesterId},
};

use crate::guest::*;

#[test]
fn the_highest_vector_comes_first_and_a_lower_class_waits_for_its_eoi() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    for vector in [0x31, 0x52, 0x41] {
        machine.send(0, vector);
    }
    assert_eq!(cpu.take(), Some(0x52));
    assert_eq!(cpu.take(), None, "0x41 is of a lower class");
    machine.send(0, 0x5f);
    assert_eq!(cpu.take(), None, "of the same class");
    machine.send(0, 0x60);
    assert_eq!(cpu.take(), Some(0x60));
    cpu.eoi();
    assert!(!cpu.has(ISR, 0x60) && cpu.has(ISR, 0x52));
    cpu.eoi();
    assert_eq!([cpu.take(), cpu.take()], [Some(0x5f), None]);
    cpu.eoi();
    assert_eq!(cpu.take(), Some(0x41));
}

#[test]
fn the_task_priority_holds_back_its_class_and_those_below() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    machine.send(0, 0x4f);
    cpu.write(TPR, 0x41);
    assert_eq!((cpu.read(PPR), cpu.take()), (0x41, None));
    assert_eq!(cpu.apic.cr8(), 4);
    cpu.apic.set_cr8(3).unwrap();
    assert_eq!(cpu.read(TPR), 0x30);
    assert_eq!(cpu.take(), Some(0x4f));
    assert_eq!(cpu.read(PPR), 0x40);
    cpu.write(TPR, 0x47);
    assert_eq!(cpu.read(PPR), 0x47, "the classes are equal: the sub-class is TPR's");
    assert!(cpu.apic.set_cr8(16).is_err());
}

#[test]
fn a_vector_is_pending_once_however_often_it_is_sent_and_again_while_it_is_in_service() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    machine.send(0, 0x41);
    machine.send(0, 0x41);
    assert_eq!([cpu.take(), cpu.take()], [Some(0x41), None]);
    machine.send(0, 0x41);
    assert!(cpu.has(IRR, 0x41) && cpu.has(ISR, 0x41));
    cpu.eoi();
    assert_eq!(cpu.take(), Some(0x41));
}

#[test]
fn nothing_is_accepted_while_disabled_by_software_and_what_was_pending_stays() {
    let machine = Machine::new(1);
    let cpu = &machine.cpus[0];
    machine.send(0, 0x41);
    cpu.enable();
    assert_eq!(
        machine.pending(0x41),
        [] as [usize; 0],
        "it came before the APIC was enabled"
    );
    machine.send(0, 0x42);
    cpu.write(SVR, 0xff);
    machine.send(0, 0x43);
    // ExtINT, and a vector that is refused: neither a request nor an error.
    machine.send(0, 0x700);
    machine.send(0, 0x05);
    cpu.write(ESR, 0);
    assert_eq!(cpu.read(ESR), 0);
    assert!(cpu.has(IRR, 0x42) && !cpu.has(IRR, 0x43));
    assert_eq!(cpu.take(), Some(0x42));
}

#[test]
fn disabling_by_software_masks_the_vector_table_and_keeps_it_masked() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    cpu.write(LVT_TIMER, 0x40);
    cpu.write(SVR, 0xff);
    assert_eq!(cpu.read(LVT_TIMER), 0x40 | MASKED);
    cpu.write(LVT_TIMER, 0x40);
    assert_eq!(cpu.read(LVT_TIMER), 0x40 | MASKED);
    cpu.enable();
    assert_eq!(cpu.read(LVT_TIMER), 0x40 | MASKED, "the guest unmasks it itself");
}

/// The vectors that IOAPICs were told.
fn hear_eois(machine: &Machine) -> (Arc<Mutex<Vec<u8>>>, devisor::backends::irqchip::lapic::LocalApicHook) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&heard);
    let hook = machine.apics.on_eoi(move |vector| hook.lock().unwrap().push(vector.0));
    (heard, hook)
}

#[test]
fn the_eoi_of_a_level_interrupt_is_broadcast_and_that_of_an_edge_is_not() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let (heard, hook) = hear_eois(&machine);
    machine.send(0, 0x8000 | 0x41);
    machine.send(0, 0x51);
    assert!(cpu.has(TMR, 0x41) && !cpu.has(TMR, 0x51));
    for _ in 0..2 {
        cpu.take().unwrap();
        cpu.eoi();
    }
    assert_eq!(*heard.lock().unwrap(), [0x41]);
    machine.send(0, 0x41);
    assert!(!cpu.has(TMR, 0x41), "the trigger mode is that of the last message");
    cpu.take();
    cpu.eoi();
    cpu.eoi();
    assert_eq!(*heard.lock().unwrap(), [0x41]);
    machine.send(0, 0x8041);
    cpu.take();
    drop(hook);
    cpu.eoi();
    assert_eq!(*heard.lock().unwrap(), [0x41], "the hook is gone");
}

#[test]
fn what_is_in_service_is_ended_and_broadcast_also_while_disabled_by_software() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let (heard, _hook) = hear_eois(&machine);
    machine.send(0, 0x8000 | 0x41);
    machine.send(0, 0x8000 | 0x51);
    assert_eq!(cpu.take(), Some(0x51));
    cpu.write(SVR, 0xff);
    cpu.eoi();
    assert!(!cpu.has(ISR, 0x51));
    assert_eq!(cpu.take(), Some(0x41), "it was pending");
    cpu.eoi();
    assert_eq!(*heard.lock().unwrap(), [0x51, 0x41]);
}

#[test]
fn the_guest_can_suppress_eoi_broadcasts_only_where_the_version_says_so() {
    for (offered, expected) in [(true, &[][..]), (false, &[0x41_u8][..])] {
        let config = LocalApicsConfig {
            eoi_broadcast_suppression: offered,
            ..LocalApicsConfig::default()
        };
        let machine = Machine::with(config, &[0]);
        let cpu = &machine.cpus[0];
        let (heard, _hook) = hear_eois(&machine);
        assert_eq!(cpu.read(0x030) >> 24 & 1 != 0, offered);
        cpu.write(SVR, ENABLE | 1 << 12);
        machine.send(0, 0x8041);
        cpu.take();
        cpu.eoi();
        assert_eq!(*heard.lock().unwrap(), expected);
    }
}

#[test]
fn an_eoi_hook_may_raise_the_line_again() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let again = Mutex::new(Some(machine.apics.clone()));
    let _hook = machine.apics.on_eoi(move |vector| {
        let Some(apics) = again.lock().unwrap().take() else {
            return;
        };
        let (address, data) = (0xfee0_0000, 0x8000 | u32::from(vector.0));
        apics.send(RequesterId(0), MsiMessage { address, data }).unwrap();
    });
    machine.send(0, 0x8041);
    assert_eq!(cpu.take(), Some(0x41));
    cpu.eoi();
    assert_eq!(cpu.take(), Some(0x41));
    cpu.eoi();
    assert_eq!(cpu.take(), None);
}

#[test]
fn the_wake_line_is_up_until_the_vcpu_has_looked() {
    let machine = Machine::enabled(1);
    let (cpu, heard) = (&machine.cpus[0], &machine.cpus[0].heard);
    assert!(!heard.awake.load(SeqCst));
    machine.send(0, 0x41);
    machine.send(0, 0x42);
    assert!(heard.awake.load(SeqCst));
    assert_eq!(heard.wakes.load(SeqCst), 1, "transitions only");
    assert!(cpu.apic.needs_attention() && !heard.awake.load(SeqCst));
    machine.send(0, 0x43);
    assert!(heard.awake.load(SeqCst), "it had looked");
}

#[test]
fn a_message_whose_wake_up_was_refused_is_pending_and_the_next_message_wakes_for_both() {
    let machine = Machine::enabled(1);
    let (cpu, heard) = (&machine.cpus[0], &machine.cpus[0].heard);
    heard.refuse.store(true, SeqCst);
    let address = 0xfee0_0000;
    let sent = machine.apics.send(RequesterId(0), MsiMessage { address, data: 0x41 });
    assert!(sent.is_err());
    assert_eq!(cpu.apic.wake_failures(), 1);
    heard.refuse.store(false, SeqCst);
    machine.send(0, 0x41);
    assert!(heard.awake.load(SeqCst));
    assert_eq!(cpu.take(), Some(0x41));
}

#[test]
fn a_level_sensitive_pin_is_delivered_once_and_again_after_its_eoi_while_it_is_up() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let line = machine.apics.lint_line(CpuId(0), Lint::Zero).unwrap();
    cpu.write(LVT_LINT0, 0x8000 | 0x41);
    line.trigger().unwrap();
    assert_eq!(cpu.take(), Some(0x41));
    assert_eq!(cpu.read(LVT_LINT0), 0x8041 | 1 << 14, "Remote IRR");
    assert_eq!(cpu.take(), None);
    cpu.eoi();
    assert_eq!(cpu.take(), Some(0x41));
    line.clear().unwrap();
    cpu.eoi();
    assert_eq!((cpu.take(), cpu.read(LVT_LINT0)), (None, 0x8041));
    cpu.write(LVT_LINT0, MASKED | 0x8041);
    line.trigger().unwrap();
    assert_eq!(cpu.take(), None);
    cpu.write(LVT_LINT0, 0x8041);
    assert_eq!(cpu.take(), Some(0x41), "a level outlives the mask");
    drop(line);
    cpu.eoi();
    assert_eq!(cpu.take(), None, "dropping the line lets go");
}

/// Remote IRR would wait for the EOI of a vector that nobody has in service.
#[test]
fn a_level_sensitive_pin_whose_vector_is_rewritten_is_delivered_with_the_new_one() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let line = machine.apics.lint_line(CpuId(0), Lint::Zero).unwrap();
    cpu.write(LVT_LINT0, 0x8041);
    line.trigger().unwrap();
    assert_eq!(cpu.take(), Some(0x41));
    cpu.write(LVT_LINT0, MASKED | 0x8041);
    assert_eq!(
        cpu.read(LVT_LINT0),
        MASKED | 0xc041,
        "the same vector is in service still"
    );
    cpu.write(LVT_LINT0, 0x8052);
    cpu.eoi();
    assert_eq!(cpu.take(), Some(0x52));
    line.clear().unwrap();
    cpu.eoi();
    assert_eq!((cpu.take(), cpu.read(LVT_LINT0)), (None, 0x8052));
    // A vector that is refused is in neither, and that is a state, too.
    line.trigger().unwrap();
    assert_eq!(cpu.take(), Some(0x52));
    cpu.write(LVT_LINT0, 0x8001);
    cpu.apic.restore(&cpu.apic.save()).unwrap();
}

#[test]
fn a_level_sensitive_pin_that_falls_and_rises_in_service_is_delivered_once_after_its_eoi() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let line = machine.apics.lint_line(CpuId(0), Lint::Zero).unwrap();
    cpu.write(LVT_LINT0, 0x8041);
    line.trigger().unwrap();
    assert_eq!(cpu.take(), Some(0x41));
    line.clear().unwrap();
    line.trigger().unwrap();
    assert!(!cpu.has(IRR, 0x41) && cpu.has(TMR, 0x41), "its EOI is to come");
    machine.send(0, 0x51);
    assert_eq!(cpu.take(), Some(0x51));
    cpu.eoi();
    assert!(!cpu.has(IRR, 0x41), "that was the EOI of another");
    cpu.eoi();
    assert_eq!(cpu.take(), Some(0x41));
    line.clear().unwrap();
    cpu.eoi();
    assert_eq!(cpu.take(), None);
}

#[test]
fn remote_irr_of_a_pin_is_read_only_and_outlives_a_write_until_the_entry_is_an_edge() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let line = machine.apics.lint_line(CpuId(0), Lint::One).unwrap();
    cpu.write(LVT_LINT1, 0x8041 | 1 << 14);
    assert_eq!(cpu.read(LVT_LINT1), 0x8041);
    line.trigger().unwrap();
    assert_eq!(cpu.take(), Some(0x41));
    // As a handler masks and unmasks it.
    cpu.write(LVT_LINT1, MASKED | 0x8041);
    cpu.write(LVT_LINT1, 0x8041);
    assert_eq!(cpu.read(LVT_LINT1), 0x8041 | 1 << 14);
    assert!(!cpu.has(IRR, 0x41), "in service, and not again before its EOI");
    cpu.write(LVT_LINT1, MASKED | 0x41);
    assert_eq!(cpu.read(LVT_LINT1), MASKED | 0x41, "an edge has none");
    cpu.write(LVT_LINT1, 0x8041);
    assert!(cpu.has(IRR, 0x41), "the line is up");
}

#[test]
fn an_edge_on_a_pin_is_delivered_once_a_rise_and_lost_while_masked() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let line = machine.apics.lint_line(CpuId(0), Lint::One).unwrap();
    cpu.write(LVT_LINT1, 0x41);
    line.trigger().unwrap();
    line.trigger().unwrap();
    line.clear().unwrap();
    assert_eq!([cpu.take(), cpu.take()], [Some(0x41), None]);
    cpu.eoi();
    cpu.write(LVT_LINT1, 0x41 | MASKED);
    line.trigger().unwrap();
    cpu.write(LVT_LINT1, 0x41);
    assert_eq!(cpu.take(), None);
}

#[test]
fn the_8259_on_lint0_is_asked_while_its_line_is_up_whatever_the_priority() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let line = machine.apics.lint_line(CpuId(0), Lint::Zero).unwrap();
    cpu.write(TPR, 0xff);
    line.trigger().unwrap();
    assert_eq!(cpu.apic.request(), None, "LINT0 is masked");
    cpu.write(LVT_LINT0, 0x700);
    assert_eq!(cpu.apic.acknowledge(), Some(Request::External));
    assert_eq!(cpu.apic.request(), Some(Request::External));
    cpu.write(LVT_LINT0, MASKED | 0x700);
    assert_eq!(cpu.apic.request(), None, "as Linux leaves it once it uses the IOAPIC");
    cpu.write(LVT_LINT0, 0x700);
    machine.send(0, 0x400);
    assert!(cpu.apic.next_event().is_some());
    assert_eq!(
        cpu.apic.request(),
        Some(Request::External),
        "an NMI leaves the line as it is"
    );
    line.clear().unwrap();
    assert_eq!(cpu.apic.request(), None);
    assert_eq!(cpu.read(ISR), 0, "the local APIC does not keep it in service");
}

#[test]
fn a_message_with_extint_asks_the_8259_once() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    machine.send(0, 0x700);
    assert_eq!(cpu.apic.acknowledge(), Some(Request::External));
    assert_eq!(cpu.apic.request(), None);
}
