//! The network device with a hostile driver: whatever is in its rings, headers and commands and whatever the network brings, no
//! memory but the buffers' is written, a used length is never more than its chain has room for, the device never asks for a
//! reset but for a broken ring, and one that was saved is taken over and goes on the same.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    virtio::{
        DeviceState, VirtioMmio, VirtioTransport,
        net::{Header, Mac, Net, NetFrame, NetOptions, Offloads, Wire},
        transport::{SavedDevice, mmio::Line},
    },
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PAIRS: u16 = 2;
const QUEUES: u16 = PAIRS * 2 + 1;
const SIZE: u16 = 8;
/// Of each queue: rings, then buffers.
const PER_QUEUE: u64 = 0x4000;
const BUFFERS: u64 = 0x1000;

#[derive(Arbitrary, Debug)]
enum Step {
    /// A driver comes up with these of the features that are offered.
    Up(u64),
    Transmit {
        pair: bool,
        header: [u8; 12],
        frame: Frame,
        cut: u8,
    },
    Buffer {
        pair: bool,
        lens: [u16; 3],
    },
    Command {
        class: u8,
        command: u8,
        data: Data,
        room: u8,
    },
    /// Any descriptors in a ring of any queue.
    Chain {
        queue: u8,
        descriptors: Vec<(u16, u16, u8, u8)>,
    },
    Incoming {
        port: bool,
        header: [u8; 12],
        frame: Frame,
        count: u8,
    },
    Outgoing(bool),
    Config(u8, u8),
    Link(bool),
    Announce,
    Again(u8),
    Run,
    Pause,
    Resume,
    Move,
    /// A state from outside.
    Restore(Vec<Change>),
    Reset,
}

/// What of a frame matters to who looks at it.
#[derive(Arbitrary, Debug)]
struct Frame {
    to: u8,
    kind: u8,
    len: u16,
    bytes: Vec<u8>,
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(self.len) % 5000];
        let to: [u8; 6] = match self.to % 4 {
            0 => [2, 0, 0, 0, 0, 1],
            1 => [0xff; 6],
            2 => [1, 0, 0, 0, 0, self.to],
            _ => [2, 0, 0, 0, 0, self.to],
        };
        let kind: [u8; 2] = [[8, 0], [0x86, 0xdd], [0x81, 0], [0x88, 0xa8]][usize::from(self.kind % 4)];
        let start = [&to[..], &[2, 0, 0, 0, 0, 9], &kind, &self.bytes].concat();
        let len = start.len().min(bytes.len());
        bytes[..len].copy_from_slice(&start[..len]);
        bytes
    }
}

/// What a command has behind its class.
#[derive(Arbitrary, Debug)]
enum Data {
    Any(Vec<u8>),
    Number(u16),
    Table(u8, u8),
    Rss {
        types: u16,
        mask: u8,
        pairs: [u8; 4],
        key: u8,
    },
}

