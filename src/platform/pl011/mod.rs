//! The PL011 UART, as in *PrimeCell UART (PL011) Technical Reference Manual* r1p5, ARM DDI 0183G.
//!
//! [`Pl011`] is the device; [`InputPump`] brings it characters from an [`io::Read`].
//!
//! What the model leaves out is time on the wire: a character is a byte that leaves as soon as the transmitter and
//! the output let it. Baud rate, word length, parity and IrDA settings read back and change nothing, and there is no
//! DMA controller to answer UARTDMACR.
//!
//! Drivers acknowledge (UARTICR) before they move characters or after, and both keep up, though what on a wire comes a moment
//! after the acknowledgement has come here before it. UARTRXINTR and UARTRTINTR are set while the receive FIFO says so, and
//! UARTTXINTR is cleared by the first acknowledgement after the guest has read of it, or by the second. So a driver that
//! acknowledges and neither reads nor masks is interrupted again at once, not after 32 bit times.

mod describe;
mod input;
mod registers;
mod state;
mod uart;

use std::{fmt, io};

pub use describe::describe;
pub use input::{InputPump, Pumped};
pub use state::{Pl011State, Pl011StateError};

use super::{primecell, serial::Serial};
use crate::{
    bus::{BusDevice, read_le, write_le},
    interrupt::{LevelInterrupt, LevelOutput},
};
use uart::Uart;

/// Bytes of the device's register region.
pub const REGION_SIZE: u64 = primecell::REGION_SIZE;

/// The depth of both FIFOs, which the guest learns from the revision in UARTPeriphID2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FifoDepth {
    /// 16 characters, revision r1p4.
    Sixteen,
    /// 32 characters, revision r1p5.
    #[default]
    ThirtyTwo,
}

/// What a [`Pl011`] is like when it starts and after a reset.
///
/// ```
/// use devisor::platform::pl011::{FifoDepth, Pl011Config};
///
/// let config = Pl011Config { fifo_depth: FifoDepth::Sixteen, ..Pl011Config::default() };
/// assert!(config.enabled);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pl011Config {
    /// The depth of the FIFOs.
    pub fifo_depth: FifoDepth,
    /// Whether UARTCR.UARTEN is set, as boot firmware leaves it: a kernel that is booted without firmware prints its
    /// first messages on the strength of that. `false` is the manual's reset value: nothing is sent or received
    /// until the guest enables the UART.
    pub enabled: bool,
    /// The modem lines until [`Pl011::set_modem_inputs`] says otherwise.
    pub modem: ModemInputs,
}

impl Default for Pl011Config {
    /// 32-character FIFOs, enabled, with a peer that is there and ready.
    fn default() -> Self {
        Self {
            fifo_depth: FifoDepth::default(),
            enabled: true,
            modem: ModemInputs {
                cts: true,
                dsr: true,
                dcd: true,
                ri: false,
            },
        }
    }
}

/// The modem lines that the peer drives; `true` is asserted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModemInputs {
    /// Clear to send. If the guest has set UARTCR.CTSEN, nothing leaves while this is `false`.
    pub cts: bool,
    /// Data set ready.
    pub dsr: bool,
    /// Data carrier detect.
    pub dcd: bool,
    /// Ring indicator.
    pub ri: bool,
}

/// The lines that the guest drives; `true` is asserted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModemOutputs {
    /// Data terminal ready.
    pub dtr: bool,
    /// Request to send. With UARTCR.RTSEN, whether the receive FIFO is below its trigger level.
    pub rts: bool,
    /// UARTCR.Out1, which a DTE uses as data carrier detect.
    pub out1: bool,
    /// UARTCR.Out2, which a DTE uses as ring indicator.
    pub out2: bool,
    /// The guest sends a break.
    pub sends_break: bool,
}

/// What arrives on a wire, good or bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A character.
    Data(u8),
    /// A character without a valid stop bit.
    FramingError(u8),
    /// A character with the wrong parity.
    ParityError(u8),
    /// The wire was held low for longer than a character.
    Break,
}

