//! Files that a back end has mapped in shared memory regions of its device.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    thread,
    time::Duration,
};

use devisor::virtio::{
    SharedMemoryRegion,
    remote::{MapShared, Mapping, Remote, RemoteError},
};

use crate::{
    back::{FEATURE, World},
    front::{memfd, options, shared_memory},
    machine::{BUSES, Bus, Machine},
    middle::{self, More, SEND_FD, SHMEM},
    poll::poll,
};

const MAP: u32 = 9;
const UNMAP: u32 = 10;
const WINDOW: SharedMemoryRegion = SharedMemoryRegion {
    base: 0x8000_0000,
    len: 0x10_0000,
};
const ID: u8 = 3;

/// Puts nothing anywhere, and knows what it should have.
#[derive(Clone, Default)]
struct Mapper {
    mapped: Arc<Mutex<Vec<Mapping>>>,
    refuses: Arc<Mutex<bool>>,
}

impl MapShared for Mapper {
    fn map(&mut self, mapping: &Mapping, _: OwnedFd) -> io::Result<()> {
        if *self.refuses.lock().unwrap() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.mapped.lock().unwrap().push(*mapping);
        Ok(())
    }

    fn unmap(&mut self, mapping: &Mapping) -> io::Result<()> {
        let mut mapped = self.mapped.lock().unwrap();
        let at = mapped.iter().position(|other| other == mapping);
        mapped.remove(at.expect("it was mapped"));
        Ok(())
    }
}

fn payload(id: u8, file_offset: u64, offset: u64, len: u64, flags: u64) -> Vec<u8> {
    let mut payload = vec![id, 0, 0, 0, 0, 0, 0, 0];
    payload.extend([file_offset, offset, len, flags].map(u64::to_ne_bytes).concat());
    payload
}

struct Setup {
    machine: Machine<Remote>,
    mapper: Mapper,
    more: Arc<More>,
}

fn more(len: u64) -> Arc<More> {
    let mut regions = vec![0; usize::from(ID)];
    regions.push(len);
    Arc::new(More {
        features: SHMEM | SEND_FD,
        regions,
        ..More::default()
    })
}

impl Setup {
    fn new(bus: Bus) -> Self {
        let more = more(WINDOW.len);
        let mut options = options();
        options.shared_memory = vec![(ID, WINDOW)];
        let memory = shared_memory(1);
        let world: Arc<World> = Arc::default();
        let device = Remote::new(middle::connect(&world, &more), Arc::clone(&memory), options).unwrap();
        let mapper = Mapper::default();
        let device = device.with_shared_memory(mapper.clone());
        let mut machine = Machine::in_memory(bus, device, memory);
        machine.start(FEATURE);
        Self { machine, mapper, more }
    }

    /// Asks from the other side, while the device is looked at. What is answered.
    fn ask(&self, request: u32, payload: Vec<u8>, descriptors: Vec<OwnedFd>) -> Option<u64> {
        thread::scope(|scope| {
            let asks = scope.spawn(|| self.more.ask(request, payload, descriptors));
            while !asks.is_finished() {
                poll(&self.machine, Duration::ZERO);
                thread::sleep(Duration::from_micros(200));
            }
            asks.join().unwrap()
        })
    }

    fn map(&self, offset: u64, len: u64) -> Option<u64> {
        self.ask(MAP, payload(ID, 0x1000, offset, len, 1), vec![memfd(0x10_0000).into()])
    }

    fn mapped(&self) -> Vec<(u64, u64)> {
        let mapped = self.mapper.mapped.lock().unwrap();
        mapped.iter().map(|mapping| (mapping.offset, mapping.len)).collect()
    }
}

#[test]
fn what_a_back_end_has_mapped_is_where_it_says_until_it_is_unmapped() {
    for bus in BUSES {
        let setup = Setup::new(bus);
        assert_eq!(setup.map(0x2000, 0x3000), Some(0));
        assert_eq!(
            *setup.mapper.mapped.lock().unwrap(),
            [Mapping {
                id: ID,
                offset: 0x2000,
                len: 0x3000,
                file_offset: 0x1000,
                writable: true
            }]
        );
        let readable = payload(ID, 0, 0, 0x1000, 0);
        assert_eq!(setup.ask(MAP, readable, vec![memfd(4096).into()]), Some(0));
        assert!(!setup.mapper.mapped.lock().unwrap()[1].writable);
        assert_eq!(setup.ask(UNMAP, payload(ID, 0, 0x2000, 0x3000, 0), Vec::new()), Some(0));
        assert_eq!(setup.mapped(), [(0, 0x1000)]);
        assert_eq!(setup.map(0x2000, 0x1000), Some(0));
        // Several at a time.
        assert_eq!(setup.ask(UNMAP, payload(ID, 0, 0, WINDOW.len, 0), Vec::new()), Some(0));
        assert_eq!(setup.mapped(), []);
        let device = |f: &dyn Fn(&Remote) -> Option<SharedMemoryRegion>| setup.machine.with_device(|device| f(device));
        use devisor::virtio::VirtioDevice;
        assert_eq!(device(&|device| device.shared_memory(ID)), Some(WINDOW));
        assert_eq!(device(&|device| device.shared_memory(ID + 1)), None);
    }
}

