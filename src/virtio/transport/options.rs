//! What a transport offers on behalf of every device.

use crate::virtio::features;

/// Which features of queues a transport offers, whatever its device: the driver chooses among them.
///
/// A state is restored by a transport that offers what its driver had accepted.
///
/// ```
/// use devisor::virtio::{features, transport::TransportOptions};
///
/// let options = TransportOptions { packed: true, ..TransportOptions::default() };
/// assert_eq!(options.features(), features::COMMON | features::RING_PACKED);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportOptions {
    /// [`RING_PACKED`](features::RING_PACKED). Not by default: Linux takes it wherever it is offered.
    pub packed: bool,
    /// [`IN_ORDER`](features::IN_ORDER). Not by default: a request that takes long holds up those after it.
    pub in_order: bool,
    /// [`EVENT_IDX`](features::EVENT_IDX).
    pub event_idx: bool,
    /// [`INDIRECT_DESC`](features::INDIRECT_DESC).
    pub indirect_desc: bool,
    /// [`RING_RESET`](features::RING_RESET).
    pub ring_reset: bool,
    /// [`NOTIFICATION_DATA`](features::NOTIFICATION_DATA). By default over PCI alone: over MMIO the queue is a part of what a driver
    /// stores then, and who [catches](crate::bus::DoorbellStore) kicks by value catches none of them; they exit, and do the same.
    pub notification_data: bool,
    /// [`ACCESS_PLATFORM`](features::ACCESS_PLATFORM): guest memory is what an IOMMU of the embedder makes of it, as with `vm-memory`'s
    /// `IommuMemory`. Behind an [`Iommu`](crate::virtio::iommu::Iommu) of this crate it is offered in any case. A driver that does not
    /// accept it is not let at the device: "A device MAY fail to operate further if VIRTIO_F_ACCESS_PLATFORM is not accepted" (section
    /// 6.2).
    pub access_platform: bool,
    /// A driver that does without [`VERSION_1`](features::VERSION_1) is taken for one that has accepted it: for a driver that accepts
    /// nothing and knows the interface all the same, as in test suites. The layout of registers, rings and requests is the one of
    /// VERSION_1 then too, and the device is told that it was accepted. Not by default: "A device MAY fail to operate further if
    /// VIRTIO_F_VERSION_1 is not accepted" (section 6.2), and ours does not let FEATURES_OK be set. A state of such a driver is restored
    /// by a transport that has this option too.
    pub without_version_1: bool,
    /// Drivers are asked not to kick, since the embedder [serves](super::VirtioTransport::serve) each queue again and again by itself, on a
    /// thread that has nothing else to do. A kick that comes all the same is heard, but behind vhost-user: there nobody waits for any. Not
    /// by default.
    pub polled: bool,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            packed: false,
            in_order: false,
            event_idx: true,
            indirect_desc: true,
            ring_reset: true,
            notification_data: false,
            access_platform: false,
            without_version_1: false,
            polled: false,
        }
    }
}

impl TransportOptions {
    /// What is offered, as a mask.
    pub fn features(&self) -> u64 {
        let &Self {
            packed,
            in_order,
            event_idx,
            indirect_desc,
            ring_reset,
            notification_data,
            access_platform,
            without_version_1: _,
            polled: _,
        } = self;
        [
            (packed, features::RING_PACKED),
            (in_order, features::IN_ORDER),
            (event_idx, features::EVENT_IDX),
            (indirect_desc, features::INDIRECT_DESC),
            (ring_reset, features::RING_RESET),
            (notification_data, features::NOTIFICATION_DATA),
            (access_platform, features::ACCESS_PLATFORM),
        ]
        .into_iter()
        .filter(|(offered, _)| *offered)
        .fold(features::VERSION_1, |all, (_, feature)| all | feature)
    }
}
