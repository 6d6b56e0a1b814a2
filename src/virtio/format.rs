//! A device's state as bytes, in a format that stays: for a stream that another process reads, of another version of this crate too.
//!
//! A head (magic, version of the format, kind of device, length), then fields one after another, little-endian; what there may be is a
//! byte that says whether it is, what there are many of is their number first. A kind's number and the order of its fields stay; another
//! version of the format is another number.

use std::ops::Range;

use super::{
    DeviceState,
    balloon::{BalloonState, Hinting},
    block::{BlockOptions, BlockState, Geometry, RangeLimits, Topology, ZoneLimits},
    console::{ConsoleState, PortKind, PortState, Size},
    entropy::EntropyState,
    iommu::{AccessFault, DomainState, FaultReason, IommuState, MappingState},
    mem::{MemoryDeviceOptions, MemoryDeviceState, UnpluggedAccess},
    net::{
        Coalescing, HashState, Header, Mac, MacTable, NetFrame, NetOptions, NetState, Offloads, RxModes, Speed,
        Steering,
    },
    pmem::{PmemOptions, PmemState},
    vsock::VsockState,
};

const MAGIC: [u8; 8] = *b"devisor\0";
const VERSION: u16 = 1;
/// Magic, version, kind, length of what follows.
const HEAD: usize = 8 + 2 + 2 + 4;

/// Bytes that are not a device's state are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateBytesError {
    /// They do not begin as a state does.
    #[error("no state of a device: one begins with \"devisor\" and a zero")]
    Magic,
    /// They are of another version of the format.
    #[error("a state in version {0} of the format: version 1 is known")]
    Version(u16),
    /// They are of a kind of device that there is not here.
    #[error("a state of a device of kind {0}: it is not known")]
    Kind(u16),
    /// There are fewer bytes than they say, or more.
    #[error("a state of {0} bytes: as many as it says are needed")]
    Length(usize),
    /// A field says what cannot be.
    #[error("a state that contradicts itself: a field is cut off or says what there is not")]
    Field,
}

impl DeviceState {
    /// The state in a format that stays, for [`from_bytes`](Self::from_bytes).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        // The numbers are taken for good.
        let kind: u16 = match self {
            Self::None => 0,
            Self::Other { version, data } => {
                version.put(&mut body);
                data.put(&mut body);
                1
            }
            Self::Balloon(state) => put(state, 2, &mut body),
            Self::Block(state) => put(state, 3, &mut body),
            Self::Console(state) => put(state, 4, &mut body),
            Self::Entropy(state) => put(state, 5, &mut body),
            Self::Iommu(state) => put(state, 6, &mut body),
            Self::Memory(state) => put(state, 7, &mut body),
            Self::Net(state) => put(state, 8, &mut body),
            Self::Pmem(state) => put(state, 9, &mut body),
            Self::Vsock(state) => put(state, 10, &mut body),
            #[cfg(all(target_os = "linux", feature = "vhost-user"))]
            Self::Remote(state) => put(state, 11, &mut body),
        };
        let mut bytes = MAGIC.to_vec();
        VERSION.put(&mut bytes);
        kind.put(&mut bytes);
        (body.len() as u32).put(&mut bytes);
        bytes.append(&mut body);
        bytes
    }

    /// The state that these bytes are. Whether a device can have it is for that to say. What it takes is bounded by the bytes.
    ///
    /// # Errors
    /// They are none, or contradict themselves.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateBytesError> {
        let mut from = Source(bytes);
        if from.array() != Some(MAGIC) {
            return Err(StateBytesError::Magic);
        }
        let length = StateBytesError::Length(bytes.len());
        let version = u16::get(&mut from).ok_or(length)?;
        if version != VERSION {
            return Err(StateBytesError::Version(version));
        }
        let kind = u16::get(&mut from).ok_or(length)?;
        let len = u32::get(&mut from).ok_or(length)?;
        if bytes.len() - HEAD != len as usize {
            return Err(length);
        }
        let state = Self::body(kind, &mut from).ok_or(StateBytesError::Kind(kind))?;
        // Nothing is left that nobody knows.
        state.filter(|_| from.0.is_empty()).ok_or(StateBytesError::Field)
    }

    /// Of a kind that is known, if it can be.
    fn body(kind: u16, from: &mut Source<'_>) -> Option<Option<Self>> {
        Some(match kind {
            0 => Some(Self::None),
            1 => (|| {
                Some(Self::Other {
                    version: Bytes::get(from)?,
                    data: Bytes::get(from)?,
                })
            })(),
            2 => Bytes::get(from).map(Self::Balloon),
            3 => Bytes::get(from).map(Self::Block),
            4 => Bytes::get(from).map(Self::Console),
            5 => Bytes::get(from).map(Self::Entropy),
            6 => Bytes::get(from).map(Self::Iommu),
            7 => Bytes::get(from).map(Self::Memory),
            8 => Bytes::get(from).map(Self::Net),
            9 => Bytes::get(from).map(Self::Pmem),
            10 => Bytes::get(from).map(Self::Vsock),
            #[cfg(all(target_os = "linux", feature = "vhost-user"))]
            11 => Bytes::get(from).map(Self::Remote),
            _ => return None,
        })
    }
}

