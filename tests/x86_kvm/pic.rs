//! The 8259 pair.

use devisor::{
    backends::irqchip::pic::{ChipState, InitStep, Irq, Pic, PicState},
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt},
};
use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pic_state};
use kvm_ioctls::VmFd;

use crate::{
    Random, STEPS, chip, guest,
    kvm_access::Access::{In, Out},
    vm,
};

fn pic(vm: &VmFd, chip_id: u32) -> kvm_pic_state {
    // SAFETY: the kernel has filled in the union's variant for the chip that was asked for.
    unsafe { chip(vm, chip_id).chip.pic }
}

fn set_pic(vm: &VmFd, chip_id: u32, state: &ChipState, elcr_mask: u8) {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    chip.chip.pic = kvm_pic_state {
        last_irr: state.lines,
        irr: state.irr,
        imr: state.imr,
        isr: state.isr,
        priority_add: state.first,
        irq_base: state.base,
        read_reg_select: state.read_isr.into(),
        poll: state.poll.into(),
        special_mask: state.special_mask.into(),
        init_state: 0,
        auto_eoi: state.auto_eoi.into(),
        rotate_on_auto_eoi: state.rotate_in_auto_eoi.into(),
        special_fully_nested_mode: state.special_fully_nested.into(),
        init4: state.wants_icw4.into(),
        elcr: state.elcr,
        elcr_mask,
    };
    vm.set_irqchip(&chip).unwrap();
}

fn random_chip(random: &mut Random, elcr_mask: u8) -> ChipState {
    ChipState {
        lines: 0,
        irr: 0,
        isr: random.byte() & random.byte() & random.byte(),
        imr: random.byte() & random.byte(),
        elcr: random.byte() & elcr_mask,
        base: random.byte() & 0xf8,
        step: InitStep::Done,
        single: false,
        wants_icw4: true,
        auto_eoi: random.one_in(2),
        special_fully_nested: random.one_in(2),
        rotate_in_auto_eoi: random.one_in(2),
        special_mask: false,
        poll: false,
        read_isr: random.one_in(2),
        first: random.byte() & 7,
    }
}

/// What is compared: IRR of both chips, in random settings of everything else. In the master's bit 2 shows what the slave
/// makes of its own IRR, masks, services and priorities.
///
/// Left out:
/// - the acknowledge cycle and the command words, which take a vCPU: `tests/x86_qemu.rs` has those;
/// - the special mask mode, which KVM stores and does not look at: QEMU does, there.
#[test]
fn the_8259_pair_requests_what_kvms_does() {
    let Some(vm) = vm() else { return };
    let mut random = Random(0x8259_8259);
    let mut cascaded = 0;
    for round in 0..STEPS / 20 {
        let state = PicState {
            master: random_chip(&mut random, 0xf8),
            slave: random_chip(&mut random, 0xde),
        };
        let ours = Pic::new(NoInterrupt);
        let lines: Vec<_> = (0..16).map(|irq| ours.level_line(Irq(irq)).ok()).collect();
        for gsi in 0..16 {
            vm.set_irq_line(gsi, false).unwrap();
        }
        // The slave first: with what it requested in the last round it would still reach the master.
        set_pic(&vm, KVM_IRQCHIP_PIC_SLAVE, &state.slave, 0xde);
        set_pic(&vm, KVM_IRQCHIP_PIC_MASTER, &state.master, 0xf8);
        ours.restore(&state).unwrap();
        for step in 0..20 {
            let irq = random.below(16);
            let up = random.one_in(2);
            // IRQ 2 is the slave's: no line.
            if let Some(line) = &lines[irq as usize] {
                vm.set_irq_line(irq, up).unwrap();
                match up {
                    true => line.trigger().unwrap(),
                    false => line.clear().unwrap(),
                }
            }
            let saved = ours.save();
            for (chip_id, chip) in [
                (KVM_IRQCHIP_PIC_MASTER, &saved.master),
                (KVM_IRQCHIP_PIC_SLAVE, &saved.slave),
            ] {
                let theirs = pic(&vm, chip_id);
                let when = || format!("ours and KVM's, round {round}, step {step}, chip {chip_id}: {state:x?}");
                assert_eq!(chip.irr, theirs.irr, "IRR, {}", when());
                assert_eq!(chip.lines, theirs.last_irr, "lines, {}", when());
                assert_eq!(chip.isr, theirs.isr, "ISR, {}", when());
            }
            cascaded += u32::from(saved.master.irr & 1 << 2 != 0);
        }
    }
    assert!(cascaded > 1000, "the slave has hardly requested anything");
}

const PORTS: [u16; 2] = [0x20, 0xa0];
const ELCR: u16 = 0x4d0;

