//! Whom a message reaches.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use devisor::interrupt::{Acceptance, MsiMessage, MsiSink, RequesterId};

use crate::guest::*;

const LOGICAL: u32 = 1 << 2;
const HINT: u32 = 1 << 3;
/// The destination mode, in a command.
const ICR_LOGICAL: u64 = 1 << 11;
const LOWEST: u32 = 1 << 8;

fn to(destination: u32) -> u32 {
    destination << 12
}

fn flat(cpus: u32) -> Machine {
    let machine = Machine::enabled(cpus);
    for (number, cpu) in machine.cpus.iter().enumerate() {
        cpu.write(LDR, 1 << (24 + number));
    }
    machine
}

#[test]
fn a_physical_destination_is_one_apic_and_ff_is_all() {
    let machine = Machine::enabled(3);
    machine.send(to(1), 0x41);
    assert_eq!(machine.pending(0x41), [1]);
    machine.send(to(0xff), 0x42);
    assert_eq!(machine.pending(0x42), [0, 1, 2]);
    machine.send(to(7), 0x43);
    assert_eq!(machine.pending(0x43), [] as [usize; 0], "nobody is there");
}

#[test]
fn ids_need_not_be_the_numbers_of_the_cpus() {
    let machine = Machine::with(Default::default(), &[4, 0, 0x300]);
    machine.cpus.iter().for_each(Cpu::enable);
    machine.send(to(4), 0x41);
    machine.send(to(0), 0x42);
    machine.send(to(2), 0x43);
    assert_eq!(machine.pending(0x41), [0]);
    assert_eq!(machine.pending(0x42), [1]);
    assert_eq!(machine.pending(0x43), [] as [usize; 0]);
}

#[test]
fn flat_destinations_are_a_mask() {
    let machine = flat(3);
    machine.send(to(0b101) | LOGICAL, 0x41);
    assert_eq!(machine.pending(0x41), [0, 2]);
    machine.send(to(0) | LOGICAL, 0x42);
    assert_eq!(machine.pending(0x42), [] as [usize; 0]);
}

#[test]
fn cluster_destinations_are_a_cluster_and_a_mask() {
    let machine = Machine::enabled(4);
    for (cpu, id) in machine.cpus.iter().zip([0x11, 0x12, 0x21, 0x14]) {
        cpu.write(DFR, 0x0fff_ffff);
        cpu.write(LDR, id << 24);
    }
    machine.send(to(0x13) | LOGICAL, 0x41);
    assert_eq!(machine.pending(0x41), [0, 1]);
    machine.send(to(0x2f) | LOGICAL, 0x42);
    assert_eq!(machine.pending(0x42), [2]);
    machine.send(to(0xff) | LOGICAL, 0x43);
    assert_eq!(machine.pending(0x43), [0, 1, 2, 3]);
}

#[test]
fn any_destination_format_is_safe_and_one_that_is_none_hears_broadcasts_alone() {
    for model in 0..16 {
        let machine = flat(2);
        for cpu in &machine.cpus {
            cpu.write(DFR, model << 28);
            assert_eq!(cpu.read(DFR), model << 28 | 0x0fff_ffff);
        }
        for destination in 0..=0xff {
            machine.send(to(destination) | LOGICAL, 0x41);
            if destination == 0xfe && !matches!(model, 0 | 0xf) {
                assert_eq!(machine.pending(0x41), [] as [usize; 0], "model {model}");
            }
        }
        assert_eq!(machine.pending(0x41), [0, 1], "model {model}");
    }
}

#[test]
fn lowest_priority_reaches_one_and_the_idlest_at_that() {
    let machine = flat(3);
    machine.cpus[0].write(TPR, 0x80);
    machine.cpus[1].write(TPR, 0x20);
    machine.cpus[2].write(TPR, 0x60);
    machine.send(to(0b111) | LOGICAL, LOWEST | 0x91);
    assert_eq!(machine.pending(0x91), [1]);
    // In service counts as well.
    assert_eq!(machine.cpus[1].take(), Some(0x91));
    machine.send(to(0b111) | LOGICAL | HINT, 0x92);
    assert_eq!(machine.pending(0x92), [2], "the redirection hint asks for the same");
    machine.cpus[2].write(SVR, 0xff);
    machine.send(to(0b111) | LOGICAL, LOWEST | 0x93);
    assert_eq!(machine.pending(0x93), [0], "who is disabled does not compete");
}

