//! What the host really has of it.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    sync::Arc,
};

use devisor::virtio::{
    balloon::{Balloon, BalloonOptions},
    reclaim::{Discarded, Madvise, Reclaim},
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::{
    DEFLATE, INFLATE, MUST_TELL_HOST, PAGE_REPORTING, REPORTING,
    both::{BOTH, COMMON, Guest, REQUEST},
    residence::{mapped, memfd, resident, rss},
    ring::{readable, writable},
    skip::skipped,
};

const MIB: u64 = 1 << 20;
const LEN: u64 = 64 * MIB;
/// Where the test's data is: rings and requests are below.
const DATA: u64 = MIB;

const PRIVATE: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
const SHARED_ANONYMOUS: libc::c_int = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

fn fill(memory: &GuestMemoryMmap, from: u64, len: u64) {
    let page = [0x5a; 4096];
    for address in (from..from + len).step_by(4096) {
        memory.write_slice(&page, GuestAddress(address)).unwrap();
    }
}

fn byte(memory: &GuestMemoryMmap, address: u64) -> u8 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

/// Gives 32 MiB of a full 64 by the balloon, and 8 MiB by reports. What the host has before and after each.
fn squeeze(memory: &Arc<GuestMemoryMmap>, measure: impl Fn() -> u64) -> Vec<u64> {
    let mut figures = Vec::new();
    for kind in BOTH {
        let balloon = Balloon::new(Madvise::new(Arc::clone(memory)), BalloonOptions::default()).unwrap();
        let features = COMMON | MUST_TELL_HOST | PAGE_REPORTING;
        let mut guest = Guest::start(kind, balloon, memory, features, &[INFLATE, DEFLATE, REPORTING]);
        // What the driver writes meanwhile is there already.
        fill(memory, 0x8_0000, DATA - 0x8_0000);
        guest.put(REQUEST, &0_u32.to_le_bytes());
        guest.run(DEFLATE, &[readable(REQUEST, 4)]);
        guest.run(INFLATE, &[readable(REQUEST, 4)]);
        guest.run(REPORTING, &[writable(REQUEST, 1)]);
        fill(memory, DATA, LEN - DATA);
        figures.push(measure());
        // Every other page, so that nothing is one range; 256 a request, as Linux gives them.
        let numbers: Vec<u32> = (0..LEN / 2 / 4096)
            .map(|n| (2 * n + DATA / 4096) as u32)
            .filter(|n| u64::from(*n) < LEN / 4096)
            .collect();
        let mut given = 0;
        for request in numbers.chunks(256) {
            let bytes: Vec<_> = request.iter().flat_map(|number| number.to_le_bytes()).collect();
            guest.put(REQUEST, &bytes);
            assert_eq!(guest.run(INFLATE, &[readable(REQUEST, bytes.len() as u32)]), 0);
            given += request.len() as u64 * 4096;
        }
        figures.push(measure());
        assert_eq!(
            figures[figures.len() - 2] - figures[figures.len() - 1],
            given,
            "{kind:?}"
        );
        assert_eq!(guest.with(|balloon| balloon.counters().given_back), given + 4096);
        // What was given reads as zeros; its neighbours are as they were.
        assert_eq!((byte(memory, DATA), byte(memory, DATA + 4096)), (0, 0x5a));
        assert_eq!(byte(memory, LEN - 1), 0x5a);

        // The guest takes a page back, and uses it.
        guest.put(REQUEST, &numbers[0].to_le_bytes());
        assert_eq!(guest.run(DEFLATE, &[readable(REQUEST, 4)]), 0);
        fill(memory, DATA, 4096);
        assert_eq!(byte(memory, DATA), 0x5a);

        fill(memory, DATA, LEN - DATA);
        let before = measure();
        for piece in 0..2 {
            assert_eq!(
                guest.run(REPORTING, &[writable(16 * MIB + piece * 4 * MIB, 4 << 20)]),
                0
            );
        }
        figures.push(measure());
        assert_eq!(before - measure(), 8 * MIB);
        assert_eq!(
            (
                byte(memory, 16 * MIB),
                byte(memory, 24 * MIB - 1),
                byte(memory, 24 * MIB)
            ),
            (0, 0, 0x5a)
        );
    }
    eprintln!(
        "resident, in MiB: {:?}",
        figures.iter().map(|bytes| bytes / MIB).collect::<Vec<_>>()
    );
    figures
}

#[test]
fn of_private_memory_the_host_has_as_much_less_as_was_given() {
    let memory = mapped(0, LEN, None, PRIVATE).unwrap();
    let figures = squeeze(&memory, || resident(&memory, DATA, LEN - DATA));
    assert_eq!(figures[0], LEN - DATA);
    // And what the kernel counts for the process.
    fill(&memory, DATA, LEN - DATA);
    let before = rss(&memory, 0);
    let done = Madvise::new(Arc::clone(&memory)).discard(32 * MIB, 16 * MIB).unwrap();
    assert_eq!(
        done,
        Discarded {
            bytes: 16 * MIB,
            outside: 0
        }
    );
    // Mappings beside it may have become one with it, and other tests are in those.
    assert!((before - rss(&memory, 0)).abs_diff(16 * MIB) < MIB);
}

#[test]
fn of_a_memfd_the_host_has_as_much_less_as_was_given_and_only_there() {
    let file = Arc::new(memfd(LEN + 16 * MIB, 0).unwrap());
    // Not at the beginning of its file.
    let offset = FileOffset::from_arc(Arc::clone(&file), 8 * MIB);
    let memory = mapped(0, LEN, Some(offset), libc::MAP_SHARED | libc::MAP_NORESERVE).unwrap();
    for at in [0, 8 * MIB - 4096, LEN + 8 * MIB, LEN + 16 * MIB - 4096] {
        file.write_all_at(&[0x77; 4096], at).unwrap();
    }
    let blocks = || file.metadata().unwrap().blocks() * 512;
    squeeze(&memory, blocks);
    squeeze(&memory, || resident(&memory, DATA, LEN - DATA));
    let mut bytes = [0; 4096];
    for at in [0, 8 * MIB - 4096, LEN + 8 * MIB, LEN + 16 * MIB - 4096] {
        file.read_exact_at(&mut bytes, at).unwrap();
        assert_eq!(bytes, [0x77; 4096], "beside the region");
    }
}

#[test]
fn of_shared_memory_without_a_file_the_host_has_as_much_less_too() {
    let memory = mapped(0, LEN, None, SHARED_ANONYMOUS).unwrap();
    squeeze(&memory, || resident(&memory, DATA, LEN - DATA));
}

#[test]
fn a_private_mapping_of_a_file_reads_as_zeros_and_the_file_is_as_it_was() {
    let path = std::env::temp_dir().join(format!("devisor-balloon-{}", std::process::id()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(&vec![0x33; 2 << 20]).unwrap();
    let file = Arc::new(file);
    let offset = FileOffset::from_arc(Arc::clone(&file), 0);
    let memory = mapped(0, 2 * MIB, Some(offset), libc::MAP_PRIVATE | libc::MAP_NORESERVE).unwrap();
    memory.write_slice(&[0x44; 4096], GuestAddress(0x5000)).unwrap();
    let reclaim = Madvise::new(Arc::clone(&memory));
    let done = reclaim.discard(0x4000, 0x4000).unwrap();
    assert_eq!(
        done,
        Discarded {
            bytes: 0x4000,
            outside: 0
        }
    );
    assert_eq!(resident(&memory, 0x4000, 0x4000), 0);
    for (address, value) in [(0x3fff, 0x33), (0x4000, 0), (0x5000, 0), (0x7fff, 0), (0x8000, 0x33)] {
        assert_eq!(byte(&memory, address), value, "{address:#x}");
    }
    // It can be written, and given again.
    fill(&memory, 0x4000, 0x1000);
    assert_eq!(byte(&memory, 0x4000), 0x5a);
    reclaim.discard(0x3000, 0x3000).unwrap();
    assert_eq!((byte(&memory, 0x3000), byte(&memory, 0x4000)), (0, 0));
    // What was given before may come first.
    fill(&memory, 0x7000, 0x1000);
    reclaim.discard(0x6000, 0x4000).unwrap();
    for (address, value) in [(0x6000, 0), (0x7000, 0), (0x8000, 0), (0x9fff, 0), (0xa000, 0x33)] {
        assert_eq!(byte(&memory, address), value, "{address:#x}");
    }
    let mut bytes = vec![0; 2 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0x33), "the file has changed");
}

#[test]
fn parts_of_pages_and_what_is_outside_are_kept() {
    let memory = mapped(0x10_0000, MIB, None, PRIVATE).unwrap();
    fill(&memory, 0x10_0000, MIB);
    let reclaim = Madvise::new(Arc::clone(&memory));
    let discard = |address, len| {
        let Discarded { bytes, outside } = reclaim.discard(address, len).unwrap();
        (bytes, outside)
    };
    assert_eq!(discard(0x11_0001, 0x1ffe), (0, 0));
    assert_eq!(discard(0x11_0800, 0x1000), (0, 0));
    assert_eq!(discard(0x11_0800, 0x1800), (0x1000, 0));
    assert_eq!(
        (
            byte(&memory, 0x11_0fff),
            byte(&memory, 0x11_1000),
            byte(&memory, 0x11_2000)
        ),
        (0x5a, 0, 0x5a)
    );
    assert_eq!(discard(0xf_f000, 0x2000), (0x1000, 0x1000));
    assert_eq!(discard(0x1f_f000, u64::MAX), (0x1000, u64::MAX - 0x1000));
    assert_eq!(discard(0, 0x1000), (0, 0x1000));
    assert_eq!(discard(u64::MAX, u64::MAX), (0, u64::MAX));
    assert_eq!(discard(0x12_0000, 0), (0, 0));

    let some = Madvise::new(Arc::clone(&memory))
        .within(0x18_0000..0x18_2800)
        .within(0..0x1000)
        .within(0x19_0000..0x1a_0000);
    let Discarded { bytes, outside } = some.discard(0x17_f000, 0x1_2000).unwrap();
    assert_eq!((bytes, outside), (0x2000 + 0x1000, 0x1_2000 - 0x2800 - 0x1000));
    assert_eq!((byte(&memory, 0x18_2000), byte(&memory, 0x18_f000)), (0x5a, 0x5a));
}

#[test]
fn memory_that_the_host_is_to_have_at_once_is_there() {
    let memory = mapped(0, 4 * MIB, None, PRIVATE).unwrap();
    Madvise::new(Arc::clone(&memory)).populate(MIB, MIB).unwrap();
    assert_eq!(resident(&memory, 0, 4 * MIB), 0);
    memory.write_slice(&[7; 16], GuestAddress(MIB)).unwrap();
    match Madvise::new(Arc::clone(&memory)).eager().populate(MIB, MIB) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            skipped("this kernel has no MADV_POPULATE_WRITE");
        }
        result => {
            result.unwrap();
            assert_eq!(resident(&memory, MIB, MIB), MIB);
            assert_eq!(byte(&memory, MIB), 7, "what was there stays");
            assert_eq!(resident(&memory, 2 * MIB, 2 * MIB), 0);
        }
    }
}

