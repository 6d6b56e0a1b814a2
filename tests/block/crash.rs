//! What a guest finds after its host has crashed: what was flushed is there, and of the rest each sector may be.

use devisor::virtio::block::{Block, BlockOptions, Event, Operation, Recorder, Recording};
use proptest::prelude::*;

use crate::{guest::Guest, late::Late, support::*};

const SECTORS: usize = 12;

fn guest(late: &Late, features: u64) -> (Recording, Guest) {
    let recorder = Recorder::new(late.clone());
    let recording = recorder.recording();
    let block = Block::with_async(recorder, BlockOptions::default()).expect("valid options");
    (recording, Guest::new(block, 1, features))
}

fn crashed(recording: &Recording, events: usize, survives: impl FnMut() -> bool) -> Vec<u8> {
    let mut image = pattern(SECTORS * 512);
    recording.crash(&mut image, events, survives);
    image
}

#[test]
fn a_recording_has_what_was_asked_and_how_it_ended() {
    let late = Late::new(SECTORS);
    let (recording, mut guest) = guest(&late, u64::MAX >> 16);
    guest.ask(0, T_OUT, 1, &[7; 512], 0);
    guest.kick(0);
    late.end(0);
    guest.device_runs();
    let operation = Operation::Write {
        offset: 512,
        fua: false,
    };
    let begun = Event::Begun {
        request: 0,
        operation,
        len: 512,
        data: vec![7; 512],
    };
    let ended = Event::Ended {
        request: 0,
        result: Some(Ok(512)),
    };
    assert_eq!(recording.events(), [begun, ended]);
    recording.clear();
    assert!(recording.is_empty());
}

#[test]
fn without_a_flush_a_write_is_there_or_not_sector_by_sector() {
    let late = Late::new(SECTORS);
    let (recording, mut guest) = guest(&late, F_FLUSH);
    guest.ask(0, T_OUT, 0, &[7; 1024], 0);
    guest.kick(0);
    late.end(0);
    guest.device_runs();
    let mut turn = false;
    let image = crashed(&recording, usize::MAX, || {
        turn = !turn;
        turn
    });
    assert_eq!(
        (&image[..512], &image[512..]),
        (&[7; 512][..], &pattern(SECTORS * 512)[512..])
    );
    // A flush that was under way while the write was covers nothing of it.
    guest.ask(0, T_OUT, 2, &[8; 512], 0);
    guest.ask(0, T_FLUSH, 0, &[], 0);
    guest.kick(0);
    late.end(1);
    late.end(0);
    guest.device_runs();
    let image = crashed(&recording, usize::MAX, || false);
    assert_eq!(image[..1024], [7; 1024]);
    assert_eq!(image[1024..], pattern(SECTORS * 512)[1024..]);
}

#[test]
fn write_through_needs_no_flush_of_the_guest() {
    for late in [Late::new(SECTORS), Late::new(SECTORS).with_fua()] {
        let (recording, mut guest) = guest(&late, 0);
        let asked = guest.ask(0, T_OUT, 0, &[7; 512], 0);
        guest.kick(0);
        while guest.answer(asked).0 == 0xee {
            late.end(0);
            guest.device_runs();
        }
        assert_eq!(crashed(&recording, usize::MAX, || false)[..512], [7; 512]);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: u8,
        sectors: u8,
    },
    Zero {
        sector: u8,
    },
    Flush,
    /// Ends one of those that are under way.
    End(u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..SECTORS as u8 - 2, 1..3_u8).prop_map(|(sector, sectors)| Step::Write { sector, sectors }),
        1 => (0..SECTORS as u8).prop_map(|sector| Step::Zero { sector }),
        2 => Just(Step::Flush),
        6 => any::<u8>().prop_map(Step::End),
    ]
}

/// A write that the guest has asked for.
struct Written {
    asked: crate::guest::Asked,
    range: std::ops::Range<usize>,
    value: u8,
    /// When it was asked, and when the guest saw that it was done.
    from: usize,
    done: Option<usize>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_was_flushed_before_a_crash_is_there_after_it(
        steps in prop::collection::vec(any_step(), 1..60),
        writeback in any::<bool>(),
        fua in any::<bool>(),
        chances in prop::collection::vec(any::<bool>(), 64),
    ) {
        let late = if fua { Late::new(SECTORS).with_fua() } else { Late::new(SECTORS) };
        let features = F_WRITE_ZEROES | if writeback { F_FLUSH } else { 0 };
        let (recording, mut guest) = guest(&late, features);
        let mut writes: Vec<Written> = Vec::new();
        let mut flushes = Vec::new();
        // Up to here everything that was done is stable.
        let mut flushed = None;
        for (now, step) in steps.iter().enumerate() {
            let value = now as u8 + 1;
            match *step {
                Step::Write { sector, sectors } => {
                    let data = vec![value; usize::from(sectors) * 512];
                    let asked = guest.ask(0, T_OUT, sector.into(), &data, 0);
                    let range = usize::from(sector)..usize::from(sector + sectors);
                    writes.push(Written { asked, range, value, from: now, done: None });
                }
                Step::Zero { sector } => {
                    let asked = guest.ask(0, T_WRITE_ZEROES, 0, &segment(sector.into(), 1, 0), 0);
                    let range = usize::from(sector)..usize::from(sector) + 1;
                    writes.push(Written { asked, range, value: 0, from: now, done: None });
                }
                Step::Flush if writeback => flushes.push((guest.ask(0, T_FLUSH, 0, &[], 0), now)),
                Step::Flush => {}
                Step::End(which) => {
                    let count = late.under_way().len();
                    if count != 0 {
                        late.end(usize::from(which) % count);
                    }
                }
            }
            guest.kick(0);
            for write in &mut writes {
                if write.done.is_none() && guest.answer(write.asked).0 == OK {
                    write.done = Some(now);
                }
            }
            flushes.retain(|&(asked, from)| {
                let done = guest.answer(asked).0 == OK;
                if done {
                    flushed = flushed.max(Some(from));
                }
                !done
            });
        }

        let mut chances = chances.iter().cycle();
        let image = crashed(&recording, usize::MAX, || *chances.next().expect("without end"));
        for sector in 0..SECTORS {
            let here: Vec<_> = writes.iter().filter(|write| write.range.contains(&sector)).collect();
            let stable = |write: &Written| write.done.is_some_and(|done| !writeback || flushed.is_some_and(|from| done < from));
            let found = &image[sector * 512..][..512];
            // What was there first counts if nothing that is stable has replaced it; a write, if nothing stable was asked after it was done.
            let first = !here.iter().any(|write| stable(write)) && found == &pattern(SECTORS * 512)[sector * 512..][..512];
            let one_of = here.iter().any(|write| {
                let replaced = here.iter().any(|later| stable(later) && write.done.is_some_and(|done| done < later.from));
                !replaced && found.iter().all(|&byte| byte == write.value)
            });
            prop_assert!(first || one_of, "sector {} has {:?}", sector, &found[..1]);
        }
    }
}
