//! DPDK's vhost device as a network device: it sends back what it is sent, with the addresses the other way around.

use devisor::virtio::{
    DeviceId,
    remote::{ConfigSpace, RemoteOptions},
};

use crate::{
    daemon::{Daemon, Place, device, machine, work_until},
    machine::{BUSES, VERSION_1},
};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// With VERSION_1 (virtio 1.2, section 5.1.6).
const HEADER: usize = 12;
const MINE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = [OTHER, MINE].concat();
    // Of no protocol that anybody looks at (IEEE 802, local experiments).
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_le_bytes());
    frame.extend((frame.len()..len).map(|at| at as u8));
    frame
}

#[test]
fn packets_go_to_dpdk_and_come_back() {
    for bus in BUSES {
        let Some(program) = Daemon::find(&["dpdk-testpmd"]) else {
            return;
        };
        let place = Place::new(&format!("dpdk-{bus:?}"));
        let socket = place.socket();
        let port = format!("net_vhost0,iface={},queues=1", socket.display());
        let prefix = format!("--file-prefix=devisor{}{bus:?}", std::process::id());
        let options = [
            "--no-huge",
            "-m",
            "128",
            "--no-pci",
            "--no-telemetry",
            "-l",
            "0,1",
            "--vdev",
            &port,
            &prefix,
        ];
        let forwards = [
            "--",
            "--forward-mode=macswap",
            "--auto-start",
            "--total-num-mbufs=2048",
            "--nb-cores=1",
        ];
        let arguments: Vec<_> = options.iter().chain(&forwards).map(ToString::to_string).collect();
        let _daemon = Daemon::start(&program, &arguments, &socket);
        let mut options = RemoteOptions::new(DeviceId::NET);
        options.queue_size = 256;
        options.config = ConfigSpace::Own(MINE.to_vec());
        let (device, memory) = device(socket, options);
        let mut machine = machine(bus, device, &memory);
        machine.start(VERSION_1);
        (0..8).for_each(|_| _ = machine.room(RECEIVE, 2048));

        let mut came = Vec::new();
        let mut dropped = 0;
        for number in 0..100_u32 {
            let sent = frame(number, 60 + number as usize * 14);
            let mut back = sent.clone();
            back[..6].copy_from_slice(&MINE);
            back[6..12].copy_from_slice(&OTHER);
            loop {
                machine.send(TRANSMIT, &[&[0; HEADER], &sent]);
                let began = std::time::Instant::now();
                let arrived = work_until(&mut machine, |machine| {
                    for mut bytes in machine.received(RECEIVE) {
                        came.push(bytes.split_off(HEADER));
                        machine.room(RECEIVE, 2048);
                    }
                    came.contains(&back) || came.is_empty() && began.elapsed().as_millis() > 50
                });
                let failures = machine.with_device(|device| device.host_failures());
                assert!(arrived, "{number}: {} came; failures: {failures:?}", came.len());
                if came.contains(&back) {
                    break;
                }
                // Its link is not up at once.
                dropped += 1;
                assert!(dropped < 400, "nothing comes back");
            }
        }
        let (sent, used) = (machine.rings[1].avail_idx(), machine.rings[1].used_idx());
        assert_eq!(sent, used, "all that was sent was taken");
        assert_eq!(machine.with_device(|device| device.host_failures().count), 0);
    }
}
