//! Daemons of others: found, started in a folder of their own, and ended with the test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use devisor::{
    time::{Clock, HostClock},
    virtio::{
        VirtioDevice,
        remote::{Connect, Remote, RemoteOptions, SocketPath},
    },
};
use vm_memory::GuestMemoryMmap;

use crate::{
    front::shared_memory,
    machine::{Bus, Machine},
    poll::poll,
    skip::skipped,
};

/// A folder, which goes with this.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("devisor-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The same as an argument.
    pub fn text(&self, name: &str) -> String {
        self.join(name).display().to_string()
    }

    pub fn socket(&self) -> PathBuf {
        self.join("socket")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process, which ends with this.
pub struct Daemon(Child);

impl Daemon {
    /// Where a program is, by its path or its name: the first of these that there is.
    pub fn find(names: &[&str]) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin"));
        let folders: Vec<_> = std::env::split_paths(&path).chain(home).collect();
        let mut all = names.iter().flat_map(|name| match name.starts_with('/') {
            true => vec![PathBuf::from(name)],
            false => folders.iter().map(|folder| folder.join(name)).collect(),
        });
        let found = all.find(|path| path.is_file());
        if found.is_none() {
            skipped(format!("{} is not here", names.join(" or ")));
        }
        found
    }

    /// Starts it, and waits until it listens at `socket`.
    pub fn start(program: &Path, arguments: &[String], socket: &Path) -> Self {
        let _ = fs::remove_file(socket);
        let child = Command::new(program)
            .args(arguments)
            // One end of a pipe: some end with their input.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(match std::env::var_os("DEVISOR_DAEMON_STDERR") {
                Some(_) => Stdio::inherit(),
                None => Stdio::null(),
            })
            .spawn();
        let mut daemon = Self(child.unwrap_or_else(|error| panic!("{}: {error}", program.display())));
        let end = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            assert!(Instant::now() < end, "{} does not listen", program.display());
            if let Ok(Some(status)) = daemon.0.try_wait() {
                panic!("{} has ended: {status}", program.display());
            }
            thread::sleep(Duration::from_millis(10));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A device, as soon as its daemon accepts.
pub fn device(socket: PathBuf, mut options: RemoteOptions) -> (Remote, Arc<GuestMemoryMmap>) {
    let memory = shared_memory(1);
    (device_in(&memory, socket, &mut options), memory)
}

/// The same in memory that is there.
pub fn device_in(memory: &Arc<GuestMemoryMmap>, socket: PathBuf, options: &mut RemoteOptions) -> Remote {
    options.patience = Duration::from_secs(10);
    options.retry = Duration::from_millis(20);
    let mut connect = SocketPath(socket);
    let end = Instant::now() + Duration::from_secs(10);
    // Many daemons take one connection: this one is it.
    let first = loop {
        match connect.connect() {
            Ok(connection) => break connection,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        thread::sleep(Duration::from_millis(10));
    };
    let connect = FirstThen(Some(first), connect);
    let remote = Remote::new(connect, Arc::clone(memory), options.clone()).unwrap();
    remote.with_clock(clock())
}

struct FirstThen(Option<devisor::virtio::remote::Connection>, SocketPath);

impl Connect for FirstThen {
    fn connect(&mut self) -> std::io::Result<devisor::virtio::remote::Connection> {
        match self.0.take() {
            Some(first) => Ok(first),
            None => self.1.connect(),
        }
    }
}

pub fn clock() -> HostClock {
    HostClock::starting_at(Duration::ZERO)
}

pub fn machine(bus: Bus, device: Remote, memory: &Arc<GuestMemoryMmap>) -> Machine<Remote> {
    Machine::in_memory(bus, device, Arc::clone(memory))
}

/// Works as an event loop does until `done`, which is not long.
pub fn work_until<D: VirtioDevice + 'static>(
    machine: &mut Machine<D>,
    mut done: impl FnMut(&mut Machine<D>) -> bool,
) -> bool {
    let clock = clock();
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        poll(machine, clock.now());
        if done(machine) {
            return true;
        }
        thread::sleep(Duration::from_micros(200));
    }
    false
}
