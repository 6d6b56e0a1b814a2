//! What the kernel does to zones (linux/blkzoned.h).

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
};

use super::super::{Zone, ZoneAction, ZoneState};

/// A zoned device, in sectors of 512 bytes.
pub trait Device: Send + Sync {
    /// From the beginning of a zone to that of the next; zero if there are none.
    fn zone_sectors(&self) -> io::Result<u32>;

    /// Up to `count` zones, from the one with `sector` in it on.
    fn report(&self, sector: u64, count: usize) -> io::Result<Vec<Zone>>;

    /// Does something to the zones of a range.
    fn act(&self, action: ZoneAction, sector: u64, sectors: u64) -> io::Result<()>;

    /// A limit of its queue, if it is told.
    fn attribute(&self, name: &str) -> Option<u32>;
}

/// By its requests to block devices.
pub struct Kernel(pub File);

/// `_IOWR(0x12, 130, struct blk_zone_report)`, `_IOR(0x12, 132, __u32)`, and `_IOW(0x12, N, struct blk_zone_range)`.
const BLKREPORTZONE: libc::Ioctl = request(3, 16, 130);
const BLKGETZONESZ: libc::Ioctl = request(2, 4, 132);
const BLKRESETZONE: libc::Ioctl = request(1, 16, 131);
const BLKOPENZONE: libc::Ioctl = request(1, 16, 134);
const BLKCLOSEZONE: libc::Ioctl = request(1, 16, 135);
const BLKFINISHZONE: libc::Ioctl = request(1, 16, 136);

/// `_IOC`. Direction and size are elsewhere on a few systems, whose kernels then refuse the request.
const fn request(direction: u32, size: u32, number: u32) -> libc::Ioctl {
    (direction << 30 | size << 16 | 0x12 << 8 | number) as libc::Ioctl
}

/// The most zones that are asked for at a time.
const MOST: usize = 64;
/// Bytes of `struct blk_zone_report` before its zones, and of a `struct blk_zone`.
const HEADER: usize = 16;
const ZONE: usize = 64;
/// `BLK_ZONE_REP_CAPACITY`: there is a capacity in each zone.
const WITH_CAPACITY: u32 = 1;
/// `BLK_ZONE_TYPE_CONVENTIONAL`.
const CONVENTIONAL: u8 = 1;

/// A report, aligned as its numbers want it.
#[repr(C, align(8))]
struct Report([u8; HEADER + MOST * ZONE]);

impl Device for Kernel {
    fn zone_sectors(&self) -> io::Result<u32> {
        let mut sectors = 0_u32;
        // SAFETY: the request writes one number of that size.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), BLKGETZONESZ, &raw mut sectors) })?;
        Ok(sectors)
    }

    fn report(&self, sector: u64, count: usize) -> io::Result<Vec<Zone>> {
        let mut report = Box::new(Report([0; HEADER + MOST * ZONE]));
        let count = count.min(MOST) as u32;
        report.0[..8].copy_from_slice(&sector.to_ne_bytes());
        report.0[8..12].copy_from_slice(&count.to_ne_bytes());
        // SAFETY: the request reads the header, and writes it and as many zones behind it as it says, for which there is room.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), BLKREPORTZONE, report.0.as_mut_ptr()) })?;
        Ok(zones(&report.0))
    }

    fn act(&self, action: ZoneAction, sector: u64, sectors: u64) -> io::Result<()> {
        let request = match action {
            ZoneAction::Open => BLKOPENZONE,
            ZoneAction::Close => BLKCLOSEZONE,
            ZoneAction::Finish => BLKFINISHZONE,
            ZoneAction::Reset => BLKRESETZONE,
        };
        let range = [sector, sectors];
        // SAFETY: each of them reads two numbers of 64 bits.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, range.as_ptr()) })
    }

    fn attribute(&self, name: &str) -> Option<u32> {
        let number = self.0.metadata().ok()?.rdev();
        let folder = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
        // A partition has it from its disk.
        ["queue", "../queue"].iter().find_map(|queue| {
            let text = fs::read_to_string(format!("{folder}/{queue}/{name}")).ok()?;
            text.trim().parse().ok()
        })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The zones of a report.
pub fn zones(report: &[u8]) -> Vec<Zone> {
    let number = |bytes: &[u8], at: usize| u64::from_ne_bytes(std::array::from_fn(|index| bytes[at + index]));
    let half = |at: usize| u32::from_ne_bytes(std::array::from_fn(|index| report[at + index]));
    let (count, flags) = (half(8) as usize, half(12));
    let zones = report[HEADER..].chunks_exact(ZONE).take(count);
    let zone = |bytes: &[u8]| {
        let [start, len, pointer, capacity] = [0, 8, 16, 32].map(|at| number(bytes, at).saturating_mul(512));
        let capacity = if flags & WITH_CAPACITY != 0 { capacity } else { len };
        let state = match (bytes[24], bytes[25]) {
            (CONVENTIONAL, _) | (_, 0) => ZoneState::NotWritePointer,
            (_, 1) => ZoneState::Empty,
            (_, 2) => ZoneState::ImplicitlyOpen,
            (_, 3) => ZoneState::ExplicitlyOpen,
            (_, 4) => ZoneState::Closed,
            (_, 13) => ZoneState::ReadOnly,
            (_, 14) => ZoneState::Full,
            _ => ZoneState::Offline,
        };
        // It has none where it says nothing, and then the end stands for it.
        let told = match state {
            ZoneState::Empty | ZoneState::ImplicitlyOpen | ZoneState::ExplicitlyOpen | ZoneState::Closed => pointer,
            _ => start.saturating_add(capacity),
        };
        Zone {
            start,
            capacity,
            write_pointer: told.clamp(start, start.saturating_add(capacity)),
            state,
        }
    };
    zones.map(zone).collect()
}
