//! Virtio over PCI, without the legacy interface (virtio 1.2, section 4.1).
//!
//! | BAR | what is in it |
//! |---|---|
//! | 0 | 32 bits, a page each: common configuration, ISR status, device configuration; then a doorbell of 4 bytes for each queue |
//! | 1 | 32 bits: the table and the pending bits of MSI-X |
//! | 2, 3 | 64 bits, prefetchable: the shared memory regions, if the device has any |
//!
//! All but the table of MSI-X is found through capabilities, and reached through BARs or through the window of
//! `VIRTIO_PCI_CAP_PCI_CFG` in configuration space.

mod common;
mod interrupt;
mod layout;
mod outside;
mod registers;
mod state;
mod window;

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use vm_memory::GuestAddressSpace;

use super::{
    common::{Core, TransportError},
    doorbell::Doorbell,
    face::{VirtioTransport, forward_to_core},
    options::TransportOptions,
    saved::{NotStill, RestoreError, SavedDevice},
};
use crate::{
    bus::{Doorbells, read_le, write_le},
    memory::Memory,
    pci::{BarIndex, ConfigError, Endpoint, Function, Pin, Slot},
    sync::lock,
    virtio::{VirtioDevice, features, queue::VirtioInterrupt},
};

pub use super::saved::VirtioPciState;
use interrupt::PciInterrupt;
use layout::{Layout, Region, STRUCTURES, Structure};
use outside::Outside;
pub use outside::SharedMemoryMap;

/// The end of the command register in configuration space, with Bus Master in it.
const COMMAND_END: u64 = 6;

/// What an embedder decides about a device behind virtio-pci.
///
/// ```
/// use devisor::{pci::Pin, virtio::transport::pci::VirtioPciOptions};
///
/// // For a platform without message-signalled interrupts.
/// let options = VirtioPciOptions { vectors: Some(0), ..VirtioPciOptions::default() };
/// assert_eq!(options.pin, Pin::A);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioPciOptions {
    /// Vectors of MSI-X, up to 2048; none if zero. By default one for each queue and one for the configuration.
    pub vectors: Option<u16>,
    /// The pin of INTx.
    pub pin: Pin,
    /// How long a driver's write that resets the device or a queue waits for requests under way. After that it returns, the
    /// register reads as not reset, and other writes are ignored, until they have ended: drivers wait for that.
    pub reset_patience: Duration,
    /// What is offered to the driver.
    pub transport: TransportOptions,
}

impl Default for VirtioPciOptions {
    fn default() -> Self {
        Self {
            vectors: None,
            pin: Pin::A,
            reset_patience: Duration::from_millis(10),
            // The address says which queue a kick is for, whatever is stored.
            transport: TransportOptions {
                notification_data: true,
                ..TransportOptions::default()
            },
        }
    }
}

/// A device cannot be put behind virtio-pci.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioPciError {
    /// The device offers what no transport takes.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The device type has no PCI device ID.
    #[error("device type {0}: 1 to 63 have a PCI device ID")]
    DeviceType(u32),
    /// A shared memory region is too long for a BAR.
    #[error("shared memory region {id} of {len:#x} bytes: all of them together have to fit into a BAR of 2^63")]
    SharedMemory {
        /// Which region.
        id: u8,
        /// Its length in bytes.
        len: u64,
    },
    /// The function cannot be laid out: too many vectors, or more shared memory regions than there is room for capabilities.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A virtio device as a PCI function.
