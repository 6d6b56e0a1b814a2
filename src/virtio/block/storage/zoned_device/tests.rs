//! Over a stand-in for the kernel's requests, and a regular file for what is written.

use std::{
    env,
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    process,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU32, Ordering},
    },
};

use super::{super::file::tests::folder_past_memory, *};

const SIZE: u64 = 1 << 16;

/// Zones that are looked after by hand; every request fails with an error once there is one.
#[derive(Default)]
struct Stand {
    zones: Mutex<Vec<Zone>>,
    fails: AtomicI32,
    asked: Mutex<Vec<(ZoneAction, u64, u64)>>,
    sectors: AtomicU32,
}

impl Device for Arc<Stand> {
    fn zone_sectors(&self) -> io::Result<u32> {
        Ok(self.sectors.load(Ordering::Relaxed))
    }

    fn report(&self, sector: u64, count: usize) -> io::Result<Vec<Zone>> {
        let first = (sector * 512 / SIZE) as usize;
        Ok(lock(&self.zones).iter().skip(first).take(count).copied().collect())
    }

    fn act(&self, action: ZoneAction, sector: u64, sectors: u64) -> io::Result<()> {
        lock(&self.asked).push((action, sector, sectors));
        match self.fails.load(Ordering::Relaxed) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    fn attribute(&self, name: &str) -> Option<u32> {
        (name == "max_open_zones").then_some(3)
    }
}

/// Four zones, the first of which is conventional.
fn stand() -> Arc<Stand> {
    let zone = |index: u64, state, written| Zone {
        start: index * SIZE,
        capacity: SIZE - 4096,
        write_pointer: index * SIZE + written,
        state,
    };
    Arc::new(Stand {
        zones: Mutex::new(vec![
            zone(0, ZoneState::NotWritePointer, SIZE - 4096),
            zone(1, ZoneState::ImplicitlyOpen, 8192),
            zone(2, ZoneState::Full, SIZE - 4096),
            zone(3, ZoneState::ReadOnly, SIZE - 4096),
        ]),
        sectors: AtomicU32::new((SIZE / 512) as u32),
        ..Stand::default()
    })
}

fn over(stand: &Arc<Stand>, flags: i32) -> Result<ZonedDevice, ZonedDeviceError> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = folder_past_memory().join(format!("devisor-zoned-{}-{number}", process::id()));
    fs::write(&path, vec![0; 4 * SIZE as usize]).expect("room");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(flags).open(&path);
    fs::remove_file(&path).expect("it is there");
    ZonedDevice::over(
        FileStorage::new(file.expect("direct I/O"))?,
        Box::new(Arc::clone(stand)),
    )
}

fn wrong<T: fmt::Debug>(result: io::Result<T>) -> ZoneError {
    let error = result.expect_err("it is wrong");
    ZoneError::of(&error).unwrap_or_else(|| panic!("{error}"))
}

#[test]
fn what_is_no_zoned_device_is_refused_in_a_sentence() {
    let stand = stand();
    assert!(matches!(over(&stand, 0), Err(ZonedDeviceError::Cached)));
    stand.sectors.store(96, Ordering::Relaxed);
    assert!(matches!(over(&stand, libc::O_DIRECT), Err(ZonedDeviceError::Size(96))));
    stand.sectors.store(0, Ordering::Relaxed);
    assert!(matches!(
        over(&stand, libc::O_DIRECT),
        Err(ZonedDeviceError::NotZoned(_))
    ));
    let file = fs::File::open(env::current_exe().expect("this program")).expect("it is there");
    let error = ZonedDevice::new(file).expect_err("a regular file");
    assert!(matches!(error, ZonedDeviceError::NotZoned(_)), "{error}");
}

