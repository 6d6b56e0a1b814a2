//! Descriptor chains (virtio 1.2, sections 2.7.5 and 2.7.5.3): walked once, checked whole.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice,
    bitmap::{BitmapSlice, WithBitmapSlice},
};

use super::{DESCRIPTOR, QueueError, Reader, Writer};

/// A piece of guest memory that belongs to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub address: GuestAddress,
    /// Length in bytes. May be zero.
    pub len: u32,
}

/// A request of the driver: device-readable segments, then device-writable ones, all of them in guest memory when the
/// chain was taken.
///
/// It is [completed](super::Queue::complete) exactly once, with the queue it came from.
#[derive(Debug)]
#[must_use = "a chain that is not completed stays in flight until the device is reset"]
pub struct Chain {
    /// Identity of the queue that it came from: a head alone may be in flight on another queue too.
    queue: u64,
    head: u16,
    segments: Vec<Segment>,
    /// How many of the segments are readable; the rest is writable.
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    /// Index of the first descriptor, by which the driver knows the chain.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote for the device.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// Where the device may write.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    /// Bytes in all readable segments.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes in all writable segments.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// The readable bytes, from the first on.
    pub fn reader<'a, M: GuestMemory>(&'a self, memory: &'a M) -> Reader<'a, M> {
        Reader::new(memory, self.readable(), self.readable_len)
    }

    /// The writable bytes, from the first on.
    pub fn writer<'a, M: GuestMemory>(&'a self, memory: &'a M) -> Writer<'a, M> {
        Writer::new(memory, self.writable(), self.writable_len)
    }

    pub(super) fn queue(&self) -> u64 {
        self.queue
    }

    pub(super) fn into_list(self) -> Vec<Segment> {
        self.segments
    }

    /// Walks the chain of `queue` that starts at `head` of its descriptor area, reusing the memory of `list`.
    pub(super) fn walk<M: GuestMemory>(
        memory: &M,
        descriptor_area: GuestAddress,
        queue_size: u16,
        (queue, head): (u64, u16),
        indirect_allowed: bool,
        mut list: Vec<Segment>,
    ) -> Result<Self, QueueError> {
        list.clear();
        let mut chain = Self {
            queue,
            head,
            segments: list,
            readable: 0,
            readable_len: 0,
            writable_len: 0,
        };
        let mut table = Table::new(memory, descriptor_area, queue_size)?;
        let mut index = head;
        let mut indirect = false;
        loop {
            let descriptor = table.read(memory, index)?;
            let has = |flag: u32| u32::from(descriptor.flags()) & flag != 0;
            if has(VRING_DESC_F_INDIRECT) {
                if !indirect_allowed {
                    return Err(QueueError::Indirect("the feature was not negotiated"));
                }
                if indirect {
                    return Err(QueueError::Indirect("a table inside a table"));
                }
                if has(VRING_DESC_F_NEXT) {
                    return Err(QueueError::Indirect("it has a next descriptor"));
                }
                table = Table::indirect(memory, &descriptor)?;
                (indirect, index) = (true, 0);
                continue;
            }
            // This bounds the loop: a chain that runs in circles is one that is too long.
            if chain.segments.len() == usize::from(queue_size) {
                return Err(QueueError::ChainTooLong(queue_size));
            }
            chain.push(memory, &descriptor, has(VRING_DESC_F_WRITE))?;
            if !has(VRING_DESC_F_NEXT) {
                return Ok(chain);
            }
            index = descriptor.next();
        }
    }

    fn push<M: GuestMemory>(&mut self, memory: &M, descriptor: &Descriptor, write: bool) -> Result<(), QueueError> {
        let (address, len) = (descriptor.addr(), descriptor.len());
        let sum = self.readable_len.checked_add(self.writable_len);
        if sum.and_then(|sum| sum.checked_add(len)).is_none() {
            return Err(QueueError::ChainTooLarge);
        }
        if write {
            check_range(memory, address, len.into(), Permissions::Write)?;
            self.writable_len += len;
        } else {
            if self.readable != self.segments.len() {
                return Err(QueueError::ReadableAfterWritable);
            }
            check_range(memory, address, len.into(), Permissions::Read)?;
            self.readable += 1;
            self.readable_len += len;
        }
        self.segments.push(Segment { address, len });
        Ok(())
    }
}

/// A table of descriptors: the queue's own, or an indirect one. Looked up in guest memory once.
struct Table<'a, B> {
    start: GuestAddress,
    len: u16,
    /// The whole table, unless it lies across memory regions.
    slice: Option<VolatileSlice<'a, B>>,
}

impl<'a, B: BitmapSlice> Table<'a, B> {
    fn new<M>(memory: &'a M, start: GuestAddress, len: u16) -> Result<Self, QueueError>
    where
        M: GuestMemory,
        M::Bitmap: WithBitmapSlice<'a, S = B>,
    {
        let bytes = DESCRIPTOR * u64::from(len);
        let gone = || QueueError::Outside {
            address: start.0,
            len: bytes,
        };
        start.0.checked_add(bytes).ok_or_else(gone)?;
        let slices = memory.get_slices(start, bytes as usize, Permissions::Read);
        let first = slices.map_err(|_| gone())?.next().ok_or_else(gone)?;
        let first = first.map_err(|_| gone())?;
        let slice = Some(first).filter(|slice| slice.len() as u64 == bytes);
        if slice.is_none() {
            check_range(memory, start, bytes, Permissions::Read)?;
        }
        Ok(Self { start, len, slice })
    }

    fn indirect<M>(memory: &'a M, descriptor: &Descriptor) -> Result<Self, QueueError>
    where
        M: GuestMemory,
        M::Bitmap: WithBitmapSlice<'a, S = B>,
    {
        let bytes = u64::from(descriptor.len());
        if bytes == 0 || bytes % DESCRIPTOR != 0 {
            return Err(QueueError::Indirect("its length is no positive multiple of 16"));
        }
        let len = u16::try_from(bytes / DESCRIPTOR);
        let len = len.map_err(|_| QueueError::Indirect("more descriptors than an index can name"))?;
        Self::new(memory, descriptor.addr(), len)
    }

    fn read<M: GuestMemory>(&self, memory: &M, index: u16) -> Result<Descriptor, QueueError> {
        if index >= self.len {
            return Err(QueueError::DescriptorIndex { index, len: self.len });
        }
        let offset = DESCRIPTOR * u64::from(index);
        let address = GuestAddress(self.start.0 + offset);
        let outside = || QueueError::Outside {
            address: address.0,
            len: DESCRIPTOR,
        };
        match &self.slice {
            Some(slice) => slice.read_obj(offset as usize).map_err(|_| outside()),
            None => memory.read_obj(address).map_err(|_| outside()),
        }
    }
}

/// Whether `len` bytes from `address` on are all in guest memory, without a wrap around the address space.
pub(super) fn check_range<M: GuestMemory>(
    memory: &M,
    address: GuestAddress,
    len: u64,
    access: Permissions,
) -> Result<(), QueueError> {
    let bytes = usize::try_from(len).ok();
    let wraps = address.0.checked_add(len).is_none();
    match bytes {
        Some(bytes) if !wraps && memory.check_range(address, bytes, access) => Ok(()),
        _ => Err(QueueError::Outside {
            address: address.0,
            len,
        }),
    }
}
