//! Any device behind a vhost-user socket: for QEMU, user-mode Linux, DPDK and whoever else speaks the protocol (feature `vhost-user`).
//!
//! A transport like the others: it decodes what comes from outside, here messages on a socket. The device is the same, and knows of
//! nothing; guest memory is what the front end sends, a call descriptor is the interrupt, a kick descriptor rings the doorbell.
//!
//! | file | what is in it |
//! |---|---|
//! | `session`, `requests` | a connection, and what each request does |
//! | `ring` | a ring as it was described, and the queue that it becomes |
//! | `regions`, `log`, `reclaim` | the front end's memory, the log of its dirty pages, and what is given back of it |
//! | `inflight` | the table of requests in flight |
//! | `lines` | kick, call and error descriptors |
//!
//! *Who runs it*: no thread and no loop is started. The connection makes progress when [`serve_connection`](VhostUser::serve_connection)
//! is called, and says what it waits for; queues are [served](VirtioTransport::serve) as those of any transport, and the kick descriptor is
//! one more thing that a queue waits for. Nothing waits in a call: a request whose answer depends on a queue that has to come to rest is
//! answered once it has, and no other request is read before.
//!
//! *When a ring runs*: it is described (size, addresses, base), the front end has set its kick, and it is enabled: by
//! SET_VRING_ENABLE if VHOST_USER_F_PROTOCOL_FEATURES was negotiated, from the beginning if not. It does not wait for SET_STATUS:
//! front ends kick without. GET_VRING_BASE stops it.
//!
//! *When the device is reset*: with RESET_DEVICE; with a status of zero if that was not negotiated; with other features than before;
//! and when the connection ends. A driver that is stopped for a while (the front end asks for the base of all rings, and starts them
//! again with it) finds the device as it was.
//!
//! *What a front end may do wrong* costs its connection: [`ConnectionError`]. If it has asked for an answer, it is told instead, and
//! nothing has changed. Files that it sends are mapped if they are as long as they have to be; one that it makes shorter afterwards
//! raises SIGBUS where it is used. What a process does then is its own choice: seals can be asked for, or the signal be handled.
//! Descriptors for events are made non-blocking, which the front end shares.

mod error;
mod inflight;
mod lines;
mod log;
mod options;
mod reclaim;
mod regions;
mod requests;
mod ring;
mod session;

use std::{
    fmt, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Core, Doorbell, NotStill, RestoreError, SavedDevice, SavedTransport, TransportError, VirtioTransport,
    status::DEVICE_NEEDS_RESET,
};
use crate::{
    interrupt::Interrupt,
    memory::{Memory, Replaceable},
    sync::lock,
    virtio::{
        Descriptor, FailureLog, Fault, HostFailures, QueueIndex, VirtioDevice, Wait, features,
        queue::QueueCounters,
        vhost_user::{FrontRequest, Received, Socket, protocol_feature, vhost_feature},
    },
};
use lines::{Bell, Event, Lines};
use regions::Regions;
use ring::Kick;
use session::{Answer, Begun, Rest, Session};

pub use error::{AlreadyConnected, ConnectionError};
pub use options::VhostUserOptions;
pub use reclaim::FrontEndMemory;

/// How many requests are done in one call.
const TURN: usize = 64;

/// A device behind a vhost-user socket.
pub struct VhostUser<D: VirtioDevice> {
    core: Arc<Core<D>>,
    lines: Arc<Lines>,
    memory: Replaceable,
    options: VhostUserOptions,
    connection: Mutex<Connection>,
    /// Something has come to rest: the connection waits for it.
    wake: Arc<Event>,
    when_still: Arc<Mutex<Option<Arc<dyn Fn() + Send + Sync>>>>,
    /// Requests that were refused, and the last reason.
    refusals: FailureLog,
    /// The embedder has paused the device.
    paused: AtomicBool,
    /// The front end was told that the device has failed.
    told_failure: AtomicBool,
}

struct Connection {
    session: Option<Session>,
    /// The device has come to rest since the last one.
    settled: bool,
}

