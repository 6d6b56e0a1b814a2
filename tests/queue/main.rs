//! Virtqueues: what a well-behaved driver gets, and what becomes of one that is not.
#![allow(clippy::duplicate_mod, reason = "the same tests for both formats")]

#[path = "../support/packed.rs"]
mod packed_ring;
#[path = "../support/ring.rs"]
mod ring;

mod alone;
mod hostile;
mod in_order;
mod packed;
mod several;
mod split;
