//! A connection makes progress: requests are read, begun, and done once what has to come to rest has.

use std::{io, sync::atomic::Ordering};

use super::{
    Connection, VhostUser,
    channel::{self, Expected, file_of},
    error::ConnectionError,
    regions::Regions,
    requests,
    session::{Answer, Begun, Rest, Session},
    transfer::Transfer,
};
use crate::{
    sync::lock,
    virtio::{
        VirtioDevice,
        vhost_user::{FrontRequest, Message, Received, protocol_feature},
    },
};

/// How many requests are done in one call.
const TURN: usize = 64;

impl<D: VirtioDevice> VhostUser<D> {
    /// Does what the front end asks for, a bounded number of requests. Whether there may be more to do at once.
    ///
    /// # Errors
    /// The connection has ended. The device is reset, and takes [another](Self::connect).
    pub fn serve_connection(&self) -> Result<bool, ConnectionError> {
        // It wakes if there is no room still, and that is waited for.
        self.core.tell_config_if_owed();
        let _ = self.wake.take();
        self.objects.tell(&self.lines);
        let result = self.advance_connection(&mut lock(&self.connection));
        self.lines.tell_found();
        result
    }

    fn advance_connection(&self, connection: &mut Connection) -> Result<bool, ConnectionError> {
        // Before the connection is read, by whoever reads it: what is to come was said there before the answer.
        self.hear();
        if !self.settle(connection) {
            return Ok(false);
        }
        let Some(session) = &mut connection.session else {
            return Ok(false);
        };
        let result = self.advance(session);
        if result.is_err() {
            self.end_connection(connection);
        }
        result
    }

    /// Hears what the front end answers to requests of the back end's own: all that may be, for of what nobody answers any more nothing
    /// tells that there is more of it.
    fn hear(&self) {
        for _ in 0..channel::MOST {
            match self.lines.next_answer() {
                None => return,
                Some((Expected::Object(found), message)) => self.lines.keep_found(found, message.and_then(file_of)),
                Some((Expected::Translation(page, access), _)) => self.iotlb.hear(page, access),
            }
        }
    }

    pub(super) fn end_connection(&self, connection: &mut Connection) {
        let session = connection.session.take();
        self.lines.forget_all();
        self.iotlb.forget();
        self.objects.forget();
        self.core.begin_reset();
        self.core.end_bus_stops();
        connection.settled = false;
        self.settle(connection);
        drop(session);
    }

    /// Whether the device has come to rest after the last connection.
    fn settle(&self, connection: &mut Connection) -> bool {
        if connection.settled {
            return true;
        }
        self.core.finish_reset();
        if !self.core.is_resetting() {
            self.told_failure.store(false, Ordering::SeqCst);
            connection.settled = match Regions::default().memory(None) {
                Ok(nothing) => {
                    if let Some(told) = &self.options.memory {
                        told.set(&Regions::default());
                    }
                    self.memory.replace(&nothing);
                    self.iotlb.set_regions(&Regions::default());
                    self.platform.translate(false);
                    true
                }
                Err(_) => false,
            };
        }
        connection.settled
    }

    fn advance(&self, session: &mut Session) -> Result<bool, ConnectionError> {
        let more = self.advance_transfer(session);
        let more = self.advance_requests(session)? || more;
        let is_heard = !more && session.begun.is_none() && !session.socket.is_full();
        if is_heard && self.translates() && self.iotlb.give_up() {
            self.look_again(session);
        }
        Ok(more)
    }

    fn advance_requests(&self, session: &mut Session) -> Result<bool, ConnectionError> {
        for _ in 0..TURN {
            session.socket.flush()?;
            // Who does not read answers is not heard.
            if session.socket.is_full() {
                return Ok(false);
            }
            let Some(mut begun) = session.begun.take() else {
                match Self::next_message(session)? {
                    None => return Ok(false),
                    Some(message) => self.begin(session, message)?,
                }
                continue;
            };
            let mut next = None;
            if !self.is_at_rest(session, &begun.rest) {
                if let Rest::Transfer = begun.rest {
                    // Its other end may stay open when the front end has gone.
                    next = Self::next_message(session)?;
                }
                if next.is_none() {
                    session.begun = Some(begun);
                    return Ok(false);
                }
                session.transfer = Some(Transfer::Over(Err("a state that nobody waits for any more".into())));
            }
            let answer = match begun.rest {
                // It was done before.
                Rest::Unused(_) => Ok(Answer::Payload(requests::DONE.into())),
                _ => self.perform(session, &mut begun),
            };
            let answer = answer.unwrap_or_else(|reason| {
                if let Rest::Rings(rings) = &begun.rest {
                    // They begin again as they were.
                    rings.iter().for_each(|&index| self.end(session, index));
                }
                self.refuse(reason.clone());
                Answer::Refused(reason)
            });
            if let Answer::Unused(ticket) = answer {
                // Devices give back what they keep for later.
                self.core.begin_bus_stop();
                begun.rest = Rest::Unused(ticket);
                session.begun = Some(begun);
                continue;
            }
            if let Rest::All | Rest::Unused(_) = begun.rest {
                self.core.end_bus_stops();
            }
            let needed = session.has(protocol_feature::REPLY_ACK) && begun.message.header.needs_reply();
            self.start_rings(session);
            session.answer(begun.request, needed, answer)?;
            if let Some(message) = next {
                self.begin(session, message)?;
            }
        }
        Ok(true)
    }

    fn next_message(session: &mut Session) -> Result<Option<Message>, ConnectionError> {
        match session.socket.receive() {
            Ok(Received::Nothing) => Ok(None),
            Ok(Received::Message(message)) => Ok(Some(message)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Err(ConnectionError::Closed),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes why a request was refused.
    pub(super) fn refuse(&self, reason: String) {
        self.refusals.record(io::Error::other(reason));
    }

    fn begin(&self, session: &mut Session, message: Message) -> Result<(), ConnectionError> {
        let number = message.header.request;
        let request = FrontRequest::new(number).filter(|_| !message.header.is_reply());
        let negotiated = |request: &FrontRequest| requests::needs(*request).is_none_or(|feature| session.has(feature));
        let Some(request) = request.filter(negotiated) else {
            return Err(ConnectionError::Request(number));
        };
        let rest = self.rest_for(session, request, &message);
        match &rest {
            Rest::Nothing | Rest::Unused(_) | Rest::Transfer => {}
            Rest::Rings(rings) => rings.iter().for_each(|&index| self.core.begin_ring_stop(index)),
            Rest::All => self.core.begin_bus_stop(),
            Rest::Device => {
                (0..session.rings.len()).for_each(|index| self.lines.stops(index));
                session.rings.iter_mut().for_each(|ring| ring.runs = None);
                self.core.begin_reset();
                self.core.end_bus_stops();
                self.told_failure.store(false, Ordering::SeqCst);
            }
        }
        session.begun = Some(Begun { request, message, rest });
        Ok(())
    }

    fn is_at_rest(&self, session: &Session, rest: &Rest) -> bool {
        match rest {
            Rest::Nothing => true,
            Rest::Transfer => session.transfer.as_ref().is_none_or(Transfer::is_over),
            Rest::Rings(rings) => rings.iter().all(|&index| self.core.is_ring_still(index)),
            Rest::Unused(ticket) => ticket.strong_count() == 0,
            Rest::All => self.core.are_rings_still(),
            Rest::Device => {
                self.core.finish_reset();
                !self.core.is_resetting()
            }
        }
    }
}
