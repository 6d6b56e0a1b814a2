//! What the queues of an IOMMU share with those whose addresses it translates.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, Weak},
};

use vm_memory::Permissions;

use super::{
    faults::{AccessFault, Faults},
    options::{IommuOptions, ReservedKind},
    pending::Pending,
    registers::{PROBE_T_RESV_MEM, RESV_MEM_LEN, Status},
    tables::{Change, Tables},
};
use crate::{
    memory::{Asked, Memory, Over, Piece, Ticket, Translate, Translated},
    sync::lock,
    virtio::{Handle, QueueIndex},
};

/// `eventq`.
const EVENTS: QueueIndex = QueueIndex(1);

/// Lock order: `tables`, then what a memory knows of translations. Nothing is told to anybody under either.
pub(super) struct Shared {
    // Configured.
    pub probe_size: u32,
    pub max_faults: usize,
    // Plugged in.
    behind: BTreeMap<u32, Endpoint>,
    handle: OnceLock<Handle>,
    // What the guest changes.
    pub tables: Mutex<Tables>,
    pub faults: Mutex<Faults>,
    pub pending: Mutex<Pending>,
}

struct Endpoint {
    memory: Arc<Translated>,
    /// All of them: RESV_MEM.
    properties: Vec<u8>,
    /// Which `memory` asks.
    _source: Arc<Source>,
}

/// Who translates for one endpoint.
struct Source {
    iommu: Weak<Shared>,
    endpoint: u32,
}

impl Translate for Source {
    fn translate(&self, address: u64, len: u64, access: Permissions, found: &mut dyn FnMut(Piece)) -> Asked {
        let Some(iommu) = self.iommu.upgrade() else {
            return Asked::Refused;
        };
        let refused = {
            let tables = lock(&iommu.tables);
            match tables.translate(self.endpoint, address, len, access) {
                Ok(piece) => {
                    found(piece);
                    return Asked::Found;
                }
                Err(reason) => AccessFault::new(reason, self.endpoint, address, access),
            }
        };
        iommu.fault(refused);
        Asked::Refused
    }
}

impl Shared {
    pub fn new(base: &Memory, options: &IommuOptions) -> Arc<Self> {
        Arc::new_cyclic(|iommu: &Weak<Self>| {
            let behind = options.endpoints.iter().map(|endpoint| {
                let id = endpoint.id.0;
                let source = Arc::new(Source {
                    iommu: Weak::clone(iommu),
                    endpoint: id,
                });
                let asked: Weak<dyn Translate> = Arc::downgrade(&source) as _;
                let properties = endpoint.reserved.iter().flat_map(|reserved| {
                    let mut bytes = [0; RESV_MEM_LEN as usize];
                    bytes[..2].copy_from_slice(&PROBE_T_RESV_MEM.to_le_bytes());
                    // Without its head.
                    bytes[2..4].copy_from_slice(&(RESV_MEM_LEN as u16 - 4).to_le_bytes());
                    bytes[4] = match reserved.kind {
                        ReservedKind::Reserved => 0,
                        ReservedKind::Msi => 1,
                    };
                    bytes[8..16].copy_from_slice(&reserved.addresses.start().to_le_bytes());
                    bytes[16..].copy_from_slice(&reserved.addresses.end().to_le_bytes());
                    bytes
                });
                let endpoint = Endpoint {
                    memory: Translated::new(base.clone(), asked),
                    properties: properties.collect(),
                    _source: source,
                };
                (id, endpoint)
            });
            Self {
                probe_size: options.probe_size,
                max_faults: options.max_faults,
                behind: behind.collect(),
                handle: OnceLock::new(),
                tables: Mutex::new(Tables::new(options)),
                faults: Mutex::default(),
                pending: Mutex::default(),
            }
        })
    }

    pub fn attach(&self, handle: Handle) {
        // Once: a device is put behind one transport.
        let _ = self.handle.set(handle);
    }

    pub fn memory(&self, endpoint: u32) -> Option<Memory> {
        let endpoint = self.behind.get(&endpoint)?;
        Some(Memory::translated(Arc::clone(&endpoint.memory)))
    }

    pub fn properties(&self, endpoint: u32) -> Option<&[u8]> {
        Some(&self.behind.get(&endpoint)?.properties)
    }

    /// Changes the tables, and takes back what was translated by what they were; `ticket` is kept where that is in use.
    pub fn change(
        &self,
        ticket: &Ticket,
        change: impl FnOnce(&mut Tables) -> Result<Option<Change>, Status>,
    ) -> Result<(), Status> {
        let mut over = Over::default();
        let changed = {
            let mut tables = lock(&self.tables);
            let changed = change(&mut tables)?;
            if let Some(Change { endpoints, addresses }) = &changed {
                for endpoint in endpoints.iter().filter_map(|id| self.behind.get(id)) {
                    endpoint.memory.take_back(addresses, ticket, &mut over);
                }
            }
            changed
        };
        // Queues that are idle have no round to come in which they would find it.
        if over.is_known() {
            let endpoints = changed.into_iter().flat_map(|change| change.endpoints);
            endpoints
                .filter_map(|id| self.behind.get(&id))
                .for_each(|endpoint| endpoint.memory.let_go());
        }
        drop(over);
        Ok(())
    }

    /// The same for what nobody waits for.
    pub fn change_all(&self, change: impl FnOnce(&mut Tables)) {
        let nobody: Ticket = Arc::new(());
        let _ = self.change(&nobody, |tables| {
            change(tables);
            Ok(Some(tables.everything()))
        });
    }

    /// Tells of a fault. Nothing of the IOMMU is locked.
    pub fn fault(&self, fault: AccessFault) {
        let buffer = lock(&self.faults).add(fault, self.max_faults);
        if let Some(buffer) = buffer {
            fault.tell(buffer);
        } else if let Some(handle) = self.handle.get() {
            // A buffer may be in the ring all the same: Linux does not kick for those that it fills the queue with.
            handle.look(EVENTS);
        }
    }
}
