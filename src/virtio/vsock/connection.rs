//! A connection (virtio 1.2, sections 5.10.6.3 to 5.10.6.6).

use std::{
    io,
    sync::{Mutex, atomic::AtomicBool},
    time::Duration,
};

use super::{
    Boundary, Direction, Ready, Received, SocketKind, Stream, Token, VsockOptions,
    options::MAX_PACKET,
    outbound::Outbound,
    registers::{HEADER, Header, SEQ_EOM, SEQ_EOR, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op},
};
use crate::virtio::{
    ChainError, FailureLog,
    queue::{Chain, Slices},
};

/// The ports of a connection. The CIDs are the host's and the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub host_port: u32,
    pub guest_port: u32,
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

/// What the tx queue keeps from one packet to the next.
#[derive(Default)]
pub(super) struct Room {
    slices: Slices,
    /// Data on its way to be held.
    bytes: Vec<u8>,
}

/// What came of an attempt to make a packet.
pub(super) enum Produced {
    /// Nothing is to be said.
    Nothing,
    /// A packet of so many bytes.
    Packet(u32),
    /// The buffer has no room for what there is.
    NoRoom,
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

    // The guest's packets.

    /// Each says how much room the guest has (section 5.10.6.3).
    pub fn credit(&mut self, header: &Header) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
        if self.free() != 0 {
            self.credit_asked = false;
        }
    }

    /// A packet of the connection has come. `data` is what it carries, if that is all there.
    pub fn packet(
        &mut self,
        header: &Header,
        chain: &Chain<'_, '_>,
        room: &mut Room,
        options: &VsockOptions,
        failures: &FailureLog,
    ) -> Result<(), ChainError> {
        if header.op == op::RST {
            self.end(Phase::Gone);
            return Ok(());
        }
        if matches!(self.phase, Phase::Reset | Phase::Gone) {
            // The answer is under way.
            return Ok(());
        }
        self.credit(header);
        match (header.op, self.phase) {
            (op::RESPONSE, Phase::Requested) if !self.owed.request => {
                (self.phase, self.deadline) = (Phase::Open, None);
            }
            (op::SHUTDOWN, Phase::Open) => self.guest_shut |= header.flags & SHUTDOWN_BOTH,
            (op::RW, Phase::Open) if self.guest_shut & SHUTDOWN_SEND == 0 => {
                return self.data(header, chain, room, options, failures);
            }
            (op::CREDIT_UPDATE, Phase::Open) => {}
            (op::CREDIT_REQUEST, Phase::Open) => self.owed.credit_update = true,
            // Whatever it is, the two sides do not mean the same connection.
            _ => self.kill(),
        }
        Ok(())
    }

    /// Tells the host side that the guest has answered.
    pub fn established(&mut self, port: u32, failures: &FailureLog) {
        if let Some(stream) = &self.stream
            && let Err(error) = stream.established(port)
        {
            failures.record(error);
            // What it has sent before it went is still there.
            self.write_ended = true;
        }
    }

    fn data(
        &mut self,
        header: &Header,
        chain: &Chain<'_, '_>,
        room: &mut Room,
        options: &VsockOptions,
        failures: &FailureLog,
    ) -> Result<(), ChainError> {
        let len = header.len;
        let missing = len > chain.readable_len() - HEADER as u32;
        let held = self.rx_cnt.wrapping_sub(self.fwd_cnt);
        let boundary = match self.kind {
            SocketKind::Stream => Boundary::None,
            // The end of a record is the end of a message.
            SocketKind::Seqpacket if header.flags & SEQ_EOR != 0 => Boundary::Record,
            SocketKind::Seqpacket if header.flags & SEQ_EOM != 0 => Boundary::Message,
            SocketKind::Seqpacket => Boundary::None,
        };
        let message = self.message_got.saturating_add(len);
        let too_long = self.kind == SocketKind::Seqpacket && message > options.max_message;
        let crowded = self.outbound.pieces() > options.buf_alloc as usize;
        if missing || len > options.buf_alloc.saturating_sub(held) || too_long || crowded {
            self.kill();
            return match missing {
                true => Err(ChainError::Short(
                    (len - (chain.readable_len() - HEADER as u32)) as usize,
                )),
                false => Ok(()),
            };
        }
        self.message_got = if boundary == Boundary::None { message } else { 0 };
        self.rx_cnt = self.rx_cnt.wrapping_add(len);
        if len == 0 && boundary == Boundary::None {
            return Ok(());
        }
        let mut taken = 0;
        let mut done = self.write_ended;
        if !done && self.writable && self.outbound.is_empty() {
            let data = chain.reader().split_at(HEADER as u32)?.1.split_at(len)?.0;
            let Some(stream) = &self.stream else { return Ok(()) };
            match data.with_slices(&mut room.slices, |slices| stream.write(slices, boundary))? {
                Ok(written) => {
                    taken = len.min(u32::try_from(written).unwrap_or(len));
                    done = taken == len;
                    self.writable = done || taken != 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => {
                    self.broken(error, failures);
                    done = true;
                }
            }
            self.forwarded(taken);
        }
        match (done, self.write_ended) {
            // Nobody takes it.
            (_, true) => self.forwarded(len - taken),
            (true, false) => {}
            (false, false) => {
                room.bytes.resize((len - taken) as usize, 0);
                chain
                    .reader()
                    .split_at(HEADER as u32 + taken)?
                    .1
                    .read(&mut room.bytes)?;
                self.outbound
                    .push(&room.bytes, (self.kind == SocketKind::Seqpacket).then_some(boundary));
            }
        }
        self.tell_credit(options);
        Ok(())
    }

    fn forwarded(&mut self, len: u32) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(len);
    }

    /// Has the guest told of room before it has none. A message has to fit in whole, so that a guest may wait for all of it.
    fn tell_credit(&mut self, options: &VsockOptions) {
        let untold = self.fwd_cnt.wrapping_sub(self.fwd_told);
        let enough = match self.kind {
            SocketKind::Stream => options.buf_alloc / 4,
            SocketKind::Seqpacket if self.outbound.is_empty() => 1,
            SocketKind::Seqpacket => options.buf_alloc / 4,
        };
        self.owed.credit_update |= untold >= enough;
    }

    // The host side.

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

    /// Writes what is held.
    pub fn flush(&mut self, options: &VsockOptions, failures: &FailureLog) {
        let Some(stream) = self.stream.as_deref().filter(|_| self.phase == Phase::Open) else {
            return;
        };
        let (taken, result) = self.outbound.flush(stream);
        self.forwarded(taken);
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
            Err(error) => self.broken(error, failures),
        }
        self.tell_credit(options);
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

    // Packets to the guest.

    fn header(&mut self, op: u16, options: &VsockOptions, key: Key) -> Header {
        self.fwd_told = self.fwd_cnt;
        Header {
            src_cid: super::registers::HOST_CID,
            dst_cid: options.guest_cid.into(),
            src_port: key.host_port,
            dst_port: key.guest_port,
            len: 0,
            kind: self.kind.code(),
            op,
            flags: 0,
            buf_alloc: options.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    /// Writes the next packet for the guest into `chain`, which has room for a header.
    pub fn produce(
        &mut self,
        key: Key,
        chain: &Chain<'_, '_>,
        room: &mut Slices,
        options: &VsockOptions,
        failures: &FailureLog,
    ) -> Result<Produced, ChainError> {
        if self.phase == Phase::Open && self.owed == Owed::default() && self.may_read() {
            if self.free() == 0 {
                let message = self.message_sent;
                if self.kind == SocketKind::Seqpacket && message != 0 && message >= self.peer_buf_alloc {
                    // It never has room for the rest.
                    self.kill();
                } else if !self.credit_asked {
                    self.owed.credit_request = true;
                }
            } else if let Some(produced) = self.produce_data(key, chain, room, options, failures)? {
                return Ok(produced);
            }
        }
        let (op, flags) = match (self.phase, self.owed) {
            (Phase::Gone, _) => return Ok(Produced::Nothing),
            (Phase::Reset, _) => (op::RST, 0),
            (_, Owed { request: true, .. }) => (op::REQUEST, 0),
            (Phase::Requested, _) => return Ok(Produced::Nothing),
            (_, Owed { response: true, .. }) => (op::RESPONSE, 0),
            (
                _,
                Owed {
                    credit_update: true, ..
                },
            ) => (op::CREDIT_UPDATE, 0),
            _ if self.shutdown() != 0 => (op::SHUTDOWN, self.shutdown()),
            (
                _,
                Owed {
                    credit_request: true, ..
                },
            ) => (op::CREDIT_REQUEST, 0),
            _ => return Ok(Produced::Nothing),
        };
        let header = Header {
            flags,
            ..self.header(op, options, key)
        };
        chain.writer().write(&header.encode())?;
        match op {
            op::RST => self.end(Phase::Gone),
            op::REQUEST => self.owed.request = false,
            op::RESPONSE => self.owed.response = false,
            op::CREDIT_UPDATE => self.owed.credit_update = false,
            op::SHUTDOWN => self.host_shut |= flags,
            _ => (self.owed.credit_request, self.credit_asked) = (false, true),
        }
        Ok(Produced::Packet(HEADER as u32))
    }

    /// A packet with data. `None`, if there is none.
    fn produce_data(
        &mut self,
        key: Key,
        chain: &Chain<'_, '_>,
        room: &mut Slices,
        options: &VsockOptions,
        failures: &FailureLog,
    ) -> Result<Option<Produced>, ChainError> {
        let (head, data) = (chain.writer(), chain.writer().split_at(HEADER as u32)?.1);
        let limit = data.remaining().min(self.free()).min(MAX_PACKET);
        if limit == 0 {
            return Ok(Some(Produced::NoRoom));
        }
        let Some(stream) = &self.stream else { return Ok(None) };
        let read = data
            .split_at(limit)?
            .0
            .with_slices(room, |slices| stream.read(slices))?;
        let (len, boundary) = match read {
            Ok(Received::Data(len, boundary)) => (limit.min(u32::try_from(len).unwrap_or(limit)), boundary),
            Ok(Received::End) => {
                self.read_ended = true;
                self.ready(Ready::default());
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return Ok(None);
            }
            Err(error) => {
                self.broken(error, failures);
                self.read_ended = true;
                return Ok(None);
            }
        };
        let mut header = Header {
            len,
            ..self.header(op::RW, options, key)
        };
        if self.kind == SocketKind::Seqpacket {
            let message = self.message_sent.saturating_add(len);
            if message > options.max_message {
                self.kill();
                return Ok(None);
            }
            self.message_sent = if boundary == Boundary::None { message } else { 0 };
            header.flags = match boundary {
                Boundary::None => 0,
                Boundary::Message => SEQ_EOM,
                Boundary::Record => SEQ_EOM | SEQ_EOR,
            };
        } else if len == 0 {
            self.readable = false;
            return Ok(None);
        }
        self.readable = !self.tells_of_more || self.ending || len == limit;
        self.tx_cnt = self.tx_cnt.wrapping_add(len);
        let mut head = head;
        if head.write(&header.encode()).is_err() {
            // The data is in memory that is gone.
            self.kill();
            return Ok(None);
        }
        Ok(Some(Produced::Packet(HEADER as u32 + len)))
    }
}
