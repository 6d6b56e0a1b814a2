//! What moves the device's own state to the front end, or from it (DEVICE_STATE).

use std::{io, os::fd::OwnedFd};

use super::{
    VhostUser,
    requests::{Outcome, one, parse},
    session::{Answer, Session},
    transfer::Transfer,
};
use crate::virtio::{
    DeviceState, VirtioDevice,
    vhost_user::{DeviceStateTransfer, Foreign, Word},
};

/// No descriptor comes with the answer.
const NO_DESCRIPTOR: u64 = 1 << 8;
const FAILED: u64 = 1;

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
        let pipe_of = |pipe: io::Result<Foreign>| match pipe.and_then(|pipe| Ok((pipe.is_stream()?, pipe))) {
            Ok((true, pipe)) => Ok(pipe),
            Ok((false, _)) => Err("a state's descriptor: a pipe, a socket or a file is accepted".to_owned()),
            Err(error) => Err(format!("a state's descriptor: {error}")),
        };
        match direction {
            DeviceStateTransfer::SAVE => {
                let pipe = pipe_of(Foreign::to_write(pipe))?;
                let state = self.core.with_control(|device| device.save());
                Ok(Transfer::Saves(pipe, state.to_bytes()))
            }
            DeviceStateTransfer::LOAD => Ok(Transfer::Loads(pipe_of(Foreign::to_read(pipe))?, Vec::new())),
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
