//! A device whose queues a vhost-user back end serves: virtiofsd, qemu-storage-daemon, the vhost-device daemons, DPDK, SPDK, or a
//! [device of ours](super::transport::vhost_user) elsewhere (feature `vhost-user`).
//!
//! It is a device like others, behind any transport. What the driver has set up is handed to the back end with the files that guest memory is
//! mapped from; kicks are passed on, its calls become interrupts, its configuration space is the device's. Requests and data are between
//! the driver and the back end, and pass through nothing here.
//!
//! | file | what is in it |
//! |---|---|
//! | `connect`, `channel` | how a back end is reached; requests and answers |
//! | `link` | what is agreed: features, memory, rings, the table of requests in flight |
//! | `ring` | the handler of a queue: kicks, calls, back ends that go and come |
//! | `regions` | guest memory that can be shared |
//! | `kinds`, `options` | what is known of device types, what the embedder says |
//!
//! *Patience*: what is asked of a back end has a deadline ([`RemoteOptions::patience`], and [`drain`](RemoteOptions::drain) for what is
//! in flight in a queue that stops), so a vCPU is held no longer. One that answers late, or what is no answer, is cut off, and that is
//! [counted](Remote::host_failures).
//!
//! *A back end that goes* leaves its queues as they are; the driver sees requests that take long. It is tried again to reach one every
//! [`retry`](RemoteOptions::retry) if there is a [clock](Remote::with_clock), and with each kick, or when the embedder
//! [says so](Remote::look). It goes on with the table of requests in flight that the last one left (`INFLIGHT_SHMFD`). A back end
//! without such a table goes on where the used ring ends; what it had not used is put in order there, as long as both rings still
//! show all since nothing was in flight. Beyond that nothing is lost if it uses requests in their order. A packed ring does not say where it ends: the device needs a reset then.
//!
//! *What a back end may do* to the guest's memory is anything: it is trusted as a device is. A back end that is cut off while it still
//! runs may still write there; an embedder that cannot have that ends its process.
//!
//! *Rings*: of the features of queues those are offered that the back end has, as far as the transport's options offer them too. Memory behind
//! an IOMMU is not shared (ACCESS_PLATFORM).
//!
//! *vhost in the kernel* is not here: its requests are ioctls with the same payloads but for memory (`VHOST_SET_MEM_TABLE` has no
//! files) and a call for each device type that starts it (`VHOST_NET_SET_BACKEND`, `VHOST_VSOCK_SET_RUNNING`), and it needs the channel
//! to be a trait.
//!
//! ```no_run
//! use devisor::{
//!     interrupt::NoInterrupt,
//!     virtio::{
//!         DeviceId, VirtioMmio,
//!         remote::{Remote, RemoteOptions, SocketPath},
//!         transport::mmio::Line,
//!     },
//! };
//! use std::sync::Arc;
//! use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
//!
//! # fn memfd() -> std::io::Result<std::fs::File> { std::fs::File::open("/dev/zero") }
//! // Memory that can be shared: mapped from a file.
//! let file = memfd()?;
//! file.set_len(64 << 20)?;
//! let ram = [(GuestAddress(0), 64 << 20, Some(FileOffset::new(file, 0)))];
//! let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges_with_files(ram)?);
//!
//! let disk = RemoteOptions::new(DeviceId::BLOCK);
//! let disk = Remote::new(SocketPath("/run/disk.sock".into()), Arc::clone(&memory), disk)?;
//! let disk = VirtioMmio::new(disk, memory, Line::Edge(Arc::new(NoInterrupt)))?;
//! # drop(disk);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod channel;
mod connect;
mod event;
mod kinds;
mod link;
mod options;
mod regions;
mod registers;
mod ring;
mod shared;

