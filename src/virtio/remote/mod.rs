//! A device whose queues a vhost-user back end serves: virtiofsd, qemu-storage-daemon, the vhost-device daemons, DPDK, SPDK, or a
//! [device of ours](super::transport::vhost_user) elsewhere (feature `vhost-user`).
//!
//! It is a device like others, behind any transport. What the driver has set up is handed to the back end with the files that guest memory is
//! mapped from; kicks are passed on, its calls become interrupts, its configuration space is the device's. Requests and data are between
//! the driver and the back end, and pass through nothing here.
//!
//! | file | what is in it |
//! |---|---|
//! | `connect` | how a back end is reached |
//! | `peer` | what one is, whoever it is |
//! | `socket`, [`kernel`] | one at the end of a socket; one in the kernel, by ioctls |
//! | `link` | what is agreed with it, and what outlives a connection |
//! | `ring` | the handler of a queue: kicks, calls, back ends that go and come |
//! | `regions`, `log` | guest memory as it is shared, and what of it was written |
//! | `windows` | files that it has mapped for the guest |
//! | `objects` | what back ends share with each other |
//! | `state`, `written` | what is saved, and what the driver has written |
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
//! *What a back end may do* to the guest's memory is anything: it is trusted as a device is. That includes to make its files shorter, which
//! ends whoever uses it with SIGBUS: seal them (`F_SEAL_SHRINK`). Eventfds that it shares are not waited for, whatever it makes of their
//! flags. A back end that is cut off while it still
//! runs may still write there; an embedder that cannot have that ends its process.
//!
//! *Rings*: of the features of queues those are offered that the back end has, as far as the transport's options offer them too. Memory behind
//! an IOMMU is not shared (ACCESS_PLATFORM).
//!
//! *Migration*: a saved device has the back end's own state with it (DEVICE_STATE), if that can be had and a driver has begun to use it;
//! what it writes meanwhile [is noted](Remote::start_dirty_log). The back end of before is told nothing but that its rings stop.
//!
//! *Memory that comes and goes* is told region by region (CONFIGURE_MEM_SLOTS), or as a whole, when the embedder says
//! [so](super::VirtioTransport::memory_changed); rings whose memory stays go on meanwhile.
//!
//! *Without our threads*: [`kick`](Remote::kick) is what the hypervisor signals in the place of an exit, and what the back end
//! [calls](Remote::set_call) may be the hypervisor's too.
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

mod connect;
mod error;
mod event;
pub mod kernel;
mod kinds;
mod link;
mod log;
mod objects;
mod options;
mod peer;
mod regions;
mod registers;
mod ring;
mod shared;
mod socket;
mod state;
mod windows;
mod written;

use std::{
    fmt, io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
};

use vm_memory::GuestAddressSpace;

use super::{
    DeviceId, DeviceState, DeviceStateError, Handle, HostFailures, QueueHandler, QueueIndex, SharedMemoryRegion,
    VirtioDevice, device::read_config_bytes, features,
};
use crate::{sync::lock, time::Clock};
use event::{Event, Events};
use link::Link;
use registers::{RESERVED, RINGS, TRANSPORT};
use ring::{OurRing, RemoteRing};
use shared::Shared;
use windows::Windows;

pub use connect::{Connect, Connection, SocketPath};
pub use error::RemoteError;
pub use objects::SharedObjects;
pub use options::{ConfigSpace, RemoteOptions};
pub use state::{BackEndState, RemoteState};
pub use windows::{MapShared, Mapping};

