//! The block device: what a driver gets for each request, and what a hostile one cannot get.

#[path = "support/disk.rs"]
mod disk;
#[cfg(target_os = "linux")]
#[path = "support/host_file.rs"]
mod host_file;
#[path = "support/rest.rs"]
mod rest;
#[path = "support/ring.rs"]
mod ring;
#[cfg(target_os = "linux")]
#[path = "support/skip.rs"]
mod skip;

use std::sync::{Arc, atomic::Ordering};

use devisor::{
    bus::BusDevice,
    interrupt::{NoInterrupt, from_fn},
    virtio::{
        DeviceStateError, QueueIndex, VirtioMmio, VirtioTransport,
        block::{Block, BlockError, BlockOptions, Geometry, Limits, MemoryStorage, RangeLimits, Topology},
        features,
        transport::{
            mmio::Line,
            status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK},
        },
    },
};
use disk::*;
use proptest::prelude::*;
use ring::{Buffer, Ring, readable, writable};

fn small_segments() -> BlockOptions {
    let limits = Some(RangeLimits {
        max_sectors: 4,
        max_segments: 3,
    });
    BlockOptions {
        discard: limits,
        write_zeroes: limits,
        ..BlockOptions::default()
    }
}

// Reading and writing.

#[test]
fn what_is_written_is_read_back() {
    let mut disk = Disk::new(16);
    let data = pattern(3 * 512);
    assert_eq!(disk.write(5, &data), OK);
    assert_eq!(disk.contents()[5 * 512..8 * 512], data);
    assert_eq!(disk.contents()[..5 * 512], pattern(16 * 512)[..5 * 512]);
    assert_eq!(disk.contents()[8 * 512..], pattern(16 * 512)[8 * 512..]);
    assert_eq!(disk.read(5, 3 * 512), (OK, data));
}

#[test]
fn the_whole_disk_is_in_reach_and_nothing_more() {
    let mut disk = Disk::new(4);
    assert_eq!(disk.read(0, 4 * 512), (OK, pattern(4 * 512)));
    assert_eq!(disk.read(3, 512).0, OK);
    assert_eq!(disk.read(4, 512).0, IOERR);
}

#[test]
fn no_data_is_a_request_for_nothing() {
    let mut disk = Disk::new(4);
    assert_eq!(disk.read(1, 0), (OK, vec![]));
    assert_eq!(disk.write(1, &[]), OK);
    assert_eq!(disk.read(4, 0).0, OK);
    assert_eq!(disk.read(5, 0).0, IOERR);
}

#[test]
fn two_buffers_in_the_same_memory_are_two_copies() {
    let mut disk = Disk::new(8);
    disk.put_header(T_OUT, 0);
    disk.fill(DATA, &[7; 512]);
    disk.run(&[
        readable(HEADER, 16),
        readable(DATA, 512),
        readable(DATA, 512),
        writable(STATUS, 1),
    ]);
    assert_eq!(disk.status(), OK);
    assert_eq!(disk.contents()[..1024], [7; 1024]);
}

// Bounds.

#[test]
fn a_write_past_the_end_writes_nothing_also_if_it_begins_inside() {
    let mut disk = Disk::new(4);
    for (sector, sectors) in [(3, 2), (0, 5), (4, 1), (5, 1), (1 << 40, 1)] {
        assert_eq!(
            disk.write(sector, &vec![0xff; sectors * 512]),
            IOERR,
            "{sectors} at {sector}"
        );
        assert_eq!(disk.contents(), pattern(4 * 512));
    }
    assert_eq!(disk.storage.calls(), []);
}

#[test]
fn sector_numbers_that_overflow_are_past_the_end() {
    let mut disk = Disk::new(4);
    // Times 512 or plus the length, each of these wraps around to a sector of the disk.
    for sector in [
        u64::MAX,
        u64::MAX - 1,
        1 << 55,
        1 << 63,
        u64::MAX / 512,
        u64::MAX / 512 + 1,
    ] {
        assert_eq!(disk.write(sector, &[0xff; 1024]), IOERR, "{sector:#x}");
        assert_eq!(disk.read(sector, 1024).0, IOERR, "{sector:#x}");
    }
    assert_eq!(disk.storage.calls(), []);
}

#[test]
fn a_part_of_a_sector_is_an_error_and_nothing_is_moved() {
    let mut disk = Disk::new(4);
    for len in [1, 511, 513, 1023] {
        assert_eq!(disk.write(0, &vec![0xff; len]), IOERR, "{len}");
        assert_eq!(disk.read(0, len).0, IOERR, "{len}");
    }
    assert_eq!(disk.storage.calls(), []);
}

#[test]
fn nearly_four_gibibytes_of_data_are_refused_and_not_touched() {
    let mut disk = Disk::new(4);
    disk.put_header(T_OUT, 0);
    // The same memory, again and again.
    let mut buffers = vec![readable(HEADER, 16)];
    buffers.extend((0..MEMORY_SIZE).map(|_| readable(0, MEMORY_SIZE as u32)).take(250));
    buffers.push(writable(STATUS, 1));
    assert_eq!(disk.run(&buffers), 1);
    assert_eq!(disk.status(), IOERR);
    assert_eq!(disk.storage.calls(), []);
}

#[test]
fn a_failed_read_leaves_zeros_and_no_stale_bytes() {
    let mut disk = Disk::new(4);
    let (status, data) = disk.read(3, 1024);
    assert_eq!((status, data), (IOERR, vec![0; 1024]));
}

// Framing: VIRTIO 1.x leaves it to the driver (section 2.7.4).

#[test]
fn a_header_in_sixteen_descriptors_is_a_header() {
    let mut disk = Disk::new(4);
    disk.put_header(T_IN, 2);
    let mut buffers: Vec<_> = (0..16).map(|byte| readable(HEADER + byte, 1)).collect();
    buffers.extend([writable(DATA, 512), writable(STATUS, 1)]);
    assert_eq!(disk.run(&buffers), 513);
    assert_eq!(disk.status(), OK);
    assert_eq!(disk.get(DATA, 512), pattern(4 * 512)[2 * 512..3 * 512]);
}

#[test]
fn a_header_may_share_its_descriptor_with_data() {
    let mut disk = Disk::new(4);
    let mut bytes = header(T_OUT, 1).to_vec();
    bytes.extend([9; 512]);
    disk.fill(DATA, &bytes);
    disk.run(&[readable(DATA, 528), writable(STATUS, 1)]);
    assert_eq!(disk.status(), OK);
    assert_eq!(disk.contents()[512..1024], [9; 512]);
}

#[test]
fn the_status_is_the_last_writable_byte_wherever_that_is() {
    let framings: [&[u32]; 6] = [
        &[513],
        &[512, 1],
        &[1, 511, 1],
        &[0, 500, 0, 13, 0],
        &[511, 2],
        &[512, 0, 1, 0],
    ];
    for framing in framings {
        let mut disk = Disk::new(4);
        disk.put_header(T_IN, 1);
        disk.fill(DATA, &[0xee; 514]);
        let mut buffers = vec![readable(HEADER, 16)];
        let mut at = DATA;
        for &len in framing {
            buffers.push(writable(at, len));
            at += u64::from(len);
        }
        assert_eq!(disk.run(&buffers), 513, "{framing:?}");
        let written = disk.get(DATA, 514);
        assert_eq!(written[..512], pattern(4 * 512)[512..1024], "{framing:?}");
        assert_eq!(written[512..], [OK, 0xee], "{framing:?}");
    }
}

#[test]
fn an_indirect_table_is_a_request_like_any_other() {
    let mut disk = Disk::new(4);
    disk.put_header(T_IN, 0);
    let head = disk.ring.add_indirect(
        0x8000,
        &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)],
    );
    disk.ring.offer(head);
    assert_eq!(disk.process(), Ok(vec![513]));
    assert_eq!(disk.status(), OK);
}

