//! A TAP interface, in a network namespace of the test's own.

use std::{
    net::UdpSocket,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use devisor::virtio::{
    QueueIndex, VirtioTransport, Wait,
    net::{Header, NetOptions, Tap, TapError},
};

use crate::{guest::*, skip::skipped};

/// Runs `test` on a thread in a new network namespace, with queues of a TAP interface whose host is 10.0.0.1 and where the guest
/// is 10.0.0.2.
fn with_tap(queues: u16, test: impl FnOnce(Vec<Arc<Tap>>) + Send) {
    let name = thread::current().name().unwrap_or("tap").to_owned();
    let run = || {
        // SAFETY: moves this thread alone to a new network namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return skipped(format!("a network namespace: {}", std::io::Error::last_os_error()));
        }
        let taps = match Tap::open_queues("tap0", queues) {
            Ok(taps) => taps,
            Err(error) => return skipped(format!("a TAP interface: {error}")),
        };
        // Or the interface says something of its own.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1");
        let commands = [
            "link set lo up",
            "addr add 10.0.0.1/24 dev tap0",
            "link set dev tap0 address 52:54:00:00:00:02 up",
            "neigh add 10.0.0.2 lladdr 52:54:00:00:00:01 dev tap0",
        ];
        for command in commands {
            match Command::new("ip").args(command.split(' ')).status() {
                Ok(status) if status.success() => {}
                other => return skipped(format!("ip {command}: {other:?}")),
            }
        }
        test(taps.into_iter().map(Arc::new).collect());
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name).spawn_scoped(scope, run).unwrap();
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The host's socket.
fn host() -> UdpSocket {
    let socket = UdpSocket::bind("10.0.0.1:7000").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A datagram from the guest to the host, with the sum of its pseudo header where the checksum goes.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut frame = [&OTHER[..], &OWN, &[0x08, 0x00]].concat();
    let len = payload.len() as u16 + 28;
    let mut ip = [
        &[0x45, 0][..],
        &len.to_be_bytes(),
        &[0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1],
    ]
    .concat();
    let checksum = !sum(&ip, 0);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(&ip);
    let udp_len = payload.len() as u16 + 8;
    let pseudo = sum(&ip[12..20], 17 + u32::from(udp_len));
    frame.extend([0x13, 0x88, 0x1b, 0x58]);
    frame.extend(udp_len.to_be_bytes());
    frame.extend(pseudo.to_be_bytes());
    frame.extend(payload);
    frame
}

const PARTIAL: Header = Header {
    flags: 1,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34,
    csum_offset: 6,
    num_buffers: 0,
};

/// Looks at a receive queue until there is a datagram; others are no matter of the test.
fn receive(guest: &mut Guest, pair: usize, len: u32) -> (Header, Vec<u8>) {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let received = guest.received(pair);
        if let Some(found) = received
            .into_iter()
            .find(|(_, data)| data.get(23) == Some(&17) && data[12..14] == [8, 0])
        {
            return found;
        }
        assert!(Instant::now() < patience, "nothing comes");
        if guest.rings[pair * 2].used_idx() == guest.rings[pair * 2].avail_idx() {
            guest.buffer(pair, len);
        }
        guest.nic.process(QueueIndex(pair as u16 * 2));
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn datagrams_go_to_the_host_and_come_from_it() {
    with_tap(1, |taps| {
        let fd = taps[0].as_raw_fd();
        let mut guest = Guest::over(taps, options(), CSUM);
        let host = host();
        guest.transmit(PARTIAL, &datagram(b"hello"));
        let mut data = [0; 100];
        let (len, from) = host.recv_from(&mut data).unwrap();
        assert_eq!(
            (&data[..len], from.to_string()),
            (&b"hello"[..], "10.0.0.2:5000".to_owned())
        );
        host.send_to(b"goodbye", from).unwrap();
        let (header, frame) = receive(&mut guest, 0, 2048);
        assert_eq!(
            header,
            Header {
                num_buffers: 1,
                ..Header::default()
            }
        );
        assert_eq!(frame[42..49], *b"goodbye");
        assert_ne!(frame[40..42], [0, 0], "the host has completed the checksum");
        guest.buffer(0, 2048);
        guest.nic.process(QueueIndex(0));
        assert_eq!(guest.nic.waits(QueueIndex(0)), [Wait::Readable(fd)]);
        assert_eq!(guest.nic.with_device(|nic| nic.host_failures().count), 0);
    });
}

#[test]
fn a_guest_that_takes_checksums_is_left_them() {
    with_tap(1, |taps| {
        let mut guest = Guest::over(taps, options(), GUEST_CSUM);
        host().send_to(b"goodbye", "10.0.0.2:5000").unwrap();
        let (header, _) = receive(&mut guest, 0, 2048);
        assert_eq!((header.flags, header.csum_start, header.csum_offset), (1, 34, 6));
    });
}

#[test]
fn large_packets_are_cut_by_the_host_and_come_whole_from_it() {
    with_tap(1, |taps| {
        let mut guest = Guest::off(taps, options()).unwrap();
        let wanted = CSUM | HOST_USO | GUEST_CSUM | GUEST_USO4 | GUEST_USO6 | MRG_RXBUF;
        if guest.offered() & wanted != wanted {
            return skipped("a kernel that cuts UDP in a TAP interface");
        }
        assert!(guest.start(wanted));
        let host = host();
        let payload: Vec<u8> = (0..3000).map(|n| n as u8).collect();
        let large = Header {
            gso_type: 5,
            gso_size: 1000,
            hdr_len: 42,
            ..PARTIAL
        };
        guest.transmit(large, &datagram(&payload));
        let mut data = [0; 4000];
        for piece in payload.chunks(1000) {
            assert_eq!(host.recv(&mut data).unwrap(), 1000);
            assert_eq!(data[..1000], *piece);
        }

        // UDP_SEGMENT.
        let size: libc::c_int = 1000;
        // SAFETY: the option is an `int`, which the pointer leads to.
        let set = unsafe { libc::setsockopt(host.as_raw_fd(), 17, 103, (&raw const size).cast(), 4) };
        assert_eq!(set, 0);
        host.send_to(&payload, "10.0.0.2:5000").unwrap();
        let (header, frame) = receive(&mut guest, 0, 4096);
        assert_eq!((header.gso_type, header.gso_size, header.flags), (5, 1000, 1));
        assert_eq!(frame[42..], payload);
    });
}

#[test]
fn a_guest_that_takes_large_datagrams_of_one_kind_is_left_the_rest() {
    with_tap(1, |taps| {
        let wanted = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_USO4;
        let guest = Guest::off(taps, options()).unwrap();
        if guest.offered() & wanted != wanted {
            return skipped("a kernel that cuts UDP in a TAP interface");
        }
        let mut guest = guest;
        assert!(guest.start(wanted));
        assert_eq!(guest.nic.with_device(|nic| nic.host_failures().count), 0);
        host().send_to(b"hello", "10.0.0.2:5000").unwrap();
        assert_eq!(receive(&mut guest, 0, 2048).0.flags, 1, "a partial checksum");
    });
}

#[test]
fn a_header_that_the_host_refuses_costs_its_frame() {
    with_tap(1, |taps| {
        let mut guest = Guest::over(taps, options(), CSUM | HOST_TSO4);
        // What is checked by the device is right, and the kernel finds no TCP there.
        let wrong = Header {
            gso_type: 1,
            gso_size: 1000,
            hdr_len: 54,
            csum_start: 59,
            ..PARTIAL
        };
        let mut frame = datagram(&[0; 3000]);
        frame[23] = 0x2f;
        guest.transmit(wrong, &frame);
        guest.transmit(PARTIAL, &datagram(b"hello"));
        assert_eq!(guest.used(1), [0, 0]);
        let mut data = [0; 100];
        assert_eq!(host_hears(&mut guest, &mut data), 5);
    });
}

fn host_hears(guest: &mut Guest, data: &mut [u8]) -> usize {
    let host = host();
    guest.transmit(PARTIAL, &datagram(b"hello"));
    host.recv(data).unwrap()
}

#[test]
fn an_interface_that_goes_is_counted_and_not_waited_for() {
    with_tap(1, |taps| {
        let mut guest = Guest::over(taps, options(), CSUM);
        guest.buffer(0, 2048);
        assert!(
            Command::new("ip")
                .args(["link", "del", "tap0"])
                .status()
                .unwrap()
                .success()
        );
        guest.transmit(PARTIAL, &datagram(b"hello"));
        guest.nic.process(QueueIndex(0));
        assert_eq!(guest.used(1), [0], "lost, as on a wire");
        assert_eq!(guest.nic.with_device(|nic| nic.host_failures().count), 2);
        assert_eq!(guest.nic.waits(QueueIndex(0)), []);
    });
}

#[test]
fn an_interface_that_is_down_loses_frames_and_comes_back() {
    with_tap(1, |taps| {
        let mut guest = Guest::over(taps, options(), CSUM);
        let ip = |what| {
            assert!(
                Command::new("ip")
                    .args(["link", "set", "tap0", what])
                    .status()
                    .unwrap()
                    .success()
            )
        };
        ip("down");
        guest.transmit(PARTIAL, &datagram(b"hello"));
        assert_eq!(guest.used(1), [0]);
        assert_eq!(guest.nic.with_device(|nic| nic.host_failures().count), 1);
        ip("up");
        let mut data = [0; 100];
        assert_eq!(host_hears(&mut guest, &mut data), 5);
    });
}

#[test]
fn each_queue_of_an_interface_has_the_flows_that_were_sent_by_it() {
    with_tap(2, |taps| {
        let pairs = NetOptions { pairs: 2, ..options() };
        let mut guest = Guest::over(taps, pairs, CSUM | CTRL_VQ | MQ);
        let host = host();
        host.send_to(b"to the first", "10.0.0.2:5000").unwrap();
        receive(&mut guest, 0, 2048);
        assert_eq!(guest.command(4, 0, &[2, 0]), OK);
        for pair in [1, 0, 1] {
            guest.transmit_on(pair, PARTIAL, &datagram(b"hello"));
            let mut data = [0; 100];
            let (_, from) = host.recv_from(&mut data).unwrap();
            host.send_to(b"back", from).unwrap();
            assert_eq!(receive(&mut guest, pair, 2048).1[42..46], *b"back");
        }
        assert_eq!(guest.command(4, 0, &[1, 0]), OK);
        host.send_to(b"to the first", "10.0.0.2:5000").unwrap();
        receive(&mut guest, 0, 2048);
        assert_eq!(guest.nic.with_device(|nic| nic.host_failures().count), 0);
    });
}

#[test]
fn a_descriptor_of_somebody_else_is_taken_if_it_is_one() {
    with_tap(1, |taps| {
        assert_eq!(taps[0].name().unwrap(), "tap0");
        // SAFETY: a new descriptor, which is owned from here on.
        let copy = unsafe { OwnedFd::from_raw_fd(libc::dup(taps[0].as_raw_fd())) };
        assert_eq!(Tap::from_fd(copy).unwrap().name().unwrap(), "tap0");
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(matches!(Tap::from_fd(other.into()), Err(TapError::Host { .. })));
        for name in ["a name that is too long", "a\0b"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name(_))));
        }
        assert!(matches!(Tap::open_queues("tap1", 0), Err(TapError::NoQueue)));
        let chosen = Tap::open("").unwrap();
        assert!(chosen.name().unwrap().starts_with("tap"));
    });
}
