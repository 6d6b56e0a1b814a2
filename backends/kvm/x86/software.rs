//! No interrupt controller in the kernel: all of them are devisor's, and a vCPU is told what to take.

use std::{io, sync::Arc};

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL, Msrs, kvm_enable_cap,
    kvm_msr_entry,
};
use kvm_ioctls::{
    MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, ReadMsrExit, VcpuExit, VcpuFd, VmFd, WriteMsrExit,
};

use super::{Entry, finish_exit, init, inject, run_page::RunPage};
use crate::{
    backends::irqchip::{
        Vector,
        lapic::{CpuEvent, LocalApic, Pending, Request},
        pc::Pc,
    },
    bus::BusDevice,
};

const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
const IA32_APIC_BASE: u32 = 0x1b;
const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Prepares a VM without an irqchip for local APICs of devisor's: guests' accesses to IA32_APIC_BASE, IA32_TSC_DEADLINE and
/// the x2APIC MSRs come out (`KVM_CAP_X86_USER_SPACE_MSR`).
///
/// It takes the VM's one MSR filter. An access that KVM itself refuses comes out too, and [`X86Vcpu::run`](super::X86Vcpu::run)
/// hands it on with its `error` set, which leads to the #GP that it would have been.
///
/// # Errors
/// What KVM answers: it has no such capability.
pub fn prepare_software(vm: &VmFd) -> io::Result<()> {
    // The x2APIC MSRs cannot be filtered. Without a local APIC in the kernel they are invalid instead.
    let reasons = KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL;
    vm.enable_cap(&kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [reasons.into(), 0, 0, 0],
        ..Default::default()
    })?;
    let denied = |base| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base,
        msr_count: 1,
        bitmap: &[0],
    };
    let ranges = [denied(IA32_APIC_BASE), denied(IA32_TSC_DEADLINE)];
    Ok(vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)?)
}

/// A vCPU's side of it.
pub(super) struct Software {
    apic: LocalApic,
    board: Arc<Pc>,
    /// The guest has executed HLT, and nothing has ended that since.
    halted: bool,
    /// CR8 as the vCPU had it at the last exit, or was given since.
    cr8: u64,
    /// What the guest has written to IA32_TSC_DEADLINE in the last exit.
    deadline: Option<u64>,
    /// IA32_APIC_BASE is to be made known to KVM, whose CPUID shows whether there is a local APIC.
    base_changed: bool,
}

impl Software {
    pub(super) fn new(apic: LocalApic, board: Arc<Pc>) -> Self {
        Self {
            apic,
            board,
            halted: false,
            cr8: 0,
            deadline: None,
            base_changed: true,
        }
    }

    /// Before the guest is entered: sees to events and injects what it is to take.
    pub(super) fn enter(&mut self, vcpu: &mut VcpuFd, page: &RunPage) -> io::Result<Entry> {
        self.settle(vcpu)?;
        while let Some(event) = self.apic.next_event() {
            match event {
                CpuEvent::Init => {
                    finish_exit(vcpu, page, |_| ())?;
                    init::init(vcpu)?;
                }
                CpuEvent::StartUp(Vector(vector)) => init::start_up(vcpu, vector)?,
                CpuEvent::Nmi => {
                    vcpu.nmi()?;
                    continue;
                }
                // There is no firmware that could have a handler for it.
                CpuEvent::Smi => continue,
            }
            self.halted = false;
            page.is_no_longer_ready();
            self.base_changed = true;
        }
        if self.apic.waits_for_start_up() {
            return Ok(self.sleep(page));
        }
        if std::mem::take(&mut self.base_changed) {
            finish_exit(vcpu, page, |_| ())?;
            let mut sregs = vcpu.get_sregs()?;
            sregs.apic_base = self.base();
            vcpu.set_sregs(&sregs)?;
        }
        if page.is_ready_for_interrupt()
            && let Some(vector) = self.acknowledge()
        {
            inject(vcpu, page, vector)?;
            self.halted = false;
        }
        // Only KVM knows whether an NMI is blocked, and whether one has waited for the end of STI's shadow: behind the HLT.
        if self.halted && !takes_nmi(vcpu)? {
            return Ok(self.sleep(page));
        }
        self.halted = false;
        self.cr8 = self.apic.cr8();
        page.set_cr8(self.cr8);
        // Last of all: whatever is asked of the local APIC takes what was sent meanwhile, and the wake line falls, perhaps before it
        // was told to rise.
        let Pending { event, request } = self.apic.pending();
        page.request_interrupt_window(request);
        Ok(if event { Entry::Again } else { Entry::Guest })
    }

    /// The vCPU is to sleep, unless one of the looks before has taken what would have woken it.
    fn sleep(&self, page: &RunPage) -> Entry {
        let Pending { event, request } = self.apic.pending();
        match event || request && page.is_ready_for_interrupt() {
            true => Entry::Again,
            false => Entry::Sleep,
        }
    }

