//! A hostile front end: any bytes on the socket, cut anywhere, with any descriptors; or requests that are nearly right. Nothing panics, no
//! descriptor of it is left when the connection has ended, and the device takes another.
#![no_main]

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsRawFd, FromRawFd, RawFd},
        unix::net::UnixStream,
    },
};

use arbitrary::Arbitrary;
use devisor::virtio::{
    QueueIndex, VirtioTransport,
    block::{Block, BlockOptions, MemoryStorage},
    transport::{
        TransportOptions,
        vhost_user::{VhostUser, VhostUserOptions},
    },
};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Any bytes, with so many descriptors.
    Bytes(Vec<u8>, u8),
    /// A header that is sound.
    Request {
        request: u8,
        needs_reply: bool,
        payload: Vec<u8>,
        descriptors: u8,
    },
    /// A number, as most requests have.
    Number(u8, u64, u8),
    /// A region, near what is right.
    Table {
        regions: Vec<(u16, u16, u16, u8)>,
        descriptors: u8,
    },
    Ring {
        index: u8,
        size: u16,
        base: u32,
        areas: [u16; 3],
    },
    /// Features that there are, and all protocol features.
    Agree {
        packed: bool,
        translated: bool,
        logs: bool,
    },
    /// What an IOMMU does; and the channel on which it is asked.
    Translation {
        page: u8,
        pages: u8,
        user: u16,
        access: u8,
        kind: u8,
        channel: bool,
    },
    /// A state, to or from the device.
    State {
        loads: bool,
        bytes: Vec<u8>,
        whole: bool,
    },
    /// A table of what is in flight, anywhere in memory.
    Inflight {
        at: u16,
        queues: u8,
        size: u8,
    },
    /// What is in the memory of the front end.
    Memory(u16, Vec<u8>),
    Kick,
    Serve(u8),
    Leave,
}

const LEN: u64 = 1 << 18;
const USER: u64 = 1 << 40;

fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = [request, flags, payload.len() as u32];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend(payload);
    bytes
}

fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[RawFd]) {
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    #[repr(align(8))]
    struct Control([u8; 256]);
    let mut control = Control([0; 256]);
    // SAFETY: the header leads to what outlives the call, and the control message fits.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        if !descriptors.is_empty() {
            let len = size_of_val(descriptors) as u32;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(len) as _;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(len) as _;
            std::ptr::copy_nonoverlapping(descriptors.as_ptr(), libc::CMSG_DATA(message).cast(), descriptors.len());
        }
        libc::sendmsg(
            socket.as_raw_fd(),
            &raw const header,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        );
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

struct Front {
    device: VhostUser<Block>,
    socket: UnixStream,
    memory: File,
    event: File,
}

