//! The public suite virtio-villain as tables: a row for each of its cases, played before devices of ours over both transports, by a
//! driver that accepts VERSION_1 alone and by one that accepts everything; or with the test that tries it elsewhere; or with the
//! reason why it does not apply. The numbers are the suite's, the words and the code are not.

#[path = "../support/both.rs"]
mod both;
#[path = "../support/named.rs"]
mod named;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;

mod driver;
mod rings;
mod world;

mod block;
mod console;
mod memory;
mod net;
mod setup;
mod tables;
mod vsock;

use both::{BOTH, Transport};
use driver::{Table, run};
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
    cases_of_zones: "Z", Block, &BOTH, 29, zoned;
    cases_of_translation: "I", Block, &BOTH, 111, iommu;
}
