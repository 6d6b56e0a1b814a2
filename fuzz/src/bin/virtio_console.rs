//! A console device between a driver that says whatever it likes, peers that answer whatever they like, and an embedder that plugs
//! and unplugs: what the driver is told makes sense in the order in which it is told, and the device can be saved at any time.
#![no_main]

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex},
};

use arbitrary::Arbitrary;
use devisor::virtio::{
    DeviceState, QueueIndex, Wait,
    console::{Console, ConsoleOptions, Interest, News, Peer, Port, Ports, Size, Unheard},
};
use devisor_fuzz::machine::{Bus, Machine, NEEDS_RESET};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

const PORTS: u16 = 3;
const CONTROL_RX: u16 = 2;
const CONTROL_TX: u16 = 3;
const QUEUES: u16 = 2 * (PORTS + 1);

/// How a peer answers a call.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Answer {
    Block,
    Fail,
    /// So much, which may be more than there is.
    Some(u16),
    All,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Output {
        port: u8,
        len: u16,
        pieces: u8,
    },
    Room {
        queue: u8,
        len: u16,
    },
    Message {
        port: u8,
        event: u8,
        value: u8,
        len: u8,
    },
    /// What a driver does that is right.
    Obey,
    Emergency(u8),
    Answers(Vec<Answer>),
    Open(bool),
    Size(u16),
    Tell(u8),
    Plug {
        port: u8,
        kind: u8,
        name: u8,
        keep: u8,
    },
    Unplug(u8),
    Resize {
        port: u8,
        cols: u8,
    },
    Run,
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
    closed: bool,
    size: u16,
    news: Vec<News>,
}

/// All peers are this one.
#[derive(Clone, Default)]
struct Liar(Arc<Mutex<Script>>);

impl Liar {
    fn answer(&self, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
        match self.0.lock().unwrap().answers.pop_front().unwrap_or(Answer::Block) {
            Answer::Block => Err(io::ErrorKind::WouldBlock.into()),
            Answer::Fail => Err(io::Error::other("no")),
            Answer::Some(len) => Ok(len.into()),
            Answer::All => Ok(slices.iter().map(VolatileSlice::len).sum()),
        }
    }
}

impl Peer for Liar {
    fn plugged(&self, news: News) {
        let all = &mut self.0.lock().unwrap().news;
        all.push(news);
        if all.len() > 8 {
            all.remove(0);
        }
    }

    fn is_open(&self) -> bool {
        !self.0.lock().unwrap().closed
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.answer(room)
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.answer(data)
    }

    fn wait(&self, _: Interest) -> Option<Wait> {
        None
    }

    fn size(&self) -> Option<Size> {
        let cols = self.0.lock().unwrap().size;
        (cols != 0).then_some(Size { cols, rows: 1 })
    }
}

/// What the driver has been told of a port.
#[derive(Clone, Copy, Default)]
struct Told {
    there: bool,
    open: bool,
}

struct World {
    guest: Machine<Console>,
    ports: Ports,
    /// What the embedder has plugged in, to plug it in elsewhere.
    plugged: [Option<Port>; PORTS as usize],
    peer: Liar,
    told: [Told; PORTS as usize],
    /// The driver has written where it should not.
    wild: bool,
}

fn device() -> (Console, Ports) {
    let options = ConsoleOptions {
        max_ports: Some(PORTS),
        size: Some(Size { cols: 80, rows: 25 }),
        ..ConsoleOptions::default()
    };
    let console = Console::new(options).unwrap();
    let ports = console.ports();
    (console, ports)
}

fn tx(port: u16) -> u16 {
    if port == 0 { 1 } else { 2 * port + 3 }
}

