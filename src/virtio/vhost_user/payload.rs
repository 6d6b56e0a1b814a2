//! Payloads, in the byte order of the host. A payload may be longer than what is in it: what follows is not looked at.

/// The most bytes of a configuration space that a message carries.
pub(crate) const MAX_CONFIG: usize = 256;

/// Reads numbers one after another; what is not there any more is `None`.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes().map(u8::from_ne_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_ne_bytes)
    }
}

/// A `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub u64);

impl Word {
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Fields(bytes).u64().map(Self)
    }

    pub fn to_bytes(self) -> Vec<u8> {
        self.0.to_ne_bytes().into()
    }
}

/// A queue, and whether a descriptor comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VringFile {
    pub index: u8,
    pub has_descriptor: bool,
}

impl VringFile {
    const NO_DESCRIPTOR: u64 = 1 << 8;

    pub fn to_bytes(self) -> Vec<u8> {
        let flag = if self.has_descriptor { 0 } else { Self::NO_DESCRIPTOR };
        Word(u64::from(self.index) | flag).to_bytes()
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let Word(word) = Word::from_bytes(bytes)?;
        Some(Self {
            index: word as u8,
            has_descriptor: word & Self::NO_DESCRIPTOR == 0,
        })
    }
}

/// A vring state description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VringState {
    pub index: u32,
    pub num: u32,
}

impl VringState {
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            index: fields.u32()?,
            num: fields.u32()?,
        })
    }

    pub fn to_bytes(self) -> Vec<u8> {
        [self.index.to_ne_bytes(), self.num.to_ne_bytes()].concat()
    }
}

/// A vring address description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VringAddress {
    pub index: u32,
    /// Whether writes to the used ring are logged: they are, with all others.
    pub flags: u32,
    /// Descriptor area, as a user address of the front end's.
    pub descriptor: u64,
    /// Device area.
    pub used: u64,
    /// Driver area.
    pub available: u64,
    /// The guest address by which writes to the used ring are logged.
    pub log: u64,
}

impl VringAddress {
    pub fn to_bytes(self) -> Vec<u8> {
        let Self {
            index,
            flags,
            descriptor,
            used,
            available,
            log,
        } = self;
        let mut bytes = [index.to_ne_bytes(), flags.to_ne_bytes()].concat();
        bytes.extend([descriptor, used, available, log].map(u64::to_ne_bytes).concat());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            index: fields.u32()?,
            flags: fields.u32()?,
            descriptor: fields.u64()?,
            used: fields.u64()?,
            available: fields.u64()?,
            log: fields.u64()?,
        })
    }
}

/// A memory region description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub guest: u64,
    pub size: u64,
    pub user: u64,
    /// Where in its file it begins.
    pub offset: u64,
}

impl Region {
    fn to_bytes(self) -> Vec<u8> {
        let Self {
            guest,
            size,
            user,
            offset,
        } = self;
        [guest, size, user, offset].map(u64::to_ne_bytes).concat()
    }

    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            guest: fields.u64()?,
            size: fields.u64()?,
            user: fields.u64()?,
            offset: fields.u64()?,
        })
    }
}

/// All memory regions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table(pub Vec<Region>);

impl Table {
    /// As many as descriptors come with a message.
    pub const MAX: u32 = 8;

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [(self.0.len() as u32).to_ne_bytes(), [0; 4]].concat();
        bytes.extend(self.0.iter().flat_map(|region| region.to_bytes()));
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let count = fields.u32()?;
        let _padding = fields.u32()?;
        if count > Self::MAX {
            return None;
        }
        (0..count)
            .map(|_| Region::read(&mut fields))
            .collect::<Option<_>>()
            .map(Self)
    }
}

/// A single memory region.
pub(crate) struct Single(pub Region);

impl Single {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes.extend(self.0.to_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let _padding = fields.u64()?;
        Region::read(&mut fields).map(Self)
    }
}

/// A log description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub size: u64,
    pub offset: u64,
}

impl Log {
    pub fn to_bytes(self) -> Vec<u8> {
        [self.size, self.offset].map(u64::to_ne_bytes).concat()
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            size: fields.u64()?,
            offset: fields.u64()?,
        })
    }
}

/// Bytes of a configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub offset: u32,
    pub flags: u32,
    pub data: Vec<u8>,
}

