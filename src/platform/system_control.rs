//! System control port A of a PC, port 0x92: A20 and the fast reset of the CPU, as PORT92 of *Intel I/O Controller Hub 9 Family
//! Datasheet*, section 13.7.2, has them.
//!
//! What the model leaves out: the lamp of the disk and the lock of the password, which the PS/2 had here.

use std::{fmt, sync::Mutex};

use crate::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, LevelOutput},
    sync::lock,
};

/// How many ports: 0x92.
pub const PORTS: u64 = 1;

const INIT_NOW: u8 = 1 << 0;
const ALT_A20_GATE: u8 = 1 << 1;
const WRITABLE: u8 = INIT_NOW | ALT_A20_GATE;

/// A system control port A: its port is its [`BusDevice`] face.
///
/// `A` is its way to let address line 20 through. The keyboard controller has another one: the CPU's line is up as long as either
/// is, so wire both to one [`SharedLine`](crate::interrupt::SharedLine). It is down after a reset; where there is no keyboard
/// controller, it is for the embedder to begin with it up.
///
/// The hook hears that the guest resets the CPUs: INIT, as by [`Reset::Soft`](super::reset_control::Reset::Soft). It is called on the
/// thread of that access, which goes on when it returns.
///
/// # Threads
/// Every method may be called from any thread, also from within the line and the hook: neither is called while the register is locked.
///
/// ```
/// use devisor::{bus::BusDevice, interrupt::level_from_fn, platform::system_control::SystemControl};
///
/// let a20 = level_from_fn(|up| Ok(println!("A20 is {}", if up { "let through" } else { "held down" })));
/// let control = SystemControl::new(a20, || println!("the guest resets the CPUs"));
/// control.write(0, &[0x02]);
/// assert!(control.a20());
/// control.write(0, &[0x03]); // INIT.
/// ```
pub struct SystemControl<A> {
    // What is plugged in.
    a20: LevelOutput<A>,
    hook: Box<dyn Fn() + Send + Sync>,

    value: Mutex<u8>,
}

/// A saved register has bits that there are not. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PORT92 is {0:#04x}: it has no bits but 0x03")]
pub struct SystemControlStateError(u8);

impl<A: LevelInterrupt> SystemControl<A> {
    /// A register as after a reset. `a20` is down.
    pub fn new(a20: A, hook: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            a20: LevelOutput::new(a20),
            hook: Box::new(hook),
            value: Mutex::default(),
        }
    }

    /// Whether it lets address line 20 through.
    pub fn a20(&self) -> bool {
        self.a20.is_up()
    }

    /// How often the line refused to be told its level: see [`LevelOutput::failures`]. What it refused is told again with the next
    /// write.
    pub fn output_failures(&self) -> u64 {
        self.a20.failures()
    }

    /// A reset of the system. After one of the CPUs alone, INIT_NOW stays set, and it is its rise that resets.
    pub fn reset(&self) {
        self.set(0);
    }

    /// The state now: the register.
    pub fn save(&self) -> u8 {
        *lock(&self.value)
    }

    /// Takes over a saved register, drives the line accordingly, and resets nothing.
    ///
    /// # Errors
    /// [`SystemControlStateError`] if it has bits that there are not.
    pub fn restore(&self, state: u8) -> Result<(), SystemControlStateError> {
        if state & !WRITABLE != 0 {
            return Err(SystemControlStateError(state));
        }
        self.set(state);
        Ok(())
    }

    /// Returns what was there before.
    fn set(&self, value: u8) -> u8 {
        let was = {
            let mut register = lock(&self.value);
            self.a20.set(value & ALT_A20_GATE != 0);
            std::mem::replace(&mut *register, value)
        };
        // A refusal is counted by the output, and told again after the next change.
        let _ = self.a20.settle();
        was
    }
}

