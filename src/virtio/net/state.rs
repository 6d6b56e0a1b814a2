//! Save and restore.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use super::{
    Coalescing, FailureLog, Mac, MacTable, NetFrame, NetOptions, Offloads, Port, RxModes, Steering,
    backlog::Backlog,
    filter::MAC_TABLE,
    fresh,
    hash::{MAX_KEY, MAX_TABLE},
    header::{MAX_FRAME, MIN_FRAME},
    offered, ports_offloads,
    registers::feature,
    settings::{Hashing, Settings},
    shared::Shared,
};
use crate::{sync::lock, virtio::DeviceStateError};

/// The state of a network device as plain data. What is behind its ports is the embedder's to save, frames that wait there too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetState {
    /// How the device looks to the guest.
    pub options: NetOptions,
    /// The features of its type that it offers.
    pub features: u64,
    /// Whether the link is up.
    pub link_up: bool,
    /// The driver was asked to announce itself.
    pub announce: bool,
    /// The address that the driver has set.
    pub mac: Option<Mac>,
    /// Receive modes.
    pub modes: RxModes,
    /// Unicast addresses that are let through.
    pub unicast: MacTable,
    /// Multicast addresses that are.
    pub multicast: MacTable,
    /// VLANs that are, in ascending order.
    pub vlans: Vec<u16>,
    /// Queue pairs that were enabled by VQ_PAIRS_SET.
    pub pairs: u16,
    /// What the driver takes of what it has negotiated, if it has said so.
    pub offloads: Option<Offloads>,
    /// Hashes, if they are computed.
    pub hash: Option<HashState>,
    /// Coalescing parameters of each queue but the control queue.
    pub coalescing: Vec<Coalescing>,
    /// For each receive queue, the frames that wait for it in the device.
    pub frames: Vec<Vec<NetFrame>>,
}

/// How hashes are computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashState {
    /// Types of hashes that are enabled.
    pub types: u32,
    /// The key.
    pub key: Vec<u8>,
    /// How they steer, if they do.
    pub steering: Option<Steering>,
}

pub(super) fn save(shared: &Shared) -> NetState {
    let settings = shared.settings();
    let Settings {
        link_up,
        // The transport's, which hands it to us again.
        negotiated: _,
        announce,
        mac,
        filter,
        pairs,
        offloads,
        hash,
        coalescing,
    } = &*settings;
    let super::filter::Filter {
        modes,
        unicast,
        multicast,
        vlans,
    } = filter;
    let frames = shared.pairs.iter().map(|pair| {
        let backlog = lock(&pair.backlog);
        backlog.frames.iter().cloned().collect()
    });
    NetState {
        options: shared.options.clone(),
        features: shared.features,
        link_up: *link_up,
        announce: *announce,
        mac: *mac,
        modes: *modes,
        unicast: unicast.clone(),
        multicast: multicast.clone(),
        vlans: vlans.list(),
        pairs: *pairs,
        offloads: *offloads,
        hash: hash.as_deref().map(|hash| HashState {
            types: hash.types,
            key: hash.key.clone(),
            steering: hash.steering.clone(),
        }),
        coalescing: coalescing.to_vec(),
        frames: frames.collect(),
    }
}

