//! Hypervisor.framework: the rules of its interrupt calls as the mock enforces them, and devisor's lines, messages and
//! vCPU inputs on top of them, all the way into a guest that takes the interrupts.
#![cfg(feature = "hvf")]

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
            Gic, GicConfig, GicError, HvError, HvGic, HvReturn, HvVcpus, IntIdRange, InterruptType, MsiConfig,
            VcpuExit, VcpuHandle, VcpuInput, VcpuInputs,
            mock::{Codes, Config, ConfigError, GuestStep, Process},
        },
        irqchip::{
            CpuId, IntId, Spi, TriggerMode,
            gicv2::{CpuOutputs, GicV2, GicV2Config},
        },
    },
    bus::{BusDevice, read_le},
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
    process.hv_vcpu_set_mpidr_el1(vcpu, 0).unwrap();
    process.guest_cpu(vcpu).unwrap().start();
    (process, gic, vcpu)
}

/// A guest that takes one interrupt, tells which, and calls the hypervisor.
fn taking_guest(process: &Process, vcpu: VcpuHandle) -> Arc<Mutex<Vec<IntId>>> {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&taken);
    process
        .set_guest(vcpu, move |cpu, kind| {
            assert_eq!(kind, InterruptType::Irq);
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

mod codes {
    use super::*;

    #[test]
    fn every_code_of_the_header_goes_there_and_back() {
        let named = [
            (1, HvError::Error),
            (2, HvError::Busy),
            (3, HvError::BadArgument),
            (4, HvError::IllegalGuestState),
            (5, HvError::NoResources),
            (6, HvError::NoDevice),
            (7, HvError::Denied),
            (0xf, HvError::Unsupported),
        ];
        for (offset, error) in named {
            let code = 0xFAE9_4000 + offset;
            assert_eq!(HvReturn(code as i32).check(), Err(error));
            assert_eq!(error.code(), code);
        }
        assert_eq!(HvReturn(0).check(), Ok(()));
        assert_eq!(HvReturn(-1).check(), Err(HvError::Other(u32::MAX)));
        assert_eq!(HvError::Other(7).code(), 7);
    }

    #[test]
    fn an_error_becomes_an_io_error_of_its_kind_that_still_knows_the_code() {
        let error = io::Error::from(HvError::Denied);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let inner = error.get_ref().unwrap().downcast_ref::<HvError>();
        assert_eq!(inner, Some(&HvError::Denied));
    }

    #[test]
    fn codes_that_apple_does_not_document_are_the_embedders_to_choose() {
        let codes = Codes {
            second_vm: HvError::Other(1),
            no_gic: HvError::Other(2),
            pending_with_gic: HvError::Other(3),
            ..Codes::default()
        };
        let config = Config {
            codes,
            ..Config::default()
        };
        let process = Process::with_config(config).unwrap();
        process.hv_vm_create().unwrap();
        assert_eq!(process.hv_vm_create(), Err(HvError::Other(1)));
        assert_eq!(process.hv_gic_set_spi(UART, true), Err(HvError::Other(2)));
        process.hv_gic_create(&GIC).unwrap();
        let vcpu = process.hv_vcpu_create().unwrap();
        let pending = process.hv_vcpu_set_pending_interrupt(vcpu, InterruptType::Irq, true);
        assert_eq!(pending, Err(HvError::Other(3)));
    }

    #[test]
    fn a_host_that_the_mock_cannot_be_is_refused() {
        let with = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            Process::with_config(config).err()
        };
        assert_eq!(with(|c| c.vcpus = 0), Some(ConfigError::Vcpus(0)));
        assert_eq!(with(|c| c.vcpus = 9), Some(ConfigError::Vcpus(9)));
        assert_eq!(with(|c| c.spis = 989), Some(ConfigError::Spis(989)));
        assert_eq!(with(|c| c.spis = 33), Some(ConfigError::Spis(33)));
        assert_eq!(with(|c| c.alignment = 0x800), Some(ConfigError::Alignment(0x800)));
        assert_eq!(with(|c| c.alignment = 0), Some(ConfigError::Alignment(0)));
        assert_eq!(with(|c| (c.vcpus, c.spis, c.alignment) = (1, 32, 0x1000)), None);
    }
}

mod order {
    use super::*;

    #[test]
    fn a_process_has_one_vm_and_another_process_has_its_own() {
        let (first, second) = (process(), process());
        assert_eq!(first.hv_vm_create(), Err(HvError::Busy));
        first.hv_gic_create(&GIC).unwrap();
        assert!(second.hv_gic_set_spi(UART, true).is_err(), "the GIC is the first one's");
        first.hv_vm_destroy().unwrap();
        assert!(first.hv_gic_set_spi(UART, true).is_err(), "it went with the VM");
        first.hv_vm_create().unwrap();
        first.hv_gic_create(&GIC).unwrap();
    }

    #[test]
    fn sizes_and_ranges_are_told_before_there_is_a_vm_and_all_else_needs_one() {
        let process = Process::new();
        assert!(process.hv_gic_get_distributor_size().unwrap() > 0);
        assert!(process.hv_gic_get_msi_region_size().unwrap() > 0);
        let one = process.hv_gic_get_redistributor_size().unwrap();
        let all = process.hv_gic_get_redistributor_region_size().unwrap();
        assert_eq!(all, one * 8, "of all vCPUs that there could be");
        let first = process.hv_gic_get_spi_interrupt_range().unwrap().first;
        assert_eq!(first, IntId(32));

        let no_vm = process.config().codes.no_vm;
        assert_eq!(process.hv_gic_create(&GIC), Err(no_vm));
        assert_eq!(process.hv_vcpu_create(), Err(no_vm));
        assert_eq!(process.hv_vm_destroy(), Err(no_vm));
        assert_eq!(process.hv_gic_set_spi(UART, true), Err(no_vm));
    }

    #[test]
    fn the_gic_comes_once_and_before_the_first_vcpu() {
        let process = process();
        let codes = process.config().codes;
        let vcpu = process.hv_vcpu_create().unwrap();
        assert_eq!(process.hv_gic_create(&GIC), Err(codes.gic_after_vcpu));
        process.hv_vcpu_destroy(vcpu).unwrap();
        process.hv_gic_create(&GIC).unwrap();
        assert_eq!(process.hv_gic_create(&GIC), Err(codes.second_gic));
    }

    #[test]
    fn nothing_reaches_a_gic_that_is_not_there() {
        let process = process();
        let no_gic = process.config().codes.no_gic;
        assert_eq!(process.hv_gic_set_spi(UART, true), Err(no_gic));
        assert_eq!(process.hv_gic_send_msi(MSI.doorbell(), IntId(64)), Err(no_gic));
        assert_eq!(process.hv_gic_reset(), Err(no_gic));
        assert_eq!(process.hv_gic_state_create(), Err(no_gic));
        assert_eq!(process.hv_gic_set_state(&[]), Err(no_gic));
        let vcpu = process.hv_vcpu_create().unwrap();
        assert_eq!(process.hv_gic_get_redistributor_base(vcpu), Err(no_gic));
    }

    #[test]
    fn a_vm_is_not_destroyed_under_its_vcpus() {
        let process = process();
        let vcpu = process.hv_vcpu_create().unwrap();
        assert_eq!(process.hv_vm_destroy(), Err(HvError::Busy));
        process.hv_vcpu_destroy(vcpu).unwrap();
        process.hv_vm_destroy().unwrap();
    }

    #[test]
    fn a_vcpu_needs_an_mpidr_of_its_own_to_have_a_redistributor_and_to_run() {
        let process = process();
        process.hv_gic_create(&GIC).unwrap();
        let vcpu = process.hv_vcpu_create().unwrap();
        let no_mpidr = process.config().codes.no_mpidr;
        assert_eq!(process.hv_vcpu_run(vcpu), Err(no_mpidr));
        assert_eq!(process.hv_gic_get_redistributor_base(vcpu), Err(HvError::BadArgument));
        process.hv_vcpu_set_mpidr_el1(vcpu, 0).unwrap();
        let base = |vcpu| process.hv_gic_get_redistributor_base(vcpu).unwrap();
        assert_eq!(base(vcpu), GIC.redistributor_base);
        elsewhere(|| {
            let second = process.hv_vcpu_create().unwrap();
            assert_eq!(process.hv_vcpu_set_mpidr_el1(second, 0), Err(HvError::BadArgument));
            process.hv_vcpu_set_mpidr_el1(second, 1).unwrap();
            assert_eq!(base(second), GIC.redistributor_base + 0x2_0000);
        });
    }

    #[test]
    fn the_topology_freezes_when_a_vcpu_has_run() {
        let (process, _gic, vcpu) = machine();
        process.hv_vcpus_exit(&[vcpu]).unwrap();
        run(&process, vcpu);
        let frozen = process.config().codes.vcpu_after_run;
        assert_eq!(elsewhere(|| process.hv_vcpu_create()), Err(frozen));
    }

    #[test]
    fn there_are_as_many_vcpus_as_the_host_supports() {
        let config = Config {
            vcpus: 1,
            ..Config::default()
        };
        let process = Process::with_config(config).unwrap();
        process.hv_vm_create().unwrap();
        process.hv_vcpu_create().unwrap();
        let full = process.config().codes.too_many_vcpus;
        assert_eq!(elsewhere(|| process.hv_vcpu_create()), Err(full));
    }
}

mod arguments {
    use super::*;

    #[test]
    fn an_address_that_is_not_aligned_is_refused_and_the_refusal_says_what_is_accepted() {
        let process = process();
        let configs = [
            (
                "distributor",
                GicConfig {
                    distributor_base: 0x0800_1000,
                    ..GIC
                },
            ),
            (
                "redistributor region",
                GicConfig {
                    redistributor_base: 0x0800_1000,
                    ..GIC
                },
            ),
            (
                "MSI region",
                GicConfig {
                    msi: Some(MsiConfig {
                        region_base: 0x0800_1000,
                        ..MSI
                    }),
                    ..GIC
                },
            ),
        ];
        for (region, config) in configs {
            assert_eq!(process.hv_gic_create(&config), Err(HvError::BadArgument));
            let error = Gic::create(Arc::clone(&process), config).unwrap_err();
            let (base, alignment) = (0x0800_1000, 0x1_0000);
            assert_eq!(
                error,
                GicError::Unaligned {
                    region,
                    base,
                    alignment
                }
            );
        }
    }

    #[test]
    fn the_msi_range_lies_in_the_spi_range() {
        let process = process();
        for (first, count) in [(31, 1), (1019, 2), (64, 0), (u32::MAX, 2), (32, u32::MAX)] {
            let interrupts = IntIdRange {
                first: IntId(first),
                count,
            };
            let msi = Some(MsiConfig { interrupts, ..MSI });
            let config = GicConfig { msi, ..GIC };
            assert_eq!(
                process.hv_gic_create(&config),
                Err(HvError::BadArgument),
                "{interrupts}"
            );
            let error = Gic::create(Arc::clone(&process), config).unwrap_err();
            assert!(matches!(error, GicError::MsiRange { .. }), "{error}");
        }
        let interrupts = IntIdRange {
            first: IntId(32),
            count: 988,
        };
        let msi = Some(MsiConfig { interrupts, ..MSI });
        process.hv_gic_create(&GicConfig { msi, ..GIC }).unwrap();
    }

    #[test]
    fn only_an_spi_outside_the_msi_range_can_be_set() {
        let (process, _gic, _vcpu) = machine();
        for intid in [0, 31, 64, 95, 1020, 1023, u32::MAX] {
            for level in [true, false] {
                assert_eq!(
                    process.hv_gic_set_spi(IntId(intid), level),
                    Err(HvError::BadArgument),
                    "{intid}"
                );
            }
        }
        for intid in [32, 63, 96, 1019] {
            process.hv_gic_set_spi(IntId(intid), true).unwrap();
        }
    }

    #[test]
    fn a_message_goes_to_the_doorbell_and_names_an_interrupt_of_the_msi_range() {
        let (process, _gic, _vcpu) = machine();
        let doorbell = MSI.region_base + 0x40;
        process.hv_gic_send_msi(doorbell, IntId(64)).unwrap();
        process.hv_gic_send_msi(doorbell, IntId(95)).unwrap();
        for (address, intid) in [
            (doorbell, 63),
            (doorbell, 96),
            (doorbell + 4, 64),
            (0, 64),
            (doorbell, u32::MAX),
        ] {
            let refused = process.hv_gic_send_msi(address, IntId(intid));
            assert_eq!(refused, Err(HvError::BadArgument), "{intid} to {address:#x}");
        }
    }

    #[test]
    fn a_handle_that_names_no_vcpu_is_refused_by_every_call() {
        let (process, _gic, vcpu) = machine();
        for other in [VcpuHandle(0), VcpuHandle(vcpu.0 + 1)] {
            let bad = Err(HvError::BadArgument);
            assert_eq!(process.hv_vcpus_exit(&[vcpu, other]), bad);
            assert_eq!(process.hv_vcpu_run(other).map(drop), bad);
            assert_eq!(process.hv_vcpu_set_vtimer_mask(other, true), bad);
            assert_eq!(process.hv_vcpu_destroy(other), bad);
            assert_eq!(process.hv_gic_get_redistributor_base(other).map(drop), bad);
        }
        let taken = taking_guest(&process, vcpu);
        process.guest_cpu(vcpu).unwrap().enable(UART, TriggerMode::Level);
        process.hv_gic_set_spi(UART, true).unwrap();
        assert!(is_trap(run(&process, vcpu)), "the exit that was refused stopped nobody");
        assert_eq!(*taken.lock().unwrap(), [UART]);
    }

    #[test]
    fn a_handle_is_not_an_index() {
        let (process, _gic, vcpu) = machine();
        let second = elsewhere(|| process.hv_vcpu_create()).unwrap();
        for handle in [vcpu, second] {
            assert!(handle.0 > 0xffff_ffff, "{handle:?}");
        }
        assert_ne!(second.0, vcpu.0 + 1);
    }

    #[test]
    fn ranges_are_kept_at_their_ends() {
        let range = IntIdRange {
            first: IntId(32),
            count: 4,
        };
        let inside: Vec<_> = (30..40).filter(|intid| range.contains(IntId(*intid))).collect();
        assert_eq!(inside, [32, 33, 34, 35]);
        assert_eq!(range.to_string(), "INTIDs 32 to 35");
    }
}

mod threads {
    use super::*;

    #[test]
    fn what_belongs_to_the_owner_of_a_vcpu_is_refused_on_another_thread() {
        let (process, _gic, vcpu) = machine();
        let foreign = Err(process.config().codes.foreign_thread);
        elsewhere(|| {
            assert_eq!(process.hv_vcpu_run(vcpu).map(drop), foreign);
            assert_eq!(process.hv_vcpu_destroy(vcpu), foreign);
            assert_eq!(process.hv_vcpu_set_mpidr_el1(vcpu, 1), foreign);
            let irq = InterruptType::Irq;
            assert_eq!(process.hv_vcpu_set_pending_interrupt(vcpu, irq, true), foreign);
            assert_eq!(process.hv_vcpu_get_pending_interrupt(vcpu, irq).map(drop), foreign);
            assert_eq!(process.hv_vcpu_set_vtimer_mask(vcpu, true), foreign);
            assert_eq!(process.hv_vcpu_get_vtimer_mask(vcpu).map(drop), foreign);
        });
    }

    #[test]
    fn lines_messages_and_exits_are_for_every_thread() {
        let (process, _gic, vcpu) = machine();
        elsewhere(|| {
            process.hv_gic_set_spi(UART, true).unwrap();
            process.hv_gic_send_msi(MSI.doorbell(), IntId(64)).unwrap();
            process.hv_vcpus_exit(&[vcpu]).unwrap();
        });
        assert_eq!(run(&process, vcpu), VcpuExit::Canceled);
    }

    #[test]
    fn a_thread_has_one_vcpu() {
        let process = process();
        let vcpu = process.hv_vcpu_create().unwrap();
        let second = process.config().codes.second_vcpu_of_thread;
        assert_eq!(process.hv_vcpu_create(), Err(second));
        process.hv_vcpu_destroy(vcpu).unwrap();
        process.hv_vcpu_create().unwrap();
    }
}

mod runs {
    use super::*;

    #[test]
    fn an_exit_sticks_to_the_next_run_and_to_no_other() {
        let (process, _gic, vcpu) = machine();
        let taken = taking_guest(&process, vcpu);
        process.guest_cpu(vcpu).unwrap().enable(UART, TriggerMode::Edge);
        process.hv_vcpus_exit(&[vcpu]).unwrap();
        process.hv_vcpus_exit(&[vcpu]).unwrap();
        process.hv_gic_set_spi(UART, true).unwrap();
        assert_eq!(process.hv_vcpu_run(vcpu), Ok(VcpuExit::Canceled));
        assert!(taken.lock().unwrap().is_empty());
        assert!(is_trap(run(&process, vcpu)));
        assert_eq!(*taken.lock().unwrap(), [UART]);
    }

    #[test]
    fn a_vcpu_that_sleeps_is_woken_by_an_exit_and_by_a_line() {
        let (process, gic, vcpu) = machine();
        let taken = taking_guest(&process, vcpu);
        process.guest_cpu(vcpu).unwrap().enable(UART, TriggerMode::Level);
        let line = gic.level_line(Spi(1)).unwrap();
        for _ in 0..20 {
            thread::scope(|scope| {
                scope.spawn(|| process.hv_vcpus_exit(&[vcpu]).unwrap());
                assert_eq!(run(&process, vcpu), VcpuExit::Canceled);
            });
            thread::scope(|scope| {
                scope.spawn(|| line.trigger().unwrap());
                assert!(is_trap(run(&process, vcpu)));
            });
            line.clear().unwrap();
        }
        assert_eq!(*taken.lock().unwrap(), [UART; 20]);
    }

    #[test]
    fn pending_interrupts_are_gone_when_a_run_returns() {
        let process = process();
        let vcpu = process.hv_vcpu_create().unwrap();
        let pending = || {
            [InterruptType::Irq, InterruptType::Fiq]
                .map(|kind| process.hv_vcpu_get_pending_interrupt(vcpu, kind).unwrap())
        };
        process.set_guest(vcpu, |_cpu, _kind| GuestStep::hvc()).unwrap();
        for kind in [InterruptType::Irq, InterruptType::Fiq] {
            process.hv_vcpu_set_pending_interrupt(vcpu, kind, true).unwrap();
        }
        assert_eq!(pending(), [true; 2]);
        assert!(is_trap(run(&process, vcpu)));
        assert_eq!(pending(), [false; 2]);
        process
            .hv_vcpu_set_pending_interrupt(vcpu, InterruptType::Irq, true)
            .unwrap();
        process
            .hv_vcpu_set_pending_interrupt(vcpu, InterruptType::Irq, false)
            .unwrap();
        process.hv_vcpus_exit(&[vcpu]).unwrap();
        assert_eq!(run(&process, vcpu), VcpuExit::Canceled);
    }

    #[test]
    fn the_virtual_timer_stops_the_vcpu_once_and_again_when_it_is_unmasked() {
        let process = process();
        let vcpu = process.hv_vcpu_create().unwrap();
        process.set_vtimer(vcpu, true).unwrap();
        assert_eq!(run(&process, vcpu), VcpuExit::VtimerActivated);
        assert_eq!(process.hv_vcpu_get_vtimer_mask(vcpu), Ok(true), "it masked itself");
        thread::scope(|scope| {
            let (process, later) = (&process, Duration::from_millis(20));
            scope.spawn(move || {
                thread::sleep(later);
                process.hv_vcpus_exit(&[vcpu]).unwrap();
            });
            assert_eq!(run(process, vcpu), VcpuExit::Canceled);
        });
        process.hv_vcpu_set_vtimer_mask(vcpu, false).unwrap();
        assert_eq!(run(&process, vcpu), VcpuExit::VtimerActivated);
    }

    #[test]
    fn with_the_gic_the_virtual_timer_is_intid_27() {
        let (process, _gic, vcpu) = machine();
        let taken = taking_guest(&process, vcpu);
        process.guest_cpu(vcpu).unwrap().enable(IntId(27), TriggerMode::Level);
        process.set_vtimer(vcpu, true).unwrap();
        assert!(is_trap(run(&process, vcpu)));
        assert_eq!(*taken.lock().unwrap(), [IntId(27)]);
        process.set_vtimer(vcpu, false).unwrap();
        assert_eq!(process.guest_cpu(vcpu).unwrap().acknowledge(), None);
    }

    #[test]
    fn whether_the_timer_stops_a_vcpu_that_has_a_gic_can_be_chosen() {
        let config = Config {
            vtimer_exits_with_gic: true,
            ..Config::default()
        };
        let process = Process::with_config(config).unwrap();
        process.hv_vm_create().unwrap();
        process.hv_gic_create(&GIC).unwrap();
        let vcpu = process.hv_vcpu_create().unwrap();
        process.hv_vcpu_set_mpidr_el1(vcpu, 0).unwrap();
        process.set_vtimer(vcpu, true).unwrap();
        assert_eq!(run(&process, vcpu), VcpuExit::VtimerActivated);
    }

    #[test]
    fn a_guest_that_ignores_its_interrupt_can_still_be_stopped() {
        let (process, _gic, vcpu) = machine();
        process.guest_cpu(vcpu).unwrap().enable(UART, TriggerMode::Level);
        let (sender, receiver) = mpsc::sync_channel(0);
        process
            .set_guest(vcpu, move |_cpu, _kind| {
                let _ = sender.try_send(());
                GuestStep::Continue
            })
            .unwrap();
        process.hv_gic_set_spi(UART, true).unwrap();
        thread::scope(|scope| {
            let process = &process;
            scope.spawn(move || {
                receiver.recv().unwrap();
                process.hv_vcpus_exit(&[vcpu]).unwrap();
            });
            assert_eq!(process.hv_vcpu_run(vcpu), Ok(VcpuExit::Canceled));
        });
    }

    #[test]
    fn a_vcpu_does_not_run_within_its_own_run() {
        let (process, _gic, vcpu) = machine();
        process.guest_cpu(vcpu).unwrap().enable(UART, TriggerMode::Level);
        let (inner, (sender, receiver)) = (Arc::downgrade(&process), mpsc::channel());
        process
            .set_guest(vcpu, move |_cpu, _kind| {
                let process = inner.upgrade().unwrap();
                let results = (process.hv_vcpu_run(vcpu).map(drop), process.hv_vcpu_destroy(vcpu));
                sender.send(results).unwrap();
                GuestStep::hvc()
            })
            .unwrap();
        process.hv_gic_set_spi(UART, true).unwrap();
        assert!(is_trap(run(&process, vcpu)));
        let busy = Err(HvError::Busy);
        assert_eq!(receiver.recv().unwrap(), (busy, busy));
    }
}

mod lines {
    use super::*;

    #[test]
    fn a_level_interrupt_comes_again_until_its_cause_goes() {
        let (process, gic, vcpu) = machine();
        let taken = taking_guest(&process, vcpu);
        process.guest_cpu(vcpu).unwrap().enable(UART, TriggerMode::Level);
        let line = gic.level_line(Spi(1)).unwrap();
        line.trigger().unwrap();
        line.trigger().unwrap();
        assert!(is_trap(run(&process, vcpu)));
        assert!(is_trap(run(&process, vcpu)));
        line.clear().unwrap();
        assert_eq!(*taken.lock().unwrap(), [UART; 2]);
        assert_eq!(process.guest_cpu(vcpu).unwrap().acknowledge(), None);
    }

    #[test]
    fn an_edge_comes_once_and_the_next_one_comes_too() {
        let (process, gic, vcpu) = machine();
        let taken = taking_guest(&process, vcpu);
        let cpu = process.guest_cpu(vcpu).unwrap();
        cpu.enable(UART, TriggerMode::Edge);
        let line = gic.edge_line(Spi(1)).unwrap();
        for _ in 0..2 {
            line.trigger().unwrap();
            assert!(is_trap(run(&process, vcpu)));
            assert_eq!(cpu.acknowledge(), None, "one pulse, one interrupt");
        }
        assert_eq!(*taken.lock().unwrap(), [UART; 2]);
    }

    #[test]
    fn a_fall_is_nothing_to_an_edge_triggered_interrupt() {
        let (process, _gic, vcpu) = machine();
        let cpu = process.guest_cpu(vcpu).unwrap();
        cpu.enable(UART, TriggerMode::Edge);
        process.hv_gic_set_spi(UART, false).unwrap();
        assert_eq!(cpu.acknowledge(), None);
        process.hv_gic_set_spi(UART, true).unwrap();
        process.hv_gic_set_spi(UART, false).unwrap();
        assert_eq!(cpu.acknowledge(), Some(UART), "the pulse is latched");
    }

    #[test]
    fn a_level_that_rose_before_the_guest_enabled_it_is_delivered() {
        let (process, gic, vcpu) = machine();
        let line = gic.level_line(Spi(1)).unwrap();
        line.trigger().unwrap();
        let cpu = process.guest_cpu(vcpu).unwrap();
        assert_eq!(cpu.acknowledge(), None);
        cpu.enable(UART, TriggerMode::Level);
        assert_eq!(cpu.acknowledge(), Some(UART));
    }

    #[test]
    fn a_line_is_for_an_spi_that_exists_and_is_not_for_messages() {
        let (_process, gic, _vcpu) = machine();
        for spi in [Spi(32), Spi(63), Spi(988), Spi(u32::MAX)] {
            let error = gic.level_line(spi).unwrap_err();
            assert!(matches!(error, GicError::NoSuchLine { .. }), "{error}");
            assert!(gic.edge_line(spi).is_err());
        }
        let error = gic.edge_line(Spi(32)).unwrap_err().to_string();
        assert!(error.contains("SPI 32 is INTID 64"), "{error}");
        assert!(error.contains("INTIDs 32 to 1019"), "{error}");
        for spi in [Spi(0), Spi(31), Spi(64), Spi(987)] {
            gic.level_line(spi).unwrap();
        }
    }

    #[test]
    fn a_level_line_is_one_devices_and_dropping_it_lets_go() {
        let (process, gic, vcpu) = machine();
        let cpu = process.guest_cpu(vcpu).unwrap();
        cpu.enable(UART, TriggerMode::Level);
        let line = gic.level_line(Spi(1)).unwrap();
        assert_eq!(gic.level_line(Spi(1)).unwrap_err(), GicError::Taken { spi: Spi(1) });
        line.trigger().unwrap();
        drop(line);
        assert_eq!(cpu.acknowledge(), None);
        gic.level_line(Spi(1)).unwrap();
    }

    #[test]
    fn a_refusal_of_the_framework_reaches_the_device() {
        let process = process();
        let gic = Gic::create(Arc::clone(&process), GIC).unwrap();
        let (level, edge) = (gic.level_line(Spi(1)).unwrap(), gic.edge_line(Spi(2)).unwrap());
        let sink = gic.msi_sink().unwrap();
        process.hv_vm_destroy().unwrap();
        assert_eq!(level.trigger().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(level.clear().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(edge.trigger().unwrap_err().kind(), io::ErrorKind::NotFound);
        let message = MsiMessage {
            address: MSI.doorbell(),
            data: 64,
        };
        assert_eq!(
            sink.send(FUNCTION, message).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );

        let error = Gic::create(process, GIC).unwrap_err();
        assert!(
            matches!(
                error,
                GicError::Refused {
                    call: "hv_gic_create",
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn a_line_whose_fall_was_refused_falls_when_it_is_dropped() {
        let framework = Arc::new(Lenient::default());
        let refuse = |refuse| framework.refuses.store(refuse, Ordering::SeqCst);
        let gic = Gic::create(Arc::clone(&framework), GIC).unwrap();
        let line = gic.level_line(Spi(1)).unwrap();
        line.trigger().unwrap();
        refuse(true);
        line.clear().unwrap_err();
        refuse(false);
        drop(line);
        assert_eq!(*framework.levels.lock().unwrap(), [true, false]);

        drop(gic.level_line(Spi(1)).unwrap());
        let calls = framework.levels.lock().unwrap().len();
        assert_eq!(calls, 2, "a line that was never up is left alone");
    }
}

mod messages {
    use super::*;

    fn message(data: u32) -> MsiMessage {
        let address = MSI.doorbell();
        MsiMessage { address, data }
    }

    #[test]
    fn a_message_interrupts_the_guest_with_the_intid_that_it_names() {
        let (process, gic, vcpu) = machine();
        let taken = taking_guest(&process, vcpu);
        process.guest_cpu(vcpu).unwrap().enable(IntId(70), TriggerMode::Edge);
        let vectors = SinkVectors::new(Arc::new(gic.msi_sink().unwrap()));
        let vector = vectors.vector(FUNCTION).unwrap();
        vector.program(Some(message(70))).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| vector.trigger().unwrap());
            assert!(is_trap(run(&process, vcpu)));
        });
        assert_eq!(*taken.lock().unwrap(), [IntId(70)]);
    }

    #[test]
    fn a_message_that_the_guest_got_wrong_is_refused_and_delivers_nothing() {
        let (process, gic, vcpu) = machine();
        let cpu = process.guest_cpu(vcpu).unwrap();
        cpu.enable(UART, TriggerMode::Edge);
        let sink = gic.msi_sink().unwrap();
        let elsewhere = |address| MsiMessage { address, data: 64 };
        let wrong = [
            message(33),
            message(63),
            message(96),
            message(64 | 1 << 16),
            message(u32::MAX),
            elsewhere(MSI.region_base),
            elsewhere(MSI.doorbell() | 1 << 32),
            elsewhere(u64::MAX),
        ];
        for message in wrong {
            let error = sink.send(FUNCTION, message).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{message:x?}");
        }
        assert_eq!(cpu.acknowledge(), None);

        let framework = Arc::new(Lenient::default());
        let sink = Gic::create(Arc::clone(&framework), GIC).unwrap().msi_sink().unwrap();
        let refused = wrong.iter().all(|message| sink.send(FUNCTION, *message).is_err());
        assert!(refused);
        sink.send(FUNCTION, message(64)).unwrap();
        let passed = framework.messages.lock().unwrap();
        assert_eq!(*passed, [IntId(64)], "the framework is not even asked");
    }

    #[test]
    fn a_gic_without_an_msi_region_has_no_sink_and_all_spis_are_lines() {
        let process = process();
        let gic = Gic::create(process.clone(), GicConfig { msi: None, ..GIC }).unwrap();
        assert_eq!(gic.msi_sink().unwrap_err(), GicError::NoMsi);
        gic.level_line(Spi(32)).unwrap().trigger().unwrap();
        let refused = process.hv_gic_send_msi(MSI.doorbell(), IntId(64));
        assert_eq!(refused, Err(HvError::BadArgument));
    }
}

mod state {
    use super::*;

    /// A machine on the thread of the test, whose state was taken when an edge and a level were pending.
    fn saved() -> Vec<u8> {
        elsewhere(|| {
            let (process, gic, vcpu) = machine();
            let cpu = process.guest_cpu(vcpu).unwrap();
            cpu.enable(UART, TriggerMode::Level);
            cpu.enable(IntId(34), TriggerMode::Edge);
            cpu.enable(IntId(27), TriggerMode::Level);
            let uart = gic.level_line(Spi(1)).unwrap();
            uart.trigger().unwrap();
            gic.edge_line(Spi(2)).unwrap().trigger().unwrap();
            process.hv_gic_state_create().unwrap()
        })
    }

    #[test]
    fn a_pending_edge_survives_and_a_level_follows_its_line() {
        let (process, gic, vcpu) = machine();
        process.hv_gic_set_state(&saved()).unwrap();
        let cpu = process.guest_cpu(vcpu).unwrap();
        assert_eq!(cpu.acknowledge(), Some(IntId(34)), "the edge is latched");
        cpu.end(IntId(34));
        assert_eq!(cpu.acknowledge(), None, "once, and nobody drives the level");
        gic.level_line(Spi(1)).unwrap().trigger().unwrap();
        assert_eq!(cpu.acknowledge(), None, "and the line is let go of");
        let line = gic.level_line(Spi(1)).unwrap();
        line.trigger().unwrap();
        assert_eq!(cpu.acknowledge(), Some(UART));
    }

    #[test]
    fn a_state_leaves_out_the_cpu_interface() {
        let process = process();
        process.hv_gic_create(&GIC).unwrap();
        let vcpu = process.hv_vcpu_create().unwrap();
        process.hv_gic_set_state(&saved()).unwrap();
        let cpu = process.guest_cpu(vcpu).unwrap();
        assert_eq!(cpu.acknowledge(), None, "the interface is off, as it was");
        cpu.start();
        assert_eq!(cpu.acknowledge(), Some(IntId(34)));
    }

    #[test]
    fn a_state_that_goes_back_is_the_same_when_it_is_taken_again() {
        let (process, _gic, _vcpu) = machine();
        let state = process.hv_gic_state_create().unwrap();
        process.hv_gic_set_state(&saved()).unwrap();
        assert_ne!(process.hv_gic_state_create().unwrap(), state);
        assert_eq!(process.hv_gic_state_create().unwrap(), saved());
        process.hv_gic_set_state(&state).unwrap();
        assert_eq!(process.hv_gic_state_create().unwrap(), state);
    }

    #[test]
    fn a_state_comes_after_the_vcpus_and_before_they_run() {
        let process = process();
        process.hv_gic_create(&GIC).unwrap();
        let state = saved();
        let out_of_order = Err(process.config().codes.state_out_of_order);
        assert_eq!(process.hv_gic_set_state(&state), out_of_order);
        let vcpu = process.hv_vcpu_create().unwrap();
        process.hv_vcpu_set_mpidr_el1(vcpu, 0).unwrap();
        process.hv_gic_set_state(&state).unwrap();
        process.hv_vcpus_exit(&[vcpu]).unwrap();
        run(&process, vcpu);
        assert_eq!(process.hv_gic_set_state(&state), out_of_order);
    }

    #[test]
    fn bytes_that_are_no_state_are_refused_and_change_nothing() {
        let (process, _gic, _vcpu) = machine();
        let before = process.hv_gic_state_create().unwrap();
        let refused = |state: &[u8]| assert_eq!(process.hv_gic_set_state(state), Err(HvError::BadArgument));
        let good = saved();
        refused(&[]);
        refused(&good[..good.len() - 1]);
        refused(&good[..good.len() - 4]);
        refused(&[&good[..], &[0]].concat());
        refused(&[&good[..], &[0; 4]].concat());
        for byte in 0..16 {
            let mut other = good.clone();
            other[byte] ^= 1;
            refused(&other);
        }
        let mut all_ones = good.clone();
        all_ones[16..].fill(0xff);
        refused(&all_ones);
        assert_eq!(process.hv_gic_state_create().unwrap(), before);
    }

    #[test]
    fn a_reset_forgets_what_the_guest_did_and_keeps_the_lines() {
        let (process, gic, vcpu) = machine();
        let cpu = process.guest_cpu(vcpu).unwrap();
        cpu.enable(UART, TriggerMode::Level);
        let line = gic.level_line(Spi(1)).unwrap();
        line.trigger().unwrap();
        gic.edge_line(Spi(2)).unwrap().trigger().unwrap();
        process.hv_gic_reset().unwrap();
        let mut control = [0xff; 4];
        cpu.distributor().unwrap().read(0, &mut control);
        assert_eq!(read_le(&control), 0, "GICD_CTLR");
        cpu.start();
        cpu.enable(IntId(34), TriggerMode::Edge);
        assert_eq!(cpu.acknowledge(), None, "neither the enable bit nor the pulse is left");
        cpu.enable(UART, TriggerMode::Level);
        assert_eq!(cpu.acknowledge(), Some(UART), "the device still drives its line");
    }
}

mod inputs {
    use super::*;

    /// Inputs of a vCPU whose guest traps at every interrupt, without the framework's GIC.
    fn trapping() -> (Arc<Process>, VcpuHandle, VcpuInputs<Process>) {
        let process = process();
        let vcpu = process.hv_vcpu_create().unwrap();
        let trap = |kind| GuestStep::Trap {
            syndrome: kind as u64,
            physical_address: 0,
        };
        process.set_guest(vcpu, move |_cpu, kind| trap(kind)).unwrap();
        let inputs = VcpuInputs::new(process.clone(), vcpu);
        (process, vcpu, inputs)
    }

    fn trap(kind: InterruptType) -> VcpuExit {
        VcpuExit::Exception {
            syndrome: kind as u64,
            physical_address: 0,
        }
    }

    #[test]
    fn a_level_stays_pending_from_run_to_run_until_it_falls() {
        let (process, vcpu, inputs) = trapping();
        let run = || not_for_ever(&process, vcpu, || inputs.run()).unwrap();
        inputs.irq().trigger().unwrap();
        assert_eq!(run(), trap(InterruptType::Irq));
        assert_eq!(run(), trap(InterruptType::Irq));
        inputs.irq().clear().unwrap();
        inputs.fiq().trigger().unwrap();
        assert_eq!(run(), trap(InterruptType::Fiq));
        inputs.fiq().clear().unwrap();
        process.hv_vcpus_exit(&[vcpu]).unwrap();
        assert_eq!(run(), VcpuExit::Canceled);
    }

    #[test]
    fn a_rise_stops_nobody_who_does_not_run() {
        let (process, vcpu, inputs) = trapping();
        inputs.irq().trigger().unwrap();
        let exit = not_for_ever(&process, vcpu, || inputs.run()).unwrap();
        assert_eq!(
            exit,
            trap(InterruptType::Irq),
            "at the first run, and not after an exit"
        );
    }

    #[test]
    fn no_rise_is_lost_whenever_it_comes() {
        let (process, vcpu, inputs) = trapping();
        let (irq, (next, turns)) = (inputs.irq(), mpsc::sync_channel(0));
        thread::scope(|scope| {
            scope.spawn(move || {
                for turn in turns {
                    // Before, into and after the start of the run.
                    for _ in 0..turn % 64 * 16 {
                        std::hint::spin_loop();
                    }
                    irq.trigger().unwrap();
                }
            });
            for turn in 0..500 {
                next.send(turn).unwrap();
                let taken = not_for_ever(&process, vcpu, || {
                    // One exit for the rise itself, one more for one that was late.
                    (0..3).any(|_| inputs.run() == Ok(trap(InterruptType::Irq)))
                });
                assert!(taken, "turn {turn}");
                inputs.irq().clear().unwrap();
            }
            drop(next);
        });
    }

    #[test]
    fn a_rise_after_the_levels_were_read_and_before_the_vcpu_runs_stops_the_run() {
        /// A framework in which IRQ rises at just that moment.
        #[derive(Default)]
        struct Late {
            irq: OnceLock<VcpuInput<Late>>,
            exits: AtomicU32,
        }
        impl HvVcpus for Late {
            fn hv_vcpu_set_pending_interrupt(
                &self,
                _: VcpuHandle,
                kind: InterruptType,
                up: bool,
            ) -> Result<(), HvError> {
                assert!(!up, "nothing was up when the run began");
                match kind {
                    InterruptType::Irq => Ok(()),
                    // The last that is read.
                    InterruptType::Fiq => self.irq.get().unwrap().trigger().map_err(|_| HvError::Error),
                }
            }
            fn hv_vcpus_exit(&self, _: &[VcpuHandle]) -> Result<(), HvError> {
                self.exits.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            fn hv_vcpu_run(&self, _: VcpuHandle) -> Result<VcpuExit, HvError> {
                match self.exits.load(Ordering::SeqCst) {
                    0 => Err(HvError::Error),
                    _ => Ok(VcpuExit::Canceled),
                }
            }
            fn hv_vcpu_get_pending_interrupt(&self, _: VcpuHandle, _: InterruptType) -> Result<bool, HvError> {
                Err(HvError::Unsupported)
            }
            fn hv_vcpu_set_vtimer_mask(&self, _: VcpuHandle, _: bool) -> Result<(), HvError> {
                Err(HvError::Unsupported)
            }
            fn hv_vcpu_get_vtimer_mask(&self, _: VcpuHandle) -> Result<bool, HvError> {
                Err(HvError::Unsupported)
            }
        }
        let late = Arc::new(Late::default());
        let inputs = VcpuInputs::new(Arc::clone(&late), VcpuHandle(7));
        assert!(late.irq.set(inputs.irq()).is_ok());
        assert_eq!(inputs.run(), Ok(VcpuExit::Canceled));
        inputs.irq().trigger().unwrap();
        assert_eq!(
            late.exits.load(Ordering::SeqCst),
            1,
            "and it stops nothing when nothing runs"
        );
    }

    #[test]
    fn with_the_frameworks_gic_there_are_no_inputs_to_set() {
        let (process, _gic, vcpu) = machine();
        let inputs = VcpuInputs::new(process.clone(), vcpu);
        assert_eq!(inputs.run(), Err(process.config().codes.pending_with_gic));
    }

    /// Before macOS 15: a controller of ours in front of the vCPU, and a guest that traps to reach it.
    #[test]
    fn a_software_controller_interrupts_a_vcpu_from_another_thread() {
        let (process, vcpu, inputs) = trapping();
        let outputs = CpuOutputs {
            irq: Box::new(inputs.irq()),
            fiq: Box::new(inputs.fiq()),
        };
        let gic = GicV2::new(GicV2Config::default(), vec![outputs]).unwrap();
        let (distributor, cpu) = (gic.distributor(CpuId(0)).unwrap(), gic.cpu_interface(CpuId(0)).unwrap());
        let write = |device: &dyn BusDevice, offset, value: u32| device.write(offset, &value.to_le_bytes());
        write(&distributor, 0x104, 1 << 1);
        write(&distributor, 0x000, 1);
        write(&cpu, 0x004, 0xff);
        write(&cpu, 0x000, 1);

        let line = gic.level_line(Spi(1)).unwrap();
        let mut taken = 0;
        thread::scope(|scope| {
            scope.spawn(|| line.trigger().unwrap());
            while taken < 2 {
                match not_for_ever(&process, vcpu, || inputs.run()).unwrap() {
                    VcpuExit::Canceled => continue,
                    exit => assert_eq!(exit, trap(InterruptType::Irq)),
                }
                // The trap: the guest reads GICC_IAR, and writes GICC_EOIR.
                let mut iar = [0; 4];
                cpu.read(0x00c, &mut iar);
                if read_le(&iar) == 33 {
                    taken += 1;
                    cpu.write(0x010, &iar);
                }
            }
        });
        line.clear().unwrap();
        process.hv_vcpus_exit(&[vcpu]).unwrap();
        assert_eq!(inputs.run(), Ok(VcpuExit::Canceled), "the line is down");
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
                process.hv_vcpu_set_mpidr_el1(vcpu, mpidr as u64).unwrap();
                let cpu = process.guest_cpu(vcpu).unwrap();
                cpu.start();
                cpu.enable(intid, mode);
                process
                    .set_guest(vcpu, move |cpu, _kind| {
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
