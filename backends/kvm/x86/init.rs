//! INIT and start-up of a vCPU whose local APIC is not the kernel's (SDM volume 3, section 10.1.1 and table 10-1).

use std::io;

use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

/// Caching: an INIT leaves these two bits of CR0 as they are. The third is always set.
const CR0_CD_NW: u64 = 3 << 29;
const CR0_ET: u64 = 1 << 4;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// The state after INIT, about to run from the reset vector. What INIT does not change stays: FPU, MSRs, IA32_APIC_BASE.
pub(super) fn init(vcpu: &VcpuFd) -> io::Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let data = segment(0, 0, 0x3, true);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cs = segment(0xf000, 0xffff_0000, 0xb, true);
    sregs.ldt = segment(0, 0, 0x2, false);
    sregs.tr = segment(0, 0, 0xb, false);
    let table = kvm_dtable {
        base: 0,
        limit: 0xffff,
        ..Default::default()
    };
    (sregs.gdt, sregs.idt) = (table, table);
    sregs.cr0 = sregs.cr0 & CR0_CD_NW | CR0_ET;
    (sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer) = (0, 0, 0, 0, 0);
    sregs.interrupt_bitmap = [0; 4];
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: 0xfff0,
        rflags: RFLAGS_RESERVED,
        // Family, model and stepping: a processor of the sixth family.
        rdx: 0x600,
        ..Default::default()
    })?;
    vcpu.set_debug_regs(&kvm_debugregs {
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        ..Default::default()
    })?;
    // Nothing of what was about to be injected is.
    let mut events = vcpu.get_vcpu_events()?;
    events.exception = Default::default();
    events.interrupt = Default::default();
    events.nmi = Default::default();
    Ok(vcpu.set_vcpu_events(&events)?)
}

/// Start-up: real mode, from the page that `vector` names.
pub(super) fn start_up(vcpu: &VcpuFd, vector: u8) -> io::Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.selector = u16::from(vector) << 8;
    sregs.cs.base = u64::from(vector) << 12;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = 0;
    Ok(vcpu.set_regs(&regs)?)
}

/// A segment of 64 KiB; `code_or_data`, or of the system.
fn segment(selector: u16, base: u64, type_: u8, code_or_data: bool) -> kvm_segment {
    kvm_segment {
        base,
        limit: 0xffff,
        selector,
        type_,
        present: 1,
        s: code_or_data.into(),
        ..Default::default()
    }
}