#[test]
fn lowest_priority_spreads_vectors_over_cpus_that_are_equally_idle() {
    let machine = flat(2);
    for vector in 0x40..0x50 {
        machine.send(to(0b11) | LOGICAL, LOWEST | vector);
    }
    let on = |cpu: usize| (0x40..0x50).filter(|v| machine.cpus[cpu].has(IRR, *v)).count();
    assert_eq!((on(0), on(1)), (8, 8));
}

/// ID 0 is named by bit 0 as well, as it would be in x2APIC mode.
#[test]
fn lowest_priority_counts_each_cpu_once() {
    let machine = Machine::with(Default::default(), &[0, 9]);
    for (cpu, ldr) in machine.cpus.iter().zip([1, 2]) {
        cpu.enable();
        cpu.write(LDR, ldr << 24);
    }
    for vector in 0x40..0x50 {
        machine.send(to(0b11) | LOGICAL, LOWEST | vector);
    }
    let on = |cpu: usize| (0x40..0x50).filter(|v| machine.cpus[cpu].has(IRR, *v)).count();
    assert_eq!((on(0), on(1)), (8, 8));
}

#[test]
fn lowest_priority_to_nobody_is_lost() {
    let machine = Machine::new(2);
    machine.send(to(0xff), LOWEST | 0x41);
    assert_eq!(machine.pending(0x41), [] as [usize; 0]);
}

#[test]
fn a_vector_below_16_is_refused_and_the_receiver_says_so() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    cpu.write(LVT_ERROR, 0x55);
    machine.send(0, 0x0f);
    assert_eq!(cpu.read(IRR), 0);
    assert_eq!(cpu.read(ESR), 0, "not before it is written");
    cpu.write(ESR, 0);
    assert_eq!(cpu.read(ESR), 1 << 6);
    assert_eq!(cpu.take(), Some(0x55), "the error interrupt");
    cpu.eoi();
    cpu.write(ESR, 0);
    assert_eq!(cpu.read(ESR), 0);
}

#[test]
fn an_error_interrupts_once_until_the_status_is_written() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    cpu.write(LVT_ERROR, 0x55);
    let error = || cpu.write(0x3f0, 0);
    error();
    assert_eq!(cpu.take(), Some(0x55));
    cpu.eoi();
    error();
    assert_eq!(cpu.take(), None);
    cpu.write(ESR, 0);
    assert_eq!(cpu.read(ESR), 1 << 7);
    error();
    assert_eq!(cpu.take(), Some(0x55));
}

#[test]
fn an_error_vector_below_16_is_an_error_and_no_endless_one() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    cpu.write(LVT_ERROR, 0x05);
    cpu.write(0x3f0, 0);
    cpu.write(ESR, 0);
    assert_eq!(cpu.read(ESR), 1 << 7 | 1 << 6);
}

#[test]
fn a_reserved_delivery_mode_delivers_nothing() {
    let machine = Machine::enabled(1);
    machine.send(to(0xff), 0x300 | 0x41);
    assert!(!machine.cpus[0].apic.needs_attention());
}

#[test]
fn a_message_outside_of_the_range_is_refused_and_says_where_the_range_is() {
    let machine = Machine::enabled(1);
    for address in [0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, 0, u64::MAX] {
        let error = machine.apics.send(RequesterId(0), MsiMessage { address, data: 0x41 });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("0xfee00000 to 0xfeefffff"), "{error}");
    }
}

