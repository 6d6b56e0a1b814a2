//! What keeps the data of a block device: two traits, what implements them, and what stacks on them.
//!
//! | file | what is in it |
//! |---|---|
//! | this one | [`Storage`], which answers at once |
//! | `channel`, `buffers` | [`AsyncStorage`], whose requests end later |
//! | `adapter` | the one as the other |
//! | `file`, `direct`, `mapped`, `memory` | what there is to keep data in |
//! | `limits` | in what units it does so best |
//! | `zones` | zoned storages, and one that emulates its zones |
//! | `zoned_device` | a zoned block device of the host |
//! | `pool` | a storage that answers at once, called on threads of the embedder's |
//! | `uring` | a file by way of `io_uring` |
//! | `limited` | what stacks on any: so much in a time |
//! | `image` | a disk image: qcow2, raw, VMDK |
//! | `nbd` | an export of an NBD server |
//! | `faults`, `recorder` | the same for tests: failures on demand; what was asked, and what a crash leaves of it |

/// What a storage is, as the one behind it says: whatever stacks on another, or leads to it, is that.
macro_rules! as_told_by {
    ($self:ident => $behind:expr) => {
        fn capacity(&$self) -> std::io::Result<u64> {
            $behind.capacity()
        }

        fn abilities(&$self) -> $crate::virtio::block::Abilities {
            $behind.abilities()
        }

        fn limits(&$self) -> $crate::virtio::block::Limits {
            $behind.limits()
        }

        fn lifetime(&$self) -> Option<$crate::virtio::block::Lifetime> {
            $behind.lifetime()
        }

        fn zones(&$self) -> Option<&dyn $crate::virtio::block::Zones> {
            $behind.zones()
        }
    };
}

mod adapter;
mod buffers;
mod channel;
#[cfg(unix)]
mod direct;
mod faults;
#[cfg(unix)]
mod file;
#[cfg(all(unix, feature = "images"))]
mod image;
mod lifetime;
mod limited;
mod limits;
#[cfg(target_os = "linux")]
mod mapped;
mod memory;
#[cfg(all(unix, feature = "nbd"))]
mod nbd;
mod pool;
mod recorder;
#[cfg(all(target_os = "linux", feature = "io-uring"))]
mod uring;
#[cfg(target_os = "linux")]
mod zoned_device;
mod zones;

use std::{io, sync::Arc};

use vm_memory::VolatileSlice;

pub use adapter::Synchronous;
pub use buffers::{Buffers, Piece};
pub use channel::{AsyncStorage, Channel, Ended, Operation, Outcome, Tag};
pub use faults::{Failing, Faulty};
#[cfg(unix)]
pub use file::{FileError, FileStorage};
#[cfg(all(unix, feature = "images"))]
pub use image::{ImageError, ImageFormat, ImageOptions, ImageStorage, References};
pub use lifetime::Lifetime;
pub use limited::{Allowance, Limited};
pub use limits::Limits;
#[cfg(target_os = "linux")]
pub use mapped::MappedStorage;
pub use memory::MemoryStorage;
#[cfg(all(unix, feature = "nbd-tls"))]
pub use nbd::NbdTls;
#[cfg(all(unix, feature = "nbd"))]
pub use nbd::{NbdError, NbdOptions, NbdServer, NbdStatus, NbdStorage, NbdUri};
pub use pool::{Pool, Pooled};
pub use recorder::{Event, Recorder, Recording};
#[cfg(all(target_os = "linux", feature = "io-uring"))]
pub use uring::{UringOptions, UringStatus, UringStorage, UringWaiter};
#[cfg(target_os = "linux")]
pub use zoned_device::{ZonedDevice, ZonedDeviceError};
pub use zones::{Zone, ZoneAction, ZoneError, ZoneLimits, ZoneState, ZonedError, ZonedStorage, Zones};

/// What a storage can do besides being read and flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// It refuses writes.
    pub read_only: bool,
    /// [`discard`](Storage::discard) can give space back.
    pub discard: bool,
    /// [`write_zeroes`](Storage::write_zeroes) can give space back, if it may.
    pub unmap: bool,
    /// [`secure_erase`](Storage::secure_erase) makes data irrecoverable.
    pub secure_erase: bool,
    /// A [write](Operation::Write) can be on stable storage when it ends, for less than a flush. Of an [`AsyncStorage`] alone.
    pub fua: bool,
}

/// The data of a block device, by position, straight from and to guest memory.
///
/// *For who implements it*: offsets and lengths are in bytes, multiples of 512 where they come from a request, and
/// within the capacity that was told last, which may no longer be the real one. Transfers may be short, as those of
/// [`std::io`]: the device goes on after what was moved, and tries again after [`io::ErrorKind::Interrupted`]. The
/// guest can change the memory of a buffer at any time; two buffers may be the same memory. Everything is `&self`, so
/// that one storage can serve several devices or threads: write so that requests for different ranges do not mix.
///
/// *For who calls it* (a device): an error is an I/O error for the guest, never more.
///
/// ```
/// use devisor::virtio::block::{Block, BlockOptions, Storage};
/// use std::io;
/// use vm_memory::VolatileSlice;
///
/// /// One sector of sevens.
/// struct Sevens;
///
/// impl Storage for Sevens {
///     fn capacity(&self) -> io::Result<u64> {
///         Ok(512)
///     }
///
///     fn read_at(&self, _: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
///         for buffer in buffers {
///             buffer.copy_from(&vec![7_u8; buffer.len()]);
///         }
///         Ok(buffers.iter().map(VolatileSlice::len).sum())
///     }
///
///     fn write_at(&self, _: u64, _: &[VolatileSlice<'_>]) -> io::Result<usize> {
///         Err(io::ErrorKind::PermissionDenied.into())
///     }
///
///     fn flush(&self) -> io::Result<()> {
///         Ok(())
///     }
/// }
///
/// let disk = Block::new(Sevens, BlockOptions { read_only: true, ..BlockOptions::default() })?;
/// assert_eq!(disk.capacity(), 1);
/// # Ok::<(), devisor::virtio::block::BlockError>(())
/// ```
pub trait Storage: Send + Sync {
    /// How many bytes there are now. The device takes whole blocks of it, and asks again only when told to.
    ///
    /// # Errors
    /// It cannot be found out.
    fn capacity(&self) -> io::Result<u64>;

