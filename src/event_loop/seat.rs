//! The place of a virtio device.

use std::{fmt, io, sync::Arc};

use super::{shared::Shared, state::Target};
use crate::virtio::{QueueIndex, VirtioTransport, Wait, transport::Doorbell};

/// A virtio device's place at an [`EventLoop`](super::EventLoop): its doorbell. Clones are the same place.
#[derive(Clone)]
pub struct Seat(Arc<Occupied>);

struct Occupied {
    shared: Arc<Shared>,
    seat: usize,
}

impl Seat {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let seat = shared.state().number();
        Self(Arc::new(Occupied {
            shared: Arc::clone(shared),
            seat,
        }))
    }

    /// The device whose doorbell this is sits here: its queues are served from now on, those that were kicked before too. The loop does
    /// not keep it alive.
    pub fn take(&self, device: &Arc<dyn VirtioTransport>) {
        let Occupied { shared, seat } = &*self.0;
        let mut state = shared.state();
        state.seats.insert(*seat, Arc::downgrade(device));
        let here = |target: &Target| matches!(target, Target::Queue(other, _) if other == seat);
        let early: Vec<_> = state.early.extract_if(here).collect();
        for target in early {
            shared.make_due(&mut state, target);
        }
    }

    /// Has `queue` looked at: because its doorbell was caught by the hypervisor.
    pub fn look(&self, queue: QueueIndex) {
        self.0.due(queue);
    }
}

impl Occupied {
    fn due(&self, queue: QueueIndex) {
        let mut state = self.shared.state();
        self.shared.make_due(&mut state, Target::Queue(self.seat, queue));
    }
}

impl Doorbell for Seat {
    fn ring(&self, queue: QueueIndex) -> io::Result<()> {
        self.0.due(queue);
        Ok(())
    }

    fn wait(&self, queue: QueueIndex, waits: &[Wait]) {
        self.0.shared.wait(Target::Queue(self.0.seat, queue), waits);
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.seats.remove(&self.seat);
        let elsewhere = |target: &Target| !matches!(target, Target::Queue(seat, _) if *seat == self.seat);
        state.due.retain(elsewhere);
        state.is_due.retain(elsewhere);
        state.early.retain(elsewhere);
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seat").field(&self.0.seat).finish()
    }
}
