//! A device whose data path is virtio hardware, or what the kernel has in its place, by `/dev/vhost-vdpa-N`.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use super::{
    super::{
        connect::{Connect, Connection, Reached},
        event::{Ends, Event, Events},
        log::Log,
        peer::{Described, InflightTable, Peer, wrong},
        regions::SharedRegion,
        registers::{MAX_QUEUES, status},
    },
    calls::Calls,
    device::{OpenVhost, open},
    numbers,
};
use crate::virtio::{features, transport::status as of, vhost_user::VringState};

/// What it takes is not counted in regions: each is a mapping of its own.
const MOST_REGIONS: u64 = 512;

/// A device by vDPA, of any type: configuration space, status and queues are its own.
///
/// Its addresses are the guest's (memory is mapped there one to one). What it writes is not logged by the kernel.
pub struct VhostVdpa {
    path: PathBuf,
    open: OpenVhost,
}

impl VhostVdpa {
    /// The device at this path, `/dev/vhost-vdpa-0` say.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let open = open(path.clone());
        Self { path, open }
    }

    /// The same with a device of another place.
    pub fn with(open: OpenVhost) -> Self {
        let path = Path::new("elsewhere").into();
        Self { path, open }
    }
}

impl Connect for VhostVdpa {
    fn connect(&mut self) -> io::Result<Connection> {
        let mut calls = Calls((self.open)()?);
        calls.set_owner()?;
        let can = u64::from_ne_bytes(calls.get(numbers::GET_BACKEND_FEATURES)?);
        if can & numbers::IOTLB_MSG_V2 == 0 {
            return Err(wrong("a vDPA device without messages of version 2"));
        }
        let agreed = can & (numbers::IOTLB_MSG_V2 | numbers::SUSPEND);
        calls.set(numbers::SET_BACKEND_FEATURES, agreed.to_ne_bytes())?;
        // Whoever had it before is gone.
        calls.set(numbers::VDPA_SET_STATUS, [0])?;
        let offered = calls.features()?;
        // Older kernels do not say.
        let queues = calls.get(numbers::VDPA_GET_VQS_COUNT).map(u32::from_ne_bytes).ok();
        let changed = Event::new()?;
        calls.set(numbers::VDPA_SET_CONFIG_CALL, changed.descriptor().to_ne_bytes())?;
        Ok(Connection(Reached::Here(Box::new(VdpaPeer {
            calls,
            offered,
            queues: queues.map(|queues| queues.clamp(1, MAX_QUEUES.into()) as u16),
            can_suspend: agreed & numbers::SUSPEND != 0,
            suspended: false,
            rings: 0,
            accepted: 0,
            memory: Vec::new(),
            ends: Arc::new(Ends([Some(changed.share()?), None])),
            changed,
        }))))
    }
}

impl fmt::Debug for VhostVdpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostVdpa")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

struct VdpaPeer {
    calls: Calls,
    offered: u64,
    queues: Option<u16>,
    can_suspend: bool,
    suspended: bool,
    /// How many rings run.
    rings: usize,
    accepted: u64,
    memory: Vec<SharedRegion>,
    /// The configuration space has changed.
    changed: Event,
    ends: Arc<Ends>,
}

/// `struct vhost_msg_v2`: what becomes of a range of guest addresses.
enum Translation {
    Update,
    Invalidate,
}

impl VdpaPeer {
    fn status(&mut self) -> io::Result<u8> {
        let [status] = self.calls.get(numbers::VDPA_GET_STATUS)?;
        Ok(status)
    }

    /// Sets these bits, beside those that are set.
    fn add_status(&mut self, bits: u64) -> io::Result<()> {
        let bits = bits as u8 | self.status()?;
        self.calls.set(numbers::VDPA_SET_STATUS, [bits])?;
        match self.status()? & bits {
            set if set == bits => Ok(()),
            set => Err(wrong(format!("a status of {set:#x}, where {bits:#x} was set"))),
        }
    }

    fn agree(&mut self) -> io::Result<()> {
        // The platform translates for it.
        let platform = self.offered & features::ACCESS_PLATFORM;
        self.add_status(status::FEATURES_OK & !u64::from(of::FEATURES_OK))?;
        self.calls.set_features(self.accepted | platform)?;
        self.add_status(status::FEATURES_OK)?;
        // Some forget it in a reset.
        for shared in self.memory.clone() {
            self.translate(&shared, Translation::Invalidate)?;
            self.translate(&shared, Translation::Update)?;
        }
        Ok(())
    }

    /// One that was suspended goes on as one that was reset.
    fn revive(&mut self) -> io::Result<()> {
        if self.rings != 0 {
            return Err(wrong(
                "a vDPA device that is suspended while some rings run goes on once it is reset",
            ));
        }
        self.calls.set(numbers::VDPA_SET_STATUS, [0])?;
        self.suspended = false;
        self.agree()
    }

