//! Sockets, with the other end in the test's hands.

use std::{
    io::{Read, Write},
    net::UdpSocket,
    os::unix::net::{UnixDatagram, UnixStream},
    sync::Arc,
    time::Duration,
};

use devisor::virtio::{
    QueueIndex, VirtioTransport, Wait,
    net::{DatagramSocket, Header, StreamSocket},
};

use crate::{guest::*, ring::writable};

fn stream() -> (Arc<StreamSocket>, UnixStream, Guest) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let socket = Arc::new(StreamSocket::new(ours).unwrap());
    let guest = Guest::over([Arc::clone(&socket)], options(), MRG_RXBUF);
    (socket, theirs, guest)
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

fn read_frame(peer: &mut UnixStream) -> Vec<u8> {
    let mut prefix = [0; 4];
    peer.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

fn failures(guest: &Guest) -> u64 {
    guest.nic.with_device(|nic| nic.host_failures().count)
}

#[test]
fn frames_go_over_a_stream_after_their_length() {
    let (_, mut peer, mut guest) = stream();
    guest.transmit(Header::default(), &frame(OTHER, 60));
    assert_eq!(read_frame(&mut peer), frame(OTHER, 60));
    guest.buffer(0, 2048);
    peer.write_all(&with_length(&frame(OWN, 61))).unwrap();
    guest.nic.process(QueueIndex(0));
    assert_eq!(guest.received(0)[0].1, frame(OWN, 61));
}

#[test]
fn a_frame_that_comes_byte_by_byte_is_one() {
    let (_, mut peer, mut guest) = stream();
    guest.buffer(0, 2048);
    let all = [with_length(&frame(OWN, 60)), with_length(&frame(OWN, 70))].concat();
    for (at, byte) in all.iter().enumerate() {
        assert!(matches!(guest.nic.waits(QueueIndex(0))[..], [Wait::Readable(_)]));
        peer.write_all(&[*byte]).unwrap();
        guest.nic.process(QueueIndex(0));
        if at == 63 {
            assert_eq!(guest.received(0)[0].1, frame(OWN, 60));
            guest.buffer(0, 2048);
        } else if at < all.len() - 1 {
            assert_eq!(guest.received(0), []);
        }
    }
    assert_eq!(guest.received(0)[0].1, frame(OWN, 70));
}

#[test]
fn many_frames_at_once_are_taken_apart() {
    let (_, mut peer, mut guest) = stream();
    let all: Vec<u8> = (0..20).flat_map(|n| with_length(&frame(OWN, 60 + n))).collect();
    peer.write_all(&all).unwrap();
    for n in 0..20 {
        guest.buffer(0, 2048);
        assert_eq!(guest.received(0)[0].1, frame(OWN, 60 + n));
    }
}

#[test]
fn a_stream_without_room_keeps_what_was_sent_in_part() {
    let (_, mut peer, mut guest) = stream();
    let large = |n: usize| frame(OTHER, 15_000 + n);
    let mut sent = 0;
    while guest.nic.waits(QueueIndex(1)).is_empty() {
        guest.transmit(Header::default(), &large(sent));
        sent += 1;
        assert!(sent < 1000, "a socket has an end");
    }
    assert!(matches!(guest.nic.waits(QueueIndex(1))[..], [Wait::Writable(_)]));
    for n in 0..sent {
        // A reader on its own, or both would wait.
        let data = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_frame(&mut peer));
            while !reader.is_finished() {
                guest.nic.process(QueueIndex(1));
            }
            reader.join().unwrap()
        });
        assert!(data == large(n), "frame {n}");
    }
    guest.nic.process(QueueIndex(1));
    assert_eq!(guest.used(1).len(), sent);
    assert_eq!(guest.nic.waits(QueueIndex(1)), []);
}

#[test]
fn a_peer_that_goes_is_one_failure_and_another_can_come() {
    let (socket, peer, mut guest) = stream();
    guest.buffer(0, 2048);
    drop(peer);
    guest.nic.process(QueueIndex(0));
    assert_eq!(failures(&guest), 1);
    assert!(!socket.is_connected());
    assert_eq!(guest.nic.waits(QueueIndex(0)), []);
    for _ in 0..3 {
        guest.transmit(Header::default(), &frame(OTHER, 60));
        guest.nic.process(QueueIndex(0));
    }
    assert_eq!((guest.used(1), failures(&guest)), (vec![0; 3], 1));

    let (ours, mut peer) = UnixStream::pair().unwrap();
    socket.connect(ours).unwrap();
    guest.nic.run();
    peer.write_all(&with_length(&frame(OWN, 60))).unwrap();
    guest.nic.process(QueueIndex(0));
    assert_eq!(guest.received(0).len(), 1);
    guest.transmit(Header::default(), &frame(OTHER, 60));
    assert_eq!(read_frame(&mut peer), frame(OTHER, 60));
}

