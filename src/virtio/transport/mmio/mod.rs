//! Virtio over MMIO, version 2 (virtio 1.2, section 4.2).

mod describe;
mod interrupt;
mod registers;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use vm_memory::GuestAddressSpace;

use super::{
    common::{Core, TransportError},
    doorbell::Doorbell,
    face::{VirtioTransport, forward_to_core},
    options::TransportOptions,
    registers::{replace_high, replace_low},
    saved::{NotStill, RestoreError, SavedDevice, SavedTransport},
    status::DRIVER_OK,
};
use crate::{
    bus::{BusDevice, read_le, write_le},
    memory::Memory,
    virtio::{QueueIndex, VirtioDevice, features, queue::VirtioInterrupt},
};

pub use describe::describe;
pub use interrupt::Line;
use interrupt::MmioInterrupt;

pub use super::saved::{MmioInterruptState, VirtioMmioState};

/// Bytes of address space that one device takes in the usual layouts. The configuration space starts at 0x100.
pub const REGION_SIZE: u64 = 0x200;

/// A virtio device behind the register file of virtio-mmio.
///
/// *For embedders*: put it on a [`Bus`](crate::bus::Bus) and route the guest's accesses to it. It needs no ioeventfd: a
/// trapped store to QueueNotify works. Without a [doorbell](Self::with_doorbell) the device runs on the thread that
/// kicks; with one, on the threads that call [`run`](VirtioTransport::run). Every method may be called from any thread.
/// What an embedder does with it is in [`VirtioTransport`].
///
/// The line's callback must not access this device's registers from inside `trigger`, other than to read InterruptStatus and
/// Status, and to write InterruptACK and QueueNotify.
///
/// ```
/// use devisor::{
///     bus::BusDevice,
///     interrupt::NoInterrupt,
///     virtio::{VirtioMmio, transport::mmio::Line, entropy::Entropy},
/// };
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let line = Line::Edge(Arc::new(NoInterrupt));
/// let rng = VirtioMmio::new(Entropy::seeded(1), memory, line)?;
///
/// let mut magic = [0; 4];
/// rng.read(0, &mut magic);
/// assert_eq!(&magic, b"virt");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VirtioMmio<D> {
    core: Arc<Core<D>>,
    interrupt: Arc<MmioInterrupt>,
    shm_sel: AtomicU32,
}

impl<D: VirtioDevice + 'static> VirtioMmio<D> {
    /// Puts `device` behind a register file that interrupts by `line`, with queues in the guest memory `space`: an
    /// `Arc<GuestMemoryMmap>`, or anything else that is a [`GuestAddressSpace`].
    ///
    /// A device whose requests end later than in the round that has found them needs a [doorbell](Self::with_doorbell), or an
    /// embedder that [runs](VirtioTransport::run) it: nothing else looks at its queues when the outside world has something for them.
    ///
    /// # Errors
    /// The device offers a queue that cannot be.
    pub fn new<A>(device: D, space: A, line: Line) -> Result<Self, TransportError>
    where
        A: GuestAddressSpace + Send + Sync + 'static,
        A::T: Send + Sync + 'static,
    {
        Self::with_options(device, space, line, &TransportOptions::default())
    }

    /// [`new`](Self::new), with what is offered to the driver.
    ///
    /// # Errors
    /// The device offers a queue that cannot be.
    pub fn with_options<A>(device: D, space: A, line: Line, options: &TransportOptions) -> Result<Self, TransportError>
    where
        A: GuestAddressSpace + Send + Sync + 'static,
        A::T: Send + Sync + 'static,
    {
        Self::with_memory(device, Memory::new(space), line, options)
    }

    /// [`with_options`](Self::with_options), with guest memory as an [IOMMU](crate::virtio::iommu) has the device see it.
    ///
    /// # Errors
    /// The device offers a queue that cannot be.
    pub fn with_memory(
        device: D,
        memory: Memory,
        line: Line,
        options: &TransportOptions,
    ) -> Result<Self, TransportError> {
        let interrupt = Arc::new(MmioInterrupt::new(line));
        let core = Core::new(device, memory, Arc::clone(&interrupt) as _, options, 0)?;
        Ok(Self {
            core,
            interrupt,
            shm_sel: AtomicU32::new(0),
        })
    }

    /// Runs the device where the embedder calls [`run`](VirtioTransport::run) or [`process`](VirtioTransport::process), instead of on
    /// the thread that kicks.
    pub fn with_doorbell(self, doorbell: impl Doorbell + 'static) -> Self {
        self.core.set_doorbell(Box::new(doorbell));
        self
    }
}

