//! What every virtio transport shares: the status machine, feature negotiation, queue set-up.
//!
//! [`mmio`] and [`pci`] decode registers and carry the interrupt; everything that they have in common is `Core`, which
//! knows no register layout and no line. To an embedder they are all a [`VirtioTransport`].

mod face;
pub mod mmio;
mod notice;
mod options;
pub mod pci;
mod queues;
mod state;
pub mod status;
#[cfg(all(target_os = "linux", feature = "vhost-user"))]
pub mod vhost_user;

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use super::{
    Fault, Handle, QueueIndex, VirtioDevice, Wait,
    device::Attached,
    features,
    queue::{Inside, QueueLayout, Stop, VirtioInterrupt, is_size},
    run::{
        Lanes,
        order::{Guard, Rank, lock_in_order},
    },
};
use crate::{
    memory::{Behind, Memory},
    sync::lock,
};
use notice::Notice;
use status::{DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};

pub use face::{NotStill, SavedDevice, SavedTransport, VirtioTransport};
pub use options::TransportOptions;
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

    /// `queue` waits for `waits`, besides its driver, and for nothing that it waited for before: once one of them is there, have it
    /// looked at ([`process`](VirtioTransport::process)). Each counts once. An empty list is the end of it, also when the device
    /// is stopped without a request under way, or goes. Of a device that was stopped with some, what comes after the last has ended
    /// is for nobody.
    ///
    /// A device may say so from any thread, while it serves that queue: do not call it back from in here.
    fn wait(&self, queue: QueueIndex, waits: &[Wait]) {
        let _ = (queue, waits);
    }
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
/// For the order of locks, see [`run`](super::run).
pub(crate) struct Core<D> {
    // Configured.
    /// Features that queues and transport bring.
    common: u64,
    /// What the device offers, and these. A restored device offers what it did where it was saved.
    offered: AtomicU64,
    queue_sizes: Box<[u16]>,
    /// What a driver has to accept.
    needed: u64,
    /// A driver without VERSION_1 is taken.
    without_version_1: bool,
    // Plugged in.
    memory: Memory,
    interrupt: Arc<dyn VirtioInterrupt>,
    doorbell: OnceLock<Box<dyn Doorbell>>,
    // What the guest changes.
    status: AtomicU32,
    registers: Mutex<Registers>,
    /// What the driver has accepted for good; zero before that.
    negotiated: AtomicU64,
    device: Mutex<D>,
    /// The thread that is inside the control face, by its [name](this_thread).
    inside: AtomicUsize,
    lanes: Lanes,
    /// Why the device needs a reset.
    fault: Mutex<Option<Fault>>,
    /// The device has failed from inside its control face: that is acted on outside, once the driver is ready.
    failing: Mutex<Option<Fault>>,
    /// The number that the driver has read last, and [`CONFIG_CHANGED`].
    config_generation: AtomicU64,
    /// A configuration interrupt that the driver is to get, and the embedder's pause.
    notice: Notice,
    /// Since when a queue is to come to rest.
    stopping: Mutex<Option<Instant>>,
    /// The driver has reset the device, which has not come to rest yet.
    resetting: AtomicBool,
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

impl<D: VirtioDevice + 'static> Core<D> {
    /// `transport` are the features that the transport brings.
    pub fn new(
        device: D,
        memory: Memory,
        interrupt: Arc<dyn VirtioInterrupt>,
        options: &TransportOptions,
        transport: u64,
    ) -> Result<Arc<Self>, TransportError> {
        let translated = if memory.is_translated() {
            features::ACCESS_PLATFORM
        } else {
            0
        };
        let common = device.queue_features(options.features() | translated | transport) | translated;
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
        let core = Arc::new(Self {
            common,
            offered: AtomicU64::new(device.features() | common),
            // What the transport brings, it can do without.
            needed: features::VERSION_1 | (options.features() | translated) & common & features::ACCESS_PLATFORM,
            without_version_1: options.without_version_1,
            memory,
            interrupt,
            doorbell: OnceLock::new(),
            status: AtomicU32::new(0),
            registers: Mutex::new(Registers::reset(&queue_sizes)),
            negotiated: AtomicU64::new(0),
            device: Mutex::new(device),
            inside: AtomicUsize::new(0),
            lanes: Lanes::new(queue_sizes.len()),
            fault: Mutex::new(None),
            failing: Mutex::new(None),
            config_generation: AtomicU64::new(0),
            notice: Notice::new(),
            stopping: Mutex::new(None),
            resetting: AtomicBool::new(false),
            queue_sizes,
        });
        let behind: Weak<dyn Behind> = Arc::downgrade(&core) as _;
        core.memory.add_behind(behind);
        let attached: Weak<dyn Attached> = Arc::downgrade(&core) as _;
        core.control().attach(Handle::new(attached));
        Ok(core)
    }
}

