//! A ring, and the requests that are under way in it.

use std::{collections::VecDeque, io, mem, os::fd::AsRawFd, sync::Arc, task::Waker};

use io_uring::{IoUring, opcode, squeue, types};

use super::{
    super::{Buffers, Channel, Ended, Operation, Piece, Tag, adapter, file::is_refusal},
    Shared,
    registered::Registered,
};
use crate::{sync::lock, virtio::Wait};

/// Bytes that are bounced at a time, at least.
const BOUNCE: u64 = 64 * 1024;
/// Bytes of zeros that are written at a time.
const ZEROS: u64 = 256 * 1024;
/// The most pieces that one operation takes.
const IOV_MAX: usize = 1024;
/// Of entries that are no request's.
const NOBODY: u64 = u64::MAX;

/// The file, as a ring knows it.
const FILE: types::Fixed = types::Fixed(0);

/// A ring with the file of `shared`.
pub fn ring(shared: &Shared) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork();
    if let Some(idle) = shared.options.poll_submissions {
        builder.setup_sqpoll(u32::try_from(idle.as_millis()).unwrap_or(u32::MAX));
    }
    let ring = builder.build(shared.options.entries)?;
    ring.submitter().register_files(&[shared.file.file().as_raw_fd()])?;
    Ok(ring)
}

pub struct Ring {
    shared: Arc<Shared>,
    ring: IoUring,
    waker: Waker,
    requests: Vec<Option<Request>>,
    free: Vec<usize>,
    /// Entries that the kernel has or is about to get.
    in_kernel: usize,
    /// Entries for which the submission queue has had no room.
    backlog: VecDeque<squeue::Entry>,
    /// Requests that wait at the gate.
    waiting: VecDeque<usize>,
    /// Ended without the kernel, or reaped and not handed over yet.
    ended: Vec<Ended>,
    /// Room for completions.
    completions: Vec<(u64, i32)>,
    /// Zeros to write, once they are needed.
    zeros: Option<Buffers>,
    registered: Registered,
    /// Requests under way by it.
    by_registered: usize,
}

struct Request {
    tag: Tag,
    operation: Operation,
    buffers: Buffers,
    step: Step,
    /// It is inside the gate.
    inside: bool,
    /// It was to be canceled.
    canceled: bool,
    /// Its memory is known to the kernel as registered.
    registered: bool,
}

/// What the kernel does for a request, or will.
enum Step {
    /// From or to so many of its pieces.
    Straight(usize),
    /// From or to memory of ours: whole blocks, whose first `head` bytes are not of the request.
    Bounced {
        own: Buffers,
        head: u64,
    },
    /// A part of a block is to be changed.
    Part,
    Flush,
    /// `fallocate`, in one of these modes after the other.
    Whole {
        modes: &'static [i32],
    },
    /// Zeros are written to these.
    Zeros([std::ops::Range<u64>; 2]),
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

impl Ring {
    pub fn new(shared: Arc<Shared>, waker: Waker) -> io::Result<Self> {
        let ring = ring(&shared)?;
        lock(&shared.status).rings += 1;
        Ok(Self {
            registered: Registered::new(&shared, &ring),
            by_registered: 0,
            shared,
            ring,
            waker,
            requests: Vec::new(),
            free: Vec::new(),
            in_kernel: 0,
            backlog: VecDeque::new(),
            waiting: VecDeque::new(),
            ended: Vec::new(),
            completions: Vec::new(),
            zeros: None,
        })
    }

    /// Begins with a request that was put at `index`, or has it wait.
    fn start(&mut self, index: usize) {
        let Some(request) = self.requests[index].as_mut() else {
            return;
        };
        let gate = &self.shared.gate;
        if let Some((block, _)) = self.shared.file.direct_alignment()
            && request.operation.changes_data()
        {
            let part = is_part(&request.operation, request.buffers.len(), block);
            if part {
                gate.want();
                request.step = Step::Part;
            }
            // Those that came before are first.
            if part || !self.waiting.is_empty() || !gate.share(&self.waker) {
                self.waiting.push_back(index);
                return;
            }
            request.inside = true;
        }
        self.go(index);
    }

