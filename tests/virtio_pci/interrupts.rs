//! Which way an event goes, and that it arrives.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use devisor::{
    interrupt::{LevelInterrupt, MsiMessage, NoInterrupt},
    pci::{BarIndex, DeviceFunction, Function, NoMessages, RootBus},
    virtio::{
        VirtioTransport,
        transport::{pci::VirtioPciOptions, status::ACKNOWLEDGE},
    },
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{driver::*, platform::Event};

/// Bits of the ISR status, and of the PCI status register.
const QUEUE: u64 = 1;
const CONFIGURATION: u64 = 2;
const INTERRUPT_STATUS: u64 = 1 << 3;

#[test]
fn a_vector_number_out_of_range_reads_back_as_no_vector() {
    let driver = Driver::with_msix();
    driver.map_vectors();
    for vector in [3, 0x800, 0xfffe, NO_VECTOR] {
        driver.set(CONFIG_MSIX_VECTOR, vector);
        driver.set(QUEUE_MSIX_VECTOR, vector);
        assert_eq!(driver.get(CONFIG_MSIX_VECTOR), NO_VECTOR, "{vector:#x}");
        assert_eq!(driver.get(QUEUE_MSIX_VECTOR), NO_VECTOR, "{vector:#x}");
    }
    driver.set(QUEUE_MSIX_VECTOR, 2);
    assert_eq!(driver.get(QUEUE_MSIX_VECTOR), 2);
}

#[test]
fn a_vector_that_the_platform_cannot_give_reads_back_as_no_vector() {
    let driver = Driver::new();
    driver.set_config(MSIX_CONTROL, 2, ENABLE.into());
    driver.platform.refuse.store(true, SeqCst);
    driver.map_vectors();
    assert_eq!(driver.get(CONFIG_MSIX_VECTOR), NO_VECTOR);
    assert_eq!(driver.get(QUEUE_MSIX_VECTOR), NO_VECTOR);
    driver.platform.refuse.store(false, SeqCst);
    driver.map_vectors();
    assert_eq!(driver.get(CONFIG_MSIX_VECTOR), 0);
    assert_eq!(driver.get(QUEUE_MSIX_VECTOR), 2);
    assert_eq!(driver.platform.alive.load(SeqCst), 3, "given, though all are masked");
    assert_eq!(driver.platform.live.load(SeqCst), 0);
}

#[test]
fn no_vector_is_silence_for_queues_and_for_the_configuration() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.set(QUEUE_SELECT, 0);
    driver.set(QUEUE_MSIX_VECTOR, NO_VECTOR);
    driver.set(CONFIG_MSIX_VECTOR, NO_VECTOR);
    driver.sent();
    driver.request(0, &mut ring);
    driver.change();
    assert_eq!(ring.used().len(), 1);
    assert_eq!((driver.sent(), driver.heard()), (vec![], vec![]));
    assert_eq!(driver.isr(), CONFIGURATION, "for who polls");
}

#[test]
fn the_configuration_vector_is_looked_up_at_signal_time() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.sent();
    driver.change();
    driver.set(CONFIG_MSIX_VECTOR, 2);
    driver.change();
    driver.set(QUEUE_SELECT, 0);
    driver.set(QUEUE_MSIX_VECTOR, 0);
    driver.request(0, &mut ring);
    assert_eq!(driver.sent(), [0x40, 0x42, 0x40]);
}

#[test]
fn each_queue_has_its_vector_and_several_may_share_one() {
    let driver = Driver::with_msix();
    let [mut first, mut second] = driver.start();
    driver.sent();
    driver.request(0, &mut first);
    driver.request(1, &mut second);
    driver.change();
    assert_eq!(driver.sent(), [OF_QUEUE[0], OF_QUEUE[1], OF_CONFIG]);
    for queue in [0, 1] {
        driver.set(QUEUE_SELECT, queue);
        driver.set(QUEUE_MSIX_VECTOR, 0);
    }
    driver.request(0, &mut first);
    driver.request(1, &mut second);
    driver.change();
    assert_eq!(driver.sent(), [OF_CONFIG; 3]);
}

