//! Requests that were under way when a back end was gone.

use std::{
    collections::BTreeSet,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

use devisor::virtio::{
    VirtioTransport, features::RING_PACKED, transport::vhost_user::VhostUserOptions,
    vhost_user::protocol_feature as feature,
};

use super::{
    devices::{Device, Seen},
    front::{Front, PROTOCOL_FEATURES, VERSION_1, bytes, halves, id, packed_options},
    packed::PackedRing,
    ring::{NEXT, Ring, WRITE, readable, writable},
};
use vm_memory::{Bytes, GuestAddress};

const BUFFERS: u64 = 0x8000;

fn with_table(front: &mut Front, description: &[u8], table: &OwnedFd) {
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::INFLIGHT_SHMFD);
    front.share_memory();
    front.tell(id::SET_INFLIGHT_FD, description, &[table.as_raw_fd()]);
}

/// A back end that keeps what it takes, its ring, and its table.
fn first() -> (Front, Arc<Seen>, Ring, Vec<u8>, OwnedFd) {
    let (device, seen) = Device::keeping(1);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::INFLIGHT_SHMFD);
    // As QEMU's structure has it, with its padding.
    let asked = [vec![0; 16], halves(&[1 | 64 << 16, 0])].concat();
    let (description, table) = front.ask(id::GET_INFLIGHT_FD, &asked, &[]);
    assert_eq!(description.len(), 24);
    let table = table.unwrap();
    with_table(&mut front, &description, &table);
    let ring = front.start(0);
    (front, seen, ring, description, table)
}

/// Another back end in its place, which answers; it is told a base that is as good as any.
fn second(front: &Front, ring: &Ring, description: &[u8], table: &OwnedFd) -> (Front, Arc<Seen>) {
    let (device, seen) = Device::new(1);
    let mut other = Front::with_memory(device, VhostUserOptions::default(), Arc::clone(&front.file));
    with_table(&mut other, description, table);
    other.describe(0, ring, ring.used_idx().into());
    other.set_kick(0);
    other.enable(0, true);
    other.device.run();
    (other, seen)
}

fn request(ring: &mut Ring) -> u16 {
    ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)])
}

#[test]
fn what_was_taken_and_not_used_is_served_by_the_next_back_end_and_nothing_else() {
    let (front, seen, mut ring, description, table) = first();
    let heads = [(); 6].map(|()| request(&mut ring));
    front.kick(0);
    // Two in the middle end, and it is gone, with another that it has not seen.
    let [one, three] = [3, 1].map(|at| seen.kept.lock().unwrap().remove(at));
    one.complete(1);
    three.complete(1);
    assert_eq!(ring.used().len(), 2);
    let last = request(&mut ring);
    // What it keeps comes back to nobody.
    std::mem::forget(std::mem::take(&mut *seen.kept.lock().unwrap()));
    let (other, seen) = second(&front, &ring, &description, &table);
    let used: Vec<_> = ring.used().iter().map(|(head, _)| *head as u16).collect();
    assert_eq!(used, [heads[0], heads[2], heads[4], heads[5], last]);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 5);
    assert!(other.called(0) >= 1, "the driver hears of what it may have missed");
    std::mem::forget(front);
}

