//! The PMEM device (virtio 1.2, section 5.19), on both transports.

#[path = "support/both.rs"]
mod both;
#[path = "support/rest.rs"]
mod rest;
#[path = "support/ring.rs"]
mod ring;

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex},
};

use both::{ANSWER, BOTH, COMMON, Guest, REQUEST, Transport};
use devisor::virtio::{
    DeviceId, DeviceState, DeviceStateError, VirtioDevice,
    pmem::{Persist, Pmem, PmemError, PmemOptions, PmemState, Volatile},
};
use ring::{Buffer, readable, writable};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

// Not the device's own constants: a wrong one would go unseen.
const SHMEM_REGION: u64 = 1 << 0;
const FLUSH: u32 = 0;
const OK: u32 = 0;
/// "-1" (section 5.19.7.2.1).
const FAILED: u32 = u32::MAX;

const REGION: Range<u64> = 0x1_0000_0000..0x1_0020_0000;

fn options() -> PmemOptions {
    PmemOptions::new(REGION)
}

fn world(kind: Transport) -> (Guest<Pmem>, Arc<Volatile>) {
    let persist = Arc::new(Volatile::default());
    let pmem = Pmem::new(Arc::clone(&persist), options()).expect("valid options");
    (Guest::start(kind, pmem, &ring::memory(), COMMON, &[0]), persist)
}

fn ask(guest: &mut Guest<Pmem>, kind: u32) -> u32 {
    let (used, answer) = guest.ask(0, &kind.to_le_bytes(), 4);
    assert_eq!(used, 4);
    u32::from_le_bytes(answer.try_into().unwrap())
}

/// Makes so many flushes available, without a kick.
fn offer(guest: &mut Guest<Pmem>, count: u64) {
    for number in 0..count {
        guest.put(REQUEST + 4 * number, &FLUSH.to_le_bytes());
        guest.put(ANSWER + 4 * number, &[0xee; 4]);
        let buffers = [readable(REQUEST + 4 * number, 4), writable(ANSWER + 4 * number, 4)];
        guest.ring(0).request(&buffers);
    }
}

fn answers(guest: &Guest<Pmem>, count: u64) -> Vec<u32> {
    (0..count)
        .map(|number| u32::from_le_bytes(guest.get(ANSWER + 4 * number, 4).try_into().unwrap()))
        .collect()
}

// Where the memory is (sections 5.19.3 to 5.19.5).

#[test]
fn the_configuration_space_says_where_the_memory_is() {
    for kind in BOTH {
        let (guest, _) = world(kind);
        assert_eq!(guest.offered() & SHMEM_REGION, 0);
        assert_eq!(guest.config(0, 8), REGION.start);
        assert_eq!(guest.config(8, 8), REGION.end - REGION.start);
        assert_eq!(guest.config(16, 8), 0);
        guest.set_config(0, 8, u64::MAX);
        guest.set_config(8, 8, u64::MAX);
        assert_eq!((guest.config(0, 8), guest.config(8, 4)), (REGION.start, 0x20_0000));
        assert_eq!(guest.queues(), 1);
    }
}

#[test]
fn a_driver_that_takes_it_finds_the_memory_as_a_shared_memory_region() {
    for kind in BOTH {
        let shared = PmemOptions {
            shared_memory: true,
            ..options()
        };
        let pmem = || Pmem::new(Volatile::default(), shared.clone()).unwrap();
        // One that does not take it.
        let guest = Guest::start(kind, pmem(), &ring::memory(), COMMON, &[0]);
        assert_eq!(guest.config(0, 8), REGION.start);

        let mut guest = Guest::start(kind, pmem(), &ring::memory(), COMMON | SHMEM_REGION, &[0]);
        assert_eq!((guest.config(0, 8), guest.config(8, 8)), (0, 0));
        guest.with(|pmem| {
            let region = pmem.shared_memory(0).expect("a region");
            assert_eq!((region.base, region.len), (REGION.start, REGION.end - REGION.start));
            assert!(pmem.shared_memory(1).is_none());
        });
        // Restored, it is still so; reset, it is as for any driver.
        let mut moved = guest.moved(pmem());
        assert_eq!(moved.config(0, 8), 0);
        moved.reset();
        assert_eq!(moved.config(0, 8), REGION.start);
    }
}

