//! What a transport offers is its embedder's to say: packed rings and the rest, behind both transports.

#[path = "support/late.rs"]
mod late;
#[path = "support/packed.rs"]
mod packed;
#[path = "support/rest.rs"]
mod rest;
#[path = "support/ring.rs"]
mod ring;

use std::{io, sync::Arc};

use devisor::{
    bus::{BusDevice, read_le, write_le},
    interrupt::{MsiMessage, MsiSink, NoInterrupt, RequesterId, SinkVectors},
    pci::{BarIndex, DeviceFunction, Function, Slot},
    virtio::{
        QueueIndex, VirtioMmio, VirtioPci, VirtioTransport, features,
        queue::QueueLayout,
        transport::{
            RestoreError, SavedDevice, SavedTransport, TransportOptions, TransportState, mmio::Line,
            pci::VirtioPciOptions,
        },
    },
};
use late::{FILLED, Held, Late, Stopped};
use packed::PackedRing;
use ring::{memory, writable};
use vm_memory::GuestMemoryMmap;

/// Offered by the device's queue.
const MAX: u16 = 64;

struct Nowhere;

impl MsiSink for Nowhere {
    fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
        Ok(())
    }
}

enum Face {
    Mmio(VirtioMmio<Late>),
    Pci(VirtioPci<Late>),
}

/// A device whose requests end when the test says so, and its driver's accesses.
struct Guest {
    face: Face,
    held: Held,
}

impl Guest {
    fn new(pci: bool, memory: &Arc<GuestMemoryMmap>, options: TransportOptions) -> Self {
        let device = Late::new(&[MAX], Stopped::IsReturned);
        let (held, space) = (device.held(), Arc::clone(memory));
        let face = if pci {
            let vectors = Arc::new(SinkVectors::new(Arc::new(Nowhere)));
            let slot = Slot::new(DeviceFunction::new(3, 0).unwrap(), Box::new(NoInterrupt), vectors);
            let options = VirtioPciOptions {
                transport: options,
                ..VirtioPciOptions::default()
            };
            let pci = VirtioPci::with_options(device, space, slot, &options).unwrap();
            pci.write_config(0x10, &0x4000_0000_u32.to_le_bytes());
            pci.write_config(0x04, &6_u16.to_le_bytes());
            Face::Pci(pci)
        } else {
            let line = Line::Edge(Arc::new(NoInterrupt));
            Face::Mmio(VirtioMmio::with_options(device, space, line, &options).unwrap())
        };
        Self { face, held }
    }

    fn transport(&self) -> &dyn VirtioTransport {
        match &self.face {
            Face::Mmio(mmio) => mmio,
            Face::Pci(pci) => pci,
        }
    }

    /// By the offsets and widths of both.
    fn read(&self, (mmio, pci, len): (u64, u64, usize)) -> u64 {
        let mut data = [0; 4];
        match &self.face {
            Face::Mmio(face) => face.read(mmio, &mut data),
            Face::Pci(face) => face.read_bar(BarIndex::Bar0, pci, &mut data[..len]),
        }
        read_le(&data)
    }

    fn write(&self, (mmio, pci, len): (u64, u64, usize), value: u64) {
        let mut data = [0; 4];
        write_le(&mut data, value);
        match &self.face {
            Face::Mmio(face) => face.write(mmio, &data),
            Face::Pci(face) => face.write_bar(BarIndex::Bar0, pci, &data[..len]),
        }
    }

    fn offered(&self) -> u64 {
        (0..2).fold(0, |features, word| {
            self.write((0x14, 0x00, 4), word);
            features | self.read((0x10, 0x04, 4)) << (32 * word)
        })
    }

    /// Whether the device has taken these features.
    fn negotiate(&self, features: u64) -> bool {
        const STATUS: (u64, u64, usize) = (0x70, 0x14, 1);
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        for word in 0..2 {
            self.write((0x24, 0x08, 4), word);
            self.write((0x20, 0x0c, 4), features >> (32 * word) & 0xffff_ffff);
        }
        self.write(STATUS, 11);
        self.read(STATUS) == 11
    }

