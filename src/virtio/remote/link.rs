//! What is agreed with the back end: features, memory, the table of requests in flight, which rings it has.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    ConfigSpace, Connect, RemoteError, RemoteOptions,
    channel::{Channel, wrong},
    event::Event,
    regions::{SharedRegion, user_address},
    registers::{MAX_QUEUES, status},
};
use crate::virtio::{
    features,
    queue::QueueLayout,
    vhost_user::{
        Config, FrontRequest, Inflight, Single, Table, VringAddress, VringFile, VringState, Word,
        protocol_feature as protocol, vhost_feature,
    },
};

/// Protocol features that are made use of.
const WANTED: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;

/// The three events of a ring.
pub(super) struct Events {
    pub kick: Event,
    pub call: Event,
    pub error: Event,
}

impl Events {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            kick: Event::new()?,
            call: Event::new()?,
            error: Event::new()?,
        })
    }
}

/// A ring as the back end is told of it.
#[derive(Clone, Copy)]
pub(super) struct Described {
    pub index: u16,
    pub layout: QueueLayout,
    pub features: u64,
    pub place: u16,
}

/// A connection, and how far it has come.
struct Session {
    channel: Channel,
    protocol: u64,
    /// What GET_FEATURES has said.
    offered: u64,
    /// What the driver has accepted, if the back end was told.
    accepted: Option<u64>,
    /// The memory that it knows.
    regions: Vec<SharedRegion>,
    /// The table of requests in flight that it knows is ours.
    knows_inflight: bool,
    /// The rings that it has.
    rings: Vec<bool>,
    driver_ok: bool,
}

/// The table of requests in flight, which outlives the back end.
struct InflightTable {
    description: Inflight,
    file: OwnedFd,
    /// The answer's length, padding included.
    len: usize,
}

pub(super) struct Link {
    connect: Box<dyn Connect>,
    options: RemoteOptions,
    queues: u16,
    /// What the first connection has offered: every later one has to.
    needed: u64,
    session: Option<Session>,
    inflight: Option<InflightTable>,
    /// Not tried again before.
    next_try: Option<Instant>,
    /// What the driver has written to the configuration space.
    written: Vec<Option<u8>>,
}

/// What was found out about the back end when it was first reached.
pub(super) struct Found {
    pub features: u64,
    pub queues: u16,
    pub config: Vec<u8>,
    pub most_regions: u64,
}

impl Link {
    /// Reaches the back end for the first time.
    pub fn new(connect: Box<dyn Connect>, options: &RemoteOptions) -> Result<(Self, Found), RemoteError> {
        let mut link = Self {
            connect,
            options: options.clone(),
            queues: 0,
            needed: 0,
            session: None,
            inflight: None,
            next_try: None,
            written: Vec::new(),
        };
        let (session, queues) = link.reach()?;
        if session.offered & features::VERSION_1 == 0 {
            return Err(RemoteError::Features(session.offered));
        }
        let asked = options.queues.unwrap_or(queues.unwrap_or(1));
        let most = queues.unwrap_or(MAX_QUEUES).min(MAX_QUEUES);
        // A network device's are counted in pairs.
        let counted = if options.device.0 == 1 {
            asked.div_ceil(2)
        } else {
            asked
        };
        if asked == 0 || counted > most {
            return Err(RemoteError::Queues { asked, most });
        }
        link.queues = asked;
        link.needed = session.offered;
        let has_config = session.protocol & protocol::CONFIG != 0;
        let features = session.offered;
        let has_slots = session.protocol & protocol::CONFIGURE_MEM_SLOTS != 0;
        link.session = Some(session);
        let most_regions = match has_slots {
            true => link.most_regions()?,
            false => Table::MAX.into(),
        };
        let config = match &options.config {
            ConfigSpace::Own(bytes) => bytes.clone(),
            ConfigSpace::BackEnd(0) => Vec::new(),
            ConfigSpace::BackEnd(_) if !has_config => return Err(RemoteError::NoConfig),
            ConfigSpace::BackEnd(_) => link.config()?,
        };
        link.written = vec![None; config.len()];
        let found = Found {
            features,
            queues: asked,
            config,
            most_regions,
        };
        Ok((link, found))
    }

