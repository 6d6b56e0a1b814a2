//! Zoned disks (virtio 1.3, section 5.2): host-managed zones over a storage that emulates them, at once and by way of threads.

use std::sync::Arc;

use devisor::virtio::{
    DeviceState, VirtioDevice, VirtioTransport,
    block::{
        Block, BlockOptions, MemoryStorage, Pool, Storage, Synchronous, Zone, ZoneLimits, ZoneState, ZonedError,
        ZonedStorage,
    },
};

use crate::{guest::Guest, support::*};

const F_ZONED: u64 = 1 << 17;
const T_ZONE_APPEND: u32 = 15;
const T_ZONE_REPORT: u32 = 16;
const T_ZONE_OPEN: u32 = 18;
const T_ZONE_CLOSE: u32 = 20;
const T_ZONE_FINISH: u32 = 22;
const T_ZONE_RESET: u32 = 24;
const T_ZONE_RESET_ALL: u32 = 26;
const INVALID_CMD: u8 = 3;
const UNALIGNED_WP: u8 = 4;
const OPEN_RESOURCE: u8 = 5;
const ACTIVE_RESOURCE: u8 = 6;

/// Five zones of 16 sectors and one of 4.
const LIMITS: ZoneLimits = ZoneLimits {
    zone_size: 16 * 512,
    max_open: 2,
    max_active: 3,
    max_append: 8 * 512,
    write_granularity: 512,
};

type Zoned = Arc<ZonedStorage<MemoryStorage>>;

struct Zones {
    storage: Zoned,
    guest: Guest,
    pool: Pool,
}

impl Zones {
    fn new(how: u8, features: u64) -> Self {
        let storage = Arc::new(ZonedStorage::new(MemoryStorage::new(84 * 512), LIMITS).expect("zones"));
        let pool = Pool::new();
        let options = BlockOptions::default();
        let block = match how {
            0 => Block::new(Arc::clone(&storage), options),
            1 => Block::with_async(Synchronous::from(Arc::clone(&storage)), options),
            _ => Block::with_async(pool.storage(Arc::clone(&storage)), options),
        };
        let guest = Guest::new(block.expect("valid options"), 1, features);
        Self { storage, guest, pool }
    }

    /// Each of the ways in which requests are served, with everything negotiated.
    fn each(test: impl Fn(Self)) {
        (0..3).for_each(|how| test(Self::new(how, u64::MAX >> 16)));
    }

    fn ask(&mut self, kind: u32, sector: u64, data: &[u8], room: usize) -> (u8, Vec<u8>) {
        let asked = self.guest.ask(0, kind, sector, data, room);
        self.guest.kick(0);
        while self.pool.run_one() {
            self.guest.device.run();
        }
        assert_eq!(self.guest.used(0), [asked.head]);
        self.guest.answer(asked)
    }

    fn write(&mut self, sector: u64, sectors: usize) -> u8 {
        self.ask(T_OUT, sector, &vec![sector as u8 + 1; sectors * 512], 0).0
    }

    fn act(&mut self, kind: u32, sector: u64) -> u8 {
        self.ask(kind, sector, &[], 0).0
    }

    fn append(&mut self, sector: u64, sectors: usize) -> Result<u64, u8> {
        match self.ask(T_ZONE_APPEND, sector, &vec![7; sectors * 512], 8) {
            (OK, at) => Ok(u64::from_le_bytes(at.try_into().unwrap())),
            (status, _) => Err(status),
        }
    }

    /// State and write pointer of a zone, in sectors.
    fn zone(&self, index: usize) -> (ZoneState, u64) {
        let Zone {
            state, write_pointer, ..
        } = self.storage.save()[index];
        (state, write_pointer / 512)
    }
}

