//! Sections 5.13.3 to 5.13.6.8: what each request comes to.

use devisor::virtio::iommu::{
    Bypass, EndpointId, F_BYPASS, F_BYPASS_CONFIG, F_DOMAIN_RANGE, F_INPUT_RANGE, F_MAP_UNMAP, F_MMIO, F_PROBE, Iommu,
    IommuEndpoint, IommuError, IommuOptions, Reserved, ReservedKind,
};

use crate::{
    both::{ANSWER, BOTH, REQUEST, Transport},
    driver::*,
    ring::{memory, readable, writable},
};

const BYPASS: u32 = 1;

fn each(test: impl Fn(World)) {
    BOTH.into_iter().for_each(|kind| test(World::new(kind)));
}

// Features and configuration.

#[test]
fn what_is_offered_follows_from_the_options() {
    let offered = |options: IommuOptions| World::untouched(Transport::Mmio, options).iommu.offered() & 0x7f;
    assert_eq!(offered(options()), F_MAP_UNMAP | F_PROBE | F_MMIO | F_BYPASS_CONFIG);
    let narrow = IommuOptions {
        input_range: 0..=0xffff_ffff,
        domain_range: 1..=5,
        probe: false,
        mmio: false,
        bypass: Bypass::Feature,
        ..options()
    };
    assert_eq!(offered(narrow), F_MAP_UNMAP | F_INPUT_RANGE | F_DOMAIN_RANGE | F_BYPASS);
    let never = IommuOptions {
        bypass: Bypass::Never,
        ..options()
    };
    assert_eq!(offered(never) & (F_BYPASS | F_BYPASS_CONFIG), 0);
}

#[test]
fn the_configuration_says_what_can_be_mapped() {
    for kind in BOTH {
        let options = IommuOptions {
            page_size_mask: 0x4000_4000,
            input_range: 0x4000..=0xffff_ffff,
            domain_range: 3..=17,
            probe_size: 0x123,
            ..options()
        };
        let world = World::untouched(kind, options);
        let fields = [
            (0, 4),
            (4, 4),
            (8, 4),
            (12, 4),
            (16, 4),
            (20, 4),
            (24, 4),
            (28, 4),
            (32, 4),
            (36, 1),
            (37, 1),
        ];
        let values = fields.map(|(at, len)| world.iommu.config(at, len));
        assert_eq!(values, [0x4000_4000, 0, 0x4000, 0, 0xffff_ffff, 0, 3, 17, 0x123, 1, 0]);
    }
}

#[test]
fn bypass_is_written_as_zero_or_one_by_a_driver_that_knows_it_and_outlives_a_reset() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let now = |world: &World| world.iommu.config(36, 1);
        assert_eq!(now(&world), 1);
        world.iommu.set_config(36, 1, 2);
        world.iommu.set_config(0, 4, 0);
        assert_eq!((now(&world), world.iommu.config(0, 4)), (1, 0xffff_f000));
        world.iommu.set_config(36, 1, 0);
        assert_eq!(now(&world), 0);
        world.iommu.reset();
        assert_eq!(now(&world), 0);
        world.iommu.with_device(Iommu::restore_bypass);
        assert_eq!(now(&world), 1);
        let world = World::with(kind, options(), F_MAP_UNMAP);
        world.iommu.set_config(36, 1, 0);
        assert_eq!(now(&world), 1);
    }
}

#[test]
fn options_that_contradict_themselves_are_refused() {
    let wrong = |change: fn(&mut IommuOptions)| {
        let mut options = options();
        change(&mut options);
        Iommu::new(memory(), options).map(|_| ()).unwrap_err()
    };
    assert_eq!(wrong(|options| options.page_size_mask = 0), IommuError::PageSize);
    #[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let empty = wrong(|options| options.domain_range = 2..=1);
    assert_eq!(empty, IommuError::Range("domain_range"));
    assert!(matches!(
        wrong(|options| options.input_range = 0..=0x1234),
        IommuError::InputRange { page: 0x1000, .. }
    ));
    let twice = wrong(|options| options.endpoints.push(IommuEndpoint::new(EndpointId(ONE))));
    assert_eq!(twice, IommuError::Twice(ONE));
    let two_doorbells = wrong(|options| {
        let endpoint = IommuEndpoint::new(EndpointId(1))
            .with_msi(0..=0xfff)
            .with_msi(0x1000..=0x1fff);
        options.endpoints.push(endpoint);
    });
    assert_eq!(two_doorbells, IommuError::Reserved(1));
    assert!(matches!(
        wrong(|options| options.probe_size = 23),
        IommuError::ProbeSize { needed: 24, .. }
    ));
}

