//! What the parts of a network device share, and how a change of its settings comes to hold.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst},
};

use super::{
    Coalescing, Holder, MIN_FRAME, Mac, NetOptions, Offloads, Port, PortOffloads,
    backlog::Backlog,
    filter::{self, InForce},
    hash::{self, Packet},
    registers::feature,
    settings::Settings,
};
use crate::{
    sync::lock,
    time::Clock,
    virtio::{FailureLog, QueueIndex, queue::OwnedChain},
};

/// What the device counts besides what its queues do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetCounters {
    /// Received frames that the filter held back.
    pub filtered: u64,
    /// Received frames that were dropped: too long for a buffer, of a kind that the guest does not take, for a queue that is not
    /// there or whose backlog is full.
    pub dropped: u64,
    /// Frames that went through a device whose link is down, either way.
    pub link_down: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub filtered: AtomicU64,
    pub dropped: AtomicU64,
    pub link_down: AtomicU64,
}

/// A pair of queues.
pub(super) struct Pair {
    /// What is behind it; several pairs may have the same.
    pub port: Arc<dyn Port>,
    /// It receives from its port: the first of those that have it.
    pub reads: bool,
    /// The settings that a round of its receive queue has begun with; [`IDLE`] between rounds.
    seen: AtomicU64,
    /// The receive queue has a handler.
    pub receives: AtomicBool,
    pub backlog: Mutex<Backlog>,
    /// There is something in it.
    pub waits: AtomicBool,
}

const IDLE: u64 = u64::MAX;

/// For which pair a flow was last sent, by a part of its number; all ones, if for none.
const FLOWS: usize = 1024;
const NO_FLOW: u16 = u16::MAX;

/// A command whose effect is to be seen everywhere before the driver sees that it is done.
struct Unsettled {
    generation: u64,
    chain: OwnedChain,
}

/// What the control face and all queues share.
pub(super) struct Shared {
    // Configured.
    pub options: NetOptions,
    pub features: u64,
    pub port_offloads: PortOffloads,
    /// What is behind the ports steers by flow.
    pub ports_steer: bool,
    // Plugged in.
    /// Of whom its ports take orders.
    pub holder: Holder,
    /// Notifications are coalesced by it.
    pub clock: Option<Arc<dyn Clock>>,
    pub pairs: Box<[Pair]>,
    pub failures: FailureLog,
    pub counters: Counters,
    // What changes.
    settings: Mutex<Arc<Settings>>,
    /// Moves with each change.
    generation: AtomicU64,
    unsettled: Mutex<Vec<Unsettled>>,
    /// How many.
    unsettled_count: AtomicU64,
    flows: Box<[AtomicU16]>,
}

impl Shared {
    pub fn new(
        options: NetOptions,
        features: u64,
        port_offloads: PortOffloads,
        ports: &[Arc<dyn Port>],
        failures: FailureLog,
    ) -> Self {
        let pair = |index: usize| Pair {
            port: Arc::clone(&ports[index % ports.len()]),
            reads: index < ports.len(),
            seen: AtomicU64::new(IDLE),
            receives: AtomicBool::new(false),
            backlog: Mutex::default(),
            waits: AtomicBool::new(false),
        };
        Self {
            settings: Mutex::new(Arc::new(Settings::new(&options))),
            pairs: (0..usize::from(options.pairs)).map(pair).collect(),
            ports_steer: ports.len() == usize::from(options.pairs) && ports.iter().all(|port| port.steers()),
            options,
            features,
            port_offloads,
            holder: Holder::new(),
            clock: None,
            failures,
            counters: Counters::default(),
            generation: AtomicU64::new(0),
            unsettled: Mutex::default(),
            unsettled_count: AtomicU64::new(0),
            flows: (0..FLOWS).map(|_| AtomicU16::new(NO_FLOW)).collect(),
        }
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&lock(&self.settings))
    }

    /// Which they are.
    pub fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }

    /// Changes the settings: rounds that begin from here on see it.
    pub fn change<R>(&self, change: impl FnOnce(&mut Settings) -> R) -> R {
        let mut settings = lock(&self.settings);
        let result = change(Arc::make_mut(&mut settings));
        self.generation.fetch_add(1, SeqCst);
        result
    }

    /// A round of a receive queue begins, with the settings of this generation or later.
    pub fn enter(&self, pair: usize) -> Round<'_> {
        let seen = &self.pairs[pair].seen;
        loop {
            let generation = self.generation();
            seen.store(generation, SeqCst);
            // Whoever changes them after this look sees that this round has not seen the change.
            if self.generation() == generation {
                return Round {
                    shared: self,
                    pair,
                    generation,
                };
            }
        }
    }

    /// Whether what was changed by now is seen by all.
    pub fn is_settled(&self) -> bool {
        self.has_seen(self.generation())
    }

    fn has_seen(&self, generation: u64) -> bool {
        self.pairs.iter().all(|pair| pair.seen.load(SeqCst) >= generation)
    }

    /// Completes a command, whose answer is in its place, once what was changed by now is seen by all.
    pub fn complete_when_settled(&self, chain: OwnedChain) {
        let generation = self.generation();
        {
            let mut unsettled = lock(&self.unsettled);
            unsettled.push(Unsettled { generation, chain });
            self.unsettled_count.fetch_add(1, SeqCst);
        }
        self.settle();
    }

    /// Completes commands whose effect is seen by all.
    pub fn settle(&self) {
        loop {
            let next = {
                let mut unsettled = lock(&self.unsettled);
                let at = unsettled.iter().position(|command| self.has_seen(command.generation));
                at.map(|at| {
                    self.unsettled_count.fetch_sub(1, SeqCst);
                    unsettled.remove(at)
                })
            };
            match next {
                // It interrupts: with nothing locked.
                Some(Unsettled { chain, .. }) => chain.complete(1),
                None => return,
            }
        }
    }

    /// The frame that begins with `start` was sent by this pair: what comes back is for its receive queue (section 5.1.6.5.6).
    pub fn note_flow(&self, start: &[u8], pair: u16) {
        if let Some(packet) = Packet::parse(start) {
            let entry = &self.flows[packet.flow() as usize % FLOWS];
            if entry.load(SeqCst) != pair {
                entry.store(pair, SeqCst);
            }
        }
    }

    /// By which pair the flow of a received packet was last sent.
    pub fn flow(&self, packet: &Packet<'_>) -> Option<u16> {
        let pair = self.flows[packet.flow() as usize % FLOWS].load(SeqCst);
        (pair != NO_FLOW).then_some(pair)
    }

    /// Forgets what was learned of a driver.
    pub fn forget(&self) {
        self.flows.iter().for_each(|flow| flow.store(NO_FLOW, SeqCst));
        for pair in &self.pairs {
            lock(&pair.backlog).clear();
            pair.waits.store(false, SeqCst);
        }
    }

    /// A receive queue has a handler from here on, or no longer. Where the control queue is elsewhere, that says which pairs are in use.
    pub fn set_receiving(&self, pair: usize, receives: bool) {
        self.pairs[pair].receives.store(receives, SeqCst);
        if !self.options.front_end_controls {
            return;
        }
        let changed = self.change(|settings| {
            // With the settings locked: of two that come at a time, the later one counts both.
            let started = self.pairs.iter().take_while(|pair| pair.receives.load(SeqCst)).count();
            let before = std::mem::replace(&mut settings.pairs, started.max(1) as u16);
            before != settings.pairs
        });
        if changed {
            self.tell_ports();
        }
    }

    /// Tells the ports what the guest takes, and which of them are in use.
    pub fn tell_ports(&self) {
        let settings = self.settings();
        let offloads = settings.guest_offloads().and(self.port_offloads.receive);
        let active = usize::from(settings.active_pairs(&self.options));
        for (index, pair) in self.pairs.iter().enumerate().filter(|(_, pair)| pair.reads) {
            let told = pair.port.set_active(self.holder, index < active);
            if let Err(error) = told.and_then(|()| pair.port.set_offloads(self.holder, offloads)) {
                self.failures.record(error);
            }
        }
    }
}

