//! A ring of the kernel's, and what it has not taken or not given back yet.

use std::{
    collections::VecDeque,
    io, mem,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use io_uring::{IoUring, SubmissionQueue, cqueue, opcode, squeue, types};

use super::{
    super::{Buffers, FileStorage},
    UringOptions,
    seat::{self, BELL, Seat},
};
use crate::virtio::Wait;

/// Of entries that are no request's, and of all above: [`BELL`] is one.
pub const NOBODY: u64 = u64::MAX - 1;

/// The file, as a ring knows it.
pub const FILE: types::Fixed = types::Fixed(0);

/// For what a ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything; the kernel says when something has ended.
    Plain,
    /// Reads and writes past the host's cache; it is looked whether they have ended (`IORING_SETUP_IOPOLL`).
    Polled,
}

/// What was taken from a ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Took {
    Some,
    /// The bell among it.
    Bell,
}

pub struct Lane {
    /// Its queues are this lane's; who waits in it uses neither.
    ring: Arc<IoUring>,
    /// Entries that the kernel has or is about to get.
    in_kernel: usize,
    /// Entries for which the submission queue has had no room.
    backlog: VecDeque<squeue::Entry>,
    /// Some are in the submission queue, and nobody there takes them.
    pushed: bool,
    /// A thread of the kernel's takes them.
    by_thread: bool,
    /// Nobody but who enters the ring looks whether something has ended.
    looked_for: bool,
    /// That was done since completions were taken last.
    entered: bool,
    /// Completions were taken, of which who waits in the ring is still to hear.
    took: Option<Took>,
    /// Where a thread waits in this ring.
    seat: Option<Arc<Seat>>,
    /// The ring listens to the bell there.
    listens: bool,
    /// Some are left to that thread to submit.
    left: bool,
    /// The turn of that thread in which all was to end soon: nothing is left to it then.
    urgent: Option<u32>,
}

