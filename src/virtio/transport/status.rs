//! Bits of the device status (virtio 1.2, section 2.1) and the order in which the driver sets them (section 3.1.1).

/// The guest has found the device.
pub const ACKNOWLEDGE: u32 = 1;
/// The guest knows how to drive it.
pub const DRIVER: u32 = 2;
/// The driver is set up: queues run.
pub const DRIVER_OK: u32 = 4;
/// Feature negotiation is complete.
pub const FEATURES_OK: u32 = 8;
/// The device cannot go on without a reset.
pub const DEVICE_NEEDS_RESET: u32 = 64;
/// The driver has given up on the device.
pub const FAILED: u32 = 128;

/// Each bit that the driver sets on its way, and the one that comes before it. DRIVER is taken without ACKNOWLEDGE: section 3.1.1 asks
/// that of the driver alone, and U-Boot 2023.01 resets a device that it has acknowledged, and goes on from there.
pub(super) const ORDER: [(u32, u32); 4] = [
    (ACKNOWLEDGE, 0),
    (DRIVER, 0),
    (FEATURES_OK, DRIVER),
    (DRIVER_OK, FEATURES_OK),
];
