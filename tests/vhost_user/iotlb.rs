//! A front end with an IOMMU: translations that are missed, told and taken back.

use std::{
    cell::Cell,
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use devisor::virtio::{
    QueueIndex, VirtioTransport, Wait,
    features::ACCESS_PLATFORM,
    transport::{TransportOptions, vhost_user::VhostUserOptions},
    vhost_user::{protocol_feature as feature, vhost_feature},
};

use super::{
    devices::{Device, Seen},
    front::{Front, MEMORY, NEED_REPLY, PROTOCOL_FEATURES, USER, VERSION_1, bytes, halves, id, memfd},
    ring::{Ring, readable, writable},
};

/// What the driver calls guest address zero.
const IOVA: u64 = 0x40_0000_0000;
const PAGE: u64 = 0x1000;
const BUFFERS: u64 = 0x8000;

const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;
const FAIL: u8 = 4;
const R: u8 = 1;
const W: u8 = 2;
const RW: u8 = 3;

fn told(address: u64, size: u64, user: u64, access: u8, kind: u8) -> Vec<u8> {
    let mut payload = bytes(&[address, size, user]);
    payload.extend([access, kind, 0, 0, 0, 0, 0, 0]);
    payload
}

/// A front end whose driver is behind an IOMMU, and the channel on which it is asked.
struct Behind {
    front: Front,
    channel: UnixStream,
    /// How many questions are not answered.
    owed: Cell<usize>,
}

impl Behind {
    fn new(device: Device, max_translations: u32) -> Self {
        Self::with_options(device, max_translations, TransportOptions::default())
    }

    fn with_options(device: Device, max_translations: u32, transport: TransportOptions) -> Self {
        let options = VhostUserOptions {
            transport,
            max_translations,
            ..VhostUserOptions::default()
        };
        let mut front = Front::with_options(device, options);
        front.negotiate(
            VERSION_1 | PROTOCOL_FEATURES | ACCESS_PLATFORM,
            feature::REPLY_ACK | feature::BACKEND_REQ | feature::LOG_SHMFD | feature::CONFIGURE_MEM_SLOTS,
        );
        let (channel, theirs) = UnixStream::pair().unwrap();
        channel.set_nonblocking(true).unwrap();
        front.tell(id::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
        front.share_memory();
        let owed = Cell::new(0);
        Self { front, channel, owed }
    }

    /// What the back end has asked since: address, access, kind.
    fn asked(&self) -> Vec<(u64, u8, u8)> {
        let mut all = Vec::new();
        let mut message = [0; 44];
        while let Ok(44) = (&self.channel).read(&mut message) {
            // What is missing is to be answered, as long as not too much is.
            let is_owed = message[4] == (1 | NEED_REPLY) as u8;
            let flags = if is_owed { 1 | NEED_REPLY } else { 1 };
            assert_eq!(message[..12], *halves(&[1, flags, 32]).as_slice());
            assert!(!is_owed || message[37] == MISS);
            self.owed.set(self.owed.get() + usize::from(is_owed));
            let address = u64::from_ne_bytes(message[12..20].try_into().unwrap());
            all.push((address, message[36], message[37]));
        }
        all
    }

    /// Says that all is done which was asked.
    fn say_done(&self, word: u64) {
        self.say_done_later(word);
        self.front.pump().unwrap();
    }

    /// The same, which is heard with what comes next.
    fn say_done_later(&self, word: u64) {
        for _ in 0..self.owed.take() {
            let answer = [halves(&[1, 5, 8]), bytes(&[word])].concat();
            (&self.channel).write_all(&answer).unwrap();
        }
    }

    /// Sends a message; what it was answered, if it was.
    fn try_tell(&self, message: &[u8]) -> Option<u64> {
        self.front.try_send(id::IOTLB_MSG, NEED_REPLY, message, &[]).unwrap();
        self.answered()
    }

    fn answered(&self) -> Option<u64> {
        let (request, payload, _) = self.front.answer()?;
        assert_eq!(request, id::IOTLB_MSG);
        Some(u64::from_ne_bytes(payload.try_into().unwrap()))
    }

    /// Tells where a guest range is.
    fn map(&self, guest: u64, len: u64, access: u8) {
        let message = told(IOVA + guest, len, USER + guest, access, UPDATE);
        assert_eq!(self.try_tell(&message), Some(0));
    }

    fn unmap(&self, guest: u64, len: u64) -> Option<u64> {
        self.try_tell(&told(IOVA + guest, len, 0, 0, INVALIDATE))
    }

    fn take_back_all(&self) -> Option<u64> {
        self.try_tell(&told(0, 0, 0, 0, INVALIDATE))
    }

    /// A ring of these addresses that is to run.
    fn start(&mut self, index: u32) -> Ring {
        let ring = self.front.ring(index);
        self.start_at(index, &ring, 0);
        ring
    }

    fn start_at(&mut self, index: u32, ring: &Ring, base: u32) {
        self.front.describe(index, ring, base);
        let layout = ring.layout;
        let areas = [layout.descriptor_area, layout.device_area, layout.driver_area].map(|area| IOVA + area);
        let address = [halves(&[index, 0]), bytes(&areas), bytes(&[layout.device_area])].concat();
        self.front.tell(id::SET_VRING_ADDR, &address, &[]);
        self.front.set_kick(index);
        self.front.enable(index, true);
    }

    fn map_ring(&self, ring: &Ring) {
        self.map(ring.layout.descriptor_area, 0x4000, RW);
        assert!(ring.layout.device_area - ring.layout.descriptor_area < 0x4000);
        // It was asked for when it was described.
        self.asked();
    }

    /// Answers all that is asked.
    fn answer_all(&self) {
        loop {
            let asked = self.asked();
            if asked.is_empty() {
                return;
            }
            for (address, access, kind) in asked {
                assert_eq!(kind, MISS);
                self.map(address - IOVA, PAGE, access);
            }
            self.front.device.run();
        }
    }
}

/// A request whose answer goes behind it.
fn request(ring: &mut Ring, at: u64, value: u8) -> u16 {
    ring.put(at, value);
    ring.request(&[readable(IOVA + at, 1), writable(IOVA + at + 8, 1)])
}

fn heads(ring: &mut Ring) -> Vec<u16> {
    ring.used().iter().map(|(head, _)| *head as u16).collect()
}

#[test]
fn it_is_offered_if_translations_are_kept_and_a_front_end_may_leave_it() {
    let (device, _) = Device::new(1);
    let front = Front::new(device);
    assert_eq!(front.ask_word(id::GET_FEATURES, &[]) & ACCESS_PLATFORM, 0);
    let (device, _) = Device::new(1);
    let options = VhostUserOptions {
        max_translations: 8,
        ..VhostUserOptions::default()
    };
    let mut front = Front::with_options(device, options);
    assert_ne!(front.ask_word(id::GET_FEATURES, &[]) & ACCESS_PLATFORM, 0);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::REPLY_ACK);
    front.share_memory();
    let mut ring = front.start(0);
    super::rings::exchange(&front, &mut ring, 3);
    // And then no translation is taken.
    let update = told(0, PAGE, USER, RW, UPDATE);
    front.try_send(id::IOTLB_MSG, NEED_REPLY, &update, &[]).unwrap();
    assert_eq!(front.answer().unwrap().1, bytes(&[1]));
    super::rings::exchange(&front, &mut ring, 3);
}

#[test]
fn a_ring_starts_when_all_of_it_is_translated() {
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    request(&mut ring, BUFFERS, 1);
    let layout = ring.layout;
    for (area, access) in [
        (layout.descriptor_area, R),
        (layout.driver_area, R),
        (layout.device_area, W),
    ] {
        behind.front.kick(0);
        behind.front.device.run();
        assert_eq!(behind.asked(), [(IOVA + area, access, MISS)]);
        assert!(heads(&mut ring).is_empty());
        behind.map(area, PAGE, access);
    }
    behind.map(BUFFERS, PAGE, RW);
    behind.front.device.run();
    assert_eq!(heads(&mut ring), [0]);
    assert_eq!(ring.get::<u8>(BUFFERS + 8), 2);
    assert!(behind.front.called(0) > 0);
    assert_eq!(behind.asked(), []);
}

#[test]
fn what_was_missed_before_there_was_a_channel_or_another_one_is_asked_for_on_that() {
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    request(&mut ring, BUFFERS, 1);
    let first = [(IOVA + ring.layout.descriptor_area, R, MISS)];
    assert_eq!(behind.asked(), first);
    let (channel, theirs) = UnixStream::pair().unwrap();
    channel.set_nonblocking(true).unwrap();
    // Nobody answers on the one before.
    behind.channel = channel;
    behind.owed.set(0);
    behind.front.tell(id::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]);
    assert_eq!(behind.asked(), first);
    behind.map_ring(&ring);
    behind.map(BUFFERS, PAGE, RW);
    behind.front.device.run();
    assert_eq!(heads(&mut ring), [0]);
}

