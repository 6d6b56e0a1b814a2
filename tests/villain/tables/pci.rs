//! PCI: virtio-pci (virtio 1.2, section 4.1), before a disk of two queues.

use devisor::virtio::features::{NOTIFICATION_DATA, VERSION_1};

use crate::{
    driver::{
        Row,
        Seen::{self, Holds, NeedsReset, Served},
        elsewhere, plays,
    },
    rings::*,
    setup::*,
    world::World,
};

/// MSI (PCI 3.0, 6.8.1): functions of virtio devices have MSI-X instead.
const MSI: u64 = 5;

/// Whatever was written, a request is served after it.
fn then_serves(w: &mut World, doing: impl FnOnce(&mut World)) -> Seen {
    doing(w);
    several(w, 0, 1)
}

/// A register of the common configuration that does not change when it is written.
fn is_read_only(w: &mut World, register: u64, len: usize) -> Seen {
    then_serves(w, |w| {
        let before = w.guest.read(0, register, len);
        w.guest.write(0, register, len, !before);
        assert_eq!(w.guest.read(0, register, len), before);
    })
}

/// A register that reads as it was written.
fn reads_back(w: &mut World, register: u64, len: usize, values: &[u64]) -> Seen {
    then_serves(w, |w| {
        for value in values {
            w.guest.write(0, register, len, *value);
            assert_eq!(w.guest.read(0, register, len), *value);
        }
    })
}

/// A queue that there is not.
fn no_queue(w: &mut World, queue: u64) -> Seen {
    then_serves(w, |w| {
        w.set(QUEUE_SEL, queue);
        assert_eq!((w.get(QUEUE_MAX), w.get(QUEUE_READY)), (0, 0));
        w.set(QUEUE_SIZE, 16);
        w.set(QUEUE_READY, 1);
        assert_eq!((w.get(QUEUE_MAX), w.get(QUEUE_READY)), (0, 0));
    })
}

/// A kick in the place of a queue that there is not.
fn kick_at(w: &mut World, queue: u64) -> Seen {
    then_serves(w, |w| w.guest.write(0, 0x3000 + 4 * queue, 2, queue))
}