// ATTACH (section 5.13.6.3).

#[test]
fn endpoints_are_attached_to_domains_that_come_with_the_first() {
    each(|mut world| {
        assert_eq!(world.attach(1, ONE, 0), OK);
        assert_eq!(world.attach(1, ONE, 0), OK, "again");
        assert_eq!(world.attach(1, TWO, 0), OK, "beside another");
        assert_eq!(world.map(1, (0x1000, 0x1000), 0, READ), OK);
        assert_eq!(world.attach(2, ONE, 0), OK, "from one to another");
        assert_eq!(world.map(2, (0x1000, 0x1000), 0, READ), OK);
        assert_eq!(world.detach(1, ONE), INVAL);
        // The first one ends with its last endpoint, and so do its mappings.
        assert_eq!(world.attach(2, TWO, 0), OK);
        assert_eq!(world.unmap(1, (0x1000, 0x1000)), NOENT);
        assert_eq!(world.iommu.with_device(|iommu| iommu.mappings()), 1);
    });
}

#[test]
fn an_attachment_that_cannot_be_is_refused_and_changes_nothing() {
    let narrow = IommuOptions {
        domain_range: 1..=5,
        ..options()
    };
    for kind in BOTH {
        let mut world = World::with(kind, narrow.clone(), u64::MAX);
        assert_eq!(world.attach(1, 7, 0), NOENT);
        assert_eq!(world.attach(0, ONE, 0), RANGE);
        assert_eq!(world.attach(6, ONE, 0), RANGE);
        assert_eq!(world.attach(1, ONE, 2), INVAL, "a flag that there is not");
        assert_eq!(world.attach(1, ONE, 1 << 31), INVAL);
        assert_eq!(world.request(&words(1, &[1, ONE, 0, 1])), INVAL, "reserved");
        assert_eq!(world.detach(1, ONE), INVAL, "it is attached");
        assert_eq!(world.attach(2, ONE, BYPASS), OK);
        assert_eq!(world.attach(2, TWO, 0), INVAL, "a domain of the other kind");
        assert_eq!(world.attach(3, TWO, 0), OK);
        assert_eq!(world.attach(3, ONE, BYPASS), INVAL);
    }
}

#[test]
fn a_driver_without_bypass_config_knows_no_bypass_domains() {
    for kind in BOTH {
        let mut world = World::with(kind, options(), F_MAP_UNMAP);
        assert_eq!(world.attach(1, ONE, BYPASS), INVAL);
    }
}

#[test]
fn an_endpoint_is_not_attached_where_what_it_keeps_for_itself_is_mapped() {
    for kind in BOTH {
        let mut endpoints = options().endpoints;
        endpoints[1].reserved.push(Reserved {
            addresses: 0x5000..=0x5fff,
            kind: ReservedKind::Reserved,
        });
        let mut world = World::with(kind, IommuOptions { endpoints, ..options() }, u64::MAX);
        assert_eq!(world.attach(1, ONE, 0), OK);
        assert_eq!(world.map(1, (0x4000, 0x2000), 0, READ), OK);
        assert_eq!(world.attach(1, TWO, 0), UNSUPP);
        assert_eq!(world.unmap(1, (0x4000, 0x2000)), OK);
        assert_eq!(world.attach(1, TWO, 0), OK);
        assert_eq!(world.map(1, (0x4000, 0x2000), 0, READ), INVAL);
    }
}

// DETACH (section 5.13.6.4).