    fn translate(&mut self, shared: &SharedRegion, what: Translation) -> io::Result<()> {
        const VHOST_IOTLB_MSG_V2: u32 = 2;
        const READ_AND_WRITE: u8 = 3;
        const LEN: usize = 72;
        let region = shared.region;
        let kind = match what {
            Translation::Update => 2,
            Translation::Invalidate => 3,
        };
        let mut message = [VHOST_IOTLB_MSG_V2.to_ne_bytes(), [0; 4]].concat();
        message.extend([region.guest, region.size, region.user].map(u64::to_ne_bytes).concat());
        message.extend([READ_AND_WRITE, kind]);
        message.resize(LEN, 0);
        self.calls.0.message(&message)
    }
}

impl Peer for VdpaPeer {
    fn offered(&self) -> u64 {
        // What is between the driver and its transport is ours.
        self.offered & !features::ACCESS_PLATFORM
    }

    fn queues(&self) -> Option<u16> {
        self.queues
    }

    fn needs_files(&self) -> bool {
        false
    }

    /// It is suspended as a whole.
    fn stops_alone(&self) -> bool {
        false
    }

    fn most_regions(&mut self, _: Instant) -> io::Result<u64> {
        Ok(MOST_REGIONS)
    }

    fn config(&mut self, len: usize, _: Instant) -> io::Result<Option<Vec<u8>>> {
        let mut argument = [0_u32.to_ne_bytes(), (len as u32).to_ne_bytes()].concat();
        argument.resize(8 + len, 0);
        self.calls.0.request(numbers::VDPA_GET_CONFIG, &mut argument)?;
        Ok(Some(argument.split_off(8)))
    }

    fn write_config(&mut self, offset: u32, data: &[u8], _: Instant) -> io::Result<()> {
        let mut argument = [offset.to_ne_bytes(), (data.len() as u32).to_ne_bytes()].concat();
        argument.extend(data);
        self.calls.set(numbers::VDPA_SET_CONFIG, argument)
    }

    fn accept(&mut self, features: u64, _: Instant) -> io::Result<()> {
        self.accepted = features;
        self.agree()
    }

    fn can_log(&self) -> bool {
        false
    }

    fn set_log(&mut self, _: &Log, _: Instant) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A kernel that goes takes us with it.
    fn share_inflight(&mut self, _: &mut Option<InflightTable>, _: u16, _: u16, _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn set_memory(&mut self, known: &[SharedRegion], regions: &[SharedRegion], _: Instant) -> io::Result<()> {
        for gone in known.iter().filter(|known| !regions.contains(known)) {
            self.translate(gone, Translation::Invalidate)?;
        }
        for new in regions.iter().filter(|region| !known.contains(region)) {
            self.translate(new, Translation::Update)?;
        }
        self.memory = regions.to_vec();
        Ok(())
    }

    fn start_ring(&mut self, ring: &Described, _: [u64; 3], _: bool, events: &Events, _: Instant) -> io::Result<()> {
        if self.suspended {
            self.revive()?;
        }
        let layout = &ring.layout;
        let addresses = [layout.descriptor_area, layout.driver_area, layout.device_area];
        let index = u32::from(ring.index);
        self.calls.describe(index, ring, addresses, false, events)?;
        let enable = VringState { index, num: 1 };
        self.calls.set(numbers::VDPA_SET_VRING_ENABLE, enable.to_bytes())?;
        self.rings += 1;
        Ok(())
    }

    fn log_ring(&mut self, _: &Described, _: [u64; 3], _: bool, _: Instant) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_call(&mut self, index: u16, events: &Events, _: Instant) -> io::Result<()> {
        self.calls.set_call(index.into(), events)
    }

    fn all_started(&mut self, _: Instant) -> io::Result<()> {
        self.add_status(status::DRIVER_OK)
    }

    /// A device stops as a whole, if it can stop at all; if not, whoever is asked next begins where the used ring ends.
    fn stop_ring(&mut self, index: u16, _: Instant) -> io::Result<u16> {
        if !self.suspended {
            if !self.can_suspend {
                return Err(wrong("a vDPA device that cannot be suspended: it is reset"));
            }
            self.calls.set(numbers::VDPA_SUSPEND, [])?;
            self.suspended = true;
        }
        self.rings = self.rings.saturating_sub(1);
        self.calls.base(index.into())
    }

    fn reset(&mut self, _: Instant) -> io::Result<()> {
        (self.suspended, self.rings) = (false, 0);
        self.calls.set(numbers::VDPA_SET_STATUS, [0])
    }

    fn look(&mut self) -> io::Result<bool> {
        Ok(self.changed.take())
    }

    fn ends(&self) -> Arc<Ends> {
        Arc::clone(&self.ends)
    }
}
