//! Any device behind a vhost-user socket: for QEMU, user-mode Linux, DPDK and whoever else speaks the protocol (feature `vhost-user`).
//!
//! A transport like the others: it decodes what comes from outside, here messages on a socket. The device is the same, and knows of
//! nothing; guest memory is what the front end sends, a call descriptor is the interrupt, a kick descriptor rings the doorbell.
//!
//! | file | what is in it |
//! |---|---|
//! | `connection`, `session` | a connection, and what was said on it |
//! | `requests`, `map`, `rings` | what each request does: in general, to memory, and to rings |
//! | `ring` | a ring as it was described, and the queue that it becomes |
//! | `regions`, `log`, `reclaim` | the front end's memory, the log of its dirty pages, and what is given back of it |
//! | `shared` | a file of the front end's that is no memory, mapped |
//! | `iotlb` | translations that the front end tells |
//! | `inflight` | the table of requests in flight |
//! | `transfer` | the device's state on its way |
//! | `objects`, `channel` | what is shared with other devices; what the back end asks, and is answered |
//! | `lines`, `event` | kick, call and error descriptors |
//! | `face` | what an embedder sees of any transport |
//!
//! *Who runs it*: no thread and no loop is started. The connection makes progress when [`serve_connection`](VhostUser::serve_connection)
//! is called, and says what it waits for; queues are [served](super::VirtioTransport::serve) as those of any transport, and the kick descriptor is
//! one more thing that a queue waits for. Nothing waits in a call: a request whose answer depends on a queue that has to come to rest is
//! answered once it has, and no other request is read before.
//!
//! *When a ring runs*: it is described (size, addresses, base), the front end has set its kick, and it is enabled: by
//! SET_VRING_ENABLE, or by SET_FEATURES without VHOST_USER_F_PROTOCOL_FEATURES. It does not wait for SET_STATUS: front ends kick without.
//! GET_VRING_BASE stops it. One that is disabled rests, and what is in it waits until it is enabled: nothing is thrown away, as the
//! specification would have it of what a network device sends; other back ends rest, too. While all are stopped, nothing is told of the
//! configuration: front ends do not hear it then. It is told when the next ring starts.
//!
//! *When the device is reset*: with RESET_DEVICE; with a status of zero if that was not negotiated; with other features than before;
//! and when the connection ends. A driver that is stopped for a while (the front end asks for the base of all rings, and starts them
//! again with it) finds the device as it was. With RESET_DEVICE, and such a status, what was in flight is forgotten with the device's
//! state: the table is empty from there on, and the front end gives it again if it is to be kept.
//!
//! *The device's state* goes through a pipe of the front end's. Have the process ignore SIGPIPE, as the runtime of a Rust program does:
//! a pipe whose other end is closed is an error then, and costs the state alone. Who asks what has come of it waits for that; another
//! request before the answer ends it, and there is no state.
//!
//! *Behind an IOMMU* (ACCESS_PLATFORM, [if it is offered](VhostUserOptions::max_translations)), addresses of rings and buffers are
//! the driver's, and the front end tells where they are when it is asked. A request whose translation is missing stays in its ring, and
//! its queue is looked at again when it has come, or with the next kick; one that the front end says is not to come costs the request
//! (if it says so: REPLY_ACK). A ring starts when all of it is translated. A translation that is taken back is
//! answered for when nobody uses it any more: a ring that lies there comes to rest first, and begins again when it is translated anew.
//!
//! *What a front end may do wrong* costs its connection: [`ConnectionError`]. If it has asked for an answer, it is told instead, and
//! nothing has changed. Files that it sends are mapped if they are as long as they have to be; one that it makes shorter afterwards
//! raises SIGBUS where it is used. What a process does then is its own choice: seals can be asked for, or the signal be handled.
//! A kick whose other end is closed is looked at no more.
//! No descriptor of an event or of a state is waited for, whatever the front end makes of its flags: an eventfd is signaled by way of
//! `io_submit(2)`, and a process whose system calls are filtered allows that, `io_setup` and `io_getevents`. Where there is none of it
//! (and with a pipe of another user's, which cannot be opened once more), it is looked first whether there is room.
//! One thing is left: the kernel locks a pipe, and a socket that is read, while it copies for whoever shares it, and a process whose memory
//! is filled in by itself (userfaultfd, FUSE) can have that take as long as it lives. Nor does an eventfd help against memory that is a
//! file of such a file system. Front ends that could do so and do not trust each other are each served by a process of their own.

mod channel;
mod connection;
mod device_state;
mod error;
mod event;
mod face;
mod found;
mod inflight;
mod iotlb;
mod lines;
mod log;
mod map;
mod objects;
mod options;
mod reclaim;
mod regions;
mod requests;
mod ring;
mod rings;
mod session;
mod shared;
mod transfer;

use std::{
    fmt, io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Core, Doorbell, TransportError, status::DEVICE_NEEDS_RESET};
