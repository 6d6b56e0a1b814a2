//! What stacks on a storage: a limiter and faults, by the time of a clock.

use std::{io, sync::Arc, time::Duration};

use devisor::{
    rate::Rate,
    time::ManualClock,
    virtio::{
        VirtioTransport, Wait,
        block::{
            Allowance, AsyncStorage, Block, BlockOptions, Failing, Faulty, Limited, MemoryStorage, Operation,
            Synchronous,
        },
    },
};

use crate::{guest::Guest, late::Late, support::*};

fn over(storage: impl AsyncStorage + 'static, queues: u16) -> Guest {
    let options = BlockOptions {
        queues,
        ..BlockOptions::default()
    };
    Guest::new(
        Block::with_async(storage, options).expect("valid options"),
        queues,
        u64::MAX >> 16,
    )
}

fn disk() -> Synchronous<MemoryStorage> {
    Synchronous::new(pattern(64 * 512).into())
}

const SECOND: Duration = Duration::from_secs(1);

/// Ten operations and four sectors a second, two of each at once.
fn limited(allowance: Allowance) -> (Arc<ManualClock>, Guest) {
    let clock = Arc::new(ManualClock::new(SECOND));
    let limited = Limited::new(disk(), allowance, clock.clone()).expect("rates");
    (clock, over(limited, 2))
}

#[test]
fn so_many_operations_pass_in_a_time_and_the_rest_waits_for_it() {
    let (clock, mut guest) = limited(Allowance {
        operations: Some(Rate {
            per_second: 10,
            burst: 2,
        }),
        bytes: None,
    });
    let asked = [0, 1, 2, 3].map(|at| guest.ask(0, T_IN, at, &[], 512));
    guest.kick(0);
    assert_eq!(guest.used(0), [asked[0].head, asked[1].head]);
    assert_eq!(guest.waits(0), [Wait::Until(SECOND + SECOND / 10)]);
    guest.device.process(devisor::virtio::QueueIndex(0));
    assert!(guest.used(0).is_empty(), "too early");
    clock.advance(SECOND / 10);
    guest.device.process(devisor::virtio::QueueIndex(0));
    assert_eq!(guest.used(0), [asked[2].head]);
    clock.advance(SECOND / 10);
    guest.device.process(devisor::virtio::QueueIndex(0));
    assert_eq!(guest.used(0), [asked[3].head]);
    assert!(guest.waits(0).is_empty());
}

#[test]
fn bytes_of_all_queues_are_counted_together() {
    let (clock, mut guest) = limited(Allowance {
        operations: None,
        bytes: Some(Rate {
            per_second: 4 * 512,
            burst: 2 * 512,
        }),
    });
    guest.ask(0, T_IN, 0, &[], 1024);
    guest.kick(0);
    let write = guest.ask(1, T_OUT, 0, &[1; 512], 0);
    let flush = guest.ask(1, T_FLUSH, 0, &[], 0);
    guest.kick(1);
    assert_eq!(
        (guest.used(0).len(), guest.used(1).len()),
        (1, 0),
        "a flush does not overtake"
    );
    assert_eq!(guest.waits(1), [Wait::Until(SECOND + SECOND / 4)]);
    clock.advance(SECOND / 4);
    guest.device.process(devisor::virtio::QueueIndex(1));
    assert_eq!(guest.used(1), [write.head, flush.head]);
}

#[test]
fn what_waits_for_its_time_is_given_back_at_once_when_the_queue_stops() {
    let (clock, mut guest) = limited(Allowance {
        operations: Some(Rate {
            per_second: 1,
            burst: 1,
        }),
        bytes: None,
    });
    let asked = [0, 1].map(|at| guest.ask(0, T_IN, at, &[], 512));
    guest.kick(0);
    guest.device.pause();
    assert!(guest.device.is_still() && guest.waits(0).is_empty());
    assert_eq!(guest.used(0), [asked[0].head]);
    clock.advance(SECOND);
    guest.device.resume();
    guest.device.run();
    assert_eq!(guest.used(0), [asked[1].head]);
    guest.ask(0, T_IN, 0, &[], 512);
    guest.kick(0);
    guest.reset();
    assert_eq!(guest.status(), 0);
}

#[test]
fn rates_of_nothing_are_refused_and_another_allowance_counts_from_its_time_on() {
    let clock = Arc::new(ManualClock::default());
    let rate = |per_second| Allowance {
        operations: Some(Rate { per_second, burst: 1 }),
        bytes: None,
    };
    assert!(Limited::new(disk(), rate(0), clock.clone()).is_err());
    let limited = Arc::new(Limited::new(disk(), rate(1), clock.clone()).unwrap());
    assert!(limited.allow(rate(0)).is_err());
    let mut guest = over(Arc::clone(&limited), 1);
    let asked = [0, 1].map(|at| guest.ask(0, T_IN, at, &[], 512));
    guest.kick(0);
    assert_eq!(guest.used(0), [asked[0].head]);
    limited.allow(Allowance::default()).unwrap();
    guest.device.process(devisor::virtio::QueueIndex(0));
    assert_eq!(guest.used(0), [asked[1].head]);
}