/// A device that a vhost-user back end serves. See [the module](self).
///
/// *Threads*: queues wait for descriptors ([`Wait::Readable`](super::Wait)), so the device needs a doorbell that waits, or an embedder
/// that asks what is waited for. Its configuration space is answered at once; a write to it, features, and the start and stop of queues ask
/// the back end, one at a time.
pub struct Remote {
    features: u64,
    back_end: u64,
    queue_sizes: Box<[u16]>,
    /// The queues that the back end leaves to us.
    ours: Vec<u16>,
    /// Whether one of its queues can stop while the others run.
    stops_alone: bool,
    shared: Arc<Shared>,
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
        let (count, not_shared) = {
            let now = regions()?;
            (now.len(), regions::not_shared(&now))
        };
        let windows = Arc::new(Mutex::new(Windows::new(&options.shared_memory)));
        let (link, found) = Link::new(Box::new(connect), &options, Arc::clone(&windows))?;
        if found.needs_files {
            not_shared?;
        }
        if count as u64 > found.most_regions {
            return Err(RemoteError::Regions(count, found.most_regions));
        }
        let events: io::Result<Box<[_]>> = (0..found.queues).map(|_| Events::new()).collect();
        let of_type = found.features & !RESERVED & !options.without_features;
        Ok(Self {
            features: of_type | options.more_features & !RESERVED,
            back_end: found.features,
            queue_sizes: vec![options.queue_size; found.queues.into()].into(),
            ours: found.ours,
            stops_alone: found.stops_alone,
            shared: Arc::new(Shared::new(options, link, regions, events?, found.config, windows)),
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

    /// With somebody who maps files for the back end in the [shared memory regions](RemoteOptions::shared_memory): without, none is.
    pub fn with_shared_memory(self, mapper: impl MapShared + 'static) -> Self {
        lock(&self.shared.windows).mapper = Some(Box::new(mapper));
        self
    }

    /// Has the back end note which pages of guest memory it writes, from here on and until [that ends](Self::stop_dirty_log): for a
    /// migration, besides what the embedder's own bitmaps know of other devices. It goes on with back ends that come later, and with memory
    /// that is plugged meanwhile.
    ///
    /// # Errors
    /// Memory cannot be shared, the back end cannot do that, or it has gone in the attempt; then there is no log.
    pub fn start_dirty_log(&self) -> Result<(), RemoteError> {
        if !lock(&self.shared.link).can_log() {
            return Err(RemoteError::NoLog);
        }
        let regions = (self.shared.regions)()?;
        let started = self.shared.with_link(|link| link.set_logging(Some(regions)));
        match started {
            Some(()) => Ok(()),
            None => Err(io::Error::from(io::ErrorKind::NotConnected).into()),
        }
    }

    /// Tells the guest address of each page of 4096 bytes that was noted since this was last called, and forgets it. Once the device is
    /// [still](super::VirtioTransport::is_still), nothing more comes.
    pub fn take_dirty(&self, page: impl FnMut(u64)) {
        if let Some(log) = lock(&self.shared.link).log() {
            log.take(page);
        }
    }

    /// Ends what [`start_dirty_log`](Self::start_dirty_log) has begun.
    pub fn stop_dirty_log(&self) {
        let _ = self.shared.with_link(|link| link.set_logging(None));
    }

    /// With an eventfd of the embedder's that the back end is [kicked](Self::kick) by: one that its hypervisor signals anyway, when it
    /// [catches](crate::bus::Doorbells) a kick. Before the device is put behind a transport; of a queue that there is not, nothing.
    pub fn with_kick(mut self, queue: QueueIndex, event: OwnedFd) -> Self {
        let events = Arc::get_mut(&mut self.shared).map(|shared| &mut shared.events);
        if let Some(events) = events.and_then(|events| events.get_mut(usize::from(queue.0))) {
            events.kick = Event::of(event);
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

    /// Has the back end of `queue` call this descriptor from here on, or us again: one that interrupts the guest by itself, such as an irqfd
    /// of the [vector](crate::pci::MsiX::export) that the driver has mapped. It is for the embedder to take it away when it is dead. Behind
    /// virtio-mmio there is none: its driver reads an interrupt status that is ours.
    pub fn set_call(&self, queue: QueueIndex, call: Option<OwnedFd>) {
        let Some(events) = self.shared.events.get(usize::from(queue.0)) else {
            return;
        };
        events.set_direct(call);
        let _ = self.shared.with_link(|link| link.set_call(queue.0, events));
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
        let not = if self.stops_alone { 0 } else { features::RING_RESET };
        features & (ours | RINGS & self.back_end) & !not
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn attach(&mut self, handle: Handle) {
        let _ = self.shared.handle.set(handle);
        self.shared.join();
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

    fn shared_memory(&self, id: u8) -> Option<SharedMemoryRegion> {
        lock(&self.shared.windows).region(id)
    }

    fn accepts(&self, features: u64) -> bool {
        let rings = features & RINGS;
        features & features::ACCESS_PLATFORM == 0 && rings & !self.back_end == 0
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        let shared = Arc::clone(&self.shared);
        if self.ours.contains(&queue.0) {
            return Box::new(OurRing(shared));
        }
        Box::new(RemoteRing::new(shared, queue))
    }

    fn reset(&mut self) {
        self.shared.has_ended.store(false, SeqCst);
        if let Some(Some(config)) = self.shared.with_link(Link::reset) {
            *lock(&self.shared.config) = config;
        }
    }

    fn save(&self) -> DeviceState {
        let Self {
            features: _,
            back_end: _,
            queue_sizes,
            ours: _,
            stops_alone: _,
            shared,
        } = self;
        DeviceState::Remote(state::save(shared, queue_sizes))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        state::restore(&self.shared, &self.queue_sizes, state)
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