#[test]
fn a_disabled_apic_hears_nothing() {
    let machine = Machine::enabled(2);
    let cpu = &machine.cpus[1];
    cpu.apic.write_msr(APIC_BASE, 0xfee0_0000).unwrap();
    for mode in 0..8 {
        machine.send(to(1), mode << 8 | 0x41);
        machine.send(to(0xff), mode << 8 | 0x41);
    }
    cpu.apic.write_msr(APIC_BASE, 0xfee0_0800).unwrap();
    assert!(!cpu.apic.needs_attention());
    assert_eq!(machine.pending(0x41), [0]);
}

#[test]
fn x2apic_is_reached_by_its_id_and_by_the_logical_id_that_follows_from_it() {
    let machine = Machine::with(Default::default(), &[0, 1, 0x12]);
    for cpu in &machine.cpus {
        cpu.enable();
        cpu.x2apic();
    }
    let irr = |cpu: usize| machine.cpus[cpu].apic.read_msr(0x822).unwrap();
    assert_eq!(machine.cpus[2].apic.read_msr(0x80d), Ok(1 << 16 | 1 << 2));
    machine.send(to(0x12), 0x41);
    assert_eq!([irr(0), irr(1), irr(2)], [0, 0, 1 << 1]);
    machine.send(to(0b11) | LOGICAL, 0x42);
    assert_eq!([irr(0), irr(1), irr(2)], [1 << 2, 1 << 2, 1 << 1]);
}

#[test]
fn a_logical_destination_of_32_bits_is_none_of_an_apic_with_8() {
    let machine = Machine::enabled(3);
    for cpu in &machine.cpus[1..] {
        cpu.write(LDR, 0x11 << 24);
    }
    machine.cpus[2].write(DFR, 0);
    machine.cpus[0].x2apic();
    let command = |destination: u64, vector| {
        let value = destination << 32 | ICR_LOGICAL | vector;
        machine.cpus[0].apic.write_msr(0x830, value).unwrap();
    };
    command(0x0001_0011, 0x41);
    assert_eq!([machine.cpus[1].take(), machine.cpus[2].take()], [None, None]);
    command(0x11, 0x42);
    assert_eq!(
        [machine.cpus[1].take(), machine.cpus[2].take()],
        [Some(0x42), Some(0x42)]
    );
}

#[test]
fn no_cluster_stands_for_all_of_them() {
    let machine = Machine::enabled(2);
    for (cpu, ldr) in machine.cpus.iter().zip([0x11, 0x21]) {
        cpu.write(DFR, 0);
        cpu.write(LDR, ldr << 24);
    }
    machine.send(to(0xf1) | LOGICAL, 0x41);
    assert_eq!(machine.pending(0x41), [] as [usize; 0]);
    machine.send(to(0xff) | LOGICAL, 0x42);
    assert_eq!(machine.pending(0x42), [0, 1], "a broadcast does");
}

#[test]
fn a_broadcast_reaches_all_also_after_one_whose_wake_up_was_refused() {
    let machine = Machine::enabled(3);
    machine.cpus[0].heard.refuse.store(true, SeqCst);
    let message = MsiMessage {
        address: 0xfeef_f000,
        data: 0x41,
    };
    machine.apics.send(RequesterId(0), message).unwrap_err();
    assert_eq!(machine.pending(0x41), [0, 1, 2]);
}

#[test]
fn all_bits_of_an_x2apic_id_count_in_the_id_and_in_the_logical_id() {
    // The same bit in three clusters.
    let ids = [0x0d, 0x10d, 0x1_239d];
    let machine = Machine::with(Default::default(), &ids);
    let logical = [0, 0x10, 0x1239].map(|cluster| cluster << 16 | 1 << 13);
    for ((cpu, id), logical) in machine.cpus.iter().zip(ids).zip(logical) {
        cpu.enable();
        cpu.x2apic();
        assert_eq!(cpu.apic.read_msr(0x802), Ok(id.into()));
        assert_eq!(cpu.apic.read_msr(0x80d), Ok(logical));
    }
    let irr = |cpu: usize| machine.cpus[cpu].apic.read_msr(0x822).unwrap();
    for (bit, logical) in logical.into_iter().enumerate() {
        let command = logical << 32 | ICR_LOGICAL | (0x40 + bit as u64);
        machine.cpus[0].apic.write_msr(0x830, command).unwrap();
    }
    assert_eq!([irr(0), irr(1), irr(2)], [1 << 0, 1 << 1, 1 << 2]);
}

