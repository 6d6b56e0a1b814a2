//! Features, configuration, status, reset: what is said on a connection.

use std::{
    io::Read,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use devisor::virtio::{
    VirtioTransport, Wait,
    transport::vhost_user::{ConnectionError, VhostUser, VhostUserOptions},
    vhost_user::{protocol_feature as feature, vhost_feature},
};

use super::{
    devices::Device,
    front::{Front, NEED_REPLY, PROTOCOL_FEATURES, VERSION, VERSION_1, bytes, halves, id, message, send},
};

#[test]
fn a_front_end_learns_what_device_and_protocol_can_do() {
    let (device, _) = Device::new(3);
    let front = Front::new(device);
    let offered = front.ask_word(id::GET_FEATURES, &[]);
    let vhost = vhost_feature::LOG_ALL | vhost_feature::PROTOCOL_FEATURES;
    assert_eq!(offered & (vhost | VERSION_1 | 0b11), vhost | VERSION_1 | 0b11);
    let protocol = front.ask_word(id::GET_PROTOCOL_FEATURES, &[]);
    for needed in [
        feature::MQ,
        feature::CONFIG,
        feature::REPLY_ACK,
        feature::STATUS,
        feature::INFLIGHT_SHMFD,
    ] {
        assert_ne!(protocol & needed, 0);
    }
    front.tell(id::SET_PROTOCOL_FEATURES, &bytes(&[protocol]), &[]);
    assert_eq!(front.ask_word(id::GET_QUEUE_NUM, &[]), 3);
    assert_eq!(front.ask_word(id::GET_MAX_MEM_SLOTS, &[]), 32);
}

#[test]
fn the_device_hears_of_its_own_features_alone_and_once() {
    let (device, seen) = Device::new(1);
    let mut front = Front::new(device);
    let features = VERSION_1 | PROTOCOL_FEATURES | 1;
    front.negotiate(features, 0);
    front.tell(id::SET_FEATURES, &bytes(&[features]), &[]);
    assert_eq!(*seen.features.lock().unwrap(), [VERSION_1 | 1]);
    assert_eq!(seen.resets.load(Ordering::SeqCst), 0);
    // Another driver.
    front.tell(id::SET_FEATURES, &bytes(&[VERSION_1 | PROTOCOL_FEATURES]), &[]);
    assert_eq!(seen.features.lock().unwrap()[1..], [VERSION_1]);
    assert_eq!(seen.resets.load(Ordering::SeqCst), 1);
}

#[test]
fn features_that_the_device_cannot_work_with_cost_the_connection_or_features_ok() {
    let (device, seen) = Device::new(1);
    let front = Front::new(device);
    let refused = front.try_send(id::SET_FEATURES, 0, &bytes(&[VERSION_1 | 0b10]), &[]);
    assert!(matches!(
        refused,
        Err(ConnectionError::Payload {
            request: id::SET_FEATURES,
            ..
        })
    ));
    assert!(!front.device.is_connected());

    let (device, _) = Device::new(1);
    let front = Front::new(device);
    front.tell(id::SET_PROTOCOL_FEATURES, &bytes(&[feature::STATUS]), &[]);
    front.tell(id::SET_FEATURES, &bytes(&[VERSION_1 | 0b10]), &[]);
    front.tell(id::SET_STATUS, &bytes(&[11]), &[]);
    assert_eq!(front.ask_word(id::GET_STATUS, &[]), 3);
    front.tell(id::SET_FEATURES, &bytes(&[VERSION_1]), &[]);
    front.tell(id::SET_STATUS, &bytes(&[11]), &[]);
    assert_eq!(front.ask_word(id::GET_STATUS, &[]), 11);
    assert_eq!(seen.features.lock().unwrap().len(), 0);
}

#[test]
fn the_configuration_is_read_written_and_its_change_is_told() {
    let (device, seen) = Device::new(1);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::CONFIG | feature::BACKEND_REQ);
    let read = |front: &Front, offset: u32, size: u32| {
        let asked = [halves(&[offset, size, 0]), vec![0; size as usize]].concat();
        front.ask(id::GET_CONFIG, &asked, &[]).0[12..].to_vec()
    };
    assert_eq!(read(&front, 4, 4), [4, 5, 6, 7]);
    assert_eq!(read(&front, 30, 4), [30, 31, 0, 0], "zeros beyond its end");
    let written = [halves(&[8, 2, 0]), vec![77, 78]].concat();
    front.tell(id::SET_CONFIG, &written, &[]);
    assert_eq!(read(&front, 8, 2), [77, 78]);

    let (mut channel, theirs) = UnixStream::pair().unwrap();
    front.tell(id::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
    front.share_memory();
    front.start(0);
    front.device.change_config(|_| seen.config.lock().unwrap()[0] = 99);
    let mut told = [0; 12];
    channel.read_exact(&mut told).unwrap();
    assert_eq!(told[..], message(2, VERSION, &[]));
    assert_eq!(read(&front, 0, 1), [99]);
}

/// "While all vrings are stopped, the device is suspended": it sends no messages. A front end keeps what it has read.
#[test]
fn a_configuration_that_changes_while_no_ring_is_started_is_told_when_one_is() {
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    let protocol = feature::CONFIG | feature::BACKEND_REQ | feature::RESET_DEVICE;
    front.tell(id::SET_PROTOCOL_FEATURES, &bytes(&[protocol]), &[]);
    let (channel, theirs) = UnixStream::pair().unwrap();
    front.tell(id::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
    channel.set_nonblocking(true).unwrap();
    let told = || {
        let mut told = [0; 120];
        (&channel).read(&mut told).map_or(0, |read| read / 12)
    };
    let read = [halves(&[0, 4, 0]), vec![0; 4]].concat();
    front.ask(id::GET_CONFIG, &read, &[]);
    let change = |front: &Front, when: &str| {
        front.device.change_config(|_| ());
        front.pump().unwrap();
        assert_eq!(told(), 0, "{when}");
        let waits = front.device.connection_waits();
        assert!(!waits.iter().any(|wait| matches!(wait, Wait::Writable(_))), "{when}");
    };
    change(&front, "no driver has come");
    front.tell(id::SET_FEATURES, &bytes(&[VERSION_1 | PROTOCOL_FEATURES]), &[]);
    front.share_memory();
    let ring = front.start(0);
    front.pump().unwrap();
    assert_eq!(told(), 1);
    front.device.change_config(|_| ());
    assert_eq!(told(), 1, "at once");
    let base = front.base(0);
    change(&front, "all are stopped");
    front.describe(0, &ring, base);
    front.set_kick(0);
    front.pump().unwrap();
    assert_eq!(told(), 1);
    front.base(0);
    change(&front, "all are stopped again");
    front.tell(id::RESET_DEVICE, &[], &[]);
    change(&front, "it was reset");
    front.tell(id::SET_FEATURES, &bytes(&[VERSION_1 | PROTOCOL_FEATURES]), &[]);
    front.start(0);
    front.pump().unwrap();
    assert_eq!(told(), 1, "what was not told before a reset");
}

#[test]
fn a_configuration_that_changes_before_there_is_a_channel_is_told_when_there_is() {
    let (device, _) = Device::new(1);
    let mut front = Front::ready(device, feature::CONFIG | feature::BACKEND_REQ);
    front.start(0);
    front.device.change_config(|_| ());
    let (channel, theirs) = UnixStream::pair().unwrap();
    channel.set_nonblocking(true).unwrap();
    for told in [true, false] {
        front.tell(id::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
        front.pump().unwrap();
        assert_eq!((&channel).read(&mut [0; 12]).is_ok(), told);
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_answered_with_nothing() {
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::CONFIG);
    for asked in [halves(&[0, 300, 0]), halves(&[0, 8, 0]), Vec::new()] {
        assert!(front.ask(id::GET_CONFIG, &asked, &[]).0.is_empty());
    }
}

#[test]
fn a_request_says_whether_it_was_done_if_it_is_asked() {
    let (device, _) = Device::new(2);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::REPLY_ACK | feature::MQ);
    assert!(front.acknowledged(id::SET_VRING_NUM, &halves(&[1, 64]), &[]));
    assert!(
        !front.acknowledged(id::SET_VRING_NUM, &halves(&[2, 64]), &[]),
        "there is no such queue"
    );
    assert!(!front.acknowledged(id::SET_VRING_ENDIAN, &halves(&[0, 1]), &[]));
    assert!(!front.acknowledged(id::POSTCOPY_ADVISE, &[], &[]));
    assert_eq!(front.device.refusals().count, 3);
    assert!(front.device.is_connected());
    // One that has an answer anyway has no other.
    assert!(front.try_send(id::GET_QUEUE_NUM, NEED_REPLY, &[], &[]).is_ok());
    assert_eq!(front.answer().unwrap().1, bytes(&[2]));
    assert!(front.answer().is_none());
}

#[test]
fn messages_may_come_in_any_pieces_and_several_at_once() {
    let (device, _) = Device::new(2);
    let front = Front::new(device);
    let all = [
        message(id::SET_OWNER, VERSION, &[]),
        message(id::GET_FEATURES, VERSION, &[]),
        message(id::SET_VRING_NUM, VERSION, &halves(&[1, 128])),
        message(id::GET_PROTOCOL_FEATURES, VERSION, &[]),
    ]
    .concat();
    for byte in all.chunks(1) {
        send(&front.socket, byte, &[]).unwrap();
        front.pump().unwrap();
    }
    assert_eq!(front.answer().unwrap().0, id::GET_FEATURES);
    assert_eq!(front.answer().unwrap().0, id::GET_PROTOCOL_FEATURES);
    send(&front.socket, &all, &[]).unwrap();
    front.pump().unwrap();
    assert_eq!(front.answer().unwrap().0, id::GET_FEATURES);
    assert_eq!(front.answer().unwrap().0, id::GET_PROTOCOL_FEATURES);
}

#[test]
fn reset_device_resets_it_and_a_status_of_zero_does_where_there_is_no_other_way() {
    for (protocol, after_status) in [(feature::STATUS, 1), (feature::STATUS | feature::RESET_DEVICE, 0)] {
        let (device, seen) = Device::new(1);
        let mut front = Front::ready(device, protocol);
        front.start(0);
        front.tell(id::SET_STATUS, &bytes(&[15]), &[]);
        front.tell(id::SET_STATUS, &bytes(&[0]), &[]);
        assert_eq!(seen.resets.load(Ordering::SeqCst), after_status);
        if protocol & feature::RESET_DEVICE != 0 {
            front.tell(id::RESET_DEVICE, &[], &[]);
            assert_eq!(seen.resets.load(Ordering::SeqCst), 1);
        }
        assert_eq!(front.device.status(), 0);
        // It can be used again.
        front.tell(id::SET_FEATURES, &bytes(&[VERSION_1 | PROTOCOL_FEATURES]), &[]);
        let mut ring = front.start(0);
        super::rings::exchange(&front, &mut ring, 1);
    }
}

#[test]
fn a_front_end_that_leaves_is_followed_by_another() {
    let (device, seen) = Device::new(1);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    super::rings::exchange(&front, &mut ring, 1);
    let (socket, theirs) = UnixStream::pair().unwrap();
    assert!(
        front.device.connect(theirs.try_clone().unwrap()).is_err(),
        "one at a time"
    );
    front.socket = socket;
    assert!(matches!(front.pump(), Err(ConnectionError::Closed)));
    assert_eq!(seen.resets.load(Ordering::SeqCst), 1);
    assert!(front.device.waits(devisor::virtio::QueueIndex(0)).is_empty());
    front.device.connect(theirs).unwrap();
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, 0);
    front.share_memory();
    let mut ring = front.start(0);
    super::rings::exchange(&front, &mut ring, 1);
}

#[test]
fn what_the_device_keeps_is_saved_and_restored() {
    let (device, seen) = Device::new(1);
    let saved = VhostUser::new(device, VhostUserOptions::default()).unwrap();
    seen.config.lock().unwrap()[0] = 200;
    saved.pause();
    let state = saved.save().unwrap();
    let (device, seen) = Device::new(1);
    let restored = VhostUser::new(device, VhostUserOptions::default()).unwrap();
    restored.restore(&state).unwrap();
    assert_eq!(seen.config.lock().unwrap()[0], 200);
}

#[test]
fn two_threads_that_serve_a_connection_answer_each_request_once_and_in_order() {
    const BATCH: usize = 40;
    let (device, seen) = Device::new(3);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::MQ | feature::REPLY_ACK);
    let front = &front;
    let served = [(); 2].map(|()| AtomicUsize::new(0));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let threads = served.each_ref().map(|served| {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    let result = front.device.serve_connection();
                    served.fetch_add(1, Ordering::SeqCst);
                    result?;
                }
                Ok::<_, ConnectionError>(())
            })
        });
        let begun = Instant::now();
        let done = (0..100).try_for_each(|batch| {
            let requests = (0..BATCH).map(|number| match (batch + number) % 3 {
                0 => id::GET_FEATURES,
                1 => id::GET_QUEUE_NUM,
                // In two parts, which two threads may read.
                _ => id::GET_PROTOCOL_FEATURES,
            });
            let sent: Vec<u8> = requests
                .clone()
                .flat_map(|request| message(request, VERSION, &[]))
                .collect();
            let (first, second) = sent.split_at(sent.len() - 5 - batch % 7);
            send(&front.socket, first, &[]).expect("sent");
            send(&front.socket, second, &[]).expect("sent");
            requests.into_iter().try_for_each(|request| {
                loop {
                    match front.answer() {
                        Some((answered, payload, _)) if answered == request && payload.len() == 8 => return Ok(()),
                        Some((answered, ..)) => return Err(format!("{answered} where {request} was asked")),
                        None if begun.elapsed() > Duration::from_secs(60) => return Err("no answer".into()),
                        None => thread::yield_now(),
                    }
                }
            })
        });
        // On a busy machine one of them may not have begun yet.
        let all_serve = || served.iter().all(|served| served.load(Ordering::SeqCst) != 0);
        while !all_serve() && begun.elapsed() < Duration::from_secs(60) {
            thread::yield_now();
        }
        ended.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().expect("no panic").expect("a connection");
        }
        done.unwrap_or_else(|error| panic!("{error}"));
    });
    assert!(served.iter().all(|served| served.load(Ordering::SeqCst) != 0));
    assert!(front.answer().is_none(), "each is answered once");
    assert_eq!(seen.resets.load(Ordering::SeqCst), 0);
}
