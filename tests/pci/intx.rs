//! INTx: causes, the wire, and what keeps them apart.

use crate::world::*;

fn interrupt_status(world: &World) -> bool {
    world.read(STATUS, 2) & 1 << 3 != 0
}

fn raise(world: &World, causes: u8) {
    world.endpoint.intx().update(|_| causes);
    world.endpoint.intx().settle().unwrap();
}

#[test]
fn interrupt_status_is_live_and_the_wire_hears_transitions() {
    let world = World::new(1);
    assert!(!interrupt_status(&world));
    for causes in [1, 3, 2, 0, 0] {
        raise(&world, causes);
        assert_eq!(interrupt_status(&world), causes != 0);
    }
    assert_eq!(world.heard(), [true, false]);
    let mut byte = [0];
    raise(&world, 0x80);
    world.endpoint.read_config(STATUS, &mut byte);
    assert_eq!(byte, [0x18], "in an access of any width");
}

#[test]
fn intx_disable_drops_the_wire_and_keeps_the_cause() {
    let world = World::new(1);
    raise(&world, 1);
    world.write(COMMAND, INTX_DISABLE);
    assert_eq!(world.heard(), [true, false]);
    assert!(interrupt_status(&world));
    world.write(COMMAND, 0);
    assert_eq!(world.heard(), [true]);
    world.write(COMMAND, INTX_DISABLE);
    raise(&world, 0);
    world.write(COMMAND, 0);
    assert_eq!(world.heard(), [false], "the cause is gone");
}

#[test]
fn with_msix_or_msi_enabled_the_wire_is_down() {
    for (control, on) in [(MSIX_CONTROL, ENABLE), (MSI + 2, 1)] {
        let world = World::new(1);
        raise(&world, 1);
        world.write(control, on);
        assert_eq!(world.heard(), [true, false]);
        world.write(control, 0);
        assert_eq!(world.heard(), [true], "the guest has switched back");
    }
}

#[test]
fn a_reset_lets_the_wire_go() {
    let world = World::new(1);
    raise(&world, 1);
    world.endpoint.reset();
    assert_eq!(world.heard(), [true, false]);
    assert!(!interrupt_status(&world));
}

#[test]
fn bus_master_does_not_keep_the_wire_down() {
    let world = World::new(1);
    raise(&world, 1);
    world.write(COMMAND, BUS_MASTER);
    world.write(COMMAND, 0);
    assert_eq!(world.heard(), [true]);
}
