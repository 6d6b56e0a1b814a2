//! The balloon: 64 MiB are asked for, and given back.

use std::{error::Error, sync::Arc};

use devisor::virtio::{
    VirtioTransport,
    balloon::{Balloon, BalloonOptions, Statistic},
    reclaim::Madvise,
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Around, CheckOf, MIB, Measured, More, kib, resident};
use crate::{
    verdict::Check,
    virtio::{Slots, Window},
};

const SQUEEZE: u64 = 64 * MIB;

pub fn plug(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let (memory, ram) = (Arc::clone(around.memory), around.room.ram);
    let reclaim = Madvise::new(Arc::clone(&memory)).within(ram.base..ram.base + ram.len);
    // Where free pages are reported they go back by themselves, and the balloon has less to give. So one transport has it without.
    let reporting = matches!(around.slots, Slots::Pci(..));
    let options = BalloonOptions {
        page_reporting: reporting,
        ..BalloonOptions::default()
    };
    let balloon = around.plug(Balloon::new(reclaim, options)?)?;
    let (device, measured) = (balloon.transport(), Measured::default());

    let (heard, notes) = (Arc::clone(&balloon), measured.clone());
    let hear = move |line: &str| {
        if line == "squeeze me" {
            if !reporting {
                touch(&memory, ram)?;
            }
            notes.note("before", resident(&memory, ram)?);
            heard.change_config(|balloon| balloon.set_target((SQUEEZE / 4096) as u32));
        } else if line.starts_with("balloon took ") {
            notes.note("after", resident(&memory, ram)?);
            notes.note("actual", u64::from(heard.with(|balloon| balloon.actual())) * 4096);
            heard.with(|balloon| balloon.request_statistics())?;
            heard.change_config(|balloon| balloon.set_target(0));
        } else if line.starts_with("balloon gave back ") {
            // When the guest powers off it resets the device.
            if let Some(statistics) = heard.with(|balloon| balloon.statistics()) {
                notes.note("told", statistics.count);
                for (name, statistic) in [("total", Statistic::MemoryTotal), ("free", Statistic::MemoryFree)] {
                    statistics
                        .get(statistic)
                        .into_iter()
                        .for_each(|value| notes.note(name, value));
                }
            }
            notes.note("left", heard.with(|balloon| balloon.actual()).into());
        }
        Ok(())
    };
    let inflates = {
        let (balloon, measured) = (Arc::clone(&balloon), measured.clone());
        move |console: &str| {
            inflated(
                console,
                &measured,
                &balloon.with(|balloon| format!("{balloon:?}")),
                reporting.then_some(ram.len),
            )
        }
    };
    let deflates = {
        let (balloon, measured) = (Arc::clone(&balloon), measured.clone());
        move |console: &str| -> Check {
            let back = kib(console, "balloon gave back ")?;
            let (left, counters) = (measured.get("left")?, balloon.with(|balloon| balloon.counters()));
            let how = format!("the guest has {} MiB again, {left} pages are left in it", back / MIB);
            let right = back.abs_diff(SQUEEZE) < MIB && left == 0 && counters.deflated >= SQUEEZE;
            right.then(|| how.clone()).ok_or(how)
        }
    };
    let tells = move |console: &str| -> Check {
        let all = kib(console, "memory is ")?;
        let (told, total, free) = (measured.get("told")?, measured.get("total")?, measured.get("free")?);
        let how = format!("{} of {} MiB are free, told {told} times", free / MIB, total / MIB);
        // Asked when the balloon was full.
        let right = told >= 2 && free < total && all.abs_diff(total) <= SQUEEZE + MIB;
        right.then(|| how.clone()).ok_or(how)
    };
    let reports = move |_: &str| -> Check {
        let counters = balloon.with(|balloon| balloon.counters());
        let back = counters.given_back.saturating_sub(counters.inflated);
        let how = format!("{} MiB, of which {} went back", counters.reported / MIB, back / MIB);
        (counters.reported != 0 && back != 0).then(|| how.clone()).ok_or(how)
    };
    let mut checks: Vec<(&'static str, Box<CheckOf>)> = vec![
        ("the balloon inflates, and the host has that memory", Box::new(inflates)),
        ("it deflates", Box::new(deflates)),
        ("it tells statistics of the guest's memory", Box::new(tells)),
    ];
    if reporting {
        checks.push(("the guest reports free pages", Box::new(reports)));
    }
    let hear = Box::new(hear);
    Ok((device, More { hear, checks }))
}

/// Has all of a part of memory in the host: of a file there is what was touched, which free pages need not have been.
fn touch(memory: &GuestMemoryMmap, Window { base, len }: Window) -> Result<(), Box<dyn Error>> {
    for at in (base..base + len).step_by(4096) {
        memory.read_slice(&mut [0], GuestAddress(at))?;
    }
    Ok(())
}

fn inflated(console: &str, measured: &Measured, balloon: &str, reported_of: Option<u64>) -> Check {
    let took = kib(console, "balloon took ")?;
    let (before, after, actual) = (measured.get("before")?, measured.get("after")?, measured.get("actual")?);
    let fell = before.saturating_sub(after);
    let how = format!(
        "the guest misses {} MiB, and the host has {} less of its {} than before",
        took / MIB,
        fell / MIB,
        before / MIB
    );
    // What was reported free had gone already.
    let gone = match reported_of {
        Some(all) => all - after >= SQUEEZE,
        None => fell.abs_diff(SQUEEZE) < 2 * MIB,
    };
    let right = took.abs_diff(SQUEEZE) < MIB && gone && actual == SQUEEZE;
    right
        .then(|| how.clone())
        .ok_or_else(|| format!("{how}; {actual} in {balloon}"))
}