#[test]
fn a_device_that_was_reset_has_nothing_in_flight_and_keeps_a_table_that_is_given_again() {
    let (device, seen) = Device::keeping(1);
    let mut front = Front::new(device);
    let protocol = feature::INFLIGHT_SHMFD | feature::RESET_DEVICE;
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, protocol);
    front.share_memory();
    let asked = [vec![0; 16], halves(&[1 | 64 << 16, 0])].concat();
    let (description, table) = front.ask(id::GET_INFLIGHT_FD, &asked, &[]);
    let table = table.unwrap();
    let given = |front: &mut Front| {
        front.tell(id::SET_INFLIGHT_FD, &description, &[table.as_raw_fd()]);
        front.tell(id::SET_FEATURES, &bytes(&[VERSION_1 | PROTOCOL_FEATURES]), &[]);
        front.start(0)
    };
    let mut ring = given(&mut front);
    for _ in 0..3 {
        request(&mut ring);
    }
    front.kick(0);
    assert_eq!(seen.kept.lock().unwrap().len(), 3);
    front.tell(id::RESET_DEVICE, &[], &[]);
    seen.kept.lock().unwrap().clear();
    front.pump().unwrap();
    // Another driver, which has made one available in a ring that is empty.
    front
        .memory
        .write_slice(&[0; 0x4000], GuestAddress(ring.layout.descriptor_area))
        .unwrap();
    let mut ring = given(&mut front);
    let head = request(&mut ring);
    front.kick(0);
    let kept = std::mem::take(&mut *seen.kept.lock().unwrap());
    assert_eq!(kept.len(), 1, "and none of before");
    // It is in the table: whoever comes next serves it.
    std::mem::forget(kept);
    let (_other, seen) = second(&front, &ring, &description, &table);
    assert_eq!(
        ring.used().iter().map(|(head, _)| *head as u16).collect::<Vec<_>>(),
        [head]
    );
    assert_eq!(seen.requests.load(Ordering::SeqCst), 1);
    std::mem::forget(front);
}

#[test]
fn a_back_end_that_goes_on_and_on_loses_and_repeats_nothing() {
    let (mut front, mut seen, mut ring, description, table) = first();
    let mut random = 12345u64;
    // Heads that are the device's, and how many there were.
    let (mut out, mut total) = (BTreeSet::new(), 0);
    let mut fronts = Vec::new();
    let take_back = |out: &mut BTreeSet<u16>, ring: &mut Ring| {
        for (head, _) in ring.used() {
            assert!(out.remove(&(head as u16)), "{head} came back twice");
        }
    };
    for _ in 0..40 {
        for _ in 0..20 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let kept = seen.kept.lock().unwrap().len();
            let free = (0..32).map(|pair| pair * 2).find(|head| !out.contains(head));
            if let Some(head) = free.filter(|_| random >> 60 < 8) {
                ring.descriptor(head, BUFFERS, 1, NEXT, head + 1);
                ring.descriptor(head + 1, BUFFERS + 8, 1, WRITE, 0);
                ring.offer(head);
                out.insert(head);
                total += 1;
                front.kick(0);
            } else if kept != 0 {
                let chain = seen.kept.lock().unwrap().remove((random >> 33) as usize % kept);
                chain.complete(1);
                take_back(&mut out, &mut ring);
            }
        }
        // It is gone, and another takes its place.
        std::mem::forget(std::mem::take(&mut *seen.kept.lock().unwrap()));
        let (device, next) = Device::keeping(1);
        let mut other = Front::with_memory(device, VhostUserOptions::default(), Arc::clone(&front.file));
        with_table(&mut other, &description, &table);
        other.describe(0, &ring, 0);
        other.set_kick(0);
        other.enable(0, true);
        other.device.run();
        assert_eq!(next.kept.lock().unwrap().len(), out.len());
        fronts.push(std::mem::replace(&mut front, other));
        seen = next;
    }
    let rest = std::mem::take(&mut *seen.kept.lock().unwrap());
    rest.into_iter().for_each(|chain| chain.complete(1));
    take_back(&mut out, &mut ring);
    assert!(out.is_empty(), "{out:?} of {total} were lost");
    assert!(total > 200, "{total}");
    std::mem::forget(fronts);
}

#[test]
fn one_that_comes_back_untouched_is_in_the_ring_again_whose_base_is_what_was_used() {
    let (front, seen, mut ring, description, table) = first();
    seen.gives_back.store(true, Ordering::SeqCst);
    let heads = [(); 3].map(|()| request(&mut ring));
    front.kick(0);
    seen.kept.lock().unwrap().remove(1).complete(1);
    assert_eq!(front.base(0), 1, "nothing is taken beyond what was used");
    assert_eq!(ring.used(), [(heads[1].into(), 1)]);
    let (_other, seen) = second(&front, &ring, &description, &table);
    let used: Vec<_> = ring.used().iter().map(|(head, _)| *head as u16).collect();
    assert_eq!(used, [heads[0], heads[2]]);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 2);
}

