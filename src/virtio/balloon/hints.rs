//! Hints of free pages (section 5.5.6.3): where they go, and where the two sides are.

use super::registers::command;

/// Where hints of free pages go: to whoever copies the guest's memory.
///
/// A hint holds for what is in the page when the [command](super::Balloon::start_hinting) is given: if the guest has written the page
/// since, its content counts. So it takes somebody who knows which pages were written since then, and marks these as not to be copied that
/// were not; to discard what is hinted would lose data.
///
/// Calls come from the thread that serves the queue.
pub trait FreePageHints: Send + Sync {
    /// The guest's range is free, as it says in answer to `command`.
    fn hinted(&self, command: u32, address: u64, len: u64);

    /// The guest has no more to hint in answer to the last command.
    fn ended(&self) {}
}

impl<F: Fn(u32, u64, u64) + Send + Sync> FreePageHints for F {
    fn hinted(&self, command: u32, address: u64, len: u64) {
        self(command, address, len);
    }
}

/// Where the two sides are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hinting {
    /// `free_page_hint_cmd_id`, as the driver reads it.
    pub command: u32,
    /// The last command ID that was given, or a reserved one.
    pub given: u32,
    /// The command that the driver answers, if it does.
    pub answered: Option<u32>,
}

impl Default for Hinting {
    fn default() -> Self {
        Self {
            command: command::STOP,
            given: command::DONE,
            answered: None,
        }
    }
}

impl Hinting {
    /// The next command: none "until it has received an output buffer containing VIRTIO_BALLOON_CMD_ID_STOP" is the same, which takes
    /// 2^32 of them.
    pub(super) fn start(&mut self) -> u32 {
        self.given = self.given.wrapping_add(1).max(command::FIRST);
        self.command = self.given;
        self.given
    }

    /// Whether a driver and an embedder can have come to this.
    pub(super) fn is_possible(&self) -> bool {
        let Self {
            command,
            given,
            answered,
        } = *self;
        let reserved = command < command::FIRST;
        given >= command::DONE && (reserved || command == given) && answered.is_none_or(|id| id >= command::FIRST)
    }
}
