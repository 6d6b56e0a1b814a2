//! Gives a vCPU its CPUID and the registers that it begins with.

use devisor::backends::irqchip::lapic::ApicId;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{
    load::{Entry, GDT},
    options::{Error, Feature, Register},
};

/// Selectors as the Linux boot protocol wants them.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

/// What KVM can do but for what is `hidden`, as CPU `id` of `cpus` sees it.
pub fn cpuid(kvm: &Kvm, id: ApicId, cpus: u32, hidden: &[Feature]) -> Result<CpuId, Error> {
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const HYPERVISOR_LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    // KVM's own leaves offer what needs a local APIC in the kernel: the same for all modes is none.
    let entries = supported
        .as_slice()
        .iter()
        .filter(|entry| !HYPERVISOR_LEAVES.contains(&entry.function));
    let mut entries: Vec<_> = entries.copied().collect();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | cpus << 16 | id.0 << 24;
                entry.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
            }
            0xb | 0x1f => entry.edx = id.0,
            _ => (),
        }
        hide(entry, hidden);
    }
    CpuId::from_entries(&entries).map_err(|_| "KVM has too much CPUID".into())
}

fn hide(entry: &mut kvm_cpuid_entry2, hidden: &[Feature]) {
    if entry.function == 0xd && hidden.contains(&Feature::XSAVE) {
        // What it saves: nothing.
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
    }
    for feature in hidden {
        if (feature.leaf, feature.subleaf) == (entry.function, entry.index) {
            *register(entry, feature.register) &= !(1 << feature.bit);
        }
    }
}

fn register(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Register::Ebx => &mut entry.ebx,
        Register::Ecx => &mut entry.ecx,
        Register::Edx => &mut entry.edx,
    }
}

/// The first CPU begins at `entry`. The others wait for a start-up message.
pub fn begin(vcpu: &VcpuFd, entry: Entry, memory: &GuestMemoryMmap) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs()?;
    let mut regs = kvm_regs {
        rflags: 1 << 1,
        ..Default::default()
    };
    match entry {
        Entry::Real { ip } => {
            (sregs.cs.base, sregs.cs.selector) = (0, 0);
            regs.rip = ip.into();
        }
        Entry::Protected { eip, eax, ebx, esi } => {
            let table = [0, 0, descriptor(0xb), descriptor(0x3)];
            for (at, descriptor) in (GDT..).step_by(8).zip(table) {
                memory.write_obj(descriptor, GuestAddress(at))?;
            }
            sregs.gdt = kvm_dtable {
                base: GDT,
                limit: (size_of_val(&table) - 1) as u16,
                ..Default::default()
            };
            sregs.cs = flat(CODE, 0xb);
            let data = flat(DATA, 0x3);
            (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
            sregs.cr0 |= 1; // Protection Enable
            (regs.rip, regs.rax) = (eip.into(), eax.into());
            (regs.rbx, regs.rsi) = (ebx.into(), esi.into());
        }
    }
    vcpu.set_sregs(&sregs)?;
    Ok(vcpu.set_regs(&regs)?)
}

/// All of the 4 GiB, as a segment register has it.
fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// The same in memory.
fn descriptor(type_: u64) -> u64 {
    0x00cf_9000_0000_ffff | type_ << 40
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_gone_from_its_leaf_and_nothing_else_is() {
        let hidden = [Feature::X2APIC, Feature::XSAVE];
        let all = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        for (function, index, ecx) in [(1, 0, !(1 << 21 | 1 << 26)), (7, 0, u32::MAX), (0xd, 1, 0)] {
            let mut entry = all(function, index);
            hide(&mut entry, &hidden);
            assert_eq!(entry.ecx, ecx, "{function:#x}");
            assert_eq!(entry.edx, if function == 0xd { 0 } else { u32::MAX }, "{function:#x}");
        }
    }
}
