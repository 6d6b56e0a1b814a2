//! The tx queue: packets of the guest.

use std::{io, sync::Arc};

use super::{
    connection::{Connection, Key, Phase, Room},
    registers::{HEADER, HOST_CID, Header, TX, op},
    table::Shared,
};
use crate::{
    sync::lock,
    virtio::{Fault, QueueHandler, Round, gathered::Gathered, queue::Chain},
};

/// Serves `tx`. A packet never waits for room in the rx queue, but for one more refusal than can be kept.
///
/// Data of one connection that comes in packets one after the other goes to its host side at once.
pub(super) struct Transmit {
    shared: Arc<Shared>,
    room: Room,
    /// Of whom the last data was.
    current: Option<Arc<Connection>>,
    /// Packets with data of that one that was admitted, and not sent yet.
    gathered: Gathered,
    /// There was only one packet last: the first is not taken up, which costs something.
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
            gathered: Gathered::default(),
            alone: false,
        }
    }

    /// Whether this is data that goes with other packets' of its connection. It is admitted then.
    fn admits(&mut self, header: &Header, carried: u32) -> bool {
        let (shared, key) = (&*self.shared, Key::of(header));
        if header.op != op::RW || !shared.is_for_host(header) || self.gathered.is_full() {
            return false;
        }
        let there = |connection: &Arc<Connection>| connection.key == key;
        if !self.current.as_ref().is_some_and(there) {
            if !self.gathered.is_empty() {
                return false;
            }
            self.current = shared.find(key);
        }
        let Some(connection) = &self.current else { return false };
        if connection.kind.code() != header.kind {
            return false;
        }
        let mut flow = lock(&connection.flow);
        if flow.phase == Phase::Gone {
            // Another one of these ports may be there by now.
            drop(flow);
            self.current = None;
            return false;
        }
        flow.admits(header, carried, &shared.options)
    }

    /// Sends what was gathered, and gives the packets back.
    fn send(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let Self {
            shared,
            room,
            current,
            gathered,
            ..
        } = self;
        let mut sent = Ok(());
        if let Some(connection) = current {
            let mut flow = lock(&connection.flow);
            sent = flow.send(gathered, room, &shared.options, &shared.failures);
            if sent.is_err() {
                // Of what they carry, some is lost.
                flow.kill();
            }
            shared.settle(connection, flow, TX);
        }
        for part in gathered.drain() {
            match sent {
                Ok(()) => round.put(part.chain, 0)?,
                Err(_) => part.chain.refuse(),
            }
        }
        Ok(round.publish()?)
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

impl QueueHandler for Transmit {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        self.shared.flush();
        let mut packets = 0;
        while let Some(chain) = round.next()? {
            packets += 1;
            let mut bytes = [0; HEADER];
            let is_packet = chain.writable().is_empty() && chain.reader().read(&mut bytes).is_ok();
            let header = is_packet.then(|| Header::decode(&bytes));
            let carried = chain.readable_len().saturating_sub(HEADER as u32);
            let first = self.alone && packets == 1;
            if let Some(header) = header.as_ref().filter(|header| !first && self.admits(header, carried)) {
                self.gathered.push(chain.take(), HEADER as u32, header.len);
                if self.gathered.is_full() || self.gathered.bytes() >= AT_ONCE {
                    self.send(round)?;
                }
                continue;
            }
            if !self.gathered.is_empty() {
                // First things first; then this one is found again.
                self.send(round)?;
                continue;
            }
            match self.take(header.as_ref(), &chain) {
                Taken::Done => chain.complete(0)?,
                Taken::Malformed => chain.refuse()?,
                Taken::Waits => break,
            }
        }
        if !self.gathered.is_empty() {
            self.send(round)?;
        }
        if packets != 0 {
            self.alone = packets == 1;
        }
        // Until they say that they have no room, nobody tells of any.
        self.shared.flush();
        Ok(())
    }
}
