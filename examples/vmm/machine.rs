//! The machine: memory, devices, vCPUs on their threads, and what ends it.

use std::{
    fs, io,
    mem::ManuallyDrop,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use devisor::{
    backends::{
        irqchip::lapic::ApicId,
        kvm::x86::{Exit, VcpuWaker, X86Vcpu},
    },
    platform::mc146818::Mc146818State,
    virtio::transport::mmio,
};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::{
    board::{self, Buses, DISK_ADDRESS, DISK_IRQ},
    console::{Keyboard, RawTerminal},
    cpu,
    irqchip::Irqchip,
    load::Loader,
    options::{Error, Options},
    tables,
    timers::{NOT_POISONED, Timers, lock},
};

/// How the machine ended.
#[derive(Clone, Debug)]
pub enum End {
    /// By the exit port.
    Status(u8),
    /// The guest has powered it off.
    Off,
    /// The guest wants a reset.
    Reset,
    /// A CPU has shut down: what a board resets it for.
    TripleFault(String),
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
    let most = kvm.get_max_vcpus();
    if options.cpus as usize > most {
        return Err(format!("--cpus {}: KVM has {most} at most here", options.cpus).into());
    }
    let terminal = RawTerminal::new()?;
    let keyboard = Keyboard::new(terminal.is_some())?;
    let mut battery = None;
    let end = loop {
        match boot(options, &kvm, &keyboard, &mut battery)? {
            End::Reset | End::TripleFault(_) if options.reboot => {}
            end => break end,
        }
    };
    drop(terminal);
    match end {
        End::Status(status) => Ok(status),
        End::Off | End::Reset | End::Quit => Ok(0),
        End::TripleFault(why) | End::Failed(why) => Err(why.into()),
    }
}

/// Makes a machine and runs it to its end. If that is one from which it may begin again nothing of it is left, but for what the battery
/// of its clock keeps.
fn boot(options: &Options, kvm: &Kvm, keyboard: &Keyboard, battery: &mut Option<Mc146818State>) -> Result<End, Error> {
    let vm = Arc::new(kvm.create_vm()?);
    let memory = memory(&vm, options)?;
    let wakers = (0..options.cpus)
        .map(|_| VcpuWaker::new())
        .collect::<io::Result<Vec<_>>>()?;
    let timers = Timers::new();
    let irqchip = Irqchip::new(options.mode, &vm, &wakers, &timers, tsc_hz(kvm)?, options.x2apic())?;

    let ending = Ending::default();
    keyboard.quits(&ending);
    let entry = match &options.kernel {
        Some(kernel) => {
            // Before the kernel, which may lie anywhere.
            tables::write(options, &memory)?;
            Some(load(options, kernel, &memory)?)
        }
        None => None,
    };
    let mut vcpus = Vec::new();
    for (id, waker) in (0..).zip(&wakers) {
        let fd = vm.create_vcpu(id.into())?;
        fd.set_cpuid2(&cpu::cpuid(kvm, ApicId(id), options.cpus, &options.hidden)?)?;
        // Without a kernel it begins where a CPU comes out of its reset: at the end of the firmware.
        if let (0, Some(entry)) = (id, entry) {
            cpu::begin(&fd, entry, &memory)?;
        }
        vcpus.push(irqchip.vcpu(id, fd, waker.clone(), entry.is_none())?);
    }

    let board = board::build(options, &irqchip, &memory, &ending, keyboard, &timers, battery.as_ref())?;
    let mut expiries = irqchip.expiries()?;
    let rtc = Arc::clone(&board.rtc);
    expiries.push(Box::new(move || rtc.expire()));
    let pm = board.pm;
    expiries.push(Box::new(move || pm.expire()));
    let timers_stop = timers.start(expiries)?;
    let (buses, rtc) = (Arc::new(board.buses), board.rtc);
    let mut threads = Vec::new();
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        let (buses, ending) = (Arc::clone(&buses), ending.clone());
        let run = move || vcpu_thread(id, vcpu, &buses, &ending);
        threads.push(thread::Builder::new().name(format!("vcpu {id}")).spawn(run)?);
    }

    let end = ending.wait();
    if options.reboot && matches!(end, End::Reset | End::TripleFault(_)) {
        stop(threads, &wakers);
        timers_stop.stop();
        *battery = Some(rtc.save());
        // The vCPUs are gone, and so is whoever touches the memory but for the devices, which go with the buses.
        drop((buses, rtc, irqchip, vm));
        drop(ManuallyDrop::into_inner(memory));
    }
    // Otherwise the threads end with the process: one may be waiting for somebody to take what the guest prints.
    Ok(end)
}

/// Waits until the vCPUs' threads have ended, whose machine has.
fn stop(threads: Vec<JoinHandle<()>>, wakers: &[VcpuWaker]) {
    for (thread, waker) in threads.into_iter().zip(wakers) {
        while !thread.is_finished() {
            waker.wake();
            thread::sleep(Duration::from_micros(100));
        }
        thread.join().expect(NOT_POISONED);
    }
}

