//! Polled rings where the device has no queue for that: some file systems end polled writes all the same, and refuse polled reads.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::OpenOptionsExt,
    },
    path::PathBuf,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    super::{Buffers, Ended, Operation, Outcome, Tag, file::tests::folder_past_memory},
    channel::Ring,
    *,
};
use crate::virtio::{QueueIndex, Wait};

const BLOCK: usize = 4096;
const BLOCKS: usize = 64;

struct Rig {
    path: PathBuf,
    shared: Arc<Shared>,
    ring: Ring,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Rig {
    /// `None` where this cannot be tried.
    fn new(poll_submissions: Option<Duration>) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder_past_memory().join(format!("devisor-polled-{}-{number}", process::id()));
        fs::write(&path, vec![0x11; BLOCKS * BLOCK]).expect("room");
        File::open(&path)
            .and_then(|file| file.sync_all())
            .expect("it is written");
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_DIRECT);
        let file = options
            .open(&path)
            .and_then(|file| FileStorage::new(file).map_err(io::Error::other));
        let options = UringOptions {
            poll_submissions,
            poll_completions: true,
            ..UringOptions::default()
        };
        let opened = file.and_then(|file| {
            let shared = Arc::new(Shared {
                file,
                options,
                gate: Gate::default(),
                seats: Seats::default(),
                status: Mutex::default(),
            });
            let ring = Ring::new(Arc::clone(&shared), QueueIndex(0), Waker::noop().clone())?;
            Ok((shared, ring))
        });
        match opened {
            Ok((shared, ring)) => Some(Self { path, shared, ring }),
            Err(error) => {
                let _ = fs::remove_file(&path);
                println!("skipped: no polled io_uring, or no direct I/O: {error}");
                None
            }
        }
    }

    fn submit(&mut self, tag: u64, operation: Operation, value: u8) {
        let buffers = match operation.is_transfer() {
            true => Buffers::zeroed(BLOCK, BLOCK),
            false => Buffers::default(),
        };
        buffers.fill(value);
        self.ring.submit(Tag(tag), operation, buffers);
    }

    fn waits(&mut self) -> Vec<Wait> {
        let mut waits = Vec::new();
        self.ring.waits(&mut |wait| waits.push(wait));
        waits
    }

    /// As an event loop does, until `count` have ended.
    fn end(&mut self, count: usize) -> Vec<Ended> {
        let mut all = Vec::new();
        self.ring.commit();
        while all.len() < count {
            self.ring.reap(&mut |ended| all.push(ended));
            let waits = self.waits();
            assert!(
                all.len() == count || !waits.is_empty(),
                "what is under way is waited for"
            );
            let descriptors = waits.iter().filter_map(|wait| match *wait {
                Wait::Readable(descriptor) => Some(libc::pollfd {
                    fd: descriptor,
                    events: libc::POLLIN,
                    revents: 0,
                }),
                _ => None,
            });
            let mut polled: Vec<_> = descriptors.collect();
            if !waits.is_empty() && polled.len() == waits.len() {
                // SAFETY: as many structures as are told.
                let there = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, 20_000) };
                assert!(there > 0, "it ends, and the descriptor tells");
            }
        }
        assert_eq!(all.len(), count);
        all
    }

    /// How many were not polled for.
    fn unpolled(&self) -> u64 {
        lock(&self.shared.status).unpolled
    }
}

fn write(block: usize) -> Operation {
    Operation::Write {
        offset: (block * BLOCK) as u64,
        fua: false,
    }
}

fn read(block: usize) -> Operation {
    Operation::Read {
        offset: (block * BLOCK) as u64,
    }
}

