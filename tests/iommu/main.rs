//! The IOMMU device (virtio 1.2, section 5.13): its requests, and devices that are behind it, over both transports.
#![cfg(unix)]

#[path = "../support/both.rs"]
mod both;
#[path = "../support/copied.rs"]
mod copied;
#[path = "../support/late.rs"]
mod late;
#[path = "../support/packed.rs"]
mod packed_ring;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;

mod behind;
mod dirty;
mod driver;
mod faults;
mod packed;
mod requests;
mod state;
mod vm_memory_iommu;
mod waiting;