    /// The vector that the guest takes now, if its interrupts are enabled.
    fn acknowledge(&self) -> Option<Vector> {
        let pic = self.board.pic();
        // A message that asks for a vector of the 8259, which has none, is over with that; but something may have waited behind it,
        // for which nobody wakes the vCPU again.
        for _ in 0..2 {
            match self.apic.acknowledge()? {
                Request::Vector(vector) => return Some(vector),
                Request::External if pic.intr() => return Some(pic.acknowledge()),
                // LINT0 may hear of INTR's fall a moment later than the 8259 knows of it, whose vector would be spurious. When
                // it does, the vCPU is woken.
                Request::External => (),
            }
        }
        None
    }

    /// What the guest has written in the last exit, and what it takes the vCPU to carry out.
    pub(super) fn settle(&mut self, vcpu: &VcpuFd) -> io::Result<()> {
        if let Some(deadline) = self.deadline {
            // The counter that it is compared with is the kernel's, and the guest may have set that since.
            self.apic.set_tsc(read_tsc(vcpu)?);
            // It takes any value.
            let _ = self.apic.write_msr(IA32_TSC_DEADLINE, deadline);
            self.deadline = None;
        }
        Ok(())
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halted
    }

    /// All that the vCPU and its local APIC are was set from outside.
    pub(super) fn restart(&mut self, halted: bool, page: &RunPage) {
        self.halted = halted;
        self.deadline = None;
        self.base_changed = true;
        page.is_no_longer_ready();
    }

    fn base(&self) -> u64 {
        self.apic.read_msr(IA32_APIC_BASE).unwrap_or_default()
    }

    /// After each exit: CR8 is not trapped while it rises.
    pub(super) fn leave(&mut self, page: &RunPage) {
        let cr8 = page.cr8();
        if std::mem::replace(&mut self.cr8, cr8) != cr8 {
            // Four bits, or the guest would have had its #GP from KVM.
            let _ = self.apic.set_cr8(cr8);
        }
    }

    /// Takes what is the local APIC's. Returns what is not.
    pub(super) fn handle<'a>(&mut self, exit: VcpuExit<'a>) -> Option<VcpuExit<'a>> {
        match exit {
            VcpuExit::Hlt => self.halted = true,
            VcpuExit::IrqWindowOpen | VcpuExit::SetTpr => (),
            VcpuExit::MmioRead(address, data) => match self.apic.page_offset(address) {
                Some(offset) => self.apic.read(offset, data),
                None => return Some(VcpuExit::MmioRead(address, data)),
            },
            VcpuExit::MmioWrite(address, data) => match self.apic.page_offset(address) {
                Some(offset) => self.apic.write(offset, data),
                None => return Some(VcpuExit::MmioWrite(address, data)),
            },
            VcpuExit::X86Rdmsr(exit) => return self.read_msr(exit),
            VcpuExit::X86Wrmsr(exit) => return self.write_msr(exit),
            exit => return Some(exit),
        }
        None
    }

    fn read_msr<'a>(&self, exit: ReadMsrExit<'a>) -> Option<VcpuExit<'a>> {
        *exit.error = 1;
        if !LocalApic::has_msr(exit.index) {
            return Some(VcpuExit::X86Rdmsr(exit));
        }
        if let Ok(value) = self.apic.read_msr(exit.index) {
            (*exit.data, *exit.error) = (value, 0);
        }
        None
    }

    fn write_msr<'a>(&mut self, exit: WriteMsrExit<'a>) -> Option<VcpuExit<'a>> {
        *exit.error = 1;
        match exit.index {
            index if !LocalApic::has_msr(index) => return Some(VcpuExit::X86Wrmsr(exit)),
            IA32_TSC_DEADLINE => {
                self.deadline = Some(exit.data);
                *exit.error = 0;
            }
            index if self.apic.write_msr(index, exit.data).is_ok() => {
                self.base_changed |= index == IA32_APIC_BASE;
                *exit.error = 0;
            }
            _ => (),
        }
        None
    }
}

/// Whether an NMI is about to be taken.
fn takes_nmi(vcpu: &VcpuFd) -> io::Result<bool> {
    let nmi = vcpu.get_vcpu_events()?.nmi;
    Ok(nmi.pending != 0 && nmi.masked == 0)
}

/// The guest's time-stamp counter.
fn read_tsc(vcpu: &VcpuFd) -> io::Result<u64> {
    let entry = kvm_msr_entry {
        index: IA32_TIME_STAMP_COUNTER,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| io::ErrorKind::OutOfMemory)?;
    match vcpu.get_msrs(&mut msrs)? {
        1 => Ok(msrs.as_slice()[0].data),
        _ => Err(io::Error::other("KVM does not tell the time-stamp counter")),
    }
}
