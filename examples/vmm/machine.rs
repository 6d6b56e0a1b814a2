//! The machine: memory, devices, vCPUs on their threads, and what ends it.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    thread,
};

use devisor::{
    backends::{
        irqchip::{lapic::ApicId, pc::Gsi, pic::Irq},
        kvm::x86::{Exit, VcpuWaker, X86Vcpu},
    },
    bus::{Bus, BusDevice},
    platform::uart16550::{self, Uart16550, Uart16550Config},
    virtio::{
        VirtioMmio,
        block::{Block, BlockOptions, FileStorage},
        transport::mmio::{self, Line},
    },
};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::{
    console::{self, RawTerminal, Room},
    cpu,
    devices::{Cmos, FwCfg, exit_port, line_tester, reset_port},
    irqchip::{Irqchip, PINS},
    load::Loader,
    options::{Error, Options},
    timers::{NOT_POISONED, Timers, lock},
};

const UART_IRQ: Irq = Irq(4);
const DISK_ADDRESS: u64 = 0xfeb0_0000;
const DISK_IRQ: Irq = Irq(5);

/// How the machine ended.
#[derive(Clone, Debug)]
pub enum End {
    /// By the exit port.
    Status(u8),
    /// The guest wants a reset, and there is nothing that it could be reset to.
    Reset,
    /// By the user.
    Quit,
    /// By something that is wrong.
    Failed(String),
}

/// Where the first end of the machine is told, from any thread.
#[derive(Clone, Default)]
pub struct Ending(Arc<(Mutex<Option<End>>, Condvar)>);

impl Ending {
    pub fn end(&self, end: End) {
        lock(&self.0.0).get_or_insert(end);
        self.0.1.notify_all();
    }

    fn is_there(&self) -> bool {
        lock(&self.0.0).is_some()
    }

    fn wait(&self) -> End {
        let (first, told) = &*self.0;
        let first = told.wait_while(lock(first), |first| first.is_none());
        first.expect(NOT_POISONED).clone().expect("it was waited for")
    }
}

/// Runs the guest to its end, and returns the status for the process.
pub fn run(options: &Options) -> Result<u8, Error> {
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
    let vm = Arc::new(kvm.create_vm()?);
    let most = kvm.get_max_vcpus();
    if options.cpus as usize > most {
        return Err(format!("--cpus {}: KVM has {most} at most here", options.cpus).into());
    }
    let memory = memory(&vm, options.memory)?;
    let wakers = (0..options.cpus)
        .map(|_| VcpuWaker::new())
        .collect::<io::Result<Vec<_>>>()?;
    let timers = Timers::new();
    let tsc_hz = tsc_hz(&kvm)?;
    let irqchip = Irqchip::new(options.mode, &vm, &wakers, &timers, tsc_hz)?;
    timers.start(irqchip.expiries()?)?;

    let ending = Ending::default();
    let mut command_line = options.append.clone();
    if options.disk.is_some() {
        let (size, irq) = (mmio::REGION_SIZE, DISK_IRQ.0);
        command_line += &format!(" virtio_mmio.device={size:#x}@{DISK_ADDRESS:#x}:{irq}");
    }
    let loader = Loader {
        memory: &memory,
        memory_size: options.memory,
        command_line: command_line.trim_start(),
    };
    let entry = loader.load(&options.kernel)?;

    let mut vcpus = Vec::new();
    for (id, waker) in (0..).zip(&wakers) {
        let fd = vm.create_vcpu(id.into())?;
        fd.set_cpuid2(&cpu::cpuid(&kvm, ApicId(id), options.cpus)?)?;
        if id == 0 {
            cpu::begin(&fd, entry, &memory)?;
        }
        vcpus.push(irqchip.vcpu(id, fd, waker.clone())?);
    }

    let terminal = RawTerminal::new()?;
    let buses = devices(options, &irqchip, &memory, &ending, terminal.is_some())?;
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        let (buses, ending) = (Arc::clone(&buses), ending.clone());
        let run = move || vcpu_thread(id, vcpu, &buses, &ending);
        thread::Builder::new().name(format!("vcpu {id}")).spawn(run)?;
    }

    // The threads end with the process: one may be waiting for somebody to take what the guest prints.
    let end = ending.wait();
    drop(terminal);
    match end {
        End::Status(status) => Ok(status),
        End::Reset | End::Quit => Ok(0),
        End::Failed(why) => Err(why.into()),
    }
}

/// stdout. If nobody takes what the guest prints it would wait for ever: the machine ends.
struct Output(Ending);

impl Output {
    fn check<T>(&self, done: io::Result<T>) -> io::Result<T> {
        const TRANSIENT: [io::ErrorKind; 2] = [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock];
        done.inspect_err(|error| {
            if !TRANSIENT.contains(&error.kind()) {
                self.0.end(End::Failed(format!("stdout: {error}")));
            }
        })
    }
}

impl io::Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.check(io::stdout().write(data))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.check(io::stdout().flush())
    }
}

/// What the guest reaches by its addresses.
struct Buses {
    memory: Bus,
    ports: Bus,
}

/// RAM from 0 on.
fn memory(vm: &VmFd, size: u64) -> Result<GuestMemoryMmap, Error> {
    // Three pages that KVM wants for itself on some processors, and one more: where no device is.
    vm.set_tss_address(0xfffb_d000)?;
    vm.set_identity_map_address(0xfffb_c000)?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)])
        .map_err(|error| format!("there are no {} MiB of memory for the guest: {error}", size >> 20))?;
    let region = kvm_userspace_memory_region {
        memory_size: size,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // Clones may outlive the vCPUs' threads, but none of those the memory.
    std::mem::forget(memory.clone());
    // SAFETY: the mapping has `size` bytes, and it is never unmapped: the process ends with it.
    unsafe { vm.set_user_memory_region(region)? };
    Ok(memory)
}