/// A PL011 UART: its registers are its [`BusDevice`] face, `W` takes what the guest sends, `L` is its UARTINTR.
///
/// # Output
/// Characters go to the writer as soon as the guest writes them, on the thread of that access. A writer that takes
/// fewer, fails or would block loses none: they stay in the transmit FIFO, UARTFR shows the guest that it is busy
/// and then full, and [`flush`](Self::flush) tries again. So does the guest's next access to any register; a guest that
/// waits for an interrupt instead waits for the embedder: call `flush` when a non-blocking writer is writable, or use
/// one that never refuses. A writer that blocks holds up the vCPU that writes, and no other.
///
/// # Input
/// [`receive`](Self::receive) takes what the guest has room for and says how much that was; the hook of
/// [`with_room_hook`](Self::with_room_hook) says when there is room again. [`InputPump`] does it for an
/// [`io::Read`]. [`receive_frame`](Self::receive_frame) is a wire that does not wait, with all its errors.
///
/// # Threads
/// Every method may be called from any thread, also from within the writer, the line and the hook: none of them is
/// called while the registers are locked. Only one thread at a time writes; characters that come meanwhile are left to it.
///
/// ```
/// use devisor::{bus::BusDevice, interrupt::NoInterrupt, platform::pl011::{Pl011, Pl011Config}};
/// use std::{io, sync::mpsc};
///
/// /// A writer that hands on what it gets.
/// struct Screen(mpsc::Sender<u8>);
/// impl io::Write for Screen {
///     fn write(&mut self, characters: &[u8]) -> io::Result<usize> {
///         characters.iter().try_for_each(|&c| self.0.send(c)).map_err(io::Error::other)?;
///         Ok(characters.len())
///     }
///     fn flush(&mut self) -> io::Result<()> {
///         Ok(())
///     }
/// }
///
/// let (sender, screen) = mpsc::channel();
/// let uart = Pl011::new(Pl011Config::default(), NoInterrupt, Screen(sender));
/// for character in b"hi" {
///     uart.write(0x000, &[*character]); // UARTDR
/// }
/// assert_eq!(screen.try_iter().collect::<Vec<u8>>(), b"hi");
///
/// assert_eq!(uart.receive(b"!"), 1);
/// let mut data = [0; 4];
/// uart.read(0x000, &mut data);
/// assert_eq!(data[0], b'!');
/// ```
pub struct Pl011<L, W> {
    serial: Serial<Uart, L, W>,
}

impl<L: LevelInterrupt, W: io::Write + Send> Pl011<L, W> {
    /// A UART after reset. `line` is down.
    pub fn new(config: Pl011Config, line: L, output: W) -> Self {
        Self {
            serial: Serial::new(Uart::new(config), line, output),
        }
    }

    /// Calls `hook` whenever there is room for input again after some was turned away, on the thread that made the
    /// room (usually a vCPU): let it wake the one that calls [`receive`](Self::receive).
    pub fn with_room_hook(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.serial.set_room_hook(hook);
        self
    }

    /// Puts every register and both FIFOs back to where they started. The modem lines stay as the peer drives them.
    pub fn reset(&self) {
        self.serial.change(Uart::reset);
    }

    /// Gives the guest as many of `characters` as its receive FIFO has room for, and returns how many. After a short
    /// count, the rest is to come again once the room hook was called.
    ///
    /// There is no room while the guest has the receiver disabled or in loopback, so nothing is lost then.
    pub fn receive(&self, characters: &[u8]) -> usize {
        self.serial.receive(characters)
    }

    /// A frame arrives from a wire that cannot wait: with the FIFO full it is lost and the guest sees an overrun, with
    /// the receiver disabled or in loopback it is lost unseen. Returns whether the guest can read it.
    pub fn receive_frame(&self, frame: Frame) -> bool {
        self.serial.change(|uart| uart.receive_frame(frame))
    }

    /// How many characters [`receive`](Self::receive) would take now.
    pub fn room(&self) -> usize {
        self.serial.room()
    }

    /// The peer drives its modem lines.
    pub fn set_modem_inputs(&self, inputs: ModemInputs) {
        self.serial.change(|uart| uart.set_inputs(inputs));
    }

    /// The lines that the guest drives.
    pub fn modem_outputs(&self) -> ModemOutputs {
        self.serial.look(Uart::outputs)
    }

    /// Tries again to write out what the guest sent, and flushes the writer: for an embedder whose writer refused
    /// and takes more now.
    ///
    /// # Errors
    /// What the writer answered, `WouldBlock` included. All that it did not take is still there. Characters
    /// that another thread is writing at the moment are that thread's to report.
    pub fn flush(&self) -> io::Result<()> {
        self.serial.flush()
    }

    /// How many characters wait to be written.
    pub fn unsent(&self) -> usize {
        self.serial.look(|uart| uart.tx.len())
    }

    /// How often the writer failed, for another reason than that it would block.
    pub fn output_failures(&self) -> u64 {
        self.serial.output_failures()
    }

    /// The interrupt line, for its level and its count of failures.
    pub fn interrupt(&self) -> &LevelOutput<L> {
        self.serial.interrupt()
    }
}

/// Registers answer to accesses of 1, 2 and 4 bytes at their first byte; all others read as zero and write nothing.
impl<L: LevelInterrupt, W: io::Write + Send> BusDevice for Pl011<L, W> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Also a register of which reading changes nothing is a change: what the writer refused is tried again.
        let value = match primecell::register(offset, data.len()) {
            Some(register) => self.serial.change(|uart| uart.read(register)),
            None => 0,
        };
        write_le(data, value.into());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(register) = primecell::register(offset, data.len()) {
            self.serial.change(|uart| uart.write(register, read_le(data) as u16));
        }
    }
}

impl<L, W> fmt::Debug for Pl011<L, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serial.debug("Pl011", Uart::save, f)
    }
}
