//! A guest that takes interrupts: one vCPU on /dev/kvm with a program of a few dozen instructions.
//!
//! The program sets up its interrupt controller, halts, and on each interrupt reports, serves the device as it was
//! told to (reads and writes of device registers, which come out as exits to the devices on a [`Bus`]), ends the interrupt and
//! reports again. So whether, how often and when a device's interrupt is *taken* can be counted, without polling.
//!
//! ```ignore
//! let machine = Machine::new(Machine::small_memory()?)?;
//! let line = KvmIrqs::new(Arc::clone(machine.vm()), 5..=15)?.claim(Gsi(5), "disk")?.irqfd()?;
//! let guest = machine.start(Program {
//!     wires: vec![Wire { gsi: Gsi(5), sensing: Sensing::Edge, handler: vec![] }],
//!     ..Default::default()
//! })?;
//! let raised = Instant::now();
//! line.trigger()?;
//! println!("taken after {:?}", guest.wait_done(Gsi(5), 1)?.last.unwrap() - raised);
//! ```

use std::{
    error::Error,
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use devisor::{
    backends::kvm::Gsi,
    bus::{Bus, read_le},
};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

#[path = "kvm_guest/program.rs"]
pub mod program;

pub use program::{Action, Controller, Program, Sensing, Wire};
use program::{PORT_DONE, PORT_READY, PORT_TAKEN, WIRES};

/// How long [`Guest`] waits for the vCPU. Only a test that fails takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often an interrupt was taken, and when last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Entries into the handler.
    pub count: u64,
    /// When the report of the last entry reached this process.
    pub last: Option<Instant>,
}

/// Why no guest can run here, if none can.
pub fn unavailable() -> Option<String> {
    let error = Kvm::new().err()?;
    Some(format!("/dev/kvm cannot be opened: {error}"))
}

/// A VM with memory and an interrupt controller, and no vCPU yet: the devices can get their lines.
pub struct Machine {
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap,
}

impl Machine {
    /// A VM with `memory`, of which the guest program needs the first 64 KiB.
    ///
    /// # Errors
    /// What KVM refuses. Ask [`unavailable`] first whether it is there at all.
    pub fn new(memory: GuestMemoryMmap) -> Result<Self, Box<dyn Error>> {
        let vm = Kvm::new()?.create_vm()?;
        // Three pages that the kernel wants for itself on some processors, where no device is.
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip()?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.get_host_address(MemoryRegionAddress(0))? as u64,
            };
            // SAFETY: the host memory is mapped for as long as a vCPU runs: `Guest` keeps `memory` until it has joined
            // the vCPU's thread.
            unsafe { vm.set_user_memory_region(region)? };
        }
        let vm = Arc::new(vm);
        Ok(Self { vm, memory })
    }

    /// Memory for the program and nothing else.
    pub fn small_memory() -> Result<GuestMemoryMmap, Box<dyn Error>> {
        Ok(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)])?)
    }

    /// The VM, to make lines for.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// Starts the vCPU on a thread of its own, and waits until the guest is ready for interrupts.
    ///
    /// # Errors
    /// A wire that the controller does not have, or a guest that does not get that far.
    pub fn start(self, program: Program) -> Result<Guest, Box<dyn Error>> {
        program::load(&self.memory, &program)?;
        let vcpu = self.vm.create_vcpu(0)?;
        program::reset(&vcpu)?;

        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
            register_signal_handler(SIGRTMIN(), ignore).expect("SIGRTMIN is a signal that can be handled");
        });
        let shared = Arc::<Shared>::default();
        let thread = thread::Builder::new().name("vcpu".into()).spawn({
            let shared = Arc::clone(&shared);
            let Program { mmio, ports, .. } = program;
            move || shared.end(run(vcpu, &shared, &mmio, &ports))
        })?;
        let guest = Guest {
            shared,
            thread: Some(thread),
            _machine: self,
        };
        guest.wait("it is ready", |reports| reports.ready.then_some(()))?;
        Ok(guest)
    }
}

/// A running guest. Dropping it stops the vCPU.
pub struct Guest {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _machine: Machine,
}

impl Guest {
    /// How often the guest has entered its handler for `gsi`, and when last.
    pub fn taken(&self, gsi: Gsi) -> Taken {
        self.shared.reports().taken[gsi.0 as usize]
    }

