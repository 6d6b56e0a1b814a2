//! The memory device (virtio 1.2, section 5.15), on both transports.

#[path = "support/both.rs"]
mod both;
#[cfg(target_os = "linux")]
#[path = "support/residence.rs"]
mod residence;
#[path = "support/rest.rs"]
mod rest;
#[path = "support/ring.rs"]
mod ring;

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use both::{ANSWER, BOTH, COMMON, Guest, REQUEST, Transport};
use devisor::virtio::{
    DeviceId, DeviceState, DeviceStateError, VirtioDevice,
    mem::{MemoryDevice, MemoryDeviceError, MemoryDeviceOptions, MemoryDeviceState, UnpluggedAccess},
    reclaim::{ReclaimCall, Recorded},
};
use proptest::prelude::*;
use ring::{readable, writable};

// Not the device's own constants: a wrong one would go unseen.
const ACPI_PXM: u64 = 1 << 0;
const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

const BLOCK: u64 = 0x10_0000;
const BASE: u64 = 0x1_0000_0000;
/// Blocks of the region; and of those usable while half of them are requested.
const BLOCKS: u64 = 32;
const REQUESTED: u64 = 16;
const USABLE: u64 = 20;

fn options() -> MemoryDeviceOptions {
    MemoryDeviceOptions {
        block_size: BLOCK,
        requested_size: REQUESTED * BLOCK,
        usable_extra: (USABLE - REQUESTED) * BLOCK,
        ..MemoryDeviceOptions::new(BASE..BASE + BLOCKS * BLOCK)
    }
}

fn request(kind: u16, addr: u64, blocks: u16) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    // Padding, which is ignored.
    bytes[2..8].fill(0x5a);
    bytes[8..16].copy_from_slice(&addr.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes[18..].fill(0xa5);
    bytes
}

fn block(number: u64) -> u64 {
    BASE + number * BLOCK
}

struct World {
    guest: Guest<MemoryDevice>,
    pages: Arc<Recorded>,
}

impl World {
    fn new(kind: Transport) -> Self {
        Self::with(kind, options())
    }

    fn with(kind: Transport, options: MemoryDeviceOptions) -> Self {
        let pages = Arc::new(Recorded::new([options.region.clone()]));
        let device = MemoryDevice::new(Arc::clone(&pages), options).expect("valid options");
        let features = COMMON | device.features();
        let guest = Guest::start(kind, device, &ring::memory(), features, &[0]);
        Self { guest, pages }
    }

    /// The response's type and state.
    fn ask(&mut self, kind: u16, addr: u64, blocks: u16) -> (u16, u16) {
        self.ask_bytes(&request(kind, addr, blocks))
    }

    fn ask_bytes(&mut self, request: &[u8]) -> (u16, u16) {
        let (used, answer) = self.guest.ask(0, request, 10);
        assert_eq!(used, 10);
        assert_eq!(answer[2..8], [0; 6], "padding");
        let le16 = |at: usize| u16::from_le_bytes([answer[at], answer[at + 1]]);
        (le16(0), le16(8))
    }

    /// The response's type alone, of a request that has no other answer.
    fn run(&mut self, kind: u16, first: u64, blocks: u16) -> u16 {
        let (response, state) = self.ask(kind, block(first), blocks);
        assert_eq!(state, 0);
        response
    }

    /// Asks for the state of each usable block.
    fn plugged(&mut self) -> BTreeSet<u64> {
        let usable = self.guest.config(32, 8) / BLOCK;
        let is_plugged = |number: &u64| self.ask(STATE, block(*number), 1) == (ACK, PLUGGED);
        (0..usable).filter(is_plugged).collect()
    }

    fn sizes(&self) -> [u64; 3] {
        [32, 40, 48].map(|offset| self.guest.config(offset, 8) / BLOCK)
    }
}

fn discard(blocks: Range<u64>) -> ReclaimCall {
    ReclaimCall::Discard(block(blocks.start)..block(blocks.end))
}

fn populate(blocks: Range<u64>) -> ReclaimCall {
    ReclaimCall::Populate(block(blocks.start)..block(blocks.end))
}

// What it is (sections 5.15.1 to 5.15.4).

