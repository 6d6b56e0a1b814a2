//! A disk of qemu-storage-daemon's as a device of ours: read, written, flushed, and its daemon killed in the middle.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use devisor::time::HostClock;
use devisor::virtio::{
    DeviceId,
    remote::{Remote, RemoteOptions},
};

use crate::{
    daemon::{Daemon, Place, clock, device},
    machine::{BUSES, Bus, Machine, VERSION_1},
    poll::poll,
    ring::{Buffer, readable, writable},
};

const SECTOR: usize = 512;
const FLUSH_FEATURE: u64 = 1 << 9;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

/// An image of a disk, and a socket.
fn place(name: &str) -> Place {
    let place = Place::new(name);
    fs::write(place.join("disk"), vec![0; 8 << 20]).unwrap();
    place
}

fn contents(place: &Place) -> Vec<u8> {
    fs::read(place.join("disk")).unwrap()
}

fn start(place: &Place) -> Option<Daemon> {
    let program = Daemon::find(&["qemu-storage-daemon"])?;
    let (disk, socket) = (place.text("disk"), place.text("socket"));
    let arguments = [
        "--blockdev".into(),
        format!("driver=file,node-name=disk,filename={disk}"),
        "--export".into(),
        format!("type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={socket}"),
    ];
    Some(Daemon::start(&program, &arguments, &place.socket()))
}

/// The disk, as soon as the daemon accepts.
fn disk(place: &Place) -> (Remote, std::sync::Arc<vm_memory::GuestMemoryMmap>) {
    device(place.socket(), RemoteOptions::new(DeviceId::BLOCK))
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

#[test]
fn a_disk_of_the_storage_daemon_is_read_written_and_flushed() {
    for bus in BUSES {
        let place = place(&format!("rw-{bus:?}"));
        let Some(_daemon) = start(&place) else { return };
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
        let disk = contents(&place);
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
    let place = place("killed");
    let Some(mut daemon) = start(&place) else {
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
            daemon = start(&place).expect("it was there before");
        }
        for write in &writes {
            finish(&mut machine, &clock, write);
        }
    }
    let flush = request(&mut machine, FLUSH, 0, &[]);
    finish(&mut machine, &clock, &flush);
    let disk = contents(&place);
    for at in 0..48 {
        let start = at * 8 * SECTOR;
        assert_eq!(disk[start..start + 8 * SECTOR], pattern(at as u64, 8 * SECTOR), "{at}");
    }
    assert_eq!(machine.with_device(|device| device.returns()), 3);
    assert!(machine.with_device(|device| device.host_failures().count) >= 3);
    drop(daemon);
}