/// More CPUs than a word has bits, in all modes, and their IDs are not their numbers.
#[test]
fn logical_destinations_are_found_among_many_cpus_of_any_mode() {
    let id = |cpu: u32| (cpu + 190) % 200;
    let machine = Machine::with(Default::default(), &(0..200).map(id).collect::<Vec<_>>());
    for (cpu, number) in machine.cpus.iter().zip(0..) {
        cpu.enable();
        match number {
            ..64 => cpu.write(LDR, 1 << (24 + number % 8)),
            64..124 => {
                cpu.write(DFR, 0x0fff_ffff);
                cpu.write(LDR, (number / 4 - 16) << 28 | 1 << (24 + number % 4));
            }
            _ => cpu.x2apic(),
        }
    }
    // Each to a vector of its own.
    let destinations = 0..0xf0_u32;
    for destination in destinations.clone() {
        machine.send(to(destination) | LOGICAL, 0x10 + destination);
    }
    for (cpu, number) in machine.cpus.iter().zip(0..) {
        let irr = cpu.apic.save().irr;
        for destination in destinations.clone() {
            let is_addressed = match number {
                ..64 => destination >> (number % 8) & 1 != 0,
                64..124 => destination >> 4 == number / 4 - 16 && destination >> (number % 4) & 1 != 0,
                _ => id(number) < 16 && destination >> id(number) & 1 != 0,
            };
            let vector = 0x10 + destination;
            let reached = irr[vector as usize / 64] >> (vector % 64) & 1 != 0;
            assert_eq!(reached, is_addressed, "CPU {number}, destination {destination:#x}");
        }
    }
}

#[test]
fn logical_destinations_of_x2apic_mode_are_ids_of_which_20_bits_count() {
    let ids = [0x10, 0x1f, 0x10_0010, 0x20, 0x7_0011];
    let machine = Machine::with(Default::default(), &ids);
    machine.cpus.iter().for_each(Cpu::enable);
    machine.cpus.iter().for_each(Cpu::x2apic);
    let from = &machine.cpus[3].apic;
    for (destination, vector, expected) in [
        (0x0001_8001_u64, 0x41, &[0, 1, 2][..]),
        (0x0001_0002, 0x42, &[]),
        (0x7001_0003, 0x43, &[4]),
        (0x0002_ffff, 0x44, &[3]),
        (0xffff_ffff, 0x45, &[0, 1, 2, 3, 4]),
    ] {
        from.write_msr(0x830, destination << 32 | ICR_LOGICAL | vector).unwrap();
        let has = |cpu: &usize| machine.cpus[*cpu].apic.save().irr[1] >> (vector - 0x40) & 1 != 0;
        let reached: Vec<_> = (0..ids.len()).filter(has).collect();
        assert_eq!(reached, expected, "{destination:#x}");
    }
}

/// A logical ID that the CPU has no more does not reach it, and it is reached under each new one.
#[test]
fn a_cpu_that_changes_its_logical_id_is_reached_by_the_one_that_it_has() {
    let machine = Machine::enabled(2);
    let cpu = &machine.cpus[1];
    let reaches = |destination| {
        machine.send(to(destination) | LOGICAL, 0x41);
        let reached = cpu.take().is_some();
        cpu.eoi();
        reached
    };
    for (dfr, ldr, hit, miss) in [
        (0xf, 0x01, 0x11, 0x02),
        (0xf, 0x02, 0x02, 0x01),
        (0x0, 0x21, 0x21, 0x11),
        (0xf, 0x00, 0xff, 0x21),
        (0xf, 0x21, 0x01, 0x02),
        (0x0, 0x12, 0x13, 0x23),
    ] {
        cpu.write(DFR, dfr << 28);
        cpu.write(LDR, ldr << 24);
        assert!(reaches(hit) && !reaches(miss), "{dfr:x} {ldr:#x}");
    }
    // INIT takes it away.
    machine.send(to(1), 0x500);
    while cpu.apic.next_event().is_some() {}
    cpu.run();
    cpu.enable();
    assert!(!reaches(0x13) && !reaches(0x12));
    cpu.write(LDR, 0x02 << 24);
    assert!(reaches(0x12));
}

