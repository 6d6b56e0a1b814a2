//! A cable in memory, whose other end is the embedder's: for tests, and for what makes its frames itself.

use std::{collections::VecDeque, fmt, io, sync::Mutex};

use vm_memory::VolatileSlice;

use super::{
    Header, Holder, NetFrame, Offloads, Port, PortOffloads, Progress, Received, Waker,
    port::{Attached, copy_from, copy_to, length},
};
use crate::sync::lock;

/// A cable in memory. What the guest has sent is [taken](Self::take) at the other end, and what it is to receive is [put](Self::put)
/// in there: so many frames at most are on the way in each direction. A guest that sends more waits.
///
/// ```
/// use devisor::virtio::net::{Net, NetFrame, NetOptions, Wire};
/// use std::sync::Arc;
///
/// let wire = Arc::new(Wire::new(1));
/// let nic = Net::new([Arc::clone(&wire)], NetOptions::default())?;
/// let frame = NetFrame { data: vec![0; 60], ..NetFrame::default() };
/// assert!(wire.put(frame.clone()));
/// assert!(!wire.put(frame), "it waits for the guest");
/// assert!(wire.take().is_none());
/// # let _ = nic;
/// # Ok::<(), devisor::virtio::net::NetError>(())
/// ```
pub struct Wire {
    capacity: usize,
    offloads: PortOffloads,
    looped: bool,
    ways: Mutex<Ways>,
    waker: Attached,
}

#[derive(Default)]
struct Ways {
    from_guest: VecDeque<NetFrame>,
    to_guest: VecDeque<NetFrame>,
    active: bool,
    told: Offloads,
    /// A frame did not fit.
    blocked: bool,
}

impl Wire {
    /// A cable on which there is room for so many frames in each direction, at least one. It leaves nothing to others.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            offloads: PortOffloads::default(),
            looped: false,
            ways: Mutex::default(),
            waker: Attached::default(),
        }
    }

    /// The same, where the guest may leave `send` to the other end, and that `receive` to the guest.
    pub fn with_offloads(self, send: Offloads, receive: Offloads) -> Self {
        Self {
            offloads: PortOffloads { send, receive },
            ..self
        }
    }

    /// The same with its other end plugged into this one: the guest receives what it sends.
    pub fn looped(self) -> Self {
        Self { looped: true, ..self }
    }

    /// The next frame that the guest has sent.
    pub fn take(&self) -> Option<NetFrame> {
        let (frame, wakes) = {
            let mut ways = lock(&self.ways);
            let frame = ways.from_guest.pop_front()?;
            (frame, std::mem::take(&mut ways.blocked))
        };
        if wakes {
            self.waker.send();
        }
        Some(frame)
    }

    /// Has the guest receive a frame. `false` if there is no room for it.
    #[must_use]
    pub fn put(&self, frame: NetFrame) -> bool {
        {
            let mut ways = lock(&self.ways);
            if ways.to_guest.len() == self.capacity {
                return false;
            }
            ways.to_guest.push_back(frame);
        }
        self.waker.receive();
        true
    }

    /// How many frames are on their way to the guest.
    pub fn waiting(&self) -> usize {
        lock(&self.ways).to_guest.len()
    }

    /// Whether the queue pair at the other end is in use.
    pub fn is_active(&self) -> bool {
        lock(&self.ways).active
    }

    /// What the guest takes in frames that are put.
    pub fn guest_takes(&self) -> Offloads {
        lock(&self.ways).told
    }
}

impl Port for Wire {
    fn offloads(&self) -> PortOffloads {
        self.offloads
    }

    fn attach(&self, waker: Waker) {
        self.waker.set(waker);
    }

    fn set_active(&self, by: Holder, active: bool) -> io::Result<()> {
        self.waker.if_held(by, || lock(&self.ways).active = active);
        Ok(())
    }

    fn set_offloads(&self, by: Holder, offloads: Offloads) -> io::Result<()> {
        self.waker.if_held(by, || lock(&self.ways).told = offloads);
        Ok(())
    }

    fn send(&self, header: &Header, frame: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
        {
            let mut ways = lock(&self.ways);
            let way = if self.looped {
                &mut ways.to_guest
            } else {
                &mut ways.from_guest
            };
            if way.len() == self.capacity {
                ways.blocked = true;
                return Ok(Progress::Later(None));
            }
            let mut data = vec![0; length(frame)];
            copy_from(frame, &mut data);
            way.push_back(NetFrame { header: *header, data });
        }
        if self.looped {
            self.waker.receive();
        }
        Ok(Progress::Done(()))
    }

    fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>> {
        let (frame, wakes) = {
            let mut ways = lock(&self.ways);
            let Some(frame) = ways.to_guest.pop_front() else {
                return Ok(Progress::Later(None));
            };
            (frame, self.looped && std::mem::take(&mut ways.blocked))
        };
        if wakes {
            self.waker.send();
        }
        copy_to(&frame.data, room, overflow);
        let (header, len) = (frame.header, frame.data.len());
        Ok(Progress::Done(Received { header, len }))
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways = lock(&self.ways);
        f.debug_struct("Wire")
            .field("capacity", &self.capacity)
            .field("from_guest", &ways.from_guest.len())
            .field("to_guest", &ways.to_guest.len())
            .finish_non_exhaustive()
    }
}
