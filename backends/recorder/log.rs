//! The log behind a recorder: entries in the order in which calls began, and what is known of each line.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{Action, Awaited, Counts, Event, Outcome};

/// What a line is, and so how it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Edge,
    Level,
    Message,
}

/// What is known of one line.
#[derive(Clone)]
pub(super) struct Lane {
    pub(super) name: Arc<str>,
    pub(super) kind: Kind,
    /// The level now.
    pub(super) up: bool,
    /// The level before the oldest entry of the log.
    pub(super) was_up: bool,
    counts: Counts,
    calls: u64,
    failing: Option<Failing>,
}

#[derive(Clone, Copy)]
struct Failing {
    call: u64,
    onward: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) time: Duration,
    pub(super) lane: usize,
    pub(super) action: Action,
    pub(super) outcome: Outcome,
}

pub(super) struct Log {
    lanes: Vec<Lane>,
    /// Their numbers are contiguous.
    entries: VecDeque<Entry>,
    capacity: usize,
    /// Whether times are told by a clock, and not by the order of the calls.
    clocked: bool,
    /// How many entries there ever were.
    begun: u64,
    dropped: u64,
    last: Duration,
}

/// The log at one moment, to be drawn without the lock.
pub(super) struct Snapshot {
    pub(super) lanes: Vec<Lane>,
    pub(super) entries: Vec<Entry>,
    /// How many older entries are left out.
    pub(super) left_out: u64,
    pub(super) clocked: bool,
}

impl Log {
    pub(super) fn new(capacity: usize, clocked: bool) -> Self {
        Self {
            lanes: Vec::new(),
            entries: VecDeque::new(),
            capacity,
            clocked,
            begun: 0,
            dropped: 0,
            last: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, name: &str, kind: Kind) -> (usize, Arc<str>) {
        let taken = |name: &str| self.lanes.iter().any(|lane| &*lane.name == name);
        let name: Arc<str> = unique(name, ".", taken).into();
        self.lanes.push(Lane {
            name: Arc::clone(&name),
            kind,
            up: false,
            was_up: false,
            counts: Counts::default(),
            calls: 0,
            failing: None,
        });
        (self.lanes.len() - 1, name)
    }

    /// A call begins: its number, or `None` if it is to fail.
    pub(super) fn begin(&mut self, lane: usize, action: Action, now: Option<Duration>) -> Option<u64> {
        self.begun += 1;
        let number = self.begun;
        // Threads read the clock before they get here, so they may come in another order than their times.
        self.last = self.last.max(now.unwrap_or(Duration::from_nanos(number)));
        let line = &mut self.lanes[lane];
        line.calls += 1;
        let fails = line.failing.is_some_and(|failing| match failing.onward {
            true => line.calls >= failing.call,
            false => line.calls == failing.call,
        });
        if fails {
            line.counts.failed += 1;
        }
        if self.entries.len() == self.capacity
            && let Some(oldest) = self.entries.pop_front()
        {
            self.dropped += 1;
            if oldest.outcome == Outcome::Delivered {
                apply(&mut self.lanes[oldest.lane].was_up, oldest.action);
            }
        }
        self.entries.push_back(Entry {
            number,
            time: self.last,
            lane,
            action,
            outcome: if fails { Outcome::Injected } else { Outcome::Pending },
        });
        (!fails).then_some(number)
    }

    /// The call that began with `number` has returned.
    pub(super) fn finish(&mut self, number: u64, lane: usize, action: Action, outcome: Outcome) {
        let line = &mut self.lanes[lane];
        match outcome {
            Outcome::Delivered => {
                apply(&mut line.up, action);
                match action {
                    Action::Trigger | Action::Raise | Action::Send { .. } => line.counts.raised += 1,
                    Action::Clear => line.counts.cleared += 1,
                    Action::Program(_) => line.counts.programmed += 1,
                }
            }
            Outcome::Refused(_) | Outcome::Injected => line.counts.failed += 1,
            Outcome::Pending => return,
        }
        match number.checked_sub(self.dropped + 1) {
            Some(at) => self.entries[at as usize].outcome = outcome,
            // The log dropped it while the inner line was at work.
            None if outcome == Outcome::Delivered => apply(&mut line.was_up, action),
            None => {}
        }
    }

    pub(super) fn fail(&mut self, lane: usize, nth: u64, onward: bool) {
        let line = &mut self.lanes[lane];
        let call = line.calls.saturating_add(nth);
        line.failing = Some(Failing { call, onward });
    }

    pub(super) fn heal(&mut self, lane: usize) {
        self.lanes[lane].failing = None;
    }

    pub(super) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) fn counts(&self, lane: Option<usize>) -> Counts {
        let lanes = self.lanes.iter().enumerate();
        lanes
            .filter(|(at, _)| lane.is_none_or(|lane| lane == *at))
            .fold(Counts::default(), |sum, (_, lane)| Counts {
                raised: sum.raised + lane.counts.raised,
                cleared: sum.cleared + lane.counts.cleared,
                programmed: sum.programmed + lane.counts.programmed,
                failed: sum.failed + lane.counts.failed,
            })
    }

