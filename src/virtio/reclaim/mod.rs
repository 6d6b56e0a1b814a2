//! Memory of the guest that goes back to the host, and comes again: what the [balloon](super::balloon) and the
//! [memory device](super::mem) ask for, and who does it.

#[cfg(target_os = "linux")]
mod madvise;
mod recorded;

use std::{io, ops::Range, sync::Arc};

#[cfg(target_os = "linux")]
pub use madvise::Madvise;
pub use recorded::{ReclaimCall, Recorded};

/// What became of a range that was to be given back. What is neither of these was kept: the host's pages are larger than what the
/// guest gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Bytes that were given back.
    pub bytes: u64,
    /// Bytes at addresses without memory, or without such as may be given back.
    pub outside: u64,
}

/// Gives the guest's memory back to its host, and takes it for the guest again.
///
/// *For who implements it*: addresses are guest physical, and come from a guest: any of them, in ranges that end at 2^64 at most, and
/// that overlap others. What is outside of memory is counted in the answer and is no error. Never discard a byte outside of the range: a
/// host page that is in it in part only is kept. Both calls may come from several threads at the same time, and may take as long as the
/// kernel takes.
///
/// *Discarding is not unmapping*. The host addresses of the range stay valid, so that whoever holds a [`Pin`](crate::memory::Pin) of it
/// (a request under way, a ring that the guest has put into its balloon) goes on with new pages of zeros: a guest that gives away what it
/// uses loses what is in it, and nothing else happens. **This does not hold for pages that something outside of this process has
/// pinned for long**, as VFIO and registered buffers of io_uring do: those go on with the old page, and the guest gets another one. Give
/// the devices of a machine with such a device `()` for this, which keeps everything.
///
/// ```
/// use devisor::virtio::{balloon::{Balloon, BalloonOptions}, reclaim::{Discarded, Reclaim}};
/// use std::io;
///
/// /// Memory that is somewhere else.
/// struct Elsewhere;
///
/// impl Reclaim for Elsewhere {
///     fn discard(&self, address: u64, len: u64) -> io::Result<Discarded> {
///         println!("{len:#x} bytes at {address:#x} are of no use to the guest");
///         Ok(Discarded { bytes: len, outside: 0 })
///     }
/// }
///
/// let balloon = Balloon::new(Elsewhere, BalloonOptions::default())?;
/// assert_eq!(balloon.target(), 0);
/// # Ok::<(), devisor::virtio::balloon::BalloonError>(())
/// ```
pub trait Reclaim: Send + Sync {
    /// Bytes of a page of the host at `address`, a power of two: what is given back is whole ones of these, at multiples of it.
    fn granularity(&self, address: u64) -> u64 {
        let _ = address;
        4096
    }

    /// Gives the range back. What the guest reads there from now on is zeros, until it writes.
    ///
    /// # Errors
    /// The host refused a part of it. What was given back by then is.
    fn discard(&self, address: u64, len: u64) -> io::Result<Discarded>;

    /// The guest is to have the range again; nothing in it changes. Memory that is there when it is touched needs nothing.
    ///
    /// # Errors
    /// The host has not got it.
    fn populate(&self, address: u64, len: u64) -> io::Result<()> {
        let _ = (address, len);
        Ok(())
    }
}

/// Keeps everything.
impl Reclaim for () {
    fn discard(&self, _: u64, _: u64) -> io::Result<Discarded> {
        Ok(Discarded::default())
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<R: Reclaim + ?Sized> Reclaim for $pointer {
            fn granularity(&self, address: u64) -> u64 {
                (**self).granularity(address)
            }

            fn discard(&self, address: u64, len: u64) -> io::Result<Discarded> {
                (**self).discard(address, len)
            }

            fn populate(&self, address: u64, len: u64) -> io::Result<()> {
                (**self).populate(address, len)
            }
        }
    )*};
}

forward!(&R, Box<R>, Arc<R>);

/// The bytes that two ranges have in common, if there are any.
fn overlap(a: &Range<u64>, b: &Range<u64>) -> Option<Range<u64>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (both.start < both.end).then_some(both)
}

/// The whole pages of `granularity` bytes in `range`.
fn whole_pages(range: &Range<u64>, granularity: u64) -> Option<Range<u64>> {
    let start = range.start.checked_next_multiple_of(granularity)?;
    let end = range.end / granularity * granularity;
    (start < end).then_some(start..end)
}
