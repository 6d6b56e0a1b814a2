//! The interrupts of a run, as the guest has counted them and as our lines, messages and interrupt controllers have.

use std::{collections::BTreeMap, fmt};

use devisor::{
    backends::{
        irqchip::{IntId, lapic::Vector, pc::Gsi},
        recorder::{Action, Outcome, Recorder},
    },
    interrupt::{MsiMessage, RequesterId},
};

use crate::{
    verdict::Check,
    virtio::{MESSAGE_LINE, Place, Transport},
    watch::{Seen, Watch},
};

/// What a core has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Id {
    /// Of a GIC.
    IntId(IntId),
    /// Of a PC, behind whichever vector.
    Gsi(Gsi),
    /// Sent by that function, and turned into whatever an interrupt controller has for it.
    Message(RequesterId),
    /// Of a PC, from a local APIC: its timer, or another core.
    Vector(Vector),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IntId(id) => write!(f, "{}", id.0),
            Self::Gsi(gsi) => write!(f, "{}", gsi.0),
            Self::Message(RequesterId(function)) => write!(f, "{:02x}.{}", function >> 3, function & 7),
            Self::Vector(vector) => write!(f, "{:#x}", vector.0),
        }
    }
}

/// What interrupts the guest.
pub struct Source {
    pub name: &'static str,
    pub by: By,
    pub rows: Rows,
}

/// How it does.
pub enum By {
    /// A line, recorded under its name.
    Line(Id),
    /// Messages of a PCI function.
    Messages(RequesterId, IdOf),
    /// What cores do to themselves and to each other, of which nothing is recorded.
    Cores(Vec<Id>),
}

/// As what that message of that function is acknowledged.
pub type IdOf = fn(RequesterId, MsiMessage) -> Result<Id, String>;