#[test]
fn a_miss_in_the_middle_of_a_round_holds_up_what_comes_after_it_and_loses_nothing() {
    let (device, seen) = Device::new(2);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    let mut other = behind.start(1);
    behind.map_ring(&ring);
    behind.map_ring(&other);
    behind.map(BUFFERS, PAGE, RW);
    // The second of them is nowhere yet.
    let all = [BUFFERS, 2 * PAGE + BUFFERS, BUFFERS + 0x100].map(|at| request(&mut ring, at, 7));
    behind.front.device.run();
    assert_eq!(heads(&mut ring), all[..1]);
    assert_eq!(behind.asked(), [(IOVA + BUFFERS + 2 * PAGE, R, MISS)]);
    // Others go on meanwhile, and it is not asked for again, but for a kick.
    request(&mut other, BUFFERS + 0x200, 8);
    behind.front.device.run();
    assert_eq!(heads(&mut other).len(), 1);
    assert_eq!(behind.asked(), []);
    behind.front.kicks.swap(0, 1);
    behind.front.kick(0);
    assert_eq!(behind.asked(), [(IOVA + BUFFERS + 2 * PAGE, R, MISS)]);
    // Reading is not writing.
    behind.map(BUFFERS + 2 * PAGE, PAGE, R);
    behind.front.device.run();
    assert_eq!(behind.asked(), [(IOVA + BUFFERS + 2 * PAGE, W, MISS)]);
    assert!(heads(&mut ring).is_empty());
    // What is told of it alone adds up, as with QEMU's virtio-iommu.
    behind.map(BUFFERS + 2 * PAGE, PAGE, W);
    behind.front.device.run();
    assert_eq!(heads(&mut ring), all[1..]);
    assert_eq!(ring.get::<u8>(BUFFERS + 2 * PAGE + 8), 8);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 4);
    assert_eq!(behind.asked(), []);
}

