//! The devices that are a port or two: debug console, pvpanic and reset control. What they tell follows from what is written.
#![no_main]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    platform::{
        debugcon::DebugCon,
        pvpanic::{GuestEvents, Pvpanic},
        reset_control::ResetControl,
    },
};
use devisor_fuzz::{Access, Screen, Takes};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    DebugCon(Access),
    Print(u8),
    Takes(Takes),
    Pvpanic(Access),
    ResetControl(Access),
    Write(u8),
    Reset,
    Restore(u8),
}

fuzz_target!(|input: (bool, bool, bool, Vec<Step>)| {
    let (panicked, crash_loaded, shutdown, steps) = input;
    let screen = Screen::default();
    let debugcon = DebugCon::new(screen.clone());
    let supported = GuestEvents {
        panicked,
        crash_loaded,
        shutdown,
    };
    let pvpanic = Pvpanic::new(supported, move |events| {
        assert_ne!(events, GuestEvents::default());
        assert!(!events.panicked || panicked);
        assert!(!events.crash_loaded || crash_loaded);
        assert!(!events.shutdown || shutdown);
    });
    let resets = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&resets);
    let control = ResetControl::new(move |_| _ = count.fetch_add(1, Relaxed));
    for step in &steps {
        match *step {
            Step::DebugCon(access) => access.run(&debugcon, 1, 1),
            Step::Print(byte) => {
                let lost = debugcon.lost();
                screen.shown();
                debugcon.write(0, &[byte]);
                assert_eq!(screen.shown().len() as u64 + debugcon.lost() - lost, 1);
            }
            Step::Takes(takes) => screen.takes(takes),
            Step::Pvpanic(access) => access.run(&pvpanic, 1, 1),
            Step::ResetControl(access) => access.run(&control, 4, 1),
            Step::Write(value) => {
                let (was, before) = (control.save(), resets.load(Relaxed));
                control.write(1, &[value]);
                let rises = value & !was & 4 != 0;
                assert_eq!(resets.load(Relaxed) - before, u64::from(rises));
                assert_eq!(control.save(), value & 0x0e);
            }
            Step::Reset => control.reset(),
            Step::Restore(value) => assert_eq!(control.restore(value).is_ok(), value & 0xf1 == 0),
        }
    }
});