fn put(state: &impl Bytes, kind: u16, body: &mut Vec<u8>) -> u16 {
    state.put(body);
    kind
}

/// What is left to be read.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }
}

/// What can be written as bytes and read from them.
trait Bytes: Sized {
    fn put(&self, to: &mut Vec<u8>);
    fn get(from: &mut Source<'_>) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl Bytes for $number {
            fn put(&self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }

            fn get(from: &mut Source<'_>) -> Option<Self> {
                from.array().map(Self::from_le_bytes)
            }
        }
    )*};
}

numbers! { u8 u16 u32 u64 }

impl Bytes for bool {
    fn put(&self, to: &mut Vec<u8>) {
        to.push((*self).into());
    }

    fn get(from: &mut Source<'_>) -> Option<Self> {
        match u8::get(from)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl<T: Bytes> Bytes for Option<T> {
    fn put(&self, to: &mut Vec<u8>) {
        self.is_some().put(to);
        self.iter().for_each(|value| value.put(to));
    }

    fn get(from: &mut Source<'_>) -> Option<Self> {
        match bool::get(from)? {
            false => Some(None),
            true => T::get(from).map(Some),
        }
    }
}

impl<T: Bytes> Bytes for Vec<T> {
    fn put(&self, to: &mut Vec<u8>) {
        (self.len() as u32).put(to);
        self.iter().for_each(|value| value.put(to));
    }

    fn get(from: &mut Source<'_>) -> Option<Self> {
        let count = u32::get(from)? as usize;
        // Each has a byte at least: room is made as they come.
        (count <= from.0.len())
            .then(|| (0..count).map(|_| T::get(from)).collect())
            .flatten()
    }
}

impl<A: Bytes, B: Bytes> Bytes for (A, B) {
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
        self.1.put(to);
    }

    fn get(from: &mut Source<'_>) -> Option<Self> {
        Some((A::get(from)?, B::get(from)?))
    }
}

impl Bytes for Range<u64> {
    fn put(&self, to: &mut Vec<u8>) {
        self.start.put(to);
        self.end.put(to);
    }

    fn get(from: &mut Source<'_>) -> Option<Self> {
        Some(u64::get(from)?..u64::get(from)?)
    }
}

impl Bytes for String {
    fn put(&self, to: &mut Vec<u8>) {
        (self.len() as u32).put(to);
        to.extend(self.as_bytes());
    }

    fn get(from: &mut Source<'_>) -> Option<Self> {
        Self::from_utf8(Vec::get(from)?).ok()
    }
}

impl Bytes for Mac {
    fn put(&self, to: &mut Vec<u8>) {
        to.extend(self.0);
    }

    fn get(from: &mut Source<'_>) -> Option<Self> {
        from.array().map(Self)
    }
}

/// That a control queue is elsewhere is not in the format: where there are several pairs and none is here, it is.
impl Bytes for NetOptions {
    fn put(&self, to: &mut Vec<u8>) {
        let Self {
            mac,
            pairs,
            queue_size,
            control_queue_size,
            front_end_controls: _,
            mtu,
            speed,
            mergeable,
            offloads,
            hash_types,
            rss,
            hash_report,
            backlog,
        } = self;
        mac.put(to);
        pairs.put(to);
        queue_size.put(to);
        control_queue_size.put(to);
        mtu.put(to);
        speed.put(to);
        mergeable.put(to);
        offloads.put(to);
        hash_types.put(to);
        rss.put(to);
        hash_report.put(to);
        backlog.put(to);
    }