    /// How many awaited events there were, dropped ones included.
    pub(super) fn seen(&self, lane: Option<usize>, awaited: Awaited) -> u64 {
        let Counts {
            raised,
            cleared,
            programmed,
            failed,
        } = self.counts(lane);
        match awaited {
            Awaited::Any => raised + cleared + programmed + failed,
            Awaited::Raised => raised,
            Awaited::Cleared => cleared,
            Awaited::Failed => failed,
        }
    }

    /// The `nth` awaited event, unless it was dropped or has not come.
    pub(super) fn find(&self, lane: Option<usize>, awaited: Awaited, nth: u64) -> Option<Event> {
        // From the back: who waits, waits for the newest, and the oldest may have been dropped.
        let later = self.seen(lane, awaited).checked_sub(nth).filter(|_| nth != 0)?;
        let mut newest_first = self.of(lane).rev().filter(|entry| entry.is(awaited));
        newest_first
            .nth(usize::try_from(later).ok()?)
            .map(|entry| self.event(entry))
    }

    pub(super) fn events(&self, lane: Option<usize>) -> Vec<Event> {
        self.of(lane).map(|entry| self.event(entry)).collect()
    }

    /// The last `most` entries, and the levels before them.
    pub(super) fn snapshot(&self, most: usize) -> Snapshot {
        let skip = self.entries.len().saturating_sub(most);
        let mut lanes = self.lanes.clone();
        for entry in self.entries.iter().take(skip) {
            if entry.outcome == Outcome::Delivered {
                apply(&mut lanes[entry.lane].was_up, entry.action);
            }
        }
        Snapshot {
            lanes,
            entries: self.entries.iter().skip(skip).copied().collect(),
            left_out: self.dropped + skip as u64,
            clocked: self.clocked,
        }
    }

    fn of(&self, lane: Option<usize>) -> impl DoubleEndedIterator<Item = &Entry> {
        let of_lane = move |entry: &&Entry| lane.is_none_or(|lane| lane == entry.lane);
        self.entries.iter().filter(of_lane)
    }

    fn event(&self, entry: &Entry) -> Event {
        let Entry {
            number,
            time,
            lane,
            action,
            outcome,
        } = *entry;
        Event {
            number,
            time,
            line: Arc::clone(&self.lanes[lane].name),
            action,
            outcome,
        }
    }
}

impl Entry {
    fn is(&self, awaited: Awaited) -> bool {
        let delivered = self.outcome == Outcome::Delivered;
        match awaited {
            Awaited::Any => self.outcome != Outcome::Pending,
            Awaited::Raised => delivered && !matches!(self.action, Action::Clear | Action::Program(_)),
            Awaited::Cleared => delivered && self.action == Action::Clear,
            Awaited::Failed => matches!(self.outcome, Outcome::Refused(_) | Outcome::Injected),
        }
    }
}

/// What a delivered action does to the level of its line.
pub(super) fn apply(up: &mut bool, action: Action) {
    match action {
        Action::Raise => *up = true,
        Action::Clear => *up = false,
        Action::Trigger | Action::Send { .. } | Action::Program(_) => {}
    }
}

/// `name`, or the first of `name.2`, `name.3` ... that is not taken.
pub(super) fn unique(name: &str, separator: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut unique = name.to_owned();
    for number in 2.. {
        if !taken(&unique) {
            break;
        }
        unique = format!("{name}{separator}{number}");
    }
    unique
}
