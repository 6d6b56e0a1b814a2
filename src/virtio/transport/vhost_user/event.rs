//! Kicks, calls and errors.

use std::{
    io,
    os::fd::{OwnedFd, RawFd},
};

use crate::{
    interrupt::Interrupt,
    virtio::vhost_user::{Foreign, signal},
};

/// An eventfd, a pipe or a socket. None is waited for.
pub(super) struct Event(Foreign);

impl Event {
    /// One that is heard.
    ///
    /// # Errors
    /// It is another descriptor.
    pub fn heard(descriptor: OwnedFd) -> io::Result<Self> {
        Self::checked(Foreign::to_read(descriptor)?)
    }

    /// One that is triggered.
    ///
    /// # Errors
    /// It is another descriptor.
    pub fn said(descriptor: OwnedFd) -> io::Result<Self> {
        Self::checked(Foreign::to_write(descriptor)?)
    }

    fn checked(descriptor: Foreign) -> io::Result<Self> {
        match descriptor.is_event()? {
            true => Ok(Self(descriptor)),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "another descriptor: an eventfd, a pipe or a socket is accepted",
            )),
        }
    }

    pub fn descriptor(&self) -> RawFd {
        self.0.descriptor()
    }

    /// Takes what is there. Whether there was anything.
    ///
    /// # Errors
    /// Nothing comes any more: the other end is closed.
    pub fn take(&self) -> io::Result<bool> {
        match self.0.read(&mut [0; 8]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
            result => result.map(|_| true),
        }
    }
}

impl Interrupt for Event {
    fn trigger(&self) -> io::Result<()> {
        if self.0.may_be_waited_for() && signal(self.descriptor()).is_ok() {
            return Ok(());
        }
        match self.0.write(&1u64.to_ne_bytes()) {
            // It is as full as can be, and needs no more: nobody has looked since.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(drop),
        }
    }
}

#[cfg(test)]
mod tests;
