//! A VM with guest code, and what runs its vCPUs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::skip::skipped;
use devisor::{
    backends::{
        irqchip::{
            CpuId,
            lapic::{ApicId, LocalApicParts, LocalApics, LocalApicsConfig},
            pc::{Pc, PcConfig},
        },
        kvm::{
            KvmIrqs,
            x86::{Exit, SplitIrqchip, VcpuWaker, X86Vcpu, prepare_software},
        },
    },
    bus::{Bus, BusDevice},
    interrupt::{MsiMessage, NoInterrupt},
    time::ManualClock,
};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

pub const MEMORY: usize = 1 << 16;

/// Where the guest begins.
pub const CODE: u64 = 0x1000;

/// Longer than anything here takes, by far.
pub const PATIENCE: Duration = Duration::from_secs(5);

pub struct Machine {
    pub vm: Arc<VmFd>,
    pub memory: GuestMemoryMmap,
}

impl Machine {
    pub fn new() -> Option<Self> {
        let vm = Kvm::new().and_then(|kvm| kvm.create_vm());
        let vm = vm.inspect_err(|error| skipped(format_args!("/dev/kvm gives no VM: {error}")));
        let vm = Arc::new(vm.ok()?);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the mapping has that many bytes, and lives as long as the VM.
        unsafe { vm.set_user_memory_region(region).unwrap() };
        Some(Self { vm, memory })
    }

    pub fn put(&self, at: u64, code: &[u8]) {
        self.memory.write_slice(code, GuestAddress(at)).unwrap();
    }

    /// In real mode: the handler of `vector` is at `at`.
    pub fn handle(&self, vector: u64, at: u16, code: &[u8]) {
        self.put(vector * 4, &[at.to_le_bytes(), [0, 0]].concat());
        self.put(at.into(), code);
    }

    /// Local APICs for `cpus`, and the last of the vCPUs, which is to run.
    pub fn software(&self, cpus: u32) -> (LocalApics, X86Vcpu) {
        let (apics, _, vcpu) = self.software_with_board(cpus);
        (apics, vcpu)
    }

    pub fn software_with_board(&self, cpus: u32) -> (LocalApics, Arc<Pc>, X86Vcpu) {
        prepare_software(&self.vm).unwrap();
        let clock = Arc::new(ManualClock::default());
        let wakers: Vec<_> = (0..cpus).map(|_| VcpuWaker::new().unwrap()).collect();
        let parts = (0..).zip(&wakers).map(|(id, waker)| LocalApicParts {
            id: ApicId(id),
            wake: Box::new(waker.clone()),
            alarm: Box::new(()),
        });
        let apics = LocalApics::new(LocalApicsConfig::default(), clock.clone(), parts.collect()).unwrap();
        let board = Arc::new(Pc::with_local_apics(PcConfig::default(), &apics, clock, ()).unwrap());
        let last = cpus - 1;
        let apic = apics.cpu(CpuId(last)).unwrap();
        apic.write(0xf0, &0x1ff_u32.to_le_bytes());
        let fd = self.vm.create_vcpu(last.into()).unwrap();
        begin(&fd);
        let vcpu = X86Vcpu::software(fd, wakers[last as usize].clone(), apic, Arc::clone(&board)).unwrap();
        (apics, board, vcpu)
    }

    /// A board before local APICs in the kernel.
    pub fn split_irqchip(&self) -> Option<(SplitIrqchip, Arc<Pc>)> {
        let irqs = KvmIrqs::new(Arc::clone(&self.vm), 1..=23).unwrap();
        let irqchip = SplitIrqchip::new(&irqs, PcConfig::default());
        let irqchip = irqchip.inspect_err(|error| skipped(format_args!("KVM has no split irqchip: {error}")));
        let irqchip = irqchip.ok()?;
        let board = irqchip.board(NoInterrupt, ManualClock::default(), ()).unwrap();
        Some((irqchip, board))
    }

