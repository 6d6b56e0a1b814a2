//! A transmit queue (virtio 1.2, section 5.1.6.2).

use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::{
    Header, Port, Progress,
    backlog::frame_buffer,
    checksum,
    hash::LOOK,
    header::{MAX_FRAME, MIN_FRAME},
    port::copy_from,
    registers::header::LEN,
    shared::{Seen, Shared},
};
use crate::virtio::{
    Fault, QueueHandler, Round,
    queue::{Chain, ChainError, Slices},
};

/// Serves `transmitqN`.
pub(super) struct Transmitter {
    shared: Arc<Shared>,
    pair: u16,
    seen: Seen,
    room: Slices,
    /// For frames whose checksum the device completes.
    bounce: Option<Box<[u8]>>,
}

/// What became of a frame.
enum Sent {
    /// It is on its way, or lost.
    Gone,
    Later(Option<crate::virtio::Wait>),
    /// The driver must not have it sent.
    Refused,
}

impl Transmitter {
    pub fn new(shared: Arc<Shared>, pair: u16) -> Self {
        Self {
            seen: Seen::new(&shared),
            shared,
            pair,
            room: Slices::default(),
            bounce: None,
        }
    }

    fn send(&mut self, chain: &Chain<'_, '_>) -> Result<Sent, ChainError> {
        let Self {
            shared,
            pair,
            seen,
            room,
            bounce,
            ..
        } = self;
        let header_len = seen.header_len;
        let len = (chain.readable_len() as usize).checked_sub(header_len);
        let Some(len) = len.filter(|len| (MIN_FRAME..=MAX_FRAME).contains(len)) else {
            return Ok(Sent::Refused);
        };
        let mut bytes = [0; LEN];
        let (mut head, frame) = chain.reader().split_at(header_len as u32)?;
        // Once: the driver can change it.
        head.read(&mut bytes)?;
        let Ok(mut header) = Header::from_bytes(&bytes).checked(len, seen.host) else {
            return Ok(Sent::Refused);
        };
        if !seen.settings.link_up {
            shared
                .counters
                .link_down
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return Ok(Sent::Gone);
        }
        let port = &*shared.pairs[usize::from(*pair)].port;
        let completes = header.needs_checksum() && !shared.port_offloads.send.checksum;
        let sent = frame.with_slices(room, |frame| {
            if seen.steers {
                let mut start = [0; LOOK];
                let len = copy_from(frame, &mut start);
                shared.note_flow(&start[..len], *pair);
            }
            if !completes {
                return port.send(&header, frame);
            }
            let bounce = bounce.get_or_insert_with(frame_buffer);
            let len = copy_from(frame, bounce);
            checksum::complete(&mut header, &mut bounce[..len]);
            port.send(&header, &[VolatileSlice::from(&mut bounce[..len])])
        })?;
        Ok(match sent {
            Ok(Progress::Done(())) => Sent::Gone,
            Ok(Progress::Later(wait)) => Sent::Later(wait),
            Err(error) => {
                shared.failures.record(error);
                Sent::Gone
            }
        })
    }

    /// Goes on with what was sent in part. Whether there is none of it any more.
    fn flush(&self, round: &mut Round<'_>) -> bool {
        match self.port().flush() {
            Ok(Progress::Done(())) => true,
            Ok(Progress::Later(wait)) => {
                wait.into_iter().for_each(|wait| round.wait(wait));
                false
            }
            Err(error) => {
                self.shared.failures.record(error);
                true
            }
        }
    }

    fn port(&self) -> &dyn Port {
        &*self.shared.pairs[usize::from(self.pair)].port
    }
}

impl QueueHandler for Transmitter {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let generation = self.shared.generation();
        self.seen.refresh(&self.shared, generation);
        if !self.flush(round) {
            return Ok(());
        }
        while let Some(chain) = round.next()? {
            match self.send(&chain) {
                // Nothing is written into a chain of this queue.
                Ok(Sent::Gone) => chain.put(0)?,
                Ok(Sent::Refused) | Err(_) => chain.refuse()?,
                Ok(Sent::Later(wait)) => {
                    // The frame stays where it is.
                    wait.into_iter().for_each(|wait| round.wait(wait));
                    return Ok(());
                }
            }
        }
        self.flush(round);
        Ok(())
    }
}