///
/// *For embedders*: build it in a [`Slot`] and insert it into the [`RootBus`](crate::pci::RootBus) of that slot. The driver's
/// kicks are trapped stores; with [doorbells](Self::with_caught_doorbells) the hypervisor catches them. Without a
/// [`Doorbell`](Self::with_doorbell) the device runs on the thread that kicks; with one, on the thread that calls
/// [`run`](VirtioTransport::run). Every method may be called from any thread.
///
/// The device touches no guest memory while the driver has not set Bus Master in the command register: kicks are kept
/// until it does, and messages are as if masked, for both are writes to memory by the function. Clearing it ends the work
/// under way.
///
/// A vector's or the line's callback must not access this device from inside `trigger`, other than to read the ISR status,
/// to kick, and to change the mask of a vector.
///
/// A reset by the driver (status 0) forgets mapped vectors, what they have pending, and gives them back to the platform; where
/// the function decodes, and the table and masks of MSI-X, stay as they are.
///
/// ```
/// use devisor::{interrupt::NoInterrupt, pci::*, virtio::{VirtioPci, entropy::Entropy}};
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let wires = [(); 4].map(|()| Arc::new(NoInterrupt) as Arc<dyn devisor::interrupt::LevelInterrupt>);
/// let pci = RootBus::new(wires, Arc::new(NoMessages));
/// let address = DeviceFunction::new(1, 0).unwrap();
/// let rng = VirtioPci::new(Entropy::seeded(1), memory, pci.slot(address)?)?;
/// pci.insert(Arc::new(rng))?;
///
/// let mut id = [0; 4];
/// pci.read_config(address, 0, &mut id);
/// assert_eq!(id, [0xf4, 0x1a, 0x44, 0x10]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VirtioPci<D> {
    // Configured.
    /// Where the capability of the window is in configuration space.
    window: u64,
    regions: Vec<Region>,
    // What the guest changes.
    core: Arc<Core<D>>,
    reset_patience: Duration,
    interrupt: Arc<PciInterrupt>,
    // Plugged in.
    outside: Mutex<Outside>,
}

impl<D: VirtioDevice + 'static> VirtioPci<D> {
    /// Puts `device` into `slot`, with queues in the guest memory `space`.
    ///
    /// # Errors
    /// [`VirtioPciError`] if the device offers what cannot be.
    pub fn new<A>(device: D, space: A, slot: Slot) -> Result<Self, VirtioPciError>
    where
        A: GuestAddressSpace + Send + Sync + 'static,
        A::T: Send + Sync + 'static,
    {
        Self::with_options(device, space, slot, &VirtioPciOptions::default())
    }

    /// [`new`](Self::new), with what there is to choose. As there, a device whose requests end later than in the round that has found
    /// them needs a [doorbell](Self::with_doorbell), or an embedder that [runs](VirtioTransport::run) it.
    ///
    /// # Errors
    /// [`VirtioPciError`] if the device or the options offer what cannot be.
    pub fn with_options<A>(device: D, space: A, slot: Slot, options: &VirtioPciOptions) -> Result<Self, VirtioPciError>
    where
        A: GuestAddressSpace + Send + Sync + 'static,
        A::T: Send + Sync + 'static,
    {
        Self::with_memory(device, Memory::new(space), slot, options)
    }

    /// [`with_options`](Self::with_options), with guest memory as an [IOMMU](crate::virtio::iommu) has the device see it. Its messages are
    /// not translated.
    ///
    /// # Errors
    /// As there.
    pub fn with_memory(
        device: D,
        memory: Memory,
        slot: Slot,
        options: &VirtioPciOptions,
    ) -> Result<Self, VirtioPciError> {
        let queues = device.queue_sizes().len();
        let Layout {
            config,
            regions,
            window,
        } = Layout::new(device.device_id(), queues, |id| device.shared_memory(id), options)?;
        let interrupt = Arc::new(PciInterrupt::new(Endpoint::new(config, slot), queues));
        let core = Core::new(
            device,
            memory,
            Arc::clone(&interrupt) as _,
            &options.transport,
            features::NOTIF_CONFIG_DATA,
        )?;
        let pci = Self {
            window,
            regions,
            core,
            reset_patience: options.reset_patience,
            interrupt,
            outside: Mutex::default(),
        };
        // Not yet the master of its bus.
        pci.follow();
        Ok(pci)
    }

    /// Runs the device where the embedder calls [`run`](VirtioTransport::run) or [`process`](VirtioTransport::process), instead of on
    /// the thread that kicks.
    pub fn with_doorbell(self, doorbell: impl Doorbell + 'static) -> Self {
        self.core.set_doorbell(Box::new(doorbell));
        self
    }
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// Has the platform catch kicks before they exit. The number of a doorbell is its queue's: hand it to
    /// [`process`](VirtioTransport::process).
    ///
    /// They are caught where BAR 0 decodes at the time, for enabled queues, from DRIVER_OK on; a kick that the platform
    /// cannot catch exits as ever.
    pub fn with_caught_doorbells(mut self, doorbells: impl Doorbells + 'static) -> Self {
        self.outside_mut().doorbells = Some(Box::new(doorbells));
        self
    }

    /// Tells `map` where the shared memory regions of the device are.
    pub fn with_shared_memory(mut self, map: impl SharedMemoryMap + 'static) -> Self {
        self.outside_mut().map = Some(Box::new(map));
        self
    }

    fn outside_mut(&mut self) -> &mut Outside {
        self.outside
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Looks at the device's control face, or changes what is not in its configuration space. No queue waits for this.
    pub fn with_device<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        self.core.change_device(false, f)
    }

    /// Changes the configuration space of the device and tells the driver, which reads another config_generation next.
    pub fn change_config<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        self.core.change_device(true, f)
    }

    /// How long a write waits for a reset that it has begun; for ever, if that is beyond all time.
    fn patience(&self) -> Option<Instant> {
        Instant::now().checked_add(self.reset_patience)
    }

    /// The driver resets the device.
    fn reset_device(&self) {
        self.core.begin_reset();
        self.core.wait_for_reset(self.patience());
        self.follow();
    }
}

