//! Messages: who sends them, what is remembered of them, and what makes it forget.

use super::{Call::*, command::*, *};
use crate::interrupt::{MsiMessage, MsiSink, RequesterId};

#[test]
fn a_message_becomes_the_lpi_that_its_sender_and_its_data_are_mapped_to() {
    let world = World::mapped();
    world.calls(&[mapti(1, 2, 8200, 3), mapti(2, 1, 8300, 0)]);
    for _ in 0..2 {
        assert_eq!(world.message(1, 2), [SetPending(3, 8200, true)]);
        assert_eq!(world.message(2, 1), [SetPending(0, 8300, true)]);
        assert_eq!(world.message(1, 1), []);
    }
    assert_eq!(world.its.dropped_messages(), 2);
}

#[test]
fn a_message_to_another_address_is_refused() {
    let world = World::mapped();
    assert_eq!(world.its.doorbell(), 0x0809_0040);
    for address in [0, 0x0808_0040, 0x0809_0044, 0x0809_0040 | 1 << 63] {
        let message = MsiMessage { address, data: 0 };
        let error = world.its.send(RequesterId(0), message).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrNotAvailable);
    }
    assert_eq!(world.its.dropped_messages(), 0);
}

#[test]
fn a_store_of_a_cpu_has_no_device_id_and_does_nothing() {
    let world = World::mapped();
    world.calls(&[mapti(0, 0, 8192, 0)]);
    let frame = world.its.translation_frame();
    frame.write(0x40, &0_u32.to_le_bytes());
    let mut data = [0xff; 4];
    frame.read(0x40, &mut data);
    assert_eq!((data, world.lpis.take()), ([0; 4], Vec::new()));
}

#[test]
fn another_root_complex_has_other_device_ids() {
    let config = ItsConfig {
        device_bits: 20,
        ..CONFIG
    };
    let world = World::with(config, INDIRECT | DEVICE_TABLE, COLLECTION_TABLE);
    world.poke(DEVICE_TABLE + 0x1_0000 / 512 * 8, VALID | LEVEL_2);
    world.calls(&[mapc(0, 0), mapd(0x1_0003, ITTS, 5), mapti(0x1_0003, 1, 8192, 0)]);
    let second = world.its.root_complex(DeviceId(0x1_0000));
    let message = world.its.message(EventId(1));
    second.send(RequesterId(3), message).unwrap();
    assert_eq!(world.lpis.take(), [SetPending(0, 8192, true)]);
    assert_eq!(world.message(3, 1), []);
    // Beyond all IDs.
    let last = world.its.root_complex(DeviceId(u32::MAX));
    last.send(RequesterId(3), message).unwrap();
    last.send(RequesterId(0), message).unwrap();
    assert_eq!(world.lpis.take(), []);
    assert_eq!(world.its.dropped_messages(), 3);
    world.its.signal(DeviceId(0x1_0003), EventId(1));
    assert_eq!(world.lpis.take(), [SetPending(0, 8192, true)]);
}

#[test]
fn every_command_that_changes_the_way_changes_it_for_a_message_that_was_remembered() {
    let remembered = || {
        let world = World::mapped();
        world.calls(&[mapti(1, 2, 8200, 3), mapc(9, 1)]);
        assert_eq!(world.message(1, 2), [SetPending(3, 8200, true)]);
        world
    };
    for (command, then) in [
        (mapti(1, 2, 8300, 3), vec![SetPending(3, 8300, true)]),
        (movi(1, 2, 0), vec![SetPending(0, 8200, true)]),
        (discard(1, 2), vec![]),
        (mapc(3, 2), vec![SetPending(2, 8200, true)]),
        (unmapc(3), vec![]),
        (mapd(1, itt(9), 5), vec![]),
        (mapd(1, itt(1), 1), vec![]),
        (unmapd(1), vec![]),
        (int(1, 2), vec![SetPending(3, 8200, true)]),
    ] {
        let world = remembered();
        world.calls(&[command]);
        assert_eq!(world.message(1, 2), then, "{command:x?}");
    }
    let world = remembered();
    world.write(CTLR, 0);
    assert_eq!(world.message(1, 2), []);
    world.write(BASER, VALID | LEVEL_2);
    world.write(CTLR, 1);
    assert_eq!(world.message(1, 2), [], "the table is another");
    let world = remembered();
    world.its.reset();
    assert_eq!(world.message(1, 2), []);
}

#[test]
fn more_events_than_can_be_remembered_still_go_where_they_are_mapped() {
    let world = World::with(
        ItsConfig {
            event_bits: 13,
            ..CONFIG
        },
        DEVICE_TABLE,
        COLLECTION_TABLE,
    );
    world.calls(&(0..4).map(|cpu| mapc(cpu as u16, cpu)).collect::<Vec<_>>());
    world.calls(&[mapd(0, ITTS, 13), mapd(8, ITTS + 0x1_0000, 13)]);
    let target = |device: u32, event: u32| ((event ^ device >> 3) % 4, 8192 + (event + device) % 8192);
    for event in 0..8192 {
        for device in [0, 8] {
            let (cpu, lpi) = target(device, event);
            world.calls(&[mapti(device, event, lpi, cpu as u16)]);
        }
    }
    for event in (0..8192).chain((0..8192).rev()) {
        for device in [0, 8] {
            let (cpu, lpi) = target(device, event);
            assert_eq!(world.message(device as u16, event), [SetPending(cpu, lpi, true)]);
        }
    }
}

/// Messages from two threads while a third moves their events between two CPUs: at the end each LPI is pending at one.
#[test]
fn nothing_is_lost_while_events_move() {
    const EVENTS: u32 = 8;
    let world = World::mapped();
    for event in 0..EVENTS {
        world.calls(&[mapti(0, event, 8192 + event, 0)]);
    }
    for round in 0..200 {
        lock(&world.lpis.pending).clear();
        std::thread::scope(|scope| {
            let senders = [0, EVENTS / 2].map(|first| {
                let its = &world.its;
                scope.spawn(move || {
                    for event in first..first + EVENTS / 2 {
                        its.signal(DeviceId(0), EventId(event));
                    }
                })
            });
            let cpu = round % 2 + 1;
            for event in 0..EVENTS {
                world.run(&[movi(0, event, cpu)]);
            }
            for sender in senders {
                sender.join().unwrap();
            }
            let cpu = u32::from(cpu);
            let all: BTreeSet<_> = (0..EVENTS).map(|event| (cpu, 8192 + event)).collect();
            assert_eq!(*lock(&world.lpis.pending), all);
        });
    }
}
