//! Where a thread waits, between its turns: what it shares with the ring it waits in.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
    task::Waker,
    time::Duration,
};

use io_uring::{IoUring, opcode, squeue, types};

use crate::sync::lock;

/// What a waiter and the ring it waits in share.
pub struct Seat {
    bell: OwnedFd,
    taken: Mutex<Option<Taken>>,
    /// Of the queue whose ring was refused last, as another was taken.
    refused: Mutex<Option<Waker>>,
    /// It is run.
    occupied: AtomicBool,
    /// Its thread is [`AWAKE`], [`ASLEEP`] or [`AWAY`].
    state: AtomicU8,
    /// A completion has told of the bell, and no turn has begun since.
    rung: AtomicBool,
    /// Somebody has taken completions from the ring, of which the wait does not know yet.
    taken_from: AtomicBool,
    /// Requests are under way in the ring, as of the last round.
    under_way: AtomicBool,
    /// How often it has waited. Wraps.
    turn: AtomicU32,
    /// The waiter is no more.
    gone: AtomicBool,
}

/// Of the entry that tells of a bell.
pub const BELL: u64 = u64::MAX;

/// In its turn, or about to look whether it may sleep.
const AWAKE: u8 = 0;
/// It waits for a completion, or is about to.
const ASLEEP: u8 = 1;
/// It waits for the bell alone, or is about to: until somebody takes what lies in the ring.
const AWAY: u8 = 2;

#[derive(Clone)]
struct Taken {
    ring: Arc<IoUring>,
    /// Of its queue.
    waker: Waker,
}

thread_local! {
    /// Where this thread will wait next, while it runs.
    static HERE: RefCell<Option<Arc<Seat>>> = const { RefCell::new(None) };
}

/// This thread waits at a seat between its turns. Dropped, by a panic too, it leaves nothing there that is not submitted.
pub struct Here {
    seat: Arc<Seat>,
    before: Option<Arc<Seat>>,
    /// The turn was begun without the kernel.
    at_once: bool,
    /// The ring in which completions lay before the turn began.
    lay_in: Weak<IoUring>,
    /// How often in a row it was found that another thread has the queue.
    yielded: u32,
}

/// So often it is believed that another thread is about to let go of the queue. Then this one sleeps for [`NAP`] at a time.
const YIELDS: u32 = 100;
const NAP: Duration = Duration::from_millis(1);

impl Here {
    /// # Errors
    /// Another is there.
    pub fn new(seat: Arc<Seat>) -> io::Result<Self> {
        if seat.occupied.swap(true, Ordering::SeqCst) {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "a waiter that is run is not run a second time meanwhile: one of its own for each thread is accepted",
            ));
        }
        let before = HERE.replace(Some(Arc::clone(&seat)));
        Ok(Self {
            seat,
            before,
            at_once: false,
            lay_in: Weak::new(),
            yielded: 0,
        })
    }

    pub fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        // Nobody else sets it.
        self.seat
            .turn
            .store(self.seat.turn().wrapping_add(1), Ordering::Relaxed);
        self.seat.state.store(ASLEEP, Ordering::SeqCst);
        let waited = self.sleep(limit);
        self.seat.state.store(AWAKE, Ordering::SeqCst);
        waited
    }

    /// Who takes a bell from the ring sets `rung`, then looks whether this thread is asleep; this one has said that it is, and looks at
    /// `rung` then.
    fn sleep(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let ring = self.seat.ring();
        if self.seat.take_bell() {
            // What it has rung for may have come behind the last look of this turn. The kernel is not needed for another; but if bells
            // never end, what is left to this thread does not wait for that.
            self.at_once = !self.at_once;
            return match ring {
                Some(ring) if !self.at_once => submit(&ring),
                _ => Ok(()),
            };
        }
        self.at_once = false;
        match (ring, limit) {
            (None, _) => self.seat.wait_for_bell(limit),
            (Some(ring), Some(Duration::ZERO)) => submit(&ring),
            (Some(ring), _) if self.seat.taken_from.swap(false, Ordering::SeqCst) => {
                self.lay_in = Weak::new();
                wait_in(&ring, limit)
            }
            (Some(ring), _) => self.wait_elsewhere(ring, limit),
        }
    }

    /// Nobody has taken anything from the ring since the wait before. What lay there before this turn and lies there still is of a queue
    /// that is stopped, and would end each wait: the bell alone is waited for then.
    #[cold]
    fn wait_elsewhere(&mut self, ring: Arc<IoUring>, limit: Option<Duration>) -> io::Result<()> {
        if !is_readable(&ring)? {
            return wait_in(&ring, limit);
        }
        submit(&ring)?;
        if self.lay_in.as_ptr() != Arc::as_ptr(&ring) {
            // It may have come since the turn has looked. Another one tells.
            self.lay_in = Arc::downgrade(&ring);
            self.yielded = 0;
            return Ok(());
        }
        if self.seat.under_way.load(Ordering::SeqCst) {
            // It may be of these: another thread is about to let go of the queue, which is served then although it is stopped.
            if self.yielded < YIELDS {
                self.yielded += 1;
                std::thread::yield_now();
                return Ok(());
            }
            // Not so soon: its round may take as long as a disk does. Nobody tells when it ends, but if it takes what lies there.
            return self.be_away(Some(limit.map_or(NAP, |limit| limit.min(NAP))));
        }
        // Bells do not pile up there meanwhile: who takes the end of this listens again. Linux has it since 6.0.
        let bell = types::CancelBuilder::user_data(BELL);
        let _ = ring
            .submitter()
            .register_sync_cancel(Some(types::Timespec::new()), bell);
        drop(ring);
        self.be_away(limit)
    }

    fn be_away(&self, limit: Option<Duration>) -> io::Result<()> {
        self.seat.state.store(AWAY, Ordering::SeqCst);
        match self.seat.taken_from.load(Ordering::SeqCst) {
            true => Ok(()),
            false => self.seat.wait_for_bell(limit),
        }
    }
}

