//! Files and block devices of the host. What this machine cannot do is skipped, and said.

#[path = "../../../../../tests/support/host_file.rs"]
mod host_file;
#[path = "../../../../../tests/support/skip.rs"]
mod skip;

use std::{
    fs,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    process::Command,
};

use super::*;
use crate::virtio::block::storage::transfer;
use host_file::{LoopDevice, Temporary};
use skip::skipped;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8 + 1).collect()
}

fn read(storage: &dyn Storage, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0xee; len];
    let slice = VolatileSlice::from(&mut data[..]);
    transfer(&[slice], offset, |offset, rest| storage.read_at(offset, rest)).1?;
    Ok(data)
}

#[test]
fn data_goes_to_its_place_and_comes_from_there() {
    let file = Temporary::new(&pattern(4096));
    let storage = FileStorage::open(&file).unwrap();
    assert_eq!(storage.capacity().unwrap(), 4096);
    let (mut a, mut b) = ([1_u8; 512], [2_u8; 1024]);
    let buffers = [VolatileSlice::from(&mut a[..]), VolatileSlice::from(&mut b[..])];
    assert_eq!(storage.write_at(512, &buffers).unwrap(), 1536);
    storage.flush().unwrap();
    let mut expected = pattern(4096);
    expected[512..1024].fill(1);
    expected[1024..2048].fill(2);
    assert_eq!(file.contents(), expected);
    assert_eq!(read(&storage, 500, 1000).unwrap(), expected[500..1500]);
}

#[test]
fn more_buffers_than_one_call_takes_are_moved_in_several() {
    let file = Temporary::new(&pattern(8192));
    let storage = FileStorage::open(&file).unwrap();
    let mut data = vec![0_u8; 3000];
    let buffers: Vec<_> = data.chunks_mut(1).map(VolatileSlice::from).collect();
    assert_eq!(storage.read_at(100, &buffers).unwrap(), IOV_MAX);
    let (moved, result) = transfer(&buffers, 100, |offset, rest| storage.read_at(offset, rest));
    assert_eq!((moved, result.is_ok()), (3000, true));
    drop(buffers);
    assert_eq!(data, pattern(8192)[100..3100]);
    data.fill(0xaa);
    let buffers: Vec<_> = data.chunks_mut(1).map(VolatileSlice::from).collect();
    transfer(&buffers, 0, |offset, rest| storage.write_at(offset, rest))
        .1
        .unwrap();
    assert_eq!(file.contents()[..3000], [0xaa; 3000]);
    assert_eq!(file.contents()[3000..], pattern(8192)[3000..]);
}

#[test]
fn a_file_that_was_cut_is_an_error_where_it_ends() {
    let file = Temporary::new(&pattern(4096));
    let storage = FileStorage::open(&file).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(1024)
        .unwrap();
    assert_eq!(read(&storage, 512, 512).unwrap(), pattern(4096)[512..1024]);
    let error = read(&storage, 512, 1024).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_write_that_the_host_cuts_short_is_continued_up_to_the_refusal() {
    // A file may be at most this long: the kernel writes up to the limit, and refuses what is beyond.
    const TEST: &str = "a_write_that_the_host_cuts_short_is_continued_up_to_the_refusal";
    if std::env::var_os("DEVISOR_FSIZE_CHILD").is_none() {
        // The limit is one of the process, so this is done in a process of its own.
        let name = format!("virtio::block::storage::file::tests::{TEST}");
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([&name, "--exact"]).env("DEVISOR_FSIZE_CHILD", "1");
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        return;
    }
    let file = Temporary::new(&[0; 4096]);
    let storage = FileStorage::open(&file).unwrap();
    let limit = libc::rlimit {
        rlim_cur: 5000,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: both change this process alone, which is here for that.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let mut data = vec![7_u8; 2048];
    let slice = VolatileSlice::from(&mut data[..]);
    let mut calls = Vec::new();
    let (moved, result) = transfer(&[slice], 4096, |offset, rest| {
        let result = storage.write_at(offset, rest);
        calls.push((offset, result.as_ref().ok().copied()));
        result
    });
    assert_eq!(calls, [(4096, Some(904)), (5000, None)]);
    assert_eq!(moved, 904);
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EFBIG));
    assert_eq!(file.contents()[4096..], [7; 904]);
}

