//! What an embedder decides about a device behind a socket.

use std::{fmt, sync::Arc, time::Duration};

use super::reclaim::FrontEndMemory;
use crate::{time::Clock, virtio::transport::TransportOptions};

/// How a device behind a vhost-user socket behaves.
#[derive(Clone)]
pub struct VhostUserOptions {
    /// Which features of queues are offered. NOTIFICATION_DATA is not, whatever is said here: an eventfd carries none.
    pub transport: TransportOptions,
    /// How many regions of memory a front end may have. The specification has eight in one message; a front end that adds them one by one
    /// is told this number. At most 509, as in the kernel's vhost.
    pub max_regions: u16,
    /// How many translations of a front end's IOMMU are kept; others are asked for again. With any, ACCESS_PLATFORM is offered, which a
    /// front end takes that tells them. None, as it is by default, is right for those that hand features through to the driver and have no
    /// IOMMU: user-mode Linux does so.
    pub max_translations: u32,
    /// A front end may have no kick descriptor, and have its queue polled: so often, by this clock. `None`: such a queue costs the
    /// connection, unless all are [polled](TransportOptions::polled).
    pub polled: Option<(Arc<dyn Clock>, Duration)>,
    /// Who is told of the front end's memory, if somebody is.
    pub memory: Option<FrontEndMemory>,
}

impl Default for VhostUserOptions {
    fn default() -> Self {
        Self {
            transport: TransportOptions::default(),
            max_regions: 32,
            max_translations: 0,
            polled: None,
            memory: None,
        }
    }
}

impl fmt::Debug for VhostUserOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            transport,
            max_regions,
            max_translations,
            polled,
            memory,
        } = self;
        f.debug_struct("VhostUserOptions")
            .field("transport", transport)
            .field("max_regions", max_regions)
            .field("max_translations", max_translations)
            .field("polled", &polled.as_ref().map(|(_, interval)| interval))
            .field("memory", memory)
            .finish()
    }
}
