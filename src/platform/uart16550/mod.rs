//! The 16550 UART of a PC, as in *PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs* (National Semiconductor).
//!
//! What the model leaves out is time on the wire: a character leaves as soon as the output lets it. Baud rate, word length
//! and parity read back and change nothing, and there are no DMA pins.

mod describe;
mod registers;
mod state;
mod uart;

use std::{fmt, io, ops::Range};

pub use super::pl011::{Frame, ModemInputs, ModemOutputs};
pub use describe::{describe, describe_in_memory};
pub use state::{Uart16550State, Uart16550StateError};

use super::serial::Serial;
use crate::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, LevelOutput},
};
use uart::Uart;

/// How many ports: COM1 of a PC is at 0x3f8 with IRQ 4. Registers that are [further apart](Uart16550::with_register_shift) take more.
pub const REGION_SIZE: u64 = 8;

/// What a [`Uart16550`] is like when it starts and after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart16550Config {
    /// Whether the guest must set MCR.OUT2 for the line to get through, as on the boards of PCs.
    pub out2_gates_interrupt: bool,
    /// The modem lines until [`Uart16550::set_modem_inputs`] says otherwise.
    pub modem: ModemInputs,
}

impl Default for Uart16550Config {
    /// As on a PC, with a peer that is there and ready.
    fn default() -> Self {
        Self {
            out2_gates_interrupt: true,
            modem: ModemInputs {
                cts: true,
                dsr: true,
                dcd: true,
                ri: false,
            },
        }
    }
}

/// A 16550 UART: its registers are its [`BusDevice`] face, `W` takes what the guest sends, `L` is its INTR.
///
/// # Output
/// Characters go to the writer as soon as the guest writes them, on the thread of that access. A writer that takes
/// fewer, fails or would block loses none: they stay in the transmit FIFO, LSR shows the guest that it is not empty, and
/// [`flush`](Self::flush) tries again. So does the guest's next access to any register; a guest that waits for an interrupt
/// instead waits for the embedder: call `flush` when a non-blocking writer is writable, or use one that never refuses. A
/// writer that blocks holds up the vCPU that writes, and no other.
///
/// # Input
/// [`receive`](Self::receive) takes what the guest has room for and says how much that was; the hook of
/// [`with_room_hook`](Self::with_room_hook) says when there is room again. [`receive_frame`](Self::receive_frame) is a wire
/// that does not wait, with all its errors.
///
/// # Threads
/// Every method may be called from any thread, also from within the writer, the line and the hook: none of them is
/// called while the registers are locked. Only one thread at a time writes; characters that come meanwhile are left to it.
///
/// ```
/// use devisor::{bus::BusDevice, interrupt::NoInterrupt, platform::uart16550::{Uart16550, Uart16550Config}};
///
/// let uart = Uart16550::new(Uart16550Config::default(), NoInterrupt, std::io::sink());
/// uart.write(0, b"h"); // THR
/// let mut byte = [0];
/// uart.read(5, &mut byte); // LSR
/// assert_eq!(byte, [0x60], "it has left: THRE and TEMT");
///
/// assert_eq!(uart.receive(b"!"), 1);
/// uart.read(0, &mut byte); // RBR
/// assert_eq!(byte, *b"!");
/// ```
pub struct Uart16550<L, W> {
    serial: Serial<Uart, L, W>,
    register_shift: u32,
}

impl<L: LevelInterrupt, W: io::Write + Send> Uart16550<L, W> {
    /// A UART after reset. `line` is down.
    pub fn new(config: Uart16550Config, line: L, output: W) -> Self {
        Self {
            serial: Serial::new(Uart::new(config), line, output),
            register_shift: 0,
        }
    }

    /// Has the registers `1 << shift` bytes apart, as boards have that place them in memory: `reg-shift` of a device tree, often 2. At
    /// most 8 is taken.
    ///
    /// ```
    /// # use devisor::{bus::BusDevice, interrupt::NoInterrupt, platform::uart16550::{Uart16550, Uart16550Config}};
    /// let uart = Uart16550::new(Uart16550Config::default(), NoInterrupt, std::io::sink()).with_register_shift(2);
    /// let mut lsr = [0; 4];
    /// uart.read(5 << 2, &mut lsr);
    /// assert_eq!(lsr, [0x60, 0, 0, 0]);
    /// assert_eq!(uart.region_size(), 32);
    /// ```
    pub fn with_register_shift(mut self, shift: u32) -> Self {
        self.register_shift = shift.min(8);
        self
    }

    /// Bytes of the region that its registers take.
    pub fn region_size(&self) -> u64 {
        REGION_SIZE << self.register_shift
    }

    /// The registers that an access of `len` bytes is for.
    fn registers(&self, offset: u64, len: usize) -> Range<u64> {
        if self.register_shift == 0 {
            return offset..REGION_SIZE;
        }
        let register = offset >> self.register_shift;
        let is_one = register << self.register_shift == offset && register < REGION_SIZE && matches!(len, 1 | 2 | 4);
        if is_one { register..register + 1 } else { 0..0 }
    }

    /// Calls `hook` whenever there is room for input again after some was turned away, on the thread that made the
    /// room (usually a vCPU): let it wake the one that calls [`receive`](Self::receive).
    pub fn with_room_hook(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.serial.set_room_hook(hook);
        self
    }

    /// A master reset. The modem lines stay as the peer drives them.
    pub fn reset(&self) {
        self.serial.change(Uart::reset);
    }

    /// Gives the guest as many of `characters` as its receiver has room for, and returns how many. After a short
    /// count, the rest is to come again once the room hook was called. There is no room in loopback, so nothing is lost then.
    pub fn receive(&self, characters: &[u8]) -> usize {
        self.serial.receive(characters)
    }

    /// A frame arrives from a wire that cannot wait: if there is no room a character is lost and the guest sees an overrun; in
    /// loopback it is lost unseen. Returns whether nothing was lost.
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

    /// The state. Stop the vCPUs first, so that nothing is being written.
    pub fn save(&self) -> Uart16550State {
        self.serial.look(Uart::save)
    }

    /// Takes over a saved state, all or nothing. The line is derived again, what waits to be sent is, and the room hook is
    /// called if there is room. Tell it the modem lines afterwards, if the peer drives others now.
    ///
    /// # Errors
    /// [`Uart16550StateError`]: the state is not one that a UART can have.
    pub fn restore(&self, state: &Uart16550State) -> Result<(), Uart16550StateError> {
        self.serial.restore(|uart| uart.restore(state))
    }
}

/// Each register is a byte: a wider access is one of each byte in turn, from the lowest on. Past the last there is none. Of registers
/// that are further apart, an access of 1, 2 or 4 bytes at the first byte is one of the register.
impl<L: LevelInterrupt, W: io::Write + Send> BusDevice for Uart16550<L, W> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let len = data.len();
        for (byte, register) in data.iter_mut().zip(self.registers(offset, len)) {
            *byte = self.serial.change(|uart| uart.read(register));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (byte, register) in data.iter().zip(self.registers(offset, data.len())) {
            self.serial.change(|uart| uart.write(register, *byte));
        }
    }
}

impl<L, W> fmt::Debug for Uart16550<L, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serial.debug("Uart16550", Uart::save, f)
    }
}