/// Which rows of `/proc/interrupts` are about it.
pub enum Rows {
    /// The input of that number of a controller whose name begins so.
    Input(&'static str, u32),
    /// The device of that name at a controller whose name begins so.
    Device(&'static str, String),
    /// Each vector of the device of that name.
    Vectors(String),
    /// Those with these labels.
    Labels(&'static [&'static str]),
}

impl Source {
    /// A virtio device whose line is `line` and is in `rows`, or whose messages are acknowledged as `id_of` says.
    pub fn virtio(place: &Place, transport: Transport, line: Id, rows: Rows, id_of: IdOf) -> Self {
        let (by, rows) = match transport {
            Transport::Pci => (
                By::Messages(place.requester(), id_of),
                Rows::Vectors(place.guest_name()),
            ),
            Transport::Mmio | Transport::PciIntx => (By::Line(line), rows),
        };
        let name = place.name;
        Self { name, by, rows }
    }
}

/// What our side has counted.
struct Counts {
    /// As what it was acknowledged.
    ids: Vec<Id>,
    /// Of our lines or messages: how many rose or were sent, and how many were refused.
    raised: Option<u64>,
    failed: u64,
}

/// Prints the guest's counts next to ours, and compares them.
///
/// What the guest has acknowledged is what it has counted, so its count is between ours from before it looked and ours
/// from the end. Our lines count how often they rose, which may differ: a line that stays up interrupts again, and one
/// that falls in time does not interrupt.
pub fn interrupts(console: &str, seen: &Seen, recorder: &Recorder, sources: &[Source]) -> Check {
    let Seen {
        acknowledged,
        acknowledged_before,
        ..
    } = seen;
    let before = acknowledged_before.as_ref().ok_or("the guest did not come so far")?;
    let sum = |counts: &BTreeMap<Id, u64>, ids: &[Id]| ids.iter().filter_map(|id| counts.get(id)).sum::<u64>();

    println!(
        "\n{:<20}{:>16}{:>10}{:>14}{:>18}",
        "interrupt", "number", "rose", "acknowledged", "/proc/interrupts"
    );
    let table = Table::of(console);
    let mut wrong = Vec::new();
    let mut total = 0;
    for Source { name, by, rows } in sources {
        let Counts { ids, raised, failed } = match by {
            By::Line(id) => of_line(recorder, name, *id)?,
            By::Messages(requester, id_of) => of_messages(recorder, *requester, *id_of)?,
            By::Cores(ids) => Counts {
                ids: ids.clone(),
                raised: None,
                failed: 0,
            },
        };
        let guest = table.count(rows)?;
        let (first, last) = (sum(before, &ids), sum(acknowledged, &ids));
        let numbers: Vec<_> = ids.iter().map(Id::to_string).collect();
        let rose = raised.map_or("-".into(), |raised| raised.to_string());
        println!("{name:<20}{:>16}{rose:>10}{last:>14}{guest:>18}", numbers.join(" "));
        if raised == Some(0) || guest == 0 || failed != 0 || !(first..=last).contains(&guest) {
            wrong.push(format!(
                "{name} rose {rose} times and failed {failed} times, the guest acknowledged {first} to {last} and \
                 counted {guest}"
            ));
        }
        if let By::Messages(..) = by {
            // A function that sends messages has let go of its wire.
            let wire = recorder.line(name).ok_or("a wire was not recorded")?.counts();
            if wire.raised != 0 {
                wrong.push(format!("the wire of {name} rose {} times", wire.raised));
            }
        }
        total += guest;
    }
    for (vector, devices) in table.vectors(sources) {
        if devices != 1 {
            wrong.push(format!("{vector} is a vector of {devices} of the devices"));
        }
    }
    if wrong.is_empty() {
        Ok(format!("{total} of {} kinds", sources.len()))
    } else {
        Err(wrong.join("; "))
    }
}

fn of_line(recorder: &Recorder, name: &str, id: Id) -> Result<Counts, String> {
    let line = recorder.line(name).ok_or("a line was not recorded")?.counts();
    Ok(Counts {
        ids: vec![id],
        raised: Some(line.raised),
        failed: line.failed,
    })
}

fn of_messages(recorder: &Recorder, requester: RequesterId, id_of: IdOf) -> Result<Counts, String> {
    let line = recorder.line(MESSAGE_LINE).ok_or("messages were not recorded")?;
    let mut ids = Vec::new();
    let mut raised = 0;
    for event in line.events() {
        if let (Action::Send { requester: by, message }, Outcome::Delivered) = (event.action, event.outcome)
            && by == requester
        {
            let id = id_of(requester, message)?;
            if !ids.contains(&id) {
                ids.push(id);
            }
            raised += 1;
        }
    }
    ids.sort_unstable();
    Ok(Counts {
        ids,
        raised: Some(raised),
        failed: line.counts().failed,
    })
}

/// The guest's `/proc/interrupts`.
struct Table<'a>(Vec<Row<'a>>);

/// A line of it, such as
/// ` 14:         87          0     GICv2  48 Level     virtio0`,
/// ` 24:          0        340   PCI-MSI 16385-edge      virtio0-req.0` or
/// `LOC:       1200       1100   Local timer interrupts`.
struct Row<'a> {
    label: &'a str,
    /// On all CPUs together.
    count: u64,
    rest: Vec<&'a str>,
}

impl<'a> Table<'a> {
    fn of(console: &'a str) -> Self {
        let mut lines = console
            .lines()
            .skip_while(|line| *line != Watch::HEADING)
            .take_while(|line| *line != Watch::END)
            .skip(1);
        let cpus = lines.next().map_or(0, |line| line.split_whitespace().count());
        let rows = lines.filter_map(|line| {
            let (label, rest) = line.split_once(':')?;
            let words: Vec<_> = rest.split_whitespace().collect();
            let (counts, rest) = words.split_at_checked(cpus)?;
            let counts: Vec<u64> = counts.iter().map(|count| count.parse().ok()).collect::<Option<_>>()?;
            Some(Row {
                label: label.trim(),
                count: counts.iter().sum(),
                rest: rest.to_vec(),
            })
        });
        Self(rows.collect())
    }

