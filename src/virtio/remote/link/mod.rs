//! What is agreed with the back end, whoever it is: features, memory, rings, and what outlives a connection.

mod moves;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    connect::{Connect, Reached},
    error::RemoteError,
    event::{Ends, Events},
    log::Log,
    objects::{Member, Uuid},
    options::{ConfigSpace, RemoteOptions},
    peer::{Described, InflightTable, Peer, after, wrong},
    regions::SharedRegion,
    registers::MAX_QUEUES,
    socket::SocketPeer,
    windows::Windows,
    written::Written,
};
use crate::{
    sync::lock,
    virtio::{features, vhost_user::vhost_feature},
};

/// A connection, and how far it has come.
struct Session {
    peer: Box<dyn Peer>,
    /// What the driver has accepted, if the back end was told.
    accepted: Option<u64>,
    /// The memory that it knows.
    regions: Vec<SharedRegion>,
    /// The table of requests in flight that it knows is ours.
    knows_inflight: bool,
    /// The log that it knows is ours.
    knows_log: bool,
    /// The rings that it has.
    rings: Vec<Option<Described>>,
    driver_ok: bool,
}

pub(super) struct Link {
    connect: Box<dyn Connect>,
    options: RemoteOptions,
    queues: u16,
    /// What the first connection has offered: every later one has to.
    needed: u64,
    /// The first one had a state of its own: every later one has to.
    has_state: bool,
    /// The same of a log of what it writes, as long as there is one.
    can_log: bool,
    session: Option<Session>,
    /// A connection has ended, and nobody looked at that yet.
    pub has_ended: bool,
    inflight: Option<InflightTable>,
    log: Option<Log>,
    /// A state that the back end is to have before a ring starts.
    state: Option<Vec<u8>>,
    windows: Arc<Mutex<Windows>>,
    /// What back ends share with each other, if this one may.
    pub objects: Option<Arc<Member>>,
    /// Not tried again before.
    next_try: Option<Instant>,
    /// Until when all is to be answered that is asked in a turn.
    deadline: Instant,
    pub written: Written,
}

/// What was found out about the back end when it was first reached.
pub(super) struct Found {
    pub features: u64,
    pub queues: u16,
    pub config: Vec<u8>,
    pub most_regions: u64,
    pub needs_files: bool,
    /// The queues that it does not serve.
    pub ours: Vec<u16>,
    pub stops_alone: bool,
}

impl Link {
    /// Reaches the back end for the first time.
    pub fn new(
        connect: Box<dyn Connect>,
        options: &RemoteOptions,
        windows: Arc<Mutex<Windows>>,
    ) -> Result<(Self, Found), RemoteError> {
        let mut link = Self {
            connect,
            options: options.clone(),
            queues: 0,
            needed: 0,
            has_state: false,
            can_log: false,
            session: None,
            has_ended: false,
            inflight: None,
            log: None,
            state: None,
            windows,
            objects: options
                .shared_objects
                .as_ref()
                .map(|objects| Arc::new(Member::new(objects))),
            next_try: None,
            deadline: after(options.patience),
            written: Written::default(),
        };
        let mut peer = link.reach()?;
        let features = peer.offered();
        if features & features::VERSION_1 == 0 {
            return Err(RemoteError::Features(features));
        }
        let asked = options.queues.unwrap_or(peer.queues().unwrap_or(1));
        let most = peer.queues().unwrap_or(MAX_QUEUES).min(MAX_QUEUES);
        if asked == 0 || link.counted(asked) > most {
            return Err(RemoteError::Queues { asked, most });
        }
        (link.queues, link.needed) = (asked, features);
        (link.has_state, link.can_log) = (peer.has_state(), peer.can_log());
        let deadline = link.deadline();
        let most_regions = peer.most_regions(deadline)?;
        let config = match &options.config {
            ConfigSpace::Own(bytes) => bytes.clone(),
            ConfigSpace::BackEnd(0) => Vec::new(),
            ConfigSpace::BackEnd(len) => peer.config(usize::from(*len), deadline)?.ok_or(RemoteError::NoConfig)?,
        };
        link.written = Written::new(config.len());
        let found = Found {
            features,
            queues: asked,
            config,
            most_regions,
            needs_files: peer.needs_files(),
            ours: (0..asked).filter(|index| !peer.serves(*index)).collect(),
            stops_alone: peer.stops_alone(),
        };
        link.session = Some(link.begun(peer));
        Ok((link, found))
    }

    /// A network device's queues are counted in pairs.
    fn counted(&self, queues: u16) -> u16 {
        if self.options.device.0 == 1 {
            queues.div_ceil(2)
        } else {
            queues
        }
    }

