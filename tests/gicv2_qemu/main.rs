//! The same random sequence to our GICv2 and to QEMU's: every read and every output compared.
//!
//! QEMU takes the accesses of the qtest protocol as those of CPU 0, and only while its GIC has one CPU, so one CPU is what
//! is compared here. What differs by design is named where it is handled: search for "QEMU:". All of it was seen with
//! QEMU 7.2.

#![cfg(feature = "irqchip")]

#[path = "../support/beside.rs"]
mod beside;
mod counts;
mod ours;
mod pair;
mod priorities;
#[path = "../support/qtest.rs"]
mod qtest;
mod registers;
#[path = "../support/skip.rs"]
mod skip;
mod steps;
mod view;

use counts::Counts;
use pair::Pair;

const SEEDS: [u64; 6] = [1, 2, 3, 0x5eed, 0xdead_beef, 0x0123_4567_89ab_cdef];
const STEPS: u32 = 5_000;

#[test]
fn behaves_as_qemus_model_does() {
    let mut counts = Counts::default();
    let machine = ["-M", "virt,gic-version=2", "-cpu", "cortex-a57"];
    let compared = beside::each(&SEEDS, &machine, |qemu, seed| {
        let mut pair = Pair::new(qemu, seed);
        for step in 0..STEPS {
            pair.step(step);
        }
        counts.add(&pair.counts);
    });
    if let Err(why) = compared {
        return skip::skipped(why);
    }
    let Counts {
        steps,
        reads,
        outputs,
        acknowledged,
        excluded,
    } = counts;
    println!(
        "GICv2 beside QEMU's: {steps} steps, {reads} reads and {outputs} outputs compared, \
         {acknowledged} interrupts acknowledged, {excluded} comparisons excluded"
    );
    assert!(acknowledged > steps / 50, "the sequence is too dull to prove anything");
    assert!(excluded < reads / 20, "too much is excluded to prove anything");
}
