//! What sockets and consoles cost: 64 KiB between a program of the host and a guest, beside the same 64 KiB between two programs over a
//! bare Unix socket, in turn, in one run. `cargo bench --bench sockets` prints a table; read the ratios, absolute times are the machine's.
//!
//! *What is compared*: on both sides, who sends does it in chunks of the size of the row, and who receives reads with a buffer of
//! 64 KiB. So the bare sender makes a system call a chunk, and so does the program that sends to the guest. The guest's chunks are
//! chains of its queue: packets as Linux makes them (a header, and the chunk), or buffers of a port. The guest receives into buffers of
//! 4 KiB, headers included, as Linux does. *All at once* is one look at the queue for 64 KiB, which is throughput; *one by one* is a look
//! for each chunk, read at once, and the bare programs take turns as well.
//!
//! Into the guest, there is a second reference, under *4 KiB*: a bare receiver that reads into buffers as large as the guest's.
//!
//! All of it is on one thread: the program's calls, what the driver does to its ring (one store, and the look that a kick is), the
//! device's rounds. `cpu` is of that thread; `calls` are system calls a chunk, counted by `strace` if that is there. With
//! `-- --instructions`, callgrind counts what a chunk costs outside of the kernel.

use std::{
    env, fs,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    time::ManualClock,
    virtio::{
        QueueIndex, VirtioDevice, VirtioMmio, VirtioTransport,
        console::{Console, FdPair, Port, SocketPeer},
        queue::QueueLayout,
        transport::mmio::Line,
        vsock::{UnixHost, Vsock, VsockOptions},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Bytes that are moved before anybody looks whether they have come.
const WINDOW: usize = 64 << 10;
const CHUNKS: [usize; 4] = [1 << 10, 4 << 10, 16 << 10, 64 << 10];
/// A guest's buffer for what comes.
const BUFFER: usize = 4 << 10;
const HEADER: usize = 44;
const SIZE: u16 = 128;
const RX: u16 = 0;
const TX: u16 = 1;

/// Where the rings are, and where what they name is.
const RINGS: u64 = 0x1_0000;
const RING: u64 = 0x8000;
const DATA: u64 = 0x10_0000;
const HEADERS: u64 = 0x40_0000;

/// A queue whose ring names the same chains once and for all: some more are one store.
struct Side {
    avail: *mut u16,
    used: *const u16,
    idx: u16,
    layout: QueueLayout,
}

impl Side {
    fn new(memory: &GuestMemoryMmap, queue: u16) -> Self {
        let base = RINGS + RING * u64::from(queue);
        let layout = QueueLayout {
            size: SIZE,
            descriptor_area: base,
            driver_area: base + 0x2000,
            device_area: base + 0x4000,
        };
        let host = |address| memory.get_host_address(GuestAddress(address)).expect("in memory");
        // No interrupt is wanted.
        memory
            .write_obj(1_u16, GuestAddress(layout.driver_area))
            .expect("in memory");
        Self {
            avail: host(layout.driver_area + 2).cast(),
            used: host(layout.device_area + 2).cast(),
            idx: 0,
            layout,
        }
    }

    /// Chain `n` is of these buffers, and takes as many descriptors.
    fn chain(&self, memory: &GuestMemoryMmap, n: u16, buffers: &[(u64, usize)], writable: bool) {
        let first = n * buffers.len() as u16;
        for (index, (address, len)) in (first..).zip(buffers) {
            let more = usize::from(index - first) + 1 != buffers.len();
            let flags = u64::from(more) | if writable { 2 } else { 0 };
            let rest = *len as u64 | flags << 32 | u64::from(index + 1) << 48;
            let at = GuestAddress(self.layout.descriptor_area + 16 * u64::from(index));
            memory.write_obj([*address, rest], at).expect("in memory");
        }
    }

    /// The ring names the chains in turn.
    fn heads(&self, memory: &GuestMemoryMmap, chains: u16, descriptors: u16) {
        for slot in 0..SIZE {
            let at = GuestAddress(self.layout.driver_area + 4 + 2 * u64::from(slot));
            let head = slot % chains * descriptors;
            memory.write_obj(head, at).expect("in memory");
        }
    }

    fn offer(&mut self, chains: u16) {
        self.idx = self.idx.wrapping_add(chains);
        // SAFETY: the driver area is inside the mapping, which the device keeps; nobody else accesses it now.
        unsafe { self.avail.write_volatile(self.idx) };
    }

    /// How many chains the device has.
    fn out(&self) -> u16 {
        // SAFETY: as above, of the device area.
        self.idx.wrapping_sub(unsafe { self.used.read_volatile() })
    }
}

/// A guest of a device, and its two queues for data.
struct Guest<D> {
    device: VirtioMmio<D>,
    memory: Arc<GuestMemoryMmap>,
    rx: Side,
    tx: Side,
}

impl<D: VirtioDevice + 'static> Guest<D> {
    /// Chunks of so many bytes, of packets if there are `packets`.
    fn new(device: D, chunk: usize, packet: Option<[u8; HEADER]>) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).expect("memory"));
        let queues = device.queue_sizes().len() as u16;
        let device = VirtioMmio::new(device, Arc::clone(&memory), Line::Edge(Arc::new(NoInterrupt))).expect("a device");
        // The embedder looks by itself.
        let device = device.with_doorbell(|_| Ok(()));
        let (rx, tx) = (Side::new(&memory, RX), Side::new(&memory, TX));
        // All of one window, as who reads or writes a bare socket has one buffer.
        for n in 0..SIZE {
            let at = DATA + (usize::from(n) * BUFFER % (2 * WINDOW)) as u64;
            rx.chain(&memory, n, &[(at, BUFFER)], true);
        }
        rx.heads(&memory, SIZE, 1);
        let text = DATA + 4 * WINDOW as u64;
        let chains = SIZE / 2;
        for n in 0..chains {
            let at = text + (usize::from(n) * chunk % WINDOW) as u64;
            match packet {
                Some(packet) => {
                    let header = HEADERS + 64 * u64::from(n);
                    memory.write_slice(&packet, GuestAddress(header)).expect("in memory");
                    tx.chain(&memory, n, &[(header, HEADER), (at, chunk)], false);
                }
                None => tx.chain(&memory, n, &[(at, chunk)], false),
            }
        }
        tx.heads(&memory, chains, if packet.is_some() { 2 } else { 1 });
        let guest = Self { device, memory, rx, tx };
        guest.start(queues);
        guest
    }

    fn set(&self, register: u64, value: u64) {
        self.device.write(register, &(value as u32).to_le_bytes());
    }

    fn start(&self, queues: u16) {
        self.set(0x70, 1);
        self.set(0x70, 3);
        for (sel, word) in [(0, 0), (1, 1)] {
            self.set(0x24, sel);
            self.set(0x20, word);
        }
        self.set(0x70, 0xb);
        for queue in 0..queues {
            let layout = Side::new(&self.memory, queue).layout;
            self.set(0x30, queue.into());
            self.set(0x38, SIZE.into());
            for (register, address) in [
                (0x80, layout.descriptor_area),
                (0x90, layout.driver_area),
                (0xa0, layout.device_area),
            ] {
                self.set(register, address & 0xffff_ffff);
                self.set(register + 4, address >> 32);
            }
            self.set(0x44, 1);
        }
        self.set(0x70, 0xf);
        assert_eq!(self.device.status(), 0xf);
    }

    fn look(&self, queue: u16) {
        self.device.process(QueueIndex(queue));
    }

    fn send(&mut self, chains: u16) {
        self.tx.offer(chains);
        self.look(TX);
    }

    /// Gives the device all buffers that it does not have, and has it look.
    fn receive(&mut self) {
        self.rx.offer(SIZE - self.rx.out());
        self.look(RX);
    }

    fn malformed(&self) -> u64 {
        let of = |queue| {
            self.device
                .queue_counters(QueueIndex(queue))
                .expect("it runs")
                .malformed
        };
        of(RX) + of(TX)
    }
}

