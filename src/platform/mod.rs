//! Devices that are not virtio: UARTs, clocks, reset controllers.
