//! A socket device whose host side is an object in memory. The guest's thread plays the server there, too.

use std::rc::Rc;

use devisor::virtio::{
    entropy::SeededRandom,
    queue::QueueCounters,
    vsock::{MemoryHost, SocketKind, Vsock, VsockOptions},
};
use virtio_drivers::{
    device::socket::{
        DisconnectReason, VMADDR_CID_HOST, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEvent, VsockEventType,
    },
    transport::Transport,
};

use super::{Guest, SEED, Work, ensure, random_bytes};
use crate::{
    guest::GuestError,
    guest_cpu::{CallError, Cpu, barrier_before_sleep},
    guest_drivers::{GuestDma, Sleeping},
    row::{Row, RowError, Setting},
};

const GUEST_CID: u32 = 42;
const SERVER: VsockAddr = VsockAddr {
    cid: VMADDR_CID_HOST,
    port: 80,
};
const CLIENT_PORT: u32 = 1000;
/// How often the guest sends something and receives an answer, and how long these are: an answer is several packets in the buffers of
/// the driver, and must not use up all of its credit.
const ROUNDS: usize = 128;
const LEN: usize = 1500;
const BUFFER: usize = 512;
const CREDIT: u32 = 4096;

pub fn run(setting: &Setting<'_>) -> Result<Row, RowError> {
    let host = MemoryHost::new(1 << 16);
    host.listen(SERVER.port, SocketKind::Stream);
    let options = VsockOptions {
        guest_cid: GUEST_CID,
        ..VsockOptions::default()
    };
    let device = Vsock::new(host.clone(), setting.clock.clone(), options);
    setting.guest("vsock", |_| device, UseSockets(host))
}

/// Opens a stream, sends and receives, and shuts it down.
struct UseSockets(MemoryHost);

impl Guest for UseSockets {
    const ONCE_A_ROUND: bool = true;

    fn work<T: Sleeping>(
        self,
        transport: T,
        cpu: Rc<dyn Cpu>,
        queues: &dyn Fn() -> QueueCounters,
    ) -> Result<Work, GuestError> {
        let Self(host) = self;
        let sleeper = transport.sleeper();
        let driver = VirtIOSocket::<GuestDma, _, BUFFER>::new(transport)?;
        let mut sockets = VsockConnectionManager::new_with_capacity(driver, CREDIT);
        let cid = sockets.guest_cid();
        ensure(cid == u64::from(GUEST_CID), || format!("the guest's CID is {cid}"))?;
        // A packet is a request, in either direction.
        let mut packets = 0;

        sleeper.sleeping(&cpu, || sockets.connect(SERVER, CLIENT_PORT))?;
        let event = next_event(&mut sockets, &*cpu)?;
        packets += 2;
        ensure(event.event_type == VsockEventType::Connected, || format!("{event:?}"))?;
        let socket = host.accept(SERVER.port, SocketKind::Stream);
        let socket = socket.ok_or_else(|| GuestError::Wrong("the host has no connection".into()))?;

        let mut random = SeededRandom::new(SEED);
        for round in 0..ROUNDS {
            let question = random_bytes(&mut random, LEN);
            sleeper.sleeping(&cpu, || sockets.send(SERVER, CLIENT_PORT, &question))?;
            ensure(socket.read() == question, || {
                format!("question {round} did not get there")
            })?;

            let answer = random_bytes(&mut random, LEN);
            socket.write(&answer);
            while sockets.recv_buffer_available_bytes(SERVER, CLIENT_PORT)? < LEN {
                next_event(&mut sockets, &*cpu)?;
                packets += 1;
            }
            let mut heard = vec![0; LEN];
            sockets.recv(SERVER, CLIENT_PORT, &mut heard)?;
            ensure(heard == answer, || format!("answer {round} did not get here"))?;
            sleeper.sleeping(&cpu, || sockets.update_credit(SERVER, CLIENT_PORT))?;
            packets += 2;
        }

        sleeper.sleeping(&cpu, || sockets.shutdown(SERVER, CLIENT_PORT))?;
        let event = next_event(&mut sockets, &*cpu)?;
        packets += 2;
        let reason = DisconnectReason::Reset;
        ensure(event.event_type == VsockEventType::Disconnected { reason }, || {
            format!("{event:?}")
        })?;
        ensure(socket.is_closed(), || "the host still has the connection".into())?;
        Ok(Work {
            requests: packets,
            bytes: (2 * ROUNDS * LEN) as u64,
            queues: queues(),
        })
    }
}

/// Sleeps until a packet has come. It looks first: the interrupt for one may have been that of another, which was taken already.
fn next_event<T: Transport>(
    sockets: &mut VsockConnectionManager<GuestDma, T, BUFFER>,
    cpu: &dyn Cpu,
) -> Result<VsockEvent, GuestError> {
    loop {
        barrier_before_sleep();
        if let Some(event) = sockets.poll()? {
            return Ok(event);
        }
        cpu.take_interrupt().map_err(CallError::NotWoken)?;
    }
}
