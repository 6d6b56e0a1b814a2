//! Settings of the whole device.

use std::sync::Arc;

use super::{
    Mac, NetOptions, Offloads,
    filter::{Filter, InForce},
    hash::Toeplitz,
    registers::{feature, header},
};

/// Settings of the whole device. Queues look at a copy that is made when one is changed.
#[derive(Clone)]
pub(super) struct Settings {
    // The embedder's.
    pub link_up: bool,
    // The transport's.
    pub negotiated: u64,
    // The driver's, by commands.
    pub announce: bool,
    /// The address that it has set.
    pub mac: Option<Mac>,
    pub filter: Filter,
    /// VQ_PAIRS_SET.
    pub pairs: u16,
    /// GUEST_OFFLOADS_SET; without it, what was negotiated.
    pub offloads: Option<Offloads>,
    pub hash: Option<Arc<Hashing>>,
    /// VIRTIO_NET_CTRL_NOTF_COAL, of each queue but the control queue.
    pub coalescing: Arc<[Coalescing]>,
}

/// How hashes are computed, and what for.
pub(super) struct Hashing {
    pub types: u32,
    pub key: Vec<u8>,
    /// RSS_CONFIG; without it, HASH_CONFIG.
    pub steering: Option<Steering>,
    pub toeplitz: Toeplitz,
}

impl Hashing {
    pub fn new(types: u32, key: &[u8], steering: Option<Steering>) -> Self {
        Self {
            types,
            key: key.to_vec(),
            steering,
            toeplitz: Toeplitz::new(key),
        }
    }
}

/// The rest of `struct virtio_net_rss_config` (section 5.1.6.5.7.1): queue pairs counted from zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steering {
    /// Where packets go that have no hash.
    pub unclassified: u16,
    /// Where the others go, by the low bits of the hash: a power of two of them.
    pub table: Vec<u16>,
    /// `max_tx_vq`.
    pub max_tx_vq: u16,
}

/// Coalescing parameters of a queue (section 5.1.6.5.8): a notification comes when either is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coalescing {
    /// Packets before a notification. Zero: any number.
    pub max_packets: u32,
    /// Microseconds by which it may be late. Zero: it comes at the end of each round of frames.
    pub max_usecs: u32,
}

impl Coalescing {
    /// Whether a notification may be late.
    #[inline]
    pub(super) fn is_some(self) -> bool {
        self.max_usecs != 0
    }
}

impl Settings {
    pub fn new(options: &NetOptions) -> Self {
        Self {
            link_up: true,
            negotiated: 0,
            announce: false,
            mac: None,
            filter: Filter::default(),
            pairs: 1,
            offloads: None,
            hash: None,
            coalescing: vec![Coalescing::default(); usize::from(options.pairs) * 2].into(),
        }
    }

    /// As a reset leaves them.
    pub fn reset(&self, options: &NetOptions) -> Self {
        Self {
            link_up: self.link_up,
            ..Self::new(options)
        }
    }

    pub fn has(&self, feature: u64) -> bool {
        self.negotiated & feature != 0
    }

    pub fn header_len(&self) -> usize {
        match self.has(feature::HASH_REPORT) {
            true => header::LEN_WITH_HASH,
            false => header::LEN,
        }
    }

    /// How many pairs there are to the driver (section 5.1.2).
    pub fn known_pairs(&self, options: &NetOptions) -> u16 {
        match self.has(feature::MQ | feature::RSS) {
            true => options.pairs,
            false => 1,
        }
    }

    /// How many receive queues may be used: with RSS, those that its table names.
    pub fn active_pairs(&self, options: &NetOptions) -> u16 {
        match self.hash.as_deref().and_then(|hash| hash.steering.as_ref()) {
            Some(_) => self.known_pairs(options),
            None => self.pairs,
        }
    }

    /// What the guest takes in received frames.
    pub fn guest_offloads(&self) -> Offloads {
        let negotiated = Offloads::from_guest(self.negotiated);
        self.offloads.unwrap_or(negotiated).and(negotiated).consistent()
    }

    /// What the guest may leave to the device.
    pub fn host_offloads(&self) -> Offloads {
        Offloads::from_host(self.negotiated)
    }

    pub fn in_force(&self) -> InForce {
        InForce {
            addresses: self.has(feature::CTRL_RX),
            vlans: self.has(feature::CTRL_VLAN),
        }
    }

    /// The guest's address, if the device knows it.
    pub fn own_mac(&self, options: &NetOptions) -> Option<Mac> {
        self.mac.or(options.mac.filter(|_| self.has(feature::MAC)))
    }
}