/// Writes all blocks, and reads them, by whichever way the host lets each go.
fn whatever_the_host_polls_for_is_done(poll_submissions: Option<Duration>) {
    let Some(mut rig) = Rig::new(poll_submissions) else {
        return;
    };
    (0..BLOCKS).for_each(|block| rig.submit(block as u64, write(block), block as u8));
    let mut ended = rig.end(BLOCKS);
    ended.sort_by_key(|ended| ended.tag);
    for (
        tag,
        Ended {
            tag: Tag(was), outcome, ..
        },
    ) in (0..).zip(ended)
    {
        assert!(
            was == tag && matches!(outcome, Outcome::Done(Ok(4096))),
            "{was}: {outcome:?}"
        );
    }
    if rig.unpolled() == BLOCKS as u64 {
        println!("skipped: this host polls for no writes either");
    }
    let before = rig.unpolled();
    assert_eq!(rig.waits(), [], "nothing is under way");
    (0..BLOCKS).for_each(|block| rig.submit(block as u64, read(block), 0xee));
    for Ended {
        tag: Tag(tag),
        buffers,
        outcome,
    } in rig.end(BLOCKS)
    {
        assert!(matches!(outcome, Outcome::Done(Ok(4096))), "{tag}: {outcome:?}");
        let mut data = [0; BLOCK];
        buffers.read(0, &mut data);
        assert_eq!(data, [tag as u8; BLOCK]);
    }
    assert_eq!(rig.waits(), []);
    // What was tried beforehand is what comes of it.
    let refused = lane::try_polling(&rig.shared.file, &rig.shared.options).is_err();
    assert_eq!(rig.unpolled() - before, if refused { BLOCKS as u64 } else { 0 });
    println!("{} reads were polled for", if refused { "no" } else { "all" });
}

#[test]
fn who_serves_looks_for_what_has_ended() {
    whatever_the_host_polls_for_is_done(None);
}

#[test]
fn the_kernels_thread_looks_for_what_has_ended_and_the_descriptor_tells() {
    whatever_the_host_polls_for_is_done(Some(Duration::from_millis(5)));
}

#[test]
fn what_cannot_be_polled_for_goes_another_way_beside_what_is() {
    let Some(mut rig) = Rig::new(None) else { return };
    (0..8).for_each(|block| rig.submit(block as u64, write(block), 7));
    rig.submit(100, Operation::Flush, 0);
    rig.submit(
        101,
        Operation::Write {
            offset: (9 * BLOCK) as u64,
            fua: true,
        },
        9,
    );
    let (offset, len) = ((20 * BLOCK) as u64, (3 * BLOCK) as u64);
    rig.submit(
        102,
        Operation::WriteZeroes {
            offset,
            len,
            may_unmap: false,
        },
        0,
    );
    rig.submit(103, Operation::Discard { offset: 40 * 4096, len }, 0);
    rig.ring.commit();
    let waits = rig.waits();
    assert!(waits.contains(&Wait::Until(Duration::ZERO)), "{waits:?}");
    assert!(waits.iter().any(|wait| matches!(wait, Wait::Readable(_))), "{waits:?}");
    for Ended { tag, outcome, .. } in rig.end(12) {
        assert!(matches!(outcome, Outcome::Done(Ok(_))), "{tag:?}: {outcome:?}");
    }
    let now = fs::read(&rig.path).expect("it is there");
    assert_eq!(now[..8 * BLOCK], [7; 8 * BLOCK]);
    assert_eq!(now[9 * BLOCK..10 * BLOCK], [9; BLOCK]);
    assert_eq!(now[20 * BLOCK..23 * BLOCK], [0; 3 * BLOCK]);
    assert_eq!(now[19 * BLOCK..20 * BLOCK], [0x11; BLOCK]);
}

#[test]
fn a_cancel_ends_all_and_a_channel_that_goes_waits_for_the_device() {
    for _ in 0..20 {
        let Some(mut rig) = Rig::new(None) else { return };
        (0..BLOCKS).for_each(|block| rig.submit(block as u64, write(block), 3));
        rig.ring.commit();
        rig.ring.cancel();
        (0..BLOCKS).for_each(|block| rig.submit((BLOCKS + block) as u64, read(block), 0));
        let ended = rig.end(2 * BLOCKS);
        let begun = |ended: &&Ended| matches!(ended.outcome, Outcome::Done(Ok(4096)));
        assert!(
            ended.iter().filter(begun).count() >= BLOCKS,
            "what came after the cancel is done"
        );
        // Gone with requests under way.
        (0..BLOCKS).for_each(|block| rig.submit(block as u64, write(block), 4));
        rig.ring.commit();
    }
}

#[test]
fn a_storage_says_beforehand_that_it_cannot_poll() {
    let Some(rig) = Rig::new(None) else { return };
    let options = rig.shared.options;
    let cached = FileStorage::open(&rig.path).expect("a storage");
    let error = UringStorage::new(cached, options).expect_err("it is open without O_DIRECT");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("O_DIRECT"), "{error}");
    let direct = rig.shared.file.file().try_clone().expect("a descriptor");
    let direct = FileStorage::new(direct).expect("a storage");
    match UringStorage::new(direct, options) {
        Ok(_) => println!("skipped: this host has a queue to poll"),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            assert!(error.to_string().contains("no queue for that"), "{error}");
        }
    }
}

