//! The comparison.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use devisor::virtio::block::{ImageFormat, ImageOptions, ImageStorage, Storage};
use vm_memory::VolatileSlice;

/// Bytes of the disk, all of which are there.
const SIZE: u64 = 256 << 20;

#[derive(Clone, Copy)]
struct Load {
    writes: bool,
    len: usize,
    random: bool,
    depth: usize,
    /// Of each turn.
    time: Duration,
}

/// Requests a second.
fn ours(image: &Path, load: Load) -> f64 {
    let storage = ImageStorage::open(image, ImageFormat::Qcow2, ImageOptions::default()).expect("an image");
    let begun = Instant::now();
    let thread = |seed: u64| {
        let (mut data, mut state, mut done) = (vec![0x5a_u8; load.len], seed * 2 + 1, 0_u64);
        let slices = [VolatileSlice::from(&mut data[..])];
        while begun.elapsed() < load.time {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let place = if load.random { state >> 33 } else { done + seed };
            let offset = place % (SIZE / load.len as u64) * load.len as u64;
            let moved = match load.writes {
                true => storage.write_at(offset, &slices),
                false => storage.read_at(offset, &slices),
            };
            assert_eq!(moved.expect("it is done"), load.len);
            done += 1;
        }
        done
    };
    let done: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..load.depth as u64)
            .map(|seed| scope.spawn(move || thread(seed)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it ends")).sum()
    });
    done as f64 / begun.elapsed().as_secs_f64()
}

/// The daemon, with the image exported.
struct Daemon(Child, PathBuf);

impl Daemon {
    fn new(image: &Path, socket: PathBuf) -> Option<Self> {
        let _ = fs::remove_file(&socket);
        let child = Command::new("qemu-storage-daemon")
            .args([
                "--blockdev",
                &format!("file,node-name=file,filename={}", image.display()),
            ])
            .args(["--blockdev", "qcow2,node-name=disk,file=file"])
            .args([
                "--nbd-server",
                &format!("addr.type=unix,addr.path={}", socket.display()),
            ])
            .args(["--export", "nbd,id=disk,node-name=disk,name=disk,writable=on"])
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let daemon = Self(child, socket);
        for _ in 0..500 {
            if UnixStream::connect(&daemon.1).is_ok() {
                return Some(daemon);
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }

    fn fio(&self, load: Load) -> Option<f64> {
        let kind = if load.writes { "write" } else { "read" };
        let output = Command::new("fio")
            .args([
                "--name=x",
                "--ioengine=nbd",
                "--output-format=terse",
                "--terse-version=3",
            ])
            .args(["--time_based", "--norandommap", "--randrepeat=0"])
            .arg(format!("--uri=nbd+unix:///disk?socket={}", self.1.display()))
            .arg(format!("--rw={}{kind}", if load.random { "rand" } else { "" }))
            .arg(format!("--bs={}", load.len))
            .arg(format!("--iodepth={}", load.depth))
            .arg(format!("--runtime={}", load.time.as_secs().max(1)))
            .arg(format!("--size={SIZE}"))
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|line| line.starts_with("3;"))?;
        line.split(';').nth(if load.writes { 48 } else { 7 })?.parse().ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    let (turns, time) = if test { (1, 1) } else { (5, 1) };
    let directory = PathBuf::from("/dev/shm").join(format!("devisor-images-bench-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    compare(&directory, turns, Duration::from_secs(time));
    let _ = fs::remove_dir_all(&directory);
}

fn compare(directory: &Path, turns: usize, time: Duration) {
    let (raw, image, socket) = (directory.join("raw"), directory.join("qcow2"), directory.join("socket"));
    fs::write(&raw, vec![0x5a; SIZE as usize]).expect("room for it");
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &image])
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return println!("skipped: qemu-img is not installed");
    }
    let _ = fs::remove_file(&raw);
    for (writes, len, random, depth) in [
        (false, 4096, true, 1),
        (false, 4096, true, 4),
        (true, 4096, true, 1),
        (true, 4096, true, 4),
        (false, 128 << 10, false, 1),
        (false, 128 << 10, false, 4),
    ] {
        let load = Load {
            writes,
            len,
            random,
            depth,
            time,
        };
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..turns {
            first.push(ours(&image, load));
            // One at a time has the image.
            let Some(daemon) = Daemon::new(&image, socket.clone()) else {
                return println!("skipped: qemu-storage-daemon is not installed");
            };
            let Some(rate) = daemon.fio(load) else {
                return println!("skipped: fio is not installed, or has no NBD engine");
            };
            second.push(rate);
        }
        let (ours, theirs) = (median(first), median(second));
        println!(
            "{} KiB {} {}, {depth} at a time: {:.1} k/s here, {:.1} k/s by the daemon, ratio {:.2}",
            len / 1024,
            if random { "random" } else { "sequential" },
            if writes { "writes" } else { "reads" },
            ours / 1e3,
            theirs / 1e3,
            ours / theirs
        );
    }
}
