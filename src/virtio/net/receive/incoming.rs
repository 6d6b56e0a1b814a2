//! What a receive queue and its port do together.

use std::{fmt, io};

use vm_memory::VolatileSlice;

use super::{
    OTHERS, Receiver, is_buffer,
    taken::{Receive, Taken},
};
use crate::virtio::{
    net::Progress,
    queue::{Ahead, Chain, ChainError, QueueError},
};

/// The room that a receive queue has, for a [`Port`](crate::virtio::net::Port).
pub struct Incoming<'a, 'q> {
    pub(super) by: &'a mut Receiver,
    pub(super) ahead: Ahead<'a, 'q>,
    /// How many frames the guest has got in this round.
    pub(super) got: u32,
    /// How many were not for this queue.
    pub(super) others: u32,
    /// There is something in the backlog, which comes first.
    pub(super) again: bool,
    pub(super) broken: Result<(), QueueError>,
}

impl Incoming<'_, '_> {
    /// Receives one frame after the other by `receive`, which is [`Port::receive`](crate::virtio::net::Port::receive), until there is no room, or nothing.
    pub fn each(&mut self, receive: &mut Receive<'_>) {
        self.run(&mut |_, _, _| None, &mut |by, chain| by.take_frame(chain, receive));
    }

    /// As [`each`](Self::each), but where a buffer is in one piece and the guest's header is that of section 5.1.6 alone: that comes in
    /// front of the frame there.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for TAP interfaces"))]
    pub(in crate::virtio::net) fn each_with_header(
        &mut self,
        packet: &mut impl FnMut(&VolatileSlice<'_>, &mut [u8]) -> io::Result<Progress<usize>>,
        receive: &mut Receive<'_>,
    ) {
        self.run(
            &mut |by, chain, taken| by.take_packet(chain, packet, taken),
            &mut |by, chain| by.take_frame(chain, receive),
        );
    }

    /// `near` is the short way, which has taken a frame of so many bytes, header included, or has said what it is, or nothing.
    #[inline(always)]
    fn run(
        &mut self,
        near: &mut impl FnMut(&mut Receiver, &Chain<'_, '_>, &mut Option<Taken>) -> Option<u32>,
        take: &mut impl FnMut(&mut Receiver, &Chain<'_, '_>) -> Result<Taken, ChainError>,
    ) {
        let ended = loop {
            match self.next(near, take) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // A port may receive in several ways, one after the other.
        self.broken = self.broken.and(ended);
    }

    /// Whether another frame may be received.
    #[inline]
    pub(super) fn goes_on(&mut self) -> bool {
        self.again = self.by.waits();
        if self.again || self.broken.is_err() {
            return false;
        }
        if self.others >= OTHERS {
            self.by.look(self.by.pair);
            return false;
        }
        true
    }

    /// Whether there may be more.
    #[inline(always)]
    fn next(
        &mut self,
        near: &mut impl FnMut(&mut Receiver, &Chain<'_, '_>, &mut Option<Taken>) -> Option<u32>,
        take: &mut impl FnMut(&mut Receiver, &Chain<'_, '_>) -> Result<Taken, ChainError>,
    ) -> Result<bool, QueueError> {
        if !self.goes_on() {
            return Ok(false);
        }
        let Self { by, ahead, .. } = self;
        let round = ahead.round();
        let Some(chain) = round.next()? else {
            return Ok(false);
        };
        if !is_buffer(&chain, by.seen.header_len) {
            chain.refuse()?;
            return Ok(true);
        }
        let mut taken = None;
        if let Some(len) = near(by, &chain, &mut taken) {
            chain.put(len)?;
            self.got += 1;
            return Ok(true);
        }
        let Ok(taken) = taken.map_or_else(|| take(by, &chain), Ok) else {
            chain.refuse()?;
            return Ok(true);
        };
        match taken {
            Taken::InPlace(header, hash, len) => match by.write_header(&chain, header, hash, 1) {
                Ok(header_len) => {
                    chain.put(header_len + len as u32)?;
                    self.got += 1;
                }
                Err(_) => chain.refuse()?,
            },
            Taken::Begun(begun) => {
                by.held.push(chain.take());
                by.go_on(round, begun)?;
                self.got += 1;
            }
            Taken::Copied(pair, frame) => {
                by.keep(pair, frame);
                self.others += 1;
            }
            Taken::Lost(verdict) => {
                by.count(verdict);
                self.others += 1;
            }
            Taken::Nothing(wait) => {
                wait.into_iter().for_each(|wait| round.wait(wait));
                return Ok(false);
            }
            Taken::Failed(error) => {
                use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
                let of_what_was_sent = matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable);
                by.shared.failures.record(error);
                self.others += 1;
                return Ok(of_what_was_sent);
            }
        }
        Ok(true)
    }
}

impl fmt::Debug for Incoming<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("got", &self.got)
            .finish_non_exhaustive()
    }
}
