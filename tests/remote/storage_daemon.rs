//! A disk of qemu-storage-daemon's as a device of ours: read, written, flushed, and its daemon killed in the middle.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use devisor::time::HostClock;
use devisor::virtio::{
    DeviceId,
    remote::{Connect, Remote, RemoteOptions, SocketPath},
};

use crate::{
    front::shared_memory,
    machine::{BUSES, Bus, Machine, VERSION_1},
    poll::poll,
    ring::{Buffer, readable, writable},
    skip::skipped,
};

const SECTOR: usize = 512;
const FLUSH_FEATURE: u64 = 1 << 9;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

/// A directory with a disk image and a socket, which goes with this.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("devisor-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("disk"), vec![0; 8 << 20]).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(self.0.join("disk")).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Daemon(Child);

impl Daemon {
    fn start(place: &Path) -> Option<Self> {
        let socket = place.join("socket");
        let _ = fs::remove_file(&socket);
        let (disk, path) = (place.join("disk"), socket.display().to_string());
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,filename={}", disk.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={path}"
            ))
            .stdin(Stdio::null())
            .spawn();
        let daemon = match child {
            Ok(child) => Self(child),
            Err(error) => {
                skipped(format!("qemu-storage-daemon (Debian package qemu-utils): {error}"));
                return None;
            }
        };
        let end = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            assert!(Instant::now() < end, "it does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Some(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(place: &Place) -> SocketPath {
    SocketPath(place.socket())
}

/// The disk, as soon as the daemon accepts.
fn disk(place: &Place) -> (Remote, std::sync::Arc<vm_memory::GuestMemoryMmap>) {
    let mut options = RemoteOptions::new(DeviceId::BLOCK);
    options.patience = Duration::from_secs(10);
    options.retry = Duration::from_millis(20);
    let memory = shared_memory(1);
    let end = Instant::now() + Duration::from_secs(10);
    let mut connect = connect(place);
    while connect.connect().is_err() && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    let clock = HostClock::starting_at(Duration::ZERO);
    let remote = Remote::new(connect, memory.clone(), options).unwrap();
    (remote.with_clock(clock), memory)
}

struct Request {
    status: u64,
    data: u64,
    len: usize,
}

fn request(machine: &mut Machine<Remote>, kind: u32, sector: u64, data: &[u8]) -> Request {
    let header = machine.place(0, 16);
    machine.fill(header, &[kind.to_le_bytes(), [0; 4]].concat());
    machine.fill(header + 8, &sector.to_le_bytes());
    let at = machine.place(0, data.len().max(16));
    machine.fill(at, data);
    let status = machine.place(0, 16);
    machine.fill(status, &[0xff]);
    let mut buffers: Vec<Buffer> = vec![readable(header, 16)];
    match kind {
        IN => buffers.push(writable(at, data.len() as u32)),
        OUT => buffers.push(readable(at, data.len() as u32)),
        _ => {}
    }
    buffers.push(writable(status, 1));
    machine.offer(0, &buffers);
    Request {
        status,
        data: at,
        len: data.len(),
    }
}

/// Waits for it. What is in its data then.
fn finish(machine: &mut Machine<Remote>, clock: &HostClock, request: &Request) -> Vec<u8> {
    use devisor::time::Clock;
    let end = Instant::now() + Duration::from_secs(20);
    while machine.bytes(request.status, 1)[0] == 0xff {
        assert!(
            Instant::now() < end,
            "not answered; failures: {:?}",
            machine.with_device(|device| device.host_failures())
        );
        poll(machine, clock.now());
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(machine.bytes(request.status, 1), [0]);
    machine.bytes(request.data, request.len)
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at * 7 + seed * 131) as u8).collect()
}

fn clock() -> HostClock {
    HostClock::starting_at(Duration::ZERO)
}

#[test]
fn a_disk_of_the_storage_daemon_is_read_written_and_flushed() {
    for bus in BUSES {
        let place = Place::new(&format!("rw-{bus:?}"));
        let Some(_daemon) = Daemon::start(&place.0) else { return };
        let (device, memory) = disk(&place);
        let mut machine = Machine::in_memory(bus, device, memory);
        machine.start(VERSION_1 | FLUSH_FEATURE);
        assert_eq!(machine.read_config(0, 8), (8_u64 << 20 >> 9).to_le_bytes());
        let clock = clock();
        for round in 0..64_u64 {
            let data = pattern(round, 8 * SECTOR);
            let write = request(&mut machine, OUT, round * 8, &data);
            finish(&mut machine, &clock, &write);
            let read = request(&mut machine, IN, round * 8, &vec![0; data.len()]);
            assert_eq!(finish(&mut machine, &clock, &read), data);
        }
        let flush = request(&mut machine, FLUSH, 0, &[]);
        finish(&mut machine, &clock, &flush);
        let disk = place.disk();
        for round in 0..64 {
            let at = round * 8 * SECTOR;
            assert_eq!(disk[at..at + 8 * SECTOR], pattern(round as u64, 8 * SECTOR), "{round}");
        }
        assert_eq!(machine.with_device(|device| device.host_failures().count), 0);

        // Reset by its driver, and driven anew.
        machine.set_status(0);
        machine.start(VERSION_1 | FLUSH_FEATURE);
        let read = request(&mut machine, IN, 8, &vec![0; 8 * SECTOR]);
        assert_eq!(finish(&mut machine, &clock, &read), pattern(1, 8 * SECTOR));
    }
}

#[test]
fn a_storage_daemon_that_is_killed_and_started_again_loses_no_request() {
    let place = Place::new("killed");
    let Some(mut daemon) = Daemon::start(&place.0) else {
        return;
    };
    let (device, memory) = disk(&place);
    let mut machine = Machine::in_memory(Bus::Mmio, device, memory);
    machine.start(VERSION_1 | FLUSH_FEATURE);
    let clock = clock();
    for round in 0..12_u64 {
        // Four under way, and the daemon dies among them.
        let writes: Vec<_> = (0..4)
            .map(|at| {
                request(
                    &mut machine,
                    OUT,
                    (4 * round + at) * 8,
                    &pattern(4 * round + at, 8 * SECTOR),
                )
            })
            .collect();
        if round % 4 == 1 {
            drop(daemon);
            daemon = Daemon::start(&place.0).expect("it was there before");
        }
        for write in &writes {
            finish(&mut machine, &clock, write);
        }
    }
    let flush = request(&mut machine, FLUSH, 0, &[]);
    finish(&mut machine, &clock, &flush);
    let disk = place.disk();
    for at in 0..48 {
        let start = at * 8 * SECTOR;
        assert_eq!(disk[start..start + 8 * SECTOR], pattern(at as u64, 8 * SECTOR), "{at}");
    }
    assert_eq!(machine.with_device(|device| device.returns()), 3);
    assert!(machine.with_device(|device| device.host_failures().count) >= 3);
    drop(daemon);
}