#[test]
fn a_peer_that_goes_is_found_by_who_sends_too() {
    let (socket, peer, mut guest) = stream();
    drop(peer);
    guest.transmit(Header::default(), &frame(OTHER, 60));
    assert_eq!(guest.used(1), [0]);
    assert_eq!(failures(&guest), 1);
    assert!(!socket.is_connected());
}

#[test]
fn what_the_host_cannot_do_with_a_descriptor_is_one_failure_and_holds_no_frame() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let socket = Arc::new(StreamSocket::new(file).unwrap());
    let mut guest = Guest::over([Arc::clone(&socket)], options(), 0);
    assert_eq!(failures(&guest), 0, "nothing was tried");
    for _ in 0..3 {
        guest.transmit(Header::default(), &frame(OTHER, 60));
        guest.buffer(0, 2048);
    }
    assert_eq!((guest.used(1), failures(&guest)), (vec![0; 3], 1));
    assert!(!socket.is_connected());
    let last = guest.nic.with_device(|nic| nic.host_failures().last);
    assert!(last.is_some(), "the embedder hears what it was");
}

#[test]
fn what_is_left_of_a_frame_goes_with_its_peer() {
    let (socket, peer, mut guest) = stream();
    let mut sent = 0;
    // Until one is sent in part.
    while guest.nic.waits(QueueIndex(1)).is_empty() {
        guest.transmit(Header::default(), &frame(OTHER, 9000));
        sent += guest.used(1).len();
        assert!(sent < 10_000);
    }
    drop(peer);
    guest.nic.process(QueueIndex(1));
    assert_eq!((failures(&guest), socket.is_connected()), (1, false));
    let (ours, mut peer) = UnixStream::pair().unwrap();
    socket.connect(ours).unwrap();
    guest.nic.run();
    guest.used(1);
    guest.transmit(Header::default(), &frame(OTHER, 61));
    assert_eq!(
        read_frame(&mut peer),
        frame(OTHER, 61),
        "from the first byte of a frame on"
    );
}

#[test]
fn a_peer_that_says_a_length_that_cannot_be_is_gone() {
    for len in [65_594u32, 1 << 31, u32::MAX] {
        let (socket, mut peer, mut guest) = stream();
        guest.buffer(0, 2048);
        peer.write_all(&len.to_be_bytes()).unwrap();
        guest.nic.process(QueueIndex(0));
        assert_eq!((failures(&guest), socket.is_connected()), (1, false), "{len}");
    }
}

#[test]
fn what_is_shorter_than_a_frame_costs_its_sender_alone() {
    let (_, mut peer, mut guest) = stream();
    guest.buffer(0, 2048);
    peer.write_all(&[with_length(&[]), with_length(&[1; 13]), with_length(&frame(OWN, 60))].concat())
        .unwrap();
    guest.nic.process(QueueIndex(0));
    assert_eq!(guest.received(0).len(), 1);
    assert_eq!(guest.nic.with_device(|nic| nic.counters().dropped), 2);
}

#[test]
fn a_socket_that_is_plugged_in_later_serves() {
    let socket = Arc::new(StreamSocket::unconnected());
    let mut guest = Guest::over([Arc::clone(&socket)], options(), 0);
    guest.transmit(Header::default(), &frame(OTHER, 60));
    assert_eq!(guest.used(1), [0]);
    assert_eq!(failures(&guest), 0);
    let (ours, mut peer) = UnixStream::pair().unwrap();
    socket.connect(ours).unwrap();
    guest.transmit(Header::default(), &frame(OTHER, 61));
    assert_eq!(read_frame(&mut peer).len(), 61);
}

#[test]
fn checksums_are_complete_on_a_socket() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let mut guest = Guest::over([StreamSocket::new(ours).unwrap()], options(), CSUM);
    let mut data = packet(17, 1, 2);
    data[40..42].fill(0);
    let header = Header {
        flags: 1,
        csum_start: 34,
        csum_offset: 6,
        ..Header::default()
    };
    guest.transmit(header, &data);
    let sent = read_frame(&mut peer);
    assert_ne!(sent[40..42], [0, 0]);
    assert_eq!((&sent[..40], &sent[42..]), (&data[..40], &data[42..]));
}

