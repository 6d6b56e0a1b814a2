//! A ring as the front end has described it, and the queue that it becomes.

use std::sync::{Arc, atomic::Ordering};

use super::{
    found::{Found, Unstarted},
    inflight::{self, Part},
    regions::Regions,
};
use crate::virtio::{
    DeviceState, DeviceStateError, Fault, QueueIndex, VirtioDevice, features,
    queue::{ChainState, Queue, QueueLayout, QueueState, QueueStateError, Stop, Tracker},
    run::Running,
    transport::{
        Core, QueueSetup,
        status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK},
    },
    vhost_user::VringAddress,
};

/// The most entries of a ring, whatever the device says: a front end is not told. As in QEMU.
const MAX_SIZE: u16 = 1024;

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
    /// It may run: SET_VRING_ENABLE has said so, or SET_FEATURES.
    pub enabled: bool,
    /// As it was when it was stopped last.
    pub kept: Option<QueueState>,
    /// It runs, there.
    pub runs: Option<QueueLayout>,
    /// It was started, and its layout was refused.
    pub refused: bool,
}

impl Ring {
    /// Where it is, if all of that was said and is in memory. `translated`: its addresses are the driver's, which are translated.
    pub fn layout(&self, regions: &Regions, translated: bool) -> Option<QueueLayout> {
        let VringAddress {
            descriptor,
            used,
            available,
            ..
        } = self.address?;
        let find = |address| match translated {
            true => Some(address),
            false => regions.translate(address),
        };
        Some(QueueLayout {
            size: self.size,
            descriptor_area: find(descriptor)?,
            driver_area: find(available)?,
            device_area: find(used)?,
        })
    }

    /// Where it goes on, in a device with these features. `memory` is looked at where `find` says that an address is.
    pub fn start(
        &self,
        layout: QueueLayout,
        features: u64,
        memory: &Found<'_>,
        inflight: Option<&Part>,
    ) -> Result<QueueState, Unstarted> {
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
        if let Some(Part::Packed(table)) = inflight {
            // It knows more than the base, which the front end has guessed if this process was gone.
            let begin = self.packed_base(layout, memory)?;
            let inflight::Found {
                next_used,
                next_avail,
                in_flight,
                chains,
            } = table.recover(begin, layout.size, layout.descriptor_area, memory)?;
            return Ok(QueueState {
                next_avail,
                next_used,
                in_flight,
                chains,
                signal_owed: true,
                ..fresh
            });
        }
        if features & features::RING_PACKED != 0 {
            // Where it was used last, or as far as it was made available if that is not said.
            let begin = self.packed_base(layout, memory)?;
            return Ok(QueueState {
                next_avail: begin,
                next_used: begin,
                ..fresh
            });
        }
        let mut used = [0; 2];
        memory.read(layout.device_area.wrapping_add(2), &mut used)?;
        let used = u16::from_le_bytes(used);
        if let Some(Part::Split(inflight)) = inflight {
            // As above.
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
            _ => Err(Unstarted::Wrong(format!(
                "a ring of {} begins at {} and has used up to {used}",
                layout.size, fresh.next_avail
            ))),
        }
    }
}

impl Ring {
    /// Puts what was taken and is to be served again where the driver has made it available, in the order in which it was taken: so a
    /// ring goes on from what it has used, whoever goes on with it. The driver does not look at these entries, nor write them before
    /// more is used. With a packed ring, only this process can go on if one of them was in a table, for it is not known where.
    pub fn rewind(state: &mut QueueState, memory: &Found<'_>) {
        if state.in_flight.is_empty() {
            return;
        }
        let written = match state.features & features::RING_PACKED != 0 {
            false => Self::rewind_split(state, memory),
            true => Self::rewind_packed(state, memory),
        };
        if written.is_some() {
            state.next_avail = state.next_used;
            state.in_flight.clear();
            state.chains.clear();
            state.ended.clear();
        }
    }

    fn rewind_split(state: &QueueState, memory: &Found<'_>) -> Option<()> {
        let places = (0..).map(|at| state.next_used.wrapping_add(at) % state.layout.size);
        for (&head, place) in state.in_flight.iter().zip(places) {
            memory.write(state.layout.driver_area + 4 + 2 * u64::from(place), &head.to_le_bytes())?;
        }
        Some(())
    }

