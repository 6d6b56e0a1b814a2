//! What every virtio transport shares: the status machine, feature negotiation, queue set-up and running the device.
//!
//! [`mmio`] and [`pci`] decode registers and carry the interrupt; everything that they have in common is `Core`, which
//! knows no register layout and no line.

mod kicks;
pub mod mmio;
pub mod pci;
mod run;
mod state;
pub mod status;

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use vm_memory::GuestAddressSpace;

use super::{
    Queue, QueueError, QueueIndex, VirtioDevice, features,
    queue::{QueueCounters, QueueLayout, VirtioInterrupt},
};
use crate::sync::lock;
use kicks::Kicks;
use status::{DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};

pub use state::{QueueSetup, RestoreError, TransportState};

/// Hears the driver's kicks when the embedder wants to run the device elsewhere than on the vCPU's thread.
///
/// *For embedders*: wake your worker here, and call `run` on the transport from it. Any `Fn(QueueIndex) ->
/// io::Result<()>` is a doorbell. Rings may be merged; a ring before the worker waits must not be lost (an eventfd, a
/// channel and a condition with a flag all keep it). If it fails, the device runs on the kicking thread instead.
pub trait Doorbell: Send + Sync {
    /// The driver has kicked `queue`.
    ///
    /// # Errors
    /// Nobody was woken.
    fn ring(&self, queue: QueueIndex) -> io::Result<()>;
}

impl<F: Fn(QueueIndex) -> io::Result<()> + Send + Sync> Doorbell for F {
    fn ring(&self, queue: QueueIndex) -> io::Result<()> {
        self(queue)
    }
}

/// A device cannot be put behind a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A queue size that the device offers is impossible.
    #[error("the device offers {size} entries for queue {index}: a power of two up to 32768 is needed")]
    QueueSize {
        /// Which queue.
        index: usize,
        /// What the device offers.
        size: u16,
    },
    /// More queues than an index can name.
    #[error("the device has {0} queues: at most 65535 can be addressed")]
    QueueCount(usize),
}

/// The part of a transport that is the same for all of them.
///
/// Locks are taken in the order registers, device. The driver's kick takes the device's alone; reading the status takes
/// none.
pub(crate) struct Core<A, D> {
    // Configured.
    offered: u64,
    queue_sizes: Box<[u16]>,
    // Plugged in.
    space: A,
    interrupt: Arc<dyn VirtioInterrupt>,
    doorbell: Option<Box<dyn Doorbell>>,
    // What the guest changes.
    status: AtomicU32,
    registers: Mutex<Registers>,
    device: Mutex<Running<D>>,
    /// The number that the driver has read last, and [`CONFIG_CHANGED`].
    config_generation: AtomicU64,
    // Scheduling: see kicks.rs and run.rs.
    kicks: Kicks,
    stopping: AtomicU32,
    config_owed: AtomicBool,
}

/// Beside the 32 bits of the configuration generation: the space has changed since the driver last read them.
const CONFIG_CHANGED: u64 = 1 << 32;

/// What the driver sets up before DRIVER_OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    pub queue_sel: u32,
    pub driver_features: u64,
    /// The driver accepted a feature of a word that does not exist.
    pub unknown_features: bool,
    pub queues: Vec<QueueSetup>,
}

impl Registers {
    fn reset(queue_sizes: &[u16]) -> Self {
        Self {
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            driver_features: 0,
            unknown_features: false,
            queues: queue_sizes.iter().map(|&size| QueueSetup::new(size)).collect(),
        }
    }

    fn selected(&self) -> usize {
        usize::try_from(self.queue_sel).unwrap_or(usize::MAX)
    }
}

/// The device and the queues that it works on, which only the holder of the lock touches.
struct Running<D> {
    device: D,
    queues: Vec<Option<Queue>>,
    /// Why the device needs a reset.
    fault: Option<QueueError>,
}

