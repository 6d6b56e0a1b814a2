//! The traditional memory balloon device (virtio 1.2, section 5.5).

mod hinting;
mod hints;
mod options;
mod pages;
mod partial;
mod registers;
mod reporting;
mod shared;
mod statistic;
mod statistics;

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use super::{
    DeviceId, DeviceState, DeviceStateError, FailureLog, Fault, Handle, HostFailures, QueueHandler, QueueIndex, Round,
    VirtioDevice, device::read_config_bytes, queue::ChainError, reclaim::Reclaim,
};
use crate::{sync::lock, time::Clock};
use hinting::HintQueue;
use pages::PageQueue;
use registers::{Role, command, config, contiguous_role, feature, role};
use reporting::ReportingQueue;
use shared::{Counters, Shared};
use statistic::Asking;
use statistics::StatisticsQueue;

pub use hints::{FreePageHints, Hinting};
pub use options::{BalloonError, BalloonOptions};
pub use shared::BalloonCounters;
pub use statistic::{Statistic, Statistics};

/// A balloon in the guest's memory: the guest gives pages, and their memory goes back to the host.
///
/// *Target*: [`set_target`](Self::set_target), through
/// [`change_config`](super::VirtioMmio::change_config), asks for so many pages; [`actual`](Self::actual) is how many the driver says that
/// it has given. It may say anything, give other pages than it is asked for, and the same ones twice: what comes of it is that pages of
/// its own read as zeros.
///
/// *Statistics* are [asked for](Self::request_statistics), or come at an [interval](Self::polling); the answer is in
/// [`statistics`](Self::statistics) once the guest has given it.
///
/// *Hints of free pages* are offered [to whoever takes them](Self::with_hints): a round begins with [`start_hinting`](Self::start_hinting)
/// and ends with [`stop_hinting`](Self::stop_hinting) or [`finish_hinting`](Self::finish_hinting).
///
/// *Which queue is what*: the specification numbers five queues, whether there are all of them or not. Linux up to 6.10, and what
/// was made for it, leave no gaps. Here a driver does either: one that enables a queue which would not be there has moved them up.
///
/// ```
/// use devisor::{
///     interrupt::NoInterrupt,
///     virtio::{VirtioMmio, balloon::{Balloon, BalloonOptions}, transport::mmio::Line},
/// };
/// # #[cfg(target_os = "linux")] {
/// use devisor::virtio::reclaim::Madvise;
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 64 << 20)])?);
/// let balloon = Balloon::new(Madvise::new(memory.clone()), BalloonOptions::default())?;
/// let balloon = VirtioMmio::new(balloon, memory, Line::Edge(Arc::new(NoInterrupt)))?;
///
/// // 16 MiB, please.
/// balloon.change_config(|balloon| balloon.set_target(4096));
/// assert_eq!(balloon.with_device(|balloon| balloon.actual()), 0);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Balloon {
    // Configured.
    options: BalloonOptions,
    queue_sizes: Box<[u16]>,
    // Plugged in.
    shared: Arc<Shared>,
    handle: Option<Handle>,
    /// `num_pages`.
    target: u32,
    // What the guest can change.
    /// `actual`.
    actual: u32,
    /// The driver has moved the queues up that there are.
    contiguous: bool,
}

/// The state of a balloon as plain data.
///
/// Which parts of a large page of the host are in the balloon is not in it, nor statistics: a part that was given before is kept, and
/// statistics are told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonState {
    /// What the device offered.
    pub features: u64,
    /// Size of each queue.
    pub queue_size: u16,
    /// `num_pages`.
    pub target: u32,
    /// `actual`.
    pub actual: u32,
    /// `poison_val`.
    pub poison: u32,
    /// The driver numbers the queues without gaps.
    pub contiguous: bool,
    /// Free page hinting.
    pub hinting: Hinting,
}

impl Balloon {
    /// The queue by which statistics come, if they are negotiated: the one to have looked at
    /// ([`process`](super::VirtioTransport::process)) after [`request_statistics`](Self::request_statistics), if the device has no
    /// doorbell.
    pub const STATISTICS_QUEUE: QueueIndex = QueueIndex(2);

