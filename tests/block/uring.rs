//! A disk on `io_uring`, over files and block devices of the host.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use devisor::virtio::{
    QueueIndex, VirtioTransport, Wait,
    block::{Abilities, AsyncStorage, Block, BlockOptions, FileStorage, UringOptions, UringStorage},
};
use proptest::prelude::*;

use crate::{
    guest::{Asked, Guest},
    host_file::{LoopDevice, Temporary},
    skip::skipped,
    support::*,
};

const SECTORS: usize = 256;

fn open(path: impl AsRef<Path>, flags: i32) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    options.open(path).expect("it is there")
}

/// A guest with so many queues. `None` where the kernel has no such thing.
pub fn over(file: File, queues: u16, options: UringOptions) -> Option<Guest> {
    over_told(file, queues, options).map(|(guest, _)| guest)
}

/// The same, and what tells of its rings.
fn over_told(file: File, queues: u16, options: UringOptions) -> Option<(Guest, Arc<UringStorage>)> {
    let file = FileStorage::new(file).expect("a storage");
    let storage = match UringStorage::new(file, options) {
        Ok(storage) => Arc::new(storage),
        Err(error) => {
            skipped(format_args!("no io_uring: {error}"));
            return None;
        }
    };
    let told = Arc::clone(&storage);
    let options = BlockOptions {
        queues,
        ..BlockOptions::default()
    };
    let block = Block::with_async(storage, options).expect("valid options");
    Some((Guest::new(block, queues, u64::MAX >> 16), told))
}

/// With guest memory registered.
fn registering() -> UringOptions {
    UringOptions {
        register_memory: true,
        ..UringOptions::default()
    }
}

/// Waits for what the device waits for, as an event loop does, and has it look.
pub fn wait(guest: &Guest, queues: u16) {
    let waits: Vec<_> = (0..queues).flat_map(|queue| guest.waits(queue)).collect();
    let mut polled: Vec<_> = waits
        .iter()
        .filter_map(|wait| match *wait {
            Wait::Readable(fd) => Some(libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            }),
            Wait::Until(Duration::ZERO) => None,
            ref other => panic!("{other:?}"),
        })
        .collect();
    let at_once = waits.contains(&Wait::Until(Duration::ZERO));
    if !polled.is_empty() && !at_once {
        // SAFETY: as many structures as are told.
        let there = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, 20_000) };
        assert!(there > 0, "nothing ends");
    }
    (0..queues).for_each(|queue| guest.device.process(QueueIndex(queue)));
}

pub fn answer(guest: &Guest, queues: u16, asked: Asked) -> (u8, Vec<u8>) {
    while guest.answer(asked).0 == 0xee {
        wait(guest, queues);
    }
    guest.answer(asked)
}