#[test]
fn the_region_is_in_the_registers_of_virtio_mmio_and_in_a_capability_of_virtio_pci() {
    use devisor::{
        bus::BusDevice,
        interrupt::NoInterrupt,
        virtio::{VirtioMmio, transport::mmio::Line},
    };
    for (shared_memory, base, len) in [(true, REGION.start, 0x20_0000), (false, u64::MAX, u64::MAX)] {
        let pmem = Pmem::new(
            Volatile::default(),
            PmemOptions {
                shared_memory,
                ..options()
            },
        )
        .unwrap();
        let mmio = VirtioMmio::new(pmem, ring::memory(), Line::Edge(Arc::new(NoInterrupt))).unwrap();
        let read = |register| {
            let mut data = [0; 4];
            mmio.read(register, &mut data);
            u64::from(u32::from_le_bytes(data))
        };
        mmio.write(0xac, &0_u32.to_le_bytes());
        assert_eq!(read(0xb0) | read(0xb4) << 32, len);
        assert_eq!(read(0xb8) | read(0xbc) << 32, base);
    }
    pci_maps_the_region_where_the_guest_places_it();
}

fn pci_maps_the_region_where_the_guest_places_it() {
    use devisor::{
        interrupt::{MsiMessage, MsiSink, NoInterrupt, RequesterId, SinkVectors},
        pci::{DeviceFunction, Function, Slot},
        virtio::VirtioPci,
    };
    struct Nowhere;
    impl MsiSink for Nowhere {
        fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
            Ok(())
        }
    }
    type Mapped = (u8, Option<u64>);
    let maps: Arc<Mutex<Vec<Mapped>>> = Arc::default();
    let log = Arc::clone(&maps);
    let options = PmemOptions {
        shared_memory: true,
        ..options()
    };
    let pmem = Pmem::new(Volatile::default(), options).unwrap();
    let slot = Slot::new(
        DeviceFunction::new(3, 0).unwrap(),
        Box::new(NoInterrupt),
        Arc::new(SinkVectors::new(Arc::new(Nowhere))),
    );
    let pci = VirtioPci::new(pmem, ring::memory(), slot).unwrap();
    let pci = pci.with_shared_memory(move |id, address| log.lock().unwrap().push((id, address)));
    let config = |offset: u64, len: usize| {
        let mut data = [0; 8];
        pci.read_config(offset, &mut data[..len]);
        u64::from_le_bytes(data)
    };
    // The capability VIRTIO_PCI_CAP_SHARED_MEMORY_CFG (8), of 24 bytes.
    let mut at = config(0x34, 1);
    while at != 0 && !(config(at, 1) == 9 && config(at + 3, 1) == 8) {
        at = config(at + 1, 1);
    }
    assert_ne!(at, 0, "no capability");
    let (bar, id) = (config(at + 4, 1), config(at + 5, 1));
    let (offset, len) = (
        config(at + 8, 4) | config(at + 16, 4) << 32,
        config(at + 12, 4) | config(at + 20, 4) << 32,
    );
    assert_eq!((id, len), (0, 0x20_0000));
    let register = 0x10 + 4 * bar;
    pci.write_config(register, &0_u32.to_le_bytes());
    pci.write_config(register + 4, &0x20_u32.to_le_bytes());
    pci.write_config(0x04, &6_u16.to_le_bytes());
    assert_eq!(*maps.lock().unwrap(), [(0, Some(0x20_0000_0000 + offset))]);
}

// Flushes (sections 5.19.6 and 5.19.7).

#[test]
fn a_flush_is_answered_with_what_the_host_says() {
    for kind in BOTH {
        let (mut guest, persist) = world(kind);
        assert_eq!(ask(&mut guest, FLUSH), OK);
        persist.fail(true);
        assert_eq!(ask(&mut guest, FLUSH), FAILED);
        assert_eq!(ask(&mut guest, FLUSH), FAILED);
        let failures = guest.with(|pmem| pmem.host_failures());
        assert_eq!(
            (failures.count, failures.last.unwrap().to_string()),
            (2, "told to fail".into())
        );
        persist.fail(false);
        assert_eq!(ask(&mut guest, FLUSH), OK);
        assert_eq!(persist.flushes(), 4);
    }
}