    /// Whoever has it locked asks all that there is to ask with one patience.
    pub fn begin_turn(&mut self) {
        self.deadline = after(self.options.patience);
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    /// A new connection, as far as it goes without a driver.
    fn reach(&mut self) -> Result<Box<dyn Peer>, RemoteError> {
        let deadline = self.deadline();
        let stream = match self.connect.connect()?.0 {
            Reached::Here(peer) => return Ok(peer),
            Reached::Socket(stream) => stream,
        };
        let mut peer = SocketPeer::reach(stream, &self.windows, self.objects.as_ref(), deadline)?;
        for (id, needed) in (0..=u8::MAX).zip(peer.shared_memory(deadline)?) {
            match lock(&self.windows).region(id) {
                Some(region) if region.len < needed => {
                    let given = region.len;
                    return Err(RemoteError::Window { id, given, needed });
                }
                _ => {}
            }
        }
        Ok(Box::new(peer))
    }

    fn begun(&self, peer: Box<dyn Peer>) -> Session {
        Session {
            peer,
            accepted: None,
            regions: Vec::new(),
            knows_inflight: false,
            knows_log: false,
            rings: vec![None; self.queues.into()],
            driver_ok: false,
        }
    }

    /// What to wait for, if there is a connection.
    pub fn ends(&self) -> Option<Arc<Ends>> {
        self.session.as_ref().map(|session| session.peer.ends())
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
        let peer = self.reach().map_err(|error| match error {
            RemoteError::BackEnd(error) => error,
            other => io::Error::other(other),
        })?;
        let lacks = self.needed & !peer.offered();
        if lacks != 0 {
            return Err(wrong(format!(
                "the back end that has come offers no features {lacks:#x}, which that before did"
            )));
        }
        let counted = self.counted(self.queues);
        if peer.queues().is_some_and(|queues| queues < counted) {
            return Err(wrong(format!(
                "the back end that has come has fewer queues than {counted}"
            )));
        }
        if self.log.is_some() && !peer.can_log() {
            return Err(wrong("the back end that has come does not log what it writes"));
        }
        if self.inflight.is_some() && !peer.tracks_inflight() {
            return Err(wrong("the back end that has come takes no table of requests in flight"));
        }
        if self.has_state && !peer.has_state() {
            return Err(wrong("the back end that has come has no state of its own"));
        }
        self.session = Some(self.begun(peer));
        self.write_config_again()?;
        self.load_state()?;
        Ok(Some(true))
    }

    /// The connection is over.
    pub fn lose(&mut self) {
        self.has_ended |= self.session.take().is_some();
        lock(&self.windows).clear();
        if let Some(objects) = &self.objects {
            objects.forget();
        }
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
        self.session()?.peer.look()
    }

    // The configuration space.

    /// Whether [`look`](Self::look) is to say that it has changed.
    pub fn config_changed(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.peer.config_changed())
    }

    /// The back end's, if it is the back end's.
    pub fn config_now(&mut self) -> io::Result<Option<Vec<u8>>> {
        let ConfigSpace::BackEnd(len @ 1..) = self.options.config else {
            return Ok(None);
        };
        let deadline = self.deadline();
        match self.session()?.peer.config(len.into(), deadline)? {
            Some(config) => Ok(Some(config)),
            None => Err(wrong("the back end that has come has no configuration space")),
        }
    }

    /// The driver has written there.
    pub fn write_config(&mut self, offset: usize, data: &[u8]) -> io::Result<()> {
        self.written.note(offset, data);
        let deadline = self.deadline();
        match &mut self.session {
            Some(session) => session.peer.write_config(offset as u32, data, deadline),
            // It is told when it is back.
            None => Ok(()),
        }
    }

    /// What the driver has written is told to a back end that does not know of it.
    pub fn write_config_again(&mut self) -> io::Result<()> {
        let deadline = self.deadline();
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        for (at, data) in self.written.runs() {
            session.peer.write_config(at as u32, &data, deadline)?;
        }
        Ok(())
    }

    // The driver, its memory and its rings.

    /// Tells what the driver has accepted, and has the table of requests in flight.
    pub fn begin(&mut self, accepted: u64) -> io::Result<()> {
        let deadline = self.deadline();
        let (queues, queue_size) = (self.queues, self.options.queue_size);
        let logs = self.log.is_some();
        let session = self.session.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        if session.accepted != Some(accepted) {
            session.accept(accepted, logs, deadline)?;
        }
        if !session.knows_inflight {
            let table = &mut self.inflight;
            session.peer.share_inflight(table, queues, queue_size, deadline)?;
            session.knows_inflight = true;
        }
        Ok(())
    }