impl Lane {
    pub fn new(file: &FileStorage, options: &UringOptions, kind: Kind) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.dontfork();
        // Beside a polled ring the plain one has little to do.
        let submissions = options
            .poll_submissions
            .filter(|_| kind == Kind::Polled || !options.poll_completions);
        if let Some(idle) = submissions {
            builder.setup_sqpoll(u32::try_from(idle.as_millis()).unwrap_or(u32::MAX));
        }
        if kind == Kind::Polled {
            builder.setup_iopoll();
        }
        let ring = builder.build(options.entries)?;
        ring.submitter().register_files(&[file.for_rings().as_raw_fd()])?;
        Ok(Self {
            ring: Arc::new(ring),
            in_kernel: 0,
            backlog: VecDeque::new(),
            pushed: false,
            by_thread: submissions.is_some(),
            looked_for: kind == Kind::Polled && submissions.is_none(),
            entered: false,
            took: None,
            seat: None,
            listens: false,
            left: false,
            urgent: None,
        })
    }

    fn submission(&mut self) -> SubmissionQueue<'_> {
        // SAFETY: nobody else pushes, as this is borrowed.
        unsafe { self.ring.submission_shared() }
    }

    /// Has who waits at `seat` wait in this ring, unless that is in another one; who has gone does not.
    pub fn sit_at(&mut self, seat: impl FnOnce() -> Option<Arc<Seat>>, waker: &Waker) {
        if self.by_thread || self.looked_for {
            return;
        }
        if self.seat.as_ref().is_some_and(|seat| seat.is_gone()) {
            self.end_seat();
        }
        if self.seat.is_none() {
            self.seat = seat().filter(|seat| seat.take(&self.ring, waker));
        }
        self.listen();
    }

    /// Hears of the bell again, if that has ended: a cancel ends it too, and the thread that has begun with it, when it ends.
    #[inline]
    pub fn listen(&mut self) {
        if let Some(seat) = &self.seat
            && !self.listens
        {
            let entry = seat.listen();
            self.listens = true;
            // SAFETY: it points to nothing.
            unsafe { self.push(entry) };
        }
    }

    /// Whether requests are under way, for who waits in the ring.
    #[inline]
    pub fn tell_under_way(&self, any: bool) {
        self.seat.as_ref().inspect(|seat| seat.set_under_way(any));
    }

    /// Nobody waits in the ring any more. Whether somebody could have.
    pub fn end_seat(&mut self) -> bool {
        let seated = self.seat.is_some();
        if let Some(seat) = self.seat.take() {
            seat.leave(&self.ring);
            if self.listens {
                let entry = opcode::AsyncCancel::new(BELL).build().user_data(NOBODY);
                // SAFETY: it points to nothing.
                unsafe { self.push(entry) };
            }
        }
        seated
    }

    /// Whoever enters the ring from here on comes back at once.
    pub fn keep_nobody(&mut self) {
        let entry = opcode::Nop::new().build().user_data(NOBODY);
        // SAFETY: it points to nothing.
        unsafe { self.push(entry) };
        self.commit();
        while !self.backlog.is_empty() || !self.submission().is_empty() {
            // The kernel has no memory for now. Somebody may be on the way in.
            std::thread::yield_now();
            self.pushed = true;
            self.commit();
        }
    }

    /// What is pushed is submitted by the thread that waits in the ring, which is this one.
    fn is_left(&self) -> bool {
        let seat = self.seat.as_ref();
        seat.is_some_and(|seat| seat::waits_at(seat) && self.urgent != Some(seat.turn()))
    }

    pub fn ring(&self) -> &IoUring {
        &self.ring
    }

    /// Entries that have not come back.
    pub fn in_kernel(&self) -> usize {
        self.in_kernel
    }

    /// # Safety
    /// What the entry points to stays there until its completion was [taken](Self::take), or this has gone.
    pub unsafe fn push(&mut self, entry: squeue::Entry) {
        self.in_kernel += 1;
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: who has pushed it keeps what it points to.
        let pushed = |lane: &mut Self| unsafe { lane.submission().push(entry) }.is_ok();
        self.pushed = true;
        pushed(self) || self.ring.submit().is_ok() && pushed(self)
    }

    /// Hands the kernel what it has room for, or leaves that to the thread that waits in the ring.
    #[inline]
    pub fn commit(&mut self) {
        // What was left to that thread stays so, if it is this one.
        if self.has_pushed() || self.left && !self.is_left() {
            self.commit_now();
        }
    }

    /// Whether entries have come since that was done last, or could not be handed over.
    #[inline]
    pub fn has_pushed(&self) -> bool {
        self.pushed || !self.backlog.is_empty()
    }

    fn commit_now(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        // What there was no room for does not come to the kernel by that thread's wait.
        if self.backlog.is_empty() && self.is_left() {
            (self.pushed, self.left) = (false, true);
        } else if self.pushed || self.left {
            // Refused, as when completions wait to be seen or the kernel has no memory: there is another round for what is left. A thread
            // of the kernel's takes its time.
            let submitted = self.ring.submit();
            (self.entered, self.left) = (true, false);
            self.pushed = submitted.is_err() || !self.by_thread && !self.submission().is_empty();
            if self.has_pushed()
                && let Some(seat) = self.seat.as_ref().filter(|seat| seat.is_occupied())
            {
                // Who sleeps there has not seen these.
                let _ = seat.ring_bell();
            }
        }
    }

    /// Whether there may be something to [take](Self::take).
    #[inline]
    pub fn has_ended(&mut self) -> bool {
        // SAFETY: nobody else takes, as this is borrowed.
        let some = |ring: &IoUring| !unsafe { ring.completion_shared() }.is_empty();
        // Or to be told of, if that was left by a panic.
        self.took.is_some()
            || self.in_kernel != 0 && (self.looked_for || some(&self.ring) || self.submission().cq_overflow())
    }

    /// How many completions there are to be [taken](Self::take). Waits for none.
    #[inline]
    pub fn there(&mut self) -> usize {
        if self.in_kernel == 0 {
            return 0;
        }
        if self.looked_for && !self.entered || self.submission().cq_overflow() {
            // Interrupted, it is done again in the next round.
            let _ = self.ring.submit();
        }
        self.entered = false;
        // SAFETY: nobody else takes, as this is borrowed.
        unsafe { self.ring.completion_shared() }.len()
    }

    /// Takes one of those that [are there](Self::there): whose it is, and with what result, if it is a request's. What follows is
    /// [`taken`](Self::taken).
    #[inline]
    pub fn take(&mut self) -> Option<(u64, i32)> {
        // SAFETY: nobody else takes, as this is borrowed.
        let entry = unsafe { self.ring.completion_shared() }.next()?;
        let index = entry.user_data();
        self.took.get_or_insert(Took::Some);
        if index == BELL {
            self.took = Some(Took::Bell);
            // It alone tells again and again.
            if cqueue::more(entry.flags()) {
                return None;
            }
            self.listens = false;
        }
        self.in_kernel -= 1;
        (index < NOBODY).then(|| (index, entry.result()))
    }

    /// Those that were there are taken: tells who waits in the ring.
    #[inline]
    pub fn taken(&mut self) {
        if let Some(took) = self.took.take()
            && let Some(seat) = &self.seat
        {
            seat.took(took == Took::Bell);
        }
    }

    /// Takes back what the kernel has never seen, by its user data.
    pub fn take_back(&mut self) -> impl Iterator<Item = u64> + use<> {
        let backlog = mem::take(&mut self.backlog);
        self.in_kernel -= backlog.len();
        self.listens &= !backlog.iter().any(|entry| entry.get_user_data() == BELL);
        let indices = backlog.into_iter().map(|entry| entry.get_user_data());
        indices.filter(|&index| index < NOBODY)
    }

    /// Has the kernel give back what it has not begun with. A device that is polled does not.
    pub fn cancel(&mut self) {
        self.urgent = self.seat.as_ref().map(|seat| seat.turn());
        if self.in_kernel != 0 && !self.looked_for {
            let every = types::CancelBuilder::any().all();
            let entry = opcode::AsyncCancel2::new(every).build().user_data(NOBODY);
            // SAFETY: it points to nothing.
            unsafe { self.push(entry) };
        }
    }

    /// What tells that something has ended: at once, for who has to look, or has to submit again.
    pub fn wait(&self) -> Option<Wait> {
        let unheard = match &self.seat {
            Some(seat) if seat.is_occupied() && self.pushed => false,
            Some(seat) if seat.is_occupied() => return None,
            // What it has rung for may have come behind the round's last look.
            Some(seat) => seat.take_bell(),
            None => false,
        };
        let again = self.looked_for || self.has_pushed() || unheard;
        match (self.in_kernel, again) {
            (0, _) => None,
            (_, true) => Some(Wait::Until(Duration::ZERO)),
            (_, false) => Some(Wait::Readable(self.descriptor())),
        }
    }

    fn descriptor(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Waits until something has ended.
    pub fn block(&mut self) {
        let waited = self.ring.submit_and_wait(1);
        if waited.is_err_and(|error| error.raw_os_error() != Some(libc::EINTR)) {
            std::thread::yield_now();
        }
    }
}

