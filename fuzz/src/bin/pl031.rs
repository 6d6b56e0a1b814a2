//! The PL031: it is the counter that goes up by one each second, whenever it is looked at, its line follows its registers,
//! and its alarm knows the next match.
#![no_main]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    platform::pl031::{Pl031, Pl031State},
    time::{Alarm, Clock, ManualClock},
};
use devisor_fuzz::{Access, Outside, step_of_time};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Registers(Access),
    /// A match so many seconds from now, or where it was so many ago.
    Match(i8),
    Set {
        register: u8,
        value: u32,
    },
    /// Some time passes, and in between one of the two is looked at.
    Pass(u64, u64),
    Deadline,
    Early,
    Refuse(bool),
    Reset,
    /// To a host that reads another time: the guest's goes on as much as is said.
    Move {
        ahead: u16,
        stands_still: bool,
    },
    Restore {
        ago: u16,
        state: [u32; 3],
        flags: u8,
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

/// One second after the other.
fn tick(state: &mut Pl031State, now: u64) {
    while state.seconds < now {
        state.seconds += 1;
        if state.started {
            state.dr = state.dr.wrapping_add(1);
            state.ris |= state.dr == state.mr;
        }
    }
}

struct Machine {
    clock: Arc<ManualClock>,
    /// Looked at whenever something may have happened.
    eager: Pl031<Outside, Arc<ManualClock>, Next>,
    /// Looked at when the guest does something.
    lazy: Pl031<NoInterrupt, Arc<ManualClock>, ()>,
    line: Outside,
    next: Next,
}

impl Machine {
    fn new(at_reset: bool, now: u32) -> Self {
        let clock = Arc::new(ManualClock::new(Duration::from_secs(now.into())));
        let (line, next) = (Outside::default(), Next::default());
        let (eager, lazy) = match at_reset {
            true => (
                Pl031::at_reset(line.clone(), clock.clone(), next.clone()),
                Pl031::at_reset(NoInterrupt, clock.clone(), ()),
            ),
            false => (
                Pl031::new(line.clone(), clock.clone(), next.clone()),
                Pl031::new(NoInterrupt, clock.clone(), ()),
            ),
        };
        Self {
            clock,
            eager,
            lazy,
            line,
            next,
        }
    }

    fn now(&self) -> u64 {
        self.clock.now().as_secs()
    }

    fn both(&self, change: impl Fn(&dyn BusDevice)) {
        change(&self.eager);
        change(&self.lazy);
    }

    /// As whoever keeps the timers does it, if the time has come.
    fn expire(&self) {
        let due = self
            .next
            .0
            .lock()
            .unwrap()
            .take_if(|deadline| *deadline <= self.clock.now());
        if due.is_some() {
            self.eager.expire();
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Registers(access) => self.both(|clock| access.run(clock, 0x20, 4)),
            Step::Match(seconds) => {
                let matched = self.eager.save().dr.wrapping_add_signed(seconds.into());
                self.both(|clock| clock.write(0x04, &matched.to_le_bytes()));
            }
            Step::Set { register, value } => {
                self.both(|clock| clock.write(u64::from(register % 8) * 4, &value.to_le_bytes()));
            }
            Step::Pass(first, second) => {
                let mut reference = self.eager.save();
                for time in [first, second] {
                    self.clock.advance(step_of_time(time));
                    self.expire();
                }
                tick(&mut reference, self.now());
                assert_eq!(self.eager.save(), reference);
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
                *self.next.0.lock().unwrap() = None;
                self.eager.expire();
            }
            Step::Refuse(refuses) => {
                self.line.refuse(refuses);
                // Any change tells it again.
                self.eager.read(0, &mut [0; 4]);
            }
            Step::Reset => {
                self.eager.reset();
                self.lazy.reset();
            }
            Step::Move { ahead, stands_still } => {
                let mut state = self.eager.save();
                let other = Self::new(ahead % 2 == 0, 0);
                other
                    .clock
                    .advance_to(self.clock.now() + Duration::from_secs(ahead.into()));
                if stands_still {
                    state.seconds = other.now();
                }
                other.restore(&state);
                other.line.refuse(self.line.refuses());
                *self = other;
            }
            Step::Restore {
                ago,
                state: [dr, mr, lr],
                flags,
            } => {
                let flag = |bit: u32| flags >> bit & 1 != 0;
                self.restore(&Pl031State {
                    seconds: self.now().saturating_sub(ago.into()),
                    dr,
                    mr,
                    lr,
                    started: flag(0),
                    imsc: flag(1),
                    ris: flag(2),
                });
            }
        }
    }

    fn restore(&self, state: &Pl031State) {
        self.eager.restore(state);
        self.lazy.restore(state);
        let mut reference = state.clone();
        tick(&mut reference, self.now());
        assert_eq!(self.eager.save(), reference);
    }

    fn check(&self) {
        let state = self.eager.save();
        if !self.line.refuses() {
            assert_eq!(self.line.is_up(), state.ris && state.imsc, "{state:x?}");
        }
        let deadline = self.eager.deadline();
        assert_eq!(
            deadline.is_some(),
            state.started && state.imsc && !state.ris,
            "{state:x?}"
        );
        assert!(
            deadline.is_none_or(|deadline| deadline > self.clock.now()),
            "it has passed"
        );
        assert_eq!(*self.next.0.lock().unwrap(), deadline, "the alarm was told another");
    }
}

fuzz_target!(|input: (bool, u32, Vec<Step>)| {
    let (at_reset, now, steps) = input;
    let mut machine = Machine::new(at_reset, now);
    // As many as a clock can count.
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