fn datagram() -> (UnixDatagram, Guest) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let guest = Guest::over([DatagramSocket::new(ours).unwrap()], options(), MRG_RXBUF);
    (theirs, guest)
}

#[test]
fn a_frame_is_a_datagram() {
    let (peer, mut guest) = datagram();
    guest.transmit(Header::default(), &frame(OTHER, 60));
    let mut data = [0; 100];
    assert_eq!(peer.recv(&mut data).unwrap(), 60);
    assert_eq!(data[..60], frame(OTHER, 60));
    guest.buffer(0, 2048);
    assert!(matches!(guest.nic.waits(QueueIndex(0))[..], [Wait::Readable(_)]));
    peer.send(&frame(OWN, 61)).unwrap();
    guest.nic.process(QueueIndex(0));
    assert_eq!(guest.received(0)[0].1, frame(OWN, 61));
}

#[test]
fn datagrams_that_find_no_room_stay_in_the_queue() {
    let (peer, mut guest) = datagram();
    let mut offered = 0;
    while guest.nic.waits(QueueIndex(1)).is_empty() {
        guest.transmit(Header::default(), &frame(OTHER, 60 + offered));
        offered += 1;
        assert!(offered < 10_000, "a socket has an end");
    }
    assert!(matches!(guest.nic.waits(QueueIndex(1))[..], [Wait::Writable(_)]));
    let mut data = vec![0; 20_000];
    for n in 0..offered {
        let len = peer.recv(&mut data).unwrap();
        assert_eq!(data[..len], frame(OTHER, 60 + n));
        guest.nic.process(QueueIndex(1));
    }
    assert_eq!(guest.used(1).len(), offered);
}

#[test]
fn a_datagram_that_is_too_long_is_dropped() {
    let (peer, mut guest) = datagram();
    guest.buffer(0, 2048);
    peer.send(&vec![0; 70_000]).unwrap();
    peer.send(&frame(OWN, 60)).unwrap();
    guest.nic.process(QueueIndex(0));
    assert_eq!(guest.received(0).len(), 1);
    assert_eq!(guest.nic.with_device(|nic| nic.counters().dropped), 1);
}

#[test]
fn a_peer_that_goes_is_a_failure_for_each_frame() {
    let (peer, mut guest) = datagram();
    drop(peer);
    for _ in 0..3 {
        guest.transmit(Header::default(), &frame(OTHER, 60));
    }
    assert_eq!((guest.used(1), failures(&guest)), (vec![0; 3], 3));
}

#[test]
fn a_peer_that_is_not_there_yet_is_heard_when_it_is() {
    let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
    let theirs = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (here, there) = (ours.local_addr().unwrap(), theirs.local_addr().unwrap());
    drop(theirs);
    ours.connect(there).unwrap();
    let mut guest = Guest::over([DatagramSocket::new(ours).unwrap()], options(), 0);
    guest.buffer(0, 2048);
    // The host of the peer says that nobody is there, to whoever asks next.
    guest.transmit(Header::default(), &frame(OTHER, 60));
    guest.nic.process(QueueIndex(0));
    assert!(matches!(guest.nic.waits(QueueIndex(0))[..], [Wait::Readable(_)]));
    let theirs = UdpSocket::bind(there).unwrap();
    theirs.send_to(&frame(OWN, 60), here).unwrap();
    guest.nic.process(QueueIndex(0));
    assert_eq!(guest.received(0).len(), 1);
    assert_eq!(failures(&guest), 1, "and the frame that was sent is lost");
}

#[test]
fn a_chain_of_more_buffers_than_a_system_call_takes_is_served_too() {
    let (peer, mut guest) = datagram();
    // 1024 of them in a table of its own.
    guest.start(MRG_RXBUF | devisor::virtio::features::INDIRECT_DESC);
    let buffers: Vec<_> = (0..1024).map(|n| writable(0x1_0000 + n * 2, 1)).collect();
    let head = guest.rings[0].add_indirect(0x4000, &buffers);
    guest.rings[0].offer(head);
    guest.kick(0);
    peer.send(&frame(OWN, 500)).unwrap();
    guest.nic.process(QueueIndex(0));
    assert_eq!(guest.used(0), [512]);
    let bytes: Vec<u8> = (0..512).map(|n| guest.get(0x1_0000 + n * 2, 1)[0]).collect();
    assert_eq!(bytes[12..], frame(OWN, 500));
}