#[test]
fn zeros_are_zeros_and_nothing_else_is() {
    let file = Temporary::new(&pattern(1 << 20));
    let storage = FileStorage::open(&file).unwrap();
    let mut expected = pattern(1 << 20);
    // Pages and parts of them, kept and given back, longer than what is written at a time.
    for (offset, len, may_unmap) in [
        (512, 512, false),
        (8192, 4096, true),
        (65536 - 512, 200 * 1024, false),
        (512 * 1024 + 512, 300 * 1024, true),
    ] {
        storage.write_zeroes(offset, len, may_unmap).unwrap();
        expected[offset as usize..(offset + len) as usize].fill(0);
        assert_eq!(file.contents(), expected);
    }
}

#[test]
fn zeros_that_are_written_are_as_many_as_were_asked_for() {
    let file = Temporary::new(&pattern(1 << 18));
    let storage = FileStorage::open(&file).unwrap();
    write_zeros(&storage, 1000, 150_000).unwrap();
    let mut expected = pattern(1 << 18);
    expected[1000..151_000].fill(0);
    assert_eq!(file.contents(), expected);
}

#[test]
fn discard_gives_space_back_and_keeps_the_length() {
    let file = Temporary::new(&pattern(1 << 20));
    let storage = FileStorage::open(&file).unwrap();
    storage.flush().unwrap();
    assert!(storage.abilities().discard || !cfg!(target_os = "linux"));
    let before = fs::metadata(&file).unwrap().blocks();
    storage.discard(64 * 1024, 512 * 1024).unwrap();
    let contents = file.contents();
    assert_eq!(contents.len(), 1 << 20);
    assert_eq!(contents[..64 * 1024], pattern(1 << 20)[..64 * 1024]);
    assert_eq!(contents[576 * 1024..], pattern(1 << 20)[576 * 1024..]);
    let after = fs::metadata(&file).unwrap().blocks();
    if if_supported(sys::punch_hole(&storage.file, 0, 4096)).is_none() {
        return skipped("no holes in files here");
    }
    assert!(after + 900 < before, "{before} blocks before, {after} after");
}

#[test]
fn what_the_host_does_not_know_is_another_ways_turn() {
    let refused = |code| if_supported(Err(io::Error::from_raw_os_error(code)));
    assert!(refused(libc::EOPNOTSUPP).is_none());
    assert!(refused(libc::ENOSYS).is_none());
    assert!(refused(libc::ENOTTY).is_none());
    for name in [libc::EINVAL, libc::EPERM, libc::EACCES, libc::ENODEV, libc::EBUSY] {
        assert!(refused(name).is_none(), "{name}");
    }
    for name in [
        libc::EIO,
        libc::ENOSPC,
        libc::EDQUOT,
        libc::EFBIG,
        libc::EBADF,
        libc::EROFS,
    ] {
        assert!(matches!(refused(name), Some(Err(_))), "{name}");
    }
    // No refusal of the host: it was not asked.
    assert!(matches!(
        if_supported(Err(io::ErrorKind::InvalidInput.into())),
        Some(Err(_))
    ));
    assert!(matches!(if_supported(Ok(())), Some(Ok(()))));
}

#[test]
fn a_file_that_is_open_for_reading_is_read_only() {
    let file = Temporary::new(&pattern(512));
    let storage = FileStorage::open_read_only(&file).unwrap();
    let read_only = Abilities {
        read_only: true,
        ..Abilities::default()
    };
    assert_eq!(storage.abilities(), read_only);
    assert_eq!(read(&storage, 0, 512).unwrap(), pattern(512));
    storage.flush().unwrap();
    let mut data = [0_u8; 512];
    assert!(storage.write_at(0, &[VolatileSlice::from(&mut data[..])]).is_err());
    assert!(!FileStorage::open(&file).unwrap().abilities().read_only);
}