impl<D: VirtioDevice + 'static> VhostUser<D> {
    /// Puts `device` behind a socket that is still to come.
    ///
    /// # Errors
    /// The device offers a queue that cannot be, or the system has no descriptor left.
    pub fn new(device: D, options: VhostUserOptions) -> Result<Self, VhostUserError> {
        let nothing = Regions::default().memory(None).map_err(io::Error::other)?;
        let memory = Replaceable::new(&nothing);
        let queues = device.queue_sizes().len();
        let lines = Arc::new(Lines::new(queues, options.clone()));
        let interrupt = Arc::clone(&lines) as _;
        let core = Core::new(device, memory.memory(), interrupt, &options.transport, 0)?;
        core.set_doorbell(Box::new(Bell(Arc::clone(&lines))));
        // SAFETY: the call takes numbers, and its result is a descriptor that nobody else has, or none.
        let wake = unsafe {
            match libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) {
                ..0 => return Err(io::Error::last_os_error().into()),
                descriptor => OwnedFd::from_raw_fd(descriptor),
            }
        };
        let wake = Arc::new(Event::new(wake)?);
        let when_still: Arc<Mutex<Option<Arc<dyn Fn() + Send + Sync>>>> = Arc::default();
        let (waker, told) = (Arc::clone(&wake), Arc::clone(&when_still));
        core.when_still(Box::new(move || {
            // A full one wakes too.
            let _ = waker.trigger();
            let told = lock(&told).clone();
            if let Some(told) = told {
                told();
            }
        }));
        Ok(Self {
            core,
            lines,
            memory,
            options,
            connection: Mutex::new(Connection {
                session: None,
                settled: true,
            }),
            wake,
            when_still,
            refusals: FailureLog::default(),
            paused: AtomicBool::new(false),
            told_failure: AtomicBool::new(false),
        })
    }

    /// Who hears that a queue is to be [served](VirtioTransport::serve), and [what it waits for](Doorbell::wait), its kick included.
    /// Without, a queue is served by whoever calls for it, and [`waits`](VirtioTransport::waits) is asked.
    pub fn with_doorbell(self, doorbell: impl Doorbell + 'static) -> Self {
        self.lines.set_doorbell(Box::new(doorbell));
        self
    }
}

/// A device cannot be put behind a socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhostUserError {
    /// It cannot be put behind any transport.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The system has no descriptor or memory to give.
    #[error("the system: {0}")]
    System(#[from] io::Error),
}

impl<D: VirtioDevice> VhostUser<D> {
    /// Takes a front end, at the other end of `stream`: one that was accepted, or that was connected to.
    ///
    /// # Errors
    /// There is one already.
    pub fn connect(&self, stream: UnixStream) -> Result<(), AlreadyConnected> {
        let mut connection = lock(&self.connection);
        if connection.session.is_some() {
            return Err(AlreadyConnected);
        }
        connection.session = Some(Session::new(Socket::new(stream), self.core.queue_count().into()));
        Ok(())
    }

    /// Whether there is a front end.
    pub fn is_connected(&self) -> bool {
        lock(&self.connection).session.is_some()
    }

    /// What the connection waits for: call [`serve_connection`](Self::serve_connection) once one of them is there. Asked after each
    /// call, for it changes.
    pub fn connection_waits(&self) -> Vec<Wait> {
        let connection = lock(&self.connection);
        let wake = Wait::Readable(self.wake.descriptor());
        match &connection.session {
            None if connection.settled => Vec::new(),
            None => vec![wake],
            Some(session) if session.socket.is_full() => vec![Wait::Writable(session.socket.descriptor()), wake],
            // Its end is not seen before the request is done.
            Some(session) if session.begun.is_some() || !connection.settled => vec![wake],
            Some(session) => vec![Wait::Readable(session.socket.descriptor())],
        }
    }

    /// Does what the front end asks for, a bounded number of requests. Whether there may be more to do at once.
    ///
    /// # Errors
    /// The connection has ended. The device is reset, and takes [another](Self::connect).
    pub fn serve_connection(&self) -> Result<bool, ConnectionError> {
        self.wake.take();
        let mut connection = lock(&self.connection);
        if !self.settle(&mut connection) {
            return Ok(false);
        }
        let Some(session) = &mut connection.session else {
            return Ok(false);
        };
        let result = self.advance(session);
        if result.is_err() {
            self.end_connection(&mut connection);
        }
        result
    }

    /// Ends the connection, if there is one.
    pub fn disconnect(&self) {
        let mut connection = lock(&self.connection);
        if connection.session.is_some() {
            self.end_connection(&mut connection);
        }
    }

    /// How often a request was refused, and why the last one was.
    pub fn refusals(&self) -> HostFailures {
        self.refusals.get()
    }