#[test]
fn every_writable_byte_is_written_and_counted() {
    // What drivers should not do, but may: room for data in requests that have none to give.
    for (kind, status) in [(T_OUT, OK), (T_FLUSH, OK), (T_GET_ID, OK), (99, UNSUPP), (T_IN, IOERR)] {
        let mut disk = Disk::new(4);
        disk.put_header(kind, 0);
        disk.fill(DATA, &[0xee; 601]);
        assert_eq!(disk.run(&[readable(HEADER, 16), writable(DATA, 601)]), 601);
        let written = disk.get(DATA, 601);
        assert_eq!(written[600], status, "type {kind}");
        assert_eq!(written[20..600], [0; 580], "type {kind}");
    }
}

#[test]
fn a_chain_without_room_for_header_or_status_comes_back_empty_and_the_disk_goes_on() {
    let refused = |buffers: &[Buffer]| {
        let mut disk = Disk::new(4);
        disk.put_header(T_OUT, 0);
        disk.fill(DATA, &[0xee; 513]);
        disk.ring.request(buffers);
        assert_eq!(disk.process(), Ok(vec![0]), "{buffers:?}");
        assert_eq!(disk.counters().malformed, 1);
        assert_eq!(disk.get(DATA, 513), [0xee; 513], "nothing is written into it");
        assert_eq!(disk.storage.calls(), []);
        assert_eq!(disk.read(0, 512).0, OK);
    };
    refused(&[readable(HEADER, 15), writable(STATUS, 1)]);
    refused(&[readable(HEADER, 0), writable(STATUS, 1)]);
    refused(&[writable(DATA, 513)]);
    refused(&[readable(HEADER, 16)]);
    refused(&[readable(HEADER, 528)]);
    refused(&[readable(HEADER, 16), writable(STATUS, 0)]);
}

// Other requests.

#[test]
fn get_id_is_twenty_bytes_padded_with_zeros() {
    for (id, expected) in [
        ("root", *b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ("", [0; 20]),
        ("exactly twenty bytes", *b"exactly twenty bytes"),
    ] {
        let mut disk = Disk::with(BlockOptions {
            id: id.into(),
            ..BlockOptions::default()
        });
        disk.put_header(T_GET_ID, 0);
        assert_eq!(
            disk.run(&[readable(HEADER, 16), writable(DATA, 20), writable(STATUS, 1)]),
            21
        );
        assert_eq!((disk.status(), disk.get(DATA, 20)), (OK, expected.to_vec()));
    }
}

#[test]
fn get_id_with_too_little_room_is_an_error() {
    let mut disk = Disk::new(4);
    disk.put_header(T_GET_ID, 0);
    assert_eq!(
        disk.run(&[readable(HEADER, 16), writable(DATA, 19), writable(STATUS, 1)]),
        20
    );
    assert_eq!((disk.status(), disk.get(DATA, 19)), (IOERR, vec![0; 19]));
}

#[test]
fn unknown_requests_are_unsupported_and_touch_nothing() {
    let mut disk = Disk::new(4);
    // SCSI, lifetime, secure erase, zones, the legacy barrier bit, and what nobody has defined.
    for kind in [
        2,
        3,
        5,
        6,
        7,
        9,
        10,
        12,
        14,
        15,
        16,
        18,
        20,
        22,
        24,
        26,
        1 << 31,
        1 | 1 << 31,
        u32::MAX,
    ] {
        assert_eq!(disk.request(kind, 0, &[0; 512], 0).0, UNSUPP, "type {kind:#x}");
    }
    assert_eq!(disk.storage.calls(), []);
}

#[test]
fn requests_that_were_not_negotiated_are_unsupported() {
    let mut disk = Disk::new(4);
    disk.activate(0);
    for kind in [T_FLUSH, T_DISCARD, T_WRITE_ZEROES] {
        assert_eq!(disk.request(kind, 0, &segment(0, 1, 0), 0).0, UNSUPP, "type {kind}");
    }
    assert_eq!(disk.storage.calls(), []);
}

#[test]
fn a_flush_flushes_the_storage() {
    let mut disk = Disk::new(4);
    assert_eq!(disk.request(T_FLUSH, 0, &[], 0).0, OK);
    assert_eq!(disk.storage.calls(), [Call::Flush]);
}

// Discard and write zeroes.

#[test]
fn discard_reaches_the_storage_segment_by_segment() {
    let mut disk = Disk::with(small_segments());
    let segments = [segment(1, 2, 0), segment(0, 0, 0), segment(12, 4, 0)].concat();
    assert_eq!(disk.request(T_DISCARD, 0, &segments, 0).0, OK);
    assert_eq!(
        disk.storage.calls(),
        [Call::Discard(512, 1024), Call::Discard(12 * 512, 4 * 512)]
    );
}

#[test]
fn write_zeroes_makes_zeros_and_says_whether_space_may_go() {
    let mut disk = Disk::with(small_segments());
    let segments = [segment(1, 2, 0), segment(14, 2, 1)].concat();
    assert_eq!(disk.request(T_WRITE_ZEROES, 0, &segments, 0).0, OK);
    assert_eq!(
        disk.storage.calls(),
        [
            Call::WriteZeroes(512, 1024, false),
            Call::WriteZeroes(14 * 512, 1024, true)
        ]
    );
    let mut expected = pattern(16 * 512);
    expected[512..1536].fill(0);
    expected[14 * 512..].fill(0);
    assert_eq!(disk.contents(), expected);
}

#[test]
fn one_bad_segment_and_none_is_done() {
    let good = segment(0, 1, 0);
    for bad in [
        // Past the end, across it, overflowing, longer than max_sectors.
        segment(16, 1, 0),
        segment(15, 2, 0),
        segment(u64::MAX, 1, 0),
        segment(1 << 55, 1, 0),
        segment(17, 0, 0),
        segment(0, 5, 0),
        segment(0, u32::MAX, 0),
    ] {
        for kind in [T_DISCARD, T_WRITE_ZEROES] {
            let mut disk = Disk::with(small_segments());
            let segments = [good, bad, good].concat();
            assert_eq!(disk.request(kind, 0, &segments, 0).0, IOERR, "{bad:?}");
            assert_eq!(disk.storage.calls(), [], "{bad:?}");
        }
    }
}

#[test]
fn segments_that_are_too_many_too_few_or_cut_are_an_error() {
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        let mut disk = Disk::with(small_segments());
        for len in [0, 1, 15, 17, 31, 4 * 16, 60_000] {
            assert_eq!(disk.request(kind, 0, &vec![0; len], 0).0, IOERR, "{len} bytes");
        }
        assert_eq!(disk.request(kind, 0, &[0; 3 * 16], 0).0, OK);
        assert_eq!(disk.storage.calls(), []);
    }
}

#[test]
fn unknown_flags_are_unsupported_also_where_the_range_is_wrong() {
    for (kind, flags) in [
        (T_DISCARD, 1),
        (T_DISCARD, 2),
        (T_DISCARD, 1 << 31),
        (T_WRITE_ZEROES, 2),
        (T_WRITE_ZEROES, 3),
        (T_WRITE_ZEROES, 1 << 31),
    ] {
        let mut disk = Disk::with(small_segments());
        let segments = [segment(99, 9, 0), segment(0, 1, flags)].concat();
        assert_eq!(disk.request(kind, 0, &segments, 0).0, UNSUPP, "type {kind}, {flags:#x}");
        assert_eq!(disk.storage.calls(), []);
    }
}