fn path(name: &str) -> PathBuf {
    env::temp_dir().join(format!("devisor-bench-{name}-{}", std::process::id()))
}

fn packet(op: u16, len: usize, fwd_cnt: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = 3;
    bytes[8] = 2;
    bytes[16..20].copy_from_slice(&1000_u32.to_le_bytes());
    bytes[20..24].copy_from_slice(&80_u32.to_le_bytes());
    bytes[24..28].copy_from_slice(&(len as u32).to_le_bytes());
    bytes[28] = 1;
    bytes[30..32].copy_from_slice(&op.to_le_bytes());
    bytes[36..40].copy_from_slice(&u32::MAX.to_le_bytes());
    bytes[40..44].copy_from_slice(&fwd_cnt.to_le_bytes());
    bytes
}

/// A guest that is connected to a program.
fn connected(chunk: usize) -> (Guest<Vsock>, UnixStream) {
    let at = path("vsock");
    let host = UnixHost::bind(&at).expect("a path");
    let clock = Arc::new(ManualClock::new(Duration::ZERO));
    let vsock = Vsock::new(host, clock, VsockOptions::default()).expect("a device");
    let mut guest = Guest::new(vsock, chunk, Some(packet(5, chunk, 0)));
    let listening = PathBuf::from(format!("{}_80", at.display()));
    let listener = UnixListener::bind(&listening).expect("a path");
    control(&mut guest, packet(1, 0, 0));
    let (stream, _) = listener.accept().expect("the guest's connection");
    fs::remove_file(listening).expect("it is there");
    // Its answer.
    guest.receive();
    guest.receive();
    (guest, stream)
}

