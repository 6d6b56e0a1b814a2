//! Section 5.13.6.9: what is refused is told.

use devisor::virtio::{
    entropy::Entropy,
    iommu::{Bypass, FaultCounts, IommuOptions},
};

use crate::{
    behind::disk,
    both::{ANSWER, BOTH, REQUEST},
    driver::*,
    ring::{readable, writable},
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