    fn get(from: &mut Source<'_>) -> Option<Self> {
        let mac = Bytes::get(from)?;
        let (pairs, queue_size, control_queue_size) = (u16::get(from)?, u16::get(from)?, u16::get(from)?);
        Some(Self {
            mac,
            pairs,
            queue_size,
            control_queue_size,
            front_end_controls: pairs > 1 && control_queue_size == 0,
            mtu: Bytes::get(from)?,
            speed: Bytes::get(from)?,
            mergeable: Bytes::get(from)?,
            offloads: Bytes::get(from)?,
            hash_types: Bytes::get(from)?,
            rss: Bytes::get(from)?,
            hash_report: Bytes::get(from)?,
            backlog: Bytes::get(from)?,
        })
    }
}

/// Structures, all of whose fields are named here in their order in the format.
macro_rules! records {
    ($($record:ident { $($field:ident)* })*) => {$(
        impl Bytes for $record {
            fn put(&self, to: &mut Vec<u8>) {
                let Self { $($field),* } = self;
                $($field.put(to);)*
            }

            fn get(from: &mut Source<'_>) -> Option<Self> {
                $(let $field = Bytes::get(from)?;)*
                Some(Self { $($field),* })
            }
        }
    )*};
}

/// Enumerations without fields, and their numbers in the format.
macro_rules! enumerations {
    ($($name:ident { $($variant:ident = $number:literal)* })*) => {$(
        impl Bytes for $name {
            fn put(&self, to: &mut Vec<u8>) {
                to.push(match self {
                    $(Self::$variant => $number,)*
                });
            }

            fn get(from: &mut Source<'_>) -> Option<Self> {
                match u8::get(from)? {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    )*};
}

records! {
    BalloonState { features queue_size target actual poison contiguous hinting }
    Hinting { command given answered }
    BlockState { options unmap lifetime zones capacity writeback }
    BlockOptions {
        id read_only block_size queues queue_size size_max geometry topology config_wce discard discard_alignment write_zeroes
        secure_erase
    }
    Geometry { cylinders heads sectors }
    Topology { physical_block_exp alignment_offset minimum_io_blocks optimal_io_blocks }
    RangeLimits { max_sectors max_segments }
    ZoneLimits { zone_size max_open max_active max_append write_granularity }
    ConsoleState { max_ports size device_ready ports }
    PortState {
        told ready guest_open console_told name_told open_told was_closed resize_owed size backlog sent
    }
    Size { cols rows }
    IommuState { bypass domains faults lost waiting }
    DomainState { id bypass endpoints mappings }
    MappingState { first last physical flags }
    AccessFault { reason endpoint address read write }
    MemoryDeviceState { options usable_size plugged }
    MemoryDeviceOptions { region block_size requested_size usable_extra node_id unplugged_access queue_size }
    NetState {
        options features link_up announce mac modes unicast multicast vlans pairs offloads hash coalescing frames
    }
    Speed { megabits full_duplex }
    RxModes { promiscuous all_multicast all_unicast no_multicast no_unicast no_broadcast }
    MacTable { addresses overflown }
    Offloads { checksum tso4 tso6 ecn ufo uso4 uso6 }
    HashState { types key steering }
    Steering { unclassified table max_tx_vq }
    Coalescing { max_packets max_usecs }
    NetFrame { header data }
    Header { flags gso_type hdr_len gso_size csum_start csum_offset num_buffers }
    PmemState { options }
    PmemOptions { region shared_memory queue_size }
    VsockState { guest_cid in_use event_owed }
}

#[cfg(all(target_os = "linux", feature = "vhost-user"))]
use super::remote::{BackEndState, RemoteState};
#[cfg(all(target_os = "linux", feature = "vhost-user"))]
records! {
    RemoteState { device queue_sizes written back_end }
}

#[cfg(all(target_os = "linux", feature = "vhost-user"))]
impl Bytes for BackEndState {
    fn put(&self, to: &mut Vec<u8>) {
        let state = match self {
            Self::None => None,
            Self::Lost => Some(None),
            Self::Saved(state) => Some(Some(state.clone())),
        };
        state.put(to);
    }

    fn get(from: &mut Source<'_>) -> Option<Self> {
        Some(match Option::<Option<Vec<u8>>>::get(from)? {
            None => Self::None,
            Some(None) => Self::Lost,
            Some(Some(state)) => Self::Saved(state),
        })
    }
}

enumerations! {
    PortKind { Console = 0 Generic = 1 }
    FaultReason { Domain = 1 Mapping = 2 }
    UnpluggedAccess { Allowed = 0 Discouraged = 1 Refused = 2 }
}

impl Bytes for EntropyState {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Seeded(seed) => Some(*seed).put(to),
            Self::External => None::<u64>.put(to),
        }
    }

    fn get(from: &mut Source<'_>) -> Option<Self> {
        let seed = Option::<u64>::get(from)?;
        Some(seed.map_or(Self::External, Self::Seeded))
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
