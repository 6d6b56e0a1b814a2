//! The fixed hardware of ACPI: its line follows its registers, its alarm knows when the line will rise, what it is does not depend on
//! when it is looked at, and a state that was saved is taken back.
#![no_main]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use arbitrary::Arbitrary;
use devisor::{
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt},
    platform::acpi_pm::{AcpiPm, AcpiPmConfig, ControlBlock, EventBlock, GpeLine, TimerBlock, TimerWidth},
    time::{Alarm, Clock, ManualClock},
};
use devisor_fuzz::{Access, Outside, step_of_time};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Events(Access),
    Control(Access),
    Timer(Access),
    Gpes(Access),
    Smi(Access),
    PowerButton,
    SleepButton,
    Rtc,
    Wake,
    Raise(u8),
    Line(u8, bool),
    /// Some time passes, and in between one of the two is looked at.
    Pass(u64, u64),
    Deadline,
    Refuse(bool),
    Reset,
    Save,
    Restore {
        timer: u32,
        registers: [u16; 3],
        gpes: [u8; 4],
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
    eager: AcpiPm,
    /// Looked at when the guest does something.
    lazy: AcpiPm,
    lines: Vec<[GpeLine; 2]>,
    line: Outside,
    next: Next,
}

impl Machine {
    fn new(narrow: bool, acpi_mode: bool) -> Self {
        let clock = Arc::new(ManualClock::default());
        let (line, next) = (Outside::default(), Next::default());
        let config = AcpiPmConfig {
            timer: if narrow { TimerWidth::Bits24 } else { TimerWidth::Bits32 },
            gpes: 16,
            acpi_mode,
        };
        let eager = AcpiPm::new(
            config,
            line.clone(),
            |kind| assert!(kind < 8),
            clock.clone(),
            next.clone(),
        )
        .unwrap();
        let lazy = AcpiPm::new(config, NoInterrupt, |_| (), clock.clone(), ()).unwrap();
        // Two to some of them.
        let to = |gpe: u32| [&eager, &lazy].map(|pm| pm.gpe_line(gpe % 16).unwrap());
        let lines = (0..20).map(to).collect();
        Self {
            clock,
            eager,
            lazy,
            lines,
            line,
            next,
        }
    }

    fn both(&self, change: impl Fn(&AcpiPm)) {
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

    fn step(&self, step: &Step) {
        match *step {
            Step::Events(access) => self.both(|pm| access.run(&pm.event_block(), EventBlock::SIZE, 2)),
            Step::Control(access) => self.both(|pm| access.run(&pm.control_block(), ControlBlock::SIZE, 2)),
            Step::Timer(access) => self.both(|pm| access.run(&pm.timer_block(), TimerBlock::SIZE, 4)),
            Step::Gpes(access) => self.both(|pm| access.run(&pm.gpe_block(), 4, 1)),
            Step::Smi(access) => self.both(|pm| access.run(&pm.smi_command(1, 2), 1, 1)),
            Step::PowerButton => self.both(AcpiPm::press_power_button),
            Step::SleepButton => self.both(AcpiPm::press_sleep_button),
            Step::Rtc => self.both(AcpiPm::rtc_alarm),
            Step::Wake => self.both(AcpiPm::wake),
            Step::Raise(gpe) => self.both(|pm| assert_eq!(pm.raise_gpe(gpe.into()).is_ok(), gpe < 16)),
            Step::Line(line, up) => {
                for line in &self.lines[usize::from(line) % self.lines.len()] {
                    _ = if up { line.trigger() } else { line.clear() };
                }
            }
            Step::Pass(first, second) => {
                for time in [first, second] {
                    self.clock.advance(step_of_time(time));
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
            Step::Refuse(refuses) => {
                self.line.refuse(refuses);
                self.eager.expire();
            }
            Step::Reset => self.both(AcpiPm::reset),
            Step::Save => {
                let state = self.eager.save();
                self.both(|pm| pm.restore(&state).expect("it was saved"));
                assert_eq!(self.eager.save(), state);
            }
            Step::Restore { timer, registers, gpes } => {
                let mut state = self.eager.save();
                state.timer = timer;
                [state.status, state.enable, state.control] = registers;
                state.gpe_status.copy_from_slice(&gpes[..2]);
                state.gpe_enable.copy_from_slice(&gpes[2..]);
                assert_eq!(self.eager.restore(&state), self.lazy.restore(&state));
            }
        }
    }

    fn check(&self) {
        let state = self.eager.save();
        let gpes = state.gpe_status.iter().zip(&state.gpe_enable);
        let events = state.status & state.enable != 0 || gpes.into_iter().any(|(status, enable)| status & enable != 0);
        let up = state.control & 1 != 0 && events;
        if !self.line.refuses() {
            assert_eq!(self.line.is_up(), up, "{state:x?}");
        }
        let deadline = self.eager.deadline();
        assert!(
            deadline.is_none_or(|deadline| deadline > self.clock.now() && !up),
            "{state:x?}"
        );
        assert_eq!(*self.next.0.lock().unwrap(), deadline, "the alarm was told another");
    }
}

fuzz_target!(|input: (bool, bool, Vec<Step>)| {
    let (narrow, acpi_mode, steps) = input;
    let machine = Machine::new(narrow, acpi_mode);
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
