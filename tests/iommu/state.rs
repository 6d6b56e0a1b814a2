//! Save and restore: an IOMMU first, then who is behind it.

use devisor::virtio::{
    DeviceState,
    entropy::Entropy,
    iommu::{Bypass, Iommu, IommuOptions, IommuState},
    transport::SavedDevice,
};

use crate::{
    both::{ANSWER, BOTH, REQUEST},
    driver::*,
    late::{Late, Stopped},
    rest,
    ring::{readable, writable},
};

fn state(saved: &mut SavedDevice) -> &mut IommuState {
    match &mut saved.device {
        DeviceState::Iommu(state) => state,
        other => panic!("{other:?}"),
    }
}

/// A second world in the memory of the first, whose IOMMU was restored.
fn moved(world: &mut World, saved: &SavedDevice) -> Result<World, String> {
    let iommu = Iommu::new(world.ram.all.clone(), options()).unwrap();
    let mut iommu = crate::both::Guest::new(world.kind, iommu, &world.iommu.memory);
    iommu.transport().restore(saved).map_err(|error| error.to_string())?;
    iommu.rings = std::mem::take(&mut world.iommu.rings);
    Ok(World {
        ram: world.ram.again(),
        iommu,
        kind: world.kind,
    })
}

#[test]
fn a_restored_machine_goes_on_with_its_mappings_faults_and_requests_that_wait() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let device = Late::new(&[64], Stopped::IsReturned);
        let held = device.held();
        let mut guest = world.run_behind(ONE, device, &[0]);
        let mut rng = world.run_behind(TWO, Entropy::seeded(3), &[0]);
        assert_eq!(world.map(ONE, (0x1000, 0x1000), 0xc_0000, WRITE), OK);
        guest.offer(0, &[writable(0x1000, 64)]);
        world.iommu.put(REQUEST, &unmap(ONE, (0x1000, 0x1000)));
        let waiting = [readable(REQUEST, 28), writable(ANSWER, 4)];
        assert_eq!(world.iommu.offer(0, &waiting), [] as [u32; 0]);
        assert_eq!(rng.run(0, &[writable(0x5000, 4)]), 0);
        // It is answered late, and not done a second time: what is mapped there now is another's.
        world
            .iommu
            .put(REQUEST + 0x1000, &map(ONE, (0x1000, 0x1000), 0xe_0000, WRITE));
        let again = [readable(REQUEST + 0x1000, 36), writable(ANSWER + 0x1000, 4)];
        assert_eq!(world.iommu.offer(0, &again), [4]);

        // The IOMMU last, or with its devices running it could wait for one of them.
        let mut iommu = rest::at_rest(world.iommu.transport());
        let [one, two] = [rest::at_rest(guest.transport()), rest::at_rest(rng.transport())];
        assert_eq!(state(&mut iommu).waiting.len(), 1);
        assert_eq!(state(&mut iommu).faults.len(), 1);
        assert_eq!(held.count(), 0);

        let mut after = moved(&mut world, &iommu).unwrap();
        let device = Late::new(&[64], Stopped::GoesOn);
        let held = device.held();
        let mut guest_after = after.put_behind(ONE, device);
        let mut rng_after = after.put_behind(TWO, Entropy::seeded(3));
        guest_after.transport().restore(&one).unwrap();
        rng_after.transport().restore(&two).unwrap();
        guest_after.rings = std::mem::take(&mut guest.rings);
        rng_after.rings = std::mem::take(&mut rng.rings);
        after.iommu.transport().resume();
        assert_eq!(after.iommu.used(0), [4]);
        assert_eq!(after.iommu.get(ANSWER, 4), [OK, 0, 0, 0]);
        guest_after.transport().resume();
        rng_after.transport().resume();
        held.complete_all();
        assert_eq!(guest_after.used(0), [64]);
        assert_eq!(guest_after.get(0xc_0000, 64), [0; 64]);
        assert_ne!(guest_after.get(0xe_0000, 64), [0; 64]);
        assert_eq!(rng_after.run(0, &[writable(SHIFT + 0xc_0000, 16)]), 16);
        after.take_reports(1);
        assert_eq!(after.faults(), [(2, 0x102, TWO, 0x5000)]);
        assert_eq!(after.unmap(ONE, (0x1000, 0x1000)), OK);
        assert_eq!(after.detach(ONE, ONE), OK);
    }
}

