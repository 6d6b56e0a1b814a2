//! A ring as the front end has described it, and the queue that it becomes.

use std::sync::{Arc, atomic::Ordering};

use super::{inflight::Part, regions::Regions};
use crate::{
    memory::Memory,
    virtio::{
        Fault, QueueIndex, VirtioDevice, features,
        queue::{Queue, QueueLayout, QueueState, QueueStateError, Stop, Tracker},
        run::Running,
        transport::{
            Core, QueueSetup,
            status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK},
        },
        vhost_user::VringAddress,
    },
};

/// The most entries of a ring, whatever the device says: a front end is not told. As in QEMU.
pub(super) const MAX_SIZE: u16 = 1024;

/// How the front end starts a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kick {
    /// It has not.
    #[default]
    None,
    /// It has, and kicks it or has it polled.
    Set,
}

/// A ring.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    pub size: u16,
    pub address: Option<VringAddress>,
    /// Where to begin, as SET_VRING_BASE has it.
    pub base: u32,
    pub kick: Kick,
    /// What SET_VRING_ENABLE has said, if it has.
    pub enabled: Option<bool>,
    /// As it was when it was stopped last.
    pub kept: Option<QueueState>,
    /// It runs, there.
    pub runs: Option<QueueLayout>,
    /// It was started, and its layout was refused.
    pub refused: bool,
}

impl Ring {
    /// Where it is, if all of that was said and is in memory.
    pub fn layout(&self, regions: &Regions) -> Option<QueueLayout> {
        let VringAddress {
            descriptor,
            used,
            available,
            ..
        } = self.address?;
        Some(QueueLayout {
            size: self.size,
            descriptor_area: regions.translate(descriptor)?,
            driver_area: regions.translate(available)?,
            device_area: regions.translate(used)?,
        })
    }

    /// Where it goes on, in a device with these features.
    pub fn start(
        &self,
        layout: QueueLayout,
        features: u64,
        memory: &Memory,
        inflight: Option<&Part>,
    ) -> Result<QueueState, Fault> {
        let fresh = QueueState {
            layout,
            features,
            next_avail: self.base as u16,
            next_used: self.base as u16,
            in_flight: Vec::new(),
            chains: Vec::new(),
            ended: Vec::new(),
            signal_owed: false,
        };
        if let Some(kept) = self.kept.as_ref().filter(|_| inflight.is_none())
            && kept.features == features
            && kept.layout.size == layout.size
            && base_of(kept) as u16 == self.base as u16
        {
            return Ok(QueueState { layout, ..kept.clone() });
        }
        if features & features::RING_PACKED != 0 {
            // Where it was used last is in the message of those who know, and as far as it was made available if nothing is under
            // way; what is under way is known from the table alone.
            let begin = self.packed_base(layout, memory)?;
            return Ok(QueueState {
                next_avail: begin,
                next_used: begin,
                ..fresh
            });
        }
        let mut used = [0; 2];
        let there = memory.pin().read(layout.device_area.wrapping_add(2), &mut used);
        there.map_err(|outside| Fault::Host(outside.to_string()))?;
        let used = u16::from_le_bytes(used);
        if let Some(inflight) = inflight {
            // It knows more than the base, which the front end has guessed if this process was gone.
            let in_flight = inflight.recover(used, layout.size);
            return Ok(QueueState {
                next_avail: used.wrapping_add(in_flight.len() as u16),
                next_used: used,
                in_flight,
                signal_owed: true,
                ..fresh
            });
        }
        // What was taken before and has not come back is served again; nobody says what of it was done.
        match fresh.next_avail.wrapping_sub(used) {
            lost if lost <= layout.size => Ok(QueueState {
                next_avail: used,
                next_used: used,
                ..fresh
            }),
            _ => Err(Fault::Host(format!(
                "a ring of {} begins at {} and has used up to {used}",
                layout.size, fresh.next_avail
            ))),
        }
    }
}

impl Ring {
    /// Puts what was taken and is to be served again where the driver has made it available, in the order in which it was taken: so a
    /// split ring goes on from what it has used, whoever goes on with it. The driver does not look at these entries, nor write them
    /// before more is used. Of a packed ring, only this process can go on.
    pub fn rewind(state: &mut QueueState, memory: &Memory) {
        if state.features & features::RING_PACKED != 0 || state.in_flight.is_empty() {
            return;
        }
        let pin = memory.pin();
        let places = (0..).map(|at| state.next_used.wrapping_add(at) % state.layout.size);
        for (&head, place) in state.in_flight.iter().zip(places) {
            let entry = state.layout.driver_area + 4 + 2 * u64::from(place);
            if pin.write(entry, &head.to_le_bytes()).is_err() {
                return;
            }
        }
        state.next_avail = state.next_used;
        state.in_flight.clear();
        state.ended.clear();
    }

