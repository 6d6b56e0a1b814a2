//! Writes files past the page cache from many threads, each bound to a CPU, and reads them back: what fio does with `--verify`, for a guest in
//! which it does not start. Static, as Debian's dynamic loader asks for more than the emulated x86_64 core says of itself:
//!
//! `rustc -O -C target-feature=+crt-static verify.rs`, then `verify DIRECTORY`.
//!
//! Every block of every file is written twice, in an order of its own, with a flush now and then. What a word of a file is follows from
//! its place ([`word`]), so that the host can look for it in the image.

use std::{
    env,
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    process, slice, thread,
};

const BLOCK: usize = 4096;
/// Of a file.
const BLOCKS: usize = 64;
/// Threads of a CPU, and so requests under way.
const OF_A_CPU: usize = 4;
/// How often each block is written.
const GENERATIONS: u64 = 2;
const O_DIRECT: i32 = 0o40000;

unsafe extern "C" {
    fn sched_setaffinity(thread: i32, len: usize, mask: *const u64) -> i32;
}

#[repr(C, align(4096))]
struct Block([u64; BLOCK / 8]);

/// The word at `at`, counted in words, of a file in a generation: splitmix64 of these.
fn word(file: u64, at: u64, generation: u64) -> u64 {
    let mut mixed = (file << 40 | at << 8 | generation).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

impl Block {
    fn fill(&mut self, file: u64, block: usize, generation: u64) {
        for (at, slot) in (block as u64 * 512..).zip(&mut self.0) {
            *slot = word(file, at, generation);
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: its own bytes, which may have any value.
        unsafe { slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), BLOCK) }
    }
}

/// Writes and verifies a file on one CPU.
fn file(directory: &Path, number: u64, cpu: usize) -> Result<(), String> {
    let mask = 1_u64 << cpu;
    // SAFETY: reads one word.
    if unsafe { sched_setaffinity(0, 8, &raw const mask) } != 0 {
        return Err(format!("CPU {cpu} is not to be had"));
    }
    let path = directory.join(format!("data.{number}"));
    let name = |error| format!("{}: {error}", path.display());
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(O_DIRECT);
    let file: File = options.open(&path).map_err(name)?;
    let mut block = Box::new(Block([0; BLOCK / 8]));
    for generation in 1..=GENERATIONS {
        for step in 0..BLOCKS {
            // An odd number and one of its own to begin with: all of them, in some order.
            let at = (step * (2 * number as usize + 13) + number as usize) % BLOCKS;
            block.fill(number, at, generation);
            file.write_all_at(block.bytes(), (at * BLOCK) as u64).map_err(name)?;
            if step % 16 == 15 {
                file.sync_data().map_err(name)?;
            }
        }
        let mut expected = Box::new(Block([0; BLOCK / 8]));
        for at in (0..BLOCKS).rev() {
            file.read_exact_at(block.bytes(), (at * BLOCK) as u64).map_err(name)?;
            expected.fill(number, at, generation);
            if block.0 != expected.0 {
                return Err(format!(
                    "{}: block {at} of generation {generation} is another",
                    path.display()
                ));
            }
        }
    }
    file.sync_all().map_err(name)
}

fn main() {
    let directory = env::args_os().nth(1).expect("a directory");
    let directory = Path::new(&directory);
    let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get());
    println!("guest: verify begins on {cpus} CPUs");
    let numbers = 0..(cpus * OF_A_CPU) as u64;
    let results = thread::scope(|scope| {
        let start = |number| scope.spawn(move || file(directory, number, number as usize % cpus));
        let threads: Vec<_> = numbers.clone().map(start).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect::<Vec<_>>()
    });
    for (number, result) in results.iter().enumerate() {
        match result {
            Ok(()) => println!("guest: verify left {}/data.{number}", directory.display()),
            Err(why) => println!("guest: verify failed: {why}"),
        }
    }
    if results.iter().any(Result::is_err) {
        process::exit(1);
    }
    println!("guest: verify verified {} files", results.len());
}