impl Front {
    fn new() -> Self {
        let disk = Block::new(MemoryStorage::new(1 << 16), BlockOptions::default()).unwrap();
        let options = VhostUserOptions {
            transport: TransportOptions {
                packed: true,
                ..TransportOptions::default()
            },
            max_translations: 8,
            ..VhostUserOptions::default()
        };
        let device = VhostUser::new(disk, options).unwrap();
        // SAFETY: two new descriptors.
        let (memory, event) = unsafe {
            (
                File::from_raw_fd(libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC)),
                File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)),
            )
        };
        memory.set_len(LEN).unwrap();
        let (socket, theirs) = UnixStream::pair().unwrap();
        device.connect(theirs).unwrap();
        Self {
            device,
            socket,
            memory,
            event,
        }
    }

    /// Files and events in turn.
    fn descriptors(&self, count: u8) -> Vec<RawFd> {
        let all = [self.memory.as_raw_fd(), self.event.as_raw_fd()];
        (0..count % 12).map(|at| all[usize::from(at) % 2]).collect()
    }

    fn pump(&mut self) {
        for _ in 0..100 {
            match self.device.serve_connection() {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => break,
            }
        }
        if !self.device.is_connected() {
            let (socket, theirs) = UnixStream::pair().unwrap();
            self.socket = socket;
            self.device.connect(theirs).unwrap();
        }
    }

    fn step(&mut self, step: Step) {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        match step {
            Step::Bytes(bytes, count) => send(&self.socket, &bytes, &self.descriptors(count)),
            Step::Request {
                request,
                needs_reply,
                payload,
                descriptors,
            } => {
                let flags = if needs_reply { 9 } else { 1 };
                let bytes = message((request % 46).into(), flags, &payload);
                send(&self.socket, &bytes, &self.descriptors(descriptors));
            }
            Step::Number(request, number, count) => {
                let bytes = message((request % 46).into(), 1, &words(&[number]));
                send(&self.socket, &bytes, &self.descriptors(count));
            }
            Step::Table { regions, descriptors } => {
                let mut payload = words(&[(regions.len() % 10) as u64]);
                for (guest, size, user, offset) in regions.iter().take(9) {
                    let pages = [*guest, *size, *user, (*offset).into()].map(|page| u64::from(page) << 10);
                    payload.extend(words(&[pages[0], pages[1], USER + pages[2], pages[3]]));
                }
                let files = vec![self.memory.as_raw_fd(); usize::from(descriptors % 10)];
                send(&self.socket, &message(5, 1, &payload), &files);
            }
            Step::Ring {
                index,
                size,
                base,
                areas,
            } => {
                let index = u64::from(index % 3);
                let area = |at: usize| USER + (u64::from(areas[at]) << 2);
                let address = words(&[index, area(0), area(1), area(2), 0]);
                for (request, payload) in [
                    (8, words(&[index | u64::from(size) << 32])),
                    (10, words(&[index | u64::from(base) << 32])),
                    (9, address),
                ] {
                    send(&self.socket, &message(request, 1, &payload), &[]);
                }
                let event = [self.event.as_raw_fd()];
                for request in [13, 12] {
                    send(&self.socket, &message(request, 1, &words(&[index])), &event);
                }
                send(&self.socket, &message(18, 1, &words(&[index | 1 << 32])), &[]);
            }
            Step::Agree {
                packed,
                translated,
                logs,
            } => {
                let bits = [(packed, 34), (translated, 33), (logs, 26), (true, 30), (true, 32)];
                let features = bits.iter().fold(0, |all, &(set, bit)| all | u64::from(set) << bit);
                // MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS, DEVICE_STATE.
                let protocol = [0, 1, 3, 5, 9, 12, 13, 15, 16, 19]
                    .iter()
                    .fold(0u64, |all, bit| all | 1 << bit);
                send(&self.socket, &message(16, 1, &words(&[protocol])), &[]);
                send(&self.socket, &message(2, 1, &words(&[features])), &[]);
            }
            Step::Translation {
                page,
                pages,
                user,
                access,
                kind,
                channel,
            } => {
                let (address, size) = (USER + (u64::from(page) << 12), u64::from(pages) << 12);
                let mut payload = words(&[address, size, USER + (u64::from(user) << 10)]);
                payload.extend([access % 5, kind % 6, 0, 0, 0, 0, 0, 0]);
                send(&self.socket, &message(22, 9, &payload), &[]);
                if channel {
                    let (_ours, theirs) = UnixStream::pair().unwrap();
                    send(&self.socket, &message(21, 1, &[]), &[theirs.as_raw_fd()]);
                }
            }
            Step::State { loads, bytes, whole } => {
                let mut ends = [0; 2];
                // SAFETY: there is room for two descriptors, which are new.
                let [read, write] = unsafe {
                    assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK), 0);
                    ends.map(|end| File::from_raw_fd(end))
                };
                let mut state = b"devisor\0\x01\0\x03\0".to_vec();
                state.extend((bytes.len() as u32).to_le_bytes());
                if !whole {
                    state.clear();
                }
                state.extend(&bytes);
                let _ = (&write).write(&state);
                let end = if loads { &read } else { &write };
                send(
                    &self.socket,
                    &message(42, 1, &words(&[u64::from(loads)])),
                    &[end.as_raw_fd()],
                );
                drop((read, write));
                self.pump();
                send(&self.socket, &message(43, 1, &[]), &[]);
            }
            Step::Inflight { at, queues, size } => {
                let sizes = u64::from(queues % 3) | u64::from(size) << 16;
                let payload = words(&[LEN / 2, u64::from(at), sizes]);
                send(&self.socket, &message(32, 1, &payload), &[self.memory.as_raw_fd()]);
            }
            Step::Memory(at, bytes) => {
                let _ = std::os::unix::fs::FileExt::write_all_at(&self.memory, &bytes, u64::from(at) << 2);
                let _ = self.memory.set_len(LEN);
            }
            Step::Kick => _ = (&self.event).write(&1u64.to_ne_bytes()),
            Step::Serve(queue) => {
                for _ in 0..4 {
                    self.device.serve(QueueIndex((queue % 3).into()));
                }
            }
            Step::Leave => {
                let (socket, _) = UnixStream::pair().unwrap();
                self.socket = socket;
            }
        }
        self.pump();
    }
}

/// A state goes through a pipe, whose other end may be closed: that is an error where the runtime of a Rust program has begun, which it
/// has not here.
fn ignore_broken_pipes() {
    // SAFETY: it changes what the signal does, before any other thread is there.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

fuzz_target!(init: ignore_broken_pipes(), |steps: Vec<Step>| {
    let before = open_descriptors();
    let mut front = Front::new();
    steps.into_iter().take(100).for_each(|step| front.step(step));
    front.device.disconnect();
    assert!(front.device.connection_waits().is_empty());
    drop(front);
    assert_eq!(open_descriptors(), before, "a descriptor has leaked");
});