    /// Waits until the guest has entered its handler for `gsi` `count` times.
    ///
    /// # Errors
    /// The vCPU has stopped, or the interrupts do not come.
    pub fn wait_taken(&self, gsi: Gsi, count: u64) -> Result<Taken, Box<dyn Error>> {
        let taken = |reports: &Reports| Some(reports.taken[gsi.0 as usize]).filter(|taken| taken.count >= count);
        self.wait(&format!("{gsi} is taken {count} times"), taken)
    }

    /// Waits until the guest has left its handler for `gsi` `count` times: served the device, and ended the interrupt.
    ///
    /// # Errors
    /// As [`wait_taken`](Self::wait_taken).
    pub fn wait_done(&self, gsi: Gsi, count: u64) -> Result<Taken, Box<dyn Error>> {
        self.wait(&format!("{gsi} is done {count} times"), |reports| {
            (reports.done[gsi.0 as usize] >= count).then_some(reports.taken[gsi.0 as usize])
        })
    }

    fn wait<T>(&self, what: &str, mut look: impl FnMut(&Reports) -> Option<T>) -> Result<T, Box<dyn Error>> {
        let deadline = Instant::now() + PATIENCE;
        let mut reports = self.shared.reports();
        loop {
            if let Some(found) = look(&reports) {
                return Ok(found);
            }
            if let Some(end) = &reports.ended {
                return Err(format!("waited until {what}, but the vCPU stopped: {end}").into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("waited until {what}, for {PATIENCE:?}; {reports}").into());
            }
            let woken = self.shared.changed.wait_timeout(reports, left);
            reports = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let Some(thread) = self.thread.take() else { return };
        // A signal ends KVM_RUN, unless it comes just before: so until it has worked.
        while !thread.is_finished() {
            let _ = thread.kill(SIGRTMIN());
            thread::sleep(Duration::from_millis(1));
        }
        let _ = thread.join();
    }
}

/// What the vCPU's thread and [`Guest`] share.
#[derive(Default)]
struct Shared {
    reports: Mutex<Reports>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct Reports {
    ready: bool,
    taken: [Taken; WIRES],
    done: [u64; WIRES],
    /// Why the vCPU has stopped, if it has.
    ended: Option<String>,
}

impl Shared {
    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, update: impl FnOnce(&mut Reports)) {
        update(&mut self.reports());
        self.changed.notify_all();
    }

    fn end(&self, why: String) {
        self.update(|reports| reports.ended = Some(why));
    }
}

impl fmt::Display for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "taken and done so far:")?;
        let wires = self.taken.iter().zip(self.done).enumerate();
        for (gsi, (taken, done)) in wires.filter(|(_, (taken, _))| taken.count != 0) {
            write!(f, " {}: {} and {done};", Gsi(gsi as u32), taken.count)?;
        }
        Ok(())
    }
}

/// Runs the vCPU until it is told to stop, or does what the program does not do. Returns why it stopped.
fn run(mut vcpu: VcpuFd, shared: &Shared, mmio: &Bus, ports: &Bus) -> String {
    while !shared.stop.load(Ordering::SeqCst) {
        // What no device claims reads as ones, and writes to it go nowhere.
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT_READY, _)) => shared.update(|reports| reports.ready = true),
            Ok(VcpuExit::IoOut(PORT_TAKEN, data)) => {
                let now = Instant::now();
                let wire = read_le(data) as usize;
                shared.update(|reports| {
                    reports.taken[wire].count += 1;
                    reports.taken[wire].last = Some(now);
                });
            }
            Ok(VcpuExit::IoOut(PORT_DONE, data)) => {
                let wire = read_le(data) as usize;
                shared.update(|reports| reports.done[wire] += 1);
            }
            Ok(VcpuExit::IoOut(port, data)) => _ = ports.write(port.into(), data),
            Ok(VcpuExit::IoIn(port, data)) => _ = ports.read(port.into(), data),
            Ok(VcpuExit::MmioWrite(address, data)) => _ = mmio.write(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => _ = mmio.read(address, data),
            Ok(exit) => return format!("{exit:?}, which is a fault in the guest program"),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return format!("KVM_RUN: {error}"),
        }
    }
    "it was told to".into()
}
