//! The device's own state, from one back end to another.

use std::{
    io::{Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::Arc,
};

use devisor::virtio::{
    DeviceState, StateBytesError, VirtioDevice, VirtioTransport,
    console::{Console, MemoryPeer, Port},
    transport::vhost_user::{VhostUser, VhostUserOptions},
    vhost_user::protocol_feature as feature,
};

use super::{
    devices::Device,
    front::{Front, PROTOCOL_FEATURES, VERSION_1, bytes, halves, id},
};

const SAVE: u32 = 0;
const LOAD: u32 = 1;

fn pipe() -> (std::fs::File, std::fs::File) {
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors, which are this test's.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        let [read, write] = ends.map(|end| OwnedFd::from_raw_fd(end));
        (read.into(), write.into())
    }
}

fn begin(front: &Front, direction: u32, phase: u32, end: Option<std::fs::File>) -> u64 {
    let ends: Vec<_> = end.iter().map(AsRawFd::as_raw_fd).collect();
    let (payload, descriptor) = front.ask(id::SET_DEVICE_STATE_FD, &halves(&[direction, phase]), &ends);
    assert!(descriptor.is_none());
    u64::from_ne_bytes(payload.try_into().unwrap())
}

fn ready(device: Device) -> Front {
    let mut front = Front::new(device);
    front.negotiate(
        VERSION_1 | PROTOCOL_FEATURES,
        feature::DEVICE_STATE | feature::REPLY_ACK,
    );
    front.share_memory();
    front
}

fn saved(front: &Front) -> Vec<u8> {
    let (mut read, write) = pipe();
    assert_eq!(begin(front, SAVE, 0, Some(write)), 0x100);
    front.pump().unwrap();
    // As it comes.
    let mut bytes = Vec::new();
    let mut piece = [0; 3000];
    loop {
        match read.read(&mut piece).unwrap() {
            0 => break,
            some => bytes.extend(&piece[..some]),
        }
        front.pump().unwrap();
    }
    assert_eq!(front.ask_word(id::CHECK_DEVICE_STATE, &[]), 0);
    bytes
}

/// What the back end says of a state that is sent in such pieces.
fn load(front: &Front, state: &[u8], piece: usize) -> u64 {
    let (read, mut write) = pipe();
    assert_eq!(begin(front, LOAD, 0, Some(read)), 0x100);
    for piece in state.chunks(piece) {
        write.write_all(piece).unwrap();
        front.pump().unwrap();
    }
    // It is asked before the end of it has come.
    front.tell(id::CHECK_DEVICE_STATE, &[], &[]);
    assert!(front.answer().is_none());
    drop(write);
    front.pump().unwrap();
    let (answered, payload, _) = front.answer().unwrap();
    assert_eq!(answered, id::CHECK_DEVICE_STATE);
    u64::from_ne_bytes(payload.try_into().unwrap())
}

#[test]
fn the_state_of_a_device_goes_from_one_back_end_to_another() {
    let (device, seen) = Device::new(1);
    let front = ready(device);
    // Longer than a pipe is.
    *seen.config.lock().unwrap() = (0..300_000u32).map(|at| at as u8).collect();
    let state = saved(&front);
    let before = DeviceState::from_bytes(&state).unwrap();
    assert!(matches!(&before, DeviceState::Other { version: 1, data } if data.len() == 300_000));
    let (device, seen) = Device::new(1);
    let front = ready(device);
    assert_eq!(load(&front, &state, 50_000), 0);
    assert_eq!(seen.config.lock().unwrap().len(), 300_000);
    // The features that it has agreed on, it is told again.
    assert_eq!(*seen.features.lock().unwrap(), [VERSION_1, VERSION_1]);
    // Nothing was moved since.
    assert_eq!(front.ask_word(id::CHECK_DEVICE_STATE, &[]), 1);
}

#[test]
fn a_state_that_cannot_be_is_refused_and_nothing_has_changed() {
    let (device, seen) = Device::new(1);
    let front = ready(device);
    let state = saved(&front);
    let before = seen.config.lock().unwrap().clone();
    let other = DeviceState::None.to_bytes();
    let cut = &state[..state.len() - 1];
    for wrong in [&b""[..], b"devisor", cut, &other, &vec![7; 100_000]] {
        assert_eq!(load(&front, wrong, 10_000), 1);
        assert_eq!(*seen.config.lock().unwrap(), before);
    }
    assert!(DeviceState::from_bytes(cut) == Err(StateBytesError::Length(cut.len())));
    assert_eq!(load(&front, &state, 10), 0);
}