    /// Enables the queue and is ready. The size that the register has kept.
    fn go(&self, layout: QueueLayout) -> u64 {
        self.write((0x38, 0x18, 2), layout.size.into());
        for (mmio, pci, address) in [
            (0x80, 0x20, layout.descriptor_area),
            (0x90, 0x28, layout.driver_area),
            (0xa0, 0x30, layout.device_area),
        ] {
            self.write((mmio, pci, 4), address);
        }
        self.write((0x44, 0x1c, 2), 1);
        self.write((0x70, 0x14, 1), 15);
        self.read((0x0, 0x18, 2))
    }

    /// A kick of this value, which is 32 bits wide.
    fn kick(&self, value: u32) {
        self.write((0x50, 0x3000, 4), value.into());
    }
}

fn state(saved: &mut SavedDevice) -> &mut TransportState {
    match &mut saved.transport {
        SavedTransport::Mmio(state) => &mut state.transport,
        SavedTransport::Pci(state) => &mut state.transport,
        other => panic!("{other:?}"),
    }
}

fn all() -> TransportOptions {
    TransportOptions {
        packed: true,
        in_order: true,
        notification_data: true,
        ..TransportOptions::default()
    }
}

#[test]
fn what_is_offered_is_what_the_options_say() {
    let none = TransportOptions {
        event_idx: false,
        indirect_desc: false,
        ring_reset: false,
        ..TransportOptions::default()
    };
    for pci in [false, true] {
        let more = if pci { features::NOTIF_CONFIG_DATA } else { 0 };
        let offered = |options| Guest::new(pci, &memory(), options).offered() & !more;
        assert_eq!(offered(none), features::VERSION_1);
        assert_eq!(offered(TransportOptions::default()), features::COMMON);
        let everything = features::COMMON | features::RING_PACKED | features::IN_ORDER | features::NOTIFICATION_DATA;
        assert_eq!(offered(all()), everything);
        assert!(!Guest::new(pci, &memory(), none).negotiate(features::VERSION_1 | features::RING_PACKED));
    }
    assert!(VirtioPciOptions::default().transport.notification_data);
}

#[test]
fn a_driver_chooses_a_packed_ring_of_any_size_and_kicks_with_what_it_has_made_available() {
    for pci in [false, true] {
        for (features, events) in [(0, false), (features::EVENT_IDX, true)] {
            let memory = memory();
            let guest = Guest::new(pci, &memory, all());
            let accepted = features::VERSION_1 | features::RING_PACKED | features::NOTIFICATION_DATA | features;
            assert!(guest.negotiate(accepted));
            let mut ring = PackedRing::new(&memory, 0x1000, 5);
            let size = guest.go(ring.layout);
            assert!(!pci || size == 5, "{size}");
            for turn in 0..20u32 {
                let id = ring.request(&[writable(0x8000, 3)]);
                // The queue, and the next place with its wrap counter (section 2.9).
                assert!(ring.is_to_kick(1), "turn {turn}");
                guest.kick(u32::from(ring.next.raw()) << 16);
                assert_eq!(guest.held.count(), 1, "pci {pci}, events {events}, turn {turn}");
                assert!(guest.held.complete(0));
                assert_eq!(ring.used(), [(id.into(), 3)]);
                assert_eq!(ring.get::<[u8; 3]>(0x8000), [FILLED; 3]);
            }
            // Another queue than there is.
            ring.request(&[writable(0x8000, 3)]);
            if !pci {
                guest.kick(1 | u32::from(ring.next.raw()) << 16);
                assert_eq!(guest.held.count(), 0);
            }
        }
    }
}

#[test]
fn sizes_that_a_packed_ring_cannot_have_become_zero() {
    let guest = Guest::new(true, &memory(), all());
    assert!(guest.negotiate(features::VERSION_1 | features::RING_PACKED));
    for (size, kept) in [(1, 1), (63, 63), (64, 64), (65, 0), (0, 0), (7, 7), (0xffff, 0)] {
        guest.write((0x38, 0x18, 2), size);
        assert_eq!(guest.read((0x0, 0x18, 2)), kept);
    }
    let split = Guest::new(true, &memory(), all());
    assert!(split.negotiate(features::VERSION_1));
    split.write((0x38, 0x18, 2), 7);
    assert_eq!(split.read((0x0, 0x18, 2)), 0);
}

