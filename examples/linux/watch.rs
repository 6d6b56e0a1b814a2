//! What the host sees of the guest, to compare it with what the guest sees of itself: its console, the interrupts that it
//! acknowledges and the random bytes that it is given.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use devisor::virtio::entropy::Source;

use crate::{counts::Id, spent::cpu_time};

/// How often the guest has acknowledged each interrupt.
pub type Acknowledged = BTreeMap<Id, u64>;

/// A source of random bytes that keeps a copy of them.
pub struct WatchedSource<S> {
    inner: S,
    watch: Arc<Watch>,
}

impl<S: Source> WatchedSource<S> {
    pub fn new(inner: S, watch: Arc<Watch>) -> Self {
        Self { inner, watch }
    }
}

impl<S: Source> Source for WatchedSource<S> {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.fill(bytes)?;
        self.watch.with(|seen| seen.random.extend_from_slice(bytes));
        Ok(())
    }
}

/// All that was seen so far.
#[derive(Default)]
pub struct Watch {
    seen: Mutex<Seen>,
    asked: AtomicBool,
    /// What the CPU had spent when the guest's first process began.
    begun: OnceLock<Duration>,
}

#[derive(Clone, Default)]
pub struct Seen {
    /// What the guest has printed.
    pub console: Vec<u8>,
    /// The random bytes that there were for it, in order.
    pub random: Vec<u8>,
    pub acknowledged: Acknowledged,
    /// The same, when the guest announced that it would look at its own counts.
    pub acknowledged_before: Option<Acknowledged>,
}

impl Watch {
    /// What the guest prints before it prints its `/proc/interrupts`, and after it.
    pub const HEADING: &str = "guest: interrupts";
    pub const END: &str = "guest: end of interrupts";

    /// What its kernel says when the first process begins.
    pub const INIT: &str = " as init process";

    /// What its kernel says as the last thing that firmware prints for it: what was acknowledged by then was not by the kernel.
    const FIRMWARE_ENDS: &str = "EFI stub: Exiting boot services...";

    /// What it prints when it wants to be answered.
    const QUESTION: &str = "guest: say a word";

    /// The lines that the guest has ended since `from`, which moves on.
    pub fn lines(&self, from: &mut usize) -> Vec<String> {
        self.with(|seen| {
            let new = &seen.console[*from..];
            let ended = new.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            *from += ended;
            let text = String::from_utf8_lossy(&new[..ended]).replace('\r', "");
            text.lines().map(str::to_owned).collect()
        })
    }

    /// What the CPU had spent when the guest's first process began, if it has.
    pub fn begun(&self) -> Option<Duration> {
        self.begun.get().copied()
    }

    /// How much the guest has printed.
    pub fn console_len(&self) -> usize {
        self.with(|seen| seen.console.len())
    }

    /// The last bytes of that, if there are some after `from`.
    pub fn console_end(&self, from: usize, len: usize) -> Option<Vec<u8>> {
        self.with(|seen| {
            let begin = seen.console.len().saturating_sub(len);
            (seen.console.len() > from).then(|| seen.console[begin..].to_vec())
        })
    }

    /// Whether the guest has asked its question.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    pub fn seen(&self) -> Seen {
        self.with(|seen| seen.clone())
    }

    /// A core has taken this interrupt.
    pub fn acknowledged(&self, id: Id) {
        self.with(|seen| *seen.acknowledged.entry(id).or_default() += 1);
    }

    fn console(&self, bytes: &[u8]) {
        self.with(|seen| {
            for &byte in bytes {
                seen.console.push(byte);
                if byte != b'\n' {
                    continue;
                }
                let line = last_line(&seen.console);
                if line.ends_with(Self::INIT.as_bytes()) {
                    self.begun.get_or_init(cpu_time);
                } else if line == Self::QUESTION.as_bytes() {
                    self.asked.store(true, Ordering::SeqCst);
                } else if line.ends_with(Self::FIRMWARE_ENDS.as_bytes()) {
                    seen.acknowledged.clear();
                } else if line == Self::HEADING.as_bytes() {
                    seen.acknowledged_before = Some(seen.acknowledged.clone());
                }
            }
        });
    }

    fn with<R>(&self, f: impl FnOnce(&mut Seen) -> R) -> R {
        f(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The UART's output, to the watch and to standard output, over a wire that is slower than the guest: so the UART's
/// transmit FIFO fills up, and the guest has to wait for its interrupt.
pub struct Console {
    pub watch: Arc<Watch>,
    pub wire: Arc<Wire>,
}

/// The wire behind a UART.
#[derive(Default)]
pub struct Wire {
    /// How many characters it takes now.
    room: AtomicUsize,
}

impl Wire {
    /// It takes `characters` from now on.
    pub fn make_room(&self, characters: usize) {
        self.room.store(characters, Ordering::SeqCst);
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.wire.room.load(Ordering::SeqCst);
        let taken = &bytes[..bytes.len().min(room)];
        if taken.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.wire.room.store(room - taken.len(), Ordering::SeqCst);
        self.watch.console(taken);
        io::stdout().write_all(taken)?;
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// The last of the lines, all of which have ended.
fn last_line(lines: &[u8]) -> &[u8] {
    let lines = lines.trim_ascii_end();
    let start = lines.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    &lines[start..]
}
