//! The table of requests in flight, in memory that the front end keeps while this process is gone.
//!
//! Its format is that of the specification ("Inflight I/O tracking"), so that another back end goes on with what this one has left.
//! The front end may write anything into it: what is read from it is checked, and bounded.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering, fence},
    },
};

use vm_memory::{FileOffset, MmapRegion};

use crate::virtio::{queue::Tracker, vhost_user};

/// Each queue's region begins with a cache line.
const ALIGN: u64 = 64;
const PAGE: u64 = 4096;

/// `QueueRegionSplit`.
mod region {
    pub const VERSION: usize = 8;
    pub const DESC_NUM: usize = 10;
    pub const LAST_BATCH_HEAD: usize = 12;
    pub const USED_IDX: usize = 14;
    pub const DESC: usize = 16;
}

/// `DescStateSplit`.
mod state {
    pub const INFLIGHT: usize = 0;
    pub const NEXT: usize = 6;
    pub const COUNTER: usize = 8;
    pub const SIZE: usize = 16;
}

/// The header of `QueueRegionPacked`, and `DescStatePacked`.
const PACKED: (u64, u64) = (32, 32);

/// Bytes of a queue's region.
fn region_size(queue_size: u16, packed: bool) -> u64 {
    let (header, entry) = match packed {
        false => (region::DESC as u64, state::SIZE as u64),
        true => PACKED,
    };
    (header + entry * u64::from(queue_size)).next_multiple_of(ALIGN)
}

/// A table that is new: how large, and in which file.
pub(super) fn create(queues: u16, queue_size: u16, packed: bool) -> io::Result<(vhost_user::Inflight, OwnedFd)> {
    let size = region_size(queue_size, packed) * u64::from(queues);
    // SAFETY: the name is a string, and the result is a descriptor that nobody else has, or none.
    let file = unsafe {
        match libc::memfd_create(c"inflight".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) {
            ..0 => return Err(io::Error::last_os_error()),
            descriptor => File::from_raw_fd(descriptor),
        }
    };
    file.set_len(size.next_multiple_of(PAGE))?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: a call that takes numbers.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let description = vhost_user::Inflight {
        mmap_size: size,
        mmap_offset: 0,
        queues,
        queue_size,
    };
    Ok((description, file.into()))
}

/// A table that the front end has given.
pub(super) struct Table {
    map: Arc<MmapRegion<()>>,
    queues: u16,
    queue_size: u16,
    packed: bool,
    /// Where it begins in the map.
    offset: usize,
}

impl Table {
    /// # Errors
    /// It is not in its file, or too small.
    pub fn new(description: vhost_user::Inflight, descriptor: OwnedFd, packed: bool) -> Result<Self, String> {
        let vhost_user::Inflight {
            mmap_size,
            mmap_offset,
            queues,
            queue_size,
        } = description;
        let needed = region_size(queue_size, packed) * u64::from(queues);
        let file = File::from(descriptor);
        let inside = file.metadata().is_ok_and(|metadata| {
            let end = mmap_offset.checked_add(mmap_size);
            metadata.is_file() && end.is_some_and(|end| end <= metadata.size())
        });
        if mmap_size < needed || needed == 0 || !inside || !mmap_offset.is_multiple_of(8) {
            return Err(format!(
                "a table of {mmap_size} bytes at {mmap_offset:#x} for {queues} queues of {queue_size}: \
                 {needed} bytes, all of them in a file, are needed"
            ));
        }
        let before = mmap_offset % PAGE;
        let file = FileOffset::new(file, mmap_offset - before);
        let len = usize::try_from(needed + before).map_err(|error| error.to_string())?;
        let map = MmapRegion::build(Some(file), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        Ok(Self {
            map: Arc::new(map.map_err(|error| format!("a table of requests in flight cannot be mapped: {error}"))?),
            queues,
            queue_size,
            packed,
            offset: before as usize,
        })
    }

    /// The part of a queue of this size, if it has one.
    pub fn queue(&self, index: usize, size: u16) -> Option<Part> {
        let fits = !self.packed && index < usize::from(self.queues) && size <= self.queue_size;
        fits.then(|| Part {
            map: Arc::clone(&self.map),
            start: self.offset + index * region_size(self.queue_size, false) as usize,
            count: self.queue_size,
            counter: AtomicU64::new(0),
        })
    }
}

/// The part of one queue, with a split ring.
pub(super) struct Part {
    map: Arc<MmapRegion<()>>,
    start: usize,
    /// How many entries it has.
    count: u16,
    /// The next chain's number.
    counter: AtomicU64,
}

impl Part {
    fn byte(&self, at: usize) -> &AtomicU8 {
        // SAFETY: each offset that is asked for is in the part, which was checked to be in the map when this was made; others access it
        // atomically too, or not at all.
        unsafe { AtomicU8::from_ptr(self.map.as_ptr().add(self.start + at)) }
    }

    fn word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as in `byte`; the map is aligned to a page, the part to 8, and each of its words to two.
        unsafe { AtomicU16::from_ptr(self.map.as_ptr().add(self.start + at).cast()) }
    }

    fn long(&self, at: usize) -> &AtomicU64 {
        // SAFETY: as in `byte`, and aligned to 8.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().add(self.start + at).cast()) }
    }