impl<D: VirtioDevice> VirtioTransport for VirtioPci<D> {
    forward_to_core!();

    /// A reset by the bus, as when the machine is reset: the device as by its driver, and the function with it. Use this
    /// and not [`Endpoint::reset`], which knows nothing of the device.
    fn reset(&self) {
        self.reset_device();
        self.interrupt.endpoint.reset();
        self.follow();
    }

    fn save(&self) -> Result<SavedDevice, NotStill> {
        self.save_all()
    }

    /// BARs decode, INTx is what the state says, vectors that are not masked have live routes, doorbells are caught.
    fn restore(&self, state: &SavedDevice) -> Result<(), RestoreError> {
        self.restore_all(state)
    }
}

impl<D: VirtioDevice> Function for VirtioPci<D> {
    fn endpoint(&self) -> &Endpoint {
        &self.interrupt.endpoint
    }

    fn reset(&self) {
        VirtioTransport::reset(self);
    }

    /// Structures answer accesses that lie in one of them: registers of their own width, the device configuration of any.
    /// Others read as zero. Doorbells read as zero too.
    fn read_bar(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        if bar != STRUCTURES {
            // Shared memory that is not mapped, or no BAR.
            return data.fill(0xff);
        }
        let value = match Structure::find(offset, data.len()) {
            Structure::Common(register) => self.read_common(register, data.len()),
            Structure::Isr => self.interrupt.isr().read().into(),
            Structure::Device(offset) => return self.core.read_config(offset, data),
            Structure::Doorbell(_) | Structure::Nothing => 0,
        };
        write_le(data, value);
    }

    /// As [`read_bar`](Self::read_bar): others write nothing. A store of any width and value that begins where a doorbell
    /// does rings it.
    fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        if bar != STRUCTURES {
            return;
        }
        match Structure::find(offset, data.len()) {
            Structure::Common(register) => self.write_common(register, data.len(), read_le(data)),
            Structure::Device(offset) => self.core.write_config(offset, data),
            Structure::Doorbell(queue) => self.core.notify(queue),
            Structure::Isr | Structure::Nothing => {}
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.endpoint().read_config(offset, data);
        self.read_window(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let moved = self.endpoint().write_config(offset, data);
        self.write_window(offset, data);
        if moved || offset < COMMAND_END {
            self.follow();
        }
    }
}

impl<D> Drop for VirtioPci<D> {
    /// Lets go of the line, the vectors, and what lies at the addresses of the function. Requests that are under way end without a
    /// word to the guest.
    fn drop(&mut self) {
        self.core.abandon();
        lock(&self.outside).let_go(&self.regions);
        self.interrupt.reset();
        self.interrupt.endpoint.reset();
    }
}

impl<D> fmt::Debug for VirtioPci<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci")
            .field("core", &self.core)
            .field("interrupt", &self.interrupt)
            .finish_non_exhaustive()
    }
}
