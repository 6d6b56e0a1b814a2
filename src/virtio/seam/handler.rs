//! A device that is written for `QueueT`, as a handler.

use std::{
    cell::Cell,
    sync::atomic::{Ordering, fence},
};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::to_virtio_queue;
use crate::virtio::{
    Fault, QueueHandler, Round, features,
    queue::{AwayNotifier, AwayQueue, HandAwayError, QueueState, Rest},
};

/// Whether a device that is written for `QueueT` works with these features of queues: it knows no packed rings. For
/// [`VirtioDevice::accepts`](crate::virtio::VirtioDevice::accepts). That it uses chains in order where
/// [`IN_ORDER`](features::IN_ORDER) is offered is its own to see to.
pub fn accepts(features: u64) -> bool {
    features & features::RING_PACKED == 0
}

/// What serves a queue, written for crate `virtio-queue`. `M` is the embedder's guest memory, the same that the transport is given; `Q` the
/// kind of queue.
///
/// Calls come one at a time, as those of a [`QueueHandler`].
pub trait QueueTHandler<M, Q = virtio_queue::Queue>: Send {
    /// Handles what is available, and signals if the driver wants to hear of it: after a kick, after activation, pause and restore, and
    /// whenever the queue is looked at. Suppressing kicks is its own; it leaves them enabled where it answers [`Rest::Drained`].
    ///
    /// What it answers says what is left: [`Rest::More`] has it called again soon, after others had their turn, so that a guest which
    /// never stops does not hold it; [`Rest::Left`] when somebody [looks](crate::virtio::Handle::look) or kicks.
    ///
    /// # Errors
    /// It cannot go on, and the device needs a reset: an error of its queue becomes that by `?`.
    fn serve(&mut self, queue: &mut Q, memory: &M, signal: &Signal<'_>) -> Result<Rest, Fault>;

    /// The queue is being stopped, and chains that were popped are not used yet: end them, or move the queue back to before those that had
    /// no effect (`go_to_previous_position`). Called until `next_avail` and `next_used` are the same, each time that the queue is
    /// looked at; the stop waits for that. A device that uses all that it pops in [`serve`](Self::serve) never sees it.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    fn drain(&mut self, queue: &mut Q, memory: &M, signal: &Signal<'_>) -> Result<(), Fault> {
        let _ = (queue, memory, signal);
        Ok(())
    }
}

/// Interrupts the driver for the queue that is served.
///
/// Without event indices `needs_notification` always says yes. Then it is looked here whether anything was used since the last signal, and
/// at VRING_AVAIL_F_NO_INTERRUPT (virtio 1.2, section 2.7.7).
pub struct Signal<'a> {
    notifier: &'a AwayNotifier,
    is_wanted: &'a dyn Fn() -> bool,
}

impl Signal<'_> {
    /// Buffers were used, and `needs_notification` says that the driver is to hear of it.
    pub fn signal(&self) {
        if (self.is_wanted)() {
            self.notifier.signal();
        }
    }
}

/// A [`QueueTHandler`] as a handler like others.
///
/// Between two rounds the ring is the foreign queue's, and this keeps it. A stop takes it back, where `next_avail` and `next_used` have come
/// to, and the next round hands it away again: so what is saved is the state of any other queue, and a device of ours goes on from it, or the
/// other way around.
///
/// It reads guest memory as the embedder has it, so it is not put behind an [`Iommu`](crate::virtio::iommu::Iommu): it would not be held
/// to what is mapped for it. There, the device needs a reset as soon as its driver is ready.
pub struct Foreign<M, H, Q = virtio_queue::Queue> {
    handler: H,
    memory: M,
    max_size: u16,
    lent: Option<Lent<Q>>,
}

/// The ring, while it is the foreign queue's. The queue is first gone, then given back.
struct Lent<Q> {
    queue: Q,
    notifier: AwayNotifier,
    away: AwayQueue,
    /// Where the used ring was when the driver was last told of it, or did not want to be.
    told: Cell<u16>,
}

/// A call of the handler. When it is over, it is noted how far the queue has come.
///
/// A call that fails or panics may have left chains popped that nobody ends any more, and a stop would wait for them: the ring comes back
/// at once, to where its used ring has come, and what was popped after that is there again.
struct Calling<'a, Q: QueueT> {
    lent: &'a mut Option<Lent<Q>>,
    ended: bool,
}

impl<Q: QueueT> Drop for Calling<'_, Q> {
    fn drop(&mut self) {
        if let Some(Lent { queue, away, .. }) = self.lent {
            away.came_to(queue.next_used());
        }
        if !self.ended {
            *self.lent = None;
        }
    }
}