fn wait_in(ring: &IoUring, limit: Option<Duration>) -> io::Result<()> {
    let waited = match limit {
        None => ring.submitter().submit_and_wait(1),
        Some(limit) => {
            // More is not a time to the kernel.
            let limit = types::Timespec::from(limit.min(Duration::from_secs(i32::MAX as u64)));
            let args = types::SubmitArgs::new().timespec(&limit);
            ring.submitter().submit_with_args(1, &args)
        }
    };
    waited.map_or_else(again, |_| Ok(()))
}

fn submit(ring: &IoUring) -> io::Result<()> {
    ring.submit().map_or_else(again, |_| Ok(()))
}

/// What the kernel refuses for now.
#[cold]
fn again(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        // The last two: completions are to be seen first, or the kernel has no memory for now.
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
        _ => Err(error),
    }
}

/// Whether there are completions to be taken: without a look at the queue, which is not this thread's.
fn is_readable(ring: &IoUring) -> io::Result<bool> {
    poll(ring.as_raw_fd(), 0)
}

/// Waits until `fd` is readable, for at most so many milliseconds. Not if it is interrupted.
fn poll(fd: RawFd, limit: i32) -> io::Result<bool> {
    let mut polled = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure.
    match unsafe { libc::poll(&raw mut polled, 1, limit) } {
        0.. => Ok(polled.revents != 0),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        HERE.set(self.before.take());
        self.seat.occupied.store(false, Ordering::SeqCst);
        let taken = lock(&self.seat.taken).as_ref().map(Taken::clone);
        if let Some(Taken { ring, waker }) = taken {
            // What is refused is submitted by the next round. That says what it waits for.
            let _ = ring.submit();
            waker.wake();
        }
    }
}

impl Seat {
    /// Nobody is there.
    pub fn new(bell: OwnedFd) -> Self {
        Self {
            bell,
            taken: Mutex::default(),
            refused: Mutex::default(),
            occupied: AtomicBool::new(false),
            state: AtomicU8::new(AWAKE),
            rung: AtomicBool::new(false),
            taken_from: AtomicBool::new(false),
            under_way: AtomicBool::new(false),
            turn: AtomicU32::new(0),
            gone: AtomicBool::new(false),
        }
    }

    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Nobody will come any more.
    pub fn go(&self) {
        self.gone.store(true, Ordering::SeqCst);
        // So that the ring listens no more.
        let left = lock(&self.taken).take();
        left.inspect(|taken| taken.waker.wake_by_ref());
    }

    fn ring(&self) -> Option<Arc<IoUring>> {
        Some(Arc::clone(&lock(&self.taken).as_ref()?.ring))
    }

