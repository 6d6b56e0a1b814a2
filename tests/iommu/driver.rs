//! A driver of an IOMMU, and of devices behind it.

use std::{fs::File, sync::Arc};

use devisor::virtio::{
    VirtioDevice, features,
    iommu::{EndpointId, Iommu, IommuEndpoint, IommuOptions},
    transport::TransportOptions,
};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, bitmap::NewBitmap};

use crate::{
    both::{COMMON, Guest, Transport},
    ring,
};

pub const OK: u8 = 0;
pub const UNSUPP: u8 = 2;
pub const INVAL: u8 = 4;
pub const RANGE: u8 = 5;
pub const NOENT: u8 = 6;
pub const NOMEM: u8 = 8;

pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
pub const MMIO: u32 = 4;

/// Bytes of memory that the driver of one device has.
pub const OWN: u64 = 1 << 20;
/// Where a driver has its memory in the addresses of its device.
pub const SHIFT: u64 = 0x40_1000_0000;
/// Two endpoints, whose drivers have the first and the second MiB of memory.
pub const ONE: u32 = 8;
pub const TWO: u32 = 9;
pub const DOORBELL: std::ops::RangeInclusive<u64> = 0x802_0000..=0x802_0fff;

/// All features that this driver has use for.
pub const ALL: u64 = COMMON | features::ACCESS_PLATFORM | 0x7f;

pub fn options() -> IommuOptions {
    IommuOptions {
        endpoints: [ONE, TWO]
            .map(|id| IommuEndpoint::new(EndpointId(id)).with_msi(DOORBELL))
            .into(),
        ..IommuOptions::default()
    }
}

/// Memory, and the parts of it that two drivers have.
pub struct Ram {
    pub all: Arc<GuestMemoryMmap>,
    pub own: [Arc<GuestMemoryMmap>; 2],
    file: Arc<File>,
}

/// All of a memory, in two regions.
fn regions<B: NewBitmap>(file: &Arc<File>) -> Arc<GuestMemoryMmap<B>> {
    let part = |at| {
        let file = FileOffset::from_arc(Arc::clone(file), at);
        (GuestAddress(at), OWN as usize, Some(file))
    };
    Arc::new(GuestMemoryMmap::from_ranges_with_files([part(0), part(OWN)]).expect("mapped"))
}

impl Ram {
    pub fn new() -> Self {
        let file = File::from(nameless());
        file.set_len(2 * OWN).expect("room");
        let file = Arc::new(file);
        let own = |offset| {
            let file = FileOffset::from_arc(Arc::clone(&file), offset);
            let range = (GuestAddress(0), OWN as usize, Some(file));
            Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).expect("mapped"))
        };
        Self {
            all: regions(&file),
            own: [own(0), own(OWN)],
            file,
        }
    }

    /// The same memory as who keeps marks of what is written sees it.
    pub fn tracked<B: NewBitmap>(&self) -> Arc<GuestMemoryMmap<B>> {
        regions(&self.file)
    }

    /// The same again.
    pub fn again(&self) -> Self {
        Self {
            all: Arc::clone(&self.all),
            own: self.own.clone(),
            file: Arc::clone(&self.file),
        }
    }
}

