//! A disk over a file in memory that is mapped.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    sync::Arc,
};

use devisor::virtio::block::{Block, BlockOptions, FileError, FileStorage, MappedStorage, Storage};
use vm_memory::VolatileSlice;

use crate::{host_file::Temporary, residence::memfd, skip::skipped, support::*};

type Disk = Driven<AtOnce>;

const SECTORS: usize = 64;
const LEN: usize = SECTORS * 512;

/// A file in memory with [`pattern`] in it.
fn file() -> File {
    let file = memfd(LEN as u64, libc::MFD_ALLOW_SEALING).unwrap();
    file.write_all_at(&pattern(LEN), 0).unwrap();
    file
}

/// The same file, open for reading alone.
fn for_reading(file: &File) -> File {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

fn mapped(file: File) -> Result<MappedStorage, FileError> {
    MappedStorage::new(FileStorage::new(file)?)
}

fn disk(storage: MappedStorage) -> Disk {
    let block = Block::new(storage, BlockOptions::default()).unwrap();
    Disk::from_block(block, Arc::new(Rigged::new(0)))
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn seal(file: &File, seals: libc::c_int) {
    // SAFETY: takes a descriptor and a number.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
}

#[test]
fn what_the_guest_writes_is_in_the_file_and_what_others_write_is_read() {
    let file = file();
    seal(&file, libc::F_SEAL_SHRINK);
    let mut disk = disk(mapped(file.try_clone().unwrap()).unwrap());
    let mut expected = pattern(LEN);
    assert_eq!(disk.read(0, LEN), (OK, expected.clone()));
    assert_eq!(disk.write(3, &[0xa5; 5 * 512]), OK);
    expected[3 * 512..8 * 512].fill(0xa5);
    assert_eq!(disk.request(T_WRITE_ZEROES, 0, &segment(10, 7, 0), 0).0, OK);
    expected[10 * 512..17 * 512].fill(0);
    assert_eq!(disk.request(T_FLUSH, 0, &[], 0).0, OK);
    assert_eq!(contents(&file), expected);
    file.write_all_at(&[0x5a; 700], 20_001).unwrap();
    expected[20_001..20_701].fill(0x5a);
    // Each buffer of its own length, none of them a sector.
    let (status, read) = disk.request_cut(T_IN, 0, &[], LEN, &[16, 1, 511, 7000, 9, 20_000]);
    assert_eq!((status, read), (OK, expected.clone()));
    assert_eq!(disk.read(SECTORS as u64, 512).0, IOERR, "past the end");
    assert_eq!(disk.write(SECTORS as u64 - 1, &[1; 1024]), IOERR, "across the end");
    assert_eq!(contents(&file), expected);
}

#[test]
fn space_is_not_given_back_as_it_might_not_be_had_again() {
    let file = memfd(LEN as u64, 0).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 0, "all of it is a hole");
    let mut disk = disk(mapped(file.try_clone().unwrap()).unwrap());
    let all = LEN as u64 / 512;
    assert_eq!(file.metadata().unwrap().blocks(), all);
    assert_eq!(disk.offered() & F_DISCARD, 0);
    assert_eq!(disk.read(0, LEN), (OK, vec![0; LEN]));
    assert_eq!(disk.write(0, &pattern(LEN)), OK);
    assert_eq!(disk.request(T_WRITE_ZEROES, 0, &segment(0, SECTORS as u32, 1), 0).0, OK);
    assert_eq!(contents(&file), vec![0; LEN]);
    assert_eq!(file.metadata().unwrap().blocks(), all);
}

#[test]
fn one_that_is_open_for_reading_alone_is_read_and_must_have_no_holes() {
    let full = file();
    let mut disk = disk(mapped(for_reading(&full)).unwrap());
    assert_ne!(disk.offered() & F_RO, 0);
    assert_eq!(disk.read(0, LEN), (OK, pattern(LEN)));
    assert_eq!(disk.write(0, &[1; 512]), IOERR);
    // Not by way of the storage either.
    let storage = mapped(for_reading(&full)).unwrap();
    let mut bytes = [1; 8];
    let refused = storage.write_at(0, &[VolatileSlice::from(&mut bytes[..])]);
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(contents(&full), pattern(LEN));
    for (written, ok) in [(0, false), (LEN / 2, false), (LEN, true)] {
        let sparse = memfd(LEN as u64, 0).unwrap();
        sparse.write_all_at(&pattern(written), 0).unwrap();
        let made = mapped(for_reading(&sparse));
        assert!(
            matches!((&made, ok), (Ok(_), true) | (Err(FileError::Holes), false)),
            "{written}: {made:?}"
        );
    }
}

#[test]
fn a_transfer_ends_where_the_file_did_when_it_was_mapped() {
    let file = file();
    let storage = mapped(file.try_clone().unwrap()).unwrap();
    // It grows: nobody was told.
    file.set_len(2 * LEN as u64).unwrap();
    assert_eq!(storage.capacity().unwrap(), LEN as u64);
    for (offset, expected) in [(LEN - 700, 700), (LEN - 1, 1), (LEN, 0), (LEN + 1, 0), (usize::MAX, 0)] {
        let mut bytes = vec![0; 1000];
        let (one, two) = bytes.split_at_mut(300);
        let buffers = [VolatileSlice::from(one), VolatileSlice::from(two)];
        assert_eq!(storage.read_at(offset as u64, &buffers).unwrap(), expected);
        let end = offset.min(LEN)..offset.min(LEN) + expected;
        assert_eq!(bytes[..expected], pattern(LEN)[end]);
        assert_eq!(bytes[expected..], vec![0; 1000 - expected]);
        let buffers = [VolatileSlice::from(&mut bytes[..])];
        assert_eq!(storage.write_at(offset as u64, &buffers).unwrap(), expected);
    }
    assert_eq!(contents(&file), pattern(LEN));
    let empty = mapped(memfd(0, 0).unwrap()).unwrap();
    assert_eq!(empty.capacity().unwrap(), 0);
    let mut bytes = [7; 8];
    assert_eq!(empty.read_at(0, &[VolatileSlice::from(&mut bytes[..])]).unwrap(), 0);
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let file = file();
    seal(&file, libc::F_SEAL_WRITE);
    let sealed = mapped(file.try_clone().unwrap());
    assert!(
        matches!(&sealed, Err(FileError::Io(error)) if error.raw_os_error() == Some(libc::EPERM)),
        "{sealed:?}"
    );
    assert!(mapped(for_reading(&file)).is_ok(), "to be read");
    // Beside the program, which is on a disk as a rule.
    let program = std::env::current_exe().unwrap();
    let on_disk = Temporary::within(program.parent().unwrap_or(Path::new(".")), &[0; 4096]).unwrap();
    match mapped(File::open(&on_disk).unwrap()) {
        Ok(_) => skipped("the folder of tests is in memory"),
        refused => assert!(matches!(refused, Err(FileError::NotInMemory)), "{refused:?}"),
    }
}