/// The guest sends a packet without a payload, in place of the chain whose turn it is.
fn control(guest: &mut Guest<Vsock>, bytes: [u8; HEADER]) {
    let n = guest.tx.idx % (SIZE / 2);
    let header = HEADERS + 64 * u64::from(n);
    let at = GuestAddress(header);
    let mut before = [0; HEADER];
    guest.memory.read_slice(&mut before, at).expect("in memory");
    guest.memory.write_slice(&bytes, at).expect("in memory");
    guest.send(1);
    guest.memory.write_slice(&before, at).expect("in memory");
}

/// Something that moves a window.
type Work = Box<dyn FnMut()>;

/// Two programs: chunks are written, `at_once` before they are read.
fn bare(chunk: usize, at_once: usize, room: usize) -> Work {
    let (mut one, mut other) = UnixStream::pair().expect("two sockets");
    let (data, mut got) = (vec![7; WINDOW], vec![0; room]);
    Box::new(move || {
        for round in data.chunks(chunk * at_once) {
            round
                .chunks(chunk)
                .for_each(|chunk| one.write_all(chunk).expect("room"));
            drain(&mut other, &mut got, round.len());
        }
    })
}

/// Reads so many bytes, as they come.
fn drain(stream: &mut UnixStream, room: &mut [u8], len: usize) {
    let mut got = 0;
    while got < len {
        got += stream.read(room).expect("data");
    }
    assert_eq!(got, len);
}

fn vsock_out(chunk: usize, at_once: usize) -> Work {
    let (mut guest, mut stream) = connected(chunk);
    let mut room = vec![0; WINDOW];
    Box::new(move || {
        for _ in 0..WINDOW / (chunk * at_once) {
            guest.send(at_once as u16);
            drain(&mut stream, &mut room, chunk * at_once);
        }
        // It is told of room, as its driver runs the other queue.
        guest.rx.offer(SIZE - guest.rx.out());
        guest.device.run();
    })
}