fn load(options: &Options, kernel: &Path, memory: &GuestMemoryMmap) -> Result<crate::load::Entry, Error> {
    let mut command_line = options.append.clone();
    if options.disk.is_some() {
        let (size, irq) = (mmio::REGION_SIZE, DISK_IRQ.0);
        command_line += &format!(" virtio_mmio.device={size:#x}@{DISK_ADDRESS:#x}:{irq}");
    }
    let loader = Loader {
        memory,
        memory_size: options.memory,
        command_line: command_line.trim_start(),
    };
    loader.load(kernel)
}

/// RAM from 0 on, and firmware at the end of 4 GiB, whose last part is below 1 MiB too, as boards copy it there. It is not unmapped
/// unless it is taken out: vCPUs' threads may be there as long as the process.
fn memory(vm: &VmFd, options: &Options) -> Result<ManuallyDrop<GuestMemoryMmap>, Error> {
    // Three pages that KVM wants for itself on some processors, and one more: where no device is.
    vm.set_tss_address(0xfffb_d000)?;
    vm.set_identity_map_address(0xfffb_c000)?;
    let firmware = options.firmware.as_deref().map(firmware).transpose()?;
    let mut ranges = vec![(GuestAddress(0), options.memory as usize)];
    if let Some(firmware) = &firmware {
        ranges.push((GuestAddress(END - firmware.len() as u64), firmware.len()));
    }
    let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(|error| {
        format!(
            "there are no {} MiB of memory for the guest: {error}",
            options.memory >> 20
        )
    })?;
    if let Some(firmware) = firmware {
        memory.write_slice(&firmware, ranges[1].0)?;
        let copy = &firmware[firmware.len().saturating_sub(COPY)..];
        memory.write_slice(copy, GuestAddress(HIGH_MEMORY - copy.len() as u64))?;
    }
    let memory = ManuallyDrop::new(memory);
    for (slot, (start, len)) in (0..).zip(ranges) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: start.0,
            memory_size: len as u64,
            userspace_addr: memory.get_host_address(start)? as u64,
            ..Default::default()
        };
        // SAFETY: the mapping has `len` bytes, and is not unmapped before the vCPUs are gone, or at all.
        unsafe { vm.set_user_memory_region(region)? };
    }
    Ok(memory)
}

/// Where firmware ends, and where the end of conventional and firmware's memory is, with how much of it is there.
const END: u64 = 1 << 32;
const HIGH_MEMORY: u64 = 1 << 20;
const COPY: usize = 128 << 10;
/// Above KVM's pages.
const MAX_FIRMWARE: usize = 256 << 10;

fn firmware(path: &Path) -> Result<Vec<u8>, Error> {
    const PAGE: usize = 4096;
    let name = path.display();
    let firmware = fs::read(path).map_err(|error| format!("the firmware {name} cannot be read: {error}"))?;
    let len = firmware.len();
    if len == 0 || len > MAX_FIRMWARE || !len.is_multiple_of(PAGE) {
        return Err(format!("the firmware {name} has {len} bytes: it is pages, {MAX_FIRMWARE} bytes at most").into());
    }
    Ok(firmware)
}

fn tsc_hz(kvm: &Kvm) -> Result<u64, Error> {
    let vm = kvm.create_vm()?;
    let khz = vm.create_vcpu(0)?.get_tsc_khz()?;
    Ok(u64::from(khz) * 1000)
}

/// Runs a vCPU until the machine ends.
fn vcpu_thread(id: usize, mut vcpu: X86Vcpu, buses: &Buses, ending: &Ending) {
    while !ending.is_there() {
        let (end, what): Wrong = match vcpu.run() {
            Ok(None) => continue,
            Ok(Some(exit)) => match serve(exit, buses) {
                None => continue,
                Some(failed) => failed,
            },
            Err(error) => (End::Failed, format!("KVM_RUN: {error}")),
        };
        // Where it was helps whoever wrote the guest.
        let at = vcpu.fd().get_regs().map_or(0, |regs| regs.rip);
        ending.end(end(format!("CPU {id} at {at:#x}: {what}")));
    }
}

/// Which end it is, and of what.
type Wrong = (fn(String) -> End, String);

/// Returns what is wrong, if the vCPU cannot go on. What no device claims reads as ones, and writes to it go nowhere.
fn serve(exit: Exit<'_>, buses: &Buses) -> Option<Wrong> {
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
        Exit::Other(VcpuExit::Shutdown) => {
            return Some((End::TripleFault, "the guest has shut down after a triple fault".into()));
        }
        Exit::Other(VcpuExit::InternalError) => {
            return Some((End::Failed, "KVM cannot emulate what the guest does".into()));
        }
        Exit::Other(exit) => return Some((End::Failed, format!("an exit that there is nothing for: {exit:?}"))),
    }
    None
}
