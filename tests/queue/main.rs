//! Virtqueues: what a well-behaved driver gets, and what becomes of one that is not.

#[path = "../support/packed.rs"]
mod packed_ring;
#[path = "../support/ring.rs"]
mod ring;

mod alone;
mod hostile;
mod in_order;
mod packed;
mod split;