/// A round of a receive queue, as far as settings are concerned.
pub(super) struct Round<'a> {
    shared: &'a Shared,
    pair: usize,
    pub generation: u64,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.shared.pairs[self.pair].seen.store(IDLE, SeqCst);
        if self.shared.unsettled_count.load(SeqCst) != 0 {
            self.shared.settle();
        }
    }
}

/// Settings as a queue works by them, with what follows from them.
pub(super) struct Seen {
    generation: u64,
    pub settings: Arc<Settings>,
    pub header_len: usize,
    /// How many receive queues may be used.
    pub active: usize,
    /// What the guest may leave to the device.
    pub host: Offloads,
    /// What the guest takes.
    pub guest: Offloads,
    pub in_force: InForce,
    /// The filter lets everything through.
    pub open: bool,
    pub own_mac: Option<Mac>,
    /// The MTU, where received frames must not exceed it.
    pub mtu: Option<usize>,
    /// Of a frame that asks for nothing and is for this guest there is nothing else to decide, up to this length.
    pub plain: usize,
    /// The device steers by flow.
    pub steers: bool,
    /// How much of a received frame is looked at before it is known where it goes.
    pub look: usize,
}

impl Seen {
    pub fn new(shared: &Shared) -> Self {
        // Before the settings, which may be newer then.
        let generation = shared.generation();
        let (settings, options) = (shared.settings(), &shared.options);
        let active = usize::from(settings.active_pairs(options));
        let in_force = settings.in_force();
        let open = settings.filter.is_open(in_force);
        let mtu = options.mtu.filter(|_| settings.has(feature::MTU));
        let steers = active > 1 && !shared.ports_steer;
        Self {
            generation,
            header_len: settings.header_len(),
            active,
            host: settings.host_offloads(),
            guest: settings.guest_offloads(),
            in_force,
            open,
            own_mac: settings.own_mac(options),
            mtu: mtu.map(usize::from),
            plain: match () {
                _ if !settings.link_up || steers || settings.hash.is_some() => 0,
                _ => mtu.map_or(usize::MAX, |mtu| usize::from(mtu) + MIN_FRAME),
            },
            steers,
            look: match () {
                _ if settings.hash.is_some() || steers => hash::LOOK,
                _ if !open || mtu.is_some() => filter::LOOK,
                _ => 0,
            },
            settings,
        }
    }

    /// What the driver wants of the notifications of a queue.
    #[inline]
    pub fn coalescing(&self, queue: QueueIndex) -> Coalescing {
        let coalescing = self.settings.coalescing.get(usize::from(queue.0));
        coalescing.copied().unwrap_or_default()
    }

    /// Looks again, if they have changed since.
    pub fn refresh(&mut self, shared: &Shared, generation: u64) {
        if self.generation != generation {
            *self = Self::new(shared);
        }
    }
}