#[test]
fn huge_pages_go_whole_or_not_at_all() {
    const HUGE: u64 = 2 * MIB;
    let flags = libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    let memory =
        memfd(4 * HUGE, flags).and_then(|file| mapped(0, 4 * HUGE, Some(FileOffset::new(file, 0)), libc::MAP_SHARED));
    let memory = match memory {
        Ok(memory) => memory,
        Err(error) => return skipped(format!("no four free huge pages of 2 MiB: {error}")),
    };
    fill(&memory, 0, 4 * HUGE);
    let reclaim = Madvise::new(Arc::clone(&memory));
    assert_eq!(reclaim.granularity(HUGE), HUGE);
    assert_eq!(reclaim.discard(HUGE + 4096, HUGE - 4096).unwrap().bytes, 0);
    assert_eq!(reclaim.discard(HUGE - 4096, HUGE + 8192).unwrap().bytes, HUGE);
    assert_eq!(
        (byte(&memory, HUGE - 1), byte(&memory, HUGE), byte(&memory, 2 * HUGE)),
        (0x5a, 0, 0x5a)
    );
}

#[test]
fn huge_pages_without_a_file_are_as_large_as_they_are_said_to_be() {
    const HUGE: u64 = 2 * MIB;
    let flags = PRIVATE & !libc::MAP_NORESERVE | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    let memory = match mapped(0, 4 * HUGE, None, flags) {
        Ok(memory) => memory,
        Err(error) => return skipped(format!("no four free huge pages of 2 MiB: {error}")),
    };
    fill(&memory, 0, 4 * HUGE);
    let reclaim = Madvise::new(Arc::clone(&memory)).with_page_size(HUGE);
    match reclaim.discard(HUGE - 4096, HUGE + 8192) {
        Ok(done) => assert_eq!(done.bytes, HUGE),
        // Linux before 5.18.
        Err(error) => return skipped(format!("this kernel keeps private huge pages: {error}")),
    }
    assert_eq!(
        (byte(&memory, HUGE - 1), byte(&memory, HUGE), byte(&memory, 2 * HUGE)),
        (0x5a, 0, 0x5a)
    );
}