impl<D: VirtioDevice> VirtioMmio<D> {
    /// How often the line refused to be raised or cleared. None of these lost an interrupt.
    pub fn line_failures(&self) -> u64 {
        self.interrupt.failures()
    }

    /// Looks at the device's control face, or changes what is not in its configuration space. No queue waits for this.
    pub fn with_device<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        self.core.change_device(false, f)
    }

    /// Changes the configuration space of the device and tells the driver, which reads another ConfigGeneration next.
    pub fn change_config<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        self.core.change_device(true, f)
    }

    fn read_register(&self, register: u64) -> u32 {
        let shared_memory = || self.core.shared_memory(self.shm_sel.load(Ordering::SeqCst));
        let shm_len = || shared_memory().map_or(u64::MAX, |region| region.len);
        let shm_base = || shared_memory().map_or(u64::MAX, |region| region.base);
        match register {
            registers::MAGIC_VALUE => registers::MAGIC,
            registers::VERSION => registers::VERSION_2,
            registers::DEVICE_ID => self.core.device_id(),
            registers::VENDOR_ID => registers::VENDOR,
            registers::DEVICE_FEATURES => self.core.device_features(),
            registers::QUEUE_SIZE_MAX => self.core.queue_size_max().into(),
            registers::QUEUE_READY => self.core.queue_ready().into(),
            registers::INTERRUPT_STATUS => self.interrupt.read_status(),
            registers::STATUS => self.core.status(),
            registers::SHM_LEN_LOW => shm_len() as u32,
            registers::SHM_LEN_HIGH => (shm_len() >> 32) as u32,
            registers::SHM_BASE_LOW => shm_base() as u32,
            registers::SHM_BASE_HIGH => (shm_base() >> 32) as u32,
            registers::QUEUE_RESET => self.selected_is_stopping().into(),
            registers::CONFIG_GENERATION => self.core.read_config_generation(),
            // Write-only, or not there.
            _ => 0,
        }
    }

    fn write_register(&self, register: u64, value: u32) {
        let core = &self.core;
        match register {
            registers::DEVICE_FEATURES_SEL => core.select(|registers| registers.device_features_sel = value),
            registers::DRIVER_FEATURES => core.write_driver_features(value),
            registers::DRIVER_FEATURES_SEL => core.select(|registers| registers.driver_features_sel = value),
            registers::QUEUE_SEL => core.select(|registers| registers.queue_sel = value),
            registers::QUEUE_SIZE => core.write_queue_size(value),
            registers::QUEUE_READY if value & 1 != 0 => core.enable_queue(),
            registers::QUEUE_READY => self.wait_for_queue(core.disable_queue()),
            // The queue, then how far the driver has come (section 4.2.3.3): the ring says so too.
            registers::QUEUE_NOTIFY if core.has_negotiated(features::NOTIFICATION_DATA) => core.notify(value & 0xffff),
            registers::QUEUE_NOTIFY => core.notify(value),
            registers::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            registers::STATUS if value == 0 => VirtioTransport::reset(self),
            registers::STATUS => core.write_status(value),
            registers::QUEUE_DESC_LOW => core.set_up_queue(|queue| replace_low(&mut queue.descriptor_area, value)),
            registers::QUEUE_DESC_HIGH => core.set_up_queue(|queue| replace_high(&mut queue.descriptor_area, value)),
            registers::QUEUE_DRIVER_LOW => core.set_up_queue(|queue| replace_low(&mut queue.driver_area, value)),
            registers::QUEUE_DRIVER_HIGH => core.set_up_queue(|queue| replace_high(&mut queue.driver_area, value)),
            registers::QUEUE_DEVICE_LOW => core.set_up_queue(|queue| replace_low(&mut queue.device_area, value)),
            registers::QUEUE_DEVICE_HIGH => core.set_up_queue(|queue| replace_high(&mut queue.device_area, value)),
            registers::SHM_SEL => self.shm_sel.store(value, Ordering::SeqCst),
            registers::QUEUE_RESET if value & 1 != 0 => self.wait_for_queue(core.reset_queue()),
            // Read-only, or not there.
            _ => {}
        }
    }

    /// Linux does not read back whether a queue has stopped, so the write returns when it has.
    fn wait_for_queue(&self, queue: Option<QueueIndex>) {
        if let Some(queue) = queue {
            self.core.wait_for_queue(queue, None);
        }
    }

    fn selected_is_stopping(&self) -> bool {
        let selected = u16::try_from(self.core.registers().queue_sel);
        selected.is_ok_and(|queue| self.core.is_queue_stopping(QueueIndex(queue)))
    }
}

