//! Interrupts between processors.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use devisor::backends::irqchip::lapic::CpuEvent;

use crate::guest::*;

const LEVEL: u32 = 1 << 15;
const ASSERT: u32 = 1 << 14;
const LOGICAL: u32 = 1 << 11;

#[test]
fn an_ipi_reaches_its_destination_and_each_shorthand_whom_it_names() {
    for (shorthand, expected) in [(0, &[2][..]), (1, &[1]), (2, &[0, 1, 2]), (3, &[0, 2])] {
        let machine = Machine::enabled(3);
        let cpu = &machine.cpus[1];
        cpu.write(ICR_HIGH, 2 << 24);
        cpu.write(ICR_LOW, shorthand << 18 | 0x41);
        assert_eq!(machine.pending(0x41), expected, "shorthand {shorthand}");
        assert_eq!(cpu.read(ICR_LOW), shorthand << 18 | 0x41);
        assert_eq!(cpu.read(ICR_HIGH), 2 << 24);
    }
}

#[test]
fn a_logical_ipi_reaches_a_mask_and_one_to_nobody_is_lost() {
    let machine = Machine::enabled(3);
    for (number, cpu) in machine.cpus.iter().enumerate() {
        cpu.write(LDR, 1 << (24 + number));
    }
    machine.cpus[0].write(ICR_HIGH, 0b110 << 24);
    machine.cpus[0].write(ICR_LOW, LOGICAL | 0x41);
    assert_eq!(machine.pending(0x41), [1, 2]);
    machine.cpus[0].write(ICR_HIGH, 0x77 << 24);
    machine.cpus[0].write(ICR_LOW, 0x42);
    assert_eq!(machine.pending(0x42), [] as [usize; 0]);
}

#[test]
fn an_ipi_with_a_vector_below_16_is_not_sent_and_the_sender_says_so() {
    let machine = Machine::enabled(2);
    let cpu = &machine.cpus[0];
    for shorthand in 0..4 {
        cpu.write(ICR_LOW, shorthand << 18 | 0x0f);
        cpu.write(ESR, 0);
        assert_eq!(cpu.read(ESR), 1 << 5);
    }
    machine.cpus[1].write(ESR, 0);
    assert_eq!(machine.cpus[1].read(ESR), 0);
}

#[test]
fn a_level_triggered_ipi_is_an_edge_also_de_asserted_and_that_of_init_is_nothing() {
    let machine = Machine::enabled(2);
    machine.cpus[0].write(ICR_HIGH, 1 << 24);
    machine.cpus[0].write(ICR_LOW, LEVEL | ASSERT | 0x41);
    assert!(machine.cpus[1].has(IRR, 0x41) && !machine.cpus[1].has(TMR, 0x41));
    machine.cpus[0].write(ICR_LOW, LEVEL | 0x42);
    machine.cpus[0].write(ICR_LOW, LEVEL | 0x500);
    assert!(machine.cpus[1].has(IRR, 0x42) && !machine.cpus[1].has(TMR, 0x42));
    assert_eq!(machine.cpus[1].apic.next_event(), None, "INIT de-assert");
}

#[test]
fn the_reserved_delivery_modes_of_a_command_send_nothing() {
    let machine = Machine::enabled(2);
    machine.cpus[0].write(ICR_HIGH, 1 << 24);
    for mode in [3, 7] {
        machine.cpus[0].write(ICR_LOW, ASSERT | mode << 8 | 0x41);
    }
    assert!(!machine.cpus[1].apic.needs_attention());
}

/// Every low half, with any reserved bit and any combination that the manual calls invalid.
#[test]
fn any_command_is_safe() {
    let machine = Machine::enabled(3);
    for low in 0..1 << 20 {
        if low & 0xf0 != 0 && low & 0xff != 0x41 {
            continue;
        }
        machine.cpus[0].write(ICR_LOW, low | 0xfff0_0000);
    }
    for cpu in &machine.cpus {
        while cpu.apic.next_event().is_some() {}
        while cpu.apic.acknowledge().is_some() {}
    }
}

#[test]
fn x2apic_commands_have_32_bits_of_destination_and_are_sent_by_one_write() {
    let machine = Machine::with(Default::default(), &[0, 0x105, 0x106]);
    for cpu in &machine.cpus {
        cpu.enable();
        cpu.x2apic();
    }
    let irr = |cpu: usize| machine.cpus[cpu].apic.read_msr(0x822).unwrap();
    let command = |value| machine.cpus[0].apic.write_msr(0x830, value).unwrap();
    command(0x105 << 32 | 0x41);
    assert_eq!([irr(0), irr(1), irr(2)], [0, 1 << 1, 0]);
    assert_eq!(machine.cpus[0].apic.read_msr(0x830), Ok(0x105 << 32 | 0x41));
    command(0x0010_0060 << 32 | u64::from(LOGICAL) | 0x42);
    assert_eq!([irr(0), irr(1), irr(2)], [0, 1 << 1 | 1 << 2, 1 << 2]);
    command(u64::from(u32::MAX) << 32 | 0x43);
    assert_eq!(
        [irr(0), irr(1), irr(2)],
        [1 << 3, 1 << 1 | 1 << 2 | 1 << 3, 1 << 2 | 1 << 3]
    );
    command(0xff << 32 | 0x44);
    assert_eq!(irr(0), 1 << 3, "0xff is an ID like others");
}

#[test]
fn the_self_ipi_register_interrupts_its_cpu() {
    let machine = Machine::enabled(2);
    let cpu = &machine.cpus[0];
    cpu.x2apic();
    let wakes = cpu.heard.wakes.load(SeqCst);
    cpu.apic.write_msr(0x83f, 0x41).unwrap();
    assert_eq!(cpu.heard.wakes.load(SeqCst), wakes, "it runs: nobody has to be woken");
    assert_eq!(cpu.take(), Some(0x41));
    assert!(cpu.apic.write_msr(0x83f, 0x141).is_err());
    assert!(cpu.apic.read_msr(0x83f).is_err());
}

#[test]
fn a_self_ipi_is_not_accepted_while_disabled_by_software() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    cpu.write(SVR, 0xff);
    cpu.write(ICR_LOW, 1 << 18 | 0x41);
    assert!(!cpu.has(IRR, 0x41));
    cpu.x2apic();
    cpu.apic.write_msr(0x83f, 0x41).unwrap();
    assert_eq!(cpu.take(), None);
}

#[test]
fn a_self_ipi_is_an_edge_also_of_a_vector_that_was_a_level() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let told = Arc::new(AtomicU32::new(0));
    let broadcasts = Arc::clone(&told);
    let _hook = machine.apics.on_eoi(move |_| _ = broadcasts.fetch_add(1, SeqCst));
    machine.send(0, LEVEL | 0x41);
    assert_eq!(cpu.take(), Some(0x41));
    cpu.eoi();
    cpu.write(ICR_LOW, 1 << 18 | 0x41);
    assert!(cpu.has(IRR, 0x41) && !cpu.has(TMR, 0x41));
    assert_eq!(cpu.take(), Some(0x41));
    cpu.eoi();
    assert_eq!(told.load(SeqCst), 1, "the level's alone");
}

#[test]
fn an_nmi_to_all_but_self_is_an_event_of_the_others() {
    let machine = Machine::enabled(2);
    machine.cpus[0].write(ICR_LOW, 3 << 18 | 0x400);
    assert_eq!(machine.cpus[0].apic.next_event(), None);
    assert_eq!(machine.cpus[1].apic.next_event(), Some(CpuEvent::Nmi));
    assert_eq!(machine.cpus[1].apic.next_event(), None);
}
