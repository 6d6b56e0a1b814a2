//! The NBD client: whatever a server sends, requests end once, nothing outside of their buffers is written, and nothing is kept without
//! bound.
#![no_main]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    task::Waker,
    time::Duration,
};

use arbitrary::Arbitrary;
use devisor::{
    time::ManualClock,
    virtio::{
        QueueIndex,
        block::{AsyncStorage, Buffers, Ended, NbdOptions, NbdStorage, Operation, Outcome, Tag},
    },
};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Read {
        block: u8,
        len: u8,
    },
    Write {
        block: u8,
        len: u8,
        fua: bool,
    },
    Zeroes {
        block: u8,
        len: u8,
    },
    Discard {
        block: u8,
        len: u8,
    },
    Flush,
    Round,
    Cancel,
    Pass(u16),
    /// The server has read all, and sends a chunk: for the request of so many before, its range moved by so much.
    Chunk {
        which: u8,
        done: bool,
        kind: u8,
        shift: i16,
        len: u16,
    },
    Simple {
        which: u8,
        error: u8,
    },
    Bytes(Vec<u8>),
    Close,
}

#[derive(Arbitrary, Debug)]
struct Input {
    structured: bool,
    flags: u16,
    block: u8,
    /// What servers to come greet with, instead of well.
    greeting: Option<Vec<u8>>,
    steps: Vec<Step>,
}