#[test]
fn the_configuration_space_says_what_there_is() {
    for kind in BOTH {
        let options = MemoryDeviceOptions {
            node_id: Some(0x1234),
            ..options()
        };
        let w = World::with(kind, options);
        let config: Vec<_> = (0..8).map(|field| w.guest.config(8 * field, 8)).collect();
        let bytes = |blocks| blocks * BLOCK;
        assert_eq!(
            config,
            [
                BLOCK,
                0x1234,
                BASE,
                bytes(BLOCKS),
                bytes(USABLE),
                0,
                bytes(REQUESTED),
                0
            ]
        );
        assert_eq!(w.guest.config(8, 2), 0x1234);
        // All of it is aligned to blocks, and none of it can be written.
        for field in 0..8 {
            w.guest.set_config(8 * field, 8, u64::MAX);
            assert_eq!(w.guest.config(8 * field, 8), config[field as usize]);
        }
        assert_eq!(w.guest.queues(), 1);
    }
}

#[test]
fn features_follow_from_the_options() {
    let features = |node_id, unplugged_access| {
        let options = MemoryDeviceOptions {
            node_id,
            unplugged_access,
            ..options()
        };
        MemoryDevice::new((), options).unwrap().features()
    };
    assert_eq!(features(None, UnpluggedAccess::Allowed), 0);
    assert_eq!(features(Some(0), UnpluggedAccess::Allowed), ACPI_PXM);
    assert_eq!(features(None, UnpluggedAccess::Discouraged), UNPLUGGED_INACCESSIBLE);
    assert_eq!(
        features(Some(7), UnpluggedAccess::Refused),
        ACPI_PXM | UNPLUGGED_INACCESSIBLE
    );
    assert_eq!(MemoryDevice::new((), options()).unwrap().device_id(), DeviceId(24));
}

#[test]
fn a_driver_that_may_read_what_is_unplugged_gets_the_device_unless_that_is_refused() {
    for kind in BOTH {
        for (access, takes) in [
            (UnpluggedAccess::Allowed, true),
            (UnpluggedAccess::Discouraged, true),
            (UnpluggedAccess::Refused, false),
        ] {
            let options = MemoryDeviceOptions {
                unplugged_access: access,
                ..options()
            };
            let guest = Guest::new(kind, MemoryDevice::new((), options).unwrap(), &ring::memory());
            assert_eq!(guest.negotiate(COMMON), takes, "{access:?}");
            guest.set_status(0);
            let offered = guest.offered();
            assert!(guest.negotiate(COMMON | offered & 3));
        }
    }
}

// PLUG, UNPLUG (sections 5.15.6.3 and 5.15.6.4).

#[test]
fn blocks_are_plugged_and_unplugged_and_the_host_hears_of_them() {
    for kind in BOTH {
        let mut w = World::new(kind);
        assert_eq!(w.run(PLUG, 2, 3), ACK);
        assert_eq!(w.pages.take_calls(), [populate(2..5)]);
        assert_eq!(w.sizes(), [USABLE, 3, REQUESTED]);
        assert_eq!(w.run(UNPLUG, 3, 1), ACK);
        assert_eq!(w.pages.take_calls(), [discard(3..4)]);
        assert_eq!(w.sizes(), [USABLE, 2, REQUESTED]);
        assert_eq!(w.plugged(), BTreeSet::from([2, 4]));
        assert_eq!(w.guest.with(|device| device.plugged_size()), 2 * BLOCK);
        assert_eq!(w.guest.counters(0).malformed, 0);
    }
}

#[test]
fn memory_that_comes_only_half_way_goes_back() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.pages.fail(true);
        assert_eq!(w.run(PLUG, 2, 3), BUSY);
        assert_eq!(w.pages.take_calls(), [populate(2..5), discard(2..5)]);
        w.pages.fail(false);
        assert_eq!(w.sizes(), [USABLE, 0, REQUESTED]);
        assert_eq!(w.plugged(), BTreeSet::new());
        assert_eq!(w.run(PLUG, 2, 3), ACK);
    }
}

#[test]
fn what_changes_by_a_request_moves_the_generation_and_is_not_told() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.guest.was_told();
        for (request, changes) in [
            (PLUG, true),
            (STATE, false),
            (PLUG, false),
            (UNPLUG, true),
            (UNPLUG_ALL, true),
        ] {
            let before = w.guest.generation();
            assert_eq!(w.guest.generation(), before);
            w.ask(request, block(2), 3);
            assert_eq!(w.guest.generation() != before, changes, "{request}");
            assert!(!w.guest.was_told());
        }
    }
}