    /// A balloon whose pages go to `reclaim`.
    ///
    /// # Errors
    /// An option is out of range.
    pub fn new(reclaim: impl Reclaim + 'static, options: BalloonOptions) -> Result<Self, BalloonError> {
        options.check()?;
        let shared = Shared {
            max_pages: options.max_pages,
            max_partial: options.max_partial as usize,
            reclaim: Box::new(reclaim),
            hints: None,
            clock: None,
            failures: FailureLog::default(),
            counters: Counters::default(),
            asking: Mutex::new(Asking::default()),
            negotiated: AtomicU64::new(0),
            poison: AtomicU32::new(0),
            partial: Mutex::default(),
            hinting: Mutex::default(),
        };
        Ok(Self {
            target: options.target,
            actual: 0,
            contiguous: false,
            handle: None,
            shared: Arc::new(shared),
            queue_sizes: Box::default(),
            options,
        }
        .with_queues())
    }

    /// Offers VIRTIO_BALLOON_F_FREE_PAGE_HINT, with `hints` to take what comes. Before it is put behind a transport.
    pub fn with_hints(mut self, hints: impl FreePageHints + 'static) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.hints = Some(Box::new(hints));
        }
        self.with_queues()
    }

    /// Statistics are asked for again whenever `interval` has passed since the last, by `clock`: the queue
    /// [waits](super::Wait::Until) for it. Before it is put behind a transport.
    ///
    /// # Errors
    /// The interval is shorter than a millisecond.
    pub fn polling(mut self, clock: impl Clock + 'static, interval: Duration) -> Result<Self, BalloonError> {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.clock = Some(Box::new(clock));
        }
        self.set_polling(Some(interval))?;
        Ok(self)
    }

    /// With as many queues as the highest that there may be.
    fn with_queues(self) -> Self {
        let features = self.features();
        let highest = (0..5).rev().find(|&index| role(index, features).is_some());
        let count = highest.map_or(2, |highest| highest + 1);
        Self {
            queue_sizes: vec![self.options.queue_size; count.into()].into(),
            ..self
        }
    }

    /// How many pages of 4096 bytes the guest is to give.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// Asks for so many pages. Call this through [`VirtioMmio::change_config`](super::VirtioMmio::change_config) or
    /// [`VirtioPci::change_config`](super::VirtioPci::change_config), which tells the driver.
    pub fn set_target(&mut self, pages: u32) {
        self.target = pages;
    }

    /// How many pages the driver says are in the balloon.
    pub fn actual(&self) -> u32 {
        self.actual
    }

    /// What the balloon has seen and done.
    pub fn counters(&self) -> BalloonCounters {
        self.shared.counters.get()
    }

    /// What the host has refused to take, or had not got. The guest does not hear of it.
    pub fn host_failures(&self) -> HostFailures {
        self.shared.failures.get()
    }

    /// What the guest has told last.
    pub fn statistics(&self) -> Option<Statistics> {
        lock(&self.shared.asking).last
    }

    /// Asks for statistics: the queue is marked and the doorbell rung. Without a doorbell have
    /// [it](Self::STATISTICS_QUEUE) looked at then. The answer comes when the guest gives it; asked again before, it is the same question.
    ///
    /// # Errors
    /// The driver has not accepted VIRTIO_BALLOON_F_STATS_VQ.
    pub fn request_statistics(&mut self) -> Result<(), BalloonError> {
        self.need(feature::STATS_VQ, "VIRTIO_BALLOON_F_STATS_VQ")?;
        lock(&self.shared.asking).asked = true;
        self.look_at_statistics();
        Ok(())
    }

    /// Another interval of asking for statistics, or none.
    ///
    /// # Errors
    /// It is shorter than a millisecond, or the balloon has no [clock](Self::polling).
    pub fn set_polling(&mut self, interval: Option<Duration>) -> Result<(), BalloonError> {
        match interval {
            Some(interval) if interval < Duration::from_millis(1) => return Err(BalloonError::Interval(interval)),
            Some(_) if self.shared.clock.is_none() => return Err(BalloonError::NoClock),
            _ => lock(&self.shared.asking).interval = interval,
        }
        self.look_at_statistics();
        Ok(())
    }

    fn look_at_statistics(&self) {
        if let Some(handle) = self.handle.as_ref().filter(|_| self.shared.has(feature::STATS_VQ)) {
            handle.look(Self::STATISTICS_QUEUE);
        }
    }

    fn need(&self, feature: u64, name: &'static str) -> Result<(), BalloonError> {
        match self.shared.has(feature) {
            true => Ok(()),
            false => Err(BalloonError::NotNegotiated(name)),
        }
    }

    /// Asks for hints of free pages, in answer to the command that is returned. Call this through `change_config`.
    ///
    /// # Errors
    /// The driver has not accepted VIRTIO_BALLOON_F_FREE_PAGE_HINT.
    pub fn start_hinting(&mut self) -> Result<u32, BalloonError> {
        self.need(feature::FREE_PAGE_HINT, "VIRTIO_BALLOON_F_FREE_PAGE_HINT")?;
        Ok(lock(&self.shared.hinting).start())
    }

    /// Hints are of no use now (VIRTIO_BALLOON_CMD_ID_STOP); the guest keeps what it has hinted. Call this through `change_config`.
    pub fn stop_hinting(&mut self) {
        lock(&self.shared.hinting).command = command::STOP;
    }

    /// Hints are no longer needed (VIRTIO_BALLOON_CMD_ID_DONE); the guest uses its pages again. Call this through `change_config`.
    pub fn finish_hinting(&mut self) {
        lock(&self.shared.hinting).command = command::DONE;
    }

    fn config(&self) -> [u8; config::LEN] {
        let mut bytes = [0; config::LEN];
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(config::NUM_PAGES, self.target);
        put(config::ACTUAL, self.actual);
        put(config::FREE_PAGE_HINT_CMD_ID, lock(&self.shared.hinting).command);
        put(config::POISON_VAL, self.shared.poison.load(SeqCst));
        bytes
    }

    /// Which queue `index` is, now that the driver enables it.
    fn role(&mut self, index: u16) -> Option<Role> {
        let features = self.shared.negotiated.load(SeqCst);
        if role(index, features).is_none() {
            self.contiguous = true;
        }
        match self.contiguous {
            true => contiguous_role(index, features),
            false => role(index, features),
        }
    }
}