use std::{
    fmt, io,
    os::fd::BorrowedFd,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use vm_memory::GuestAddressSpace;

use super::{
    DeviceId, DeviceState, DeviceStateError, Handle, HostFailures, QueueHandler, QueueIndex, VirtioDevice,
    device::read_config_bytes, features,
};
use crate::{sync::lock, time::Clock};
use link::{Events, Link};
use registers::{RESERVED, RINGS, TRANSPORT};
use ring::RemoteRing;
use shared::Shared;

pub use connect::{Connect, SocketPath};
pub use options::{ConfigSpace, RemoteOptions};

/// A device cannot be made of a back end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The back end cannot be reached, or what it says is no vhost-user.
    #[error("the back end: {0}")]
    BackEnd(#[from] io::Error),
    /// Memory without a file.
    #[error(
        "guest memory at {0:#x} has no file behind it: memory that is mapped from a file, a memfd say, and shared is accepted"
    )]
    NotShared(u64),
    /// Memory that is translated.
    #[error("guest memory that an IOMMU translates: memory with regions of its own is accepted")]
    Translated,
    /// More regions than a message carries.
    #[error("{0} regions of guest memory: up to {1} are accepted by this back end")]
    Regions(usize, u64),
    /// A back end for legacy drivers.
    #[error("a back end with features {0:#x}: one that offers VERSION_1 is accepted")]
    Features(u64),
    /// More queues than it has, or none.
    #[error("{asked} queues: 1 to {most} are accepted by this back end")]
    Queues {
        /// What was asked for.
        asked: u16,
        /// What it has; of a network device, pairs.
        most: u16,
    },
    /// No such queue size.
    #[error("queue size {0}: a power of two up to 32768 is accepted")]
    QueueSize(u16),
    /// No such configuration space.
    #[error("a configuration space of {0} bytes: up to 256 are accepted")]
    ConfigSize(usize),
    /// The back end has no configuration space.
    #[error("the back end has no configuration space (CONFIG): one that is said in the options is accepted")]
    NoConfig,
}

/// A device that a vhost-user back end serves. See [the module](self).
///
/// *Threads*: queues wait for descriptors ([`Wait::Readable`](super::Wait)), so the device needs a doorbell that waits, or an embedder
/// that asks what is waited for. Its configuration space is answered at once; a write to it, features, and the start and stop of queues ask
/// the back end, one at a time.
pub struct Remote {
    features: u64,
    back_end: u64,
    queue_sizes: Box<[u16]>,
    shared: Arc<Shared>,
}

/// The state of a device that a back end serves, as plain data. What the back end keeps is the back end's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteState {
    /// The device type.
    pub device: u32,
    /// Size of each queue.
    pub queue_sizes: Vec<u16>,
    /// What the driver has written to the configuration space: where, and what.
    pub written: Vec<(u16, u8)>,
}

impl Remote {
    /// A device that the back end at the end of `connect` serves, in `memory`: the guest's, which its transport is given too.
    ///
    /// Waits for the back end's answers, [`patience`](RemoteOptions::patience) at most.
    ///
    /// # Errors
    /// There is no back end, it has not what is asked for, or guest memory cannot be shared.
    pub fn new<A>(connect: impl Connect + 'static, memory: A, options: RemoteOptions) -> Result<Self, RemoteError>
    where
        A: GuestAddressSpace + Send + Sync + 'static,
    {
        options.check()?;
        let regions = regions::of(memory);
        let count = regions()?.len();
        let (link, found) = Link::new(Box::new(connect), &options)?;
        if count as u64 > found.most_regions {
            return Err(RemoteError::Regions(count, found.most_regions));
        }
        let events: io::Result<Box<[_]>> = (0..found.queues).map(|_| Events::new()).collect();
        let of_type = found.features & !RESERVED & !options.without_features;
        Ok(Self {
            features: of_type | options.more_features & !RESERVED,
            back_end: found.features,
            queue_sizes: vec![options.queue_size; found.queues.into()].into(),
            shared: Arc::new(Shared::new(options, link, regions, events?, found.config)),
        })
    }

    /// With a clock, the one that the embedder runs its devices by: then a back end that has gone is looked for without a kick. Before it is
    /// put behind a transport.
    pub fn with_clock(mut self, clock: impl Clock + 'static) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.clock = Some(Arc::new(clock));
        }
        self
    }