#[test]
fn the_same_range_is_plugged_and_unplugged_again_and_again() {
    for kind in BOTH {
        let mut w = World::new(kind);
        for _ in 0..3 {
            assert_eq!(w.run(PLUG, 0, 16), ACK);
            assert_eq!(w.run(UNPLUG, 0, 16), ACK);
        }
        assert_eq!(w.sizes(), [USABLE, 0, REQUESTED]);
    }
}

#[test]
fn what_is_plugged_already_is_an_error_and_so_is_what_is_not() {
    for kind in BOTH {
        let mut w = World::new(kind);
        assert_eq!(w.run(PLUG, 4, 4), ACK);
        w.pages.take_calls();
        // The same, its beginning, its end, around it.
        for (first, blocks) in [(4, 4), (2, 3), (7, 2), (3, 6), (5, 1)] {
            assert_eq!(w.run(PLUG, first, blocks), ERROR, "{first}, {blocks}");
        }
        for (first, blocks) in [(0, 4), (2, 3), (7, 2), (3, 6), (8, 1)] {
            assert_eq!(w.run(UNPLUG, first, blocks), ERROR, "{first}, {blocks}");
        }
        assert!(w.pages.take_calls().is_empty());
        assert_eq!(w.plugged(), BTreeSet::from([4, 5, 6, 7]));
        // An error before it is too much.
        assert_eq!(w.run(PLUG, 4, 14), ERROR);
    }
}

#[test]
fn requests_that_are_no_usable_blocks_are_errors() {
    for kind in BOTH {
        let mut w = World::new(kind);
        assert_eq!(w.run(PLUG, 0, 4), ACK);
        w.pages.take_calls();
        for request in [PLUG, UNPLUG, STATE] {
            for (addr, blocks) in [
                // None; not aligned.
                (block(0), 0),
                (block(8), 0),
                (block(8) + 1, 1),
                (block(8) + BLOCK / 2, 1),
                (block(1) - 4096, 1),
                // Before the region, at its beginning, at zero.
                (block(0) - BLOCK, 1),
                (block(0) - BLOCK, 2),
                (0, 1),
                // At the end of what is usable, across it, behind it; and of the region.
                (block(USABLE), 1),
                (block(USABLE - 1), 2),
                (block(BLOCKS - 1), 1),
                (block(BLOCKS - 1), 2),
                (block(BLOCKS), 1),
                (block(0), u16::MAX),
                (block(19), u16::MAX),
                // Around the end of the address space.
                (u64::MAX, 1),
                (u64::MAX - BLOCK + 1, 1),
                (u64::MAX - BLOCK + 1, u16::MAX),
                (1 << 63, u16::MAX),
            ] {
                assert_eq!(
                    w.ask(request, addr, blocks),
                    (ERROR, 0),
                    "{request}: {addr:#x}, {blocks}"
                );
            }
        }
        assert!(w.pages.take_calls().is_empty());
        assert_eq!(w.plugged(), BTreeSet::from([0, 1, 2, 3]));
        // The last block that is usable.
        assert_eq!(w.run(PLUG, USABLE - 1, 1), ACK);
    }
}

#[test]
fn no_more_is_plugged_than_is_requested() {
    for kind in BOTH {
        let mut w = World::new(kind);
        assert_eq!(w.run(PLUG, 0, 17), NACK);
        assert_eq!(w.run(PLUG, 0, 15), ACK);
        assert_eq!(w.run(PLUG, 15, 2), NACK);
        assert_eq!(w.run(PLUG, 15, 1), ACK);
        assert_eq!(w.run(PLUG, 16, 1), NACK);
        assert_eq!(w.sizes(), [USABLE, REQUESTED, REQUESTED]);
        // Less is requested: what is there stays, and is not plugged again.
        w.guest
            .change_config(|device| device.set_requested_size(BLOCK))
            .unwrap();
        assert_eq!(w.run(UNPLUG, 0, 1), ACK);
        assert_eq!(w.run(PLUG, 0, 1), NACK);
        assert_eq!(w.sizes(), [USABLE, 15, 1]);
    }
}