/// Whether requests to `file` can be polled for: one is tried.
pub fn try_polling(file: &FileStorage, options: &UringOptions) -> io::Result<()> {
    let Some((block, memory)) = file.direct_alignment() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "completions cannot be polled for on a file in memory, nor on one that is open without O_DIRECT: it must be open with it",
        ));
    };
    // A file system waits itself for a write behind what it has noted of a file's length, and nobody polls meanwhile.
    file.file().sync_all()?;
    let mut lane = Lane::new(file, options, Kind::Polled)?;
    let buffers = Buffers::zeroed(block as usize, memory.max(block as usize));
    let piece = buffers.pieces()[0];
    let entry = opcode::Read::new(FILE, piece.as_ptr(), block as u32).build();
    // SAFETY: the buffers are there until it has ended.
    unsafe { lane.push(entry) };
    let result = loop {
        lane.block();
        let taken = (lane.there() != 0).then(|| lane.take());
        if let Some((_, result)) = taken.flatten() {
            break result;
        }
    };
    match result {
        0.. => Ok(()),
        code if code == -libc::EOPNOTSUPP => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "completions cannot be polled for, as what the file is on has no queue for that: a device that has one is accepted \
             (an NVMe disk with `nvme.poll_queues`, say)",
        )),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

#[cfg(test)]
mod tests;