/// What there is to try it with: a file by the host's cache and past it, and a device in blocks of 4096 bytes.
pub fn files(sectors: usize) -> Vec<(&'static str, File, Box<dyn std::any::Any>)> {
    let mut files: Vec<(&'static str, File, Box<dyn std::any::Any>)> = Vec::new();
    for (name, flags) in [("cached", 0), ("direct", libc::O_DIRECT)] {
        let file = Temporary::new(&pattern(sectors * 512));
        files.push((name, open(&file, flags), Box::new(file)));
    }
    let file = Temporary::new(&pattern(sectors * 512));
    match LoopDevice::new(&file, 4096) {
        Ok(device) => {
            files.push(("device", open(&device, 0), Box::new(())));
            files.push(("direct device", open(&device, libc::O_DIRECT), Box::new((device, file))));
        }
        Err(why) => skipped(why),
    }
    files
}

#[test]
fn every_kind_of_request_does_what_it_should_on_every_kind_of_file() {
    every_kind_of_request(UringOptions::default());
}

#[test]
fn every_kind_of_request_does_what_it_should_with_guest_memory_registered() {
    every_kind_of_request(registering());
}

/// Of this host's files those alone are, if any, that are on a device with a queue for it: the others are refused.
#[test]
fn every_kind_of_request_does_what_it_should_where_completions_are_polled_for() {
    for poll_submissions in [None, Some(Duration::from_millis(5))] {
        for register_memory in [false, true] {
            every_kind_of_request(UringOptions {
                poll_submissions,
                poll_completions: true,
                register_memory,
                ..UringOptions::default()
            });
        }
    }
}

fn every_kind_of_request(options: UringOptions) {
    for (name, file, _kept) in files(SECTORS) {
        let Some(mut guest) = over(file, 1, options) else {
            continue;
        };
        let mut expected = pattern(SECTORS * 512);
        let mut ask = |kind, sector, data: &[u8], room| {
            let asked = guest.ask(0, kind, sector, data, room);
            guest.kick(0);
            answer(&guest, 1, asked)
        };
        assert_eq!(ask(T_OUT, 0, &expected, 0).0, OK, "{name}");
        for (sector, sectors) in [(0, 8), (9, 1), (15, 2), (24, 40), (33, 63), (255, 1)] {
            let data = vec![sector as u8 | 1; sectors * 512];
            assert_eq!(ask(T_OUT, sector, &data, 0).0, OK, "{name}: {sectors} at {sector}");
            expected[sector as usize * 512..][..sectors * 512].copy_from_slice(&data);
            let range = sector as usize * 512..(sector as usize + sectors) * 512;
            assert_eq!(
                ask(T_IN, sector, &[], sectors * 512),
                (OK, expected[range].to_vec()),
                "{name}"
            );
        }
        for (sector, sectors, unmap) in [
            (9, 1, 0),
            (17, 1, 1),
            (30, 4, 0),
            (45, 50, 0),
            (101, 70, 1),
            (128, 64, 1),
        ] {
            assert_eq!(
                ask(T_WRITE_ZEROES, 0, &segment(sector, sectors, unmap), 0).0,
                OK,
                "{name}"
            );
            expected[sector as usize * 512..][..sectors as usize * 512].fill(0);
        }
        assert_eq!(ask(T_FLUSH, 0, &[], 0).0, OK, "{name}");
        for half in 0..4_u64 {
            let range = half as usize * 64 * 512..(half as usize + 1) * 64 * 512;
            assert_eq!(
                ask(T_IN, half * 64, &[], 64 * 512),
                (OK, expected[range].to_vec()),
                "{name}"
            );
        }
        assert_eq!(ask(T_DISCARD, 0, &segment(201, 30, 0), 0).0, OK, "{name}");
        assert_eq!(ask(T_IN, 192, &[], 9 * 512).1, expected[192 * 512..201 * 512], "{name}");
        assert_eq!(ask(T_IN, 231, &[], 512).1, expected[231 * 512..232 * 512], "{name}");
        assert_eq!(guest.device.with_device(|disk| disk.host_failures().count), 0, "{name}");
    }
}

#[test]
fn many_requests_are_submitted_by_one_call_and_a_full_ring_is_no_end() {
    let file = Temporary::new(&pattern(SECTORS * 512));
    let options = UringOptions {
        entries: 4,
        ..UringOptions::default()
    };
    let Some(mut guest) = over(open(&file, 0), 1, options) else {
        return;
    };
    let asked: Vec<_> = (0..16).map(|at| guest.ask(0, T_IN, at * 3, &[], 1024)).collect();
    guest.kick(0);
    for (at, asked) in asked.into_iter().enumerate() {
        assert_eq!(
            answer(&guest, 1, asked),
            (OK, pattern(SECTORS * 512)[at * 1536..][..1024].to_vec())
        );
    }
    assert!(guest.waits(0).is_empty(), "nothing is under way");
}

#[test]
fn a_thread_of_the_kernels_may_look_for_submissions() {
    let file = Temporary::new(&pattern(SECTORS * 512));
    let options = UringOptions {
        poll_submissions: Some(Duration::from_millis(5)),
        ..UringOptions::default()
    };
    let Some(mut guest) = over(open(&file, 0), 1, options) else {
        return;
    };
    for at in 0..20 {
        let asked = guest.ask(0, T_IN, at, &[], 512);
        guest.kick(0);
        assert_eq!(
            answer(&guest, 1, asked).1,
            pattern(SECTORS * 512)[at as usize * 512..][..512]
        );
        if at % 5 == 4 {
            // Long enough for it to sleep.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn write_through_is_a_write_with_forced_unit_access() {
    let file = Temporary::new(&pattern(SECTORS * 512));
    let Ok(storage) = UringStorage::new(FileStorage::open(&file).unwrap(), UringOptions::default()) else {
        return skipped("no io_uring");
    };
    assert!(matches!(
        storage.abilities(),
        Abilities {
            fua: true,
            discard: true,
            ..
        }
    ));
    let mut guest = Guest::new(Block::with_async(storage, BlockOptions::default()).unwrap(), 1, 0);
    let asked = guest.ask(0, T_OUT, 3, &[9; 1024], 0);
    guest.kick(0);
    assert_eq!(answer(&guest, 1, asked).0, OK);
    assert_eq!(file.contents()[3 * 512..5 * 512], [9; 1024]);
}

#[test]
fn a_file_that_shrank_is_an_io_error_past_its_end() {
    let file = Temporary::new(&pattern(SECTORS * 512));
    let Some(mut guest) = over(open(&file, 0), 1, UringOptions::default()) else {
        return;
    };
    open(&file, 0).set_len(8 * 512).unwrap();
    let asked = [7, 7, 8].map(|at| guest.ask(0, T_IN, at, &[], if at == 7 { 512 } else { 1024 }));
    let across = guest.ask(0, T_IN, 7, &[], 1024);
    guest.kick(0);
    assert_eq!(asked.map(|asked| answer(&guest, 1, asked).0), [OK, OK, IOERR]);
    let (status, data) = answer(&guest, 1, across);
    assert_eq!((status, &data[512..]), (IOERR, &[0; 512][..]));
}

#[test]
fn a_pause_ends_or_gives_back_everything_and_a_resume_serves_it() {
    for (name, file, _kept) in files(SECTORS) {
        let Some(mut guest) = over(file, 2, UringOptions::default()) else {
            return;
        };
        for round in 0..20_u8 {
            let mut asked = Vec::new();
            for queue in 0..2 {
                for at in 0..8_u64 {
                    let sector = at * 16 + queue as u64 * 8;
                    asked.push(guest.ask(queue, T_OUT, sector, &[round; 4096], 0));
                    asked.push(guest.ask(queue, T_IN, sector, &[], 4096));
                }
            }
            guest.kick(0);
            guest.kick(1);
            guest.device.pause();
            while !guest.device.is_still() {
                wait(&guest, 2);
            }
            guest.device.save().expect("it is still");
            guest.device.resume();
            guest.device.run();
            for asked in asked {
                assert_eq!(answer(&guest, 2, asked).0, OK, "{name}");
            }
        }
    }
}

#[test]
fn a_device_that_goes_waits_for_the_kernel() {
    let file = Temporary::new(&pattern(SECTORS * 512));
    for _ in 0..20 {
        let Some(mut guest) = over(open(&file, libc::O_DIRECT), 1, UringOptions::default()) else {
            return;
        };
        (0..32).for_each(|at| _ = guest.ask(0, T_IN, at * 8, &[], 4096));
        guest.kick(0);
    }
}

#[test]
fn parts_of_a_block_that_two_queues_write_do_not_mix() {
    let Some((_, file, _kept)) = files(SECTORS).into_iter().find(|(name, ..)| *name == "direct device") else {
        return;
    };
    let Some(mut guest) = over(file, 2, UringOptions::default()) else {
        return;
    };
    for round in 1..40_u8 {
        let mut asked = Vec::new();
        for at in 0..16_u64 {
            for queue in 0..2 {
                asked.push(guest.ask(queue, T_OUT, 2 * at + queue as u64, &[round * 2 + queue as u8; 512], 0));
            }
        }
        // And whole blocks beside them.
        asked.push(guest.ask(0, T_OUT, 32, &[round; 8192], 0));
        guest.kick(0);
        guest.kick(1);
        for asked in asked {
            assert_eq!(answer(&guest, 2, asked).0, OK);
        }
        let read = guest.ask(0, T_IN, 0, &[], 48 * 512);
        guest.kick(0);
        let (status, data) = answer(&guest, 2, read);
        assert_eq!(status, OK);
        for (sector, bytes) in data.chunks(512).enumerate() {
            let expected = if sector < 32 {
                round * 2 + (sector % 2) as u8
            } else {
                round
            };
            assert!(
                bytes.iter().all(|&byte| byte == expected),
                "sector {sector} in round {round}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_requests_leave_what_a_model_has(
        requests in prop::collection::vec((0..4_u8, 0..SECTORS as u64 - 40, 1..40_usize, any::<u8>()), 1..40),
        direct in any::<bool>(),
        register_memory in any::<bool>(),
        shift in prop_oneof![Just(0), Just(512), 1..4096_u64],
    ) {
        let file = Temporary::new(&pattern(SECTORS * 512));
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let options = UringOptions { register_memory, ..UringOptions::default() };
        let Some(mut guest) = over(open(&file, flags), 1, options) else { return Ok(()) };
        // Where in a page the guest has its data.
        guest.shift = shift;
        let mut expected = pattern(SECTORS * 512);
        for (kind, sector, sectors, value) in requests {
            let range = sector as usize * 512..(sector as usize + sectors) * 512;
            let asked = match kind {
                0 => guest.ask(0, T_IN, sector, &[], sectors * 512),
                1 => {
                    expected[range.clone()].fill(value);
                    guest.ask(0, T_OUT, sector, &vec![value; sectors * 512], 0)
                }
                2 => {
                    expected[range.clone()].fill(0);
                    guest.ask(0, T_WRITE_ZEROES, 0, &segment(sector, sectors as u32, value as u32 & 1), 0)
                }
                _ => guest.ask(0, T_FLUSH, 0, &[], 0),
            };
            guest.kick(0);
            let (status, data) = answer(&guest, 1, asked);
            prop_assert_eq!(status, OK);
            if kind == 0 {
                prop_assert!(data == expected[range]);
            }
        }
        prop_assert!(file.contents() == expected);
    }
}
