//! The back end's own state, through a pipe (DEVICE_STATE).

use std::{
    fs::File,
    io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    time::Instant,
};

use super::{
    super::peer::{timed_out, wrong},
    channel::Channel,
};
use crate::virtio::vhost_user::{DeviceStateTransfer, Foreign, FrontRequest, Word};

/// How much is moved between two looks at the time.
const PIECE: usize = 64 << 10;

/// What the back end writes until it closes its end.
pub(super) fn save(channel: &mut Channel, most: usize, deadline: Instant) -> io::Result<Vec<u8>> {
    let ours = begin(channel, DeviceStateTransfer::SAVE, deadline)?;
    let mut state = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        match ours.read(&mut piece) {
            Ok(0) => break,
            Ok(read) if state.len() + read > most => {
                return Err(wrong(format!("a state of more than {most} bytes")));
            }
            Ok(read) => state.extend(&piece[..read]),
            Err(error) => wait(channel, &ours, libc::POLLIN, error, deadline)?,
        }
        // One that never ends does not last longer than one that never comes.
        if Instant::now() >= deadline {
            return Err(timed_out("the back end has not ended its state in time"));
        }
    }
    check(channel, deadline)?;
    Ok(state)
}

/// Gives it all that there is, and closes our end.
pub(super) fn load(channel: &mut Channel, state: &[u8], deadline: Instant) -> io::Result<()> {
    let ours = begin(channel, DeviceStateTransfer::LOAD, deadline)?;
    let mut left = state;
    while !left.is_empty() {
        match ours.write(&left[..left.len().min(PIECE)]) {
            Ok(written) => left = &left[written..],
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Err(wrong("a state that the back end does not read to its end"));
            }
            Err(error) => wait(channel, &ours, libc::POLLOUT, error, deadline)?,
        }
    }
    drop(ours);
    check(channel, deadline)
}

fn wait(channel: &mut Channel, ours: &Foreign, events: i16, error: io::Error, deadline: Instant) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock => channel.wait_for(ours.descriptor(), events, deadline),
        io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

/// A pipe to it or from it: our end, which does not wait. It may have one of its own.
///
/// Writing where nobody reads is an error, in a process that ignores SIGPIPE, as those of Rust do.
fn begin(channel: &mut Channel, direction: u32, deadline: Instant) -> io::Result<Foreign> {
    let [reads, writes] = pipe()?;
    let (ours, theirs) = match direction {
        DeviceStateTransfer::SAVE => (reads, writes),
        _ => (writes, reads),
    };
    let phase = DeviceStateTransfer::STOPPED;
    let payload = DeviceStateTransfer { direction, phase }.to_bytes();
    let mut answer = channel.ask_with(FrontRequest::SetDeviceStateFd, &payload, vec![theirs], deadline)?;
    let Some(Word(word)) = Word::from_bytes(&answer.payload) else {
        return Err(wrong("an answer to SetDeviceStateFd, cut short"));
    };
    if word & DeviceStateTransfer::ERROR != 0 {
        return Err(wrong(format!("the back end does not move its state: {word:#x}")));
    }
    let open = |end| match direction {
        DeviceStateTransfer::SAVE => Foreign::to_read(end),
        _ => Foreign::to_write(end),
    };
    match (word & DeviceStateTransfer::NO_DESCRIPTOR != 0, answer.descriptors.pop()) {
        (true, None) => open(ours),
        (false, Some(other)) if answer.descriptors.is_empty() => {
            let other = File::from(other);
            if !other.metadata()?.file_type().is_fifo() {
                return Err(wrong("a state that comes through no pipe"));
            }
            // What the back end has of it, it can make wait.
            let other = open(other.into())?;
            match other.may_be_waited_for() {
                true => Err(wrong("a pipe for the state that cannot be opened once more")),
                false => Ok(other),
            }
        }
        _ => Err(wrong("a descriptor for the state that is there and is not")),
    }
}

fn check(channel: &mut Channel, deadline: Instant) -> io::Result<()> {
    match channel.ask_word(FrontRequest::CheckDeviceState, deadline)? {
        0 => Ok(()),
        error => Err(wrong(format!("the back end's state was not moved: {error:#x}"))),
    }
}

/// Reading and writing end.
fn pipe() -> io::Result<[OwnedFd; 2]> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written, which nobody else has.
    unsafe {
        match libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) {
            0 => Ok(ends.map(|end| OwnedFd::from_raw_fd(end))),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
