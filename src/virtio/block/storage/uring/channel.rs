//! A ring, and the requests that are under way in it.

use std::{collections::VecDeque, io, mem, sync::Arc, task::Waker};

use io_uring::{opcode, types};

use super::{
    super::{Buffers, Channel, Ended, Operation, Tag, adapter, file::is_refusal},
    Shared,
    lane::{FILE, Kind, Lane},
    registered::Registered,
    transfer::{are_whole, is_part, straight, transfer},
};
use crate::{
    sync::lock,
    virtio::{QueueIndex, Wait},
};

/// Bytes that are bounced at a time, at least.
const BOUNCE: u64 = 64 * 1024;
/// Bytes of zeros that are written at a time.
const ZEROS: u64 = 256 * 1024;
/// The most pieces that one operation takes.
const IOV_MAX: usize = 1024;

pub struct Ring {
    shared: Arc<Shared>,
    queue: QueueIndex,
    plain: Lane,
    /// For what is polled for.
    polled: Option<Lane>,
    waker: Waker,
    requests: Vec<Option<Request>>,
    free: Vec<usize>,
    /// Requests that wait at the gate.
    waiting: VecDeque<usize>,
    /// Ended without the kernel, and not handed over yet.
    ended: Vec<Ended>,
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
    /// It may go where it is polled for.
    may_poll: bool,
    /// It is there.
    polled: bool,
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
    pub fn new(shared: Arc<Shared>, queue: QueueIndex, waker: Waker) -> io::Result<Self> {
        let lane = |kind| Lane::new(&shared.file, &shared.options, kind);
        let plain = lane(Kind::Plain)?;
        let polled = shared
            .options
            .poll_completions
            .then(|| lane(Kind::Polled))
            .transpose()?;
        lock(&shared.status).rings += 1;
        let transfers = polled.as_ref().unwrap_or(&plain);
        Ok(Self {
            registered: Registered::new(&shared, transfers.ring()),
            by_registered: 0,
            shared,
            queue,
            plain,
            polled,
            waker,
            requests: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            ended: Vec::new(),
            zeros: None,
        })
    }