#[test]
fn while_the_embedder_is_busy_no_block_changes() {
    for kind in BOTH {
        let mut w = World::new(kind);
        assert_eq!(w.run(PLUG, 0, 2), ACK);
        w.pages.take_calls();
        w.guest.with(|device| device.set_busy(true));
        assert_eq!(w.run(PLUG, 2, 1), BUSY);
        assert_eq!(w.run(UNPLUG, 0, 1), BUSY);
        assert_eq!(w.run(UNPLUG_ALL, 0, 0), BUSY);
        // What is wrong is wrong, and a question is answered.
        assert_eq!(w.run(PLUG, 0, 1), ERROR);
        assert_eq!(w.run(UNPLUG, 2, 1), ERROR);
        assert_eq!(w.run(PLUG, 2, 15), NACK);
        assert_eq!(w.plugged(), BTreeSet::from([0, 1]));
        assert!(w.pages.take_calls().is_empty());
        w.guest.with(|device| device.set_busy(false));
        assert_eq!(w.run(PLUG, 2, 1), ACK);
    }
}

#[test]
fn a_host_that_fails_is_busy_to_the_driver_and_counted() {
    for kind in BOTH {
        let mut w = World::new(kind);
        assert_eq!(w.run(PLUG, 0, 2), ACK);
        w.pages.fail(true);
        assert_eq!(w.run(PLUG, 2, 1), BUSY);
        assert_eq!(w.run(UNPLUG, 0, 1), BUSY);
        assert_eq!(w.run(UNPLUG_ALL, 0, 0), BUSY);
        assert_eq!(w.guest.with(|device| device.host_failures().count), 3);
        assert_eq!(w.sizes(), [USABLE, 2, REQUESTED]);
        w.pages.fail(false);
        assert_eq!(w.run(UNPLUG, 0, 2), ACK);
    }
}

// UNPLUG ALL (section 5.15.6.5).

#[test]
fn all_blocks_are_unplugged_at_once() {
    for kind in BOTH {
        let mut w = World::new(kind);
        assert_eq!(w.run(UNPLUG_ALL, 0, 0), ACK);
        for (first, blocks) in [(1, 2), (6, 1), (19, 1)] {
            assert_eq!(w.run(PLUG, first, blocks), ACK);
        }
        w.pages.take_calls();
        // Whatever is where other requests have a range.
        assert_eq!(w.ask(UNPLUG_ALL, 0x1234_5678, 999), (ACK, 0));
        assert_eq!(w.pages.take_calls(), [discard(1..3), discard(6..7), discard(19..20)]);
        assert_eq!(w.sizes(), [USABLE, 0, REQUESTED]);
        assert_eq!(w.run(PLUG, 0, 16), ACK);
    }
}

#[test]
fn the_usable_region_grows_with_the_request_and_shrinks_when_all_is_unplugged() {
    for kind in BOTH {
        let mut w = World::new(kind);
        let generation = w.guest.generation();
        w.guest.was_told();
        w.guest
            .change_config(|device| device.set_requested_size(30 * BLOCK))
            .unwrap();
        assert!(w.guest.was_told());
        assert_ne!(w.guest.generation(), generation);
        assert_eq!(w.sizes(), [BLOCKS, 0, 30]);
        assert_eq!(w.run(PLUG, 31, 1), ACK);
        w.guest
            .change_config(|device| device.set_requested_size(2 * BLOCK))
            .unwrap();
        assert_eq!(w.sizes(), [BLOCKS, 1, 2], "it does not shrink now");
        w.guest.was_told();
        assert_eq!(w.run(UNPLUG_ALL, 0, 0), ACK);
        assert_eq!(w.sizes(), [6, 0, 2]);
        assert!(!w.guest.was_told(), "the driver has asked for it");
        assert_eq!(w.run(PLUG, 6, 1), ERROR);
        w.guest.change_config(|device| device.set_requested_size(0)).unwrap();
        assert_eq!(w.run(UNPLUG_ALL, 0, 0), ACK);
        assert_eq!(w.sizes(), [0, 0, 0]);
        assert_eq!(w.run(STATE, 0, 1), ERROR);
    }
}

// STATE (section 5.15.6.6).

