//! How many instructions a request costs in the queue, and from the driver's kick to the message, counted by callgrind, with a bound for each: what a noisy machine cannot hide.
//!
//! `cargo bench --bench instructions` runs this program under `valgrind`, twice for each kind of work and with different numbers of
//! chains, so that what is not the queue's falls out; what the driver's own part costs is counted by itself, and taken away. Without
//! valgrind it says that it was skipped.

#[path = "pci/driven.rs"]
mod driven;
#[path = "queue/packed.rs"]
mod packed;
#[path = "queue/work.rs"]
mod work;

use std::{
    env,
    hint::black_box,
    process::{Command, ExitCode},
};

use driven::Driven;
use packed::{BarePacked, PackedRig};
use work::{BATCH, CHAINS, Mapped, Offers, Rig, Shape, Tracked};

/// What is counted, the most instructions that a chain of it may cost, and which [part](DRIVER) of it is the driver's.
const WORK: [(&str, u64, Option<usize>); 10] = [
    ("chain of 1, lent", 150, Some(0)),
    ("chain of 3, lent", 230, Some(0)),
    ("indirect table of 3, lent", 330, Some(0)),
    ("chain of 3, 32 published at once", 200, Some(1)),
    ("16 bytes read and 512 written, lent", 600, Some(0)),
    ("the same, marked", 710, Some(0)),
    ("chain of 3, owned", 400, Some(0)),
    ("doorbell on PCI with nothing to do", 580, None),
    ("doorbell on PCI to a request of a byte, no vector", 1030, Some(2)),
    ("doorbell on PCI to a request of a byte, message sent", 1130, Some(2)),
];

/// Of the last of [`WORK`], the first that goes by way of PCI.
const DOORBELL: usize = 7;

/// The driver's part: one chain at a time, [`BATCH`] at a time, and a request of a byte.
const DRIVER: [usize; 3] = [WORK.len(), WORK.len() + 1, WORK.len() + 2];

/// The same for packed rings, whose driver's part is another for each; and a bare loop's, to read it by.
const PACKED: [(&str, Shape, Way, u64); 6] = [
    ("packed: chain of 1, lent", Shape::One, Way::Lent, 250),
    ("packed: chain of 3, lent", Shape::Three, Way::Lent, 370),
    ("packed: indirect table of 3, lent", Shape::Indirect, Way::Lent, 370),
    (
        "packed: chain of 3, 32 published at once",
        Shape::Three,
        Way::Batch,
        330,
    ),
    (
        "packed: 16 bytes read and 512 written, lent",
        Shape::Moved,
        Way::Lent,
        700,
    ),
    ("packed: chain of 3, owned", Shape::Three, Way::Owned, 620),
];

/// Behind an IOMMU, and everything of it found before: how many more instructions than the same row of [`WORK`], for each buffer.
const TRANSLATED: [(&str, Shape, Way, Mapped, usize, u64); 7] = [
    ("chain of 1", Shape::One, Way::Lent, Mapped::AtOnce, 0, 1),
    ("chain of 3", Shape::Three, Way::Lent, Mapped::AtOnce, 1, 3),
    ("indirect table of 3", Shape::Indirect, Way::Lent, Mapped::AtOnce, 2, 3),
    ("chain of 3, owned", Shape::Three, Way::Owned, Mapped::AtOnce, 6, 3),
    (
        "chain of 1, mapped to be read",
        Shape::One,
        Way::Lent,
        Mapped::Each,
        0,
        1,
    ),
    (
        "chain of 3, each mapped by itself",
        Shape::Three,
        Way::Lent,
        Mapped::Each,
        1,
        3,
    ),
    (
        "moved, each mapped by itself",
        Shape::Moved,
        Way::Lent,
        Mapped::Each,
        4,
        2,
    ),
];

/// What a translated buffer may cost more.
const MORE: u64 = 60;

/// By numbers from here on.
const TRANSLATED_WORK: usize = 200;

/// How chains are given back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Lent,
    Batch,
    Owned,
}

/// By numbers from here on: a row's work, its driver's part, its bare loop.
const PACKED_WORK: usize = 100;

fn packed_work(number: usize, times: u32) {
    let (_, shape, way, _) = PACKED[number / 3];
    let publish = if way == Way::Batch { BATCH } else { 1 };
    let mut rig = PackedRig::new(shape);
    if number % 3 == 1 {
        (0..times).for_each(|_| (0..CHAINS / publish).for_each(|_| rig.offer(publish)));
        return;
    }
    let mut bare = BarePacked::new(&rig);
    let mut queue = rig.queue();
    for _ in 0..times {
        match way {
            _ if number % 3 == 2 => _ = black_box(bare.serve(&mut rig, publish)),
            Way::Lent => _ = black_box(work::lent(&mut rig, &mut queue)),
            Way::Batch => _ = black_box(work::batch(&mut rig, &mut queue)),
            Way::Owned => work::owned(&mut rig, &mut queue, |chain| chain.complete(1)),
        }
    }
}