    fn entry(&self, head: u16) -> Option<usize> {
        (head < self.count).then(|| region::DESC + usize::from(head) * state::SIZE)
    }

    fn is_in_flight(&self, head: u16) -> bool {
        self.entry(head)
            .is_some_and(|entry| self.byte(entry + state::INFLIGHT).load(Ordering::SeqCst) != 0)
    }

    /// What was in flight in a ring that has been used up to here, in the order in which it was taken. From here on, the table is this
    /// process's to write.
    pub fn recover(&self, used: u16, size: u16) -> Vec<u16> {
        if self.word(region::VERSION).load(Ordering::SeqCst) == 0 {
            self.word(region::DESC_NUM).store(self.count, Ordering::SeqCst);
            self.word(region::USED_IDX).store(used, Ordering::SeqCst);
            self.word(region::VERSION).store(1, Ordering::SeqCst);
        }
        // What the driver has been shown, and was not taken out of the table any more.
        self.end_batch(used);
        let in_flight = (0..size.min(self.count)).filter(|&head| self.is_in_flight(head));
        let number = |head: u16| {
            let entry = self.entry(head)?;
            Some(self.long(entry + state::COUNTER).load(Ordering::SeqCst))
        };
        let mut in_flight: Vec<_> = in_flight.map(|head| (number(head), head)).collect();
        in_flight.sort_unstable();
        let next = in_flight.last().and_then(|(number, _)| *number).unwrap_or(0).wrapping_add(1);
        self.counter.store(next, Ordering::SeqCst);
        in_flight.into_iter().map(|(_, head)| head).collect()
    }

    /// The driver has been shown what was put last, up to `used`.
    fn end_batch(&self, used: u16) {
        let count = used.wrapping_sub(self.word(region::USED_IDX).load(Ordering::SeqCst));
        let mut head = self.word(region::LAST_BATCH_HEAD).load(Ordering::SeqCst);
        for _ in 0..count.min(self.count) {
            let Some(entry) = self.entry(head) else { break };
            self.byte(entry + state::INFLIGHT).store(0, Ordering::SeqCst);
            head = self.word(entry + state::NEXT).load(Ordering::SeqCst);
        }
        self.word(region::USED_IDX).store(used, Ordering::SeqCst);
    }
}

impl Tracker for Part {
    fn taken(&self, head: u16) {
        let Some(entry) = self.entry(head) else { return };
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        self.long(entry + state::COUNTER).store(number, Ordering::Relaxed);
        self.byte(entry + state::INFLIGHT).store(1, Ordering::SeqCst);
    }

    fn put(&self, head: u16) {
        let Some(entry) = self.entry(head) else { return };
        let last = self.word(region::LAST_BATCH_HEAD);
        self.word(entry + state::NEXT).store(last.load(Ordering::Relaxed), Ordering::Relaxed);
        last.store(head, Ordering::Release);
        // Before the driver sees it.
        fence(Ordering::SeqCst);
    }

    fn published(&self, next_used: u16) {
        self.end_batch(next_used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(size: u16) -> Part {
        let (description, descriptor) = create(2, size, false).unwrap();
        Table::new(description, descriptor, false).unwrap().queue(1, size).unwrap()
    }

    #[test]
    fn what_is_taken_and_not_shown_is_found_again_in_its_order() {
        let part = part(8);
        assert!(part.recover(0, 8).is_empty());
        [5, 2, 7].into_iter().for_each(|head| part.taken(head));
        part.put(2);
        assert_eq!(part.recover(0, 8), [5, 2, 7], "the driver has not seen it");
        part.published(1);
        assert_eq!(part.recover(1, 8), [5, 7]);
        part.taken(2);
        assert_eq!(part.recover(1, 8), [5, 7, 2], "numbers go on");
    }

    #[test]
    fn a_batch_that_the_driver_has_seen_is_not_repeated() {
        let part = part(8);
        part.recover(65_534, 8);
        (0..4).for_each(|head| part.taken(head));
        [3, 0, 1].into_iter().for_each(|head| part.put(head));
        // The process ends after the used index and before the table says so.
        assert_eq!(part.recover(1, 8), [2]);
    }

    #[test]
    fn a_table_that_lies_leads_nowhere() {
        let part = part(4);
        part.recover(0, 4);
        (0..4).for_each(|head| part.taken(head));
        part.word(region::LAST_BATCH_HEAD).store(0xffff, Ordering::SeqCst);
        assert_eq!(part.recover(60_000, 4), [0, 1, 2, 3]);
        part.word(region::LAST_BATCH_HEAD).store(1, Ordering::SeqCst);
        part.word(part.entry(1).unwrap() + state::NEXT).store(1, Ordering::SeqCst);
        assert_eq!(part.recover(0, 4), [0, 2, 3], "a circle ends");
    }

    #[test]
    fn a_table_is_all_in_its_file() {
        let (description, descriptor) = create(1, 256, false).unwrap();
        let larger = vhost_user::Inflight {
            queue_size: 1024,
            ..description
        };
        assert!(Table::new(larger, descriptor.try_clone().unwrap(), false).is_err());
        let beyond = vhost_user::Inflight {
            mmap_offset: u64::MAX - 7,
            ..description
        };
        assert!(Table::new(beyond, descriptor.try_clone().unwrap(), false).is_err());
        assert!(Table::new(description, descriptor, true).is_err(), "a packed ring's is larger");
    }
}
