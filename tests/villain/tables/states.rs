//! S: the device's states and the driver's way through them (virtio 1.2, sections 2.1 and 3.1), before a disk of two queues.

use devisor::virtio::features::{RING_RESET, VERSION_1};

use crate::{
    disk::Format,
    driver::{
        Row,
        Seen::{self, Holds, NeedsReset, Served},
        elsewhere, packs, plays,
    },
    rings::*,
    setup::*,
    world::{REGISTERS, SECTORS, World},
};

/// A device that was reset is set up anew, and serves.
fn revived(w: &mut World) -> Seen {
    w.restart();
    several(w, 0, 1)
}

/// These features are not agreed on.
fn refused(w: &mut World, features: u64) -> Seen {
    w.guest.reset();
    assert!(!w.guest.negotiate(features), "{features:#x}");
    Holds
}

/// Features without VERSION_1 are refused, but where the embedder lets the driver do without it.
fn without_version_1(w: &mut World, features: u64) -> Seen {
    if !w.is_lenient() {
        return refused(w, features);
    }
    w.guest.reset();
    w.start_with(features);
    Holds
}

/// The driver writes this, and the status stays.
fn stays(w: &mut World, status: u32) -> Seen {
    let before = w.guest.status();
    assert_eq!(status_after(w, status), before);
    several(w, 0, 1)
}

/// What a proposal has for a device that is to pause: a bit of the status and a feature, neither of which ours has.
const SUSPEND: u32 = 0x10;

/// The driver writes this besides, and the device goes on as before.
fn suspends(w: &mut World, bits: &[u32]) -> Seen {
    assert_eq!(w.guest.offered() & 1 << 43, 0);
    for bits in bits {
        assert_eq!(status_after(w, WORKING | bits), WORKING);
    }
    several(w, 0, 1)
}

/// From a reset, these writes lead to that status.
fn leads(w: &mut World, steps: &[u32], to: u32) -> Seen {
    w.guest.reset();
    steps.iter().for_each(|step| w.guest.set_status(*step));
    assert_eq!(w.guest.status(), to);
    Holds
}

/// A queue's area is where a device has registers.
fn area_in_registers(w: &mut World, which: usize) -> Seen {
    with_layout(w, |layout| {
        let areas = [
            &mut layout.descriptor_area,
            &mut layout.driver_area,
            &mut layout.device_area,
        ];
        *areas.into_iter().nth(which).unwrap() = REGISTERS;
    })
}

