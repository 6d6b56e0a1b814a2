//! Bringing a device to rest, which a save needs.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::time::Duration;

use devisor::virtio::transport::{
    SavedDevice, SavedTransport, VirtioTransport, mmio::VirtioMmioState, pci::VirtioPciState,
};

/// Pauses the device, and saves it when it is still. It stays paused.
pub fn at_rest(device: &(impl VirtioTransport + ?Sized)) -> SavedDevice {
    device.pause();
    assert!(device.wait_until_still(Some(Duration::from_secs(60))));
    device.save().expect("it is still")
}

/// The state of a device that goes on.
pub fn saved(device: &(impl VirtioTransport + ?Sized)) -> SavedDevice {
    let state = at_rest(device);
    device.resume();
    state
}

pub fn mmio(state: &mut SavedDevice) -> &mut VirtioMmioState {
    match &mut state.transport {
        SavedTransport::Mmio(state) => state,
        other => panic!("{other:?}"),
    }
}

pub fn pci(state: &mut SavedDevice) -> &mut VirtioPciState {
    match &mut state.transport {
        SavedTransport::Pci(state) => state,
        other => panic!("{other:?}"),
    }
}
