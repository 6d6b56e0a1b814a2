//! The network device (virtio 1.2, section 5.1).

mod backlog;
mod burst;
mod checksum;
mod coalesce;
mod control;
mod cut;
mod filter;
mod hash;
mod header;
mod limit;
mod options;
mod pcap;
mod port;
mod receive;
mod registers;
mod settings;
mod shared;
#[cfg(unix)]
mod socket;
mod state;
mod switch;
#[cfg(target_os = "linux")]
mod tap;
mod transmit;
#[cfg(unix)]
mod vectored;
mod verdict;
mod wire;

use std::{
    fmt,
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
};

use super::{
    DeviceId, DeviceState, DeviceStateError, FailureLog, Handle, HostFailures, QueueHandler, QueueIndex, VirtioDevice,
    device::read_config_bytes,
};
use crate::time::Clock;
use control::{Control, Nobody};
use receive::Receiver;
use registers::{config, feature, status};
use settings::Settings;
use shared::Shared;
use transmit::Transmitter;

pub use backlog::NetFrame;
pub use filter::{MAC_TABLE, MacTable, RxModes};
pub use hash::{MAX_KEY, MAX_TABLE, toeplitz};
pub use header::{BadHeader, Header, MAX_FRAME, MIN_FRAME, Offloads};
pub use limit::{Limited, RateLimit};
pub use options::{MAX_PAIRS, Mac, NetError, NetOptions, Speed};
pub use pcap::Pcap;
pub use port::{Holder, Port, PortOffloads, Progress, Received, Waker};
pub use receive::Incoming;
pub use settings::{Coalescing, Steering};
pub use shared::NetCounters;
#[cfg(unix)]
pub use socket::{DatagramSocket, StreamSocket};
pub use state::{HashState, NetState};
pub use switch::{Switch, SwitchCounters, SwitchOptions, SwitchPort};
#[cfg(target_os = "linux")]
pub use tap::{Tap, TapError};
pub use transmit::Outgoing;
pub use wire::Wire;

/// A network interface.
///
/// Each queue has a handler of its own, and all of them may run at the same time. What is behind them are [`Port`]s: one, or one for
/// each pair of queues. The device filters what it receives by address and VLAN, steers it to the queue pair that it is for, completes
/// checksums that the other side does not take, and spreads what is too long for a buffer over several.
///
/// *What the driver gets wrong*: a chain that cannot be a frame, or whose header asks for what was not negotiated or contradicts the
/// frame, comes back with a used length of 0 and is counted as malformed; a command gets VIRTIO_NET_ERR, and has changed nothing.
///
/// *What the host gets wrong*: the frame is lost, as on a wire, and counted in [`host_failures`](Self::host_failures). Whether the link
/// is down because of that is the embedder's to say ([`set_link`](Self::set_link)).
///
/// *Notifications* come once for all frames of a round; if the driver wants fewer, and the device has a [clock](Self::with_clock), they
/// are coalesced over several rounds.
///
/// ```
/// use devisor::{
///     interrupt::NoInterrupt,
///     virtio::{VirtioMmio, net::{Net, NetOptions, Wire}, transport::mmio::Line},
/// };
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let wire = Arc::new(Wire::new(64));
/// let options = NetOptions { mac: Some("52:54:00:00:00:01".parse()?), ..NetOptions::default() };
/// let nic = Net::new([Arc::clone(&wire)], options)?;
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let nic = VirtioMmio::new(nic, memory, Line::Edge(Arc::new(NoInterrupt)))?;
///
/// // Somebody pulls the plug.
/// nic.change_config(|nic| nic.set_link(false));
/// assert!(!nic.with_device(|nic| nic.is_link_up()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Net {
    shared: Arc<Shared>,
    ports: Box<[Arc<dyn Port>]>,
    queue_sizes: Box<[u16]>,
    handle: Arc<OnceLock<Handle>>,
}

