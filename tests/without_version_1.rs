//! A driver without VERSION_1 (section 6.2) is refused, unless the embedder has the transport take it for one that has it.

#[path = "support/both.rs"]
mod both;
#[path = "support/rest.rs"]
mod rest;
#[path = "support/ring.rs"]
mod ring;

use std::sync::Arc;

use devisor::virtio::{
    DeviceId, DeviceState, DeviceStateError, QueueHandler, QueueIndex, VirtioDevice,
    entropy::Entropy,
    features::{RING_RESET, VERSION_1},
    transport::RestoreError,
};
use vm_memory::GuestMemoryMmap;

use both::{ANSWER, BOTH, Guest, Transport, accepted};
use ring::writable;

/// A source of entropy that notes what it is told was accepted.
struct Told {
    device: Entropy,
    told: u64,
}

impl Told {
    fn new() -> Self {
        Self {
            device: Entropy::seeded(7),
            told: 0,
        }
    }
}

impl VirtioDevice for Told {
    fn device_id(&self) -> DeviceId {
        self.device.device_id()
    }

    fn queue_sizes(&self) -> &[u16] {
        self.device.queue_sizes()
    }

    fn negotiated(&mut self, features: u64) {
        self.told = features;
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        self.device.start(queue)
    }

    fn save(&self) -> DeviceState {
        self.device.save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        self.device.restore(state)
    }
}

fn lenient(kind: Transport, memory: &Arc<GuestMemoryMmap>) -> Guest<Told> {
    let mut options = kind.options();
    options.without_version_1 = true;
    Guest::with_options(kind, Told::new(), memory, options)
}

/// What the device was told that its driver has accepted.
fn told(guest: &Guest<Told>) -> u64 {
    guest.with(|device| device.told)
}

#[test]
fn by_default_it_is_refused_whatever_else_it_accepts() {
    for kind in BOTH {
        for features in [0, RING_RESET] {
            let guest = Guest::new(kind, Told::new(), &ring::memory());
            assert!(!guest.negotiate(features), "{kind:?} {features:#x}");
            assert_eq!(told(&guest), 0);
        }
    }
}

#[test]
fn where_the_embedder_lets_it_the_device_serves_it_as_one_that_has_accepted_it() {
    for kind in BOTH {
        for features in [0, RING_RESET, VERSION_1] {
            let mut guest = lenient(kind, &ring::memory());
            assert_ne!(guest.offered() & VERSION_1, 0, "it is offered all the same");
            guest.drive(features, &[0]);
            assert_eq!(told(&guest), features | VERSION_1);
            assert_eq!(guest.run(0, &[writable(ANSWER, 16)]), 16);
            guest.reset();
            guest.drive(features, &[0]);
            assert_eq!(guest.run(0, &[writable(ANSWER, 16)]), 16);
        }
    }
}

#[test]
fn what_is_not_offered_is_refused_as_ever() {
    for kind in BOTH {
        let guest = lenient(kind, &ring::memory());
        assert!(!guest.negotiate(1 << 49));
        guest.set_status(0);
        assert!(guest.negotiate(0));
    }
}

#[test]
fn a_queue_is_reset_by_itself_only_where_that_was_accepted() {
    for kind in BOTH {
        for (features, after) in [(0, 1), (RING_RESET, 0)] {
            let mut guest = lenient(kind, &ring::memory());
            guest.drive(features, &[0]);
            guest.write(0x30, 0x16, guest.width(2), 0);
            guest.write(0xc0, 0x3a, guest.width(2), 1);
            assert_eq!(guest.read(0x44, 0x1c, guest.width(2)), after, "{kind:?}");
        }
    }
}

#[test]
fn its_state_has_what_it_wrote_and_goes_where_it_is_let() {
    for kind in BOTH {
        let memory = ring::memory();
        let mut guest = lenient(kind, &memory);
        guest.drive(0, &[0]);
        assert_eq!(guest.run(0, &[writable(ANSWER, 16)]), 16);
        let state = rest::at_rest(guest.transport());
        assert_eq!(accepted(&state), 0);

        let strict = Guest::new(kind, Told::new(), &memory);
        let refused = strict.transport().restore(&state);
        assert!(matches!(refused, Err(RestoreError::Features { .. })), "{refused:?}");
        assert_eq!((strict.status(), told(&strict)), (0, 0), "nothing of it is there");

        let mut moved = lenient(kind, &memory);
        moved.transport().restore(&state).expect("it was saved so");
        assert_eq!(told(&moved), VERSION_1);
        moved.transport().resume();
        moved.rings = std::mem::take(&mut guest.rings);
        assert_eq!(moved.run(0, &[writable(ANSWER, 16)]), 16);
    }
}

#[test]
fn a_state_of_before_the_driver_came_has_no_features() {
    for kind in BOTH {
        let memory = ring::memory();
        let state = rest::at_rest(lenient(kind, &memory).transport());
        let restored = lenient(kind, &memory);
        restored.transport().restore(&state).expect("it was saved so");
        assert_eq!((restored.status(), told(&restored)), (0, 0));
    }
}
