//! Memory that this process has mapped, on Linux.

use std::{io, ops::Range, ptr};

use vm_memory::{GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{Discarded, Reclaim, overlap, whole_pages};
use crate::memory::FileSystem;

/// The guest's memory as `vm-memory` has mapped it (`GuestMemoryMmap`, or another with host addresses): it goes back to the kernel by
/// `madvise(2)`, as the kind of mapping needs it.
///
/// | mapping | how |
/// |---|---|
/// | shared: a memfd, a file in a tmpfs or hugetlbfs, an anonymous shared one | `MADV_REMOVE`: a hole in the file, for all that have mapped it |
/// | private, anonymous | `MADV_DONTNEED` |
/// | private, of a file (a snapshot that is loaded as it is touched) | an anonymous mapping in its place, since `MADV_DONTNEED` would bring the file's data back |
///
/// A shared mapping that this process may only read is refused, and stays as it is. A file system that cannot punch holes has its refusal counted as a failure of the host. In a file on a disk a hole is as good as zeros.
///
/// *Whole pages of the host*: 4 KiB or what the kernel has, and those of the file system where memory is in hugetlbfs. Of private
/// huge pages without a file nothing says so here: name their size with [`with_page_size`](Self::with_page_size).
///
/// *What is memory*: every region of the address space. If there are some in it that the guest must not punch holes into (a firmware
/// image that other machines have mapped too, a file that is mapped shared), name the [others](Self::within).
///
/// ```
/// use devisor::virtio::reclaim::{Discarded, Madvise, Reclaim};
/// use std::sync::Arc;
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// let ram = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// ram.write_slice(&[7; 0x4000], GuestAddress(0x8000))?;
/// let reclaim = Madvise::new(ram.clone());
/// assert_eq!(reclaim.discard(0x8000, 0x4000)?, Discarded { bytes: 0x4000, outside: 0 });
/// assert_eq!(ram.read_obj::<u64>(GuestAddress(0x8000))?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Madvise<A> {
    space: A,
    /// If not all regions may be given back.
    within: Option<Vec<Range<u64>>>,
    /// Bytes of a page of the kernel's.
    kernel_page: u64,
    /// The same, or larger.
    page_size: u64,
    /// Memory that comes again is to be there before it is touched.
    eager: bool,
}

impl<A: GuestAddressSpace> Madvise<A> {
    /// All regions of `space`.
    pub fn new(space: A) -> Self {
        // SAFETY: asks for a number.
        let kernel_page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let kernel_page = u64::try_from(kernel_page).unwrap_or(4096);
        Self {
            space,
            within: None,
            kernel_page,
            page_size: kernel_page,
            eager: false,
        }
    }

    /// Only what is in this guest physical range may be given back, and in those that were named before; the rest is as if it were not
    /// there.
    pub fn within(mut self, range: Range<u64>) -> Self {
        self.within.get_or_insert_default().push(range);
        self
    }

    /// Pages are at least so large: a power of two. For huge pages that no file tells of.
    pub fn with_page_size(self, bytes: u64) -> Self {
        Self {
            page_size: self.page_size.max(bytes.next_power_of_two()),
            ..self
        }
    }

    /// What comes again is there before it is touched (`MADV_POPULATE_WRITE`, Linux 5.14): a host that has not got it says so then, and
    /// not to a vCPU.
    pub fn eager(self) -> Self {
        Self { eager: true, ..self }
    }

    /// Calls `each` for every piece of host memory in the range. How many bytes there are in all.
    fn each(&self, address: u64, len: u64, mut each: impl FnMut(Piece) -> io::Result<()>) -> io::Result<u64> {
        let wanted = address..address.saturating_add(len);
        // Keeps the mapping alive until the kernel has done it all.
        let memory = self.space.memory();
        let Some(memory) = memory.physical_memory() else {
            return Ok(0);
        };
        let mut found = 0;
        for region in memory.iter() {
            let start = region.start_addr().0;
            let there = start..start.saturating_add(region.len());
            let Some((here, host)) = overlap(&wanted, &there).zip(host_address(region)) else {
                continue;
            };
            let page_size = self.page_size_of(region);
            let is_file = region.file_offset().is_some();
            let whole = [here.clone()];
            for allowed in self.within.as_deref().unwrap_or(&whole) {
                let Some(piece) = overlap(&here, allowed) else {
                    continue;
                };
                found += piece.end - piece.start;
                // Within the mapping of the region.
                let host = |address| host + (address - start);
                each(Piece {
                    host: host(piece.start)..host(piece.end),
                    page_size,
                    is_file,
                })?;
            }
        }
        Ok(found)
    }

    /// Bytes of a page of the host's in a region.
    fn page_size_of(&self, region: &impl GuestMemoryRegion) -> u64 {
        let file = region.file_offset().and_then(|file| match FileSystem::of(file.file()) {
            Ok(FileSystem::Hugetlbfs(page)) => Some(page),
            _ => None,
        });
        self.page_size.max(file.unwrap_or(0))
    }
}

