//! The public suite virtio-villain as tables: a row for each of its cases, played before devices of ours over both transports, by a
//! driver that accepts nothing where the embedder lets it, by one that accepts VERSION_1 alone and by one that accepts everything; or with the test that tries it elsewhere; or with the
//! reason why it does not apply. The numbers are the suite's, the words and the code are not.

#![allow(clippy::single_range_in_vec_init, reason = "they are lists of what went back")]

#[path = "../support/both.rs"]
mod both;
#[path = "../support/disk.rs"]
mod disk;
#[path = "../support/named.rs"]
mod named;
#[path = "../support/packed.rs"]
mod packed_ring;
#[path = "../support/packet.rs"]
mod packet;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;

use std::panic::{AssertUnwindSafe, catch_unwind};

mod driver;
mod rings;
mod world;

mod block;
mod console;
mod memory;
mod net;
mod packed;
mod setup;
mod sweep;
mod tables;
mod vsock;
mod worn;
mod zones;

use both::{BOTH, Transport};
use driver::{
    Row,
    Seen::{Holds, Refused, Served},
    Table, elsewhere, message, plays, run,
};
use world::Kind;

macro_rules! letters {
    ($($test:ident: $letter:literal, $kind:ident, $transports:expr, $cases:literal, $rows:ident;)+) => {$(
        #[test]
        fn $test() {
            let rows = tables::$rows::ROWS;
            run(&Table { letter: $letter, kind: Kind::$kind, transports: $transports, cases: $cases, rows });
        }
    )+};
}

letters! {
    cases_of_networks: "N", Net, &BOTH, 201, net;
    cases_of_consoles: "C", Console, &BOTH, 58, console;
    cases_of_sockets: "V", Vsock, &BOTH, 97, vsock;
    cases_of_balloons: "L", Balloon, &BOTH, 48, balloon;
    cases_of_memory: "R", Mem, &BOTH, 44, memory;
    cases_of_persistent_memory: "E", Pmem, &BOTH, 35, pmem;
    cases_of_split_rings: "T", Block, &BOTH, 130, split;
    cases_of_virtio_mmio: "M", Block, &[Transport::Mmio], 34, mmio;
    cases_of_virtio_pci: "PCI", Block, &[Transport::Pci], 121, pci;
    cases_of_states: "S", Block, &BOTH, 95, states;
    cases_of_disks: "B", Block, &BOTH, 227, block;
    cases_of_entropy: "RNG", Entropy, &BOTH, 34, entropy;
    cases_of_packed_rings: "P", Block, &BOTH, 86, packed;
    cases_of_administration: "A", Block, &BOTH, 36, admin;
    cases_of_zones: "Z", Zoned, &BOTH, 29, zoned;
    cases_of_translation: "I", Block, &BOTH, 111, iommu;
    cases_of_watchdogs: "D", Block, &BOTH, 38, watchdog;
    cases_of_file_systems: "F", Block, &BOTH, 44, folder;
    cases_of_clocks: "RTC", Block, &BOTH, 42, clock;
}

/// What a table is worth: rows that do not hold are told of, each by its number.
#[test]
fn a_row_that_does_not_hold_is_noticed() {
    let here = "tests/villain/main.rs::a_row_that_does_not_hold_is_noticed";
    let gone = "tests/villain/main.rs::a_test_that_there_is_not";
    let rows: &'static [Row] = Box::leak(Box::new([
        Row("T0001", "what holds", plays(Served, |w| rings::several(w, 0, 1))),
        Row("T0002", "another outcome", plays(Refused, |w| rings::several(w, 0, 1))),
        Row("T0003", "a test that is there", elsewhere(here)),
        Row("T0004", "one that is not", elsewhere(gone)),
        Row(
            "T0005",
            "a device that was broken and not said to be",
            plays(Holds, |w| {
                w.watch(0, |ring| ring.offer(u16::MAX));
                Holds
            }),
        ),
        Row(
            "T0006",
            "a device that answers nothing any more",
            plays(Holds, |w| {
                w.guest.transport().pause();
                Holds
            }),
        ),
        Row("T0007", "a case that panics", plays(Holds, |_| panic!("on purpose"))),
        Row(
            "S0008",
            "a case of another letter",
            plays(Served, |w| rings::several(w, 0, 1)),
        ),
        Row(
            "T0001",
            "a number that was there",
            plays(Served, |w| rings::several(w, 0, 1)),
        ),
    ]));
    let table = Table {
        letter: "T",
        kind: Kind::Block,
        transports: &BOTH,
        cases: 9,
        rows,
    };
    let told = catch_unwind(AssertUnwindSafe(|| run(&table))).expect_err("rows that do not hold");
    let told = message(&*told);
    for (number, times) in [
        ("T0001", 0),
        ("T0002", 6),
        ("T0003", 0),
        ("T0004", 1),
        ("T0005", 6),
        ("T0006", 6),
    ] {
        assert_eq!(told.matches(number).count(), times, "{number} in {told}");
    }
    assert_eq!(told.matches("on purpose").count(), 6, "{told}");
    assert!(
        told.contains("S0008 is no number of this table") && told.contains("8 cases in 9 rows"),
        "{told}"
    );
}