    /// Where a packed ring goes on. Some front ends begin a new one with zero, where the wrap counter is to be one. In a ring that has
    /// come there by itself, the first descriptor was used when the wrap counter was one, or has been made available since; both have
    /// the used flag set, and no first descriptor of a new ring has.
    fn packed_base(&self, layout: QueueLayout, memory: &Memory) -> Result<u16, Fault> {
        const USED: u16 = 1 << 15;
        const WRAPPED: u16 = 1 << 15;
        if self.base != 0 {
            return Ok(self.base as u16);
        }
        let mut flags = [0; 2];
        let there = memory.pin().read(layout.descriptor_area.wrapping_add(14), &mut flags);
        there.map_err(|outside| Fault::Host(outside.to_string()))?;
        Ok(if u16::from_le_bytes(flags) & USED == 0 { WRAPPED } else { 0 })
    }
}

/// Where a ring has come to, as GET_VRING_BASE tells it.
pub(super) fn base_of(state: &QueueState) -> u32 {
    match state.features & features::RING_PACKED != 0 {
        false => state.next_avail.into(),
        true => u32::from(state.next_avail) | u32::from(state.next_used) << 16,
    }
}

impl<D: VirtioDevice> Core<D> {
    /// The front end sets the features that the driver has accepted. No ring runs. Whether the device can work with them.
    pub(super) fn agree(&self, accepted: u64) -> bool {
        let mut registers = self.registers();
        registers.driver_features = accepted;
        self.status.fetch_or(ACKNOWLEDGE | DRIVER, Ordering::SeqCst);
        let agreed = self.negotiate(&registers);
        if agreed {
            self.status.fetch_or(FEATURES_OK, Ordering::SeqCst);
        }
        agreed
    }

    /// Starts a ring. The first makes the device live.
    pub(super) fn start_ring(
        &self,
        index: usize,
        state: &QueueState,
        tracker: Option<Arc<dyn Tracker>>,
    ) -> Result<(), QueueStateError> {
        let (Some(lane), name) = (self.lanes.get(index), QueueIndex(index as u16)) else {
            return Ok(());
        };
        let mut registers = self.registers();
        let interrupt = Arc::clone(&self.interrupt);
        let max = self.queue_sizes[index].max(MAX_SIZE);
        let queue = Queue::restore(name, max, state, &self.memory, interrupt)?;
        let queue = queue.run_by(Arc::clone(&lane.word), self.kicks_stay());
        let queue = match tracker {
            Some(tracker) => queue.track(tracker),
            None => queue,
        };
        registers.queues[index] = QueueSetup {
            layout: state.layout,
            ready: true,
            was_reset: false,
        };
        let handler = self.control().start(name);
        lane.start(Running { handler, queue });
        self.become_live();
        drop(registers);
        self.act_on_failure();
        self.tell_config_if_owed();
        self.mark_and_ring(index);
        Ok(())
    }

    /// The driver is ready, as far as the front end has said.
    pub(super) fn become_live(&self) {
        if !self.has(DRIVER_OK) {
            self.interrupt.ready();
            self.status.fetch_or(DRIVER_OK, Ordering::SeqCst);
        }
    }

    /// Has a ring come to rest, which is not waited for.
    pub(super) fn begin_ring_stop(&self, index: usize) {
        let Some(lane) = self.lanes.get(index).filter(|lane| lane.word.runs()) else {
            return;
        };
        self.note_stop();
        let untold = lane.begin_stop(Stop::Bus);
        self.tell(untold.map(|untold| (QueueIndex(index as u16), untold)));
        self.cancel(index..index + 1);
    }

    /// Whether a ring is at rest that is to be.
    pub(super) fn is_ring_still(&self, index: usize) -> bool {
        self.lanes
            .get(index)
            .is_none_or(|lane| !lane.word.runs() || lane.word.is_still())
    }

    /// Ends a ring that is at rest, and says how far it has come.
    pub(super) fn end_ring(&self, index: usize) -> Option<QueueState> {
        let lane = self.lanes.get(index)?;
        let state = lane.word.runs().then(|| lane.save()).flatten();
        let mut registers = self.registers();
        lane.finish(&self.beside(index));
        lane.word.resume(Stop::Bus);
        if let Some(queue) = registers.queues.get_mut(index) {
            queue.ready = false;
        }
        state
    }

    /// A device that was reset is not held back by how its rings were stopped.
    pub(super) fn end_bus_stops(&self) {
        self.lanes.resume(Stop::Bus);
    }

    /// A ring cannot be where its driver has put it.
    pub(super) fn refuse_ring(&self, reason: String) {
        self.fail(Fault::Host(reason));
        self.tell_config_if_owed();
    }
}