    /// No ring is there to wait in, or it is not to be waited in.
    #[cold]
    fn wait_for_bell(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.map_or(-1, |limit| {
            let millis = limit.as_nanos().div_ceil(1_000_000);
            i32::try_from(millis).unwrap_or(i32::MAX)
        });
        if poll(self.bell.as_raw_fd(), limit)? {
            self.silence();
        }
        Ok(())
    }

    fn silence(&self) {
        let mut count = 0_u64;
        // SAFETY: eight bytes. If somebody has read it meanwhile there is nothing to do.
        unsafe { libc::read(self.bell.as_raw_fd(), (&raw mut count).cast(), 8) };
    }

    pub fn ring_bell(&self) -> io::Result<()> {
        let one = 1_u64;
        loop {
            // SAFETY: eight bytes.
            let written = unsafe { libc::write(self.bell.as_raw_fd(), (&raw const one).cast(), 8) };
            if written == 8 {
                return Ok(());
            }
            match io::Error::last_os_error() {
                // It has been rung so often that it holds no more: nobody would hear of it.
                full if full.kind() == io::ErrorKind::WouldBlock => self.silence(),
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            }
        }
    }

    /// Completions were taken from the ring, and one tells of the bell.
    pub fn took(&self, bell: bool) {
        self.taken_from.store(true, Ordering::SeqCst);
        if bell {
            self.rung.store(true, Ordering::SeqCst);
        }
        match self.state.load(Ordering::SeqCst) {
            // It may not have seen it before it was taken.
            ASLEEP if bell => _ = self.ring_bell(),
            AWAY => _ = self.ring_bell(),
            _ => {}
        }
    }

    /// Whether requests are under way in the ring. What is begun after that, in the same round, is followed by a look at the ring.
    #[inline]
    pub fn set_under_way(&self, any: bool) {
        // Nobody else sets it.
        if self.under_way.load(Ordering::Relaxed) != any {
            self.under_way.store(any, Ordering::SeqCst);
        }
    }

    /// Whether a completion has told of the bell since this was asked last.
    pub fn take_bell(&self) -> bool {
        self.rung.load(Ordering::SeqCst) && self.rung.swap(false, Ordering::SeqCst)
    }

    /// How often the waiter has waited.
    pub fn turn(&self) -> u32 {
        self.turn.load(Ordering::Relaxed)
    }

    /// Whether a thread is here, or comes back from its turn.
    pub fn is_occupied(&self) -> bool {
        self.occupied.load(Ordering::SeqCst)
    }

    /// The waiter has gone.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// Has who waits here wait in `ring`, unless that is in another one: from any thread. Whether it does.
    pub fn take(&self, ring: &Arc<IoUring>, waker: &Waker) -> bool {
        {
            let mut taken = lock(&self.taken);
            if taken.is_some() {
                *lock(&self.refused) = Some(waker.clone());
                return false;
            }
            let (ring, waker) = (Arc::clone(ring), waker.clone());
            *taken = Some(Taken { ring, waker });
        }
        if self.state.load(Ordering::SeqCst) != AWAKE {
            // It waits for the bell alone. One that holds no more wakes it too.
            let _ = self.ring_bell();
        }
        true
    }

    /// `ring` is not there to be waited in any more: another may be.
    pub fn leave(&self, ring: &Arc<IoUring>) {
        let left = lock(&self.taken).take_if(|taken| Arc::ptr_eq(&taken.ring, ring));
        if left.is_some() {
            let refused = lock(&self.refused).take();
            refused.inspect(Waker::wake_by_ref);
        }
    }

    /// An entry that tells each time that the bell has rung.
    pub fn listen(&self) -> squeue::Entry {
        listen(&self.bell, BELL)
    }
}

/// An entry that tells each time that `bell` has rung.
pub fn listen(bell: &OwnedFd, user_data: u64) -> squeue::Entry {
    let poll = opcode::PollAdd::new(types::Fd(bell.as_raw_fd()), libc::POLLIN as u32);
    poll.multi(true).build().user_data(user_data)
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").field("bell", &self.bell).finish_non_exhaustive()
    }
}

/// Whether this thread will wait at `seat`.
pub fn waits_at(seat: &Arc<Seat>) -> bool {
    HERE.with_borrow(|here| here.as_ref().is_some_and(|here| Arc::ptr_eq(here, seat)))
}

#[cfg(test)]
mod tests;
