//! Stable storage (section 5.2.6.2). Run over each kind of storage.

use super::Disk;
use crate::support::*;

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
