//! A file in the memory of this process, for the embedder to give to its guest.

use std::{
    fs::{File, OpenOptions},
    path::Path,
};

use super::PmemError;
use crate::memory::Mapping;

/// A whole file, mapped shared and for reading and writing, as long as this is there.
///
/// It is for the embedder to have the guest see it, at the addresses that the device was made with: as a slot of memory of the
/// hypervisor, and as a region of the guest's memory for other devices (`MmapRegion::build_raw` of `vm-memory` takes address and length).
/// Both end before this does. Nobody may make the file shorter meanwhile: who accesses what is no longer there is ended by a signal.
///
/// ```no_run
/// use devisor::virtio::pmem::{FileMapping, Pmem, PmemOptions};
///
/// let mapping = FileMapping::open("data.img")?;
/// let start = 1 << 32;
/// let pmem = Pmem::new(mapping.file().try_clone()?, PmemOptions::new(start..start + mapping.len() as u64))?;
/// # let _ = pmem;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileMapping {
    file: File,
    mapping: Mapping,
}

impl FileMapping {
    /// Opens a file for reading and writing, and maps it.
    ///
    /// # Errors
    /// It cannot be opened or mapped, or is of no length that can be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PmemError> {
        Self::new(OpenOptions::new().read(true).write(true).open(path)?)
    }

    /// Maps an open file.
    ///
    /// # Errors
    /// It cannot be mapped for reading and writing, or is of no length that can be.
    pub fn new(file: File) -> Result<Self, PmemError> {
        let bytes = file.metadata()?.len();
        let len = usize::try_from(bytes)
            .ok()
            .filter(|_| bytes != 0 && bytes.is_multiple_of(4096));
        let len = len.ok_or(PmemError::FileLength(bytes))?;
        let mapping = Mapping::new(&file, len, true)?;
        Ok(Self { file, mapping })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is mapped. The guest changes what is there at any time: access it by volatile copies alone.
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// Bytes of the mapping: all of the file.
    #[allow(clippy::len_without_is_empty, reason = "none is empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }
}