#[test]
fn what_is_not_attached_so_is_not_detached() {
    each(|mut world| {
        assert_eq!(world.detach(1, 7), NOENT);
        assert_eq!(world.detach(1, ONE), INVAL);
        assert_eq!(world.attach(1, ONE, 0), OK);
        assert_eq!(world.detach(2, ONE), INVAL);
        assert_eq!(
            world.request(&words(2, &[1, ONE, 0xffff_ffff, 1])),
            OK,
            "reserved is ignored"
        );
        assert_eq!(world.detach(1, ONE), INVAL);
        assert_eq!(world.map(1, (0, 0x1000), 0, READ), NOENT, "the domain has gone");
    });
}

// MAP (section 5.13.6.5).

#[test]
fn a_mapping_that_cannot_be_is_refused() {
    let narrow = IommuOptions {
        input_range: 0x1000..=0xffff_ffff,
        max_mappings: 3,
        ..options()
    };
    for kind in BOTH {
        let mut world = World::with(kind, narrow.clone(), u64::MAX);
        assert_eq!(world.attach(1, ONE, 0), OK);
        assert_eq!(world.attach(2, TWO, BYPASS), OK);
        let page = (0x1000, 0x1000);
        assert_eq!(world.map(1, page, 0, 8), INVAL, "a flag that there is not");
        assert_eq!(world.map(3, page, 0, READ), NOENT);
        assert_eq!(world.map(2, page, 0, READ), INVAL, "a bypass domain");
        assert_eq!(world.map(1, (0x1000, 1), 0, READ), RANGE, "one byte");
        assert_eq!(world.map(1, (0x1800, 0x1000), 0, READ), RANGE);
        assert_eq!(world.map(1, page, 0x800, READ), RANGE);
        assert_eq!(world.map(1, (0, 0x1000), 0, READ), RANGE, "below what can be mapped");
        assert_eq!(world.map(1, (0xffff_f000, 0x2000), 0, READ), RANGE, "above it");
        assert_eq!(world.map(1, (0x1000, 0x2000), u64::MAX - 0xfff, READ), RANGE);
        assert_eq!(
            world.map(1, (0x2000, 0u64.wrapping_sub(0xfff)), 0, READ),
            INVAL,
            "it ends before it begins"
        );
        assert_eq!(
            world.map(1, (*DOORBELL.start(), 0x1000), 0, READ),
            INVAL,
            "a reserved range"
        );
        assert_eq!(world.map(1, (*DOORBELL.start() - 0x1000, 0x3000), 0, READ), INVAL);
        assert_eq!(world.map(1, (0x2000, 0x2000), 0, READ), OK);
        for overlap in [(0x2000, 0x2000), (0x1000, 0x2000), (0x3000, 0x2000), (0x1000, 0x5000)] {
            assert_eq!(world.map(1, overlap, 0, READ), INVAL, "{overlap:x?}");
        }
        for (at, flags) in [(0x1000, 0), (0x4000, READ | WRITE | MMIO)] {
            assert_eq!(world.map(1, (at, 0x1000), 0, flags), OK);
        }
        assert_eq!(world.map(1, (0x5000, 0x1000), 0, READ), NOMEM);
        assert_eq!(world.unmap(1, (0x1000, 0x1000)), OK);
        assert_eq!(world.map(1, (0x5000, 0x1000), 0, READ), OK);
    }
}

#[test]
fn a_driver_without_mmio_knows_no_such_mapping_and_one_without_map_unmap_none() {
    for kind in BOTH {
        let mut world = World::with(kind, options(), F_MAP_UNMAP);
        assert_eq!(world.attach(1, ONE, 0), OK);
        assert_eq!(world.map(1, (0, 0x1000), 0, MMIO), INVAL);
        let mut world = World::with(kind, options(), 0);
        assert_eq!(world.attach(1, ONE, 0), OK);
        assert_eq!(world.map(1, (0, 0x1000), 0, READ), UNSUPP);
        assert_eq!(world.unmap(1, (0, 0x1000)), UNSUPP);
    }
}

