//! The memory device (virtio 1.2, section 5.15): memory that is plugged and unplugged in blocks.

mod blocks;
mod options;
mod region;
mod registers;
mod requests;

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use super::{
    DeviceId, DeviceState, DeviceStateError, FailureLog, Handle, HostFailures, QueueHandler, QueueIndex, VirtioDevice,
    device::read_config_bytes, reclaim::Reclaim,
};
use crate::sync::lock;
use blocks::Blocks;
use region::{Now, Region};
use registers::{config, feature};
use requests::Requests;

pub use options::{MemoryDeviceError, MemoryDeviceOptions, UnpluggedAccess};

/// Memory that the guest plugs and unplugs, block by block, as much of it as it is asked to.
///
/// *How much*: [`set_requested_size`](Self::set_requested_size), through [`change_config`](super::VirtioMmio::change_config), asks for so
/// many bytes. The guest gets no more than that; it may keep more, if it had it before and cannot free it.
///
/// *What the driver is answered* (section 5.15.6): ERROR for an unknown or a short request, for blocks that are not whole, none,
/// or outside of the usable region, and for a block that is plugged already or is not; NACK for more than is requested; BUSY while the
/// embedder [says so](Self::set_busy), and if the host fails, which is counted.
///
/// *What is unplugged* goes back to the host. It is there all the same if a guest touches it: that it costs the host memory then, or that
/// it does not, is for the [`Reclaim`] to decide (it hears of every block that is plugged).
///
/// *A reset* by the driver changes no block: it finds them as they were. A reset of the machine is
/// [`system_reset`](Self::system_reset).
///
/// ```
/// use devisor::{
///     interrupt::NoInterrupt,
///     virtio::{VirtioMmio, mem::{MemoryDevice, MemoryDeviceOptions}, transport::mmio::Line},
/// };
/// # #[cfg(target_os = "linux")] {
/// use devisor::virtio::reclaim::Madvise;
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// // 64 MiB from the beginning, and up to 256 MiB more.
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[
///     (GuestAddress(0), 64 << 20),
///     (GuestAddress(1 << 32), 256 << 20),
/// ])?);
/// let options = MemoryDeviceOptions::new(1 << 32..(1 << 32) + (256 << 20));
/// let device = MemoryDevice::new(Madvise::new(memory.clone()), options)?;
/// let device = VirtioMmio::new(device, memory, Line::Edge(Arc::new(NoInterrupt)))?;
///
/// device.change_config(|device| device.set_requested_size(128 << 20))?;
/// assert_eq!(device.with_device(|device| device.plugged_size()), 0);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct MemoryDevice {
    region: Arc<Region>,
    queue_sizes: [u16; 1],
}

/// The state of a memory device as plain data. What is in the memory is the embedder's to save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryDeviceState {
    /// As the device was made, but for what is requested: that is as of now.
    pub options: MemoryDeviceOptions,
    /// `usable_region_size`.
    pub usable_size: u64,
    /// Which blocks are plugged: block n is bit n % 64 of word n / 64.
    pub plugged: Vec<u64>,
}

impl MemoryDevice {
    /// A memory device whose blocks go to `reclaim`, and come from there. All are unplugged.
    ///
    /// # Errors
    /// An option is out of range.
    pub fn new(reclaim: impl Reclaim + 'static, options: MemoryDeviceOptions) -> Result<Self, MemoryDeviceError> {
        options.check(reclaim.granularity(options.region.start))?;
        let now = Now {
            requested: options.requested_size,
            usable: options.usable(options.requested_size),
            blocks: Blocks::new(options.blocks()),
        };
        Ok(Self {
            queue_sizes: [options.queue_size],
            region: Arc::new(Region {
                options,
                reclaim: Box::new(reclaim),
                failures: FailureLog::default(),
                handle: OnceLock::new(),
                busy: AtomicBool::new(false),
                alone: Mutex::default(),
                now: Mutex::new(now),
            }),
        })
    }

    /// Bytes that the guest is to have plugged.
    pub fn requested_size(&self) -> u64 {
        lock(&self.region.now).requested
    }

    /// Asks the guest to have so many bytes plugged. The usable region grows with it. Call this through
    /// [`VirtioMmio::change_config`](super::VirtioMmio::change_config) or [`VirtioPci::change_config`](super::VirtioPci::change_config),
    /// which tells the driver.
    ///
    /// # Errors
    /// These are no whole blocks, or more than the region has. Nothing is changed.
    pub fn set_requested_size(&mut self, bytes: u64) -> Result<(), MemoryDeviceError> {
        let options = &self.region.options;
        options.check_requested(bytes)?;
        let mut now = lock(&self.region.now);
        now.requested = bytes;
        now.usable = now.usable.max(options.usable(bytes));
        Ok(())
    }

    /// Bytes that are plugged.
    pub fn plugged_size(&self) -> u64 {
        lock(&self.region.now).blocks.plugged() * self.region.options.block_size
    }

    /// Bytes of the region in which the guest may plug.
    pub fn usable_size(&self) -> u64 {
        lock(&self.region.now).usable
    }

