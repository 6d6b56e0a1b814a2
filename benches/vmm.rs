//! From a device's line to the guest's handler, with the interrupt controllers where the example `vmm` can have them: in the
//! kernel, split, or all of them here. One run, three modes, the same line.
//!
//! The guest's handler writes to a port; what is measured ends where the vCPU's thread sees that.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "the bench needs a part of the example")]
#[path = "../examples/vmm/irqchip.rs"]
mod irqchip;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "the bench needs a part of the example")]
#[path = "../examples/vmm/options.rs"]
mod options;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "the bench needs a part of the example")]
#[path = "../examples/vmm/timers.rs"]
mod timers;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod modes {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
        thread::{self, JoinHandle},
        time::{Duration, Instant},
    };

    use devisor::{
        backends::{
            irqchip::pc::Gsi,
            kvm::x86::{Exit, VcpuWaker, X86Vcpu},
        },
        bus::Bus,
        interrupt::Interrupt,
    };
    use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
    use kvm_ioctls::{Kvm, VcpuExit};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use crate::{
        irqchip::{Irqchip, Mode},
        options::Error,
        timers::Timers,
    };

    const LINE: Gsi = Gsi(5);
    const VECTOR: u64 = 0x45;
    const MEMORY: usize = 1 << 16;
    const IDT: u64 = 0x1000;
    const IDT_POINTER: u64 = 0x1800;
    const CODE: u64 = 0x8000;
    const PORT_READY: u16 = 0xd00;
    const PORT_TAKEN: u16 = 0xd04;

    // The handler has a fixed place. It returns without `iret`, which KVM's instruction emulator has not in protected mode.
    std::arch::global_asm!(
        ".code32",
        "devisor_modes_start:",
        "    jmp 1f",
        ".balign 16",
        "    mov edx, 0xd04",
        "    out dx, al",
        "    mov dword ptr [0xfee000b0], 0",
        "    sti",
        "    ret 8",
        "1:  mov esp, 0x8000",
        "    lidt [0x1800]",
        "    mov dword ptr [0xfee000f0], 0x1ff",
        "    mov dword ptr [0xfee00350], 0x10000",
        "    mov dword ptr [0xfec00000], 0x1b",
        "    mov dword ptr [0xfec00010], 0",
        "    mov dword ptr [0xfec00000], 0x1a",
        "    mov dword ptr [0xfec00010], 0x45",
        "    mov edx, 0xd00",
        "    out dx, al",
        "    sti",
        "    cmp ebx, 0",
        "    je 3f",
        "2:  hlt",
        "    jmp 2b",
        // A guest that computes.
        "3:  inc eax",
        "    jmp 3b",
        "devisor_modes_end:",
        ".code64",
    );

    const HANDLER: u64 = CODE + 16;

    fn program() -> &'static [u8] {
        unsafe extern "C" {
            static devisor_modes_start: u8;
            static devisor_modes_end: u8;
        }
        let (start, end) = (&raw const devisor_modes_start, &raw const devisor_modes_end);
        // SAFETY: the labels are the first byte of the program and the one after the last, in memory that nobody writes to.
        unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
    }

    /// What the vCPU's thread reports.
    struct Reports {
        started: Instant,
        ready: AtomicBool,
        taken: AtomicU64,
        /// When it was taken last, in nanoseconds since `started`.
        last: AtomicU64,
        stop: AtomicBool,
    }

    struct Guest {
        reports: Arc<Reports>,
        line: Arc<dyn Interrupt>,
        waker: VcpuWaker,
        thread: Option<JoinHandle<()>>,
        _memory: GuestMemoryMmap,
    }

    impl Guest {
        fn new(mode: Mode, halts: bool) -> Result<Self, Error> {
            let kvm = Kvm::new()?;
            let vm = Arc::new(kvm.create_vm()?);
            vm.set_tss_address(0xfffb_d000)?;
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?;
            let region = kvm_userspace_memory_region {
                memory_size: MEMORY as u64,
                userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
                ..Default::default()
            };
            // SAFETY: `Guest` keeps the mapping until it has joined the vCPU's thread.
            unsafe { vm.set_user_memory_region(region)? };
            memory.write_slice(program(), GuestAddress(CODE))?;
            let gate = HANDLER & 0xffff | 0x10 << 16 | 0x8e00 << 32 | HANDLER >> 16 << 48;
            memory.write_obj(gate, GuestAddress(IDT + VECTOR * 8))?;
            memory.write_slice(&0x7ff_u16.to_le_bytes(), GuestAddress(IDT_POINTER))?;
            memory.write_slice(&(IDT as u32).to_le_bytes(), GuestAddress(IDT_POINTER + 2))?;
            for (at, descriptor) in [(0x10_u64, 0x00cf_9b00_0000_ffff_u64), (0x18, 0x00cf_9300_0000_ffff)] {
                memory.write_obj(descriptor, GuestAddress(0x500 + at))?;
            }

            let waker = VcpuWaker::new()?;
            let timers = Timers::new();
            let irqchip = Irqchip::new(mode, &vm, std::slice::from_ref(&waker), &timers, 1_000_000_000, true)?;
            let fd = vm.create_vcpu(0)?;
            let mut sregs = fd.get_sregs()?;
            let flat = |selector, type_| kvm_segment {
                limit: u32::MAX,
                selector,
                type_,
                present: 1,
                db: 1,
                s: 1,
                g: 1,
                ..Default::default()
            };
            sregs.cs = flat(0x10, 0xb);
            let data = flat(0x18, 0x3);
            (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
            (sregs.gdt.base, sregs.gdt.limit) = (0x500, 0x1f);
            sregs.cr0 |= 1;
            fd.set_sregs(&sregs)?;
            let mut regs = fd.get_regs()?;
            (regs.rip, regs.rbx, regs.rflags) = (CODE, halts.into(), 2);
            fd.set_regs(&regs)?;
            let vcpu = irqchip.vcpu(0, fd, waker.clone(), false)?;
            let line = irqchip.edge_line(LINE)?;
            let (mut mmio, mut ports) = (Bus::new(), Bus::new());
            irqchip.plug(&mut mmio, &mut ports)?;

            let reports = Arc::new(Reports {
                started: Instant::now(),
                ready: AtomicBool::new(false),
                taken: AtomicU64::new(0),
                last: AtomicU64::new(0),
                stop: AtomicBool::new(false),
            });
            let shared = Arc::clone(&reports);
            let thread = thread::spawn(move || run(vcpu, &shared, &mmio));
            let guest = Self {
                reports,
                line,
                waker,
                thread: Some(thread),
                _memory: memory,
            };
            guest.wait("it is ready", |reports| reports.ready.load(Ordering::SeqCst));
            Ok(guest)
        }

        fn wait(&self, what: &str, done: impl Fn(&Reports) -> bool) {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !done(&self.reports) {
                assert!(Instant::now() < deadline, "waited until {what}");
                thread::yield_now();
            }
        }

        /// How long it took from the line to the handler.
        fn interrupt(&self) -> Duration {
            let before = self.reports.taken.load(Ordering::SeqCst);
            let raised = self.reports.started.elapsed();
            self.line.trigger().expect("the line is there");
            self.wait("it is taken", |reports| reports.taken.load(Ordering::SeqCst) != before);
            Duration::from_nanos(self.reports.last.load(Ordering::SeqCst)).saturating_sub(raised)
        }
    }

    impl Drop for Guest {
        fn drop(&mut self) {
            self.reports.stop.store(true, Ordering::SeqCst);
            self.waker.wake();
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }

    fn run(mut vcpu: X86Vcpu, reports: &Reports, mmio: &Bus) {
        while !reports.stop.load(Ordering::SeqCst) {
            match vcpu.run().expect("the vCPU runs") {
                None => (),
                Some(Exit::PortOut { port: PORT_READY, .. }) => reports.ready.store(true, Ordering::SeqCst),
                Some(Exit::PortOut { port: PORT_TAKEN, .. }) => {
                    let now = reports.started.elapsed().as_nanos() as u64;
                    reports.last.store(now, Ordering::SeqCst);
                    reports.taken.fetch_add(1, Ordering::SeqCst);
                }
                Some(Exit::PortIn { data, .. }) => data.fill(0xff),
                Some(Exit::PortOut { .. }) => (),
                Some(Exit::Other(VcpuExit::MmioRead(address, data))) => _ = mmio.read(address, data),
                Some(Exit::Other(VcpuExit::MmioWrite(address, data))) => _ = mmio.write(address, data),
                Some(Exit::Other(exit)) => panic!("{exit:?}"),
            }
        }
    }

    const MODES: [(Mode, &str); 3] = [
        (Mode::Kernel, "kernel"),
        (Mode::Split, "split"),
        (Mode::Software, "software"),
    ];

    /// Prints what was measured: of each mode the median, and what one in ten was below and above. What else the machine does
    /// only adds to the times, so it is the quick ones that are compared.
    pub fn bench(rounds: usize) -> Result<(), Error> {
        if let Err(error) = Kvm::new() {
            eprintln!("skipped: raise to handler: /dev/kvm cannot be opened: {error}");
            return Ok(());
        }
        println!("raise to handler   mode         median       10 %       90 %   10 % of the kernel's");

        // Halted guests do not disturb each other: in turns, so that what else the machine does is the same for all.
        let guests = MODES.map(|(mode, _)| Guest::new(mode, true));
        let mut times = MODES.map(|_| Vec::with_capacity(rounds));
        for _ in 0..rounds {
            for (guest, times) in guests.iter().zip(&mut times) {
                let guest = guest.as_ref().map_err(|error| error.to_string())?;
                times.push(guest.interrupt());
            }
        }
        print("halted guest", times);

        let mut times = MODES.map(|_| Vec::with_capacity(rounds));
        for ((mode, _), times) in MODES.into_iter().zip(&mut times) {
            let guest = Guest::new(mode, false)?;
            times.extend((0..rounds.div_ceil(10)).map(|_| guest.interrupt()));
        }
        print("busy guest", times);
        Ok(())
    }

    fn print(guest: &str, times: [Vec<Duration>; 3]) {
        let mut kernel = None;
        for ((_, mode), mut times) in MODES.into_iter().zip(times) {
            times.sort_unstable();
            let [median, low, high] = [50, 10, 90].map(|percent| times[times.len() * percent / 100]);
            let kernel = *kernel.get_or_insert(low);
            let ratio = low.as_secs_f64() / kernel.as_secs_f64();
            println!("{guest:<18} {mode:<10} {median:>8.1?} {low:>10.1?} {high:>10.1?}   {ratio:.2}");
        }
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> Result<(), options::Error> {
    // `cargo bench -- --test`: whether it works.
    let rounds = if std::env::args().any(|argument| argument == "--test") {
        1
    } else {
        3000
    };
    modes::bench(rounds)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    eprintln!("skipped: raise to handler: it needs KVM on x86_64");
}
