//! Objects that a device shares with others: what a front end is told and asks for, and what is asked of it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use devisor::virtio::{
    Wait, features::ACCESS_PLATFORM, transport::vhost_user::VhostUserOptions, vhost_user::protocol_feature as feature,
};

use super::{
    devices::Device,
    front::{Front, NEED_REPLY, PROTOCOL_FEATURES, REPLY, VERSION, VERSION_1, bytes, id, memfd, message, send},
};

const UUID: [u8; 16] = *b"a name of sorts!";
const ADD: u32 = 6;
const LOOKUP: u32 = 8;

/// A front end that shares objects, and the channel on which it is told and asked.
fn sharing(features: u64) -> (Front, UnixStream) {
    let (device, _) = Device::new(1);
    let options = VhostUserOptions {
        max_translations: 8,
        ..VhostUserOptions::default()
    };
    let mut front = Front::with_options(device, options);
    front.negotiate(
        VERSION_1 | PROTOCOL_FEATURES | features,
        feature::REPLY_ACK | feature::BACKEND_REQ | feature::SHARED_OBJECT | feature::CONFIG,
    );
    let channel = set_channel(&front);
    front.share_memory();
    (front, channel)
}

fn set_channel(front: &Front) -> UnixStream {
    let (channel, theirs) = UnixStream::pair().unwrap();
    channel.set_nonblocking(true).unwrap();
    front.tell(id::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
    channel
}

/// What was said on the channel: the requests and their payloads.
fn said(mut channel: &UnixStream) -> Vec<(u32, Vec<u8>)> {
    let mut all = Vec::new();
    let mut header = [0; 12];
    while let Ok(12) = channel.read(&mut header) {
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(8) as usize];
        channel.read_exact(&mut payload).unwrap();
        all.push((word(0), payload));
    }
    all
}

fn is_writable(descriptor: RawFd) -> bool {
    is_ready(descriptor, libc::POLLOUT)
}

fn is_ready(descriptor: RawFd, events: libc::c_short) -> bool {
    let mut poll = libc::pollfd {
        fd: descriptor,
        events,
        revents: 0,
    };
    // SAFETY: one structure, as is said.
    (unsafe { libc::poll(&raw mut poll, 1, 0) }) == 1
}

/// What file it is.
fn number(file: OwnedFd) -> u64 {
    File::from(file).metadata().unwrap().ino()
}

/// Looks an object up: what is found is told there.
fn look_up(front: &Front) -> mpsc::Receiver<Option<u64>> {
    let (tells, hears) = mpsc::channel();
    front
        .device
        .look_up_object(UUID, move |found| _ = tells.send(found.map(number)));
    hears
}

#[test]
fn an_object_that_is_asked_for_comes_with_its_answer_and_one_without_a_name_is_none() {
    let (front, _channel) = sharing(0);
    let file: OwnedFd = memfd(4096).into();
    let expected = number(file.try_clone().unwrap());
    front.device.export_object(UUID, file);
    let (payload, file) = front.ask(id::GET_SHARED_OBJECT, &UUID, &[]);
    assert_eq!((payload, file.map(number)), (UUID.to_vec(), Some(expected)));
    let (payload, file) = front.ask(id::GET_SHARED_OBJECT, &[7; 16], &[]);
    assert!(payload == [7; 16] && file.is_none());
    // QEMU says that there is no payload.
    for payload in [&[][..], &UUID[..15]] {
        let (answer, file) = front.ask(id::GET_SHARED_OBJECT, payload, &[]);
        assert!(answer == [0; 16] && file.is_none());
    }
    front.ask(id::GET_FEATURES, &[], &[]);
}

#[test]
fn answers_that_are_none_end_all_that_is_asked_and_keep_no_descriptor() {
    let (front, channel) = sharing(0);
    let asked: Vec<_> = (0..100).map(|_| look_up(&front)).collect();
    assert_eq!(said(&channel).len(), 100);
    let file = memfd(4096);
    let mine = file.metadata().unwrap();
    let held = || {
        let all = fs::read_dir("/proc/self/fd").unwrap().flatten();
        all.filter(|entry| fs::metadata(entry.path()).is_ok_and(|it| (it.dev(), it.ino()) == (mine.dev(), mine.ino())))
            .count()
    };
    // A byte of a message at a time, and as many descriptors with it as a whole one may have.
    let answer = message(LOOKUP, VERSION | REPLY, &[0; 48]);
    for byte in &answer {
        send(&channel, &[*byte], &[file.as_raw_fd(); 8]).unwrap();
        front.pump().unwrap();
        assert!(held() <= 9, "{} are held", held());
    }
    for found in asked {
        assert_eq!(found.try_recv(), Ok(None));
    }
    // Nobody is asked any more, and the connection stands.
    assert_eq!(look_up(&front).try_recv(), Ok(None));
    front.ask(id::GET_FEATURES, &[], &[]);
}

#[test]
fn an_answer_is_to_what_it_names() {
    let (mut front, mut channel) = sharing(ACCESS_PLATFORM);
    // A translation is asked for first, which nobody answers.
    let ring = front.ring(0);
    front.describe(0, &ring, 0);
    front.set_kick(0);
    front.enable(0, true);
    let found = look_up(&front);
    let requests: Vec<_> = said(&channel).iter().map(|(request, _)| *request).collect();
    assert_eq!(requests, [1, LOOKUP]);
    let file = memfd(4096);
    let answer = message(LOOKUP, VERSION | REPLY, &bytes(&[0]));
    send(&channel, &answer, &[file.as_raw_fd()]).unwrap();
    front.pump().unwrap();
    assert_eq!(found.try_recv(), Ok(Some(number(file.into()))));
    // A request is no answer.
    let found = look_up(&front);
    channel.write_all(&message(LOOKUP, VERSION, &bytes(&[0]))).unwrap();
    front.pump().unwrap();
    assert_eq!(found.try_recv(), Ok(None));
}

