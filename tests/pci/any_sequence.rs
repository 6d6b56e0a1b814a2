//! Whatever a guest and a device do, in any order and width, the function is in a state that the specification allows.

use std::sync::atomic::Ordering::SeqCst;

use devisor::pci::*;
use proptest::prelude::*;

use crate::world::*;

const VECTORS: u16 = 66;

#[derive(Clone, Debug)]
enum Step {
    Config(u64, Vec<u8>),
    /// A write of two bytes to a register that does something.
    Control(u64, u16),
    Table(u64, Vec<u8>),
    Entry(u16, bool),
    Trigger(u16),
    TriggerMsi(u16),
    Export(u16),
    /// The index of a vector that the platform has given.
    Outside(usize),
    Causes(u8),
    Refuse(bool),
    Reset,
    SaveAndRestore,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..=9);
    let control = prop::sample::select(vec![COMMAND, MSIX_CONTROL, MSI + 2, MSI + 0x10, 0x10, 0x1c]);
    prop_oneof![
        2 => (0..0x108u64, bytes()).prop_map(|(at, data)| Step::Config(at, data)),
        6 => (control, any::<u16>()).prop_map(|(at, value)| Step::Control(at, value)),
        2 => (0..0x2008u64, bytes()).prop_map(|(at, data)| Step::Table(at, data)),
        6 => (0..VECTORS, any::<bool>()).prop_map(|(vector, masked)| Step::Entry(vector, masked)),
        6 => (0..VECTORS + 2).prop_map(Step::Trigger),
        2 => (0..9u16).prop_map(Step::TriggerMsi),
        3 => (0..VECTORS + 2).prop_map(Step::Export),
        3 => (0..16usize).prop_map(Step::Outside),
        2 => any::<u8>().prop_map(Step::Causes),
        1 => any::<bool>().prop_map(Step::Refuse),
        1 => Just(Step::Reset),
        1 => Just(Step::SaveAndRestore),
    ]
}

fn apply(world: &World, step: &Step) {
    match step {
        Step::Config(at, data) => _ = world.endpoint.write_config(*at, data),
        Step::Control(at, value) => _ = world.write(*at, *value),
        Step::Table(at, data) => _ = world.endpoint.write_bar(MSIX_BAR, *at, data),
        Step::Entry(vector, masked) => world.mask(*vector, *masked),
        Step::Trigger(vector) => {
            let before = world.platform.log.lock().unwrap().len();
            let signalled = world.msix().trigger(*vector);
            let log = world.platform.log.lock().unwrap();
            let sent = log[before..].iter().any(|event| matches!(event, Event::Sent(_)));
            assert_eq!(sent, matches!(signalled, Ok(Signalled::Sent)), "{signalled:?}");
        }
        Step::TriggerMsi(vector) => _ = world.msi().trigger(*vector),
        #[cfg(unix)]
        Step::Export(vector) => _ = world.msix().export(*vector),
        #[cfg(not(unix))]
        Step::Export(_) => {}
        Step::Outside(index) => world.platform.signal_outside(*index),
        Step::Causes(causes) => {
            world.endpoint.intx().update(|_| *causes);
            world.endpoint.intx().settle().unwrap();
        }
        Step::Refuse(refuse) => world.platform.refuse.store(*refuse, SeqCst),
        Step::Reset => world.endpoint.reset(),
        Step::SaveAndRestore => {
            let state = world.endpoint.save();
            world.endpoint.restore(&state).unwrap();
        }
    }
}

fn check(world: &World, fresh: &[u8], wire: &mut bool) {
    let mut space = [0; 0x100];
    world.endpoint.read_config(0, &mut space);
    let u16_at = |at: u64| u16::from_le_bytes([space[at as usize], space[at as usize + 1]]);
    // Identity, header type and the capabilities' links do not change.
    for at in [
        0x00,
        0x02,
        0x08,
        0x0a,
        0x0e,
        0x2c,
        0x2e,
        0x34,
        MSIX,
        MSIX + 4,
        MSIX + 8,
        MSI,
        VENDOR_SPECIFIC,
    ] {
        assert_eq!(space[at as usize..][..2], fresh[at as usize..][..2], "at {at:#x}");
    }
    let (command, status) = (u16_at(COMMAND), u16_at(STATUS));
    let causes = world.endpoint.intx().causes();
    assert_eq!(status, 0x10 | u16::from(causes != 0) << 3);

    // A BAR decodes at a multiple of its size, if its kind is enabled.
    for (bar, size, enable) in [
        (0, 0x4000, MEMORY_SPACE),
        (2, 0x20, IO_SPACE),
        (3, 0x2000, MEMORY_SPACE),
    ] {
        let decoded = world.endpoint.decoded(BarIndex::ALL[bar]);
        assert_eq!(decoded.is_some(), command & enable != 0);
        assert_eq!(decoded.unwrap_or(0) % size, 0);
    }

    // The wire follows its causes, and messages keep it down.
    let (msix, msi) = (u16_at(MSIX_CONTROL) & ENABLE != 0, u16_at(MSI + 2) & 1 != 0);
    if let Some(last) = world.heard().last() {
        *wire = *last;
    }
    assert_eq!(*wire, causes != 0 && !msix && !msi && command & INTX_DISABLE == 0);

    // The platform has a message for each vector that nothing masks, and for no other; a pending bit is one of a vector that
    // exists while MSI-X is enabled, and of an open one only after a refusal.
    let masked = command & BUS_MASTER == 0 || u16_at(MSIX_CONTROL) & FUNCTION_MASK != 0;
    let open = |vector: u64| msix && !masked && world.table(vector * 16 + 12, 4) == 0;
    let refused = world.msix().failures() + world.msi().failures() != 0;
    let pending = |vector: u64| world.table(PBA + vector / 8, 1) >> (vector % 8) & 1 != 0;
    for vector in 0..VECTORS.into() {
        assert!(!pending(vector) || msix && (!open(vector) || refused));
        assert_eq!(pending(vector), world.msix().is_pending(vector as u16));
    }
    assert_eq!(world.table(PBA + 8, 8) >> 2, 0, "bits without a vector");
    if !refused {
        let given = 1u64 << (u16_at(MSI + 2) >> 4 & 7).min(3);
        let unmasked = |vector: &u64| space[MSI as usize + 0x10] >> vector & 1 == 0;
        let of_msi = if msi && command & BUS_MASTER != 0 {
            (0..given).filter(unmasked).count()
        } else {
            0
        };
        let of_msix = (0..VECTORS.into()).filter(|&vector| open(vector)).count();
        assert_eq!(world.platform.live.load(SeqCst), of_msix + of_msi);
    }
    if !msix && !msi && !world.platform.refuse.load(SeqCst) {
        assert_eq!(world.platform.alive.load(SeqCst), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_accesses_leaves_a_state_that_the_specification_allows(steps in prop::collection::vec(step(), 1..60)) {
        let world = World::new(VECTORS);
        let mut fresh = [0; 0x100];
        world.endpoint.read_config(0, &mut fresh);
        let mut wire = false;
        for step in &steps {
            apply(&world, step);
            check(&world, &fresh, &mut wire);
        }
    }
}