#[test]
fn a_masked_vector_is_pending_and_is_delivered_once_on_unmask_by_either_mask() {
    let by_vector = |driver: &Driver, masked| driver.mask(1, masked);
    let by_function = |driver: &Driver, masked: bool| {
        let mask = if masked { FUNCTION_MASK } else { 0 };
        driver.set_config(MSIX_CONTROL, 2, (ENABLE | mask).into());
    };
    let by_master = |driver: &Driver, masked: bool| {
        let master = if masked { 0 } else { BUS_MASTER };
        driver.set_config(COMMAND, 2, (MEMORY_SPACE | master).into());
    };
    let masks: [fn(&Driver, bool); 2] = [by_vector, by_function];
    for mask in masks {
        let driver = Driver::with_msix();
        let [mut ring, _] = driver.start();
        driver.sent();
        mask(&driver, true);
        for _ in 0..3 {
            driver.request(0, &mut ring);
        }
        assert_eq!((driver.pending(), driver.sent()), (0b010, vec![]));
        driver.set_bar(MSIX, PBA, 8, 0);
        driver.set_bar(MSIX, PBA, 4, u64::MAX);
        assert_eq!(driver.pending(), 0b010, "read-only to the guest");
        mask(&driver, false);
        assert_eq!((driver.pending(), driver.sent()), (0, vec![OF_QUEUE[0]]));
    }
    // Both were set.
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.sent();
    by_vector(&driver, true);
    by_function(&driver, true);
    driver.request(0, &mut ring);
    by_function(&driver, false);
    assert_eq!(driver.sent(), NONE);
    by_vector(&driver, false);
    assert_eq!(driver.sent(), [OF_QUEUE[0]]);
    // A message is a write to memory.
    by_master(&driver, true);
    driver.change();
    assert_eq!((driver.pending(), driver.sent()), (0b001, vec![]));
    by_master(&driver, false);
    assert_eq!((driver.pending(), driver.sent()), (0, vec![OF_CONFIG]));
}

#[test]
fn a_vector_that_was_never_unmasked_is_delivered_on_the_very_first_unmask() {
    let driver = Driver::new();
    driver.set_config(MSIX_CONTROL, 2, ENABLE.into());
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    assert_eq!((driver.pending(), driver.sent()), (0b010, vec![]));
    driver.open(1);
    assert_eq!((driver.pending(), driver.sent()), (0, vec![OF_QUEUE[0]]));
}

#[test]
fn nothing_is_sent_while_msix_is_disabled_and_nothing_stale_when_it_is_enabled_again() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.sent();
    driver.mask(1, true);
    driver.request(0, &mut ring);
    assert_eq!(driver.pending(), 0b010);
    driver.set_config(MSIX_CONTROL, 2, 0);
    assert_eq!(
        driver.platform.alive.load(SeqCst),
        0,
        "the platform has its vectors back"
    );
    driver.request(0, &mut ring);
    driver.mask(1, false);
    driver.set_config(MSIX_CONTROL, 2, ENABLE.into());
    assert_eq!((driver.pending(), driver.sent()), (0, vec![]));
    driver.request(0, &mut ring);
    assert_eq!(driver.sent(), [OF_QUEUE[0]]);
}

#[test]
fn a_mask_takes_the_message_from_the_platform_and_a_rewritten_one_is_the_one_that_is_sent() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    driver.platform.take();
    assert_eq!(driver.platform.live.load(SeqCst), 3);
    driver.mask(1, true);
    assert_eq!(driver.platform.take(), [Event::Programmed(None)]);
    let other = MsiMessage {
        address: 0x2_0000_1000,
        data: 0x99,
    };
    driver.set_bar(MSIX, 0x10, 4, 0x1000);
    driver.set_bar(MSIX, 0x14, 4, 2);
    driver.set_bar(MSIX, 0x18, 4, 0x99);
    driver.request(0, &mut ring);
    assert_eq!(driver.platform.take(), []);
    driver.mask(1, false);
    assert_eq!(
        driver.platform.take(),
        [Event::Programmed(Some(other)), Event::Sent(other)]
    );
}

