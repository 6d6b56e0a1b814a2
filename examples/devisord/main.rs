//! A device as a daemon, behind a vhost-user socket: for QEMU, user-mode Linux, DPDK and whoever else speaks it.
//!
//! ```text
//! devisord blk --socket-path S --image F
//! devisord rng --socket-path S
//! ```
//!
//! It keeps to the conventions for back-end programs of the vhost-user specification: `--socket-path` or `--fd`, `--print-capabilities`,
//! errors on stderr, and a clean end with SIGTERM.

mod arguments;
mod devices;
mod events;
mod faults;
mod log;
mod poll;

use std::{
    cell::Cell,
    error::Error,
    fs, io, mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::ExitCode,
    ptr,
    sync::Arc,
    time::Duration,
};

use devisor::{
    time::{Clock, HostClock},
    virtio::{
        QueueIndex, VirtioDevice, VirtioTransport, Wait,
        net::{Switch, SwitchOptions},
        transport::vhost_user::{ConnectionError, FrontEndMemory, VhostUser, VhostUserOptions},
    },
};

use arguments::{Arguments, Meeting};
use events::{Bell, Events, Target};
use log::Log;
use poll::Poll;

fn main() -> ExitCode {
    let result = Arguments::parse(std::env::args().skip(1))
        .map_err(Into::into)
        .and_then(run);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("devisord: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    if arguments.print_capabilities {
        println!("{}", arguments.capabilities());
        return Ok(());
    }
    let clock: Arc<dyn Clock> = Arc::new(HostClock::starting_at(Duration::ZERO));
    // Before anything else that it could interrupt.
    let signals = signals()?;
    faults::handle()?;
    let events = Arc::new(Events::new(Arc::clone(&clock))?);
    let switch = Switch::new(SwitchOptions::default());
    let mut served = Vec::new();
    for (number, meeting) in arguments.meetings.iter().enumerate() {
        let memory = FrontEndMemory::new();
        let device = devices::make(&arguments, &clock, &memory, &switch)?;
        let options = VhostUserOptions {
            transport: arguments.transport(),
            max_translations: if arguments.iommu { 4096 } else { 0 },
            polled: Some((Arc::clone(&clock), Duration::from_micros(50))),
            memory: Some(memory),
            ..VhostUserOptions::default()
        };
        let bell = Bell {
            events: Arc::clone(&events),
            device: number,
            polled: arguments.poll,
        };
        let device = VhostUser::new(device, options)?.with_doorbell(bell);
        served.push(Served::new(number, device, meeting, Arc::clone(&clock))?);
    }
    events.wait(Target::Signal, &[Wait::Readable(signals.as_raw_fd())]);
    let polled = if arguments.poll {
        Poll::of(&served)
    } else {
        Poll::default()
    };
    let result = Daemon { served, events, polled }.run();
    for meeting in &arguments.meetings {
        if let Meeting::Listen(path) = meeting {
            let _ = fs::remove_file(path);
        }
    }
    result
}

/// SIGTERM and SIGINT, as a descriptor.
fn signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is filled in before it is used, and outlives the calls.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            ..0 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

struct Daemon {
    served: Vec<Served>,
    events: Arc<Events>,
    polled: Poll,
}

/// A device, and where its front ends come from.
struct Served {
    number: usize,
    device: VhostUser<Box<dyn VirtioDevice>>,
    listener: Option<UnixListener>,
    refusals: Cell<u64>,
    log: Log,
}

/// How a connection has ended after which there is no other.
type End = Result<(), String>;

impl Daemon {
    /// Until it is told to end, or the last front end is gone of those that were given to it: one that does wrong ends itself alone.
    fn run(mut self) -> Result<(), Box<dyn Error>> {
        let (mut due, mut left) = (Vec::new(), self.served.len());
        let mut has_ended = |end: End| {
            left -= 1;
            if left != 0
                && let Err(error) = &end
            {
                log::say(error);
            }
            (left == 0).then_some(end)
        };
        self.served.iter().for_each(|served| served.say_waits(&self.events));
        loop {
            match self.polled.begin(&self.served) {
                true => self.events.next(&mut due, self.polled.is_empty())?,
                false => due.clear(),
            }
            for target in due.iter().chain(&self.polled.targets) {
                let more = match *target {
                    Target::Signal => {
                        self.polled.say();
                        return Ok(());
                    }
                    // What is polled is served again in any case.
                    Target::Queue(number, index) => {
                        self.served[number].device.serve(QueueIndex(index)) && self.polled.is_empty()
                    }
                    Target::Listener(number) => self.served[number].accept(&self.events),
                    Target::Connection(number) => match self.served[number].serve_connection(&self.events) {
                        Ok(more) => more,
                        Err(end) => match has_ended(end) {
                            Some(end) => return Ok(end?),
                            None => false,
                        },
                    },
                };
                if more {
                    self.events.make_due(*target);
                }
                if faults::take()
                    && let Target::Queue(number, _) | Target::Connection(number) = *target
                    && let Err(end) = self.served[number].end_for_fault(&self.events)
                    && let Some(end) = has_ended(end)
                {
                    return Ok(end?);
                }
            }
        }
    }
}