const SIZE: u64 = 1 << 20;

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let head = [
        &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
    ]
    .concat();
    [&head[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// All that a server says before requests: it need not know what the client says.
fn greeting(input: &Input) -> Vec<u8> {
    let export = [&[0, 0][..], &SIZE.to_be_bytes(), &input.flags.to_be_bytes()].concat();
    let block = 1_u32 << (input.block % 14);
    let blocks = [
        &[0, 3][..],
        &block.to_be_bytes(),
        &block.max(4096).to_be_bytes(),
        &65536_u32.to_be_bytes(),
    ]
    .concat();
    let structured = if input.structured { 1 } else { 1 << 31 | 1 };
    [
        b"NBDMAGICIHAVEOPT\0\x03".to_vec(),
        option_reply(8, structured, &[]),
        option_reply(7, 3, &export),
        option_reply(7, 3, &blocks),
        option_reply(7, 1, &[]),
    ]
    .concat()
}

/// The other end of the newest connection, and the headers of requests that have come there.
#[derive(Default)]
struct Server {
    socket: Option<UnixStream>,
    connections: u32,
    read: Vec<u8>,
    requests: Vec<[u8; 28]>,
}

impl Server {
    /// Reads what has come.
    fn look(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        let mut room = vec![0; 65536];
        while let Ok(count @ 1..) = socket.read(&mut room) {
            self.read.extend(&room[..count]);
        }
        while let Some(at) = self.read.windows(4).position(|magic| magic == [0x25, 0x60, 0x95, 0x13]) {
            let Some(header) = self.read.get(at..at + 28) else {
                return;
            };
            self.requests.push(header.try_into().unwrap());
            self.read.drain(..at + 28);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        if let Some(socket) = &mut self.socket {
            // What does not fit is cut off.
            let _ = socket.write(bytes);
        }
    }

    fn request(&self, which: u8) -> Option<([u8; 8], u64)> {
        let index = self.requests.len().checked_sub(1 + usize::from(which % 16))?;
        let header = self.requests[index];
        Some((
            header[8..16].try_into().unwrap(),
            u64::from_be_bytes(header[16..24].try_into().unwrap()),
        ))
    }
}

fuzz_target!(|input: Input| {
    let server = Arc::new(Mutex::new(Server::default()));
    let clock = Arc::new(ManualClock::default());
    let (well, other) = (greeting(&input), input.greeting.clone());
    let options = NbdOptions {
        give_up: Some(Duration::from_secs(100)),
        remember: 256 * 1024,
        ..NbdOptions::default()
    };
    let connect = {
        let server = Arc::clone(&server);
        move || {
            let (ours, theirs) = UnixStream::pair()?;
            theirs.set_nonblocking(true)?;
            let mut server = server.lock().unwrap();
            server.connections += 1;
            server.socket = Some(theirs);
            server.read.clear();
            server.requests.clear();
            let greeting = match &other {
                Some(other) if server.connections > 1 => other,
                _ => &well,
            };
            server.send(greeting);
            Ok(ours.into())
        }
    };
    let storage = NbdStorage::with_sockets(connect, "", options, clock.clone()).expect("it greets well at first");
    let mut channel = storage.open(QueueIndex(0), Waker::noop().clone()).unwrap();
    // Each has its place in a page of its own, and what is around that is looked at.
    let mut under_way: Vec<(Tag, Buffers)> = Vec::new();
    let mut next = 0;
    let end = |under_way: &mut Vec<(Tag, Buffers)>, ended: Vec<Ended>| {
        for one in ended {
            let index = under_way
                .iter()
                .position(|(tag, _)| *tag == one.tag)
                .expect("each ends once");
            let (_, frame) = under_way.remove(index);
            let mut edge = [0; 64];
            for at in [0, frame.len() - 64] {
                frame.read(at, &mut edge);
                assert!(edge.iter().all(|&byte| byte == 0x5a), "outside of the buffers");
            }
            if let Outcome::Done(Ok(moved)) = one.outcome {
                assert!(moved <= one.buffers.len());
            }
            // What has ended is written no more.
            frame.fill(0x5a);
        }
    };
    for step in input.steps {
        let blocks = |block: u8, len: u8| (u64::from(block) * 512, (u64::from(len) + 1) * 512);
        let operation = match &step {
            Step::Read { block, len } => {
                let (offset, len) = blocks(*block, *len);
                Some((Operation::Read { offset }, len))
            }
            Step::Write { block, len, fua } => {
                let (offset, len) = blocks(*block, *len);
                Some((Operation::Write { offset, fua: *fua }, len))
            }
            Step::Zeroes { block, len } => {
                let (offset, len) = blocks(*block, *len);
                let may_unmap = len % 1024 == 0;
                Some((Operation::WriteZeroes { offset, len, may_unmap }, 0))
            }
            Step::Discard { block, len } => {
                let (offset, len) = blocks(*block, *len);
                Some((Operation::Discard { offset, len }, 0))
            }
            Step::Flush => Some((Operation::Flush, 0)),
            _ => None,
        };
        if let Some((operation, len)) = operation
            && under_way.len() < 32
        {
            let frame = Buffers::zeroed(len as usize + 128, 64);
            frame.fill(0x5a);
            channel.submit(Tag(next), operation, frame.part(64, len));
            under_way.push((Tag(next), frame));
            next += 1;
        }
        let mut server = server.lock().unwrap();
        server.look();
        match step {
            Step::Chunk {
                which,
                done,
                kind,
                shift,
                len,
            } => {
                if let Some((cookie, offset)) = server.request(which) {
                    let offset = offset.wrapping_add_signed(i64::from(shift) * 256).to_be_bytes();
                    let payload = match kind % 6 {
                        1 => [&offset[..], &vec![9; usize::from(len)]].concat(),
                        2 => [&offset[..], &u32::from(len).to_be_bytes()].concat(),
                        3 => [&[0, 0, 0, 5][..], &len.to_be_bytes(), b"words"].concat(),
                        4 => vec![1; usize::from(len)],
                        _ => Vec::new(),
                    };
                    let number: u16 = match kind % 6 {
                        3 => 0x8001,
                        4 => u16::from(kind) << 8,
                        other => other.into(),
                    };
                    let head = [
                        &[0x66, 0x8e, 0x33, 0xef][..],
                        &u16::from(done).to_be_bytes(),
                        &number.to_be_bytes(),
                    ]
                    .concat();
                    let head = [&head[..], &cookie, &(payload.len() as u32).to_be_bytes()].concat();
                    server.send(&[head, payload].concat());
                }
            }
            Step::Simple { which, error } => {
                if let Some((cookie, _)) = server.request(which) {
                    let head = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0][..], &[error], &cookie].concat();
                    server.send(&head);
                }
            }
            Step::Bytes(bytes) => server.send(&bytes),
            Step::Close => server.socket = None,
            Step::Cancel => channel.cancel(),
            Step::Pass(milliseconds) => clock.advance(Duration::from_millis(milliseconds.into())),
            _ => {}
        }
        drop(server);
        let mut ended = Vec::new();
        channel.reap(&mut |one| ended.push(one));
        channel.commit();
        channel.reap(&mut |one| ended.push(one));
        channel.waits(&mut |_| {});
        end(&mut under_way, ended);
    }
    // A cancel ends all that is under way, once no server answers for it.
    server.lock().unwrap().socket = None;
    channel.cancel();
    for _ in 0..4 {
        let mut ended = Vec::new();
        channel.reap(&mut |one| ended.push(one));
        channel.commit();
        end(&mut under_way, ended);
        // Others may have been sent to the next server: it goes too.
        server.lock().unwrap().socket = None;
    }
    assert!(under_way.is_empty(), "{under_way:?}");
});