/// A file that has no name any more.
fn nameless() -> std::os::fd::OwnedFd {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("devisor-iommu-{}-{number}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.expect("a temporary file");
    std::fs::remove_file(&path).expect("it was made");
    file.into()
}

/// The IOMMU and who drives it.
pub struct World {
    pub ram: Ram,
    pub iommu: Guest<Iommu>,
    pub kind: Transport,
}

impl World {
    pub fn new(kind: Transport) -> Self {
        Self::with(kind, options(), u64::MAX)
    }

    /// With a driver that accepts these features at most.
    pub fn with(kind: Transport, options: IommuOptions, features: u64) -> Self {
        let mut world = Self::untouched(kind, options);
        world.drive(features);
        world
    }

    /// Whose driver has not come yet.
    pub fn untouched(kind: Transport, options: IommuOptions) -> Self {
        let ram = Ram::new();
        let iommu = Iommu::new(Arc::clone(&ram.all), options).expect("valid options");
        let iommu = Guest::new(kind, iommu, &ring::memory());
        Self { ram, iommu, kind }
    }

    pub fn drive(&mut self, features: u64) {
        let features = features & self.iommu.offered() & ALL | features::VERSION_1;
        self.iommu.drive(features, &[0, 1]);
    }

    /// A device that is endpoint [`ONE`] or [`TWO`]; its driver has not come yet.
    pub fn put_behind<D: VirtioDevice + 'static>(&self, endpoint: u32, device: D) -> Guest<D> {
        self.put_behind_with(endpoint, device, self.kind.options())
    }

    /// The same, behind a transport of these options.
    pub fn put_behind_with<D>(&self, endpoint: u32, device: D, options: TransportOptions) -> Guest<D>
    where
        D: VirtioDevice + 'static,
    {
        let memory = self.iommu.with_device(|iommu| iommu.memory(EndpointId(endpoint)));
        let own = &self.ram.own[(endpoint - ONE) as usize];
        let memory = (own, memory.expect("an endpoint"), SHIFT);
        Guest::behind(self.kind, device, memory, options)
    }

    /// The same, with all of its driver's memory mapped in a domain of its number, and a driver.
    pub fn run_behind<D: VirtioDevice + 'static>(&mut self, endpoint: u32, device: D, queues: &[u16]) -> Guest<D> {
        let mut guest = self.put_behind(endpoint, device);
        assert_eq!(self.attach(endpoint, endpoint, 0), OK);
        assert_eq!(self.map_own(endpoint), OK);
        guest.drive(COMMON | features::ACCESS_PLATFORM, queues);
        guest
    }

    /// Maps all of a driver's memory at its place, in the domain of the endpoint's number.
    pub fn map_own(&mut self, endpoint: u32) -> u8 {
        let physical = OWN * u64::from(endpoint - ONE);
        self.map(endpoint, (SHIFT, OWN), physical, READ | WRITE)
    }

    /// Runs a request whose answer is its status.
    pub fn request(&mut self, bytes: &[u8]) -> u8 {
        let (used, answer) = self.iommu.ask(0, bytes, 4);
        assert_eq!((used, &answer[1..]), (4, &[0; 3][..]));
        answer[0]
    }

    pub fn attach(&mut self, domain: u32, endpoint: u32, flags: u32) -> u8 {
        self.request(&words(1, &[domain, endpoint, flags, 0]))
    }

    pub fn detach(&mut self, domain: u32, endpoint: u32) -> u8 {
        self.request(&words(2, &[domain, endpoint, 0, 0]))
    }

    /// A range by its first address and its length.
    pub fn map(&mut self, domain: u32, range: (u64, u64), physical: u64, flags: u32) -> u8 {
        self.request(&map(domain, range, physical, flags))
    }

    pub fn unmap(&mut self, domain: u32, range: (u64, u64)) -> u8 {
        self.request(&unmap(domain, range))
    }

    /// What was told of faults since this was last asked: reason, flags, endpoint and address of each. The driver gives a buffer for each
    /// first.
    pub fn faults(&mut self) -> Vec<(u8, u32, u32, u64)> {
        const REPORT: u64 = 0xa_0000;
        let used = self.iommu.ring(1).used();
        let reports = used.into_iter().map(|(head, len)| {
            assert_eq!(len, 24);
            let report = self.iommu.get(REPORT + 24 * u64::from(head), 24);
            assert_eq!([&report[1..4], &report[12..16]].concat(), [0; 7]);
            let word = |at: usize| u32::from_le_bytes(report[at..at + 4].try_into().unwrap());
            (
                report[0],
                word(4),
                word(8),
                u64::from_le_bytes(report[16..].try_into().unwrap()),
            )
        });
        reports.collect()
    }

    /// Gives so many buffers for reports of faults.
    pub fn take_reports(&mut self, count: u16) {
        self.give_buffers(count);
        self.iommu.kick(1);
    }

    /// The same, and tells nobody.
    pub fn give_buffers(&mut self, count: u16) {
        const REPORT: u64 = 0xa_0000;
        for _ in 0..count {
            // The next descriptor is known by when the chain is made.
            let head = self.iommu.ring(1).avail_idx() % self.iommu.ring(1).layout.size;
            let buffer = ring::writable(REPORT + 24 * u64::from(head), 24);
            assert_eq!(self.iommu.ring(1).request(&[buffer]), head);
        }
    }
}

/// A request of these words after its type.
pub fn words(kind: u8, words: &[u32]) -> Vec<u8> {
    let head = [kind, 0, 0, 0];
    head.into_iter()
        .chain(words.iter().flat_map(|word| word.to_le_bytes()))
        .collect()
}

pub fn map(domain: u32, (first, len): (u64, u64), physical: u64, flags: u32) -> Vec<u8> {
    let mut bytes = words(3, &[domain]);
    for address in [first, first.wrapping_add(len).wrapping_sub(1), physical] {
        bytes.extend(address.to_le_bytes());
    }
    bytes.extend(flags.to_le_bytes());
    bytes
}

pub fn unmap(domain: u32, (first, len): (u64, u64)) -> Vec<u8> {
    let mut bytes = words(4, &[domain]);
    for address in [first, first.wrapping_add(len).wrapping_sub(1)] {
        bytes.extend(address.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes
}