#[test]
fn what_a_polled_queue_has_missed_is_asked_for_again_for_a_kick_and_for_no_look() {
    let (device, _) = Device::new(1);
    let polled = TransportOptions {
        polled: true,
        ..TransportOptions::default()
    };
    let mut behind = Behind::with_options(device, 64, polled);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    behind.asked();
    let head = request(&mut ring, BUFFERS, 7);
    let look = || _ = behind.front.device.serve(QueueIndex(0));
    look();
    assert_eq!(behind.asked(), [(IOVA + BUFFERS, R, MISS)]);
    look();
    assert_eq!(behind.asked(), []);
    // The driver has mapped it meanwhile.
    (&behind.front.kicks[0]).write_all(&1u64.to_ne_bytes()).unwrap();
    look();
    assert_eq!(behind.asked(), [(IOVA + BUFFERS, R, MISS)]);
    look();
    assert_eq!(behind.asked(), []);
    behind.map(BUFFERS, PAGE, RW);
    look();
    assert_eq!(heads(&mut ring), [head]);
}

#[test]
fn a_translation_that_is_not_to_come_costs_the_request_that_needs_it() {
    for word in [0, 1] {
        let (device, _) = Device::new(1);
        let mut behind = Behind::new(device, 64);
        let mut ring = behind.start(0);
        behind.map_ring(&ring);
        behind.map(BUFFERS, PAGE, RW);
        behind.asked();
        behind.say_done(0);
        let nowhere = BUFFERS + 2 * PAGE;
        let all = [nowhere, BUFFERS].map(|at| request(&mut ring, at, 1));
        behind.front.kick(0);
        assert_eq!(behind.asked(), [(IOVA + nowhere, R, MISS)]);
        assert!(heads(&mut ring).is_empty(), "it may come");
        behind.say_done(word);
        behind.front.device.run();
        assert_eq!(ring.used(), [(all[0].into(), 0), (all[1].into(), 1)]);
        assert_eq!(behind.asked(), [(IOVA + nowhere, R, FAIL)]);
        // It is asked for anew by who needs it next, and comes before it is said to be done.
        let head = request(&mut ring, nowhere, 1);
        behind.front.kick(0);
        assert_eq!(behind.asked(), [(IOVA + nowhere, R, MISS)]);
        behind.map(nowhere, PAGE, RW);
        behind.say_done(0);
        behind.front.device.run();
        assert_eq!(heads(&mut ring), [head]);
        assert_eq!(behind.asked(), []);
    }
}

