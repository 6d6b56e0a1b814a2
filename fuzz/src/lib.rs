//! What the fuzz targets have in common.
//!
//! A target is one file in `src/bin`, which needs no entry anywhere else. It makes a machine, takes a `Vec` of steps
//! that `arbitrary` derives from the fuzzer's bytes, does them one by one, and asserts after each what always holds: that
//! nothing is lost, that outputs follow from the state, that a state which was saved is taken back and is then the same.
//! A panic anywhere is a finding. Run with `fuzz/run SECONDS [TARGET...]`.

#[path = "../../tests/support/machine.rs"]
pub mod machine;
#[path = "../../tests/support/ring.rs"]
pub mod ring;
pub mod virtio;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arbitrary::Arbitrary;
use devisor::{
    backends::irqchip::{Group, InterruptState, TriggerMode},
    bus::BusDevice,
    interrupt::{Acceptance, Interrupt, LevelInterrupt, MsiMessage, MsiSink, RequesterId},
    platform::pl011::{Frame, ModemInputs},
};

/// A guest's access to a region of registers, of any width, alignment and offset.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Access {
    kind: Kind,
    offset: u64,
    value: u64,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Read,
    Write,
    /// Of as many bytes as the number says, also none.
    ReadBytes(u8),
    WriteBytes(u8),
    /// At any offset whatever.
    ReadAnywhere,
    WriteAnywhere,
}

impl Access {
    /// Does it: most of them at a multiple of `stride` within `size` bytes, and `stride` bytes wide.
    pub fn run(self, face: &(impl BusDevice + ?Sized), size: u64, stride: u64) {
        let Self { kind, offset, value } = self;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        let register = offset % size / stride * stride;
        let len = |len: u8| usize::from(len % 17);
        match kind {
            Kind::Read => face.read(register, &mut bytes[..stride as usize]),
            Kind::Write => face.write(register, &bytes[..stride as usize]),
            // Up to a few bytes past the end.
            Kind::ReadBytes(n) => face.read(offset % (size + 8), &mut bytes[..len(n)]),
            Kind::WriteBytes(n) => face.write(offset % (size + 8), &bytes[..len(n)]),
            Kind::ReadAnywhere => face.read(offset, &mut bytes[..stride as usize]),
            Kind::WriteAnywhere => face.write(offset, &bytes[..stride as usize]),
        }
    }
}

/// What is outside of a controller: the end of its line, or who takes its messages. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Outside(Arc<Ends>);

#[derive(Debug, Default)]
struct Ends {
    up: AtomicBool,
    refuses: AtomicBool,
    drops: AtomicBool,
    messages: AtomicU64,
}

impl Outside {
    /// The level that the line was told.
    pub fn is_up(&self) -> bool {
        self.0.up.load(Relaxed)
    }

    /// How many messages, or edges, were taken.
    pub fn messages(&self) -> u64 {
        self.0.messages.load(Relaxed)
    }

    /// Takes an edge.
    pub fn pulse(&self) -> io::Result<()> {
        self.answer()?;
        self.0.messages.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Whether it answers with an error from now on.
    pub fn refuse(&self, refuses: bool) {
        self.0.refuses.store(refuses, Relaxed);
    }

    /// Whether it answers with an error.
    pub fn refuses(&self) -> bool {
        self.0.refuses.load(Relaxed)
    }

    /// Whether nobody accepts a message from now on.
    pub fn drop_all(&self, drops: bool) {
        self.0.drops.store(drops, Relaxed);
    }

    /// Whether nobody accepts a message.
    pub fn drops(&self) -> bool {
        self.0.drops.load(Relaxed)
    }

    fn answer(&self) -> io::Result<()> {
        match self.refuses() {
            true => Err(io::Error::other("refused")),
            false => Ok(()),
        }
    }

    fn tell(&self, up: bool) -> io::Result<()> {
        assert_ne!(self.is_up(), up, "a line hears transitions alone");
        self.answer()?;
        self.0.up.store(up, Relaxed);
        Ok(())
    }
}

impl Interrupt for Outside {
    fn trigger(&self) -> io::Result<()> {
        self.tell(true)
    }
}

impl LevelInterrupt for Outside {
    fn clear(&self) -> io::Result<()> {
        self.tell(false)
    }
}

impl MsiSink for Outside {
    fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
        self.pulse()
    }

    fn offer(&self, requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
        if self.drops() && !self.refuses() {
            return Ok(Acceptance::Dropped);
        }
        self.send(requester, message)?;
        Ok(Acceptance::Accepted)
    }
}

/// A writer that shows what it takes, and takes as much as it is told to. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Screen(Arc<Mutex<(Vec<u8>, Takes)>>);

/// How a [`Screen`] answers.
#[derive(Arbitrary, Clone, Copy, Debug, Default)]
pub enum Takes {
    #[default]
    Everything,
    /// So many more characters, and then nothing.
    Some(u8),
    /// None, and fails.
    Fails,
}

impl Screen {
    /// How it answers from now on.
    pub fn takes(&self, takes: Takes) {
        self.0.lock().unwrap().1 = takes;
    }

    /// How it answers now.
    pub fn how(&self) -> Takes {
        self.0.lock().unwrap().1
    }

    /// What it has shown since it was last asked.
    pub fn shown(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }
}

impl io::Write for Screen {
    fn write(&mut self, characters: &[u8]) -> io::Result<usize> {
        let (shown, takes) = &mut *self.0.lock().unwrap();
        let count = match takes {
            Takes::Everything => characters.len(),
            Takes::Some(0) => return Err(io::ErrorKind::WouldBlock.into()),
            Takes::Some(more) => {
                let count = characters.len().min((*more).into());
                *more -= count as u8;
                count
            }
            Takes::Fails => return Err(io::Error::other("refused")),
        };
        shown.extend(&characters[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A frame of each kind.
pub fn frame(kind: u8, character: u8) -> Frame {
    match kind % 4 {
        0 => Frame::Data(character),
        1 => Frame::FramingError(character),
        2 => Frame::ParityError(character),
        _ => Frame::Break,
    }
}

/// Modem lines, one a bit.
pub fn modem(lines: u8) -> ModemInputs {
    let line = |bit: u8| lines >> bit & 1 != 0;
    ModemInputs {
        cts: line(0),
        dsr: line(1),
        dcd: line(2),
        ri: line(3),
    }
}

/// What one interrupt of a GIC may be in a state from outside. Its lower three bits of priority are mostly clear, for few
/// GICs have them.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct SomeInterrupt {
    flags: u8,
    priority: u8,
}

impl SomeInterrupt {
    pub fn state(self) -> InterruptState {
        let flag = |bit: u32| self.flags >> bit & 1 != 0;
        InterruptState {
            enabled: flag(0),
            group: if flag(1) { Group::One } else { Group::Zero },
            trigger: if flag(2) { TriggerMode::Edge } else { TriggerMode::Level },
            priority: if self.flags >> 6 == 3 {
                self.priority
            } else {
                self.priority & 0xf8
            },
            line: flag(3),
            latch: flag(4),
            active: flag(5),
        }
    }
}

/// A step of time: the lower bits of `random` say how long, its highest how the others are understood. Up to 18 minutes.
pub fn step_of_time(random: u64) -> Duration {
    Duration::from_nanos((random & ((1 << 40) - 1)) >> (random >> 58 & 0x1f))
}

/// Drives a line up or down; what it answers is the controller's to remember.
pub fn drive(line: &impl LevelInterrupt, up: bool) {
    let _ = match up {
        true => line.trigger(),
        false => line.clear(),
    };
}