/// The command words by access, in random settings: masks, every end of interrupt and rotation, what is read, ELCR, and the
/// initialization.
///
/// Left out:
/// - polls, which in KVM put nothing in service: QEMU's do, in `tests/x86_qemu.rs`;
/// - the special mask mode, as above;
/// - ICW1 while something is in service, which KVM keeps; while a line is up, which KVM forgets; and in rotation, which it
///   keeps;
/// - a change of ELCR while a line is up or a request latched: KVM keeps the request in either case.
#[test]
fn the_8259_pair_obeys_as_kvms_does() {
    let Some(mut guest) = guest() else { return };
    let mut random = Random(0x8259_0001);
    let (mut ended, mut initialized) = (0, 0);
    for round in 0..STEPS / 40 {
        let state = PicState {
            master: random_chip(&mut random, 0xf8),
            slave: random_chip(&mut random, 0xde),
        };
        let ours = Pic::new(NoInterrupt);
        let (chips, elcr) = ([ours.master(), ours.slave()], ours.elcr());
        let lines: Vec<_> = (0..16).map(|irq| ours.level_line(Irq(irq)).ok()).collect();
        let drive = |vm: &VmFd, irq: u32, up: bool| {
            let Some(line) = &lines[irq as usize] else { return };
            vm.set_irq_line(irq, up).unwrap();
            match up {
                true => line.trigger().unwrap(),
                false => line.clear().unwrap(),
            }
        };
        for irq in 0..16 {
            guest.vm.set_irq_line(irq, false).unwrap();
        }
        set_pic(&guest.vm, KVM_IRQCHIP_PIC_SLAVE, &state.slave, 0xde);
        set_pic(&guest.vm, KVM_IRQCHIP_PIC_MASTER, &state.master, 0xf8);
        ours.restore(&state).unwrap();
        let both = |guest: &mut crate::Guest, chip: usize, port: u64, value: u8| {
            guest.run(&[Out(PORTS[chip] + port as u16, value)]);
            chips[chip].write(port, &[value]);
        };
        for step in 0..40 {
            let chip = random.below(2) as usize;
            match random.below(16) {
                0..5 => {
                    let (irq, up) = (random.below(16), random.one_in(2));
                    drive(&guest.vm, irq, up);
                }
                5 => {
                    let mask = random.byte() & random.byte();
                    both(&mut guest, chip, 1, mask);
                }
                6..13 => {
                    let command = [0x20, 0x60, 0xa0, 0xe0, 0xc0, 0x40, 0x00, 0x80][random.below(8) as usize];
                    let before = ours.save();
                    both(&mut guest, chip, 0, command | random.below(8) as u8);
                    let after = ours.save();
                    ended += u32::from(before.master.isr != after.master.isr || before.slave.isr != after.slave.isr);
                }
                13 => {
                    let read = 0x0a | random.below(2) as u8;
                    both(&mut guest, chip, 0, read);
                }
                14 => {
                    // Nothing is in service, up or rotating: both begin anew.
                    (0..16).for_each(|irq| drive(&guest.vm, irq, false));
                    for chip in 0..2 {
                        (0..8).for_each(|input| both(&mut guest, chip, 0, 0x60 | input));
                        both(&mut guest, chip, 0, 0x00);
                    }
                    let icw4 = (random.below(16) << 1 & 0x12) as u8 | 1;
                    for chip in 0..2 {
                        both(&mut guest, chip, 0, 0x11);
                        let base = random.byte();
                        for word in [base, 4 >> chip, icw4] {
                            both(&mut guest, chip, 1, word);
                        }
                    }
                    for port in 0..2 {
                        let value = random.byte();
                        guest.run(&[Out(ELCR + port, value)]);
                        elcr.write(port.into(), &[value]);
                    }
                    initialized += 1;
                }
                _ => (),
            }
            let accesses = [0x20, 0x21, 0xa0, 0xa1, ELCR, ELCR + 1].map(In);
            let theirs: Vec<u8> = guest.run(&accesses).iter().map(|done| done.value as u8).collect();
            let read = |ports: &dyn BusDevice, port: u64| {
                let mut value = [0];
                ports.read(port, &mut value);
                value[0]
            };
            let [master, slave] = [0, 1].map(|chip| [0, 1].map(|port| read(&chips[chip], port)));
            let elcr = [0, 1].map(|port| read(&elcr, port));
            assert_eq!(
                [master, slave, elcr].concat(),
                theirs,
                "round {round}, step {step}, {:x?}",
                ours.save()
            );
            let saved = ours.save();
            for (chip_id, chip) in [
                (KVM_IRQCHIP_PIC_MASTER, &saved.master),
                (KVM_IRQCHIP_PIC_SLAVE, &saved.slave),
            ] {
                let theirs = pic(&guest.vm, chip_id);
                let when = || format!("ours and KVM's, round {round}, step {step}, chip {chip_id}: {chip:x?}");
                assert_eq!(
                    (chip.irr, chip.isr),
                    (theirs.irr, theirs.isr),
                    "IRR and ISR, {}",
                    when()
                );
                assert_eq!(chip.first, theirs.priority_add, "priority, {}", when());
                assert_eq!(chip.base, theirs.irq_base, "ICW2, {}", when());
            }
        }
    }
    assert!(
        ended > 200 && initialized > 100,
        "hardly anything was reached: {ended} {initialized}"
    );
}