impl<M, H, Q> Foreign<M, H, Q>
where
    M: GuestAddressSpace + Send,
    H: QueueTHandler<M, Q>,
    Q: QueueT + Send,
{
    /// `handler` in `memory`, at a queue of which the device offers `max_size` entries.
    pub fn new(handler: H, memory: M, max_size: u16) -> Self {
        Self {
            handler,
            memory,
            max_size,
            lent: None,
        }
    }

    /// The ring as the foreign queue's, which it has been before or becomes now. `None`: it is being stopped.
    fn lend(&mut self, round: &mut Round<'_>) -> Result<Option<&mut Lent<Q>>, Fault> {
        if self.lent.is_none() {
            let away = match round.hand_away() {
                Ok(away) => away,
                Err(HandAwayError::Stopped) => return Ok(None),
                Err(HandAwayError::Ring(error)) => return Err(error.into()),
                Err(error) => return Err(Fault::Elsewhere(error.to_string())),
            };
            if away.memory().is_translated() {
                return Err(Fault::Host(
                    "a device at the seam reads guest memory as it is, and its driver has it behind an IOMMU".into(),
                ));
            }
            let queue = foreign_queue(&away, self.max_size)?;
            let notifier = away.notifier();
            let told = Cell::new(away.place());
            self.lent = Some(Lent {
                queue,
                notifier,
                away,
                told,
            });
        }
        Ok(self.lent.as_mut())
    }

    /// Calls the handler, and notes how far it has come.
    fn call<R>(
        &mut self,
        call: impl FnOnce(&mut H, &mut Q, &M, &Signal<'_>) -> Result<R, Fault>,
    ) -> Result<Option<R>, Fault> {
        let Self {
            handler, memory, lent, ..
        } = self;
        let mut calling = Calling { lent, ended: false };
        let Some(Lent {
            queue,
            notifier,
            away,
            told,
        }) = calling.lent
        else {
            return Ok(None);
        };
        let [avail_ring, used_ring] = [queue.avail_ring(), queue.used_ring()];
        let with_events = away.features() & features::EVENT_IDX != 0;
        let is_wanted = || with_events || wants_interrupts(memory, avail_ring, used_ring, told);
        let signal = Signal {
            notifier,
            is_wanted: &is_wanted,
        };
        let result = call(handler, queue, memory, &signal)?;
        calling.ended = true;
        Ok(Some(result))
    }

    /// Gives the ring back, if nothing is in flight.
    fn take_back(&mut self) {
        if let Some(Lent { queue, away, .. }) = self
            .lent
            .take_if(|Lent { queue, .. }| queue.next_avail() == queue.next_used())
        {
            away.give_back(queue.next_used());
        }
    }
}

impl<M, H, Q> QueueHandler for Foreign<M, H, Q>
where
    M: GuestAddressSpace + Send,
    H: QueueTHandler<M, Q>,
    Q: QueueT + Send,
{
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        if round.is_stopping() {
            self.call(|handler, queue, memory, signal| handler.drain(queue, memory, signal))?;
            self.take_back();
            return Ok(());
        }
        if self.lend(round)?.is_none() {
            return Ok(());
        }
        let rest = self.call(|handler, queue, memory, signal| handler.serve(queue, memory, signal))?;
        if rest == Some(Rest::More) {
            round.look_again();
        }
        Ok(())
    }

    fn pause(&mut self) {
        self.take_back();
        if self.lent.is_some() {
            // What it cannot go on for is told by the round that comes next.
            let _ = self.call(|handler, queue, memory, signal| handler.drain(queue, memory, signal));
            self.take_back();
        }
    }
}

/// A queue of that crate's at the ring that was handed away.
fn foreign_queue<Q: QueueT>(away: &AwayQueue, max_size: u16) -> Result<Q, Fault> {
    let state = QueueState {
        layout: away.layout(),
        features: away.features(),
        next_avail: away.place(),
        next_used: away.place(),
        in_flight: Vec::new(),
        chains: Vec::new(),
        ended: Vec::new(),
        signal_owed: false,
    };
    let state = to_virtio_queue(&state, max_size).map_err(|error| Fault::Elsewhere(error.to_string()))?;
    let mut queue = Q::new(state.max_size)?;
    let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
    queue.set_size(state.size);
    let (low, high) = halves(state.desc_table);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(state.avail_ring);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(state.used_ring);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(state.event_idx_enabled);
    queue.set_next_avail(state.next_avail);
    queue.set_next_used(state.next_used);
    queue.set_ready(true);
    Ok(queue)
}

/// Whether anything was used since the driver was `told`, and it has not set VRING_AVAIL_F_NO_INTERRUPT.
fn wants_interrupts(memory: &impl GuestAddressSpace, avail_ring: u64, used_ring: u64, told: &Cell<u16>) -> bool {
    let memory = memory.memory();
    let load = |address| {
        memory
            .load::<u16>(GuestAddress(address), Ordering::Acquire)
            .map(u16::from_le)
    };
    // The index is behind the flags (sections 2.7.6 and 2.7.8).
    match used_ring.checked_add(2).map(load) {
        Some(Ok(used)) if told.replace(used) == used => return false,
        _ => {}
    }
    // The used index is out before the flags are looked at; pairs with the driver's barrier.
    fence(Ordering::SeqCst);
    load(avail_ring).map_or(true, |flags| u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}
