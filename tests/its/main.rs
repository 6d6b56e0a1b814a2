//! An ITS on its GICv3, from the device's message to the CPU that takes it. What each command and each table does by
//! itself is tested beside the model, any sequence of them beside QEMU's.

#![cfg(feature = "irqchip")]

#[path = "../support/its.rs"]
mod command;
mod guest;

use std::{sync::Arc, thread};

use command::*;
use devisor::{
    backends::irqchip::{
        CpuId, IntId,
        gicv3::{GicV3, GicV3Config, LpiSupport},
        its::{DeviceId, EventId, Its, ItsConfig, ItsError},
    },
    bus::BusDevice,
    interrupt::{Interrupt, MsiSink, MsiVector, MsiVectors, RequesterId, SinkVectors},
};
use guest::*;
use vm_memory::{Bytes, GuestAddress};

const LPI: u32 = 8192;

#[test]
fn a_vector_of_a_function_interrupts_the_cpu_that_its_event_is_mapped_to() {
    let guest = Guest::mapped();
    guest.run(&[mapti(DEVICE, 3, LPI + 5, 1)]);
    let vector = SinkVectors::new(Arc::new(guest.its.clone()))
        .vector(RequesterId(DEVICE as u16))
        .unwrap();
    vector.program(Some(guest.its.message(EventId(3)))).unwrap();
    for _ in 0..2 {
        vector.trigger().unwrap();
        assert_eq!(guest.irqs(), [false, true]);
        assert_eq!(guest.take(1), LPI + 5);
        assert_eq!(guest.irqs(), [false, false]);
    }
    assert_eq!(guest.its.dropped_messages(), 0);
}

#[test]
fn movi_and_movall_take_what_is_pending_to_another_cpu() {
    let guest = Guest::mapped();
    guest.run(&[mapti(DEVICE, 0, LPI, 0), mapti(DEVICE, 1, LPI + 1, 0)]);
    guest.message(0);
    guest.message(1);
    guest.run(&[movi(DEVICE, 0, 1)]);
    assert_eq!(guest.irqs(), [true, true]);
    guest.run(&[movall(0, 1)]);
    assert_eq!(guest.irqs(), [false, true]);
    assert_eq!([guest.take(1), guest.take(1)], [LPI, LPI + 1]);
    assert_eq!(guest.irqs(), [false, false]);
    guest.message(1);
    assert_eq!(guest.irqs(), [true, false], "its event is where it was");
}

#[test]
fn where_an_event_goes_is_what_the_guest_mapped_last() {
    let guest = Guest::mapped();
    let target = || guest.its.target(DeviceId(DEVICE), EventId(3));
    assert_eq!(target(), None);
    guest.run(&[mapti(DEVICE, 3, LPI + 5, 1)]);
    assert_eq!(target(), Some((CpuId(1), IntId(LPI + 5))));
    guest.run(&[movi(DEVICE, 3, 0)]);
    assert_eq!(target(), Some((CpuId(0), IntId(LPI + 5))));
    guest.run(&[discard(DEVICE, 3)]);
    assert_eq!(target(), None);
    assert_eq!(guest.its.dropped_messages(), 0, "asking sends nothing");
}

#[test]
fn what_is_moved_to_where_lpis_are_off_stays_pending() {
    let guest = Guest::mapped();
    guest.run(&[mapti(DEVICE, 0, LPI, 0), mapti(DEVICE, 1, LPI + 1, 0)]);
    guest.message(0);
    guest.message(1);
    guest.redistributors[1].write(0x00, &0_u32.to_le_bytes());
    guest.run(&[movi(DEVICE, 0, 1), movall(0, 1)]);
    guest.redistributors[1].write(0x00, &1_u32.to_le_bytes());
    assert_eq!(guest.irqs(), [true, false]);
    assert_eq!([guest.take(0), guest.take(0)], [LPI, LPI + 1]);
}

#[test]
fn clear_and_discard_lower_the_input() {
    let guest = Guest::mapped();
    for command in [clear(DEVICE, 0), discard(DEVICE, 0)] {
        guest.run(&[mapti(DEVICE, 0, LPI, 0), int(DEVICE, 0)]);
        assert_eq!(guest.irqs(), [true, false]);
        guest.run(&[command]);
        assert_eq!(guest.irqs(), [false, false]);
    }
    guest.message(0);
    assert_eq!((guest.irqs(), guest.its.dropped_messages()), ([false, false], 1));
}

#[test]
fn a_changed_configuration_counts_after_inv_or_invall() {
    let guest = Guest::mapped();
    guest.run(&[mapti(DEVICE, 0, LPI, 0)]);
    for command in [inv(DEVICE, 0), invall(0)] {
        guest.message(0);
        guest.configure(LPI, 0);
        guest.run(&[command]);
        assert_eq!(guest.irqs(), [false, false], "it is disabled");
        guest.configure(LPI, 0xa1);
        guest.run(&[command]);
        assert_eq!(guest.take(0), LPI, "it was pending all the while");
    }
}

#[test]
fn what_inv_made_known_at_one_cpu_holds_where_the_event_moves_to() {
    let guest = Guest::mapped();
    guest.run(&[mapti(DEVICE, 0, LPI, 0)]);
    for (configuration, to, told) in [(0xa0, 1, false), (0xa1, 0, true)] {
        guest.configure(LPI, configuration);
        guest.run(&[inv(DEVICE, 0), movi(DEVICE, 0, to)]);
        guest.message(0);
        assert_eq!(guest.irqs()[to as usize], told);
    }
}