#[test]
fn what_was_not_to_come_is_asked_for_anew_by_a_ring_that_starts_and_when_it_is_taken_back() {
    type Way = fn(&mut Behind, &Ring);
    let ways: [Way; 4] = [
        |behind, ring| {
            // Heard in the turn in which the ring stops.
            behind.say_done_later(1);
            let base = behind.front.base(0);
            behind.start_at(0, ring, base);
        },
        |behind, ring| {
            let base = behind.front.base(0);
            behind.say_done(1);
            behind.start_at(0, ring, base);
        },
        |behind, ring| {
            let base = behind.front.base(0);
            // Heard in the turn in which it starts.
            behind.say_done_later(1);
            behind.start_at(0, ring, base);
        },
        |behind, _| {
            behind.say_done(1);
            assert_eq!(behind.unmap(BUFFERS, 4 * PAGE), Some(0));
        },
    ];
    for (at, way) in ways.into_iter().enumerate() {
        let (device, _) = Device::new(1);
        let mut behind = Behind::new(device, 64);
        let mut ring = behind.start(0);
        behind.map_ring(&ring);
        behind.say_done(0);
        let nowhere = BUFFERS + 2 * PAGE;
        let head = request(&mut ring, nowhere, 1);
        behind.front.kick(0);
        assert_eq!(behind.asked(), [(IOVA + nowhere, R, MISS)]);
        way(&mut behind, &ring);
        behind.front.device.run();
        assert_eq!(behind.asked(), [(IOVA + nowhere, R, MISS)], "way {at}");
        behind.map(nowhere, PAGE, RW);
        behind.say_done(0);
        behind.front.device.run();
        assert_eq!(ring.used(), [(head.into(), 1)]);
        assert_eq!(behind.asked(), []);
    }
}

#[test]
fn of_two_accesses_that_are_asked_for_by_themselves_an_answer_to_one_refuses_none() {
    for first in [R, W] {
        let (device, _) = Device::new(2);
        let mut behind = Behind::new(device, 64);
        let mut rings = [0, 1].map(|index| behind.start(index));
        rings.iter().for_each(|ring| behind.map_ring(ring));
        behind.map(BUFFERS, PAGE, RW);
        behind.front.device.run();
        behind.asked();
        let shared = BUFFERS + 2 * PAGE;
        rings[0].request(&[readable(IOVA + shared, 1), writable(IOVA + BUFFERS, 1)]);
        rings[1].request(&[readable(IOVA + BUFFERS, 1), writable(IOVA + shared, 1)]);
        behind.front.device.run();
        assert_eq!(behind.asked(), [R, W].map(|access| (IOVA + shared, access, MISS)));
        for (access, done) in [(first, 1), (RW & !first, 2)] {
            behind.map(shared, PAGE, access);
            behind.front.device.run();
            let all = rings.each_mut().map(|ring| ring.used());
            let used: Vec<_> = all.concat().iter().map(|(_, written)| *written).collect();
            assert_eq!(used, [1], "{done} of them");
            assert_eq!(behind.asked(), []);
        }
    }
}

#[test]
fn an_access_that_is_not_allowed_is_refused_however_many_were_asked_for() {
    let (device, _) = Device::new(2);
    let mut behind = Behind::new(device, 64);
    let mut rings = [0, 1].map(|index| behind.start(index));
    rings.iter().for_each(|ring| behind.map_ring(ring));
    behind.map(BUFFERS, PAGE, RW);
    behind.front.device.run();
    behind.asked();
    let shared = BUFFERS + 2 * PAGE;
    rings[0].request(&[readable(IOVA + shared, 1), writable(IOVA + BUFFERS, 1)]);
    rings[1].request(&[readable(IOVA + BUFFERS, 1), writable(IOVA + shared, 1)]);
    behind.front.device.run();
    assert_eq!(behind.asked().len(), 2);
    // Each is answered with what there is.
    for _ in 0..2 {
        behind.map(shared, PAGE, R);
        behind.front.device.run();
    }
    assert_eq!(rings[0].used(), [(0, 1)]);
    assert_eq!(rings[1].used(), [(0, 0)]);
    assert_eq!(behind.asked(), [(IOVA + shared, W, FAIL)]);
}

