//! Connections that are lost: nothing that was replied to is, and nothing that was asked for.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use devisor::virtio::block::{Buffers, NbdOptions, NbdStorage, Operation, Outcome};

use crate::{
    channel::{Driver, clock, hasty, pattern},
    servers::{Place, Server, connect, nbdkit, qemu_nbd},
};

/// Random writes with a verify, while somebody kills the server and starts it again.
fn writes_survive(storage: &NbdStorage, seconds: u64, queues: u64) -> u64 {
    const BLOCK: usize = 4096;
    const BLOCKS: u64 = 512;
    let end = Instant::now() + Duration::from_secs(seconds);
    let workers = (0..queues).map(|queue| {
        let storage = storage.clone();
        thread::spawn(move || {
            let clock = clock();
            let mut driver = Driver::open(&storage, &clock);
            // What each block was last written with; zero is what it was made with.
            let mut model = vec![0_u64; BLOCKS as usize];
            let mut state = queue + 1;
            let mut random = move |below: u64| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let expected = |seed: u64| match seed {
                0 => vec![0; BLOCK],
                seed => pattern(seed, BLOCK),
            };
            let mut written = 0;
            while Instant::now() < end {
                let mut under_way = Vec::new();
                for _ in 0..8 {
                    let block = random(BLOCKS);
                    if under_way.iter().any(|(_, other, _)| *other == block) {
                        continue;
                    }
                    written += 1;
                    let seed = written * queues + queue + 1;
                    let offset = (queue * BLOCKS + block) * BLOCK as u64;
                    let tag = match random(3) {
                        0 => {
                            let tag = driver.submit(Operation::Read { offset }, Buffers::zeroed(BLOCK, 512));
                            under_way.push((tag, block, None));
                            continue;
                        }
                        _ => {
                            let bytes = pattern(seed, BLOCK);
                            driver.submit(Operation::Write { offset, fua: false }, Buffers::from(&bytes[..]))
                        }
                    };
                    under_way.push((tag, block, Some(seed)));
                }
                if random(16) == 0 {
                    let tag = driver.submit(Operation::Flush, Buffers::default());
                    under_way.push((tag, BLOCKS, None));
                }
                while !under_way.is_empty() {
                    let ended = driver.next();
                    let index = under_way.iter().position(|(tag, ..)| *tag == ended.tag).expect("once");
                    let (_, block, seed) = under_way.remove(index);
                    let Outcome::Done(Ok(_)) = ended.outcome else {
                        panic!("{:?}", ended.outcome);
                    };
                    match seed {
                        Some(seed) => model[block as usize] = seed,
                        None if block < BLOCKS => {
                            let mut bytes = vec![0; BLOCK];
                            ended.buffers.read(0, &mut bytes);
                            assert!(bytes == expected(model[block as usize]), "block {block} was lost");
                        }
                        None => {}
                    }
                }
            }
            for (block, seed) in model.iter().enumerate() {
                let offset = (queue * BLOCKS + block as u64) * BLOCK as u64;
                assert!(
                    driver.read(offset, BLOCK).unwrap() == expected(*seed),
                    "block {block} was lost"
                );
            }
            driver.flush().unwrap();
            written
        })
    });
    let workers: Vec<_> = workers.collect();
    workers
        .into_iter()
        .map(|worker| worker.join().expect("nothing was lost"))
        .sum()
}

/// Kills what `start` starts again and again until told to end.
fn kill_again_and_again(
    start: impl Fn() -> Server + Send + 'static,
    every: Duration,
) -> (Arc<AtomicBool>, thread::JoinHandle<(u32, Server)>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let first = start();
    let killer = thread::spawn(move || {
        let mut server = first;
        let mut kills = 0;
        while !stopped.load(SeqCst) {
            thread::sleep(every);
            server.kill();
            kills += 1;
            thread::sleep(Duration::from_millis(20));
            server = start();
        }
        // The last one serves until the end of the test.
        (kills, server)
    });
    (stop, killer)
}

