//! A ring, as many reads or writes in it as its depth, and nothing else: waited for in the ring, or as who waits for other things as well.

use std::{fs::File, os::fd::AsRawFd, sync::Arc};

use io_uring::{IoUring, opcode, squeue, types};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{
    Side, Work,
    memory::{self, APART, DATA},
    waiter::Waiter,
};

pub struct Bare {
    work: Work,
    ring: IoUring,
    /// Where the data is.
    base: *mut u8,
    _memory: Arc<GuestMemoryMmap>,
    offsets: Box<dyn FnMut() -> u64 + Send>,
    /// Its memory is known to the kernel.
    registered: bool,
    /// By which it waits, if not in the ring.
    waiter: Option<Waiter>,
    _file: File,
}

// SAFETY: the pointer leads to memory that is kept, and is nobody else's.
unsafe impl Send for Bare {}

impl Bare {
    pub fn new(work: Work, file: File, seed: u64, registered: bool, waiter: Option<Waiter>) -> Self {
        let ring = IoUring::new(256).expect("io_uring");
        ring.submitter()
            .register_files(&[file.as_raw_fd()])
            .expect("registered");
        let memory = memory::new(1);
        let host = |address| memory.get_host_address(GuestAddress(address)).expect("in memory");
        if registered {
            let all = libc::iovec {
                iov_base: host(0).cast(),
                iov_len: APART as usize,
            };
            // SAFETY: there as long as the ring is.
            unsafe { ring.submitter().register_buffers(&[all]) }.expect("room to register memory");
        }
        Self {
            work,
            ring,
            base: host(DATA),
            _memory: memory,
            registered,
            waiter,
            offsets: Box::new(work.offsets(seed)),
            _file: file,
        }
    }

    fn entry(&mut self, slot: u64) -> squeue::Entry {
        let (len, offset) = (self.work.len, (self.offsets)());
        // SAFETY: within the memory.
        let buffer = unsafe { self.base.add(slot as usize * len as usize) };
        let file = types::Fixed(0);
        let entry = match (self.work.writes, self.registered) {
            (true, false) => opcode::Write::new(file, buffer, len).offset(offset).build(),
            (true, true) => opcode::WriteFixed::new(file, buffer, len, 0).offset(offset).build(),
            (false, false) => opcode::Read::new(file, buffer, len).offset(offset).build(),
            (false, true) => opcode::ReadFixed::new(file, buffer, len, 0).offset(offset).build(),
        };
        entry.user_data(slot)
    }

    fn push(&mut self, slot: u64) {
        let entry = self.entry(slot);
        // SAFETY: the buffer is there until its request has ended.
        unsafe { self.ring.submission().push(&entry) }.expect("room");
    }
}

impl Side for Bare {
    fn run(&mut self, requests: u32) {
        let first = requests.min(self.work.depth.into());
        (0..first).for_each(|slot| self.push(slot.into()));
        let (mut asked, mut done) = (first, 0);
        let mut ended = Vec::new();
        while done < requests {
            match &self.waiter {
                None => _ = self.ring.submit_and_wait(1).expect("submitted"),
                Some(waiter) => {
                    if !self.ring.submission().is_empty() {
                        self.ring.submit().expect("submitted");
                    }
                    if self.ring.completion().is_empty() {
                        waiter.wait(self.ring.as_raw_fd());
                    }
                }
            }
            ended.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
            for (slot, result) in ended.drain(..) {
                assert_eq!(result, self.work.len as i32);
                done += 1;
                if asked < requests {
                    asked += 1;
                    self.push(slot);
                }
            }
        }
    }
}