#[test]
fn an_indirect_table_is_missed_too() {
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 64);
    let features = VERSION_1 | PROTOCOL_FEATURES | ACCESS_PLATFORM | devisor::virtio::features::INDIRECT_DESC;
    behind.front.tell(id::SET_FEATURES, &bytes(&[features]), &[]);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    behind.map(BUFFERS, PAGE, RW);
    ring.put(BUFFERS, 20u8);
    let table = 0xa000;
    ring.add_indirect(table, &[readable(IOVA + BUFFERS, 1), writable(IOVA + BUFFERS + 8, 1)]);
    ring.descriptor(0, IOVA + table, 32, super::ring::INDIRECT, 0);
    ring.offer(0);
    behind.front.device.run();
    assert_eq!(behind.asked(), [(IOVA + table, R, MISS)]);
    behind.map(table, PAGE, R);
    behind.front.device.run();
    assert_eq!(ring.used(), [(0, 1)]);
    assert_eq!(ring.get::<u8>(BUFFERS + 8), 21);
}

#[test]
fn what_is_taken_back_is_answered_for_when_no_request_uses_it_any_more() {
    let (device, seen) = Device::keeping(1);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    behind.map(BUFFERS, PAGE, RW);
    behind.map(BUFFERS + PAGE, PAGE, RW);
    let head = request(&mut ring, BUFFERS, 1);
    behind.front.kick(0);
    // Nobody uses the other page.
    assert_eq!(behind.unmap(BUFFERS + PAGE, PAGE), Some(0));
    assert_eq!(behind.unmap(BUFFERS, PAGE), None);
    let waits = behind.front.device.connection_waits();
    assert!(!waits.is_empty() && !waits.contains(&Wait::Readable(behind.front.socket.as_raw_fd())));
    let chain = seen.kept.lock().unwrap().pop().unwrap();
    chain.writer().write(&[99]).unwrap();
    chain.complete(1);
    behind.front.pump().unwrap();
    assert_eq!(behind.answered(), Some(0));
    assert_eq!(ring.used(), [(head.into(), 1)]);
    assert_eq!(ring.get::<u8>(BUFFERS + 8), 99);
    // It is asked for again, and may be elsewhere.
    request(&mut ring, BUFFERS, 1);
    behind.front.device.run();
    assert_eq!(behind.asked(), [(IOVA + BUFFERS, R, MISS)]);
    let message = told(IOVA + BUFFERS, PAGE, USER + 0xf000, RW, UPDATE);
    assert_eq!(behind.try_tell(&message), Some(0));
    behind.front.device.run();
    let chain = seen.kept.lock().unwrap().pop().unwrap();
    chain.writer().write(&[77]).unwrap();
    chain.complete(1);
    assert_eq!(ring.get::<u8>(0xf008), 77);
    assert_eq!(ring.get::<u8>(BUFFERS + 8), 99);
}

#[test]
fn a_device_gives_back_what_it_keeps_for_later_when_all_is_taken_back() {
    let (device, seen) = Device::keeping(1);
    seen.gives_back.store(true, Ordering::SeqCst);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    behind.map(BUFFERS, PAGE, RW);
    let all = [1, 2, 3].map(|value| request(&mut ring, BUFFERS + 16 * u64::from(value), value));
    behind.front.kick(0);
    assert_eq!(seen.kept.lock().unwrap().len(), 3);
    // One of them has ended by then.
    seen.kept.lock().unwrap().remove(1).complete(1);
    // As Linux does in its lazy mode: of all addresses, the ring's included.
    assert_eq!(behind.take_back_all(), Some(0));
    assert_eq!(heads(&mut ring), all[1..2]);
    behind.front.device.run();
    assert_eq!(seen.kept.lock().unwrap().len(), 0);
    behind.answer_all();
    behind.front.device.run();
    let kept = std::mem::take(&mut *seen.kept.lock().unwrap());
    assert_eq!(
        kept.iter().map(|chain| chain.head()).collect::<Vec<_>>(),
        [all[0], all[2]]
    );
    kept.into_iter().for_each(|chain| chain.complete(1));
    assert_eq!(heads(&mut ring), [all[0], all[2]]);
    assert_eq!(behind.front.device.status() & 64, 0);
    assert_eq!(behind.front.base(0), 3);
}