#[test]
fn segments_may_be_cut_into_descriptors_anywhere() {
    let mut disk = Disk::with(small_segments());
    let bytes = [header(T_DISCARD, 0), segment(2, 1, 0), segment(4, 1, 0)].concat();
    disk.fill(DATA, &bytes);
    let mut buffers: Vec<_> = (0..24).map(|piece| readable(DATA + 2 * piece, 2)).collect();
    buffers.push(writable(STATUS, 1));
    assert_eq!(disk.run(&buffers), 1);
    assert_eq!(disk.status(), OK);
    assert_eq!(
        disk.storage.calls(),
        [Call::Discard(1024, 512), Call::Discard(2048, 512)]
    );
}

// Read-only.

#[test]
fn a_read_only_disk_is_read_and_not_written() {
    let by_option = BlockOptions {
        read_only: true,
        ..BlockOptions::default()
    };
    for (options, storage_refuses) in [(by_option, false), (BlockOptions::default(), true)] {
        let storage = Rigged::new(16);
        storage.read_only.store(storage_refuses, Ordering::SeqCst);
        let mut disk = Disk::over(Arc::new(storage), options);
        let offered = disk.offered();
        assert_eq!(offered & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
        // The driver SHOULD accept RO; that it did not changes nothing.
        for accepted in [offered, offered & !F_RO, offered | F_DISCARD | F_WRITE_ZEROES] {
            disk.activate(accepted);
            assert_eq!(disk.write(0, &[0xff; 512]), IOERR);
            assert_ne!(disk.request(T_DISCARD, 0, &segment(0, 1, 0), 0).0, OK);
            assert_ne!(disk.request(T_WRITE_ZEROES, 0, &segment(0, 1, 0), 0).0, OK);
            assert_eq!(disk.storage.calls(), []);
            assert_eq!(disk.read(0, 512), (OK, pattern(512)));
            assert_eq!(disk.request(T_FLUSH, 0, &[], 0).0, OK);
            disk.storage.forget_calls();
        }
        assert_eq!(disk.contents(), pattern(16 * 512));
    }
}

// Storages that fail.

#[test]
fn a_failing_storage_is_an_io_error_for_that_request_alone() {
    let mut disk = Disk::new(16);
    for (kind, data, room) in [
        (T_IN, vec![], 512),
        (T_OUT, vec![1; 512], 0),
        (T_FLUSH, vec![], 0),
        (T_DISCARD, segment(0, 1, 0).to_vec(), 0),
        (T_WRITE_ZEROES, segment(0, 1, 0).to_vec(), 0),
    ] {
        let before = disk.block.host_failures().count;
        disk.storage.fail_call(1);
        assert_eq!(disk.request(kind, 0, &data, room).0, IOERR, "type {kind}");
        let failures = disk.block.host_failures();
        assert_eq!(failures.count, before + 1);
        assert_eq!(failures.last.as_ref().map(ToString::to_string), Some("rigged".into()));
        assert_eq!(disk.request(kind, 0, &data, room).0, OK, "type {kind}");
    }
    // What the driver did wrong is not the storage's failure.
    let before = disk.block.host_failures().count;
    assert_eq!(disk.read(99, 512).0, IOERR);
    assert_eq!(disk.block.host_failures().count, before);
}

#[test]
fn a_read_that_fails_midway_has_data_then_zeros() {
    let mut disk = Disk::new(16);
    disk.storage.at_most.store(700, Ordering::SeqCst);
    disk.storage.fail_call(3);
    disk.fill(DATA, &[0xee; 4096]);
    let (status, data) = disk.read(0, 2048);
    assert_eq!(status, IOERR);
    // 700 bytes, and the 300 that complete the first buffer of 1000.
    assert_eq!(data[..1000], pattern(1000));
    assert_eq!(data[1000..], [0; 1048]);
}

#[test]
fn a_segment_that_fails_ends_the_request() {
    let mut disk = Disk::with(small_segments());
    disk.storage.fail_call(2);
    let segments = [segment(0, 1, 0), segment(1, 1, 0), segment(2, 1, 0)].concat();
    assert_eq!(disk.request(T_DISCARD, 0, &segments, 0).0, IOERR);
    assert_eq!(disk.storage.calls(), [Call::Discard(0, 512), Call::Discard(512, 512)]);
}

#[test]
fn short_and_interrupted_transfers_are_continued() {
    for at_most in [1, 3, 511, 512, 513, 999, 1000, 1001, 2047] {
        let mut disk = Disk::new(16);
        disk.storage.at_most.store(at_most, Ordering::SeqCst);
        disk.storage.interrupt_every.store(3, Ordering::SeqCst);
        let data: Vec<u8> = pattern(2048).iter().map(|byte| !byte).collect();
        assert_eq!(disk.write(2, &data), OK, "{at_most}");
        assert_eq!(disk.contents()[1024..3072], data, "{at_most}");
        assert_eq!(disk.contents()[3072..], pattern(16 * 512)[3072..], "{at_most}");
        assert_eq!(disk.read(2, 2048), (OK, data), "{at_most}");
    }
}

#[test]
fn a_storage_that_moves_nothing_or_boasts_is_an_io_error() {
    for lie in [0, 513, usize::MAX] {
        let mut disk = Disk::new(16);
        disk.storage.lie(lie);
        assert_eq!(disk.read(0, 512).0, IOERR);
        assert_eq!(disk.write(0, &[1; 512]), IOERR);
        assert_eq!(disk.block.host_failures().count, 2);
    }
}

#[test]
fn a_storage_that_shrank_is_an_io_error_past_its_new_end() {
    let mut disk = Disk::new(16);
    disk.storage.data.resize(8 * 512);
    assert_eq!(disk.read(7, 512).0, OK);
    assert_eq!(disk.read(7, 1024).0, IOERR);
    assert_eq!(disk.write(8, &[1; 512]), IOERR);
    assert_eq!(disk.request(T_WRITE_ZEROES, 0, &segment(8, 1, 0), 0).0, IOERR);
}

// Stable storage (section 5.2.6.2).

const WRITE_THEN_FLUSH: [Call; 2] = [Call::Write(0, 512), Call::Flush];

#[test]
fn without_flush_a_write_is_stable_before_it_completes() {
    let mut disk = Disk::new(16);
    disk.activate(0);
    let used_idx = disk.ring.layout.device_area + 2;
    disk.storage.watch_flush(&disk.memory, used_idx);
    for completed in 0..3 {
        assert_eq!(disk.write(0, &[1; 512]), OK);
        assert_eq!(disk.storage.calls(), WRITE_THEN_FLUSH);
        assert_eq!(disk.storage.used_idx_at_flush(), Some(completed));
        disk.storage.forget_calls();
    }
    assert_eq!(disk.read(0, 512).0, OK);
    assert_eq!(disk.storage.calls(), [Call::Read(0, 512)]);
}

#[test]
fn without_flush_a_write_that_cannot_be_made_stable_has_failed() {
    let mut disk = Disk::new(16);
    disk.activate(0);
    disk.storage.fail_call(2);
    assert_eq!(disk.write(0, &[1; 512]), IOERR);
}

#[test]
fn write_zeroes_is_a_write_where_stability_counts() {
    let mut disk = Disk::new(16);
    disk.activate(F_WRITE_ZEROES);
    assert_eq!(disk.request(T_WRITE_ZEROES, 0, &segment(0, 1, 0), 0).0, OK);
    assert_eq!(disk.storage.calls(), [Call::WriteZeroes(0, 512, false), Call::Flush]);
}

#[test]
fn with_flush_a_write_is_not_flushed() {
    let mut disk = Disk::new(16);
    for accepted in [F_FLUSH, F_FLUSH | F_CONFIG_WCE] {
        disk.activate(accepted);
        assert_eq!(disk.write(0, &[1; 512]), OK);
        assert_eq!(disk.storage.calls(), WRITE_THEN_FLUSH[..1]);
        disk.storage.forget_calls();
    }
}

#[test]
fn the_driver_chooses_the_cache_mode_by_writeback() {
    let mut disk = Disk::new(16);
    disk.activate(F_FLUSH | F_CONFIG_WCE);
    assert_eq!(disk.config(32, 1), [1]);
    disk.write_config(32, &[0]);
    assert_eq!(disk.config(32, 1), [0]);
    assert_eq!(disk.write(0, &[1; 512]), OK);
    assert_eq!(disk.storage.calls(), WRITE_THEN_FLUSH);
    disk.storage.forget_calls();
    disk.write_config(32, &[1]);
    assert_eq!(disk.write(0, &[1; 512]), OK);
    assert_eq!(disk.storage.calls(), WRITE_THEN_FLUSH[..1]);
}

#[test]
fn writeback_without_flush_starts_at_zero_and_may_be_set() {
    let mut disk = Disk::new(16);
    disk.activate(F_CONFIG_WCE);
    assert_eq!(disk.config(32, 1), [0]);
    assert_eq!(disk.write(0, &[1; 512]), OK);
    assert_eq!(disk.storage.calls(), WRITE_THEN_FLUSH);
    disk.storage.forget_calls();
    disk.write_config(32, &[1]);
    assert_eq!(disk.write(0, &[1; 512]), OK);
    assert_eq!(disk.storage.calls(), WRITE_THEN_FLUSH[..1]);
}

#[test]
fn writeback_takes_zero_and_one_from_who_negotiated_it_until_reset() {
    let mut disk = Disk::new(16);
    disk.activate(F_FLUSH);
    disk.write_config(32, &[0]);
    assert_eq!(disk.config(32, 1), [1], "not negotiated");
    disk.activate(F_FLUSH | F_CONFIG_WCE);
    disk.write_config(32, &[2]);
    assert_eq!(disk.config(32, 1), [1], "neither 0 nor 1");
    for (offset, data) in [
        (33, &[0_u8][..]),
        (31, &[0]),
        (28, &[0; 4]),
        (32, &[]),
        (u64::MAX, &[0; 8]),
    ] {
        disk.write_config(offset, data);
        assert_eq!(disk.config(32, 1), [1], "beside it, at {offset}");
    }
    disk.write_config(30, &[0; 4]);
    assert_eq!(disk.config(32, 1), [0], "as a part of a wider write");
    disk.reset();
    disk.activate(F_FLUSH | F_CONFIG_WCE);
    assert_eq!(disk.config(32, 1), [1], "after a reset");
}

// Configuration.

#[test]
fn the_configuration_space_is_that_of_the_specification() {
    let options = BlockOptions {
        block_size: Some(4096),
        queues: 3,
        queue_size: 64,
        size_max: Some(0x1_0000),
        geometry: Some(Geometry {
            cylinders: 0x1234,
            heads: 16,
            sectors: 63,
        }),
        topology: Some(Topology {
            physical_block_exp: 3,
            alignment_offset: 1,
            minimum_io_blocks: 0x0102,
            optimal_io_blocks: 0x0304_0506,
        }),
        discard: Some(RangeLimits {
            max_sectors: 0x0708_090a,
            max_segments: 11,
        }),
        discard_alignment: Some(8),
        write_zeroes: Some(RangeLimits {
            max_sectors: 0x0b0c_0d0e,
            max_segments: 12,
        }),
        ..BlockOptions::default()
    };
    let disk = Disk::over(Arc::new(Rigged::new(24)), options);
    let fields: [&[u8]; 20] = [
        &24_u64.to_le_bytes(),
        &0x1_0000_u32.to_le_bytes(),
        &62_u32.to_le_bytes(),
        &0x1234_u16.to_le_bytes(),
        &[16, 63],
        &4096_u32.to_le_bytes(),
        &[3, 1],
        &0x0102_u16.to_le_bytes(),
        &0x0304_0506_u32.to_le_bytes(),
        &[1],
        &[0],
        &3_u16.to_le_bytes(),
        &0x0708_090a_u32.to_le_bytes(),
        &11_u32.to_le_bytes(),
        &8_u32.to_le_bytes(),
        &0x0b0c_0d0e_u32.to_le_bytes(),
        &12_u32.to_le_bytes(),
        &[1],
        &[0; 3],
        // Beyond what is offered.
        &[0; 68],
    ];
    assert_eq!(disk.config(0, 128), fields.concat());
    assert_eq!(disk.config(u64::MAX, 8), [0; 8]);
    let all = [1, 2, 4, 6, 9, 10, 11, 12, 13, 14];
    assert_eq!(disk.offered(), all.iter().fold(0, |all, bit| all | 1 << bit));
}

#[test]
fn what_is_not_offered_is_zero_in_the_configuration_space() {
    let options = BlockOptions {
        config_wce: false,
        discard: None,
        write_zeroes: None,
        ..BlockOptions::default()
    };
    let disk = Disk::over(Arc::new(Rigged::new(24)), options);
    let fields: [&[u8]; 6] = [
        &24_u64.to_le_bytes(),
        &[0; 4],
        &254_u32.to_le_bytes(),
        &[0; 4],
        &512_u32.to_le_bytes(),
        &[0; 36],
    ];
    assert_eq!(disk.config(0, 60), fields.concat());
    assert_eq!(disk.offered(), 1 << 2 | 1 << 6 | 1 << 9);
}

#[test]
fn a_storage_that_cannot_discard_does_not_offer_it() {
    let storage = Rigged::new(24);
    storage.no_discard.store(true, Ordering::SeqCst);
    let disk = Disk::over(Arc::new(storage), BlockOptions::default());
    assert_eq!(disk.offered() & (F_DISCARD | F_WRITE_ZEROES), F_WRITE_ZEROES);
    // Its limits are gone, and zeros do not unmap.
    assert_eq!(disk.config(36, 12), [0; 12]);
    assert_eq!(disk.config(56, 1), [0]);
}

/// A storage with these limits, and its disk.
fn over_limits(limits: Limits, options: BlockOptions) -> Disk {
    Disk::over(Arc::new(Rigged::with_limits(256, limits)), options)
}

const LIMITS: Limits = Limits {
    logical_block: 4096,
    physical_block: 16384,
    alignment_offset: 8192,
    minimum_io: 65536,
    optimal_io: 1 << 20,
    discard_granularity: 32768,
};

/// `blk_size`, `physical_block_exp`, `alignment_offset`, `min_io_size`, `opt_io_size` and `discard_sector_alignment`.
fn told(disk: &Disk) -> (u32, u8, u8, u16, u32, u32) {
    let le32 = |at| u32::from_le_bytes(disk.config(at, 4).try_into().unwrap());
    let [exp, offset, min_low, min_high] = disk.config(24, 4).try_into().unwrap();
    let min = u16::from_le_bytes([min_low, min_high]);
    (le32(20), exp, offset, min, le32(28), le32(44))
}

#[test]
fn the_limits_of_the_storage_are_told_where_the_options_leave_them_open() {
    let disk = over_limits(LIMITS, BlockOptions::default());
    assert_eq!(told(&disk), (4096, 2, 2, 16, 256, 64));
    assert_ne!(disk.offered() & F_TOPOLOGY, 0);
    // In blocks of another size they are other numbers, and no discard is smaller than a block.
    let in_blocks = |size| BlockOptions {
        block_size: Some(size),
        ..BlockOptions::default()
    };
    assert_eq!(told(&over_limits(LIMITS, in_blocks(512))), (512, 5, 16, 128, 2048, 64));
    assert_eq!(told(&over_limits(LIMITS, in_blocks(65536))), (65536, 0, 0, 1, 16, 128));
    let topology = Topology {
        optimal_io_blocks: 9,
        ..Topology::default()
    };
    let chosen = BlockOptions {
        topology: Some(topology),
        discard_alignment: Some(3),
        ..BlockOptions::default()
    };
    assert_eq!(told(&over_limits(LIMITS, chosen)), (4096, 0, 0, 0, 9, 3));
    // A storage with nothing to say, and an embedder who wants nothing said.
    for (limits, topology) in [(Limits::default(), None), (LIMITS, Some(Topology::default()))] {
        let options = BlockOptions {
            topology,
            ..BlockOptions::default()
        };
        assert_eq!(over_limits(limits, options).offered() & F_TOPOLOGY, 0);
    }
}

#[test]
fn limits_that_have_no_room_in_the_configuration_space_are_cut_or_left_out() {
    let limits = |alignment_offset, minimum_io| Limits {
        alignment_offset,
        minimum_io,
        logical_block: 512,
        ..LIMITS
    };
    let told = |limits| told(&over_limits(limits, BlockOptions::default()));
    // Where the first physical block is cannot be said: not a block, or too far.
    for offset in [100, 256 * 512, u32::MAX] {
        assert_eq!(told(limits(offset, 1024)), (512, 0, 0, 2, 2048, 64), "{offset}");
    }
    assert_eq!(told(limits(255 * 512, u32::MAX)), (512, 5, 255, u16::MAX, 2048, 64));
    let odd = Rigged::with_limits(16, Limits::of_blocks(1000));
    let refused = Block::new(odd, BlockOptions::default());
    assert!(matches!(refused, Err(BlockError::BlockSize(1000))));
}

#[test]
fn a_capacity_is_rounded_down_to_whole_blocks() {
    for (bytes, block_size, sectors) in [
        (0, 512, 0),
        (511, 512, 0),
        (512, 512, 1),
        (1535, 512, 2),
        (4096 + 3584, 4096, 8),
        (8192, 4096, 16),
    ] {
        let options = BlockOptions {
            block_size: Some(block_size),
            ..BlockOptions::default()
        };
        let block = Block::new(MemoryStorage::new(bytes), options).unwrap();
        assert_eq!(block.capacity(), sectors, "{bytes} bytes in blocks of {block_size}");
    }
}

#[test]
fn the_odd_end_of_a_storage_is_out_of_reach() {
    let storage = Rigged::new(2);
    storage.data.resize(1024 + 100);
    let mut disk = Disk::over(Arc::new(storage), BlockOptions::default());
    assert_eq!(disk.write(2, &[1; 512]), IOERR);
    assert_eq!(disk.request(T_WRITE_ZEROES, 0, &segment(2, 1, 0), 0).0, IOERR);
    assert_eq!(disk.storage.calls(), []);
}

#[test]
fn options_out_of_range_are_refused() {
    let refused = |change: &dyn Fn(&mut BlockOptions)| {
        let mut options = BlockOptions::default();
        change(&mut options);
        let result = Block::new(MemoryStorage::new(512), options);
        result.expect_err("out of range").to_string()
    };
    let limits = |max_sectors, max_segments| {
        Some(RangeLimits {
            max_sectors,
            max_segments,
        })
    };
    for (message, expected) in [
        (refused(&|o| o.id = "a".repeat(21)), "up to 20 bytes"),
        (refused(&|o| o.id = "ö".into()), "ASCII"),
        (refused(&|o| o.block_size = Some(256)), "from 512 to 65536"),
        (refused(&|o| o.block_size = Some(0)), "from 512 to 65536"),
        (refused(&|o| o.block_size = Some(1000)), "power of two"),
        (refused(&|o| o.block_size = Some(1 << 17)), "from 512 to 65536"),
        (refused(&|o| o.queues = 0), "at least one"),
        (refused(&|o| o.queue_size = 0), "power of two from 4"),
        (refused(&|o| o.queue_size = 2), "power of two from 4"),
        (refused(&|o| o.queue_size = 100), "power of two from 4"),
        (refused(&|o| o.size_max = Some(4095)), "at least 4096"),
        (refused(&|o| o.discard = limits(0, 1)), "max_discard_sectors is 0"),
        (refused(&|o| o.discard = limits(1, 0)), "max_discard_seg is 0"),
        (refused(&|o| o.discard = limits(1, 1025)), "1 to 1024"),
        (
            refused(&|o| o.discard_alignment = Some(0)),
            "discard_sector_alignment is 0",
        ),
        (
            refused(&|o| o.write_zeroes = limits(0, 1)),
            "max_write_zeroes_sectors is 0",
        ),
        (refused(&|o| o.write_zeroes = limits(1, 0)), "max_write_zeroes_seg is 0"),
        (refused(&|o| o.write_zeroes = limits(1, 1025)), "1 to 1024"),
    ] {
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

// State.

fn refused(restored: Result<Block, DeviceStateError>, why: &BlockError) {
    assert_eq!(restored.err(), Some(DeviceStateError::Otherwise(why.to_string())));
}

#[test]
fn a_restored_disk_is_the_one_that_was_saved() {
    let mut disk = Disk::with(BlockOptions {
        id: "kept".into(),
        ..small_segments()
    });
    disk.activate(disk.offered());
    disk.write_config(32, &[0]);
    let state = saved(&disk.block);

    let mut restored = Disk::from_block(
        restore(Arc::clone(&disk.storage), &state).unwrap(),
        Arc::clone(&disk.storage),
    );
    assert_eq!(saved(&restored.block), state);
    restored.activate(disk.offered());
    assert_eq!(restored.config(0, 60), disk.config(0, 60));
    assert_eq!(restored.config(32, 1), [0]);
    assert_eq!(restored.write(0, &[1; 512]), OK);
    assert_eq!(disk.storage.calls(), WRITE_THEN_FLUSH);
}

#[test]
fn a_storage_that_grew_is_restored_as_the_guest_knows_it_and_a_shrunk_one_refused() {
    let disk = Disk::new(16);
    let state = saved(&disk.block);
    let mut grown = restore(MemoryStorage::new(20 * 512), &state).unwrap();
    assert_eq!(grown.capacity(), 16);
    assert_eq!(grown.refresh_capacity().unwrap(), 20);

    let shrunk = restore(MemoryStorage::new(15 * 512), &state);
    refused(shrunk, &BlockError::Shrunk { saved: 16, present: 15 });
}

#[test]
fn what_the_guest_was_told_stays_over_a_storage_with_other_limits() {
    let disk = over_limits(LIMITS, BlockOptions::default());
    let state = saved(&disk.block);
    // A plain one that can neither discard nor unmap, and is asked to all the same.
    let plain = Arc::new(Rigged::new(256));
    plain.no_discard.store(true, Ordering::SeqCst);
    let mut restored = Disk::from_block(restore(Arc::clone(&plain), &state).unwrap(), plain);
    assert_eq!(restored.offered(), disk.offered());
    assert_eq!(restored.config(0, 60), disk.config(0, 60));
    assert_eq!(saved(&restored.block), state);
    assert_eq!(restored.request(T_DISCARD, 0, &segment(0, 1, 0), 0).0, OK);

    // And the other way round: nothing new is offered.
    let storage = Rigged::new(256);
    storage.no_discard.store(true, Ordering::SeqCst);
    let poor = Disk::over(Arc::new(storage), BlockOptions::default());
    let rich = Arc::new(Rigged::with_limits(256, LIMITS));
    let restored = Disk::from_block(restore(Arc::clone(&rich), &saved(&poor.block)).unwrap(), rich);
    assert_eq!(restored.offered(), poor.offered());
    assert_eq!(restored.config(0, 60), poor.config(0, 60));
}

#[test]
fn a_disk_that_could_be_written_is_not_restored_over_a_storage_that_cannot() {
    let read_only = || {
        let storage = Rigged::new(16);
        storage.read_only.store(true, Ordering::SeqCst);
        storage
    };
    let over_read_only = restore(read_only(), &saved(&Disk::new(16).block));
    refused(over_read_only, &BlockError::ReadOnly);
    // One that could not stays so.
    let state = saved(&Block::new(read_only(), BlockOptions::default()).unwrap());
    let storage = Arc::new(Rigged::new(16));
    let mut restored = Disk::from_block(restore(Arc::clone(&storage), &state).unwrap(), storage);
    assert_eq!(restored.offered() & F_RO, F_RO);
    assert_eq!(restored.write(0, &[1; 512]), IOERR);
}

#[test]
fn a_state_with_impossible_options_or_other_queues_is_refused() {
    let good = saved(&Disk::new(16).block);
    let mut state = good.clone();
    state.options.block_size = Some(3);
    refused(restore(MemoryStorage::new(16 * 512), &state), &BlockError::BlockSize(3));
    // Of these the transport has told the guest.
    for (queues, queue_size) in [(2, 256), (1, 128), (1, 3), (0, 0)] {
        let mut state = good.clone();
        (state.options.queues, state.options.queue_size) = (queues, queue_size);
        let restored = restore(MemoryStorage::new(16 * 512), &state);
        let Err(DeviceStateError::Otherwise(why)) = restored else {
            panic!("{queues} of {queue_size}");
        };
        assert!(why.contains("1 queues of 256"), "{why}");
    }
}

// Over the host's files and devices.

#[cfg(target_os = "linux")]
mod host_storage {
    use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt};

    use super::*;
    use devisor::virtio::block::FileStorage;
    use host_file::{LoopDevice, Temporary};
    use skip::skipped;

    /// A disk over a storage that keeps no log.
    fn over_host(storage: FileStorage) -> Disk {
        let block = Block::new(storage, BlockOptions::default()).unwrap();
        Disk::from_block(block, Arc::new(Rigged::new(0)))
    }

    /// A block device of 256 sectors in blocks of 4096 bytes, with [`pattern`] on it.
    fn device_of_4k_blocks() -> Option<(LoopDevice, Temporary)> {
        let file = Temporary::new(&pattern(256 * 512));
        match LoopDevice::new(&file, 4096) {
            Ok(device) => Some((device, file)),
            Err(why) => {
                skipped(why);
                None
            }
        }
    }

    /// Both ways to use it: by the host's cache, and past it.
    fn open_cached_and_direct(device: &LoopDevice) -> [FileStorage; 2] {
        let open = |flags| {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).custom_flags(flags).open(device).unwrap();
            FileStorage::new(file).unwrap()
        };
        [open(0), open(libc::O_DIRECT)]
    }

    #[test]
    fn a_sector_of_a_host_block_is_zeroed_and_its_discard_does_nothing() {
        let Some((device, file)) = device_of_4k_blocks() else {
            return;
        };
        for storage in open_cached_and_direct(&device) {
            let mut disk = over_host(storage);
            assert_eq!(disk.write(0, &pattern(256 * 512)), OK);
            let mut expected = pattern(256 * 512);
            assert_eq!(disk.request(T_DISCARD, 0, &segment(9, 1, 0), 0).0, OK);
            assert_eq!(disk.read(0, 256 * 512), (OK, expected.clone()));
            // A sector, across two blocks, and from the middle of one to the middle of another with whole ones between.
            for (sector, sectors, unmap) in [(9, 1, 0), (17, 1, 1), (30, 4, 0), (45, 50, 0), (101, 70, 1)] {
                let segment = segment(sector, sectors, unmap);
                assert_eq!(
                    disk.request(T_WRITE_ZEROES, 0, &segment, 0).0,
                    OK,
                    "{sectors} at {sector}"
                );
                expected[sector as usize * 512..][..sectors as usize * 512].fill(0);
                assert_eq!(disk.read(0, 256 * 512), (OK, expected.clone()), "{sectors} at {sector}");
            }
            // What a discard leaves is undefined; around it nothing changes.
            assert_eq!(disk.request(T_DISCARD, 0, &segment(201, 30, 0), 0).0, OK);
            let contents = disk.read(0, 256 * 512).1;
            assert_eq!(contents[..201 * 512], expected[..201 * 512]);
            assert_eq!(contents[231 * 512..], expected[231 * 512..]);
            assert_eq!(disk.request(T_FLUSH, 0, &[], 0).0, OK);
            assert_eq!(file.contents(), contents);
            assert_eq!(disk.block.host_failures().count, 0);
        }
    }

    #[test]
    fn a_sector_of_a_host_block_is_read_and_written() {
        let Some((device, _file)) = device_of_4k_blocks() else {
            return;
        };
        for (storage, fill) in open_cached_and_direct(&device).into_iter().zip([7, 8]) {
            let mut disk = over_host(storage);
            let mut expected = disk.read(0, 256 * 512).1;
            for (sector, sectors) in [(9, 1), (15, 2), (24, 8), (33, 101), (255, 1)] {
                assert_eq!(
                    disk.write(sector, &vec![fill; sectors * 512]),
                    OK,
                    "{sectors} at {sector}"
                );
                let range = sector as usize * 512..(sector as usize + sectors) * 512;
                expected[range.clone()].fill(fill);
                assert_eq!(disk.read(sector, sectors * 512), (OK, expected[range].to_vec()));
                assert_eq!(disk.read(0, 256 * 512), (OK, expected.clone()));
            }
        }
    }

    #[test]
    fn a_guest_is_told_the_blocks_of_the_host() {
        let Some((device, _file)) = device_of_4k_blocks() else {
            return;
        };
        for storage in open_cached_and_direct(&device) {
            let disk = over_host(storage);
            assert_eq!(disk.config(20, 4), 4096_u32.to_le_bytes(), "blk_size");
            // A multiple of eight sectors.
            let alignment = u32::from_le_bytes(disk.config(44, 4).try_into().unwrap());
            assert!(alignment != 0 && alignment.is_multiple_of(8), "{alignment}");
        }
    }
}

// Behind virtio-mmio.

type Mmio = VirtioMmio<Block>;

const STATUS_REGISTER: u64 = 0x70;

fn mmio_read(mmio: &Mmio, register: u64) -> u32 {
    let mut data = [0; 4];
    mmio.read(register, &mut data);
    u32::from_le_bytes(data)
}

fn mmio_write(mmio: &Mmio, register: u64, value: u32) {
    mmio.write(register, &value.to_le_bytes());
}

fn negotiate(mmio: &Mmio, features: u64) {
    for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
        mmio_write(mmio, STATUS_REGISTER, status);
    }
    for sel in 0..2 {
        mmio_write(mmio, 0x24, sel);
        mmio_write(mmio, 0x20, (features >> (32 * sel)) as u32);
    }
    mmio_write(mmio, STATUS_REGISTER, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_ne!(mmio_read(mmio, STATUS_REGISTER) & FEATURES_OK, 0);
}

fn start_queue(mmio: &Mmio, index: u16, ring: &Ring) {
    mmio_write(mmio, 0x30, index.into());
    mmio_write(mmio, 0x38, ring.layout.size.into());
    mmio_write(mmio, 0x80, ring.layout.descriptor_area as u32);
    mmio_write(mmio, 0x90, ring.layout.driver_area as u32);
    mmio_write(mmio, 0xa0, ring.layout.device_area as u32);
    mmio_write(mmio, 0x44, 1);
}

fn go(mmio: &Mmio) {
    mmio_write(mmio, STATUS_REGISTER, mmio_read(mmio, STATUS_REGISTER) | DRIVER_OK);
}

fn silent() -> Line {
    Line::Edge(Arc::new(NoInterrupt))
}

fn read_request(ring: &mut Ring, sector: u64) {
    fill(&ring.memory, HEADER, &header(T_IN, sector));
    ring.request(&[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)]);
}