impl Config {
    /// The driver writes its fields.
    pub const WRITABLE: u32 = 0;
    /// The front end writes all of it, after a migration.
    pub const MIGRATION: u32 = 1;

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let offset = fields.u32()?;
        let size = fields.u32()? as usize;
        let flags = fields.u32()?;
        let data = fields.0.get(..size).filter(|data| data.len() <= MAX_CONFIG)?.to_vec();
        Some(Self { offset, flags, data })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let size = self.data.len() as u32;
        let mut bytes = [self.offset, size, self.flags].map(u32::to_ne_bytes).concat();
        bytes.extend(&self.data);
        bytes
    }
}

/// An inflight description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inflight {
    pub mmap_size: u64,
    pub mmap_offset: u64,
    pub queues: u16,
    pub queue_size: u16,
}

impl Inflight {
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            mmap_size: fields.u64()?,
            mmap_offset: fields.u64()?,
            queues: fields.u16()?,
            queue_size: fields.u16()?,
        })
    }

    /// Its C structure ends with padding, which the other end may count: as long as what it has sent.
    pub fn to_bytes(self, len: usize) -> Vec<u8> {
        let mut bytes = [self.mmap_size.to_ne_bytes(), self.mmap_offset.to_ne_bytes()].concat();
        bytes.extend(self.queues.to_ne_bytes());
        bytes.extend(self.queue_size.to_ne_bytes());
        bytes.resize(len.clamp(bytes.len(), bytes.len() + 4), 0);
        bytes
    }
}

/// Device state transfer parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceStateTransfer {
    pub direction: u32,
    pub phase: u32,
}

impl DeviceStateTransfer {
    /// From the back end to the front end.
    pub const SAVE: u32 = 0;
    /// From the front end to the back end.
    pub const LOAD: u32 = 1;
    /// All rings are stopped.
    pub const STOPPED: u32 = 0;
    /// In the answer: no descriptor comes with it.
    pub const NO_DESCRIPTOR: u64 = 1 << 8;
    /// In the answer: why not, or zero.
    pub const ERROR: u64 = 0xff;

    pub fn to_bytes(self) -> Vec<u8> {
        [self.direction, self.phase].map(u32::to_ne_bytes).concat()
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            direction: fields.u32()?,
            phase: fields.u32()?,
        })
    }
}

/// Kinds of IOTLB messages.
pub(crate) struct IotlbKind;

impl IotlbKind {
    pub const MISS: u8 = 1;
    pub const UPDATE: u8 = 2;
    pub const INVALIDATE: u8 = 3;
    pub const ACCESS_FAIL: u8 = 4;
}

/// An IOTLB message (`struct vhost_iotlb_msg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Iotlb {
    /// I/O virtual address.
    pub address: u64,
    pub size: u64,
    /// Where that is, for the front end.
    pub user: u64,
    /// One for reading, two for writing, three for both.
    pub access: u8,
    pub kind: u8,
}

impl Iotlb {
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            address: fields.u64()?,
            size: fields.u64()?,
            user: fields.u64()?,
            access: fields.u8()?,
            kind: fields.u8()?,
        })
    }

    /// With the padding at the end of the C structure.
    pub fn to_bytes(self) -> Vec<u8> {
        let Self {
            address,
            size,
            user,
            access,
            kind,
        } = self;
        let mut bytes = [address, size, user].map(u64::to_ne_bytes).concat();
        bytes.extend([access, kind, 0, 0, 0, 0, 0, 0]);
        bytes
    }
}

/// What is mapped in a shared memory region of the device, or is no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryMap {
    pub id: u8,
    pub file_offset: u64,
    /// From the start of the region.
    pub offset: u64,
    pub len: u64,
    pub flags: u64,
}

impl MemoryMap {
    /// In the flags: pages can be written.
    pub const WRITABLE: u64 = 1;

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let [id, ..] = fields.bytes::<8>()?;
        Some(Self {
            id,
            file_offset: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u64()?,
            flags: fields.u64()?,
        })
    }
}

/// The size of each shared memory region, by its ID. A region of no size is not there.
pub(crate) struct ShmemConfig(pub Vec<u64>);

impl ShmemConfig {
    /// As many as there are IDs.
    const REGIONS: usize = 256;

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let _count = fields.u32()?;
        let _padding = fields.u32()?;
        let sizes = std::iter::from_fn(|| fields.u64()).take(Self::REGIONS);
        Some(Self(sizes.collect()))
    }
}
