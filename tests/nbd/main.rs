//! The NBD client: beside servers that others wrote, which are killed and restarted, and against ones that lie.
#![cfg(all(unix, feature = "nbd"))]

#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/ring.rs"]
mod ring;
#[path = "../support/skip.rs"]
mod skip;

mod behind_block;
mod channel;
mod lost;
mod scripted;
mod servers;
mod tcp;
#[cfg(feature = "nbd-tls")]
mod tls;
