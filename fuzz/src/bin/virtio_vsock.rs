//! A socket device between a driver that sends whatever it likes and a host side that answers whatever it likes: the device stays
//! within its bounds, says nothing that is no packet, and can be saved at any time.
#![no_main]

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use arbitrary::Arbitrary;
use devisor::{
    time::ManualClock,
    virtio::{
        QueueIndex, VirtioDevice, Wait,
        vsock::{
            Boundary, Direction, Host, Incoming, Ready, Received, SocketKind, Stream, Token, Vsock, VsockOptions, Waker,
        },
    },
};
use devisor_fuzz::machine::{Bus, Machine, NEEDS_RESET};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

const RX: u16 = 0;
const TX: u16 = 1;
const EVENT: u16 = 2;
const CONNECTIONS: usize = 4;
const BUF_ALLOC: u32 = 8192;

/// How the host side answers a call.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Answer {
    Block,
    Fail,
    End,
    /// So much, which may be more than there is room for.
    Some {
        len: u16,
        boundary: u8,
    },
    All {
        boundary: u8,
    },
}

#[derive(Arbitrary, Debug)]
enum Step {
    Packet {
        guest_port: u8,
        host_port: u8,
        op: u8,
        kind: u8,
        len: u16,
        data: u16,
        flags: u8,
        buf_alloc: u16,
        fwd_cnt: u16,
        odd: u8,
    },
    /// One that answers what was heard last.
    Answer {
        op: u8,
        data: u16,
        flags: u8,
    },
    Room {
        queue: u8,
        len: u16,
    },
    /// The host side asks for a connection.
    Ask {
        port: u8,
        seqpacket: bool,
    },
    Answers(Vec<Answer>),
    Ready {
        token: u8,
        readable: bool,
        writable: bool,
    },
    Run,
    Advance(u16),
    Memory {
        address: u32,
        value: u64,
    },
    Kick(u8),
    Reset {
        features: u8,
    },
    Pause,
    Resume,
    Move,
}

#[derive(Default)]
struct Script {
    answers: VecDeque<Answer>,
    asked: VecDeque<(u32, SocketKind)>,
    ready: Vec<(Token, Ready)>,
    waker: Option<Waker>,
}

#[derive(Clone, Default)]
struct Liar(Arc<Mutex<Script>>);

impl Liar {
    fn next(&self) -> Answer {
        self.0.lock().unwrap().answers.pop_front().unwrap_or(Answer::Block)
    }
}

fn boundary(number: u8) -> Boundary {
    match number % 3 {
        0 => Boundary::None,
        1 => Boundary::Message,
        _ => Boundary::Record,
    }
}

impl Host for Liar {
    fn attach(&self, waker: Waker) {
        self.0.lock().unwrap().waker = Some(waker);
    }

    fn connect(&self, _: u32, _: u32, _: SocketKind, _: Token) -> io::Result<Box<dyn Stream>> {
        match self.next() {
            Answer::Fail => Err(io::Error::other("no")),
            Answer::End => Err(io::ErrorKind::ConnectionRefused.into()),
            _ => Ok(Box::new(self.clone())),
        }
    }

    fn accept(&self, _: Token) -> Option<Incoming> {
        let (port, kind) = self.0.lock().unwrap().asked.pop_front()?;
        let stream = Box::new(self.clone());
        Some(Incoming { port, kind, stream })
    }

    fn poll(&self, _: Duration, tell: &mut dyn FnMut(Token, Ready)) {
        let ready = std::mem::take(&mut self.0.lock().unwrap().ready);
        ready.into_iter().for_each(|(token, ready)| tell(token, ready));
    }

    fn waits(&self, _: bool, wait: &mut dyn FnMut(Wait)) {
        wait(Wait::Until(Duration::ZERO));
    }
}

