//! vhost-device-rng as an entropy device.

use std::collections::BTreeSet;

use devisor::virtio::{DeviceId, remote::RemoteOptions};

use crate::{
    daemon::{Daemon, Place, device, machine, work_until},
    machine::{BUSES, VERSION_1},
};

#[test]
fn random_bytes_come_from_vhost_device_rng() {
    for bus in BUSES {
        let Some(program) = Daemon::find(&["vhost-device-rng"]) else {
            return;
        };
        let place = Place::new(&format!("rng-{bus:?}"));
        // It counts its sockets, and adds the number to the path.
        let socket = place.join("socket0");
        let arguments = ["--socket-path".into(), place.text("socket")];
        let _daemon = Daemon::start(&program, &arguments, &socket);
        let (device, memory) = device(socket, RemoteOptions::new(DeviceId::ENTROPY));
        let mut machine = machine(bus, device, &memory);
        machine.start(VERSION_1);
        let mut seen = BTreeSet::new();
        for round in 0..20_u16 {
            let rooms: Vec<_> = (0..3).map(|_| machine.room(0, 32)).collect();
            let used = machine.rings[0].avail_idx();
            let answered = work_until(&mut machine, |machine| machine.rings[0].used_idx() == used);
            let failures = machine.with_device(|device| device.host_failures());
            assert!(answered, "round {round}; failures: {failures:?}");
            for (bytes, at) in machine.received(0).into_iter().zip(rooms) {
                assert!(!bytes.is_empty() && bytes.len() <= 32);
                // Others are as they were.
                assert_eq!(
                    machine.bytes(at + bytes.len() as u64, 32 - bytes.len()),
                    vec![0xee; 32 - bytes.len()]
                );
                if bytes.len() >= 8 {
                    assert!(seen.insert(bytes), "the same once more");
                }
            }
        }
        assert!(seen.len() > 20, "{}", seen.len());
    }
}
