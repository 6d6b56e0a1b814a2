//! Structures and registers of virtio over PCI (virtio 1.2, section 4.1).

/// Vendor of every virtio device (section 4.1.2).
pub const VENDOR: u16 = 0x1af4;
/// Device ID of a type 0 device without a legacy interface.
pub const DEVICE_ID_BASE: u16 = 0x1040;
/// The largest device type that has a device ID.
pub const DEVICE_TYPES: u32 = 0x3f;
/// Revision and least subsystem ID of a device without a legacy interface (section 4.1.2.1).
pub const REVISION: u8 = 1;
pub const SUBSYSTEM: u16 = 0x40;

/// Capability ID of vendor-specific capabilities (PCI Local Bus 3.0, appendix H).
pub const VENDOR_SPECIFIC: u8 = 0x09;
/// Section 4.1.4: values of `cfg_type`.
pub const COMMON_CFG: u8 = 1;
pub const NOTIFY_CFG: u8 = 2;
pub const ISR_CFG: u8 = 3;
pub const DEVICE_CFG: u8 = 4;
pub const PCI_CFG: u8 = 5;
pub const SHARED_MEMORY_CFG: u8 = 8;
/// Offsets in `struct virtio_pci_cap`, and what follows it in some types.
pub const CAP_BAR: u64 = 4;
pub const CAP_OFFSET: u64 = 8;
pub const CAP_END: u64 = 16;
/// Bytes of `pci_cfg_data`.
pub const PCI_CFG_DATA: usize = 4;

// Section 4.1.4.3, the common configuration.
pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
pub const DEVICE_FEATURE: u64 = 0x04;
pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
pub const DRIVER_FEATURE: u64 = 0x0c;
pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
pub const NUM_QUEUES: u64 = 0x12;
pub const DEVICE_STATUS: u64 = 0x14;
pub const CONFIG_GENERATION: u64 = 0x15;
pub const QUEUE_SELECT: u64 = 0x16;
pub const QUEUE_SIZE: u64 = 0x18;
pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
pub const QUEUE_ENABLE: u64 = 0x1c;
pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
pub const QUEUE_DESC: u64 = 0x20;
pub const QUEUE_DRIVER: u64 = 0x28;
pub const QUEUE_DEVICE: u64 = 0x30;
pub const QUEUE_NOTIFY_DATA: u64 = 0x38;
pub const QUEUE_RESET: u64 = 0x3a;
/// Bytes of the structure.
pub const COMMON_LEN: u64 = 0x3c;

/// Section 4.1.5.1.2: no vector is mapped.
pub const NO_VECTOR: u16 = 0xffff;

/// Section 4.1.4.5, bits of the ISR status.
pub const ISR_QUEUE: u8 = 1 << 0;
pub const ISR_CONFIGURATION: u8 = 1 << 1;
