//! Files that are made shorter while they are mapped: a front end's memory costs it its connection, a disk the daemon.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::AsRawFd,
        unix::{fs::FileExt, net::UnixStream, process::ExitStatusExt},
    },
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use devisor::virtio::features::INDIRECT_DESC;

use super::{
    daemon::{Running, devisord, folder, wait_for},
    front::{MEMORY, USER, VERSION_1, bytes, eventfd, halves, id, memfd, message, send},
    skip::skipped,
};

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x8000;

/// A front end of `devisord rng`, with one ring.
struct Remote {
    socket: UnixStream,
    file: File,
    kick: File,
    _call: File,
    available: u16,
}

impl Remote {
    fn connect(path: &std::path::Path) -> Self {
        Self::with_memory(path, MEMORY, 16)
    }

    /// With so many bytes of memory, and a ring of so many entries.
    fn with_memory(path: &std::path::Path, len: u64, entries: u32) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (file, kick, call) = (memfd(len), eventfd(), eventfd());
        let tell = |request: u32, payload: &[u8], descriptors: &[i32]| {
            send(&socket, &message(request, 1, payload), descriptors).unwrap();
        };
        tell(id::SET_FEATURES, &bytes(&[VERSION_1 | INDIRECT_DESC]), &[]);
        tell(
            id::SET_MEM_TABLE,
            &[halves(&[1, 0]), bytes(&[0, len, USER, 0])].concat(),
            &[file.as_raw_fd()],
        );
        tell(id::SET_VRING_NUM, &halves(&[0, entries]), &[]);
        tell(id::SET_VRING_BASE, &halves(&[0, 0]), &[]);
        let areas = bytes(&[USER + DESC, USER + USED, USER + AVAIL, 0]);
        tell(id::SET_VRING_ADDR, &[halves(&[0, 0]), areas].concat(), &[]);
        tell(id::SET_VRING_CALL, &bytes(&[0]), &[call.as_raw_fd()]);
        tell(id::SET_VRING_KICK, &bytes(&[0]), &[kick.as_raw_fd()]);
        Self {
            socket,
            file,
            kick,
            _call: call,
            available: 0,
        }
    }

    /// A buffer of eight bytes.
    fn offer(&mut self) {
        self.offer_chain(&[descriptor(BUFFER, 8, 2, 0)]);
    }

    fn offer_chain(&mut self, descriptors: &[[u64; 2]]) {
        self.file
            .write_all_at(&bytes(descriptors.as_flattened()), DESC)
            .unwrap();
        self.available += 1;
        self.file
            .write_all_at(&self.available.to_le_bytes(), AVAIL + 2)
            .unwrap();
        (&self.kick).write_all(&1u64.to_ne_bytes()).unwrap();
    }

    fn used(&self) -> u16 {
        let mut used = [0; 2];
        self.file.read_exact_at(&mut used, USED + 2).unwrap();
        u16::from_le_bytes(used)
    }

    fn is_answered(&mut self) -> bool {
        self.offer();
        self.is_used()
    }

    fn is_used(&self) -> bool {
        let begun = Instant::now();
        while self.used() != self.available && begun.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(2));
        }
        self.used() == self.available
    }

    /// Whether the other end has closed the connection.
    fn is_over(&self) -> bool {
        matches!((&self.socket).read(&mut [0; 64]), Ok(0)) || {
            // Reset, with something of it unread.
            (&self.socket).write_all(&message(id::GET_FEATURES, 1, &[])).is_err()
        }
    }
}

/// In the table.
fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u64; 2] {
    [address, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48]
}

#[test]
fn a_file_that_becomes_shorter_costs_its_connection_and_not_the_daemon() {
    let Some(program) = devisord() else { return };
    let folder = folder("shrunk");
    let socket = folder.join("s");
    let mut command = Command::new(program);
    command.arg("rng").arg("--socket-path").arg(&socket);
    let mut running = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    wait_for(&socket);
    // From the buffer on, from the used ring on, and all of it.
    for len in [BUFFER, USED, 0] {
        let mut remote = Remote::connect(&socket);
        assert!(remote.is_answered(), "before it becomes {len:#x} bytes");
        remote.file.set_len(len).unwrap();
        (&remote.kick).write_all(&1u64.to_ne_bytes()).unwrap();
        if len > AVAIL {
            remote.offer();
        }
        assert!(remote.is_over(), "of {len:#x} bytes");
        assert!(running.0.try_wait().unwrap().is_none(), "the daemon runs");
    }
    // Others are served as before.
    assert!(Remote::connect(&socket).is_answered());
    running.0.kill().unwrap();
    let mut said = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("taken away memory").count(), 3, "{said}");
    let _ = std::fs::remove_dir_all(&folder);
}

