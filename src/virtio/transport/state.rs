//! Save and restore of what all transports share.

use std::sync::{Arc, atomic::Ordering};

use super::{
    common::{CONFIG_CHANGED, Core, Registers},
    saved::{NotStill, QueueSetup, RestoreError, TransportState},
    status,
};
use crate::virtio::{
    DeviceState, QueueIndex, VirtioDevice, features,
    queue::{Queue, Stop, is_size},
    run::Running,
};

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
                let queue = queue.run_by(Arc::clone(&lane.word), self.kicks());
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
