//! `QueueState`s of crate `virtio-queue`, in and out.

use crate::virtio::{
    features::{EVENT_IDX, RING_PACKED},
    queue::{QueueLayout, QueueState},
};

/// A queue's state cannot be said in the other crate's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SeamError {
    /// The ring is a packed one.
    #[error("the ring is a packed one: `virtio-queue` has split rings")]
    Packed,
    /// Requests are in flight.
    #[error(
        "{0} requests are in flight: which they are is not in a state of `virtio-queue`, so that of a queue without any can be told"
    )]
    InFlight(u16),
    /// The driver is owed an interrupt.
    #[error("the driver is owed an interrupt, which `virtio-queue` does not keep: have it delivered first")]
    SignalOwed,
    /// More entries than are offered.
    #[error("{size} entries of a queue that offers {max}: a power of two up to that is needed")]
    Size {
        /// How long the queue is.
        size: u16,
        /// What the device offers.
        max: u16,
    },
    /// The driver has not enabled the queue.
    #[error("the queue is not ready: it has no state but how it is set up")]
    NotReady,
    /// It says another thing of event indices than what was negotiated.
    #[error("event indices are {}: the features that were negotiated say otherwise", if *.0 { "enabled" } else { "not enabled" })]
    EventIdx(bool),
}

/// The state of a queue for `virtio-queue`; `max_size` is what its device offers, which ours leaves to the transport.
///
/// # Errors
/// What its state has no word for.
pub fn to_virtio_queue(state: &QueueState, max_size: u16) -> Result<virtio_queue::QueueState, SeamError> {
    let &QueueState {
        layout:
            QueueLayout {
                size,
                descriptor_area,
                driver_area,
                device_area,
            },
        features,
        next_avail,
        next_used,
        ref in_flight,
        // Of those in flight.
        chains: _,
        ended: _,
        signal_owed,
    } = state;
    if features & RING_PACKED != 0 {
        return Err(SeamError::Packed);
    }
    if !in_flight.is_empty() || next_avail != next_used {
        return Err(SeamError::InFlight(next_avail.wrapping_sub(next_used)));
    }
    if signal_owed {
        return Err(SeamError::SignalOwed);
    }
    possible(size, max_size)?;
    Ok(virtio_queue::QueueState {
        max_size,
        next_avail,
        next_used,
        event_idx_enabled: features & EVENT_IDX != 0,
        size,
        ready: true,
        desc_table: descriptor_area,
        avail_ring: driver_area,
        used_ring: device_area,
    })
}

/// The state of a queue that is `virtio-queue`'s, of a device whose driver has accepted `features`: all that is known of them there is
/// whether event indices are among them.
///
/// # Errors
/// It has no counterpart. Whether the areas are where they can be is seen when it is restored.
pub fn from_virtio_queue(state: &virtio_queue::QueueState, features: u64) -> Result<QueueState, SeamError> {
    let &virtio_queue::QueueState {
        max_size,
        next_avail,
        next_used,
        event_idx_enabled,
        size,
        ready,
        desc_table,
        avail_ring,
        used_ring,
    } = state;
    if !ready {
        return Err(SeamError::NotReady);
    }
    if features & RING_PACKED != 0 {
        return Err(SeamError::Packed);
    }
    if event_idx_enabled != (features & EVENT_IDX != 0) {
        return Err(SeamError::EventIdx(event_idx_enabled));
    }
    if next_avail != next_used {
        return Err(SeamError::InFlight(next_avail.wrapping_sub(next_used)));
    }
    possible(size, max_size)?;
    Ok(QueueState {
        layout: QueueLayout {
            size,
            descriptor_area: desc_table,
            driver_area: avail_ring,
            device_area: used_ring,
        },
        features,
        next_avail,
        next_used,
        in_flight: Vec::new(),
        chains: Vec::new(),
        ended: Vec::new(),
        signal_owed: false,
    })
}

fn possible(size: u16, max: u16) -> Result<(), SeamError> {
    match size.is_power_of_two() && size <= max {
        true => Ok(()),
        false => Err(SeamError::Size { size, max }),
    }
}
