//! The device's own state on its way through a pipe, to the front end or from it.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsRawFd,
};

use crate::virtio::{Wait, vhost_user::event::is_ready};

/// The longest state that is taken. What devices here keep is bounded by their options, and far less.
const MAX_STATE: usize = 64 << 20;
/// So many bytes go into a pipe that has any room, without waiting.
const PIECE: usize = 4096;
/// So many pieces at a time.
const TURN: usize = 64;

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
    pub fn advance(&mut self) -> (bool, Option<Vec<u8>>) {
        for _ in 0..TURN {
            let moved = match self {
                Self::Saves(pipe, left) if !left.is_empty() => match is_ready(pipe.as_raw_fd(), libc::POLLOUT) {
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
                    if !is_ready(pipe.as_raw_fd(), libc::POLLIN) {
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