#[test]
fn the_whole_address_space_can_be_mapped_at_once_and_single_bytes_by_themselves() {
    for kind in BOTH {
        let endpoints = vec![IommuEndpoint::new(EndpointId(ONE))];
        let bytes = IommuOptions {
            endpoints,
            page_size_mask: 1,
            ..options()
        };
        let mut world = World::with(kind, bytes, u64::MAX);
        assert_eq!(world.attach(1, ONE, 0), OK);
        // A length of zero here is 2^64.
        assert_eq!(world.map(1, (0, 0), 0, READ), OK);
        assert_eq!(world.unmap(1, (0, 0)), OK);
        assert_eq!(world.map(1, (7, 1), 3, READ), OK);
        assert_eq!(world.map(1, (u64::MAX, 1), 3, READ), OK);
        assert_eq!(world.unmap(1, (7, 1)), OK);
        assert_eq!(world.iommu.with_device(|iommu| iommu.mappings()), 1);
    }
}

// UNMAP (section 5.13.6.6).

#[test]
fn mappings_go_whole_as_the_specifications_examples_say() {
    const PAGE: u64 = 0x1000;
    type Pages = (u64, u64);
    let examples: [(&[Pages], Pages, u8, usize); 9] = [
        (&[], (0, 5), OK, 0),
        (&[(0, 10)], (0, 10), OK, 0),
        (&[(0, 5), (5, 5)], (0, 10), OK, 0),
        (&[(0, 10)], (0, 5), RANGE, 1),
        (&[(0, 5), (5, 5)], (0, 5), OK, 1),
        (&[(0, 5)], (0, 10), OK, 0),
        (&[(0, 5), (10, 5)], (0, 15), OK, 0),
        (&[(0, 10)], (5, 5), RANGE, 1),
        (&[(0, 3), (3, 5), (8, 2)], (3, 6), RANGE, 3),
    ];
    each(|mut world| {
        for (number, (maps, unmap, status, left)) in examples.into_iter().enumerate() {
            assert_eq!(world.attach(1, ONE, 0), OK);
            for &(at, len) in maps {
                assert_eq!(world.map(1, (at * PAGE, len * PAGE), 0x10_0000, READ), OK);
            }
            assert_eq!(
                world.unmap(1, (unmap.0 * PAGE, unmap.1 * PAGE)),
                status,
                "example {}",
                number + 1
            );
            assert_eq!(
                world.iommu.with_device(|iommu| iommu.mappings()),
                left,
                "example {}",
                number + 1
            );
            assert_eq!(world.detach(1, ONE), OK);
        }
    });
}

#[test]
fn a_range_that_cannot_be_unmapped_is_refused() {
    each(|mut world| {
        assert_eq!(world.unmap(1, (0, 0x1000)), NOENT);
        assert_eq!(world.attach(1, ONE, 0), OK);
        assert_eq!(world.attach(2, TWO, BYPASS), OK);
        assert_eq!(world.unmap(2, (0, 0x1000)), INVAL);
        assert_eq!(world.map(1, (0x1000, 0x1000), 0, READ), OK);
        assert_eq!(
            world.unmap(1, (0x2000, 0u64.wrapping_sub(0x1000))),
            INVAL,
            "it ends before it begins"
        );
        let mut reserved = unmap(1, (0x1000, 0x1000));
        reserved[24] = 1;
        assert_eq!(world.request(&reserved), INVAL);
        assert_eq!(world.unmap(1, (0x1000, 0x1000)), OK);
    });
}

// PROBE (sections 5.13.6.7 and 5.13.6.8).

#[test]
fn the_properties_of_an_endpoint_are_its_reserved_ranges_and_zeros() {
    each(|mut world| {
        let (used, answer) = world.iommu.ask(0, &words(5, &[&[ONE][..], &[0xff; 16]].concat()), 516);
        assert_eq!((used, &answer[512..]), (516, &[OK, 0, 0, 0][..]));
        let mut property = vec![1, 0, 20, 0, 1, 0, 0, 0];
        property.extend(DOORBELL.start().to_le_bytes());
        property.extend(DOORBELL.end().to_le_bytes());
        assert_eq!(answer[..24], property);
        assert_eq!(answer[24..512], [0; 488]);
        // More room than is needed is left as it is.
        let (used, answer) = world.iommu.ask(0, &words(5, &[&[TWO][..], &[0; 16]].concat()), 600);
        assert_eq!((used, answer[512], answer[516]), (516, OK, 0xee));
    });
}

