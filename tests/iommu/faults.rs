//! Section 5.13.6.9: what is refused is told.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

use devisor::{
    interrupt::Interrupt,
    virtio::{
        entropy::Entropy,
        features::RING_PACKED,
        iommu::{Bypass, FaultCounts, Iommu, IommuOptions},
    },
};

use crate::{
    behind::{PLATFORM, disk},
    both::{ANSWER, BOTH, Guest, REQUEST, Transport},
    driver::*,
    late::{Held, Late, Stopped},
    packed,
    ring::{Buffer, readable, writable},
};

const R: u32 = 0x101;
const W: u32 = 0x102;

#[test]
fn a_fault_is_told_by_its_reason_direction_endpoint_and_address() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let mut block = world.run_behind(TWO, disk(), &[0]);
        world.take_reports(8);
        assert_eq!(world.map(TWO, (0x1000, 0x1000), 0x10_0000, READ), OK);
        assert_eq!(world.map(TWO, (0x3000, 0x1000), 0x10_0000, WRITE), OK);
        assert_eq!(world.map(TWO, (0x5000, 0x1000), 0x10_0000, 0), OK);
        block.put(REQUEST, &[0; 16]);
        for data in [
            writable(0x1000, 512),
            readable(0x3ff0, 512),
            writable(0x3ff0, 512),
            readable(0x1f00, 512),
            readable(0x9123, 512),
            readable(0x5000, 512),
        ] {
            let chain = [readable(REQUEST + SHIFT, 16), data, writable(ANSWER + SHIFT, 1)];
            assert_eq!(block.run(0, &chain), 0, "{data:x?}");
        }
        assert_eq!(
            world.faults(),
            [
                (2, W, TWO, 0x1000),
                (2, R, TWO, 0x3ff0),
                (2, W, TWO, 0x4000),
                (2, R, TWO, 0x2000),
                (2, R, TWO, 0x9123),
                (2, R, TWO, 0x5000),
            ]
        );
        let counted = world.iommu.with_device(|iommu| iommu.faults());
        assert_eq!(counted, FaultCounts { faults: 6, lost: 0 });
        assert_eq!(block.counters(0).malformed, 6);
    }
}

#[test]
fn an_endpoint_without_a_domain_faults_as_such() {
    for kind in BOTH {
        let never = IommuOptions {
            bypass: Bypass::Never,
            ..options()
        };
        let mut world = World::with(kind, never, u64::MAX);
        world.take_reports(8);
        let mut rng = world.put_behind(ONE, Entropy::seeded(1));
        rng.drive(ALL & !0x7f, &[0]);
        assert_eq!(rng.status() & 64, 64);
        let ring = rng.ring(0).layout.descriptor_area + SHIFT;
        let told = world.faults();
        assert_eq!(told.first(), Some(&(1, R, ONE, ring)));
        assert!(told.iter().all(|fault| *fault == told[0]), "{told:x?}");
    }
}

#[test]
fn faults_wait_for_buffers_in_their_order_up_to_a_bound() {
    for kind in BOTH {
        let few = IommuOptions {
            max_faults: 3,
            ..options()
        };
        let mut world = World::with(kind, few, u64::MAX);
        let mut rng = world.run_behind(ONE, Entropy::seeded(1), &[0]);
        for at in 0..5 {
            assert_eq!(rng.run(0, &[writable(0x1000 * at, 1)]), 0);
        }
        let counted = world.iommu.with_device(|iommu| iommu.faults());
        assert_eq!(counted, FaultCounts { faults: 5, lost: 2 });
        world.take_reports(2);
        assert_eq!(world.faults(), [(2, W, ONE, 0), (2, W, ONE, 0x1000)]);
        // A new one comes after those that wait.
        assert_eq!(rng.run(0, &[writable(0x9000, 1)]), 0);
        world.take_reports(3);
        assert_eq!(world.faults(), [(2, W, ONE, 0x2000), (2, W, ONE, 0x9000)]);
        assert_eq!(rng.run(0, &[writable(0xa000, 1)]), 0);
        assert_eq!(world.faults(), [(2, W, ONE, 0xa000)]);
    }
}

/// Linux fills the queue after DRIVER_OK, and kicks for the first time when it has read a report.
#[test]
fn a_fault_is_told_in_a_buffer_that_came_without_a_kick() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let mut rng = world.run_behind(ONE, Entropy::seeded(1), &[0]);
        world.iommu.transport().run();
        world.give_buffers(2);
        assert_eq!(rng.run(0, &[writable(0x1234, 1)]), 0);
        world.iommu.transport().run();
        assert_eq!(world.faults(), [(2, W, ONE, 0x1234)]);
        // The other buffer was found with the first.
        assert_eq!(rng.run(0, &[writable(0x5678, 1)]), 0);
        assert_eq!(world.faults(), [(2, W, ONE, 0x5678)]);
    }
}

