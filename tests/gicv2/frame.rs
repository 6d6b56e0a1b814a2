//! The GICv2m frame.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        CpuId, Spi,
        gicv2::{GicV2Config, GicV2Error},
        gicv2m::{GicV2mError, GicV2mFrame},
    },
    bus::{BusDevice, read_le},
    interrupt::{MsiMessage, MsiSink, MsiVectors, RequesterId, SinkVectors},
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

const BASE: u64 = 0x0802_0000;

/// A frame with SPIs 48 to 79, which are INTIDs 80 to 111, all edge-triggered.
fn frame() -> (Guest, GicV2mFrame) {
    let guest = Guest::simple();
    (80..112).for_each(|intid| guest.cpus[0].set_edge_triggered(intid));
    let frame = GicV2mFrame::new(&guest.gic, BASE, Spi(48), 32).unwrap();
    (guest, frame)
}

fn read(frame: &GicV2mFrame, offset: u64) -> u32 {
    let mut data = [0xee; 4];
    frame.read(offset, &mut data);
    read_le(&data) as u32
}

#[test]
fn tells_the_guest_which_spis_it_has() {
    let (_guest, frame) = frame();
    assert_eq!(read(&frame, 0x008), 80 << 16 | 32);
    assert_eq!(read(&frame, 0xfcc) >> 16 & 0xf, 0, "architecture version");
    assert_eq!(
        (read(&frame, 0x000), read(&frame, 0x040)),
        (0, 0),
        "reserved, and write-only"
    );
}

#[test]
fn a_write_to_the_doorbell_raises_the_spi_it_names() {
    let (guest, frame) = frame();
    frame.write(0x040, &111_u32.to_le_bytes());
    assert_eq!(guest.cpus[0].acknowledge(), 111);
    guest.cpus[0].end(111);
    frame.write(0x040, &110_u16.to_le_bytes());
    assert_eq!(guest.cpus[0].acknowledge(), 110, "half a word is enough");
    frame.write(0x040, &0xffff_fc50_u32.to_le_bytes());
    assert_eq!(guest.cpus[0].get(GICD_ISPENDR + 8), 1 << 16, "bits 31:10 are reserved");
}

#[test]
fn other_intids_widths_and_registers_raise_nothing() {
    let (guest, frame) = frame();
    for intid in [0, 27, 32, 79, 112, 1023_u32] {
        frame.write(0x040, &intid.to_le_bytes());
    }
    frame.write(0x040, &[80]);
    frame.write(0x042, &80_u16.to_le_bytes());
    frame.write(0x040, &80_u64.to_le_bytes());
    frame.write(0x041, &80_u32.to_le_bytes());
    frame.write(0x008, &80_u32.to_le_bytes());
    assert!(!guest.cpus[0].irq());
    let mut data = [0xee; 8];
    frame.read(0x008, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn a_message_needs_the_doorbell_and_an_intid_of_the_frame() {
    let (guest, frame) = frame();
    for (address, data) in [
        (BASE, 80),
        (BASE + 0x44, 80),
        (0, 80),
        (BASE + 0x40, 79),
        (BASE + 0x40, 112),
    ] {
        assert!(
            frame.send(RequesterId(0), MsiMessage { address, data }).is_err(),
            "{address:#x} {data}"
        );
    }
    assert!(!guest.cpus[0].irq());
    let message = frame.message(31).unwrap();
    assert_eq!(
        message,
        MsiMessage {
            address: BASE + 0x40,
            data: 111
        }
    );
    assert_eq!(frame.message(32), None);
    let vector = SinkVectors::new(Arc::new(frame)).vector(RequesterId(0)).unwrap();
    vector.program(Some(message)).unwrap();
    vector.trigger().unwrap();
    assert_eq!(guest.cpus[0].acknowledge(), 111);
}

#[test]
fn a_message_that_the_gic_cannot_tell_of_yet_is_taken() {
    let refusing = Arc::new(AtomicBool::new(false));
    let refuse = Arc::clone(&refusing);
    let guest = Guest::with(GicV2Config::default(), move |_| match refuse.load(SeqCst) {
        true => Err(io::Error::other("not now")),
        false => Ok(()),
    });
    guest.make_ready();
    let frame = GicV2mFrame::new(&guest.gic, BASE, Spi(48), 32).unwrap();
    refusing.store(true, SeqCst);
    frame.send(RequesterId(0), frame.message(1).unwrap()).unwrap();
    assert_eq!(guest.gic.output_failures(CpuId(0)), Ok(1));
    refusing.store(false, SeqCst);
    guest.gic.retry();
    assert!(guest.cpus[0].irq());
    assert_eq!(guest.cpus[0].acknowledge(), 81);
}

#[test]
fn a_frame_needs_spis_that_the_gic_has() {
    let guest = Guest::new(GicV2Config::default());
    let new = |base, first, count| GicV2mFrame::new(&guest.gic, base, Spi(first), count).map(|_| ());
    assert_eq!(new(BASE, 0, 96), Ok(()));
    assert_eq!(new(BASE, 0, 0), Err(GicV2mError::Empty));
    assert_eq!(new(BASE + 4, 0, 1), Err(GicV2mError::Base(BASE + 4)));
    for (first, count, missing) in [
        (95, 2, 96),
        (96, 1, 96),
        (1, u32::MAX, u32::MAX),
        (u32::MAX, 2, u32::MAX),
    ] {
        let error = GicV2Error::NoSuchSpi {
            spi: Spi(missing),
            spis: 96,
        };
        assert_eq!(new(BASE, first, count), Err(GicV2mError::Gic(error)));
    }
}
