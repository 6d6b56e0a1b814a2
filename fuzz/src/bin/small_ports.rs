//! The devices that are a port or two: debug console, pvpanic, reset control and system control. What they tell follows from what is written.
#![no_main]

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    interrupt::level_from_fn,
    platform::{
        debugcon::DebugCon,
        pvpanic::{GuestEvents, Pvpanic},
        reset_control::ResetControl,
        system_control::SystemControl,
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
    SystemControl(Access),
    WriteA(u8),
    ResetA,
    RestoreA(u8),
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
    let (a20, inits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (line, count) = (Arc::clone(&a20), Arc::clone(&inits));
    let line = level_from_fn(move |up| {
        assert_ne!(line.swap(up, Relaxed), up, "it hears changes alone");
        Ok(())
    });
    let system = SystemControl::new(line, move || _ = count.fetch_add(1, Relaxed));
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
            Step::SystemControl(access) => access.run(&system, 1, 1),
            Step::WriteA(value) => {
                let (was, before) = (system.save(), inits.load(Relaxed));
                system.write(0, &[value]);
                assert_eq!(inits.load(Relaxed) - before, u64::from(value & !was & 1));
                assert_eq!(system.save(), value & 0x03);
            }
            Step::ResetA => system.reset(),
            Step::RestoreA(value) => {
                let before = inits.load(Relaxed);
                assert_eq!(system.restore(value).is_ok(), value & 0xfc == 0);
                assert_eq!(inits.load(Relaxed), before);
            }
        }
        assert_eq!(a20.load(Relaxed), system.save() & 2 != 0);
    }
});
