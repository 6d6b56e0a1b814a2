//! The table of requests in flight, in memory that the front end keeps while this process is gone.
//!
//! Its format is that of the specification ("Inflight I/O tracking"), so that another back end goes on with what this one has left.
//! The front end may write anything into it: what is read from it is checked, and bounded.

mod packed;
mod split;

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};

use super::shared::Shared;
use crate::virtio::{queue::Tracker, vhost_user};
pub(super) use packed::Found;
use packed::Packed;
use split::Split;

/// Each queue's region begins with a cache line.
const ALIGN: u64 = 64;
const PAGE: u64 = 4096;

/// Bytes of a queue's region.
fn region_size(queue_size: u16, packed: bool) -> u64 {
    let (header, entry) = match packed {
        false => split::LAYOUT,
        true => packed::LAYOUT,
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
    map: Arc<Shared>,
    queues: u16,
    queue_size: u16,
    packed: bool,
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
        if mmap_size < needed || needed == 0 || !mmap_offset.is_multiple_of(8) {
            return Err(format!(
                "a table of {mmap_size} bytes at {mmap_offset:#x} for {queues} queues of {queue_size}: {needed} bytes are needed"
            ));
        }
        let map = Shared::new(descriptor, mmap_offset, mmap_size);
        Ok(Self {
            map: Arc::new(map.map_err(|error| format!("a table of requests in flight: {error}"))?),
            queues,
            queue_size,
            packed,
        })
    }

    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// Nothing is in flight, nor has been, in the `rings` that there are: as it was made. None of them runs. What a front end has given
    /// beyond is not touched: pages that nobody needs would come to be.
    pub fn clear(&self, rings: usize) {
        for index in 0..rings.min(self.queues.into()) {
            let len = region_size(self.queue_size, self.packed) as usize;
            let words = Words {
                map: Arc::clone(&self.map),
                start: index * len,
            };
            (0..len)
                .step_by(8)
                .for_each(|at| words.long(at).store(0, Ordering::SeqCst));
        }
    }

    /// The part of a queue of this size, if it has one.
    pub fn queue(&self, index: usize, size: u16) -> Option<Part> {
        let fits = index < usize::from(self.queues) && size <= self.queue_size;
        let words = fits.then(|| Words {
            map: Arc::clone(&self.map),
            start: index * region_size(self.queue_size, self.packed) as usize,
        })?;
        Some(match self.packed {
            false => Part::Split(Arc::new(Split::new(words, self.queue_size))),
            true => Part::Packed(Arc::new(Packed::new(words, self.queue_size))),
        })
    }
}

/// The part of one queue, by the format of its ring.
#[derive(Clone)]
pub(super) enum Part {
    Split(Arc<Split>),
    Packed(Arc<Packed>),
}

impl Part {
    pub fn tracker(self) -> Arc<dyn Tracker> {
        match self {
            Self::Split(part) => part,
            Self::Packed(part) => part,
        }
    }
}

/// The words of a part. Each offset that is asked for is in it, and a multiple of what is there. They are written by
/// [`set`](Self::set), so that a test can look at what there is before each.
struct Words {
    map: Arc<Shared>,
    start: usize,
}

impl Words {
    fn byte(&self, at: usize) -> &AtomicU8 {
        // SAFETY: each offset that is asked for is in the part, which was checked to be in the map when this was made; others access it
        // atomically too, or not at all.
        unsafe { AtomicU8::from_ptr(self.map.as_ptr().add(self.start + at)) }
    }

    fn word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as in `byte`; the table is aligned to 8, the part too, and each of its words to two.
        unsafe { AtomicU16::from_ptr(self.map.as_ptr().add(self.start + at).cast()) }
    }

    fn half(&self, at: usize) -> &AtomicU32 {
        // SAFETY: as above, to four.
        unsafe { AtomicU32::from_ptr(self.map.as_ptr().add(self.start + at).cast()) }
    }

    fn set<W: Word>(&self, word: &W, value: W::Value) {
        #[cfg(test)]
        steps::next();
        word.set(value);
    }

    fn long(&self, at: usize) -> &AtomicU64 {
        // SAFETY: as above, to 8.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().add(self.start + at).cast()) }
    }
}

trait Word {
    type Value;
    fn set(&self, value: Self::Value);
}

macro_rules! words {
    ($($word:ty: $value:ty,)*) => {$(
        impl Word for $word {
            type Value = $value;

            fn set(&self, value: $value) {
                self.store(value, Ordering::SeqCst);
            }
        }
    )*};
}

words! {
    AtomicU8: u8,
    AtomicU16: u16,
    AtomicU32: u32,
    AtomicU64: u64,
}

/// What a test does before each step.
#[cfg(test)]
mod steps {
    use std::cell::RefCell;

    thread_local! {
        static EACH: RefCell<Option<Box<dyn FnMut()>>> = RefCell::default();
    }

    pub fn next() {
        EACH.with_borrow_mut(|each| each.iter_mut().for_each(|each| each()));
    }

    pub fn set(each: Option<Box<dyn FnMut()>>) {
        EACH.set(each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(
            Table::new(description, descriptor, true).is_err(),
            "a packed ring's is larger"
        );
    }
}
