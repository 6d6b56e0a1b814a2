//! Memory that a front end makes shorter while it is in use: what it costs is its connection.

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::AsRawFd, unix::fs::FileExt, unix::net::UnixStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{
    daemon::{Running, devisord, folder, wait_for},
    front::{MEMORY, USER, VERSION_1, bytes, eventfd, halves, id, memfd, message, region, send},
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
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (file, kick, call) = (memfd(MEMORY), eventfd(), eventfd());
        let tell = |request: u32, payload: &[u8], descriptors: &[i32]| {
            send(&socket, &message(request, 1, payload), descriptors).unwrap();
        };
        tell(id::SET_FEATURES, &bytes(&[VERSION_1]), &[]);
        tell(
            id::SET_MEM_TABLE,
            &[halves(&[1, 0]), region()].concat(),
            &[file.as_raw_fd()],
        );
        tell(id::SET_VRING_NUM, &halves(&[0, 16]), &[]);
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
        let descriptor = [BUFFER.to_le_bytes(), (8 | 2u64 << 32).to_le_bytes()].concat();
        self.file.write_all_at(&descriptor, DESC).unwrap();
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
