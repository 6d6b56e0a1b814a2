//! The interrupts of a run, as the guest has counted them and as our lines, messages and interrupt controller have.

use std::collections::BTreeMap;

use devisor::{
    backends::{
        irqchip::{IntId, Spi},
        recorder::{Action, Outcome, Recorder},
    },
    interrupt::RequesterId,
};

use crate::{
    board,
    verdict::Check,
    virtio::{MESSAGE_LINE, Place, Transport},
    watch::{Seen, Watch},
};

/// What interrupts the guest.
struct Source {
    name: &'static str,
    by: By,
}

enum By {
    /// A line, recorded under that name.
    Line(IntId),
    /// Messages of a PCI function, which the guest calls `virtio0` or so.
    Messages(RequesterId, &'static str),
}

fn sources(transport: Transport, places: &[Place]) -> Vec<Source> {
    let line = |name, id| Source { name, by: By::Line(id) };
    let mut sources = vec![
        line(board::TIMER, board::VIRTUAL_TIMER_PPI.into()),
        line(board::UART_LINE, board::UART_SPI.into()),
        line(board::RTC_LINE, board::RTC_SPI.into()),
    ];
    sources.extend(places.iter().map(|place| match transport {
        Transport::Pci => Source {
            name: place.name,
            by: By::Messages(place.requester(), place.pci.1),
        },
        Transport::Mmio | Transport::PciIntx => line(place.name, place.spi(transport).into()),
    }));
    sources
}

/// What one side or the other has counted.
struct Counts {
    /// The INTIDs that were acknowledged for it.
    ids: Vec<IntId>,
    /// Of our lines or messages: how many rose or were sent, and how many were refused.
    raised: u64,
    failed: u64,
    guest: u64,
}

/// Prints the guest's counts next to ours, and compares them.
///
/// What the guest has acknowledged is what it has counted, so its count is between ours from before it looked and ours
/// from the end. Our lines count how often they rose, which may differ: a line that stays up interrupts again, and one
/// that falls in time does not interrupt.
pub fn interrupts(console: &str, seen: &Seen, recorder: &Recorder, transport: Transport, places: &[Place]) -> Check {
    let Seen {
        acknowledged,
        acknowledged_before,
        ..
    } = seen;
    let before = acknowledged_before.as_ref().ok_or("the guest did not come so far")?;
    let sum = |counts: &BTreeMap<IntId, u64>, ids: &[IntId]| ids.iter().filter_map(|id| counts.get(id)).sum::<u64>();

    println!(
        "\n{:<16}{:>10}{:>10}{:>14}{:>18}",
        "interrupt", "INTID", "rose", "acknowledged", "/proc/interrupts"
    );
    let mut wrong = Vec::new();
    let mut total = 0;
    let sources = sources(transport, places);
    for Source { name, by } in &sources {
        let Counts {
            ids,
            raised,
            failed,
            guest,
        } = match by {
            By::Line(id) => of_line(console, recorder, name, *id)?,
            By::Messages(requester, device) => of_messages(console, recorder, *requester, device)?,
        };
        let (first, last) = (sum(before, &ids), sum(acknowledged, &ids));
        let numbers: Vec<_> = ids.iter().map(|id| id.0.to_string()).collect();
        println!("{name:<16}{:>10}{raised:>10}{last:>14}{guest:>18}", numbers.join(" "));
        if raised == 0 || guest == 0 || failed != 0 || !(first..=last).contains(&guest) {
            wrong.push(format!(
                "{name} rose {raised} times and failed {failed} times, the guest acknowledged {first} to {last} and \
                 counted {guest}"
            ));
        }
        total += guest;
    }
    if transport == Transport::Pci {
        // A function that sends messages has let go of its wire.
        for place in board::VIRTIO {
            let wire = recorder.line(place.name).ok_or("a wire was not recorded")?.counts();
            if wire.raised != 0 {
                wrong.push(format!("the wire of {} rose {} times", place.name, wire.raised));
            }
        }
    }
    if wrong.is_empty() {
        Ok(format!("{total} of {} kinds", sources.len()))
    } else {
        Err(wrong.join("; "))
    }
}

fn of_line(console: &str, recorder: &Recorder, name: &str, id: IntId) -> Result<Counts, String> {
    let line = recorder.line(name).ok_or("a line was not recorded")?.counts();
    let rows = rows(console).filter(|row| row.chip.starts_with("GIC") && row.hwirq == id.0.to_string());
    Ok(Counts {
        ids: vec![id],
        raised: line.raised,
        failed: line.failed,
        guest: rows.map(|row| row.count).sum(),
    })
}

fn of_messages(console: &str, recorder: &Recorder, requester: RequesterId, device: &str) -> Result<Counts, String> {
    let line = recorder.line(MESSAGE_LINE).ok_or("messages were not recorded")?;
    let mut ids = Vec::new();
    let mut raised = 0;
    for event in line.events() {
        if let (Action::Send { requester: by, message }, Outcome::Delivered) = (event.action, event.outcome)
            && by == requester
        {
            let id = IntId(message.data);
            if !ids.contains(&id) {
                ids.push(id);
            }
            raised += 1;
        }
    }
    ids.sort_unstable();
    let (Spi(first), count) = board::MESSAGES;
    let frame = IntId::from(Spi(first)).0..IntId::from(Spi(first + count)).0;
    if let Some(id) = ids.iter().find(|id| !frame.contains(&id.0)) {
        return Err(format!("a message for INTID {}, which is not the frame's", id.0));
    }
    // Each vector has a row: one for the configuration, one for the queue.
    let rows: Vec<_> = rows(console)
        .filter(|row| row.chip.contains("MSI") && row.name.starts_with(&format!("{device}-")))
        .collect();
    if rows.len() < 2 {
        return Err(format!(
            "{} vectors of {device} in /proc/interrupts: two are needed",
            rows.len()
        ));
    }
    Ok(Counts {
        ids,
        raised,
        failed: line.counts().failed,
        guest: rows.iter().map(|row| row.count).sum(),
    })
}

/// A line of the guest's `/proc/interrupts`, such as
/// ` 14:         87     GICv2  48 Level     virtio0` or
/// ` 15:        340       MSI 16385 Edge      virtio0-req.0`.
struct Row<'a> {
    count: u64,
    chip: &'a str,
    hwirq: &'a str,
    name: &'a str,
}