/// Does the work so many times.
fn work(number: usize, times: u32) {
    if let Some(row) = number.checked_sub(TRANSLATED_WORK) {
        let (_, shape, way, mapped, ..) = TRANSLATED[row];
        let mut rig = Rig::<()>::new(shape);
        let iommu = work::iommu(&rig, mapped);
        let mut queue = work::translated(&iommu);
        for _ in 0..times {
            match way {
                Way::Owned => work::owned(&mut rig, &mut queue, |chain| chain.complete(1)),
                _ => _ = black_box(work::lent(&mut rig, &mut queue)),
            }
        }
        return;
    }
    if let Some(number) = number.checked_sub(PACKED_WORK) {
        return packed_work(number, times);
    }
    if number == DRIVER[2] || (DOORBELL..WORK.len()).contains(&number) {
        let driven = Driven::new(if number == DOORBELL + 1 { 0xffff } else { 1 });
        let call = match number {
            DOORBELL => Driven::kick,
            _ if number == DRIVER[2] => Driven::offer,
            _ => Driven::request,
        };
        (0..times * u32::from(CHAINS)).for_each(|_| call(&driven));
        return;
    }
    let shape = match number {
        0 => Shape::One,
        2 => Shape::Indirect,
        4 | 5 => Shape::Moved,
        _ => Shape::Three,
    };
    if number == 5 {
        let mut rig = Rig::<Tracked>::new(shape);
        let mut queue = rig.queue();
        (0..times).for_each(|_| _ = black_box(work::lent(&mut rig, &mut queue)));
        return;
    }
    let mut rig = Rig::<()>::new(shape);
    if let Some(batched) = DRIVER.iter().position(|&driver| driver == number) {
        let at_once = [1, BATCH][batched];
        (0..times).for_each(|_| (0..CHAINS / at_once).for_each(|_| rig.offer(at_once)));
        return;
    }
    let mut queue = rig.queue();
    for _ in 0..times {
        match number {
            3 => _ = black_box(work::batch(&mut rig, &mut queue)),
            6 => work::owned(&mut rig, &mut queue, |chain| chain.complete(1)),
            _ => _ = black_box(work::lent(&mut rig, &mut queue)),
        }
    }
}

/// Instructions of the whole program when it does the work so many times; `None` without valgrind.
fn count(number: usize, times: u32) -> Option<u64> {
    let program = env::current_exe().expect("a program");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--work", &number.to_string(), &times.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.split("Collected : ").nth(1)?;
    collected.split_whitespace().next()?.parse().ok()
}

fn main() -> ExitCode {
    let args: Vec<_> = env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--work") {
        let number = |at: usize| args.get(at).and_then(|arg| arg.parse::<u32>().ok()).expect("a number");
        work(number(at + 1) as usize, number(at + 2));
        return ExitCode::SUCCESS;
    }
    let each = |number| {
        let (few, many) = (count(number, 10)?, count(number, 110)?);
        Some((many - few) as f64 / (100 * u32::from(CHAINS)) as f64)
    };
    let [Some(one), Some(batched), Some(byte)] = DRIVER.map(each) else {
        println!("skipped: instructions are not counted without valgrind");
        return ExitCode::SUCCESS;
    };
    println!(
        "the driver's part, taken away below: {one:.1} a chain, {batched:.1} of several at once, {byte:.1} a byte"
    );
    let mut worst = ExitCode::SUCCESS;
    for (number, (name, most, part)) in WORK.into_iter().enumerate() {
        let Some(all) = each(number) else {
            println!("{name}: valgrind failed");
            return ExitCode::FAILURE;
        };
        let driver = part.map_or(0.0, |part| [one, batched, byte][part]);
        let each = (all - driver).round() as u64;
        let verdict = if each <= most { "ok" } else { "TOO MANY" };
        println!("{name}: {each} instructions, at most {most}: {verdict}");
        if each > most {
            worst = ExitCode::FAILURE;
        }
    }
    for (row, (name, _, _, _, plain, buffers)) in TRANSLATED.into_iter().enumerate() {
        let [Some(translated), Some(plain)] = [TRANSLATED_WORK + row, plain].map(each) else {
            println!("{name}: valgrind failed");
            return ExitCode::FAILURE;
        };
        let (more, most) = (translated - plain, MORE * buffers);
        let verdict = if more.round() as i64 <= most as i64 {
            "ok"
        } else {
            "TOO MANY"
        };
        println!("translated, warm: {name}: {more:.0} instructions more, at most {most}: {verdict}");
        if more.round() as i64 > most as i64 {
            worst = ExitCode::FAILURE;
        }
    }
    for (row, (name, _, _, most)) in PACKED.into_iter().enumerate() {
        let parts = [0, 1, 2].map(|part| each(PACKED_WORK + 3 * row + part));
        let [Some(all), Some(driver), Some(bare)] = parts else {
            println!("{name}: valgrind failed");
            return ExitCode::FAILURE;
        };
        let each = (all - driver).round() as u64;
        let verdict = if each <= most { "ok" } else { "TOO MANY" };
        let bare = bare - driver;
        println!(
            "{name}: {each} instructions, at most {most}: {verdict} (a bare loop {bare:.0}, the driver {driver:.0})"
        );
        if each > most {
            worst = ExitCode::FAILURE;
        }
    }
    worst
}
