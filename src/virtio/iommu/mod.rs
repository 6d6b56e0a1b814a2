//! The IOMMU device (virtio 1.2, section 5.13): other devices see guest memory as its driver maps it for them.
//!
//! *How a device gets behind it*: [`Iommu::memory`] is guest memory as one endpoint sees it, and goes to the transport of that device
//! in place of the machine's ([`VirtioMmio::with_memory`](super::VirtioMmio::with_memory),
//! [`VirtioPci::with_memory`](super::VirtioPci::with_memory)). The transport then offers
//! [`ACCESS_PLATFORM`](super::features::ACCESS_PLATFORM), and a driver that does not accept it is not let at the device: its addresses
//! would be taken for others. Rings are translated like buffers. A description of the machine tells the guest who is behind whom
//! ([`Part::behind_iommu`](crate::description::Part::behind_iommu)).
//!
//! *What an access costs*: a queue keeps what was translated, and finds it there. UNMAP, DETACH, and ATTACH to another domain take
//! translations back; they are answered when no request that may use one is under way, and until then hold up nobody. A request of a
//! guest that waits for one which never ends waits with it.
//!
//! *What is refused* costs the chain whose buffer it was, or the device whose ring it was, and is told by the event queue.
//!
//! *State*: restore an IOMMU before those that are behind it, and save it after them: rings are looked up by what is mapped.
//!
//! ```
//! use devisor::{
//!     interrupt::NoInterrupt,
//!     virtio::{
//!         VirtioMmio,
//!         entropy::Entropy,
//!         iommu::{EndpointId, Iommu, IommuEndpoint, IommuOptions},
//!         transport::{TransportOptions, mmio::Line},
//!     },
//! };
//! use std::sync::Arc;
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! let ram = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
//! let line = || Line::Edge(Arc::new(NoInterrupt));
//! let endpoints = vec![IommuEndpoint::new(EndpointId(1))];
//! let iommu = Iommu::new(ram.clone(), IommuOptions { endpoints, ..IommuOptions::default() })?;
//! let behind = iommu.memory(EndpointId(1)).ok_or("an endpoint of it")?;
//! let rng = VirtioMmio::with_memory(Entropy::from_os(), behind, line(), &TransportOptions::default())?;
//! let iommu = VirtioMmio::new(iommu, ram, line())?;
//! # let _ = (rng, iommu);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod events;
mod faults;
mod options;
mod pending;
mod registers;
mod requests;
mod shared;
mod state;
mod tables;

use std::{fmt, sync::Arc};

use vm_memory::GuestAddressSpace;

use super::{
    DeviceId, DeviceState, DeviceStateError, Handle, QueueHandler, QueueIndex, VirtioDevice, device::read_config_bytes,
};
use crate::{memory::Memory, sync::lock};
use events::EventQueue;
use registers::{BYPASS, Config};
use requests::RequestQueue;
use shared::Shared;
use tables::Tables;

pub use faults::AccessFault;
pub use options::{Bypass, EndpointId, IommuEndpoint, IommuError, IommuOptions, Reserved, ReservedKind};
pub use registers::{F_BYPASS, F_BYPASS_CONFIG, F_DOMAIN_RANGE, F_INPUT_RANGE, F_MAP_UNMAP, F_MMIO, F_PROBE};
pub use state::{DomainState, IommuState, MappingState};
pub use tables::FaultReason;

/// An IOMMU for devices of this crate. See [the module](self).
pub struct Iommu {
    options: IommuOptions,
    features: u64,
    shared: Arc<Shared>,
}

/// What has become of accesses that were refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// All of them.
    pub faults: u64,
    /// Those that the driver is never told of: it had given no buffer, and too many were waiting for one.
    pub lost: u64,
}

impl Iommu {
    /// An IOMMU before the guest memory `space`.
    ///
    /// # Errors
    /// The options contradict themselves.
    pub fn new<A>(space: A, options: IommuOptions) -> Result<Self, IommuError>
    where
        A: GuestAddressSpace + Send + Sync + 'static,
        A::T: Send + Sync + 'static,
    {
        options.check()?;
        let shared = Shared::new(&Memory::new(space), &options);
        let features = 0;
        Ok(Self {
            options,
            features,
            shared,
        })
    }