    /// Looks at the device's control face, or changes what is not in its configuration space. No queue waits for this.
    pub fn with_device<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        self.core.change_device(false, f)
    }

    /// Changes the configuration space of the device and tells the front end, which reads it again.
    pub fn change_config<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        self.core.change_device(true, f)
    }

    fn end_connection(&self, connection: &mut Connection) {
        let session = connection.session.take();
        self.lines.forget_all();
        self.core.begin_reset();
        self.core.end_bus_stops();
        connection.settled = false;
        self.settle(connection);
        drop(session);
    }

    /// Whether the device has come to rest after the last connection.
    fn settle(&self, connection: &mut Connection) -> bool {
        if connection.settled {
            return true;
        }
        self.core.finish_reset();
        if !self.core.is_resetting() {
            self.told_failure.store(false, Ordering::SeqCst);
            connection.settled = match Regions::default().memory(None) {
                Ok(nothing) => {
                    if let Some(told) = &self.options.memory {
                        told.set(&Regions::default());
                    }
                    self.memory.replace(&nothing);
                    true
                }
                Err(_) => false,
            };
        }
        connection.settled
    }

    fn advance(&self, session: &mut Session) -> Result<bool, ConnectionError> {
        for _ in 0..TURN {
            session.socket.flush()?;
            // Who does not read answers is not heard.
            if session.socket.is_full() {
                return Ok(false);
            }
            let Some(mut begun) = session.begun.take() else {
                match session.socket.receive() {
                    Ok(Received::Nothing) => return Ok(false),
                    Ok(Received::Message(message)) => self.begin(session, message)?,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return Err(ConnectionError::Closed),
                    Err(error) => return Err(error.into()),
                }
                continue;
            };
            if !self.is_at_rest(begun.rest) {
                session.begun = Some(begun);
                return Ok(false);
            }
            let answer = self.perform(session, &mut begun);
            let answer = answer.unwrap_or_else(|reason| {
                self.refusals.record(io::Error::other(reason.clone()));
                Answer::Refused(reason)
            });
            if begun.rest == Rest::All && !self.paused.load(Ordering::SeqCst) {
                self.core.resume();
            }
            let needed = session.has(protocol_feature::REPLY_ACK) && begun.message.header.needs_reply();
            self.start_rings(session);
            session.answer(begun.request, needed, answer)?;
        }
        Ok(true)
    }

    fn begin(&self, session: &mut Session, message: crate::virtio::vhost_user::Message) -> Result<(), ConnectionError> {
        let number = message.header.request;
        let request = FrontRequest::new(number).filter(|_| !message.header.is_reply());
        let negotiated = |request: &FrontRequest| requests::needs(*request).is_none_or(|feature| session.has(feature));
        let Some(request) = request.filter(negotiated) else {
            return Err(ConnectionError::Request(number));
        };
        let rest = self.rest_for(session, request, &message);
        match rest {
            Rest::Nothing => {}
            Rest::Ring(index) => self.core.begin_ring_stop(index),
            Rest::All => self.core.pause(),
            Rest::Device => {
                (0..session.rings.len()).for_each(|index| self.lines.stops(index));
                session.rings.iter_mut().for_each(|ring| ring.runs = None);
                self.core.begin_reset();
                self.core.end_bus_stops();
                self.told_failure.store(false, Ordering::SeqCst);
            }
        }
        session.begun = Some(Begun {
            request,
            message,
            rest,
        });
        Ok(())
    }

    fn is_at_rest(&self, rest: Rest) -> bool {
        match rest {
            Rest::Nothing => true,
            Rest::Ring(index) => self.core.is_ring_still(index),
            Rest::All => self.core.is_still(),
            Rest::Device => {
                self.core.finish_reset();
                !self.core.is_resetting()
            }
        }
    }

    /// Starts each ring that is to run and does not.
    fn start_rings(&self, session: &mut Session) {
        let Some(features) = session.features.filter(|_| !session.disagreed) else {
            return;
        };
        for index in 0..session.rings.len() {
            let ring = &session.rings[index];
            // "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled state."
            let enabled = ring.enabled.unwrap_or(features & vhost_feature::PROTOCOL_FEATURES == 0);
            if ring.runs.is_some() || ring.kick == Kick::None || ring.refused || !enabled || ring.size == 0 {
                continue;
            }
            let Some(layout) = ring.layout(&session.regions) else { continue };
            let accepted = features & !requests::VHOST;
            let part = session.inflight.as_ref().and_then(|table| table.queue(index, layout.size));
            let started = ring.start(layout, accepted, self.core.memory(), part.as_ref());
            let started = started.map_err(|fault| fault.to_string()).and_then(|state| {
                let tracker = part.map(|part| Arc::new(part) as _);
                let started = self.core.start_ring(index, &state, tracker);
                started.map_err(|error| error.to_string())
            });
            let ring = &mut session.rings[index];
            match started {
                Ok(()) => {
                    ring.runs = Some(layout);
                    ring.kept = None;
                    self.lines.starts(index);
                }
                Err(reason) => {
                    ring.refused = true;
                    self.core.become_live();
                    self.core.refuse_ring(reason);
                    self.look_for_failure();
                }
            }
        }
    }

    /// Maps the regions anew, with the log if it is wanted.
    fn map(&self, session: &Session) -> Result<(), String> {
        let wanted = session.features.is_some_and(|features| features & vhost_feature::LOG_ALL != 0);
        let memory = session.regions.memory(session.log.as_ref().filter(|_| wanted))?;
        if let Some(told) = &self.options.memory {
            told.set(&session.regions);
        }
        self.memory.replace(&memory);
        self.core.memory_changed();
        Ok(())
    }

    fn offered(&self) -> u64 {
        self.core.offered() & !features::NOTIFICATION_DATA | requests::VHOST
    }

    fn protocol(&self) -> u64 {
        requests::PROTOCOL
    }

    fn max_regions(&self) -> usize {
        self.options.max_regions.clamp(1, 509).into()
    }

    /// Tells the front end, once, if the device has failed.
    fn look_for_failure(&self) {
        if self.core.status() & DEVICE_NEEDS_RESET != 0 && !self.told_failure.swap(true, Ordering::SeqCst) {
            self.lines.fail();
        }
    }
}