/// One packed ring for all of them, whose table says what is in flight.
#[test]
fn in_a_packed_ring_back_ends_go_on_and_on_and_lose_and_repeat_nothing() {
    let packed = VERSION_1 | PROTOCOL_FEATURES | devisor::virtio::features::RING_PACKED;
    let (device, mut seen) = Device::keeping(1);
    let mut front = Front::with_options(device, packed_options());
    front.negotiate(packed, feature::INFLIGHT_SHMFD);
    front.share_memory();
    let asked = [vec![0; 16], halves(&[1 | 32 << 16, 0])].concat();
    let (description, table) = front.ask(id::GET_INFLIGHT_FD, &asked, &[]);
    let table = table.unwrap();
    front.tell(id::SET_INFLIGHT_FD, &description, &[table.as_raw_fd()]);
    let mut ring = PackedRing::new(&front.memory, 0x1_0000, 32);
    let place = Ring::at(&front.memory, ring.layout);
    let begin = |front: &mut Front| {
        // As QEMU does for a back end that was gone: it does not know better.
        front.describe(0, &place, 0);
        front.set_kick(0);
        front.enable(0, true);
        front.device.run();
    };
    begin(&mut front);
    let (mut out, mut total, mut random) = (BTreeSet::new(), 0, 4321u64);
    let mut fronts = Vec::new();
    for _ in 0..60 {
        for _ in 0..20 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let kept = seen.kept.lock().unwrap().len();
            if ring.free() >= 2 && random >> 60 < 8 {
                let id = ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
                assert!(out.insert(id));
                total += 1;
                front.kick(0);
            } else if kept != 0 {
                let chain = seen.kept.lock().unwrap().remove((random >> 33) as usize % kept);
                chain.complete(1);
                for (id, _) in ring.used() {
                    assert!(out.remove(&(id as u16)), "{id} came back twice");
                }
            }
        }
        std::mem::forget(std::mem::take(&mut *seen.kept.lock().unwrap()));
        let (device, next) = Device::keeping(1);
        let mut other = Front::with_memory(device, packed_options(), Arc::clone(&front.file));
        other.negotiate(packed, feature::INFLIGHT_SHMFD);
        other.share_memory();
        other.tell(id::SET_INFLIGHT_FD, &description, &[table.as_raw_fd()]);
        begin(&mut other);
        let kept: BTreeSet<_> = next.kept.lock().unwrap().iter().map(|chain| chain.head()).collect();
        assert_eq!(kept, out);
        fronts.push(std::mem::replace(&mut front, other));
        seen = next;
    }
    let rest = std::mem::take(&mut *seen.kept.lock().unwrap());
    rest.into_iter().for_each(|chain| chain.complete(1));
    for (id, written) in ring.used() {
        assert!(out.remove(&(id as u16)) && written == 1);
    }
    assert!(out.is_empty(), "{out:?} of {total} were lost");
    assert!(total > 300, "{total}");
    std::mem::forget(fronts);
}

#[test]
fn a_table_for_more_rings_than_there_are_costs_no_memory_for_them() {
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    let protocol = feature::INFLIGHT_SHMFD | feature::RESET_DEVICE | feature::REPLY_ACK;
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, protocol);
    // It has no page yet. A front end could make it as large as it likes.
    let len = 64 << 20;
    let table = super::front::memfd(len);
    let description = [bytes(&[len, 0]), halves(&[2048 | 1024 << 16, 0])].concat();
    front.acknowledged(id::SET_INFLIGHT_FD, &description, &[table.as_raw_fd()]);
    front.tell(id::RESET_DEVICE, &[], &[]);
    let bytes = std::os::unix::fs::MetadataExt::blocks(&table.metadata().unwrap()) * 512;
    assert!(bytes < 1 << 20, "{bytes} bytes for one ring");
}