impl Served {
    fn new(
        number: usize,
        device: VhostUser<Box<dyn VirtioDevice>>,
        meeting: &Meeting,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Box<dyn Error>> {
        let listener = match meeting {
            Meeting::Listen(path) => {
                let _ = fs::remove_file(path);
                let listener = UnixListener::bind(path).map_err(|error| format!("{}: {error}", path.display()))?;
                listener.set_nonblocking(true)?;
                Some(listener)
            }
            Meeting::Connect(path) => {
                let stream = UnixStream::connect(path).map_err(|error| format!("{}: {error}", path.display()))?;
                device.connect(stream)?;
                None
            }
            Meeting::Inherited(descriptor) => inherited(*descriptor, &device)?,
        };
        Ok(Self {
            number,
            device,
            listener,
            refusals: Cell::new(0),
            log: Log::new(clock),
        })
    }

    /// Whether there is more to do at once; or how it has ended, if there will be no other front end.
    fn serve_connection(&self, events: &Events) -> Result<bool, End> {
        let served = self.device.serve_connection();
        self.tell_refusals();
        self.say_waits(events);
        let end = match served {
            Ok(more) => return Ok(more),
            Err(ConnectionError::Closed) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        if self.listener.is_none() {
            return Err(end);
        }
        if let Err(error) = end {
            self.log.say(error);
        }
        Ok(false)
    }

    /// What was taken for its front end's memory was none.
    fn end_for_fault(&self, events: &Events) -> Result<(), End> {
        self.log.say("the front end has taken away memory that it shares");
        let was_connected = self.device.is_connected();
        self.device.disconnect();
        self.say_waits(events);
        match self.listener {
            None if was_connected => Err(Err("the connection has ended".into())),
            _ => Ok(()),
        }
    }

    /// Says why a request was refused, if the front end is told no more than that: the first times.
    fn tell_refusals(&self) {
        let refusals = self.device.refusals();
        if let Some(last) = refusals
            .last
            .filter(|_| refusals.count > self.refusals.get() && self.refusals.get() < 16)
        {
            self.log.say(format_args!("refused: {last}"));
        }
        self.refusals.set(refusals.count);
    }

    fn accept(&self, events: &Events) -> bool {
        match self.listener.as_ref().map(UnixListener::accept) {
            Some(Ok((stream, _))) => {
                if self.device.connect(stream).is_ok() {
                    events.make_due(Target::Connection(self.number));
                }
            }
            // There is no descriptor left: who is not taken stays in the listener's queue, which stays readable.
            Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                events.put_off(Target::Listener(self.number));
                return false;
            }
            Some(Err(_)) | None => {}
        }
        self.say_waits(events);
        false
    }

    /// Who waits for another front end while there is one finds it in the listener's queue.
    fn say_waits(&self, events: &Events) {
        events.wait(Target::Connection(self.number), &self.device.connection_waits());
        let listener = self.listener.as_ref().filter(|_| !self.device.is_connected());
        let waits: Vec<_> = listener
            .iter()
            .map(|listener| Wait::Readable(listener.as_raw_fd()))
            .collect();
        events.wait(Target::Listener(self.number), &waits);
    }
}

/// A descriptor that the parent has left open: a connection, or a socket that listens.
fn inherited(
    descriptor: i32,
    device: &VhostUser<Box<dyn VirtioDevice>>,
) -> Result<Option<UnixListener>, Box<dyn Error>> {
    let mut listens = 0i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the option is a number, for which there is room.
    let found = unsafe {
        libc::getsockopt(
            descriptor,
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut listens).cast(),
            &raw mut len,
        )
    };
    if found != 0 {
        return Err(format!("--fd {descriptor}: {}", io::Error::last_os_error()).into());
    }
    // SAFETY: it is open, as was just seen, and it was named for this program to have.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    if listens != 0 {
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        return Ok(Some(listener));
    }
    device.connect(UnixStream::from(socket))?;
    Ok(None)
}
