//! Who serves the queues, as the link knows it: at the end of a socket, or in the kernel.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    event::{Ends, Events},
    log::Log,
    objects::Uuid,
    regions::{SharedRegion, user_address},
};
use crate::virtio::{features, queue::QueueLayout, vhost_user::Inflight};

/// A ring as the back end is told of it.
#[derive(Clone, Copy)]
pub(super) struct Described {
    pub index: u16,
    pub layout: QueueLayout,
    pub features: u64,
    pub place: u16,
}

impl Described {
    pub fn is_packed(&self) -> bool {
        self.features & features::RING_PACKED != 0
    }

    /// Where it goes on, as SET_VRING_BASE has it: of a packed ring, where both sides do.
    pub fn base(&self) -> u32 {
        let place = u32::from(self.place);
        if self.is_packed() { place | place << 16 } else { place }
    }

    /// Where its three areas are in the memory of this process: descriptor, driver and device area (virtio 1.2, sections 2.7 and 2.8).
    pub fn user_addresses(&self, regions: &[SharedRegion]) -> Option<[u64; 3]> {
        let layout = &self.layout;
        let size = u64::from(layout.size);
        let (available, used) = match self.is_packed() {
            true => (4, 4),
            false => (6 + 2 * size, 6 + 8 * size),
        };
        Some([
            user_address(regions, layout.descriptor_area, 16 * size)?,
            user_address(regions, layout.driver_area, available)?,
            user_address(regions, layout.device_area, used)?,
        ])
    }
}

/// The table of requests in flight, which outlives the back end.
pub(super) struct InflightTable {
    pub description: Inflight,
    pub file: OwnedFd,
    /// The answer's length, padding included.
    pub len: usize,
}

/// A back end that was reached, and nothing was said to yet of a driver. An error of any of these ends it.
///
/// Addresses of rings are those of this process, by the memory that was told last.
pub(super) trait Peer: Send {
    /// The features that it offers: those of its device, of rings, and of vhost.
    fn offered(&self) -> u64;

    /// How many queues it has, if it says so; of a network device, pairs.
    fn queues(&self) -> Option<u16>;

    /// Whether memory has to be mapped from files.
    fn needs_files(&self) -> bool;

    /// Whether it serves the queue of this index. One that it does not serve is ours.
    fn serves(&self, index: u16) -> bool {
        let _ = index;
        true
    }

    /// Whether a queue stops alone: the others run meanwhile.
    fn stops_alone(&self) -> bool {
        true
    }

    /// How many regions of memory it takes.
    fn most_regions(&mut self, deadline: Instant) -> io::Result<u64>;

    /// So many bytes of the configuration space, if it has one.
    fn config(&mut self, len: usize, deadline: Instant) -> io::Result<Option<Vec<u8>>>;

    /// The driver has written to the configuration space.
    fn write_config(&mut self, offset: u32, data: &[u8], deadline: Instant) -> io::Result<()>;

    /// The driver has accepted these features; what is offered only. LOG_ALL is among them as long as writes are logged.
    fn accept(&mut self, features: u64, deadline: Instant) -> io::Result<()>;

    /// Whether it can log what it writes.
    fn can_log(&self) -> bool;

    /// Writes are logged there, once LOG_ALL is accepted.
    fn set_log(&mut self, log: &Log, deadline: Instant) -> io::Result<()>;

    /// Whether it knows of a table of requests in flight.
    fn tracks_inflight(&self) -> bool {
        false
    }

    /// Sees that there is a table of requests in flight, if it knows of any, and that it is its own. Before any ring starts.
    fn share_inflight(
        &mut self,
        table: &mut Option<InflightTable>,
        queues: u16,
        queue_size: u16,
        deadline: Instant,
    ) -> io::Result<()>;

    /// Guest memory is this from here on, where it was `known`.
    fn set_memory(&mut self, known: &[SharedRegion], regions: &[SharedRegion], deadline: Instant) -> io::Result<()>;

    /// Has a ring served.
    fn start_ring(
        &mut self,
        ring: &Described,
        addresses: [u64; 3],
        logs: bool,
        events: &Events,
        deadline: Instant,
    ) -> io::Result<()>;

    /// A ring that is served is logged, or no longer.
    fn log_ring(&mut self, ring: &Described, addresses: [u64; 3], logs: bool, deadline: Instant) -> io::Result<()>;

    /// Another descriptor is called for a ring that is served.
    fn set_call(&mut self, index: u16, events: &Events, deadline: Instant) -> io::Result<()>;

    /// All rings that the driver has enabled are there.
    fn all_started(&mut self, deadline: Instant) -> io::Result<()>;

    /// Has a ring back: how far it has taken from it.
    fn stop_ring(&mut self, index: u16, deadline: Instant) -> io::Result<u16>;

    /// The driver has reset the device, whose rings are all stopped.
    fn reset(&mut self, deadline: Instant) -> io::Result<()>;

    /// Looks at what comes unasked. Whether the configuration space has changed.
    fn look(&mut self) -> io::Result<bool>;

    /// Whether [`look`](Self::look) is to say that the configuration space has changed: it was said while something else was asked.
    fn config_changed(&self) -> bool {
        false
    }

    /// What to wait for.
    fn ends(&self) -> Arc<Ends>;

    /// An object that it has exported, if it gives it.
    fn shared_object(&mut self, uuid: Uuid, deadline: Instant) -> io::Result<Option<OwnedFd>> {
        let _ = (uuid, deadline);
        Ok(None)
    }

    /// Whether it has a state of its own that can be moved.
    fn has_state(&self) -> bool {
        false
    }

    /// Its state: all of its rings are stopped. One of more than `most` bytes is none.
    fn save(&mut self, most: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        let _ = (most, deadline);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Takes a state over, before any ring starts.
    fn load(&mut self, state: &[u8], deadline: Instant) -> io::Result<()> {
        let _ = (state, deadline);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What an answer should not be.
pub(super) fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

pub(super) fn timed_out(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what.into())
}

/// When so much time has passed.
pub(super) fn after(time: Duration) -> Instant {
    let now = Instant::now();
    // One that is beyond all time is far away.
    now.checked_add(time)
        .or_else(|| now.checked_add(Duration::from_secs(1 << 30)))
        .unwrap_or(now)
}