#[test]
fn a_device_that_refuses_writes_is_read_only_though_it_is_open_for_writing() {
    let file = Temporary::new(&pattern(4096));
    let device = match LoopDevice::read_only(&file) {
        Ok(device) => device,
        Err(why) => return skipped(why),
    };
    let storage = FileStorage::open(&device).unwrap();
    let read_only = Abilities {
        read_only: true,
        ..Abilities::default()
    };
    assert_eq!(storage.abilities(), read_only);
    assert_eq!(read(&storage, 0, 4096).unwrap(), pattern(4096));
}

#[test]
fn files_without_sectors_or_in_the_wrong_mode_are_refused() {
    let file = Temporary::new(&[0; 512]);
    let open = |options: &mut OpenOptions| FileStorage::new(options.open(&file).unwrap());
    assert!(matches!(
        open(OpenOptions::new().write(true)),
        Err(FileError::WriteOnly)
    ));
    let mut appending = OpenOptions::new();
    assert!(matches!(
        open(appending.read(true).append(true)),
        Err(FileError::Append)
    ));
    assert!(matches!(FileStorage::open_read_only("/"), Err(FileError::Kind)));
    assert!(matches!(FileStorage::open("/dev/null"), Err(FileError::Kind)));
    assert!(matches!(FileStorage::open("/no/such/file"), Err(FileError::Io(_))));
}

/// Where files have a cache to go past: beside this program, if temporary ones are in memory.
pub fn folder_past_memory() -> PathBuf {
    let temporary = std::env::temp_dir();
    match sys::is_in_memory(&File::open(&temporary).unwrap()) {
        false => temporary,
        true => std::env::current_exe().unwrap().with_file_name(""),
    }
}

/// What is open for direct I/O; `None` and a word where it cannot be.
fn open_direct(path: impl AsRef<Path>, writable: bool) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(writable).custom_flags(sys::O_DIRECT);
    match options.open(&path) {
        Ok(file) if sys::O_DIRECT != 0 => Some(file),
        Ok(_) => {
            skipped("no direct I/O on this system");
            None
        }
        Err(why) => {
            skipped(format!("no direct I/O in {}: {why}", path.as_ref().display()));
            None
        }
    }
}

/// Reads and writes all over a storage of 1 MiB of [`pattern`], aligned and not.
fn exercise(storage: &FileStorage) -> Vec<u8> {
    let mut expected = pattern(1 << 20);
    let mut memory = vec![0; 300_000];
    let aligned = (memory.as_ptr() as usize).next_multiple_of(4096) - memory.as_ptr() as usize;
    let mut fill = 100;
    for at in [aligned, aligned + 512, aligned + 1] {
        for (offset, len) in [
            (0, 4096),
            (8192, 131_072),
            (512, 512),
            (4608, 512),
            (12_800, 200_192),
            (1_048_064, 512),
        ] {
            fill += 1;
            let data = &mut memory[at..at + len];
            data.fill(fill);
            // In two buffers, of which the second need not be aligned if the first is.
            let (one, two) = data.split_at_mut(len / 2);
            let buffers = [VolatileSlice::from(one), VolatileSlice::from(two)];
            let (moved, result) = transfer(&buffers, offset as u64, |offset, rest| storage.write_at(offset, rest));
            assert!(result.is_ok(), "{len} at {offset}: {result:?}");
            assert_eq!(moved, len as u64);
            expected[offset..offset + len].fill(fill);
            assert_eq!(
                read(storage, offset as u64, len).unwrap(),
                expected[offset..offset + len]
            );
        }
    }
    for (offset, len, may_unmap) in [(4608, 512, false), (19_968, 9216, true), (65_536, 65_536, false)] {
        storage.write_zeroes(offset, len, may_unmap).unwrap();
        expected[offset as usize..(offset + len) as usize].fill(0);
    }
    storage.flush().unwrap();
    assert_eq!(read(storage, 0, 1 << 20).unwrap(), expected);
    // In memory that is not aligned, from a place that is not.
    assert_eq!(read(storage, 1000, 100_001).unwrap(), expected[1000..101_001]);
    storage.discard(9 * 512, 512).unwrap();
    expected
}

