//! Save and restore.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        Vector,
        pic::{Irq, Pic, PicState, PicStateError},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt},
};
use proptest::prelude::*;

#[test]
fn everything_that_the_guest_can_see_survives_save_and_restore() {
    let guest = with(SFNM);
    guest.level_triggered(11);
    let line = guest.line(11);
    line.trigger().unwrap();
    assert_eq!(guest.take(), Some(0x2b));
    guest.pulse(4);
    guest.pulse(9);
    guest.master.write(1, &[0x80]);
    for word in [SET_PRIORITY | 6, SPECIAL_MASK, READ_ISR, POLL] {
        guest.command(word);
    }
    guest.slave.write(0, &[0x11]);
    let state = guest.pic.save();
    let other = fresh();
    other.pic.restore(&state).unwrap();
    assert_eq!(other.pic.save(), state);
    assert_eq!(other.pic.intr(), guest.pic.intr());
}

#[test]
fn a_restore_replays_no_edge_and_loses_none() {
    let guest = new();
    let line = guest.line(5);
    line.trigger().unwrap();
    assert_eq!(guest.take(), Some(0x25));
    guest.command(EOI);
    let state = guest.pic.save();
    // The device before, and the device after the controller.
    for before in [true, false] {
        let other = new();
        let line = other.line(5);
        let late = other.line(6);
        if before {
            line.trigger().unwrap();
            late.trigger().unwrap();
        }
        other.pic.restore(&state).unwrap();
        if !before {
            line.trigger().unwrap();
            late.trigger().unwrap();
        }
        assert_eq!(other.take(), Some(0x26), "this one is new");
        other.command(EOI);
        assert_eq!(other.take(), None);
        line.clear().unwrap();
        line.trigger().unwrap();
        assert_eq!(other.take(), Some(0x25));
    }
}

#[test]
fn a_state_that_no_guest_could_have_brought_about_is_refused_and_changes_nothing() {
    let guest = new();
    guest.pulse(3);
    let good = guest.pic.save();
    let bits = |chip, field, value, accepted| PicStateError::Bits {
        chip,
        field,
        value,
        accepted,
    };
    type Change = fn(&mut PicState);
    let cases: [(Change, PicStateError); 7] = [
        (|s| s.master.lines = 4, bits("master", "lines", 4, 0xfb)),
        (|s| s.master.elcr = 4, bits("master", "ELCR", 4, 0xf8)),
        (|s| s.slave.elcr = 1, bits("slave", "ELCR", 1, 0xde)),
        (|s| s.slave.base = 9, bits("slave", "ICW2", 9, 0xf8)),
        (|s| s.slave.first = 8, bits("slave", "highest priority", 8, 7)),
        (
            |s| (s.slave.elcr, s.slave.irr) = (2, 2),
            PicStateError::Level {
                chip: "slave",
                irr: 2,
                lines: 0,
                elcr: 2,
            },
        ),
        (
            |s| (s.slave.elcr, s.slave.lines) = (2, 2),
            PicStateError::Level {
                chip: "slave",
                irr: 0,
                lines: 2,
                elcr: 2,
            },
        ),
    ];
    for (change, error) in cases {
        let mut state = good.clone();
        change(&mut state);
        assert_eq!(guest.pic.restore(&state), Err(error));
        assert_eq!(guest.pic.save(), good);
    }
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_and_lines_answers_and_leaves_a_state_that_can_be_restored(
        steps in prop::collection::vec((0..9u8, 0..16u8, prop_oneof![0..4u64, any::<u64>()], any::<[u8; 9]>(), 0..10usize), 1..200)
    ) {
        let guest = new();
        let pic = &guest.pic;
        let lines: Vec<_> = (0..16).filter_map(|irq| pic.level_line(Irq(irq)).ok()).collect();
        for (what, irq, offset, mut data, len) in steps {
            let data = &mut data[..len.min(9)];
            let line = &lines[usize::from(irq) % lines.len()];
            match what {
                0 => guest.master.write(offset, data),
                1 => guest.slave.write(offset, data),
                2 => pic.elcr().write(offset, data),
                3 => guest.master.read(offset, data),
                4 => guest.slave.read(offset, data),
                5 => pic.elcr().read(offset, data),
                6 => line.trigger().unwrap(),
                7 => line.clear().unwrap(),
                _ => {
                    let spurious = !pic.intr();
                    let Vector(vector) = pic.acknowledge();
                    prop_assert!(!spurious || vector & 7 == 7);
                }
            }
            let state = pic.save();
            let other = Pic::new(NoInterrupt);
            prop_assert_eq!(other.restore(&state), Ok(()));
            prop_assert_eq!(other.intr(), pic.intr());
            prop_assert_eq!(other.save(), state);
        }
    }
}