#[test]
fn what_the_kernel_refuses_is_an_error() {
    let memory = mapped(0, MIB, None, PRIVATE).unwrap();
    let host = memory.find_region_host();
    // SAFETY: the range is mapped.
    let locked = unsafe { libc::mlock(host.cast(), 4096) };
    if locked != 0 {
        return skipped(format!("no page can be locked: {}", io::Error::last_os_error()));
    }
    let reclaim = Madvise::new(Arc::clone(&memory));
    assert_eq!(reclaim.discard(0, 4096).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert_eq!(reclaim.discard(4096, 4096).unwrap().bytes, 4096);
}

trait Host {
    fn find_region_host(&self) -> *mut u8;
}

impl Host for GuestMemoryMmap {
    fn find_region_host(&self) -> *mut u8 {
        use vm_memory::GuestMemoryBackend;
        self.get_host_address(GuestAddress(0)).expect("memory")
    }
}

#[test]
fn a_file_that_others_share_and_this_process_only_reads_stays_as_it_is() {
    let file = memfd(2 * MIB, 0).unwrap();
    file.write_all_at(&[0x77; 0x4000], 0).unwrap();
    let at = GuestAddress(0);
    let reader = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let offset = FileOffset::new(reader, 0);
    let region = vm_memory::mmap::MmapRegionBuilder::new(2 * MIB as usize)
        .with_file_offset(offset)
        .with_mmap_prot(libc::PROT_READ)
        .with_mmap_flags(libc::MAP_SHARED)
        .build()
        .unwrap();
    let region = vm_memory::GuestRegionMmap::new(region, at).unwrap();
    let memory = Arc::new(GuestMemoryMmap::<()>::from_regions(vec![region]).unwrap());
    let refused = Madvise::new(Arc::clone(&memory)).discard(0, 0x4000);
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
    file.write_all_at(&[0x78], 0).unwrap();
    assert_eq!(byte(&memory, 0), 0x78, "it is still the file");
    assert_eq!(byte(&memory, 1), 0x77);
}
