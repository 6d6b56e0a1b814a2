//! What a frame costs in the network device, a batch of frames at a time: read the ratios, all of one run.
//!
//! - From guest to guest over the switch, beside bare work on the two rings, with all its checks, and one copy from guest to guest: once
//!   as a device finds the memory, and once by addresses that are known beforehand.
//! - To and from a TAP interface, beside a bare loop of `writev` and `readv` of as many frames (as root; in a network namespace of its
//!   own); with the system calls of each, if there is `strace`.
//! - Large packets: 64 KiB, into one buffer and spread over buffers of 4 KiB.
//!
//! `--work NUMBER TIMES` does one of these alone, for who counts its instructions.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group};
use devisor::{
    memory::Memory,
    virtio::{
        QueueHandler, QueueIndex, VirtioDevice, features,
        net::{Net, NetOptions, Offloads, Port, Switch, SwitchOptions},
        queue::{Queue, QueueLayout, Silent, Slices},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

const SIZE: u16 = 256;
const BATCH: u16 = 64;
const HEADER: u32 = 12;
const MRG_RXBUF: u64 = 1 << 15;

/// A queue of a guest, whose ring is full of chains of one buffer once and for all: a batch more is one store.
struct Side {
    queue: Queue,
    handler: Option<Box<dyn QueueHandler>>,
    avail: *mut u16,
    idx: u16,
}

impl Side {
    /// Buffers of `len` bytes, each at a place of its own, which the device writes if `writable`.
    fn new(memory: &Arc<GuestMemoryMmap>, base: u64, index: u16, len: u32, writable: bool, features: u64) -> Self {
        let layout = QueueLayout {
            size: SIZE,
            descriptor_area: base,
            driver_area: base + 0x2000,
            device_area: base + 0x4000,
        };
        let stride = u64::from(len).next_multiple_of(64);
        for n in 0..u64::from(SIZE) {
            let flags: u64 = if writable { 2 } else { 0 };
            let descriptor = [base + 0x8000 + n * stride, u64::from(len) | flags << 32];
            let at = GuestAddress(base + 16 * n);
            memory.write_obj(descriptor, at).expect("in memory");
            let slot = GuestAddress(base + 0x2004 + 2 * n);
            memory.write_obj(n as u16, slot).expect("in memory");
        }
        let space = Memory::new(Arc::clone(memory));
        let queue = Queue::new(QueueIndex(index), SIZE, layout, features, &space, Arc::new(Silent));
        let avail = memory.get_host_address(GuestAddress(base + 0x2000)).expect("in memory");
        // No signal is wanted.
        memory.write_obj(1_u16, GuestAddress(base + 0x2000)).expect("in memory");
        Self {
            queue: queue.expect("a queue"),
            handler: None,
            avail: avail.cast(),
            idx: 0,
        }
    }

    fn offer(&mut self, n: u16) {
        self.idx = self.idx.wrapping_add(n);
        // SAFETY: the driver area is inside the mapping, which outlives the queue; nobody else accesses it now.
        unsafe { self.avail.add(1).write_volatile(self.idx) };
    }

    fn serve(&mut self) {
        let handler = self.handler.as_mut().expect("a handler");
        let mut round = self.queue.round().expect("a ring");
        handler.serve(&mut round).expect("a ring that keeps the rules");
        let _ = round.end().expect("a ring");
    }

    fn completed(&self) -> u64 {
        self.queue.counters().requests
    }
}

/// Two guests, and what carries frames from the first to the second.
struct Guests {
    from: Side,
    to: Side,
    /// Where the memory of both begins.
    base: *mut u8,
    /// Buffers that a frame takes.
    spread: u16,
    _nics: Vec<Net>,
}

fn memory() -> Arc<GuestMemoryMmap> {
    let ranges = [(GuestAddress(0), 128 << 20)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"))
}

const TO: u64 = 64 << 20;

impl Guests {
    /// Frames of `len` bytes into buffers of `room` bytes.
    fn new(len: u32, room: u32, ports: Option<[Box<dyn Port>; 2]>, wanted: u64) -> Self {
        let memory = memory();
        let wanted = wanted | features::VERSION_1;
        let mut from = Side::new(&memory, 0x1_0000, 1, HEADER + len, false, wanted);
        let mut to = Side::new(&memory, TO, 0, room, true, wanted);
        let mut nics = Vec::new();
        for (port, side, queue) in ports
            .into_iter()
            .flatten()
            .zip([&mut from, &mut to])
            .zip([1, 0])
            .map(|((port, side), queue)| (port, side, queue))
        {
            let mut nic = Net::new([port], NetOptions::default()).expect("a device");
            nic.negotiated(wanted);
            side.handler = Some(nic.start(QueueIndex(queue)));
            nics.push(nic);
        }
        let stride = u64::from(HEADER + len).next_multiple_of(64);
        for n in 0..u64::from(SIZE) {
            let at = 0x1_8000 + n * stride + u64::from(HEADER);
            let ends = [0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5];
            memory.write_slice(&ends, GuestAddress(at)).expect("in memory");
        }
        let spread = (HEADER + len).div_ceil(room) as u16;
        let base = memory.get_host_address(GuestAddress(0)).expect("in memory");
        let _nics = nics;
        Self {
            from,
            to,
            base,
            spread,
            _nics,
        }
    }

    fn over_switch(len: u32, room: u32) -> Self {
        let options = SwitchOptions {
            bytes: 16 << 20,
            offloads: Offloads::ALL,
            ..SwitchOptions::default()
        };
        let switch = Switch::new(options);
        let ports = [switch.port(), switch.port()];
        Self::new(len, room, Some(ports.map(|port| Box::new(port) as _)), MRG_RXBUF)
    }

    /// A batch by the device.
    fn batch(&mut self, frames: u16) {
        self.from.offer(frames);
        self.to.offer(frames * self.spread);
        self.from.serve();
        self.to.serve();
    }
}

/// A batch by hand: each frame with its header from ring to ring, by `copy`.
fn bare(
    guests: &mut Guests,
    frames: u16,
    room: &mut [Slices; 2],
    copy: &mut dyn FnMut(&VolatileSlice<'_>, &VolatileSlice<'_>),
) {
    let Guests { from, to, .. } = guests;
    from.offer(frames);
    to.offer(frames);
    let (mut from, mut to) = (from.queue.round().expect("a ring"), to.queue.round().expect("a ring"));
    let [of_from, of_to] = room;
    while let Some(source) = from.next().expect("a ring") {
        let target = to.next().expect("a ring").expect("a buffer");
        let (reader, writer) = (source.reader(), target.writer());
        let copied = reader.with_slices(of_from, |source| {
            writer
                .with_slices(of_to, |target| copy(&source[0], &target[0]))
                .expect("memory");
        });
        copied.expect("memory");
        let len = source.readable_len();
        source.put(0).expect("a ring");
        target.put(len).expect("a ring");
    }
    let _ = (from.end().expect("a ring"), to.end().expect("a ring"));
}

fn direct(from: &VolatileSlice<'_>, to: &VolatileSlice<'_>) {
    from.copy_to_volatile_slice(to.subslice(0, from.len()).expect("room"));
}

/// The same by host addresses that are known beforehand: nothing but the work on the rings, and `memcpy`.
fn barest(guests: &mut Guests, frames: u16) {
    let Guests { from, to, base, .. } = guests;
    from.offer(frames);
    to.offer(frames);
    let (mut from, mut to) = (from.queue.round().expect("a ring"), to.queue.round().expect("a ring"));
    while let Some(source) = from.next().expect("a ring") {
        let target = to.next().expect("a ring").expect("a buffer");
        let (read, write) = (source.readable()[0], target.writable()[0]);
        // SAFETY: guest addresses begin at zero in the one mapping of the guests' memory, in which both buffers were found to be; they
        // do not overlap.
        unsafe {
            let (read_at, write_at) = (base.add(read.address as usize), base.add(write.address as usize));
            std::ptr::copy_nonoverlapping(read_at, write_at, read.len as usize);
        }
        source.put(0).expect("a ring");
        target.put(read.len).expect("a ring");
    }
    let _ = (from.end().expect("a ring"), to.end().expect("a ring"));
}

/// Two things that are done in turn: medians, CPU time of this thread, and the ratio of the first to the second.
fn ratio(name: &str, frames: u64, mut ours: impl FnMut() -> Duration, mut theirs: impl FnMut() -> Duration) {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..2000 {
        times[0].push(ours());
        times[1].push(theirs());
    }
    let cpu = [cpu_time(|| _ = ours()), cpu_time(|| _ = theirs())];
    let [our_cpu, their_cpu] = cpu.map(|time| time.as_nanos() as f64 / frames as f64);
    let sorted = times.map(|mut times| {
        times.sort_unstable();
        times
    });
    let at = |part: usize| {
        let [ours, theirs] = sorted.each_ref().map(|times| times[times.len() / part]);
        (
            ours.as_nanos() as f64 / frames as f64,
            theirs.as_nanos() as f64 / frames as f64,
        )
    };
    let ((ours, theirs), (our_best, their_best)) = (at(2), at(20));
    println!(
        "{name}: {ours:.0} ns beside {theirs:.0} ns a frame, ratio {:.2} (of the fastest twentieth {:.2}); CPU time with what surrounds \
         it {our_cpu:.0} and {their_cpu:.0} ns",
        ours / theirs,
        our_best / their_best
    );
}

/// The CPU time of this thread that something takes.
#[cfg(unix)]
fn cpu_time(mut f: impl FnMut()) -> Duration {
    let now = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes a `timespec`.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let begun = now();
    (0..TIMES).for_each(|_| f());
    (now() - begun) / TIMES
}

#[cfg(unix)]
const TIMES: u32 = 200;

#[cfg(not(unix))]
fn cpu_time(_: impl FnMut()) -> Duration {
    Duration::ZERO
}

fn timed(f: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    f();
    begun.elapsed()
}

fn switch(criterion: &mut Criterion) {
    for len in [64, 1500] {
        let frames = BATCH;
        let mut ours = Guests::over_switch(len, 2048);
        let mut by_hand = Guests::new(len, 2048, None, 0);
        let mut rooms = Default::default();
        let name = format!("switch, frames of {len} bytes");
        ratio(
            &format!("{name}, beside rings and one copy"),
            frames.into(),
            || timed(|| ours.batch(frames)),
            || timed(|| bare(&mut by_hand, frames, &mut rooms, &mut direct)),
        );
        ratio(
            &format!("{name}, beside rings and one memcpy by addresses known beforehand"),
            frames.into(),
            || timed(|| ours.batch(frames)),
            || timed(|| barest(&mut by_hand, frames)),
        );
        let sent = ours.from.completed();
        assert_eq!((sent, ours.to.completed()), (sent, sent), "all of them arrived");
        let mut group = criterion.benchmark_group(name);
        group.bench_function("devisor", |bencher| bencher.iter(|| ours.batch(frames)));
        group.bench_function("rings and a copy", |bencher| {
            bencher.iter(|| bare(&mut by_hand, frames, &mut rooms, &mut direct));
        });
        group.finish();
    }

    const LARGE: u32 = 65_000;
    let frames = 8;
    for room in [66_000, 4096] {
        let mut ours = Guests::over_switch(LARGE, room);
        let mut by_hand = Guests::new(LARGE, 66_000, None, 0);
        let mut rooms = Default::default();
        ratio(
            &format!("switch, packets of {LARGE} bytes into buffers of {room}, beside rings and one copy into one"),
            frames.into(),
            || timed(|| ours.batch(frames)),
            || timed(|| bare(&mut by_hand, frames, &mut rooms, &mut direct)),
        );
        let sent = ours.from.completed();
        assert_eq!(
            ours.to.completed(),
            sent * u64::from(ours.spread),
            "all of them arrived"
        );
    }
}

#[cfg(target_os = "linux")]
mod tap {
    use std::{net::UdpSocket, os::fd::AsRawFd, process::Command};

    use devisor::virtio::net::Tap;

    use super::*;

    /// A TAP interface in a namespace of this thread's own, if that can be.
    fn open() -> Result<Arc<Tap>, String> {
        // SAFETY: moves this thread alone to a new network namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error().to_string());
        }
        let tap = Tap::open("tap0").map_err(|error| error.to_string())?;
        let commands = [
            "link set dev tap0 address 52:54:00:00:00:02 txqueuelen 1000",
            "addr add 10.0.0.1/24 dev tap0",
            "link set dev tap0 up",
            "neigh add 10.0.0.2 lladdr 52:54:00:00:00:01 dev tap0",
        ];
        // Or it sends frames of its own.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1");
        for command in commands {
            let status = Command::new("ip").args(command.split(' ')).status();
            if !status.is_ok_and(|status| status.success()) {
                return Err(format!("ip {command}"));
            }
        }
        Ok(Arc::new(tap))
    }

    /// What a device and a bare loop do with the same interface.
    struct Both {
        guests: Guests,
        fd: i32,
        header: [u8; 12],
        len: usize,
        /// Which of the guests' buffers the bare loops use next: the same ones.
        next: usize,
        host: UdpSocket,
        payload: Vec<u8>,
    }

    impl Both {
        fn new(tap: &Arc<Tap>, len: u32) -> Self {
            let ports: [Box<dyn Port>; 2] = [Box::new(Arc::clone(tap)), Box::new(Arc::clone(tap))];
            let host = UdpSocket::bind("10.0.0.1:0").expect("an address");
            host.connect("10.0.0.2:9").expect("a route");
            Self {
                guests: Guests::new(len, 2048, Some(ports), 0),
                fd: tap.as_raw_fd(),
                header: [0; 12],
                len: len as usize,
                next: 0,
                host,
                payload: vec![0; len as usize - 42],
            }
        }

        fn send(&mut self, frames: u16) {
            self.guests.from.offer(frames);
            self.guests.from.serve();
        }

        /// The header, and the next of the buffers that a guest has from `base` on: for so many bytes.
        fn vectors(&mut self, base: usize, room: usize) -> [libc::iovec; 2] {
            let stride = (12 + room).next_multiple_of(64);
            self.next = (self.next + 1) % usize::from(SIZE);
            // SAFETY: the buffer is in the guests' memory, behind room for a header.
            let frame = unsafe { self.guests.base.add(base + 0x8000 + self.next * stride + 12) };
            let of = |base: *mut u8, len| libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            };
            [of(self.header.as_mut_ptr(), 12), of(frame, room)]
        }

        fn send_barely(&mut self, frames: u16) {
            for _ in 0..frames {
                let vectors = self.vectors(0x1_0000, self.len);
                // SAFETY: the vectors are buffers that outlive the call.
                let sent = unsafe { libc::writev(self.fd, vectors.as_ptr(), 2) };
                assert_eq!(sent as usize, 12 + self.len);
            }
        }

        fn have_some(&self, frames: u16) {
            (0..frames).for_each(|_| _ = self.host.send(&self.payload).expect("a route"));
        }

        fn receive(&mut self, frames: u16) {
            self.guests.to.offer(frames);
            self.guests.to.serve();
        }

        fn receive_barely(&mut self, frames: u16) {
            for _ in 0..frames {
                let vectors = self.vectors(TO as usize, 2036);
                // SAFETY: the vectors are buffers that outlive the call.
                let received = unsafe { libc::readv(self.fd, vectors.as_ptr(), 2) };
                assert_eq!(received as usize, 12 + self.len);
            }
        }
    }

    pub fn run() {
        let tap = match open() {
            Ok(tap) => tap,
            Err(error) => return println!("skipped: a TAP interface: {error}"),
        };
        for len in [64, 1500] {
            let (frames, both) = (BATCH, &std::cell::RefCell::new(Both::new(&tap, len)));
            ratio(
                &format!("TAP, {len} bytes to it, beside writev"),
                frames.into(),
                || timed(|| both.borrow_mut().send(frames)),
                || timed(|| both.borrow_mut().send_barely(frames)),
            );
            ratio(
                &format!("TAP, {len} bytes from it, beside readv"),
                frames.into(),
                || {
                    both.borrow().have_some(frames);
                    timed(|| both.borrow_mut().receive(frames))
                },
                || {
                    both.borrow().have_some(frames);
                    timed(|| both.borrow_mut().receive_barely(frames))
                },
            );
        }
    }

    /// What is counted from outside, by its number; frames that it comes to each time.
    const WORK: [&str; 4] = [
        "TAP, to it",
        "TAP, to it, writev",
        "TAP, from it",
        "TAP, from it, readv",
    ];

    pub fn work(number: usize, times: u32) {
        let tap = open().expect("as before");
        let mut both = Both::new(&tap, 64);
        for _ in 0..times {
            if number >= 2 {
                both.have_some(BATCH);
            }
            match number {
                0 => both.send(BATCH),
                1 => both.send_barely(BATCH),
                2 => both.receive(BATCH),
                _ => both.receive_barely(BATCH),
            }
        }
    }

    /// System calls a frame, as `strace` counts them: those of so many batches more.
    pub fn system_calls() {
        let count = |number: usize, times: u32| -> Option<u64> {
            let program = std::env::current_exe().ok()?;
            let output = Command::new("strace")
                .args(["-c", "-U", "calls,name", "-o", "/dev/stdout"])
                .arg(program)
                .args(["--work", &number.to_string(), &times.to_string()])
                .output()
                .ok()
                .filter(|output| output.status.success())?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let lines = text.lines().filter_map(|line| {
                let (calls, name) = line.trim().split_once(' ')?;
                let moves = matches!(
                    name.trim(),
                    "read" | "write" | "readv" | "writev" | "ppoll" | "poll" | "ioctl" | "futex"
                );
                calls.parse::<u64>().ok().filter(|_| moves)
            });
            Some(lines.sum())
        };
        for (number, name) in WORK.iter().enumerate() {
            match (count(number, 11), count(number, 1)) {
                (Some(many), Some(few)) => {
                    let each = (many - few) as f64 / f64::from(10 * BATCH);
                    println!("{name}: {each:.2} system calls a frame");
                }
                _ => return println!("skipped: system calls a frame: strace"),
            }
        }
    }
}

fn net(criterion: &mut Criterion) {
    switch(criterion);
    #[cfg(target_os = "linux")]
    std::thread::scope(|scope| _ = scope.spawn(tap::run));
    #[cfg(target_os = "linux")]
    tap::system_calls();
}

/// Does one thing so many times, for who counts it from outside.
fn work_alone(number: usize, times: u32) {
    let by_hand = |len| Guests::new(len, 2048, None, 0);
    match number {
        #[cfg(target_os = "linux")]
        0..4 => tap::work(number, times),
        10 | 11 => {
            let mut guests = Guests::over_switch([64, 1500][number - 10], 2048);
            (0..times).for_each(|_| guests.batch(BATCH));
        }
        20 | 21 => {
            let (mut guests, mut rooms) = (by_hand([64, 1500][number - 20]), Default::default());
            (0..times).for_each(|_| bare(&mut guests, BATCH, &mut rooms, &mut direct));
        }
        _ => {
            let mut guests = by_hand(64);
            (0..times).for_each(|_| barest(&mut guests, BATCH));
        }
    }
}

criterion_group!(benches, net);

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    let number = |at: usize| arguments.get(at).and_then(|argument| argument.parse().ok());
    if let (Some("--work"), Some(work), Some(times)) = (arguments.get(1).map(String::as_str), number(2), number(3)) {
        return work_alone(work as usize, times);
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
