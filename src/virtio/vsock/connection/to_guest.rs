//! Packets to the guest.

use std::io;

use super::{
    super::{
        Boundary, Ready, Received, SocketKind, VsockOptions,
        options::MAX_PACKET,
        registers::{HEADER, HOST_CID, Header, SEQ_EOM, SEQ_EOR, op},
    },
    Flow, Key, Owed, Phase,
};
use crate::virtio::{
    ChainError, FailureLog,
    burst::Burst,
    queue::{Chain, Several, Slices},
};

/// What came of an attempt to make a packet.
pub(in super::super) enum Produced {
    /// Nothing is to be said.
    Nothing,
    /// A packet of so many bytes.
    Packet(u32),
    /// The buffer has no room for what there is.
    NoRoom,
}

impl Flow {
    fn header(&mut self, op: u16, options: &VsockOptions, key: Key) -> Header {
        self.fwd_told = self.fwd_cnt;
        Header {
            src_cid: HOST_CID,
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
        let Some((len, boundary)) = self.received(read, limit, failures) else {
            return Ok(None);
        };
        let Some(flags) = self.flags(len, boundary, options) else {
            return Ok(None);
        };
        let header = Header {
            len,
            flags,
            ..self.header(op::RW, options, key)
        };
        self.has_read(len, limit, boundary);
        let mut head = head;
        if head.write(&header.encode()).is_err() {
            // The data is in memory that is gone.
            self.kill();
            return Ok(None);
        }
        Ok(Some(Produced::Packet(HEADER as u32 + len)))
    }

    /// How many bytes would be read at once, if room for them is put together from several buffers; zero, if there is something else to
    /// be said, or nothing.
    pub fn reads_at_once(&self) -> u32 {
        match self.phase == Phase::Open && self.owed == Owed::default() && self.may_read() {
            true => self.burst.expected().min(self.free()),
            false => 0,
        }
    }

    /// Reads into several buffers, and writes the header of a packet into each that has got something: the first of them, with as many
    /// bytes together as are returned; of an empty message, the first. What is to be said if there is nothing follows from the rest.
    ///
    /// # Errors
    /// The embedder has taken memory away, with some of them.
    pub fn produce_several(
        &mut self,
        key: Key,
        buffers: &mut Several<'_, '_>,
        options: &VsockOptions,
        failures: &FailureLog,
    ) -> Result<Option<u32>, ChainError> {
        let limit = buffers.bytes().min(self.free()).min(Burst::MOST);
        let Some(stream) = self.stream.as_deref().filter(|_| limit != 0) else {
            return Ok(None);
        };
        let read = buffers.fill(limit, |slices| stream.read(slices))?;
        let Some((len, boundary)) = self.received(read, limit, failures) else {
            return Ok(None);
        };
        let Some(flags) = self.flags(len, boundary, options) else {
            return Ok(None);
        };
        let mut header = self.header(op::RW, options, key).encode();
        let mut left = len;
        for (buffer, room) in buffers.chains() {
            let here = left.min(room.end - room.start);
            left -= here;
            // What ends with it ends with the last packet.
            Header::put_len(&mut header, here, if left == 0 { flags } else { 0 });
            if let Err(gone) = buffer.write(&header) {
                // The data is in memory that is gone.
                self.kill();
                return Err(gone);
            }
            if left == 0 {
                break;
            }
        }
        self.has_read(len, limit, boundary);
        Ok(Some(len))
    }

    /// So much was read, with what ends there: the flags of a packet that says so. `None`, if it is not to be told: a stream has nothing,
    /// or a message is too long.
    fn flags(&mut self, len: u32, boundary: Boundary, options: &VsockOptions) -> Option<u32> {
        if self.kind == SocketKind::Stream {
            if len == 0 {
                self.readable = false;
            }
            return (len != 0).then_some(0);
        }
        let message = self.message_sent.saturating_add(len);
        if message > options.max_message {
            self.kill();
            return None;
        }
        self.message_sent = if boundary == Boundary::None { message } else { 0 };
        Some(match boundary {
            Boundary::None => 0,
            Boundary::Message => SEQ_EOM,
            Boundary::Record => SEQ_EOM | SEQ_EOR,
        })
    }

    /// What a read has come to: how much, and what ends with it. `None`, if it was nothing.
    fn received(&mut self, read: io::Result<Received>, limit: u32, failures: &FailureLog) -> Option<(u32, Boundary)> {
        match read {
            Ok(Received::Data(len, boundary)) => Some((limit.min(u32::try_from(len).unwrap_or(limit)), boundary)),
            Ok(Received::End) => {
                self.read_ended = true;
                self.ready(Ready::default());
                None
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                self.burst.was_empty();
                None
            }
            Err(error) => {
                self.broken(error, failures);
                self.read_ended = true;
                None
            }
        }
    }

    /// So much is on its way to the guest, of what there was room for.
    fn has_read(&mut self, len: u32, limit: u32, boundary: Boundary) {
        self.readable = !self.tells_of_more || self.ending || len == limit;
        let all = match self.kind {
            SocketKind::Stream => len < limit,
            SocketKind::Seqpacket => boundary != Boundary::None,
        };
        self.burst.has_read(len, all);
        self.tx_cnt = self.tx_cnt.wrapping_add(len);
    }
}