impl<D: VirtioDevice> VirtioTransport for VirtioMmio<D> {
    forward_to_core!();

    /// Returns when the device has come to rest, however long that takes: Linux does not read back the status that it has written.
    fn reset(&self) {
        self.core.begin_reset();
        self.core.wait_for_reset(None);
        self.shm_sel.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> Result<SavedDevice, NotStill> {
        let (transport, device) = self.core.save()?;
        let transport = SavedTransport::Mmio(VirtioMmioState {
            transport,
            interrupt: self.interrupt.save(),
            shm_sel: self.shm_sel.load(Ordering::SeqCst),
        });
        Ok(SavedDevice { transport, device })
    }

    /// A level line is derived again; an edge that the guest has seen is not repeated.
    fn restore(&self, state: &SavedDevice) -> Result<(), RestoreError> {
        let SavedTransport::Mmio(VirtioMmioState {
            transport,
            interrupt,
            shm_sel,
        }) = &state.transport
        else {
            return Err(RestoreError::Transport("virtio-mmio"));
        };
        interrupt.check(transport.status & DRIVER_OK != 0)?;
        self.core.restore(transport, &state.device)?;
        self.interrupt.restore(interrupt);
        self.shm_sel.store(*shm_sel, Ordering::SeqCst);
        Ok(())
    }
}

impl<D: VirtioDevice> BusDevice for VirtioMmio<D> {
    /// Registers answer aligned 4-byte reads, others read as zero; the configuration space answers any width.
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(registers::CONFIG) {
            Some(offset) => self.core.read_config(offset, data),
            None if is_register(offset, data.len()) => write_le(data, self.read_register(offset).into()),
            None => data.fill(0),
        }
    }

    /// Registers take aligned 4-byte writes, others are ignored; the configuration space takes any width.
    fn write(&self, offset: u64, data: &[u8]) {
        match offset.checked_sub(registers::CONFIG) {
            Some(offset) => self.core.write_config(offset, data),
            None if is_register(offset, data.len()) => self.write_register(offset, read_le(data) as u32),
            None => {}
        }
    }
}

/// Registers are 32 bits wide and aligned, and are accessed whole (section 4.2.2.2).
fn is_register(offset: u64, len: usize) -> bool {
    len == 4 && offset.is_multiple_of(4)
}

impl<D> Drop for VirtioMmio<D> {
    /// Lets go of a level line. Requests that are under way end without a word to the guest.
    fn drop(&mut self) {
        self.core.abandon();
        self.interrupt.reset();
        self.interrupt.settle();
    }
}

impl<D> fmt::Debug for VirtioMmio<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioMmio")
            .field("core", &self.core)
            .field("interrupt", &self.interrupt)
            .finish()
    }
}