#[test]
fn the_state_of_blocks_is_plugged_unplugged_or_mixed() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.run(PLUG, 4, 4);
        w.run(UNPLUG, 6, 1);
        for (first, blocks, state) in [
            (0, 4, UNPLUGGED),
            (0, 5, MIXED),
            (4, 2, PLUGGED),
            (4, 3, MIXED),
            (6, 1, UNPLUGGED),
            (7, 1, PLUGGED),
            (7, 2, MIXED),
            (8, 12, UNPLUGGED),
            (0, 20, MIXED),
        ] {
            assert_eq!(w.ask(STATE, block(first), blocks), (ACK, state), "{first}, {blocks}");
        }
        // Many questions, and none changes anything.
        for _ in 0..10 {
            assert_eq!(w.plugged(), BTreeSet::from([4, 5, 7]));
        }
        assert_eq!(w.pages.take_calls().len(), 2);
    }
}

// Requests of the wrong shape.

#[test]
fn types_that_do_not_exist_are_errors() {
    for kind in BOTH {
        let mut w = World::new(kind);
        for request in [4, 5, 0xff, 0x100, 0x8000, u16::MAX] {
            assert_eq!(w.ask(request, block(0), 1), (ERROR, 0), "{request:#x}");
        }
        assert_eq!(w.sizes(), [USABLE, 0, REQUESTED]);
    }
}

#[test]
fn a_request_that_is_too_short_is_an_error_and_what_is_too_long_is_ignored() {
    for kind in BOTH {
        let mut w = World::new(kind);
        let plug = request(PLUG, block(0), 1);
        for len in [1, 2, 8, 16, 23] {
            assert_eq!(w.ask_bytes(&plug[..len]), (ERROR, 0), "{len}");
            assert_eq!(w.ask_bytes(&request(UNPLUG_ALL, 0, 0)[..len]), (ERROR, 0));
        }
        assert_eq!(w.guest.run(0, &[writable(ANSWER, 10)]), 10);
        assert_eq!(w.guest.get(ANSWER, 2), ERROR.to_le_bytes());
        assert!(w.pages.take_calls().is_empty());
        let long = [&plug[..], &[0xff; 100]].concat();
        assert_eq!(w.ask_bytes(&long), (ACK, 0));

        // More room than a response takes.
        let (used, answer) = w.guest.ask(0, &request(UNPLUG, block(0), 1), 64);
        assert_eq!(used, 10);
        assert_eq!(answer[10..], [0xee; 54]);
    }
}

#[test]
fn a_request_without_room_for_its_response_does_nothing_and_comes_back_empty() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.guest.put(REQUEST, &request(PLUG, block(0), 1));
        let wrong = [
            vec![readable(REQUEST, 24)],
            vec![readable(REQUEST, 24), readable(ANSWER, 10)],
            vec![readable(REQUEST, 24), writable(ANSWER, 9)],
            vec![readable(REQUEST, 24), writable(ANSWER, 0)],
            // Outside of memory, across its end, around the end of the address space.
            vec![readable(REQUEST, 24), writable(0x4000_0000, 10)],
            vec![readable(REQUEST, 24), writable(0xf_fffa, 10)],
            vec![readable(REQUEST, 24), writable(u64::MAX - 4, 10)],
            vec![readable(0x4000_0000, 24), writable(ANSWER, 10)],
        ];
        for (number, buffers) in (1..).zip(wrong) {
            assert_eq!(w.guest.run(0, &buffers), 0, "{buffers:?}");
            assert_eq!(w.guest.counters(0).malformed, number, "{buffers:?}");
        }
        assert!(w.pages.take_calls().is_empty());
        assert_eq!(w.run(PLUG, 0, 1), ACK);
    }
}

#[test]
fn requests_and_responses_may_be_cut_anywhere() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.guest.put(REQUEST, &request(PLUG, block(3), 2));
        let buffers = [
            readable(REQUEST, 9),
            readable(REQUEST + 9, 0),
            readable(REQUEST + 9, 15),
            writable(ANSWER, 1),
            writable(ANSWER + 1, 9),
        ];
        assert_eq!(w.guest.run(0, &buffers), 10);
        assert_eq!(w.plugged(), BTreeSet::from([3, 4]));
    }
}