impl<D: VirtioDevice> VirtioTransport for VhostUser<D> {
    fn status(&self) -> u32 {
        self.core.status()
    }

    fn fault(&self) -> Option<Fault> {
        self.core.fault()
    }

    fn queue_counters(&self, queue: QueueIndex) -> Option<QueueCounters> {
        self.core.queue_counters(queue)
    }

    fn counters(&self) -> QueueCounters {
        self.core.counters()
    }

    fn is_still(&self) -> bool {
        self.core.is_still()
    }

    fn waiting(&self) -> Vec<(QueueIndex, u64)> {
        self.core.waiting()
    }

    fn waiting_for(&self) -> Option<Duration> {
        self.core.waiting_for()
    }

    fn cancel(&self) {
        self.core.cancel_all();
    }

    fn wait_until_still(&self, limit: Option<Duration>) -> bool {
        self.core
            .wait_until_still(limit.and_then(|limit| Instant::now().checked_add(limit)))
    }

    fn memory_changed(&self) {
        self.core.memory_changed();
    }

    fn memory(&self) -> &Memory {
        self.core.memory()
    }

    fn run(&self) {
        for index in 0..self.core.queue_count() {
            self.process(QueueIndex(index));
        }
    }

    fn process(&self, queue: QueueIndex) {
        self.lines.take_kick(queue.0.into());
        self.core.process(queue);
        self.look_for_failure();
        self.lines.tell_again(queue.0.into());
    }

    fn serve(&self, queue: QueueIndex) -> bool {
        self.lines.take_kick(queue.0.into());
        let more = self.core.serve_once(queue);
        self.look_for_failure();
        self.lines.tell_again(queue.0.into());
        more
    }

    fn waits(&self, queue: QueueIndex) -> Vec<Wait> {
        self.lines.waits(queue.0.into(), &self.core.waits(queue))
    }

    fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        self.core.pause();
    }

    fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
        self.core.resume();
    }

    fn when_still(&self, told: Box<dyn Fn() + Send + Sync>) {
        let before = lock(&self.when_still).replace(told.into());
        drop(before);
    }

    /// Ends the connection too: the rings are the front end's.
    fn reset(&self) {
        self.disconnect();
        self.core.begin_reset();
        self.core.end_bus_stops();
        self.core.wait_for_reset(None);
    }

    /// What the device keeps. Rings are the front end's, which keeps how far they have come.
    fn save(&self) -> Result<SavedDevice, NotStill> {
        let (_, device) = self.core.save()?;
        Ok(SavedDevice {
            transport: SavedTransport::VhostUser,
            device,
        })
    }

    fn restore(&self, state: &SavedDevice) -> Result<(), RestoreError> {
        let SavedTransport::VhostUser = &state.transport else {
            return Err(RestoreError::Transport("vhost-user"));
        };
        match self.core.status() {
            0 => Ok(self.with_device(|device| device.restore(&state.device))?),
            status => Err(RestoreError::InUse(status)),
        }
    }
}

impl<D: VirtioDevice> Drop for VhostUser<D> {
    fn drop(&mut self) {
        self.core.abandon();
        self.lines.forget_all();
    }
}

impl<D: VirtioDevice> fmt::Debug for VhostUser<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUser").field("core", &self.core).finish_non_exhaustive()
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> Descriptor {
        self.descriptor()
    }
}
