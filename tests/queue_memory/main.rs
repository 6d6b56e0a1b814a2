//! Virtqueues in every kind of guest memory: across regions, without stable host addresses, replaced while they run, and
//! with dirty pages tracked.

#[path = "../support/packed.rs"]
mod packed;
#[path = "../support/ring.rs"]
mod ring;
#[path = "../support/translated.rs"]
mod translated;

mod copied;
mod dirty;
mod driver;
mod kinds;
mod replaced;

use devisor::virtio::{features, queue::QueueLayout};
use vm_memory::{GuestAddress, GuestMemoryMmap, bitmap::AtomicBitmap};

const SIZE: u16 = 8;
const ALL: u64 = features::COMMON;
const NO_EVENT_IDX: u64 = features::COMMON & !features::EVENT_IDX;

type Tracked = GuestMemoryMmap<AtomicBitmap>;

/// Where the areas of a ring are, of either format.
const fn layout(size: u16) -> QueueLayout {
    QueueLayout {
        size,
        descriptor_area: 0x1000,
        driver_area: 0x2000,
        device_area: 0x3000,
    }
}

fn regions<const N: usize>(bounds: [u64; N]) -> Vec<(GuestAddress, usize)> {
    let pieces = bounds.windows(2);
    pieces
        .map(|ends| (GuestAddress(ends[0]), (ends[1] - ends[0]) as usize))
        .collect()
}

/// 64 KiB in one piece, and in pieces that part each area of a ring at 0x1000, and buffers.
fn whole() -> Vec<(GuestAddress, usize)> {
    regions([0, 0x10000])
}

fn parted() -> Vec<(GuestAddress, usize)> {
    // Within a descriptor, within the entries of either ring, and of an indirect table.
    regions([0, 0x1028, 0x200a, 0x3014, 0x4018, 0x8004, 0x10000])
}