fn rows(console: &str) -> impl Iterator<Item = Row<'_>> {
    let table = console
        .lines()
        .skip_while(|line| *line != Watch::HEADING)
        .take_while(|line| *line != Watch::END);
    table.filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        let (&[count, chip, hwirq, ..], Some(&name)) = (&words[..], words.last()) else {
            return None;
        };
        Some(Row {
            count: count.parse().ok()?,
            chip,
            hwirq,
            name,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use devisor::interrupt::{Interrupt, MsiMessage, MsiSink};

    const MMIO: Transport = Transport::Mmio;

    fn lines() -> Vec<(&'static str, IntId)> {
        let line = |source: Source| match source.by {
            By::Line(id) => (source.name, id),
            By::Messages(..) => unreachable!("virtio-mmio has lines"),
        };
        sources(MMIO, &board::VIRTIO).into_iter().map(line).collect()
    }

    /// What a guest prints that has counted `count` interrupts of each line.
    fn table(count: u64) -> String {
        let mut console = format!("{}\n           CPU0\n", Watch::HEADING);
        for (name, id) in lines() {
            console += &format!(" 11: {count:>10} GIC-0 {:>3} Level     {name}\n", id.0);
        }
        console + "Err:          0\n" + Watch::END + "\n"
    }

    /// The same of messages: two vectors for each device, of which the second interrupts.
    fn table_of_messages(count: u64, vectors: usize) -> String {
        let mut console = table(count).replace(Watch::END, "");
        for place in board::VIRTIO {
            for (vector, count) in [("config", 0), ("req.0", count)].iter().rev().take(vectors) {
                console += &format!(" 21: {count:>10} MSI 16385 Edge      {}-{vector}\n", place.pci.1);
            }
        }
        console + Watch::END + "\n"
    }

    /// A recorder of a run in which the functions have sent one message each, the one after the other.
    fn recorder_of_messages() -> Recorder {
        let recorder = Recorder::new();
        for (name, _) in lines() {
            let line = recorder.level(name);
            if !board::VIRTIO.iter().any(|place| place.name == name) {
                line.trigger().unwrap();
            }
        }
        let sink = recorder.sink(MESSAGE_LINE);
        for (data, place) in (80..).zip(board::VIRTIO) {
            let address = board::GIC_MESSAGES.base + 0x40;
            sink.send(place.requester(), MsiMessage { address, data }).unwrap();
        }
        recorder
    }

    #[test]
    fn messages_are_compared_by_function() {
        let mut seen = seen(1, 1);
        for (id, counts) in [(80, 1), (81, 1)] {
            seen.acknowledged.insert(IntId(id), counts);
            seen.acknowledged_before.as_mut().unwrap().insert(IntId(id), counts);
        }
        let compare =
            |console: &str, recorder: &Recorder| interrupts(console, &seen, recorder, Transport::Pci, &board::VIRTIO);
        let (console, recorder) = (table_of_messages(1, 2), recorder_of_messages());
        assert_eq!(compare(&console, &recorder).unwrap(), "5 of 5 kinds");
        assert!(
            compare(&table_of_messages(1, 1), &recorder)
                .unwrap_err()
                .contains("two are needed")
        );
        assert!(compare(&table_of_messages(2, 2), &recorder).is_err());
        assert!(compare(&table(1), &recorder).is_err());
        let wired = self::recorder(None);
        assert!(compare(&console, &wired).is_err(), "no messages");
    }

    /// What the host has seen of a guest that has acknowledged `before` and then `last` interrupts of each line.
    fn seen(before: u64, last: u64) -> Seen {
        let counts = |count| lines().into_iter().map(|(_, id)| (id, count)).collect();
        Seen {
            acknowledged: counts(last),
            acknowledged_before: Some(counts(before)),
            ..Seen::default()
        }
    }

    /// A recorder whose lines rose once, but for one of them.
    fn recorder(silent: Option<&str>) -> Recorder {
        let recorder = Recorder::new();
        for (name, _) in lines() {
            let line = recorder.level(name);
            if silent != Some(name) {
                line.trigger().unwrap();
            }
        }
        recorder
    }

    #[test]
    fn counts_agree_when_the_guest_counted_between_our_two_looks() {
        for (guest, agree) in [(3, false), (4, true), (6, true), (7, false)] {
            let result = interrupts(&table(guest), &seen(4, 6), &recorder(None), MMIO, &board::VIRTIO);
            assert_eq!(result.is_ok(), agree, "{guest}: {result:?}");
        }
    }

    #[test]
    fn a_line_that_never_rose_or_never_interrupted_fails_the_run() {
        for (name, _) in lines() {
            let error = interrupts(&table(1), &seen(1, 1), &recorder(Some(name)), MMIO, &board::VIRTIO).unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
        assert!(interrupts(&table(0), &seen(0, 0), &recorder(None), MMIO, &board::VIRTIO).is_err());
    }

    #[test]
    fn a_guest_that_did_not_print_its_counts_fails_the_run() {
        assert!(interrupts("", &seen(1, 1), &recorder(None), MMIO, &board::VIRTIO).is_err());
        assert!(interrupts("", &Seen::default(), &recorder(None), MMIO, &board::VIRTIO).is_err());
    }
}