#[test]
fn a_write_is_where_the_device_says_and_an_append_finds_out() {
    let stand = stand();
    let disk = over(&stand, libc::O_DIRECT).expect("a zoned device");
    assert_eq!(
        (Zones::limits(&disk).zone_size, Zones::limits(&disk).max_open),
        (SIZE, 3)
    );
    let mut data = vec![7; 4096];
    let buffers = [VolatileSlice::from(&mut data[..])];
    assert_eq!(wrong(disk.write_at(SIZE, &buffers)), ZoneError::Unaligned);
    assert_eq!(wrong(disk.write_at(2 * SIZE, &buffers)), ZoneError::Invalid);
    assert_eq!(wrong(disk.write_at(3 * SIZE, &buffers)), ZoneError::Invalid);
    assert_eq!(wrong(disk.append(0, &buffers)), ZoneError::Invalid);
    assert_eq!(wrong(disk.append(2 * SIZE, &buffers)), ZoneError::Invalid);
    assert_eq!(disk.write_at(4096, &buffers).expect("a conventional zone"), 4096);
    assert_eq!(disk.append(SIZE, &buffers).expect("room"), SIZE + 8192);
    lock(&stand.zones)[1].write_pointer += 4096;
    assert_eq!(disk.write_at(SIZE + 12288, &buffers).expect("where it is now"), 4096);
    let mut read = vec![0; 8192];
    let into = [VolatileSlice::from(&mut read[..])];
    assert_eq!(disk.read_at(SIZE + 8192, &into).expect("there"), 8192);
    assert!(read.iter().all(|&byte| byte == 7));
}

#[test]
fn actions_go_to_the_device_and_its_refusals_to_the_guest() {
    let stand = stand();
    let disk = over(&stand, libc::O_DIRECT).expect("a zoned device");
    disk.act(ZoneAction::Finish, SIZE).expect("open");
    disk.act(ZoneAction::Reset, 2 * SIZE).expect("full");
    disk.reset_all().expect("all of them");
    let sectors = SIZE / 512;
    let asked = [
        (ZoneAction::Finish, sectors, sectors),
        (ZoneAction::Reset, 2 * sectors, sectors),
        (ZoneAction::Reset, 0, 4 * sectors),
    ];
    assert_eq!(*lock(&stand.asked), asked);
    for (action, start) in [
        (ZoneAction::Open, 0),
        (ZoneAction::Reset, 3 * SIZE),
        (ZoneAction::Open, 2 * SIZE),
        (ZoneAction::Close, 2 * SIZE),
        (ZoneAction::Open, SIZE + 512),
        (ZoneAction::Open, 9 * SIZE),
    ] {
        assert_eq!(wrong(disk.act(action, start)), ZoneError::Invalid, "{action:?} {start}");
    }
    assert_eq!(lock(&stand.asked).len(), 3, "which the device is not asked for");
    for (code, error) in [
        (libc::ETOOMANYREFS, ZoneError::OpenResource),
        (libc::EOVERFLOW, ZoneError::ActiveResource),
    ] {
        stand.fails.store(code, Ordering::Relaxed);
        assert_eq!(wrong(disk.act(ZoneAction::Open, SIZE)), error);
    }
    stand.fails.store(libc::EIO, Ordering::Relaxed);
    let error = disk.act(ZoneAction::Open, SIZE).expect_err("it fails");
    assert_eq!(ZoneError::of(&error), None);
}

#[test]
fn a_report_of_the_kernels_is_read_whatever_is_in_it() {
    let mut report = vec![0_u8; 16 + 3 * 64];
    report[8..12].copy_from_slice(&9_u32.to_ne_bytes());
    report[12..16].copy_from_slice(&1_u32.to_ne_bytes());
    let mut zone = |index: usize, numbers: [u64; 3], capacity: u64, kind: u8, state: u8| {
        let bytes = &mut report[16 + 64 * index..][..64];
        for (at, number) in [0, 8, 16].into_iter().zip(numbers) {
            bytes[at..at + 8].copy_from_slice(&number.to_ne_bytes());
        }
        bytes[32..40].copy_from_slice(&capacity.to_ne_bytes());
        (bytes[24], bytes[25]) = (kind, state);
    };
    zone(0, [0, 128, 0], 128, 1, 0);
    zone(1, [128, 128, 136], 120, 2, 2);
    zone(2, [u64::MAX, u64::MAX, 3], u64::MAX, 9, 77);
    let zones = kernel::zones(&report);
    assert_eq!(zones.len(), 3, "no more than there is room for");
    let open = Zone {
        start: 65536,
        capacity: 120 * 512,
        write_pointer: 136 * 512,
        state: ZoneState::ImplicitlyOpen,
    };
    assert_eq!(
        (zones[0].state, zones[1], zones[2].state),
        (ZoneState::NotWritePointer, open, ZoneState::Offline)
    );
}