impl<D> Core<D> {
    fn ordered<'a, T>(&self, mutex: &'a Mutex<T>, rank: Rank) -> Guard<'a, T> {
        lock_in_order(mutex, std::ptr::from_ref(&*self.lanes.stillness).addr(), rank)
    }

    pub fn registers(&self) -> Guard<'_, Registers> {
        self.ordered(&self.registers, Rank::Registers)
    }

    /// The device's control face.
    fn control(&self) -> Control<'_, D> {
        let device = self.ordered(&self.device, Rank::Control);
        self.inside.store(this_thread(), Ordering::Relaxed);
        Control {
            device,
            inside: &self.inside,
        }
    }

    fn has(&self, bits: u32) -> bool {
        self.status.load(Ordering::SeqCst) & bits == bits
    }

    pub fn is_resetting(&self) -> bool {
        self.resetting.load(Ordering::SeqCst)
    }

    /// Whether the device may touch its queues.
    fn is_live(&self) -> bool {
        self.status.load(Ordering::SeqCst) & (DRIVER_OK | DEVICE_NEEDS_RESET) == DRIVER_OK && !self.is_resetting()
    }
}

impl<D: VirtioDevice> Core<D> {
    /// Before the guest runs, and once.
    pub fn set_doorbell(&self, doorbell: Box<dyn Doorbell>) {
        let _ = self.doorbell.set(doorbell);
    }

    // Status (section 2.1) and what hangs on it.

    /// As the driver reads it: what it has reset reads zero once it is still.
    pub fn status(&self) -> u32 {
        self.finish_reset();
        self.status.load(Ordering::SeqCst)
    }

    /// The driver writes the status, and not zero: bits are added in the order of section 3.1.1, and one that
    /// comes before its time is left out. The driver cannot take a bit away, nor set DEVICE_NEEDS_RESET. FAILED is noted and
    /// means nothing to the device: a driver is to reset it before it tries again, but Linux does not.
    pub fn write_status(&self, value: u32) {
        let mut registers = self.registers();
        if self.is_resetting() {
            return;
        }
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
                    let fault = self.activate(&mut registers);
                    drop(registers);
                    if let Some(fault) = fault {
                        self.fail(fault);
                    }
                    self.act_on_failure();
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
        let accepted = self.as_modern(registers.driver_features);
        let known = accepted & !self.offered() == 0 && !registers.unknown_features;
        let mut device = self.control();
        let agreed = known && self.accepts_enough(accepted) && device.accepts(accepted);
        if agreed {
            device.negotiated(accepted);
            self.negotiated.store(accepted, Ordering::SeqCst);
            self.note_config_change();
        }
        agreed
    }

    /// Whether nothing is missing that the device does not work without.
    pub(super) fn accepts_enough(&self, accepted: u64) -> bool {
        accepted & self.needed == self.needed
    }

    /// What a driver has accepted that writes these features.
    pub(super) fn as_modern(&self, features: u64) -> u64 {
        match self.without_version_1 {
            true => features | features::VERSION_1,
            false => features,
        }
    }

    fn activate(&self, registers: &mut Registers) -> Option<Fault> {
        let mut fault = None;
        for index in 0..registers.queues.len() {
            fault = fault.or(self.start_queue(registers, index).err());
        }
        self.interrupt.ready();
        self.status.fetch_or(DRIVER_OK, Ordering::SeqCst);
        fault
    }

    // Registers. They are frozen as the specification says: features until FEATURES_OK, a queue from FEATURES_OK until
    // it is ready, and everything for good once DRIVER_OK is set, but for a queue that was reset by itself.

    /// The registers, to select by them: not while a reset is under way, which ignores all writes.
    pub fn select(&self, select: impl FnOnce(&mut Registers)) {
        let mut registers = self.registers();
        if !self.is_resetting() {
            select(&mut registers);
        }
    }

    pub fn device_features(&self) -> u32 {
        let sel = self.registers().device_features_sel;
        word(self.offered(), sel)
    }

    fn offered(&self) -> u64 {
        self.offered.load(Ordering::SeqCst)
    }

    pub fn driver_features(&self) -> u32 {
        let registers = self.registers();
        word(registers.driver_features, registers.driver_features_sel)
    }

    /// Whether the driver has accepted `features`, for good.
    pub fn has_negotiated(&self, features: u64) -> bool {
        self.negotiated.load(Ordering::SeqCst) & features == features
    }

