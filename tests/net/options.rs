//! What an embedder may ask for, and is told when it cannot be.

use std::sync::Arc;

use devisor::virtio::net::{Mac, Net, NetError, NetOptions, Speed, Wire};

fn refused(options: NetOptions) -> NetError {
    Net::new([Wire::new(1)], options).expect_err("it cannot be")
}

#[test]
fn options_out_of_range_are_refused() {
    let default = NetOptions::default;
    let mac = Mac([1, 0, 0, 0, 0, 0]);
    assert_eq!(
        refused(NetOptions {
            mac: Some(mac),
            ..default()
        }),
        NetError::Mac(mac)
    );
    let zero = Mac::default();
    assert_eq!(
        refused(NetOptions {
            mac: Some(zero),
            ..default()
        }),
        NetError::Mac(zero)
    );
    let range = |field, value, min, max| NetError::Range { field, value, min, max };
    assert_eq!(refused(NetOptions { pairs: 0, ..default() }), range("pairs", 0, 1, 256));
    assert_eq!(
        refused(NetOptions {
            pairs: 257,
            ..default()
        }),
        range("pairs", 257, 1, 256)
    );
    assert_eq!(
        refused(NetOptions {
            mtu: Some(67),
            ..default()
        }),
        range("mtu", 67, 68, 65535)
    );
    assert_eq!(
        refused(NetOptions {
            backlog: 0,
            ..default()
        }),
        range("backlog", 0, 1, 65536)
    );
    let speed = Speed {
        megabits: 0x8000_0000,
        full_duplex: true,
    };
    let expected = range("megabits", 0x8000_0000, 0, 0x7fff_ffff);
    assert_eq!(
        refused(NetOptions {
            speed: Some(speed),
            ..default()
        }),
        expected
    );
    for value in [0, 1, 3] {
        assert_eq!(
            refused(NetOptions {
                queue_size: value,
                ..default()
            }),
            NetError::QueueSize { value, min: 2 }
        );
    }
    let control = refused(NetOptions {
        control_queue_size: 2,
        ..default()
    });
    assert_eq!(control, NetError::QueueSize { value: 2, min: 4 });
    let control = refused(NetOptions {
        control_queue_size: 0,
        pairs: 2,
        ..default()
    });
    assert_eq!(control, NetError::Control(2));
    let controls = refused(NetOptions {
        front_end_controls: true,
        ..default()
    });
    assert_eq!(controls, NetError::TwoControls);
    assert_eq!(
        refused(NetOptions {
            hash_types: 0x200,
            ..default()
        }),
        NetError::HashTypes(0x200)
    );
}

#[test]
fn there_is_a_port_and_no_more_of_them_than_pairs() {
    let two = || [Wire::new(1), Wire::new(1)];
    let ports = |ports| NetError::Ports { ports, pairs: 1 };
    assert_eq!(Net::new(two(), NetOptions::default()).unwrap_err(), ports(2));
    assert_eq!(Net::new([] as [Wire; 0], NetOptions::default()).unwrap_err(), ports(0));
    let pairs = NetOptions {
        pairs: 4,
        ..NetOptions::default()
    };
    assert!(Net::new(two(), pairs).is_ok());
    // Ports of unlike kinds.
    let boxed: [Arc<dyn devisor::virtio::net::Port>; 1] = [Arc::new(Wire::new(1))];
    assert!(Net::new(boxed, NetOptions::default()).is_ok());
}

#[test]
fn addresses_are_read_as_they_are_written() {
    let mac: Mac = "52:54:00:Ab:cd:01".parse().unwrap();
    assert_eq!(mac.to_string(), "52:54:00:ab:cd:01");
    for wrong in [
        "",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:01:02",
        "52:54:00:ab:cd:1",
        "52-54-00-ab-cd-01",
        "52:54:00:ab:cd:0g",
        "+2:54:00:ab:cd:01",
    ] {
        assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
    }
}