    /// Guest memory as `endpoint` sees it; `None` if there is no such endpoint.
    pub fn memory(&self, endpoint: EndpointId) -> Option<Memory> {
        self.shared.memory(endpoint.0)
    }

    /// How many accesses were refused.
    pub fn faults(&self) -> FaultCounts {
        let counted = lock(&self.shared.faults);
        let (faults, lost) = (counted.faults, counted.lost);
        FaultCounts { faults, lost }
    }

    /// How many mappings there are.
    pub fn mappings(&self) -> usize {
        lock(&self.shared.tables).mappings()
    }

    /// `bypass` is what it was at first: for when the machine is reset. A reset of the device alone leaves it (section 5.13.4.2).
    pub fn restore_bypass(&mut self) {
        let at_first = self.options.bypass == Bypass::Config(true);
        self.shared.change_all(|tables| tables.bypass = at_first);
    }

    fn config(&self) -> Config {
        let IommuOptions {
            page_size_mask,
            input_range,
            domain_range,
            probe_size,
            probe,
            ..
        } = &self.options;
        Config {
            page_size_mask: *page_size_mask,
            input_range: [*input_range.start(), *input_range.end()],
            domain_range: [*domain_range.start(), *domain_range.end()],
            probe_size: if *probe { *probe_size } else { 0 },
            bypass: lock(&self.shared.tables).bypass,
        }
    }
}

impl VirtioDevice for Iommu {
    fn device_id(&self) -> DeviceId {
        DeviceId::IOMMU
    }

    fn features(&self) -> u64 {
        let options = &self.options;
        [
            (true, F_MAP_UNMAP),
            (options.input_range != (0..=u64::MAX), F_INPUT_RANGE),
            (options.domain_range != (0..=u32::MAX), F_DOMAIN_RANGE),
            (options.probe, F_PROBE),
            (options.mmio, F_MMIO),
            (options.bypass == Bypass::Feature, F_BYPASS),
            (matches!(options.bypass, Bypass::Config(_)), F_BYPASS_CONFIG),
        ]
        .into_iter()
        .filter(|(offered, _)| *offered)
        .fold(0, |all, (_, feature)| all | feature)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.options.queue_sizes
    }

    fn attach(&mut self, handle: Handle) {
        self.shared.attach(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config().bytes(), offset, data);
    }

    /// The driver may write `bypass` and nothing else, 0 or 1, if it has accepted that (section 5.13.4.1).
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (BYPASS, &[value @ 0..=1], true) = (offset, data, self.features & F_BYPASS_CONFIG != 0) {
            self.shared.change_all(|tables| tables.bypass = value == 1);
        }
    }

    fn negotiated(&mut self, features: u64) {
        self.features = features;
        if self.options.bypass == Bypass::Feature {
            self.shared.change_all(|tables| tables.features = features);
        }
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        let shared = Arc::clone(&self.shared);
        match queue {
            QueueIndex(0) => Box::new(RequestQueue::new(shared, self.features)),
            _ => Box::new(EventQueue(shared)),
        }
    }

    fn reset(&mut self) {
        self.features = 0;
        self.shared.change_all(Tables::reset);
        lock(&self.shared.faults).backlog.clear();
        lock(&self.shared.pending).restore(&[]);
    }

    fn save(&self) -> DeviceState {
        let Shared {
            // By the options.
            probe_size: _,
            max_faults: _,
            tables,
            faults,
            pending,
            ..
        } = &*self.shared;
        let tables = lock(tables);
        let faults = lock(faults);
        DeviceState::Iommu(IommuState {
            bypass: tables.bypass,
            domains: tables.save(),
            faults: faults.backlog.iter().copied().collect(),
            lost: faults.lost,
            waiting: lock(pending).heads(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Iommu(state) = state else {
            return Err(DeviceStateError::kind(state, "an IOMMU's"));
        };
        let restored = Tables::restored(&self.options, state)?;
        self.shared.change_all(|tables| *tables = restored);
        let mut faults = lock(&self.shared.faults);
        faults.backlog = state.faults.iter().copied().collect();
        faults.lost = state.lost;
        lock(&self.shared.pending).restore(&state.waiting);
        Ok(())
    }
}

impl fmt::Debug for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iommu")
            .field("options", &self.options)
            .field("mappings", &self.mappings())
            .field("faults", &self.faults())
            .finish_non_exhaustive()
    }
}