#[test]
fn many_requests_in_the_ring_are_answered_in_their_order() {
    for kind in BOTH {
        let mut w = World::new(kind);
        let requests = [
            request(PLUG, block(0), 2),
            request(STATE, block(0), 2),
            request(UNPLUG, block(0), 1),
            request(STATE, block(0), 2),
            request(UNPLUG, block(0), 1),
            request(UNPLUG_ALL, 0, 0),
            request(STATE, block(0), 2),
        ];
        for (number, request) in (0..).zip(&requests) {
            w.guest.put(REQUEST + 32 * number, request);
            let buffers = [readable(REQUEST + 32 * number, 24), writable(ANSWER + 16 * number, 10)];
            w.guest.ring(0).request(&buffers);
        }
        w.guest.kick(0);
        assert_eq!(w.guest.used(0), vec![10; requests.len()]);
        let le16 = |at| u16::from_le_bytes(w.guest.get(at, 2).try_into().unwrap());
        let answers: Vec<_> = (0..7)
            .map(|number| (le16(ANSWER + 16 * number), le16(ANSWER + 16 * number + 8)))
            .collect();
        assert_eq!(
            answers,
            [
                (ACK, 0),
                (ACK, PLUGGED),
                (ACK, 0),
                (ACK, MIXED),
                (ERROR, 0),
                (ACK, 0),
                (ACK, UNPLUGGED)
            ]
        );
    }
}

// Resets and state.

#[test]
fn a_reset_by_the_driver_changes_no_block() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.run(PLUG, 3, 2);
        w.pages.take_calls();
        w.guest.reset();
        assert_eq!(w.sizes(), [USABLE, 2, REQUESTED]);
        w.guest.drive(COMMON | UNPLUGGED_INACCESSIBLE, &[0]);
        assert_eq!(w.plugged(), BTreeSet::from([3, 4]));
        assert!(w.pages.take_calls().is_empty());
    }
}

#[test]
fn a_reset_of_the_machine_unplugs_all() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.guest
            .change_config(|device| device.set_requested_size(30 * BLOCK))
            .unwrap();
        w.run(PLUG, 3, 2);
        w.run(PLUG, 31, 1);
        w.guest
            .change_config(|device| device.set_requested_size(8 * BLOCK))
            .unwrap();
        w.pages.take_calls();
        w.guest.transport().reset();
        w.pages.fail(true);
        assert!(w.guest.with(|device| device.system_reset()).is_err());
        assert_eq!(w.sizes(), [BLOCKS, 3, 8]);
        w.pages.take_calls();
        w.pages.fail(false);
        w.guest.with(|device| device.system_reset()).unwrap();
        assert_eq!(w.pages.take_calls(), [discard(3..5), discard(31..32)]);
        assert_eq!(w.sizes(), [12, 0, 8]);
    }
}

#[test]
fn blocks_are_as_they_were_in_another_device_that_has_the_state() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.guest
            .change_config(|device| device.set_requested_size(30 * BLOCK))
            .unwrap();
        w.run(PLUG, 3, 2);
        w.run(PLUG, 31, 1);
        w.guest
            .change_config(|device| device.set_requested_size(8 * BLOCK))
            .unwrap();
        let pages = Arc::new(Recorded::new([options().region]));
        let device = MemoryDevice::new(Arc::clone(&pages), options()).unwrap();
        let guest = w.guest.moved(device);
        let mut w = World { guest, pages };
        assert_eq!(
            w.pages.take_calls(),
            [populate(3..5), populate(31..32)],
            "and nothing is discarded"
        );
        assert_eq!(w.sizes(), [BLOCKS, 3, 8]);
        assert_eq!(w.plugged(), BTreeSet::from([3, 4, 31]));
        assert_eq!(w.run(PLUG, 6, 6), NACK);
        assert_eq!(w.run(UNPLUG, 31, 1), ACK);
    }
}