#[test]
fn properties_without_an_endpoint_or_without_room_are_refused() {
    each(|mut world| {
        let probe = |endpoint: u32| words(5, &[&[endpoint][..], &[0; 16]].concat());
        let (used, answer) = world.iommu.ask(0, &probe(7), 516);
        assert_eq!((used, &answer[..512], answer[512]), (516, &[0; 512][..], NOENT));
        let (used, answer) = world.iommu.ask(0, &probe(ONE), 515);
        assert_eq!((used, answer[511]), (515, INVAL));
        assert_eq!(answer[..511], [0; 511]);
        let (used, answer) = world.iommu.ask(0, &probe(ONE), 4);
        assert_eq!((used, answer), (4, vec![INVAL, 0, 0, 0]));
    });
    for kind in BOTH {
        let mut world = World::with(kind, options(), F_MAP_UNMAP);
        let (used, answer) = world.iommu.ask(0, &words(5, &[0; 17]), 516);
        assert_eq!((used, answer), (0, vec![0xee; 516]), "who did not ask for it");
    }
}

// What cannot be told apart.

#[test]
fn a_request_that_has_no_type_no_end_or_no_room_comes_back_unwritten() {
    each(|mut world| {
        let whole = map(1, (0, 0x1000), 0, READ);
        for (bytes, room) in [
            (&[0_u8; 20][..], 4),
            (&[6; 80], 4),
            (&[1; 3], 4),
            (&words(1, &[1, ONE, 0])[..], 4),
            (&whole[..35], 4),
            (&unmap(1, (0, 0x1000))[..27], 4),
            (&words(5, &[ONE; 16])[..], 516),
            (&whole, 3),
            (&whole, 0),
        ] {
            let before = world.iommu.counters(0).malformed;
            let (used, answer) = world.iommu.ask(0, bytes, room);
            assert_eq!((used, answer), (0, vec![0xee; room as usize]), "{bytes:?}");
            assert_eq!(world.iommu.counters(0).malformed, before + 1);
        }
        assert_eq!(world.attach(1, ONE, 0), OK, "it goes on");
    });
}

#[test]
fn a_request_in_pieces_or_with_more_behind_it_is_one_all_the_same() {
    each(|mut world| {
        let mut bytes = words(1, &[1, ONE, 0, 0]);
        bytes[1..4].fill(0xff);
        bytes.extend([9; 30]);
        assert_eq!(world.request(&bytes), OK, "reserved in the head is ignored");
        world.iommu.put(REQUEST, &map(1, (0, 0x1000), 0, READ));
        let mut pieces = vec![
            readable(REQUEST, 1),
            readable(REQUEST + 1, 0),
            readable(REQUEST + 1, 10),
        ];
        pieces.extend([readable(REQUEST + 11, 25), writable(ANSWER, 1), writable(ANSWER + 1, 3)]);
        assert_eq!(world.iommu.run(0, &pieces), 4);
        assert_eq!(world.iommu.get(ANSWER, 4), [OK, 0, 0, 0]);
        assert_eq!(world.iommu.with_device(|iommu| iommu.mappings()), 1);
    });
}

#[test]
fn a_reset_leaves_nobody_attached() {
    each(|mut world| {
        assert_eq!(world.attach(1, ONE, 0), OK);
        assert_eq!(world.map(1, (0, 0x1000), 0, READ), OK);
        world.iommu.reset();
        assert_eq!(world.iommu.with_device(|iommu| iommu.mappings()), 0);
        world.drive(u64::MAX);
        assert_eq!(world.detach(1, ONE), INVAL);
    });
}

#[test]
fn room_outside_of_memory_costs_its_request() {
    each(|mut world| {
        world.iommu.put(REQUEST, &words(5, &[&[ONE][..], &[0; 16]].concat()));
        for (address, len) in [(1 << 40, 516), (u64::MAX - 8, 516), (ANSWER, u32::MAX - 3)] {
            assert_eq!(world.iommu.run(0, &[readable(REQUEST, 72), writable(address, len)]), 0);
        }
        assert_eq!(world.attach(1, ONE, 0), OK, "it goes on");
    });
}

