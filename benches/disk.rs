//! What a request costs on a disk over `io_uring`, beside a bare loop on a ring of the same depth and file, and beside `fio`: read the
//! ratios, each of runs that take turns.
//!
//! `cargo bench --features io-uring --bench disk [NAME]` does those whose names have `NAME` in them. System calls are counted by
//! `strace`, if it is there.

#[cfg(all(target_os = "linux", feature = "io-uring"))]
#[path = "disk/mod.rs"]
mod disk;

fn main() {
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    disk::main();
    #[cfg(not(all(target_os = "linux", feature = "io-uring")))]
    println!("skipped: for Linux, with the feature `io-uring`");
}
