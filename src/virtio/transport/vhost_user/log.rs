//! The log of dirty pages, in memory that the front end shares.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use super::shared::Shared;
use crate::virtio::vhost_user;

/// `VHOST_LOG_PAGE`.
const PAGE: u64 = 4096;

/// A bit a page, from guest address zero on.
#[derive(Debug)]
pub(super) struct Log {
    bits: Shared,
    len: usize,
}

impl Log {
    /// # Errors
    /// It is not in its file.
    pub fn new(log: vhost_user::Log, descriptor: OwnedFd) -> Result<Self, String> {
        let vhost_user::Log { size, offset } = log;
        Ok(Self {
            bits: Shared::new(descriptor, offset, size).map_err(|error| format!("a log: {error}"))?,
            len: usize::try_from(size).map_err(|error| error.to_string())?,
        })
    }

    /// Marks the pages of `len` bytes at a guest address.
    pub fn mark(&self, address: u64, len: u64) {
        if len == 0 {
            return;
        }
        let first = address / PAGE;
        let last = address.saturating_add(len - 1) / PAGE;
        for page in first..=last {
            match self.byte(page / 8) {
                Some(byte) => _ = byte.fetch_or(1 << (page % 8), Ordering::SeqCst),
                // The front end has made it too short, and gets what it has asked for.
                None => break,
            }
        }
    }

    pub fn is_marked(&self, address: u64) -> bool {
        let page = address / PAGE;
        self.byte(page / 8)
            .is_some_and(|byte| byte.load(Ordering::SeqCst) & 1 << (page % 8) != 0)
    }

    /// Whether the log has a bit for this address.
    pub fn covers(&self, address: u64) -> bool {
        self.byte(address / PAGE / 8).is_some()
    }

    fn byte(&self, at: u64) -> Option<&AtomicU8> {
        let at = usize::try_from(at).ok().filter(|&at| at < self.len)?;
        // SAFETY: within the mapping, which lives as long as `self`; others access it atomically too.
        Some(unsafe { AtomicU8::from_ptr(self.bits.as_ptr().add(at)) })
    }
}

/// The part of a log that is of a region of memory, as `vm-memory` marks it.
#[derive(Clone, Debug)]
pub(super) struct RegionLog {
    log: Arc<Log>,
    start: u64,
}

impl RegionLog {
    pub fn new(log: &Arc<Log>, start: u64) -> Self {
        Self {
            log: Arc::clone(log),
            start,
        }
    }
}

impl WithBitmapSlice<'_> for RegionLog {
    type S = Self;
}

impl BitmapSlice for RegionLog {}

impl Bitmap for RegionLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.log.mark(self.start + offset as u64, len as u64);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log.is_marked(self.start + offset as u64)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self::new(&self.log, self.start + offset as u64)
    }
}
