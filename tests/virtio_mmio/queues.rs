//! Queue registers, and queues that are stopped and reset by themselves.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use devisor::virtio::{
    DeviceId, Fault, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioMmio, features,
    transport::{
        TransportError, VirtioTransport,
        status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK},
    },
};

use crate::{
    driver::*,
    rest,
    ring::{Ring, memory, writable},
};

#[test]
fn queues_that_are_not_there_have_no_size_and_take_nothing() {
    let driver = Driver::silent();
    driver.negotiate(ALL);
    for (queue, max) in [(0, SIZE), (1, 2 * SIZE), (2, 0), (0x1_0000, 0), (u32::MAX, 0)] {
        driver.write(QUEUE_SEL, queue);
        assert_eq!(driver.read(QUEUE_SIZE_MAX), u32::from(max), "queue {queue}");
        driver.write(QUEUE_SIZE, 4);
        driver.write(QUEUE_READY, 1);
        assert_eq!(driver.read(QUEUE_READY), u32::from(max != 0));
        driver.write(QUEUE_NOTIFY, queue);
    }
}

#[test]
fn low_and_high_halves_are_kept_apart() {
    let driver = Driver::silent();
    driver.negotiate(ALL);
    let ring = Ring::new(&driver.memory, 0x10000, SIZE);
    driver.write(QUEUE_SEL, 0);
    driver.write_layout(&ring);
    for low in [QUEUE_DESC_LOW, QUEUE_DRIVER_LOW, QUEUE_DEVICE_LOW] {
        driver.write(low + 4, 0xdead_beef);
    }
    let layout = rest::mmio(&mut driver.saved()).transport.setup[0].layout;
    assert_eq!(
        layout.descriptor_area,
        0xdead_beef_0000_0000 | ring.layout.descriptor_area
    );
    assert_eq!(layout.driver_area, 0xdead_beef_0000_0000 | ring.layout.driver_area);
    assert_eq!(layout.device_area, 0xdead_beef_0000_0000 | ring.layout.device_area);
}

#[test]
fn queue_registers_written_after_driver_ok_change_nothing() {
    let driver = Driver::silent();
    let mut ring = driver.start();
    let before = driver.saved();
    driver.write(QUEUE_SEL, 0);
    driver.write(QUEUE_SIZE, 2);
    driver.write(QUEUE_DESC_LOW, 0x7000);
    driver.write(QUEUE_READY, 1);
    driver.write(QUEUE_SEL, 1);
    driver.write_layout(&Ring::new(&driver.memory, 0x20000, SIZE));
    driver.write(QUEUE_READY, 1);
    driver.write(QUEUE_SEL, 0);
    assert_eq!(driver.saved(), before);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used(), [(0, 1)]);
}

#[test]
fn a_ready_queue_is_frozen_and_one_before_features_ok_not_open_yet() {
    let driver = Driver::silent();
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.set_up_queue(0);
    assert_eq!(driver.read(QUEUE_READY), 0);
    driver.negotiate(ALL);
    driver.set_up_queue(0);
    let before = driver.saved();
    driver.write(QUEUE_SIZE, 2);
    driver.write(QUEUE_DRIVER_LOW, 0x4000);
    assert_eq!(driver.saved(), before);
}

#[test]
fn a_queue_that_is_not_ready_is_not_touched() {
    let driver = Driver::silent();
    let mut ring = driver.start();
    driver.write(QUEUE_READY, 0);
    assert_eq!(driver.read(QUEUE_READY), 0);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used_idx(), 0);
}

#[test]
fn a_queue_that_was_stopped_runs_again_once_it_is_enabled() {
    let stopped = |features| {
        let driver = Driver::silent();
        driver.negotiate(features);
        let mut ring = driver.set_up_queue(0);
        driver.go();
        ring.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 0);
        driver.write(QUEUE_READY, 0);
        assert_eq!((driver.read(QUEUE_READY), ring.used().len()), (0, 1));
        driver
    };
    for features in [features::VERSION_1, ALL & !features::EVENT_IDX] {
        // Where it was, begun anew by its driver.
        let driver = stopped(features);
        let mut again = Ring::new(&driver.memory, 0x10000, SIZE);
        again.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_READY, 1);
        assert_eq!((driver.read(QUEUE_READY), again.used().len()), (1, 1), "looked at once");
        again.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 0);
        assert_eq!(again.used().len(), 1);
        driver.write(QUEUE_SIZE, 2);
        let layout = rest::mmio(&mut driver.saved()).transport.setup[0].layout;
        assert_eq!(layout.size, SIZE, "frozen again");

        // Elsewhere, and on another host.
        let driver = stopped(features);
        let other = driver.moved(Probe::default(), silent());
        assert_eq!(other.mmio.save(), driver.mmio.save());
        other.mmio.resume();
        let mut elsewhere = Ring::new(&other.memory, 0x30000, 4);
        other.write_layout(&elsewhere);
        elsewhere.request(&[writable(0x8000, 2)]);
        other.write(QUEUE_READY, 1);
        assert_eq!((other.read(QUEUE_READY), elsewhere.used()), (1, vec![(0, 2)]));
        assert_eq!(other.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }
}

