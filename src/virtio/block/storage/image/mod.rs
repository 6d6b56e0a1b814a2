//! A storage in a disk image, by the crate `imago` (feature `images`).
//!
//! | file | what is in it |
//! |---|---|
//! | this one | [`ImageStorage`] |
//! | `check` | what is refused before anything is believed |
//! | `gate` | which other files an image may lead to |

mod check;
mod gate;

use std::{
    fmt, fs, io,
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use imago::{
    FormatAccess, FormatCreateBuilder, FormatDriverBuilder,
    file::File,
    format::PreallocateMode,
    io_buffers::{IoVector, IoVectorMut},
    qcow2::{Qcow2, Qcow2CreateBuilder},
    raw::Raw,
    vmdk::Vmdk,
};
use vm_memory::VolatileSlice;

use super::{Abilities, Limits, Storage};
use gate::Gate;

/// A disk in an image: qcow2 with its backing files and data file, raw, or, to be read, VMDK with flat extents.
///
/// *What is served*: of qcow2 version 3, with compressed clusters (zlib) and any size of clusters and refcounts. What is
/// **refused**, each in a sentence: version 2 (`qemu-img amend -o compat=1.1` makes it 3), encryption, zstd, extended L2 entries,
/// VMDK with sparse extents, images marked corrupt. An image with internal snapshots is read as it is now; it is opened to be read
/// alone, since a write would have to know of all of them.
///
/// *An image is not trusted*. Whatever a guest or its owner has put there: it is looked at before it is opened (tables within the
/// file and no larger than QEMU makes them, chains of backing files without a loop and of 16 files at most), it leads to no file that
/// the [options](ImageOptions::references) do not allow, and a format is never guessed. Damage that shows later is an I/O error of the
/// request that finds it. Should the code behind ever panic, that request and all later ones fail, and no more is written.
///
/// It answers at once, several threads at a time: give it to [`Block::new`](super::super::Block::new), or to a
/// [pool](super::Pool) of threads. A flush makes the metadata and then all of it stable.
///
/// ```no_run
/// use devisor::virtio::block::{Block, BlockOptions, ImageFormat, ImageOptions, ImageStorage};
///
/// ImageStorage::create("disk.qcow2", 10 << 30, Some(("base.qcow2".as_ref(), ImageFormat::Qcow2)))?;
/// let storage = ImageStorage::open("disk.qcow2", ImageFormat::Qcow2, ImageOptions::default())?;
/// let disk = Block::new(storage, BlockOptions::default())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ImageStorage {
    image: ManuallyDrop<RwLock<FormatAccess<File>>>,
    path: PathBuf,
    read_only: bool,
    discard: bool,
    /// Bytes that are given back as a whole.
    granularity: u32,
    /// It has panicked: what is in memory is not to be believed.
    broken: AtomicBool,
}

/// How an image is laid out. Never guessed: a guest could write what looks like another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFormat {
    /// The data, and nothing else.
    Raw,
    /// QEMU's, version 3.
    Qcow2,
    /// VMware's: a descriptor and flat extents. Read, not written.
    Vmdk,
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// It is not written.
    pub read_only: bool,
    /// Which files it may lead to.
    pub references: References,
}

/// Which files an image may lead to: backing files, data files, extents. Their names are data of the image, which could name any file
/// of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum References {
    /// None: an image that needs one is refused.
    None,
    /// Those in the directory of the image, or below it.
    #[default]
    Beside,
    /// Any: for images whose every file comes from somebody who may read all of them.
    Any,
}

/// Why an image is not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// It is not as an image has to be, or more than is taken.
    #[error("the image {} is refused: {why}", path.display())]
    Refused {
        /// Which file.
        path: PathBuf,
        /// What is not taken.
        why: String,
    },
    /// It cannot be read or made.
    #[error("the image {} cannot be opened: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
}

impl ImageStorage {
    /// Opens an image.
    ///
    /// # Errors
    /// It is refused, or cannot be opened.
    pub fn open(path: impl AsRef<Path>, format: ImageFormat, options: ImageOptions) -> Result<Self, ImageError> {
        let path = path.as_ref();
        let failed = |source| ImageError::Io {
            path: path.into(),
            source,
        };
        let gate = Gate::new(path, options.references).map_err(failed)?;
        let found = check::chain(path, format, &gate)?;
        let read_only = options.read_only || format == ImageFormat::Vmdk || found.snapshots;
        let image = guarded(|| {
            Ok(match format {
                ImageFormat::Raw => FormatAccess::new(Raw::<File>::builder_path(path).write(!read_only).open(gate)?),
                ImageFormat::Qcow2 => {
                    FormatAccess::new(Qcow2::<File>::builder_path(path).write(!read_only).open(gate)?)
                }
                ImageFormat::Vmdk => FormatAccess::new(Vmdk::<File>::builder_path(path).write(false).open(gate)?),
            })
        });
        let image: FormatAccess<File> = image.unwrap_or_else(|| Err(panicked())).map_err(failed)?;
        Ok(Self {
            image: ManuallyDrop::new(RwLock::new(image)),
            path: path.into(),
            read_only,
            discard: format != ImageFormat::Vmdk,
            granularity: found.cluster,
            broken: AtomicBool::new(false),
        })
    }