#[test]
fn properties_go_into_room_in_pieces() {
    each(|mut world| {
        world.iommu.put(REQUEST, &words(5, &[&[ONE][..], &[0; 16]].concat()));
        let pieces = [(0, 10), (10, 500), (510, 3), (513, 3)].map(|(at, len)| writable(ANSWER + at, len));
        let chain = [&[readable(REQUEST, 72)][..], &pieces].concat();
        assert_eq!(world.iommu.run(0, &chain), 516);
        assert_eq!(world.iommu.get(ANSWER + 512, 4), [OK, 0, 0, 0]);
        assert_eq!(world.iommu.get(ANSWER, 4), [1, 0, 20, 0]);
    });
}

#[test]
fn a_flood_of_requests_is_answered_to_the_last() {
    each(|mut world| {
        assert_eq!(world.attach(1, ONE, 0), OK);
        for round in 0..20 {
            for request in 0..32_u64 {
                let at = REQUEST + 64 * request;
                world
                    .iommu
                    .put(at, &map(1, ((32 * round + request) << 12, 0x1000), 0, READ));
                let chain = [readable(at, 36), writable(ANSWER + 4 * request, 4)];
                world.iommu.ring(0).request(&chain);
            }
            world.iommu.kick(0);
            assert_eq!(world.iommu.used(0), [4; 32]);
            assert_eq!(world.iommu.get(ANSWER, 128), [0; 128]);
        }
        assert_eq!(world.iommu.with_device(|iommu| iommu.mappings()), 640);
    });
}

#[test]
fn requests_in_tables_of_their_own_are_answered() {
    each(|mut world| {
        world.iommu.put(REQUEST, &words(1, &[1, ONE, 0, 0]));
        let ring = world.iommu.ring(0);
        let head = ring.add_indirect(0xb_0000, &[readable(REQUEST, 20), writable(ANSWER, 4)]);
        ring.offer(head);
        world.iommu.kick(0);
        assert_eq!(world.iommu.used(0), [4]);
        assert_eq!(world.iommu.get(ANSWER, 4), [OK, 0, 0, 0]);
        assert_eq!(world.detach(1, ONE), OK);
    });
}

#[test]
fn a_request_of_any_length_with_any_room_is_done_whole_or_not_at_all() {
    each(|mut world| {
        assert_eq!(world.attach(1, ONE, 0), OK);
        let page = (0x1000, 0x1000);
        // What each of them comes to where nothing is mapped and one endpoint is attached.
        let requests = [
            (words(1, &[2, TWO, 0, 0]), 4),
            (words(2, &[2, TWO, 0, 0]), 4),
            (map(1, page, 0, READ), 4),
            (unmap(1, page), 4),
            (words(5, &[&[ONE][..], &[0; 16]].concat()), 516),
        ];
        for (whole, needed) in &requests {
            for len in 0..whole.len() + 9 {
                let mut bytes = whole.clone();
                bytes.resize(len, 0);
                for room in [0, 1, 3, 4, 5, 515, 516, 517] {
                    let mappings = world.iommu.with_device(|iommu| iommu.mappings());
                    let (used, answer) = world.iommu.ask(0, &bytes, room);
                    let status = |at: u32| answer[at as usize..][..4] == [OK, 0, 0, 0];
                    let now = world.iommu.with_device(|iommu| iommu.mappings());
                    if len < whole.len() || room < 4 {
                        assert_eq!((used, now), (0, mappings), "{whole:?}, {len}, {room}");
                        assert_eq!(answer, vec![0xee; room as usize]);
                    } else if room < *needed {
                        // Properties that have no room.
                        assert_eq!((used, answer[room as usize - 4]), (room, INVAL));
                    } else {
                        assert!(used == *needed && status(needed - 4), "{whole:?}, {len}, {room}");
                        // And back, for the next.
                        match whole[0] {
                            1 => assert_eq!(world.detach(2, TWO), OK),
                            2 => assert_eq!(world.attach(2, TWO, 0), OK),
                            3 => assert_eq!(world.unmap(1, page), OK),
                            4 => assert_eq!(world.map(1, page, 0, READ), OK),
                            _ => {}
                        }
                    }
                }
            }
            // What the next one takes back is there.
            match whole[0] {
                1 => assert_eq!(world.attach(2, TWO, 0), OK),
                3 => assert_eq!(world.map(1, page, 0, READ), OK),
                _ => {}
            }
        }
    });
}