/// A process has 65,530 mappings at most.
#[test]
fn a_file_of_which_more_pages_are_used_than_can_be_mapped_apart_costs_its_connection_too() {
    const CHAINS: u64 = 64;
    const TABLE: u64 = 0x10_0000;
    let Some(program) = devisord() else { return };
    let folder = folder("apart");
    let socket = folder.join("s");
    let mut command = Command::new(program);
    command.arg("rng").arg("--socket-path").arg(&socket);
    let mut running = Running(command.stderr(Stdio::null()).spawn().unwrap());
    wait_for(&socket);
    let remote = Remote::with_memory(&socket, 1 << 30, CHAINS as u32);
    // A byte of each other page, from 16 megabytes on, up or down.
    let all = 1024 * CHAINS;
    for at in 0..CHAINS {
        let table: Vec<_> = (0..1024)
            .map(|entry| {
                let number = at * 1024 + entry;
                let place = if number % 2 == 0 { number } else { all - number };
                let (flags, next) = if entry < 1023 { (3, entry as u16 + 1) } else { (2, 0) };
                descriptor((16 << 20) + place * 0x2000, 1, flags, next)
            })
            .collect();
        let table_at = TABLE + at * 0x4000;
        remote
            .file
            .write_all_at(&bytes(table.as_flattened()), table_at)
            .unwrap();
        let head = descriptor(table_at, 0x4000, 4, 0);
        remote.file.write_all_at(&bytes(&head), DESC + 16 * at).unwrap();
        remote
            .file
            .write_all_at(&(at as u16).to_le_bytes(), AVAIL + 4 + 2 * at)
            .unwrap();
    }
    remote.file.set_len(16 << 20).unwrap();
    remote
        .file
        .write_all_at(&(CHAINS as u16).to_le_bytes(), AVAIL + 2)
        .unwrap();
    (&remote.kick).write_all(&1u64.to_ne_bytes()).unwrap();
    assert!(remote.is_over());
    assert!(running.0.try_wait().unwrap().is_none(), "the daemon runs");
    assert!(Remote::connect(&socket).is_answered());
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn a_mapped_disk_that_becomes_shorter_ends_the_daemon_and_nothing_is_made_up() {
    let Some(program) = devisord() else { return };
    let folder = folder("shorter");
    let (socket, image) = (
        folder.join("s"),
        Path::new("/dev/shm").join(folder.file_name().unwrap()),
    );
    if let Err(why) = std::fs::write(&image, [0x77; 0x4000]) {
        skipped(format!("no file in memory at {}: {why}", image.display()));
        return;
    }
    let mut command = Command::new(program);
    command.args(["blk", "--map", "--image"]).arg(&image);
    let mut running = Running(command.arg("--socket-path").arg(&socket).spawn().unwrap());
    wait_for(&socket);
    let mut remote = Remote::connect(&socket);
    // Sector 16 is read.
    let read = [
        descriptor(BUFFER, 16, 1, 1),
        descriptor(BUFFER + 0x200, 512, 3, 2),
        descriptor(BUFFER + 0x400, 1, 2, 0),
    ];
    let data = |remote: &Remote| {
        let mut data = [0; 513];
        remote.file.read_exact_at(&mut data, BUFFER + 0x200).unwrap();
        data
    };
    remote.file.write_all_at(&bytes(&[0, 16]), BUFFER).unwrap();
    remote.file.write_all_at(&[0xff], BUFFER + 0x400).unwrap();
    remote.offer_chain(&read);
    assert!(remote.is_used());
    assert_eq!(data(&remote)[..512], [0x77; 512]);
    assert_eq!(data(&remote)[512], 0);
    remote.file.write_all_at(&[0x11; 513], BUFFER + 0x200).unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(0x1000)
        .unwrap();
    remote.offer_chain(&read);
    assert!(remote.is_over());
    assert_eq!(running.0.wait().unwrap().signal(), Some(libc::SIGBUS));
    assert_eq!(remote.used(), 1, "it has not ended");
    assert_eq!(data(&remote), [0x11; 513]);
    let _ = std::fs::remove_file(&image);
    let _ = std::fs::remove_dir_all(&folder);
}

/// What a process has run so far.
fn time_of(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    // User and system time, in hundredths of a second.
    let ticks = [11, 12].map(|at: usize| fields[at].parse::<u64>().unwrap());
    Duration::from_millis(10 * ticks.iter().sum::<u64>())
}

#[test]
fn a_kick_that_outlives_its_connection_costs_the_daemon_nothing() {
    let Some(program) = devisord() else { return };
    let folder = folder("outlived");
    let socket = folder.join("s");
    let running = Running(
        Command::new(program)
            .arg("rng")
            .arg("--socket-path")
            .arg(&socket)
            .spawn()
            .unwrap(),
    );
    wait_for(&socket);
    // Its number is that of the next one's kick, and what waits there is not for that.
    let mut kicks = Vec::new();
    for connection in 0..2 {
        let mut remote = Remote::connect(&socket);
        assert!(remote.is_answered(), "{connection}");
        kicks.push(remote.kick.try_clone().unwrap());
        drop(remote.socket);
        thread::sleep(Duration::from_millis(50));
        (&remote.kick).write_all(&1u64.to_ne_bytes()).unwrap();
        let before = time_of(running.0.id());
        thread::sleep(Duration::from_millis(600));
        let spent = time_of(running.0.id()) - before;
        assert!(spent < Duration::from_millis(100), "{connection}: {spent:?}");
    }
    let mut remote = Remote::connect(&socket);
    assert!(remote.is_answered());
    let before = time_of(running.0.id());
    thread::sleep(Duration::from_millis(600));
    let spent = time_of(running.0.id()) - before;
    assert!(spent < Duration::from_millis(100), "while it is connected: {spent:?}");
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn a_kick_whose_other_end_is_closed_costs_the_daemon_nothing() {
    let Some(program) = devisord() else { return };
    let folder = folder("closed");
    let socket = folder.join("s");
    let mut command = Command::new(program);
    let running = Running(command.arg("rng").arg("--socket-path").arg(&socket).spawn().unwrap());
    wait_for(&socket);
    let mut remote = Remote::connect(&socket);
    assert!(remote.is_answered());
    let (pipe, other_end) = std::io::pipe().unwrap();
    let (one, other) = UnixStream::pair().unwrap();
    drop((other_end, other));
    for closed in [pipe.as_raw_fd(), one.as_raw_fd()] {
        let kick = message(id::SET_VRING_KICK, 1, &bytes(&[0]));
        send(&remote.socket, &kick, &[closed]).unwrap();
        let before = time_of(running.0.id());
        thread::sleep(Duration::from_millis(600));
        let spent = time_of(running.0.id()) - before;
        assert!(spent < Duration::from_millis(100), "{spent:?}");
    }
    // Another one is heard.
    let kick = message(id::SET_VRING_KICK, 1, &bytes(&[0]));
    send(&remote.socket, &kick, &[remote.kick.as_raw_fd()]).unwrap();
    assert!(remote.is_answered());
    let _ = std::fs::remove_dir_all(&folder);
}

/// Has a process have so many descriptors at most. How many they were.
fn limit_descriptors(process: u32, most: libc::rlim_t) -> libc::rlim_t {
    let resource = libc::RLIMIT_NOFILE;
    // SAFETY: a limit is numbers, for which zero is a value.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: there is room for one.
    let got = unsafe { libc::prlimit(process as i32, resource, std::ptr::null(), &raw mut limit) };
    let before = std::mem::replace(&mut limit.rlim_cur, most);
    // SAFETY: the limit outlives the call.
    let set = unsafe { libc::prlimit(process as i32, resource, &raw const limit, std::ptr::null_mut()) };
    assert_eq!((got, set), (0, 0), "{}", std::io::Error::last_os_error());
    before
}

#[test]
fn a_front_end_for_which_there_is_no_descriptor_waits_and_costs_the_daemon_nothing() {
    let Some(program) = devisord() else { return };
    let folder = folder("descriptors");
    let socket = folder.join("s");
    let mut command = Command::new(program);
    let running = Running(command.arg("rng").arg("--socket-path").arg(&socket).spawn().unwrap());
    wait_for(&socket);
    let process = running.0.id();
    // What it opens is open when it has taken one.
    drop(Remote::connect(&socket));
    let before = limit_descriptors(process, 3);
    let (remote, connected) = std::sync::mpsc::channel();
    let client = thread::spawn({
        let socket = socket.clone();
        move || remote.send(Remote::connect(&socket))
    });
    let spent = time_of(process);
    thread::sleep(Duration::from_millis(600));
    let spent = time_of(process) - spent;
    limit_descriptors(process, before);
    assert!(spent < Duration::from_millis(100), "{spent:?}");
    let remote = connected.recv_timeout(Duration::from_secs(10));
    assert!(remote.unwrap().is_answered());
    client.join().unwrap().unwrap();
    let _ = std::fs::remove_dir_all(&folder);
}