/// A wider access than a byte is one of the byte alone.
impl<A: LevelInterrupt> BusDevice for SystemControl<A> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.save();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, Some(value)) = (offset, data.first()) else {
            return;
        };
        let was = self.set(value & WRITABLE);
        if value & !was & INIT_NOW != 0 {
            (self.hook)();
        }
    }
}

impl<A: LevelInterrupt> fmt::Debug for SystemControl<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemControl")
            .field("value", &self.save())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::level_from_fn;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    /// What it was told, and how often it has reset.
    type Heard = (Arc<Mutex<Vec<bool>>>, Arc<AtomicU32>);

    fn control() -> (SystemControl<impl LevelInterrupt>, Heard) {
        let heard = Heard::default();
        let (levels, resets) = heard.clone();
        let a20 = level_from_fn(move |up| {
            lock(&levels).push(up);
            Ok(())
        });
        let hook = move || _ = resets.fetch_add(1, Ordering::SeqCst);
        (SystemControl::new(a20, hook), heard)
    }

    fn read(control: &impl BusDevice) -> u8 {
        let mut byte = [0xff];
        control.read(0, &mut byte);
        byte[0]
    }

    #[test]
    fn the_rise_of_init_now_resets_and_nothing_else_does() {
        let (control, (_, resets)) = control();
        for (value, so_far) in [
            (0x02, 0),
            (0x03, 1),
            (0x01, 1),
            (0xfe, 1),
            (0xff, 2),
            (0xff, 2),
            (0x00, 2),
            (0x01, 3),
        ] {
            control.write(0, &[value]);
            assert_eq!(resets.load(Ordering::SeqCst), so_far, "{value:#x}");
            assert_eq!(read(&control), value & 0x03);
        }
    }

    #[test]
    fn address_line_20_follows_its_bit_and_hears_no_repeats() {
        let (control, (levels, _)) = control();
        for value in [0x00, 0x02, 0x03, 0x02, 0x01, 0x00, 0x02] {
            control.write(0, &[value]);
            assert_eq!(control.a20(), value & 2 != 0);
        }
        assert_eq!(*lock(&levels), [true, false, true]);
        control.reset();
        assert_eq!(*lock(&levels), [true, false, true, false]);
        assert_eq!(read(&control), 0);
    }

    #[test]
    fn there_is_one_port_and_one_byte() {
        let (control, (levels, resets)) = control();
        control.write(1, &[0x03]);
        control.write(0, &[]);
        assert_eq!((lock(&levels).len(), resets.load(Ordering::SeqCst)), (0, 0));
        control.write(0, &[0x02, 0x01]);
        assert_eq!(resets.load(Ordering::SeqCst), 0);
        let mut word = [0xff; 2];
        control.read(0, &mut word);
        assert_eq!(word, [0x02, 0]);
        control.read(1, &mut word);
        assert_eq!(word, [0, 0]);
    }

    #[test]
    fn a_state_is_taken_back_and_resets_nothing() {
        let (control, (levels, resets)) = control();
        assert_eq!(control.restore(0x03), Ok(()));
        assert_eq!((control.save(), lock(&levels).clone()), (0x03, vec![true]));
        control.write(0, &[0x03]);
        assert_eq!(resets.load(Ordering::SeqCst), 0, "it was set before");
        assert_eq!(control.restore(0x04), Err(SystemControlStateError(0x04)));
        assert_eq!(control.save(), 0x03);
    }

    #[test]
    fn a_line_that_refuses_is_told_again() {
        let refusals = AtomicU32::new(1);
        let up = Mutex::new(false);
        let a20 = level_from_fn(|level| {
            if refusals.swap(0, Ordering::SeqCst) != 0 {
                return Err(std::io::ErrorKind::Other.into());
            }
            *lock(&up) = level;
            Ok(())
        });
        let control = SystemControl::new(a20, || ());
        control.write(0, &[0x02]);
        assert_eq!((control.output_failures(), *lock(&up)), (1, false));
        control.write(0, &[0x02]);
        assert!(*lock(&up));
    }
}
