//! A connection (virtio 1.2, sections 5.10.6.3 to 5.10.6.6): how far it has come, and what its two sides have shut down.

mod from_guest;
mod to_guest;

use std::{
    io,
    sync::{Mutex, atomic::AtomicBool},
    time::Duration,
};

use super::{
    Direction, Ready, SocketKind, Stream, Token, VsockOptions,
    outbound::Outbound,
    registers::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND},
};
use crate::virtio::{FailureLog, burst::Burst};

pub(super) use from_guest::Room;
pub(super) use to_guest::Produced;

/// The ports of a connection. The CIDs are the host's and the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

impl Key {
    /// Of the connection that a packet of the guest belongs to.
    pub fn of(header: &Header) -> Self {
        Self {
            host_port: header.dst_port,
            guest_port: header.src_port,
        }
    }
}

/// A connection as the table has it.
pub(super) struct Connection {
    pub key: Key,
    pub token: Token,
    pub kind: SocketKind,
    pub flow: Mutex<Flow>,
    /// It is among those that have something for the guest.
    pub queued: AtomicBool,
    /// It is among those that have something for the host side.
    pub flushing: AtomicBool,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host side asks for it, and the guest has not answered.
    Requested,
    Open,
    /// There is nothing but an RST that the guest is to get.
    Reset,
    /// It is to be forgotten.
    Gone,
}

/// Packets that a connection owes its guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owed {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
}

/// The state of a connection.
pub(super) struct Flow {
    kind: SocketKind,
    pub phase: Phase,
    /// There while it may be used.
    stream: Option<Box<dyn Stream>>,
    owed: Owed,
    // To the guest.
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    tx_cnt: u32,
    /// The guest was asked for credit since it gave some.
    credit_asked: bool,
    readable: bool,
    burst: Burst,
    /// The end of what the host side sends is near.
    ending: bool,
    /// A stream that has less than there is room for has no more.
    tells_of_more: bool,
    /// The host side sends nothing more.
    read_ended: bool,
    /// Bytes of the current message.
    message_sent: u32,
    // From the guest.
    rx_cnt: u32,
    fwd_cnt: u32,
    /// `fwd_cnt` as the guest knows it.
    fwd_told: u32,
    /// Bytes of the current message.
    message_got: u32,
    outbound: Outbound,
    writable: bool,
    /// The host side takes nothing more.
    write_ended: bool,
    // Shutting down: flags of SHUTDOWN, which are permanent.
    guest_shut: u32,
    host_shut: u32,
    /// Of the guest's, what the stream knows.
    stream_shut: u32,
    /// When it is reset, if nothing happens.
    pub deadline: Option<Duration>,
    /// The same, as the table knows it.
    pub deadline_noted: Option<Duration>,
}

impl Flow {
    /// A connection over `stream`: one that the guest has asked for, or (`deadline`) one that it has so long to answer.
    /// `tells_of_more` is [that](super::Host::tells_of_more) of its host.
    pub fn new(kind: SocketKind, stream: Box<dyn Stream>, deadline: Option<Duration>, tells_of_more: bool) -> Self {
        let requested = deadline.is_some();
        Self {
            kind,
            phase: if requested { Phase::Requested } else { Phase::Open },
            stream: Some(stream),
            owed: Owed {
                request: requested,
                response: !requested,
                ..Owed::default()
            },
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            tx_cnt: 0,
            credit_asked: false,
            readable: true,
            burst: Burst::default(),
            ending: false,
            tells_of_more: tells_of_more && kind == SocketKind::Stream,
            read_ended: false,
            message_sent: 0,
            rx_cnt: 0,
            fwd_cnt: 0,
            fwd_told: 0,
            message_got: 0,
            outbound: Outbound::default(),
            writable: true,
            write_ended: false,
            guest_shut: 0,
            host_shut: 0,
            stream_shut: 0,
            deadline,
            deadline_noted: None,
        }
    }