use crate::{
    interrupt::Interrupt,
    memory::{Replaceable, Switched, Translate, Translated},
    sync::lock,
    virtio::{FailureLog, HostFailures, VirtioDevice, Wait, features, vhost_user::Socket},
};
use event::Event;
use iotlb::Iotlb;
use lines::{Bell, Lines};
use objects::Objects;
use regions::Regions;
use session::{Begun, Session};
use transfer::Transfer;

pub use error::{AlreadyConnected, ConnectionError};
pub use options::VhostUserOptions;
pub use reclaim::FrontEndMemory;

/// A device behind a vhost-user socket.
pub struct VhostUser<D: VirtioDevice> {
    core: Arc<Core<D>>,
    lines: Arc<Lines>,
    memory: Replaceable,
    /// The same, or as it is translated.
    platform: Switched,
    iotlb: Arc<Iotlb>,
    objects: Objects,
    options: VhostUserOptions,
    connection: Mutex<Connection>,
    /// Something has come to rest: the connection waits for it.
    wake: Arc<Event>,
    when_still: Arc<Mutex<Told>>,
    /// Requests that were refused, and the last reason.
    refusals: FailureLog,
    /// The front end was told that the device has failed.
    told_failure: AtomicBool,
}

/// Who hears of what has come to rest.
type Told = Option<Arc<dyn Fn() + Send + Sync>>;

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
        // SAFETY: the call takes numbers, and its result is a descriptor that nobody else has, or none.
        let wake = unsafe {
            match libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) {
                ..0 => return Err(io::Error::last_os_error().into()),
                descriptor => OwnedFd::from_raw_fd(descriptor),
            }
        };
        let wake = Arc::new(Event::said(wake)?);
        let lines = Arc::new(Lines::new(queues, options.clone(), Arc::clone(&wake)));
        let max = options.max_translations as usize;
        let iotlb = Iotlb::new(max, Arc::clone(&lines), Arc::clone(&wake));
        let source: Weak<dyn Translate> = Arc::downgrade(&iotlb) as _;
        let translated = Translated::new(memory.memory(), source);
        iotlb.set_memory(Arc::clone(&translated));
        let platform = Switched::new(memory.memory(), translated);
        let interrupt = Arc::clone(&lines) as _;
        let brought = match iotlb.is_offered() {
            true => features::ACCESS_PLATFORM,
            false => 0,
        };
        let core = Core::new(device, platform.memory(), interrupt, &options.transport, brought)?;
        core.set_doorbell(Box::new(Bell(Arc::clone(&lines))));
        let when_still: Arc<Mutex<Told>> = Arc::default();
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
            platform,
            iotlb,
            objects: Objects::default(),
            options,
            connection: Mutex::new(Connection {
                session: None,
                settled: true,
            }),
            wake,
            when_still,
            refusals: FailureLog::default(),
            told_failure: AtomicBool::new(false),
        })
    }

    /// Who hears that a queue is to be [served](super::VirtioTransport::serve), and [what it waits for](Doorbell::wait), its kick included.
    /// Without, a queue is served by whoever calls for it, and [`waits`](super::VirtioTransport::waits) is asked.
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
        let mut waits = match &connection.session {
            None if connection.settled => Vec::new(),
            None => vec![wake],
            Some(session) if session.socket.is_full() => vec![Wait::Writable(session.socket.descriptor()), wake],
            // Its end is not seen before the request is done, unless that hangs on what the front end has.
            Some(session) if !connection.settled || session.begun.as_ref().is_some_and(Begun::hangs_on_device) => {
                vec![wake]
            }
            Some(session) => vec![Wait::Readable(session.socket.descriptor()), wake],
        };
        if let Some(session) = &connection.session {
            waits.extend(session.transfer.as_ref().and_then(Transfer::wait));
        }
        waits.extend(self.lines.awaited().map(Wait::Readable));
        let asks_more = self.translates() && self.iotlb.send();
        let owes_config = self.core.owes_config() && !self.lines.is_suspended();
        if self.objects.tell(&self.lines) || asks_more || owes_config {
            waits.extend(self.lines.channel_descriptor().map(Wait::Writable));
        }
        waits
    }

    /// Ends the connection, if there is one.
    pub fn disconnect(&self) {
        {
            let mut connection = lock(&self.connection);
            if connection.session.is_some() {
                self.end_connection(&mut connection);
            }
        }
        self.lines.tell_found();
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

    /// Whether the addresses of the device are translated.
    fn translates(&self) -> bool {
        self.core.memory().is_translated()
    }

    /// Tells the front end, once, if the device has failed.
    fn look_for_failure(&self) {
        if self.core.status() & DEVICE_NEEDS_RESET != 0 && !self.told_failure.swap(true, Ordering::SeqCst) {
            self.lines.fail();
        }
    }
}

impl<D: VirtioDevice> Drop for VhostUser<D> {
    fn drop(&mut self) {
        self.core.abandon();
        self.lines.forget_all();
        self.lines.tell_found();
    }
}

impl<D: VirtioDevice> fmt::Debug for VhostUser<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUser")
            .field("core", &self.core)
            .finish_non_exhaustive()
    }
}