#[test]
fn a_ring_that_is_taken_away_is_stopped_as_it_is_and_goes_on_when_it_is_back() {
    let (device, seen) = Device::new(1);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    behind.map(BUFFERS, PAGE, RW);
    for round in 0..50u8 {
        behind.map_ring(&ring);
        behind.front.device.run();
        request(&mut ring, BUFFERS, round);
        behind.front.kick(0);
        assert_eq!(ring.used().len(), 1, "round {round}");
        assert_eq!(ring.get::<u8>(BUFFERS + 8), round + 1);
        assert_eq!(behind.unmap(ring.layout.driver_area, PAGE), Some(0));
        // The device cannot look.
        request(&mut ring, BUFFERS, round);
        behind.front.kick(0);
        behind.front.device.run();
        assert_eq!(ring.used().len(), 0);
        assert_eq!(behind.asked(), [(IOVA + ring.layout.driver_area, R, MISS)]);
        behind.map(ring.layout.driver_area, PAGE, R);
        behind.front.device.run();
        assert_eq!(ring.used().len(), 1);
    }
    // It is stopped while it is away.
    assert_eq!(behind.take_back_all(), Some(0));
    assert_eq!(behind.front.base(0), 100);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 100);
    assert_eq!(seen.resets.load(Ordering::SeqCst), 0);
}

#[test]
fn an_access_that_is_not_allowed_costs_its_request_when_the_front_end_has_said_so_twice() {
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    behind.map(BUFFERS, PAGE, R);
    let head = request(&mut ring, BUFFERS, 1);
    behind.front.device.run();
    assert_eq!(behind.asked(), [(IOVA + BUFFERS, W, MISS)]);
    behind.map(BUFFERS, PAGE, R);
    behind.front.device.run();
    assert_eq!(ring.used(), [(head.into(), 0)]);
    assert_eq!(behind.asked(), [(IOVA + BUFFERS + 8, W, FAIL)]);
    // The device goes on.
    behind.map(BUFFERS + PAGE, PAGE, RW);
    request(&mut ring, BUFFERS + PAGE, 4);
    behind.front.device.run();
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn a_translation_that_leads_out_of_memory_costs_its_request() {
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    let nowhere = told(IOVA + BUFFERS, PAGE, USER + MEMORY, RW, UPDATE);
    assert_eq!(behind.try_tell(&nowhere), Some(0));
    let head = request(&mut ring, BUFFERS, 1);
    behind.front.device.run();
    assert_eq!(ring.used(), [(head.into(), 0)]);
}

#[test]
fn messages_that_cannot_be_are_refused_and_nothing_has_changed() {
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    behind.map(BUFFERS, PAGE, RW);
    for (why, message) in [
        ("it is empty", told(IOVA, 0, USER, RW, UPDATE)),
        ("it wraps", told(u64::MAX - 5, 7, USER, RW, UPDATE)),
        ("it wraps for the front end", told(IOVA, 7, u64::MAX - 5, RW, UPDATE)),
        ("it allows nothing", told(IOVA, PAGE, USER, 0, UPDATE)),
        ("it allows what there is not", told(IOVA, PAGE, USER, 4, UPDATE)),
        (
            "it leads elsewhere and allows nothing",
            told(IOVA + BUFFERS, PAGE, USER, 0, UPDATE),
        ),
        (
            "a ring is elsewhere, where it wraps",
            told(IOVA + 0x1_0000, 7, u64::MAX - 5, RW, UPDATE),
        ),
        ("it is a miss", told(IOVA, PAGE, USER, RW, MISS)),
        ("it is a failure", told(IOVA, PAGE, USER, RW, FAIL)),
        ("there is no such", told(IOVA, PAGE, USER, RW, 99)),
        ("it is half a message", bytes(&[IOVA, PAGE])),
    ] {
        assert_eq!(behind.try_tell(&message), Some(1), "{why}");
        request(&mut ring, BUFFERS, 1);
        behind.front.device.run();
        assert_eq!(ring.used().len(), 1, "{why}");
    }
}

#[test]
fn translations_beyond_what_is_kept_are_forgotten_and_those_of_rings_are_not() {
    let (device, seen) = Device::new(1);
    let mut behind = Behind::new(device, 6);
    let mut ring = behind.start(0);
    behind.answer_all();
    for round in 0..200u64 {
        let page = BUFFERS + round % 6 * PAGE;
        request(&mut ring, page, 3);
        behind.front.device.run();
        behind.answer_all();
        assert_eq!(ring.used().len(), 1, "round {round}");
    }
    assert_eq!(seen.requests.load(Ordering::SeqCst), 200);
    // Each page by itself, all over the address space.
    for page in 0..5000u64 {
        let message = told(page * 0x1_0000_0000, PAGE, USER, RW, UPDATE);
        assert_eq!(behind.try_tell(&message), Some(0));
    }
    request(&mut ring, BUFFERS, 3);
    behind.front.device.run();
    behind.answer_all();
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn what_is_told_again_in_pieces_takes_no_more_room() {
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 2);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    behind.map(BUFFERS, PAGE, RW);
    for page in 0..4 {
        behind.map(ring.layout.descriptor_area + page * PAGE, PAGE, RW);
        request(&mut ring, BUFFERS, 1);
        behind.front.device.run();
        assert_eq!(heads(&mut ring).len(), 1);
        assert_eq!(behind.asked(), []);
    }
}

#[test]
fn a_front_end_that_reads_no_questions_is_asked_when_there_is_room() {
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    let mut page = 0x100;
    let full = loop {
        // Each is asked for and taken back, as if its request was not there any more.
        let base = behind.front.base(0);
        behind.start_at(0, &ring, base);
        ring.set_avail_idx(base as u16);
        ring.descriptor(0, IOVA + page * PAGE, 1, 0, 0);
        ring.put(ring.layout.driver_area + 4 + 2 * u64::from(base as u16 % 64), 0u16);
        ring.set_avail_idx(base as u16 + 1);
        behind.front.device.run();
        let waits = behind.front.device.connection_waits();
        if waits.iter().any(|wait| matches!(wait, Wait::Writable(_))) {
            break page;
        }
        page += 1;
        assert!(page < 100_000, "it has room without end");
    };
    let asked = behind.asked();
    assert!(asked.iter().all(|(page, ..)| *page != IOVA + full * PAGE));
    behind.front.device.connection_waits();
    assert!(behind.asked().contains(&(IOVA + full * PAGE, R, MISS)));
    let waits = behind.front.device.connection_waits();
    assert!(!waits.iter().any(|wait| matches!(wait, Wait::Writable(_))));
}

#[test]
fn what_is_written_through_translations_is_logged_where_it_is() {
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 64);
    let log = memfd(PAGE);
    behind
        .front
        .ask(id::SET_LOG_BASE, &bytes(&[MEMORY / PAGE / 8, 0]), &[log.as_raw_fd()]);
    let features = VERSION_1 | PROTOCOL_FEATURES | ACCESS_PLATFORM | vhost_feature::LOG_ALL;
    behind.front.tell(id::SET_FEATURES, &bytes(&[features]), &[]);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    // Elsewhere than the driver calls it.
    let message = told(IOVA + BUFFERS, PAGE, USER + 0xc_0000, RW, UPDATE);
    assert_eq!(behind.try_tell(&message), Some(0));
    ring.request(&[readable(IOVA + BUFFERS, 1), writable(IOVA + BUFFERS + 8, 1)]);
    behind.front.device.run();
    assert_eq!(ring.used().len(), 1);
    let mut bits = [0; 32];
    std::os::unix::fs::FileExt::read_exact_at(&log, &mut bits, 0).unwrap();
    let marked: Vec<u64> = (0..256)
        .filter(|page| bits[page / 8] & 1 << (page % 8) != 0)
        .map(|page| page as u64)
        .collect();
    assert_eq!(marked, [ring.layout.device_area / PAGE, 0xc0]);
}

