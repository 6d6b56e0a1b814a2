//! Save and restore of what all transports share.

use std::sync::{Arc, atomic::Ordering};

use super::{CONFIG_CHANGED, Core, NotStill, Registers, status};
use crate::{
    pci::StateError,
    virtio::{
        DeviceState, DeviceStateError, QueueIndex, VirtioDevice, features,
        queue::{Queue, QueueLayout, QueueState, QueueStateError, Stop, is_size},
        run::Running,
    },
};

/// A queue as the driver has programmed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Where it is and how long.
    pub layout: QueueLayout,
    /// The driver has enabled it.
    pub ready: bool,
    /// The driver has reset it by itself, or stopped it after DRIVER_OK, and may set it up again.
    pub was_reset: bool,
}

impl QueueSetup {
    pub(super) fn new(size: u16) -> Self {
        let layout = QueueLayout {
            size,
            ..QueueLayout::default()
        };
        Self {
            layout,
            ready: false,
            was_reset: false,
        }
    }
}

/// The state of a virtio device's transport as plain data, but for what its registers' layout adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportState {
    /// Device status.
    pub status: u32,
    /// Selected word of device features.
    pub device_features_sel: u32,
    /// Selected word of driver features.
    pub driver_features_sel: u32,
    /// Selected queue.
    pub queue_sel: u32,
    /// What the driver accepted so far.
    pub driver_features: u64,
    /// The driver accepted a feature of a word that does not exist.
    pub unknown_features: bool,
    /// How the driver set up each queue.
    pub setup: Vec<QueueSetup>,
    /// Progress in the queues that run.
    pub queues: Vec<Option<QueueState>>,
    /// Configuration generation, as the driver has last read it.
    pub config_generation: u32,
    /// The configuration space has changed since the driver last read that: its next read moves it on.
    pub config_changed: bool,
    /// A configuration interrupt that was not delivered.
    pub config_owed: bool,
}

