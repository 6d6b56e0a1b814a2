//! IOAPIC and 8259 pair beside the kernel's own: the same seeded states and line changes to both, the states compared.
//!
//! No vCPU runs, so the guest's part is played on the state: KVM_SET_IRQCHIP for KVM, register accesses or a restore for
//! ours. What KVM leaves out of its models stays out of the sequence; each case says what and why.
#![cfg(all(feature = "irqchip", feature = "kvm", target_os = "linux", target_arch = "x86_64"))]

#[path = "support/skip.rs"]
mod skip;

use std::io;

use devisor::{
    backends::irqchip::{
        Vector,
        ioapic::{IoApic, IoApicConfig, Pin},
        pic::{ChipState, InitStep, Irq, Pic, PicState},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, NoInterrupt, RequesterId},
};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state, kvm_irqchip, kvm_pic_state,
};
use kvm_ioctls::{Kvm, VmFd};
use skip::skipped;

const STEPS: usize = 20_000;

/// The same numbers in every run: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % u64::from(bound)) as u32
    }

    fn one_in(&mut self, bound: u32) -> bool {
        self.below(bound) == 0
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

/// A VM with the kernel's controllers.
fn vm() -> Option<VmFd> {
    let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).and_then(|vm| {
        vm.create_irq_chip()?;
        Ok(vm)
    });
    match vm {
        Ok(vm) => Some(vm),
        Err(error) => {
            skipped(format_args!("/dev/kvm gives no VM with an irqchip: {error}"));
            None
        }
    }
}

fn chip(vm: &VmFd, chip_id: u32) -> kvm_irqchip {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).unwrap();
    chip
}

// IOAPIC.

const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const MASKED: u64 = 1 << 16;

fn ioapic(vm: &VmFd) -> kvm_ioapic_state {
    // SAFETY: the kernel has filled in the union's variant for the chip that was asked for.
    unsafe { chip(vm, KVM_IRQCHIP_IOAPIC).chip.ioapic }
}

fn change_ioapic(vm: &VmFd, change: impl FnOnce(&mut kvm_ioapic_state)) {
    let mut chip = chip(vm, KVM_IRQCHIP_IOAPIC);
    // SAFETY: as above.
    change(unsafe { &mut chip.chip.ioapic });
    vm.set_irqchip(&chip).unwrap();
}

struct Anywhere;

impl MsiSink for Anywhere {
    fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
        Ok(())
    }
}

/// What is compared: each entry with Remote IRR, and the lines of level-sensitive ones (for those, KVM's `irr` is the level).
///
/// Left out:
/// - a change of the entry while the line of an edge is up: KVM's state does not have that level any more;
/// - active low polarity, which KVM does not look at, by decision;
/// - delivery modes other than fixed and lowest priority, for which KVM sets Remote IRR although no EOI will come;
/// - registers by access, which take a vCPU: an entry that the guest writes and the EOI are changes of the state here.
#[test]
fn the_ioapic_ends_in_the_same_state_as_kvms() {
    let Some(vm) = vm() else { return };
    let ours = IoApic::new(IoApicConfig::default(), Anywhere).unwrap();
    let lines: Vec<_> = (0..24).map(|pin| ours.level_line(Pin(pin)).unwrap()).collect();
    let write = |index: u32, value: u32| {
        ours.write(0x00, &index.to_le_bytes());
        ours.write(0x10, &value.to_le_bytes());
    };
    let mut random = Random(0x10a9_1c00);
    let mut in_service = 0;
    for step in 0..STEPS {
        let pin = random.below(24);
        match random.below(8) {
            0..5 => {
                let up = random.one_in(2);
                vm.set_irq_line(pin, up).unwrap();
                match up {
                    true => lines[pin as usize].trigger().unwrap(),
                    false => lines[pin as usize].clear().unwrap(),
                }
            }
            5 | 6 => {
                if ours.save().pins[pin as usize].entry & LEVEL == 0 {
                    vm.set_irq_line(pin, false).unwrap();
                    lines[pin as usize].clear().unwrap();
                }
                let mut entry = u64::from(random.byte()) << 56
                    | u64::from((0x30 + random.below(8)) | random.below(2) << 8 | random.below(2) << 11);
                entry |= if random.one_in(3) { MASKED } else { 0 };
                entry |= if random.one_in(3) { 0 } else { LEVEL };
                change_ioapic(&vm, |state| {
                    // SAFETY: every bit pattern is an entry.
                    let bits = unsafe { &mut state.redirtbl[pin as usize].bits };
                    *bits = entry | *bits & if entry & LEVEL != 0 { REMOTE_IRR } else { 0 };
                });
                write(0x11 + 2 * pin, (entry >> 32) as u32);
                // One write of the whole entry, as the state is: the high half alone changes nothing that shows.
                write(0x10 + 2 * pin, entry as u32);
            }
            _ => {
                let vector = random.below(8) as u8 + 0x30;
                change_ioapic(&vm, |state| {
                    for entry in &mut state.redirtbl {
                        // SAFETY: as above.
                        let bits = unsafe { &mut entry.bits };
                        if *bits as u8 == vector {
                            *bits &= !REMOTE_IRR;
                        }
                    }
                });
                ours.eoi(Vector(vector));
            }
        }
        let theirs = ioapic(&vm);
        for (pin, state) in ours.save().pins.iter().enumerate() {
            // SAFETY: as above.
            let bits = unsafe { theirs.redirtbl[pin].bits };
            in_service += u32::from(bits & REMOTE_IRR != 0);
            assert_eq!(state.entry, bits, "entry {pin}, ours and KVM's, step {step}");
            if bits & LEVEL != 0 {
                let up = theirs.irr >> pin & 1 != 0;
                assert_eq!(state.line, up, "line {pin}, ours and KVM's, step {step}");
            }
        }
    }
    assert!(in_service > 1000, "the sequence has reached hardly anything");
}

// 8259 pair.

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