/// Nothing is lost of what is written through `connect` to the server that `start` starts.
pub fn survives(
    connect: impl FnOnce() -> NbdStorage,
    start: impl Fn() -> Option<Server> + Send + 'static,
    queues: u64,
) {
    let Some(first) = start() else { return };
    drop(first);
    let (stop, killer) = kill_again_and_again(move || start().expect("it is installed"), Duration::from_millis(300));
    let storage = connect();
    let written = writes_survive(&storage, 6, queues);
    let status = storage.status();
    stop.store(true, SeqCst);
    let (kills, _server) = killer.join().unwrap();
    eprintln!("{written} blocks, {kills} kills, {status:?}");
    assert!(kills >= 5 && status.lost >= 5, "{kills} kills, {status:?}");
}

#[test]
fn nothing_is_lost_when_qemu_nbd_is_killed_with_writes_in_its_caches() {
    let place = Place::new();
    let (socket, image) = (place.path("socket"), place.path("qcow2"));
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&image)
        .arg("16M")
        .status();
    if made.is_err() {
        return crate::skip::skipped("qemu-img is not installed");
    }
    let at = socket.clone();
    survives(
        || connect(&socket, "").unwrap(),
        move || qemu_nbd(&at, &image, &["-f", "qcow2"]),
        4,
    );
}

#[test]
fn nothing_is_lost_when_nbdkit_is_killed() {
    let place = Place::new();
    let (socket, file) = (place.path("socket"), place.file("disk", 16 << 20));
    let at = socket.clone();
    survives(
        || connect(&socket, "").unwrap(),
        move || nbdkit(&at, &["--filter=delay", "file", file.to_str().unwrap(), "wdelay=1ms"]),
        2,
    );
}

#[test]
fn what_a_server_forgets_is_written_again_before_the_flush_that_vouches_for_it() {
    // A server that keeps everything in memory, and so loses all of it.
    let place = Place::new();
    let socket = place.path("socket");
    let memory = ["memory", "8M"];
    let Some(mut server) = nbdkit(&socket, &memory) else {
        return;
    };
    let clock = clock();
    let storage = connect(&socket, "").unwrap();
    let mut driver = Driver::open(&storage, &clock);
    driver.write(4096, &pattern(1, 100_000)).unwrap();
    driver.write(8192, &pattern(2, 512)).unwrap();
    driver.zeroes(12_288, 1024, true).unwrap();
    let mut expected = pattern(1, 100_000);
    expected[4096..4608].copy_from_slice(&pattern(2, 512));
    expected[8192..9216].fill(0);
    server.kill();
    let Some(mut server) = nbdkit(&socket, &memory) else {
        return;
    };
    assert!(driver.read(4096, 100_000).unwrap() == expected);
    driver.flush().unwrap();
    assert!(storage.status().rewritten >= 3, "{:?}", storage.status());
    // What was flushed is the server's.
    server.kill();
    let Some(_server) = nbdkit(&socket, &memory) else {
        return;
    };
    assert!(driver.read(4096, 100_000).unwrap().iter().all(|&byte| byte == 0));
    driver.flush().unwrap();
}

#[test]
fn without_a_memory_the_next_flush_fails_once() {
    let place = Place::new();
    let socket = place.path("socket");
    let Some(mut server) = nbdkit(&socket, &["memory", "8M"]) else {
        return;
    };
    let clock = clock();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let options = NbdOptions { remember: 0, ..hasty() };
    let storage = NbdStorage::connect(&uri.parse().unwrap(), options, clock.clone()).unwrap();
    let mut driver = Driver::open(&storage, &clock);
    driver.write(0, &[1; 512]).unwrap();
    driver.flush().unwrap();
    driver.write(0, &[2; 512]).unwrap();
    server.kill();
    let Some(_server) = nbdkit(&socket, &["memory", "8M"]) else {
        return;
    };
    driver.read(0, 512).unwrap();
    let error = driver.flush().expect_err("something may be lost").to_string();
    assert!(error.contains("may be lost"), "{error}");
    driver.flush().unwrap();
}

