//! How to write a device.
