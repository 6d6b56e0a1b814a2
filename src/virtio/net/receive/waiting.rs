//! Frames of the backlog: for another queue when they came, or without room.

use std::sync::atomic::Ordering::SeqCst;

use super::{Receiver, is_buffer, start_of};
use crate::{
    sync::lock,
    virtio::{
        Round,
        net::{
            Header, NetFrame, checksum,
            hash::{LOOK, Packet},
            registers::feature,
            verdict::{Verdict, judge_here, report},
        },
        queue::QueueError,
    },
};

/// Whether a frame that waited was delivered.
pub(super) enum Delivery {
    Done,
    /// There are not enough buffers.
    NoRoom,
}

impl Receiver {
    /// Delivers the frame that waits first.
    pub(super) fn deliver(&mut self, round: &mut Round<'_>) -> Result<Delivery, QueueError> {
        let Some(mut frame) = self.pop() else {
            return Ok(Delivery::Done);
        };
        let header_len = self.seen.header_len;
        let mergeable = self.seen.settings.has(feature::MRG_RXBUF);
        // What was negotiated or set may have changed while it waited.
        let start = &frame.data[..frame.data.len().min(LOOK)];
        let verdict = judge_here(&self.seen, &frame.header, start, frame.data.len());
        let (header, hash) = match verdict {
            Verdict::Here(header, hash) => (header, hash),
            Verdict::Checksum => {
                checksum::complete(&mut frame.header, &mut frame.data);
                (
                    Header::default(),
                    report(&self.seen.settings, Packet::parse(start_of(&frame.data)).as_ref()),
                )
            }
            lost => {
                self.count(lost);
                // They go back, and are found again first: the next frame may need fewer, or may be received elsewhere.
                self.held.clear();
                self.recycle(frame);
                return Ok(Delivery::Done);
            }
        };
        let needed = header_len + frame.data.len();
        let mut room: usize = self.held.iter().map(|chain| chain.writable_len() as usize).sum();
        while room < needed {
            let Some(chain) = round.next()? else {
                self.put_back(frame);
                return Ok(Delivery::NoRoom);
            };
            let len = chain.writable_len() as usize;
            if !is_buffer(&chain, header_len) {
                chain.refuse()?;
                continue;
            }
            if self.held.is_empty() && (len >= needed || !mergeable) {
                if len < needed {
                    self.count(Verdict::Dropped);
                } else {
                    let written = self.write_header(&chain, header, hash, 1).and_then(|header_len| {
                        let (_, mut body) = chain.writer().split_at(header_len)?;
                        body.write(&frame.data)
                    });
                    match written {
                        Ok(()) => chain.put(needed as u32)?,
                        Err(_) => chain.refuse()?,
                    }
                }
                self.recycle(frame);
                return Ok(Delivery::Done);
            }
            room += len;
            self.held.push(chain.take());
        }
        self.spread(round, 0, &frame.data, header, hash)?;
        self.recycle(frame);
        Ok(Delivery::Done)
    }

    pub(super) fn pop(&self) -> Option<NetFrame> {
        let pair = &self.shared.pairs[self.pair];
        let mut backlog = lock(&pair.backlog);
        let frame = backlog.pop();
        if frame.is_none() {
            pair.waits.store(false, SeqCst);
        }
        frame
    }

    pub(super) fn put_back(&self, frame: NetFrame) {
        lock(&self.shared.pairs[self.pair].backlog).put_back(frame);
    }

    fn recycle(&self, frame: NetFrame) {
        lock(&self.shared.pairs[self.pair].backlog).recycle(frame.data);
    }

    /// Has a frame wait for a queue.
    pub(super) fn keep(&self, pair: usize, frame: NetFrame) {
        let to = &self.shared.pairs[pair];
        if pair == self.pair {
            // The next of this round.
            lock(&to.backlog).put_back(frame);
            to.waits.store(true, SeqCst);
        } else if to.receives.load(SeqCst) && lock(&to.backlog).push(frame, self.shared.options.backlog) {
            if !to.waits.swap(true, SeqCst) {
                self.look(pair);
            }
        } else {
            self.count(Verdict::Dropped);
        }
    }

    /// This queue is not in use any more: what waits for it is for the first.
    pub(super) fn hand_over(&mut self) {
        self.held.clear();
        while let Some(frame) = self.pop() {
            self.keep(0, frame);
        }
    }
}
