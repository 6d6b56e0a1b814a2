//! What a device says and hears for itself: identity, configuration space, failures, and what it tells its driver.

use std::sync::atomic::Ordering;

use super::{
    common::{CONFIG_CHANGED, Core},
    control::this_thread,
    status::DRIVER_OK,
};
use crate::{
    memory::Behind,
    sync::lock,
    virtio::{Fault, QueueIndex, SharedMemoryRegion, VirtioDevice, device::Attached, queue::Inside},
};

impl<D: VirtioDevice> Core<D> {
    pub fn device_id(&self) -> u32 {
        self.with_control(|device| device.device_id().0)
    }

    pub fn shared_memory(&self, id: u32) -> Option<SharedMemoryRegion> {
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
    pub(super) fn note_config_change(&self) {
        self.config_generation.fetch_or(CONFIG_CHANGED, Ordering::SeqCst);
    }

    /// The driver is owed nothing of before its reset; who has read the configuration for it is.
    pub(super) fn forget_notice(&self) {
        if !self.interrupt.keeps_config() {
            self.notice.forget();
        }
    }

    /// Lets the embedder change the device. If the change is one of the configuration space (`configuration` says so), it is noted
    /// for the generation and the driver is told.
    pub fn change_device<R>(&self, configuration: bool, change: impl FnOnce(&mut D) -> R) -> R {
        let result = self.with_control(|device| {
            let result = change(device);
            if configuration {
                self.note_config_change();
                // A driver on its way to DRIVER_OK may have read what changed now, and is told then. One that has not come yet
                // will read it all, unless somebody has for it.
                if self.status.load(Ordering::SeqCst) != 0 || self.interrupt.keeps_config() {
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
        if self.owes_config() {
            self.tell_config();
        }
    }

    /// Whether a driver that is ready does not know of a configuration change yet, and may be told.
    #[inline]
    pub(super) fn owes_config(&self) -> bool {
        self.notice.is_owed() && self.has(DRIVER_OK) && !self.notice.is_paused()
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
