//! Virtio over MMIO, version 2 (virtio 1.2, section 4.2).

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
    Core, Doorbell, RestoreError, TransportError, TransportState, replace_high, replace_low, status::DRIVER_OK,
};
use crate::{
    bus::{BusDevice, read_le, write_le},
    virtio::{
        QueueError, QueueIndex, VirtioDevice,
        queue::{QueueCounters, VirtioInterrupt},
    },
};

use interrupt::MmioInterrupt;
pub use interrupt::{Line, MmioInterruptState};

/// Bytes of address space that one device takes in the usual layouts. The configuration space starts at 0x100.
pub const REGION_SIZE: u64 = 0x200;

/// A virtio device behind the register file of virtio-mmio.
///
/// *For embedders*: put it on a [`Bus`](crate::bus::Bus) and route the guest's accesses to it. It needs no ioeventfd: a
/// trapped store to QueueNotify works. Without a [doorbell](Self::with_doorbell) the device runs on the thread that
/// kicks; with one, on the thread that calls [`run`](Self::run). Every method may be called from any thread.
///
/// The line's callback must not read or write this device's registers, other than InterruptStatus, InterruptACK, Status
/// (without a reset) and QueueNotify, from inside `trigger`.
///
/// `A` is the guest memory, as `Arc<GuestMemoryMmap>` or anything else that is a [`GuestAddressSpace`].
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
pub struct VirtioMmio<A, D> {
    core: Core<A, D>,
    interrupt: Arc<MmioInterrupt>,
    shm_sel: AtomicU32,
}

/// The state of a device behind virtio-mmio, as plain data. What the device itself keeps is the device's to save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioMmioState {
    /// Status, features and queues.
    pub transport: TransportState,
    /// InterruptStatus and what is remembered with it.
    pub interrupt: MmioInterruptState,
    /// Selected shared memory region.
    pub shm_sel: u32,
}