/// Of these a file system awaits the end itself, in a thread of the kernel's, and nobody would poll meanwhile.
#[test]
fn what_is_not_in_whole_blocks_of_the_file_system_is_not_polled_for() {
    let Some(mut rig) = Rig::new(None) else { return };
    let page = Buffers::zeroed(2 * BLOCK, BLOCK);
    page.fill(5);
    let aside = page.part(512, BLOCK as u64);
    let Some((block, memory)) = rig.shared.file.direct_alignment() else {
        unreachable!("it is direct");
    };
    if memory > 512 {
        return println!("skipped: direct I/O is of memory at multiples of {memory}");
    }
    rig.ring.submit(Tag(0), write(3), aside);
    rig.ring.commit();
    assert!(matches!(rig.waits()[..], [Wait::Readable(_)]), "{:?}", rig.waits());
    rig.end(1);
    if block < BLOCK as u64 {
        let operation = Operation::Write {
            offset: block,
            fua: false,
        };
        rig.ring.submit(Tag(1), operation, page.part(0, block));
        rig.ring.commit();
        assert!(matches!(rig.waits()[..], [Wait::Readable(_)]), "{:?}", rig.waits());
        rig.end(1);
    }
    rig.submit(2, write(4), 6);
    rig.ring.commit();
    assert_eq!(rig.waits(), [Wait::Until(Duration::ZERO)]);
    rig.end(1);
    assert_eq!(
        fs::read(&rig.path).expect("it is there")[3 * BLOCK..5 * BLOCK],
        [[5; BLOCK], [6; BLOCK]].concat()
    );
}

/// Two files in memory: one that has never been opened by a name, and one in a file system.
fn files_in_memory() -> Vec<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: it is open, and nobody else's.
    let mut files = vec![unsafe { File::from_raw_fd(fd) }];
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE);
    match options.open("/dev/shm") {
        Ok(file) => files.push(file),
        Err(error) => println!("skipped: no files in /dev/shm: {error}"),
    }
    for file in &files {
        // Its last block is not whole, which nothing of it needs to be.
        file.set_len((BLOCKS * BLOCK - 512) as u64).expect("room");
    }
    files
}

fn flags(file: &File) -> i32 {
    // SAFETY: reads the flags of a descriptor that is open.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) }
}

/// Before Linux 6.6 there is no direct I/O in memory: a thread of the kernel's writes.
fn writes_at_once(file: &File) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECT);
    let known = options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).is_ok();
    if !known {
        println!("skipped: writes: this kernel knows no direct I/O in memory");
    }
    known
}

/// Nobody waits for a file in memory: what is asked of it has ended when it is submitted, and no thread of the kernel's has a part in it.
#[test]
fn what_is_asked_of_a_file_in_memory_has_ended_when_it_is_submitted() {
    const AT_A_TIME: usize = 16;
    for file in files_in_memory() {
        let before = flags(&file);
        let storage = FileStorage::new(file.try_clone().expect("a descriptor")).expect("a storage");
        let storage = match UringStorage::new(storage, UringOptions::default()) {
            Ok(storage) => storage,
            Err(error) => return println!("skipped: no io_uring: {error}"),
        };
        assert_eq!(flags(&file), before, "who shares the description has it as it was");
        if !writes_at_once(&file) {
            continue;
        }
        let mut channel = storage.open(QueueIndex(0), Waker::noop().clone()).expect("a ring");
        for round in 0..200 {
            for writes in [true, false] {
                for number in 0..AT_A_TIME {
                    let offset = (number * BLOCK + 512) as u64;
                    let operation = match writes {
                        true => Operation::Write {
                            offset,
                            fua: number % 2 != 0,
                        },
                        false => Operation::Read { offset },
                    };
                    // Aligned to nothing.
                    let all = Buffers::zeroed(BLOCK + 1, 1);
                    all.fill(if writes { round as u8 } else { 0xee });
                    channel.submit(Tag(number as u64), operation, all.part(1, BLOCK as u64));
                }
                channel.commit();
                let mut ended = 0;
                channel.reap(&mut |Ended { buffers, outcome, .. }| {
                    assert!(matches!(outcome, Outcome::Done(Ok(4096))), "{outcome:?}");
                    let mut data = [0; BLOCK];
                    buffers.read(0, &mut data);
                    assert_eq!(data, [round as u8; BLOCK]);
                    ended += 1;
                });
                assert_eq!(ended, AT_A_TIME, "round {round}, writes: {writes}");
            }
        }
    }
}