#[test]
fn messages_and_ipis_go_by_the_id_that_the_guest_has_written() {
    let machine = Machine::enabled(3);
    let [first, second, third] = &machine.cpus[..] else {
        panic!()
    };
    second.write(ID, 0x5a00_0000);
    assert_eq!(second.read(ID), 0x5a00_0000);
    machine.send(1 << 12, 0x41);
    assert_eq!(machine.pending(0x41), [0; 0], "the old ID is nobody's");
    machine.send(0x5a << 12, 0x42);
    assert_eq!(machine.pending(0x42), [1]);
    first.write(ICR_HIGH, 0x5a << 24);
    first.write(ICR_LOW, 0x43);
    assert_eq!(machine.pending(0x43), [1]);
    machine.send(0xff << 12, 0x44);
    assert_eq!(machine.pending(0x44), [0, 1, 2]);

    // Two with the same ID: both are it.
    third.write(ID, 0x5a00_0000);
    machine.send(0x5a << 12, 0x45);
    assert_eq!(machine.pending(0x45), [1, 2]);
    // The ID of another one that has kept it.
    second.write(ID, 0);
    machine.send(0, 0x46);
    assert_eq!(machine.pending(0x46), [0, 1]);
    second.write(ID, 0x0100_0000);
    machine.send(1 << 12, 0x47);
    assert_eq!(machine.pending(0x47), [1], "its own again");
}

#[test]
fn an_id_that_was_written_stays_over_init_and_a_move_and_ends_with_the_mode() {
    let machine = Machine::enabled(2);
    let cpu = &machine.cpus[1];
    let is = |machine: &Machine, id: u32, vector: u32| {
        machine.send(id << 12, vector);
        machine.pending(vector as u8) == [1]
    };
    cpu.write(ID, 0x7000_0000);
    machine.send(0x70 << 12, 0x500);
    assert!(cpu.apic.next_event().is_some());
    cpu.run();
    cpu.enable();
    assert!(cpu.read(ID) == 0x7000_0000 && is(&machine, 0x70, 0x41));
    let state = cpu.apic.save();
    assert_eq!(state.xapic_id, 0x70);
    let other = Machine::enabled(2);
    other.cpus[1].apic.restore(&state).unwrap();
    assert!(is(&other, 0x70, 0x42) && !is(&other, 1, 0x43));

    // x2APIC mode has the ID of CPUID, and no other.
    cpu.x2apic();
    assert_eq!(cpu.apic.read_msr(0x802), Ok(1));
    assert!(cpu.apic.write_msr(0x802, 5).is_err());
    let x2apic_irr = || cpu.apic.read_msr(0x822).unwrap();
    machine.send(1 << 12, 0x44);
    assert_eq!(x2apic_irr() & 1 << 4, 1 << 4);
    machine.send(0x70 << 12, 0x45);
    assert_eq!(x2apic_irr() & 1 << 5, 0);
    cpu.apic.write_msr(APIC_BASE, 0xfee0_0000).unwrap();
    cpu.apic.write_msr(APIC_BASE, 0xfee0_0800).unwrap();
    assert_eq!(cpu.read(ID), 0x0100_0000);
    cpu.write(ID, 0x7000_0000);
    cpu.apic.reset();
    assert_eq!(cpu.read(ID), 0x0100_0000);
    cpu.enable();
    assert!(is(&machine, 1, 0x46));
}