#[test]
fn with_msix_on_isr_says_the_configuration_alone_with_it_off_intx_follows_it_and_drivers_switch_at_run_time() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.sent();
    driver.request(0, &mut ring);
    assert_eq!((driver.sent(), driver.isr()), (vec![OF_QUEUE[0]], 0));
    driver.change();
    assert_eq!((driver.sent(), driver.isr()), (vec![OF_CONFIG], CONFIGURATION));
    assert_eq!((driver.isr(), driver.heard()), (0, vec![]), "a read clears it");

    driver.set_config(MSIX_CONTROL, 2, 0);
    driver.request(0, &mut ring);
    assert_eq!(driver.heard(), [true]);
    driver.change();
    assert_eq!((driver.heard(), driver.isr()), (vec![], QUEUE | CONFIGURATION));
    assert_eq!((driver.heard(), driver.isr()), (vec![false], 0));
    assert_eq!(driver.sent(), NONE);

    driver.set_config(MSIX_CONTROL, 2, ENABLE.into());
    driver.sent();
    driver.request(0, &mut ring);
    assert_eq!(
        (driver.sent(), driver.heard(), driver.isr()),
        (vec![OF_QUEUE[0]], vec![], 0)
    );
}

#[test]
fn the_configuration_bit_of_isr_is_set_before_the_message_whatever_becomes_of_that() {
    let driver = Driver::with_msix();
    driver.start();
    driver.mask(0, true);
    driver.change();
    assert_eq!((driver.pending(), driver.isr()), (0b001, CONFIGURATION));
    driver.mask(0, false);
    driver.sent();
    driver.platform.refuse.store(true, SeqCst);
    driver.change();
    assert_eq!((driver.sent(), driver.isr()), (vec![], CONFIGURATION));
}

#[test]
fn a_configuration_bit_that_was_set_with_msix_on_reaches_the_wire_only_when_msix_is_off() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.change();
    driver.request(0, &mut ring);
    driver.kick(0);
    driver.pci.endpoint().intx().settle().unwrap();
    driver.pci.pause();
    driver.pci.resume();
    assert_eq!(driver.heard(), [], "not later either");
    // From here on, the wire is what ISR says (4.1.4.5.1), and nobody has read it.
    driver.set_config(MSIX_CONTROL, 2, 0);
    assert_eq!(driver.heard(), [true]);
    assert_eq!(driver.config(STATUS, 2) & INTERRUPT_STATUS, INTERRUPT_STATUS);
    assert_eq!((driver.isr(), driver.heard()), (CONFIGURATION, vec![false]));

    driver.set_config(MSIX_CONTROL, 2, ENABLE.into());
    driver.change();
    assert_eq!(driver.isr(), CONFIGURATION);
    driver.set_config(MSIX_CONTROL, 2, 0);
    assert_eq!(driver.heard(), [], "it was read");
}

#[test]
fn a_device_that_needs_a_reset_says_so_in_isr_with_msix_on() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.sent();
    ring.set_avail_idx(SIZE + 1);
    driver.kick(0);
    assert_eq!((driver.sent(), driver.isr()), (vec![OF_CONFIG], CONFIGURATION));
}

#[test]
fn the_wire_is_let_go_while_messages_are_enabled_and_the_cause_is_kept() {
    let driver = Driver::new();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    assert_eq!(driver.heard(), [true]);
    driver.set_config(MSIX_CONTROL, 2, ENABLE.into());
    assert_eq!(driver.heard(), [false]);
    driver.set_config(MSIX_CONTROL, 2, 0);
    assert_eq!((driver.heard(), driver.isr()), (vec![true], QUEUE));
}

