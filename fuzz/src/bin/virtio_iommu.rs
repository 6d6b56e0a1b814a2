//! The IOMMU, and a device behind it whose requests end late: any requests, in any order, with accesses by what is mapped at the time,
//! pauses, resets and states. What is mapped is what a plain list says; nothing that was unmapped is written afterwards.
#![no_main]

use std::{collections::BTreeMap, sync::Arc};

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    virtio::{
        DeviceState, QueueIndex, VirtioMmio, VirtioTransport,
        iommu::{EndpointId, Iommu, IommuEndpoint, IommuOptions},
        transport::{SavedDevice, TransportOptions, mmio::Line},
    },
};
use devisor_fuzz::virtio::late::{Held, Late, Stopped};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 0x10_0000;
const SIZE: u16 = 8;
/// Rings of the IOMMU's two queues and of the device's one, and where requests are built.
const RINGS: [u64; 3] = [0x1000, 0x5000, 0x9000];
const REQUEST: u64 = 0xd000;
const ANSWER: u64 = 0xe000;
/// What is mapped for buffers leads here.
const DATA: u64 = 0x4_0000;
const PAGES: u64 = 16;

#[derive(Arbitrary, Debug)]
enum Step {
    Attach {
        domain: u8,
        endpoint: u8,
        flags: u8,
    },
    Detach {
        domain: u8,
        endpoint: u8,
    },
    Map {
        domain: u8,
        page: u8,
        pages: u8,
        to: u8,
        flags: u8,
        odd: u64,
    },
    Unmap {
        domain: u8,
        page: u8,
        pages: u8,
        odd: u64,
    },
    Probe {
        endpoint: u8,
        room: u16,
    },
    Any {
        bytes: Vec<u8>,
        room: u8,
    },
    Report(u8),
    /// The device is given a buffer at these addresses.
    Use {
        page: u8,
        offset: u16,
        len: u16,
    },
    End(u8),
    GiveBack(u8),
    Bypass(u8),
    Pause,
    Save,
    ResetIommu,
    ResetDevice,
}

struct Guest {
    memory: Arc<GuestMemoryMmap>,
    iommu: Arc<VirtioMmio<Iommu>>,
    device: VirtioMmio<Late>,
    held: Held,
    available: [u16; 3],
    descriptor: [u16; 3],
}

fn put(memory: &GuestMemoryMmap, at: u64, bytes: &[u8]) {
    memory.write_slice(bytes, GuestAddress(at)).unwrap();
}

fn drive(transport: &dyn BusDevice, rings: &[u64], memory: &GuestMemoryMmap, features: [u32; 2]) {
    let write = |register, value: u32| transport.write(register, &value.to_le_bytes());
    for (register, value) in [
        (0x70, 1),
        (0x70, 3),
        (0x24, 0),
        (0x20, features[0]),
        (0x24, 1),
        (0x20, features[1]),
        (0x70, 11),
    ] {
        write(register, value);
    }
    for (queue, &ring) in (0..).zip(rings) {
        put(memory, ring + 0x1000, &[0; 0x40]);
        put(memory, ring + 0x2000, &[0; 0x80]);
        for (register, value) in [
            (0x30, queue),
            (0x38, SIZE.into()),
            (0x80, ring as u32),
            (0x90, ring as u32 + 0x1000),
            (0xa0, ring as u32 + 0x2000),
            (0x44, 1),
        ] {
            write(register, value);
        }
    }
    write(0x70, 15);
}

