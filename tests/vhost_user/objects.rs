//! Objects that a device shares with others: what a front end is told and asks for, and what is asked of it.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
};

use devisor::virtio::{transport::vhost_user::VhostUserOptions, vhost_user::protocol_feature as feature};

use super::{
    devices::Device,
    front::{Front, PROTOCOL_FEATURES, VERSION_1, id, memfd},
};

const UUID: [u8; 16] = *b"a name of sorts!";

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
        feature::REPLY_ACK | feature::BACKEND_REQ | feature::SHARED_OBJECT,
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

/// What file it is.
fn number(file: OwnedFd) -> u64 {
    File::from(file).metadata().unwrap().ino()
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