#[test]
fn intx_disable_drops_the_line_without_losing_the_cause_and_interrupt_status_is_live() {
    let driver = Driver::new();
    let [mut ring, _] = driver.start();
    let command = u64::from(MEMORY_SPACE | BUS_MASTER);
    driver.request(0, &mut ring);
    assert_eq!(driver.heard(), [true]);
    assert_eq!(driver.config(STATUS, 2) & INTERRUPT_STATUS, INTERRUPT_STATUS);
    driver.set_config(COMMAND, 2, command | u64::from(INTX_DISABLE));
    assert_eq!(driver.heard(), [false]);
    assert_eq!(driver.config(STATUS, 2) & INTERRUPT_STATUS, INTERRUPT_STATUS);
    driver.set_config(COMMAND, 2, command);
    assert_eq!(driver.heard(), [true]);
    driver.set_config(COMMAND, 2, command | u64::from(INTX_DISABLE));
    assert_eq!((driver.isr(), driver.config(STATUS, 2) & INTERRUPT_STATUS), (QUEUE, 0));
    driver.request(0, &mut ring);
    assert_eq!((driver.heard(), driver.isr()), (vec![false], QUEUE));
}

#[test]
fn isr_is_a_byte_and_writes_do_not_change_it() {
    let driver = Driver::new();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    driver.set_bar(STRUCTURES, ISR, 1, 0);
    for len in [2, 4, 8] {
        assert_eq!(driver.bar(STRUCTURES, ISR, len), 0);
    }
    assert_eq!(driver.isr(), QUEUE);
}

#[test]
fn without_msix_the_wire_is_all_there_is() {
    let options = VirtioPciOptions {
        vectors: Some(0),
        ..VirtioPciOptions::default()
    };
    let driver = Driver::with(Probe::default(), options).unwrap();
    driver.place();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    assert_eq!((driver.heard(), driver.isr()), (vec![true], QUEUE));
}

#[test]
fn a_reset_tears_down_msix_and_disables_every_route_and_keeps_the_configuration_space() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.mask(2, true);
    driver.set(QUEUE_SELECT, 0);
    driver.set(QUEUE_MSIX_VECTOR, 2);
    driver.request(0, &mut ring);
    assert_eq!(driver.pending(), 0b100);
    let before: Vec<_> = (0..64).map(|at| driver.config(4 * at, 4)).collect();
    let table: Vec<_> = (0..6).map(|at| driver.bar(MSIX, 8 * at, 8)).collect();

    driver.set(DEVICE_STATUS, 0);
    assert_eq!(driver.pending(), 0);
    let platform = [&driver.platform.alive, &driver.platform.live].map(|count| count.load(SeqCst));
    assert_eq!(platform, [0, 0]);
    assert_eq!(driver.get(CONFIG_MSIX_VECTOR), NO_VECTOR);
    for queue in [0, 1] {
        driver.set(QUEUE_SELECT, queue);
        assert_eq!(driver.get(QUEUE_MSIX_VECTOR), NO_VECTOR);
    }
    assert_eq!((0..64).map(|at| driver.config(4 * at, 4)).collect::<Vec<_>>(), before);
    assert_eq!((0..6).map(|at| driver.bar(MSIX, 8 * at, 8)).collect::<Vec<_>>(), table);

    driver.platform.take();
    driver.mask(2, false);
    assert_eq!(driver.sent(), NONE, "what was pending is gone");
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    assert_eq!(driver.sent(), [OF_QUEUE[0]], "and the next driver is interrupted");
}

#[test]
fn a_reset_clears_isr_and_lets_go_of_the_wire() {
    let driver = Driver::new();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    driver.set(DEVICE_STATUS, 0);
    assert_eq!((driver.heard(), driver.isr()), (vec![true, false], 0));
    driver.change();
    assert_eq!((driver.heard(), driver.isr()), (vec![], 0), "no driver is there");
}

