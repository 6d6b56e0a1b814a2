//! What an embedder decides about a balloon.

use std::time::Duration;

/// How a balloon looks to the guest, and what it may cost.
///
/// ```
/// use devisor::virtio::balloon::BalloonOptions;
///
/// let options = BalloonOptions { deflate_on_oom: true, ..BalloonOptions::default() };
/// assert_eq!(options.queue_size, 64);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalloonOptions {
    /// `num_pages` at the beginning: how many pages of 4096 bytes the guest is to give.
    pub target: u32,
    /// Offers VIRTIO_BALLOON_F_MUST_TELL_HOST: the guest waits before it uses a page of the balloon. Without it, on a host with larger
    /// pages than 4 KiB, what goes back is the host pages that one request names whole; with it, also those that several requests do.
    pub must_tell_host: bool,
    /// Offers VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the guest may take pages back rather than run out of memory.
    pub deflate_on_oom: bool,
    /// Offers VIRTIO_BALLOON_F_STATS_VQ.
    pub statistics: bool,
    /// Offers VIRTIO_BALLOON_F_PAGE_POISON: the guest tells what it fills free pages with. Its reports then give back nothing if that
    /// is not zeros, since what is read from a reported page has to be it.
    pub page_poison: bool,
    /// Offers VIRTIO_BALLOON_F_PAGE_REPORTING: the guest reports pages as they become free.
    pub page_reporting: bool,
    /// Size of each queue, a power of two up to 32768.
    pub queue_size: u16,
    /// Pages in a request of the inflate or the deflate queue, from 1 to [`MAX_PAGES`](Self::MAX_PAGES): each may cost a system call, so
    /// this limits how long a request takes. Linux names 256, Windows 1024. A longer request does nothing and comes back with a used
    /// length of 0.
    pub max_pages: u32,
    /// Pages of a host with larger ones of which a part is in the balloon: so many are remembered, a bit for each 4 KiB. What the guest
    /// gives of others is kept.
    pub max_partial: u32,
}

impl BalloonOptions {
    /// The most pages in a request that can be allowed: their numbers are read into memory, four bytes each.
    pub const MAX_PAGES: u32 = 1 << 20;
}

impl Default for BalloonOptions {
    fn default() -> Self {
        Self {
            target: 0,
            must_tell_host: true,
            deflate_on_oom: false,
            statistics: true,
            page_poison: true,
            page_reporting: true,
            queue_size: 64,
            max_pages: 4096,
            max_partial: 1024,
        }
    }
}

/// A balloon cannot be made, or do, as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BalloonError {
    /// No such queue size.
    #[error("queue size {0}: a power of two up to 32768 is accepted")]
    QueueSize(u16),
    /// No such limit.
    #[error("requests of up to {0} pages: 1 to 1048576 is accepted")]
    MaxPages(u32),
    /// Statistics would be asked for all the time.
    #[error("statistics every {0:?}: at least a millisecond is accepted")]
    Interval(Duration),
    /// Statistics at intervals of no clock.
    #[error("statistics at an interval need a clock: the balloon has to be made with one")]
    NoClock,
    /// The driver has not accepted the feature that it takes.
    #[error("the driver has not accepted {0}: it must have, and be ready")]
    NotNegotiated(&'static str),
}

impl BalloonOptions {
    pub(super) fn check(&self) -> Result<(), BalloonError> {
        let Self {
            target: _,
            must_tell_host: _,
            deflate_on_oom: _,
            statistics: _,
            page_poison: _,
            page_reporting: _,
            queue_size,
            max_pages,
            max_partial: _,
        } = *self;
        if !queue_size.is_power_of_two() {
            return Err(BalloonError::QueueSize(queue_size));
        }
        if !(1..=Self::MAX_PAGES).contains(&max_pages) {
            return Err(BalloonError::MaxPages(max_pages));
        }
        Ok(())
    }
}
