//! The PL061: its lines follow its registers, and a state that was saved is taken back and goes on the same.
#![no_main]

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    platform::pl061::{PINS, Pl061, Pl061State},
};
use devisor_fuzz::{Access, Outside};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Data(Access),
    Registers(Access),
    Set { register: u8, value: u8 },
    Inputs(u8, bool),
    Refuse(u8, bool),
    Reset,
    Restore([u8; 9]),
}

fuzz_target!(|steps: Vec<Step>| {
    let interrupt = Outside::default();
    let outputs: [Outside; PINS] = Default::default();
    let gpio = Pl061::new(interrupt.clone(), outputs.clone());
    let register = |offset: u64| {
        let mut data = [0; 4];
        gpio.read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    for step in &steps {
        match *step {
            Step::Data(access) => access.run(&gpio, 0x400, 4),
            Step::Registers(access) => access.run(&gpio, 0x1000, 4),
            Step::Set { register, value } => gpio.write(0x400 + 4 * u64::from(register % 9), &[value]),
            Step::Inputs(pins, up) => gpio.set_inputs(pins, up),
            Step::Refuse(line, refuses) => {
                outputs.get(usize::from(line)).unwrap_or(&interrupt).refuse(refuses);
                register(0x400);
            }
            Step::Reset => gpio.reset(),
            Step::Restore([inputs, data, dir, is, ibe, iev, ie, afsel, edges]) => gpio.restore(&Pl061State {
                inputs,
                data,
                dir,
                is,
                ibe,
                iev,
                ie,
                afsel,
                edges,
            }),
        }
        let state = gpio.save();
        let other = Pl061::new(Outside::default(), Default::default());
        other.restore(&state);
        assert_eq!(other.save(), state);
        if !interrupt.refuses() {
            assert_eq!(interrupt.is_up(), register(0x418) != 0, "{state:x?}");
            assert_eq!(other.interrupt().is_up(), interrupt.is_up());
        }
        for (pin, output) in outputs.iter().enumerate() {
            if !output.refuses() {
                assert_eq!(output.is_up(), state.data & state.dir & 1 << pin != 0, "{state:x?}");
            }
        }
    }
});