impl Stream for Liar {
    fn established(&self, _: u32) -> io::Result<()> {
        match self.next() {
            Answer::Fail => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<Received> {
        let total: usize = room.iter().map(VolatileSlice::len).sum();
        match self.next() {
            Answer::Block => Err(io::ErrorKind::WouldBlock.into()),
            Answer::Fail => Err(io::Error::other("no")),
            Answer::End => Ok(Received::End),
            Answer::Some { len, boundary: end } => Ok(Received::Data(len.into(), boundary(end))),
            Answer::All { boundary: end } => Ok(Received::Data(total, boundary(end))),
        }
    }

    fn write(&self, data: &[VolatileSlice<'_>], _: Boundary) -> io::Result<usize> {
        let total: usize = data.iter().map(VolatileSlice::len).sum();
        match self.next() {
            Answer::Block | Answer::End => Err(io::ErrorKind::WouldBlock.into()),
            Answer::Fail => Err(io::ErrorKind::BrokenPipe.into()),
            Answer::Some { len, .. } => Ok(len.into()),
            Answer::All { .. } => Ok(total),
        }
    }

    fn shutdown(&self, _: Direction) {}

    fn is_gone(&self) -> bool {
        matches!(self.next(), Answer::Fail)
    }
}

struct World {
    guest: Machine<Vsock>,
    host: Liar,
    clock: Arc<ManualClock>,
    last: [u8; 44],
    /// The driver has written where it should not.
    wild: bool,
}

fn device(host: &Liar, clock: &Arc<ManualClock>) -> Vsock {
    let options = VsockOptions {
        max_connections: CONNECTIONS,
        max_resets: 3,
        buf_alloc: BUF_ALLOC,
        max_message: 5000,
        ..VsockOptions::default()
    };
    Vsock::new(host.clone(), Arc::clone(clock) as _, options).unwrap()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl World {
    fn send(&mut self, header: &[u8; 44], data: usize, pieces: u8) {
        if self.guest.free(TX) < 3 {
            return;
        }
        let payload = vec![7; data];
        match pieces % 3 {
            0 => self.guest.send(TX, &[header, &payload]),
            1 => self.guest.send(TX, &[&[header, &payload[..]].concat()]),
            _ => self.guest.send(TX, &[&header[..20], &header[20..], &payload]),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Packet {
                guest_port,
                host_port,
                op,
                kind,
                len,
                data,
                flags,
                buf_alloc,
                fwd_cnt,
                odd,
            } => {
                let mut header = [0; 44];
                header[0] = if odd == 1 { 9 } else { 3 };
                header[8] = if odd == 2 { 9 } else { 2 };
                header[16] = guest_port % 4;
                header[20] = host_port % 2;
                let data = usize::from(data % 9000);
                let len = if odd == 3 { len.into() } else { data as u32 };
                header[24..28].copy_from_slice(&len.to_le_bytes());
                header[28] = kind % 4;
                header[30] = op % 9;
                header[32] = flags;
                header[36..38].copy_from_slice(&buf_alloc.to_le_bytes());
                header[40..42].copy_from_slice(&fwd_cnt.to_le_bytes());
                self.send(&header, data, odd);
            }
            Step::Answer { op, data, flags } => {
                let mut header = self.last;
                header[..8].copy_from_slice(&self.last[8..16]);
                header[8..16].copy_from_slice(&self.last[..8]);
                header[16..20].copy_from_slice(&self.last[20..24]);
                header[20..24].copy_from_slice(&self.last[16..20]);
                let data = usize::from(data % 9000);
                header[24..28].copy_from_slice(&(data as u32).to_le_bytes());
                header[30] = op % 9;
                header[32] = flags;
                header[36..40].copy_from_slice(&0x4000_u32.to_le_bytes());
                self.send(&header, data, 0);
            }
            Step::Room { queue, len } => {
                let queue = if queue % 4 == 0 { EVENT } else { RX };
                if self.guest.free(queue) > 0 {
                    self.guest.room(queue, len.into());
                }
            }
            Step::Ask { port, seqpacket } => {
                let kind = if seqpacket {
                    SocketKind::Seqpacket
                } else {
                    SocketKind::Stream
                };
                let mut script = self.host.0.lock().unwrap();
                if script.asked.len() < 8 {
                    script.asked.push_back(((port % 4).into(), kind));
                }
            }
            Step::Answers(answers) => self.host.0.lock().unwrap().answers.extend(answers),
            Step::Ready {
                token,
                readable,
                writable,
            } => {
                let waker = {
                    let mut script = self.host.0.lock().unwrap();
                    script.ready.push((
                        Token(token.into()),
                        Ready {
                            readable,
                            writable,
                            ended: readable && writable,
                        },
                    ));
                    script.waker.clone()
                };
                waker.iter().for_each(Waker::wake);
            }
            Step::Run => self.guest.run(),
            Step::Advance(millis) => {
                self.clock.advance(Duration::from_millis(millis.into()));
                self.guest.transport().process(QueueIndex(RX));
            }
            Step::Memory { address, value } => {
                self.wild = true;
                let _ = self
                    .guest
                    .memory
                    .write_obj(value, GuestAddress((address % 0x3_0000).into()));
            }
            Step::Kick(queue) => self.guest.kick((queue % 4).into()),
            Step::Reset { features } => {
                self.resume();
                self.guest.set_status(0);
                assert_eq!(self.guest.transport().status(), 0);
                assert_eq!(self.guest.with_device(|vsock| vsock.connections()), 0);
                self.guest.memory.write_slice(&[0; 0x3_0000], GuestAddress(0)).unwrap();
                self.wild = false;
                self.guest.start((features % 8).into());
            }
            Step::Pause => self.guest.transport().pause(),
            Step::Resume => self.resume(),
            Step::Move => self.move_away(),
        }
    }

    fn resume(&mut self) {
        self.guest.transport().resume();
    }

    fn move_away(&mut self) {
        let state = self.guest.save();
        let other = device(&self.host, &self.clock);
        let mut moved = Machine::in_memory(self.guest.bus, other, Arc::clone(&self.guest.memory));
        match moved.transport().restore(&state) {
            Ok(()) => {}
            // Guest memory is part of it.
            Err(error) => {
                assert!(self.wild, "{error}");
                return self.resume();
            }
        }
        moved.take_driver(&mut self.guest);
        self.guest = moved;
        self.resume();
        assert_eq!(self.guest.with_device(|vsock| vsock.connections()), 0);
    }

    fn check(&mut self) {
        assert!(self.guest.with_device(|vsock| vsock.connections()) <= CONNECTIONS);
        let broken = self.guest.transport().status() & NEEDS_RESET != 0;
        assert!(self.wild || !broken, "{:?}", self.guest.transport().fault());
        if self.wild {
            return;
        }
        self.guest.used(TX);
        for event in self.guest.received(EVENT) {
            assert!(event.is_empty() || event == [0; 4]);
        }
        for packet in self.guest.received(RX) {
            if packet.is_empty() {
                continue;
            }
            assert!(packet.len() >= 44);
            let (len, op) = (word(&packet, 24), packet[30]);
            assert_eq!(len as usize, packet.len() - 44);
            assert!((1..=7).contains(&op) && (op == 5 || len == 0));
            assert_eq!(
                (packet[8], &packet[9..16]),
                (if op == 3 { packet[8] } else { 3 }, &[0; 7][..])
            );
            if op != 3 {
                assert_eq!(word(&packet, 36), BUF_ALLOC);
            }
            self.last.copy_from_slice(&packet[..44]);
        }
    }
}

fuzz_target!(|input: (bool, u8, Vec<Step>)| {
    let (pci, features, steps) = input;
    let (host, clock) = (Liar::default(), Arc::<ManualClock>::default());
    let bus = if pci { Bus::Pci } else { Bus::Mmio };
    let guest = Machine::new(bus, device(&host, &clock), (features % 8).into());
    assert_eq!(guest.with_device(|vsock| vsock.queue_sizes().len()), 3);
    let mut world = World {
        guest,
        host,
        clock,
        last: [0; 44],
        wild: false,
    };
    for step in steps {
        world.step(step);
        world.check();
    }
});
