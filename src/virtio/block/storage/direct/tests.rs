//! A host that is as strict as one can be, and what goes through the bridge to it.

use std::{sync::Arc, thread};

use proptest::prelude::*;

use super::*;
use crate::virtio::block::{MemoryStorage, Storage};

const BLOCK: usize = 4096;
const MEMORY: usize = 512;

/// Refuses what is not aligned, as the kernel does.
struct Strict {
    data: MemoryStorage,
    direct: Direct,
    /// Bytes that a transfer moves at most, a number of blocks.
    at_most: usize,
}

impl Strict {
    fn new(len: usize) -> Self {
        Self {
            data: pattern(len).into(),
            direct: Direct::new(BLOCK, MEMORY),
            at_most: usize::MAX,
        }
    }

    fn checked<'a>(&self, offset: u64, buffers: &[VolatileSlice<'a>]) -> io::Result<Vec<VolatileSlice<'a>>> {
        // Others get their turn between the steps of a bridged write.
        thread::yield_now();
        let aligned = |buffer: &VolatileSlice<'_>| {
            let address = buffer.ptr_guard().as_ptr() as usize;
            address.is_multiple_of(MEMORY) && buffer.len().is_multiple_of(BLOCK)
        };
        if !offset.is_multiple_of(BLOCK as u64) || !buffers.iter().all(aligned) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut left = self.at_most;
        let cut = buffers.iter().map(|buffer| {
            let len = buffer.len().min(left);
            left -= len;
            buffer.subslice(0, len).expect("a part")
        });
        Ok(cut.collect())
    }

    fn raw_read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.data.read_at(offset, &self.checked(offset, buffers)?)
    }

    fn raw_write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.data.write_at(offset, &self.checked(offset, buffers)?)
    }

    /// All of it, as the device does. Bytes that were moved, and what ended it.
    fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> (u64, io::Result<()>) {
        transfer(buffers, offset, |offset, rest| {
            self.direct.read(offset, rest, |offset, buffers: &[VolatileSlice<'_>]| {
                self.raw_read(offset, buffers)
            })
        })
    }

    fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> (u64, io::Result<()>) {
        transfer(buffers, offset, |offset, rest| {
            let read = |offset, buffers: &[VolatileSlice<'_>]| self.raw_read(offset, buffers);
            let write = |offset, buffers: &[VolatileSlice<'_>]| self.raw_write(offset, buffers);
            self.direct.write(offset, rest, read, write)
        })
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8 + 1).collect()
}

fn slices<'a>(memory: &'a mut Aligned, cuts: &[(usize, usize)]) -> Vec<VolatileSlice<'a>> {
    let all = VolatileSlice::from(memory.bytes());
    cuts.iter()
        .map(|&(at, len)| all.subslice(at, len).expect("within the memory"))
        .collect()
}

proptest! {
    #[test]
    fn any_transfer_does_what_it_does_on_a_host_that_demands_nothing(
        transfers in prop::collection::vec(
            (
                any::<bool>(),
                prop_oneof![(0..80_u64).prop_map(|sector| sector * 512), (0..10_u64).prop_map(|block| block * 4096), 0..40_000_u64],
                // Gaps before the buffers, and their lengths.
                prop::collection::vec(
                    (prop_oneof![Just(0), Just(512), 0..5000_usize], prop_oneof![Just(4096), Just(512), 0..9000_usize, Just(70_000)]),
                    0..5,
                ),
            ),
            1..8,
        ),
        at_most in prop_oneof![Just(usize::MAX), Just(4096), Just(12_288)],
    ) {
        const LEN: usize = 512 * 1024;
        let strict = Strict { at_most, ..Strict::new(LEN) };
        let mut expected = pattern(LEN);
        for (round, (is_write, offset, buffers)) in transfers.into_iter().enumerate() {
            let mut at = 0;
            let cuts: Vec<_> = buffers.iter().map(|&(gap, len)| {
                at += gap + len;
                (at - len, len)
            }).collect();
            let total: usize = buffers.iter().map(|&(_, len)| len).sum();
            let mut memory = Aligned::new(at, 4096);
            for byte in memory.bytes() {
                *byte = 100 + round as u8;
            }
            let before = memory.bytes().to_vec();
            let place = offset as usize..offset as usize + total;
            let buffers = slices(&mut memory, &cuts);
            let (moved, result) = if is_write { strict.write(offset, &buffers) } else { strict.read(offset, &buffers) };
            drop(buffers);
            prop_assert!(result.is_ok(), "{result:?}");
            prop_assert_eq!(moved, total as u64);
            let mut seen = before;
            if is_write {
                expected[place].fill(100 + round as u8);
            } else {
                let mut rest = &expected[place];
                for (at, len) in cuts {
                    seen[at..at + len].copy_from_slice(&rest[..len]);
                    rest = &rest[len..];
                }
            }
            prop_assert_eq!(memory.bytes(), &seen[..]);
            prop_assert_eq!(strict.data.contents(), &expected[..]);
        }
    }
}

