//! Packets between the guest and TAPs, by `/dev/vhost-net`.

use std::{
    fmt, io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use super::{
    super::{
        connect::{Connect, Connection, Reached},
        event::{Ends, Events},
        log::Log,
        peer::{Described, InflightTable, Peer},
        regions::SharedRegion,
    },
    calls::{Calls, MOST_REGIONS, file},
    device::{OpenVhost, open},
    numbers,
};
use crate::virtio::vhost_user::vhost_feature;

/// Of a device: one pair.
const QUEUES: u16 = 2;
/// A queue without a back end does not run.
const NOTHING: i32 = -1;

/// The network device in the kernel: a pair of queues for each of the host's descriptors, TAPs mostly.
///
/// *What the driver is offered* of offloads is [`more_features`](super::super::RemoteOptions::more_features): vhost passes the header of
/// a packet on to the TAP and back. Its configuration space is the embedder's.
pub struct VhostNet {
    ports: Arc<[OwnedFd]>,
    open: OpenVhost,
}

impl VhostNet {
    /// Each of these is a queue of a TAP (or macvtap), opened with IFF_VNET_HDR, whose header was made 12 bytes long (TUNSETVNETHDRSZ)
    /// and whose offloads are set (TUNSETOFFLOAD) by the embedder.
    pub fn new(ports: Vec<OwnedFd>) -> Self {
        Self::with(ports, open("/dev/vhost-net"))
    }

    /// The same with devices of another place: one is opened for each.
    pub fn with(ports: Vec<OwnedFd>, open: OpenVhost) -> Self {
        let ports = ports.into();
        Self { ports, open }
    }
}

impl Connect for VhostNet {
    fn connect(&mut self) -> io::Result<Connection> {
        let mut devices = Vec::new();
        for _ in self.ports.iter() {
            let mut calls = Calls((self.open)()?);
            calls.set_owner()?;
            devices.push(calls);
        }
        let Some(first) = devices.first_mut() else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a network device without a TAP: one or more are accepted",
            ));
        };
        let offered = first.features()? & !numbers::NET_HEADER;
        Ok(Connection(Reached::Here(Box::new(NetPeer {
            devices,
            offered,
            ports: Arc::clone(&self.ports),
            ends: Arc::default(),
        }))))
    }
}

impl fmt::Debug for VhostNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostNet")
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

struct NetPeer {
    /// One for each pair.
    devices: Vec<Calls>,
    offered: u64,
    ports: Arc<[OwnedFd]>,
    ends: Arc<Ends>,
}

impl NetPeer {
    /// The device of a queue, and the queue's index there.
    fn device(&mut self, index: u16) -> io::Result<(&mut Calls, u32)> {
        let device = self.devices.get_mut(usize::from(index / QUEUES));
        Ok((device.ok_or(io::ErrorKind::InvalidInput)?, u32::from(index % QUEUES)))
    }

    fn each(&mut self, f: impl Fn(&mut Calls) -> io::Result<()>) -> io::Result<()> {
        self.devices.iter_mut().try_for_each(f)
    }
}

impl Peer for NetPeer {
    fn offered(&self) -> u64 {
        self.offered
    }

    fn queues(&self) -> Option<u16> {
        Some(self.devices.len() as u16)
    }

    fn needs_files(&self) -> bool {
        false
    }

    fn most_regions(&mut self, _: Instant) -> io::Result<u64> {
        Ok(MOST_REGIONS)
    }

    fn config(&mut self, _: usize, _: Instant) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn write_config(&mut self, _: u32, _: &[u8], _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn accept(&mut self, features: u64, _: Instant) -> io::Result<()> {
        self.each(|device| device.set_features(features))
    }

    fn can_log(&self) -> bool {
        self.offered & vhost_feature::LOG_ALL != 0
    }

    fn set_log(&mut self, log: &Log, _: Instant) -> io::Result<()> {
        self.each(|device| device.set_log(log))
    }

    /// A kernel that goes takes us with it.
    fn share_inflight(&mut self, _: &mut Option<InflightTable>, _: u16, _: u16, _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn set_memory(&mut self, _: &[SharedRegion], regions: &[SharedRegion], _: Instant) -> io::Result<()> {
        self.each(|device| device.set_memory(regions))
    }

    fn start_ring(
        &mut self,
        ring: &Described,
        addresses: [u64; 3],
        logs: bool,
        events: &Events,
        _: Instant,
    ) -> io::Result<()> {
        let port = self.ports.get(usize::from(ring.index / QUEUES));
        let port = port.ok_or(io::ErrorKind::InvalidInput)?.as_raw_fd();
        let (device, index) = self.device(ring.index)?;
        device.describe(index, ring, addresses, logs, events)?;
        device.set(numbers::NET_SET_BACKEND, file(index, port))
    }

    fn log_ring(&mut self, ring: &Described, addresses: [u64; 3], logs: bool, _: Instant) -> io::Result<()> {
        let (device, index) = self.device(ring.index)?;
        device.set_addresses(index, ring, addresses, logs)
    }

    fn set_call(&mut self, index: u16, events: &Events, _: Instant) -> io::Result<()> {
        let (device, index) = self.device(index)?;
        device.set_call(index, events)
    }

    fn all_started(&mut self, _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn stop_ring(&mut self, index: u16, _: Instant) -> io::Result<u16> {
        let (device, index) = self.device(index)?;
        device.set(numbers::NET_SET_BACKEND, file(index, NOTHING))?;
        device.base(index)
    }

    /// It has nothing to forget but what the next driver brings anew.
    fn reset(&mut self, _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn look(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    fn ends(&self) -> Arc<Ends> {
        Arc::clone(&self.ends)
    }
}
