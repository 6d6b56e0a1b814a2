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

use std::{
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
        transport::vhost_user::{ConnectionError, FrontEndMemory, VhostUser, VhostUserOptions},
    },
};

use arguments::{Arguments, Meeting};
use events::{Bell, Events, Target};

fn main() -> ExitCode {
    let result = Arguments::parse(std::env::args().skip(1)).map_err(Into::into).and_then(run);
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
    let events = Arc::new(Events::new(Arc::clone(&clock))?);
    let memory = FrontEndMemory::new();
    let device = devices::make(&arguments, &clock, &memory)?;
    let options = VhostUserOptions {
        transport: arguments.transport(),
        polled: Some((clock, Duration::from_micros(50))),
        memory: Some(memory),
        ..VhostUserOptions::default()
    };
    let device = VhostUser::new(device, options)?.with_doorbell(Bell(Arc::clone(&events)));
    events.wait(Target::Signal, &[Wait::Readable(signals.as_raw_fd())]);
    let daemon = Daemon::new(device, events, &arguments.meeting)?;
    let result = daemon.run(&arguments.meeting);
    if let Meeting::Listen(path) = &arguments.meeting {
        let _ = fs::remove_file(path);
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
    device: VhostUser<Box<dyn VirtioDevice>>,
    events: Arc<Events>,
    listener: Option<UnixListener>,
}

impl Daemon {
    fn new(
        device: VhostUser<Box<dyn VirtioDevice>>,
        events: Arc<Events>,
        meeting: &Meeting,
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
            device,
            events,
            listener,
        })
    }

    fn run(&self, meeting: &Meeting) -> Result<(), Box<dyn Error>> {
        let (mut due, mut refusals) = (Vec::new(), 0);
        self.say_waits();
        loop {
            self.events.next(&mut due)?;
            for target in &due {
                match target {
                    Target::Signal => return Ok(()),
                    Target::Queue(index) => {
                        if self.device.serve(QueueIndex(*index)) {
                            self.events.make_due(*target);
                        }
                    }
                    Target::Listener => self.accept(),
                    Target::Connection => {
                        let served = self.device.serve_connection();
                        self.tell_refusals(&mut refusals);
                        match served {
                            Ok(true) => self.events.make_due(Target::Connection),
                            Ok(false) => {}
                            Err(error) => {
                                if !matches!(error, ConnectionError::Closed) {
                                    eprintln!("devisord: {error}");
                                }
                                if self.listener.is_none() {
                                    return match (error, meeting) {
                                        (ConnectionError::Closed, _) => Ok(()),
                                        (error, _) => Err(error.into()),
                                    };
                                }
                            }
                        }
                        self.say_waits();
                    }
                }
            }
        }
    }

    /// Says why a request was refused, if the front end is told no more than that: the first times.
    fn tell_refusals(&self, told: &mut u64) {
        let refusals = self.device.refusals();
        if let Some(last) = refusals.last.filter(|_| refusals.count > *told && *told < 16) {
            eprintln!("devisord: refused: {last}");
        }
        *told = refusals.count;
    }

    fn accept(&self) {
        let accepted = self.listener.as_ref().map(UnixListener::accept);
        if let Some(Ok((stream, _))) = accepted
            && self.device.connect(stream).is_ok()
        {
            self.events.make_due(Target::Connection);
        }
        self.say_waits();
    }

    /// Who waits for another front end while there is one finds it in the listener's queue.
    fn say_waits(&self) {
        self.events.wait(Target::Connection, &self.device.connection_waits());
        let listener = self.listener.as_ref().filter(|_| !self.device.is_connected());
        let waits: Vec<_> = listener.iter().map(|listener| Wait::Readable(listener.as_raw_fd())).collect();
        self.events.wait(Target::Listener, &waits);
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
