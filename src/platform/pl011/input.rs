//! Input for the PL011 from a reader, as fast as the guest takes it.

use std::io;

use super::Pl011;
use crate::{interrupt::LevelInterrupt, platform::serial::MAX_DEPTH};

/// Moves characters from an [`io::Read`] into a [`Pl011`], and none is lost: what the guest has no room for waits
/// here, and no more is read while any waits.
///
/// Run it on a thread of its own with a blocking reader, or from an event loop with a non-blocking one.
///
/// ```
/// use devisor::{bus::BusDevice, interrupt::NoInterrupt, platform::pl011::{InputPump, Pl011, Pl011Config, Pumped}};
/// use std::{io, sync::mpsc};
///
/// let (wake, room) = mpsc::channel();
/// let uart = Pl011::new(Pl011Config::default(), NoInterrupt, io::sink()).with_room_hook(move || _ = wake.send(()));
///
/// let mut pump = InputPump::new(&b"ls\n"[..]);
/// let mut guest = Vec::new();
/// while pump.run(&uart)? == Pumped::Full {
///     let mut character = [0];
///     uart.read(0x000, &mut character); // The guest reads UARTDR, on a vCPU,
///     guest.extend(character);
///     room.recv().unwrap(); // and the pump goes on.
/// }
/// assert_eq!(guest, b"ls", "and the guest has yet to read the third");
/// # Ok::<(), io::Error>(())
/// ```
#[derive(Debug)]
pub struct InputPump<R> {
    input: R,
    buffer: [u8; MAX_DEPTH],
    start: usize,
    end: usize,
}

/// Why [`InputPump::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pumped {
    /// The guest has no room, and input waits: run again after the room hook.
    Full,
    /// The reader would block: run again when it is readable.
    Blocked,
    /// The reader has ended, and the guest has been given everything.
    Ended,
}

impl<R: io::Read> InputPump<R> {
    /// A pump for `input`.
    pub fn new(input: R) -> Self {
        Self {
            input,
            buffer: [0; MAX_DEPTH],
            start: 0,
            end: 0,
        }
    }

    /// Moves characters until the guest has no room or the reader no more.
    ///
    /// # Errors
    /// What the reader answered. What was read before has been given to the guest, and the pump can run again.
    pub fn run<L, W>(&mut self, uart: &Pl011<L, W>) -> io::Result<Pumped>
    where
        L: LevelInterrupt,
        W: io::Write + Send,
    {
        loop {
            self.start += uart.receive(&self.buffer[self.start..self.end]);
            if self.start < self.end {
                return Ok(Pumped::Full);
            }
            (self.start, self.end) = (0, 0);
            self.end = match self.input.read(&mut self.buffer) {
                Ok(0) => return Ok(Pumped::Ended),
                Ok(read) => read.min(MAX_DEPTH),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pumped::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
        }
    }
}