#[test]
fn a_transfer_that_cannot_be_is_refused() {
    let (device, _) = Device::new(1);
    let mut front = ready(device);
    for (direction, phase) in [(2, 0), (SAVE, 1), (LOAD, u32::MAX)] {
        assert_eq!(begin(&front, direction, phase, Some(pipe().0)), 0x101);
    }
    assert_eq!(begin(&front, SAVE, 0, None), 0x101);
    // A pipe that is closed already.
    let (read, write) = pipe();
    drop(read);
    assert_eq!(begin(&front, SAVE, 0, Some(write)), 0x100);
    assert_eq!(front.ask_word(id::CHECK_DEVICE_STATE, &[]), 1);
    // Those of the other direction.
    let (read, write) = pipe();
    assert_eq!(begin(&front, LOAD, 0, Some(write)), 0x101);
    assert_eq!(begin(&front, SAVE, 0, Some(read)), 0x101);
    // What is neither a pipe nor the like: a read of it may be waited for.
    for direction in [SAVE, LOAD] {
        // SAFETY: each call takes numbers; the results are new descriptors, which are this test's.
        let others = unsafe {
            [
                libc::inotify_init1(libc::IN_CLOEXEC),
                libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC),
                libc::open(c"/dev/ptmx".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC),
            ]
        };
        for other in others.into_iter().filter(|other| *other >= 0) {
            // SAFETY: as above.
            let other = unsafe { std::fs::File::from_raw_fd(other) };
            assert_eq!(begin(&front, direction, 0, Some(other)), 0x101);
        }
    }
    // Not while the device works.
    let mut ring = front.start(0);
    assert_eq!(begin(&front, SAVE, 0, Some(pipe().1)), 0x101);
    super::rings::exchange(&front, &mut ring, 2);
    front.base(0);
    assert!(!saved(&front).is_empty());
}

#[test]
fn a_front_end_that_dies_while_its_pipe_stays_open_is_followed_by_another() {
    let (device, _) = Device::new(1);
    let mut front = ready(device);
    let (read, _write) = pipe();
    assert_eq!(begin(&front, LOAD, 0, Some(read)), 0x100);
    front.tell(id::CHECK_DEVICE_STATE, &[], &[]);
    assert!(front.answer().is_none());
    let (socket, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let before = std::mem::replace(&mut front.socket, socket);
    assert!(front.device.connection_waits().iter().all(|wait| !front.is_there(wait)));
    drop(before);
    assert!(front.device.connection_waits().iter().any(|wait| front.is_there(wait)));
    assert!(front.pump().is_err());
    front.device.connect(theirs).unwrap();
    assert_ne!(front.ask_word(id::GET_FEATURES, &[]), 0);
}

#[test]
fn a_front_end_that_waits_no_more_for_its_state_has_none_and_goes_on() {
    let (device, _) = Device::new(1);
    let front = ready(device);
    let (read, _write) = pipe();
    assert_eq!(begin(&front, LOAD, 0, Some(read)), 0x100);
    front.tell(id::CHECK_DEVICE_STATE, &[], &[]);
    assert!(front.answer().is_none());
    front.tell(id::GET_FEATURES, &[], &[]);
    let (answered, payload, _) = front.answer().unwrap();
    assert_eq!((answered, payload), (id::CHECK_DEVICE_STATE, bytes(&[1])));
    assert_eq!(front.answer().unwrap().0, id::GET_FEATURES);
}

#[test]
fn a_pipe_that_is_waited_for_and_full_holds_up_nobody() {
    let (device, seen) = Device::new(1);
    let front = ready(device);
    seen.config.lock().unwrap().resize(1 << 20, 7);
    let (mut read, write) = pipe();
    let kept = write.try_clone().unwrap();
    assert_eq!(begin(&front, SAVE, 0, Some(write)), 0x100);
    front.pump().unwrap();
    // The front end shares its flags, and nobody reads.
    // SAFETY: a call that takes numbers.
    unsafe { libc::fcntl(kept.as_raw_fd(), libc::F_SETFL, 0) };
    drop(kept);
    front.pump().unwrap();
    assert_ne!(front.ask_word(id::GET_FEATURES, &[]), 0);
    let mut all = Vec::new();
    let mut piece = [0; 8192];
    while let Ok(some @ 1..) = read.read(&mut piece) {
        all.extend(&piece[..some]);
        front.pump().unwrap();
    }
    assert!(DeviceState::from_bytes(&all).is_ok());
}

#[test]
fn a_console_says_on_the_other_side_what_it_had_not_said() {
    let console = || {
        let peer = MemoryPeer::new(4096);
        (Console::single(Port::console(peer.clone())).unwrap(), peer)
    };
    let (device, _) = console();
    let DeviceState::Console(mut state) = device.save() else {
        panic!("a console's state");
    };
    state.ports[0].backlog = b"left over".to_vec();
    let (device, peer) = console();
    let other = VhostUser::new(device, VhostUserOptions::default()).unwrap();
    let (socket, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    other.connect(theirs).unwrap();
    let ask = |request: u32, payload: &[u8], descriptors: &[i32]| {
        super::front::send(&socket, &super::front::message(request, 1, payload), descriptors).unwrap();
        while other.serve_connection().unwrap() {}
    };
    ask(id::SET_PROTOCOL_FEATURES, &bytes(&[feature::DEVICE_STATE]), &[]);
    let (read, mut write) = pipe();
    ask(id::SET_DEVICE_STATE_FD, &halves(&[LOAD, 0]), &[read.as_raw_fd()]);
    drop(read);
    write
        .write_all(&DeviceState::Console(state.clone()).to_bytes())
        .unwrap();
    drop(write);
    ask(id::CHECK_DEVICE_STATE, &[], &[]);
    let mut answers = [0; 40];
    (&socket).read_exact(&mut answers).unwrap();
    assert_eq!(answers[32..], [0; 8]);
    other.pause();
    assert_eq!(other.save().unwrap().device, DeviceState::Console(state));
    drop(Arc::new(peer));
}