#[test]
fn flushes_that_come_together_are_one_for_the_host() {
    for kind in BOTH {
        let (mut guest, persist) = world(kind);
        offer(&mut guest, 20);
        guest.kick(0);
        assert_eq!(guest.used(0), vec![4; 20]);
        assert_eq!(answers(&guest, 20), [OK; 20]);
        assert_eq!(persist.flushes(), 1);
        // A failure is everybody's.
        persist.fail(true);
        offer(&mut guest, 3);
        guest.kick(0);
        assert_eq!(guest.used(0), [4; 3]);
        assert_eq!(answers(&guest, 3), [FAILED; 3]);
        assert_eq!(
            (persist.flushes(), guest.with(|pmem| pmem.host_failures().count)),
            (2, 1)
        );
        // One after the other, each is its own.
        persist.fail(false);
        for _ in 0..5 {
            assert_eq!(ask(&mut guest, FLUSH), OK);
        }
        assert_eq!(persist.flushes(), 7);
    }
}

#[test]
fn a_full_ring_of_flushes_is_answered_to_its_end() {
    for kind in BOTH {
        let (mut guest, persist) = world(kind);
        // Two descriptors each.
        offer(&mut guest, 32);
        guest.kick(0);
        assert_eq!(guest.used(0), vec![4; 32]);
        assert_eq!(persist.flushes(), 1);
    }
}

/// Notes how many answers there were when it was called.
struct Watching {
    memory: Arc<GuestMemoryMmap>,
    seen: Mutex<Vec<[u32; 3]>>,
}

impl Persist for Watching {
    fn flush(&self) -> io::Result<()> {
        let answer = |number: u64| self.memory.read_obj(GuestAddress(ANSWER + 4 * number)).unwrap();
        self.seen.lock().unwrap().push([0, 1, 2].map(answer));
        Ok(())
    }
}

#[test]
fn no_flush_is_answered_before_the_host_has_done_it() {
    for kind in BOTH {
        let memory = ring::memory();
        let persist = Arc::new(Watching {
            memory: Arc::clone(&memory),
            seen: Mutex::default(),
        });
        let pmem = Pmem::new(Arc::clone(&persist), options()).unwrap();
        let mut guest = Guest::start(kind, pmem, &memory, COMMON, &[0]);
        offer(&mut guest, 3);
        // What is no flush does not wait for it.
        guest.put(REQUEST + 4, &7_u32.to_le_bytes());
        guest.kick(0);
        assert_eq!(*persist.seen.lock().unwrap(), [[0xeeee_eeee, FAILED, 0xeeee_eeee]]);
        assert_eq!(answers(&guest, 3), [OK, FAILED, OK]);
        assert_eq!(guest.used(0).len(), 3);
    }
}

#[test]
fn types_that_do_not_exist_fail_and_flush_nothing() {
    for kind in BOTH {
        let (mut guest, persist) = world(kind);
        for request in [1, 2, 0x100, 1 << 16, 1 << 31, u32::MAX] {
            assert_eq!(ask(&mut guest, request), FAILED, "{request:#x}");
        }
        assert_eq!((persist.flushes(), guest.counters(0).malformed), (0, 0));
        assert_eq!(guest.with(|pmem| pmem.host_failures().count), 0);
        assert_eq!(ask(&mut guest, FLUSH), OK);
    }
}

#[test]
fn a_request_without_its_type_or_room_for_its_response_comes_back_empty() {
    for kind in BOTH {
        let (mut guest, persist) = world(kind);
        guest.put(REQUEST, &[0; 8]);
        let wrong: [&[Buffer]; 12] = [
            &[readable(REQUEST, 4)],
            &[writable(ANSWER, 4)],
            &[readable(REQUEST, 4), readable(ANSWER, 4)],
            &[readable(REQUEST, 3), writable(ANSWER, 4)],
            &[readable(REQUEST, 0), writable(ANSWER, 4)],
            &[readable(REQUEST, 4), writable(ANSWER, 3)],
            &[readable(REQUEST, 4), writable(ANSWER, 0)],
            // The response before the request.
            &[writable(ANSWER, 4), readable(REQUEST, 4)],
            // Outside of memory, across its end, around the end of the address space.
            &[readable(0x4000_0000, 4), writable(ANSWER, 4)],
            &[readable(REQUEST, 4), writable(0x4000_0000, 4)],
            &[readable(REQUEST, 4), writable(0xf_fffe, 4)],
            &[readable(REQUEST, 4), writable(u64::MAX - 1, 4)],
        ];
        for (number, buffers) in (1..).zip(wrong) {
            guest.put(ANSWER, &[0xee; 4]);
            assert_eq!(guest.run(0, buffers), 0, "{buffers:?}");
            assert_eq!(guest.counters(0).malformed, number, "{buffers:?}");
            assert_eq!(guest.get(ANSWER, 4), [0xee; 4]);
        }
        assert_eq!(persist.flushes(), 0);
        assert_eq!(ask(&mut guest, FLUSH), OK);
    }
}

