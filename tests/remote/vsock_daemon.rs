//! vhost-device-vsock as a socket device: connections both ways, with data both ways.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    time::Duration,
};

use devisor::virtio::{
    DeviceId,
    remote::{Remote, RemoteOptions},
};

use crate::{
    daemon::{Daemon, Place, device, machine, work_until},
    machine::{BUSES, Machine, VERSION_1},
    packet::{Packet, header_of},
};

const GUEST: u64 = 4;
const HOST: u64 = 2;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;

struct Guest {
    machine: Machine<Remote>,
    /// What came, and was not asked for yet.
    packets: Vec<Packet>,
}

impl Guest {
    fn new(mut machine: Machine<Remote>) -> Self {
        machine.start(VERSION_1);
        assert_eq!(machine.read_config(0, 8), GUEST.to_le_bytes());
        let packets = Vec::new();
        let mut guest = Self { machine, packets };
        (0..5).for_each(|_| _ = guest.machine.room(RECEIVE, 4200));
        guest
    }

    fn send(&mut self, ports: (u32, u32), op: u16, flags: u32, data: &[u8]) {
        let header = header_of(GUEST, HOST, ports, op, flags, data.len() as u32);
        let pieces = [&header[..], data];
        self.machine
            .send(TRANSMIT, if data.is_empty() { &pieces[..1] } else { &pieces });
        // The doorbell of this machine does nothing: who waits for the host's end next would wait for a kick that nobody has passed on.
        self.machine.run();
    }

    /// The next packet with this operation; others before it are passed by.
    fn next(&mut self, op: u16) -> Packet {
        let mut found = None;
        let packets = &mut self.packets;
        let came = work_until(&mut self.machine, |machine| {
            for bytes in machine.received(RECEIVE) {
                packets.push(Packet::from_bytes(&bytes));
                machine.room(RECEIVE, 4200);
            }
            found = packets.iter().position(|packet| packet.op == op);
            found.is_some()
        });
        let failures = self.machine.with_device(|device| device.host_failures());
        assert!(came, "no packet with {op}: {:?}; failures: {failures:?}", self.packets);
        self.packets.drain(..=found.unwrap()).next_back().unwrap()
    }
}

#[test]
fn connections_by_vhost_device_vsock_carry_data_both_ways() {
    for bus in BUSES {
        let Some(program) = Daemon::find(&["vhost-device-vsock"]) else {
            return;
        };
        let place = Place::new(&format!("vsock-{bus:?}"));
        let arguments = [
            "--guest-cid",
            "4",
            "--socket",
            &place.text("socket"),
            "--uds-path",
            &place.text("host"),
        ];
        let _daemon = Daemon::start(&program, &arguments.map(String::from), &place.socket());
        let (device, memory) = device(place.socket(), RemoteOptions::new(DeviceId::SOCKET));
        let mut guest = Guest::new(machine(bus, device, &memory));

        // The guest connects to port 1024 of the host.
        let listener = UnixListener::bind(place.join("host_1024")).unwrap();
        guest.send((5000, 1024), REQUEST, 0, &[]);
        let response = guest.next(RESPONSE);
        assert_eq!((response.source, response.destination), (1024, 5000));
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for round in 0..20_u8 {
            let data = vec![round; 1 + usize::from(round) * 100];
            guest.send((5000, 1024), RW, 0, &data);
            let mut read = vec![0; data.len()];
            accepted.read_exact(&mut read).unwrap();
            assert_eq!(read, data);
            accepted.write_all(&data).unwrap();
            let mut back = Vec::new();
            while back.len() < data.len() {
                back.extend(guest.next(RW).data);
            }
            assert_eq!(back, data);
        }
        guest.send((5000, 1024), SHUTDOWN, 3, &[]);
        assert_eq!(accepted.read(&mut [0; 16]).unwrap(), 0, "it ends");

        // The host connects to port 77 of the guest.
        let mut stream = UnixStream::connect(place.join("host")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"CONNECT 77\n").unwrap();
        let request = guest.next(REQUEST);
        assert_eq!(request.destination, 77);
        let ports = (77, request.source);
        guest.send(ports, RESPONSE, 0, &[]);
        let mut said = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        reader.read_line(&mut said).unwrap();
        assert!(said.starts_with("OK "), "{said}");
        stream.write_all(b"to the guest").unwrap();
        assert_eq!(guest.next(RW).data, b"to the guest");
        guest.send(ports, RW, 0, b"to the host");
        let mut read = [0; 11];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"to the host");
    }
}