/// A driver that accepts nothing but what there has to be.
fn reduced(w: &mut World) -> Seen {
    w.guest.reset();
    w.start_with(VERSION_1);
    several(w, 0, 1)
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("S0001", "features that are agreed on twice", plays(Served, |w| {
        w.prepare();
        w.accept(0, 0);
        w.guest.set_status(w.guest.status() | FEATURES_OK);
        w.go();
        several(w, 0, 1)
    })),
    Row("S0002", "a reset in the middle of the beginning", plays(Served, |w| {
        w.prepare();
        revived(w)
    })),
    Row("S0003", "fewer features after a reset", plays(Served, reduced)),
    Row("S0004", "a queue that is disabled and enabled again without its addresses", plays(Served, |w| {
        // Virtio-pci ignores the one, and virtio-mmio keeps the addresses.
        w.set(QUEUE_SEL, 0);
        w.set(QUEUE_READY, 0);
        w.set(QUEUE_READY, 1);
        several(w, 0, 1)
    })),
    Row("S0005", "a request after the driver has failed", plays(Served, |w| {
        assert_eq!(status_after(w, WORKING | FAILED), WORKING | FAILED);
        several(w, 0, 1)
    })),
    Row("S0006", "the configuration before features are agreed on", plays(Holds, |w| {
        w.guest.reset();
        w.begin();
        assert_eq!(w.guest.config(0, 8), SECTORS);
        Holds
    })),
    Row("S0007", "a configuration that changes while it is read", elsewhere("tests/virtio_pci/common.rs::a_torn_read_of_the_configuration_is_detectable; tests/virtio_mmio/registers.rs::a_torn_read_of_the_configuration_is_detectable")),
    Row("S0008", "a queue that is drained by a reset", elsewhere("tests/virtio_mmio/flight.rs::a_device_that_was_reset_changes_no_memory_whatever_other_threads_do")),
    Row("S0009", "kicks while the status changes", plays(Served, |w| {
        w.guest.reset();
        for step in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            w.guest.set_status(step);
            (0..50).for_each(|_| w.guest.kick(0));
        }
        w.prepare();
        (0..50).for_each(|_| w.guest.kick(0));
        w.go();
        several(w, 0, 1)
    })),
    Row("S0010", "another format of rings after a reset", packs(Holds, |d| {
        d.answers();
        for format in [Format::Split, Format::Packed, Format::Split] {
            d.format = format;
            d.restart();
            d.answers();
        }
        Holds
    })),
    Row("S0011", "no features at all, which ours refuses as section 6.2 lets it unless its embedder says otherwise", plays(Holds, |w| without_version_1(w, 0))),
    Row("S0012", "resets one after the other", plays(Served, |w| {
        (0..20).for_each(|_| w.guest.reset());
        revived(w)
    })),
    Row("S0013", "a queue that is set up after the driver was ready", elsewhere("tests/virtio_mmio/queues.rs::a_queue_that_was_not_enabled_at_driver_ok_reads_as_not_ready_for_good; tests/virtio_pci/common.rs::queue_registers_written_after_driver_ok_change_nothing")),
    Row("S0014", "a queue of another size after a reset", plays(Served, |w| {
        assert_eq!(several(w, 0, 1), Served);
        w.agree();
        let small = crate::ring::Ring::new(&w.guest.memory, 0x1_0000, 8);
        w.set_up(0, small.layout);
        w.guest.rings = vec![Some(small)];
        w.go();
        let seen = several(w, 0, 2);
        w.restart();
        seen
    })),
    Row("S0015", "some features without those that there have to be", plays(Holds, |w| without_version_1(w, 1 << 28 | 1 << 13))),
    Row("S0016", "a reset while features are agreed on", plays(Served, |w| {
        w.guest.reset();
        w.begin();
        w.accept(0, 1);
        revived(w)
    })),
    Row("S0017", "a queue that is enabled twice", plays(Served, |w| {
        w.prepare();
        w.set(QUEUE_SEL, 0);
        w.set(QUEUE_READY, 1);
        w.go();
        several(w, 0, 1)
    })),
    Row("S0018", "a driver that is ready no more", plays(Served, |w| stays(w, WORKING & !DRIVER_OK))),
    Row("S0019", "an event index far away", plays(Served, |w| {
        w.guest.ring(0).set_used_event(0x8000);
        several(w, 0, 4)
    })),
    Row("S0020", "all features that can be said", plays(Holds, |w| refused(w, u64::MAX))),
    Row("S0021", "a hundred resets and beginnings", plays(Served, |w| {
        (0..100).for_each(|_| w.restart());
        several(w, 0, 1)
    })),
    Row("S0022", "requests without interrupts that nobody looks after", plays(Served, |w| {
        w.guest.ring(0).set_no_interrupt(true);
        let good = w.good(0);
        for _ in 0..7 {
            w.guest.ring(0).request(&good);
            w.guest.kick(0);
        }
        several(w, 0, 1)
    })),
    Row("S0023", "a driver that says that the device needs a reset", plays(Served, |w| stays(w, WORKING | NEEDS_RESET))),
    Row("S0024", "bits of the status that are reserved", plays(Served, |w| stays(w, WORKING | 0x30))),
    Row("S0025", "features that are refused, and right ones after that", plays(Served, |w| {
        refused(w, w.wanted() | 1 << 49);
        revived(w)
    })),
    Row("S0026", "a configuration that changes with a reset", elsewhere("tests/virtio_mmio/status.rs::a_late_configuration_change_leaves_nothing_pending_on_a_device_that_is_reset")),
    Row("S0027", "a device that needs no reset does not say so", plays(Holds, |w| {
        assert_eq!(several(w, 0, 8), Served);
        assert_eq!(w.guest.status(), WORKING);
        Holds
    })),
    Row("S0028", "VERSION_1 alone", plays(Served, reduced)),
    Row("S0029", "a reset with requests under way", elsewhere("tests/virtio_mmio/flight.rs::a_reset_returns_when_requests_have_ended_and_nothing_is_used_after_it; tests/virtio_pci/flight.rs::a_reset_that_takes_longer_than_its_patience_reads_as_not_reset_until_requests_have_ended")),
    Row("S0030", "features in the upper word that were not offered", plays(Holds, |w| refused(w, w.wanted() | 1 << 63))),
    Row("S0031", "a device that needs a reset lives after it", plays(NeedsReset, |w| w.watch(0, |ring| ring.offer(u16::MAX)))),
    Row("S0032", "a reset disables queues", plays(Holds, |w| {
        w.guest.reset();
        for queue in 0..2 {
            w.set(QUEUE_SEL, queue);
            assert_eq!(w.get(QUEUE_READY), 0);
        }
        Holds
    })),
    Row("S0033", "a reset forgets where queues are", elsewhere("tests/virtio_mmio/status.rs::reset_works_at_every_stage_and_clears_everything")),
    Row("S0034", "a driver of fewer features", plays(Served, reduced)),
    Row("S0035", "a reset between features and queues", plays(Served, |w| {
        w.agree();
        revived(w)
    })),
    Row("S0036", "a driver that has failed, resets and begins", plays(Served, |w| {
        w.guest.set_status(FAILED);
        revived(w)
    })),
    Row("S0037", "many beginnings, with requests between them", plays(Served, |w| {
        (0..30).for_each(|_| assert_eq!(revived(w), Served));
        Served
    })),
    Row("S0038", "words of features that do not exist", plays(Holds, |w| {
        assert_eq!([2, 1000, 0xffff_ffff].map(|word| w.device_features(word)), [0; 3]);
        Holds
    })),
    Row("S0039", "a driver that takes its time", plays(Served, |w| {
        w.guest.reset();
        w.guest.set_status(ACKNOWLEDGE);
        w.guest.transport().run();
        revived(w)
    })),
    Row("S0040", "features before the driver is there, which is too early", plays(Holds, |w| {
        w.guest.reset();
        w.guest.set_status(ACKNOWLEDGE);
        w.accept(0, 0);
        w.accept(1, 1);
        w.guest.set_status(ACKNOWLEDGE | DRIVER);
        assert_eq!(status_after(w, ACKNOWLEDGE | DRIVER | FEATURES_OK), ACKNOWLEDGE | DRIVER | w.lenient(FEATURES_OK));
        Holds
    })),
    Row("S0041", "a driver that fails when it was ready", plays(Served, |w| {
        w.guest.set_status(FAILED);
        several(w, 0, 1)
    })),
    Row("S0042", "the generation is read again and again", plays(Holds, |w| {
        w.guest.generation();
        let first = w.guest.generation();
        assert!((0..1000).all(|_| w.guest.generation() == first));
        Holds
    })),
    Row("S0043", "a change of the configuration is shown", elsewhere("tests/virtio_mmio/status.rs::needs_reset_is_cleared_by_reset_alone_and_comes_with_a_configuration_interrupt; tests/virtio_pci/interrupts.rs::a_device_that_needs_a_reset_says_so_in_isr_with_msix_on")),
    Row("S0044", "all bits of the status at once, in the order that they have", plays(Holds, |w| {
        w.guest.reset();
        w.guest.set_status(0xff);
        // Without VERSION_1 there are no features to be ready with, unless the embedder says otherwise.
        let ready = w.lenient(FEATURES_OK | DRIVER_OK);
        assert_eq!(w.guest.status(), ACKNOWLEDGE | DRIVER | FAILED | ready);
        w.restart();
        Holds
    })),
    Row("S0045", "a driver that has failed and done nothing else", plays(Holds, |w| leads(w, &[FAILED], FAILED))),
    Row("S0046", "bits of the status in another order", plays(Holds, |w| leads(w, &[DRIVER, DRIVER_OK, FEATURES_OK, ACKNOWLEDGE], ACKNOWLEDGE | DRIVER | w.lenient(FEATURES_OK)))),
    Row("S0047", "a word of features that is selected", plays(Holds, |w| {
        assert_eq!(w.device_features(0) | w.device_features(1) << 32, w.guest.offered());
        Holds
    })),
    Row("S0048", "a size that a queue can have", plays(Holds, |w| with_layout(w, |layout| layout.size = 8))),
    Row("S0049", "a queue that is selected", plays(Holds, |w| {
        for (queue, ready) in [(0, 1), (1, 1), (2, 0), (0, 1)] {
            w.set(QUEUE_SEL, queue);
            assert_eq!(w.get(QUEUE_READY), ready);
        }
        Holds
    })),
    Row("S0050", "a reset while the generation is read", plays(Served, |w| {
        w.guest.generation();
        w.guest.reset();
        w.guest.generation();
        revived(w)
    })),
    Row("S0051", "a driver that looks at each step whether it was taken", plays(Served, |w| {
        w.guest.reset();
        assert_eq!(status_after(w, ACKNOWLEDGE), ACKNOWLEDGE);
        assert_eq!(status_after(w, ACKNOWLEDGE | DRIVER), ACKNOWLEDGE | DRIVER);
        revived(w)
    })),
    Row("S0052", "bits of the status that are taken back one by one, and then a reset", plays(Served, |w| {
        w.guest.reset();
        w.begin();
        assert_eq!(status_after(w, ACKNOWLEDGE), ACKNOWLEDGE | DRIVER, "none can be");
        assert_eq!(status_after(w, 0), 0);
        revived(w)
    })),
    Row("S0053", "a reset with a request in the ring", plays(Served, |w| {
        let good = w.good(0);
        w.guest.ring(0).request(&good);
        w.guest.kick(0);
        revived(w)
    })),
    Row("S0054", "words of features behind the last", plays(Holds, |w| {
        assert!((2..64).all(|word| w.device_features(word) == 0));
        Holds
    })),
    Row("S0055", "event indices that want no interrupt", elsewhere("tests/queue/shared.rs::with_event_idx_the_driver_hears_when_its_index_is_passed")),
    Row("S0056", "a beginning after a failure", plays(Served, |w| {
        w.guest.set_status(WORKING | FAILED);
        revived(w)
    })),
    Row("S0057", "a driver that is ready and has failed at once", plays(Served, |w| {
        w.prepare();
        w.guest.set_status(WORKING | FAILED);
        assert_eq!(w.guest.status(), WORKING | FAILED);
        several(w, 0, 1)
    })),
    Row("S0058", "features that are no more agreed on", plays(Served, |w| stays(w, WORKING & !FEATURES_OK))),
    Row("S0059", "the last word of features that can be selected", plays(Holds, |w| {
        assert_eq!(w.device_features(0xffff_ffff), 0);
        Holds
    })),
    Row("S0060", "one queue is reset", plays(Served, |w| reset_queue(w, 1))),
    Row("S0061", "one queue is reset and enabled again", plays(Served, |w| {
        reset_queue(w, 0);
        several(w, 0, 2)
    })),
    Row("S0062", "one queue is reset with requests under way", elsewhere("tests/virtio_mmio/flight.rs::a_queue_that_is_stopped_or_reset_is_so_when_its_requests_have_ended; tests/virtio_pci/flight.rs::a_queue_that_is_reset_reads_so_until_its_own_requests_have_ended")),
    Row("S0063", "one queue is reset by who did not ask for it", elsewhere("tests/virtio_mmio/queues.rs::a_queue_reset_that_was_not_negotiated_does_nothing; tests/virtio_pci/common.rs::a_queue_is_not_reset_by_itself_if_that_was_not_negotiated")),
    Row("S0064", "one queue is reset twice", plays(Served, |w| {
        reset_queue(w, 0);
        reset_queue(w, 0)
    })),
    Row("S0065", "one queue is reset while another one works", plays(Served, |w| {
        assert_eq!(several(w, 1, 2), Served);
        reset_queue(w, 0);
        several(w, 1, 2)
    })),
    Row("S0066", "one queue is reset and has another size", elsewhere("tests/virtio_mmio/queues.rs::a_queue_can_be_reset_by_itself_and_set_up_elsewhere; tests/virtio_pci/common.rs::a_queue_is_reset_by_itself_and_set_up_again")),
    Row("S0067", "a device is suspended", plays(Served, |w| suspends(w, &[SUSPEND]))),
    Row("S0068", "a device is suspended and goes on", plays(Served, |w| suspends(w, &[SUSPEND, 0]))),
    Row("S0069", "a device is suspended before its driver is ready", plays(Holds, |w| leads(w, &[ACKNOWLEDGE, ACKNOWLEDGE | DRIVER | SUSPEND], ACKNOWLEDGE | DRIVER))),
    Row("S0070", "a device is suspended by who did not ask for it", plays(Served, |w| stays(w, WORKING | 0x10))),
    Row("S0071", "a device is suspended twice", plays(Served, |w| suspends(w, &[SUSPEND, SUSPEND]))),
    Row("S0072", "a device that is suspended takes nothing", plays(Served, |w| suspends(w, &[SUSPEND]))),
    Row("S0073", "a device that is suspended tells later of its configuration", plays(Holds, |w| not_offered(w, 43))),
    Row("S0074", "a device that is suspended needs a reset", plays(NeedsReset, |w| {
        assert_eq!(suspends(w, &[SUSPEND]), Served);
        w.watch(0, |ring| ring.offer(u16::MAX))
    })),
    Row("S0075", "features that nobody knows yet", plays(Holds, |w| {
        // Of those between the transports' and the devices', none.
        assert_eq!(w.guest.offered() >> 42 & 0xff, 0);
        Holds
    })),
    Row("S0076", "a configuration behind the fields that are known", plays(Holds, |w| {
        assert!((64..256).all(|at| w.guest.config(at, 1) == 0));
        Holds
    })),
    Row("S0077", "features that are reserved", plays(Holds, |w| refused(w, w.wanted() | 1 << 45))),
    Row("S0078", "features before there is a driver", plays(Holds, |w| leads(w, &[ACKNOWLEDGE | FEATURES_OK], ACKNOWLEDGE))),
    Row("S0079", "a driver that is ready twice", plays(Served, |w| stays(w, WORKING))),
    Row("S0080", "a driver that writes what is the device's to say", plays(Served, |w| stays(w, NEEDS_RESET))),
    Row("S0081", "a driver that is ready and has no queue", plays(Holds, |w| {
        w.agree();
        w.go();
        assert_eq!(w.guest.status(), WORKING);
        w.restart();
        Holds
    })),
    Row("S0082", "a driver that is ready without features", plays(Holds, |w| leads(w, &[ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | DRIVER_OK], ACKNOWLEDGE | DRIVER))),
    Row("S0083", "a driver that is ready after a reset", plays(Holds, |w| leads(w, &[DRIVER_OK], 0))),
    Row("S0084", "features that were never accepted", plays(Holds, |w| leads(w, &[ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK], ACKNOWLEDGE | DRIVER | w.lenient(FEATURES_OK)))),
    Row("S0085", "a queue before anything else", plays(Holds, |w| {
        w.guest.reset();
        let layout = w.layout();
        w.set_up(0, layout);
        assert_eq!(w.get(QUEUE_READY), 0);
        Holds
    })),
    Row("S0086", "a beginning without a reset", plays(Served, |w| stays(w, ACKNOWLEDGE | DRIVER))),
    Row("S0087", "a device area in the registers of a device", plays(NeedsReset, |w| area_in_registers(w, 2))),
    Row("S0088", "descriptors in the registers of a device", plays(NeedsReset, |w| area_in_registers(w, 0))),
    Row("S0089", "a driver area in the registers of a device", plays(NeedsReset, |w| area_in_registers(w, 1))),
    Row("S0090", "features are agreed on again", plays(Served, |w| stays(w, WORKING | FEATURES_OK))),
    Row("S0091", "a device that needs a reset interrupts for its configuration", plays(NeedsReset, |w| {
        w.guest.was_told();
        let seen = w.watch(0, |ring| ring.offer(u16::MAX));
        assert_eq!(w.get(INTERRUPT) & 2, 2);
        seen
    })),
    Row("S0092", "a failed driver's device after a reset", plays(Served, |w| {
        w.guest.set_status(0xff);
        revived(w)
    })),
    Row("S0093", "the bits of the status that nobody has", plays(Served, |w| stays(w, 0x30 | WORKING))),
    Row("S0094", "nothing is taken before the driver is ready", plays(Served, before_the_driver_is_ready)),
    Row("S0095", "a queue that works is set up anew", elsewhere("tests/virtio_pci/common.rs::queue_registers_written_after_driver_ok_change_nothing; tests/virtio_mmio/queues.rs::queue_registers_written_after_driver_ok_change_nothing")),
];

/// Resets a queue by itself, where that was agreed on, enables it again and has it serve.
fn reset_queue(w: &mut World, queue: u16) -> Seen {
    if w.has(RING_RESET) {
        w.set(QUEUE_SEL, queue.into());
        w.set(QUEUE_RESET, 1);
        assert_eq!((w.get(QUEUE_RESET), w.get(QUEUE_READY)), (0, 0));
        w.guest.enable(queue);
    }
    several(w, queue, 1)
}
