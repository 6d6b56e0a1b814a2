//! The models of x86's controllers beside the kernel's own: the same seeded states, line changes and accesses to both, and
//! what both hold and read compared.
//!
//! Where no vCPU runs, the guest's part is played on the state: KVM_SET_IRQCHIP for KVM, register accesses or a restore for
//! ours. Where one does, it does the accesses that ours are given too. What KVM leaves out of its models stays out of the
//! sequence; each case says what and why.
#![cfg(all(feature = "irqchip", feature = "kvm", target_os = "linux", target_arch = "x86_64"))]

mod ioapic;
mod lapic;
mod pic;
mod pit;

#[path = "../support/kvm_access.rs"]
mod kvm_access;
#[path = "../support/skip.rs"]
mod skip;

use kvm_access::Guest;
use kvm_bindings::kvm_irqchip;
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

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u32) as usize]
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

/// One with a vCPU that does accesses.
fn guest() -> Option<Guest> {
    Guest::new()
        .inspect_err(|error| skipped(format_args!("/dev/kvm runs no guest: {error}")))
        .ok()
}