#[test]
fn ranges_at_both_ends_of_the_address_space_are_mapped_or_refused_as_they_fit() {
    const EDGES: [u64; 9] = [
        0,
        1,
        0xfff,
        0x1000,
        0x1fff,
        u64::MAX - 0x1000,
        u64::MAX - 0xfff,
        u64::MAX - 1,
        u64::MAX,
    ];
    let endpoints = vec![IommuEndpoint::new(EndpointId(ONE))];
    for kind in BOTH {
        let options = IommuOptions {
            endpoints: endpoints.clone(),
            ..options()
        };
        let mut world = World::with(kind, options, u64::MAX);
        assert_eq!(world.attach(1, ONE, 0), OK);
        for first in EDGES {
            for last in EDGES {
                // As many as 2^64 are a length of zero here.
                let range = (first, last.wrapping_sub(first).wrapping_add(1));
                for physical in EDGES {
                    let whole = |at: u128| at.is_multiple_of(0x1000);
                    let (from, to) = (u128::from(first), u128::from(last) + 1);
                    let expected = match () {
                        _ if to <= from => INVAL,
                        _ if !whole(from) || !whole(to) || !whole(physical.into()) => RANGE,
                        _ if u128::from(physical) + (to - from) > 1 << 64 => RANGE,
                        _ => OK,
                    };
                    let what = format!("{first:#x}..={last:#x} at {physical:#x}");
                    assert_eq!(world.map(1, range, physical, READ), expected, "{what}");
                    let status = if to <= from { INVAL } else { OK };
                    assert_eq!(world.unmap(1, range), status, "{what}");
                    assert_eq!(world.iommu.with_device(|iommu| iommu.mappings()), 0, "{what}");
                }
            }
        }
    }
}

// Whatever is asked.

/// A grid of requests, most of which no driver would make: each is answered within its room, by a status that there is, and costs nothing
/// else.
#[test]
fn whatever_is_asked_is_answered_and_the_next_too() {
    let domains = [0, 1, ONE, TWO, u32::MAX];
    let addresses = [0, 0xfff, 0x1000, SHIFT, OWN, 0x802_0000, u64::MAX - 0xfff, u64::MAX];
    each(|mut world| {
        let mut at = 0_usize;
        let mut turn = |values: usize| {
            at = at
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (at >> 33) % values
        };
        for kind in (0..=6).chain([0x80, 0xff]) {
            for length in [0, 1, 3, 4, 8, 16, 20, 36, 40, 64, 4096] {
                for room in [0, 1, 3, 4, 5, 512, 600] {
                    for _ in 0..6 {
                        let mut bytes = vec![kind, 0, 0, 0];
                        bytes.extend(domains[turn(5)].to_le_bytes());
                        // An endpoint, or the first half of an address.
                        match turn(2) {
                            0 => bytes.extend([ONE, TWO, 7, u32::MAX][turn(4)].to_le_bytes()),
                            _ => bytes.extend(addresses[turn(8)].to_le_bytes()),
                        }
                        bytes.extend([0_u32, 1, 2, 8][turn(4)].to_le_bytes());
                        bytes.extend(addresses[turn(8)].to_le_bytes());
                        bytes.extend(addresses[turn(8)].to_le_bytes());
                        bytes.extend([0_u32, READ, WRITE, READ | WRITE, MMIO, u32::MAX][turn(6)].to_le_bytes());
                        bytes.resize(length, 0);
                        let (used, answer) = world.iommu.ask(0, &bytes, room);
                        assert!(used <= room, "{bytes:x?}: {used} bytes where there is room for {room}");
                        if used >= 4 {
                            let status = answer[used as usize - 4];
                            assert!(status <= NOMEM, "{bytes:x?}: a status of {status}");
                        }
                    }
                }
            }
        }
        assert_eq!(world.iommu.status() & 0x40, 0, "the device needs a reset");
        world.iommu.reset();
        world.drive(u64::MAX);
        assert_eq!(world.attach(ONE, ONE, 0), OK);
        assert_eq!(world.map_own(ONE), OK);
        assert_eq!(world.unmap(ONE, (SHIFT, OWN)), OK);
    });
}