#[test]
fn what_invall_made_known_at_one_cpu_holds_where_the_event_moves_to() {
    let guest = Guest::mapped();
    guest.run(&[mapti(DEVICE, 0, LPI, 0)]);
    guest.configure(LPI, 0xa0);
    guest.run(&[invall(0), movi(DEVICE, 0, 1)]);
    guest.message(0);
    assert_eq!(guest.irqs(), [false, false], "it is disabled");
}

#[test]
fn all_lpis_of_the_gic_and_no_others_can_be_mapped() {
    let guest = Guest::mapped();
    guest.run(&[mapti(DEVICE, 0, 0xffff, 0)]);
    assert_eq!(guest.try_run(&[mapti(DEVICE, 0, 0x1_0000, 0)]), 1);
    let typer = guest.read_distributor(0x004);
    assert_eq!((typer >> 19 & 0x1f) + 1, 16, "GICD_TYPER.IDbits");
    guest.message(0);
    assert_eq!(guest.take(0), 0xffff);
}

#[test]
fn commands_name_redistributors_by_gicr_typer() {
    let guest = Guest::mapped();
    for (cpu, face) in guest.redistributors.iter().enumerate() {
        let number = read(face, 0x008, 8) >> 8 & 0xffff;
        guest.run(&[mapc(7, number as u32), mapti(DEVICE, 0, LPI, 7), int(DEVICE, 0)]);
        assert_eq!(guest.take(cpu), LPI);
    }
    assert_eq!(guest.try_run(&[mapc(7, 2)]), 1);
}

#[test]
fn registers_and_tables_are_all_that_moves_to_another_its() {
    let guest = Guest::mapped();
    guest.run(&[mapti(DEVICE, 0, LPI, 0), mapti(DEVICE, 1, LPI + 1, 1)]);
    guest.message(0);
    let (gic, its) = (guest.gic.save(), guest.its.save());
    let new = Guest::over(Arc::clone(&guest.memory));
    new.gic.restore(&gic).unwrap();
    new.its.restore(&its).unwrap();
    assert_eq!(new.irqs(), [true, false]);
    assert_eq!(new.take(0), LPI);
    new.message(1);
    assert_eq!(new.take(1), LPI + 1);
    new.run(&[movi(DEVICE, 1, 0), int(DEVICE, 1)]);
    assert_eq!(new.take(0), LPI + 1);
    assert_eq!(new.its.refused_commands(), 0);
}

#[test]
fn a_gic_can_have_several_and_each_takes_its_own_messages() {
    let guest = Guest::mapped();
    guest.run(&[mapti(DEVICE, 0, LPI, 0)]);
    let config = ItsConfig {
        base: 0x0900_0000,
        ..ItsConfig::default()
    };
    let other = Its::new(config, &guest.gic, Arc::clone(&guest.memory)).unwrap();
    let message = guest.its.message(EventId(0));
    assert!(other.send(RequesterId(DEVICE as u16), message).is_err());
    other
        .send(RequesterId(DEVICE as u16), other.message(EventId(0)))
        .unwrap();
    assert_eq!((guest.irqs(), other.dropped_messages()), ([false, false], 1));
    guest.its.send(RequesterId(DEVICE as u16), message).unwrap();
    assert_eq!(guest.take(0), LPI);
}

#[test]
fn a_gic_without_lpis_of_an_its_is_refused() {
    let memory = Guest::mapped().memory;
    let gic = GicV3::new(GicV3Config::new(1), outputs(1).1).unwrap();
    let error = Its::new(ItsConfig::default(), &gic, Arc::clone(&memory)).unwrap_err();
    assert_eq!(error, ItsError::Lpis(LpiSupport::None));
    println!("{error}");
    let config = GicV3Config {
        lpis: LpiSupport::Direct,
        ..GicV3Config::new(1)
    };
    let gic = GicV3::with_lpis(config, outputs(1).1, Arc::clone(&memory)).unwrap();
    let error = Its::new(ItsConfig::default(), &gic, memory).unwrap_err();
    assert_eq!(error, ItsError::Lpis(LpiSupport::Direct));
}

/// Messages from two threads while a third moves their events: each LPI is pending once, where its event is.
#[test]
fn no_message_is_lost_or_doubled_while_events_move() {
    const EVENTS: u32 = 16;
    let guest = Guest::mapped();
    let map: Vec<_> = (0..EVENTS).map(|event| mapti(DEVICE, event, LPI + event, 0)).collect();
    guest.run(&map);
    for round in 0..100 {
        let to = (round + 1) % 2;
        thread::scope(|scope| {
            for half in 0..2 {
                let its = &guest.its;
                scope.spawn(move || {
                    for event in half * EVENTS / 2..(half + 1) * EVENTS / 2 {
                        its.signal(DeviceId(DEVICE), EventId(event));
                    }
                });
            }
            for event in 0..EVENTS {
                guest.run(&[movi(DEVICE, event, to as u16)]);
            }
        });
        assert!(!guest.irqs()[1 - to], "nothing stays behind");
        let taken: Vec<_> = (0..EVENTS).map(|_| guest.take(to)).collect();
        assert_eq!(taken, (LPI..LPI + EVENTS).collect::<Vec<_>>());
        assert_eq!(guest.irqs(), [false, false]);
    }
}

#[test]
fn what_lies_outside_of_memory_concerns_the_guest_alone() {
    let guest = Guest::mapped();
    guest.run(&[mapti(DEVICE, 0, LPI, 0)]);
    guest
        .memory
        .write_obj(u64::MAX.to_le(), GuestAddress(DEVICE_TABLE + u64::from(DEVICE) * 8))
        .unwrap();
    guest.message(0);
    assert_eq!((guest.irqs(), guest.its.dropped_messages()), ([false, false], 1));
}
