//! Guest memory as a device sees it whose addresses somebody translates: an IOMMU, or who keeps its table elsewhere.
//!
//! A [`Pin`] of such a memory learns translations as they are needed, and keeps them where it would have its regions: to find one again
//! costs what it costs to find a region. What is taken back is marked in all pins that have learnt it; no queue takes such a pin for a
//! current one any more, and who took it back is told when no round is left that began before, and no chain that lies there.

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex, Weak},
};

use super::{
    Memory, Pin, Space,
    map::Map,
    runs::{Runs, Translate},
    tally::Ticket,
};
use crate::sync::lock;

/// Who lets go of pins that are old, idle ones too: a transport.
pub(crate) trait Behind: Send + Sync {
    fn let_go(&self);
}

/// What all pins of a memory that is translated have in common.
pub(crate) struct Translated {
    base: Memory,
    source: Weak<dyn Translate>,
    pins: Mutex<Vec<Weak<Runs>>>,
    behind: Mutex<Vec<Weak<dyn Behind>>>,
}

/// What was taken back, to be dropped with nothing locked.
#[derive(Default)]
pub(crate) struct Over {
    runs: Vec<Arc<Runs>>,
    tickets: Vec<Ticket>,
}

impl Over {
    /// Whether a pin had learnt something of it.
    pub fn is_known(&self) -> bool {
        self.runs.iter().any(|runs| runs.is_stale())
    }
}

impl Translated {
    pub fn new(base: Memory, source: Weak<dyn Translate>) -> Arc<Self> {
        Arc::new(Self {
            base,
            source,
            pins: Mutex::default(),
            behind: Mutex::default(),
        })
    }

    /// The translations of these addresses are taken back: no look-up finds them from here on. `ticket` is kept as long as one is in
    /// use. Called while nothing is translated; follow it with [`let_go`](Self::let_go), with nothing locked.
    pub fn take_back(&self, addresses: &RangeInclusive<u64>, ticket: &Ticket, over: &mut Over) {
        for runs in self.pins() {
            runs.take_back(addresses, ticket, &mut over.tickets);
            over.runs.push(runs);
        }
    }

    /// Has queues let go of what was taken back.
    pub fn let_go(&self) {
        let behind: Vec<_> = {
            let mut behind = lock(&self.behind);
            behind.retain(|behind| behind.strong_count() != 0);
            behind.iter().filter_map(Weak::upgrade).collect()
        };
        behind.iter().for_each(|behind| behind.let_go());
    }

    fn pins(&self) -> Vec<Arc<Runs>> {
        lock(&self.pins).iter().filter_map(Weak::upgrade).collect()
    }
}

/// A [`Translated`] as an address space.
pub(super) struct Addresses(pub Arc<Translated>);

impl Space for Addresses {
    fn pin(&self) -> Pin {
        let Translated { base, source, pins, .. } = &*self.0;
        let runs = Arc::new(Runs::new(base.pin(), Weak::clone(source)));
        {
            let mut pins = lock(pins);
            pins.retain(|runs| runs.strong_count() != 0);
            pins.push(Arc::downgrade(&runs));
        }
        Pin(Arc::new(Map::translated(runs)))
    }

    fn is_current(&self, pin: &Pin) -> bool {
        let runs = pin.0.runs.as_ref();
        runs.is_some_and(|runs| runs.goes_on() && self.0.base.is_current(runs.base()))
    }

    fn maps_held(&self) -> usize {
        let old = |runs: &Arc<Runs>| runs.is_stale() || !self.0.base.is_current(runs.base());
        self.0.pins().iter().filter(|runs| old(runs)).count()
    }

    fn is_translated(&self) -> bool {
        true
    }

    fn add_behind(&self, behind: Weak<dyn Behind>) {
        lock(&self.0.behind).push(behind);
    }
}
