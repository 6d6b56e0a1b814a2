//! The socket device (virtio 1.2, section 5.10), on both transports.

#[path = "../support/machine.rs"]
mod machine;
#[cfg(unix)]
#[path = "../support/poll.rs"]
mod poll;
#[path = "../support/ring.rs"]
mod ring;

mod support;

mod credit;
mod refusals;
mod seqpackets;
mod shutdown;
mod state;
mod streams;
#[cfg(target_os = "linux")]
mod unix;
