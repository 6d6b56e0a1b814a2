//! The tx queue: packets of the guest.

use std::{io, sync::Arc};

use super::{
    connection::{Connection, Key, Phase, Room},
    registers::{HEADER, HOST_CID, Header, TX, op},
    table::Shared,
};
use crate::{
    sync::lock,
    virtio::{
        Fault, QueueHandler, Round,
        queue::{Chain, QueueError, Reader, Several, SeveralRoom},
    },
};

/// Serves `tx`. A packet never waits for room in the rx queue, but for one more refusal than can be kept.
///
/// Data of one connection that comes in packets one after the other goes to its host side at once.
pub(super) struct Transmit {
    shared: Arc<Shared>,
    room: Room,
    /// Of whom the last data was.
    current: Option<Arc<Connection>>,
    several: SeveralRoom,
    /// There was only one packet last: the first is not put together with others, which costs something.
    alone: bool,
}

/// Data that is sent at once.
const AT_ONCE: u32 = 256 << 10;

/// What became of a packet.
enum Taken {
    Done,
    /// It is none.
    Malformed,
    /// It is to be refused, and there is no room for that.
    Waits,
}

impl Transmit {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            room: Room::default(),
            current: None,
            several: SeveralRoom::default(),
            alone: false,
        }
    }

    /// Sends what was put together, and gives the packets back.
    fn send(
        shared: &Shared,
        room: &mut Room,
        current: Option<&Arc<Connection>>,
        mut packets: Several<'_, '_>,
    ) -> Result<(), QueueError> {
        let mut sent = Ok(());
        if let Some(connection) = current {
            let mut flow = lock(&connection.flow);
            sent = flow.send(&mut packets, room, &shared.options, &shared.failures);
            if sent.is_err() {
                // Of what they carry, some is lost.
                flow.kill();
            }
            shared.settle(connection, flow, TX);
        }
        while !packets.is_empty() {
            match sent {
                Ok(()) => packets.put(0)?,
                Err(_) => packets.refuse()?,
            }
        }
        Ok(())
    }

    fn take(&mut self, header: Option<&Header>, chain: &Chain<'_, '_>) -> Taken {
        let Some(header) = header else { return Taken::Malformed };
        let shared = &*self.shared;
        // "The guest_cid configuration field MUST be used as the source CID" (section 5.10.6.4.1). Nobody could be answered.
        if header.src_cid != u64::from(shared.options.guest_cid) {
            return Taken::Malformed;
        }
        let key = Key::of(header);
        let connection = match header.dst_cid {
            HOST_CID => shared.find(key),
            _ => None,
        };
        let kind = shared.kind(header.kind);
        if let Some(connection) = connection.filter(|connection| kind == Some(connection.kind)) {
            let mut flow = lock(&connection.flow);
            let requested = flow.phase == Phase::Requested;
            let taken = flow.packet(header, chain, &mut self.room, &shared.options, &shared.failures);
            if requested && flow.phase == Phase::Open {
                flow.established(key.host_port, &shared.failures);
            }
            if taken.is_err() {
                // Of what it carries, some is lost.
                flow.kill();
            }
            shared.settle(&connection, flow, TX);
            return match taken {
                Ok(()) => Taken::Done,
                Err(_) => Taken::Malformed,
            };
        }
        // A refusal is never refused.
        if header.op == op::RST {
            return Taken::Done;
        }
        if !shared.can_refuse() {
            return Taken::Waits;
        }
        // Another one of these ports would be another type.
        let fresh = shared.find(key).is_none();
        if let (HOST_CID, op::REQUEST, Some(kind), true) = (header.dst_cid, header.op, kind, fresh)
            && let Some(token) = shared.reserve()
        {
            match shared.host.connect(header.dst_port, header.src_port, kind, token) {
                Ok(stream) => {
                    shared.connected(key, token, kind, stream, header);
                    return Taken::Done;
                }
                Err(error) => {
                    shared.give_up();
                    // Nobody listens: that is no failure.
                    let nobody = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
                    if !nobody.contains(&error.kind()) {
                        shared.failures.record(error);
                    }
                }
            }
        }
        shared.refuse(header);
        Taken::Done
    }
}

/// Whether this is data that goes with other packets' of its connection, which is `current` if there are `others`. It is admitted then.
fn admits(shared: &Shared, current: &mut Option<Arc<Connection>>, header: &Header, carried: u32, others: bool) -> bool {
    if header.op != op::RW || !shared.is_for_host(header) {
        return false;
    }
    let key = Key::of(header);
    let there = |connection: &Arc<Connection>| connection.key == key;
    if !current.as_ref().is_some_and(there) {
        if others {
            return false;
        }
        *current = shared.find(key);
    }
    let Some(connection) = current else { return false };
    if connection.kind.code() != header.kind {
        return false;
    }
    let mut flow = lock(&connection.flow);
    if flow.phase == Phase::Gone {
        // Another one of these ports may be there by now.
        drop(flow);
        if !others {
            *current = None;
        }
        return false;
    }
    flow.admits(header, carried, &shared.options)
}

/// The header of a packet, if it has one, and how many bytes come after that.
#[inline]
fn header_of(mut reader: Reader<'_>, is_readable: bool) -> (Option<Header>, u32) {
    let mut bytes = [0; HEADER];
    let is_packet = is_readable && reader.read(&mut bytes).is_ok();
    (is_packet.then(|| Header::decode(&bytes)), reader.remaining())
}

impl QueueHandler for Transmit {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        self.shared.flush();
        let mut packets = 0;
        while let Some(chain) = round.next()? {
            packets += 1;
            let (header, carried) = header_of(chain.reader(), chain.writable().is_empty());
            let first = self.alone && packets == 1;
            let Self {
                shared,
                room,
                current,
                several,
                ..
            } = self;
            let usual = |header: &&Header| !first && admits(shared, current, header, carried, false);
            if let Some(header) = header.as_ref().filter(usual) {
                let mut data = chain.with_others(several, HEADER as u32, header.len);
                while data.bytes() < AT_ONCE
                    && let Some(other) = data.next()?
                {
                    let (header, carried) = header_of(other.reader(), other.writable().is_empty());
                    let usual = |header: &Header| admits(shared, current, header, carried, true);
                    let Some(header) = header.filter(usual) else { break };
                    data.push(HEADER as u32, header.len);
                    packets += 1;
                }
                Self::send(shared, room, current.as_ref(), data)?;
                round.publish()?;
                continue;
            }
            match self.take(header.as_ref(), &chain) {
                Taken::Done => chain.complete(0)?,
                Taken::Malformed => chain.refuse()?,
                Taken::Waits => break,
            }
        }
        if packets != 0 {
            self.alone = packets == 1;
        }
        // Until they say that they have no room, nobody tells of any.
        self.shared.flush();
        Ok(())
    }
}