#[test]
fn the_zones_are_told_and_nothing_is_offered_that_does_not_suit_them() {
    let storage = ZonedStorage::new(MemoryStorage::new(84 * 512), LIMITS).unwrap();
    let block = Block::new(storage, BlockOptions::default()).unwrap();
    assert_ne!(block.features() & F_ZONED, 0);
    assert_eq!(block.features() & (F_DISCARD | F_WRITE_ZEROES | F_SECURE_ERASE), 0);
    let mut space = [0xee; 26];
    block.read_config(72, &mut space);
    let numbers = [16_u32, 2, 3, 8, 512].map(u32::to_le_bytes).concat();
    assert_eq!(space[..20], numbers);
    assert_eq!(space[20..], [1, 0, 0, 0, 0, 0]);
    assert!(
        block.accepts(F_ZONED) && !block.accepts(F_FLUSH),
        "a driver must know of them"
    );
    assert_eq!(Disk::new(4).offered() & F_ZONED, 0);
}

#[test]
fn without_zones_there_are_no_requests_for_them() {
    let mut disk = Disk::new(32);
    for kind in [T_ZONE_APPEND, T_ZONE_REPORT, T_ZONE_OPEN, T_ZONE_RESET_ALL] {
        assert_eq!(disk.request(kind, 0, &[], 128).0, UNSUPP);
    }
}

#[test]
fn a_zone_is_written_where_its_write_pointer_is_and_nowhere_else() {
    Zones::each(|mut zones| {
        assert_eq!(zones.write(16, 4), OK);
        assert_eq!(zones.zone(1), (ZoneState::ImplicitlyOpen, 20));
        assert_eq!(zones.write(16, 1), UNALIGNED_WP);
        assert_eq!(zones.write(21, 1), UNALIGNED_WP);
        assert_eq!(zones.write(20, 13), INVALID_CMD, "into the next one");
        assert_eq!(zones.write(20, 12), OK);
        assert_eq!(zones.zone(1), (ZoneState::Full, 32));
        assert_eq!(zones.write(31, 1), INVALID_CMD, "it is full");
        assert_eq!(zones.ask(T_IN, 16, &[], 512).1, [17; 512]);
        assert_eq!(zones.ask(T_IN, 31, &[], 1024).0, INVALID_CMD, "of two zones");
        assert_eq!(zones.ask(T_IN, 40, &[], 512), (OK, vec![0; 512]), "not written");
        assert_eq!(zones.write(80, 4), OK);
        assert_eq!(zones.zone(5), (ZoneState::Full, 84), "the last is smaller");
        assert_eq!(zones.write(84, 1), IOERR);
        assert_eq!(
            zones.guest.device.with_device(|disk| disk.host_failures().count),
            0,
            "the driver's mistakes"
        );
    });
}

#[test]
fn an_append_says_where_it_has_gone() {
    Zones::each(|mut zones| {
        assert_eq!(zones.append(32, 3), Ok(32));
        assert_eq!(zones.append(32, 8), Ok(35));
        assert_eq!(zones.append(32, 6), Err(INVALID_CMD), "more than there is room for");
        assert_eq!(zones.append(32, 5), Ok(43));
        assert_eq!(zones.append(32, 1), Err(INVALID_CMD), "full");
        assert_eq!(zones.append(33, 1), Err(INVALID_CMD), "not the beginning of a zone");
        assert_eq!(zones.append(0, 9), Err(INVALID_CMD), "more than an append may have");
        assert_eq!(zones.append(0, 0), Err(INVALID_CMD));
        assert_eq!(zones.append(96, 1), Err(IOERR));
        assert_eq!(
            zones.ask(T_ZONE_APPEND, 0, &[7; 512], 7).0,
            IOERR,
            "no room for the sector"
        );
        assert_eq!(zones.ask(T_ZONE_APPEND, 0, &[7; 511], 8).0, IOERR);
        // The sector is right before the status, and what is before that is zeros.
        let (status, answer) = zones.ask(T_ZONE_APPEND, 0, &[7; 512], 20);
        assert_eq!((status, answer), (OK, vec![0; 20]));
        assert_eq!(zones.ask(T_IN, 35, &[], 512).1, [7; 512]);
    });
}

