//! The socket device (virtio 1.2, section 5.10), on both transports.

#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/ring.rs"]
mod ring;

mod support;

mod credit;
mod refusals;
mod seqpackets;
mod shutdown;
mod state;
mod streams;
