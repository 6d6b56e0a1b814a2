//! What UARTs have in common around their registers: the lock, the interrupt line, the writer and the host's input.

use std::{
    collections::VecDeque,
    fmt, io,
    ops::Deref,
    sync::{
        Mutex, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    interrupt::{LevelInterrupt, LevelOutput},
    sync::lock,
};

/// The deepest FIFO that there is.
pub(super) const MAX_DEPTH: usize = 32;

/// A UART behind its registers: without locks, without callbacks and without knowing what it is connected to.
pub(super) trait Model {
    /// Whether the interrupt line is up: the one place from which it is derived.
    fn interrupts(&self) -> bool;

    /// How many characters from outside fit.
    fn room(&self) -> usize;

    /// Takes as many of `characters` as fit, and returns how many.
    fn receive(&mut self, characters: &[u8]) -> usize;

    /// The characters that may leave now, if any. They stay in the FIFO until [`transmitted`](Self::transmitted).
    fn burst(&self) -> Option<Burst>;

    /// The first `count` characters of `burst` have left.
    fn transmitted(&mut self, burst: &Burst, count: usize);
}

/// A [`Model`] with what is plugged in. `W` takes what the guest sends, `L` is the interrupt line; neither they nor the
/// hook are called while the registers are locked.
pub(super) struct Serial<M, L, W> {
    interrupt: LevelOutput<L>,
    output: Mutex<W>,
    room_hook: Option<Box<dyn Fn() + Send + Sync>>,

    /// How often somebody wanted the transmit FIFO written out: see [`transmit`](Self::transmit).
    transmissions: AtomicU64,
    output_failures: AtomicU64,

    registers: Mutex<Registers<M>>,
}

struct Registers<M> {
    model: M,
    /// Input was turned away, and the hook is to be called once there is room.
    input_waits: bool,
}

impl<M: Model, L: LevelInterrupt, W: io::Write + Send> Serial<M, L, W> {
    /// `line` is down.
    pub fn new(model: M, line: L, output: W) -> Self {
        Self {
            interrupt: LevelOutput::new(line),
            output: Mutex::new(output),
            room_hook: None,
            transmissions: AtomicU64::new(0),
            output_failures: AtomicU64::new(0),
            registers: Mutex::new(Registers {
                model,
                input_waits: false,
            }),
        }
    }

    pub fn set_room_hook(&mut self, hook: impl Fn() + Send + Sync + 'static) {
        self.room_hook = Some(Box::new(hook));
    }

    pub fn interrupt(&self) -> &LevelOutput<L> {
        &self.interrupt
    }

    pub fn output_failures(&self) -> u64 {
        self.output_failures.load(Ordering::Relaxed)
    }

    pub fn room(&self) -> usize {
        self.look(M::room)
    }

    /// Looks, and changes nothing.
    pub fn look<T>(&self, look: impl FnOnce(&M) -> T) -> T {
        look(&lock(&self.registers).model)
    }

    /// Every change of state: makes it, derives the outputs, then tells them with nothing locked.
    pub fn change<T>(&self, change: impl FnOnce(&mut M) -> T) -> T {
        self.change_registers(|registers| change(&mut registers.model))
    }

    pub fn receive(&self, characters: &[u8]) -> usize {
        self.change_registers(|registers| {
            let accepted = registers.model.receive(characters);
            registers.input_waits |= accepted < characters.len();
            accepted
        })
    }

    /// A [`change`](Self::change) to a state that was saved: all or nothing.
    pub fn restore<E>(&self, restore: impl FnOnce(&mut M) -> Result<(), E>) -> Result<(), E> {
        self.change_registers(|registers| {
            restore(&mut registers.model)?;
            // Whoever pumps may have waited since before the save.
            registers.input_waits = true;
            Ok(())
        })
    }

    pub fn flush(&self) -> io::Result<()> {
        let result = self.transmit();
        self.settle();
        result
    }

    fn change_registers<T>(&self, change: impl FnOnce(&mut Registers<M>) -> T) -> T {
        let (result, sends, room) = {
            let mut registers = lock(&self.registers);
            let result = change(&mut registers);
            self.interrupt.set(registers.model.interrupts());
            let room = registers.input_waits && registers.model.room() > 0;
            registers.input_waits &= !room;
            (result, registers.model.burst().is_some(), room)
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
            let result = self.write_out(&mut output);
            drop(output);
            if let Err(error) = &result
                && error.kind() != io::ErrorKind::WouldBlock
            {
                self.output_failures.fetch_add(1, Ordering::Relaxed);
            }
            // Whoever found the output taken has counted before: their characters, or their news that the
            // writer takes more, came too late for the round above.
            let now = self.transmissions.load(Ordering::SeqCst);
            if now == seen {
                return result;
            }
            seen = now;
        }
    }

    fn write_out(&self, output: &mut W) -> io::Result<()> {
        loop {
            let Some(burst) = self.look(M::burst) else {
                return output.flush();
            };
            let written = match output.write(burst.characters()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut registers = lock(&self.registers);
            registers.model.transmitted(&burst, written);
            self.interrupt.set(registers.model.interrupts());
        }
    }
}

impl<M, L, W> Serial<M, L, W> {
    /// As the device called `name`, in the state that `save` gives.
    pub fn debug<S: fmt::Debug>(
        &self,
        name: &str,
        save: impl FnOnce(&M) -> S,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        let registers = lock(&self.registers);
        f.debug_struct(name)
            .field("state", &save(&registers.model))
            .field("input_waits", &registers.input_waits)
            .field("interrupt", &self.interrupt)
            .finish_non_exhaustive()
    }
}

/// A transmit FIFO: its characters are written with nothing locked, and stay in it until they are.
pub(super) struct TransmitFifo {
    characters: VecDeque<u8>,
    /// How many characters ever left, sent or thrown away: tells those that are being written from those that the guest
    /// put in their place meanwhile.
    departed: u64,
}

/// Characters that were taken for writing.
pub(super) struct Burst {
    characters: [u8; MAX_DEPTH],
    len: usize,
    first: u64,
}

impl Burst {
    fn characters(&self) -> &[u8] {
        &self.characters[..self.len]
    }
}

impl TransmitFifo {
    pub fn new() -> Self {
        Self {
            characters: VecDeque::with_capacity(MAX_DEPTH),
            departed: 0,
        }
    }

    /// The caller knows how many fit.
    pub fn push(&mut self, character: u8) {
        self.characters.push_back(character);
    }

    pub fn replace_last(&mut self, character: u8) {
        if let Some(last) = self.characters.back_mut() {
            *last = character;
        }
    }

    pub fn pop(&mut self) -> Option<u8> {
        let character = self.characters.pop_front()?;
        self.departed = self.departed.wrapping_add(1);
        Some(character)
    }

    /// Throws everything away.
    pub fn clear(&mut self) {
        self.departed = self.departed.wrapping_add(self.len() as u64);
        self.characters.clear();
    }

    /// Another that holds `characters` instead: for whoever is writing these, they were thrown away.
    pub fn replaced_by(&self, characters: &[u8]) -> Self {
        let mut replacement = Self::new();
        replacement.characters.extend(characters);
        replacement.departed = self.departed.wrapping_add(self.len() as u64);
        replacement
    }

    /// Everything, for writing.
    pub fn burst(&self) -> Option<Burst> {
        if self.is_empty() {
            return None;
        }
        let mut characters = [0; MAX_DEPTH];
        for (slot, character) in characters.iter_mut().zip(&self.characters) {
            *slot = *character;
        }
        Some(Burst {
            characters,
            len: self.len().min(MAX_DEPTH),
            first: self.departed,
        })
    }

    /// The first `count` characters of `burst` have left. Those that were thrown away meanwhile are gone already.
    /// Returns whether any left now.
    pub fn transmitted(&mut self, burst: &Burst, count: usize) -> bool {
        let gone = self.departed.wrapping_sub(burst.first);
        let count = (count.min(burst.len) as u64).saturating_sub(gone) as usize;
        let count = count.min(self.len());
        self.characters.drain(..count);
        self.departed = self.departed.wrapping_add(count as u64);
        count > 0
    }
}

impl Deref for TransmitFifo {
    type Target = VecDeque<u8>;

    fn deref(&self) -> &VecDeque<u8> {
        &self.characters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(characters: &[u8]) -> TransmitFifo {
        TransmitFifo::new().replaced_by(characters)
    }

    #[test]
    fn what_was_thrown_away_while_it_was_written_takes_nothing_with_it() {
        type ThrowAway = fn(&mut TransmitFifo);
        let all: [ThrowAway; 3] = [
            |fifo| fifo.clear(),
            |fifo| *fifo = fifo.replaced_by(&[]),
            |fifo| while fifo.pop().is_some() {},
        ];
        for throw_away in all {
            let mut fifo = holding(b"old");
            let burst = fifo.burst().unwrap();
            throw_away(&mut fifo);
            fifo.push(b'n');
            assert!(!fifo.transmitted(&burst, 3));
            assert_eq!(*fifo, b"n");
        }
    }

    #[test]
    fn only_what_is_left_of_a_burst_leaves_and_no_more_than_was_in_it() {
        let mut fifo = holding(b"abc");
        let burst = fifo.burst().unwrap();
        fifo.push(b'd');
        fifo.pop();
        assert!(fifo.transmitted(&burst, 100));
        assert_eq!(*fifo, b"d");
    }
}