    fn count(&self, which: &Rows) -> Result<u64, String> {
        let rows: Vec<_> = self.0.iter().filter(|row| which.has(row)).collect();
        if let Rows::Vectors(device) = which
            && rows.len() < 2
        {
            // One for the configuration, one for the queue.
            let count = rows.len();
            return Err(format!(
                "{count} vectors of {device} in /proc/interrupts: two are needed"
            ));
        }
        Ok(rows.iter().map(|row| row.count).sum())
    }

    /// The name of each vector, and of how many devices it is taken to be: more than one, and one of them is compared with the counts
    /// of another.
    fn vectors(&self, sources: &[Source]) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().filter(|row| row.is_vector()).map(|row| {
            let devices = sources.iter().filter(|source| source.rows.has(row)).count();
            (row.rest.last().copied().unwrap_or_default(), devices)
        })
    }
}

impl Row<'_> {
    /// Whether it is about messages.
    fn is_vector(&self) -> bool {
        self.rest.first().is_some_and(|chip| chip.contains("MSI"))
    }
}

impl Rows {
    fn has(&self, row: &Row<'_>) -> bool {
        let chip = |name: &str| row.rest.first().is_some_and(|chip| chip.starts_with(name));
        match self {
            Self::Input(of, input) => chip(of) && row.rest.get(1) == Some(&input.to_string().as_str()),
            Self::Device(of, device) => chip(of) && row.rest.last() == Some(&device.as_str()),
            Self::Vectors(device) => {
                row.is_vector()
                    && row
                        .rest
                        .last()
                        .is_some_and(|name| name.starts_with(&format!("{device}-")))
            }
            Self::Labels(labels) => labels.contains(&row.label),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        arm64::board::{CLOCK, GIC_MESSAGES, VIRTIO, sources},
        options::Gic,
    };
    use devisor::interrupt::{Interrupt, MsiSink};

    fn lines() -> Vec<(&'static str, IntId)> {
        let line = |source: Source| match source.by {
            By::Line(Id::IntId(id)) => (source.name, id),
            _ => unreachable!("virtio-mmio has lines"),
        };
        sources(Gic::V2, Transport::Mmio, &VIRTIO, CLOCK)
            .into_iter()
            .map(line)
            .collect()
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
        for place in VIRTIO {
            for (vector, count) in [("config", 0), ("req.0", count)].iter().rev().take(vectors) {
                console += &format!(" 21: {count:>10} MSI 16385 Edge      {}-{vector}\n", place.guest_name());
            }
        }
        console + Watch::END + "\n"
    }

    /// A recorder of a run in which the functions have sent one message each, the one after the other.
    fn recorder_of_messages() -> Recorder {
        let recorder = Recorder::new();
        for (name, _) in lines() {
            let line = recorder.level(name);
            if !VIRTIO.iter().any(|place| place.name == name) {
                line.trigger().unwrap();
            }
        }
        let sink = recorder.sink(MESSAGE_LINE);
        for (data, place) in (80..).zip(VIRTIO) {
            let address = GIC_MESSAGES.base + 0x40;
            sink.send(place.requester(), MsiMessage { address, data }).unwrap();
        }
        recorder
    }

    #[test]
    fn messages_are_compared_by_function() {
        let mut seen = seen(1, 1);
        for (id, counts) in [(80, 1), (81, 1)] {
            seen.acknowledged.insert(Id::IntId(IntId(id)), counts);
            seen.acknowledged_before
                .as_mut()
                .unwrap()
                .insert(Id::IntId(IntId(id)), counts);
        }
        let compare = |console: &str, recorder: &Recorder| {
            interrupts(
                console,
                &seen,
                recorder,
                &sources(Gic::V2, Transport::Pci, &VIRTIO, CLOCK),
            )
        };
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

    #[test]
    fn a_vector_is_of_one_device() {
        let console = table_of_messages(1, 2);
        let table = Table::of(&console);
        let devices = |places: &[Place]| {
            let sources = sources(Gic::V2, Transport::Pci, places, CLOCK);
            table.vectors(&sources).map(|(_, devices)| devices).collect::<Vec<_>>()
        };
        let [disk, entropy] = VIRTIO;
        assert_eq!(devices(&[disk, entropy]), [1, 1, 1, 1]);
        assert_eq!(devices(&[disk]), [1, 1, 0, 0], "of nobody");
        let alike = Place {
            virtio: disk.virtio,
            ..entropy
        };
        assert_eq!(devices(&[disk, alike]), [2, 2, 0, 0]);
        let recorder = recorder_of_messages();
        let wrong = interrupts(
            &console,
            &seen(1, 1),
            &recorder,
            &sources(Gic::V2, Transport::Pci, &[disk, alike], CLOCK),
        );
        assert!(
            wrong
                .unwrap_err()
                .contains("virtio0-req.0 is a vector of 2 of the devices")
        );
    }

    /// What the host has seen of a guest that has acknowledged `before` and then `last` interrupts of each line.
    fn seen(before: u64, last: u64) -> Seen {
        let counts = |count| lines().into_iter().map(|(_, id)| (Id::IntId(id), count)).collect();
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
            let result = interrupts(
                &table(guest),
                &seen(4, 6),
                &recorder(None),
                &sources(Gic::V2, Transport::Mmio, &VIRTIO, CLOCK),
            );
            assert_eq!(result.is_ok(), agree, "{guest}: {result:?}");
        }
    }

    #[test]
    fn a_line_that_never_rose_or_never_interrupted_fails_the_run() {
        for (name, _) in lines() {
            let error = interrupts(
                &table(1),
                &seen(1, 1),
                &recorder(Some(name)),
                &sources(Gic::V2, Transport::Mmio, &VIRTIO, CLOCK),
            )
            .unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
        assert!(
            interrupts(
                &table(0),
                &seen(0, 0),
                &recorder(None),
                &sources(Gic::V2, Transport::Mmio, &VIRTIO, CLOCK)
            )
            .is_err()
        );
    }

    #[test]
    fn a_guest_that_did_not_print_its_counts_fails_the_run() {
        assert!(
            interrupts(
                "",
                &seen(1, 1),
                &recorder(None),
                &sources(Gic::V2, Transport::Mmio, &VIRTIO, CLOCK)
            )
            .is_err()
        );
        assert!(
            interrupts(
                "",
                &Seen::default(),
                &recorder(None),
                &sources(Gic::V2, Transport::Mmio, &VIRTIO, CLOCK)
            )
            .is_err()
        );
    }

    #[test]
    fn a_count_is_that_of_all_cpus_and_of_the_right_rows() {
        let console = format!(
            "{}\n           CPU0       CPU1\n  4:  1  2  IO-APIC   4-edge      ttyS0\n 24: 3 4 PCI-MSI 16384-edge      \
             virtio0-config\n 25: 5 6 PCI-MSI 16385-edge virtio0-req.0\nLOC: 7 8 Local timer interrupts\nERR: \
             9\n{}\nLOC: 10 10 Local timer interrupts\n",
            Watch::HEADING,
            Watch::END
        );
        let table = Table::of(&console);
        assert_eq!(table.count(&Rows::Device("IO-APIC", "ttyS0".into())), Ok(3));
        assert_eq!(table.count(&Rows::Device("XT-PIC", "ttyS0".into())), Ok(0));
        assert_eq!(table.count(&Rows::Vectors("virtio0".into())), Ok(18));
        assert!(table.count(&Rows::Vectors("virtio1".into())).is_err());
        assert_eq!(table.count(&Rows::Labels(&["LOC", "RES"])), Ok(15));
    }
}
