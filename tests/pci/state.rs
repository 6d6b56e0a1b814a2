//! Save and restore.

use std::sync::atomic::Ordering::SeqCst;

use devisor::pci::*;

use crate::world::*;

#[test]
fn a_restored_table_has_live_routes_and_its_pending_bits() {
    let world = World::enabled(70);
    world.open(0);
    world.open(69);
    world.msix().trigger(68).unwrap();
    let state = world.endpoint.save();

    let other = World::new(70);
    other.endpoint.restore(&state).unwrap();
    assert_eq!(other.endpoint.save(), state);
    assert_eq!(other.platform.live.load(SeqCst), 2);
    assert_eq!(other.platform.sent(), [], "no edge is replayed");
    other.msix().trigger(69).unwrap();
    assert_eq!(other.platform.sent(), [message(69)]);
    other.open(68);
    assert_eq!(other.platform.sent(), [message(68)], "none is lost");
}

#[test]
fn a_signal_that_the_platform_had_refused_is_sent_by_the_restore() {
    let world = World::enabled(2);
    world.open(0);
    world.platform.refuse.store(true, SeqCst);
    assert!(world.msix().trigger(0).is_err());
    let other = World::new(2);
    other.endpoint.restore(&world.endpoint.save()).unwrap();
    assert_eq!(other.platform.sent(), [message(0)]);
}

#[test]
fn a_restore_over_another_state_leaves_nothing_of_it() {
    let busy = World::enabled(2);
    busy.open(0);
    busy.endpoint.intx().update(|_| 1);
    busy.msix().trigger(1).unwrap();
    let state = World::enabled(2).endpoint.save();
    busy.endpoint.restore(&state).unwrap();
    assert_eq!(busy.endpoint.save(), state);
    assert_eq!(busy.platform.live.load(SeqCst), 0);

    // Also where both have the same vector open, with other messages.
    let world = World::enabled(2);
    world.open(0);
    let state = world.endpoint.save();
    world.set_table(0x08, 4, 0x99);
    world.endpoint.restore(&state).unwrap();
    world.platform.take();
    world.msix().trigger(0).unwrap();
    assert_eq!(world.platform.sent(), [message(0)]);
}

#[test]
fn a_restore_of_a_function_out_of_reset_gives_every_vector_back() {
    let fresh = World::new(2).endpoint.save();
    let msix = World::enabled(2);
    msix.open(0);
    let msi = World::new(2);
    msi.write(COMMAND, BUS_MASTER);
    msi.write(MSI + 2, 1);
    msi.msi().trigger(0).unwrap();
    for world in [msix, msi] {
        assert_eq!(world.platform.alive.load(SeqCst), 1);
        world.endpoint.restore(&fresh).unwrap();
        assert_eq!(world.platform.alive.load(SeqCst), 0);
    }
}

#[test]
fn msi_and_intx_come_back_as_they_were() {
    let world = World::new(1);
    world.endpoint.intx().update(|_| 2);
    world.write(COMMAND, BUS_MASTER);
    let other = World::new(1);
    other.endpoint.restore(&world.endpoint.save()).unwrap();
    assert_eq!(other.heard(), [true]);
    assert_eq!(other.endpoint.intx().causes(), 2);

    world.write32(MSI + 0x10, 2);
    world.write(MSI + 2, 1 | 1 << 4);
    world.msi().trigger(1).unwrap();
    other.endpoint.restore(&world.endpoint.save()).unwrap();
    assert_eq!(other.heard(), [false], "MSI is enabled");
    assert_eq!(other.read(MSI + 0x14, 4), 2);
    other.platform.take();
    other.write32(MSI + 0x10, 0);
    assert_eq!(other.platform.sent().len(), 1);
}

#[test]
fn a_state_that_cannot_be_is_refused_and_changes_nothing() {
    let world = World::enabled(4);
    world.open(0);
    let good = world.endpoint.save();
    let refused = |change: &dyn Fn(&mut EndpointState)| {
        let mut state = good.clone();
        change(&mut state);
        let error = world.endpoint.restore(&state).unwrap_err();
        assert_eq!(world.endpoint.save(), good);
        error
    };
    let error = refused(&|state| state.config[0] ^= 1);
    assert!(matches!(error, StateError::ReadOnly { offset: 0, .. }));
    let error = refused(&|state| state.config[0x10] |= 0x10);
    assert!(matches!(error, StateError::ReadOnly { offset: 0x10, .. }));
    assert_eq!(refused(&|state| state.msix = None), StateError::MsiX { found: false });
    fn msix(state: &mut EndpointState) -> &mut MsiXState {
        state.msix.as_mut().unwrap()
    }
    let error = refused(&|state| _ = msix(state).entries.pop());
    assert!(matches!(error, StateError::MsiXLength { entries: 3, .. }));
    let error = refused(&|state| msix(state).pending.push(0));
    assert!(matches!(error, StateError::MsiXLength { words: 2, .. }));
    let error = refused(&|state| msix(state).entries[2].address = 2);
    assert_eq!(error, StateError::MsiXAddress { vector: 2 });
    let error = refused(&|state| msix(state).pending[0] = 1 << 4);
    assert_eq!(error, StateError::Pending { vector: 4 });
    let error = refused(&|state| state.msi_pending = 1);
    assert_eq!(error, StateError::Pending { vector: 0 }, "MSI is not enabled");

    let disabled = World::new(4);
    let mut state = disabled.endpoint.save();
    msix(&mut state).pending[0] = 1;
    assert_eq!(
        disabled.endpoint.restore(&state),
        Err(StateError::Pending { vector: 0 })
    );
}
