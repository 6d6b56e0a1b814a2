//! The 8254: looking at it more often changes nothing, its deadlines lie ahead, and its line is OUT of counter 0.
#![no_main]

use std::{sync::Arc, time::Duration};

use arbitrary::Arbitrary;
use devisor::{
    backends::irqchip::pit::{CounterState, Pit, PitState},
    bus::BusDevice,
    interrupt::NoInterrupt,
    time::{Clock, ManualClock},
};
use devisor_fuzz::{Access, Outside, step_of_time};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Counters(Access),
    PortB(u8),
    Program {
        control: u8,
        count: u16,
    },
    /// Some time passes, and in between one of the two is looked at.
    Pass(u64, u64),
    /// As many deadlines as the number says, one after the other.
    Deadlines(u8),
    Refuse(bool),
    Reset,
    Move,
    Restore {
        now: u32,
        port_b: u8,
        counters: [Counter; 3],
        rose: bool,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Counter {
    format: u8,
    gate: bool,
    count: Option<u16>,
    next: Option<u16>,
    counted: u32,
    since: Option<u32>,
    low_byte: Option<u8>,
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    fn state(self) -> CounterState {
        CounterState {
            format: self.format,
            gate: self.gate,
            count: self.count.map(u32::from),
            next: self.next.map(u32::from),
            counted: self.counted.into(),
            since: self.since.map(u64::from),
            low_byte: self.low_byte,
            read_high: self.read_high,
            latched_count: self.latched_count,
            latched_status: self.latched_status,
        }
    }
}

/// Without what the line has refused.
fn counters(state: PitState) -> PitState {
    PitState { rose: false, ..state }
}

struct Machine {
    clock: Arc<ManualClock>,
    /// Looked at whenever something may have happened, and only when the guest does something.
    pits: [Pit; 2],
    line: Outside,
}

impl Machine {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        let line = Outside::default();
        let eager = Pit::new(line.clone(), Arc::clone(&clock), ());
        let lazy = Pit::new(NoInterrupt, Arc::clone(&clock), ());
        Self {
            pits: [eager, lazy],
            clock,
            line,
        }
    }

    fn both(&self, change: impl Fn(&Pit)) {
        self.pits.iter().for_each(change);
    }

    /// The state of the eager one, which is that of the other but for what the line has refused.
    fn state(&self) -> PitState {
        let [eager, lazy] = self.pits.each_ref().map(Pit::save);
        assert_eq!(
            counters(eager.clone()),
            lazy,
            "it depends on when it is looked at, or a line refuses that does not"
        );
        assert!(!eager.rose || self.line.refuses(), "a rise that nobody has refused");
        eager
    }

    fn step(&mut self, step: &Step) {
        let eager = &self.pits[0];
        match *step {
            Step::Counters(access) => self.both(|pit| access.run(&pit.counters(), 4, 1)),
            Step::PortB(value) => self.both(|pit| pit.port_b().write(0, &[value])),
            Step::Program { control, count } => self.both(|pit| {
                let ports = pit.counters();
                ports.write(3, &[control]);
                for byte in count.to_le_bytes() {
                    ports.write(u64::from(control >> 6), &[byte]);
                }
            }),
            Step::Pass(first, second) => {
                for time in [first, second] {
                    self.clock.advance(step_of_time(time));
                    eager.expire();
                }
            }
            Step::Deadlines(count) => {
                for _ in 0..count % 8 {
                    let Some(deadline) = eager.deadline() else { break };
                    assert!(deadline > self.clock.now(), "a deadline that has passed");
                    self.clock.advance_to(deadline);
                    eager.expire();
                }
            }
            Step::Refuse(refuses) => {
                self.line.refuse(refuses);
                eager.expire();
            }
            Step::Reset => self.both(Pit::reset),
            Step::Move => {
                let state = self.state();
                // The clock of another host.
                self.clock.advance(Duration::from_secs(1000));
                self.both(|pit| pit.restore(&state).unwrap());
                let moved = self.state();
                assert!(
                    moved.rose || !state.rose || !self.line.refuses(),
                    "a rise that nobody has told"
                );
                assert_eq!(counters(moved), counters(state));
            }
            Step::Restore {
                now,
                port_b,
                counters: each,
                rose,
            } => {
                let state = PitState {
                    now: now.into(),
                    counters: each.map(Counter::state),
                    port_b,
                    rose,
                };
                if self.pits[0].restore(&state).is_ok() {
                    self.pits[1].restore(&state).unwrap();
                    assert_eq!(counters(self.state()), counters(state));
                }
            }
        }
    }

    fn check(&self) {
        let eager = &self.pits[0];
        // What the guest would read, if it latched the status of a copy.
        let copy = Pit::new(NoInterrupt, Arc::clone(&self.clock), ());
        let mut state = self.state();
        state.counters[0].latched_status = None;
        copy.restore(&state).unwrap();
        copy.counters().write(3, &[0xe2]);
        let mut status = [0];
        copy.counters().read(0, &mut status);
        if !self.line.refuses() {
            eager.expire();
            assert_eq!(
                self.line.is_up(),
                status[0] & 0x80 != 0,
                "the line is not OUT: {state:x?}"
            );
        }
        if let Some(deadline) = eager.deadline() {
            assert!(deadline > self.clock.now(), "a deadline that has passed: {state:x?}");
        }
        self.both(|pit| _ = pit.speaker());
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut machine = Machine::new();
    // As many as a clock that starts at zero can count.
    for step in steps.iter().take(400) {
        machine.step(step);
        machine.check();
    }
});
