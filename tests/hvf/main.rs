//! Hypervisor.framework: the rules of its interrupt calls as the mock enforces them, and devisor's lines, messages and
//! vCPU inputs on top of them, all the way into a guest that takes the interrupts.
#![cfg(feature = "hvf")]

mod arguments;
mod codes;
mod inputs;
mod lines;
mod messages;
mod order;
mod registers;
mod runs;
mod software;
mod state;
mod threads;

use std::{
    io,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use devisor::{
    backends::{
        hvf::{
            DistributorReg, GeneralReg, Gic, GicConfig, GicError, GicInterrupt, HvError, HvGic, HvReturn, HvVcpus,
            IccState, IntIdRange, InterruptType, MmioAccess, MsiConfig, RedistributorReg, Reg, SoftwareVcpu,
            SoftwareVcpuParts, SysReg, Trap, VcpuExit, VcpuHandle, VcpuInput, VcpuInputs,
            mock::{Codes, Config, ConfigError, GuestEvent, GuestStep, Process},
        },
        irqchip::{
            CpuId, IntId, Spi, TriggerMode,
            gicv2::{CpuOutputs, GicV2, GicV2Config},
        },
    },
    bus::{Bus, BusDevice, read_le, write_le},
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, MsiVectors, RequesterId, SinkVectors},
};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
const MSI: MsiConfig = MsiConfig {
    region_base: 0x0802_0000,
    interrupts: IntIdRange {
        first: IntId(64),
        count: 32,
    },
};
const GIC: GicConfig = GicConfig {
    distributor_base: 0x0800_0000,
    redistributor_base: 0x080a_0000,
    msi: Some(MSI),
};
/// SPI 1.
const UART: IntId = IntId(33);
const FUNCTION: RequesterId = RequesterId(8);

/// A process with a VM.
fn process() -> Arc<Process> {
    let process = Arc::new(Process::new());
    process.hv_vm_create().unwrap();
    process
}

/// A VM with a GIC and one vCPU, of this thread, that is ready to run.
fn machine() -> (Arc<Process>, Gic<Process>, VcpuHandle) {
    let process = process();
    let gic = Gic::create(Arc::clone(&process), GIC).unwrap();
    let vcpu = process.hv_vcpu_create().unwrap();
    process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0).unwrap();
    process.guest_cpu(vcpu).unwrap().start();
    (process, gic, vcpu)
}

/// A guest that takes one interrupt, tells which, and calls the hypervisor.
fn taking_guest(process: &Process, vcpu: VcpuHandle) -> Arc<Mutex<Vec<IntId>>> {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&taken);
    process
        .set_guest(vcpu, move |cpu, event| {
            assert_eq!(event, GuestEvent::Interrupt(InterruptType::Irq));
            if let Some(intid) = cpu.acknowledge() {
                log.lock().unwrap().push(intid);
                cpu.end(intid);
            }
            GuestStep::hvc()
        })
        .unwrap();
    taken
}

/// Runs the vCPU. If nothing stops it for long, the test fails.
fn run(process: &Process, vcpu: VcpuHandle) -> VcpuExit {
    not_for_ever(process, vcpu, || process.hv_vcpu_run(vcpu)).unwrap()
}

fn not_for_ever<T>(process: &Process, vcpu: VcpuHandle, run: impl FnOnce() -> T) -> T {
    let (done, watch) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if watch.recv_timeout(LONG) == Err(mpsc::RecvTimeoutError::Timeout) {
                process.hv_vcpus_exit(&[vcpu]).unwrap();
                panic!("nothing stopped the vCPU");
            }
        });
        let result = run();
        drop(done);
        result
    })
}

fn is_trap(exit: VcpuExit) -> bool {
    matches!(exit, VcpuExit::Exception { .. })
}

/// What another thread gets.
fn elsewhere<T: Send>(call: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(call).join().unwrap())
}

/// A framework that takes whatever it is told and logs it; lines not while it refuses them.
#[derive(Default)]
struct Lenient {
    refuses: AtomicBool,
    levels: Mutex<Vec<bool>>,
    messages: Mutex<Vec<IntId>>,
}

