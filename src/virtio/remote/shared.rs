//! What the control face and the handlers of a device share: the link, and what has become of it.

use std::{
    io, mem,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, OnceLock, TryLockError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    event::{Ends, Events},
    link::Link,
    objects::{Export, Uuid},
    options::RemoteOptions,
    peer::{Described, after},
    regions::Regions,
    windows::Windows,
};
use crate::{
    sync::lock,
    time::Clock,
    virtio::{FailureLog, Fault, Handle, QueueIndex},
};

/// How often a configuration space is read in a row that changes again while it is read.
const MOST_CHANGES: usize = 4;

pub(super) struct Shared {
    pub options: RemoteOptions,
    pub link: Mutex<Link>,
    /// Counts connections, and how they were lost: a ring that was handed over in another one has to be again.
    era: AtomicU64,
    pub regions: Regions,
    pub events: Box<[Events]>,
    pub failures: FailureLog,
    pub handle: OnceLock<Handle>,
    pub clock: Option<Arc<dyn Clock>>,
    /// The configuration space as the driver reads it.
    pub config: Mutex<Vec<u8>>,
    /// How many handlers there are.
    pub started: AtomicUsize,
    /// How often a back end was reached again.
    pub returns: AtomicU64,
    pub windows: Arc<Mutex<Windows>>,
    /// What the back end kept for the driver has ended, since a state was restored or the connection lost; and the driver of a queue of ours
    /// was not told yet.
    pub has_ended: AtomicBool,
    /// The back end has said that its configuration space has changed, and nobody has looked at it yet.
    pub config_changed: AtomicBool,
}

/// What came of an attempt to have the back end serve a ring.
pub(super) enum Raised {
    /// It does, since this era; these are the ends to wait for.
    Up(u64, Arc<Ends>),
    /// There is none.
    Later {
        /// To be tried again after so long.
        after: Duration,
        /// It went while it was told of the ring, which it may have served for a while.
        begun: bool,
    },
}

impl Shared {
    pub fn era(&self) -> u64 {
        self.era.load(SeqCst)
    }

    /// The connection is no good. The link is given up by who calls this, or was.
    fn lost(&self, link: &mut Link, error: io::Error) {
        self.failures.record(error);
        link.lose();
        if mem::take(&mut link.has_ended) {
            self.has_ended.store(true, SeqCst);
        }
        self.era.fetch_add(1, SeqCst);
    }

    pub fn is_connected(&self) -> bool {
        lock(&self.link).ends().is_some()
    }

    /// Has every queue see for itself.
    fn look_at_all(&self) {
        if let Some(handle) = self.handle.get() {
            for index in 0..self.events.len() {
                handle.look(QueueIndex(index as u16));
            }
        }
    }

    /// It is behind a transport: what its back end exports can be asked for.
    pub fn join(self: &Arc<Self>) {
        let device: Weak<Self> = Arc::downgrade(self);
        if let Some(objects) = &lock(&self.link).objects {
            objects.join(device);
        }
    }

    /// Does something with the link; if it fails, that is the end of the connection.
    pub fn with_link<R>(&self, f: impl FnOnce(&mut Link) -> io::Result<R>) -> Option<R> {
        let (done, changed) = self.try_with_link(f);
        if done.is_none() || changed {
            self.look_at_all();
        }
        done
    }

    fn try_with_link<R>(&self, f: impl FnOnce(&mut Link) -> io::Result<R>) -> (Option<R>, bool) {
        let mut link = lock(&self.link);
        link.begin_turn();
        match f(&mut link) {
            Ok(done) => (Some(done), self.note_config_changed(&link)),
            Err(error) => {
                self.lost(&mut link, error);
                (None, false)
            }
        }
    }

    /// Whether the back end has said, while it was asked something else, that its configuration space has changed. Whoever asked may hold
    /// what the driver is told under: a queue looks at it.
    fn note_config_changed(&self, link: &Link) -> bool {
        let changed = link.config_changed();
        if changed {
            self.config_changed.store(true, SeqCst);
        }
        changed
    }

