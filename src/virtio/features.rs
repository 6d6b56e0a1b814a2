//! Feature bits that belong to no device type (virtio 1.2, section 6), as masks.

use virtio_bindings::{
    virtio_config::{
        VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIF_CONFIG_DATA, VIRTIO_F_NOTIFICATION_DATA,
        VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
    },
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

/// `VIRTIO_F_INDIRECT_DESC`: the driver may put a chain into a table of its own (section 2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// `VIRTIO_F_EVENT_IDX`: both sides say by index when they want to hear of progress (sections 2.7.7 and 2.7.10).
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// `VIRTIO_F_VERSION_1`: no legacy interface. Always offered, and done without only where the
/// [embedder](super::transport::TransportOptions::without_version_1) lets a driver.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// `VIRTIO_F_RING_RESET`: a queue can be reset and set up again by itself (section 2.6.1).
pub const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;

/// `VIRTIO_F_RING_PACKED`: rings are packed ones (section 2.8).
pub const RING_PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
/// `VIRTIO_F_IN_ORDER`: the device uses buffers in the order in which they were made available (sections 2.7.9 and 2.8.8).
pub const IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;
/// `VIRTIO_F_NOTIFICATION_DATA`: a kick also says how far the driver has come in the ring (section 2.9).
pub const NOTIFICATION_DATA: u64 = 1 << VIRTIO_F_NOTIFICATION_DATA;
/// `VIRTIO_F_NOTIF_CONFIG_DATA`: a kick names its queue by a number that the device chooses (section 4.1.4.3). Offered over
/// PCI.
pub const NOTIF_CONFIG_DATA: u64 = 1 << VIRTIO_F_NOTIF_CONFIG_DATA;
/// `VIRTIO_F_ACCESS_PLATFORM`: addresses are what the platform makes of them for the device, which an IOMMU translates (section 6).
/// Offered where memory is so, and not done without there.
pub const ACCESS_PLATFORM: u64 = 1 << VIRTIO_F_ACCESS_PLATFORM;

/// What queues and transports of this crate offer on behalf of every device.
pub const COMMON: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET;
