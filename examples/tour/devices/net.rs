//! Two interfaces on a switch. Each has a guest of its own, on a board of its own, and they send frames to each other.

use std::{
    collections::BTreeMap,
    fs::File,
    io::BufWriter,
    rc::Rc,
    sync::{
        PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use devisor::virtio::{
    entropy::SeededRandom,
    net::{Mac, Net, NetError, NetOptions, Pcap, Port, Switch, SwitchOptions},
    queue::QueueCounters,
};
use virtio_drivers::{device::net::VirtIONetRaw, transport::Transport};

use super::{Guest, SEED, Work, ensure, random_bytes};
use crate::{
    guest::GuestError,
    guest_cpu::{CallError, Cpu, barrier_before_sleep},
    guest_drivers::{GuestDma, Sleeping},
    row::{PATIENCE, Row, RowError, Setting},
};

const ONE: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);
/// How many frames each of them sends, and how many before it waits for as many from the other.
const ROUNDS: usize = 128;
const BURST: usize = 4;
/// How long frames are, and buffers for them. The EtherType is for local experiments (IEEE 802).
const SHORTEST: usize = 60;
const LONGEST: usize = 1514;
const BUFFER: usize = 2048;
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Entries of a queue.
const SIZE: usize = 16;

pub fn run(setting: &Setting<'_>) -> Result<Row, RowError> {
    let switch = Switch::new(SwitchOptions::default());
    let (one_ready, hears_one) = channel();
    let (other_ready, hears_other) = channel();
    let one = Exchange {
        from: ONE,
        to: OTHER,
        ready: one_ready,
        other_ready: hears_other,
    };
    let other = Exchange {
        from: OTHER,
        to: ONE,
        ready: other_ready,
        other_ready: hears_one,
    };
    // A capture is of the first row that there is.
    let file = setting.capture.lock().unwrap_or_else(PoisonError::into_inner).take();
    let port: Box<dyn Port> = match file {
        Some(file) => Box::new(captured(switch.port(), file, setting)),
        None => Box::new(switch.port()),
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| setting.guest("net, other", |_| interface(switch.port(), OTHER), other));
        let one = setting.guest("net", |_| interface(port, ONE), one);
        let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (one, other) {
            (Err(one), Err(other)) => Err(RowError::Guests(Box::new(one), Box::new(other))),
            (one, other) => Ok(one?.and(other?)),
        }
    })
}

fn interface(port: impl Port + 'static, mac: Mac) -> Result<Net, NetError> {
    let options = NetOptions {
        mac: Some(mac),
        ..NetOptions::default()
    };
    Net::new([port], options)
}

/// `port`, with all that passes it written down.
fn captured(port: impl Port + 'static, file: File, setting: &Setting<'_>) -> impl Port + 'static {
    Pcap::new(port, BufWriter::new(file), LONGEST as u32, setting.clock.clone())
}

/// Sends bursts of frames to another guest that does the same, and compares what comes with what that one sends.
struct Exchange {
    from: Mac,
    to: Mac,
    /// A switch has nobody wait: it must be known that the other guest is there.
    ready: Sender<()>,
    other_ready: Receiver<()>,
}

impl Guest for Exchange {
    const ONCE_A_ROUND: bool = true;

    fn work<T: Sleeping>(
        self,
        transport: T,
        cpu: Rc<dyn Cpu>,
        queues: &dyn Fn() -> QueueCounters,
    ) -> Result<Work, GuestError> {
        let mut interface = Interface {
            driver: VirtIONetRaw::new(transport)?,
            cpu,
            room: BTreeMap::new(),
            sending: BTreeMap::new(),
            received: Vec::new(),
            requests: 0,
        };
        let mac = Mac(interface.driver.mac_address());
        ensure(mac == self.from, || format!("the address is {mac}"))?;
        for _ in 0..SIZE {
            interface.give_room(vec![0; BUFFER])?;
        }
        // Who is not there any more is missed below.
        let _ = self.ready.send(());
        let there = self.other_ready.recv_timeout(PATIENCE).is_ok();
        ensure(there, || "the other guest is not there".into())?;

        let [mut ours, mut theirs] = [self.from, self.to].map(|Mac(mac)| SeededRandom::new(SEED + u64::from(mac[5])));
        let mut bytes = 0;
        for round in 0..ROUNDS {
            for number in 0..BURST {
                interface.send(&frame(&mut ours, self.from, self.to, round * BURST + number))?;
            }
            while !interface.sending.is_empty() || interface.received.len() < BURST {
                interface.wait()?;
            }
            for (number, heard) in interface.received.drain(..BURST).enumerate() {
                let number = round * BURST + number;
                ensure(heard == frame(&mut theirs, self.to, self.from, number), || {
                    format!("frame {number} did not get here")
                })?;
                bytes += heard.len();
            }
        }
        Ok(Work {
            requests: interface.requests,
            bytes: bytes as u64,
            queues: queues(),
        })
    }
}

/// The `number`th frame of a guest.
fn frame(random: &mut SeededRandom, from: Mac, to: Mac, number: usize) -> Vec<u8> {
    let len = SHORTEST + number * (LONGEST - SHORTEST) / (ROUNDS * BURST - 1);
    let payload = random_bytes(random, len - 14);
    [&to.0[..], &from.0, &ETHERTYPE, &payload].concat()
}

/// An interface, with the buffers that its device has.
struct Interface<T: Transport> {
    driver: VirtIONetRaw<GuestDma, T, SIZE>,
    cpu: Rc<dyn Cpu>,
    /// Buffers for frames to come, by their tokens.
    room: BTreeMap<u16, Vec<u8>>,
    /// Frames on their way out, by their tokens.
    sending: BTreeMap<u16, Vec<u8>>,
    received: Vec<Vec<u8>>,
    /// Buffers that came back.
    requests: u64,
}

impl<T: Transport> Interface<T> {
    fn give_room(&mut self, mut buffer: Vec<u8>) -> Result<(), GuestError> {
        // SAFETY: nobody touches the buffer in `room` until it comes back. Should that be given up instead, so is the driver: the
        // device only knows of the copies that `GuestDma` made.
        let token = unsafe { self.driver.receive_begin(&mut buffer) }?;
        self.room.insert(token, buffer);
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), GuestError> {
        let mut buffer = vec![0; BUFFER];
        let header = self.driver.fill_buffer_header(&mut buffer)?;
        buffer.truncate(header);
        buffer.extend(frame);
        // SAFETY: as above, with `sending`.
        let token = unsafe { self.driver.transmit_begin(&buffer) }?;
        self.sending.insert(token, buffer);
        Ok(())
    }

    /// Sleeps until there is an interrupt, and takes all that the device is done with. What it is done with later will interrupt.
    fn wait(&mut self) -> Result<(), GuestError> {
        self.cpu.take_interrupt().map_err(CallError::NotWoken)?;
        loop {
            barrier_before_sleep();
            if let Some(token) = self.driver.poll_transmit() {
                let buffer = self.sending.remove(&token).expect("what was used was being sent");
                // SAFETY: the buffer of this token.
                unsafe { self.driver.transmit_complete(token, &buffer) }?;
            } else if let Some(token) = self.driver.poll_receive() {
                let mut buffer = self.room.remove(&token).expect("what was used was room");
                // SAFETY: the buffer of this token.
                let (header, len) = unsafe { self.driver.receive_complete(token, &mut buffer) }?;
                self.received.push(buffer[header..header + len].to_vec());
                self.give_room(buffer)?;
            } else {
                return Ok(());
            }
            self.requests += 1;
        }
    }
}
