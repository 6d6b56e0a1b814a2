//! Save and restore.

use std::sync::atomic::Ordering::SeqCst;

use devisor::{
    pci::StateError,
    virtio::transport::{
        RestoreError, SavedDevice, VirtioTransport,
        pci::{VirtioPciOptions, VirtioPciState},
    },
};

use crate::{driver::*, platform::Event, rest, ring::writable};

/// A device in which everything differs from reset, with an event pending on a masked vector and a kick not seen.
fn busy() -> (Driver, SavedDevice) {
    let driver = Driver::with_msix();
    let [mut ring, mut other] = driver.start();
    driver.mask(1, true);
    driver.request(0, &mut ring);
    driver.change();
    driver.pci.pause();
    other.request(&[writable(0x8000, 1)]);
    driver.kick(1);
    let state = driver.pci.save().unwrap();
    (driver, state)
}

/// Another machine with the same memory, which is not running yet.
fn other(driver: &Driver) -> Driver {
    let other = Driver::cold();
    let mut contents = vec![0; 1 << 20];
    use vm_memory::{Bytes, GuestAddress};
    driver.memory.read_slice(&mut contents, GuestAddress(0)).unwrap();
    other.memory.write_slice(&contents, GuestAddress(0)).unwrap();
    other
}

#[test]
fn a_device_goes_on_where_it_was_saved() {
    let (driver, state) = busy();
    let other = other(&driver);
    other.pci.restore(&state).unwrap();
    assert_eq!(other.pci.save().as_ref(), Ok(&state));
    assert_eq!(other.sent(), NONE, "an event that the guest has seen is not repeated");
    assert_eq!(other.pending(), 0b010);
    for register in [
        DEVICE_STATUS,
        CONFIG_MSIX_VECTOR,
        CONFIG_GENERATION,
        QUEUE_SELECT,
        QUEUE_MSIX_VECTOR,
        QUEUE_DESC,
    ] {
        assert_eq!(other.get(register), driver.get(register), "{register:#x}");
    }
    other.pci.resume();
    assert_eq!(other.sent(), [OF_QUEUE[1]], "the kick that was not seen");
    other.mask(1, false);
    assert_eq!(other.sent(), [OF_QUEUE[0]], "what was pending");
}

#[test]
fn restored_msix_tables_have_live_routes() {
    let (driver, state) = busy();
    let other = other(&driver);
    other.pci.restore(&state).unwrap();
    let programmed = |data| Event::Programmed(Some(message(data)));
    let events: Vec<_> = other.platform.take();
    assert!(
        events.contains(&programmed(0)) && events.contains(&programmed(2)),
        "{events:?}"
    );
    assert!(!events.contains(&programmed(1)), "masked");
    assert_eq!(other.platform.live.load(SeqCst), 2);
    other.change();
    assert_eq!(other.sent(), NONE, "it is paused");
    other.pci.resume();
    assert_eq!(other.sent(), [OF_CONFIG, OF_QUEUE[1]]);
}

#[test]
fn a_wire_that_was_up_is_up_again() {
    let driver = Driver::new();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    let other = Driver::cold();
    other.pci.restore(&driver.saved()).unwrap();
    assert_eq!(
        (other.heard(), other.isr(), other.heard()),
        (vec![true], 1, vec![false])
    );
}

#[test]
fn a_configuration_bit_of_isr_that_was_not_read_is_there_again_and_moves_no_wire_behind_msix() {
    let (_, state) = busy();
    let other = Driver::cold();
    other.pci.restore(&state).unwrap();
    other.pci.resume();
    assert_eq!((other.heard(), other.isr(), other.isr()), (vec![], 2, 0));
}

#[test]
fn a_configuration_change_that_no_read_of_the_generation_has_shown_yet_is_shown_after_a_restore() {
    let driver = Driver::new();
    driver.start();
    let before = driver.get(CONFIG_GENERATION);
    (0..256).for_each(|_| driver.change());
    let mut state = driver.saved();
    assert!(rest::pci(&mut state).transport.config_changed);
    assert_eq!(driver.saved(), state, "a look from outside is no read");
    let other = Driver::cold();
    other.pci.restore(&state).unwrap();
    assert_eq!(other.get(CONFIG_GENERATION), (before + 1) % 256);
    assert!(!rest::pci(&mut other.saved()).transport.config_changed);
}

#[test]
fn a_restored_device_without_bus_master_stays_off_memory() {
    let driver = Driver::with_msix();
    driver.start();
    driver.set_config(COMMAND, 2, MEMORY_SPACE.into());
    let other = Driver::cold();
    other.place();
    other.pci.restore(&driver.saved()).unwrap();
    other.pci.resume();
    assert_eq!(other.processed(), 0);
}

#[test]
fn a_state_that_cannot_be_is_refused_and_changes_nothing() {
    let (_, good) = busy();
    let wire = Driver::new();
    wire.start();
    let refuse = |change: fn(&mut VirtioPciState)| {
        let mut bad = good.clone();
        change(rest::pci(&mut bad));
        let driver = Driver::cold();
        let before = driver.saved();
        let error = driver.pci.restore(&bad).unwrap_err();
        assert_eq!(driver.saved(), before, "{error}");
        assert_eq!((driver.platform.take(), driver.heard()), (vec![], vec![]), "{error}");
        error
    };
    let vectors = 3;
    assert_eq!(
        refuse(|state| state.config_vector = 3),
        RestoreError::Vector { vector: 3, vectors }
    );
    assert_eq!(
        refuse(|state| state.queue_vectors[1] = 0x7fff),
        RestoreError::Vector {
            vector: 0x7fff,
            vectors
        }
    );
    assert_eq!(
        refuse(|state| state.queue_vectors.push(0)),
        RestoreError::QueueCount {
            field: "queue_vectors",
            saved: 3,
            needed: 2
        }
    );
    assert!(matches!(
        refuse(|state| state.endpoint.causes = 4),
        RestoreError::Register {
            value: 4,
            possible: 3,
            ..
        }
    ));
    assert!(matches!(
        refuse(|state| state.endpoint.config[0] = 0),
        RestoreError::Function(StateError::ReadOnly { offset: 0, .. })
    ));
    assert!(matches!(
        refuse(|state| state.endpoint.msix = None),
        RestoreError::Function(_)
    ));
    assert_eq!(refuse(|state| state.transport.status = 4), RestoreError::Status(4));
    assert!(matches!(
        refuse(|state| state.transport.setup[0].layout.size = 4),
        RestoreError::Contradiction(0)
    ));
    // No driver, no event.
    assert!(matches!(
        refuse(|state| {
            state.transport.status = 0;
            state.endpoint.causes = 1;
        }),
        RestoreError::Register {
            value: 1,
            possible: 0,
            ..
        }
    ));
}

#[test]
fn a_device_in_use_is_not_restored() {
    let (_, state) = busy();
    let driver = Driver::with_msix();
    driver.start();
    assert_eq!(driver.pci.restore(&state), Err(RestoreError::InUse(WORKING as u32)));
    driver.set(DEVICE_STATUS, 0);
    driver.pci.restore(&state).unwrap();
    assert_eq!(driver.pci.save(), Ok(state));
}

#[test]
fn a_state_of_another_function_is_refused() {
    let (_, state) = busy();
    let options = VirtioPciOptions {
        vectors: Some(0),
        ..VirtioPciOptions::default()
    };
    let driver = Driver::with(Probe::default(), options).unwrap();
    assert!(driver.pci.restore(&state).is_err());
}