    pub fn write_driver_features(&self, value: u32) {
        let mut registers = self.registers();
        if !self.has(DRIVER) || self.has(FEATURES_OK) || self.is_resetting() {
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
    /// is, of a split ring, "either a value of 0 or a power of 2" (section 4.1.4.3.1), and a queue of size zero is refused when it is
    /// started.
    /// The size of before would not do, for the driver has made its rings for the one that it has written, and the device
    /// would write beyond them.
    pub fn write_queue_size(&self, value: u32) {
        let mut registers = self.registers();
        let selected = registers.selected();
        let packed = registers.driver_features & features::RING_PACKED != 0;
        if let Some(queue) = self.unfrozen(&mut registers) {
            let max = self.queue_sizes[selected];
            let size = u16::try_from(value).unwrap_or(0);
            queue.layout.size = if is_size(size, max, packed) { size } else { 0 };
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
        let lane = self.lanes.get(selected)?;
        let queue = registers.queues.get_mut(selected)?;
        let stopping = self.is_resetting() || lane.word.is_stopped_for(Stop::Queue);
        let open = self.has(FEATURES_OK) && (!self.has(DRIVER_OK) || queue.was_reset) && !stopping;
        (open && !queue.ready).then_some(queue)
    }

    // The device's own face.

    pub fn device_id(&self) -> u32 {
        self.with_control(|device| device.device_id().0)
    }

    pub fn shared_memory(&self, id: u32) -> Option<super::SharedMemoryRegion> {
        let id = u8::try_from(id).ok()?;
        self.with_control(|device| device.shared_memory(id))
    }

    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.with_control(|device| device.read_config(offset, data));
    }

    /// Whether it changed anything, and where, is the device's to know: it may have.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.with_control(|device| {
            if !self.is_resetting() {
                device.write_config(offset, data);
                self.note_config_change();
            }
        });
    }

    /// Uses the control face, and acts on a failure that was told from in there.
    pub(super) fn with_control<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        let result = f(&mut self.control());
        self.act_on_failure();
        result
    }

    /// Acts on a failure that was told when it could not be acted on: with nothing locked.
    pub(super) fn act_on_failure(&self) {
        if self.is_live()
            && let Some(fault) = { lock(&self.failing).take() }
        {
            self.fail(fault);
            self.tell_config_if_owed();
        }
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

    /// Lets the embedder change the device. If the change is one of the configuration space (`configuration` says so), it is noted
    /// for the generation and the driver is told.
    pub fn change_device<R>(&self, configuration: bool, change: impl FnOnce(&mut D) -> R) -> R {
        let result = self.with_control(|device| {
            let result = change(device);
            if configuration {
                self.note_config_change();
                // A driver on its way to DRIVER_OK may have read what changed now, and is told then. One that has not come yet
                // will read it all.
                if self.status.load(Ordering::SeqCst) != 0 {
                    self.notice.owe();
                }
            }
            result
        });
        self.tell_config_if_owed();
        result
    }

    /// Tells whatever the line has refused, but for what the queues remember. Not while the device is paused, and may be still.
    #[inline]
    pub(super) fn tell_what_is_owed(&self) {
        if self.notice.is_paused() {
            return;
        }
        self.interrupt.settle();
        self.tell_config_if_owed();
    }

    /// Tells a driver that is ready of a configuration change that it does not know of yet. A refusal is tried again with the next
    /// kick.
    #[inline]
    pub(super) fn tell_config_if_owed(&self) {
        if self.notice.is_owed() && self.has(DRIVER_OK) {
            self.tell_config();
        }
    }

    #[cold]
    fn tell_config(&self) {
        let tell = || {
            let _inside = Inside::new();
            self.interrupt.config_changed()
        };
        self.notice.tell(tell, || self.lanes.stillness.reached());
    }

    pub fn fault(&self) -> Option<Fault> {
        lock(&self.fault).clone()
    }
}

/// The control face, to one thread.
struct Control<'a, D> {
    device: Guard<'a, D>,
    inside: &'a AtomicUsize,
}

impl<D> Deref for Control<'_, D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.device
    }
}

impl<D> DerefMut for Control<'_, D> {
    fn deref_mut(&mut self) -> &mut D {
        &mut self.device
    }
}

impl<D> Drop for Control<'_, D> {
    fn drop(&mut self) {
        // Before it is unlocked.
        self.inside.store(0, Ordering::Relaxed);
    }
}

/// A number that no other thread has at the same time, and not zero.
fn this_thread() -> usize {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

impl<D: VirtioDevice> Attached for Core<D> {
    fn look(&self, queue: QueueIndex) {
        self.mark_and_ring(queue.0.into());
    }

    fn change_config(&self, change: &mut dyn FnMut()) {
        self.change_device(true, |_| change());
    }

    fn note_config_change(&self) {
        Core::note_config_change(self);
    }

    fn fail(&self, fault: Fault) {
        if self.inside.load(Ordering::Relaxed) == this_thread() {
            lock(&self.failing).get_or_insert(fault);
        } else {
            Core::fail(self, fault);
            self.tell_config_if_owed();
        }
    }
}

impl<D: VirtioDevice> Behind for Core<D> {
    fn let_go(&self) {
        self.memory_changed();
    }
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

impl<D> fmt::Debug for Core<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("status", &format_args!("{:#x}", self.status.load(Ordering::SeqCst)))
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}