#[test]
fn a_queue_that_was_not_enabled_at_driver_ok_reads_as_not_ready_for_good() {
    let driver = Driver::silent();
    driver.negotiate(ALL);
    driver.set_up_queue(0);
    driver.write(QUEUE_READY, 0);
    driver.go();
    for queue in [0, 1] {
        driver.write(QUEUE_SEL, queue);
        driver.write(QUEUE_READY, 0);
        driver.write(QUEUE_READY, 1);
        assert_eq!(driver.read(QUEUE_READY), 0);
    }
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

#[test]
fn a_queue_can_be_reset_by_itself_and_set_up_elsewhere() {
    let driver = Driver::silent();
    let mut first = driver.start();
    first.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.write(QUEUE_RESET, 1);
    assert_eq!((driver.read(QUEUE_RESET), driver.read(QUEUE_READY)), (0, 0));
    first.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(first.used().len(), 1, "the old ring is not looked at any more");

    let mut second = Ring::new(&driver.memory, 0x30000, 4);
    driver.write_layout(&second);
    second.request(&[writable(0x8000, 2)]);
    driver.write(QUEUE_READY, 1);
    assert_eq!(second.used(), [(0, 2)], "what was there before it was enabled is found");
    assert_eq!(driver.read(QUEUE_RESET), 0);
    driver.write(QUEUE_SIZE, 8);
    second.request(&[writable(0x8000, 2)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(second.used().len(), 1, "and it is frozen again");
}

#[test]
fn a_queue_reset_that_was_not_negotiated_does_nothing() {
    let driver = Driver::silent();
    driver.negotiate(ALL & !features::RING_RESET);
    driver.set_up_queue(0);
    driver.go();
    driver.write(QUEUE_RESET, 1);
    assert_eq!(driver.read(QUEUE_READY), 1);
}

#[test]
fn a_device_hears_of_a_queue_that_is_stopped_or_reset_alone() {
    let driver = Driver::silent();
    driver.start();
    driver.write(QUEUE_RESET, 1);
    driver.set_up_queue(0);
    driver.write(QUEUE_READY, 0);
    driver.write(QUEUE_READY, 0);
    assert_eq!(
        driver
            .mmio
            .with_device(|probe| probe.queues.stopped.lock().unwrap().clone()),
        [QueueIndex(0), QueueIndex(0)]
    );
}

#[test]
fn a_device_may_have_no_queue_or_as_many_as_there_are_indices() {
    struct Many(Vec<u16>, Arc<AtomicU32>);
    impl VirtioDevice for Many {
        fn device_id(&self) -> DeviceId {
            DeviceId(1)
        }
        fn queue_sizes(&self) -> &[u16] {
            &self.0
        }
        fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
            Box::new(Count(Arc::clone(&self.1)))
        }
    }
    struct Count(Arc<AtomicU32>);
    impl QueueHandler for Count {
        fn serve(&mut self, _: &mut Round<'_>) -> Result<(), Fault> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }
    for queues in [0, 65535] {
        let looked_at = Arc::new(AtomicU32::new(0));
        let many = Many(vec![1; queues as usize], Arc::clone(&looked_at));
        let driver = Driver::with(many, silent());
        driver.negotiate(features::VERSION_1);
        // All of them in one place: nothing is in it.
        let ring = Ring::new(&driver.memory, 0x10000, 1);
        for queue in 0..queues {
            driver.write(QUEUE_SEL, queue);
            driver.write_layout(&ring);
            driver.write(QUEUE_READY, 1);
        }
        driver.go();
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(looked_at.load(Ordering::SeqCst), queues, "each is looked at");
        for kicked in [queues, queues.saturating_sub(1), u32::MAX] {
            driver.write(QUEUE_NOTIFY, kicked);
        }
        let expected = queues + u32::from(queues != 0);
        assert_eq!(looked_at.load(Ordering::SeqCst), expected);
        let moved = driver.moved(Many(vec![1; queues as usize], Arc::default()), silent());
        assert_eq!(moved.status(), driver.status());
        driver.mmio.resume();
        driver.write(STATUS, 0);
        assert_eq!(driver.status(), 0);
    }
    let too_many = VirtioMmio::new(Many(vec![1; 65536], Arc::default()), memory(), silent());
    assert_eq!(too_many.err(), Some(TransportError::QueueCount(65536)));
}

#[test]
fn a_device_with_impossible_queues_is_refused() {
    struct Odd;
    impl VirtioDevice for Odd {
        fn device_id(&self) -> DeviceId {
            DeviceId(1)
        }
        fn queue_sizes(&self) -> &[u16] {
            &[8, 12]
        }
        fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
            unreachable!("it has no driver")
        }
    }
    let refused = VirtioMmio::new(Odd, memory(), silent()).expect_err("12 is no power of two");
    assert_eq!(refused, TransportError::QueueSize { index: 1, size: 12 });
}