    /// Makes a qcow2 image of `size` bytes, with `backing` behind it: its name as the image is to have it, relative to the image, and
    /// its format.
    ///
    /// # Errors
    /// There is such a file already, or it cannot be made.
    pub fn create(path: impl AsRef<Path>, size: u64, backing: Option<(&Path, ImageFormat)>) -> Result<(), ImageError> {
        let path = path.as_ref();
        let failed = |source| ImageError::Io {
            path: path.into(),
            source,
        };
        let refused = |why: &str| ImageError::Refused {
            path: path.into(),
            why: why.into(),
        };
        let names = match backing {
            None => None,
            Some((name, format)) => {
                let format = match format {
                    ImageFormat::Raw => "raw",
                    ImageFormat::Qcow2 => "qcow2",
                    ImageFormat::Vmdk => {
                        return Err(refused("its backing file can be raw or qcow2, and would be VMDK"));
                    }
                };
                let name = name
                    .to_str()
                    .ok_or_else(|| refused("the name of its backing file is not UTF-8"))?;
                Some((name.to_owned(), format.to_owned()))
            }
        };
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(failed)?;
        let made = guarded(|| {
            let mut builder = Qcow2CreateBuilder::<File>::new(File::try_from(file)?).size(size);
            if let Some((name, format)) = names {
                builder = builder.backing(name, format);
            }
            builder.create()
        });
        made.unwrap_or_else(|| Err(panicked())).map_err(failed)
    }

    /// Makes it larger; what is new reads as zeros. The guest knows when
    /// [`refresh_capacity`](super::super::Block::refresh_capacity) was called.
    ///
    /// # Errors
    /// It cannot grow, is read-only, or would shrink.
    pub fn grow(&self, size: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if size < self.capacity()? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an image can grow, and would shrink",
            ));
        }
        self.with(|image| image.resize_grow(size, PreallocateMode::Zero))
    }

    /// Whether it is not written: because that was asked for, because of its format, or because it has internal snapshots.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, FormatAccess<File>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, FormatAccess<File>> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, f: impl FnOnce(&FormatAccess<File>) -> io::Result<R>) -> io::Result<R> {
        let image = self.read_lock();
        self.contain(|| f(&image))
    }

    fn with_mut(&self, f: impl FnOnce(&mut FormatAccess<File>) -> io::Result<()>) -> io::Result<()> {
        let mut image = self.write_lock();
        self.contain(|| f(&mut image))
    }

    fn contain<R>(&self, f: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        if self.broken.load(Relaxed) {
            return Err(panicked());
        }
        match guarded(f) {
            Some(result) => result,
            None => {
                self.broken.store(true, Relaxed);
                Err(panicked())
            }
        }
    }

    /// How much of a range there is. The format's code does not take a range of nothing.
    fn present(&self, image: &FormatAccess<File>, offset: u64, buffers: &[VolatileSlice<'_>]) -> u64 {
        let len = buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        len.min(image.size().saturating_sub(offset))
    }
}

/// `None` if it panics.
fn guarded<R>(f: impl FnOnce() -> io::Result<R>) -> Option<io::Result<R>> {
    catch_unwind(AssertUnwindSafe(f)).ok()
}

fn panicked() -> io::Error {
    io::Error::other("the image is damaged in a way that its format's code does not survive")
}

impl Storage for ImageStorage {
    fn capacity(&self) -> io::Result<u64> {
        Ok(self.read_lock().size())
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            read_only: self.read_only,
            discard: self.discard,
            unmap: self.discard,
            ..Abilities::default()
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            discard_granularity: self.granularity,
            ..Limits::of_blocks(512)
        }
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.with(|image| {
            let len = self.present(image, offset, buffers);
            if len == 0 {
                return Ok(0);
            }
            let (vector, _guard) = IoVectorMut::from_volatile_slice(buffers);
            image.readv(vector.split_at(len).0, offset)?;
            Ok(len as usize)
        })
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.with(|image| {
            let len = self.present(image, offset, buffers);
            if len == 0 {
                return Ok(0);
            }
            let (vector, _guard) = IoVector::from_volatile_slice(buffers);
            image.writev(vector.split_at(len).0, offset)?;
            Ok(len as usize)
        })
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.with(|image| {
            image.flush()?;
            image.sync()
        })
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.with_mut(|image| image.discard_to_any(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        match may_unmap {
            // What the format's code does not take.
            _ if len == 0 => Ok(()),
            true => self.with_mut(|image| image.discard_to_zero(offset, len)),
            false => self.with(|image| image.write_zeroes(offset, len)),
        }
    }
}

impl Drop for ImageStorage {
    /// Writes out the metadata, as far as that is to be believed.
    fn drop(&mut self) {
        // SAFETY: it is not used any more, and this happens once.
        let image = unsafe { ManuallyDrop::take(&mut self.image) };
        match self.broken.load(Relaxed) {
            // It would write what it has.
            true => std::mem::forget(image),
            false => _ = catch_unwind(AssertUnwindSafe(|| drop(image))),
        }
    }
}

impl fmt::Debug for ImageStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStorage")
            .field("path", &self.path)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}