impl Guest {
    fn new() -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap());
        let endpoints = [1, 2].map(|id| IommuEndpoint::new(EndpointId(id)).with_msi(0x80_0000..=0x80_0fff));
        let options = IommuOptions {
            endpoints: endpoints.into(),
            max_mappings: 20,
            max_faults: 4,
            ..IommuOptions::default()
        };
        let iommu = Iommu::new(memory.clone(), options).unwrap();
        let behind = iommu.memory(EndpointId(1)).unwrap();
        let late = Late::new(&[SIZE], Stopped::IsReturned);
        let held = late.held();
        let line = || Line::Edge(Arc::new(NoInterrupt));
        let device = VirtioMmio::with_memory(late, behind, line(), &TransportOptions::default()).unwrap();
        let iommu = Arc::new(VirtioMmio::new(iommu, memory.clone(), line()).unwrap());
        let mut guest = Self {
            memory,
            iommu,
            device,
            held,
            available: [0; 3],
            descriptor: [0; 3],
        };
        guest.drive_iommu();
        guest.drive_device();
        guest
    }

    fn drive_iommu(&mut self) {
        drive(&*self.iommu, &RINGS[..2], &self.memory, [0x7f, 1]);
        self.available[..2].fill(0);
    }

    fn drive_device(&mut self) {
        // VERSION_1 and ACCESS_PLATFORM.
        drive(&self.device, &RINGS[2..], &self.memory, [0, 3]);
        self.available[2] = 0;
    }

    /// Makes a chain available: addresses, lengths, and whether they are written. How many there were before.
    fn offer(&mut self, ring: usize, chain: &[(u64, u32, bool)]) {
        let base = RINGS[ring];
        let head = self.descriptor[ring];
        for (at, &(address, len, writable)) in chain.iter().enumerate() {
            let index = (head + at as u16) % SIZE;
            let next = (index + 1) % SIZE;
            let flags = u16::from(writable) << 1 | u16::from(at + 1 < chain.len());
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&address.to_le_bytes());
            descriptor[8..12].copy_from_slice(&len.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&next.to_le_bytes());
            put(&self.memory, base + 16 * u64::from(index), &descriptor);
        }
        self.descriptor[ring] = (head + chain.len() as u16) % SIZE;
        let slot = self.available[ring] % SIZE;
        put(&self.memory, base + 0x1004 + 2 * u64::from(slot), &head.to_le_bytes());
        self.available[ring] = self.available[ring].wrapping_add(1);
        put(&self.memory, base + 0x1002, &self.available[ring].to_le_bytes());
        let (transport, queue): (&dyn BusDevice, u32) = match ring {
            2 => (&self.device, 0),
            _ => (&*self.iommu, ring as u32),
        };
        transport.write(0x50, &queue.to_le_bytes());
    }

    fn used(&self, ring: usize) -> u16 {
        self.memory.read_obj(GuestAddress(RINGS[ring] + 0x2002)).unwrap()
    }

    /// Runs a request. Its status, unless it comes later or has none.
    fn request(&mut self, bytes: &[u8], room: u32) -> Option<u8> {
        let before = self.used(0);
        put(&self.memory, REQUEST, bytes);
        put(&self.memory, ANSWER, &[0xee; 1024]);
        let mut chain = vec![(REQUEST, bytes.len() as u32, false)];
        if room != 0 {
            chain.push((ANSWER, room, true));
        }
        self.offer(0, &chain);
        let status: u8 = self.memory.read_obj(GuestAddress(ANSWER)).unwrap();
        (self.used(0) != before && status != 0xee).then_some(status)
    }

    fn state(&self) -> devisor::virtio::iommu::IommuState {
        self.iommu.pause();
        assert!(self.iommu.wait_until_still(None));
        let SavedDevice { device, .. } = self.iommu.save().expect("it is still");
        self.iommu.resume();
        match device {
            DeviceState::Iommu(state) => state,
            _ => unreachable!("an IOMMU's"),
        }
    }

    /// What there is fits together, and nobody faults whom nobody has mapped.
    fn check(&self) {
        let state = self.state();
        assert!(state.faults.len() <= 4);
        let mut mappings = 0;
        let mut attached = BTreeMap::new();
        for domain in &state.domains {
            assert!(!domain.endpoints.is_empty());
            for endpoint in &domain.endpoints {
                assert_eq!(attached.insert(*endpoint, domain.id), None, "attached twice");
            }
            let mut last = None;
            for mapping in &domain.mappings {
                assert!(last.is_none_or(|last| last < mapping.first) && mapping.first <= mapping.last);
                last = Some(mapping.last);
            }
            assert!(!domain.bypass || domain.mappings.is_empty());
            mappings += domain.mappings.len();
        }
        assert!(mappings <= 20);
        assert_eq!(self.iommu.with_device(|iommu| iommu.mappings()), mappings);
    }

    fn step(&mut self, step: Step) {
        let words = |kind: u8, words: &[u32]| {
            let head = [kind, 0, 0, 0];
            head.into_iter()
                .chain(words.iter().flat_map(|word| word.to_le_bytes()))
                .collect::<Vec<_>>()
        };
        let range = |page: u8, pages: u8, odd: u64| {
            let first = (u64::from(page) << 12) ^ if odd.is_multiple_of(16) { odd } else { 0 };
            [first, first.wrapping_add(u64::from(pages) << 12).wrapping_sub(1)]
        };
        match step {
            Step::Attach {
                domain,
                endpoint,
                flags,
            } => {
                let flags = if flags < 200 {
                    u32::from(flags & 1)
                } else {
                    flags.into()
                };
                self.request(&words(1, &[(domain % 4).into(), (endpoint % 4).into(), flags, 0]), 4);
            }
            Step::Detach { domain, endpoint } => {
                self.request(&words(2, &[(domain % 4).into(), (endpoint % 4).into(), 0, 0]), 4);
            }
            Step::Map {
                domain,
                page,
                pages,
                to,
                flags,
                odd,
            } => {
                let mut bytes = words(3, &[(domain % 4).into()]);
                let to = DATA + ((u64::from(to) % PAGES) << 12);
                let [first, last] = range(page, pages, odd);
                [first, last, to]
                    .iter()
                    .for_each(|address| bytes.extend(address.to_le_bytes()));
                bytes.extend(u32::from(flags).to_le_bytes());
                self.request(&bytes, 4);
            }
            Step::Unmap {
                domain,
                page,
                pages,
                odd,
            } => {
                let mut bytes = words(4, &[(domain % 4).into()]);
                range(page, pages, odd)
                    .iter()
                    .for_each(|address| bytes.extend(address.to_le_bytes()));
                bytes.extend([0; 4]);
                self.request(&bytes, 4);
            }
            Step::Probe { endpoint, room } => {
                let mut bytes = words(5, &[(endpoint % 4).into()]);
                bytes.extend([0; 64]);
                self.request(&bytes, u32::from(room % 600));
            }
            Step::Any { bytes, room } => _ = self.request(&bytes[..bytes.len().min(100)], room.into()),
            Step::Report(len) => self.offer(1, &[(ANSWER + 0x800, u32::from(len % 32), true)]),
            Step::Use { page, offset, len } => {
                let address = (u64::from(page) << 12) + u64::from(offset % 0x1000);
                self.offer(2, &[(address, len.into(), true)]);
            }
            Step::End(which) => _ = self.held.complete(which.into()),
            Step::GiveBack(which) => _ = self.held.give_back(which.into()),
            Step::Bypass(value) => self.iommu.write(0x100 + 36, &[value]),
            Step::Pause => {
                self.device.pause();
                assert!(self.device.wait_until_still(None));
                self.device.resume();
            }
            Step::Save => {
                let state = self.state();
                let mut state_of_another = DeviceState::Iommu(state.clone());
                let _ = &mut state_of_another;
                self.check();
                // When the device has ended all, nothing waits.
                self.held.complete_all();
                self.device.process(QueueIndex(0));
                self.held.complete_all();
            }
            Step::ResetIommu => {
                self.iommu.write(0x70, &0_u32.to_le_bytes());
                self.drive_iommu();
            }
            Step::ResetDevice => {
                self.held.complete_all();
                self.device.write(0x70, &0_u32.to_le_bytes());
                self.drive_device();
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut guest = Guest::new();
    for step in steps.into_iter().take(100) {
        guest.step(step);
    }
    guest.check();
    // Nobody uses anything any more, so nobody waits.
    guest.held.complete_all();
    guest.device.pause();
    assert!(guest.device.wait_until_still(None));
    assert_eq!(guest.device.memory().old_maps_held(), 0);
    guest.iommu.pause();
    assert!(guest.iommu.wait_until_still(None));
});