/// A device in this state, over the ports that are there.
pub(super) fn restored(made: &Shared, ports: &[Arc<dyn Port>], state: &NetState) -> Result<Shared, DeviceStateError> {
    let NetState {
        options,
        features,
        link_up,
        announce,
        mac,
        modes,
        unicast,
        multicast,
        vlans,
        pairs,
        offloads,
        hash,
        coalescing,
        frames,
    } = state;
    let otherwise = |what: String| Err(DeviceStateError::Otherwise(what));
    if let Err(error) = options.check() {
        return otherwise(error.to_string());
    }
    let queues = |options: &NetOptions| (options.pairs, options.queue_size, options.control_queue_size);
    if queues(options) != queues(&made.options) {
        return otherwise(format!(
            "with pairs, queue size and control queue size {:?} where the state has {:?}",
            queues(&made.options),
            queues(options)
        ));
    }
    // What the ports could do where it was saved may be less than here.
    let possible = offered(options, ports_offloads(ports), made.clock.is_some());
    if features & !possible != 0 {
        return otherwise(format!(
            "over ports with which it offers {possible:#x} where the state has {features:#x}"
        ));
    }
    if possible & !features & !OF_PORTS != 0 {
        return otherwise(format!(
            "with options for which it offers {possible:#x} where the state has {features:#x}"
        ));
    }
    let wrong = |what: &str| otherwise(format!("so that {what} of the state cannot be"));
    if mac.is_some_and(|mac| !mac.is_station()) {
        return wrong("the address");
    }
    let table = |table: &MacTable, group| {
        table.addresses.len() <= MAC_TABLE
            && (!table.overflown || table.addresses.is_empty())
            && table.addresses.iter().all(|mac| mac.is_group() == group)
    };
    if !table(unicast, false) || !table(multicast, true) {
        return wrong("a table of addresses");
    }
    if !vlans.is_sorted_by(|a, b| a < b) || vlans.last().is_some_and(|&vlan| vlan > 4095) {
        return wrong("the list of VLANs");
    }
    if !(1..=options.pairs).contains(pairs) {
        return wrong("the number of enabled queue pairs");
    }
    if hash.as_ref().is_some_and(|hash| !is_possible(hash, options)) {
        return wrong("the hash");
    }
    if coalescing.len() != usize::from(options.pairs) * 2 {
        return wrong("the coalescing of its queues");
    }
    let fits = |frames: &Vec<NetFrame>| {
        let sizes = frames.iter().map(|frame| frame.data.len());
        // One may have been put back.
        frames.len() <= options.backlog as usize + 1
            && sizes.clone().all(|size| (MIN_FRAME..=MAX_FRAME).contains(&size))
    };
    if frames.len() != usize::from(options.pairs) || !frames.iter().all(fits) {
        return wrong("the waiting frames");
    }

    let failures = FailureLog::default();
    let mut shared = Shared::new(options.clone(), *features, ports_offloads(ports), ports, failures);
    shared.holder = made.holder;
    shared.clock = made.clock.clone();
    let mut settings = fresh(&shared);
    settings.link_up = *link_up;
    settings.announce = *announce;
    settings.mac = *mac;
    settings.filter.modes = *modes;
    settings.filter.unicast = unicast.clone();
    settings.filter.multicast = multicast.clone();
    for &vlan in vlans {
        settings.filter.vlans.set(vlan, true);
    }
    settings.pairs = *pairs;
    settings.offloads = *offloads;
    settings.hash = hash
        .as_ref()
        .map(|hash| Arc::new(Hashing::new(hash.types, &hash.key, hash.steering.clone())));
    settings.coalescing = coalescing.as_slice().into();
    shared.change(|fresh| *fresh = settings);
    for (pair, frames) in shared.pairs.iter().zip(frames) {
        let mut backlog = Backlog::default();
        frames.iter().rev().for_each(|frame| backlog.put_back(frame.clone()));
        *lock(&pair.backlog) = backlog;
        pair.waits.store(!frames.is_empty(), SeqCst);
    }
    Ok(shared)
}

/// Features that depend on the ports: a state may have fewer of them.
const OF_PORTS: u64 = feature::CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::HOST_UFO
    | feature::HOST_USO
    | feature::GUEST_OFFLOADS
    | feature::CTRL_GUEST_OFFLOADS;

fn is_possible(hash: &HashState, options: &NetOptions) -> bool {
    let HashState { types, key, steering } = hash;
    let steering = steering.as_ref().is_none_or(|steering| {
        let Steering {
            unclassified,
            table,
            max_tx_vq,
        } = steering;
        table.len().is_power_of_two()
            && table.len() <= MAX_TABLE
            && table.iter().chain([unclassified]).all(|&pair| pair < options.pairs)
            && (1..=options.pairs).contains(max_tx_vq)
    });
    types & !options.hash_types == 0 && key.len() <= MAX_KEY && steering
}

/// Whether a driver with these features can have brought the device where it is: so that of a state that is taken over its two halves
/// agree. After a reset it is always so.
pub(super) fn fits(shared: &Shared, features: u64) -> bool {
    let settings = shared.settings();
    let has = |bits: u64| features & bits != 0;
    let modes = settings.filter.modes;
    let extra = modes.all_unicast || modes.no_multicast || modes.no_unicast || modes.no_broadcast;
    let steers = settings.hash.as_deref().is_some_and(|hash| hash.steering.is_some());
    let tables = [&settings.filter.unicast, &settings.filter.multicast];
    let offloads = settings.offloads.map_or(0, Offloads::guest);
    let set = [
        (settings.announce, feature::GUEST_ANNOUNCE),
        (settings.mac.is_some(), feature::CTRL_MAC_ADDR),
        (modes.promiscuous || modes.all_multicast, feature::CTRL_RX),
        (extra, feature::CTRL_RX_EXTRA),
        (
            tables.iter().any(|table| **table != MacTable::default()),
            feature::CTRL_RX,
        ),
        (settings.filter.vlans != Default::default(), feature::CTRL_VLAN),
        (settings.pairs > 1, feature::MQ),
        (settings.offloads.is_some(), feature::CTRL_GUEST_OFFLOADS),
        (settings.hash.is_some() && !steers, feature::HASH_REPORT),
        (steers, feature::RSS),
        (
            settings.coalescing.iter().any(|set| *set != Coalescing::default()),
            feature::NOTF_COAL | feature::VQ_NOTF_COAL,
        ),
    ];
    set.iter().all(|&(on, needed)| !on || has(needed)) && offloads & !features == 0
}