    /// The connection is over, and the guest is told so.
    pub fn kill(&mut self) {
        if self.phase != Phase::Gone {
            self.end(Phase::Reset);
        }
    }

    /// The connection is over.
    pub fn end(&mut self, phase: Phase) {
        self.phase = phase;
        self.stream = None;
        self.owed = Owed::default();
        self.outbound.clear();
        self.deadline = None;
    }

    /// How much the guest has room for (section 5.10.6.3). What it claims to have forwarded of what it never got is none.
    fn free(&self) -> u32 {
        let under_way = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(under_way)
    }

    fn may_read(&self) -> bool {
        self.phase == Phase::Open && self.readable && !self.read_ended && self.guest_shut & SHUTDOWN_RECEIVE == 0
    }

    /// Flags that the guest is to be told.
    fn shutdown(&self) -> u32 {
        let send = if self.read_ended { SHUTDOWN_SEND } else { 0 };
        let receive = if self.write_ended { SHUTDOWN_RECEIVE } else { 0 };
        (send | receive | self.host_shut) & !self.host_shut
    }

    /// Whether there is something for the guest.
    pub fn wants_guest(&self) -> bool {
        match self.phase {
            Phase::Gone => false,
            Phase::Reset => true,
            Phase::Requested => self.owed.request,
            Phase::Open => {
                self.owed != Owed::default()
                    || self.shutdown() != 0
                    || self.may_read() && (self.free() != 0 || !self.credit_asked)
            }
        }
    }

    /// Whether there is something for the host side, which has room.
    pub fn wants_host(&self) -> bool {
        self.phase == Phase::Open && self.writable && !self.outbound.is_empty()
    }

    // The host side.

    /// So many bytes of what the guest has sent are not held any more.
    fn forwarded(&mut self, len: u32) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(len);
    }

    /// It has failed.
    fn broken(&mut self, error: io::Error, failures: &FailureLog) {
        failures.record(error);
        self.write_ended = true;
        let lost = self.outbound.clear();
        self.forwarded(lost);
    }

    /// Something has become possible.
    pub fn ready(&mut self, ready: Ready) {
        self.readable |= ready.readable;
        self.writable |= ready.writable;
        self.ending |= ready.ended;
        // Of one that the guest sends nothing more to, it does not matter.
        let matters = self.read_ended && !self.write_ended && self.guest_shut & SHUTDOWN_SEND == 0;
        if matters && self.stream.as_ref().is_some_and(|stream| stream.is_gone()) {
            self.write_ended = true;
            let lost = self.outbound.clear();
            self.forwarded(lost);
        }
    }

    /// Acts on what follows from the rest.
    pub fn settle(&mut self, now: Duration, options: &VsockOptions) {
        if self.phase != Phase::Open {
            return;
        }
        // What was under way arrives first.
        let flushed = self.outbound.is_empty() || self.write_ended;
        if let Some(stream) = &self.stream {
            for (flag, direction, due) in [
                (SHUTDOWN_RECEIVE, Direction::Receive, true),
                (SHUTDOWN_SEND, Direction::Send, flushed),
            ] {
                if self.guest_shut & flag != 0 && self.stream_shut & flag == 0 && due {
                    stream.shutdown(direction);
                    self.stream_shut |= flag;
                }
            }
        }
        if self.guest_shut == SHUTDOWN_BOTH && flushed {
            // The end of a clean disconnect (section 5.10.6.5).
            self.kill();
            return;
        }
        let out = self.guest_shut & SHUTDOWN_SEND != 0 || self.host_shut & SHUTDOWN_RECEIVE != 0;
        let back = self.guest_shut & SHUTDOWN_RECEIVE != 0 || self.host_shut & SHUTDOWN_SEND != 0;
        if out && back && self.deadline.is_none() {
            self.deadline = Some(now.saturating_add(options.shutdown_timeout));
        }
    }
}
