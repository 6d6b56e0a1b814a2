//! The tests of both formats, with split rings.

#[path = "setup.rs"]
pub mod setup;
#[path = "shared.rs"]
mod shared;

pub use crate::ring::Ring;
pub const FORMAT: u64 = 0;