impl<A, D> Core<A, D>
where
    A: GuestAddressSpace,
    D: VirtioDevice<A::M>,
{
    /// `transport` are the features that the transport brings.
    pub fn new(
        device: D,
        space: A,
        interrupt: Arc<dyn VirtioInterrupt>,
        transport: u64,
    ) -> Result<Self, TransportError> {
        let queue_sizes: Box<[u16]> = device.queue_sizes().into();
        if queue_sizes.len() > usize::from(u16::MAX) {
            return Err(TransportError::QueueCount(queue_sizes.len()));
        }
        let possible = |size: u16| size.is_power_of_two();
        if let Some(index) = queue_sizes.iter().position(|&size| !possible(size)) {
            return Err(TransportError::QueueSize {
                index,
                size: queue_sizes[index],
            });
        }
        Ok(Self {
            offered: device.features() | features::COMMON | transport,
            space,
            interrupt,
            doorbell: None,
            status: AtomicU32::new(0),
            registers: Mutex::new(Registers::reset(&queue_sizes)),
            device: Mutex::new(Running {
                device,
                queues: no_queues(queue_sizes.len()),
                fault: None,
            }),
            config_generation: AtomicU64::new(0),
            kicks: Kicks::new(queue_sizes.len()),
            stopping: AtomicU32::new(0),
            config_owed: AtomicBool::new(false),
            queue_sizes,
        })
    }

    pub fn set_doorbell(&mut self, doorbell: Box<dyn Doorbell>) {
        self.doorbell = Some(doorbell);
    }

    // Status (section 2.1) and what hangs on it.

    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    fn has(&self, bits: u32) -> bool {
        self.status() & bits == bits
    }

    /// Whether the device may touch its queues.
    fn is_live(&self) -> bool {
        self.status() & (DRIVER_OK | DEVICE_NEEDS_RESET) == DRIVER_OK
    }

    /// The driver writes the status. Zero resets; otherwise bits are added in the order of section 3.1.1, and one that
    /// comes before its time is left out. The driver cannot take a bit away, nor set DEVICE_NEEDS_RESET. FAILED is noted and
    /// means nothing to the device: a driver is to reset it before it tries again, but Linux does not.
    pub fn write_status(&self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let mut registers = lock(&self.registers);
        // Now, and not at the end, where another thread may have reset the device.
        self.status.fetch_or(value & FAILED, Ordering::SeqCst);
        for (bit, after) in status::ORDER {
            let broken = self.has(DEVICE_NEEDS_RESET);
            if value & bit == 0 || self.has(bit) || !self.has(after) || broken {
                continue;
            }
            match bit {
                FEATURES_OK if !self.negotiate(&registers) => continue,
                DRIVER_OK => {
                    self.activate(&mut registers);
                    drop(registers);
                    self.tell_config_if_owed();
                    self.kick_all();
                    break;
                }
                _ => _ = self.status.fetch_or(bit, Ordering::SeqCst),
            }
        }
    }

    /// Whether the device can work with what the driver has accepted. It is told so then.
    fn negotiate(&self, registers: &Registers) -> bool {
        let accepted = registers.driver_features;
        let known = accepted & !self.offered == 0 && !registers.unknown_features;
        let mut running = self.stop();
        let agreed = known && accepted & features::VERSION_1 != 0 && running.device.accepts(accepted);
        if agreed {
            running.device.negotiated(accepted);
            self.note_config_change();
        }
        agreed
    }

    fn activate(&self, registers: &mut Registers) {
        let mut running = self.stop();
        let memory = self.space.memory();
        running.device.activate(registers.driver_features);
        for index in 0..registers.queues.len() {
            self.start_queue(&mut running, registers, index, &memory);
        }
        self.interrupt.ready();
        self.status.fetch_or(DRIVER_OK, Ordering::SeqCst);
        if running.fault.is_some() {
            self.break_device(&mut running);
        }
    }

    /// Gives the device the queue `index` as the driver has set it up, if it is ready.
    fn start_queue(&self, running: &mut Running<D>, registers: &Registers, index: usize, memory: &A::M) {
        let QueueSetup {
            layout, ready: true, ..
        } = registers.queues[index]
        else {
            return;
        };
        let max = self.queue_sizes[index];
        let interrupt = Arc::clone(&self.interrupt);
        let queue = Queue::new(
            QueueIndex(index as u16),
            max,
            layout,
            registers.driver_features,
            memory,
            interrupt,
        );
        match queue {
            Ok(queue) => running.queues[index] = Some(queue),
            Err(error) => running.fault = Some(error),
        }
    }

    /// Takes the queues away from a device whose driver broke the rules. Its DEVICE_NEEDS_RESET is visible before the
    /// lock is released; the configuration interrupt is owed, and told without the lock.
    fn break_device(&self, running: &mut Running<D>) {
        running.queues = no_queues(self.queue_sizes.len());
        running.device.reset();
        self.status.fetch_or(DEVICE_NEEDS_RESET, Ordering::SeqCst);
        self.config_owed.store(true, Ordering::SeqCst);
    }

    /// Works at every stage. In-flight work has ended and everything is as at power-on before the status reads 0, and all of
    /// it is one step to whoever else writes registers, kicks or changes the configuration. The line hears of it last.
    fn reset(&self) {
        let mut registers = lock(&self.registers);
        let mut running = self.stop();
        *registers = Registers::reset(&self.queue_sizes);
        running.queues = no_queues(self.queue_sizes.len());
        running.device.reset();
        self.note_config_change();
        running.fault = None;
        self.kicks.clear();
        self.config_owed.store(false, Ordering::SeqCst);
        self.interrupt.reset();
        self.status.store(0, Ordering::SeqCst);
        drop(running);
        drop(registers);
        self.interrupt.settle();
    }

    // Registers. They are frozen as the specification says: features until FEATURES_OK, a queue from FEATURES_OK until
    // it is ready, and everything for good once DRIVER_OK is set, but for a queue that was reset by itself.

    pub fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    pub fn device_features(&self) -> u32 {
        let sel = self.registers().device_features_sel;
        word(self.offered, sel)
    }

    pub fn driver_features(&self) -> u32 {
        let registers = self.registers();
        word(registers.driver_features, registers.driver_features_sel)
    }

    /// Whether the driver has accepted `features`, for good.
    pub fn has_negotiated(&self, features: u64) -> bool {
        let registers = self.registers();
        self.has(FEATURES_OK) && registers.driver_features & features == features
    }

    pub fn write_driver_features(&self, value: u32) {
        let mut registers = self.registers();
        if !self.has(DRIVER) || self.has(FEATURES_OK) {
            return;
        }
        match registers.driver_features_sel {
            0 => replace_low(&mut registers.driver_features, value),
            1 => replace_high(&mut registers.driver_features, value),
            _ => registers.unknown_features |= value != 0,
        }
    }

    /// The maximum size of the selected queue; zero if there is no such queue.
    pub fn queue_size_max(&self) -> u16 {
        let selected = self.registers().selected();
        self.queue_sizes.get(selected).copied().unwrap_or(0)
    }

    pub fn queue_ready(&self) -> bool {
        self.selected_queue().is_some_and(|queue| queue.ready)
    }

    pub fn queue_count(&self) -> u16 {
        // Checked when it was made.
        self.queue_sizes.len() as u16
    }

    /// The selected queue as the driver has programmed it, if there is one.
    pub fn selected_queue(&self) -> Option<QueueSetup> {
        let registers = self.registers();
        registers.queues.get(registers.selected()).copied()
    }

    /// Whether each queue is one whose kicks mean something: enabled, of a driver that is ready.
    pub fn kickable(&self) -> Vec<bool> {
        let registers = self.registers();
        let live = self.is_live();
        registers.queues.iter().map(|queue| live && queue.ready).collect()
    }

    /// Sets the size of the selected queue, if it is not frozen. One that cannot be becomes zero: what the register reads as
    /// is "either a value of 0 or a power of 2" (section 4.1.4.3.1), and a queue of size zero is refused when it is started.
    /// The size of before would not do, for the driver has made its rings for the one that it has written, and the device
    /// would write beyond them.
    pub fn write_queue_size(&self, value: u32) {
        let mut registers = self.registers();
        let selected = registers.selected();
        if let Some(queue) = self.unfrozen(&mut registers) {
            let max = self.queue_sizes[selected];
            let size = u16::try_from(value).unwrap_or(0);
            queue.layout.size = if is_queue_size(size, max) { size } else { 0 };
        }
    }

    /// Changes the layout of the selected queue, if it is not frozen.
    pub fn set_up_queue(&self, change: impl FnOnce(&mut QueueLayout)) {
        let mut registers = self.registers();
        if let Some(queue) = self.unfrozen(&mut registers) {
            change(&mut queue.layout);
        }
    }

    /// The selected queue, if its registers may change.
    fn unfrozen<'a>(&self, registers: &'a mut Registers) -> Option<&'a mut QueueSetup> {
        let selected = registers.selected();
        let queue = registers.queues.get_mut(selected)?;
        let open = self.has(FEATURES_OK) && (!self.has(DRIVER_OK) || queue.was_reset);
        (open && !queue.ready).then_some(queue)
    }

    /// Enables the selected queue, or stops it: the device does not touch it any more when this returns. One that was
    /// stopped may be set up and enabled again, also after DRIVER_OK, and begins as new.
    pub fn write_queue_ready(&self, ready: bool) {
        let mut registers = self.registers();
        let selected = registers.selected();
        if !ready {
            if let Some(queue) = registers.queues.get_mut(selected) {
                queue.was_reset |= queue.ready && self.has(DRIVER_OK);
                queue.ready = false;
                self.stop_queue(selected);
            }
            return;
        }
        let Some(queue) = self.unfrozen(&mut registers) else {
            return;
        };
        (queue.ready, queue.was_reset) = (true, false);
        if self.is_live() {
            let mut running = self.stop();
            let memory = self.space.memory();
            self.start_queue(&mut running, &registers, selected, &memory);
            if running.fault.is_some() {
                self.break_device(&mut running);
            }
            drop(running);
            drop(registers);
            self.tell_config_if_owed();
            self.kick(selected);
        }
    }

    /// Resets the selected queue by itself (section 2.6.1), if the driver has negotiated that. Which one, if it was reset.
    pub fn reset_queue(&self) -> Option<QueueIndex> {
        let mut registers = self.registers();
        let selected = registers.selected();
        let negotiated = self.has(FEATURES_OK) && registers.driver_features & features::RING_RESET != 0;
        let queue = registers.queues.get_mut(selected).filter(|_| negotiated)?;
        *queue = QueueSetup {
            was_reset: true,
            ..QueueSetup::new(self.queue_sizes[selected])
        };
        self.stop_queue(selected);
        Some(QueueIndex(selected as u16))
    }

    /// Takes the queue `index` away from the device, if it has it.
    fn stop_queue(&self, index: usize) {
        let mut running = self.stop();
        if running.queues[index].take().is_some() {
            running.device.queue_stopped(QueueIndex(index as u16));
        }
    }

    // The device's own face.

    pub fn device_id(&self) -> u32 {
        self.stop().device.device_id().0
    }

    pub fn shared_memory(&self, id: u32) -> Option<super::SharedMemoryRegion> {
        let id = u8::try_from(id).ok()?;
        self.stop().device.shared_memory(id)
    }

    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.stop().device.read_config(offset, data);
    }

    /// Whether it changed anything, and where, is the device's to know: it may have.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        let mut running = self.stop();
        running.device.write_config(offset, data);
        self.note_config_change();
    }

    /// The driver reads the configuration generation. It moves here, and at most once a read, so that however many
    /// changes there were since the last one, the number is another: to count them would wrap (section 4.1.4.3.1).
    pub fn read_config_generation(&self) -> u32 {
        let moved = |state: u64| (state & CONFIG_CHANGED != 0).then(|| (state as u32).wrapping_add(1).into());
        let generation = &self.config_generation;
        match generation.fetch_update(Ordering::SeqCst, Ordering::SeqCst, moved) {
            Ok(before) => (before as u32).wrapping_add(1),
            Err(same) => same as u32,
        }
    }

    /// The configuration space has changed. Called before the device is unlocked, and so before the driver can read what is
    /// new.
    fn note_config_change(&self) {
        self.config_generation.fetch_or(CONFIG_CHANGED, Ordering::SeqCst);
    }

    /// Lets the embedder change the device. If the change is one of the configuration space (`change` says so), it is noted
    /// for the generation and the driver is told.
    pub fn change_device<R>(&self, change: impl FnOnce(&mut D) -> (R, bool)) -> R {
        let mut running = self.stop();
        let (result, configuration) = change(&mut running.device);
        if configuration {
            self.note_config_change();
            // A driver on its way to DRIVER_OK may have read what changed now, and is told then. One that has not come yet
            // will read it all.
            if self.status() != 0 {
                self.config_owed.store(true, Ordering::SeqCst);
            }
        }
        drop(running);
        self.tell_config_if_owed();
        result
    }

    pub fn fault(&self) -> Option<QueueError> {
        self.stop().fault
    }

    pub fn queue_counters(&self, index: QueueIndex) -> Option<QueueCounters> {
        let running = self.stop();
        let queue = running.queues.get(usize::from(index.0))?.as_ref()?;
        Some(queue.counters())
    }
}

/// Whether a driver may choose this size: rings are split ones.
fn is_queue_size(size: u16, max: u16) -> bool {
    size.is_power_of_two() && size <= max
}

fn no_queues(count: usize) -> Vec<Option<Queue>> {
    (0..count).map(|_| None).collect()
}

/// The 32 bits of `value` that `sel` selects.
fn word(value: u64, sel: u32) -> u32 {
    match sel {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Replaces the low half of a 64-bit register that the guest writes in two.
pub(crate) fn replace_low(value: &mut u64, low: u32) {
    *value = *value & !0xffff_ffff | u64::from(low);
}

/// Replaces the high half.
pub(crate) fn replace_high(value: &mut u64, high: u32) {
    *value = *value & 0xffff_ffff | u64::from(high) << 32;
}

impl<A, D> fmt::Debug for Core<A, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("status", &format_args!("{:#x}", self.status.load(Ordering::SeqCst)))
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}