impl World {
    fn say(&mut self, bytes: &[u8]) {
        if self.guest.free(CONTROL_TX) >= 3 {
            self.guest.send(CONTROL_TX, &[bytes]);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Output { port, len, pieces } => {
                let queue = tx(u16::from(port) % PORTS);
                if self.guest.free(queue) < 3 {
                    return;
                }
                let text = vec![b'x'; (len % 9000).into()];
                match pieces % 2 {
                    0 => self.guest.send(queue, &[&text]),
                    _ => self.guest.send(queue, &[&text[..text.len() / 2], &text]),
                }
            }
            Step::Room { queue, len } => {
                let queue = u16::from(queue) % QUEUES;
                if self.guest.free(queue) > 0 {
                    self.guest.room(queue, len.into());
                }
            }
            Step::Message {
                port,
                event,
                value,
                len,
            } => {
                let mut bytes = [0; 12];
                bytes[0] = port % 4;
                bytes[4] = event % 9;
                bytes[6] = value % 3;
                self.say(&bytes[..usize::from(len).min(12)]);
            }
            Step::Obey => {
                self.say(&[0, 0, 0, 0, 0, 0, 1, 0]);
                for port in 0..PORTS as u8 {
                    self.say(&[port, 0, 0, 0, 3, 0, 1, 0]);
                    self.say(&[port, 0, 0, 0, 6, 0, 1, 0]);
                }
            }
            Step::Emergency(byte) => self.guest.write_config(8, &[byte, 0, 0, 0]),
            Step::Answers(answers) => self.peer.0.lock().unwrap().answers.extend(answers),
            Step::Open(open) => self.peer.0.lock().unwrap().closed = !open,
            Step::Size(size) => self.peer.0.lock().unwrap().size = size,
            Step::Tell(which) => {
                let news = self.peer.0.lock().unwrap().news.get(usize::from(which % 8)).cloned();
                news.iter().for_each(News::tell);
            }
            Step::Plug { port, kind, name, keep } => {
                let index = u16::from(port) % PORTS;
                let name = ["", "a", "agent"][usize::from(name % 3)];
                let mut port = Port::generic(name, self.peer.clone());
                if kind % 2 == 0 {
                    port = Port {
                        name: name.into(),
                        ..Port::console(self.peer.clone())
                    };
                }
                port.unheard = match keep % 4 {
                    0 => Unheard::Wait,
                    1 => Unheard::Keep(0),
                    _ => Unheard::Keep(usize::from(keep) * 16),
                };
                if self.ports.plug(index, port.clone()).is_ok() {
                    self.plugged[usize::from(index)] = Some(port);
                }
            }
            Step::Unplug(port) => {
                let index = u16::from(port) % PORTS;
                if self.ports.unplug(index).is_ok() {
                    self.plugged[usize::from(index)] = None;
                }
            }
            Step::Resize { port, cols } => {
                let size = Size {
                    cols: cols.into(),
                    rows: 1,
                };
                self.ports.resize(u16::from(port) % PORTS, size).unwrap();
            }
            Step::Run => self.guest.run(),
            Step::Memory { address, value } => {
                self.wild = true;
                let _ = self
                    .guest
                    .memory
                    .write_obj(value, GuestAddress((address % 0x4_0000).into()));
            }
            Step::Kick(queue) => self.guest.kick((queue % 16).into()),
            Step::Reset { features } => {
                self.guest.transport().resume();
                self.guest.set_status(0);
                assert_eq!(self.guest.transport().status(), 0);
                self.told = Default::default();
                self.guest.memory.write_slice(&[0; 0x4_0000], GuestAddress(0)).unwrap();
                self.wild = false;
                self.guest.start((features % 8).into());
            }
            Step::Pause => self.guest.transport().pause(),
            Step::Resume => self.guest.transport().resume(),
            Step::Move => self.move_away(),
        }
    }

    fn move_away(&mut self) {
        let state = self.guest.save();
        let (other, ports) = device();
        for (index, port) in (0..).zip(&self.plugged) {
            if let Some(port) = port {
                ports.plug(index, port.clone()).unwrap();
            }
        }
        let mut moved = Machine::in_memory(self.guest.bus, other, Arc::clone(&self.guest.memory));
        if let Err(error) = moved.transport().restore(&state) {
            // Guest memory is part of it.
            assert!(self.wild, "{error}");
            return self.guest.transport().resume();
        }
        moved.take_driver(&mut self.guest);
        if !self.wild {
            let DeviceState::Console(there) = moved.transport().save().unwrap().device else {
                unreachable!("it is a console")
            };
            assert_eq!(DeviceState::Console(there), state.device);
        }
        (self.guest, self.ports) = (moved, ports);
        self.guest.transport().resume();
    }

    fn check(&mut self) {
        let broken = self.guest.transport().status() & NEEDS_RESET != 0;
        assert!(self.wild || !broken, "{:?}", self.guest.transport().fault());
        if self.wild {
            return;
        }
        for queue in (0..QUEUES).filter(|queue| *queue != CONTROL_RX) {
            self.guest.used(queue);
        }
        for message in self.guest.received(CONTROL_RX) {
            if message.is_empty() {
                continue;
            }
            assert!(message.len() >= 8 && message[1..4] == [0; 3]);
            let told = &mut self.told[usize::from(message[0])];
            match (message[4], message[6]) {
                (1, _) => {
                    assert!(!told.there, "a port that exists");
                    told.there = true;
                }
                (2, _) => {
                    assert!(told.there, "a port that was never there");
                    *told = Told::default();
                }
                (6, open) => {
                    assert_ne!(told.open, open == 1, "told twice");
                    told.open = open == 1;
                }
                (4 | 5 | 7, _) => assert!(told.there),
                other => panic!("{other:?}"),
            }
        }
        assert!(self.guest.transport().queue_counters(QueueIndex(0)).is_some());
    }
}

fuzz_target!(|input: (bool, u8, Vec<Step>)| {
    let (pci, features, steps) = input;
    let (console, ports) = device();
    let bus = if pci { Bus::Pci } else { Bus::Mmio };
    let mut world = World {
        guest: Machine::new(bus, console, (features % 8).into()),
        ports,
        plugged: Default::default(),
        peer: Liar::default(),
        told: Default::default(),
        wild: false,
    };
    for step in steps {
        world.step(step);
        world.check();
    }
});