impl Data {
    fn bytes(&self) -> Vec<u8> {
        match *self {
            Self::Any(ref bytes) => bytes.clone(),
            Self::Number(number) => number.to_le_bytes().to_vec(),
            Self::Table(unicast, multicast) => {
                let table = |first: u8, count: u8| {
                    let mut bytes = u32::from(count).to_le_bytes().to_vec();
                    (0..count).for_each(|n| bytes.extend([first, 0, 0, 0, 0, n]));
                    bytes
                };
                [table(2, unicast), table(3, multicast)].concat()
            }
            Self::Rss {
                types,
                mask,
                pairs,
                key,
            } => {
                let mut bytes = u32::from(types).to_le_bytes().to_vec();
                bytes.extend(u16::from(mask).to_le_bytes());
                let pair = |n: usize| u16::from(pairs[n % 4] % 3).to_le_bytes();
                bytes.extend(pair(0));
                (0..=usize::from(mask)).for_each(|n| bytes.extend(pair(n)));
                bytes.extend(pair(3));
                bytes.push(key);
                bytes.extend(vec![key; key.into()]);
                bytes
            }
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Change {
    Pairs(u16),
    Vlans(Vec<u16>),
    Macs(Vec<u8>),
    Mac([u8; 6]),
    Frames(u8, Vec<(u16, [u8; 12])>),
    Features(u64),
    Offloads(bool),
    Steering(u8, Vec<u16>),
    Modes(bool),
}

struct Machine {
    memory: Arc<GuestMemoryMmap>,
    wires: [Arc<Wire>; 2],
    nic: VirtioMmio<Net>,
    available: [u16; QUEUES as usize],
    paused: bool,
}

fn options() -> NetOptions {
    NetOptions {
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        pairs: PAIRS,
        queue_size: SIZE,
        control_queue_size: SIZE,
        mtu: Some(1500),
        backlog: 4,
        ..NetOptions::default()
    }
}

fn device(memory: &Arc<GuestMemoryMmap>) -> ([Arc<Wire>; 2], VirtioMmio<Net>) {
    let wires = [(); 2].map(|()| Arc::new(Wire::new(8).with_offloads(Offloads::ALL, Offloads::ALL)));
    let nic = Net::new(wires.clone(), options()).unwrap();
    let line = Line::Edge(Arc::new(NoInterrupt));
    (wires, VirtioMmio::new(nic, Arc::clone(memory), line).unwrap())
}

impl Machine {
    fn new() -> Self {
        let bytes = (u64::from(QUEUES) + 1) * PER_QUEUE;
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap());
        let (wires, nic) = device(&memory);
        Self {
            memory,
            wires,
            nic,
            available: [0; QUEUES as usize],
            paused: false,
        }
    }

    fn write(&self, register: u64, value: u32) {
        self.nic.write(register, &value.to_le_bytes());
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.nic.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn base(queue: u16) -> u64 {
        u64::from(queue + 1) * PER_QUEUE
    }

    fn up(&mut self, wanted: u64) {
        self.write(0x70, 0);
        self.available = [0; QUEUES as usize];
        let mut offered = 0;
        for sel in 0..2 {
            self.write(0x14, sel);
            offered |= u64::from(self.read(0x10)) << (32 * sel);
        }
        let accepted = wanted & offered | 1 << 32;
        self.write(0x70, 1);
        self.write(0x70, 3);
        for sel in 0..2 {
            self.write(0x24, sel);
            self.write(0x20, (accepted >> (32 * sel)) as u32);
        }
        self.write(0x70, 0xb);
        if self.read(0x70) & 8 == 0 {
            // A feature without another that it needs: the least, then.
            return self.up(wanted & (1 << 17 | 1 << 15 | 1 << 22) | 1 << 17);
        }
        (0..QUEUES).for_each(|queue| self.set_up(queue));
        self.write(0x70, 0xf);
    }

    fn set_up(&mut self, queue: u16) {
        let base = Self::base(queue);
        self.memory.write_slice(&[0; 0x800], GuestAddress(base)).unwrap();
        self.available[usize::from(queue)] = 0;
        self.write(0x30, queue.into());
        self.write(0x38, SIZE.into());
        for (register, at) in [(0x80, base), (0x90, base + 0x200), (0xa0, base + 0x400)] {
            self.write(register, at as u32);
        }
        self.write(0x44, 1);
    }

    /// Makes a chain of these available: address, length and whether the device writes it.
    fn offer(&mut self, queue: u16, chain: &[(u64, u32, bool)]) {
        let base = Self::base(queue);
        let available = &mut self.available[usize::from(queue)];
        let head = available.wrapping_mul(3) % SIZE;
        for (n, &(address, len, writable)) in (0_u16..).zip(chain) {
            let last = usize::from(n) + 1 == chain.len();
            let flags = if writable { 2 } else { 0 } | u64::from(!last);
            let next = u64::from((head + n + 1) % SIZE);
            let words = [address, u64::from(len) | flags << 32 | next << 48];
            let at = base + 16 * u64::from((head + n) % SIZE);
            self.memory.write_obj(words, GuestAddress(at)).unwrap();
        }
        let slot = base + 0x204 + 2 * u64::from(*available % SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        *available = available.wrapping_add(1);
        self.memory.write_obj(*available, GuestAddress(base + 0x202)).unwrap();
        self.write(0x50, queue.into());
        self.check(queue);
    }

    /// The newest used length is within what a chain may have.
    fn check(&self, queue: u16) {
        let base = Self::base(queue) + 0x400;
        let idx: u16 = self.memory.read_obj(GuestAddress(base + 2)).unwrap();
        let entry = base + 4 + 8 * u64::from(idx.wrapping_sub(1) % SIZE);
        let len: u32 = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
        assert!(len <= 8 * 0x1_0000, "{len}");
    }

    fn state(&self) -> SavedDevice {
        self.nic.pause();
        assert!(
            self.nic.is_still(),
            "nothing is under way between calls: {:?}",
            self.nic.waiting()
        );
        self.nic.save().unwrap()
    }

    /// Another device in its place, with this state, if it takes it.
    fn replace(&mut self, state: &SavedDevice) -> bool {
        let (wires, nic) = device(&self.memory);
        nic.pause();
        let before = nic.save().unwrap();
        if nic.restore(state).is_err() {
            assert_eq!(nic.save().unwrap(), before, "all or nothing");
            return false;
        }
        assert_eq!(nic.save().unwrap(), *state);
        (self.wires, self.nic) = (wires, nic);
        self.nic.resume();
        self.paused = false;
        true
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut machine = Machine::new();
    // What is no buffer's and no ring's.
    let guard = [0xa5; 0x1000];
    machine.memory.write_slice(&guard, GuestAddress(0)).unwrap();
    machine.up(u64::MAX);
    for step in steps {
        match step {
            Step::Up(wanted) => machine.up(wanted),
            Step::Transmit {
                pair,
                header,
                frame,
                cut,
            } => {
                let queue = u16::from(pair) * 2 + 1;
                let at = Machine::base(queue) + BUFFERS;
                let bytes = [&header[..], &[0; 8], &frame.bytes()].concat();
                machine.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
                let cut = u32::from(cut).min(bytes.len() as u32);
                let rest = bytes.len() as u32 - cut;
                machine.offer(queue, &[(at, cut, false), (at + u64::from(cut), rest, false)]);
            }
            Step::Buffer { pair, lens } => {
                let queue = u16::from(pair) * 2;
                let at = Machine::base(queue) + BUFFERS;
                let chain = lens.map(|len| (at + u64::from(len % 16), u32::from(len % 0x2000), true));
                machine.offer(queue, &chain);
            }
            Step::Command {
                class,
                command,
                data,
                room,
            } => {
                for queue in [2, QUEUES - 1] {
                    let at = Machine::base(queue) + BUFFERS;
                    let bytes = [&[class % 9, command % 8][..], &data.bytes()].concat();
                    machine.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
                    let answer = (at + 0x2000, u32::from(room % 16), true);
                    machine.offer(queue, &[(at, bytes.len() as u32, false), answer]);
                }
            }
            Step::Chain { queue, descriptors } => {
                let queue = u16::from(queue) % QUEUES;
                // Anywhere but where the guard is.
                let place = |address: u16| 0x1000 + u64::from(address);
                let chain = descriptors.iter().take(9);
                let chain: Vec<_> = chain
                    .map(|&(address, len, writable, _)| (place(address), len.into(), writable % 2 == 0))
                    .collect();
                if !chain.is_empty() {
                    machine.offer(queue, &chain);
                }
            }
            Step::Incoming {
                port,
                header,
                frame,
                count,
            } => {
                let frame = NetFrame {
                    header: Header::from_bytes(&header),
                    data: frame.bytes(),
                };
                for _ in 0..=count % 4 {
                    let _ = machine.wires[usize::from(port)].put(frame.clone());
                }
            }
            Step::Outgoing(port) => {
                while let Some(NetFrame { header, data }) = machine.wires[usize::from(port)].take() {
                    let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
                    assert!(header.flags & !1 == 0 && header.num_buffers == 0);
                    assert!(header.flags == 0 || end <= data.len(), "{header:?}");
                    assert!(
                        header.gso_type == 0 || header.flags == 1 && header.gso_size != 0,
                        "{header:?}"
                    );
                    assert!(data.len() >= 14);
                }
            }
            Step::Config(offset, len) => {
                let mut data = vec![0; usize::from(len % 40)];
                machine.nic.read(0x100 + u64::from(offset), &mut data);
                machine.nic.write(0x100 + u64::from(offset), &data);
            }
            Step::Link(up) => machine.nic.change_config(|nic| nic.set_link(up)),
            Step::Announce => _ = machine.nic.change_config(|nic| nic.announce()),
            Step::Again(queue) => {
                let queue = u16::from(queue) % QUEUES;
                machine.write(0x30, queue.into());
                machine.write(0x44, 0);
                machine.set_up(queue);
            }
            Step::Run => machine.nic.run(),
            Step::Pause => {
                machine.nic.pause();
                machine.paused = true;
            }
            Step::Resume => {
                machine.nic.resume();
                machine.paused = false;
            }
            Step::Move => {
                let state = machine.state();
                assert!(machine.replace(&state), "its own state");
            }
            Step::Restore(changes) => {
                let mut state = machine.state();
                if let DeviceState::Net(state) = &mut state.device {
                    for change in changes {
                        match change {
                            Change::Pairs(pairs) => state.pairs = pairs % 4,
                            Change::Vlans(vlans) => state.vlans = vlans,
                            Change::Macs(macs) => {
                                state.unicast.addresses = macs.iter().map(|&n| Mac([n & 3, 0, 0, 0, 0, n])).collect();
                            }
                            Change::Mac(mac) => state.mac = Some(Mac(mac)),
                            Change::Frames(queue, frames) => {
                                let frame = |(len, header): (u16, [u8; 12])| NetFrame {
                                    header: Header::from_bytes(&header),
                                    data: vec![0; len.into()],
                                };
                                let frames = frames.into_iter().map(frame).collect();
                                state.frames[usize::from(queue) % 2] = frames;
                            }
                            Change::Features(features) => state.features ^= features,
                            Change::Offloads(all) => {
                                state.offloads = Some(if all { Offloads::ALL } else { Offloads::NONE });
                            }
                            Change::Steering(unclassified, table) => {
                                if let Some(hash) = &mut state.hash
                                    && let Some(steering) = &mut hash.steering
                                {
                                    steering.unclassified = unclassified.into();
                                    steering.table = table;
                                }
                            }
                            Change::Modes(promiscuous) => state.modes.promiscuous = promiscuous,
                        }
                    }
                }
                if !machine.replace(&state) {
                    machine.nic.resume();
                    machine.paused = false;
                }
            }
            Step::Reset => VirtioTransport::reset(&machine.nic),
        }
        if !machine.paused {
            machine.nic.run();
        }
        for queue in 0..QUEUES {
            machine.check(queue);
        }
        let mut now = [0; 0x1000];
        machine.memory.read_slice(&mut now, GuestAddress(0)).unwrap();
        assert!(now == guard, "written where no buffer is");
    }
});