    fn rewind_packed(state: &QueueState, memory: &Found<'_>) -> Option<()> {
        const WRAP: u16 = 1 << 15;
        let (next, write, avail, used) = (1u16, 2u16, 1u16 << 7, 1u16 << 15);
        let count = |chain: &ChainState| chain.readable.len() + chain.writable.len();
        if !state.ended.is_empty()
            || state
                .chains
                .iter()
                .any(|chain| count(chain) != usize::from(chain.descriptors))
        {
            return None;
        }
        let size = state.layout.size;
        let mut place = state.next_used;
        for (&id, chain) in state.in_flight.iter().zip(&state.chains) {
            let readable = chain.readable.iter().map(|segment| (segment, 0));
            let segments = readable.chain(chain.writable.iter().map(|segment| (segment, write)));
            for ((segment, direction), number) in segments.zip(1u16..) {
                let more = if number < chain.descriptors { next } else { 0 };
                let marks = if place & WRAP != 0 { avail } else { used };
                let mut bytes = segment.address.to_le_bytes().to_vec();
                bytes.extend(segment.len.to_le_bytes());
                bytes.extend(id.to_le_bytes());
                bytes.extend((direction | more | marks).to_le_bytes());
                let slot = place & !WRAP;
                memory.write(state.layout.descriptor_area + 16 * u64::from(slot), &bytes)?;
                place = match slot + 1 == size {
                    false => place + 1,
                    true => (place & WRAP) ^ WRAP,
                };
            }
        }
        Some(())
    }

    /// Where a packed ring goes on. Some front ends begin a new one with zero, where the wrap counter is to be one. In a ring that has
    /// come there by itself, the first descriptor was used when the wrap counter was one, or has been made available since; both have
    /// the used flag set, and no first descriptor of a new ring has.
    fn packed_base(&self, layout: QueueLayout, memory: &Found<'_>) -> Result<u16, Unstarted> {
        const USED: u16 = 1 << 15;
        const WRAPPED: u16 = 1 << 15;
        match (self.base >> 16) as u16 {
            0 if self.base != 0 => return Ok(self.base as u16),
            0 => {}
            // What was taken and has not come back is there again, if that could be.
            used => return Ok(used),
        }
        let mut flags = [0; 2];
        memory.read(layout.descriptor_area.wrapping_add(14), &mut flags)?;
        Ok(if u16::from_le_bytes(flags) & USED == 0 {
            WRAPPED
        } else {
            0
        })
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

    /// The device keeps this from here on, with the features that were agreed on. No ring runs.
    pub(super) fn restore_device(&self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let agreed = self.has(FEATURES_OK).then(|| self.registers().driver_features);
        self.with_control(|device| {
            device.restore(state)?;
            agreed.into_iter().for_each(|features| device.negotiated(features));
            Ok(())
        })
    }

    /// The most entries that a ring may have.
    pub(super) fn max_ring_size(&self, index: usize) -> u16 {
        self.queue_sizes.get(index).map_or(0, |&size| size.max(MAX_SIZE))
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
        let max = self.max_ring_size(index);
        let queue = Queue::restore(name, max, state, &self.memory, interrupt)?;
        let queue = queue.run_by(Arc::clone(&lane.word), self.kicks());
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

    /// Has all rings come to rest, which is not waited for. An embedder's pause is another reason, and ends by itself.
    pub(super) fn begin_bus_stop(&self) {
        self.stop(Stop::Bus);
        self.cancel_all();
    }

    /// Whether all rings are at rest that are to be.
    pub(super) fn are_rings_still(&self) -> bool {
        self.lanes.are_still()
    }

    /// Rings that are stopped go on; and a device that was reset is not held back by how they were stopped.
    pub(super) fn end_bus_stops(&self) {
        self.lanes.resume(Stop::Bus);
        self.look_again();
    }

    /// A ring cannot be where its driver has put it.
    pub(super) fn refuse_ring(&self, reason: String) {
        self.fail(Fault::Host(reason));
        self.tell_config_if_owed();
    }
}
