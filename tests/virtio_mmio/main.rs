//! Virtio over MMIO (virtio 1.2, section 4.2), and the status machine behind it.

mod callbacks;
mod driver;
mod flight;
mod hostile;
mod interrupts;
mod kicks;
#[path = "../support/late.rs"]
mod late;
mod queues;
mod registers;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;
mod state;
mod status;
