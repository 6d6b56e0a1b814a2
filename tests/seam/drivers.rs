//! The block driver of `virtio-drivers` before a disk that is written for `QueueT`, on both transports.

use std::sync::Arc;

use virtio_drivers::{device::blk::VirtIOBlk, transport::Transport};

use crate::{
    device::{Behind, Disk, SECTOR},
    guest_drivers::GuestDma,
    plugged::Plugged,
};

fn read_and_write(transport: impl Transport, behind: &Behind) {
    let mut disk = VirtIOBlk::<GuestDma, _>::new(transport).unwrap();
    assert_eq!(disk.capacity(), 64);
    let mut sector = [0; SECTOR];
    // More often than the rings are long.
    for round in 0..200 {
        let at = round % 64;
        disk.write_blocks(at, &[round as u8; SECTOR]).unwrap();
        disk.read_blocks(at, &mut sector).unwrap();
        assert_eq!(sector, [round as u8; SECTOR]);
    }
    assert!(disk.read_blocks(64, &mut sector).is_err(), "beyond the end");
    disk.read_blocks(63, &mut sector).unwrap();
    assert_eq!(behind.answered(), 402);
}

#[test]
fn over_mmio() {
    let behind = Behind::new(64);
    let (plugged, transport) = Plugged::mmio_in(|memory| Disk::new(&behind, &Arc::new(memory)));
    read_and_write(transport, &behind);
    assert!(plugged.interrupts() > 0);
}

#[test]
fn over_pci() {
    let behind = Behind::new(64);
    let (plugged, transport) = Plugged::pci_in(|memory| Disk::new(&behind, &Arc::new(memory)));
    read_and_write(transport, &behind);
    assert!(plugged.interrupts() > 0);
}
