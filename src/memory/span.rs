//! Stretches of host memory that guest addresses lead to.

use std::{
    ptr::{self, NonNull},
    sync::{
        OnceLock,
        atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering},
    },
};

use vm_memory::Permissions;

/// A region; or a place for one, which is filled once and is none until then.
#[derive(Debug)]
pub(super) struct Span {
    start: AtomicU64,
    /// Zero until the rest is there.
    len: AtomicU64,
    host: AtomicPtr<u8>,
    /// [`Permissions`], as a number.
    access: AtomicU8,
    /// The same as it is looked at again and again, if it is for both directions.
    both: OnceLock<Stretch>,
}

impl Span {
    pub fn new(start: u64, len: u64, host: NonNull<u8>) -> Self {
        let span = Self::empty();
        span.fill((start, len), host, Permissions::ReadWrite);
        span
    }

    /// Of a place that is filled later.
    pub fn empty() -> Self {
        Self {
            start: AtomicU64::new(0),
            len: AtomicU64::new(0),
            host: AtomicPtr::new(ptr::null_mut()),
            access: AtomicU8::new(0),
            both: OnceLock::new(),
        }
    }

    /// Fills an empty place. Who sees the length sees the rest.
    pub fn fill(&self, (start, len): (u64, u64), host: NonNull<u8>, access: Permissions) {
        self.start.store(start, Ordering::Relaxed);
        self.host.store(host.as_ptr(), Ordering::Relaxed);
        self.access.store(access as u8, Ordering::Relaxed);
        if access == Permissions::ReadWrite {
            // It is filled once.
            let _ = self.both.set(Stretch { start, len, host });
        }
        self.len.store(len, Ordering::Release);
    }

    #[inline]
    pub fn start(&self) -> u64 {
        self.start.load(Ordering::Relaxed)
    }

    #[inline]
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    #[inline]
    pub fn allows(&self, access: Permissions) -> bool {
        self.access.load(Ordering::Relaxed) & access as u8 == access as u8
    }

    /// What it is, if it is for both directions.
    #[inline]
    pub fn both(&self) -> Option<&Stretch> {
        self.both.get()
    }

    /// Where it begins, once it is filled.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    pub fn host(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.host.load(Ordering::Relaxed))
    }

    /// How far into this span the `len` bytes at `address` begin, if all of them are in it.
    #[inline]
    pub fn offset(&self, address: u64, len: u64) -> Option<usize> {
        let all = self.len();
        let offset = address.wrapping_sub(self.start());
        let within = offset < all && len <= all - offset;
        within.then_some(offset as usize)
    }

    /// # Safety
    /// `offset` is within the span, which is filled.
    #[inline]
    pub unsafe fn at(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: what the place was filled with is not null, and within its mapping, as the caller says.
        unsafe { NonNull::new_unchecked(self.host.load(Ordering::Relaxed).add(offset)) }
    }
}

/// A span as it is looked at again and again: in the map of the pin that it was found with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    start: u64,
    len: u64,
    host: NonNull<u8>,
}

// SAFETY: the pointer leads to guest memory, as that of a map.
unsafe impl Send for Stretch {}
// SAFETY: as above.
unsafe impl Sync for Stretch {}

impl Stretch {
    pub const NONE: Self = Self {
        start: 0,
        len: 0,
        host: NonNull::dangling(),
    };

    /// Whether the `len` bytes at `address` are all in it, or are none at its end.
    #[inline]
    pub fn has(&self, address: u64, len: u32) -> bool {
        let end = address.wrapping_sub(self.start).checked_add(len.into());
        end.is_some_and(|end| end <= self.len)
    }

    /// The host address of the `len` bytes at `address`, if all of them are in it, and how many there are from there on.
    #[inline]
    pub fn find(&self, address: u64, len: u64) -> Option<(NonNull<u8>, u64)> {
        let offset = address.wrapping_sub(self.start);
        let within = offset < self.len && len <= self.len - offset;
        // SAFETY: within the mapping of the span.
        within.then(|| (unsafe { self.host.add(offset as usize) }, self.len - offset))
    }

    /// The host address of the `len` bytes at `address`, if all of them are in it.
    #[inline]
    pub fn host(&self, address: u64, len: u32) -> Option<NonNull<u8>> {
        Some(self.find(address, len.into())?.0)
    }
}

/// Where the last of several segments was found: most of them are near each other.
#[derive(Clone, Copy)]
pub(crate) struct Near {
    start: u64,
    len: u64,
    access: u8,
    index: u32,
}

impl Near {
    /// In the span of this index, if there is one.
    #[inline]
    pub(super) fn new(span: Option<&Span>, index: u32) -> Self {
        match span {
            Some(span) => {
                // Before the rest.
                let len = span.len();
                let (start, access) = (span.start(), span.access.load(Ordering::Relaxed));
                Self {
                    start,
                    len,
                    access,
                    index,
                }
            }
            None => Self {
                start: 0,
                len: 0,
                access: 0,
                index,
            },
        }
    }

    /// Which span that is.
    #[inline]
    pub fn index(&self) -> u32 {
        self.index
    }

    #[inline]
    pub fn has(&self, address: u64, len: u32, access: Permissions) -> bool {
        let offset = address.wrapping_sub(self.start);
        offset < self.len && u64::from(len) <= self.len - offset && self.access & access as u8 == access as u8
    }
}
