//! The device's own state, on its way through a pipe to the front end or from it (DEVICE_STATE).

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
};

use super::{
    VhostUser,
    lines::is_ready,
    requests::{Outcome, one, parse},
    session::{Answer, Session},
};
use crate::virtio::{
    DeviceState, VirtioDevice, Wait,
    vhost_user::{DeviceStateTransfer, Word},
};

/// The longest state that is taken. What devices here keep is bounded by their options, and far less.
const MAX_STATE: usize = 64 << 20;
/// So many bytes go into a pipe that has any room, without waiting.
const PIECE: usize = 4096;
/// So many pieces at a time.
const TURN: usize = 64;

/// No descriptor comes with the answer.
const NO_DESCRIPTOR: u64 = 1 << 8;
const FAILED: u64 = 1;

/// A transfer, and what has come of it.
pub(super) enum Transfer {
    /// To the front end: what is left.
    Saves(File, Vec<u8>),
    /// From the front end: what there is.
    Loads(File, Vec<u8>),
    Over(Result<(), String>),
}

impl Transfer {
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Over(_))
    }

    /// What it waits for.
    pub fn wait(&self) -> Option<Wait> {
        match self {
            Self::Saves(pipe, _) => Some(Wait::Writable(pipe.as_raw_fd())),
            Self::Loads(pipe, _) => Some(Wait::Readable(pipe.as_raw_fd())),
            Self::Over(_) => None,
        }
    }

    /// Moves what can be moved without waiting; a state that has arrived whole. Whether there may be more to move at once.
    fn advance(&mut self) -> (bool, Option<Vec<u8>>) {
        for _ in 0..TURN {
            let moved = match self {
                Self::Saves(pipe, left) if !left.is_empty() => match is_ready(pipe, libc::POLLOUT) {
                    false => return (false, None),
                    true => pipe.write(&left[..left.len().min(PIECE)]).map(|sent| {
                        left.drain(..sent);
                    }),
                },
                // The end of it is the end of the pipe.
                Self::Saves(..) => {
                    *self = Self::Over(Ok(()));
                    return (false, None);
                }
                Self::Loads(pipe, there) => {
                    if !is_ready(pipe, libc::POLLIN) {
                        return (false, None);
                    }
                    let mut piece = [0; PIECE];
                    match pipe.read(&mut piece) {
                        Ok(0) => return (false, Some(std::mem::take(there))),
                        Ok(_) if there.len() > MAX_STATE => Err(io::Error::other("a state without end")),
                        Ok(read) => {
                            there.extend(&piece[..read]);
                            Ok(())
                        }
                        Err(error) => Err(error),
                    }
                }
                Self::Over(_) => return (false, None),
            };
            match moved {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (false, None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    *self = Self::Over(Err(format!("a state on its way: {error}")));
                    return (false, None);
                }
            }
        }
        (true, None)
    }
}

impl<D: VirtioDevice> VhostUser<D> {
    /// Begins a transfer. It is always answered.
    pub(super) fn begin_transfer(
        &self,
        session: &mut Session,
        payload: &[u8],
        descriptors: &mut Vec<OwnedFd>,
    ) -> Outcome {
        let begun = self.transfer(session, payload, descriptors);
        let answer = match begun {
            Ok(transfer) => {
                session.transfer = Some(transfer);
                NO_DESCRIPTOR
            }
            Err(reason) => {
                self.refuse(reason);
                NO_DESCRIPTOR | FAILED
            }
        };
        Ok(Answer::Payload(Word(answer).to_bytes()))
    }

    fn transfer(&self, session: &Session, payload: &[u8], descriptors: &mut Vec<OwnedFd>) -> Result<Transfer, String> {
        let DeviceStateTransfer { direction, phase } = parse(DeviceStateTransfer::from_bytes(payload))?;
        let pipe = one(descriptors)?;
        if session.runs_any() {
            return Err("a state while rings run: it is moved when all are stopped".into());
        }
        if phase != DeviceStateTransfer::STOPPED {
            return Err(format!("phase {phase} of a migration: 0 (stopped) is accepted"));
        }
        let pipe = File::from(pipe);
        match direction {
            DeviceStateTransfer::SAVE => {
                let state = self.core.with_control(|device| device.save());
                Ok(Transfer::Saves(pipe, state.to_bytes()))
            }
            DeviceStateTransfer::LOAD => Ok(Transfer::Loads(pipe, Vec::new())),
            _ => Err(format!("direction {direction}: 0 (save) and 1 (load) are accepted")),
        }
    }

    /// Goes on with a transfer. Whether there may be more to move at once.
    pub(super) fn advance_transfer(&self, session: &mut Session) -> bool {
        let Some(transfer) = &mut session.transfer else {
            return false;
        };
        let (more, arrived) = transfer.advance();
        if let Some(bytes) = arrived {
            let loaded = match session.runs_any() {
                true => Err("a state has arrived when rings run".into()),
                false => self.load(&bytes),
            };
            session.transfer = Some(Transfer::Over(loaded));
        }
        more
    }

    fn load(&self, bytes: &[u8]) -> Result<(), String> {
        let state = DeviceState::from_bytes(bytes).map_err(|error| error.to_string())?;
        self.core.restore_device(&state).map_err(|error| error.to_string())
    }

    /// Says what has come of a transfer, which is over.
    pub(super) fn check_transfer(&self, session: &mut Session) -> Outcome {
        let result = match session.transfer.take() {
            Some(Transfer::Over(result)) => result,
            _ => Err("no state was moved".into()),
        };
        let failed = result.is_err();
        if let Err(reason) = result {
            self.refuse(reason);
        }
        Ok(Answer::Payload(Word(failed.into()).to_bytes()))
    }
}