    fn most_regions(&mut self) -> io::Result<u64> {
        let deadline = self.deadline();
        self.session()?.channel.ask_word(FrontRequest::GetMaxMemSlots, deadline)
    }

    fn deadline(&self) -> Instant {
        after(self.options.patience)
    }

    /// A new connection, as far as it goes without a driver; and how many queues the back end says that it has.
    fn reach(&mut self) -> io::Result<(Session, Option<u16>)> {
        let deadline = self.deadline();
        let mut channel = Channel::new(self.connect.connect()?)?;
        let offered = channel.ask_word(FrontRequest::GetFeatures, deadline)?;
        let mut agreed = 0;
        if offered & vhost_feature::PROTOCOL_FEATURES != 0 {
            agreed = channel.ask_word(FrontRequest::GetProtocolFeatures, deadline)? & WANTED;
            let payload = Word(agreed).to_bytes();
            channel.tell(FrontRequest::SetProtocolFeatures, &payload, Vec::new(), deadline)?;
            channel.acknowledges = agreed & protocol::REPLY_ACK != 0;
        }
        let mut queues = None;
        if agreed & protocol::MQ != 0 {
            let number = channel.ask_word(FrontRequest::GetQueueNum, deadline)?;
            // There is one at least, and what is beyond what can be named is not made use of.
            queues = Some(number.clamp(1, MAX_QUEUES.into()) as u16);
        }
        channel.tell(FrontRequest::SetOwner, &[], Vec::new(), deadline)?;
        if agreed & protocol::BACKEND_REQ != 0 {
            let theirs = channel.open_back()?;
            channel.tell(FrontRequest::SetBackendReqFd, &[], vec![theirs], deadline)?;
        }
        let session = Session {
            channel,
            protocol: agreed,
            offered,
            accepted: None,
            regions: Vec::new(),
            knows_inflight: false,
            rings: vec![false; self.queues.into()],
            driver_ok: false,
        };
        Ok((session, queues))
    }

    /// The ends of the connection, if there is one.
    pub fn ends(&self) -> Option<Arc<super::channel::Ends>> {
        self.session.as_ref().map(|session| Arc::clone(&session.channel.ends))
    }

    /// Sees that there is a connection. `Ok(None)`: it is too early to try again. `Ok(Some(true))`: it is a new one.
    pub fn ensure(&mut self) -> io::Result<Option<bool>> {
        if self.session.is_some() {
            return Ok(Some(false));
        }
        if self.next_try.is_some_and(|next| Instant::now() < next) {
            return Ok(None);
        }
        self.next_try = Some(after(self.options.retry));
        let (mut session, queues) = self.reach()?;
        session.rings = vec![false; self.queues.into()];
        let lacks = self.needed & !session.offered;
        if lacks != 0 {
            return Err(wrong(format!(
                "the back end that has come offers no features {lacks:#x}, which that before did"
            )));
        }
        let pairs = self.options.device.0 == 1;
        let counted = if pairs { self.queues.div_ceil(2) } else { self.queues };
        if queues.is_some_and(|queues| queues < counted) {
            return Err(wrong(format!(
                "the back end that has come has fewer queues than {counted}"
            )));
        }
        self.session = Some(session);
        self.write_config_again()?;
        Ok(Some(true))
    }

    /// The connection is over.
    pub fn lose(&mut self) {
        self.session = None;
        self.next_try.get_or_insert_with(|| after(self.options.retry));
    }