    /// Lets in who may pass now.
    fn let_in(&mut self) {
        while let Some(&index) = self.waiting.front() {
            let Some(request) = self.requests[index].as_mut() else {
                self.waiting.pop_front();
                continue;
            };
            if let Step::Part = request.step {
                let Request { operation, buffers, .. } = request;
                let file = &self.shared.file;
                let done = self
                    .shared
                    .gate
                    .alone(&self.waker, || adapter::perform(file, *operation, buffers));
                let Some(result) = done else { return };
                self.waiting.pop_front();
                self.end(index, result);
            } else {
                if !self.shared.gate.share(&self.waker) {
                    return;
                }
                request.inside = true;
                self.waiting.pop_front();
                self.go(index);
            }
        }
    }

    /// Hands a request to the kernel.
    fn go(&mut self, index: usize) {
        let direct = self.shared.file.direct_alignment();
        let Some(request) = self.requests[index].as_mut() else {
            return;
        };
        match request.operation {
            Operation::Read { offset } | Operation::Write { offset, .. } => {
                let count = match direct {
                    None => request.buffers.pieces().len(),
                    Some((block, memory)) => straight(offset, &request.buffers, block, memory),
                };
                request.step = match direct.filter(|_| count == 0) {
                    None => Step::Straight(count.min(IOV_MAX)),
                    Some((block, memory)) => {
                        let head = offset % block;
                        let len = request.buffers.len().min(BOUNCE.max(block) - head);
                        // No more than that, and a block.
                        let covered = (head + len).next_multiple_of(block);
                        let own = Buffers::zeroed(covered as usize, memory.max(block as usize));
                        if request.operation.changes_data() {
                            // Whole blocks of it.
                            request.buffers.copy_to(&own);
                        }
                        Step::Bounced { own, head }
                    }
                };
            }
            Operation::Flush => request.step = Step::Flush,
            Operation::Discard { .. } => request.step = Step::Whole { modes: &[PUNCH] },
            Operation::WriteZeroes { may_unmap, .. } => {
                let modes: &[i32] = if may_unmap { &[PUNCH, ZERO] } else { &[ZERO] };
                request.step = Step::Whole { modes };
            }
            _ => return self.end(index, Err(io::ErrorKind::Unsupported.into())),
        }
        self.push_step(index);
    }

    /// Puts the entry for the step of a request.
    fn push_step(&mut self, index: usize) {
        let Some(Request {
            operation,
            buffers,
            step,
            registered,
            ..
        }) = self.requests[index].as_mut()
        else {
            return;
        };
        let entry = match (&*step, *operation) {
            (&Step::Straight(count), operation) => {
                let pieces = &buffers.pieces()[..count];
                let idle = self.by_registered == 0;
                let place = match buffers.guest() {
                    Some(pin) => self.registered.place(&self.ring, &self.shared, pin, pieces, idle),
                    None => None,
                };
                *registered = place.is_some();
                self.by_registered += usize::from(*registered);
                transfer(operation, pieces, 0, place)
            }
            (Step::Bounced { own, head }, operation) => transfer(operation, own.pieces(), *head, None),
            (
                Step::Whole { modes },
                Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. },
            ) => {
                let whole = self.shared.file.whole_blocks(offset, len);
                match (modes.first(), whole) {
                    (Some(&mode), Ok(blocks)) if !blocks.is_empty() => {
                        let entry = opcode::Fallocate::new(FILE, blocks.end - blocks.start);
                        entry.offset(blocks.start).mode(mode).build()
                    }
                    (_, Ok(_)) => return self.whole_refused(index),
                    (_, Err(error)) => return self.end(index, Err(error)),
                }
            }
            (Step::Zeros(ranges), _) => {
                let Some(range) = ranges.iter().find(|range| !range.is_empty()) else {
                    return self.end(index, Ok(0));
                };
                let zeros = self.zeros.get_or_insert_with(|| Buffers::zeroed(ZEROS as usize, 4096));
                let piece = zeros.pieces()[0];
                let len = (range.end - range.start).min(ZEROS) as u32;
                opcode::Write::new(FILE, piece.as_ptr(), len)
                    .offset(range.start)
                    .build()
            }
            _ => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        };
        self.push(entry.user_data(index as u64));
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.in_kernel += 1;
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry points to is kept in `requests` or `zeros` until its completion was seen, also when this is dropped.
        let pushed = |ring: &mut IoUring| unsafe { ring.submission().push(entry) }.is_ok();
        pushed(&mut self.ring) || self.ring.submit().is_ok() && pushed(&mut self.ring)
    }