// Faults.

fn faulty(
    decide: impl Fn(&Operation, u64) -> Failing + Send + Sync + 'static,
) -> (Arc<ManualClock>, Arc<Faulty<Synchronous<MemoryStorage>>>, Guest) {
    let clock = Arc::new(ManualClock::new(SECOND));
    let faulty = Arc::new(Faulty::new(disk(), clock.clone(), decide));
    (clock, Arc::clone(&faulty), over(faulty, 1))
}

#[test]
fn an_injected_error_is_an_error_of_that_request() {
    let (_, _, mut guest) = faulty(|operation, _| match operation {
        Operation::Flush => Failing::Error(io::ErrorKind::StorageFull),
        _ => Failing::Not,
    });
    let asked = [(T_FLUSH, 0), (T_IN, 512)].map(|(kind, room)| guest.ask(0, kind, 0, &[], room));
    guest.kick(0);
    assert_eq!(asked.map(|asked| guest.answer(asked).0), [IOERR, OK]);
    let failures = guest.device.with_device(|disk| disk.host_failures());
    assert_eq!(
        failures.last.map(|error| error.kind()),
        Some(io::ErrorKind::StorageFull)
    );
}

#[test]
fn a_delayed_request_is_overtaken_and_ends_in_its_time() {
    let (clock, _, mut guest) = faulty(|operation, _| match operation {
        Operation::Read { offset: 0 } => Failing::Delayed(SECOND),
        _ => Failing::Not,
    });
    let asked = [0, 1].map(|at| guest.ask(0, T_IN, at, &[], 512));
    guest.kick(0);
    assert_eq!(guest.used(0), [asked[1].head]);
    assert_eq!(guest.waits(0), [Wait::Until(SECOND * 2)]);
    clock.advance(SECOND);
    guest.device.process(devisor::virtio::QueueIndex(0));
    assert_eq!(guest.used(0), [asked[0].head]);
}

#[test]
fn a_short_transfer_is_continued_and_a_torn_write_has_failed() {
    let (_, faulty, mut guest) = faulty(|operation, len| match operation {
        Operation::Read { .. } => Failing::Short(700),
        Operation::Write { .. } if len == 1024 => Failing::Torn(600),
        _ => Failing::Not,
    });
    let read = guest.ask(0, T_IN, 2, &[], 2048);
    let torn = guest.ask(0, T_OUT, 10, &[0xff; 1024], 0);
    guest.kick(0);
    assert_eq!(guest.answer(read), (OK, pattern(64 * 512)[1024..3072].to_vec()));
    assert_eq!(guest.answer(torn).0, IOERR);
    let read = guest.ask(0, T_IN, 10, &[], 1024);
    guest.kick(0);
    let mut expected = pattern(64 * 512)[5120..6144].to_vec();
    expected[..600].fill(0xff);
    assert_eq!(guest.answer(read), (OK, expected));
    faulty.unplug(true);
    let dead = guest.ask(0, T_IN, 0, &[], 512);
    guest.kick(0);
    assert_eq!(guest.answer(dead).0, IOERR);
}

#[test]
fn a_limiter_over_faults_over_a_late_storage_is_a_storage() {
    let clock = Arc::new(ManualClock::new(SECOND));
    let late = Late::new(64);
    let faulty = Faulty::new(late.clone(), clock.clone(), |_, _| Failing::Short(512));
    let allowance = Allowance {
        operations: Some(Rate {
            per_second: 1,
            burst: 1,
        }),
        bytes: None,
    };
    let mut guest = over(Limited::new(faulty, allowance, clock.clone()).unwrap(), 1);
    let asked = guest.ask(0, T_IN, 1, &[], 1024);
    guest.kick(0);
    late.end(0);
    guest.device.run();
    assert_eq!(late.under_way(), [], "the rest waits for its time");
    late.obey(true);
    guest.device.pause();
    assert!(guest.device.is_still());
    clock.advance(SECOND);
    guest.device.resume();
    guest.device.run();
    for _ in 0..2 {
        late.end(0);
        guest.device.run();
        clock.advance(SECOND);
        guest.device.process(devisor::virtio::QueueIndex(0));
    }
    assert_eq!(guest.answer(asked), (OK, pattern(64 * 512)[512..1536].to_vec()));
}