#[test]
fn an_append_is_stable_before_it_ends_without_writeback() {
    // FLUSH is not accepted.
    let mut zones = Zones::new(1, F_ZONED);
    assert_eq!(zones.append(16, 2), Ok(16));
    assert_eq!(zones.append(16, 2), Ok(18));
}

#[test]
fn zones_are_opened_closed_finished_and_reset() {
    Zones::each(|mut zones| {
        assert_eq!(zones.act(T_ZONE_OPEN, 0), OK);
        assert_eq!(zones.zone(0), (ZoneState::ExplicitlyOpen, 0));
        assert_eq!(zones.act(T_ZONE_CLOSE, 0), OK);
        assert_eq!(zones.zone(0), (ZoneState::Empty, 0), "nothing was written");
        assert_eq!(zones.act(T_ZONE_CLOSE, 0), INVALID_CMD);
        assert_eq!(zones.act(T_ZONE_OPEN, 0), OK);
        assert_eq!(zones.write(0, 2), OK);
        assert_eq!(zones.zone(0), (ZoneState::ExplicitlyOpen, 2));
        assert_eq!(zones.act(T_ZONE_CLOSE, 0), OK);
        assert_eq!(zones.zone(0), (ZoneState::Closed, 2));
        assert_eq!(zones.write(2, 1), OK);
        assert_eq!(zones.zone(0), (ZoneState::ImplicitlyOpen, 3));
        assert_eq!(zones.act(T_ZONE_FINISH, 0), OK);
        assert_eq!(zones.zone(0), (ZoneState::Full, 16));
        assert_eq!(
            (zones.act(T_ZONE_OPEN, 0), zones.act(T_ZONE_CLOSE, 0)),
            (INVALID_CMD, INVALID_CMD)
        );
        assert_eq!(zones.act(T_ZONE_FINISH, 0), OK);
        assert_eq!(zones.act(T_ZONE_RESET, 0), OK);
        assert_eq!(zones.zone(0), (ZoneState::Empty, 0));
        assert_eq!(zones.ask(T_IN, 0, &[], 512).1, [0; 512], "what it held is gone");
        assert_eq!(zones.act(T_ZONE_RESET, 1), INVALID_CMD);
        assert_eq!(zones.act(T_ZONE_RESET, 84), IOERR);
        zones.write(16, 1);
        zones.write(80, 4);
        assert_eq!(zones.act(T_ZONE_RESET_ALL, 0), OK);
        assert!(zones.storage.save().iter().all(|zone| zone.state == ZoneState::Empty));
        assert_eq!(zones.act(28, 0), UNSUPP);
    });
}

#[test]
fn as_many_zones_are_open_and_active_as_may_be() {
    Zones::each(|mut zones| {
        assert_eq!((zones.act(T_ZONE_OPEN, 0), zones.act(T_ZONE_OPEN, 16)), (OK, OK));
        assert_eq!(zones.act(T_ZONE_OPEN, 32), OPEN_RESOURCE);
        assert_eq!(zones.write(32, 1), OPEN_RESOURCE);
        assert_eq!(zones.append(32, 1), Err(OPEN_RESOURCE));
        // One that a write has opened makes room.
        assert_eq!(zones.act(T_ZONE_RESET, 16), OK);
        assert_eq!(zones.write(16, 1), OK);
        assert_eq!(zones.write(32, 1), OK);
        assert_eq!(zones.zone(1), (ZoneState::Closed, 17));
        assert_eq!(zones.write(48, 1), ACTIVE_RESOURCE);
        assert_eq!(zones.act(T_ZONE_OPEN, 48), ACTIVE_RESOURCE);
        assert_eq!(zones.act(T_ZONE_FINISH, 16), OK);
        assert_eq!(zones.write(48, 1), OK);
    });
}