impl Net {
    /// An interface with these ports behind it: one for each queue pair, or fewer, which several pairs share to send by.
    ///
    /// # Errors
    /// An option is out of range, or there are no ports, or too many.
    pub fn new<P: Port + 'static>(ports: impl IntoIterator<Item = P>, options: NetOptions) -> Result<Self, NetError> {
        Self::with_ports(ports.into_iter().map(|port| Arc::new(port) as _).collect(), options)
    }

    fn with_ports(ports: Box<[Arc<dyn Port>]>, options: NetOptions) -> Result<Self, NetError> {
        options.check()?;
        let pairs = options.pairs;
        if ports.is_empty() || ports.len() > pairs.into() {
            let ports = ports.len();
            return Err(NetError::Ports { ports, pairs });
        }
        let port_offloads = ports_offloads(&ports);
        let mut queue_sizes = vec![options.queue_size; usize::from(pairs) * 2];
        if options.control_queue_size != 0 {
            queue_sizes.push(options.control_queue_size);
        }
        let features = offered(&options, port_offloads, false);
        let shared = Shared::new(options, features, port_offloads, &ports, FailureLog::default());
        Ok(Self {
            shared: Arc::new(shared),
            ports,
            queue_sizes: queue_sizes.into(),
            handle: Arc::default(),
        })
    }

    /// Offers VIRTIO_NET_F_NOTF_COAL and VIRTIO_NET_F_VQ_NOTF_COAL, if there is a control queue: notifications are late by this clock, as
    /// the driver asks for, and their queues [wait](super::Wait::Until) for their time. Before it is put behind a transport.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock + 'static) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.features = offered(&shared.options, shared.port_offloads, true);
            shared.clock = Some(Arc::new(clock));
        }
        self
    }

    /// Whether the link is up.
    pub fn is_link_up(&self) -> bool {
        self.shared.settings().link_up
    }

    /// Plugs the cable in, or pulls it: call this through [`VirtioMmio::change_config`](super::VirtioMmio::change_config) or that of
    /// another transport, which tells the driver. While the link is down, frames are dropped either way.
    pub fn set_link(&mut self, up: bool) {
        self.shared.change(|settings| settings.link_up = up);
    }

    /// Asks the driver to tell the network where it is, as after a migration, if it can (VIRTIO_NET_F_GUEST_ANNOUNCE): call this through
    /// `change_config` too. Whether it can.
    pub fn announce(&mut self) -> bool {
        self.shared.change(|settings| {
            settings.announce = settings.has(feature::GUEST_ANNOUNCE);
            settings.announce
        })
    }

    /// Whether the driver was asked to, and has not said yet that it has heard.
    pub fn is_announcing(&self) -> bool {
        self.shared.settings().announce
    }

    /// The address: that of the options, or what the driver has set.
    pub fn mac(&self) -> Option<Mac> {
        self.shared.settings().mac.or(self.shared.options.mac)
    }

    /// How many queue pairs the driver has enabled.
    pub fn active_pairs(&self) -> u16 {
        self.shared.settings().active_pairs(&self.shared.options)
    }

    /// The receive modes that the driver has set.
    pub fn rx_modes(&self) -> RxModes {
        self.shared.settings().filter.modes
    }

    /// What the driver wants of notifications of a queue.
    pub fn coalescing(&self, queue: QueueIndex) -> Option<Coalescing> {
        self.shared.settings().coalescing.get(usize::from(queue.0)).copied()
    }

    /// What the ports have failed at. The guest loses a frame for each.
    pub fn host_failures(&self) -> HostFailures {
        self.shared.failures.get()
    }

    /// What was dropped on the way.
    pub fn counters(&self) -> NetCounters {
        let counters = &self.shared.counters;
        NetCounters {
            filtered: counters.filtered.load(Relaxed),
            dropped: counters.dropped.load(Relaxed),
            link_down: counters.link_down.load(Relaxed),
        }
    }

    /// The configuration space (section 5.1.4). A field whose feature is not offered is zero.
    fn config(&self) -> [u8; config::LEN] {
        let mut space = [0; config::LEN];
        let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
        let (settings, options, features) = (self.shared.settings(), &self.shared.options, self.shared.features);
        let has = |bits| features & bits != 0;
        if has(feature::MAC) {
            // "If VIRTIO_NET_F_MAC has been negotiated, this will be reflected in mac" (section 5.1.6.5.2).
            put(config::MAC, &self.mac().unwrap_or_default().0);
        }
        let up = if settings.link_up { status::LINK_UP } else { 0 };
        let announce = if settings.announce { status::ANNOUNCE } else { 0 };
        put(config::STATUS, &(up | announce).to_le_bytes());
        if has(feature::MQ | feature::RSS) {
            put(config::MAX_VIRTQUEUE_PAIRS, &options.pairs.to_le_bytes());
        }
        put(config::MTU, &options.mtu.unwrap_or(0).to_le_bytes());
        if let Some(speed) = options.speed {
            put(config::SPEED, &speed.megabits.to_le_bytes());
            put(config::DUPLEX, &[speed.full_duplex.into()]);
        }
        if has(feature::RSS | feature::HASH_REPORT) {
            put(config::RSS_MAX_KEY_SIZE, &[MAX_KEY as u8]);
            put(config::SUPPORTED_HASH_TYPES, &options.hash_types.to_le_bytes());
        }
        if has(feature::RSS) {
            put(
                config::RSS_MAX_INDIRECTION_TABLE_LENGTH,
                &(MAX_TABLE as u16).to_le_bytes(),
            );
        }
        space
    }
}

/// What all ports can do.
fn ports_offloads(ports: &[Arc<dyn Port>]) -> PortOffloads {
    let all = PortOffloads {
        send: Offloads::ALL,
        receive: Offloads::ALL,
    };
    let common = ports.iter().fold(all, |all, port| {
        let PortOffloads { send, receive } = port.offloads();
        PortOffloads {
            send: all.send.and(send),
            receive: all.receive.and(receive),
        }
    });
    PortOffloads {
        send: common.send.consistent(),
        receive: common.receive.consistent(),
    }
}

