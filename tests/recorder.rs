//! The recorder: what it logs, how it waits, fails and draws.
#![cfg(feature = "recorder")]

use std::{
    io,
    sync::{Arc, Barrier, Mutex, mpsc},
    thread,
    time::Duration,
};

use devisor::{
    backends::recorder::{Action, Awaited, Counts, Event, Outcome, Recorder, WaitError},
    interrupt::{
        Acceptance, Interrupt, LevelInterrupt, LevelOutput, MsiMessage, MsiSink, MsiVector, MsiVectors, NoInterrupt,
        RequesterId, SharedLine, from_fn, level_from_fn,
    },
    time::{Clock, ManualClock},
};

/// Longer than any test takes; a wait that is met returns at once.
const LONG: Duration = Duration::from_secs(20);
const MESSAGE: MsiMessage = MsiMessage {
    address: 0x0802_0040,
    data: 0x50,
};
const FUNCTION: RequesterId = RequesterId(3 << 3 | 1);
const SEND: Action = Action::Send {
    requester: FUNCTION,
    message: MESSAGE,
};

#[test]
fn every_kind_of_signal_is_logged_in_order_with_its_line() {
    let recorder = Recorder::new();
    let (uart, kick, msi) = (recorder.level("uart"), recorder.edge("kick"), recorder.sink("msi"));
    uart.trigger().unwrap();
    kick.trigger().unwrap();
    msi.send(FUNCTION, MESSAGE).unwrap();
    uart.clear().unwrap();

    let events = recorder.events();
    let seen: Vec<_> = events.iter().map(|event| (&*event.line, event.action)).collect();
    let expected = [
        ("uart", Action::Raise),
        ("kick", Action::Trigger),
        ("msi", SEND),
        ("uart", Action::Clear),
    ];
    assert_eq!(seen, expected);
    assert!(events.iter().map(|event| event.number).eq(1..=4));
    assert!(events.iter().all(|event| event.outcome == Outcome::Delivered));
}

#[test]
fn counts_are_kept_for_each_line_and_summed_for_all() {
    let recorder = Recorder::new();
    let (uart, kick) = (recorder.level("uart"), recorder.edge("kick"));
    uart.trigger().unwrap();
    uart.trigger().unwrap();
    uart.clear().unwrap();
    kick.line().fail_next();
    kick.trigger().unwrap_err();
    let counts = |raised, cleared, failed| Counts {
        raised,
        cleared,
        failed,
        programmed: 0,
    };
    assert_eq!(uart.line().counts(), counts(2, 1, 0));
    assert_eq!(kick.line().counts(), counts(0, 0, 1));
    assert_eq!(recorder.counts(), counts(2, 1, 1));
}

#[test]
fn a_line_is_found_by_its_name_and_names_are_unique() {
    let recorder = Recorder::new();
    let first = recorder.edge("uart");
    let second = recorder.level("uart");
    assert_eq!((first.line().name(), second.line().name()), ("uart", "uart.2"));
    second.trigger().unwrap();
    assert!(recorder.line("uart.2").unwrap().is_up());
    assert_eq!(recorder.line("uart").unwrap().counts().raised, 0);
    assert!(recorder.line("clock").is_none());
}

#[test]
fn time_is_told_by_the_injected_clock() {
    let clock = Arc::new(ManualClock::new(Duration::from_secs(7)));
    let recorder = Recorder::builder().clock(clock.clone()).build();
    let kick = recorder.edge("kick");
    kick.trigger().unwrap();
    clock.advance(Duration::from_millis(3));
    kick.trigger().unwrap();
    let times: Vec<_> = kick.line().events().iter().map(|event| event.time).collect();
    assert_eq!(times, [Duration::from_secs(7), Duration::from_millis(7003)]);
}

#[test]
fn time_never_runs_backwards_in_the_log() {
    struct Jumping(Mutex<Vec<u64>>);
    impl Clock for Jumping {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0.lock().unwrap().pop().unwrap())
        }
    }
    let clock = Arc::new(Jumping(Mutex::new(vec![6, 4, 5])));
    let recorder = Recorder::builder().clock(clock).build();
    let kick = recorder.edge("kick");
    (0..3).for_each(|_| kick.trigger().unwrap());
    let times: Vec<_> = recorder.events().iter().map(|event| event.time.as_secs()).collect();
    assert_eq!(times, [5, 5, 6]);
}