#[test]
fn a_request_may_be_cut_anywhere_and_be_longer_than_it_is() {
    for kind in BOTH {
        let (mut guest, persist) = world(kind);
        guest.put(REQUEST, &[0, 0, 0, 0, 0xff, 0xff]);
        let cut = [
            readable(REQUEST, 1),
            readable(REQUEST + 1, 2),
            readable(REQUEST + 3, 3),
            writable(ANSWER, 2),
            writable(ANSWER + 2, 0),
            writable(ANSWER + 2, 6),
        ];
        guest.put(ANSWER, &[0xee; 8]);
        assert_eq!(guest.run(0, &cut), 4);
        assert_eq!(guest.get(ANSWER, 8), [0, 0, 0, 0, 0xee, 0xee, 0xee, 0xee]);
        // All of guest memory as its response.
        guest.put(REQUEST, &[0; 4]);
        let huge = [readable(REQUEST, 4), writable(ANSWER, 0x7_0000)];
        assert_eq!(guest.run(0, &huge), 4);
        let ring = guest.ring(0);
        let head = ring.add_indirect(0xa_0000, &[readable(REQUEST, 4), writable(ANSWER, 4)]);
        ring.offer(head);
        guest.kick(0);
        assert_eq!(guest.used(0), [4]);
        assert_eq!(persist.flushes(), 3);
    }
}

#[test]
fn chains_that_lead_nowhere_cost_themselves_and_the_flushes_beside_them_are_answered() {
    for kind in BOTH {
        let (mut guest, persist) = world(kind);
        offer(&mut guest, 1);
        let ring = guest.ring(0);
        // One that runs in a circle, and one whose next is not in the table.
        ring.descriptor(40, REQUEST, 4, ring::NEXT, 40);
        ring.offer(40);
        ring.descriptor(41, REQUEST, 4, ring::NEXT, 999);
        ring.offer(41);
        offer(&mut guest, 1);
        guest.kick(0);
        let mut used = guest.used(0);
        used.sort_unstable();
        assert_eq!(used, [0, 0, 4, 4]);
        assert_eq!(persist.flushes(), 1);
    }
}

#[test]
fn a_broken_ring_leaves_no_flush_half_done_and_a_reset_revives_it() {
    for kind in BOTH {
        let (mut guest, persist) = world(kind);
        offer(&mut guest, 2);
        // A head that does not exist.
        guest.ring(0).offer(64);
        guest.kick(0);
        assert_eq!(persist.flushes(), 1, "what was found before that");
        assert_ne!(guest.status() & 0x40, 0);
        guest.reset();
        guest.drive(COMMON, &[0]);
        assert_eq!(ask(&mut guest, FLUSH), OK);
    }
}

// State and options.

#[test]
fn a_flush_that_waits_is_done_where_the_state_is_restored() {
    for kind in BOTH {
        let (mut guest, before) = world(kind);
        guest.transport().pause();
        offer(&mut guest, 3);
        guest.kick(0);
        let after = Arc::new(Volatile::default());
        let mut moved = guest.moved(Pmem::new(Arc::clone(&after), options()).unwrap());
        assert_eq!(moved.used(0), [4; 3]);
        assert_eq!(answers(&moved, 3), [OK; 3]);
        assert_eq!((before.flushes(), after.flushes()), (0, 1));
    }
}

#[test]
fn a_state_of_another_device_or_of_other_memory_is_refused() {
    let mut pmem = Pmem::new(Volatile::default(), options()).unwrap();
    let good = pmem.save();
    assert_eq!(pmem.restore(&good), Ok(()));
    for options in [
        PmemOptions::new(REGION.start..REGION.end + 4096),
        PmemOptions {
            shared_memory: true,
            ..options()
        },
        PmemOptions {
            queue_size: 8,
            ..options()
        },
    ] {
        let state = DeviceState::Pmem(PmemState { options });
        let error = pmem.restore(&state).unwrap_err();
        assert!(matches!(error, DeviceStateError::Otherwise(_)), "{error}");
    }
    assert_eq!(
        pmem.restore(&DeviceState::None),
        Err(DeviceStateError::Kind {
            saved: "none",
            needed: "a PMEM device's"
        })
    );
    assert_eq!(pmem.save(), good);
}