impl HvGic for Lenient {
    fn hv_gic_set_spi(&self, _intid: IntId, level: bool) -> Result<(), HvError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(HvError::Error);
        }
        self.levels.lock().unwrap().push(level);
        Ok(())
    }
    fn hv_gic_get_spi_interrupt_range(&self) -> Result<IntIdRange, HvError> {
        Ok(IntIdRange {
            first: IntId(32),
            count: 988,
        })
    }
    fn hv_gic_create(&self, _config: &GicConfig) -> Result<(), HvError> {
        Ok(())
    }
    fn hv_gic_get_distributor_base_alignment(&self) -> Result<u64, HvError> {
        Ok(1)
    }
    fn hv_gic_get_redistributor_base_alignment(&self) -> Result<u64, HvError> {
        Ok(1)
    }
    fn hv_gic_get_distributor_size(&self) -> Result<u64, HvError> {
        Err(HvError::Unsupported)
    }
    fn hv_gic_get_redistributor_size(&self) -> Result<u64, HvError> {
        Err(HvError::Unsupported)
    }
    fn hv_gic_get_redistributor_region_size(&self) -> Result<u64, HvError> {
        Err(HvError::Unsupported)
    }
    fn hv_gic_get_msi_region_size(&self) -> Result<u64, HvError> {
        Err(HvError::Unsupported)
    }
    fn hv_gic_get_msi_region_base_alignment(&self) -> Result<u64, HvError> {
        Ok(1)
    }
    fn hv_gic_send_msi(&self, _address: u64, intid: IntId) -> Result<(), HvError> {
        self.messages.lock().unwrap().push(intid);
        Ok(())
    }
    fn hv_gic_get_redistributor_base(&self, _vcpu: VcpuHandle) -> Result<u64, HvError> {
        Err(HvError::Unsupported)
    }
    fn hv_gic_reset(&self) -> Result<(), HvError> {
        Err(HvError::Unsupported)
    }
    fn hv_gic_state_create(&self) -> Result<Vec<u8>, HvError> {
        Err(HvError::Unsupported)
    }
    fn hv_gic_set_state(&self, _state: &[u8]) -> Result<(), HvError> {
        Err(HvError::Unsupported)
    }
}

/// What an embedder does: two vCPUs on threads of their own, devices on others, interrupts taken by the guest.
#[test]
fn devices_interrupt_vcpus_that_run_on_their_own_threads() {
    const ROUNDS: usize = 200;
    let process = process();
    let gic = Gic::create(Arc::clone(&process), GIC).unwrap();
    let uart = Arc::new(gic.level_line(Spi(1)).unwrap());
    let vector = {
        let vectors = SinkVectors::new(Arc::new(gic.msi_sink().unwrap()));
        let vector = vectors.vector(FUNCTION).unwrap();
        let (address, data) = (MSI.doorbell(), 64);
        vector.program(Some(MsiMessage { address, data })).unwrap();
        vector
    };

    let (ready, vcpus) = mpsc::channel();
    let (took, interrupts) = mpsc::channel();
    thread::scope(|scope| {
        for (mpidr, (intid, mode)) in [(UART, TriggerMode::Level), (IntId(64), TriggerMode::Edge)]
            .into_iter()
            .enumerate()
        {
            let (process, uart, ready, took) = (&process, Arc::clone(&uart), ready.clone(), took.clone());
            scope.spawn(move || {
                let vcpu = process.hv_vcpu_create().unwrap();
                process
                    .hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, mpidr as u64)
                    .unwrap();
                let cpu = process.guest_cpu(vcpu).unwrap();
                cpu.start();
                cpu.enable(intid, mode);
                process
                    .set_guest(vcpu, move |cpu, _event| {
                        if let Some(intid) = cpu.acknowledge() {
                            if intid == UART {
                                // The driver satisfies the device before it ends the interrupt.
                                uart.clear().unwrap();
                            }
                            cpu.end(intid);
                            took.send((mpidr, intid)).unwrap();
                        }
                        GuestStep::Continue
                    })
                    .unwrap();
                // The topology freezes with the first run, so all vCPUs are made first.
                let (go, wait) = mpsc::channel();
                ready.send((vcpu, go)).unwrap();
                wait.recv().unwrap();
                assert_eq!(process.hv_vcpu_run(vcpu), Ok(VcpuExit::Canceled));
                process.hv_vcpu_destroy(vcpu).unwrap();
            });
        }
        let vcpus: Vec<_> = (0..2).map(|_| vcpus.recv_timeout(LONG).unwrap()).collect();
        let _stop = StopOnDrop(&process, vcpus.iter().map(|(vcpu, _)| *vcpu).collect());
        vcpus.iter().for_each(|(_, go)| go.send(()).unwrap());
        for _ in 0..ROUNDS {
            uart.trigger().unwrap();
            assert_eq!(interrupts.recv_timeout(LONG), Ok((0, UART)));
            vector.trigger().unwrap();
            assert_eq!(interrupts.recv_timeout(LONG), Ok((1, IntId(64))));
        }
    });
    assert!(
        interrupts.try_recv().is_err(),
        "no interrupt more than there were causes"
    );
    process.hv_vm_destroy().unwrap();
}

/// Also when a test fails, so that its vCPU threads end.
struct StopOnDrop<'a>(&'a Process, Vec<VcpuHandle>);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        let _ = self.0.hv_vcpus_exit(&self.1);
    }
}