#[test]
fn a_reset_by_the_bus_is_one_of_device_and_function() {
    let driver = Driver::with_msix();
    driver.start();
    Function::reset(&*driver.pci);
    assert_eq!(
        (driver.status(), driver.config(COMMAND, 2), driver.config(BAR0, 4)),
        (0, 0, 0)
    );
    assert_eq!(driver.config(MSIX_CONTROL, 2), 2);
    assert_eq!(driver.bar(MSIX, 0x1c, 4), 1);
    assert_eq!(driver.platform.alive.load(SeqCst), 0);
    driver.place();
    driver.enable_msix();
    let [mut ring, _] = driver.start();
    driver.platform.take();
    driver.request(0, &mut ring);
    assert_eq!(driver.sent(), [OF_QUEUE[0]]);
}

#[test]
fn a_reset_of_the_root_bus_is_one_of_every_device_on_it() {
    let wires = [(); 4].map(|()| Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>);
    let root = RootBus::new(wires, Arc::new(NoMessages));
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
    let devices = [2, 1].map(|number| {
        let slot = root.slot(DeviceFunction::new(number, 0).unwrap()).unwrap();
        let device = Arc::new(Device::new(Probe::default(), Arc::clone(&memory), slot).unwrap());
        root.insert(device.clone()).unwrap();
        device.write_bar(BarIndex::Bar0, DEVICE_STATUS, &[ACKNOWLEDGE as u8]);
        device.write_config(COMMAND, &[6]);
        assert_eq!(device.status(), ACKNOWLEDGE);
        device
    });
    let addresses = root
        .functions()
        .into_iter()
        .map(|function| function.endpoint().address().device());
    assert!(addresses.eq([1, 2]));
    root.reset();
    for device in devices {
        let mut command = [0xff];
        device.read_config(COMMAND, &mut command);
        assert_eq!((device.status(), command), (0, [0]));
    }
}

#[test]
fn a_function_that_is_dropped_leaves_no_vector_and_no_wire() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    let platform = driver.platform.clone();
    drop(driver);
    assert_eq!(platform.alive.load(SeqCst), 0);

    let driver = Driver::new();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    let Driver { pci, .. } = driver;
    assert_eq!(pci.endpoint().intx().causes(), 1);
    let intx = |pci: &Device| pci.endpoint().intx().is_up();
    assert!(intx(&pci));
}

#[test]
fn a_message_that_the_platform_refused_comes_with_the_next_kick() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    driver.sent();
    driver.platform.refuse.store(true, SeqCst);
    driver.request(0, &mut ring);
    driver.change();
    assert_eq!(driver.sent(), NONE);
    assert_eq!(driver.pending(), 0b011);
    driver.platform.refuse.store(false, SeqCst);
    driver.kick(0);
    let mut sent = driver.sent();
    sent.sort_unstable();
    assert_eq!(sent, [OF_CONFIG, OF_QUEUE[0]]);
    assert_eq!(driver.pending(), 0);
}

#[test]
fn accesses_of_8_bytes_and_across_entries_neither_panic_nor_corrupt() {
    let driver = Driver::with_msix();
    let table = |driver: &Driver| -> Vec<u64> { (0..12).map(|at| driver.bar(MSIX, 4 * at, 4)).collect() };
    let before = table(&driver);
    for offset in (0..0x40).chain(0xff8..0x1010).chain([0x1fff, u64::MAX]) {
        for len in 0..=8 {
            driver.bar(MSIX, offset, len);
            let proper = matches!(len, 4 | 8) && offset % len as u64 == 0;
            if !proper {
                driver.set_bar(MSIX, offset, len, u64::MAX);
            }
        }
    }
    assert_eq!(table(&driver), before);
    driver.set_bar(MSIX, 0x18, 8, 0x1_0000_0077);
    assert_eq!((driver.bar(MSIX, 0x18, 4), driver.bar(MSIX, 0x1c, 4)), (0x77, 1));
}