    /// Tells of guest memory as it is now.
    pub fn set_memory(&mut self, regions: Vec<SharedRegion>) -> io::Result<()> {
        let deadline = self.deadline();
        let session = self.session.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        // A bit for each page comes before the page.
        if let Some(log) = self.log.as_mut().filter(|log| !log.covers(&regions)) {
            let longer = Log::new(&regions)?;
            if session.knows_log
                && let Err(error) = session.peer.set_log(&longer, deadline)
            {
                // It may have been told in part.
                self.lose();
                return Err(error);
            }
            longer.merge(log);
            *log = longer;
        }
        let changes = session.regions != regions;
        if changes {
            session.peer.set_memory(&session.regions, &regions, deadline)?;
            session.regions = regions;
        }
        // Some log in what memory they know when they are told of the log.
        if let Some(log) = self.log.as_ref().filter(|_| changes || !session.knows_log) {
            session.peer.set_log(log, deadline)?;
            session.knows_log = true;
        }
        Ok(())
    }

    /// Where the back end finds the areas of a ring in the memory that it knows.
    pub fn knows_ring(&self, ring: &Described) -> Option<[u64; 3]> {
        ring.user_addresses(&self.session.as_ref()?.regions)
    }

    /// Hands a ring to the back end. `started`: how many the driver has enabled.
    pub fn start_ring(&mut self, ring: Described, events: &Events, started: usize) -> io::Result<()> {
        let deadline = self.deadline();
        let logs = self.log.is_some();
        let session = self.session()?;
        let addresses = session.addresses(&ring)?;
        session.peer.start_ring(&ring, addresses, logs, events, deadline)?;
        if let Some(place) = session.rings.get_mut(usize::from(ring.index)) {
            *place = Some(ring);
        }
        let all = session.rings.iter().flatten().count() >= started;
        if all && !session.driver_ok {
            session.peer.all_started(deadline)?;
            session.driver_ok = true;
            // From here on it goes on by itself.
            self.state = None;
        }
        Ok(())
    }

    /// A ring calls something else, if the back end has it.
    pub fn set_call(&mut self, index: u16, events: &Events) -> io::Result<()> {
        let deadline = self.deadline();
        match &mut self.session {
            Some(session) if session.rings.get(usize::from(index)).is_some_and(Option::is_some) => {
                session.peer.set_call(index, events, deadline)
            }
            // It is told with the ring.
            _ => Ok(()),
        }
    }

    /// Has a ring back: how far the back end has taken from it.
    pub fn stop_ring(&mut self, index: u16, deadline: Instant) -> io::Result<u16> {
        let session = self.session()?;
        let place = session.peer.stop_ring(index, deadline)?;
        if let Some(ring) = session.rings.get_mut(usize::from(index)) {
            *ring = None;
        }
        session.driver_ok = false;
        Ok(place)
    }

    /// The driver has reset the device. The configuration space as it is then, if it may be another.
    pub fn reset(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.inflight = None;
        self.state = None;
        self.written.forget();
        let deadline = self.deadline();
        let Some(session) = &mut self.session else {
            return Ok(None);
        };
        let began = session.accepted.take().is_some();
        (session.knows_inflight, session.driver_ok) = (false, false);
        if !began {
            return Ok(None);
        }
        session.peer.reset(deadline)?;
        lock(&self.windows).clear();
        self.config_now()
    }

    /// An object that the back end has exported, if it gives it.
    pub fn shared_object(&mut self, uuid: Uuid, deadline: Instant) -> io::Result<Option<OwnedFd>> {
        match &mut self.session {
            Some(session) => session.peer.shared_object(uuid, deadline),
            None => Ok(None),
        }
    }

    /// Whether there is a table of requests in flight.
    pub fn tracks_inflight(&self) -> bool {
        self.inflight.is_some()
    }
}

impl Session {
    fn accept(&mut self, accepted: u64, logs: bool, deadline: Instant) -> io::Result<()> {
        let log = if logs { vhost_feature::LOG_ALL } else { 0 };
        let told = (accepted | log) & self.peer.offered();
        self.peer.accept(told, deadline)?;
        self.accepted = Some(accepted);
        Ok(())
    }

    fn addresses(&self, ring: &Described) -> io::Result<[u64; 3]> {
        let addresses = ring.user_addresses(&self.regions);
        addresses.ok_or_else(|| wrong("a ring that is in no region of guest memory as a whole"))
    }
}