#[test]
fn a_report_has_the_zones_from_a_sector_on_as_far_as_there_is_room() {
    Zones::each(|mut zones| {
        zones.write(16, 4);
        let report = |zones: &mut Zones, sector, room| {
            let (status, bytes) = zones.ask(T_ZONE_REPORT, sector, &[], room);
            let count = bytes
                .get(..8)
                .map(|count| u64::from_le_bytes(count.try_into().unwrap()));
            (status, count.unwrap_or(0), bytes)
        };
        let (status, count, bytes) = report(&mut zones, 17, 64 * 3 + 63);
        assert_eq!((status, count), (OK, 2));
        let le64 = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!([64, 72, 80].map(le64), [16, 16, 20]);
        assert_eq!(bytes[88..90], [2, 2]);
        assert_eq!([128, 136, 144].map(le64), [16, 32, 32]);
        assert_eq!(bytes[152..154], [2, 1]);
        assert!(bytes[90..128].iter().chain(&bytes[192..]).all(|&byte| byte == 0));
        let (status, count, bytes) = report(&mut zones, 0, 64 * 20);
        assert_eq!((status, count), (OK, 6));
        assert_eq!(
            u64::from_le_bytes(bytes[64 * 6..][..8].try_into().unwrap()),
            4,
            "the capacity of the last"
        );
        assert_eq!(report(&mut zones, 0, 64).1, 0);
        assert_eq!(report(&mut zones, 0, 63).0, IOERR);
        assert_eq!(report(&mut zones, 85, 640).0, IOERR);
    });
}

#[test]
fn zones_are_saved_as_plain_data_and_restored_over_the_same() {
    let mut zones = Zones::new(0, u64::MAX >> 16);
    zones.write(16, 4);
    zones.act(T_ZONE_OPEN, 32);
    zones.write(80, 4);
    let saved = zones.storage.save();
    let other = ZonedStorage::new(MemoryStorage::new(84 * 512), LIMITS).unwrap();
    other.restore(saved.clone()).expect("its own");
    assert_eq!(other.save(), saved);
    for wrong in [
        |zones: &mut Vec<Zone>| _ = zones.pop(),
        |zones: &mut Vec<Zone>| zones[0].write_pointer = 1,
        |zones: &mut Vec<Zone>| zones[0].state = ZoneState::Full,
        |zones: &mut Vec<Zone>| zones[1].write_pointer = 40 * 512,
        |zones: &mut Vec<Zone>| zones[2].capacity = 512,
        |zones: &mut Vec<Zone>| (0..5).for_each(|index| zones[index].state = ZoneState::ExplicitlyOpen),
    ] {
        let mut zones = saved.clone();
        wrong(&mut zones);
        assert_eq!(other.restore(zones), Err(ZonedError::Zones));
    }

    let DeviceState::Block(state) = zones.guest.device.with_device(|disk| disk.save()) else {
        panic!("a disk's")
    };
    assert_eq!(state.zones, Some(LIMITS));
    let restore = |storage: Arc<dyn Storage>| {
        let mut block = Block::new(storage, BlockOptions::default()).unwrap();
        block.restore(&DeviceState::Block(state.clone())).map(|()| block)
    };
    assert!(restore(Arc::new(other)).is_ok());
    assert!(
        restore(Arc::new(MemoryStorage::new(84 * 512))).is_err(),
        "without zones"
    );
    let larger = ZoneLimits {
        zone_size: 32 * 512,
        ..LIMITS
    };
    assert!(
        restore(Arc::new(
            ZonedStorage::new(MemoryStorage::new(84 * 512), larger).unwrap()
        ))
        .is_err()
    );
}

#[test]
fn zones_that_cannot_be_are_refused() {
    let made = |len, limits| {
        ZonedStorage::new(MemoryStorage::new(len), limits)
            .map(|_| ())
            .unwrap_err()
    };
    assert_eq!(
        made(
            1 << 20,
            ZoneLimits {
                zone_size: 12_288,
                ..LIMITS
            }
        ),
        ZonedError::Size(12_288)
    );
    assert_eq!(
        made(
            1 << 20,
            ZoneLimits {
                zone_size: 2048,
                ..LIMITS
            }
        ),
        ZonedError::Size(2048)
    );
    assert_eq!(
        made(
            1 << 20,
            ZoneLimits {
                write_granularity: 16_384,
                ..LIMITS
            }
        ),
        ZonedError::Granularity(16_384)
    );
    assert_eq!(made(511, LIMITS), ZonedError::Capacity);
}

