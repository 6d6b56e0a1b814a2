//! M: virtio-mmio (virtio 1.2, section 4.2), before a disk of two queues.

use devisor::virtio::features::NOTIFICATION_DATA;

use crate::{
    driver::{
        Row,
        Seen::{Holds, NeedsReset, Served},
        elsewhere, plays,
    },
    rings::*,
    setup::*,
    world::SECTORS,
};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("M0001", "registers that are read in another width than theirs", elsewhere("tests/virtio_mmio/registers.rs::registers_answer_aligned_words_only")),
    Row("M0002", "fields that are read in another width than theirs", elsewhere("tests/virtio_mmio/registers.rs::configuration_space_answers_every_width_and_offset")),
    Row("M0003", "registers that do not exist", plays(Served, |w| {
        for register in [0x18, 0x28, 0x3c, 0x48, 0x54, 0x68, 0x74, 0xe0, 0xf8] {
            w.guest.write(register, 0, 4, 0xffff_ffff);
            assert_eq!(w.guest.read(register, 0, 4), 0, "{register:#x}");
        }
        several(w, 0, 1)
    })),
    Row("M0004", "a driver that selects no queue, and then some that there are not", plays(Served, |w| {
        w.agree();
        for queue in [None, Some(0xffff), Some(0x7fff_ffff)] {
            if let Some(queue) = queue {
                w.set(QUEUE_SEL, queue);
            }
            w.get(QUEUE_MAX);
            w.set(QUEUE_SIZE, 16);
            w.set(QUEUE_DESC, 0x1000);
            w.set_high(QUEUE_DESC, 0);
            w.set(QUEUE_READY, 1);
        }
        w.guest.kick(0xffff);
        w.restart();
        several(w, 0, 1)
    })),
    Row("M0005", "bits of the status that do not exist", plays(Served, |w| {
        assert_eq!(status_after(w, WORKING | 0x30), WORKING);
        several(w, 0, 1)
    })),
    Row("M0006", "a driver that looks neither who is there nor whether features were taken", plays(Served, |w| {
        w.guest.set_status(0);
        for step in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
            w.guest.set_status(w.guest.status() | step);
        }
        w.guest.kick(0);
        assert_eq!(w.guest.status(), ACKNOWLEDGE | DRIVER | w.lenient(FEATURES_OK | DRIVER_OK));
        w.restart();
        several(w, 0, 1)
    })),
    Row("M0007", "a driver that acknowledges no interrupt", plays(Served, |w| {
        (0..20).for_each(|_| assert_eq!(several(w, 0, 1), Served));
        assert_eq!(w.get(INTERRUPT) & 1, 1);
        several(w, 0, 1)
    })),
    Row("M0008", "registers that cannot be written", elsewhere("tests/virtio_mmio/registers.rs::write_only_registers_read_as_zero_and_read_only_ones_do_not_change")),
    Row("M0009", "registers that cannot be read", elsewhere("tests/virtio_mmio/registers.rs::write_only_registers_read_as_zero_and_read_only_ones_do_not_change")),
    Row("M0010", "a reset by the status", elsewhere("tests/virtio_mmio/status.rs::reset_works_at_every_stage_and_clears_everything")),
    Row("M0011", "words of features that do not exist", plays(Holds, |w| {
        for word in [2, 3, 100, 0xffff_ffff] {
            assert_eq!(w.device_features(word), 0);
        }
        Holds
    })),
    Row("M0012", "a queue larger than it may be", plays(NeedsReset, |w| with_layout(w, |layout| layout.size = 1024))),
    Row("M0013", "a queue that is ready and has no addresses", plays(Holds, |w| {
        with_layout(w, |layout| (layout.descriptor_area, layout.driver_area, layout.device_area) = (0, 0, 0))
    })),
    Row("M0014", "a queue that is ready twice", plays(Served, |w| {
        w.prepare();
        w.set(QUEUE_SEL, 0);
        w.set(QUEUE_READY, 1);
        w.go();
        several(w, 0, 1)
    })),
    Row("M0015", "a queue that is set up after the driver was ready", elsewhere("tests/virtio_mmio/queues.rs::queue_registers_written_after_driver_ok_change_nothing")),
    Row("M0016", "the generation of the configuration", elsewhere("tests/virtio_mmio/registers.rs::a_torn_read_of_the_configuration_is_detectable")),
    Row("M0017", "the version is 2", plays(Holds, |w| {
        assert_eq!(w.guest.read(0x04, 0, 4), 2);
        Holds
    })),
    Row("M0018", "a field of 64 bits in two halves and whole", plays(Holds, |w| {
        assert_eq!(w.guest.config(0, 4) | w.guest.config(4, 4) << 32, SECTORS);
        assert_eq!(w.guest.config(0, 8), SECTORS);
        Holds
    })),
    Row("M0019", "how large a queue may be", plays(Holds, |w| {
        w.set(QUEUE_SEL, 0);
        assert_eq!(w.get(QUEUE_MAX), 256);
        w.set(QUEUE_SEL, 2);
        assert_eq!(w.get(QUEUE_MAX), 0, "there are two");
        Holds
    })),
    Row("M0020", "an interrupt that is acknowledged in part", elsewhere("tests/virtio_mmio/interrupts.rs::an_acknowledgement_clears_the_bits_written_and_raises_an_edge_for_the_rest")),
    Row("M0021", "another queue is selected while one works", plays(Served, |w| {
        w.set(QUEUE_SEL, 1);
        assert_eq!(several(w, 0, 1), Served);
        w.set(QUEUE_SEL, 1000);
        several(w, 0, 1)
    })),
    Row("M0022", "who is there, before and after a reset", plays(Holds, |w| {
        for _ in 0..2 {
            assert_eq!((w.guest.read(0x00, 0, 4), w.guest.read(0x04, 0, 4)), (0x7472_6976, 2));
            w.restart();
        }
        Holds
    })),
    Row("M0023", "a queue that is reset by itself", elsewhere("tests/virtio_mmio/queues.rs::a_queue_can_be_reset_by_itself_and_set_up_elsewhere")),
    Row("M0024", "a queue that was reset says so", elsewhere("tests/virtio_mmio/flight.rs::a_queue_that_is_stopped_or_reset_is_so_when_its_requests_have_ended")),
    Row("M0025", "a region of shared memory that there is not", plays(Holds, |w| {
        w.guest.write(0xac, 0, 4, 200);
        assert_eq!([0xb0, 0xb4, 0xb8, 0xbc].map(|at| w.guest.read(at, 0, 4)), [0xffff_ffff; 4]);
        Holds
    })),
    Row("M0026", "shared memory of which none was selected", plays(Holds, |w| {
        assert_eq!([0xb0, 0xb4].map(|at| w.guest.read(at, 0, 4)), [0xffff_ffff; 2]);
        Holds
    })),
    Row("M0027", "shared memory that stays where it is", elsewhere("tests/virtio_mmio/registers.rs::shared_memory_regions_are_told_and_absent_ones_are_all_ones")),
    Row("M0028", "where shared memory is cannot be written", plays(Holds, |w| {
        for register in [0xb0, 0xb4, 0xb8, 0xbc] {
            let before = w.guest.read(register, 0, 4);
            w.guest.write(register, 0, 4, 0x1234);
            assert_eq!(w.guest.read(register, 0, 4), before);
        }
        Holds
    })),
    Row("M0029", "a queue that is neither ready nor not", plays(Holds, |w| {
        w.agree();
        let layout = w.layout();
        w.set_up(0, layout);
        w.set(QUEUE_READY, 0xfe);
        assert!(w.get(QUEUE_READY) <= 1);
        w.restart();
        Holds
    })),
    Row("M0030", "descriptors at the last address", plays(NeedsReset, |w| with_layout(w, |layout| layout.descriptor_area = !15))),
    Row("M0031", "kicks that say how far the driver is, where such are offered", plays(Served, |w| {
        assert_eq!(w.has(NOTIFICATION_DATA), w.is_full() && w.guest.offered() & NOTIFICATION_DATA != 0);
        several(w, 0, 3)
    })),
    Row("M0032", "a change of the configuration interrupts", elsewhere("tests/virtio_mmio/registers.rs::a_configuration_change_while_the_driver_initialises_is_told_when_it_is_ready")),
    Row("M0034", "the type of the device", plays(Holds, |w| {
        assert_eq!(w.guest.read(0x08, 0, 4), 2);
        Holds
    })),
    Row("M0035", "the status reads as it was written", plays(Holds, |w| {
        w.guest.reset();
        for status in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            assert_eq!(status_after(w, status), status);
        }
        Holds
    })),
];