    /// Connections that could not be made, that ended, and that were cut off for what the back end said or did not say.
    pub fn host_failures(&self) -> HostFailures {
        self.shared.failures.get()
    }

    /// How often a back end was reached again after one had gone.
    pub fn returns(&self) -> u64 {
        self.shared.returns.load(SeqCst)
    }

    /// Has every queue looked at, and a back end that has gone looked for.
    pub fn look(&self) {
        if let Some(handle) = self.shared.handle.get() {
            (0..self.queue_sizes.len()).for_each(|index| handle.look(QueueIndex(index as u16)));
        }
    }

    /// What the back end is kicked by: an eventfd, to be registered where the hypervisor has kicks signal one (an ioeventfd), so that
    /// they do not pass through here. The same for as long as the device lives.
    pub fn kick(&self, queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        let events = self.shared.events.get(usize::from(queue.0))?;
        Some(events.kick.borrow())
    }
}

impl VirtioDevice for Remote {
    fn device_id(&self) -> DeviceId {
        self.shared.options.device
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_features(&self, features: u64) -> u64 {
        let ours = TRANSPORT | features::VERSION_1;
        features & (ours | RINGS & self.back_end)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn attach(&mut self, handle: Handle) {
        let _ = self.shared.handle.set(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&lock(&self.shared.config), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let ConfigSpace::BackEnd(len) = self.shared.options.config else {
            return;
        };
        let within = offset
            .checked_add(data.len() as u64)
            .is_some_and(|end| end <= len.into());
        if !within || data.is_empty() {
            return;
        }
        let offset = offset as usize;
        let written = self.shared.with_link(|link| {
            link.write_config(offset, data)?;
            // Only some fields are the driver's to write.
            if link.ends().is_some() {
                link.config_now()
            } else {
                Ok(None)
            }
        });
        if let Some(Some(config)) = written {
            *lock(&self.shared.config) = config;
        }
    }

    fn accepts(&self, features: u64) -> bool {
        let rings = features & RINGS;
        features & features::ACCESS_PLATFORM == 0 && rings & !self.back_end == 0
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(RemoteRing::new(Arc::clone(&self.shared), queue))
    }

    fn reset(&mut self) {
        if let Some(Some(config)) = self.shared.with_link(Link::reset) {
            *lock(&self.shared.config) = config;
        }
    }

    fn save(&self) -> DeviceState {
        let Self {
            features: _,
            back_end: _,
            queue_sizes,
            shared,
        } = self;
        DeviceState::Remote(RemoteState {
            device: shared.options.device.0,
            queue_sizes: queue_sizes.to_vec(),
            written: lock(&shared.link).written(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Remote(RemoteState {
            device,
            queue_sizes,
            written,
        }) = state
        else {
            return Err(DeviceStateError::kind(state, "one of a device that a back end serves"));
        };
        let (id, sizes) = (self.shared.options.device.0, &self.queue_sizes);
        if *device != id || **queue_sizes != **sizes {
            return Err(DeviceStateError::Otherwise(format!(
                "device type {id} with queues of {sizes:?}, where the state has {device} and {queue_sizes:?}"
            )));
        }
        if !lock(&self.shared.link).can_write(written) {
            return Err(DeviceStateError::Otherwise(
                "the driver has written beyond its configuration space".into(),
            ));
        }
        // One that cannot be told now is when it is back.
        let config = self.shared.with_link(|link| {
            link.write_all(written)?;
            if link.ends().is_some() {
                link.config_now()
            } else {
                Ok(None)
            }
        });
        if let Some(Some(config)) = config {
            *lock(&self.shared.config) = config;
        }
        Ok(())
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("options", &self.shared.options)
            .field("features", &self.features)
            .field("failures", &self.shared.failures)
            .finish_non_exhaustive()
    }
}
