//! What an embedder decides about a network device.

use std::{fmt, str::FromStr};

use super::registers::hash_type;

/// An Ethernet address.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of all stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names a group of stations, or all.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a station can have it.
    pub fn is_station(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = NetError;

    /// Six pairs of hexadecimal digits with colons between.
    fn from_str(text: &str) -> Result<Self, NetError> {
        let wrong = || NetError::MacText(text.chars().take(32).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let digits = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(wrong()),
        }
    }
}

/// How fast a link is, as the guest is told (section 5.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    /// In megabits a second, up to 0x7fff_ffff.
    pub megabits: u32,
    /// Whether it goes both ways at once.
    pub full_duplex: bool,
}

/// How a network device looks to the guest.
///
/// ```
/// use devisor::virtio::net::{NetOptions, Speed};
///
/// let options = NetOptions {
///     mac: Some("52:54:00:12:34:56".parse()?),
///     mtu: Some(9000),
///     speed: Some(Speed { megabits: 10_000, full_duplex: true }),
///     ..NetOptions::default()
/// };
/// assert_eq!(options.pairs, 1);
/// # Ok::<(), devisor::virtio::net::NetError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// The address. If `None`, the driver makes one up.
    pub mac: Option<Mac>,
    /// `max_virtqueue_pairs`: how many pairs of a receive and a transmit queue there are, up to 256. The driver uses as many of them
    /// as it wants.
    pub pairs: u16,
    /// Size of each queue, a power of two from 2 to 32768.
    pub queue_size: u16,
    /// Size of the control queue, a power of two from 4 to 32768; zero if there is to be none, and with it none of what it does.
    pub control_queue_size: u16,
    /// Whether the front end of a vhost-user device has the control queue to itself, as QEMU and DPDK do: there is none here then
    /// (`control_queue_size` is zero), several pairs come without CTRL_VQ, and those are in use whose queues were started, from the first
    /// on.
    pub front_end_controls: bool,
    /// The maximum MTU, from 68 to 65535, if the guest is to be told one.
    pub mtu: Option<u16>,
    /// How fast the link is, if the guest is to be told.
    pub speed: Option<Speed>,
    /// Whether received packets may be spread over several buffers.
    pub mergeable: bool,
    /// Whether the guest may leave large packets and checksums to the device, and be left them, where the ports can do that.
    pub offloads: bool,
    /// Which hashes the device offers to compute of received packets, to steer them by (RSS) or to report: bits of
    /// `supported_hash_types`. None if zero.
    pub hash_types: u32,
    /// Whether it steers by them: needs more than one pair.
    pub rss: bool,
    /// Whether it reports them.
    pub hash_report: bool,
    /// Frames that may wait in the device for a receive queue, because they were steered from another port or came when no buffer was
    /// left: from 1 to 65536. Further ones are dropped.
    pub backlog: u32,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self {
            mac: None,
            pairs: 1,
            queue_size: 256,
            control_queue_size: 64,
            front_end_controls: false,
            mtu: None,
            speed: None,
            mergeable: true,
            offloads: true,
            hash_types: hash_type::ALL,
            rss: true,
            hash_report: true,
            backlog: 256,
        }
    }
}

/// A network device cannot be made as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// No address.
    #[error("{0:?} is no Ethernet address: six pairs of hexadecimal digits with colons between are accepted")]
    MacText(String),
    /// The address of a group, or of nobody.
    #[error("{0} is not the address of a station: one whose first byte is even, and that is not zero, is accepted")]
    Mac(Mac),
    /// A number out of range.
    #[error("{field} is {value}: {min} to {max} is accepted")]
    Range {
        /// Which option.
        field: &'static str,
        /// What was asked for.
        value: u32,
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// No such queue size.
    #[error("queue size {value}: a power of two from {min} to 32768 is accepted")]
    QueueSize {
        /// What was asked for.
        value: u16,
        /// The least.
        min: u16,
    },
    /// Several pairs that nobody could enable.
    #[error(
        "{0} queue pairs without a control queue, which enables them: one pair, a control queue, or a front end that has it, is needed"
    )]
    Control(u16),
    /// Two that enable pairs.
    #[error("a control queue beside that of the front end: one of both is accepted")]
    TwoControls,
    /// No such hash types.
    #[error("hash types {0:#x}: bits of 0x1ff are accepted")]
    HashTypes(u32),
    /// Ports for more pairs than there are, or none.
    #[error("{ports} ports for {pairs} queue pairs: one port up to one for each pair is accepted")]
    Ports {
        /// How many ports there are.
        ports: usize,
        /// How many queue pairs.
        pairs: u16,
    },
}

impl NetOptions {
    pub(super) fn check(&self) -> Result<(), NetError> {
        let Self {
            mac,
            pairs,
            queue_size,
            control_queue_size,
            front_end_controls,
            mtu,
            speed,
            mergeable: _,
            offloads: _,
            hash_types,
            rss: _,
            hash_report: _,
            backlog,
        } = *self;
        let in_range = |field, value, min, max| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(NetError::Range { field, value, min, max }),
        };
        let queue = |value: u16, min: u16| match value.is_power_of_two() && value >= min {
            true => Ok(()),
            false => Err(NetError::QueueSize { value, min }),
        };
        if let Some(mac) = mac.filter(|mac| !mac.is_station()) {
            return Err(NetError::Mac(mac));
        }
        in_range("pairs", pairs.into(), 1, MAX_PAIRS.into())?;
        queue(queue_size, 2)?;
        if control_queue_size != 0 {
            queue(control_queue_size, 4)?;
            if front_end_controls {
                return Err(NetError::TwoControls);
            }
        } else if pairs != 1 && !front_end_controls {
            return Err(NetError::Control(pairs));
        }
        if let Some(mtu) = mtu {
            // "The device MUST set mtu to between 68 and 65535 inclusive" (section 5.1.4.1).
            in_range("mtu", mtu.into(), 68, 65535)?;
        }
        if let Some(speed) = speed {
            in_range("megabits", speed.megabits, 0, 0x7fff_ffff)?;
        }
        if hash_types & !hash_type::ALL != 0 {
            return Err(NetError::HashTypes(hash_types));
        }
        in_range("backlog", backlog, 1, 65536)
    }
}

/// The most queue pairs: what Linux takes of a TAP.
pub const MAX_PAIRS: u16 = 256;
