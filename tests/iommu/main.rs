//! The IOMMU device (virtio 1.2, section 5.13): its requests, and devices that are behind it, over both transports.
#![cfg(unix)]

#[path = "../support/both.rs"]
mod both;
#[path = "../support/late.rs"]
mod late;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;

mod behind;
mod driver;
mod faults;
mod requests;
mod state;
mod vm_memory_iommu;
mod waiting;
