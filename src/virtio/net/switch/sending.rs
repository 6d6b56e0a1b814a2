//! Frames on their way from a port of a switch to others.

use std::{
    io,
    sync::{Arc, MutexGuard},
};

use super::{AT_ONCE, Inner, Shared, Waiting};
use crate::{
    sync::lock,
    virtio::net::{
        Header, Mac, Progress,
        header::HEADROOM,
        transmit::{Ends, Sink, ends},
    },
};

/// A port to which several frames in a row go.
struct Open<'a> {
    port: &'a Arc<Shared>,
    waiting: MutexGuard<'a, Waiting>,
    /// Nothing had waited before.
    wakes: bool,
    /// For as many frames and bytes it may be written into at once.
    frames: usize,
    bytes: usize,
}

/// Frames on their way from a port to others.
pub(super) struct Sending<'a> {
    switch: &'a Inner,
    from: &'a Shared,
    ports: &'a [Option<Arc<Shared>>],
    scratch: Box<[u8]>,
    /// Where the last frame went, if to one port, and its addresses: frames with the same ones are put there at once.
    target: Option<(&'a Arc<Shared>, Ends)>,
    /// The target, most often.
    open: Option<Open<'a>>,
    /// The room is in its memory, and not in `scratch`.
    in_place: bool,
    /// The source of frames to the target is known to be here.
    learned: bool,
}

fn macs(ends: &Ends) -> (Mac, Mac) {
    let mac = |at: usize| Mac(std::array::from_fn(|byte| ends[at + byte]));
    (mac(0), mac(6))
}

impl<'a> Sending<'a> {
    pub fn new(switch: &'a Inner, from: &'a Shared, ports: &'a [Option<Arc<Shared>>], scratch: Box<[u8]>) -> Self {
        let mut sending = Self {
            switch,
            from,
            ports,
            scratch,
            target: None,
            open: None,
            in_place: false,
            learned: false,
        };
        // Most often the frames go where the last one went.
        let last = from.last.try_lock().ok().and_then(|last| *last);
        sending.target = last.and_then(|ends| Some((sending.find(macs(&ends).0)?, ends)));
        sending
    }

    /// The source is here.
    fn learn(&mut self, ends: &Ends) {
        let (_, from) = macs(ends);
        if from.is_station() {
            self.switch.learn(from, self.from.number);
        }
        self.learned = true;
    }

    /// Finds the destination, if that is one port: because it is known, or there is no other.
    fn find(&self, to: Mac) -> Option<&'a Arc<Shared>> {
        let known = self.switch.find(to).filter(|_| !to.is_group());
        let port = known.and_then(|number| self.ports.get(usize::from(number))?.as_ref());
        port.or_else(|| {
            let mut others = self.others();
            others.next().filter(|_| others.next().is_none())
        })
    }

    /// Whether the target is open, and has room.
    #[inline]
    fn has_open(&self) -> bool {
        let open = self.open.as_ref().filter(|_| self.target.is_some());
        open.is_some_and(|open| open.frames != 0 && open.bytes != 0)
    }

    fn others(&self) -> impl Iterator<Item = &'a Arc<Shared>> + use<'a> {
        let number = self.from.number;
        self.ports.iter().flatten().filter(move |port| port.number != number)
    }

    fn open(&mut self, port: &'a Arc<Shared>) {
        if let Some(open) = &self.open
            && Arc::ptr_eq(open.port, port)
        {
            return;
        }
        self.close();
        let waiting = lock(&port.waiting);
        let (frames, bytes) = port.room(&waiting, &self.switch.options);
        self.open = Some(Open {
            port,
            wakes: waiting.burst.is_empty(),
            frames: if waiting.active { frames.min(AT_ONCE) } else { 0 },
            waiting,
            bytes,
        });
    }

    /// Opens the target anew.
    #[cold]
    fn open_target(&mut self) {
        if let Some((port, _)) = self.target {
            self.close();
            self.open(port);
        }
    }

    fn close(&mut self) {
        if let Some(Open {
            port, waiting, wakes, ..
        }) = self.open.take()
        {
            let wakes = wakes && !waiting.burst.is_empty();
            drop(waiting);
            // With nothing locked.
            if wakes {
                port.wake();
            }
        }
    }

    /// All of them are sent. The room for any packet comes back.
    pub fn end(mut self) -> Box<[u8]> {
        self.close();
        if let Ok(mut last) = self.from.last.try_lock() {
            *last = self.target.map(|(_, ends)| ends);
        }
        self.scratch
    }

    /// Has a frame wait where it is, if that is where it goes. Whether it is.
    #[inline]
    fn send_in_place(&mut self, header: &Header, len: usize, ends: &Ends) -> bool {
        let (Some(open), Some((_, last))) = (&mut self.open, &self.target) else {
            return false;
        };
        if !self.in_place || header.is_large() || ends != last {
            return false;
        }
        open.waiting.burst.push(*header, len);
        open.frames -= 1;
        open.bytes = open.bytes.saturating_sub(len);
        if !self.learned {
            // It may have been elsewhere since the last round.
            let last = *last;
            self.learn(&last);
        }
        true
    }

    /// Sends a frame that is not for where the last one went, or has to be looked at.
    #[cold]
    fn send_elsewhere(&mut self, header: &Header, len: usize) {
        if let Some(open) = &self.open
            && self.in_place
        {
            self.scratch[..HEADROOM + len].copy_from_slice(open.waiting.burst.in_room(HEADROOM + len));
        }
        let ends = ends(&self.scratch);
        self.learn(&ends);
        let port = self.find(macs(&ends).0);
        self.target = None;
        match port {
            // To itself.
            Some(port) if port.number == self.from.number => {}
            Some(port) => {
                self.put(port, header, len);
                self.target = Some((port, ends));
            }
            None => {
                for port in self.others() {
                    self.put(port, header, len);
                }
            }
        }
    }

    fn put(&mut self, port: &'a Arc<Shared>, header: &Header, len: usize) {
        self.open(port);
        if let Some(open) = &mut self.open {
            let packet = &self.scratch[..HEADROOM + len];
            port.put(&mut open.waiting, &self.switch.options, header, packet);
            let (frames, bytes) = port.room(&open.waiting, &self.switch.options);
            (open.frames, open.bytes) = (open.frames.min(frames), bytes);
        }
    }
}

impl Sink for Sending<'_> {
    #[inline]
    fn room(&mut self, len: usize, like: u64) -> &mut [u8] {
        self.in_place = self.has_open();
        if !self.in_place && self.target.is_some() {
            self.open_target();
            self.in_place = self.has_open();
        }
        match &mut self.open {
            Some(open) if self.in_place => open.waiting.burst.room_like(len, like),
            _ => &mut self.scratch,
        }
    }

    #[inline(always)]
    fn send(&mut self, header: &Header, len: usize, ends: &Ends) -> io::Result<Progress<()>> {
        if !self.send_in_place(header, len, ends) {
            self.send_elsewhere(header, len);
        }
        Ok(Progress::Done(()))
    }
}