    /// The kernel has done with the step of a request.
    fn stepped(&mut self, index: usize, result: i32) {
        let Some(Some(request)) = self.requests.get_mut(index) else {
            return;
        };
        let result = match result {
            code if code == -libc::ECANCELED && request.canceled => {
                self.take(index, Ended::canceled);
                return;
            }
            // The thread that has submitted it has gone.
            code if code == -libc::ECANCELED => Err(io::ErrorKind::Interrupted.into()),
            0.. => Ok(result as u64),
            _ => Err(io::Error::from_raw_os_error(-result)),
        };
        match (&mut request.step, result) {
            (Step::Bounced { own, head }, Ok(moved)) => {
                let len = moved.saturating_sub(*head).min(request.buffers.len());
                if !request.operation.changes_data() {
                    own.part(*head, len).copy_to(&request.buffers);
                }
                self.end(index, Ok(len));
            }
            (Step::Whole { .. }, Err(error)) if is_refusal(&error) => self.whole_refused(index),
            (Step::Whole { .. }, Ok(_)) => match request.operation {
                // What is left over at both ends.
                Operation::WriteZeroes { offset, len, .. } => match self.shared.file.whole_blocks(offset, len) {
                    Ok(blocks) => self.write_zeros(index, [offset..blocks.start, blocks.end..offset + len]),
                    Err(error) => self.end(index, Err(error)),
                },
                _ => self.end(index, Ok(0)),
            },
            (Step::Zeros(ranges), Ok(moved)) => {
                if let Some(range) = ranges.iter_mut().find(|range| !range.is_empty()) {
                    range.start = (range.start + moved).min(range.end);
                }
                match moved {
                    0 => self.end(index, Err(io::ErrorKind::WriteZero.into())),
                    _ => self.push_step(index),
                }
            }
            (Step::Zeros(_), Err(error)) if error.kind() == io::ErrorKind::Interrupted => self.push_step(index),
            (_, result) => self.end(index, result),
        }
    }

    /// The host does not do it so: in another way, if there is one.
    fn whole_refused(&mut self, index: usize) {
        let Some(Some(request)) = self.requests.get_mut(index) else {
            return;
        };
        match (&mut request.step, request.operation) {
            (Step::Whole { modes }, _) if modes.len() > 1 => {
                *modes = &modes[1..];
                self.push_step(index);
            }
            (_, Operation::WriteZeroes { offset, len, .. }) => self.write_zeros(index, [offset..offset + len, 0..0]),
            // A discard may do nothing.
            _ => self.end(index, Ok(0)),
        }
    }

    fn write_zeros(&mut self, index: usize, ranges: [std::ops::Range<u64>; 2]) {
        if let Some(Some(request)) = self.requests.get_mut(index) {
            request.step = Step::Zeros(ranges);
            self.push_step(index);
        }
    }

    fn end(&mut self, index: usize, result: io::Result<u64>) {
        self.take(index, |tag, buffers| Ended::done(tag, buffers, result));
    }

    fn take(&mut self, index: usize, ended: impl FnOnce(Tag, Buffers) -> Ended) {
        if let Some(request) = self.requests.get_mut(index).and_then(Option::take) {
            self.free.push(index);
            if request.inside {
                self.shared.gate.leave();
            }
            self.by_registered -= usize::from(request.registered);
            self.ended.push(ended(request.tag, request.buffers));
        }
    }

    /// Sees what the kernel has done with.
    fn see(&mut self) {
        let mut completions = mem::take(&mut self.completions);
        loop {
            completions.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
            if completions.is_empty() {
                break;
            }
            for (index, result) in completions.drain(..) {
                self.in_kernel -= 1;
                if index != NOBODY {
                    self.stepped(index as usize, result);
                }
            }
        }
        self.completions = completions;
    }
}