    /// What it can do. Asked once.
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    /// In what units it works best. Asked once. Whatever they are, transfers come in sectors of 512 bytes.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// How worn it is, if it can tell. Asked at first, and then each time that a guest asks, if it could tell at first.
    fn lifetime(&self) -> Option<Lifetime> {
        None
    }

    /// Its zones, if it is a host-managed zoned storage: then writes come where a write pointer is, or get a [`ZoneError`].
    fn zones(&self) -> Option<&dyn Zones> {
        None
    }

    /// Fills `buffers`, in order, with what is at `offset`. Returns how many bytes it filled: zero only at the end.
    ///
    /// # Errors
    /// Nothing was read.
    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Writes `buffers`, in order, to `offset`. Returns how many bytes it wrote.
    ///
    /// # Errors
    /// Nothing was written.
    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Returns when all that was written before is on stable storage.
    ///
    /// # Errors
    /// Some of it may be lost.
    fn flush(&self) -> io::Result<()>;

    /// Gives the space of a range back. What is read from it afterwards is undefined, so doing nothing is right too:
    /// that is what a storage does which cannot do better.
    ///
    /// # Errors
    /// The storage failed.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Makes a range read as zeros; if `may_unmap`, its space may be given back. By default zeros are written.
    ///
    /// # Errors
    /// Some of the range may not be zero.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        let _ = may_unmap;
        write_zeros(self, offset, len)
    }

    /// Makes what a range held irrecoverable, and all copies of it. What is read from it afterwards is undefined. Called if it is
    /// among the [abilities](Abilities::secure_erase).
    ///
    /// # Errors
    /// Some of it may still be there.
    fn secure_erase(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Bytes of zeros that are written at a time.
const ZEROS: usize = 64 * 1024;

/// Writes `len` zeros to `offset`.
pub(super) fn write_zeros<S: Storage + ?Sized>(storage: &S, mut offset: u64, len: u64) -> io::Result<()> {
    let mut zeros = vec![0; ZEROS.min(usize::try_from(len).unwrap_or(ZEROS))];
    let mut left = len;
    while left != 0 {
        let piece = zeros.len().min(usize::try_from(left).unwrap_or(ZEROS));
        let slice = VolatileSlice::from(&mut zeros[..piece]);
        transfer(&[slice], offset, |offset, buffers| storage.write_at(offset, buffers)).1?;
        offset += piece as u64;
        left -= piece as u64;
    }
    Ok(())
}

/// Moves all of `buffers` by as many calls of `step` as it takes. Returns how many bytes were moved, and what ended it.
pub(in crate::virtio::block) fn transfer(
    buffers: &[VolatileSlice<'_>],
    offset: u64,
    mut step: impl FnMut(u64, &[VolatileSlice<'_>]) -> io::Result<usize>,
) -> (u64, io::Result<()>) {
    let mut moved = 0;
    let mut rest = buffers;
    // Bytes of the first buffer of the rest that were moved already.
    let mut skip = 0;
    while let Some((first, after)) = rest.split_first() {
        if first.len() == skip {
            (rest, skip) = (after, 0);
            continue;
        }
        let tail;
        // A buffer that was moved in part is finished by itself: the list is lent, not ours to change.
        let lent = match first.offset(skip) {
            Ok(slice) if skip != 0 => {
                tail = [slice];
                &tail[..]
            }
            _ => rest,
        };
        let asked: usize = lent.iter().map(VolatileSlice::len).sum();
        let mut count = match step(offset + moved, lent) {
            Ok(0) => return (moved, Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) if count > asked => {
                return (
                    moved,
                    Err(io::Error::other("the storage moved more than it was asked to")),
                );
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return (moved, Err(error)),
        };
        moved += count as u64;
        while let Some((first, after)) = rest.split_first() {
            let left = first.len() - skip;
            if count < left {
                skip += count;
                break;
            }
            count -= left;
            (rest, skip) = (after, 0);
        }
    }
    (moved, Ok(()))
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<S: Storage + ?Sized> Storage for $pointer {
            as_told_by!(self => (**self));

            fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
                (**self).read_at(offset, buffers)
            }

            fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
                (**self).write_at(offset, buffers)
            }

            fn flush(&self) -> io::Result<()> {
                (**self).flush()
            }

            fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
                (**self).discard(offset, len)
            }

            fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
                (**self).write_zeroes(offset, len, may_unmap)
            }

            fn secure_erase(&self, offset: u64, len: u64) -> io::Result<()> {
                (**self).secure_erase(offset, len)
            }
        }
    )*};
}

forward!(&S, Box<S>, Arc<S>);
