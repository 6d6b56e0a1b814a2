//! How much of a mapping is in the host's memory.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{
    fs::{self, File},
    io,
    os::fd::FromRawFd,
    sync::Arc,
};

use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    mmap::MmapRegionBuilder,
};

/// Bytes of guest memory from `address` on that are resident, by `mincore(2)`: pages of 4096 bytes.
pub fn resident(memory: &GuestMemoryMmap, address: u64, len: u64) -> u64 {
    let host = memory.get_host_address(GuestAddress(address)).expect("memory");
    let mut pages = vec![0_u8; len.div_ceil(4096) as usize];
    // SAFETY: the range is mapped, and there is a byte for each of its pages.
    let result = unsafe { libc::mincore(host.cast(), len as usize, pages.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    pages.iter().filter(|&&page| page & 1 != 0).count() as u64 * 4096
}

/// The `Rss` of the mapping in which `address` is, as /proc/self/smaps has it, in bytes. Of several mappings that follow each other, all.
pub fn rss(memory: &GuestMemoryMmap, address: u64) -> u64 {
    let region = memory.find_region(GuestAddress(address)).expect("memory");
    let first = region.as_ptr() as u64;
    let last = first + region.len();
    let mut inside = false;
    let mut bytes = 0;
    for line in fs::read_to_string("/proc/self/smaps").expect("Linux").lines() {
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        if let Some((start, end)) = name.split_once('-')
            && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            inside = start < last && end > first;
        } else if inside && name == "Rss:" {
            let kilobytes: u64 = words.next().and_then(|number| number.parse().ok()).expect("a number");
            bytes += kilobytes * 1024;
        }
    }
    bytes
}

/// A file in memory alone.
pub fn memfd(len: u64, flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a C string.
    let descriptor = unsafe { libc::memfd_create(c"devisor".as_ptr(), flags | libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made and is nobody else's.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(len)?;
    Ok(file)
}

/// Guest memory at `base`, mapped in this way.
pub fn mapped(base: u64, len: u64, file: Option<FileOffset>, flags: libc::c_int) -> io::Result<Arc<GuestMemoryMmap>> {
    let mut builder = MmapRegionBuilder::new(len as usize)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags);
    if let Some(file) = file {
        builder = builder.with_file_offset(file);
    }
    let region = builder.build().map_err(io::Error::other)?;
    let region = GuestRegionMmap::new(region, GuestAddress(base)).expect("within the address space");
    Ok(Arc::new(
        GuestMemoryMmap::from_regions(vec![region]).expect("one region"),
    ))
}