#[test]
fn who_is_told_that_nothing_was_found_may_ask_for_the_connection() {
    type End = fn(&Front);
    let ends: [End; 5] = [
        |front| front.socket.shutdown(std::net::Shutdown::Both).unwrap(),
        |front| front.device.disconnect(),
        |front| devisor::virtio::VirtioTransport::reset(&front.device),
        |front| {
            let (_, theirs) = UnixStream::pair().unwrap();
            let request = message(id::SET_BACKEND_REQ_FD, VERSION | NEED_REPLY, &[]);
            send(&front.socket, &request, &[theirs.as_raw_fd()]).unwrap();
        },
        |front| {
            let answer = message(LOOKUP, VERSION | REPLY, &bytes(&[1]));
            send(&set_channel(front), &answer, &[]).unwrap();
        },
    ];
    for (at, end) in ends.into_iter().enumerate() {
        let (front, _channel) = sharing(0);
        let front = Arc::new(front);
        let (tells, hears) = mpsc::channel();
        let asks = Arc::downgrade(&front);
        front.device.look_up_object(UUID, move |found| {
            let connected = asks.upgrade().is_some_and(|front| front.device.is_connected());
            let _ = tells.send((found.is_none(), connected));
        });
        thread::spawn(move || {
            end(&front);
            let _ = front.device.serve_connection();
        });
        let told = hears.recv_timeout(Duration::from_secs(10));
        assert_eq!(told, Ok((true, at > 2)), "end {at}");
    }
}

#[test]
fn what_the_channel_has_no_room_for_is_told_when_there_is() {
    const COUNT: u128 = 1000;
    let (front, channel) = sharing(0);
    let file: OwnedFd = memfd(4096).into();
    for at in 0..COUNT {
        front.device.export_object(at.to_be_bytes(), file.try_clone().unwrap());
    }
    let awaited = || {
        front.device.connection_waits().into_iter().find_map(|wait| match wait {
            Wait::Writable(descriptor) => Some(descriptor),
            _ => None,
        })
    };
    front.pump().unwrap();
    assert!(awaited().is_some(), "it waits for room");
    let mut told = Vec::new();
    while let Some(descriptor) = awaited() {
        assert!(!is_writable(descriptor), "it is full");
        told.extend(said(&channel));
        assert!(is_writable(descriptor), "{} are told", told.len());
        front.pump().unwrap();
    }
    told.extend(said(&channel));
    let expected: Vec<_> = (0..COUNT).map(|at| (ADD, at.to_be_bytes().to_vec())).collect();
    assert!(told == expected, "{} are told", told.len());
    // Who has gone is not waited for.
    front.device.withdraw_object([0; 16]);
    drop(channel);
    front.device.export_object([0; 16], file);
    front.pump().unwrap();
    assert_eq!(awaited(), None);
}

#[test]
fn a_configuration_that_changes_when_the_channel_has_no_room_is_told_when_there_is() {
    const CONFIG_CHANGE: u32 = 2;
    let (mut front, channel) = sharing(0);
    front.start(0);
    let file: OwnedFd = memfd(4096).into();
    for at in 0..1000u128 {
        front.device.export_object(at.to_be_bytes(), file.try_clone().unwrap());
    }
    // By who has the device, and not by who waits for the connection.
    front.device.change_config(|_| ());
    let waits = front.device.connection_waits();
    let room = waits.iter().any(|wait| matches!(wait, Wait::Writable(_)));
    assert!(room, "{waits:?}");
    let mut told = Vec::new();
    while told.len() < 1000 {
        told.extend(said(&channel));
        front.pump().unwrap();
    }
    // No kick comes.
    told.extend(said(&channel));
    assert_eq!(told.iter().filter(|(request, _)| *request == CONFIG_CHANGE).count(), 1);
    let waits = front.device.connection_waits();
    assert!(!waits.iter().any(|wait| matches!(wait, Wait::Writable(_))), "{waits:?}");
    // Who has gone is not waited for.
    drop(channel);
    front.device.change_config(|_| ());
    assert!(
        !front
            .device
            .connection_waits()
            .iter()
            .any(|wait| matches!(wait, Wait::Writable(_)))
    );
}

/// Whether one of these is there.
fn is_there(waits: &[Wait]) -> bool {
    waits.iter().any(|wait| match *wait {
        Wait::Readable(descriptor) => is_ready(descriptor, libc::POLLIN),
        Wait::Writable(descriptor) => is_writable(descriptor),
        _ => false,
    })
}

#[test]
fn who_waits_for_a_connection_hears_that_the_channel_has_no_room_and_then_waits_for_that_alone() {
    for protocol in [0, feature::SHARED_OBJECT] {
        let (device, _) = Device::new(1);
        let mut front = Front::ready(device, protocol | feature::BACKEND_REQ | feature::CONFIG);
        let channel = set_channel(&front);
        front.start(0);
        // Who waits has asked once, and is told of nothing but what is there.
        let waits = front.device.connection_waits();
        for _ in 0..10_000 {
            front.device.change_config(|_| ());
            if is_there(&waits) {
                break;
            }
        }
        assert!(is_there(&waits), "{protocol:#x}: {waits:?}");
        front.pump().unwrap();
        let waits = front.device.connection_waits();
        assert!(!is_there(&waits), "{protocol:#x}: there is no room yet, {waits:?}");
        said(&channel);
        assert!(is_there(&waits), "{protocol:#x}: there is room");
        front.pump().unwrap();
        assert_eq!(said(&channel).len(), 1, "{protocol:#x}: it is told");
    }
}