/// What is lost for a sender of edges is still up for one of levels.
#[test]
fn who_offers_a_message_hears_whether_anyone_has_accepted_it() {
    let machine = Machine::enabled(3);
    let [first, second, _] = &machine.cpus[..] else {
        panic!()
    };
    for (cpu, apic) in machine.cpus.iter().enumerate() {
        apic.write(LDR, 1 << (24 + cpu));
    }
    let offer = |destination: u32, low: u32, data: u32| {
        let address = u64::from(0xfee0_0000 | destination << 12 | low);
        let message = MsiMessage { address, data };
        machine
            .apics
            .send(RequesterId(0), message)
            .expect("no error either way");
        machine.apics.offer(RequesterId(0), message).unwrap() == Acceptance::Accepted
    };
    const LEVEL: u32 = 0xc000;
    let (logical, lowest) = (1 << 2, 1 << 3);
    assert!(offer(1, 0, LEVEL | 0x41) && offer(0xff, 0, LEVEL | 0x42) && offer(3, logical, 0x43));
    assert!(offer(3, logical | lowest, LEVEL | 0x44));
    assert!(!offer(9, 0, LEVEL | 0x51) && !offer(0x10, logical, LEVEL | 0x52) && !offer(0x10, logical | lowest, 0x53));
    assert!(
        !offer(1, 0, LEVEL | 0x0f),
        "an illegal vector is an error, and not accepted"
    );
    assert!(!offer(1, 0, 0x341), "a delivery mode that there is not");

    second.write(SVR, 0xff);
    assert!(!offer(1, 0, LEVEL | 0x61) && !offer(2, logical, LEVEL | 0x62) && !offer(2, logical | lowest, 0x63));
    assert!(offer(3, logical, LEVEL | 0x64), "the other one takes it");
    assert!(offer(3, logical | lowest, LEVEL | 0x65));
    assert!(offer(1, 0, 0x400) && offer(1, 0, 0x500), "NMI and INIT are not asked");
    assert!(!offer(1, 0, 0x700), "for a vector of the 8259");
    first.apic.write_msr(APIC_BASE, 0xfee0_0100).unwrap();
    assert!(!offer(0, 0, LEVEL | 0x71) && !offer(0, 0, 0x400));
    second.write(SVR, ENABLE);
    let late = [0x61, 0x62, 0x63, 0x64, 0x65].map(|vector| second.has(IRR, vector));
    assert_eq!(late, [false; 5], "none comes late");
}

#[test]
fn a_hook_hears_of_a_cpu_that_accepts_what_it_did_not_accept_before() {
    let machine = Machine::new(2);
    let cpu = &machine.cpus[1];
    let heard = Arc::new(AtomicU64::new(0));
    let hook = machine.apics.on_accepting({
        let heard = Arc::clone(&heard);
        move || _ = heard.fetch_add(1, SeqCst)
    });
    let calls = |change: &dyn Fn()| {
        let before = heard.load(SeqCst);
        change();
        heard.load(SeqCst) - before
    };
    assert_eq!(calls(&|| cpu.write(LDR, 1 << 24)), 0, "it is disabled");
    assert_eq!(calls(&|| cpu.enable()), 1);
    assert_eq!(calls(&|| cpu.enable()), 0);
    assert_eq!(calls(&|| cpu.write(LDR, 2 << 24)), 1);
    assert_eq!(calls(&|| cpu.write(ID, 9 << 24)), 1);
    assert_eq!(calls(&|| cpu.write(TPR, 0x80)), 0, "it takes it later");
    assert_eq!(calls(&|| cpu.write(SVR, 0xff)), 0);
    let state = Machine::enabled(2).cpus[1].apic.save();
    assert_eq!(calls(&|| cpu.apic.restore(&state).unwrap()), 1);
    assert_eq!(calls(&|| cpu.x2apic()), 1);
    drop(hook);
    cpu.apic.reset();
    assert_eq!(calls(&|| cpu.enable()), 0);
}
