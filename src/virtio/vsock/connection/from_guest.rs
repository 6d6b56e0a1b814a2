//! Packets of the guest, and what they carry to the host side.

use std::io;

use super::{
    super::{
        Boundary, SocketKind, VsockOptions,
        registers::{HEADER, Header, SEQ_EOM, SEQ_EOR, SHUTDOWN_BOTH, SHUTDOWN_SEND, op},
    },
    Flow, Phase,
};
use crate::virtio::{
    ChainError, FailureLog,
    queue::{Chain, Several, Slices},
};

/// What the tx queue keeps from one packet to the next.
#[derive(Default)]
pub(in super::super) struct Room {
    slices: Slices,
    /// Data on its way to be held.
    bytes: Vec<u8>,
}

impl Flow {
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

    /// Whether this is a packet as nearly all are: data of a stream, all of it there, for a host side that takes data. It is counted as
    /// got then, and to be [sent](Self::send) after those that came before.
    pub fn admits(&mut self, header: &Header, carried: u32, options: &VsockOptions) -> bool {
        let held = self.rx_cnt.wrapping_sub(self.fwd_cnt);
        let usual = header.op == op::RW
            && self.kind == SocketKind::Stream
            && self.phase == Phase::Open
            && self.guest_shut & SHUTDOWN_SEND == 0
            && self.writable
            && !self.write_ended
            && self.outbound.is_empty()
            && header.len != 0
            && header.len <= carried
            && header.len <= options.buf_alloc.saturating_sub(held);
        if usual {
            self.credit(header);
            self.rx_cnt = self.rx_cnt.wrapping_add(header.len);
        }
        usual
    }

    /// Sends what packets carry that were admitted, and holds what the host side has no room for.
    ///
    /// # Errors
    /// The embedder has taken memory away, with some of it.
    pub fn send(
        &mut self,
        packets: &mut Several<'_, '_>,
        room: &mut Room,
        options: &VsockOptions,
        failures: &FailureLog,
    ) -> Result<(), ChainError> {
        let Some(stream) = self.stream.as_deref().filter(|_| self.phase == Phase::Open) else {
            // It was reset meanwhile.
            return Ok(());
        };
        let total = packets.bytes();
        let mut taken = 0;
        // A stream that panics leaves them where they were, to be admitted again.
        self.rx_cnt = self.rx_cnt.wrapping_sub(total);
        if !self.write_ended {
            let written = packets.read(total, |slices| stream.write(slices, Boundary::None))?;
            match written {
                Ok(written) => {
                    taken = total.min(u32::try_from(written).unwrap_or(total));
                    self.writable = taken != 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => self.broken(error, failures),
            }
        }
        self.rx_cnt = self.rx_cnt.wrapping_add(total);
        self.forwarded(if self.write_ended { total } else { taken });
        if !self.write_ended && taken != total {
            packets.moved(taken);
            for (packet, left) in packets.chains() {
                room.bytes.resize(left.len(), 0);
                packet.reader().split_at(left.start)?.1.read(&mut room.bytes)?;
                self.outbound.push(&room.bytes, None);
            }
        }
        self.tell_credit(options);
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
        // Now that it is not left where it was, by a stream that panics.
        self.message_got = if boundary == Boundary::None { message } else { 0 };
        self.rx_cnt = self.rx_cnt.wrapping_add(len);
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

    /// Has the guest told of room before it has none. A message has to fit in whole, so that a guest may wait for all of it.
    fn tell_credit(&mut self, options: &VsockOptions) {
        let untold = self.fwd_cnt.wrapping_sub(self.fwd_told);
        let enough = match self.kind {
            // Linux says so when half of its window is gone.
            SocketKind::Stream => options.buf_alloc / 2,
            SocketKind::Seqpacket if self.outbound.is_empty() => 1,
            SocketKind::Seqpacket => options.buf_alloc / 4,
        };
        self.owed.credit_update |= untold >= enough;
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
}
