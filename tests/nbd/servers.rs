//! Beside servers that others wrote: what is read is what was written, through all of them.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use devisor::virtio::block::{AsyncStorage, Buffers, NbdError, NbdStorage, Operation, Outcome};

use crate::{
    channel::{Driver, clock, hasty, pattern},
    skip::skipped,
};

/// A directory of a test.
pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let path = std::env::temp_dir().join(format!("devisor-nbd-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        fs::File::create(&path)
            .and_then(|file| file.set_len(len))
            .expect("a file");
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum At {
    Unix(PathBuf),
    /// On the loopback interface.
    Port(u16),
}

impl At {
    /// A port of the system's choice. It is free until somebody else takes it.
    pub fn free_port() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        Self::Port(listener.local_addr().expect("it is bound").port())
    }

    fn is_served(&self) -> bool {
        match self {
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
            Self::Port(port) => TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok(),
        }
    }

    fn remove(&self) {
        if let Self::Unix(path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

impl From<&Path> for At {
    fn from(path: &Path) -> Self {
        Self::Unix(path.into())
    }
}

impl From<&PathBuf> for At {
    fn from(path: &PathBuf) -> Self {
        Self::Unix(path.clone())
    }
}

impl From<&At> for At {
    fn from(at: &At) -> Self {
        at.clone()
    }
}

/// A server, which is killed when this is dropped.
pub struct Server {
    child: Option<Child>,
    at: At,
}

impl Server {
    /// Starts one that listens there. `None`, and said so, if it is not installed.
    pub fn start(at: impl Into<At>, command: &mut Command) -> Option<Self> {
        let at = at.into();
        at.remove();
        let program = command.get_program().to_owned();
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = match started {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skipped(format!("{} is not installed", program.display()));
                return None;
            }
            child => child.expect("the server starts"),
        };
        let begun = Instant::now();
        // One that serves a single client is not to take this for it.
        while match (program.to_str(), &at) {
            (Some("nbd-server"), At::Unix(socket)) => !socket.exists(),
            _ => !at.is_served(),
        } {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("{} has ended: {status}", program.display());
            }
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{} does not listen",
                program.display()
            );
            thread::sleep(Duration::from_millis(5));
        }
        let child = Some(child);
        Some(Self { child, at })
    }

    /// As if its host had lost power, but for what the kernel has.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            // Not that of the next.
            self.at.remove();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn nbdkit(at: impl Into<At>, arguments: &[&str]) -> Option<Server> {
    let at = at.into();
    let mut command = Command::new("nbdkit");
    command.arg("-f");
    match &at {
        At::Unix(socket) => command.arg("-U").arg(socket),
        At::Port(port) => command.args(["-i", "127.0.0.1", "-p", &port.to_string()]),
    };
    Server::start(at, command.args(arguments))
}

pub fn qemu_nbd(at: impl Into<At>, image: &Path, arguments: &[&str]) -> Option<Server> {
    let at = at.into();
    let mut command = Command::new("qemu-nbd");
    match &at {
        At::Unix(socket) => command.arg("-k").arg(socket),
        At::Port(port) => command.args(["-b", "127.0.0.1", "-p", &port.to_string()]),
    };
    command.args(["-t", "-e", "8"]).args(arguments).arg(image);
    Server::start(at, &mut command)
}

pub fn connect(socket: &Path, export: &str) -> Result<NbdStorage, NbdError> {
    let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
    NbdStorage::connect(&uri.parse()?, hasty(), clock())
}

/// The same for a server whose socket may be there before it listens.
fn connect_soon(socket: &Path, export: &str) -> Result<NbdStorage, NbdError> {
    let begun = Instant::now();
    loop {
        match connect(socket, export) {
            Err(NbdError::Connect(_)) if begun.elapsed() < Duration::from_secs(10) => {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

const SIZE: u64 = 8 << 20;

/// Random requests of all kinds, many under way, compared with a model.
pub fn exercise(storage: &NbdStorage, seed: u64) {
    let clock = clock();
    let mut driver = Driver::open(storage, &clock);
    let size = storage.capacity().unwrap().min(SIZE) as usize;
    let mut model = driver.read(0, size).unwrap();
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for round in 0..60 {
        // Requests under way at the same time touch different stripes.
        let stripe = size as u64 / 8;
        let mut expected = Vec::new();
        for place in 0..8 {
            let offset = place * stripe + random(stripe / 512 / 2) * 512;
            let len = (random(128) + 1) * 512;
            let range = offset as usize..(offset + len) as usize;
            let (operation, buffers) = match random(6) {
                0 | 1 => (Operation::Read { offset }, Buffers::zeroed(len as usize, 512)),
                2 | 3 => {
                    let bytes = pattern(round * 100 + place, len as usize);
                    model[range.clone()].copy_from_slice(&bytes);
                    let fua = random(4) == 0 && storage.abilities().fua;
                    (Operation::Write { offset, fua }, Buffers::from(&bytes[..]))
                }
                4 => {
                    model[range.clone()].fill(0);
                    let may_unmap = random(2) == 0;
                    (Operation::WriteZeroes { offset, len, may_unmap }, Buffers::default())
                }
                _ => (Operation::Flush, Buffers::default()),
            };
            let tag = driver.submit(operation, buffers);
            expected.push((tag, operation, range));
        }
        while !expected.is_empty() {
            let ended = driver.next();
            let place = expected
                .iter()
                .position(|(tag, ..)| *tag == ended.tag)
                .expect("one of ours");
            let (_, operation, range) = expected.remove(place);
            let Outcome::Done(result) = ended.outcome else {
                panic!("nobody has canceled it");
            };
            let moved = result.unwrap_or_else(|error| panic!("{operation:?}: {error}"));
            if let Operation::Read { .. } = operation {
                let mut bytes = vec![0; moved as usize];
                ended.buffers.read(0, &mut bytes);
                assert!(bytes == model[range.start..][..bytes.len()], "{operation:?}");
            }
            if operation.is_transfer() && moved != range.len() as u64 {
                // A short write is finished, as a device does it.
                let rest = range.start + moved as usize..range.end;
                if operation.changes_data() {
                    let bytes = model[rest.clone()].to_vec();
                    let offset = rest.start as u64;
                    let buffers = Buffers::from(&bytes[..]);
                    let tag = driver.submit(Operation::Write { offset, fua: false }, buffers);
                    expected.push((tag, Operation::Write { offset, fua: false }, rest));
                }
            }
        }
    }
    driver.flush().unwrap();
    assert!(driver.read(0, size).unwrap() == model);
}

#[test]
fn what_is_read_is_what_was_written_through_nbdkit() {
    let place = Place::new();
    let socket = place.path("socket");
    for plugin in [
        &["memory", "8M"][..],
        // Simple replies, no zeroes, no trim.
        &["--no-sr", "--filter=nozero", "memory", "8M", "zeromode=none"],
        &["--filter=nozero", "memory", "8M", "zeromode=none"],
        &["--filter=multi-conn", "memory", "8M", "multi-conn-mode=disable"],
        &["--filter=fua", "memory", "8M", "fuamode=native"],
        // Slow, so that replies come out of order.
        &["--filter=delay", "memory", "8M", "rdelay=1ms", "wdelay=2ms"],
    ] {
        let Some(_server) = nbdkit(&socket, plugin) else { return };
        let storage = connect(&socket, "").unwrap_or_else(|error| panic!("{plugin:?}: {error}"));
        assert_eq!(storage.capacity().unwrap(), SIZE);
        exercise(&storage, 1);
        assert_eq!(storage.status().lost, 0, "{plugin:?}: {:?}", storage.host_failures());
    }
}

#[test]
fn blocks_of_the_server_are_bridged() {
    let place = Place::new();
    let socket = place.path("socket");
    let policy = [
        "--filter=blocksize-policy",
        "memory",
        "8M",
        "blocksize-minimum=4096",
        "blocksize-preferred=16384",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
    ];
    let Some(_server) = nbdkit(&socket, &policy) else {
        return;
    };
    let storage = connect(&socket, "").unwrap();
    let limits = storage.limits();
    assert_eq!((limits.logical_block, limits.minimum_io), (4096, 16384));
    exercise(&storage, 2);
    assert_eq!(storage.status().lost, 0, "{:?}", storage.host_failures());
}

#[test]
fn what_is_read_is_what_was_written_through_qemu_nbd() {
    let place = Place::new();
    let (socket, raw, qcow2) = (place.path("socket"), place.file("raw", SIZE), place.path("qcow2"));
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&qcow2)
        .arg("8M")
        .status();
    if made.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return skipped("qemu-img is not installed");
    }
    for (image, format) in [(&raw, "raw"), (&qcow2, "qcow2")] {
        let Some(_server) = qemu_nbd(&socket, image, &["-f", format, "--discard=unmap"]) else {
            return;
        };
        let storage = connect(&socket, "").unwrap();
        assert!(storage.abilities().fua && storage.abilities().discard);
        exercise(&storage, 3);
        assert_eq!(storage.status().lost, 0, "{:?}", storage.host_failures());
    }
}

#[test]
fn what_is_read_is_what_was_written_through_nbd_server() {
    let place = Place::new();
    let (socket, file, config) = (place.path("socket"), place.file("disk", SIZE), place.path("config"));
    let text = format!(
        "[generic]\nunixsock = {}\nallowlist = true\n[disk]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n",
        socket.display(),
        file.display()
    );
    fs::write(&config, text).unwrap();
    // For one client, in the foreground.
    let mut command = Command::new("nbd-server");
    command.args(["-d", "-C"]).arg(&config).arg("-p").arg(place.path("pid"));
    let Some(server) = Server::start(&socket, &mut command) else {
        return;
    };
    let storage = connect_soon(&socket, "disk").unwrap();
    assert_eq!(storage.capacity().unwrap(), SIZE);
    exercise(&storage, 4);
    assert_eq!(storage.status().lost, 0, "{:?}", storage.host_failures());
    drop(server);
    let Some(_server) = Server::start(&socket, &mut command) else {
        return;
    };
    let error = connect_soon(&socket, "other").expect_err("no such export").to_string();
    assert!(error.contains("other"), "{error}");
}

#[test]
fn errors_of_the_server_are_those_of_requests() {
    let place = Place::new();
    let (socket, trigger) = (place.path("socket"), place.path("trigger"));
    let file = format!("error-file={}", trigger.display());
    let arguments = [
        "--filter=error",
        "memory",
        "8M",
        "error=ENOSPC",
        "error-rate=100%",
        &file,
    ];
    let Some(_server) = nbdkit(&socket, &arguments) else {
        return;
    };
    let clock = clock();
    let storage = connect(&socket, "").unwrap();
    let mut driver = Driver::open(&storage, &clock);
    driver.write(0, &[7; 512]).unwrap();
    fs::write(&trigger, "").unwrap();
    let kind = |result: io::Result<()>| result.expect_err("it fails").kind();
    assert_eq!(kind(driver.write(0, &[8; 512])), ErrorKind::StorageFull);
    assert_eq!(kind(driver.read(0, 512).map(|_| ())), ErrorKind::StorageFull);
    assert_eq!(kind(driver.zeroes(0, 512, true)), ErrorKind::StorageFull);
    fs::remove_file(&trigger).unwrap();
    assert_eq!(driver.read(0, 512).unwrap(), [7; 512]);
    assert_eq!(storage.status().lost, 0);
}

#[test]
fn read_only_exports_are_read_only_disks_and_missing_ones_are_told_with_those_there_are() {
    let place = Place::new();
    let socket = place.path("socket");
    let Some(server) = nbdkit(&socket, &["-r", "memory", "8M"]) else {
        return;
    };
    assert!(connect(&socket, "").unwrap().abilities().read_only);
    drop(server);
    let image = place.file("raw", SIZE);
    let Some(_server) = qemu_nbd(&socket, &image, &["-f", "raw", "-x", "only"]) else {
        return;
    };
    let error = connect(&socket, "none").expect_err("no such export").to_string();
    assert!(error.contains("\"none\"") && error.contains("only"), "{error}");
}

#[test]
fn holes_are_zero_and_trimmed_space_is_given_back() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let (socket, file) = (place.path("socket"), place.file("disk", SIZE));
    let Some(_server) = nbdkit(&socket, &["file", file.to_str().unwrap()]) else {
        return;
    };
    let clock = clock();
    let storage = connect(&socket, "").unwrap();
    let mut driver = Driver::open(&storage, &clock);
    driver.write(0, &pattern(1, 1 << 20)).unwrap();
    driver.flush().unwrap();
    let before = fs::metadata(&file).unwrap().blocks();
    driver.discard(0, 1 << 20).unwrap();
    driver.flush().unwrap();
    assert!(fs::metadata(&file).unwrap().blocks() < before);
    assert!(driver.read(1 << 20, 1 << 20).unwrap().iter().all(|&byte| byte == 0));
    driver.write(4096, &[1; 8192]).unwrap();
    driver.zeroes(0, 16384, false).unwrap();
    assert!(driver.read(0, 16384).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn several_queues_have_connections_of_their_own_where_the_server_allows_it() {
    let place = Place::new();
    let socket = place.path("socket");
    for (arguments, connections) in [
        (&["memory", "8M"][..], 4),
        (&["--filter=multi-conn", "memory", "8M", "multi-conn-mode=disable"], 1),
    ] {
        let Some(_server) = nbdkit(&socket, arguments) else {
            return;
        };
        let storage = connect(&socket, "").unwrap();
        let workers = (0..4_u64).map(|queue| {
            let storage = storage.clone();
            thread::spawn(move || {
                let clock = clock();
                let mut driver = Driver::open(&storage, &clock);
                for round in 0..100 {
                    let offset = (queue * 100 + round) * 4096;
                    driver.write(offset, &pattern(offset, 4096)).unwrap();
                }
                driver.flush().unwrap();
                driver
            })
        });
        let workers: Vec<_> = workers.collect();
        let mut drivers: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        for block in 0..400 {
            let reader = &mut drivers[(block / 7 % 4) as usize];
            assert!(reader.read(block * 4096, 4096).unwrap() == pattern(block * 4096, 4096));
        }
        assert_eq!(storage.status().established, connections, "{arguments:?}");
        assert_eq!(storage.status().lost, 0);
    }
}

#[test]
fn a_disk_grows() {
    let place = Place::new();
    let (socket, file) = (place.path("socket"), place.file("disk", SIZE));
    let Some(_server) = nbdkit(&socket, &["file", file.to_str().unwrap()]) else {
        return;
    };
    let clock = clock();
    let storage = connect(&socket, "").unwrap();
    let mut driver = Driver::open(&storage, &clock);
    driver.write(0, &[1; 512]).unwrap();
    assert!(driver.read(SIZE, 512).is_err());
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(2 * SIZE)
        .unwrap();
    assert_eq!(storage.refresh().unwrap(), 2 * SIZE);
    assert_eq!(storage.capacity().unwrap(), 2 * SIZE);
    driver.write(2 * SIZE - 512, &[2; 512]).unwrap();
    assert_eq!(driver.read(2 * SIZE - 512, 512).unwrap(), [2; 512]);
    assert_eq!(storage.status().lost, 0);
}