    /// A board with vectors from 0x20 on, and the vCPU.
    pub fn split(&self) -> Option<(Arc<Pc>, X86Vcpu)> {
        let (irqchip, board) = self.split_irqchip()?;
        let (mut memory, mut ports) = (Bus::new(), Bus::new());
        board.plug(&mut memory, &mut ports).unwrap();
        for (port, word) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] {
            ports.write(port, &[word]).unwrap();
        }
        let vcpu = X86Vcpu::split(self.vcpu_with_local_apic(), VcpuWaker::new().unwrap(), &irqchip).unwrap();
        Some((board, vcpu))
    }

    /// All controllers in the kernel, wired as a PC's.
    pub fn kernel(&self) -> Option<(KvmIrqs, X86Vcpu)> {
        let created = self.vm.create_irq_chip();
        created
            .inspect_err(|error| skipped(format_args!("KVM has no irqchip: {error}")))
            .ok()?;
        let irqs = KvmIrqs::new(Arc::clone(&self.vm), 1..=23).unwrap();
        irqs.wire_as_pc().unwrap();
        let vcpu = X86Vcpu::kernel(self.vcpu_with_local_apic(), VcpuWaker::new().unwrap()).unwrap();
        Some((irqs, vcpu))
    }

    /// The kernel's: enabled, and LINT0 lets the 8259's requests through.
    pub fn vcpu_with_local_apic(&self) -> VcpuFd {
        let fd = self.vm.create_vcpu(0).unwrap();
        set_local_apic(&fd, &[(0xf0, 0x1ff), (0x350, 0x700)]);
        begin(&fd);
        fd
    }
}

/// Registers of the kernel's local APIC.
pub fn set_local_apic(fd: &VcpuFd, registers: &[(usize, u32)]) {
    let mut apic = fd.get_lapic().unwrap();
    for (at, value) in registers {
        for (byte, value) in apic.regs[*at..].iter_mut().zip(value.to_le_bytes()) {
            *byte = value as _;
        }
    }
    fd.set_lapic(&apic).unwrap();
}

/// In real mode, with a stack, and with interrupts on.
pub fn begin(fd: &VcpuFd) {
    let mut sregs = fd.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs).unwrap();
    let mut regs = fd.get_regs().unwrap();
    (regs.rip, regs.rsp, regs.rflags) = (CODE, 0x8000, 0x202);
    fd.set_regs(&regs).unwrap();
}

/// What the guest wrote to which port next; `None` if it sleeps for as long as `patience`.
pub fn next_write(vcpu: &mut X86Vcpu, patience: Duration) -> Option<(u16, u8)> {
    let waker = vcpu.waker().clone();
    let (stop, stopped) = mpsc::channel::<()>();
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let watchdog = thread::spawn(move || {
        if stopped.recv_timeout(patience).is_err() {
            told.store(true, Ordering::SeqCst);
            waker.wake();
        }
    });
    let mut written = None;
    while written.is_none() && !over.load(Ordering::SeqCst) {
        match vcpu.run().unwrap() {
            Some(Exit::PortOut { port, data, .. }) => written = Some((port, data[0])),
            Some(Exit::Other(VcpuExit::MmioRead(_, data))) => data.fill(0),
            None => (),
            Some(exit) => panic!("{exit:?}"),
        }
    }
    let _ = stop.send(());
    watchdog.join().unwrap();
    written
}

pub fn message(data: u32, destination: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000 | u64::from(destination) << 12,
        data,
    }
}

pub const NMI: u32 = 0x400;
pub const INIT: u32 = 0x500;
pub const START_UP: u32 = 0x600;
pub const EXT_INT: u32 = 0x700;

/// mov ax, 0x2000; mov ds, ax; mov ax, 0x800; mov es, ax; cld; mov cx, 1000; rep movsb; mov al, 1; out 0x11, al
pub const COPY_FROM_NO_MEMORY: [u8; 20] = [
    0xb8, 0, 0x20, 0x8e, 0xd8, 0xb8, 0, 8, 0x8e, 0xc0, 0xfc, 0xb9, 0xe8, 3, 0xf3, 0xa4, 0xb0, 1, 0xe6, 0x11,
];

pub fn run_to_read(vcpu: &mut X86Vcpu) {
    loop {
        match vcpu.run().unwrap() {
            None => (),
            Some(Exit::Other(VcpuExit::MmioRead(_, data))) => return data.fill(0),
            Some(exit) => panic!("{exit:?}"),
        }
    }
}