#[test]
fn writeback_has_its_value_as_soon_as_features_are_ok() {
    let memory = guest_memory();
    let disk = Block::new(MemoryStorage::new(512), BlockOptions::default()).unwrap();
    let mmio = VirtioMmio::new(disk, memory, silent()).unwrap();
    for (accepted, writeback) in [(F_CONFIG_WCE, 0), (F_CONFIG_WCE | F_FLUSH, 1)] {
        negotiate(&mmio, features::VERSION_1 | accepted);
        let mut value = [9];
        mmio.read(0x120, &mut value);
        assert_eq!(value, [writeback]);
    }
}

#[test]
fn a_driver_that_writes_writeback_reads_another_generation() {
    let disk = Block::new(MemoryStorage::new(512), BlockOptions::default()).unwrap();
    let mmio = VirtioMmio::new(disk, guest_memory(), silent()).unwrap();
    negotiate(&mmio, features::VERSION_1 | F_CONFIG_WCE | F_FLUSH);
    let generation = || mmio_read(&mmio, 0xfc);
    let before = generation();
    mmio.write(0x120, &[0]);
    assert_ne!(generation(), before);
    assert_eq!(generation(), generation());
}

#[test]
fn a_malformed_request_costs_that_request_and_is_counted() {
    let memory = guest_memory();
    let disk = Block::new(MemoryStorage::new(1024), BlockOptions::default()).unwrap();
    let mmio = VirtioMmio::new(disk, Arc::clone(&memory), silent()).unwrap();
    let mut ring = Ring::new(&memory, 0x1000, 8);
    negotiate(&mmio, features::VERSION_1);
    start_queue(&mmio, 0, &ring);
    go(&mmio);
    let working = mmio.status();
    ring.request(&[readable(HEADER, 16)]);
    read_request(&mut ring, 1);
    mmio_write(&mmio, 0x50, 0);
    assert_eq!(ring.used(), [(0, 0), (1, 513)]);
    assert_eq!(get(&memory, STATUS, 1), [OK]);
    assert_eq!((mmio.status(), mmio.fault()), (working, None));
    let counters = mmio.queue_counters(QueueIndex(0)).unwrap();
    assert_eq!((counters.requests, counters.malformed), (2, 1));
}

