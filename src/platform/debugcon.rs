//! The debug console of Bochs and QEMU: a port that prints what is written, and tells by what it reads as that it is there. Firmware
//! logs to it.

use std::{
    fmt, io,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{bus::BusDevice, sync::lock};

/// How many ports: 0x402, where SeaBIOS and OVMF look for it; Bochs has it at 0xe9.
pub const PORTS: u64 = 1;

/// What the port reads as: "0xe9 is 0xe9".
const PRESENT: u8 = 0xe9;

/// A debug console: its port is its [`BusDevice`] face, `W` takes what the guest prints.
///
/// The guest cannot be told to wait, so what the writer does not take at once is lost, and counted. A writer that blocks holds up the
/// vCPU that prints, and others that print.
///
/// ```
/// use devisor::{bus::BusDevice, platform::debugcon::DebugCon};
///
/// let debugcon = DebugCon::new(std::io::stderr());
/// let mut present = [0];
/// debugcon.read(0, &mut present);
/// assert_eq!(present, [0xe9]);
/// debugcon.write(0, b"!");
/// ```
pub struct DebugCon<W> {
    output: Mutex<W>,
    lost: AtomicU64,
}

impl<W: io::Write + Send> DebugCon<W> {
    /// A console that prints to `output`.
    pub fn new(output: W) -> Self {
        Self {
            output: Mutex::new(output),
            lost: AtomicU64::new(0),
        }
    }

    /// How many characters the writer did not take.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// A wider access writes each of its bytes, as a string instruction does with a byte at a time.
impl<W: io::Write + Send> BusDevice for DebugCon<W> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == 0 { PRESENT } else { 0 });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset != 0 {
            return;
        }
        let mut output = lock(&self.output);
        let mut left = data;
        while !left.is_empty() {
            match output.write(left) {
                Ok(0) => break,
                Ok(count) => left = left.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.lost.fetch_add(left.len() as u64, Ordering::Relaxed);
    }
}

impl<W> fmt::Debug for DebugCon<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugCon")
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, atomic::AtomicU32};

    /// Takes three bytes, of which it takes one at a time, after an interruption.
    #[derive(Clone, Default)]
    struct Three(Arc<Mutex<Vec<u8>>>, Arc<AtomicU32>);

    impl io::Write for Three {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.1.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let mut taken = lock(&self.0);
            if taken.len() == 3 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            taken.push(bytes[0]);
            Ok(1)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_guest_prints_and_what_the_writer_refuses_is_counted() {
        let output = Three::default();
        let debugcon = DebugCon::new(output.clone());
        debugcon.write(0, b"a");
        debugcon.write(0, b"bc");
        assert_eq!(*lock(&output.0), b"abc");
        assert_eq!(debugcon.lost(), 0);
        debugcon.write(0, b"de");
        assert_eq!(debugcon.lost(), 2);
    }

    #[test]
    fn the_port_says_that_it_is_there_and_the_next_one_does_not() {
        let debugcon = DebugCon::new(io::sink());
        let mut byte = [0];
        debugcon.read(0, &mut byte);
        assert_eq!(byte, [0xe9]);
        debugcon.read(1, &mut byte);
        assert_eq!(byte, [0]);
        debugcon.write(1, b"x");
        assert_eq!(debugcon.lost(), 0);
    }
}
