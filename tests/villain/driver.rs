//! What runs a table: each row that is played is played over both transports, by three drivers, and the device has to live on.

use std::{
    any::Any,
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    both::Transport,
    disk::{Accepts, Disk, Format},
    named,
    world::{Driver, Kind, Way, World},
};

/// A case of the suite, by its number, and what it tries.
pub struct Row(pub &'static str, pub &'static str, pub Case);

/// What a row of a table does with its case.
pub enum Case {
    /// It is played here, before a device of this kind. What drivers see that take nothing or VERSION_1 alone, and one that takes everything.
    Plays(Option<Kind>, Seen, Seen, fn(&mut World) -> Seen),
    /// The same before a disk of two queues, by drivers that make packed rings and accept as little as they can, or everything.
    Packs(Seen, Seen, fn(&mut Disk) -> Seen),
    /// Tests try it: `file::name; another_file::another_name`.
    Elsewhere(&'static str),
    /// What it does was not in the copy of the suite that was read: this test tries whatever a driver can ask there.
    Unread(&'static str),
    /// It does not apply, for this reason.
    NotHere(&'static str),
    /// What ours does is not what it should do.
    #[allow(dead_code, reason = "while there is none")]
    Known(&'static str),
}

impl Case {
    /// Before another device than the table's.
    pub const fn on(self, kind: Kind) -> Self {
        match self {
            Self::Plays(_, bare, full, play) => Self::Plays(Some(kind), bare, full, play),
            other => other,
        }
    }
}

/// All drivers see the same.
pub const fn plays(seen: Seen, play: fn(&mut World) -> Seen) -> Case {
    Case::Plays(None, seen, seen, play)
}

/// Drivers without features see the first, one with all of them the second.
pub const fn differs(bare: Seen, full: Seen, play: fn(&mut World) -> Seen) -> Case {
    Case::Plays(None, bare, full, play)
}

/// Drivers of packed rings see this.
pub const fn packs(seen: Seen, play: fn(&mut Disk) -> Seen) -> Case {
    Case::Packs(seen, seen, play)
}

/// One that accepts as little as it can sees the first, one that accepts everything the second.
pub const fn packs_and_differs(least: Seen, all: Seen, play: fn(&mut Disk) -> Seen) -> Case {
    Case::Packs(least, all, play)
}

pub const fn elsewhere(tests: &'static str) -> Case {
    Case::Elsewhere(tests)
}

pub const fn unread(grid: &'static str) -> Case {
    Case::Unread(grid)
}

pub const fn not_here(why: &'static str) -> Case {
    Case::NotHere(why)
}

/// What the driver sees of its case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Every chain came back, and none of them was malformed.
    Served,
    /// Every chain came back with a used length of 0, and was counted as malformed.
    Refused,
    /// No chain came back, and the device goes on.
    Kept,
    /// The device needs a reset.
    NeedsReset,
    /// The device answered with a status of its type.
    Says(u32),
    /// What the case itself looks at is as it has to be.
    Holds,
    /// Something else.
    Other(&'static str),
}

pub struct Table {
    pub letter: &'static str,
    pub kind: Kind,
    /// Over which transports its cases are played.
    pub transports: &'static [Transport],
    /// How many cases the suite has under this letter.
    pub cases: usize,
    pub rows: &'static [Row],
}

/// Plays the rows of a table, and prints how many were.
pub fn run(table: &Table) {
    let mut wrong = Vec::new();
    let [mut played, mut elsewhere, mut unread, mut not_here, mut known] = [0; 5];
    let numbers: BTreeSet<_> = table.rows.iter().map(|row| row.0).collect();
    for row in table.rows {
        let Row(id, what, case) = row;
        let letter = id.trim_end_matches(|digit: char| digit.is_ascii_digit());
        if letter != table.letter || id.len() != letter.len() + 4 || what.is_empty() {
            wrong.push(format!("{id} is no number of this table, or says nothing"));
        }
        match case {
            Case::Plays(kind, bare, full, play) => {
                played += 1;
                for way in ways(table) {
                    let expected = match way.driver {
                        Driver::Bare | Driver::Modern => *bare,
                        Driver::Full => *full,
                    };
                    if let Err(why) = play_one(kind.unwrap_or(table.kind), way, expected, *play) {
                        wrong.push(format!("{id} {what}; {way:?}: {why}"));
                    }
                }
            }
            Case::Packs(least, all, play) => {
                played += 1;
                for &transport in table.transports {
                    for (accepts, expected) in [(Accepts::Least, *least), (Accepts::All, *all)] {
                        if let Err(why) = pack_one(transport, accepts, expected, *play) {
                            wrong.push(format!("{id} {what}; {transport:?}, {accepts:?}: {why}"));
                        }
                    }
                }
            }
            Case::Elsewhere(tests) | Case::Unread(tests) => {
                match case {
                    Case::Unread(_) => unread += 1,
                    _ => elsewhere += 1,
                }
                for test in tests.split("; ") {
                    let place = test.split_once("::");
                    if !place.is_some_and(|(file, name)| named::is_there(file, name)) {
                        wrong.push(format!("{id}: there is no test {test}"));
                    }
                }
            }
            Case::NotHere(why) => {
                not_here += 1;
                assert!(!why.is_empty());
            }
            Case::Known(what_is_wrong) => {
                known += 1;
                println!("!! {id} {what}: KNOWN TO BE WRONG: {what_is_wrong}");
            }
        }
    }
    println!(
        "{}: {} cases; {played} played, most in {} ways; {elsewhere} elsewhere; {unread} unread; {not_here} not here; {known} known to be wrong",
        table.letter,
        numbers.len(),
        ways(table).count(),
    );
    if numbers.len() != table.cases || numbers.len() != table.rows.len() {
        wrong.push(format!("{} cases in {} rows", numbers.len(), table.rows.len()));
    }
    assert!(wrong.is_empty(), "\n{}\n{} in all", wrong.join("\n"), wrong.len());
}

fn ways(table: &Table) -> impl Iterator<Item = Way> {
    let transports = table.transports.iter().copied();
    let drivers = [Driver::Bare, Driver::Modern, Driver::Full];
    transports.flat_map(move |transport| drivers.map(|driver| Way { transport, driver }))
}

fn play_one(kind: Kind, way: Way, expected: Seen, play: fn(&mut World) -> Seen) -> Result<(), String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(kind, way);
        let seen = play(&mut world);
        if seen != expected {
            return Err(format!("{seen:?} and not {expected:?}"));
        }
        if world.needs_reset() != (seen == Seen::NeedsReset) {
            return Err(format!("a status of {:#x}", world.guest.status()));
        }
        world.lives_on();
        Ok(())
    }));
    outcome.unwrap_or_else(|panic| Err(message(&*panic)))
}

fn pack_one(transport: Transport, accepts: Accepts, expected: Seen, play: fn(&mut Disk) -> Seen) -> Result<(), String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut disk = Disk::new(transport, Format::Packed, accepts);
        let seen = play(&mut disk);
        if seen != expected {
            return Err(format!("{seen:?} and not {expected:?}"));
        }
        if disk.needs_reset() != (seen == Seen::NeedsReset) {
            return Err(format!("a status of {:#x}", disk.guest.status()));
        }
        disk.lives_on();
        Ok(())
    }));
    outcome.unwrap_or_else(|panic| Err(message(&*panic)))
}

/// What a panic says.
pub fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic".to_owned())
}