#[test]
fn a_wait_is_woken_by_the_event_of_another_thread() {
    let recorder = Recorder::new();
    let device = recorder.level("uart");
    let line = device.line().clone();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || sender.send(line.wait_for(Awaited::Cleared, 1, LONG)).unwrap());
        device.trigger().unwrap();
        let early = receiver.recv_timeout(Duration::from_millis(20));
        assert!(early.is_err(), "a rise is not what is waited for");
        device.clear().unwrap();
        // Sooner than the wait would end by itself.
        let event = receiver.recv_timeout(LONG / 2).unwrap().unwrap();
        assert_eq!((event.number, event.action), (2, Action::Clear));
    });
}

#[test]
fn a_wait_for_what_has_come_returns_the_nth_of_it() {
    let recorder = Recorder::new();
    let (uart, kick) = (recorder.level("uart"), recorder.edge("kick"));
    uart.trigger().unwrap();
    kick.trigger().unwrap();
    uart.clear().unwrap();
    uart.line().fail_next();
    uart.trigger().unwrap_err();
    uart.trigger().unwrap();

    let number = |event: Result<Event, WaitError>| event.unwrap().number;
    let uart = uart.line();
    assert_eq!(number(uart.wait_for(Awaited::Raised, 2, LONG)), 5);
    assert_eq!(number(uart.wait_for(Awaited::Cleared, 1, LONG)), 3);
    assert_eq!(number(uart.wait_for(Awaited::Failed, 1, LONG)), 4);
    assert_eq!(number(uart.wait_for(Awaited::Any, 4, LONG)), 5);
    assert_eq!(number(recorder.wait_for(Awaited::Raised, 2, LONG)), 2);
    assert_eq!(number(recorder.wait_for(Awaited::Any, 3, LONG)), 3);
}

#[test]
fn a_wait_that_is_not_met_says_what_came_and_prints_the_log() {
    let recorder = Recorder::new();
    let uart = recorder.level("uart");
    uart.trigger().unwrap();
    let wait = uart.line().wait_for(Awaited::Raised, 2, Duration::from_millis(1));
    let error = wait.unwrap_err();
    assert!(matches!(error, WaitError::TimedOut { nth: 2, seen: 1, .. }));
    let text = error.to_string();
    assert!(text.contains("raising event 2 of uart"), "{text}");
    assert!(text.contains("uart up"), "{text}");
}

#[test]
fn a_call_fails_when_told_and_at_no_other_time() {
    let recorder = Recorder::new();
    let (kick, other) = (recorder.edge("kick"), recorder.edge("other"));
    let calls = |n: usize| (0..n).map(|_| kick.trigger().is_ok()).collect::<Vec<_>>();

    assert_eq!(calls(1), [true]);
    kick.line().fail_nth(2);
    other.trigger().unwrap();
    assert_eq!(calls(4), [true, false, true, true]);
    kick.line().fail_from(2);
    assert_eq!(calls(4), [true, false, false, false]);
    kick.line().heal();
    assert_eq!(calls(1), [true]);
    kick.line().fail_always();
    assert_eq!(calls(2), [false, false]);
    kick.line().heal();
    assert_eq!(calls(1), [true]);
}

#[test]
fn a_call_that_is_told_to_fail_changes_no_level_and_never_reaches_the_inner_line() {
    let recorder = Recorder::new();
    let below = recorder.level("below");
    let line = recorder.wrap_level("uart", &below);
    line.line().fail_next();
    line.trigger().unwrap_err();
    assert!(!line.line().is_up());
    line.trigger().unwrap();
    line.line().fail_next();
    line.clear().unwrap_err();
    assert!(line.line().is_up());
    let heard = below.line().counts();
    assert_eq!((heard.raised, heard.cleared), (1, 0));
    assert_eq!(recorder.events()[0].outcome, Outcome::Injected);
}

#[test]
fn a_device_that_keeps_its_causes_carries_a_failed_signal_with_the_next_one() {
    let recorder = Recorder::new();
    let line = recorder.level("uart");
    let record = line.line().clone();
    let output = LevelOutput::new(line);
    record.fail_next();
    output.drive(true).unwrap_err();
    assert!(!record.is_up());
    output.settle().unwrap();
    assert!(record.is_up());
    assert_eq!(record.counts().failed, 1);
}

