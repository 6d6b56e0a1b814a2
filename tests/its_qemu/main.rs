//! The same random commands and messages to our ITS and GICv3 and to QEMU's: registers and pending LPIs compared.
//!
//! What differs by design is named where it is handled: search for "QEMU:". All of it was seen with QEMU 7.2.

#![cfg(feature = "irqchip")]

#[path = "../support/beside.rs"]
mod beside;
#[path = "../support/its.rs"]
mod command;
mod counts;
mod ours;
mod pair;
#[path = "../support/qtest.rs"]
mod qtest;
mod registers;
#[path = "../support/skip.rs"]
mod skip;
mod steps;

use counts::Counts;
use pair::Pair;

const SEEDS: [u64; 6] = [1, 2, 3, 0x5eed, 0xdead_beef, 0x0123_4567_89ab_cdef];
const STEPS: u32 = 2_000;
/// Everything is made anew after every so many steps, or when the queue has stalled.
const EPISODE: u32 = 150;
/// Ours is saved, and another restored in its place, after every so many steps.
const MIGRATION: u32 = 37;

#[test]
fn behaves_as_qemus_model_does() {
    let mut counts = Counts::default();
    let machine = ["-M", "virt,gic-version=3,its=on", "-cpu", "cortex-a57", "-smp", "4"];
    let compared = beside::each(&SEEDS, &machine, |qemu, seed| {
        let mut pair = Pair::new(qemu, seed);
        pair.compare_identification();
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
        pending,
        refused,
        stalls,
    } = counts;
    println!(
        "ITS beside QEMU's: {steps} steps, {reads} reads compared, {pending} times the pending LPIs changed, \
         {refused} commands refused, {stalls} stalls"
    );
    assert!(pending > steps / 10, "the sequence is too dull to prove anything");
    assert!(
        refused > steps / 20 && stalls > 10,
        "too little goes wrong to prove anything"
    );
}
