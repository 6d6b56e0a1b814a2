//! A storage behind a limiter: requests pass in their order and no faster than is allowed, each ends once, what waits says until when, and
//! then passes.
#![no_main]

use std::{sync::Arc, task::Waker, time::Duration};

use arbitrary::Arbitrary;
use devisor::{
    rate::Rate,
    time::{Clock, ManualClock},
    virtio::{
        QueueIndex, Wait,
        block::{
            Allowance, AsyncStorage, Buffers, Channel, Limited, MemoryStorage, Operation, Outcome, Synchronous, Tag,
        },
    },
};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Limit {
    per_second: u16,
    burst: u16,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Limits {
    operations: Option<Limit>,
    bytes: Option<Limit>,
}

impl From<Limits> for Allowance {
    fn from(limits: Limits) -> Self {
        let rate = |unit: u64| {
            move |limit: Limit| Rate {
                per_second: u64::from(limit.per_second) * unit,
                burst: u64::from(limit.burst) * unit,
            }
        };
        Self {
            operations: limits.operations.map(rate(1)),
            bytes: limits.bytes.map(rate(16)),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read {
        queue: bool,
        block: u8,
        len: u8,
    },
    Write {
        queue: bool,
        block: u8,
        len: u8,
    },
    Flush {
        queue: bool,
    },
    Pass(u32),
    /// Until the first that waits on a queue may be tried again.
    Wait {
        queue: bool,
    },
    Allow(Limits),
    Cancel {
        queue: bool,
    },
}

#[derive(Arbitrary, Debug)]
struct Input {
    limits: Limits,
    steps: Vec<Step>,
}

const SIZE: u64 = 1 << 17;

/// One of the queues, and what is under way on it: of each request its tag and how many bytes.
struct Queue {
    channel: Box<dyn Channel>,
    under_way: Vec<(Tag, u64)>,
    canceled: bool,
}

/// What may have passed since the allowance was changed last.
struct Passed {
    since: Duration,
    allowance: Allowance,
    operations: u128,
    bytes: u128,
    /// The last of them: it may be larger than what is there at a time.
    largest: u128,
}

impl Passed {
    fn check(&self, now: Duration) {
        let most = |rate: Rate| {
            let nanoseconds = (now - self.since).as_nanos();
            u128::from(rate.burst) + nanoseconds * u128::from(rate.per_second) / 1_000_000_000
        };
        if let Some(rate) = self.allowance.operations {
            assert!(self.operations <= most(rate), "too many operations");
        }
        if let Some(rate) = self.allowance.bytes {
            assert!(self.bytes <= most(rate) + self.largest, "too many bytes");
        }
    }
}

impl Queue {
    /// A round. Whether anything has ended.
    fn round(&mut self, passed: &mut Passed, now: Duration) -> bool {
        let mut ended = Vec::new();
        self.channel.reap(&mut |one| ended.push(one));
        self.channel.commit();
        self.channel.reap(&mut |one| ended.push(one));
        let any = !ended.is_empty();
        for one in ended {
            // What answers at once ends in the order in which it passes.
            let (tag, bytes) = self.under_way.remove(0);
            assert_eq!(one.tag, tag, "in their order, once");
            assert_eq!(one.buffers.len(), bytes, "with its buffers");
            match one.outcome {
                Outcome::Done(Ok(moved)) => assert!(moved <= bytes),
                Outcome::Done(Err(error)) => panic!("{error}"),
                Outcome::Canceled => {
                    assert!(self.canceled, "nobody asked for that");
                    continue;
                }
            }
            passed.operations += 1;
            passed.bytes += u128::from(bytes);
            passed.largest = passed.largest.max(bytes.into());
        }
        passed.check(now);
        let waits = self.waits();
        assert_eq!(waits.is_empty(), self.under_way.is_empty(), "what waits says so");
        any
    }

    fn waits(&mut self) -> Vec<Duration> {
        let mut waits = Vec::new();
        self.channel.waits(&mut |wait| match wait {
            Wait::Until(when) => waits.push(when),
            other => panic!("{other:?}"),
        });
        assert!(waits.len() <= 1);
        waits
    }
}

fuzz_target!(|input: Input| {
    let clock = Arc::new(ManualClock::new(Duration::from_secs(1)));
    let storage = Synchronous::new(MemoryStorage::new(SIZE as usize));
    let Ok(limited) = Limited::new(storage, input.limits.into(), clock.clone()) else {
        return;
    };
    let mut queues = [(); 2].map(|()| Queue {
        channel: limited.open(QueueIndex(0), Waker::noop().clone()).unwrap(),
        under_way: Vec::new(),
        canceled: false,
    });
    let fresh = |limits: Limits, since| Passed {
        since,
        allowance: limits.into(),
        operations: 0,
        bytes: 0,
        largest: 0,
    };
    let mut passed = fresh(input.limits, clock.now());
    let mut next = 0;
    for step in input.steps {
        let ask = match step {
            Step::Read { queue, block, len } => {
                let offset = u64::from(block) * 512;
                Some((queue, Operation::Read { offset }, (u64::from(len) + 1) * 512))
            }
            Step::Write { queue, block, len } => {
                let offset = u64::from(block) * 512;
                let len = (u64::from(len) + 1) * 512;
                Some((queue, Operation::Write { offset, fua: false }, len.min(SIZE - offset)))
            }
            Step::Flush { queue } => Some((queue, Operation::Flush, 0)),
            Step::Pass(time) => {
                clock.advance(Duration::from_nanos(time.into()));
                None
            }
            Step::Wait { queue } => {
                let queue = &mut queues[usize::from(queue)];
                if let Some(&when) = queue.waits().first() {
                    clock.advance(when.saturating_sub(clock.now()));
                    queue.round(&mut passed, clock.now());
                }
                None
            }
            Step::Allow(limits) => {
                if limited.allow(limits.into()).is_ok() {
                    passed = fresh(limits, clock.now());
                }
                None
            }
            Step::Cancel { queue } => {
                let queue = &mut queues[usize::from(queue)];
                queue.channel.cancel();
                queue.canceled = true;
                queue.round(&mut passed, clock.now());
                assert!(queue.under_way.is_empty(), "all that waited came back");
                queue.canceled = false;
                None
            }
        };
        if let Some((queue, operation, len)) = ask
            && queues[usize::from(queue)].under_way.len() < 64
        {
            let queue = &mut queues[usize::from(queue)];
            let buffers = match len {
                0 => Buffers::default(),
                len => Buffers::zeroed(len as usize, 64),
            };
            queue.channel.submit(Tag(next), operation, buffers);
            queue.under_way.push((Tag(next), len));
            next += 1;
        }
        for queue in &mut queues {
            queue.round(&mut passed, clock.now());
        }
    }
    // With nobody else about, each passes when its time has come.
    for queue in &mut queues {
        // Others may have passed since it was told when.
        queue.round(&mut passed, clock.now());
        while let Some(&when) = queue.waits().first() {
            assert!(when > clock.now());
            clock.advance(when - clock.now());
            assert!(queue.round(&mut passed, clock.now()), "its time has come");
        }
        assert!(queue.under_way.is_empty());
    }
});