#[test]
fn a_disk_grows_while_the_guest_runs() {
    let memory = guest_memory();
    let storage = Arc::new(MemoryStorage::new(4 * 512));
    let disk = Block::new(Arc::clone(&storage), BlockOptions::default()).unwrap();
    let raised = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = Arc::clone(&raised);
    let line = from_fn(move || {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let mmio = VirtioMmio::new(disk, Arc::clone(&memory), Line::Edge(Arc::new(line))).unwrap();
    let mut ring = Ring::new(&memory, 0x1000, 8);
    negotiate(&mmio, features::VERSION_1);
    start_queue(&mmio, 0, &ring);
    go(&mmio);
    read_request(&mut ring, 5);
    mmio_write(&mmio, 0x50, 0);
    assert_eq!(get(&memory, STATUS, 1), [IOERR]);
    let (generation, before) = (mmio_read(&mmio, 0xfc), raised.load(Ordering::SeqCst));

    storage.resize(8 * 512);
    assert_eq!(mmio_read(&mmio, 0x100), 4, "not before it is told");
    assert_eq!(mmio.change_config(|disk| disk.refresh_capacity()).unwrap(), 8);
    assert_eq!(mmio_read(&mmio, 0x100), 8);
    assert_ne!(mmio_read(&mmio, 0xfc), generation);
    assert_eq!(raised.load(Ordering::SeqCst), before + 1);
    assert_ne!(mmio_read(&mmio, 0x60) & 2, 0, "a configuration change");
    read_request(&mut ring, 5);
    mmio_write(&mmio, 0x50, 0);
    assert_eq!(get(&memory, STATUS, 1), [OK]);

    storage.resize(2 * 512);
    mmio.change_config(|disk| disk.refresh_capacity()).unwrap();
    read_request(&mut ring, 3);
    mmio_write(&mmio, 0x50, 0);
    assert_eq!(get(&memory, STATUS, 1), [IOERR]);
}

#[test]
fn every_queue_of_a_multiqueue_disk_is_served() {
    let memory = guest_memory();
    let options = BlockOptions {
        queues: 2,
        ..BlockOptions::default()
    };
    let disk = Block::new(MemoryStorage::new(1024), options).unwrap();
    let mmio = VirtioMmio::new(disk, Arc::clone(&memory), silent()).unwrap();
    negotiate(&mmio, features::VERSION_1 | F_MQ);
    let mut rings = [Ring::new(&memory, 0x1000, 8), Ring::new(&memory, 0x8000, 8)];
    start_queue(&mmio, 0, &rings[0]);
    start_queue(&mmio, 1, &rings[1]);
    go(&mmio);
    for (index, ring) in (0..).zip(&mut rings) {
        fill(&memory, STATUS, &[0xee]);
        read_request(ring, 1);
        mmio_write(&mmio, 0x50, index);
        assert_eq!(ring.used(), [(0, 513)]);
        assert_eq!(get(&memory, STATUS, 1), [OK]);
    }
}

#[test]
fn a_disk_behind_a_transport_goes_on_where_it_was_saved() {
    let memory = guest_memory();
    let storage = Arc::new(Rigged::new(16));
    let disk = Block::new(Arc::clone(&storage), BlockOptions::default()).unwrap();
    let mmio = VirtioMmio::new(disk, Arc::clone(&memory), silent()).unwrap();
    let mut ring = Ring::new(&memory, 0x1000, 8);
    negotiate(&mmio, features::VERSION_1 | F_FLUSH | F_CONFIG_WCE);
    start_queue(&mmio, 0, &ring);
    go(&mmio);
    mmio.write(0x120, &[0]);
    read_request(&mut ring, 1);
    mmio_write(&mmio, 0x50, 0);
    assert_eq!(ring.used().len(), 1);
    let state = rest::at_rest(&mmio);
    drop(mmio);

    // Made available while nobody looks.
    fill(&memory, HEADER, &header(T_OUT, 0));
    ring.request(&[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)]);
    let disk = Block::new(Arc::clone(&storage), BlockOptions::default()).unwrap();
    let mmio = VirtioMmio::new(disk, Arc::clone(&memory), silent()).unwrap();
    mmio.restore(&state).unwrap();
    storage.forget_calls();
    mmio.resume();
    assert_eq!(ring.used(), [(3, 1)]);
    // What the driver chose before holds.
    assert_eq!(storage.calls(), WRITE_THEN_FLUSH);
}

#[test]
fn a_disk_behind_a_transport_keeps_what_its_guest_was_told_over_another_storage() {
    let memory = guest_memory();
    let storage = |discards: bool| {
        let storage = Rigged::new(16);
        storage.no_discard.store(!discards, Ordering::SeqCst);
        Arc::new(storage)
    };
    let over = |storage| {
        let disk = Block::new(storage, BlockOptions::default()).unwrap();
        VirtioMmio::new(disk, Arc::clone(&memory), silent()).unwrap()
    };
    let offered = |mmio: &Mmio| mmio_read(mmio, 0x10);
    let [rich, poor] = [true, false].map(|discards| over(storage(discards)));
    assert_ne!(offered(&rich), offered(&poor));
    negotiate(&rich, features::VERSION_1 | F_DISCARD);
    let state = rest::at_rest(&rich);

    poor.restore(&state).unwrap();
    assert_eq!(offered(&poor), offered(&rich));
    assert_eq!(poor.save(), Ok(state));
    poor.reset();
    assert_eq!(offered(&poor), offered(&rich), "also after a reset");

    // Nothing new is offered, and what was not can not have been accepted.
    let [rich, poor] = [true, false].map(|discards| over(storage(discards)));
    negotiate(&poor, features::VERSION_1);
    let mut state = rest::at_rest(&poor);
    let before = (offered(&rich), rest::saved(&rich));
    rest::mmio(&mut state).transport.driver_features |= F_DISCARD;
    assert!(rich.restore(&state).is_err());
    assert_eq!((offered(&rich), rest::saved(&rich)), before, "it is as it was");
    rest::mmio(&mut state).transport.driver_features &= !F_DISCARD;
    rich.restore(&state).unwrap();
    assert_eq!(offered(&rich), offered(&poor));
}

// Random requests, in random framings, on a storage with random moods, against a model.

#[derive(Clone, Debug)]
enum Request {
    Read { sector: u64, len: usize },
    Write { sector: u64, data: Vec<u8> },
    WriteZeroes { sector: u64, sectors: u32, flags: u32 },
    Discard { sector: u64, sectors: u32, flags: u32 },
    Other { kind: u32, data: Vec<u8>, room: usize },
}

const SECTORS: u64 = 24;

fn any_sector() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..SECTORS + 2, 1 => any::<u64>(), 1 => (0..4_u64).prop_map(|n| (1 << 55) + n)]
}