#[test]
fn a_wrapped_line_is_passed_on_and_its_refusals_are_recorded() {
    let recorder = Recorder::new();
    let edge = recorder.wrap_edge("full", from_fn(|| Err(io::ErrorKind::WouldBlock.into())));
    assert_eq!(edge.trigger().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let refused = Outcome::Refused(io::ErrorKind::WouldBlock);
    assert_eq!(recorder.events()[0].outcome, refused);
    assert_eq!(edge.line().counts().failed, 1);

    let below = recorder.sink("below");
    let above = recorder.wrap_sink("above", &below);
    above.send(FUNCTION, MESSAGE).unwrap();
    below.line().fail_next();
    above.send(FUNCTION, MESSAGE).unwrap_err();
    assert_eq!((above.line().counts().raised, above.line().counts().failed), (1, 1));
    assert_eq!(below.line().events()[0].action, SEND);
}

#[test]
fn the_cause_is_logged_before_what_the_inner_line_does_with_it() {
    let recorder = Recorder::new();
    let reply = recorder.edge("reply");
    let log = recorder.clone();
    let inner = from_fn(move || {
        assert_eq!(log.events()[0].outcome, Outcome::Pending, "and no lock is held here");
        reply.trigger()
    });
    recorder.wrap_edge("call", inner).trigger().unwrap();
    let events = recorder.events();
    let lines: Vec<_> = events.iter().map(|event| &*event.line).collect();
    assert_eq!(lines, ["call", "reply"]);
    assert!(events.iter().all(|event| event.outcome == Outcome::Delivered));
}

#[test]
fn a_wait_is_not_met_before_the_inner_line_has_taken_the_signal() {
    let recorder = Recorder::new();
    let gate = Arc::new(Barrier::new(2));
    let inner = Arc::clone(&gate);
    let slow = from_fn(move || {
        inner.wait();
        inner.wait();
        Ok(())
    });
    let line = recorder.wrap_edge("slow", slow);
    thread::scope(|scope| {
        scope.spawn(|| line.trigger().unwrap());
        gate.wait();
        let early = line.line().wait_for(Awaited::Any, 1, Duration::ZERO);
        gate.wait();
        early.unwrap_err();
        line.line().wait_for(Awaited::Raised, 1, LONG).unwrap();
    });
}

#[test]
fn a_vector_records_its_programming_and_its_messages() {
    let recorder = Recorder::new();
    let vectors = recorder.vectors("nic");
    let vector = vectors.vector(FUNCTION).unwrap();
    assert!(vector.trigger().is_err(), "it has no message yet");
    vector.program(Some(MESSAGE)).unwrap();
    vector.trigger().unwrap();
    vector.program(None).unwrap();
    assert!(vector.trigger().is_err());

    let line = recorder.line("nic.0").unwrap();
    let actions: Vec<_> = line.events().iter().map(|event| event.action).collect();
    let (given, taken) = (Action::Program(Some(MESSAGE)), Action::Program(None));
    assert_eq!(actions, [Action::Trigger, given, SEND, taken, Action::Trigger]);
    let counts = line.counts();
    assert_eq!((counts.raised, counts.programmed, counts.failed), (1, 2, 2));
}

#[test]
fn a_vector_whose_programming_failed_has_no_message_below_either() {
    let recorder = Recorder::new();
    let above = recorder.wrap_vectors("above", recorder.vectors("below"));
    let vector = above.vector(FUNCTION).unwrap();
    vector.program(Some(MESSAGE)).unwrap();
    recorder.line("above.0").unwrap().fail_next();
    let other = MsiMessage { data: 0x51, ..MESSAGE };
    vector.program(Some(other)).unwrap_err();
    assert!(vector.trigger().is_err());
    assert_eq!(recorder.line("below.0").unwrap().counts().raised, 0);
}

#[test]
fn the_line_of_a_dropped_vector_is_used_again() {
    let recorder = Recorder::new();
    let vectors = recorder.vectors("nic");
    let (first, _second) = (vectors.vector(FUNCTION).unwrap(), vectors.vector(FUNCTION).unwrap());
    drop(first);
    let third = vectors.vector(FUNCTION).unwrap();
    third.program(Some(MESSAGE)).unwrap();
    assert_eq!(recorder.line("nic.0").unwrap().counts().programmed, 1);
    assert!(recorder.line("nic.2").is_none());
}

#[test]
fn a_full_log_drops_the_oldest_and_counts_and_levels_stay_right() {
    let recorder = Recorder::builder().capacity(3).build();
    let (uart, kick) = (recorder.level("uart"), recorder.edge("kick"));
    uart.trigger().unwrap();
    (0..5).for_each(|_| kick.trigger().unwrap());
    assert!(recorder.events().iter().map(|event| event.number).eq(4..=6));
    assert_eq!(recorder.dropped(), 3);
    assert_eq!(kick.line().counts().raised, 5);
    assert!(uart.line().is_up());

    let kept = kick.line().wait_for(Awaited::Raised, 5, LONG).unwrap();
    assert_eq!(kept.number, 6);
    let gone = kick.line().wait_for(Awaited::Raised, 1, LONG).unwrap_err();
    assert!(matches!(gone, WaitError::Dropped { capacity: 3, .. }), "{gone}");
    let drawn = recorder.to_string();
    assert!(drawn.contains("3 earlier events are not shown"), "{drawn}");
    assert!(drawn.contains("┃     ●"), "the uart is still up:\n{drawn}");
}

#[test]
fn an_event_that_is_dropped_while_it_is_under_way_still_counts() {
    let recorder = Recorder::builder().capacity(1).build();
    let kick = recorder.edge("kick");
    let level = recorder.wrap_level("uart", level_from_fn(move |_| kick.trigger()));
    level.trigger().unwrap();
    assert!(level.line().is_up());
    assert_eq!(level.line().counts().raised, 1);
    let drawn = recorder.to_string();
    assert!(drawn.contains('┃'), "the level is known:\n{drawn}");
}

#[test]
fn many_threads_lose_no_event() {
    let recorder = Recorder::new();
    let kick = recorder.edge("kick");
    let wire = SharedLine::new(recorder.level("wire"));
    thread::scope(|scope| {
        for _ in 0..4 {
            let (kick, source) = (kick.clone(), wire.source().unwrap());
            scope.spawn(move || {
                for _ in 0..500 {
                    source.trigger().unwrap();
                    kick.trigger().unwrap();
                    source.clear().unwrap();
                }
            });
        }
        kick.line().wait_for(Awaited::Raised, 2000, LONG).unwrap();
    });
    assert_eq!(kick.line().counts().raised, 2000);
    let wire = recorder.line("wire").unwrap();
    assert_eq!(wire.counts().raised, wire.counts().cleared);
    assert!(!wire.is_up());
    let events = wire.events();
    let alternate = events.windows(2).all(|pair| pair[0].action != pair[1].action);
    assert!(alternate, "a shared line passes on transitions only");
}

#[test]
fn the_timeline_draws_levels_edges_messages_and_failures() {
    let recorder = Recorder::new();
    let (uart, kick) = (recorder.level("uart"), recorder.edge("kick"));
    let vector = recorder.vectors("nic").vector(FUNCTION).unwrap();
    kick.trigger().unwrap();
    uart.trigger().unwrap();
    vector.program(Some(MESSAGE)).unwrap();
    vector.trigger().unwrap();
    uart.trigger().unwrap();
    kick.line().fail_next();
    kick.trigger().unwrap_err();
    uart.clear().unwrap();
    uart.clear().unwrap();
    let expected = "   event  uart  kick  nic.0
       1  │     ●     ·      kick
       2  ╽     ·     ·      uart up
       3  ┃     ·     ○      nic.0 is programmed: 0x50 to 0x8020040
       4  ┃     ·     ◆      nic.0 0x50 to 0x8020040 by 00:03.1
       5  ┣     ·     ·      uart up again
       6  ┃     ✗     ·      kick (failed as told)
       7  ╿     ·     ·      uart down
       8  ├     ·     ·      uart down again";
    let drawn = recorder.to_string();
    assert_eq!(drawn, expected, "\n{drawn}");
}

#[test]
fn the_timeline_tells_the_time_of_the_clock() {
    let clock = Arc::new(ManualClock::new(Duration::from_micros(1_500_001)));
    let recorder = Recorder::builder().clock(clock).build();
    recorder.edge("kick").trigger().unwrap();
    let drawn = recorder.to_string();
    assert!(drawn.ends_with("1      1.500001000  ●     kick"), "{drawn}");
}

#[test]
fn a_recorded_line_stands_in_for_any_other() {
    fn device(line: impl LevelInterrupt + 'static) -> Box<dyn LevelInterrupt> {
        Box::new(line)
    }
    let recorder = Recorder::new();
    device(device(recorder.wrap_level("level", device(NoInterrupt))))
        .trigger()
        .unwrap();
    let vectors: Box<dyn MsiVectors> = Box::new(recorder.vectors("nic"));
    let vector: Box<dyn MsiVector> = vectors.vector(FUNCTION).unwrap();
    vector.program(None).unwrap();
    assert_eq!(recorder.counts().raised + recorder.counts().programmed, 2);
}

/// Everything here reads the dump with a parser that we did not write.
mod waveform {
    use std::collections::BTreeMap;

    use vcd::{Command, Header, IdCode, ScopeItem, TimescaleUnit, Value, VarType};

    use super::*;

    struct Dump {
        header: Header,
        /// Values at the start; `None` is unknown.
        first: BTreeMap<IdCode, Option<u64>>,
        /// Time, variable and value of each change after that.
        changes: Vec<(u64, IdCode, u64)>,
    }

    fn parse(recorder: &Recorder) -> Dump {
        let mut bytes = Vec::new();
        recorder.write_vcd(&mut bytes).unwrap();
        let mut parser = vcd::Parser::new(&bytes[..]);
        let header = parser.parse_header().unwrap();
        let (mut times, mut dumping) = (Vec::new(), false);
        let (mut changes, mut first) = (Vec::new(), BTreeMap::new());
        for command in parser {
            let (code, value) = match command.unwrap() {
                Command::Timestamp(time) => {
                    times.push(time);
                    continue;
                }
                Command::Begin(_) => {
                    dumping = true;
                    continue;
                }
                Command::End(_) => {
                    dumping = false;
                    continue;
                }
                Command::ChangeScalar(code, value) => (code, number([value])),
                Command::ChangeVector(code, vector) => (code, number(vector.iter())),
                other => panic!("a command that we do not write: {other:?}"),
            };
            match dumping {
                true => _ = first.insert(code, value),
                false => changes.push((*times.last().unwrap(), code, value.unwrap())),
            }
        }
        let rising = times.is_sorted_by(|a, b| a < b);
        assert!(rising, "no two events at one instant: {times:?}");
        Dump { header, first, changes }
    }

    fn number(bits: impl IntoIterator<Item = Value>) -> Option<u64> {
        bits.into_iter().try_fold(0, |sum, bit| match bit {
            Value::V0 => Some(sum << 1),
            Value::V1 => Some(sum << 1 | 1),
            Value::X | Value::Z => None,
        })
    }

    impl Dump {
        fn variable(&self, path: &[&str]) -> (VarType, u32, IdCode) {
            let found = self.header.find_var(path);
            let variable = found.unwrap_or_else(|| panic!("no {path:?} in {:?}", self.header.items));
            (variable.var_type, variable.size, variable.code)
        }

        fn first_of(&self, path: &[&str]) -> Option<u64> {
            self.first[&self.variable(path).2]
        }

        fn changes_of(&self, path: &[&str]) -> Vec<(u64, u64)> {
            let code = self.variable(path).2;
            let of = self.changes.iter().filter(|change| change.1 == code);
            of.map(|(time, _, value)| (*time, *value)).collect()
        }
    }

    #[test]
    fn a_level_is_a_wire_an_edge_an_event_and_a_sink_has_registers() {
        let recorder = Recorder::new();
        let _lines = (recorder.level("uart"), recorder.edge("kick"), recorder.sink("msi"));
        let dump = parse(&recorder);
        let kind = |path: &[&str]| {
            let (kind, size, _) = dump.variable(path);
            (kind, size)
        };
        assert_eq!(dump.header.timescale, Some((1, TimescaleUnit::NS)));
        assert_eq!(kind(&["devisor", "uart"]), (VarType::Wire, 1));
        assert_eq!(kind(&["devisor", "kick"]), (VarType::Event, 1));
        assert_eq!(kind(&["devisor", "kick_failed"]), (VarType::Event, 1));
        assert_eq!(kind(&["devisor", "msi", "sent"]), (VarType::Event, 1));
        assert_eq!(kind(&["devisor", "msi", "address"]), (VarType::Reg, 64));
        assert_eq!(kind(&["devisor", "msi", "data"]), (VarType::Reg, 32));
        assert_eq!(kind(&["devisor", "msi", "requester"]), (VarType::Reg, 16));
        assert_eq!(dump.first_of(&["devisor", "uart"]), Some(0));
        assert_eq!(dump.first_of(&["devisor", "msi", "data"]), None);
    }

    #[test]
    fn every_transition_stands_at_its_time() {
        let clock = Arc::new(ManualClock::new(Duration::from_nanos(100)));
        let recorder = Recorder::builder().clock(clock.clone()).build();
        let tick = || clock.advance(Duration::from_nanos(10));
        let (uart, kick, msi) = (recorder.level("uart"), recorder.edge("kick"), recorder.sink("msi"));
        uart.trigger().unwrap();
        tick();
        uart.trigger().unwrap();
        kick.trigger().unwrap();
        tick();
        uart.clear().unwrap();
        tick();
        msi.send(FUNCTION, MESSAGE).unwrap();
        tick();
        msi.line().fail_next();
        msi.send(FUNCTION, MESSAGE).unwrap_err();

        let dump = parse(&recorder);
        let changes = |path: &[&str]| dump.changes_of(path);
        assert_eq!(changes(&["devisor", "uart"]), [(100, 1), (120, 0)], "transitions only");
        assert_eq!(changes(&["devisor", "kick"]), [(111, 1)], "one later, not to be hidden");
        assert_eq!(changes(&["devisor", "msi", "sent"]), [(130, 1)]);
        assert_eq!(changes(&["devisor", "msi", "address"]), [(130, MESSAGE.address)]);
        assert_eq!(changes(&["devisor", "msi", "data"]), [(130, 0x50)]);
        assert_eq!(changes(&["devisor", "msi", "requester"]), [(130, 0x19)]);
        assert_eq!(changes(&["devisor", "msi_failed"]), [(140, 1)]);
    }

    #[test]
    fn a_level_that_was_up_before_the_log_starts_up() {
        let recorder = Recorder::builder().capacity(1).build();
        recorder.level("uart").trigger().unwrap();
        recorder.edge("kick").trigger().unwrap();
        assert_eq!(parse(&recorder).first_of(&["devisor", "uart"]), Some(1));
    }

    #[test]
    fn odd_names_become_identifiers_and_stay_apart() {
        let recorder = Recorder::new();
        let names = ["com 1", "com_1", "$end", "1st", "", "com_1_failed", "größe"];
        let lines = names.map(|name| recorder.edge(name));
        lines.iter().for_each(|line| line.trigger().unwrap());
        let dump = parse(&recorder);
        let [ScopeItem::Scope(scope)] = &dump.header.items[..] else {
            panic!("one scope: {:?}", dump.header.items);
        };
        let mut found: Vec<_> = scope
            .items
            .iter()
            .filter_map(|item| match item {
                ScopeItem::Var(variable) => Some(&*variable.reference),
                _ => None,
            })
            .collect();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), 2 * names.len(), "{found:?}");
        let simple = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        assert!(found.iter().all(simple), "{found:?}");
        assert_eq!(dump.changes.len(), names.len());
    }

    #[test]
    fn more_lines_than_one_character_can_name_are_told_apart() {
        let recorder = Recorder::new();
        let name = |n: u64| format!("line{n}");
        for n in 0..100 {
            recorder.edge(&name(n)).trigger().unwrap();
        }
        let dump = parse(&recorder);
        for n in 0..100 {
            assert_eq!(dump.changes_of(&["devisor", &name(n)]), [(n + 1, 1)]);
        }
    }

    #[test]
    fn an_empty_recorder_writes_a_dump_that_parses() {
        assert!(parse(&Recorder::new()).changes.is_empty());
    }
}

#[test]
fn a_wrapped_sink_tells_whether_anyone_has_accepted_a_message() {
    struct Nobody;
    impl MsiSink for Nobody {
        fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
            Ok(())
        }

        fn offer(&self, _: RequesterId, _: MsiMessage) -> io::Result<Acceptance> {
            Ok(Acceptance::Dropped)
        }
    }
    let recorder = Recorder::new();
    let sink: Box<dyn MsiSink> = Box::new(recorder.wrap_sink("msi", Nobody));
    assert_eq!(sink.offer(FUNCTION, MESSAGE).unwrap(), Acceptance::Dropped);
    assert_eq!(
        recorder.sink("any").offer(FUNCTION, MESSAGE).unwrap(),
        Acceptance::Accepted
    );
    assert!(recorder.events().iter().all(|event| event.action == SEND));
}