#[test]
fn a_buffer_that_is_no_place_for_a_report_comes_back_and_the_next_is_used() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let mut rng = world.run_behind(ONE, Entropy::seeded(1), &[0]);
        assert_eq!(world.iommu.offer(1, &[writable(0xa_0000, 23)]), [0]);
        assert_eq!(world.iommu.offer(1, &[readable(0xa_0000, 24)]), [0]);
        assert_eq!(world.iommu.counters(1).malformed, 2);
        world.take_reports(1);
        assert_eq!(rng.run(0, &[writable(0x1234, 1)]), 0);
        assert_eq!(world.faults(), [(2, W, ONE, 0x1234)]);
    }
}

// From which thread, and under what.

/// A line whose guest, in the handler, has another CPU end a request of the device that has faulted, and waits for that.
#[derive(Default)]
struct Impatient {
    held: Mutex<Option<Held>>,
    /// How often it was heard, and how often the other CPU was done in time.
    heard: AtomicU32,
    done: AtomicU32,
}

impl Interrupt for Impatient {
    fn trigger(&self) -> io::Result<()> {
        let Some(held) = self.held.lock().unwrap().take() else {
            return Ok(());
        };
        self.heard.fetch_add(1, Ordering::SeqCst);
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            held.complete(0);
            // Nobody waits any more, if that took too long.
            let _ = done.send(());
        });
        if is_done.recv_timeout(Duration::from_secs(10)).is_ok() {
            self.done.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// An IOMMU on such a line, with a report to give.
fn impatient() -> (World, Arc<Impatient>) {
    let mut world = World::untouched(Transport::Mmio, options());
    let line = Arc::new(Impatient::default());
    let iommu = Iommu::new(world.ram.all.clone(), options()).expect("valid options");
    world.iommu = Guest::on_line(iommu, &crate::ring::memory(), Arc::clone(&line) as _);
    world.drive(u64::MAX);
    world.take_reports(4);
    (world, line)
}

#[test]
fn a_ring_that_is_found_unmapped_when_a_request_ends_is_told_of_with_nothing_locked() {
    let (mut world, line) = impatient();
    let device = Late::new(&[64], Stopped::GoesOn);
    let held = device.held();
    let mut guest = world.run_behind(ONE, device, &[0]);
    assert_eq!(world.map(ONE, (0x5000, 0x1000), 0xc_0000, WRITE), OK);
    for _ in 0..2 {
        assert_eq!(guest.offer(0, &[writable(0x5000, 64)]), [] as [u32; 0]);
    }
    assert_eq!(world.unmap(ONE, (SHIFT, OWN)), OK, "of an idle queue");
    *line.held.lock().unwrap() = Some(held.clone());
    assert!(held.complete(0));
    assert_eq!(
        [&line.heard, &line.done].map(|count| count.load(Ordering::SeqCst)),
        [1, 1]
    );
    assert_eq!(held.count(), 0);
    guest.kick(0);
    assert_eq!(guest.status() & 64, 64);
}

/// With a ring of either format.
enum AnyGuest {
    Split(Guest<Late>),
    Packed(packed::Packed<Late>),
}

impl AnyGuest {
    fn start(world: &World, device: Late, features: u64) -> Self {
        if features & RING_PACKED != 0 {
            let guest = packed::behind(world, ONE, device);
            return Self::Packed(packed::Packed::start(guest, PLATFORM | features, 1, 8));
        }
        let mut guest = world.put_behind(ONE, device);
        guest.drive(PLATFORM | features, &[0]);
        Self::Split(guest)
    }

    fn offer(&mut self, buffers: &[Buffer]) -> Vec<u32> {
        match self {
            Self::Split(guest) => guest.offer(0, buffers),
            Self::Packed(guest) => guest.offer(0, buffers),
        }
    }

    fn kick(&self) {
        match self {
            Self::Split(guest) => guest.kick(0),
            Self::Packed(guest) => guest.guest.kick(0),
        }
    }

    fn used(&mut self) -> Vec<u32> {
        match self {
            Self::Split(guest) => guest.used(0),
            Self::Packed(guest) => guest.used(0),
        }
    }
}

#[test]
fn a_chain_that_comes_again_and_is_unmapped_is_told_of_with_nothing_locked() {
    for features in [0, RING_PACKED] {
        let (mut world, line) = impatient();
        let device = Late::new(&[64], Stopped::GoesOn);
        let held = device.held();
        assert_eq!(world.attach(ONE, ONE, 0), OK);
        assert_eq!(world.map_own(ONE), OK);
        for page in [0x5000, 0x6000] {
            assert_eq!(world.map(ONE, (page, 0x1000), 0xc_0000, WRITE), OK);
        }
        let mut guest = AnyGuest::start(&world, device, features);
        for page in [0x5000, 0x6000] {
            guest.offer(&[writable(page, 64)]);
        }
        assert!(held.give_back(0));
        assert_eq!(world.unmap(ONE, (0x5000, 0x1000)), OK, "nobody uses it");
        *line.held.lock().unwrap() = Some(held.clone());
        guest.kick();
        assert_eq!(
            [&line.heard, &line.done].map(|count| count.load(Ordering::SeqCst)),
            [1, 1]
        );
        assert_eq!(guest.used(), [64, 0], "{features:#x}");
    }
}