fn vsock_in(chunk: usize, at_once: usize) -> Work {
    let (mut guest, mut stream) = connected(chunk);
    let data = vec![7; WINDOW];
    let mut forwarded = 0_u32;
    Box::new(move || {
        for round in data.chunks(chunk * at_once) {
            round
                .chunks(chunk)
                .for_each(|chunk| stream.write_all(chunk).expect("room"));
            guest.receive();
            // Each has a header.
            let least = round.len().div_ceil(BUFFER - HEADER) as u16;
            let used = SIZE - guest.rx.out();
            assert!(used >= least, "{used} of {least} buffers");
        }
        forwarded = forwarded.wrapping_add(WINDOW as u32);
        // Linux says so when half of its window is gone.
        if forwarded.is_multiple_of(2 * WINDOW as u32) {
            control(&mut guest, packet(6, 0, forwarded));
            assert_eq!(guest.malformed(), 0);
        }
    })
}

fn console_out(chunk: usize, at_once: usize) -> Work {
    let at = path("console");
    let clock = Arc::new(ManualClock::new(Duration::ZERO));
    let port = Port::console(SocketPeer::bind(&at, clock).expect("a path"));
    let mut guest = Guest::new(Console::single(port).expect("a device"), chunk, None);
    let mut stream = UnixStream::connect(&at).expect("it listens");
    guest.look(RX);
    let mut room = vec![0; WINDOW];
    Box::new(move || {
        for _ in 0..WINDOW / (chunk * at_once) {
            guest.send(at_once as u16);
            drain(&mut stream, &mut room, chunk * at_once);
        }
    })
}

fn console_in(chunk: usize, at_once: usize) -> Work {
    let (mut typed, input) = UnixStream::pair().expect("two sockets");
    let output = OwnedFd::from(input.try_clone().expect("a descriptor"));
    let pair = FdPair::new(OwnedFd::from(input), output).expect("open files");
    let mut guest = Guest::new(Console::single(Port::console(pair)).expect("a device"), chunk, None);
    let data = vec![7; WINDOW];
    Box::new(move || {
        for round in data.chunks(chunk * at_once) {
            round
                .chunks(chunk)
                .for_each(|chunk| typed.write_all(chunk).expect("room"));
            guest.receive();
            let (used, least) = (SIZE - guest.rx.out(), round.len().div_ceil(BUFFER) as u16);
            assert!(used >= least, "{used} of {least} buffers");
        }
    })
}

/// Makes what moves a window of chunks of this size, so many at once.
type Make = fn(usize, usize) -> Work;

/// What is measured.
const KINDS: [(&str, Make); 4] = [
    ("vsock, guest to host", vsock_out),
    ("vsock, host to guest", vsock_in),
    ("console, guest to host", console_out),
    ("console, host to guest", console_in),
];

#[derive(Clone, Copy)]
struct Row {
    kind: usize,
    chunk: usize,
    at_once: usize,
}

impl Row {
    fn all() -> Vec<Self> {
        let mut rows = Vec::new();
        for kind in 0..KINDS.len() {
            for chunk in CHUNKS {
                let at_once = WINDOW / chunk;
                rows.push(Self { kind, chunk, at_once });
            }
            for chunk in CHUNKS {
                if chunk != WINDOW {
                    let at_once = 1;
                    rows.push(Self { kind, chunk, at_once });
                }
            }
        }
        rows
    }

    fn work(&self, ours: bool) -> Work {
        match ours {
            true => KINDS[self.kind].1(self.chunk, self.at_once),
            false => bare(self.chunk, self.at_once, WINDOW),
        }
    }

    fn name(&self) -> String {
        let how = if self.at_once * self.chunk == WINDOW {
            "all at once"
        } else {
            "one by one"
        };
        format!("{}, {:>2} KiB chunks, {how}", KINDS[self.kind].0, self.chunk >> 10)
    }
}

