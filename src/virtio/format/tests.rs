use super::*;

fn states() -> Vec<DeviceState> {
    let port = PortState {
        told: Some((PortKind::Generic, "org.example.0".into())),
        size: Some(Size { cols: 80, rows: 25 }),
        backlog: b"left".to_vec(),
        sent: 3,
        ..PortState::default()
    };
    let hash = HashState {
        types: 5,
        key: vec![1; 40],
        steering: Some(Steering {
            unclassified: 1,
            table: vec![0, 1],
            max_tx_vq: 2,
        }),
    };
    vec![
        DeviceState::None,
        DeviceState::Other {
            version: 7,
            data: vec![1, 2, 3],
        },
        DeviceState::Balloon(BalloonState {
            features: 3,
            queue_size: 64,
            target: 5,
            actual: 4,
            poison: 0xaa,
            contiguous: true,
            hinting: Hinting {
                command: 2,
                given: 3,
                answered: Some(1),
            },
        }),
        DeviceState::Block(BlockState {
            options: BlockOptions {
                id: "disk".into(),
                geometry: Some(Geometry::default()),
                topology: Some(Topology::default()),
                ..BlockOptions::default()
            },
            unmap: true,
            lifetime: false,
            zones: Some(ZoneLimits {
                zone_size: 1 << 20,
                max_open: 1,
                max_active: 2,
                max_append: 3,
                write_granularity: 4096,
            }),
            capacity: 1 << 40,
            writeback: Some(true),
        }),
        DeviceState::Console(ConsoleState {
            max_ports: Some(2),
            size: Size::default(),
            device_ready: true,
            ports: vec![PortState::default(), port],
        }),
        DeviceState::Entropy(EntropyState::Seeded(9)),
        DeviceState::Entropy(EntropyState::External),
        DeviceState::Iommu(IommuState {
            domains: vec![DomainState {
                id: 1,
                bypass: false,
                endpoints: vec![8, 9],
                mappings: vec![MappingState {
                    first: 0,
                    last: 0xfff,
                    physical: 0x1000,
                    flags: 3,
                }],
            }],
            faults: vec![AccessFault {
                reason: FaultReason::Mapping,
                endpoint: 8,
                address: 0x2000,
                read: true,
                write: false,
            }],
            ..IommuState::default()
        }),
        DeviceState::Memory(MemoryDeviceState {
            options: MemoryDeviceOptions::new(0..1 << 30),
            usable_size: 1 << 29,
            plugged: vec![0, 5],
        }),
        DeviceState::Net(NetState {
            options: NetOptions {
                mac: Some(Mac([2, 0, 0, 0, 0, 1])),
                ..NetOptions::default()
            },
            features: 1 << 5,
            link_up: true,
            announce: false,
            mac: None,
            modes: RxModes::default(),
            unicast: MacTable::default(),
            multicast: MacTable {
                addresses: vec![Mac::BROADCAST],
                overflown: true,
            },
            vlans: vec![1, 4000],
            pairs: 1,
            offloads: Some(Offloads::default()),
            hash: Some(hash),
            coalescing: vec![Coalescing::default()],
            frames: vec![vec![NetFrame {
                header: Header::default(),
                data: vec![1; 60],
            }]],
        }),
        DeviceState::Pmem(PmemState {
            options: PmemOptions::new(0x1000..0x2000),
        }),
        DeviceState::Vsock(VsockState {
            guest_cid: 3,
            in_use: true,
            event_owed: true,
        }),
    ]
}

#[test]
fn each_kind_comes_back_as_it_was() {
    for state in states() {
        assert_eq!(DeviceState::from_bytes(&state.to_bytes()).as_ref(), Ok(&state));
    }
}

#[test]
fn what_is_cut_anywhere_or_goes_on_is_refused() {
    for state in states() {
        let bytes = state.to_bytes();
        for len in 0..bytes.len() {
            assert!(
                DeviceState::from_bytes(&bytes[..len]).is_err(),
                "{state:?}, {len} bytes"
            );
            // And says that it is whole.
            if let Some(rest) = len.checked_sub(HEAD) {
                let mut whole = bytes[..len].to_vec();
                whole[12..16].copy_from_slice(&(rest as u32).to_le_bytes());
                assert_eq!(
                    DeviceState::from_bytes(&whole),
                    Err(StateBytesError::Field),
                    "{state:?}"
                );
            }
        }
        let mut more = [bytes.clone(), vec![0]].concat();
        assert_eq!(DeviceState::from_bytes(&more), Err(StateBytesError::Length(more.len())));
        let len = (more.len() - HEAD) as u32;
        more[12..16].copy_from_slice(&len.to_le_bytes());
        assert_eq!(DeviceState::from_bytes(&more), Err(StateBytesError::Field));
    }
}

#[test]
fn bytes_that_say_anything_are_refused_and_take_no_more_room_than_they_are() {
    let mut seed = 1u64;
    for state in states() {
        let bytes = state.to_bytes();
        for at in HEAD..bytes.len() {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let mut wrong = bytes.clone();
            let end = (at + 4).min(wrong.len());
            wrong[at..end].copy_from_slice(&[0xff; 4][..end - at]);
            // What it comes to is the same when it is written again.
            if let Ok(other) = DeviceState::from_bytes(&wrong) {
                assert_eq!(other.to_bytes(), wrong);
            }
        }
    }
}

#[test]
fn the_format_is_as_it_was_written_once() {
    let bytes = DeviceState::Vsock(VsockState {
        guest_cid: 3,
        in_use: true,
        event_owed: false,
    })
    .to_bytes();
    assert_eq!(bytes, b"devisor\0\x01\0\x0a\0\x06\0\0\0\x03\0\0\0\x01\0");
    let mut other = bytes.clone();
    other[8] = 2;
    assert_eq!(DeviceState::from_bytes(&other), Err(StateBytesError::Version(2)));
    other[8..12].copy_from_slice(&[1, 0, 0xff, 0xff]);
    assert_eq!(DeviceState::from_bytes(&other), Err(StateBytesError::Kind(0xffff)));
    other[0] = 0;
    assert_eq!(DeviceState::from_bytes(&other), Err(StateBytesError::Magic));
}