/// A saved transport is refused; the transport is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The transport has been used already.
    #[error("the device status is {0:#x}: restore into a device that was just made or reset")]
    InUse(u32),
    /// The status has bits that do not exist, or one without those that come before it.
    #[error(
        "device status {0:#x} cannot be reached by a driver: 1, 2, 8, 4 and 0x40 come in that order, 0x80 at any time"
    )]
    Status(u32),
    /// Features were accepted that this device does not offer, or before its driver was there, or VERSION_1 was not.
    #[error("driver features {accepted:#x} were negotiated, of which the device offers {offered:#x}")]
    Features {
        /// What the state says.
        accepted: u64,
        /// What there is.
        offered: u64,
    },
    /// The number of queues differs.
    #[error("`{field}` has {saved} queues, for a device that has {needed}")]
    QueueCount {
        /// Which list of the state.
        field: &'static str,
        /// In the state.
        saved: usize,
        /// In the device.
        needed: usize,
    },
    /// A queue was enabled before FEATURES_OK, or reset or stopped by itself before that could be, or both at once.
    #[error("queue {0} is enabled or was reset when no driver could do that")]
    Setup(u16),
    /// A queue has a size that its register cannot have.
    #[error("queue {index} is of size {size}: zero, or up to {max} and in a split ring a power of two, is possible")]
    QueueSize {
        /// Which queue.
        index: u16,
        /// What the state says.
        size: u16,
        /// What the device offers.
        max: u16,
    },
    /// A queue runs that is not set up to, or with another layout or other features.
    #[error("queue {0} runs otherwise than the driver has set it up")]
    Contradiction(u16),
    /// A queue is refused.
    #[error("queue {index}: {error}")]
    Queue {
        /// Which queue.
        index: u16,
        /// Why.
        error: QueueStateError,
    },
    /// A register of the transport has bits that do not exist.
    #[error("{register} is {value:#x}: only {possible:#x} can be set")]
    Register {
        /// Its name.
        register: &'static str,
        /// What the state says.
        value: u64,
        /// All bits that there are.
        possible: u64,
    },
    /// A queue, or the configuration, interrupts by a vector that the function does not have.
    #[error("vector {vector:#x} is mapped: the function has {vectors}, and 0xffff is none")]
    Vector {
        /// What the state says.
        vector: u16,
        /// How many there are.
        vectors: u16,
    },
    /// The PCI function is refused.
    #[error(transparent)]
    Function(#[from] StateError),
    /// What the device itself keeps is refused.
    #[error(transparent)]
    Device(#[from] DeviceStateError),
    /// The state is of another transport.
    #[error("the state is of another transport: {0}'s is needed")]
    Transport(&'static str),
}

impl<D: VirtioDevice> Core<D> {
    /// The state of a device that is still. Stop the vCPUs first: what they change after this is not in it.
    pub fn save(&self) -> Result<(TransportState, DeviceState), NotStill> {
        self.finish_all();
        let registers = self.registers();
        let device = self.control();
        if !self.is_still() {
            return Err(NotStill(self.lanes.waiting()));
        }
        let Registers {
            device_features_sel,
            driver_features_sel,
            queue_sel,
            driver_features,
            unknown_features,
            queues,
        } = registers.clone();
        let generation = self.config_generation.load(Ordering::SeqCst);
        let state = TransportState {
            status: self.status.load(Ordering::SeqCst),
            device_features_sel,
            driver_features_sel,
            queue_sel,
            driver_features,
            unknown_features,
            setup: queues,
            // A broken device has lost its queues.
            queues: match self.is_live() {
                true => self.lanes.iter().map(|(_, lane)| lane.save()).collect(),
                false => self.lanes.iter().map(|_| None).collect(),
            },
            config_generation: generation as u32,
            config_changed: generation & CONFIG_CHANGED != 0,
            config_owed: self.notice.is_owed(),
        };
        Ok((state, device.save()))
    }

    /// Checks the state and takes it over, all or nothing. The device is paused then: the queues are not looked at before
    /// [`Self::resume`].
    pub fn restore(&self, state: &TransportState, device_state: &DeviceState) -> Result<(), RestoreError> {
        let mut registers = self.registers();
        let mut device = self.control();
        let present = self.status.load(Ordering::SeqCst);
        if present != 0 {
            return Err(RestoreError::InUse(present));
        }
        // The device first, since what it offers is in its state.
        let before = device.save();
        device.restore(device_state)?;
        let offered = device.features() | self.common;
        let checked = self.check(state, &*device, offered);
        let queues = match checked.and_then(|()| self.restore_queues(state)) {
            Ok(queues) => queues,
            Err(error) => {
                // It was in this state a moment ago.
                let _ = device.restore(&before);
                return Err(error);
            }
        };
        self.offered.store(offered, Ordering::SeqCst);
        let &TransportState {
            status,
            device_features_sel,
            driver_features_sel,
            queue_sel,
            driver_features,
            unknown_features,
            ref setup,
            queues: _,
            config_generation,
            config_changed,
            config_owed,
        } = state;
        *registers = Registers {
            device_features_sel,
            driver_features_sel,
            queue_sel,
            driver_features,
            unknown_features,
            queues: setup.clone(),
        };
        // No queue runs yet: there is no handler to tell.
        self.notice.pause();
        let untold = self.begin_stop(Stop::Embedder);
        if status & status::FEATURES_OK != 0 {
            let negotiated = self.as_modern(driver_features);
            self.negotiated.store(negotiated, Ordering::SeqCst);
            device.negotiated(negotiated);
        }
        for (queue, (index, lane)) in queues.into_iter().zip(self.lanes.iter()) {
            if let Some(queue) = queue {
                let handler = device.start(index);
                let queue = queue.run_by(Arc::clone(&lane.word), self.kicks_stay());
                lane.start(Running { handler, queue });
            }
        }
        let changed = if config_changed { CONFIG_CHANGED } else { 0 };
        let generation = u64::from(config_generation) | changed;
        self.config_generation.store(generation, Ordering::SeqCst);
        if config_owed {
            self.notice.owe();
        }
        if status & status::DRIVER_OK != 0 {
            self.interrupt.ready();
        }
        self.status.store(status, Ordering::SeqCst);
        drop((device, registers));
        self.tell(untold);
        Ok(())
    }

    fn check(&self, state: &TransportState, device: &D, offered: u64) -> Result<(), RestoreError> {
        let known = status::ORDER
            .iter()
            .fold(status::FAILED | status::DEVICE_NEEDS_RESET, |all, (bit, _)| all | bit);
        let in_order = |&(bit, after): &(u32, u32)| state.status & bit == 0 || state.status & after == after;
        let broken_too_early = state.status & status::DEVICE_NEEDS_RESET != 0 && state.status & status::DRIVER_OK == 0;
        if state.status & !known != 0 || !status::ORDER.iter().all(in_order) || broken_too_early {
            return Err(RestoreError::Status(state.status));
        }
        let accepted = self.as_modern(state.driver_features);
        let negotiated = state.status & status::FEATURES_OK != 0;
        let acceptable = accepted & !offered == 0
            && self.accepts_enough(accepted)
            && !state.unknown_features
            && device.accepts(accepted);
        let too_early = state.status & status::DRIVER == 0 && (state.driver_features != 0 || state.unknown_features);
        if negotiated && !acceptable || too_early {
            return Err(RestoreError::Features { accepted, offered });
        }
        let needed = self.queue_sizes.len();
        for (field, saved) in [("setup", state.setup.len()), ("queues", state.queues.len())] {
            if saved != needed {
                return Err(RestoreError::QueueCount { field, saved, needed });
            }
        }
        // By a reset of it alone, or because it was stopped.
        let driver_ok = state.status & status::DRIVER_OK != 0;
        let resettable = negotiated && (driver_ok || accepted & features::RING_RESET != 0);
        let possible = |queue: &QueueSetup| match (queue.ready, queue.was_reset) {
            (true, true) => false,
            (true, false) => negotiated,
            (false, true) => resettable,
            (false, false) => true,
        };
        let packed = accepted & features::RING_PACKED != 0;
        for ((queue, &max), index) in state.setup.iter().zip(&self.queue_sizes).zip(0..) {
            let size = queue.layout.size;
            if !possible(queue) {
                return Err(RestoreError::Setup(index));
            }
            // Written when the features stood.
            if size != 0 && !is_size(size, max, packed) {
                return Err(RestoreError::QueueSize { index, size, max });
            }
        }
        Ok(())
    }

    fn restore_queues(&self, state: &TransportState) -> Result<Vec<Option<Queue>>, RestoreError> {
        let live = state.status & (status::DRIVER_OK | status::DEVICE_NEEDS_RESET) == status::DRIVER_OK;
        let mut queues: Vec<_> = self.queue_sizes.iter().map(|_| None).collect();
        for (position, (setup, saved)) in state.setup.iter().zip(&state.queues).enumerate() {
            let index = QueueIndex(position as u16);
            let runs = live && setup.ready;
            let Some(saved) = saved else {
                if runs {
                    return Err(RestoreError::Contradiction(index.0));
                }
                continue;
            };
            if !runs || saved.layout != setup.layout || saved.features != state.driver_features {
                return Err(RestoreError::Contradiction(index.0));
            }
            let interrupt = Arc::clone(&self.interrupt);
            let queue = Queue::restore(index, self.queue_sizes[position], saved, &self.memory, interrupt);
            queues[position] = Some(queue.map_err(|error| RestoreError::Queue { index: index.0, error })?);
        }
        Ok(queues)
    }
}
