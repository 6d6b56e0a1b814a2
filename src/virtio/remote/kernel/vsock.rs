//! Sockets to the guest, by `/dev/vhost-vsock`.

use std::{fmt, io, sync::Arc, time::Instant};

use super::{
    super::{
        connect::{Connect, Connection, Reached},
        event::{Ends, Events},
        log::Log,
        peer::{Described, InflightTable, Peer},
        regions::SharedRegion,
    },
    calls::{Calls, MOST_REGIONS},
    device::{OpenVhost, VhostDevice, open},
    numbers,
};
use crate::virtio::vhost_user::vhost_feature;

/// Receive and transmit; the event queue is not the kernel's.
const QUEUES: u16 = 2;

/// The socket device in the kernel: programs on this host reach the guest by AF_VSOCK.
///
/// Its configuration space is the guest's address. When it has moved to another host, or was opened anew, its
/// connections have ended, and the driver is told.
pub struct VhostVsock {
    cid: u64,
    open: OpenVhost,
}

impl VhostVsock {
    /// For a guest with this address (CID), from 3 on, which no other guest of the host has.
    pub fn new(cid: u32) -> Self {
        Self::with(cid, open("/dev/vhost-vsock"))
    }

    /// The same with a device of another place.
    pub fn with(cid: u32, open: OpenVhost) -> Self {
        let cid = cid.into();
        Self { cid, open }
    }
}

impl Connect for VhostVsock {
    fn connect(&mut self) -> io::Result<Connection> {
        let peer = VsockPeer::new((self.open)()?, self.cid)?;
        Ok(Connection(Reached::Here(Box::new(peer))))
    }
}

impl fmt::Debug for VhostVsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostVsock")
            .field("cid", &self.cid)
            .finish_non_exhaustive()
    }
}

struct VsockPeer {
    calls: Calls,
    offered: u64,
    cid: u64,
    runs: bool,
    ends: Arc<Ends>,
}

impl VsockPeer {
    fn new(device: Box<dyn VhostDevice>, cid: u64) -> io::Result<Self> {
        let mut calls = Calls(device);
        calls.set_owner()?;
        let offered = calls.features()?;
        calls.set(numbers::VSOCK_SET_GUEST_CID, cid.to_ne_bytes())?;
        Ok(Self {
            calls,
            offered,
            cid,
            runs: false,
            ends: Arc::default(),
        })
    }

    fn run(&mut self, runs: bool) -> io::Result<()> {
        if self.runs != runs {
            self.calls
                .set(numbers::VSOCK_SET_RUNNING, u32::from(runs).to_ne_bytes())?;
            self.runs = runs;
        }
        Ok(())
    }
}

impl Peer for VsockPeer {
    fn offered(&self) -> u64 {
        self.offered
    }

    fn queues(&self) -> Option<u16> {
        Some(QUEUES + 1)
    }

    fn needs_files(&self) -> bool {
        false
    }

    fn serves(&self, index: u16) -> bool {
        index < QUEUES
    }

    /// They run together.
    fn stops_alone(&self) -> bool {
        false
    }

    fn most_regions(&mut self, _: Instant) -> io::Result<u64> {
        Ok(MOST_REGIONS)
    }

    fn config(&mut self, len: usize, _: Instant) -> io::Result<Option<Vec<u8>>> {
        let mut config = self.cid.to_le_bytes().to_vec();
        config.resize(len, 0);
        Ok(Some(config))
    }

    /// No field is the driver's to write.
    fn write_config(&mut self, _: u32, _: &[u8], _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn accept(&mut self, features: u64, _: Instant) -> io::Result<()> {
        self.calls.set_features(features)
    }

    fn can_log(&self) -> bool {
        self.offered & vhost_feature::LOG_ALL != 0
    }

    fn set_log(&mut self, log: &Log, _: Instant) -> io::Result<()> {
        self.calls.set_log(log)
    }

    /// A kernel that goes takes us with it.
    fn share_inflight(&mut self, _: &mut Option<InflightTable>, _: u16, _: u16, _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn set_memory(&mut self, _: &[SharedRegion], regions: &[SharedRegion], _: Instant) -> io::Result<()> {
        self.calls.set_memory(regions)
    }

    fn start_ring(
        &mut self,
        ring: &Described,
        addresses: [u64; 3],
        logs: bool,
        events: &Events,
        _: Instant,
    ) -> io::Result<()> {
        self.calls.describe(ring.index.into(), ring, addresses, logs, events)
    }

    fn log_ring(&mut self, ring: &Described, addresses: [u64; 3], logs: bool, _: Instant) -> io::Result<()> {
        self.calls.set_addresses(ring.index.into(), ring, addresses, logs)
    }

    fn set_call(&mut self, index: u16, events: &Events, _: Instant) -> io::Result<()> {
        self.calls.set_call(index.into(), events)
    }

    fn all_started(&mut self, _: Instant) -> io::Result<()> {
        self.run(true)
    }

    /// Both stop; they run again once both are there.
    fn stop_ring(&mut self, index: u16, _: Instant) -> io::Result<u16> {
        self.run(false)?;
        self.calls.base(index.into())
    }

    /// It has nothing to forget but what the next driver brings anew.
    fn reset(&mut self, _: Instant) -> io::Result<()> {
        self.run(false)
    }

    fn look(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    fn ends(&self) -> Arc<Ends> {
        Arc::clone(&self.ends)
    }
}
