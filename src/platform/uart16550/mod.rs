//! The 16550 UART of a PC, as in *PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs* (National Semiconductor).
//!
//! What the model leaves out is time on the wire: a character leaves as soon as the output lets it. Baud rate, word length
//! and parity read back and change nothing, and there are no DMA pins.

mod registers;
mod state;
mod uart;

use std::{
    fmt, io,
    sync::{
        Mutex, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
};

pub use super::pl011::{Frame, ModemInputs, ModemOutputs};
pub use state::{Uart16550State, Uart16550StateError};

use crate::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, LevelOutput},
    sync::lock,
};
use uart::Uart;

/// How many ports: COM1 of a PC is at 0x3f8 with IRQ 4.
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
/// [`flush`](Self::flush) tries again; so does the guest's next access to any register. A writer that blocks holds up the vCPU
/// that writes, and no other.
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
    // What is plugged in.
    interrupt: LevelOutput<L>,
    output: Mutex<W>,
    room_hook: Option<Box<dyn Fn() + Send + Sync>>,

    /// How often somebody wanted the transmit FIFO written out: see [`transmit`](Self::transmit).
    transmissions: AtomicU64,
    output_failures: AtomicU64,

    registers: Mutex<Registers>,
}

struct Registers {
    uart: Uart,
    /// Input was turned away, and the hook is to be called once there is room.
    input_waits: bool,
}

impl<L: LevelInterrupt, W: io::Write + Send> Uart16550<L, W> {
    /// A UART after reset. `line` is down.
    pub fn new(config: Uart16550Config, line: L, output: W) -> Self {
        Self {
            interrupt: LevelOutput::new(line),
            output: Mutex::new(output),
            room_hook: None,
            transmissions: AtomicU64::new(0),
            output_failures: AtomicU64::new(0),
            registers: Mutex::new(Registers {
                uart: Uart::new(config),
                input_waits: false,
            }),
        }
    }

    /// Calls `hook` whenever there is room for input again after some was turned away, on the thread that made the
    /// room (usually a vCPU): let it wake the one that calls [`receive`](Self::receive).
    pub fn with_room_hook(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.room_hook = Some(Box::new(hook));
        self
    }

    /// A master reset. The modem lines stay as the peer drives them.
    pub fn reset(&self) {
        self.change(|registers| registers.uart.reset());
    }

    /// Gives the guest as many of `characters` as its receiver has room for, and returns how many. After a short
    /// count, the rest is to come again once the room hook was called. There is no room in loopback, so nothing is lost then.
    pub fn receive(&self, characters: &[u8]) -> usize {
        self.change(|registers| {
            let accepted = registers.uart.receive(characters);
            registers.input_waits |= accepted < characters.len();
            accepted
        })
    }

    /// A frame arrives from a wire that cannot wait: if there is no room a character is lost and the guest sees an overrun; in
    /// loopback it is lost unseen. Returns whether nothing was lost.
    pub fn receive_frame(&self, frame: Frame) -> bool {
        self.change(|registers| registers.uart.receive_frame(frame))
    }

    /// How many characters [`receive`](Self::receive) would take now.
    pub fn room(&self) -> usize {
        lock(&self.registers).uart.room()
    }

    /// The peer drives its modem lines.
    pub fn set_modem_inputs(&self, inputs: ModemInputs) {
        self.change(|registers| registers.uart.set_inputs(inputs));
    }

    /// The lines that the guest drives.
    pub fn modem_outputs(&self) -> ModemOutputs {
        lock(&self.registers).uart.outputs()
    }

    /// Tries again to write out what the guest sent, and flushes the writer.
    ///
    /// # Errors
    /// What the writer answered, `WouldBlock` included. All that it did not take is still there. Characters
    /// that another thread is writing at the moment are that thread's to report.
    pub fn flush(&self) -> io::Result<()> {
        let result = self.transmit();
        self.settle();
        result
    }

    /// How many characters wait to be written.
    pub fn unsent(&self) -> usize {
        lock(&self.registers).uart.tx.len()
    }

    /// How often the writer failed, for another reason than that it would block.
    pub fn output_failures(&self) -> u64 {
        self.output_failures.load(Ordering::Relaxed)
    }

    /// The interrupt line, for its level and its count of failures.
    pub fn interrupt(&self) -> &LevelOutput<L> {
        &self.interrupt
    }

    /// The state. Stop the vCPUs first, so that nothing is being written.
    pub fn save(&self) -> Uart16550State {
        lock(&self.registers).uart.save()
    }

    /// Takes over a saved state, all or nothing. The line is derived again, and what waits to be sent is.
    ///
    /// # Errors
    /// The state is not one that a UART can have.
    pub fn restore(&self, state: &Uart16550State) -> Result<(), Uart16550StateError> {
        self.change(|registers| registers.uart.restore(state))
    }

    /// Every change of state: makes it, derives the outputs, then tells them with nothing locked.
    fn change<T>(&self, change: impl FnOnce(&mut Registers) -> T) -> T {
        let (result, sends, room) = {
            let mut registers = lock(&self.registers);
            let result = change(&mut registers);
            self.derive(&registers.uart);
            let room = registers.input_waits && registers.uart.room() > 0;
            registers.input_waits &= !room;
            (result, !registers.uart.tx.is_empty(), room)
        };
        if sends {
            // The characters that the writer does not take wait for the next attempt.
            let _ = self.transmit();
        }
        self.settle();
        if room && let Some(hook) = &self.room_hook {
            hook();
        }
        result
    }

    /// The one place from which the line is derived.
    fn derive(&self, uart: &Uart) {
        self.interrupt.set(uart.interrupts());
    }

    fn settle(&self) {
        // A refusal is counted by the output, and told again after the next change.
        let _ = self.interrupt.settle();
    }

    /// Writes out the transmit FIFO, or leaves it to the thread that is at it.
    fn transmit(&self) -> io::Result<()> {
        let mut seen = self.transmissions.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        loop {
            let mut output = match self.output.try_lock() {
                Ok(output) => output,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Ok(()),
            };
            let result = self.drain(&mut output);
            drop(output);
            // Whoever found the output taken has counted before: their characters came too late for the round above.
            let now = self.transmissions.load(Ordering::SeqCst);
            if now == seen {
                return result;
            }
            seen = now;
        }
    }

    fn drain(&self, output: &mut W) -> io::Result<()> {
        let result = self.write_out(output);
        if let Err(error) = &result
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.output_failures.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn write_out(&self, output: &mut W) -> io::Result<()> {
        loop {
            let Some(burst) = lock(&self.registers).uart.burst() else {
                return output.flush();
            };
            let written = match output.write(burst.characters()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut registers = lock(&self.registers);
            registers.uart.transmitted(&burst, written);
            self.derive(&registers.uart);
        }
    }
}

/// Each register is a byte: a wider access is one of each byte in turn, from the lowest on. Past the last there is none.
impl<L: LevelInterrupt, W: io::Write + Send> BusDevice for Uart16550<L, W> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (byte, register) in data.iter_mut().zip(offset..REGION_SIZE) {
            *byte = self.change(|registers| registers.uart.read(register));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (byte, register) in data.iter().zip(offset..REGION_SIZE) {
            self.change(|registers| registers.uart.write(register, *byte));
        }
    }
}

impl<L, W> fmt::Debug for Uart16550<L, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registers = lock(&self.registers);
        f.debug_struct("Uart16550")
            .field("state", &registers.uart.save())
            .field("input_waits", &registers.input_waits)
            .field("interrupt", &self.interrupt)
            .finish_non_exhaustive()
    }
}
