//! A qcow2 image of ours beside `qemu-storage-daemon` on the same image, in turns. `cargo bench --features images --bench images`.
//!
//! *What is compared*: requests to an [`ImageStorage`] in this process, on as many threads as requests are under way; and those of `fio`
//! (its NBD engine, as many at a time) to an export of the daemon on a Unix socket. The socket and `fio` are in the daemon's figures:
//! it has no way in that a program without a guest could take for less.

#[cfg(unix)]
#[path = "images/mod.rs"]
mod images;

fn main() {
    #[cfg(unix)]
    images::main();
    #[cfg(not(unix))]
    println!("skipped: for Unix");
}
