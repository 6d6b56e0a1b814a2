//! The tx queue: packets of the guest.

use std::{io, sync::Arc};

use super::{
    connection::{Key, Phase, Room},
    registers::{HEADER, HOST_CID, Header, TX, op},
    table::Shared,
};
use crate::{
    sync::lock,
    virtio::{Fault, QueueHandler, Round, queue::Chain},
};

/// Serves `tx`. A packet never waits for room in the rx queue, but for one more refusal than can be kept.
pub(super) struct Transmit {
    shared: Arc<Shared>,
    room: Room,
}

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
        let room = Room::default();
        Self { shared, room }
    }

    fn take(&mut self, chain: &Chain<'_, '_>) -> Taken {
        let mut bytes = [0; HEADER];
        if !chain.writable().is_empty() || chain.reader().read(&mut bytes).is_err() {
            return Taken::Malformed;
        }
        let header = Header::decode(&bytes);
        let shared = &*self.shared;
        // "The guest_cid configuration field MUST be used as the source CID" (section 5.10.6.4.1). Nobody could be answered.
        if header.src_cid != u64::from(shared.options.guest_cid) {
            return Taken::Malformed;
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let connection = match header.dst_cid {
            HOST_CID => shared.find(key),
            _ => None,
        };
        let kind = shared.kind(header.kind);
        if let Some(connection) = connection.filter(|connection| kind == Some(connection.kind)) {
            let mut flow = lock(&connection.flow);
            let requested = flow.phase == Phase::Requested;
            let taken = flow.packet(&header, chain, &mut self.room, &shared.options, &shared.failures);
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
        let fresh = shared.find(key).is_none() && !shared.is_full();
        if let (HOST_CID, op::REQUEST, Some(kind), true) = (header.dst_cid, header.op, kind, fresh) {
            let token = shared.new_token();
            match shared.host.connect(header.dst_port, header.src_port, kind, token) {
                Ok(stream) => {
                    shared.connected(key, token, kind, stream, &header);
                    return Taken::Done;
                }
                Err(error) => {
                    // Nobody listens: that is no failure.
                    let nobody = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
                    if !nobody.contains(&error.kind()) {
                        shared.failures.record(error);
                    }
                }
            }
        }
        shared.refuse(&header);
        Taken::Done
    }
}

impl QueueHandler for Transmit {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        self.shared.flush();
        while let Some(chain) = round.next()? {
            match self.take(&chain) {
                Taken::Done => chain.complete(0)?,
                Taken::Malformed => chain.refuse()?,
                Taken::Waits => break,
            }
        }
        // Until they say that they have no room, nobody tells of any.
        self.shared.flush();
        Ok(())
    }
}