#[test]
fn options_out_of_range_are_refused_with_what_would_do() {
    let refused = |options| Pmem::new(Volatile::default(), options).map(|_| ()).unwrap_err();
    for (start, end) in [(0, 0), (4096, 0), (1, 4096), (0, 4097), (512, 4096 + 512)] {
        assert!(matches!(
            refused(PmemOptions::new(start..end)),
            PmemError::Region { .. }
        ));
    }
    for queue_size in [0, 3] {
        let options = PmemOptions {
            queue_size,
            ..options()
        };
        assert!(matches!(refused(options), PmemError::QueueSize(_)));
    }
    let pmem = Pmem::new(Volatile::default(), PmemOptions::new(4096..8192)).unwrap();
    assert_eq!((pmem.device_id(), pmem.queue_sizes()), (DeviceId(27), &[64][..]));
}

// A file.

#[cfg(unix)]
mod file {
    use std::{
        fs::{self, File},
        os::unix::fs::FileExt,
        path::PathBuf,
        process,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use devisor::virtio::pmem::{FileMapping, Pmem, PmemError, PmemOptions};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

    use crate::{
        FLUSH, OK, ask,
        both::{BOTH, COMMON, Guest},
    };

    struct Temporary(PathBuf);

    impl Temporary {
        fn new(len: u64) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("devisor-pmem-{}-{count}", process::id()));
            File::create(&path)
                .and_then(|file| file.set_len(len))
                .expect("a temporary file");
            Self(path)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn what_the_guest_writes_and_flushes_is_in_the_file() {
        for kind in BOTH {
            let path = Temporary::new(2 << 20);
            let mapping = FileMapping::open(&path.0).unwrap();
            assert_eq!(mapping.len(), 2 << 20);
            let start = 1 << 32;
            // SAFETY: the mapping is there until the end of this, after all that uses this memory.
            let region = unsafe {
                MmapRegion::build_raw(
                    mapping.as_ptr(),
                    mapping.len(),
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                )
            };
            let ram = MmapRegion::new(1 << 20).unwrap();
            let memory: GuestMemoryMmap = GuestMemoryMmap::from_regions(vec![
                GuestRegionMmap::new(ram, GuestAddress(0)).unwrap(),
                GuestRegionMmap::new(region.unwrap(), GuestAddress(start)).unwrap(),
            ])
            .unwrap();
            let memory = Arc::new(memory);
            let end = start + mapping.len() as u64;
            let pmem = Pmem::new(mapping.file().try_clone().unwrap(), PmemOptions::new(start..end)).unwrap();
            let mut guest = Guest::start(kind, pmem, &memory, COMMON, &[0]);
            let (from, len) = (guest.config(0, 8), guest.config(8, 8));
            memory.write_slice(b"first", GuestAddress(from)).unwrap();
            memory.write_slice(b"last", GuestAddress(from + len - 4)).unwrap();
            assert_eq!(ask(&mut guest, FLUSH), OK);
            let mut bytes = [0; 5];
            let file = File::open(&path.0).unwrap();
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"first");
            file.read_exact_at(&mut bytes, (2 << 20) - 5).unwrap();
            assert_eq!(&bytes, b"\0last");
            // What is in the file is in the memory.
            mapping.file().write_all_at(b"host", 4096).unwrap();
            let mut bytes = [0; 4];
            memory.read_slice(&mut bytes, GuestAddress(from + 4096)).unwrap();
            assert_eq!(&bytes, b"host");
            drop((guest, memory));
        }
    }

    #[test]
    fn a_file_that_cannot_be_synced_fails_the_guests_flush() {
        // A pipe has nothing to sync.
        let (reader, _writer) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        for kind in BOTH {
            let pmem = Pmem::new(file.try_clone().unwrap(), super::options()).unwrap();
            let mut guest = Guest::start(kind, pmem, &crate::ring::memory(), COMMON, &[0]);
            assert_eq!(ask(&mut guest, FLUSH), super::FAILED);
            let failures = guest.with(|pmem| pmem.host_failures());
            assert_eq!(failures.last.unwrap().raw_os_error(), Some(libc::EINVAL));
        }
    }

    #[test]
    fn files_of_a_length_that_cannot_be_are_refused() {
        for len in [0, 1, 4095, 4097] {
            let path = Temporary::new(len);
            assert!(matches!(FileMapping::open(&path.0), Err(PmemError::FileLength(found)) if found == len));
        }
        let path = Temporary::new(4096);
        // For reading alone.
        assert!(matches!(
            FileMapping::new(File::open(&path.0).unwrap()),
            Err(PmemError::Io(_))
        ));
        assert!(matches!(FileMapping::open("/nonexistent"), Err(PmemError::Io(_))));
    }
}