#[test]
fn memory_that_is_full_is_emptied_by_flushes_that_nobody_asked_for() {
    let place = Place::new();
    let (socket, log) = (place.path("socket"), place.path("log"));
    let logfile = format!("logfile={}", log.display());
    let Some(_server) = nbdkit(&socket, &["--filter=log", "memory", "8M", &logfile]) else {
        return;
    };
    let clock = clock();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let options = NbdOptions {
        remember: 256 * 1024,
        ..hasty()
    };
    let storage = NbdStorage::connect(&uri.parse().unwrap(), options, clock.clone()).unwrap();
    let mut driver = Driver::open(&storage, &clock);
    let tags: Vec<_> = (0..64_u64)
        .map(|block| {
            let offset = block * 65536;
            driver.submit(
                Operation::Write { offset, fua: false },
                Buffers::from(&pattern(block, 65536)[..]),
            )
        })
        .collect();
    for _ in &tags {
        assert!(matches!(driver.next().outcome, Outcome::Done(Ok(65536))));
    }
    // One that is larger than all the memory goes alone.
    driver.write(0, &pattern(99, 1 << 20)).unwrap();
    assert!(driver.read(0, 1 << 20).unwrap() == pattern(99, 1 << 20));
    let flushes = fs::read_to_string(&log).unwrap().matches(" Flush").count();
    assert!(flushes >= 8, "{flushes} flushes");
}

#[test]
fn a_server_that_does_not_come_back_is_given_up_and_a_cancel_waits_for_none() {
    let place = Place::new();
    let socket = place.path("socket");
    let Some(mut server) = nbdkit(&socket, &["memory", "8M"]) else {
        return;
    };
    let clock = clock();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let options = NbdOptions {
        give_up: Some(Duration::from_millis(300)),
        ..hasty()
    };
    let storage = NbdStorage::connect(&uri.parse().unwrap(), options, clock.clone()).unwrap();
    let mut driver = Driver::open(&storage, &clock);
    driver.write(0, &[1; 512]).unwrap();
    server.kill();
    let begun = Instant::now();
    let error = driver.read(0, 512).expect_err("there is no server");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    driver.submit(Operation::Write { offset: 0, fua: false }, Buffers::from(&[2; 512][..]));
    driver.round();
    driver.cancel();
    assert!(matches!(driver.next().outcome, Outcome::Canceled));
    // It is back, and so is the disk.
    let Some(_server) = nbdkit(&socket, &["memory", "8M"]) else {
        return;
    };
    assert_eq!(driver.read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn a_request_that_takes_too_long_is_sent_again_on_another_connection() {
    let place = Place::new();
    let (socket, once) = (place.path("socket"), place.path("once"));
    // The first read hangs.
    let script = format!(
        "if mkdir {} 2>/dev/null; then sleep 20; fi; dd if=/dev/zero bs=$3 count=1 2>/dev/null",
        once.display()
    );
    let pread = format!("pread={script}");
    let Some(_server) = nbdkit(
        &socket,
        &["eval", "get_size=echo 1M", "thread_model=echo parallel", &pread],
    ) else {
        return;
    };
    let clock = clock();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let options = NbdOptions {
        request_timeout: Duration::from_millis(500),
        ..hasty()
    };
    let storage = NbdStorage::connect(&uri.parse().unwrap(), options, clock.clone()).unwrap();
    let mut driver = Driver::open(&storage, &clock);
    assert_eq!(driver.read(0, 512).unwrap(), [0; 512]);
    let status = storage.status();
    assert_eq!((status.timed_out, status.resent, status.lost), (1, 1, 1));
}