#[test]
fn the_table_of_a_ring_that_cannot_be_is_not_read() {
    let (device, _) = Device::new(1);
    let mut front = Front::with_options(device, packed_options());
    let packed = VERSION_1 | PROTOCOL_FEATURES | RING_PACKED;
    front.negotiate(packed, feature::INFLIGHT_SHMFD | feature::STATUS);
    front.share_memory();
    // Each chain in flight may have a table of descriptors: a ring without end would have as many of them read.
    let len = 4 << 20;
    let table = super::front::memfd(len);
    let description = [bytes(&[len, 0]), halves(&[1 | 0x8000 << 16, 0])].concat();
    front.tell(id::SET_INFLIGHT_FD, &description, &[table.as_raw_fd()]);
    let ring = front.ring(0);
    front.describe(0, &ring, 0);
    front.tell(id::SET_VRING_NUM, &halves(&[0, 0x8000]), &[]);
    front.set_kick(0);
    front.enable(0, true);
    assert_ne!(front.device.status() & 64, 0, "no ring is so large");
    assert_eq!(std::os::unix::fs::MetadataExt::blocks(&table.metadata().unwrap()), 0);
}

#[test]
fn a_table_of_rings_of_another_format_is_none_of_these() {
    for (given, now) in [(0, RING_PACKED), (RING_PACKED, 0)] {
        let (device, _) = Device::new(1);
        let mut front = Front::with_options(device, packed_options());
        let features = VERSION_1 | PROTOCOL_FEATURES;
        front.negotiate(features | given, feature::INFLIGHT_SHMFD | feature::STATUS);
        front.share_memory();
        let asked = [vec![0; 16], halves(&[1 | 64 << 16, 0])].concat();
        let (description, table) = front.ask(id::GET_INFLIGHT_FD, &asked, &[]);
        front.tell(id::SET_INFLIGHT_FD, &description, &[table.unwrap().as_raw_fd()]);
        front.tell(id::SET_FEATURES, &bytes(&[features | now]), &[]);
        let mut packed = PackedRing::new(&front.memory, 0x1_0000, 64);
        let mut split = front.ring(0);
        let ring = match now {
            0 => front.ring(0),
            _ => Ring::at(&front.memory, packed.layout),
        };
        front.describe(0, &ring, 0);
        front.set_kick(0);
        front.enable(0, true);
        let chain = [readable(BUFFERS, 1), writable(BUFFERS + 8, 1)];
        for _ in 0..100 {
            let used = match now {
                0 => {
                    split.request(&chain);
                    front.kick(0);
                    split.used().len()
                }
                _ => {
                    packed.request(&chain);
                    front.kick(0);
                    packed.used().len()
                }
            };
            assert_eq!(used, 1, "{:?}", front.device.fault());
        }
    }
}

#[test]
fn a_table_that_cannot_be_is_refused() {
    let (front, _, _ring, description, table) = first();
    let given = |description: &[u8]| {
        front.try_send(
            id::SET_INFLIGHT_FD,
            super::front::NEED_REPLY,
            description,
            &[table.as_raw_fd()],
        )
    };
    // It comes before its rings run.
    assert!(given(&description).is_err());

    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    front.negotiate(
        VERSION_1 | PROTOCOL_FEATURES,
        feature::INFLIGHT_SHMFD | feature::REPLY_ACK,
    );
    // More entries, beyond the file, without end, longer than the file.
    for (at, value) in [(19, 0xff), (10, 1), (15, 0xff), (2, 0xff)] {
        let mut lies = description.clone();
        lies[at] = value;
        assert!(
            !front.acknowledged(id::SET_INFLIGHT_FD, &lies, &[table.as_raw_fd()]),
            "{lies:?}"
        );
    }
}