/// Lays what was written at `offset` over a field of 32 bits at `at`.
fn overlay(value: u32, at: usize, offset: u64, data: &[u8]) -> u32 {
    let mut bytes = value.to_le_bytes();
    for (byte, place) in bytes.iter_mut().zip(at as u64..) {
        let index = place.checked_sub(offset).and_then(|index| usize::try_from(index).ok());
        if let Some(&written) = index.and_then(|index| data.get(index)) {
            *byte = written;
        }
    }
    u32::from_le_bytes(bytes)
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> DeviceId {
        DeviceId::BALLOON
    }

    fn features(&self) -> u64 {
        let offered = [
            (self.options.must_tell_host, feature::MUST_TELL_HOST),
            (self.options.statistics, feature::STATS_VQ),
            (self.options.deflate_on_oom, feature::DEFLATE_ON_OOM),
            (self.shared.hints.is_some(), feature::FREE_PAGE_HINT),
            (self.options.page_poison, feature::PAGE_POISON),
            (self.options.page_reporting, feature::PAGE_REPORTING),
        ];
        let offered = offered.iter().filter(|(is_offered, _)| *is_offered);
        offered.fold(0, |features, (_, feature)| features | feature)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn attach(&mut self, handle: Handle) {
        self.handle = Some(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    /// `actual` can be written, and `poison_val` if VIRTIO_BALLOON_F_PAGE_POISON was negotiated.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.actual = overlay(self.actual, config::ACTUAL, offset, data);
        if self.shared.has(feature::PAGE_POISON) {
            let poison = self.shared.poison.load(SeqCst);
            let poison = overlay(poison, config::POISON_VAL, offset, data);
            self.shared.poison.store(poison, SeqCst);
        }
    }

    fn negotiated(&mut self, features: u64) {
        self.shared.negotiated.store(features, SeqCst);
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        let role = self.role(queue.0);
        let shared = Arc::clone(&self.shared);
        match role {
            Some(Role::Inflate) => Box::new(PageQueue::inflate(shared)),
            Some(Role::Deflate) => Box::new(PageQueue::deflate(shared)),
            Some(Role::Statistics) => Box::new(StatisticsQueue::new(shared)),
            Some(Role::Hints) => Box::new(HintQueue(shared)),
            Some(Role::Reporting) => Box::new(ReportingQueue(shared)),
            None => Box::new(NoQueue),
        }
    }

    fn reset(&mut self) {
        self.actual = 0;
        self.contiguous = false;
        self.shared.negotiated.store(0, SeqCst);
        self.shared.poison.store(0, SeqCst);
        lock(&self.shared.partial).clear();
        // The embedder's interval stays.
        let mut asking = lock(&self.shared.asking);
        (asking.last, asking.asked) = (None, false);
        let mut hinting = lock(&self.shared.hinting);
        // A command that was given counts on.
        (hinting.command, hinting.answered) = (command::STOP, None);
    }

    fn save(&self) -> DeviceState {
        let Self {
            options,
            queue_sizes: _,
            shared,
            handle: _,
            target,
            actual,
            contiguous,
        } = self;
        let Shared {
            // Configured and plugged in.
            max_pages: _,
            max_partial: _,
            reclaim: _,
            hints: _,
            clock: _,
            failures: _,
            counters: _,
            // The embedder's, and told again.
            asking: _,
            // The transport's.
            negotiated: _,
            poison,
            // Less may be given back.
            partial: _,
            hinting,
        } = &**shared;
        DeviceState::Balloon(BalloonState {
            features: self.features(),
            queue_size: options.queue_size,
            target: *target,
            actual: *actual,
            poison: poison.load(SeqCst),
            contiguous: *contiguous,
            hinting: *lock(hinting),
        })
    }

    /// What is offered, and the size of the queues, has to be the same.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Balloon(state) = state else {
            return Err(DeviceStateError::kind(state, "a balloon's"));
        };
        let &BalloonState {
            features,
            queue_size,
            target,
            actual,
            poison,
            contiguous,
            hinting,
        } = state;
        let otherwise = |why: String| Err(DeviceStateError::Otherwise(why));
        if (features, queue_size) != (self.features(), self.options.queue_size) {
            let (made, size) = (self.features(), self.options.queue_size);
            return otherwise(format!(
                "offering {made:#x} with queues of {size}, where the state has {features:#x} with queues of {queue_size}"
            ));
        }
        let without_feature = features & feature::PAGE_POISON == 0 && poison != 0
            || features & feature::FREE_PAGE_HINT == 0 && hinting != Hinting::default();
        if without_feature || !hinting.is_possible() {
            return otherwise(format!(
                "no balloon has poison_val {poison:#x} and {hinting:?} with features {features:#x}"
            ));
        }
        (self.target, self.actual, self.contiguous) = (target, actual, contiguous);
        self.shared.poison.store(poison, SeqCst);
        *lock(&self.shared.hinting) = hinting;
        lock(&self.shared.partial).clear();
        Ok(())
    }
}

/// Serves a queue that there is not: the driver has not accepted what it is for.
struct NoQueue;

impl QueueHandler for NoQueue {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        Ok(round.each(|_| Err(ChainError::Request("a queue of a feature that was not accepted")))?)
    }
}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon")
            .field("options", &self.options)
            .field("target", &self.target)
            .field("actual", &self.actual)
            .field("counters", &self.counters())
            .field("failures", &self.shared.failures)
            .finish_non_exhaustive()
    }
}