#[test]
fn what_is_aligned_goes_straight_and_what_follows_it_does_not() {
    let strict = Strict::new(1 << 20);
    let mut memory = Aligned::new(1 << 20, 4096);
    let buffers = slices(
        &mut memory,
        &[(512, 8192), (0, 0), (16384, 300_000 / BLOCK * BLOCK), (400_000, 4096)],
    );
    let direct = &strict.direct;
    let read = |offset, buffers: &[VolatileSlice<'_>]| strict.raw_read(offset, buffers);
    let straight = 8192 + 300_000 / BLOCK * BLOCK;
    assert_eq!(direct.read(4096, &buffers, read).unwrap(), straight);
    // The last one, and one at an offset that is not aligned, are bounced; never more than 64 KiB at once.
    assert_eq!(direct.read(4096, &buffers[3..], read).unwrap(), 4096);
    assert_eq!(direct.read(512, &buffers, read).unwrap(), BOUNCE - 512);
}

#[test]
fn writes_to_parts_of_the_same_blocks_lose_nothing() {
    let strict = Arc::new(Strict::new(4 * BLOCK));
    // Eight threads, each with a sector of its own in every block; and one that writes a whole block of its own.
    let parts = (0..8_u8).map(|part| {
        let strict = Arc::clone(&strict);
        thread::spawn(move || {
            for round in 0..200_u8 {
                for block in 0..3 {
                    let mut data = [round ^ part; 512];
                    let offset = block * BLOCK as u64 + u64::from(part) * 512;
                    strict.write(offset, &[VolatileSlice::from(&mut data[..])]).1.unwrap();
                    let mut seen = [0; 512];
                    strict.read(offset, &[VolatileSlice::from(&mut seen[..])]).1.unwrap();
                    assert_eq!(seen, data, "part {part} of block {block} in round {round}");
                }
            }
        })
    });
    for thread in parts.collect::<Vec<_>>() {
        thread.join().unwrap();
    }
    for part in 0..8 {
        assert_eq!(strict.data.contents()[part * 512..][..512], [199 ^ part as u8; 512]);
    }
}

#[test]
fn a_whole_block_that_is_written_meanwhile_is_not_undone() {
    let strict = Arc::new(Strict::new(BLOCK));
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let part = thread::spawn({
        let (strict, done) = (Arc::clone(&strict), Arc::clone(&done));
        move || {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                strict.write(0, &[VolatileSlice::from(&mut [0xff; 512][..])]).1.unwrap();
            }
        }
    });
    let mut block = Aligned::new(BLOCK, BLOCK);
    let undone = (0..1000).filter(|round| {
        block.bytes().fill(*round as u8);
        strict.write(0, &[VolatileSlice::from(block.bytes())]).1.unwrap();
        strict.data.contents()[512..] != block.bytes()[512..]
    });
    let undone = undone.count();
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    part.join().unwrap();
    assert_eq!(undone, 0);
}

#[test]
fn the_end_of_the_data_is_an_error_and_what_comes_before_it_is_moved() {
    let strict = Strict::new(2 * BLOCK + 700);
    let mut data = vec![0xee; 2000];
    let (moved, result) = strict.read(2 * BLOCK as u64 + 100, &[VolatileSlice::from(&mut data[..])]);
    assert_eq!((moved, result.unwrap_err().kind()), (600, io::ErrorKind::UnexpectedEof));
    assert_eq!(data[..600], pattern(2 * BLOCK + 700)[2 * BLOCK + 100..]);
    assert_eq!(data[600..], [0xee; 1400]);
    // A block of which a part is gone cannot be read to write a part of it, and nothing is invented.
    let (moved, result) = strict.write(2 * BLOCK as u64, &[VolatileSlice::from(&mut data[..512])]);
    assert_eq!((moved, result.unwrap_err().kind()), (0, io::ErrorKind::UnexpectedEof));
    assert_eq!(strict.data.contents(), pattern(2 * BLOCK + 700));
    let (moved, result) = strict.read(u64::MAX - 100, &[VolatileSlice::from(&mut data[..])]);
    assert_eq!((moved, result.unwrap_err().kind()), (0, io::ErrorKind::InvalidInput));
}
