//! A port that lets through so much and no more.

use std::{io, sync::Mutex};

use vm_memory::VolatileSlice;

use super::{Header, Holder, Offloads, Port, PortOffloads, Progress, Received, Waker, port::length};
use crate::{
    rate::{NoRate, Rate, TokenBucket},
    sync::lock,
    time::Clock,
    virtio::Wait,
};

/// How much passes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes of frames.
    pub bytes: Option<Rate>,
    /// Frames.
    pub packets: Option<Rate>,
}

/// A port in front of another one, through which so much passes and no more: what is too much waits, in the guest's queue or where it
/// comes from.
///
/// A frame that is received is paid for when it is there, so that one is received as long as nothing is owed.
///
/// ```
/// use devisor::{rate::Rate, time::HostClock, virtio::net::{Limited, RateLimit, Wire}};
/// use std::time::Duration;
///
/// let megabyte = Rate { per_second: 1_000_000, burst: 64_000 };
/// let limit = RateLimit { bytes: Some(megabyte), packets: None };
/// let port = Limited::new(Wire::new(64), limit, limit, HostClock::starting_at(Duration::ZERO))?;
/// # let _ = port;
/// # Ok::<(), devisor::rate::NoRate>(())
/// ```
pub struct Limited<P, C> {
    port: P,
    clock: C,
    send: Mutex<Buckets>,
    receive: Mutex<Buckets>,
}

struct Buckets {
    bytes: Option<TokenBucket>,
    packets: Option<TokenBucket>,
}

impl Buckets {
    fn new(limit: RateLimit) -> Result<Self, NoRate> {
        Ok(Self {
            bytes: limit.bytes.map(TokenBucket::new).transpose()?,
            packets: limit.packets.map(TokenBucket::new).transpose()?,
        })
    }

    /// Whether a frame may pass, of so many bytes; or what it waits for.
    fn ready(&self, now: std::time::Duration, bytes: usize) -> Option<Wait> {
        let tokens = [(&self.bytes, bytes as u64), (&self.packets, 1)];
        let whens = tokens
            .iter()
            .filter_map(|(bucket, tokens)| bucket.as_ref()?.ready(now, *tokens).err());
        whens.max().map(Wait::Until)
    }

    fn pay(&mut self, now: std::time::Duration, bytes: usize) {
        if let Some(bucket) = &mut self.bytes {
            bucket.owe(now, bytes as u64);
        }
        if let Some(bucket) = &mut self.packets {
            bucket.owe(now, 1);
        }
    }

    fn give_back(&mut self, bytes: usize) {
        if let Some(bucket) = &mut self.bytes {
            bucket.give_back(bytes as u64);
        }
        if let Some(bucket) = &mut self.packets {
            bucket.give_back(1);
        }
    }
}

impl<P: Port, C: Clock> Limited<P, C> {
    /// `port` with these limits, by this clock.
    ///
    /// # Errors
    /// By one of the rates nothing would ever pass.
    pub fn new(port: P, send: RateLimit, receive: RateLimit, clock: C) -> Result<Self, NoRate> {
        Ok(Self {
            port,
            clock,
            send: Mutex::new(Buckets::new(send)?),
            receive: Mutex::new(Buckets::new(receive)?),
        })
    }

    /// Other limits from here on, with full buckets.
    ///
    /// # Errors
    /// As [`new`](Self::new); they are as they were.
    pub fn set(&self, send: RateLimit, receive: RateLimit) -> Result<(), NoRate> {
        let (send, receive) = (Buckets::new(send)?, Buckets::new(receive)?);
        *lock(&self.send) = send;
        *lock(&self.receive) = receive;
        Ok(())
    }

    /// What is behind it.
    pub fn port(&self) -> &P {
        &self.port
    }
}

impl<P: Port, C: Clock> Port for Limited<P, C> {
    fn offloads(&self) -> PortOffloads {
        self.port.offloads()
    }

    fn attach(&self, waker: Waker) {
        self.port.attach(waker);
    }

    fn steers(&self) -> bool {
        self.port.steers()
    }

    fn set_active(&self, by: Holder, active: bool) -> io::Result<()> {
        self.port.set_active(by, active)
    }

    fn set_offloads(&self, by: Holder, offloads: Offloads) -> io::Result<()> {
        self.port.set_offloads(by, offloads)
    }

    fn send(&self, header: &Header, frame: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
        let (now, len) = (self.clock.now(), length(frame));
        {
            // Paid for before it is sent: of several queues that send by this port only one has the tokens.
            let mut buckets = lock(&self.send);
            if let Some(wait) = buckets.ready(now, len) {
                return Ok(Progress::Later(Some(wait)));
            }
            buckets.pay(now, len);
        }
        let sent = self.port.send(header, frame);
        if !matches!(sent, Ok(Progress::Done(()))) {
            lock(&self.send).give_back(len);
        }
        sent
    }

    fn flush(&self) -> io::Result<Progress<()>> {
        self.port.flush()
    }

    fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>> {
        let now = self.clock.now();
        if let Some(wait) = lock(&self.receive).ready(now, 1) {
            return Ok(Progress::Later(Some(wait)));
        }
        let received = self.port.receive(room, overflow);
        if let Ok(Progress::Done(Received { len, .. })) = received {
            lock(&self.receive).pay(now, len);
        }
        received
    }
}
