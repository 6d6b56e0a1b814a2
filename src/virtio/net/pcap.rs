//! A port that writes down what passes, as `tcpdump` and `wireshark` read it.

use std::{
    io::{self, Write},
    sync::Mutex,
};

use vm_memory::VolatileSlice;

use super::{
    Header, Holder, MAX_FRAME, Offloads, Port, PortOffloads, Progress, Received, Waker,
    port::{copy_from, length},
};
use crate::{
    sync::lock,
    time::Clock,
    virtio::{FailureLog, HostFailures},
};

/// A port in front of another one, which writes all frames that pass to a file of libpcap's format (draft-ietf-opsawg-pcap), up to so
/// many bytes of each. Times are those of the clock, since whatever its origin is: the Unix epoch, to be read as dates.
///
/// The writer is called while a frame passes, so give it one that does not wait long (a [`BufWriter`](io::BufWriter)). When it fails,
/// that is the end of the record, and frames go on to pass.
///
/// ```
/// use devisor::{time::ManualClock, virtio::net::{Pcap, Wire}};
///
/// let port = Pcap::new(Wire::new(64), Vec::new(), 96, ManualClock::default());
/// assert_eq!(port.into_writer().len(), 24, "the header of the file");
/// ```
pub struct Pcap<P, W, C> {
    port: P,
    clock: C,
    snaplen: usize,
    record: Mutex<Record<W>>,
    failures: FailureLog,
}

struct Record<W> {
    writer: W,
    /// The header of a packet, and the packet.
    buffer: Box<[u8]>,
    ended: bool,
}

/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;
const PACKET_HEADER: usize = 16;

impl<P: Port, W: Write + Send, C: Clock> Pcap<P, W, C> {
    /// Records what passes `port` with `writer`: up to `snaplen` bytes of each frame.
    pub fn new(port: P, writer: W, snaplen: u32, clock: C) -> Self {
        let snaplen = MAX_FRAME.min(snaplen as usize).max(1);
        let mut record = Record {
            writer,
            buffer: vec![0; PACKET_HEADER + snaplen].into(),
            ended: false,
        };
        let failures = FailureLog::default();
        let mut header = Vec::with_capacity(24);
        // With times in nanoseconds, version 2.4, of UTC.
        for number in [0xa1b2_3c4d, 2 | 4 << 16, 0, 0, snaplen as u32, ETHERNET] {
            header.extend(number.to_le_bytes());
        }
        record.write(&failures, |writer, _| writer.write_all(&header));
        Self {
            port,
            clock,
            snaplen,
            record: Mutex::new(record),
            failures,
        }
    }

    /// What is behind it.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// Writes out what the writer holds.
    pub fn sync(&self) {
        lock(&self.record).write(&self.failures, |writer, _| writer.flush());
    }

    /// What the writer has failed at: that was the end of the record.
    pub fn failures(&self) -> HostFailures {
        self.failures.get()
    }

    /// The writer, with all that was recorded.
    pub fn into_writer(self) -> W {
        self.record
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .writer
    }

    fn note(&self, len: usize, copy: impl FnOnce(&mut [u8])) {
        let now = self.clock.now();
        let kept = len.min(self.snaplen);
        lock(&self.record).write(&self.failures, |writer, buffer| {
            let numbers = [now.as_secs() as u32, now.subsec_nanos(), kept as u32, len as u32];
            for (place, number) in buffer.chunks_exact_mut(4).zip(numbers) {
                place.copy_from_slice(&number.to_le_bytes());
            }
            copy(&mut buffer[PACKET_HEADER..PACKET_HEADER + kept]);
            writer.write_all(&buffer[..PACKET_HEADER + kept])
        });
    }
}

impl<W: Write> Record<W> {
    fn write(&mut self, failures: &FailureLog, write: impl FnOnce(&mut W, &mut [u8]) -> io::Result<()>) {
        if self.ended {
            return;
        }
        if let Err(error) = write(&mut self.writer, &mut self.buffer) {
            // A half packet is the last that can be read.
            self.ended = true;
            failures.record(error);
        }
    }
}

impl<P: Port, W: Write + Send, C: Clock> Port for Pcap<P, W, C> {
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
        let sent = self.port.send(header, frame);
        if let Ok(Progress::Done(())) = sent {
            self.note(length(frame), |data| _ = copy_from(frame, data));
        }
        sent
    }

    fn flush(&self) -> io::Result<Progress<()>> {
        self.port.flush()
    }

    fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>> {
        let received = self.port.receive(room, overflow);
        if let Ok(Progress::Done(Received { len, .. })) = received {
            let there = length(room) + overflow.len();
            self.note(len.min(there), |data| {
                let done = copy_from(room, data);
                let rest = data.len() - done;
                data[done..].copy_from_slice(&overflow[..rest]);
            });
        }
        received
    }
}