/// What this thread has had of a processor.
fn cpu() -> Duration {
    // SAFETY: a structure of plain numbers.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure, which is there.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Medians of a window by us, by bare programs, and by such with the guest's buffers, in nanoseconds: wall time, and time of the processor.
fn measure(row: Row, samples: usize) -> [[f64; 2]; 3] {
    const WINDOWS: u32 = 8;
    let small = bare(row.chunk, row.at_once, BUFFER);
    let mut works = [row.work(true), row.work(false), small];
    let mut times: [[Vec<Duration>; 2]; 3] = Default::default();
    for sample in 0..samples + 10 {
        for (work, times) in works.iter_mut().zip(&mut times) {
            let (begun, spent) = (Instant::now(), cpu());
            (0..WINDOWS).for_each(|_| work());
            let passed = [begun.elapsed(), cpu() - spent];
            // The first warm up.
            if sample >= 10 {
                for (times, passed) in times.iter_mut().zip(passed) {
                    times.push(passed);
                }
            }
        }
    }
    times.map(|both| {
        both.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2].as_nanos() as f64 / f64::from(WINDOWS)
        })
    })
}

/// What a tool counts of a chunk: of this program, that works so many times, and more.
fn counted(row: usize, ours: bool, count: impl Fn(&mut Command) -> Option<f64>, tool: &[&str]) -> Option<f64> {
    let run = |times: u32| {
        let mut command = Command::new(tool[0]);
        command.args(&tool[1..]).arg(env::current_exe().ok()?);
        let side = if ours { "ours" } else { "bare" };
        command.args(["--work", &row.to_string(), side, &times.to_string()]);
        count(&mut command)
    };
    let (few, many) = (run(20)?, run(120)?);
    let chunks = WINDOW / Row::all()[row].chunk;
    Some((many - few) / (100 * chunks) as f64)
}

fn system_calls(row: usize, ours: bool) -> Option<f64> {
    let table = path("strace");
    let name = table.to_str()?;
    let total = |command: &mut Command| {
        command.output().ok()?;
        let text = fs::read_to_string(&table).ok()?;
        let _ = fs::remove_file(&table);
        let line = text.lines().find(|line| line.trim_end().ends_with("total"))?;
        line.split_whitespace().nth(3)?.parse::<f64>().ok()
    };
    counted(row, ours, total, &["strace", "-c", "-o", name])
}

fn instructions(row: usize, ours: bool) -> Option<f64> {
    let total = |command: &mut Command| {
        let output = command.output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let collected = text.split("Collected : ").nth(1)?;
        collected.split_whitespace().next()?.parse().ok()
    };
    let tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"];
    counted(row, ours, total, &tool)
}

fn show(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

fn main() -> io::Result<()> {
    let args: Vec<_> = env::args().collect();
    let rows = Row::all();
    if let Some(at) = args.iter().position(|arg| arg == "--work") {
        let number = |at: usize| args[at].parse::<usize>().expect("a number");
        let mut work = rows[number(at + 1)].work(args[at + 2] == "ours");
        (0..number(at + 3)).for_each(|_| work());
        return Ok(());
    }
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let samples = if has("--quick") { 60 } else { 400 };
    let only = args
        .iter()
        .position(|arg| arg == "--only")
        .map(|at| args[at + 1].clone());
    println!(
        "{:<54} {:>6} {:>8} {:>7} {:>17} {:>13} {:>15}",
        "throughput of a bare Unix socket's", "ratio", "cpu", "4 KiB", "ns a chunk (cpu)", "calls", "instructions"
    );
    for (number, row) in rows.iter().enumerate() {
        if only.as_ref().is_some_and(|only| !row.name().contains(only)) {
            continue;
        }
        let [ours, theirs, small] = measure(*row, samples);
        let calls = [true, false].map(|ours| show(system_calls(number, ours), 2));
        let counted = [true, false].map(|ours| match has("--instructions") {
            true => show(instructions(number, ours), 0),
            false => "-".into(),
        });
        let chunks = (WINDOW / row.chunk) as f64;
        println!(
            "{:<54} {:>6.2} {:>8.2} {:>7} {:>8.0} / {:>6.0} {:>6} / {:>4} {:>7} / {:>5}",
            row.name(),
            theirs[0] / ours[0],
            theirs[1] / ours[1],
            show(KINDS[row.kind].0.ends_with("guest").then_some(small[1] / ours[1]), 2),
            ours[1] / chunks,
            theirs[1] / chunks,
            calls[0],
            calls[1],
            counted[0],
            counted[1],
        );
    }
    Ok(())
}