#[test]
fn who_is_behind_it_is_refused_before_it() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let rng = world.run_behind(ONE, Entropy::seeded(3), &[0]);
        let saved = rest::at_rest(rng.transport());
        let other = World::untouched(
            kind,
            devisor::virtio::iommu::IommuOptions {
                bypass: devisor::virtio::iommu::Bypass::Never,
                ..options()
            },
        );
        let early = other.put_behind(ONE, Entropy::seeded(3));
        let refused = early.transport().restore(&saved).unwrap_err();
        assert!(refused.to_string().contains("not all in guest memory"), "{refused}");
    }
}

#[test]
fn a_driver_that_accepted_no_translation_is_not_restored_behind_it() {
    for kind in BOTH {
        let world = World::new(kind);
        let plain = crate::both::Guest::start(kind, Entropy::seeded(3), &world.ram.own[0], crate::both::COMMON, &[0]);
        let saved = rest::at_rest(plain.transport());
        let behind = world.put_behind(ONE, Entropy::seeded(3));
        assert!(behind.transport().restore(&saved).is_err());
    }
}

#[test]
fn a_state_that_contradicts_itself_is_refused_and_leaves_the_device_as_it_was() {
    let mut world = World::new(BOTH[0]);
    assert_eq!(world.attach(1, ONE, 0), OK);
    assert_eq!(world.map(1, (0x1000, 0x1000), 0, READ), OK);
    let saved = rest::at_rest(world.iommu.transport());
    type Change = fn(&mut IommuState);
    let wrong: [(&str, Change); 12] = [
        ("an endpoint that there is not", |state| {
            state.domains[0].endpoints[0] = 77
        }),
        ("nobody attached", |state| state.domains[0].endpoints.clear()),
        ("attached twice", |state| state.domains[0].endpoints.push(ONE)),
        ("a domain twice", |state| {
            let mut again = state.domains[0].clone();
            again.endpoints = vec![TWO];
            state.domains.push(again);
        }),
        ("mappings that overlap", |state| {
            let again = state.domains[0].mappings[0];
            state.domains[0].mappings.push(again);
        }),
        ("a mapping between pages", |state| {
            state.domains[0].mappings[0].first = 1
        }),
        ("flags that there are not", |state| {
            state.domains[0].mappings[0].flags = 8
        }),
        ("mappings in a domain that bypasses", |state| {
            state.domains[0].bypass = true
        }),
        ("a fault of nobody", |state| {
            state.faults.push(devisor::virtio::iommu::AccessFault {
                reason: devisor::virtio::iommu::FaultReason::Domain,
                endpoint: 77,
                address: 0,
                read: true,
                write: false,
            });
        }),
        ("a request that waits twice", |state| state.waiting = vec![1, 1]),
        ("a request that waits and cannot be", |state| state.waiting = vec![128]),
        ("too many faults", |state| {
            let fault = devisor::virtio::iommu::AccessFault {
                reason: devisor::virtio::iommu::FaultReason::Mapping,
                endpoint: ONE,
                address: 0,
                read: true,
                write: false,
            };
            state.faults = vec![fault; 65];
        }),
    ];
    for (what, change) in wrong {
        let mut saved = saved.clone();
        change(state(&mut saved));
        assert!(moved(&mut world, &saved).is_err(), "{what}");
    }
    assert!(moved(&mut world, &saved).is_ok());
}

#[test]
fn a_state_of_more_than_the_device_offers_is_refused() {
    let saved = |bypass| {
        let mut world = World::new(BOTH[0]);
        assert_eq!(world.attach(1, ONE, bypass), OK);
        if bypass == 0 {
            assert_eq!(world.map(1, (0x1000, 0x1000), 0, MMIO), OK);
        }
        rest::at_rest(world.iommu.transport()).device
    };
    let restored = |state: &DeviceState, options: IommuOptions| {
        let mut iommu = Iommu::new(crate::ring::memory(), options).unwrap();
        devisor::virtio::VirtioDevice::restore(&mut iommu, state)
    };
    for rule in [Bypass::Feature, Bypass::Never] {
        let options = IommuOptions {
            bypass: rule,
            ..options()
        };
        let mut state = saved(1);
        if let DeviceState::Iommu(state) = &mut state {
            state.bypass = false;
        }
        assert!(restored(&state, options).is_err(), "a domain that bypasses");
    }
    let no_mmio = IommuOptions {
        mmio: false,
        ..options()
    };
    assert!(restored(&saved(0), no_mmio).is_err(), "a mapping of registers");
    assert!(restored(&saved(0), options()).is_ok());
    assert!(restored(&saved(1), options()).is_ok());
}
