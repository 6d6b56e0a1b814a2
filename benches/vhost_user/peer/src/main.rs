//! `vhost-user-peer SOCKET verify|pingpong|bare|flush|nothing|read|write SIZE DEPTH SECONDS [PID] [packed] [apart] [write]`
//!
//! A disk behind a socket, driven by libblkio's driver. `verify` writes blocks, each with bytes of its own, in any order and reads them
//! back; the others say how many requests a second there were, and how much CPU time of PID each has cost; `nothing` reads no byte.
//! `pingpong` uses no disk: two processes and two event descriptors, and with `apart` the CPUs 0 and 1. `bare` reads a file in place of a
//! socket, or writes it.

use std::{
    env, fs,
    io::{Error, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    ptr, slice,
    time::{Duration, Instant},
};

use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

/// Nanoseconds of CPU time that a process has had.
fn cpu_time(pid: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let times = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    times
        .filter_map(|times| times.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Waits for writes to a descriptor by their edges, so that nothing has to be read from it: one system call, as a guest needs none.
struct Edges(OwnedFd);

impl Edges {
    fn of(descriptor: RawFd) -> Result<Self, Error> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: 0,
        };
        // SAFETY: a new descriptor, and one structure that outlives the call.
        unsafe {
            let epoll = OwnedFd::from_raw_fd(libc::epoll_create1(0));
            match libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, descriptor, &raw mut event) {
                0 => Ok(Self(epoll)),
                _ => Err(Error::last_os_error()),
            }
        }
    }

    fn wait(&self) {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one structure.
        unsafe { libc::epoll_wait(self.0.as_raw_fd(), &raw mut event, 1, 1000) };
    }
}