fn any_len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => (0..6_usize).prop_map(|sectors| sectors * 512), 1 => 0..3000_usize]
}

fn any_request() -> impl Strategy<Value = Request> {
    let flags = || prop_oneof![4 => 0..2_u32, 1 => any::<u32>()];
    let sectors = || prop_oneof![4 => 0..6_u32, 1 => any::<u32>()];
    prop_oneof![
        4 => (any_sector(), any_len()).prop_map(|(sector, len)| Request::Read { sector, len }),
        4 => (any_sector(), any_len(), any::<u8>()).prop_map(|(sector, len, seed)| Request::Write {
            sector,
            data: pattern(len).iter().map(|byte| byte ^ seed).collect(),
        }),
        2 => (any_sector(), sectors(), flags())
            .prop_map(|(sector, sectors, flags)| Request::WriteZeroes { sector, sectors, flags }),
        2 => (any_sector(), sectors(), flags())
            .prop_map(|(sector, sectors, flags)| Request::Discard { sector, sectors, flags }),
        1 => (any::<u32>(), prop::collection::vec(any::<u8>(), 0..80), 0..80_usize)
            .prop_filter("not a request that changes data", |(kind, ..)| ![T_OUT, T_DISCARD, T_WRITE_ZEROES].contains(kind))
            .prop_map(|(kind, data, room)| Request::Other { kind, data, room }),
    ]
}