    /// For how long not to try again.
    pub fn until_next_try(&self) -> Duration {
        self.next_try
            .map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()))
    }

    fn session(&mut self) -> io::Result<&mut Session> {
        self.session.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Looks at what has come unasked. Whether the configuration space has changed.
    pub fn look(&mut self) -> io::Result<bool> {
        let session = self.session()?;
        session.channel.look()?;
        Ok(std::mem::take(&mut session.channel.config_changed))
    }

    // The configuration space.

    /// The back end's, if it is the back end's.
    pub fn config_now(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.options.config {
            ConfigSpace::BackEnd(1..) => self.config().map(Some),
            _ => Ok(None),
        }
    }

    fn config(&mut self) -> io::Result<Vec<u8>> {
        let (deadline, ConfigSpace::BackEnd(len)) = (self.deadline(), &self.options.config) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let len = usize::from(*len);
        let payload = Config {
            offset: 0,
            flags: Config::WRITABLE,
            data: vec![0; len],
        };
        let channel = &mut self.session()?.channel;
        let message = channel.ask(FrontRequest::GetConfig, &payload.to_bytes(), deadline)?;
        match Config::from_bytes(&message.payload) {
            Some(config) if config.data.len() == len && message.descriptors.is_empty() => Ok(config.data),
            _ => Err(wrong(format!(
                "{} bytes, where {len} of the configuration space were asked for",
                message.payload.len()
            ))),
        }
    }

    /// The driver has written there.
    pub fn write_config(&mut self, offset: usize, data: &[u8]) -> io::Result<()> {
        for (place, &byte) in self.written.iter_mut().skip(offset).zip(data) {
            *place = Some(byte);
        }
        match self.session {
            Some(_) => self.send_config(offset, data),
            // It is told when it is back.
            None => Ok(()),
        }
    }

    fn send_config(&mut self, offset: usize, data: &[u8]) -> io::Result<()> {
        let deadline = self.deadline();
        let payload = Config {
            offset: offset as u32,
            flags: Config::WRITABLE,
            data: data.to_vec(),
        };
        let channel = &mut self.session()?.channel;
        channel.tell(FrontRequest::SetConfig, &payload.to_bytes(), Vec::new(), deadline)
    }

    /// All that the driver has written.
    pub fn written(&self) -> Vec<(u16, u8)> {
        let written = self.written.iter().zip(0..);
        written.filter_map(|(byte, at)| Some((at, (*byte)?))).collect()
    }

    /// Whether all of this is within the configuration space.
    pub fn can_write(&self, written: &[(u16, u8)]) -> bool {
        written.iter().all(|(at, _)| usize::from(*at) < self.written.len())
    }

    /// The driver has written this, elsewhere.
    pub fn write_all(&mut self, written: &[(u16, u8)]) -> io::Result<()> {
        self.written.iter_mut().for_each(|byte| *byte = None);
        for &(at, byte) in written {
            if let Some(place) = self.written.get_mut(usize::from(at)) {
                *place = Some(byte);
            }
        }
        match self.session {
            Some(_) => self.write_config_again(),
            None => Ok(()),
        }
    }

    /// What the driver has written is told to a back end that does not know of it.
    fn write_config_again(&mut self) -> io::Result<()> {
        let mut at = 0;
        while let Some(start) = (at..self.written.len()).find(|&at| self.written[at].is_some()) {
            let data: Vec<_> = self.written[start..].iter().map_while(|byte| *byte).collect();
            self.send_config(start, &data)?;
            at = start + data.len();
        }
        Ok(())
    }

    // The driver, its memory and its rings.

    /// Tells what the driver has accepted, and has the table of requests in flight.
    pub fn begin(&mut self, accepted: u64) -> io::Result<()> {
        let deadline = self.deadline();
        let (queues, queue_size) = (self.queues, self.options.queue_size);
        let table = &mut self.inflight;
        let session = self.session.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let Session {
            channel,
            protocol: agreed,
            ..
        } = session;
        let has = |feature| *agreed & feature != 0;
        if session.accepted != Some(accepted) {
            let bit = session.offered & vhost_feature::PROTOCOL_FEATURES;
            let told = accepted & session.offered | bit;
            channel.tell(FrontRequest::SetFeatures, &Word(told).to_bytes(), Vec::new(), deadline)?;
            if has(protocol::STATUS) {
                let payload = Word(status::FEATURES_OK).to_bytes();
                channel.tell(FrontRequest::SetStatus, &payload, Vec::new(), deadline)?;
            }
            session.accepted = Some(accepted);
        }
        if !has(protocol::INFLIGHT_SHMFD) || session.knows_inflight {
            return Ok(());
        }
        if table.is_none() {
            let asked = Inflight {
                mmap_size: 0,
                mmap_offset: 0,
                queues,
                queue_size,
            };
            let mut message = channel.ask(FrontRequest::GetInflightFd, &asked.to_bytes(24), deadline)?;
            let description = Inflight::from_bytes(&message.payload);
            let (Some(description), Some(file), true) =
                (description, message.descriptors.pop(), message.descriptors.is_empty())
            else {
                return Err(wrong("no table of requests in flight, where one was asked for"));
            };
            if description.mmap_size == 0 {
                return Err(wrong("a table of requests in flight without a byte"));
            }
            *table = Some(InflightTable {
                description: Inflight {
                    queues,
                    queue_size,
                    ..description
                },
                file,
                len: message.payload.len(),
            });
        }
        if let Some(InflightTable { description, file, len }) = table {
            let payload = description.to_bytes(*len);
            channel.tell(FrontRequest::SetInflightFd, &payload, vec![file.try_clone()?], deadline)?;
        }
        session.knows_inflight = true;
        Ok(())
    }

    /// Tells of guest memory as it is now.
    pub fn set_memory(&mut self, regions: Vec<SharedRegion>) -> io::Result<()> {
        let deadline = self.deadline();
        let session = self.session()?;
        if session.regions == regions {
            return Ok(());
        }
        let channel = &mut session.channel;
        if session.protocol & protocol::CONFIGURE_MEM_SLOTS == 0 {
            let count = regions.len();
            if count > Table::MAX as usize {
                return Err(wrong(format!(
                    "{count} regions of memory, where the back end takes {}",
                    Table::MAX
                )));
            }
            let table = Table(regions.iter().map(|shared| shared.region).collect()).to_bytes();
            let files: io::Result<_> = regions.iter().map(|shared| share(&shared.file)).collect();
            channel.tell(FrontRequest::SetMemTable, &table, files?, deadline)?;
        } else {
            let most = channel.ask_word(FrontRequest::GetMaxMemSlots, deadline)?;
            if regions.len() as u64 > most {
                return Err(wrong(format!(
                    "{} regions of memory, where the back end takes {most}",
                    regions.len()
                )));
            }
            let gone = |known: &&SharedRegion| !regions.contains(known);
            for SharedRegion { region, .. } in session.regions.iter().filter(gone) {
                channel.tell(
                    FrontRequest::RemMemReg,
                    &Single(*region).to_bytes(),
                    Vec::new(),
                    deadline,
                )?;
            }
            for SharedRegion { region, file } in &regions {
                let known = |known: &SharedRegion| known.region == *region && Arc::ptr_eq(&known.file, file);
                if !session.regions.iter().any(known) {
                    let payload = Single(*region).to_bytes();
                    channel.tell(FrontRequest::AddMemReg, &payload, vec![share(file)?], deadline)?;
                }
            }
        }
        session.regions = regions;
        Ok(())
    }

    /// Where the back end finds the areas of a ring in the memory that it knows.
    pub fn knows_ring(&self, layout: &QueueLayout, features: u64) -> Option<[u64; 3]> {
        user_addresses(&self.session.as_ref()?.regions, layout, features)
    }

    /// Hands a ring to the back end. `started`: how many the driver has enabled.
    pub fn start_ring(&mut self, ring: Described, events: &Events, started: usize) -> io::Result<()> {
        let deadline = self.deadline();
        let session = self.session()?;
        let Described {
            index,
            layout,
            features,
            place,
        } = ring;
        let number = u32::from(index);
        let addresses = user_addresses(&session.regions, &layout, features)
            .ok_or_else(|| wrong("a ring that is in no region of guest memory as a whole"))?;
        let [descriptor, available, used] = addresses;
        let state = |num| VringState { index: number, num }.to_bytes();
        // Of a packed ring, where both sides go on.
        let base = match features & features::RING_PACKED != 0 {
            true => u32::from(place) | u32::from(place) << 16,
            false => place.into(),
        };
        let address = VringAddress {
            index: number,
            flags: 0,
            descriptor,
            used,
            available,
            log: 0,
        };
        let file = VringFile {
            index: index as u8,
            has_descriptor: true,
        };
        let channel = &mut session.channel;
        channel.tell(
            FrontRequest::SetVringNum,
            &state(layout.size.into()),
            Vec::new(),
            deadline,
        )?;
        channel.tell(FrontRequest::SetVringBase, &state(base), Vec::new(), deadline)?;
        channel.tell(FrontRequest::SetVringAddr, &address.to_bytes(), Vec::new(), deadline)?;
        for (request, event) in [
            (FrontRequest::SetVringErr, &events.error),
            (FrontRequest::SetVringCall, &events.call),
            (FrontRequest::SetVringKick, &events.kick),
        ] {
            channel.tell(request, &file.to_bytes(), vec![event.share()?], deadline)?;
        }
        if session.offered & vhost_feature::PROTOCOL_FEATURES != 0 {
            channel.tell(FrontRequest::SetVringEnable, &state(1), Vec::new(), deadline)?;
        }
        if let Some(up) = session.rings.get_mut(usize::from(index)) {
            *up = true;
        }
        let all = session.rings.iter().filter(|up| **up).count() >= started;
        if all && !session.driver_ok && session.protocol & protocol::STATUS != 0 {
            let payload = Word(status::DRIVER_OK).to_bytes();
            session
                .channel
                .tell(FrontRequest::SetStatus, &payload, Vec::new(), deadline)?;
            session.driver_ok = true;
        }
        Ok(())
    }

    /// Has a ring back: how far the back end has taken from it.
    pub fn stop_ring(&mut self, index: u16, deadline: Instant) -> io::Result<u16> {
        let session = self.session()?;
        let payload = VringState {
            index: index.into(),
            num: 0,
        };
        let message = session
            .channel
            .ask(FrontRequest::GetVringBase, &payload.to_bytes(), deadline)?;
        if let Some(up) = session.rings.get_mut(usize::from(index)) {
            *up = false;
        }
        match VringState::from_bytes(&message.payload) {
            Some(state) if state.index == u32::from(index) && message.payload.len() == 8 => Ok(state.num as u16),
            _ => Err(wrong(format!(
                "an answer of {} bytes to GetVringBase",
                message.payload.len()
            ))),
        }
    }

    /// The driver has reset the device. The configuration space as it is then, if it may be another.
    pub fn reset(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.inflight = None;
        self.written.iter_mut().for_each(|byte| *byte = None);
        let deadline = self.deadline();
        let Some(session) = &mut self.session else {
            return Ok(None);
        };
        let began = session.accepted.take().is_some();
        (session.knows_inflight, session.driver_ok) = (false, false);
        if !began {
            return Ok(None);
        }
        if session.protocol & protocol::RESET_DEVICE != 0 {
            session
                .channel
                .tell(FrontRequest::ResetDevice, &[], Vec::new(), deadline)?;
        } else if session.protocol & protocol::STATUS != 0 {
            let payload = Word(0).to_bytes();
            session
                .channel
                .tell(FrontRequest::SetStatus, &payload, Vec::new(), deadline)?;
        }
        self.config_now()
    }

    /// Whether there is a table of requests in flight.
    pub fn tracks_inflight(&self) -> bool {
        self.inflight.is_some()
    }
}

/// Where the three areas of a ring are, for the back end (virtio 1.2, sections 2.7 and 2.8).
pub(super) fn user_addresses(regions: &[SharedRegion], layout: &QueueLayout, features: u64) -> Option<[u64; 3]> {
    let size = u64::from(layout.size);
    let (available, used) = match features & features::RING_PACKED != 0 {
        true => (4, 4),
        false => (6 + 2 * size, 6 + 8 * size),
    };
    Some([
        user_address(regions, layout.descriptor_area, 16 * size)?,
        user_address(regions, layout.driver_area, available)?,
        user_address(regions, layout.device_area, used)?,
    ])
}

fn share(file: &std::fs::File) -> io::Result<OwnedFd> {
    file.try_clone().map(Into::into)
}

fn after(time: Duration) -> Instant {
    let now = Instant::now();
    // One that is beyond all time is far away.
    now.checked_add(time)
        .or_else(|| now.checked_add(Duration::from_secs(1 << 30)))
        .unwrap_or(now)
}