impl<A, D> VirtioMmio<A, D>
where
    A: GuestAddressSpace,
    D: VirtioDevice<A::M>,
{
    /// Puts `device` behind a register file that interrupts by `line`, with queues in the guest memory `space`.
    ///
    /// # Errors
    /// The device offers a queue that cannot be.
    pub fn new(device: D, space: A, line: Line) -> Result<Self, TransportError> {
        let interrupt = Arc::new(MmioInterrupt::new(line));
        let core = Core::new(device, space, Arc::clone(&interrupt) as _, 0)?;
        Ok(Self {
            core,
            interrupt,
            shm_sel: AtomicU32::new(0),
        })
    }

    /// Runs the device where the embedder calls [`run`](Self::run), instead of on the thread that kicks.
    pub fn with_doorbell(mut self, doorbell: impl Doorbell + 'static) -> Self {
        self.core.set_doorbell(Box::new(doorbell));
        self
    }

    /// Works on every queue that was kicked, until none is left: what a worker calls when the doorbell has rung. Returns
    /// at once if another thread is doing so already; that thread then sees to the new kicks too.
    pub fn run(&self) {
        self.core.run();
    }

    /// Has the device look at `queue` though nobody kicked it: because the outside world has something for the driver.
    pub fn process(&self, queue: QueueIndex) {
        self.core.process(queue);
    }

    /// The device status (see [`status`](super::status)).
    pub fn status(&self) -> u32 {
        self.core.status()
    }

    /// Why the device needs a reset, if it does.
    pub fn fault(&self) -> Option<QueueError> {
        self.core.fault()
    }

    /// What a running queue has done since it was set up.
    pub fn queue_counters(&self, queue: QueueIndex) -> Option<QueueCounters> {
        self.core.queue_counters(queue)
    }

    /// How often the line refused to be raised or cleared. None of these lost an interrupt.
    pub fn line_failures(&self) -> u64 {
        self.interrupt.failures()
    }

    /// Looks at the device, or changes what is not in its configuration space.
    pub fn with_device<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        self.core.change_device(|device| (f(device), false))
    }

    /// Changes the configuration space of the device and tells the driver, which reads another ConfigGeneration next.
    pub fn change_config<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        self.core.change_device(|device| (f(device), true))
    }

    /// Ends the work on the queues, however much of it the driver has in store, and lets none begin: no queue is touched
    /// from when this returns until [`resume`](Self::resume). Kicks are kept. A thread that is in [`run`](Self::run), or in
    /// a kick of a guest that never stops feeding its queue, comes back. Do not call it from the line's callback.
    pub fn pause(&self) {
        self.core.pause();
    }

    /// The state of the transport and its queues. [`pause`](Self::pause) it and stop the vCPUs first: what happens after
    /// this is not in it.
    pub fn save(&self) -> VirtioMmioState {
        VirtioMmioState {
            transport: self.core.save(),
            interrupt: self.interrupt.save(),
            shm_sel: self.shm_sel.load(Ordering::SeqCst),
        }
    }

    /// Takes over a saved state, all or nothing, into a device that was just made or reset. A level line is derived
    /// again; an edge that the guest has seen is not repeated. Follow it with [`resume`](Self::resume) once memory and
    /// interrupt controller are restored too.
    ///
    /// # Errors
    /// The state contradicts itself or this device.
    pub fn restore(&self, state: &VirtioMmioState) -> Result<(), RestoreError> {
        let VirtioMmioState {
            transport,
            interrupt,
            shm_sel,
        } = state;
        interrupt.check(transport.status & DRIVER_OK != 0)?;
        self.core.restore(transport)?;
        self.interrupt.restore(interrupt);
        self.shm_sel.store(*shm_sel, Ordering::SeqCst);
        Ok(())
    }

    /// Ends a [`pause`](Self::pause), or goes on after a [`restore`](Self::restore): looks at every queue once, and signals
    /// again what the line has refused.
    pub fn resume(&self) {
        self.core.resume();
    }

    /// A reset from outside, as when the machine is reset: the device as by its driver, and the registers that select.
    pub fn reset(&self) {
        self.shm_sel.store(0, Ordering::SeqCst);
        self.core.write_status(0);
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
            // A queue's reset has ended when the write to this register returns.
            registers::QUEUE_RESET => 0,
            registers::CONFIG_GENERATION => self.core.read_config_generation(),
            // Write-only, or not there.
            _ => 0,
        }
    }

    fn write_register(&self, register: u64, value: u32) {
        let core = &self.core;
        match register {
            registers::DEVICE_FEATURES_SEL => core.registers().device_features_sel = value,
            registers::DRIVER_FEATURES => core.write_driver_features(value),
            registers::DRIVER_FEATURES_SEL => core.registers().driver_features_sel = value,
            registers::QUEUE_SEL => core.registers().queue_sel = value,
            registers::QUEUE_SIZE => core.write_queue_size(value),
            registers::QUEUE_READY => core.write_queue_ready(value & 1 != 0),
            registers::QUEUE_NOTIFY => core.notify(value),
            registers::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            registers::STATUS if value == 0 => self.reset(),
            registers::STATUS => core.write_status(value),
            registers::QUEUE_DESC_LOW => core.set_up_queue(|queue| replace_low(&mut queue.descriptor_area, value)),
            registers::QUEUE_DESC_HIGH => core.set_up_queue(|queue| replace_high(&mut queue.descriptor_area, value)),
            registers::QUEUE_DRIVER_LOW => core.set_up_queue(|queue| replace_low(&mut queue.driver_area, value)),
            registers::QUEUE_DRIVER_HIGH => core.set_up_queue(|queue| replace_high(&mut queue.driver_area, value)),
            registers::QUEUE_DEVICE_LOW => core.set_up_queue(|queue| replace_low(&mut queue.device_area, value)),
            registers::QUEUE_DEVICE_HIGH => core.set_up_queue(|queue| replace_high(&mut queue.device_area, value)),
            registers::SHM_SEL => self.shm_sel.store(value, Ordering::SeqCst),
            registers::QUEUE_RESET if value & 1 != 0 => _ = core.reset_queue(),
            // Read-only, or not there.
            _ => {}
        }
    }
}

impl<A, D> BusDevice for VirtioMmio<A, D>
where
    A: GuestAddressSpace + Send + Sync,
    D: VirtioDevice<A::M>,
{
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

impl<A, D> Drop for VirtioMmio<A, D> {
    /// Lets go of a level line.
    fn drop(&mut self) {
        self.interrupt.reset();
        self.interrupt.settle();
    }
}

impl<A, D> fmt::Debug for VirtioMmio<A, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioMmio")
            .field("core", &self.core)
            .field("interrupt", &self.interrupt)
            .finish()
    }
}