/// The range in the model, if all of it is there.
fn range_of(sector: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let end = u128::from(sector) * 512 + len as u128;
    let fits = len.is_multiple_of(512) && end <= u128::from(SECTORS * 512);
    fits.then(|| sector as usize * 512..end as usize)
}

/// What a disk does, on a plain vector. `None` for a status that the model does not know.
fn model(disk: &mut [u8], request: &Request) -> (Option<u8>, Vec<u8>) {
    let zeroed = |disk: &mut [u8], sector, sectors: u32, flags: u32, known: u32| {
        let range = range_of(sector, sectors as usize * 512).filter(|_| sectors <= 4);
        match range {
            _ if flags & !known != 0 => UNSUPP,
            Some(range) => {
                disk[range].fill(0);
                OK
            }
            None => IOERR,
        }
    };
    match request {
        Request::Read { sector, len } => match range_of(*sector, *len) {
            Some(range) => (Some(OK), disk[range].to_vec()),
            None => (Some(IOERR), vec![0; *len]),
        },
        Request::Write { sector, data } => match range_of(*sector, data.len()) {
            Some(range) => {
                disk[range].copy_from_slice(data);
                (Some(OK), vec![])
            }
            None => (Some(IOERR), vec![]),
        },
        &Request::WriteZeroes { sector, sectors, flags } => (Some(zeroed(disk, sector, sectors, flags, 1)), vec![]),
        // The rigged storage discards to zeros.
        &Request::Discard { sector, sectors, flags } => (Some(zeroed(disk, sector, sectors, flags, 0)), vec![]),
        Request::Other { .. } => (None, vec![]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_requests_in_any_framing_do_what_a_model_does(
        requests in prop::collection::vec((any_request(), prop::collection::vec(0..600_u32, 0..12)), 1..24),
        at_most in prop_oneof![Just(usize::MAX), 1..2000_usize],
        interrupt_every in 0..4_usize,
    ) {
        let mut disk = Disk::over(Arc::new(Rigged::new(SECTORS as usize)), small_segments());
        disk.storage.at_most.store(at_most, Ordering::SeqCst);
        disk.storage.interrupt_every.store(if interrupt_every == 1 { 0 } else { interrupt_every }, Ordering::SeqCst);
        let mut expected = pattern(SECTORS as usize * 512);
        for (request, cuts) in requests {
            let (kind, sector, data, room) = match &request {
                Request::Read { sector, len } => (T_IN, *sector, vec![], *len),
                Request::Write { sector, data } => (T_OUT, *sector, data.clone(), 0),
                Request::WriteZeroes { sector, sectors, flags } => {
                    (T_WRITE_ZEROES, 0, segment(*sector, *sectors, *flags).to_vec(), 0)
                }
                Request::Discard { sector, sectors, flags } => {
                    (T_DISCARD, 0, segment(*sector, *sectors, *flags).to_vec(), 0)
                }
                Request::Other { kind, data, room } => (*kind, 0, data.clone(), *room),
            };
            let (status, output) = disk.request_cut(kind, sector, &data, room, &cuts);
            let (expected_status, expected_output) = model(&mut expected, &request);
            if let Some(expected_status) = expected_status {
                prop_assert_eq!((status, output), (expected_status, expected_output), "{:?}", request);
            }
            prop_assert_eq!(&disk.contents(), &expected, "{:?}", request);
        }
    }

    #[test]
    fn any_chain_is_answered_or_comes_back_empty(
        header in prop::array::uniform16(any::<u8>()),
        kind in prop_oneof![Just(None), (0..16_u8).prop_map(Some)],
        buffers in prop::collection::vec((0..MEMORY_SIZE, 0..4096_u32), 1..12),
        readable_buffers in 0..12_usize,
    ) {
        let mut disk = Disk::with(small_segments());
        let mut header = header;
        if let Some(kind) = kind {
            header[..4].copy_from_slice(&u32::from(kind).to_le_bytes());
        }
        disk.fill(HEADER, &header);
        let mut chain = vec![readable(HEADER, 16)];
        for (position, (address, len)) in buffers.into_iter().enumerate() {
            // Away from the ring, which a guest may overwrite only to its own harm, and within memory.
            let address = address.clamp(DATA, MEMORY_SIZE - 4096);
            chain.push(Buffer { address, len, writable: position >= readable_buffers });
        }
        let writable_len: u32 = chain.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.len).sum();
        disk.ring.request(&chain);
        prop_assert_eq!(disk.process(), Ok(vec![writable_len]));
        prop_assert_eq!(disk.counters().malformed, u64::from(writable_len == 0));
    }
}
