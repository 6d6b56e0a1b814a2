//! MSI: one message, several vectors.

use std::sync::atomic::Ordering::SeqCst;

use devisor::{interrupt::MsiMessage, pci::Signalled};

use crate::world::*;

const CONTROL: u64 = MSI + 2;
const MASK: u64 = MSI + 0x10;
const PENDING: u64 = MSI + 0x14;
const ON: u16 = 1;

fn enabled(vectors_log2: u16) -> World {
    let world = World::new(1);
    world.write(COMMAND, BUS_MASTER);
    world.endpoint.write_config(MSI + 4, &0x1_fee0_0000u64.to_le_bytes());
    world.write(MSI + 12, 0x4147);
    world.write(CONTROL, ON | vectors_log2 << 4);
    world
}

fn sent(data: u32) -> MsiMessage {
    let address = 0x1_fee0_0000;
    MsiMessage { address, data }
}

#[test]
fn a_vector_changes_the_low_bits_of_the_data_that_the_guest_has_given_it() {
    let world = enabled(3);
    for vector in [0, 5, 7] {
        assert_eq!(world.msi().trigger(vector).unwrap(), Signalled::Sent);
    }
    assert_eq!(world.platform.sent(), [sent(0x4140), sent(0x4145), sent(0x4147)]);
}

#[test]
fn with_fewer_vectors_than_asked_for_they_are_shared() {
    let world = enabled(1);
    assert_eq!(
        world.platform.alive.load(SeqCst),
        2,
        "the others take nothing of the platform"
    );
    for vector in [2, 5] {
        world.msi().trigger(vector).unwrap();
    }
    assert_eq!(world.platform.sent(), [sent(0x4146), sent(0x4147)]);
    assert!(world.msi().trigger(8).is_err());
}

#[test]
fn more_vectors_than_the_function_has_are_not_given() {
    for reserved in [4, 5, 6, 7] {
        let world = enabled(reserved);
        assert_eq!(world.platform.alive.load(SeqCst), 8);
        world.msi().trigger(7).unwrap();
        assert_eq!(world.platform.sent(), [sent(0x4147)]);
    }
}

#[test]
fn a_masked_vector_is_pending_and_delivered_once_on_unmask() {
    let world = enabled(3);
    world.write32(MASK, 0b110);
    assert_eq!(world.platform.live.load(SeqCst), 6);
    for vector in [1, 1, 2] {
        assert_eq!(world.msi().trigger(vector).unwrap(), Signalled::Pending);
    }
    assert_eq!(world.read(PENDING, 4), 0b110);
    assert_eq!(world.read(PENDING, 1), 0b110);
    world.write32(PENDING, 0);
    assert_eq!(world.read(PENDING, 4), 0b110, "read-only");
    world.write32(MASK, 0b100);
    assert_eq!(world.platform.sent(), [sent(0x4141)]);
    assert_eq!(world.read(PENDING, 4), 0b100);
}

#[test]
fn nothing_is_sent_while_disabled_and_the_vectors_are_given_back() {
    let world = enabled(3);
    world.write32(MASK, 1);
    world.msi().trigger(0).unwrap();
    world.write(CONTROL, 0);
    assert_eq!(world.platform.alive.load(SeqCst), 0);
    assert_eq!(world.msi().trigger(0).unwrap(), Signalled::Disabled);
    assert_eq!(world.read(PENDING, 4), 0);
    world.platform.take();
    world.write32(MASK, 0);
    world.write(CONTROL, ON);
    assert_eq!(world.platform.sent(), []);
}

#[test]
fn the_backend_follows_a_rewritten_message() {
    let world = enabled(3);
    world.write(MSI + 12, 0x50);
    world.write32(MSI + 8, 0);
    world.msi().trigger(1).unwrap();
    let message = MsiMessage {
        address: 0xfee0_0000,
        data: 0x51,
    };
    assert_eq!(world.platform.sent(), [message]);
}
