//! An 8254 with what is around it: its clock, its line, its alarm and port B.

use devisor::{
    backends::irqchip::pit::{CounterPorts, Pit},
    bus::BusDevice,
    interrupt::level_from_fn,
    time::{Alarm, ManualClock},
};
use std::{
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

/// The first moment of a tick: 105 of them are 88 microseconds.
pub fn tick(ticks: u64) -> Duration {
    Duration::from_nanos((ticks * 88_000).div_ceil(105))
}

#[derive(Default)]
pub struct Deadline(pub Mutex<Option<Duration>>);

impl Alarm for Deadline {
    fn set(&self, deadline: Option<Duration>) {
        *self.0.lock().unwrap() = deadline;
    }
}

pub struct Machine {
    pub pit: Pit,
    pub ports: CounterPorts,
    pub clock: Arc<ManualClock>,
    pub alarm: Arc<Deadline>,
    /// What the line of counter 0 was told.
    pub heard: Arc<Mutex<Vec<bool>>>,
}

pub fn new() -> Machine {
    let clock = Arc::new(ManualClock::default());
    let alarm = Arc::new(Deadline::default());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let line = level_from_fn(move |up| {
        log.lock().unwrap().push(up);
        Ok(())
    });
    let pit = Pit::new(line, Arc::clone(&clock), Arc::clone(&alarm));
    Machine {
        ports: pit.counters(),
        pit,
        clock,
        alarm,
        heard,
    }
}

impl Machine {
    pub fn control(&self, word: u8) {
        self.ports.write(3, &[word]);
    }

    /// A control word for both bytes, and the count.
    pub fn start(&self, counter: u8, mode: u8, count: u16) {
        self.control(counter << 6 | 3 << 4 | mode << 1);
        self.write(counter, count);
    }

    pub fn write(&self, counter: u8, count: u16) {
        for byte in count.to_le_bytes() {
            self.ports.write(counter.into(), &[byte]);
        }
    }

    pub fn byte(&self, counter: u8) -> u8 {
        let mut data = [0];
        self.ports.read(counter.into(), &mut data);
        data[0]
    }

    pub fn latched(&self, counter: u8) -> u16 {
        self.control(counter << 6);
        u16::from_le_bytes([self.byte(counter), self.byte(counter)])
    }

    pub fn status(&self, counter: u8) -> u8 {
        self.control(0xe0 | 2 << counter);
        self.byte(counter)
    }

    pub fn out(&self, counter: u8) -> bool {
        self.status(counter) & 0x80 != 0
    }

    pub fn null_count(&self, counter: u8) -> bool {
        self.status(counter) & 0x40 != 0
    }

    pub fn at(&self, ticks: u64) {
        self.clock.advance_to(tick(ticks));
        self.pit.expire();
    }

    pub fn gate2(&self, up: bool) {
        self.pit.port_b().write(0, &[up.into()]);
    }

    pub fn heard(&self) -> Vec<bool> {
        mem::take(&mut self.heard.lock().unwrap())
    }

    /// OUT and the count of counter 2 at each of some ticks.
    pub fn trace(&self, ticks: std::ops::RangeInclusive<u64>) -> Vec<(bool, u16)> {
        ticks
            .map(|ticks| {
                self.at(ticks);
                (self.out(2), self.latched(2))
            })
            .collect()
    }
}

pub const HIGH: bool = true;
pub const LOW: bool = false;