/// The features of a device with these options, over such ports; coalescing takes a clock.
fn offered(options: &NetOptions, ports: PortOffloads, has_clock: bool) -> u64 {
    let controlled = options.control_queue_size != 0;
    let several = options.pairs > 1;
    let hashes = controlled && options.hash_types != 0;
    let optional = [
        (feature::MAC, options.mac.is_some()),
        (feature::MTU, options.mtu.is_some()),
        (feature::SPEED_DUPLEX, options.speed.is_some()),
        (feature::MRG_RXBUF, options.mergeable),
        (
            feature::CTRL_VQ
                | feature::CTRL_RX
                | feature::CTRL_RX_EXTRA
                | feature::CTRL_VLAN
                | feature::CTRL_MAC_ADDR
                | feature::GUEST_ANNOUNCE,
            controlled,
        ),
        (feature::NOTF_COAL | feature::VQ_NOTF_COAL, controlled && has_clock),
        (feature::MQ, several),
        (feature::RSS, hashes && several && options.rss),
        (feature::HASH_REPORT, hashes && options.hash_report),
    ];
    let always = feature::STATUS;
    let own = optional
        .iter()
        .fold(always, |all, &(bits, on)| if on { all | bits } else { all });
    if !options.offloads {
        return own;
    }
    let guest = ports.receive.guest();
    let runtime = if controlled && guest != 0 {
        feature::CTRL_GUEST_OFFLOADS
    } else {
        0
    };
    // A checksum that no port takes is completed here.
    own | feature::CSUM | ports.send.host() | guest | runtime
}

impl VirtioDevice for Net {
    fn device_id(&self) -> DeviceId {
        DeviceId::NET
    }

    fn features(&self) -> u64 {
        self.shared.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn attach(&mut self, handle: Handle) {
        for (index, port) in (0..).zip(&self.ports) {
            port.attach(Waker {
                handle: handle.clone(),
                holder: self.shared.holder,
                receive: QueueIndex(index * 2),
                transmit: QueueIndex(index * 2 + 1),
                // Pairs beyond the ports have one of these, in turn.
                distance: self.ports.len() as u16 * 2,
                last: QueueIndex(self.shared.options.pairs * 2 - 1),
            });
        }
        let _ = self.handle.set(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    /// Whether each feature comes with those that it needs (section 5.1.3.1). A control queue that is elsewhere is not told of.
    fn accepts(&self, features: u64) -> bool {
        let elsewhere = match self.shared.options.front_end_controls {
            true => feature::MQ,
            false => 0,
        };
        let mut needs = feature::NEEDS.iter();
        let complete = needs.all(|&(of, one)| features & of & !elsewhere == 0 || features & one != 0);
        complete && state::fits(&self.shared, features)
    }

    fn negotiated(&mut self, features: u64) {
        self.shared
            .change(|settings| settings.negotiated = features & self.shared.features);
        self.shared.tell_ports();
    }

    /// The control queue comes after the pairs, of which there is one to a driver without MQ and RSS (section 5.1.2).
    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        let settings = self.shared.settings();
        let pairs = settings.known_pairs(&self.shared.options);
        let shared = Arc::clone(&self.shared);
        let (pair, transmits) = (queue.0 / 2, queue.0 % 2 == 1);
        match transmits {
            _ if pair == pairs && !transmits && settings.has(feature::CTRL_VQ) => {
                Box::new(Control::new(shared, Arc::clone(&self.handle)))
            }
            _ if pair >= pairs => Box::new(Nobody),
            true => Box::new(Transmitter::new(shared, pair)),
            false => Box::new(Receiver::new(shared, pair.into(), Arc::clone(&self.handle))),
        }
    }

    fn reset(&mut self) {
        self.shared
            .change(|settings| *settings = settings.reset(&self.shared.options));
        self.shared.forget();
        self.shared.tell_ports();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(state::save(&self.shared))
    }

    /// The guest keeps what it was told, but for what stands behind: ports that do not take what it was offered are refused, and
    /// another number or size of queues is too. The link is as the state has it.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Net(state) = state else {
            return Err(DeviceStateError::kind(state, "a network device's"));
        };
        self.shared = Arc::new(state::restored(&self.shared, &self.ports, state)?);
        Ok(())
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("options", &self.shared.options)
            .field("features", &format_args!("{:#x}", self.shared.features))
            .field("ports", &self.ports.len())
            .field("failures", &self.shared.failures)
            .finish_non_exhaustive()
    }
}

impl Drop for Net {
    /// Ports may outlive the device.
    fn drop(&mut self) {
        for port in &self.ports {
            let _ = port.set_active(self.shared.holder, false);
        }
    }
}

/// The settings of a new device, for states.
fn fresh(shared: &Shared) -> Settings {
    Settings::new(&shared.options)
}