/// Bits of the status that mean nothing.
fn odd_status(w: &mut World, bits: u32) -> Seen {
    then_serves(w, |w| assert_eq!(status_after(w, WORKING | bits), WORKING))
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("PCI0001", "a queue of no descriptors", plays(NeedsReset, |w| with_layout(w, |layout| layout.size = 0))),
    Row("PCI0002", "a queue of three descriptors", plays(NeedsReset, |w| with_layout(w, |layout| layout.size = 3))),
    Row("PCI0003", "a queue that is enabled before it is set up", plays(Holds, |w| {
        w.agree();
        w.set(QUEUE_SEL, 0);
        w.set(QUEUE_READY, 1);
        assert_eq!(w.get(QUEUE_READY), 1);
        w.restart();
        Holds
    })),
    Row("PCI0004", "a driver that does not look whether its queue is enabled", plays(Served, |w| several(w, 0, 1))),
    Row("PCI0005", "a kick of a queue that is not enabled", plays(Holds, |w| {
        w.agree();
        w.guest.enable(0);
        w.go();
        w.guest.write(0, 0x3004, 2, 1);
        assert!(!w.needs_reset());
        w.restart();
        Holds
    })),
    Row("PCI0006", "a vector that there is not", elsewhere("tests/virtio_pci/interrupts.rs::a_vector_number_out_of_range_reads_back_as_no_vector")),
    Row("PCI0007", "fields that cannot be written", elsewhere("tests/virtio_pci/common.rs::read_only_registers_do_not_change")),
    Row("PCI0008", "a queue that is to be disabled by its enable bit", plays(Served, |w| then_serves(w, |w| {
        w.set(QUEUE_SEL, 0);
        w.set(QUEUE_READY, 0);
        assert_eq!(w.get(QUEUE_READY), 1);
    }))),
    Row("PCI0009", "a queue is selected that there is not", plays(Served, |w| no_queue(w, 0xffff))),
    Row("PCI0010", "the window without an aim", elsewhere("tests/virtio_pci/window.rs::an_aim_that_cannot_be_reads_as_zero_and_writes_nothing")),
    Row("PCI0011", "a driver that reads no generation", plays(Holds, |w| {
        (0..64).for_each(|at| _ = w.guest.config(at, 1));
        Holds
    })),
    Row("PCI0012", "a kick of another queue", plays(Holds, |w| {
        let good = w.good(0);
        w.guest.ring(0).request(&good);
        w.guest.write(0, 0x3004, 2, 1);
        assert_eq!(w.guest.used(0), [0_u32; 0]);
        w.kick(0);
        assert_eq!(w.guest.used(0), [513]);
        Holds
    })),
    Row("PCI0013", "registers that are read between registers", elsewhere("tests/virtio_pci/common.rs::accesses_that_are_not_a_registers_own_read_as_zero_and_write_nothing")),
    Row("PCI0014", "bits of the status that do not exist", plays(Served, |w| odd_status(w, 0x30))),
    Row("PCI0015", "nothing has happened", plays(Holds, |w| {
        assert_eq!(w.get(INTERRUPT) & 1, 0);
        Holds
    })),
    Row("PCI0016", "another queue is selected, and this one kicked", plays(Served, |w| then_serves(w, |w| w.set(QUEUE_SEL, 1)))),
    Row("PCI0017", "a status that is written while a reset goes on", elsewhere("tests/virtio_pci/flight.rs::a_reset_that_takes_longer_than_its_patience_reads_as_not_reset_until_requests_have_ended")),
    Row("PCI0018", "a kick behind the last queue", plays(Served, |w| kick_at(w, 100))),
    Row("PCI0019", "the configuration is read between requests", plays(Served, |w| {
        for at in 0..32 {
            w.guest.config(at, 1);
            assert_eq!(several(w, 0, 1), Served);
        }
        Served
    })),
    Row("PCI0020", "another vector while requests come", elsewhere("tests/virtio_pci/interrupts.rs::the_configuration_vector_is_looked_up_at_signal_time")),
    Row("PCI0021", "a read through the window", elsewhere("tests/virtio_pci/window.rs::the_window_reaches_every_register_that_the_bars_reach_doorbells_included")),
    Row("PCI0022", "what has happened is read once", plays(Holds, |w| {
        assert_eq!(several(w, 0, 1), Served);
        assert_eq!((w.get(INTERRUPT) & 1, w.get(INTERRUPT)), (1, 0));
        Holds
    })),
    Row("PCI0023", "a change of the configuration is shown", elsewhere("tests/virtio_pci/interrupts.rs::the_configuration_bit_of_isr_is_set_before_the_message_whatever_becomes_of_that")),
    Row("PCI0024", "what is behind the common configuration", plays(Served, |w| then_serves(w, |w| {
        for at in (0x40..0x100).step_by(4) {
            w.guest.write(0, at, 4, 0xffff_ffff);
            assert_eq!(w.guest.read(0, at, 4), 0);
        }
    }))),
    Row("PCI0025", "what is behind the last doorbell", plays(Served, |w| kick_at(w, 0x3ff))),
    Row("PCI0026", "who the function is", elsewhere("tests/virtio_pci/identity.rs::a_function_is_a_modern_device_of_its_type")),
    Row("PCI0027", "how far doorbells are apart", elsewhere("tests/virtio_pci/identity.rs::capabilities_say_where_the_structures_are")),
    Row("PCI0028", "a reset with requests under way", elsewhere("tests/virtio_pci/flight.rs::a_reset_within_its_patience_has_ended_when_the_write_returns")),
    Row("PCI0029", "a list of capabilities that ends", plays(Holds, |w| {
        assert!(capabilities(w).len() >= 5);
        Holds
    })),
    Row("PCI0030", "all bits of the status", plays(Served, |w| then_serves(w, |w| {
        let status = status_after(w, 0xff);
        assert_eq!(status, WORKING | FAILED);
    }))),
    Row("PCI0031", "shared memory and its capability", elsewhere("tests/virtio_pci/identity.rs::shared_memory_regions_have_capabilities_and_a_bar")),
    Row("PCI0032", "a write through the window", elsewhere("tests/virtio_pci/window.rs::the_window_reaches_every_register_that_the_bars_reach_doorbells_included")),
    Row("PCI0033", "a reset of the function with requests under way", elsewhere("tests/virtio_pci/flight.rs::a_reset_by_the_bus_is_one_by_the_driver")),
    Row("PCI0034", "pending bits can be read and not written", elsewhere("tests/pci/msix.rs::the_pending_bits_are_read_only")),
    Row("PCI0035", "how large a BAR is", elsewhere("tests/pci/bars.rs::a_bar_is_sized_by_writing_ones_and_keeps_its_kind")),
    Row("PCI0036", "each capability is one", plays(Holds, |w| {
        assert!(capabilities(w).contains(&0x09) && capabilities(w).contains(&0x11));
        Holds
    })),
    Row("PCI0037", "an entry of the MSI-X table is written", elsewhere("tests/pci/msix.rs::entries_answer_four_and_eight_bytes")),
    Row("PCI0038", "all vectors are masked", elsewhere("tests/pci/msix.rs::a_function_mask_holds_every_vector_and_its_unmask_delivers_once")),
    Row("PCI0039", "the capability of the window is there", elsewhere("tests/virtio_pci/window.rs::the_fields_of_the_window_read_back")),
    Row("PCI0040", "the common configuration is read", elsewhere("tests/virtio_pci/common.rs::registers_read_as_they_are_after_reset")),
    Row("PCI0041", "each queue has its vector", elsewhere("tests/virtio_pci/interrupts.rs::each_queue_has_its_vector_and_several_may_share_one")),
    Row("PCI0042", "MSI is there", plays(Holds, |w| no_capability(w, MSI))),
    Row("PCI0043", "MSI is enabled", plays(Holds, |w| no_capability(w, MSI))),
    Row("PCI0044", "MSI of several messages", plays(Holds, |w| no_capability(w, MSI))),
    Row("PCI0045", "MSI whose vectors are masked", plays(Holds, |w| no_capability(w, MSI))),
    Row("PCI0046", "MSI to an address that is none", plays(Holds, |w| no_capability(w, MSI))),
    Row("PCI0047", "MSI while requests come", plays(Holds, |w| no_capability(w, MSI))),
    Row("PCI0048", "MSI is enabled and disabled", plays(Holds, |w| no_capability(w, MSI))),
    Row("PCI0049", "MSI and MSI-X at once", plays(Holds, |w| no_capability(w, MSI))),
    Row("PCI0050", "a word of features that does not exist", plays(Holds, |w| {
        assert_eq!([2, 3, 0xffff_ffff].map(|word| w.device_features(word)), [0; 3]);
        Holds
    })),
    Row("PCI0051", "a feature is accepted in a word that does not exist, too late and in time", plays(Holds, |w| {
        w.accept(5, 0xdead_beef);
        assert_eq!(several(w, 0, 1), Served);
        w.guest.reset();
        w.begin();
        w.accept(1, 1);
        w.accept(5, 1);
        assert_eq!(status_after(w, ACKNOWLEDGE | DRIVER | FEATURES_OK), ACKNOWLEDGE | DRIVER);
        Holds
    })),
    Row("PCI0052", "the queue behind the last one", plays(Served, |w| no_queue(w, 2))),
    Row("PCI0053", "a queue of a size that is no power of two", plays(NeedsReset, |w| with_layout(w, |layout| layout.size = 100))),
    Row("PCI0054", "a queue that is enabled and disabled and enabled", plays(Served, |w| then_serves(w, |w| {
        w.set(QUEUE_SEL, 0);
        [0, 1, 0, 1].into_iter().for_each(|enable| w.set(QUEUE_READY, enable));
        assert_eq!(w.get(QUEUE_READY), 1);
    }))),
    Row("PCI0055", "descriptors at an odd address", plays(NeedsReset, |w| with_layout(w, |layout| layout.descriptor_area += 3))),
    Row("PCI0056", "a driver area outside of memory", plays(NeedsReset, |w| with_layout(w, |layout| layout.driver_area = crate::world::NOWHERE))),
    Row("PCI0057", "a driver that has failed", plays(Served, |w| then_serves(w, |w| {
        assert_eq!(status_after(w, FAILED), WORKING | FAILED);
    }))),
    Row("PCI0058", "bits of the status that are reserved", plays(Served, |w| odd_status(w, 0x20))),
    Row("PCI0059", "what was read is forgotten", plays(Holds, |w| {
        assert_eq!(several(w, 0, 1), Served);
        w.get(INTERRUPT);
        assert_eq!(w.get(INTERRUPT), 0);
        Holds
    })),
    Row("PCI0060", "a kick of the queue behind the last one", plays(Served, |w| kick_at(w, 2))),
    Row("PCI0061", "the generation stays where nothing changes", plays(Holds, |w| {
        w.guest.generation();
        assert_eq!(w.guest.generation(), w.guest.generation());
        Holds
    })),
    Row("PCI0062", "how many queues there are cannot be written", plays(Served, |w| is_read_only(w, 0x12, 2))),
    Row("PCI0063", "the generation cannot be written", plays(Served, |w| {
        w.guest.generation();
        is_read_only(w, 0x15, 1)
    })),
    Row("PCI0064", "a queue's vector that there is not", elsewhere("tests/virtio_pci/interrupts.rs::a_vector_number_out_of_range_reads_back_as_no_vector")),
    Row("PCI0065", "registers that are read by bytes", elsewhere("tests/virtio_pci/common.rs::accesses_that_are_not_a_registers_own_read_as_zero_and_write_nothing")),
    Row("PCI0066", "the vector of the configuration reads as it was written", plays(Served, |w| reads_back(w, 0x10, 2, &[0xffff, 0, 1, 0xffff]))),
    Row("PCI0067", "the vector of a queue reads as it was written", plays(Served, |w| {
        w.set(QUEUE_SEL, 0);
        reads_back(w, 0x1a, 2, &[0xffff, 0, 1, 0xffff])
    })),
    Row("PCI0068", "a kick after registers were written", plays(Served, |w| then_serves(w, |w| {
        for register in 0..16 {
            w.guest.write(0, 0x18 + 2 * register, 2, 0x1234);
        }
    }))),
    Row("PCI0069", "where a queue's doorbell is", plays(Holds, |w| {
        for queue in 0..2 {
            w.set(QUEUE_SEL, queue);
            assert_eq!(w.guest.read(0, 0x1e, 2), queue);
        }
        Holds
    })),
    Row("PCI0070", "a vector that is masked alone", elsewhere("tests/virtio_pci/interrupts.rs::a_masked_vector_is_pending_and_is_delivered_once_on_unmask_by_either_mask")),
    Row("PCI0071", "a queue that is selected behind the last one", plays(Served, |w| no_queue(w, 3))),
    Row("PCI0072", "how far doorbells are apart cannot be written", elsewhere("tests/pci/config.rs::a_guest_that_writes_ones_everywhere_changes_what_it_may_and_nothing_else")),
    Row("PCI0073", "a register that is read in three bytes", plays(Served, |w| then_serves(w, |w| {
        for at in 0..0x40 {
            assert_eq!(w.guest.read(0, at, 3), 0);
            w.guest.write(0, at, 3, 0xff_ffff);
        }
    }))),
    Row("PCI0074", "a list of capabilities without a circle", plays(Holds, |w| {
        assert!(capabilities(w).len() < 48);
        Holds
    })),
    Row("PCI0075", "the first vector behind the table", elsewhere("tests/virtio_pci/interrupts.rs::a_vector_number_out_of_range_reads_back_as_no_vector")),
    Row("PCI0076", "where the administration queue is", plays(Holds, no_administration)),
    Row("PCI0077", "the administration queue is selected", plays(Holds, no_administration)),
    Row("PCI0078", "the administration queue is kicked", plays(Holds, no_administration)),
    Row("PCI0079", "the administration queue is a packed one", plays(Holds, no_administration)),
    Row("PCI0080", "a window into a BAR that there is not", elsewhere("tests/virtio_pci/window.rs::an_aim_that_cannot_be_reads_as_zero_and_writes_nothing")),
    Row("PCI0081", "a window behind its BAR", elsewhere("tests/virtio_pci/window.rs::an_aim_that_cannot_be_reads_as_zero_and_writes_nothing")),
    Row("PCI0082", "a window of a width that cannot be", elsewhere("tests/virtio_pci/window.rs::an_aim_that_cannot_be_reads_as_zero_and_writes_nothing")),
    Row("PCI0083", "a window of one byte", elsewhere("tests/virtio_pci/window.rs::the_window_reaches_every_register_that_the_bars_reach_doorbells_included")),
    Row("PCI0084", "a window at the end of the doorbells", elsewhere("tests/virtio_pci/window.rs::an_access_that_only_runs_into_the_window_reaches_no_register")),
    Row("PCI0085", "a kick that names a queue that there is not", plays(Served, |w| then_serves(w, |w| w.guest.write(0, 0x3000, 2, 0xffff)))),
    Row("PCI0086", "the two bits of the status that are nobody's", plays(Served, |w| odd_status(w, 0x10))),
    Row("PCI0087", "the last queue that can be selected", plays(Served, |w| no_queue(w, 0xfffe))),
    Row("PCI0088", "a vector of any number", elsewhere("tests/virtio_pci/interrupts.rs::a_vector_number_out_of_range_reads_back_as_no_vector")),
    Row("PCI0089", "a queue that is enabled twice", plays(Served, |w| then_serves(w, |w| {
        w.set(QUEUE_SEL, 0);
        [1, 1].into_iter().for_each(|enable| w.set(QUEUE_READY, enable));
    }))),
    Row("PCI0090", "where a doorbell is cannot be written", plays(Served, |w| is_read_only(w, 0x1e, 2))),
    Row("PCI0091", "a size after the queue was enabled", plays(Served, |w| {
        w.set(QUEUE_SEL, 0);
        is_read_only(w, 0x18, 2)
    })),
    Row("PCI0092", "the selector of the device's features", plays(Holds, |w| {
        w.set(DEVICE_FEATURES_SEL, 77);
        assert_eq!(w.get(DEVICE_FEATURES), 0);
        Holds
    })),
    Row("PCI0093", "the selector of the driver's features", plays(Holds, |w| {
        w.set(DRIVER_FEATURES_SEL, 77);
        assert_eq!(w.get(DRIVER_FEATURES), 0);
        Holds
    })),
    Row("PCI0094", "the number of queues stays", plays(Served, |w| is_read_only(w, 0x12, 2))),
    Row("PCI0095", "capabilities of shared memory", elsewhere("tests/virtio_pci/identity.rs::shared_memory_regions_have_capabilities_and_a_bar")),
    Row("PCI0096", "capabilities of who made the device", plays(Holds, |w| {
        // There are five of virtio's, and MSI-X.
        assert_eq!(capabilities(w).iter().filter(|id| **id == 0x09).count(), 5);
        Holds
    })),
    Row("PCI0097", "fields of the device in their widths", elsewhere("tests/virtio_pci/common.rs::the_device_configuration_answers_every_width_and_offset")),
    Row("PCI0098", "regions that fit into their BARs", elsewhere("tests/virtio_pci/identity.rs::bars_are_as_large_as_what_is_in_them")),
    Row("PCI0099", "a size that is a power of two", plays(Holds, |w| {
        w.guest.reset();
        w.set(QUEUE_SEL, 0);
        assert!(w.get(QUEUE_MAX).is_power_of_two());
        Holds
    })),
    Row("PCI0100", "the device's number is that of its type", plays(Holds, |w| {
        assert_eq!(w.pci_config(2, 2), 0x1040 + 2);
        Holds
    })),
    Row("PCI0101", "VERSION_1 is offered", plays(Holds, |w| {
        assert_ne!(w.guest.offered() & VERSION_1, 0);
        Holds
    })),
    Row("PCI0102", "the subsystem's numbers", elsewhere("tests/virtio_pci/identity.rs::a_function_is_a_modern_device_of_its_type")),
    Row("PCI0103", "the vendor's number", plays(Holds, |w| {
        assert_eq!(w.pci_config(0, 2), 0x1af4);
        Holds
    })),
    Row("PCI0104", "the revision", plays(Holds, |w| {
        assert!(w.pci_config(8, 1) >= 1);
        Holds
    })),
    Row("PCI0105", "the status after a reset", plays(Holds, |w| {
        w.guest.reset();
        assert_eq!(w.get(STATUS), 0);
        Holds
    })),
    Row("PCI0106", "features that are right are agreed on", plays(Holds, |w| {
        w.agree();
        assert_eq!(w.guest.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
        Holds
    })),
    Row("PCI0107", "the class of the function", plays(Holds, |w| {
        assert_ne!(w.pci_config(0xb, 1), 0);
        Holds
    })),
    Row("PCI0108", "there are queues", plays(Holds, |w| {
        assert_eq!(w.guest.read(0, 0x12, 2), 2);
        Holds
    })),
    Row("PCI0109", "the selected queue reads back", plays(Served, |w| reads_back(w, 0x16, 2, &[0, 1, 0]))),
    Row("PCI0110", "the selected features read back", plays(Served, |w| reads_back(w, 0x00, 4, &[0, 1, 0]))),
    Row("PCI0111", "features are offered", plays(Holds, |w| {
        assert_ne!(w.device_features(0), 0);
        Holds
    })),
    Row("PCI0112", "the generation is read twice", plays(Holds, |w| {
        w.guest.generation();
        assert_eq!(w.guest.generation(), w.guest.generation());
        Holds
    })),
    Row("PCI0113", "a queue that was enabled says so", plays(Holds, |w| {
        w.set(QUEUE_SEL, 0);
        assert_eq!(w.get(QUEUE_READY), 1);
        Holds
    })),
    Row("PCI0114", "nothing has happened when the driver is ready", plays(Holds, |w| {
        w.guest.reset();
        w.start();
        assert_eq!(w.get(INTERRUPT), 0);
        Holds
    })),
    Row("PCI0115", "a request has happened", plays(Holds, |w| {
        assert_eq!(several(w, 0, 1), Served);
        assert_eq!(w.get(INTERRUPT) & 1, 1);
        Holds
    })),
    Row("PCI0116", "doorbells are within their region", elsewhere("tests/virtio_pci/identity.rs::capabilities_say_where_the_structures_are")),
    Row("PCI0117", "fields of the administration queue", plays(Holds, no_administration)),
    Row("PCI0118", "virtual functions", plays(Holds, |w| {
        assert!(matches!(w.pci_config(0x100, 4), 0 | 0xffff_ffff), "no extended capability");
        not_offered(w, 37)
    })),
    Row("PCI0119", "kicks that say how far the driver is", plays(Served, |w| {
        assert!(!w.is_full() || w.has(NOTIFICATION_DATA));
        several(w, 0, 3)
    })),
    Row("PCI0200", "a function that goes while it is kicked", elsewhere("tests/pci/bars.rs::a_function_that_is_removed_or_dropped_decodes_nothing")),
    Row("PCI0201", "a state is saved with vectors masked", elsewhere("tests/virtio_pci/state.rs::restored_msix_tables_have_live_routes")),
];

/// The numbers of the capabilities, in their order.
fn capabilities(w: &World) -> Vec<u64> {
    let mut found = Vec::new();
    let mut at = w.pci_config(0x34, 1);
    while at != 0 {
        found.push(w.pci_config(at, 1));
        assert!(found.len() < 64 && at >= 0x40, "a list that ends");
        at = w.pci_config(at + 1, 1);
    }
    found
}