fn state(device: &MemoryDevice) -> MemoryDeviceState {
    match device.save() {
        DeviceState::Memory(state) => state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_state_that_contradicts_itself_or_the_device_is_refused() {
    let pages = Arc::new(Recorded::new([options().region]));
    let mut device = MemoryDevice::new(Arc::clone(&pages), options()).unwrap();
    let good = state(&device);
    assert_eq!(good.plugged, [0]);
    let with_options = |change: fn(&mut MemoryDeviceOptions)| {
        let mut state = good.clone();
        change(&mut state.options);
        state
    };
    let plugged = |plugged: Vec<u64>| MemoryDeviceState {
        plugged,
        ..good.clone()
    };
    let usable = |blocks: u64, more: u64| MemoryDeviceState {
        usable_size: blocks * BLOCK + more,
        ..good.clone()
    };
    for wrong in [
        with_options(|options| options.region.end += BLOCK),
        with_options(|options| options.region = 0..BLOCKS * BLOCK),
        with_options(|options| options.block_size *= 2),
        with_options(|options| options.block_size = 0),
        with_options(|options| options.node_id = Some(0)),
        with_options(|options| options.unplugged_access = UnpluggedAccess::Allowed),
        with_options(|options| options.queue_size = 8),
        with_options(|options| options.requested_size += 1),
        with_options(|options| options.requested_size = u64::MAX),
        with_options(|options| options.requested_size = (BLOCKS + 1) * BLOCK),
        // A request that is not usable; a usable part that is no blocks or beyond the region.
        usable(REQUESTED - 1, 0),
        usable(USABLE, 1),
        usable(BLOCKS + 1, 0),
        // A bitmap of another size, with a block that there is not, and with one that is not usable.
        plugged(vec![]),
        plugged(vec![0, 0]),
        plugged(vec![1 << BLOCKS]),
        plugged(vec![1 << USABLE]),
    ] {
        assert!(
            device.restore(&DeviceState::Memory(wrong.clone())).is_err(),
            "{wrong:?}"
        );
        assert_eq!(state(&device), good);
    }
    assert!(pages.take_calls().is_empty());
    assert_eq!(
        device.restore(&DeviceState::None),
        Err(DeviceStateError::Kind {
            saved: "none",
            needed: "a memory device's"
        })
    );
    // More than is requested may be plugged; and what the embedder leaves free is its choice.
    let mut other = plugged(vec![(1 << USABLE) - 1]);
    other.options.usable_extra = 0;
    device.restore(&DeviceState::Memory(other.clone())).unwrap();
    assert_eq!(device.plugged_size(), USABLE * BLOCK);
    // A host that has not got the memory.
    let full = state(&device);
    pages.fail(true);
    let error = device.restore(&DeviceState::Memory(plugged(vec![3]))).unwrap_err();
    assert!(error.to_string().contains("a host without memory for it"), "{error}");
    assert_eq!(state(&device), full);
}

// Options.

#[test]
fn options_out_of_range_are_refused_with_what_would_do() {
    let refused = |change: fn(&mut MemoryDeviceOptions)| {
        let mut options = options();
        change(&mut options);
        let pages = Recorded::new([]).with_granularity(0x1_0000);
        MemoryDevice::new(pages, options).map(|_| ()).unwrap_err()
    };
    let block_sizes: [fn(&mut MemoryDeviceOptions); 4] = [
        |options| options.block_size = 0,
        |options| options.block_size = 3 * 4096,
        |options| options.block_size = 2048,
        // Less than a page of the host's.
        |options| options.block_size = 0x8000,
    ];
    for change in block_sizes {
        assert!(matches!(refused(change), MemoryDeviceError::BlockSize { .. }));
    }
    let regions: [fn(&mut MemoryDeviceOptions); 4] = [
        |options| options.region.start += 4096,
        |options| options.region.end -= 4096,
        |options| std::mem::swap(&mut options.region.start, &mut options.region.end),
        |options| options.region = 0..(MemoryDeviceOptions::MAX_BLOCKS + 1) * BLOCK,
    ];
    for change in regions {
        assert!(matches!(refused(change), MemoryDeviceError::Region { .. }));
    }
    for bytes in [1, (BLOCKS + 1) * BLOCK] {
        let options = MemoryDeviceOptions {
            requested_size: bytes,
            ..options()
        };
        let error = MemoryDevice::new((), options).map(|_| ()).unwrap_err();
        assert!(matches!(error, MemoryDeviceError::Requested { .. }));
    }
    assert_eq!(
        refused(|options| options.queue_size = 3),
        MemoryDeviceError::QueueSize(3)
    );

    let mut device = MemoryDevice::new((), options()).unwrap();
    let error = device.set_requested_size(33 * BLOCK).unwrap_err();
    assert_eq!(
        error.to_string(),
        "34603008 bytes are requested: whole blocks of 1048576, 33554432 at most, are accepted"
    );
    assert_eq!(device.requested_size(), REQUESTED * BLOCK);
}

#[test]
fn a_region_may_be_empty_or_end_with_the_address_space() {
    for kind in BOTH {
        let empty = MemoryDeviceOptions {
            block_size: BLOCK,
            ..MemoryDeviceOptions::new(BASE..BASE)
        };
        let mut w = World::with(kind, empty);
        assert_eq!(w.run(PLUG, 0, 1), ERROR);
        assert_eq!(w.run(UNPLUG_ALL, 0, 0), ACK);

        let end = u64::MAX - BLOCK + 1;
        let last = MemoryDeviceOptions {
            block_size: BLOCK,
            requested_size: 2 * BLOCK,
            usable_extra: u64::MAX,
            ..MemoryDeviceOptions::new(end - 2 * BLOCK..end)
        };
        let mut w = World::with(kind, last);
        assert_eq!(w.ask(PLUG, end - BLOCK, 1), (ACK, 0));
        assert_eq!(w.ask(PLUG, end, 1), (ERROR, 0));
        assert_eq!(w.ask(PLUG, end - BLOCK, 2), (ERROR, 0));
    }
}

// What the host really has of it.

#[cfg(target_os = "linux")]
#[test]
fn what_is_unplugged_is_no_longer_in_the_hosts_memory() {
    use devisor::virtio::reclaim::Madvise;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    for kind in BOTH {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 1 << 20),
            (GuestAddress(BASE), (BLOCKS * BLOCK) as usize),
        ])
        .unwrap();
        let memory = Arc::new(memory);
        let device = MemoryDevice::new(Madvise::new(Arc::clone(&memory)), options()).unwrap();
        let guest = Guest::start(kind, device, &memory, COMMON, &[0]);
        let mut w = World {
            guest,
            pages: Arc::new(Recorded::new([])),
        };
        let resident = || residence::resident(&memory, BASE, BLOCKS * BLOCK) / BLOCK;
        assert_eq!(w.run(PLUG, 0, 16), ACK);
        for number in 0..16 {
            memory
                .write_slice(&[0x5a; BLOCK as usize], GuestAddress(block(number)))
                .unwrap();
        }
        assert_eq!(resident(), 16);
        assert_eq!(w.run(UNPLUG, 4, 8), ACK);
        assert_eq!(resident(), 8);
        let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!((byte(block(4) - 1), byte(block(12))), (0x5a, 0x5a));
        assert_eq!(w.run(UNPLUG_ALL, 0, 0), ACK);
        assert_eq!(resident(), 0);
        assert_eq!(w.run(PLUG, 0, 1), ACK);
        assert_eq!(byte(block(0)), 0);
        assert_eq!(w.guest.with(|device| device.host_failures().count), 0);
    }
}

