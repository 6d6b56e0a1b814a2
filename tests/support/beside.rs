//! A random sequence beside QEMU: its seeds, its numbers, and what is told when the two differ.
//!
//! `DEVISOR_SEED` replaces the seeds. A failure prints its seed and the last steps.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{collections::VecDeque, fmt::Debug, ops::Range};

use devisor::bus::BusDevice;

use crate::qtest::Qtest;

/// Calls `run` with a stopped machine of QEMU's for each of the seeds.
///
/// # Errors
/// Why the test is skipped.
pub fn each(seeds: &[u64], machine: &[&str], mut run: impl FnMut(Qtest, u64)) -> Result<(), String> {
    let seeds = match std::env::var("DEVISOR_SEED") {
        Ok(seed) => vec![seed.parse().expect("DEVISOR_SEED is a number")],
        Err(_) => seeds.to_vec(),
    };
    for seed in seeds {
        run(Qtest::start("qemu-system-aarch64", machine)?, seed);
    }
    Ok(())
}

/// The last steps of a sequence.
pub struct Steps {
    seed: u64,
    last: VecDeque<String>,
}

impl Steps {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            last: VecDeque::new(),
        }
    }

    pub fn note(&mut self, line: String) {
        if self.last.len() == 60 {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The two differ, in the step with this number.
    pub fn fail(&self, what: &str, step: u32, state: &dyn Debug) -> ! {
        for line in &self.last {
            println!("  {line}");
        }
        panic!("{what}\nat step {step} of DEVISOR_SEED={}\n{state:x?}", self.seed);
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, limit: u32) -> u32 {
        (self.next() % u64::from(limit)) as u32
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }

    /// An access to a region of `size` bytes that its architecture does not require to work. Those of `words` bytes do where they are
    /// aligned, those of one within `bytes`: then there is none this time.
    pub fn forbidden(&mut self, size: u32, words: &[usize], bytes: &[Range<u64>]) -> Option<Forbidden> {
        let width = self.pick(&[1, 2, 4, 8]);
        let mut offset = u64::from(self.below(size));
        if width == 1 && bytes.iter().any(|range| range.contains(&offset)) {
            return None;
        }
        if words.contains(&width) {
            offset |= 1;
        }
        let value = self.next();
        Some(Forbidden { offset, width, value })
    }
}

/// An access that reads as zero, and writes nothing. QEMU: takes some of them, and cuts others in pieces. So they go to ours alone.
#[derive(Clone, Copy, Debug)]
pub struct Forbidden {
    offset: u64,
    width: usize,
    value: u64,
}

impl Forbidden {
    /// Whether it is so where `face` shows what `state` says.
    pub fn is_ignored<S: PartialEq>(&self, face: &dyn BusDevice, state: impl Fn() -> S) -> bool {
        let (before, mut data) = (state(), [0xff; 8]);
        face.write(self.offset, &self.value.to_le_bytes()[..self.width]);
        face.read(self.offset, &mut data[..self.width]);
        data[..self.width] == [0; 8][..self.width] && before == state()
    }
}
