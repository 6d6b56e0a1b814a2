//! Numbers that front end and transport share.

use crate::virtio::features;

/// A kick, a call and an error name their queue in eight bits.
pub(super) const MAX_QUEUES: u16 = 256;

/// Features that are between the driver and its transport: the back end is not told of them, unless it knows them.
pub(super) const TRANSPORT: u64 = features::RING_RESET | features::NOTIFICATION_DATA | features::NOTIF_CONFIG_DATA;

/// Features of rings, which who serves them has to know.
pub(super) const RINGS: u64 =
    features::INDIRECT_DESC | features::EVENT_IDX | features::RING_PACKED | features::IN_ORDER;

/// All that are no device type's (virtio 1.2, section 6): bits 24 to 41, but for those from 24 on that are vhost's alone.
pub(super) const RESERVED: u64 = ((1 << 42) - 1) & !((1 << 24) - 1);

/// Of the status that a back end is told (virtio 1.2, section 2.1).
pub(super) mod status {
    use crate::virtio::transport::status as of;

    /// FEATURES_OK, and what comes before.
    pub const FEATURES_OK: u64 = (of::ACKNOWLEDGE | of::DRIVER | of::FEATURES_OK) as u64;
    /// DRIVER_OK, and what comes before.
    pub const DRIVER_OK: u64 = FEATURES_OK | of::DRIVER_OK as u64;
}