    /// Whether requests to plug and unplug are answered BUSY from now on: while the machine is copied to another host, say. The driver
    /// asks again.
    pub fn set_busy(&mut self, busy: bool) {
        self.region.busy.store(busy, SeqCst);
    }

    /// The machine is reset: unplugs all blocks, and makes the usable region as small as it may be. The queue is at rest then: the
    /// device was [reset](super::VirtioTransport::reset) before.
    ///
    /// # Errors
    /// The host fails. What is plugged still is: the driver unplugs it, or finds it.
    pub fn system_reset(&mut self) -> io::Result<()> {
        let _alone = lock(&self.region.alone);
        self.region.clear()
    }

    /// What the host has failed at. The driver was answered BUSY.
    pub fn host_failures(&self) -> HostFailures {
        self.region.failures.get()
    }

    fn config(&self) -> [u8; config::LEN] {
        let options = &self.region.options;
        let now = lock(&self.region.now);
        let mut bytes = [0; config::LEN];
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(config::BLOCK_SIZE, options.block_size);
        // The padding after it is zero.
        put(config::NODE_ID, options.node_id.unwrap_or(0).into());
        put(config::ADDR, options.region.start);
        put(config::REGION_SIZE, options.size());
        put(config::USABLE_REGION_SIZE, now.usable);
        put(config::PLUGGED_SIZE, now.blocks.plugged() * options.block_size);
        put(config::REQUESTED_SIZE, now.requested);
        bytes
    }

    /// Where the device would be with this state.
    fn restored(&self, state: &MemoryDeviceState) -> Result<Now, String> {
        let MemoryDeviceState {
            options,
            usable_size,
            plugged,
        } = state;
        let made = &self.region.options;
        let requested = options.requested_size;
        let same = MemoryDeviceOptions {
            requested_size: made.requested_size,
            // What the embedder gives from now on.
            usable_extra: made.usable_extra,
            ..options.clone()
        };
        if same != *made {
            return Err(format!("as {made:?}, where the state has {options:?}"));
        }
        made.check_requested(requested).map_err(|error| error.to_string())?;
        let whole = usable_size.is_multiple_of(made.block_size);
        if !whole || *usable_size < requested || *usable_size > made.size() {
            return Err(format!(
                "with blocks of {:#x} in {:#x} bytes, of which {usable_size:#x} cannot be usable with {requested:#x} requested",
                made.block_size,
                made.size()
            ));
        }
        let Some(blocks) = Blocks::from_bitmap(made.blocks(), plugged) else {
            return Err(format!("with {} blocks, which the bitmap is not of", made.blocks()));
        };
        if blocks.plugged_in(0..usable_size / made.block_size) != blocks.plugged() {
            return Err("with no block plugged outside of the usable region, as the state has it".into());
        }
        Ok(Now {
            requested,
            usable: *usable_size,
            blocks,
        })
    }
}

impl VirtioDevice for MemoryDevice {
    fn device_id(&self) -> DeviceId {
        DeviceId::MEMORY
    }

    fn features(&self) -> u64 {
        let options = &self.region.options;
        let pxm = options.node_id.map_or(0, |_| feature::ACPI_PXM);
        match options.unplugged_access {
            UnpluggedAccess::Allowed => pxm,
            UnpluggedAccess::Discouraged | UnpluggedAccess::Refused => pxm | feature::UNPLUGGED_INACCESSIBLE,
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn attach(&mut self, handle: Handle) {
        let _ = self.region.handle.set(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn accepts(&self, features: u64) -> bool {
        let refuses = self.region.options.unplugged_access == UnpluggedAccess::Refused;
        !refuses || features & feature::UNPLUGGED_INACCESSIBLE != 0
    }

    fn start(&mut self, _queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Requests(Arc::clone(&self.region)))
    }

    fn save(&self) -> DeviceState {
        let Region {
            options,
            reclaim: _,
            failures: _,
            handle: _,
            // The embedder's.
            busy: _,
            alone: _,
            now,
        } = &*self.region;
        let Now {
            requested,
            usable,
            blocks,
        } = &*lock(now);
        DeviceState::Memory(MemoryDeviceState {
            options: MemoryDeviceOptions {
                requested_size: *requested,
                ..options.clone()
            },
            usable_size: *usable,
            plugged: blocks.bitmap(),
        })
    }

    /// The region, its blocks and what is offered have to be the same. Memory for what is plugged has to be had.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Memory(state) = state else {
            return Err(DeviceStateError::kind(state, "a memory device's"));
        };
        let restored = self.restored(state).map_err(DeviceStateError::Otherwise)?;
        let _alone = lock(&self.region.alone);
        self.region
            .populate(&restored.blocks)
            .map_err(|error| DeviceStateError::Otherwise(format!("on a host without memory for it: {error}")))?;
        *lock(&self.region.now) = restored;
        Ok(())
    }
}

impl fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDevice")
            .field("options", &self.region.options)
            .field("requested_size", &self.requested_size())
            .field("usable_size", &self.usable_size())
            .field("plugged_size", &self.plugged_size())
            .field("failures", &self.region.failures)
            .finish_non_exhaustive()
    }
}