/// Where all of a region is in this process. What has no address of its own is not ours to give; and what a type says of its addresses is
/// no reason to let go of them: what a slice of it spans is.
fn host_address(region: &impl GuestMemoryRegion) -> Option<u64> {
    let host = region.get_host_address(MemoryRegionAddress(0)).ok()?;
    let len = usize::try_from(region.len()).ok()?;
    let slice = region.get_slice(MemoryRegionAddress(0), len).ok()?;
    let all = slice.len() == len && ptr::eq(slice.ptr_guard().as_ptr(), host);
    all.then_some(host as u64)
}

/// A part of the guest's memory, where this process has it.
struct Piece {
    host: Range<u64>,
    page_size: u64,
    is_file: bool,
}

impl<A: GuestAddressSpace + Send + Sync> Reclaim for Madvise<A> {
    fn granularity(&self, address: u64) -> u64 {
        let mut granularity = self.page_size;
        let _ = self.each(address, 1, |piece| {
            granularity = piece.page_size;
            Ok(())
        });
        granularity
    }

    fn discard(&self, address: u64, len: u64) -> io::Result<Discarded> {
        let mut bytes = 0;
        let found = self.each(address, len, |piece| {
            // By where the pages of the host are, whatever the guest calls them.
            let Some(pages) = whole_pages(&piece.host, piece.page_size) else {
                return Ok(());
            };
            // SAFETY: these are whole pages of the guest's memory, which the guard in `each` keeps mapped.
            unsafe { give_back(&pages, piece.page_size, piece.is_file) }?;
            bytes += pages.end - pages.start;
            Ok(())
        })?;
        let outside = len - found.min(len);
        Ok(Discarded { bytes, outside })
    }

    fn populate(&self, address: u64, len: u64) -> io::Result<()> {
        if !self.eager {
            return Ok(());
        }
        let each = |piece: Piece| {
            let start = piece.host.start / self.kernel_page * self.kernel_page;
            // SAFETY: within the mapping, which begins with a whole page. What is in it stays.
            unsafe { advise(&(start..piece.host.end), libc::MADV_POPULATE_WRITE) }
        };
        self.each(address, len, each).map(|_| ())
    }
}

/// Gives whole pages back, as their mapping needs it: they read as zeros then.
///
/// # Safety
/// All of `pages` is mapped, belongs to guest memory, and begins and ends with a page of the mapping, of `page_size` bytes.
unsafe fn give_back(pages: &Range<u64>, page_size: u64, is_file: bool) -> io::Result<()> {
    // The kernel knows what is mapped, and `vm-memory`'s traits do not: it is asked for what holds for shared mappings first, which it
    // refuses for others without having done anything.
    // SAFETY: the caller's. No address becomes invalid, and what is lost is the guest's, which is never referred to.
    let refused = match unsafe { advise(pages, libc::MADV_REMOVE) } {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    match refused.raw_os_error() {
        // Private, and of a file; unless it is shared with others and only this process may not write it: that is not the guest's to
        // change, and stays.
        // SAFETY: the caller's.
        Some(libc::EACCES) if is_file => match unsafe { is_writable(pages) } {
            // SAFETY: as above.
            true => unsafe { replace(pages) },
            false => Err(refused),
        },
        // Some of it is of none any more, for it was given back before, and the rest may be: each is found by itself.
        Some(libc::EINVAL) if is_file && pages.end - pages.start > page_size => {
            let middle = pages.start + (pages.end - pages.start) / page_size / 2 * page_size;
            // SAFETY: the caller's: both parts are whole pages.
            unsafe {
                give_back(&(pages.start..middle), page_size, is_file)?;
                give_back(&(middle..pages.end), page_size, is_file)
            }
        }
        // Private, and of none; or of the one that huge pages are in, which nobody else sees.
        // SAFETY: as above.
        Some(libc::EINVAL | libc::EACCES) => unsafe { advise(pages, libc::MADV_DONTNEED) },
        _ => Err(refused),
    }
}

/// # Safety
/// The advice must be one that all of `pages` can be given.
unsafe fn advise(pages: &Range<u64>, advice: libc::c_int) -> io::Result<()> {
    let len = (pages.end - pages.start) as usize;
    loop {
        // SAFETY: the caller's.
        if unsafe { libc::madvise(pages.start as *mut libc::c_void, len, advice) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether this process may write the first of `pages`. Its first bytes are changed then.
///
/// # Safety
/// It is mapped, and nobody needs what is in it.
unsafe fn is_writable(pages: &Range<u64>) -> bool {
    // What is mapped how, the kernel tells only as text, of all of it. But it writes where it is asked to, and says if it may not: here the
    // set of signals that are blocked, of which nothing is changed.
    const SET: usize = 8;
    // SAFETY: the kernel writes so many bytes at the address, which the caller has given up, or none.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            ptr::null::<u8>(),
            pages.start as *mut u8,
            SET,
        )
    };
    asked == 0
}

/// Maps zeros in the place of `pages`.
///
/// # Safety
/// All of `pages` is mapped for reading and writing, and belongs to guest memory.
unsafe fn replace(pages: &Range<u64>) -> io::Result<()> {
    let len = (pages.end - pages.start) as usize;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's: at each moment something is mapped there, and no more than these pages is replaced.
    let mapped = unsafe { libc::mmap(pages.start as *mut libc::c_void, len, protection, flags, -1, 0) };
    match ptr::eq(mapped, libc::MAP_FAILED) {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}