/// A null_blk with zones, such as `tests/guest/polled.sh` has: of megabytes, the first two conventional, four of them open at most.
#[cfg(target_os = "linux")]
#[test]
fn a_zoned_device_of_the_host_is_the_guests() {
    use std::{
        fs::{self, OpenOptions},
        os::unix::fs::OpenOptionsExt,
    };

    use devisor::virtio::block::ZonedDevice;

    const ZONE: u64 = 2048;
    if fs::read_to_string("/sys/block/nullb0/queue/zoned").is_ok_and(|zoned| zoned.trim() == "host-managed") {
        for pooled in [false, true] {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_DIRECT);
            let device = ZonedDevice::new(options.open("/dev/nullb0").expect("a device")).expect("zones");
            let pool = Pool::new();
            let block = match pooled {
                false => Block::new(device, BlockOptions::default()),
                true => Block::with_async(pool.storage(device), BlockOptions::default()),
            };
            let mut guest = Guest::new(block.expect("valid options"), 1, u64::MAX >> 16);
            let mut ask = |kind, sector, data: &[u8], room| {
                let asked = guest.ask(0, kind, sector, data, room);
                guest.kick(0);
                while pool.run_one() {
                    guest.device.run();
                }
                guest.answer(asked)
            };
            assert_eq!(ask(T_ZONE_RESET_ALL, 0, &[], 0).0, OK);
            let (status, report) = ask(T_ZONE_REPORT, ZONE, &[], 3 * 64);
            let kinds = report[64..].chunks(64).map(|zone| (zone[24], zone[25]));
            assert_eq!((status, kinds.collect::<Vec<_>>()), (OK, vec![(1, 0), (2, 1)]));
            assert_eq!(ask(T_OUT, 700, &[3; 1024], 0).0, OK, "anywhere in a conventional zone");
            let at = 2 * ZONE;
            assert_eq!(ask(T_OUT, at, &[1; 4096], 0).0, OK);
            assert_eq!(ask(T_OUT, at, &[2; 4096], 0).0, UNALIGNED_WP);
            let (status, answer) = ask(T_ZONE_APPEND, at, &[2; 2048], 8);
            assert_eq!((status, &answer[..8]), (OK, &(at + 8).to_le_bytes()[..]));
            assert_eq!(ask(T_IN, at + 7, &[], 1024).1, [[1; 512], [2; 512]].concat());
            assert_eq!(
                ask(T_ZONE_APPEND, 0, &[2; 2048], 8).0,
                INVALID_CMD,
                "it has no write pointer"
            );
            let opened: Vec<_> = (3..8).map(|zone| ask(T_ZONE_OPEN, zone * ZONE, &[], 0).0).collect();
            assert_eq!(opened, [OK, OK, OK, OK, OPEN_RESOURCE]);
            assert_eq!(ask(T_ZONE_CLOSE, 3 * ZONE, &[], 0).0, OK);
            assert_eq!(ask(T_ZONE_FINISH, at, &[], 0).0, OK);
            assert_eq!(ask(T_OUT, at + 12, &[2; 512], 0).0, INVALID_CMD, "it is full");
            assert_eq!(ask(T_ZONE_RESET, at, &[], 0).0, OK);
            let (status, data) = ask(T_IN, at, &[], 512);
            assert_eq!((status, data.contains(&1)), (OK, false), "what it held is gone");
            assert_eq!(ask(T_ZONE_OPEN, at + 8, &[], 0).0, INVALID_CMD, "no zone begins there");
            assert_eq!(ask(T_FLUSH, 0, &[], 0).0, OK);
        }
    } else {
        crate::skip::skipped("no zoned null_blk, as tests/guest/polled.sh has one");
    }
}
