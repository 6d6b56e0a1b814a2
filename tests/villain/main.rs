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
mod tables;
mod vsock;

use driver::{Table, run};
use world::Kind;

macro_rules! letters {
    ($($test:ident: $letter:literal, $kind:ident, $cases:literal, [$($rows:ident),+];)+) => {$(
        #[test]
        fn $test() {
            run(&Table { letter: $letter, kind: Kind::$kind, cases: $cases, rows: &[$(tables::$rows::ROWS),+] });
        }
    )+};
}

letters! {
    cases_of_networks: "N", Net, 201, [net];
    cases_of_consoles: "C", Console, 58, [console];
    cases_of_sockets: "V", Vsock, 97, [vsock];
    cases_of_balloons: "L", Balloon, 48, [balloon];
    cases_of_memory: "R", Mem, 44, [memory];
    cases_of_persistent_memory: "E", Pmem, 35, [pmem];
}