#[test]
fn direct_io_takes_any_buffer_at_any_offset() {
    for folder in [&*std::env::temp_dir(), Path::new("/dev/shm")] {
        let Ok(file) = Temporary::within(folder, &pattern(1 << 20)) else {
            skipped(format!("no files in {}", folder.display()));
            continue;
        };
        let Some(direct) = open_direct(&file, true) else {
            continue;
        };
        let storage = FileStorage::new(direct).unwrap();
        assert_ne!(storage.direct.is_some(), sys::is_in_memory(storage.file()));
        assert_eq!(storage.limits().logical_block, 512, "what the image counts in");
        let expected = exercise(&storage);
        let mut contents = file.contents();
        // The discarded sector is undefined.
        contents[4608..5120].fill(0);
        assert_eq!(contents, expected);
    }
}

#[test]
fn direct_io_in_parts_of_blocks_leaves_the_rest_of_them() {
    let file = Temporary::new(&pattern(1 << 20));
    for block_size in [512, 4096] {
        fs::write(&file, pattern(1 << 20)).unwrap();
        let device = match LoopDevice::new(&file, block_size) {
            Ok(device) => device,
            Err(why) => return skipped(why),
        };
        let Some(direct) = open_direct(&device, true) else {
            return;
        };
        let storage = FileStorage::new(direct).unwrap();
        assert_eq!(storage.direct.as_ref().map(Direct::block), Some(block_size as usize));
        exercise(&storage);
    }
}

#[test]
fn direct_io_on_a_file_whose_last_block_is_not_whole_is_for_reading() {
    let file = Temporary::within(&folder_past_memory(), &pattern(4096 + 100)).unwrap();
    let (Some(writable), Some(readable)) = (open_direct(&file, true), open_direct(&file, false)) else {
        return;
    };
    let refused = FileStorage::new(writable);
    assert!(
        matches!(refused, Err(FileError::DirectLength { len: 4196, .. })),
        "{refused:?}"
    );
    let storage = FileStorage::new(readable).unwrap();
    assert_eq!(storage.capacity().unwrap(), 4196);
    assert_eq!(read(&storage, 4000, 196).unwrap(), pattern(4196)[4000..]);

    // One that grows to such a length later keeps it.
    fs::write(&file, pattern(8192)).unwrap();
    let storage = FileStorage::new(open_direct(&file, true).unwrap()).unwrap();
    fs::write(&file, pattern(12_288 + 100)).unwrap();
    assert_eq!(storage.capacity().unwrap(), 12_288);
}

