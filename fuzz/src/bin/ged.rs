//! The generic event device: its line follows its events, a guest asks for no more than it wrote, and a state that was saved is taken back.
#![no_main]

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use devisor::platform::ged::{Ged, GedState, PowerRequest, REGISTERS_SIZE, SELECTOR_SIZE};
use devisor_fuzz::{Access, Outside};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Selector(Access),
    Registers(Access),
    PowerButton,
    SleepButton,
    Wake,
    Refuse(bool),
    Reset,
    Save,
    Restore { events: u32, sleep_type: u8, woken: bool },
}

fuzz_target!(|steps: Vec<Step>| {
    let line = Outside::default();
    let requests: Arc<Mutex<Vec<PowerRequest>>> = Arc::default();
    let asked = Arc::clone(&requests);
    let ged = Ged::new(line.clone(), move |request| asked.lock().unwrap().push(request));
    for step in &steps {
        match *step {
            Step::Selector(access) => access.run(&ged.selector(), SELECTOR_SIZE, 4),
            Step::Registers(access) => access.run(&ged.registers(), REGISTERS_SIZE, 1),
            Step::PowerButton => ged.press_power_button(),
            Step::SleepButton => ged.press_sleep_button(),
            Step::Wake => ged.wake(),
            Step::Refuse(refuses) => {
                line.refuse(refuses);
                // What was refused is told with the next change.
                let state = ged.save();
                ged.restore(&state).expect("it was saved");
            }
            Step::Reset => ged.reset(),
            Step::Save => {
                let state = ged.save();
                let other = Ged::new(Outside::default(), |_| unreachable!("nothing was asked for"));
                other.restore(&state).expect("it was saved");
                assert_eq!(other.save(), state);
                assert_eq!(other.interrupt().is_up(), state.events != 0);
            }
            Step::Restore {
                events,
                sleep_type,
                woken,
            } => {
                let before = ged.save();
                let state = GedState {
                    events,
                    sleep_type,
                    woken,
                };
                let expected = if ged.restore(&state).is_ok() { state } else { before };
                assert_eq!(ged.save(), expected);
            }
        }
        let state = ged.save();
        let requests = std::mem::take(&mut *requests.lock().unwrap());
        assert!(requests.len() <= 1 && (requests.is_empty() || matches!(step, Step::Registers(_))));
        if let [PowerRequest::Sleep(kind)] = requests[..] {
            assert_eq!(kind, state.sleep_type);
        }
        if !line.refuses() {
            assert_eq!(line.is_up(), state.events != 0, "{state:x?}");
        }
    }
});
