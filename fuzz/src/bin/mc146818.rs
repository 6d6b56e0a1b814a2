//! The MC146818: what it is does not depend on when it is looked at, its line follows its registers, its alarm knows when the line
//! will rise, and a state that was saved is taken back.
#![no_main]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    platform::mc146818::{Mc146818, Mc146818State},
    time::{Alarm, Clock, ManualClock},
};
use devisor_fuzz::{Access, Outside, step_of_time};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Ports(Access),
    Set {
        register: u8,
        value: u8,
    },
    /// Some time passes, and in between one of the two is looked at.
    Pass(u64, u64),
    Deadline,
    Early,
    Refuse(bool),
    Reset,
    Memory {
        index: u8,
        bytes: Vec<u8>,
    },
    /// To a host that reads another time.
    Move {
        ahead: u16,
    },
    Restore {
        ago: u16,
        ahead: u16,
        time: [u8; 14],
        century: u8,
    },
}

/// What the alarm was told last, and used up when it went off.
#[derive(Clone, Debug, Default)]
struct Next(Arc<Mutex<Option<Duration>>>);

impl Alarm for Next {
    fn set(&self, deadline: Option<Duration>) {
        *self.0.lock().unwrap() = deadline;
    }
}

struct Machine {
    clock: Arc<ManualClock>,
    /// Looked at whenever something may have happened.
    eager: Mc146818<Outside, Arc<ManualClock>, Next>,
    /// Looked at when the guest does something.
    lazy: Mc146818<NoInterrupt, Arc<ManualClock>, ()>,
    line: Outside,
    next: Next,
}

impl Machine {
    fn new(now: u32) -> Self {
        let clock = Arc::new(ManualClock::new(Duration::from_secs(now.into())));
        let (line, next) = (Outside::default(), Next::default());
        Self {
            eager: Mc146818::new(line.clone(), clock.clone(), next.clone()),
            lazy: Mc146818::new(NoInterrupt, clock.clone(), ()),
            clock,
            line,
            next,
        }
    }

    fn both(&self, change: impl Fn(&dyn BusDevice)) {
        change(&self.eager);
        change(&self.lazy);
    }

    /// As whoever keeps the timers does it, if the time has come.
    fn expire(&self) {
        let now = self.clock.now();
        if self
            .next
            .0
            .lock()
            .unwrap()
            .take_if(|deadline| *deadline <= now)
            .is_some()
        {
            self.eager.expire();
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Ports(access) => self.both(|clock| access.run(clock, 2, 1)),
            Step::Set { register, value } => self.both(|clock| {
                clock.write(0, &[register % 14]);
                clock.write(1, &[*value]);
            }),
            Step::Pass(first, second) => {
                for time in [first, second] {
                    self.clock.advance(step_of_time(*time));
                    self.expire();
                }
            }
            Step::Deadline => {
                if let Some(deadline) = self.eager.deadline() {
                    self.clock.advance_to(deadline);
                    self.expire();
                    // A clock that has come to its end stands still.
                    assert!(self.clock.now() < deadline || self.line.refuses() || self.line.is_up());
                }
            }
            Step::Early => {
                self.eager.expire();
                self.lazy.expire();
            }
            Step::Refuse(refuses) => {
                self.line.refuse(*refuses);
                self.eager.expire();
            }
            Step::Reset => {
                self.eager.reset();
                self.lazy.reset();
            }
            Step::Memory { index, bytes } => {
                assert_eq!(
                    self.eager.set_memory(*index, bytes),
                    self.lazy.set_memory(*index, bytes)
                );
            }
            Step::Move { ahead } => {
                let state = self.eager.save();
                self.clock.advance(Duration::from_secs((*ahead).into()));
                self.eager.restore(&state).expect("it was saved");
            }
            Step::Restore {
                ago,
                ahead,
                time,
                century,
            } => {
                let mut state = Mc146818State {
                    ahead: *ahead,
                    ..self.eager.save()
                };
                state.ticks = state.ticks.saturating_sub((*ago).into());
                state.registers[..14].copy_from_slice(time);
                state.registers[0x32] = *century;
                assert_eq!(self.eager.restore(&state), self.lazy.restore(&state));
            }
        }
    }

    fn check(&self) {
        let state = self.eager.save();
        let up = state.registers[11] & state.registers[12] & 0x70 != 0;
        if !self.line.refuses() {
            assert_eq!(self.line.is_up(), up, "{state:x?}");
        }
        let deadline = self.eager.deadline();
        assert!(!up || deadline.is_none(), "{state:x?}");
        assert!(
            deadline.is_none_or(|deadline| deadline > self.clock.now()),
            "it has passed"
        );
        assert_eq!(*self.next.0.lock().unwrap(), deadline, "the alarm was told another");
    }
}

fuzz_target!(|input: (u32, Vec<Step>)| {
    let (now, steps) = input;
    let mut machine = Machine::new(now);
    for step in steps.iter().take(200) {
        machine.step(step);
        machine.check();
    }
    assert_eq!(
        machine.lazy.save(),
        machine.eager.save(),
        "it depends on when it is looked at"
    );
});