#[test]
fn requests_under_way_in_a_packed_ring_move_to_another_device() {
    for pci in [false, true] {
        let memory = memory();
        let guest = Guest::new(pci, &memory, all());
        assert!(guest.negotiate(features::VERSION_1 | features::RING_PACKED));
        let mut ring = PackedRing::new(&memory, 0x1000, 7);
        guest.go(ring.layout);
        let ids = [2, 3, 1].map(|len| ring.request(&[writable(0x8000, len), writable(0x9000, len)]));
        guest.kick(0);
        assert_eq!(guest.held.count(), 3);
        assert!(guest.held.complete(1));
        let mut saved = rest::at_rest(guest.transport());
        assert_eq!(
            state(&mut saved).queues[0].as_ref().unwrap().in_flight,
            [ids[0], ids[2]]
        );

        let refused = Guest::new(pci, &memory, TransportOptions::default());
        assert!(matches!(
            refused.transport().restore(&saved),
            Err(RestoreError::Features { .. })
        ));
        let other = Guest::new(pci, &memory, all());
        let mut bad = saved.clone();
        state(&mut bad).setup[0].layout.size = 65;
        assert!(matches!(
            other.transport().restore(&bad),
            Err(RestoreError::QueueSize { .. })
        ));
        let mut bad = saved.clone();
        state(&mut bad).queues[0].as_mut().unwrap().chains.pop();
        assert!(matches!(
            other.transport().restore(&bad),
            Err(RestoreError::Queue { .. })
        ));

        other.transport().restore(&saved).unwrap();
        other.transport().resume();
        assert_eq!(other.held.count(), 2);
        ring.request(&[writable(0x8000, 1)]);
        other.kick(0);
        other.held.complete_all();
        let used: Vec<_> = ring.used().into_iter().map(|(_, len)| len).collect();
        assert_eq!(used, [6, 4, 2, 1], "pci {pci}");
    }
}

#[test]
fn a_queue_that_is_reset_begins_a_packed_ring_anew() {
    for pci in [false, true] {
        let memory = memory();
        let guest = Guest::new(pci, &memory, all());
        assert!(guest.negotiate(features::VERSION_1 | features::RING_PACKED | features::RING_RESET));
        for size in [3, 6] {
            let mut ring = PackedRing::new(&memory, 0x1000, size);
            (0..size).for_each(|slot| ring.descriptor(slot, (0, 0, 0, 0)));
            guest.go(ring.layout);
            for _ in 0..2 {
                ring.request(&[writable(0x8000, 1)]);
                guest.kick(0);
            }
            // One is given back by the stop, and is the driver's again.
            assert!(guest.held.complete(1));
            assert_eq!(ring.used().len(), 1);
            guest.write((0xc0, 0x3a, 2), 1);
            assert_eq!(guest.read((0xc0, 0x3a, 2)), 0);
            assert_eq!(guest.transport().queue_counters(QueueIndex(0)), None);
        }
    }
}

#[test]
fn a_driver_without_version_1_is_taken_where_the_embedder_says_so() {
    for pci in [false, true] {
        let memory = memory();
        assert!(!Guest::new(pci, &memory, TransportOptions::default()).negotiate(0));
        let lenient = TransportOptions {
            without_version_1: true,
            ..TransportOptions::default()
        };
        let guest = Guest::new(pci, &memory, lenient);
        assert!(guest.negotiate(0));
        let mut ring: ring::Ring = ring::Ring::new(&memory, 0x1000, 8);
        guest.go(ring.layout);
        ring.request(&[writable(0x8000, 1)]);
        guest.kick(0);
        guest.held.complete_all();
        assert_eq!(ring.used(), [(0, 1)]);
        let saved = rest::at_rest(guest.transport());
        let strict = Guest::new(pci, &memory, TransportOptions::default());
        assert!(matches!(
            strict.transport().restore(&saved),
            Err(RestoreError::Features { .. })
        ));
        Guest::new(pci, &memory, lenient).transport().restore(&saved).unwrap();
    }
}