impl Channel for Ring {
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        let request = Request {
            tag,
            operation,
            buffers,
            step: Step::Straight(0),
            inside: false,
            canceled: false,
            registered: false,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.requests[index] = Some(request);
                index
            }
            None => {
                self.requests.push(Some(request));
                self.requests.len() - 1
            }
        };
        self.start(index);
    }

    fn commit(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        if !self.ring.submission().is_empty() {
            // Refused while completions wait to be seen: the next round comes for these, and for what could not be submitted.
            let _ = self.ring.submit();
        }
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        self.see();
        if !self.waiting.is_empty() {
            self.let_in();
        }
        if self.ring.submission().cq_overflow() {
            let _ = self.ring.submit();
            self.see();
        }
        self.ended.drain(..).for_each(ended);
        if !self.ring.submission().is_empty() {
            // What follows from it.
            self.commit();
        }
        if self.by_registered == 0 {
            self.registered.let_go_of_old(&self.ring, &self.shared);
        }
    }

    fn cancel(&mut self) {
        // Those at the gate, and those that the kernel does not know yet.
        for index in mem::take(&mut self.waiting) {
            if let Some(Some(Request { step: Step::Part, .. })) = self.requests.get(index) {
                self.shared.gate.want_no_more();
            }
            self.take(index, Ended::canceled);
        }
        for entry in mem::take(&mut self.backlog) {
            self.in_kernel -= 1;
            if entry.get_user_data() != NOBODY {
                self.take(entry.get_user_data() as usize, Ended::canceled);
            }
        }
        for request in self.requests.iter_mut().flatten() {
            request.canceled = true;
        }
        if self.in_kernel != 0 {
            let every = types::CancelBuilder::any().all();
            self.push(opcode::AsyncCancel2::new(every).build().user_data(NOBODY));
        }
    }

    fn waits(&mut self, wait: &mut dyn FnMut(Wait)) {
        if self.in_kernel != 0 {
            wait(Wait::Readable(self.ring.as_raw_fd()));
        }
    }
}

impl Drop for Ring {
    /// Nothing touches the memory of requests once this has returned.
    fn drop(&mut self) {
        self.cancel();
        self.commit();
        while self.in_kernel != 0 {
            self.see();
            self.commit();
            if self.in_kernel != 0
                && self
                    .ring
                    .submit_and_wait(1)
                    .is_err_and(|error| error.raw_os_error() != Some(libc::EINTR))
            {
                std::thread::yield_now();
            }
        }
        self.registered.let_go(&self.ring, &self.shared);
        lock(&self.shared.status).rings -= 1;
    }
}

/// A read or write of `pieces`, `head` bytes before its offset; they lie in the memory that is registered as `place`, if there is one.
fn transfer(operation: Operation, pieces: &[Piece], head: u64, place: Option<u16>) -> squeue::Entry {
    let vectors: *const libc::iovec = pieces.as_ptr().cast();
    let count = pieces.len() as u32;
    match operation {
        Operation::Write { offset, fua } => {
            let (offset, flags) = (offset - head, if fua { libc::RWF_DSYNC } else { 0 });
            match (pieces, place) {
                ([piece], Some(place)) => opcode::WriteFixed::new(FILE, piece.as_ptr(), length(piece), place)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                ([piece], None) => opcode::Write::new(FILE, piece.as_ptr(), length(piece))
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                (_, Some(place)) => opcode::WritevFixed::new(FILE, vectors, count, place)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                (_, None) => opcode::Writev::new(FILE, vectors, count)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Operation::Read { offset } => {
            let offset = offset - head;
            match (pieces, place) {
                ([piece], Some(place)) => opcode::ReadFixed::new(FILE, piece.as_ptr(), length(piece), place)
                    .offset(offset)
                    .build(),
                ([piece], None) => opcode::Read::new(FILE, piece.as_ptr(), length(piece))
                    .offset(offset)
                    .build(),
                (_, Some(place)) => opcode::ReadvFixed::new(FILE, vectors, count, place)
                    .offset(offset)
                    .build(),
                (_, None) => opcode::Readv::new(FILE, vectors, count).offset(offset).build(),
            }
        }
        // Only those two are transfers.
        _ => opcode::Nop::new().build(),
    }
}

/// A transfer may be short.
fn length(piece: &Piece) -> u32 {
    u32::try_from(piece.len()).unwrap_or(1 << 30)
}

/// How many of the first pieces direct I/O takes as they are: those whose addresses are multiples of `memory`, and whose lengths are of
/// `block`.
fn straight(offset: u64, buffers: &Buffers, block: u64, memory: usize) -> usize {
    if !offset.is_multiple_of(block) {
        return 0;
    }
    let fits =
        |piece: &&Piece| (piece.as_ptr() as usize).is_multiple_of(memory) && (piece.len() as u64).is_multiple_of(block);
    buffers.pieces().iter().take_while(fits).count()
}

/// Whether what is changed begins or ends within a block.
fn is_part(operation: &Operation, transferred: u64, block: u64) -> bool {
    let (offset, len) = match *operation {
        Operation::Write { offset, .. } => (offset, transferred),
        Operation::WriteZeroes { offset, len, .. } => (offset, len),
        _ => return false,
    };
    !offset.is_multiple_of(block) || !len.is_multiple_of(block)
}
