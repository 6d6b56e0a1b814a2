//! The token bucket beside one that counts its tokens: the same passes, and what is told to wait is told exactly until when.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use devisor::rate::{Rate, TokenBucket};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Take(u64),
    /// So many times a burst, and some.
    TakeBursts(u8, u8),
    Owe(u64),
    GiveBack(u64),
    Nanoseconds(u16),
    Pass(u64),
    /// Until what was refused last may pass.
    Wait,
}

#[derive(Arbitrary, Debug)]
struct Input {
    per_second: u64,
    burst: u64,
    start: u64,
    steps: Vec<Step>,
}

/// Beyond it a time does not fit.
const END: u64 = u64::MAX;
const SECOND: i128 = 1_000_000_000;

/// What is there, times a second in nanoseconds, at a time.
struct Model {
    rate: Rate,
    now: u64,
    level: i128,
}

impl Model {
    fn burst(&self) -> i128 {
        i128::from(self.rate.burst) * SECOND
    }

    fn pass(&mut self, to: u64) {
        let came = i128::from(to - self.now) * i128::from(self.rate.per_second);
        (self.now, self.level) = (to, self.burst().min(self.level.saturating_add(came)));
    }

    fn has(&self, tokens: u64) -> bool {
        self.level >= i128::from(tokens.min(self.rate.burst)) * SECOND
    }

    fn change(&mut self, tokens: i128) {
        self.level = self.burst().min(self.level + tokens * SECOND);
    }
}

fuzz_target!(|input: Input| {
    let rate = Rate {
        // So that the model's numbers have room: some 10^14.
        per_second: input.per_second >> 17,
        burst: input.burst,
    };
    let Ok(mut bucket) = TokenBucket::new(rate) else {
        assert!(rate.per_second == 0 || rate.burst == 0);
        return;
    };
    let mut model = Model {
        rate,
        now: input.start / 2,
        level: i128::from(rate.burst) * SECOND,
    };
    let mut until = None;
    for step in input.steps {
        let now = Duration::from_nanos(model.now);
        let tokens = match step {
            Step::Take(tokens) => Some(tokens),
            Step::TakeBursts(times, more) => Some(rate.burst.saturating_mul(times.into()).saturating_add(more.into())),
            Step::Owe(tokens) => {
                bucket.owe(now, tokens);
                model.change(-i128::from(tokens));
                None
            }
            Step::GiveBack(tokens) => {
                bucket.give_back(tokens);
                model.change(tokens.into());
                None
            }
            Step::Nanoseconds(time) => {
                model.pass(model.now.saturating_add(time.into()));
                None
            }
            Step::Pass(time) => {
                model.pass(model.now.saturating_add(time / 16));
                None
            }
            Step::Wait => {
                if let Some(when) = until.take() {
                    model.pass(when);
                }
                None
            }
        };
        let Some(tokens) = tokens else {
            // What may pass has changed.
            until = until.filter(|&when| when >= model.now);
            continue;
        };
        match bucket.take(now, tokens) {
            Ok(()) => {
                assert!(model.has(tokens), "{tokens} pass, and are not there");
                model.change(-i128::from(tokens));
            }
            Err(when) => {
                assert!(!model.has(tokens), "{tokens} are there, and do not pass");
                let at = u64::try_from(when.as_nanos()).expect("no later than that");
                // What would be later than a time can be is told as the last of all.
                assert!(when > now || at == END);
                if at != END {
                    assert!(bucket.ready(when, tokens).is_ok(), "not when it was said");
                    assert!(
                        bucket.ready(when - Duration::from_nanos(1), tokens).is_err(),
                        "sooner than it was said"
                    );
                }
                until = Some(at);
            }
        }
        assert_eq!(bucket.rate(), rate);
    }
});