    /// Sees that there is a connection which knows memory as it is, and that the ring is described in it.
    ///
    /// # Errors
    /// Memory cannot be shared, or the ring not be found in it.
    pub fn raise(&self, ring: Described) -> Result<Raised, Fault> {
        let mut fault = None;
        let mut returned = None;
        let (mut lost, mut changed, mut begun) = (false, false, false);
        let raised = {
            let mut link = lock(&self.link);
            link.begin_turn();
            let had = link.ends().is_some();
            let mut raise = |link: &mut Link| {
                let Some(is_new) = link.ensure()? else { return Ok(None) };
                if is_new {
                    self.returns.fetch_add(1, SeqCst);
                    self.era.fetch_add(1, SeqCst);
                    returned = link.config_now()?;
                }
                link.begin(ring.features)?;
                match (self.regions)() {
                    Ok(regions) if ring.user_addresses(&regions).is_none() => {
                        fault = Some(Fault::Elsewhere(
                            "a part of its ring is in no region of guest memory as a whole".into(),
                        ));
                        return Ok(None);
                    }
                    Ok(regions) => link.set_memory(regions)?,
                    Err(error) => {
                        fault = Some(Fault::Host(error.to_string()));
                        return Ok(None);
                    }
                }
                begun = true;
                let index = usize::from(ring.index);
                link.start_ring(ring, &self.events[index], self.started.load(SeqCst))?;
                Ok(link.ends())
            };
            match raise(&mut link) {
                Ok(ends) => {
                    changed = self.note_config_changed(&link);
                    ends.map(|ends| (self.era(), ends))
                }
                Err(error) => {
                    lost = had;
                    self.lost(&mut link, error);
                    None
                }
            }
        };
        if let Some(config) = returned {
            self.show_config(config);
        }
        if lost || changed {
            self.look_at_all();
        }
        match (fault, raised) {
            (Some(fault), _) => Err(fault),
            (None, Some((era, ends))) => Ok(Raised::Up(era, ends)),
            (None, None) => Ok(Raised::Later {
                after: lock(&self.link).until_next_try(),
                begun,
            }),
        }
    }

    /// Tells the back end of memory that has changed, if that leaves the ring where it is. Whether it does.
    pub fn keep_ring(&self, ring: &Described) -> bool {
        let kept = self.with_link(|link| {
            let regions = (self.regions)().map_err(io::Error::other)?;
            if link.knows_ring(ring) != ring.user_addresses(&regions) {
                return Ok(false);
            }
            link.set_memory(regions)?;
            Ok(true)
        });
        kept == Some(true)
    }

    /// What comes unasked: the end of the connection, or that the configuration has changed. Whether it has changed again since: to be looked
    /// at later.
    pub fn look(&self) -> bool {
        self.config_changed.store(false, SeqCst);
        let (looked, changed) = self.try_with_link(|link| {
            let mut config = None;
            for _ in 0..MOST_CHANGES {
                if !link.look()? {
                    break;
                }
                config = link.config_now()?;
            }
            Ok(config)
        });
        match looked {
            Some(Some(config)) => self.show_config(config),
            Some(None) => {}
            None => self.look_at_all(),
        }
        changed
    }

    /// Shows the driver another configuration space, and tells it so, if it is one. Not with the link locked.
    fn show_config(&self, config: Vec<u8>) {
        if *lock(&self.config) == config {
            return;
        }
        if let Some(handle) = self.handle.get() {
            handle.change_config(|| *lock(&self.config) = config);
        }
    }
}

impl Shared {
    pub fn new(
        options: RemoteOptions,
        link: Link,
        regions: Regions,
        events: Box<[Events]>,
        config: Vec<u8>,
        windows: Arc<Mutex<Windows>>,
    ) -> Self {
        Self {
            options,
            link: Mutex::new(link),
            // Zero is that of a ring which is nowhere.
            era: AtomicU64::new(1),
            regions,
            events,
            failures: FailureLog::default(),
            handle: OnceLock::new(),
            clock: None,
            config: Mutex::new(config),
            started: AtomicUsize::new(0),
            returns: AtomicU64::new(0),
            windows,
            has_ended: AtomicBool::new(false),
            config_changed: AtomicBool::new(false),
        }
    }
}

impl Export for Shared {
    /// Who looks up has its own link, whose back end waits: two that look for what the other one exports are not to wait for each other, and
    /// one that never answers is not to cost who asks the rest of its own patience.
    fn export(&self, uuid: Uuid) -> io::Result<OwnedFd> {
        let end = after(self.options.patience / 4);
        let (found, changed) = loop {
            let mut link = match self.link.try_lock() {
                Ok(link) => link,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() < end => {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::ResourceBusy.into()),
            };
            let found = link.shared_object(uuid, end).map_err(|error| {
                let kind = error.kind();
                self.lost(&mut link, error);
                io::Error::from(kind)
            });
            break (found, self.note_config_changed(&link));
        };
        if found.is_err() || changed {
            self.look_at_all();
        }
        found?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
