//! What a driver gets for each request, and what a hostile one cannot get. Run over each kind of storage.

use std::sync::{Arc, atomic::Ordering};

use devisor::virtio::block::{BlockOptions, Lifetime};

use super::Disk;
use crate::{
    ring::{Buffer, readable, writable},
    support::*,
};

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
    disk.storage.fail_call(2);
    disk.fill(DATA, &[0xee; 4096]);
    let (status, data) = disk.read(0, 2048);
    assert_eq!(status, IOERR);
    assert_eq!(data[..700], pattern(700));
    assert_eq!(data[700..], [0; 1348]);
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

// Secure erase and lifetime.

/// A disk over a storage that can erase, of which it is known how worn it is.
fn worn() -> (Arc<Rigged>, Disk) {
    let storage = Arc::new(Rigged::new(16));
    storage.secure_erase.store(true, Ordering::SeqCst);
    *storage.lifetime.lock().unwrap() = Some(Lifetime {
        pre_eol_info: 1,
        device_lifetime_est_typ_a: 0x0203,
        device_lifetime_est_typ_b: 11,
    });
    (Arc::clone(&storage), Disk::over(storage, small_segments()))
}

#[test]
fn secure_erase_is_offered_by_a_storage_that_can_and_reaches_it_segment_by_segment() {
    let (storage, mut disk) = worn();
    assert_ne!(disk.offered() & F_SECURE_ERASE, 0);
    assert_eq!(disk.config(60, 12), [4, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0]);
    let segments = [segment(1, 2, 0), segment(4, 0, 0), segment(8, 4, 0)].concat();
    assert_eq!(disk.request(T_SECURE_ERASE, 0, &segments, 0).0, OK);
    let calls = [Call::SecureErase(512, 1024), Call::SecureErase(4096, 2048)];
    assert_eq!(storage.calls(), calls);
    // Unmap is for write zeroes alone; and the limits hold.
    for (segments, status) in [
        (segment(0, 1, 1).to_vec(), UNSUPP),
        (segment(0, 5, 0).to_vec(), IOERR),
        (segment(15, 2, 0).to_vec(), IOERR),
        (segment(0, 1, 0).repeat(4), IOERR),
    ] {
        assert_eq!(disk.request(T_SECURE_ERASE, 0, &segments, 0).0, status);
    }
    assert_eq!(storage.calls(), calls);
    disk.activate(0);
    assert_eq!(disk.request(T_SECURE_ERASE, 0, &segment(0, 1, 0), 0).0, UNSUPP);

    let read_only = Disk::over(
        storage,
        BlockOptions {
            read_only: true,
            ..BlockOptions::default()
        },
    );
    assert_eq!(read_only.offered() & F_SECURE_ERASE, 0);
    assert_eq!(Disk::new(4).offered() & (F_SECURE_ERASE | F_LIFETIME), 0);
}

#[test]
fn the_lifetime_of_a_storage_is_told_as_it_is_when_it_is_asked() {
    let (storage, mut disk) = worn();
    assert_ne!(disk.offered() & F_LIFETIME, 0);
    assert_eq!(disk.request(T_GET_LIFETIME, 0, &[], 6), (OK, vec![1, 0, 3, 2, 11, 0]));
    assert_eq!(
        disk.request(T_GET_LIFETIME, 0, &[], 8),
        (OK, vec![1, 0, 3, 2, 11, 0, 0, 0])
    );
    assert_eq!(disk.request(T_GET_LIFETIME, 0, &[], 5), (IOERR, vec![0; 5]));
    storage.lifetime.lock().unwrap().as_mut().unwrap().pre_eol_info = 3;
    assert_eq!(disk.request(T_GET_LIFETIME, 0, &[], 6).1[0], 3);
    *storage.lifetime.lock().unwrap() = None;
    assert_eq!(disk.request(T_GET_LIFETIME, 0, &[], 6), (IOERR, vec![0; 6]));
    disk.activate(0);
    assert_eq!(disk.request(T_GET_LIFETIME, 0, &[], 6).0, UNSUPP);
}
