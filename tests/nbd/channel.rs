//! A channel, and a thread that waits for what it waits for.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Wake, Waker},
    time::{Duration, Instant},
};

use devisor::{
    time::{Clock, HostClock},
    virtio::{
        QueueIndex, Wait,
        block::{AsyncStorage, Buffers, Channel, Ended, NbdOptions, NbdStorage, Operation, Outcome, Tag},
    },
};

/// How long a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn clock() -> Arc<dyn Clock> {
    Arc::new(HostClock::starting_at(Duration::ZERO))
}

/// Options of a client that is in a hurry.
pub fn hasty() -> NbdOptions {
    NbdOptions {
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(5),
        give_up: Some(Duration::from_secs(30)),
        back_off: Duration::from_millis(5),
        back_off_limit: Duration::from_millis(50),
        ..NbdOptions::default()
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

pub struct Driver {
    channel: Box<dyn Channel>,
    woken: Arc<Woken>,
    clock: Arc<dyn Clock>,
    next: u64,
    ended: Vec<Ended>,
}

impl Driver {
    pub fn open(storage: &NbdStorage, clock: &Arc<dyn Clock>) -> Self {
        let woken = Arc::new(Woken::default());
        let channel = storage
            .open(QueueIndex(0), Waker::from(Arc::clone(&woken)))
            .expect("a channel");
        Self {
            channel,
            woken,
            clock: Arc::clone(clock),
            next: 0,
            ended: Vec::new(),
        }
    }

    pub fn submit(&mut self, operation: Operation, buffers: Buffers) -> Tag {
        let tag = Tag(self.next);
        self.next += 1;
        self.channel.submit(tag, operation, buffers);
        tag
    }

    pub fn cancel(&mut self) {
        self.channel.cancel();
    }

    /// One round: what was submitted is committed, and what has ended is taken.
    pub fn round(&mut self) {
        let ended = &mut self.ended;
        self.channel.reap(&mut |one| ended.push(one));
        self.channel.commit();
        self.channel.reap(&mut |one| ended.push(one));
    }

    pub fn waits(&mut self) -> Vec<Wait> {
        let mut waits = Vec::new();
        self.channel.waits(&mut |wait| waits.push(wait));
        waits
    }

    /// Waits on this thread for what the channel waits for, but for so long at most.
    pub fn wait(&mut self, most: Duration) {
        let waits = self.waits();
        if self.woken.0.swap(false, SeqCst) {
            return;
        }
        let mut polled = Vec::new();
        // Wakers of other threads are looked for every few milliseconds.
        let mut left = most.min(Duration::from_millis(5));
        for wait in waits {
            match wait {
                Wait::Readable(fd) => polled.push((fd, libc::POLLIN)),
                Wait::Writable(fd) => polled.push((fd, libc::POLLOUT)),
                Wait::Until(time) => left = left.min(time.saturating_sub(self.clock.now())),
                _ => {}
            }
        }
        let mut polled: Vec<_> = polled
            .into_iter()
            .map(|(fd, events)| libc::pollfd { fd, events, revents: 0 })
            .collect();
        let milliseconds = left.as_micros().div_ceil(1000) as i32;
        // SAFETY: a list of that length.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, milliseconds) };
    }

    /// Goes on until one has ended.
    pub fn next(&mut self) -> Ended {
        let begun = Instant::now();
        loop {
            if !self.ended.is_empty() {
                return self.ended.remove(0);
            }
            self.round();
            if self.ended.is_empty() {
                self.wait(PATIENCE);
            }
            assert!(begun.elapsed() < PATIENCE, "nothing has ended");
        }
    }

    /// Does one operation.
    pub fn run(&mut self, operation: Operation, buffers: Buffers) -> (io::Result<u64>, Buffers) {
        let tag = self.submit(operation, buffers);
        let Ended {
            tag: ended,
            buffers,
            outcome,
        } = self.next();
        assert_eq!(tag, ended);
        match outcome {
            Outcome::Done(result) => (result, buffers),
            Outcome::Canceled => panic!("nobody has canceled it"),
        }
    }

    pub fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < len {
            let buffers = Buffers::zeroed(len - all.len(), 512);
            buffers.fill(0xee);
            let offset = offset + all.len() as u64;
            let (moved, buffers) = self.run(Operation::Read { offset }, buffers);
            let mut bytes = vec![0; moved? as usize];
            assert!(!bytes.is_empty());
            buffers.read(0, &mut bytes);
            all.extend(bytes);
        }
        Ok(all)
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_as(offset, bytes, false)
    }

    pub fn write_as(&mut self, offset: u64, bytes: &[u8], fua: bool) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let offset = offset + done as u64;
            let (moved, _) = self.run(Operation::Write { offset, fua }, Buffers::from(&bytes[done..]));
            done += moved? as usize;
        }
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.run(Operation::Flush, Buffers::default()).0.map(|_| ())
    }

    pub fn zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        let operation = Operation::WriteZeroes { offset, len, may_unmap };
        self.run(operation, Buffers::default()).0.map(|_| ())
    }

    pub fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.run(Operation::Discard { offset, len }, Buffers::default())
            .0
            .map(|_| ())
    }
}

/// Bytes that differ by where they are and by `seed`.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
