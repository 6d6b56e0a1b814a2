//! The log as text: time runs down, each line has a column.

use std::fmt::{self, Display, Formatter};

use super::{
    Action, Outcome,
    log::{Entry, Kind, Lane, Snapshot, apply},
};
use crate::interrupt::{MsiMessage, RequesterId};

impl Display for Snapshot {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            lanes,
            entries,
            left_out,
            clocked,
        } = self;
        if lanes.is_empty() {
            return f.write_str("(no lines)");
        }
        write!(f, "{:>8}", "event")?;
        if *clocked {
            write!(f, "  {:>15}", "time/s")?;
        }
        for lane in lanes {
            write!(f, "  {}", lane.name)?;
        }
        if *left_out > 0 {
            write!(f, "\n{left_out:>8} earlier events are not shown")?;
        }
        let mut levels: Vec<bool> = lanes.iter().map(|lane| lane.was_up).collect();
        for entry in entries {
            write!(f, "\n{:>8}", entry.number)?;
            if *clocked {
                let (seconds, nanoseconds) = (entry.time.as_secs(), entry.time.subsec_nanos());
                write!(f, "  {seconds:>5}.{nanoseconds:09}")?;
            }
            let was_up = levels[entry.lane];
            if entry.outcome == Outcome::Delivered {
                apply(&mut levels[entry.lane], entry.action);
            }
            for (at, lane) in lanes.iter().enumerate() {
                let symbol = match at == entry.lane {
                    true => symbol(entry, was_up),
                    false => idle(lane, levels[at]),
                };
                let rest = lane.name.chars().count().saturating_sub(1);
                write!(f, "  {symbol}{:rest$}", "")?;
            }
            write!(f, "  {}", Words { entry, lanes, was_up })?;
        }
        Ok(())
    }
}

fn idle(lane: &Lane, up: bool) -> char {
    match (lane.kind, up) {
        (Kind::Level, true) => '┃',
        (Kind::Level, false) => '│',
        (Kind::Edge | Kind::Message, _) => '·',
    }
}

fn symbol(entry: &Entry, was_up: bool) -> char {
    match (entry.outcome, entry.action) {
        (Outcome::Pending, _) => '…',
        (Outcome::Refused(_) | Outcome::Injected, _) => '✗',
        (Outcome::Delivered, Action::Trigger) => '●',
        (Outcome::Delivered, Action::Raise) if was_up => '┣',
        (Outcome::Delivered, Action::Raise) => '╽',
        (Outcome::Delivered, Action::Clear) if was_up => '╿',
        (Outcome::Delivered, Action::Clear) => '├',
        (Outcome::Delivered, Action::Send { .. }) => '◆',
        (Outcome::Delivered, Action::Program(_)) => '○',
    }
}

/// What the row says in words.
struct Words<'a> {
    entry: &'a Entry,
    lanes: &'a [Lane],
    was_up: bool,
}

impl Display for Words<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { entry, lanes, was_up } = *self;
        f.write_str(&lanes[entry.lane].name)?;
        match entry.action {
            Action::Trigger => {}
            Action::Raise => f.write_str(if was_up { " up again" } else { " up" })?,
            Action::Clear => f.write_str(if was_up { " down" } else { " down again" })?,
            Action::Send { requester, message } => write!(f, " {} by {}", Write(message), Function(requester))?,
            Action::Program(Some(message)) => write!(f, " is programmed: {}", Write(message))?,
            Action::Program(None) => f.write_str(" is programmed: no message")?,
        }
        match entry.outcome {
            Outcome::Delivered => Ok(()),
            Outcome::Pending => f.write_str(" (not returned yet)"),
            Outcome::Refused(kind) => write!(f, " (refused: {kind})"),
            Outcome::Injected => f.write_str(" (failed as told)"),
        }
    }
}

struct Write(MsiMessage);

impl Display for Write {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let MsiMessage { address, data } = self.0;
        write!(f, "{data:#x} to {address:#x}")
    }
}

/// Bus, device and function as PCI tools print them.
struct Function(RequesterId);

impl Display for Function {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let id = self.0.0;
        write!(f, "{:02x}:{:02x}.{}", id >> 8, id >> 3 & 0x1f, id & 7)
    }
}