    /// Begins with a request that was put at `index`, or has it wait. What has ended without the kernel is returned, here and below.
    #[inline(always)]
    fn start(&mut self, index: usize) -> Option<Ended> {
        let request = self.requests[index].as_mut()?;
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
                return None;
            }
            request.inside = true;
        }
        self.go(index)
    }

    /// Lets in who may pass now.
    fn let_in(&mut self, ended: &mut dyn FnMut(Ended)) {
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
                self.end(index, result).map(&mut *ended);
            } else {
                if !self.shared.gate.share(&self.waker) {
                    return;
                }
                request.inside = true;
                self.waiting.pop_front();
                self.go(index).map(&mut *ended);
            }
        }
    }

    /// Hands a request to the kernel.
    #[inline(always)]
    fn go(&mut self, index: usize) -> Option<Ended> {
        let direct = self.shared.file.direct_alignment();
        let request = self.requests[index].as_mut()?;
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
        self.push_step(index)
    }

    /// Puts the entry for the step of a request.
    fn push_step(&mut self, index: usize) -> Option<Ended> {
        let Request {
            operation,
            buffers,
            step,
            registered,
            may_poll,
            polled,
            ..
        } = self.requests[index].as_mut()?;
        *polled = *may_poll
            && match (&*step, *operation) {
                (_, Operation::Read { .. }) => true,
                (&Step::Straight(count), Operation::Write { offset, .. }) => {
                    are_whole(offset, &buffers.pieces()[..count], self.shared.file.polled_alignment())
                }
                (Step::Bounced { own, head }, Operation::Write { offset, .. }) => {
                    are_whole(offset - head, own.pieces(), self.shared.file.polled_alignment())
                }
                _ => false,
            };
        let entry = match (&*step, *operation) {
            (&Step::Straight(count), operation) => {
                let pieces = &buffers.pieces()[..count];
                let idle = self.by_registered == 0;
                // Where transfers go, and nowhere else.
                let ring = match &self.polled {
                    None => Some(self.plain.ring()),
                    Some(lane) => polled.then(|| lane.ring()),
                };
                let place = match (buffers.guest(), ring) {
                    (Some(pin), Some(ring)) => self.registered.place(ring, &self.shared, pin, pieces, idle),
                    _ => None,
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
        let lane = match &mut self.polled {
            Some(lane) if *polled => lane,
            _ => &mut self.plain,
        };
        // SAFETY: what the entry points to is kept in `requests` or `zeros` until its completion was seen, also when this is dropped.
        unsafe { lane.push(entry.user_data(index as u64)) };
        None
    }

    /// The kernel has done with the step of a request.
    fn stepped(&mut self, index: usize, result: i32) -> Option<Ended> {
        let request = self.requests.get_mut(index)?.as_mut()?;
        // The device has no queue for that any more, or no room there.
        let unpolled = mem::take(&mut request.polled) && [-libc::EOPNOTSUPP, -libc::EAGAIN].contains(&result);
        let result = match result {
            code if request.canceled && (code == -libc::ECANCELED || unpolled) => {
                return self.take(index, Ended::canceled);
            }
            _ if unpolled => {
                request.may_poll = false;
                self.by_registered -= usize::from(mem::take(&mut request.registered));
                lock(&self.shared.status).unpolled += 1;
                return self.push_step(index);
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
                self.end(index, Ok(len))
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
            (_, result) => self.take(index, |tag, buffers| Ended::done(tag, buffers, result)),
        }
    }

    /// The host does not do it so: in another way, if there is one.
    fn whole_refused(&mut self, index: usize) -> Option<Ended> {
        let request = self.requests.get_mut(index)?.as_mut()?;
        match (&mut request.step, request.operation) {
            (Step::Whole { modes }, _) if modes.len() > 1 => {
                *modes = &modes[1..];
                self.push_step(index)
            }
            (_, Operation::WriteZeroes { offset, len, .. }) => self.write_zeros(index, [offset..offset + len, 0..0]),
            // A discard may do nothing.
            _ => self.end(index, Ok(0)),
        }
    }

    fn write_zeros(&mut self, index: usize, ranges: [std::ops::Range<u64>; 2]) -> Option<Ended> {
        self.requests.get_mut(index)?.as_mut()?.step = Step::Zeros(ranges);
        self.push_step(index)
    }

    fn end(&mut self, index: usize, result: io::Result<u64>) -> Option<Ended> {
        self.take(index, |tag, buffers| Ended::done(tag, buffers, result))
    }

    #[inline(always)]
    fn take(&mut self, index: usize, ended: impl FnOnce(Tag, Buffers) -> Ended) -> Option<Ended> {
        let request = self.requests.get_mut(index)?.take()?;
        self.free.push(index);
        if request.inside {
            self.shared.gate.leave();
        }
        self.by_registered -= usize::from(request.registered);
        Some(ended(request.tag, request.buffers))
    }

    /// Sees what the kernel has done with.
    fn see(&mut self, ended: &mut dyn FnMut(Ended)) {
        for _ in 0..self.plain.there() {
            if let Some((index, result)) = self.plain.take() {
                self.stepped(index as usize, result).map(&mut *ended);
            }
        }
        for _ in 0..self.polled.as_mut().map_or(0, Lane::there) {
            if let Some((index, result)) = self.polled.as_mut().and_then(Lane::take) {
                self.stepped(index as usize, result).map(&mut *ended);
            }
        }
        self.lanes().for_each(Lane::taken);
    }

    /// Whether requests are under way, or have not been handed over.
    fn has_some(&self) -> bool {
        self.requests.len() != self.free.len() || !self.ended.is_empty()
    }

    fn lanes(&mut self) -> impl Iterator<Item = &mut Lane> {
        std::iter::once(&mut self.plain).chain(&mut self.polled)
    }

    #[inline]
    fn commit_lanes(&mut self) {
        self.plain.commit();
        if let Some(lane) = &mut self.polled {
            lane.commit();
        }
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
            polled: false,
            may_poll: self.polled.is_some()
                && matches!(operation, Operation::Read { .. } | Operation::Write { fua: false, .. }),
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
        if let Some(ended) = self.start(index) {
            self.ended.push(ended);
        }
    }

    fn commit(&mut self) {
        if self.polled.is_none() {
            self.plain.sit_at(|| self.shared.seats.of(self.queue), &self.waker);
            self.plain.tell_under_way(self.has_some());
        }
        self.commit_lanes();
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        if self.plain.has_ended() || self.polled.as_mut().is_some_and(Lane::has_ended) {
            self.see(ended);
        }
        if !self.waiting.is_empty() {
            self.let_in(ended);
        }
        if !self.ended.is_empty() {
            self.ended.drain(..).for_each(ended);
        }
        self.plain.tell_under_way(self.has_some());
        // What follows from it.
        self.plain.listen();
        if self.plain.has_pushed() || self.polled.as_ref().is_some_and(Lane::has_pushed) {
            self.commit_lanes();
        }
        if self.by_registered == 0 {
            let transfers = self.polled.as_ref().unwrap_or(&self.plain);
            self.registered.let_go_of_old(transfers.ring(), &self.shared);
        }
    }

    fn cancel(&mut self) {
        // Those at the gate, and those that the kernel does not know yet.
        for index in mem::take(&mut self.waiting) {
            if let Some(Some(Request { step: Step::Part, .. })) = self.requests.get(index) {
                self.shared.gate.want_no_more();
            }
            let ended = self.take(index, Ended::canceled);
            self.ended.extend(ended);
        }
        let never_seen: Vec<_> = self.lanes().flat_map(Lane::take_back).collect();
        for index in never_seen {
            let ended = self.take(index as usize, Ended::canceled);
            self.ended.extend(ended);
        }
        for request in self.requests.iter_mut().flatten() {
            request.canceled = true;
        }
        self.lanes().for_each(Lane::cancel);
    }

    fn waits(&mut self, wait: &mut dyn FnMut(Wait)) {
        self.plain.wait().map(&mut *wait);
        self.polled.as_ref().and_then(Lane::wait).map(wait);
    }
}

impl Drop for Ring {
    /// Nothing touches the memory of requests once this has returned.
    fn drop(&mut self) {
        let seated = self.plain.end_seat();
        self.cancel();
        loop {
            self.see(&mut drop);
            self.commit_lanes();
            match self.lanes().find(|lane| lane.in_kernel() != 0) {
                Some(lane) => lane.block(),
                None => break,
            }
        }
        let transfers = self.polled.as_ref().unwrap_or(&self.plain);
        self.registered.let_go(transfers.ring(), &self.shared);
        if seated {
            self.plain.keep_nobody();
        }
        lock(&self.shared.status).rings -= 1;
    }
}
