//! The NBD client beside `fio` (its NBD engine) and `nbdcopy`, on the same `nbdkit`, in turns. `cargo bench --bench nbd --features nbd`.
//!
//! Says for each load what both have done in a second, medians of several turns, and the ratio.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    task::Waker,
    thread,
    time::{Duration, Instant},
};

use devisor::{
    time::{Clock, HostClock},
    virtio::{
        QueueIndex, Wait,
        block::{AsyncStorage, Buffers, NbdOptions, NbdStorage, Operation, Outcome, Tag},
    },
};

const SIZE: u64 = 1 << 30;
/// How many turns, of how many seconds each; with `--test`, whether it works.
fn turns() -> (usize, u64) {
    match std::env::args().any(|argument| argument == "--test") {
        true => (1, 1),
        false => (5, 2),
    }
}

/// Requests of `len` bytes, so many at a time, for so long. Bytes a second.
fn ours(socket: &Path, depth: usize, len: usize, random: bool, writes: bool) -> f64 {
    let clock: Arc<dyn Clock> = Arc::new(HostClock::starting_at(Duration::ZERO));
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let uri = uri.parse().expect("a URI");
    let storage = NbdStorage::connect(&uri, NbdOptions::default(), Arc::clone(&clock)).expect("a server");
    let mut channel = storage.open(QueueIndex(0), Waker::noop().clone()).expect("a channel");
    let mut idle: Vec<_> = (0..depth as u64)
        .map(|tag| (Tag(tag), Buffers::zeroed(len, 4096)))
        .collect();
    let (mut next, mut done, mut state) = (0, 0, 1_u64);
    let begun = Instant::now();
    let mut ended = Vec::new();
    let mut end = None;
    // Those under way at the end are waited for: a server may not take it well that they are left.
    while end.is_none() || idle.len() + ended.len() < depth {
        if end.is_none() && begun.elapsed() >= Duration::from_secs(turns().1) {
            end = Some(done as f64 / begun.elapsed().as_secs_f64());
        }
        channel.reap(&mut |one| ended.push(one));
        for one in ended.drain(..) {
            let Outcome::Done(Ok(moved)) = one.outcome else {
                panic!("{:?}", one.outcome)
            };
            assert_eq!(moved, len as u64);
            done += moved;
            idle.push((one.tag, one.buffers));
        }
        let more = if end.is_none() { idle.len() } else { 0 };
        for (tag, buffers) in idle.drain(..more) {
            let blocks = SIZE / len as u64;
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let block = if random { (state >> 33) % blocks } else { next % blocks };
            next += 1;
            let offset = block * len as u64;
            let operation = match writes {
                true => Operation::Write { offset, fua: false },
                false => Operation::Read { offset },
            };
            channel.submit(tag, operation, buffers);
        }
        channel.commit();
        channel.reap(&mut |one| ended.push(one));
        if !ended.is_empty() || idle.len() == depth {
            continue;
        }
        let mut polled = Vec::new();
        channel.waits(&mut |wait| match wait {
            Wait::Readable(fd) => polled.push(libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            }),
            Wait::Writable(fd) => polled.push(libc::pollfd {
                fd,
                events: libc::POLLOUT,
                revents: 0,
            }),
            _ => {}
        });
        // SAFETY: a list of that length.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, 100) };
    }
    end.unwrap_or_default()
}

/// The same by `fio`.
fn fio(socket: &Path, depth: usize, len: usize, random: bool, writes: bool) -> Option<f64> {
    let kind = if writes { "write" } else { "read" };
    let output = Command::new("fio")
        .args(["--name=x", "--ioengine=nbd", "--output-format=terse", "--time_based"])
        .arg(format!("--uri=nbd+unix:///?socket={}", socket.display()))
        .arg(format!("--rw={}{kind}", if random { "rand" } else { "" }))
        .args([
            format!("--bs={len}"),
            format!("--iodepth={depth}"),
            format!("--runtime={}", turns().1),
        ])
        .arg(format!("--size={SIZE}"))
        .output()
        .ok()?;
    // Fields of version 3: bandwidth in KiB a second.
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("3;"))?;
    let field = line.split(';').nth(if writes { 47 } else { 6 })?;
    Some(field.parse::<f64>().ok()? * 1024.0)
}

/// All of it by `nbdcopy`, over one connection.
fn nbdcopy(socket: &Path) -> Option<f64> {
    let begun = Instant::now();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let status = Command::new("nbdcopy")
        .args([
            "--connections=1",
            "--no-extents",
            "--request-size=131072",
            "--requests=16",
            &uri,
            "null:",
        ])
        .status()
        .ok()?;
    status.success().then(|| SIZE as f64 / begun.elapsed().as_secs_f64())
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn compare(name: &str, unit: (f64, &str), ours: impl Fn() -> f64, other: impl Fn() -> Option<f64>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for _ in 0..turns().0 {
        first.push(ours());
        let Some(other) = other() else {
            return println!("{name}: the other is not installed");
        };
        second.push(other);
    }
    let (first, second) = (median(first) / unit.0, median(second) / unit.0);
    println!(
        "{name}: {first:.0} {} here, {second:.0} there, ratio {:.2}",
        unit.1,
        first / second
    );
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    let directory = std::env::temp_dir().join(format!("devisor-nbd-bench-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let socket = directory.join("socket");
    let child = Command::new("nbdkit")
        .args(["-f", "-U"])
        .arg(&socket)
        .args(["memory", &SIZE.to_string(), "allocator=malloc"])
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = child else {
        return println!("nbdkit is not installed");
    };
    let server = Server(child);
    while UnixStream::connect(&socket).is_err() {
        thread::sleep(Duration::from_millis(10));
    }
    for writes in [true, false] {
        let kind = if writes { "writes" } else { "reads" };
        for depth in [1, 32] {
            let unit = (4096.0, "a second");
            compare(
                &format!("4 KiB random {kind}, {depth} at a time, beside fio"),
                unit,
                || ours(&socket, depth, 4096, true, writes),
                || fio(&socket, depth, 4096, true, writes),
            );
        }
    }
    let unit = (1_048_576.0, "MiB/s");
    compare(
        "128 KiB sequential reads, 16 at a time, beside fio",
        unit,
        || ours(&socket, 16, 131_072, false, false),
        || fio(&socket, 16, 131_072, false, false),
    );
    compare(
        "128 KiB sequential reads, 16 at a time, beside nbdcopy",
        unit,
        || ours(&socket, 16, 131_072, false, false),
        || nbdcopy(&socket),
    );
    drop(server);
    let _ = fs::remove_dir_all(&directory);
}