#[test]
fn a_mapping_that_cannot_be_is_refused_and_the_connection_goes_on() {
    let setup = Setup::new(Bus::Mmio);
    assert_eq!(setup.map(0x4000, 0x2000), Some(0));
    let file = || vec![OwnedFd::from(memfd(0x10_0000))];
    for (name, payload, descriptors) in [
        ("of no region", payload(ID + 1, 0, 0, 0x1000, 0), file()),
        ("beyond the end", payload(ID, 0, WINDOW.len - 0x1000, 0x2000, 0), file()),
        ("around the end", payload(ID, 0, u64::MAX - 0xfff, 0x2000, 0), file()),
        (
            "around the end of a file",
            payload(ID, u64::MAX - 0xfff, 0, 0x1000, 0),
            file(),
        ),
        ("of nothing", payload(ID, 0, 0, 0, 0), file()),
        ("of half a page", payload(ID, 0, 0, 0x800, 0), file()),
        ("within a page", payload(ID, 0, 0x10, 0x1000, 0), file()),
        ("within a page of its file", payload(ID, 0x10, 0, 0x1000, 0), file()),
        ("over another", payload(ID, 0, 0x5000, 0x1000, 0), file()),
        ("around another", payload(ID, 0, 0x3000, 0x5000, 0), file()),
        ("without a file", payload(ID, 0, 0, 0x1000, 0), Vec::new()),
        (
            "with two files",
            payload(ID, 0, 0, 0x1000, 0),
            [file(), file()].into_iter().flatten().collect(),
        ),
        ("cut short", vec![0; 12], file()),
        ("that is empty", Vec::new(), file()),
    ] {
        assert_eq!(setup.ask(MAP, payload, descriptors), Some(1), "{name}");
        assert_eq!(setup.mapped(), [(0x4000, 0x2000)], "{name}");
    }
    for (name, offset, len) in [
        ("of nothing", 0, 0x1000),
        ("of half", 0x4000, 0x1000),
        ("of the rest", 0x5000, 0x2000),
    ] {
        assert_eq!(
            setup.ask(UNMAP, payload(ID, 0, offset, len, 0), Vec::new()),
            Some(1),
            "{name}"
        );
        assert_eq!(setup.mapped(), [(0x4000, 0x2000)], "{name}");
    }
    *setup.mapper.refuses.lock().unwrap() = true;
    assert_eq!(setup.map(0, 0x1000), Some(1));
    assert_eq!(setup.machine.with_device(|device| device.host_failures().count), 0);
}

#[test]
fn there_is_an_end_to_how_much_is_mapped() {
    let setup = Setup::new(Bus::Mmio);
    let pages = WINDOW.len / 0x1000;
    for page in 0..pages {
        assert_eq!(setup.map(page * 0x1000, 0x1000), Some(0));
    }
    assert_eq!(setup.mapped().len() as u64, pages);
    assert_eq!(setup.map(0, 0x1000), Some(1));
}

#[test]
fn nothing_is_mapped_after_a_reset_or_once_the_back_end_is_gone() {
    let mut setup = Setup::new(Bus::Pci);
    assert_eq!(setup.map(0, 0x1000), Some(0));
    setup.machine.set_status(0);
    assert_eq!(setup.mapped(), []);
    setup.machine.start(FEATURE);
    assert_eq!(setup.map(0, 0x1000), Some(0));
    let channel = setup.more.channel.lock().unwrap().take().unwrap();
    channel.shutdown(std::net::Shutdown::Both).unwrap();
    poll(&setup.machine, Duration::ZERO);
    assert_eq!(setup.mapped(), []);
    setup
        .machine
        .with_device(|device| assert!(device.host_failures().count > 0));
}

#[test]
fn a_back_end_may_send_the_files_that_it_has_mapped() {
    let setup = Setup::new(Bus::Mmio);
    assert_eq!(setup.more.agreed.load(SeqCst) & (SHMEM | SEND_FD), SHMEM | SEND_FD);
}

#[test]
fn a_window_that_is_too_small_and_a_back_end_without_windows() {
    let mut options = options();
    options.shared_memory = vec![(ID, WINDOW)];
    let connect = middle::connect(&Arc::default(), &more(2 * WINDOW.len));
    let error = Remote::new(connect, shared_memory(1), options.clone()).unwrap_err();
    assert!(matches!(error, RemoteError::Window { id: ID, .. }), "{error}");
    let connect = middle::connect(&Arc::default(), &Arc::default());
    Remote::new(connect, shared_memory(1), options).unwrap();
}
