//! What sockets and consoles cost: bytes that a program of the host gets from a guest or gives to it, beside the same bytes between two
//! programs over a bare Unix socket, in the same run. Read the ratios; absolute times are the machine's.
//!
//! All of it is on one thread: the program's calls, the driver's ring, the device's round.

#[path = "../tests/support/machine.rs"]
mod machine;
#[path = "../tests/support/ring.rs"]
mod ring;

use std::{
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use devisor::{
    time::ManualClock,
    virtio::{
        QueueIndex, VirtioDevice,
        console::{Console, FdPair, Port, SocketPeer},
        vsock::{UnixHost, Vsock, VsockOptions},
    },
};
use machine::{Bus, Machine};
use ring::{readable, writable};

const SIZES: [usize; 3] = [1 << 10, 16 << 10, 64 << 10];
const RX: u16 = 0;
const TX: u16 = 1;
const HEADER: usize = 44;

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("devisor-bench-{name}-{}", std::process::id()))
}

/// Two programs.
fn bare(group: &mut BenchmarkGroup<'_, WallTime>, size: usize) {
    let (mut one, mut other) = UnixStream::pair().expect("two sockets");
    let (data, mut got) = (vec![7; size], vec![0; size]);
    group.throughput(Throughput::Bytes(size as u64));
    group.bench_function(format!("bare Unix socket, {size} bytes"), |bencher| {
        bencher.iter(|| {
            one.write_all(&data).expect("room");
            other.read_exact(&mut got).expect("data");
        });
    });
}

fn look<D: VirtioDevice + 'static>(machine: &Machine<D>, queue: u16) {
    machine.transport().process(QueueIndex(queue));
}

fn packet(op: u16, len: usize, host_port: u32, fwd_cnt: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = 3;
    bytes[8] = 2;
    bytes[16..20].copy_from_slice(&1000_u32.to_le_bytes());
    bytes[20..24].copy_from_slice(&host_port.to_le_bytes());
    bytes[24..28].copy_from_slice(&(len as u32).to_le_bytes());
    bytes[28] = 1;
    bytes[30..32].copy_from_slice(&op.to_le_bytes());
    bytes[36..40].copy_from_slice(&u32::MAX.to_le_bytes());
    bytes[40..44].copy_from_slice(&fwd_cnt.to_le_bytes());
    bytes
}

/// A guest that is connected to a program.
fn connected(name: &str) -> (Machine<Vsock>, UnixStream, PathBuf) {
    let at = path(name);
    let host = UnixHost::bind(&at).expect("a path");
    let clock = Arc::new(ManualClock::new(Duration::ZERO));
    let vsock = Vsock::new(host, clock, VsockOptions::default()).expect("a device");
    let mut machine = Machine::new(Bus::Mmio, vsock, 1);
    let listening = PathBuf::from(format!("{}_80", at.display()));
    let listener = UnixListener::bind(&listening).expect("a path");
    machine.send(TX, &[&packet(1, 0, 80, 0)]);
    look(&machine, TX);
    let (stream, _) = listener.accept().expect("the guest's connection");
    std::fs::remove_file(listening).expect("it is there");
    // Its answer.
    machine.room(RX, 64);
    look(&machine, RX);
    assert_eq!(machine.used(RX), 1);
    (machine, stream, at)
}

fn vsock(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("vsock, guest to host");
    for size in SIZES {
        bare(&mut group, size);
        let (mut machine, mut stream, _path) = connected(&format!("tx-{size}"));
        // The payload begins with a page, as a guest's does.
        let at = machine.place(TX, 0x2000 + size).next_multiple_of(0x1000) + 0x1000 - HEADER as u64;
        machine.fill(at, &packet(5, size, 80, 0));
        let answer = machine.place(RX, 64);
        let mut got = vec![0; size];
        group.bench_function(format!("devisor, {size} bytes"), |bencher| {
            bencher.iter(|| {
                machine.rings[1].request(&[readable(at, HEADER as u32), readable(at + HEADER as u64, size as u32)]);
                look(&machine, TX);
                // It is told of room.
                if machine.rings[0].avail_idx() == machine.rings[0].used_idx() {
                    machine.rings[0].request(&[writable(answer, 64)]);
                    look(&machine, RX);
                }
                stream.read_exact(&mut got).expect("data");
            });
        });
        assert_eq!(machine.counters(TX).malformed, 0);
    }
    group.finish();
    let mut group = criterion.benchmark_group("vsock, host to guest");
    for size in SIZES {
        bare(&mut group, size);
        let (mut machine, mut stream, _path) = connected(&format!("rx-{size}"));
        let room = machine.place(RX, 0x2000 + size).next_multiple_of(0x1000) + 0x1000 - HEADER as u64;
        let credit = machine.place(TX, HEADER);
        let data = vec![7; size];
        let mut forwarded = 0_u32;
        group.bench_function(format!("devisor, {size} bytes"), |bencher| {
            bencher.iter(|| {
                stream.write_all(&data).expect("room");
                machine.rings[0].request(&[writable(room, (HEADER + size) as u32)]);
                look(&machine, RX);
                forwarded = forwarded.wrapping_add(size as u32);
                if forwarded.is_multiple_of(1 << 17) {
                    machine.fill(credit, &packet(6, 0, 80, forwarded));
                    machine.rings[1].request(&[readable(credit, HEADER as u32)]);
                    look(&machine, TX);
                }
            });
        });
        let used = machine.rings[0].used();
        assert!(used.iter().all(|(_, len)| *len == (HEADER + size) as u32));
    }
    group.finish();
}

fn console(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("console, guest to host");
    for size in SIZES {
        bare(&mut group, size);
        let at = path(&format!("console-{size}"));
        let port = Port::console(SocketPeer::bind(&at).expect("a path"));
        let mut machine = Machine::new(Bus::Mmio, Console::single(port).expect("a device"), 0);
        let mut stream = UnixStream::connect(&at).expect("it listens");
        let text = machine.place(TX, size);
        let mut got = vec![0; size];
        group.bench_function(format!("devisor, {size} bytes"), |bencher| {
            bencher.iter(|| {
                machine.rings[1].request(&[readable(text, size as u32)]);
                look(&machine, TX);
                stream.read_exact(&mut got).expect("data");
            });
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("console, host to guest");
    for size in SIZES {
        bare(&mut group, size);
        let (mut typed, input) = UnixStream::pair().expect("two sockets");
        let output = OwnedFd::from(input.try_clone().expect("a descriptor"));
        let pair = FdPair::new(OwnedFd::from(input), output).expect("open files");
        let mut machine = Machine::new(Bus::Mmio, Console::single(Port::console(pair)).expect("a device"), 0);
        let room = machine.place(RX, size);
        let data = vec![7; size];
        group.bench_function(format!("devisor, {size} bytes"), |bencher| {
            bencher.iter(|| {
                typed.write_all(&data).expect("room");
                machine.rings[0].request(&[writable(room, size as u32)]);
                look(&machine, RX);
            });
        });
        let used = machine.rings[0].used();
        assert!(used.iter().all(|(_, len)| *len == size as u32));
    }
    group.finish();
}

criterion_group!(benches, vsock, console);
criterion_main!(benches);