fn tsc_hz(kvm: &Kvm) -> Result<u64, Error> {
    let vm = kvm.create_vm()?;
    let khz = vm.create_vcpu(0)?.get_tsc_khz()?;
    Ok(u64::from(khz) * 1000)
}

/// Makes the devices, and places them.
fn devices(
    options: &Options,
    irqchip: &Irqchip,
    memory: &GuestMemoryMmap,
    ending: &Ending,
    is_terminal: bool,
) -> Result<Arc<Buses>, Error> {
    let mut buses = Buses {
        memory: Bus::new(),
        ports: Bus::new(),
    };
    irqchip.plug(&mut buses.memory, &mut buses.ports)?;

    let uart_line = irqchip.level_line(Gsi::of_irq(UART_IRQ))?;
    // The line tester has a hand on each wire, but for the disk's, and for pin 0, where nothing is soldered to.
    let mut tester = Vec::new();
    for gsi in (0..PINS).map(Gsi) {
        let disk = options.disk.is_some() && gsi == Gsi::of_irq(DISK_IRQ);
        let has_wire = gsi != Gsi(0) && !disk;
        tester.push(has_wire.then(|| irqchip.level_line(gsi)).transpose()?);
    }

    if let Some(image) = &options.disk {
        let disk = disk(image, irqchip, memory)?;
        buses.memory.insert(DISK_ADDRESS, mmio::REGION_SIZE, disk)?;
    }

    let room = Room::default();
    let hook = room.clone();
    let uart = Uart16550::new(Uart16550Config::default(), uart_line, Output(ending.clone()));
    let uart = Arc::new(uart.with_room_hook(move || hook.notify()));
    let (input, quit) = (Arc::clone(&uart), ending.clone());
    let receive = move |typed: &[u8]| input.receive(typed);
    console::start(is_terminal, room, receive, move || quit.end(End::Quit))?;

    let reset = |mask, bits| Arc::new(reset_port(ending.clone(), mask, bits));
    let devices: [(u64, u64, Arc<dyn BusDevice>); 8] = [
        (0x3f8, uart16550::REGION_SIZE, uart),
        (0xf4, 4, Arc::new(exit_port(ending.clone()))),
        (0x2000, PINS.into(), Arc::new(line_tester(tester))),
        (0x510, 2, Arc::new(FwCfg::new(options.memory, options.cpus))),
        (0x70, 2, Arc::new(Cmos::new(options.memory, options.cpus))),
        (0x64, 1, reset(0xff, 0xfe)),
        (0x92, 1, reset(1, 1)),
        (0xcf9, 1, reset(4, 4)),
    ];
    for (base, len, device) in devices {
        buses.ports.insert(base, len, device)?;
    }
    Ok(Arc::new(buses))
}

fn disk(image: &Path, irqchip: &Irqchip, memory: &GuestMemoryMmap) -> Result<Arc<dyn BusDevice>, Error> {
    let storage = FileStorage::open(image);
    let storage = storage.map_err(|error| format!("the disk {} cannot be opened: {error}", image.display()))?;
    let block = Block::new(storage, BlockOptions::default())?;
    let line = Line::Edge(irqchip.edge_line(Gsi::of_irq(DISK_IRQ))?);
    Ok(Arc::new(VirtioMmio::new(block, Arc::new(memory.clone()), line)?))
}

/// Runs a vCPU until the machine ends.
fn vcpu_thread(id: usize, mut vcpu: X86Vcpu, buses: &Buses, ending: &Ending) {
    while !ending.is_there() {
        let failed = match vcpu.run() {
            Ok(None) => continue,
            Ok(Some(exit)) => match serve(exit, buses) {
                None => continue,
                Some(failed) => failed,
            },
            Err(error) => format!("KVM_RUN: {error}"),
        };
        // Where it was helps whoever wrote the guest.
        let at = vcpu.fd().get_regs().map_or(0, |regs| regs.rip);
        ending.end(End::Failed(format!("CPU {id} at {at:#x}: {failed}")));
    }
}

/// Returns what is wrong, if the vCPU cannot go on. What no device claims reads as ones, and writes to it go nowhere.
fn serve(exit: Exit<'_>, buses: &Buses) -> Option<String> {
    match exit {
        Exit::PortIn { port, width, data } => {
            for access in data.chunks_mut(width) {
                let _ = buses.ports.read(port.into(), access);
            }
        }
        Exit::PortOut { port, width, data } => {
            for access in data.chunks(width) {
                let _ = buses.ports.write(port.into(), access);
            }
        }
        Exit::Other(VcpuExit::MmioRead(address, data)) => _ = buses.memory.read(address, data),
        Exit::Other(VcpuExit::MmioWrite(address, data)) => _ = buses.memory.write(address, data),
        // Of an MSR that nobody has: the #GP is on its way.
        Exit::Other(VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_)) => (),
        Exit::Other(VcpuExit::Shutdown) => return Some("the guest has shut down after a triple fault".into()),
        Exit::Other(VcpuExit::InternalError) => return Some("KVM cannot emulate what the guest does".into()),
        Exit::Other(exit) => return Some(format!("an exit that there is nothing for: {exit:?}")),
    }
    None
}
