//! The tests of both formats, with packed rings.

#[path = "setup.rs"]
pub mod setup;
#[path = "shared.rs"]
mod shared;

pub use crate::packed_ring::PackedRing as Ring;
pub const FORMAT: u64 = devisor::virtio::features::RING_PACKED;
