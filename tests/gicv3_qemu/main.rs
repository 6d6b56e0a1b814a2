//! The same random sequence to our GICv3 and to QEMU's: every register of the distributor and of four redistributors
//! compared.
//!
//! Through the qtest protocol there is no CPU that could reach the system registers of a CPU interface, so nothing is
//! acknowledged here. What differs by design is named where it is handled: search for "QEMU:". All of it was seen with
//! QEMU 7.2.

#![cfg(feature = "irqchip")]

#[path = "../support/beside.rs"]
mod beside;
mod ours;
mod pair;
#[path = "../support/qtest.rs"]
mod qtest;
mod registers;
#[path = "../support/skip.rs"]
mod skip;
mod steps;

use pair::Pair;

const SEEDS: [u64; 4] = [1, 2, 0x5eed, 0xdead_beef];
const STEPS: u32 = 4_000;
/// All registers are compared after every so many steps.
const SWEEP: u32 = 50;
/// Ours is saved, and another restored in its place, after every so many steps.
const MIGRATION: u32 = 37;

#[test]
fn registers_behave_as_qemus_do() {
    let (mut steps, mut reads, mut pending) = (0, 0, 0);
    let machine = ["-M", "virt,gic-version=3,its=on", "-cpu", "cortex-a57", "-smp", "4"];
    let compared = beside::each(&SEEDS, &machine, |qemu, seed| {
        let mut pair = Pair::new(qemu, seed);
        for step in 0..STEPS {
            pair.step(step);
        }
        steps += pair.steps;
        reads += pair.reads;
        pending += pair.pending;
    });
    if let Err(why) = compared {
        return skip::skipped(why);
    }
    println!("GICv3 beside QEMU's: {steps} steps, {reads} reads compared, {pending} of them showed pending interrupts");
    assert!(
        reads > steps * 8 && pending > steps / 8,
        "too little is compared to prove anything"
    );
}