#[test]
fn the_whole_blocks_of_a_range_are_given_back() {
    let file = Temporary::new(&pattern(1 << 20));
    let device = match LoopDevice::new(&file, 4096) {
        Ok(device) => device,
        Err(why) => return skipped(why),
    };
    let holes = File::options().write(true).open(&file).unwrap();
    if if_supported(sys::punch_hole(&holes, 4096, 4096)).is_none() {
        return skipped("no holes in files here");
    }
    let storage = FileStorage::open(&device).unwrap();
    type Change = fn(&FileStorage, u64, u64) -> io::Result<()>;
    let changes: [Change; 2] = [
        |storage, offset, len| storage.discard(offset, len),
        |storage, offset, len| storage.write_zeroes(offset, len, true),
    ];
    for change in changes {
        let mut data = pattern(1 << 20);
        let slice = VolatileSlice::from(&mut data[..]);
        transfer(&[slice], 0, |offset, rest| storage.write_at(offset, rest))
            .1
            .unwrap();
        storage.flush().unwrap();
        let before = fs::metadata(&file).unwrap().blocks();
        // All but a sector at each end, which are parts of blocks.
        change(&storage, 512, (1 << 20) - 1024).unwrap();
        storage.flush().unwrap();
        let after = fs::metadata(&file).unwrap().blocks();
        assert!(after + 2000 < before, "{before} blocks before, {after} after");
        assert_eq!(read(&storage, 0, 512).unwrap(), pattern(512));
        assert_eq!(
            read(&storage, (1 << 20) - 512, 512).unwrap(),
            pattern(1 << 20)[(1 << 20) - 512..]
        );
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_limits_are_those_of_the_host() {
    let file = Temporary::new(&pattern(1 << 20));
    let block = file_limits(fs::metadata(&file).unwrap().blksize());
    assert_eq!(FileStorage::open(&file).unwrap().limits(), block);
    assert_eq!(block.logical_block, 512);
    assert!(block.discard_granularity >= 512);
    // What is no block size is not told.
    for odd in [0, 256, 3000, 1 << 32] {
        assert_eq!(file_limits(odd), Limits::default());
    }
    for block_size in [512, 4096] {
        let device = match LoopDevice::new(&file, block_size) {
            Ok(device) => device,
            Err(why) => return skipped(why),
        };
        let limits = FileStorage::open(&device).unwrap().limits();
        assert_eq!((limits.logical_block, limits.physical_block), (block_size, block_size));
        assert_eq!((limits.alignment_offset, limits.minimum_io), (0, block_size));
        assert!(limits.discard_granularity >= block_size);
    }
}

#[test]
fn offsets_that_the_host_cannot_have_are_errors() {
    let file = Temporary::new(&[0; 512]);
    let storage = FileStorage::open(&file).unwrap();
    assert!(read(&storage, u64::MAX - 511, 512).is_err());
    assert!(storage.write_zeroes(u64::MAX - 511, 512, false).is_err());
    // A discard that does nothing, as elsewhere, succeeds.
    assert_eq!(storage.discard(1 << 63, 512).is_err(), cfg!(target_os = "linux"));
}

#[test]
#[cfg(target_os = "linux")]
fn a_block_device_is_a_storage() {
    let file = Temporary::new(&pattern(1 << 20));
    let device = match LoopDevice::new(&file, 512) {
        Ok(device) => device,
        Err(why) => return skipped(why),
    };
    let storage = match FileStorage::open(&device) {
        Ok(storage) => storage,
        Err(why) => return skipped(why),
    };
    assert_eq!(storage.kind, Kind::BlockDevice);
    assert_eq!(storage.capacity().unwrap(), 1 << 20);
    let mut expected = pattern(1 << 20);
    assert_eq!(read(&storage, 0, 1 << 20).unwrap(), expected);

    let mut data = [9_u8; 1024];
    let written = storage.write_at(512, &[VolatileSlice::from(&mut data[..])]);
    assert_eq!(written.unwrap(), 1024);
    expected[512..1536].fill(9);
    for (offset, may_unmap) in [(4096, false), (16384, true)] {
        storage.write_zeroes(offset, 8192, may_unmap).unwrap();
        expected[offset as usize..][..8192].fill(0);
    }
    storage.flush().unwrap();
    assert_eq!(read(&storage, 0, 1 << 20).unwrap(), expected);
    assert_eq!(file.contents(), expected);

    // The device's own calls by themselves, whichever of them was used above.
    sys::zero_device(&storage.file, 65536, 65536).unwrap();
    expected[65536..131_072].fill(0);
    assert_eq!(read(&storage, 0, 1 << 20).unwrap(), expected);
    // A loop device discards if its file can have holes.
    let holes = FileStorage::open(Temporary::new(&[1; 4096])).unwrap();
    let holes = if_supported(sys::punch_hole(&holes.file, 0, 4096));
    match holes {
        Some(_) => {
            sys::discard_device(&storage.file, 262_144, 65536).unwrap();
            expected[262_144..327_680].fill(0);
        }
        None => skipped("no holes in files here, so no discard"),
    }
    storage.discard(524_288, 65536).unwrap();
    let untouched = [0..524_288, 589_824..1 << 20];
    let contents = read(&storage, 0, 1 << 20).unwrap();
    for range in untouched {
        assert_eq!(contents[range.clone()], expected[range]);
    }

    let read_only = FileStorage::open_read_only(&device).unwrap();
    assert!(read_only.abilities().read_only);
    assert_eq!(read_only.capacity().unwrap(), 1 << 20);
}