/// This thread is on that CPU from here on.
fn stay_on(cpu: usize) {
    // SAFETY: one set, filled in before it is used, which outlives the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

/// `apart`: each has a CPU of its own.
fn pingpong(seconds: f64, apart: bool) -> Result<(), Error> {
    // SAFETY: two new descriptors.
    let [mut ping, mut pong] = [(); 2].map(|()| unsafe { fs::File::from_raw_fd(libc::eventfd(0, 0)) });
    // SAFETY: the child does no more than read and write.
    let child = unsafe { libc::fork() };
    let mut value = [0; 8];
    if apart {
        stay_on(usize::from(child != 0));
    }
    if child == 0 {
        loop {
            ping.read_exact(&mut value)?;
            pong.write_all(&1u64.to_ne_bytes())?;
        }
    }
    let (begun, mut count) = (Instant::now(), 0u64);
    while begun.elapsed().as_secs_f64() < seconds {
        ping.write_all(&1u64.to_ne_bytes())?;
        pong.read_exact(&mut value)?;
        count += 1;
    }
    let took = begun.elapsed();
    // SAFETY: the child that was made above.
    unsafe { libc::kill(child, libc::SIGKILL) };
    println!("pingpong {:.2} us", took.as_secs_f64() * 1e6 / count as f64);
    Ok(())
}

/// What the kernel takes to move `size` bytes between a file and memory, one request after the other: no back end can do with less.
fn bare(file: &str, size: usize, depth: usize, seconds: f64, write: bool) -> Result<(), Error> {
    let file = fs::OpenOptions::new().read(true).write(true).open(file)?;
    let blocks = file.metadata()?.len() / size as u64;
    let (mut random, mut memory) = (Random(88172645463325252), vec![1u8; size * depth]);
    let (begun, before) = (Instant::now(), cpu_time("self"));
    let mut count = 0;
    while begun.elapsed().as_secs_f64() < seconds {
        let buffer = &mut memory[count % depth * size..][..size];
        match (write, random.below(blocks) * size as u64) {
            (true, at) => file.write_all_at(buffer, at)?,
            (false, at) => file.read_exact_at(buffer, at)?,
        }
        count += 1;
    }
    let cpu = (cpu_time("self") - before) as f64 / 1e3 / count as f64;
    println!(
        "bare {} {size}: {cpu:.3} us of CPU a request",
        if write { "write" } else { "read" }
    );
    Ok(())
}

struct Disk {
    queue: VirtioBlkQueue<'static, usize>,
    transport: Box<VirtioBlkTransport>,
    calls: Edges,
    memory: *mut u8,
    size: usize,
}

impl Disk {
    fn open(socket: &str, size: usize, depth: usize, packed: bool) -> Result<Self, Error> {
        let mut features =
            VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX | VirtioFeatureFlags::RING_INDIRECT_DESC;
        features.set(VirtioFeatureFlags::RING_PACKED, packed);
        let mut transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(socket, features.bits() | 0x7fff)?);
        let len = size * depth;
        // SAFETY: a new file, mapped as long as it is.
        let (file, memory) = unsafe {
            let file = libc::memfd_create(c"buffers".as_ptr(), 0);
            libc::ftruncate(file, len as i64);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            (
                file,
                libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file, 0).cast::<u8>(),
            )
        };
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, 256)?;
        transport.map_mem_region(memory as usize, len, file, 0)?;
        let mut queue = queues.pop().ok_or_else(|| Error::other("no queue"))?;
        queue.set_used_notif_enabled(true);
        Ok(Self {
            calls: Edges::of(transport.get_completion_fd(0).as_raw_fd())?,
            queue,
            transport,
            memory,
            size,
        })
    }

    fn blocks(&self) -> Result<u64, Error> {
        Ok(u64::from(self.transport.get_config()?.capacity) * 512 / self.size as u64)
    }

    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        // SAFETY: of the mapping; no request is under way with it.
        unsafe { slice::from_raw_parts_mut(self.memory.add(slot * self.size), self.size) }
    }

    fn submit(&mut self, operation: &str, block: u64, slot: usize) -> Result<(), Error> {
        let at = block * self.size as u64;
        // SAFETY: the buffer is in a region that the back end has, for as long as there is one.
        unsafe {
            let buffer = self.memory.add(slot * self.size);
            match operation {
                "flush" => self.queue.flush(slot),
                "nothing" => self.queue.read_raw(0, buffer, 0, slot),
                "write" => self.queue.write_raw(at, buffer, self.size, slot),
                _ => self.queue.read_raw(at, buffer, self.size, slot),
            }
        }
    }

    /// Tells the device of what was submitted, and waits until something has ended.
    fn ended(&mut self, kicks: &mut u64) -> Result<Vec<usize>, Error> {
        if self.queue.avail_notif_needed() {
            *kicks += 1;
            self.transport.get_submission_notifier(0).notify()?;
        }
        loop {
            let ended: Vec<_> = self
                .queue
                .completions()
                .map(|ended| (ended.context, ended.ret))
                .collect();
            if let Some((slot, result)) = ended.iter().find(|(_, result)| *result != 0) {
                return Err(Error::other(format!("request {slot} has ended with {result}")));
            }
            if !ended.is_empty() {
                return Ok(ended.into_iter().map(|(slot, _)| slot).collect());
            }
            self.calls.wait();
        }
    }

    /// Each block once, in an order of its own, `depth` at a time.
    fn each(&mut self, operation: &str, blocks: u64, depth: usize, round: u8) -> Result<(), Error> {
        let mut random = Random(88172645463325252 + u64::from(round));
        let mut order: Vec<u64> = (0..blocks).collect();
        (1..order.len())
            .rev()
            .for_each(|at| order.swap(at, random.below(at as u64 + 1) as usize));
        let fill = |block: u64| (block as u8).wrapping_mul(31).wrapping_add(round);
        let (mut of_slot, mut free, mut kicks) = (vec![None; depth], (0..depth).collect::<Vec<_>>(), 0);
        loop {
            while let Some(slot) = free.pop() {
                let Some(block) = order.pop() else { break };
                let byte = if operation == "write" {
                    fill(block)
                } else {
                    !fill(block)
                };
                self.buffer(slot).fill(byte);
                of_slot[slot] = Some(block);
                self.submit(operation, block, slot)?;
            }
            if of_slot.iter().all(Option::is_none) {
                return Ok(());
            }
            for slot in self.ended(&mut kicks)? {
                let block: u64 = of_slot[slot].take().ok_or_else(|| Error::other("ended twice"))?;
                if self.buffer(slot).iter().any(|byte| *byte != fill(block)) {
                    return Err(Error::other(format!("block {block} has other bytes")));
                }
                free.push(slot);
            }
        }
    }
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = env::args().collect();
    let argument = |at: usize| arguments.get(at).map(String::as_str).unwrap_or("");
    let number = |at: usize| argument(at).parse::<f64>().map_err(Error::other);
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let (socket, mode, seconds) = (argument(1), argument(2), number(5)?);
    if mode == "pingpong" {
        return pingpong(seconds, has("apart"));
    }
    let (size, depth) = (number(3)? as usize, number(4)? as usize);
    if mode == "bare" {
        return bare(socket, size, depth, seconds, has("write"));
    }
    let packed = has("packed");
    let mut disk = Disk::open(socket, size, depth, packed)?;
    let blocks = disk.blocks()?;
    if mode == "verify" {
        for round in 0..3 {
            disk.each("write", blocks, depth, round)?;
            disk.each("read", blocks, depth, round)?;
        }
        println!("verified {blocks} blocks of {size} bytes, three times");
        std::process::exit(0);
    }
    let mut random = Random(88172645463325252);
    let pid = argument(6);
    for slot in 0..depth {
        disk.submit(mode, random.below(blocks), slot)?;
    }
    let (begun, before) = (Instant::now(), cpu_time(pid));
    let (mut count, mut kicks) = (0u64, 0u64);
    while begun.elapsed() < Duration::from_secs_f64(seconds) {
        for slot in disk.ended(&mut kicks)? {
            count += 1;
            disk.submit(mode, random.below(blocks), slot)?;
        }
    }
    let (took, cpu) = (begun.elapsed().as_secs_f64(), cpu_time(pid) - before);
    println!(
        "{mode} {size} x {depth} {}: {:.0} requests/s, {:.2} us a request, {:.3} us of CPU a request, {:.2} kicks a request",
        if packed { "packed" } else { "split" },
        count as f64 / took,
        took * 1e6 / count as f64,
        cpu as f64 / 1e3 / count as f64,
        kicks as f64 / count as f64
    );
    // What is under way is of no interest.
    std::process::exit(0);
}