#[test]
fn memory_that_is_taken_away_under_a_translated_ring_stops_it() {
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    behind.map(BUFFERS, PAGE, RW);
    request(&mut ring, BUFFERS, 1);
    behind.front.kick(0);
    assert_eq!(ring.used().len(), 1);
    behind.front.tell(id::SET_MEM_TABLE, &halves(&[0, 0]), &[]);
    request(&mut ring, BUFFERS, 1);
    behind.front.kick(0);
    behind.front.device.run();
    assert_eq!(ring.used().len(), 0);
    assert_eq!(behind.front.device.status() & 64, 0, "it does not fail");
    behind.front.share_memory();
    behind.front.device.run();
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn memory_that_is_added_under_a_translated_ring_does_not_stop_it() {
    let (device, seen) = Device::keeping(1);
    let mut behind = Behind::new(device, 64);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    behind.map(BUFFERS, PAGE, RW);
    request(&mut ring, BUFFERS, 1);
    behind.front.kick(0);
    let more = memfd(MEMORY);
    let region = bytes(&[0, 1 << 30, MEMORY, USER + (1 << 30), 0]);
    assert!(behind.front.acknowledged(id::ADD_MEM_REG, &region, &[more.as_raw_fd()]));
    seen.kept.lock().unwrap().pop().unwrap().complete(1);
    assert_eq!(ring.used().len(), 1);
    // A buffer that is there.
    behind.map(1 << 30, PAGE, RW);
    ring.request(&[readable(IOVA + (1 << 30), 1), writable(IOVA + (1 << 30) + 8, 1)]);
    behind.front.kick(0);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 2);
}