// Anything a driver may ask.

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn it_is_a_set_of_blocks(
        requests in prop::collection::vec((0..4_u16, 0..24_u64, 0..8_u16, 0..32_u64), 1..40),
    ) {
        let mut w = World::new(Transport::Mmio);
        let mut set = BTreeSet::new();
        let mut requested = REQUESTED;
        for (request, first, blocks, more) in requests {
            let range = first..first + u64::from(blocks);
            let valid = blocks != 0 && range.end <= w.sizes()[0];
            let there = range.clone().filter(|number| set.contains(number)).count();
            let (response, state) = w.ask(request, block(first), blocks);
            let expected = match request {
                UNPLUG_ALL => {
                    set.clear();
                    requested = more;
                    ACK
                }
                _ if !valid => ERROR,
                PLUG if there != 0 => ERROR,
                PLUG if set.len() as u64 + u64::from(blocks) > requested => NACK,
                PLUG => {
                    set.extend(range);
                    ACK
                }
                UNPLUG if there != usize::from(blocks) => ERROR,
                UNPLUG => {
                    range.for_each(|number| _ = set.remove(&number));
                    ACK
                }
                _ => {
                    let all = there == usize::from(blocks);
                    prop_assert_eq!(state, if all { PLUGGED } else if there == 0 { UNPLUGGED } else { MIXED });
                    ACK
                }
            };
            prop_assert_eq!(response, expected);
            w.guest.change_config(|device| device.set_requested_size(requested * BLOCK)).unwrap();
            prop_assert_eq!(w.sizes()[1..].to_vec(), vec![set.len() as u64, requested]);
        }
        prop_assert_eq!(w.plugged(), set);
    }
}
