//! The kernel's interrupt controllers as a guest's accesses find them: one vCPU on /dev/kvm with a program that does, one
//! after the other, the port and memory accesses that it is given, and leaves what it read.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{error::Error, slice};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// One access of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A byte from a port.
    In(u16),
    /// A byte to a port.
    Out(u16, u8),
    /// 32 bits from memory.
    Read(u32),
    /// 32 bits to memory.
    Write(u32, u32),
}

/// What came of an access, and when it was: between the two readings of the time-stamp counter.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// What was read; of writes, what was written.
    pub value: u32,
    pub before: u64,
    pub after: u64,
}

/// A VM with the kernel's controllers and timer, and the vCPU that does the accesses.
pub struct Guest {
    pub vm: VmFd,
    pub vcpu: VcpuFd,
    memory: GuestMemoryMmap,
}

/// Where the program is, and the accesses, of which each has 32 bytes: kind, address, value, nothing, then the two times.
const CODE: u32 = 0x1000;
const ACCESSES: u32 = 0x2000;
const MEMORY: usize = 0x1_0000;
/// As many accesses fit, with the zero that ends them.
pub const AT_ONCE: usize = (MEMORY - ACCESSES as usize) / 32 - 1;
/// The program says that it has done them.
const PORT_DONE: u16 = 0xd00;

// 32-bit code, copied to `CODE`: position independent.
std::arch::global_asm!(
    ".code32",
    "devisor_access_start:",
    "10: mov esi, {accesses}",
    "11: mov ecx, [esi]",
    "    cmp ecx, 0",
    "    je 19f",
    "    rdtsc",
    "    mov [esi + 16], eax",
    "    mov [esi + 20], edx",
    "    mov edx, [esi + 4]",
    "    mov eax, [esi + 8]",
    "    cmp ecx, 1",
    "    je 12f",
    "    cmp ecx, 2",
    "    je 13f",
    "    cmp ecx, 3",
    "    je 14f",
    "    mov [edx], eax",
    "    jmp 18f",
    "12: xor eax, eax",
    "    in al, dx",
    "    jmp 18f",
    "13: out dx, al",
    "    jmp 18f",
    "14: mov eax, [edx]",
    "18: mov [esi + 8], eax",
    "    rdtsc",
    "    mov [esi + 24], eax",
    "    mov [esi + 28], edx",
    "    add esi, 32",
    "    jmp 11b",
    "19: mov dx, {done}",
    "    out dx, al",
    "    jmp 10b",
    "devisor_access_end:",
    ".code64",
    accesses = const ACCESSES,
    done = const PORT_DONE,
);

unsafe extern "C" {
    static devisor_access_start: u8;
    static devisor_access_end: u8;
}

impl Guest {
    /// # Errors
    /// Why there is none here.
    pub fn new() -> Result<Self, Box<dyn Error>> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])?;
        let start = &raw const devisor_access_start;
        // SAFETY: the program is one piece of this executable, from the one symbol to the other, and nobody writes to it.
        let code = unsafe { slice::from_raw_parts(start, (&raw const devisor_access_end).offset_from_unsigned(start)) };
        memory.write_slice(code, GuestAddress(CODE.into()))?;

        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        };
        // SAFETY: the memory is mapped, of that size, and lives as long as the VM: both are in `Guest`.
        unsafe { vm.set_user_memory_region(region)? };
        let vcpu = vm.create_vcpu(0)?;
        // Without it the local APIC has no periodic timer.
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        reset(&vcpu)?;
        Ok(Self { vm, vcpu, memory })
    }

    /// Does the accesses, in order.
    ///
    /// # Panics
    /// If the vCPU does anything else.
    pub fn run(&mut self, accesses: &[Access]) -> Vec<Done> {
        accesses.chunks(AT_ONCE).flat_map(|some| self.run_some(some)).collect()
    }

    /// Does one access.
    pub fn one(&mut self, access: Access) -> u32 {
        self.run(&[access])[0].value
    }

    fn run_some(&mut self, accesses: &[Access]) -> Vec<Done> {
        let at = |index: usize| GuestAddress(u64::from(ACCESSES) + index as u64 * 32);
        for (index, access) in accesses.iter().enumerate() {
            let words = match *access {
                Access::In(port) => [1, port.into(), 0],
                Access::Out(port, value) => [2, port.into(), value.into()],
                Access::Read(address) => [3, address, 0],
                Access::Write(address, value) => [4, address, value],
            };
            self.memory.write_obj::<[u32; 3]>(words, at(index)).unwrap();
        }
        self.memory.write_obj(0_u32, at(accesses.len())).unwrap();
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(PORT_DONE, _)) => break,
                Ok(exit) => panic!("{exit:?}, among {accesses:x?}"),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => panic!("KVM_RUN: {error}"),
            }
        }
        (0..accesses.len())
            .map(|index| {
                let words: [u32; 8] = self.memory.read_obj(at(index)).unwrap();
                let time = |low: usize| u64::from(words[low]) | u64::from(words[low + 1]) << 32;
                Done {
                    value: words[2],
                    before: time(4),
                    after: time(6),
                }
            })
            .collect()
    }
}

/// 32-bit protected mode, flat segments, interrupts off.
fn reset(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let flat = |selector: u16, type_: u8| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = flat(0x08, 0xb);
    let data = flat(0x10, 0x3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE.into();
    regs.rflags = 2;
    vcpu.set_regs(&regs)
}