#[test]
fn what_is_left_of_a_translation_that_is_taken_back_in_pieces_is_no_more_than_is_kept() {
    const MOST: u64 = 8;
    const START: u64 = 0x8_0000;
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, MOST as u32);
    let mut ring = behind.start(0);
    behind.map_ring(&ring);
    behind.map(START, 32 * PAGE, RW);
    for page in 0..16 {
        behind.unmap(START + 2 * page * PAGE, PAGE);
    }
    let mut missed = 0;
    for page in 0..16 {
        request(&mut ring, START + (2 * page + 1) * PAGE, 1);
        behind.front.kick(0);
        let asked = behind.asked();
        missed += asked.len() as u64;
        for (address, access, _) in asked {
            behind.map(address - IOVA, PAGE, access | W);
        }
        behind.front.device.run();
    }
    assert_eq!(heads(&mut ring).len(), 16, "nothing is lost");
    assert!(missed >= 16 - MOST, "{missed}");
}

#[test]
fn what_is_left_of_a_ring_that_does_not_run_is_no_more_than_is_kept_either() {
    const RING: u64 = 0x4_0000;
    let (device, _) = Device::new(1);
    let mut behind = Behind::new(device, 8);
    behind.front.tell(id::SET_VRING_NUM, &halves(&[0, 1024]), &[]);
    let areas = [RING, RING + 0x4000, RING + 0x8000, 0].map(|area| IOVA + area);
    let address = [halves(&[0, 0]), bytes(&areas)].concat();
    behind.front.tell(id::SET_VRING_ADDR, &address, &[]);
    behind.map(RING, 0x1_0000, RW);
    // Its last page of descriptors, in pieces of a byte.
    for piece in 0..32 {
        behind.unmap(RING + 3 * PAGE + 2 * piece, 1);
    }
    behind.front.set_kick(0);
    behind.front.enable(0, true);
    assert_eq!(
        behind.asked(),
        [(IOVA + RING, R, MISS)],
        "what was before them is forgotten"
    );
}

/// One that serves its queue on one thread, while translations come and go on another.
#[test]
fn translations_that_come_and_go_while_requests_run_lose_and_repeat_none() {
    let (device, seen): (_, Arc<Seen>) = Device::new(1);
    let mut behind = Behind::new(device, 16);
    let mut ring = behind.start(0);
    /// Ends the other thread, whatever becomes of this one.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let end = AtomicBool::new(false);
    let total = 2000u64;
    std::thread::scope(|scope| {
        let device = &behind.front.device;
        let ends = Ends(&end);
        let end = &end;
        scope.spawn(move || {
            while !end.load(Ordering::SeqCst) {
                while device.serve(QueueIndex(0)) {}
                std::thread::yield_now();
            }
        });
        let mut random = 99u64;
        let (mut made, mut done, mut taken_back) = (0, 0, 0);
        let begun = std::time::Instant::now();
        while done < total {
            assert!(begun.elapsed().as_secs() < 60, "it hangs at {done} of {made}");
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            if made < total && made - done < 16 {
                request(
                    &mut ring,
                    BUFFERS + (random >> 33) % 8 * PAGE + made % 16 * 32,
                    made as u8,
                );
                made += 1;
            }
            for (address, access, kind) in behind.asked() {
                assert_eq!(kind, MISS);
                behind.map(address - IOVA, PAGE, access);
            }
            assert_eq!(
                behind.front.device.status() & 64,
                0,
                "{:?}",
                behind.front.device.fault()
            );
            std::thread::yield_now();
            // Not more often than the other thread comes to its turn.
            if done > taken_back {
                taken_back = done;
                let mut answered = match random >> 58 & 3 {
                    0 => behind.take_back_all(),
                    _ => behind.unmap(BUFFERS + (random >> 20) % 8 * PAGE, PAGE),
                };
                while answered.is_none() {
                    behind.front.pump().unwrap();
                    answered = behind.answered();
                }
                assert_eq!(answered, Some(0));
            }
            let used = ring.used();
            assert!(used.iter().all(|(_, written)| *written == 1));
            done += used.len() as u64;
        }
        drop(ends);
    });
    assert_eq!(seen.requests.load(Ordering::SeqCst), total as usize);
    assert_eq!(behind.front.device.status() & 64, 0);
}
