//! A vCPU in front of our GICv3, before macOS 15: what the guest does with the GIC, its timer and a device is served, and
//! everything else is for the embedder.

use std::collections::VecDeque;

use devisor::{
    backends::irqchip::{
        Ppi,
        gicv3::{GicV3, GicV3Config},
    },
    interrupt::level_from_fn,
};

use crate::*;

const DISTRIBUTOR: u64 = 0x0800_0000;
const REDISTRIBUTORS: u64 = 0x080a_0000;
const DEVICE: u64 = 0x0900_0000;
const TIMER: u64 = 27;

/// A device of one register.
#[derive(Default)]
struct Scratch(AtomicU32);

impl BusDevice for Scratch {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        write_le(data, self.0.load(Ordering::SeqCst).into());
    }
    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.store(read_le(data) as u32, Ordering::SeqCst);
    }
}

struct Machine {
    process: Arc<Process>,
    handle: VcpuHandle,
    gic: GicV3,
    scratch: Arc<Scratch>,
    vcpu: SoftwareVcpu<Process>,
}

fn x(number: u8) -> GeneralReg {
    GeneralReg::new(number).unwrap()
}

/// A host without a GIC, a vCPU of this thread, and a guest that executes these instructions when it takes an interrupt.
fn machine(timer: impl FnOnce(&GicV3) -> Box<dyn LevelInterrupt>) -> Machine {
    let config = Config {
        gic: false,
        ..Config::default()
    };
    let process = Arc::new(Process::with_config(config).unwrap());
    process.hv_vm_create().unwrap();
    let handle = process.hv_vcpu_create().unwrap();
    let inputs = VcpuInputs::new(Arc::clone(&process), handle);
    let outputs = CpuOutputs {
        irq: Box::new(inputs.irq()),
        fiq: Box::new(inputs.fiq()),
    };
    let gic = GicV3::new(GicV3Config::new(1), vec![outputs]).unwrap();
    let scratch = Arc::new(Scratch::default());
    let mut bus = Bus::new();
    bus.insert(DISTRIBUTOR, 0x1_0000, Arc::new(gic.distributor())).unwrap();
    let redistributors = gic.redistributors(0).unwrap();
    bus.insert(REDISTRIBUTORS, redistributors.size(), Arc::new(redistributors))
        .unwrap();
    bus.insert(DEVICE, 8, Arc::clone(&scratch) as _).unwrap();
    let parts = SoftwareVcpuParts {
        interface: gic.cpu_interface(CpuId(0)).unwrap(),
        timer: timer(&gic),
        bus,
    };
    let vcpu = SoftwareVcpu::new(inputs, parts);
    Machine {
        process,
        handle,
        gic,
        scratch,
        vcpu,
    }
}

fn on_the_gic(gic: &GicV3) -> Box<dyn LevelInterrupt> {
    Box::new(gic.ppi_line(CpuId(0), Ppi(11)).unwrap())
}

fn store(address: u64, operand: GeneralReg) -> Trap {
    Trap::Mmio {
        address,
        len: 4,
        operand: Some(operand),
        access: MmioAccess::Store,
    }
}

impl Machine {
    /// Has the guest execute instructions, each with this value in x1, until it has none left and calls the hypervisor.
    fn execute(&mut self, instructions: impl IntoIterator<Item = (u64, Trap)>) -> Trap {
        let mut instructions: VecDeque<_> = instructions.into_iter().collect();
        self.process
            .set_guest(self.handle, move |cpu, _event| match instructions.pop_front() {
                Some((value, trap)) => {
                    cpu.set_x(x(1), value);
                    GuestStep::Execute(trap)
                }
                None => GuestStep::hvc(),
            })
            .unwrap();
        self.process.wake_guest(self.handle).unwrap();
        self.run()
    }

    fn run(&mut self) -> Trap {
        let (process, handle) = (Arc::clone(&self.process), self.handle);
        match not_for_ever(&process, handle, || self.vcpu.run()).unwrap() {
            VcpuExit::Exception {
                syndrome,
                physical_address,
            } => Trap::decode(syndrome, physical_address),
            exit => panic!("{exit:?}"),
        }
    }

    /// The guest's start: everything on, SPI 1 and the timer enabled in Group 1.
    fn boot(&mut self) {
        let msr = |register| Trap::SysReg {
            register,
            operand: Some(x(1)),
            is_read: false,
        };
        let last = self.execute([
            (0, store(REDISTRIBUTORS + 0x14, x(1))),
            (0b11, store(DISTRIBUTOR, x(1))),
            (0b10, store(DISTRIBUTOR + 0x084, x(1))),
            (0b10, store(DISTRIBUTOR + 0x104, x(1))),
            (1 << TIMER, store(REDISTRIBUTORS + 0x1_0080, x(1))),
            (1 << TIMER, store(REDISTRIBUTORS + 0x1_0100, x(1))),
            (0xff, msr(SysReg::ICC_PMR_EL1)),
            (1, msr(SysReg::ICC_IGRPEN1_EL1)),
        ]);
        assert_eq!(last, Trap::Hvc(0));
    }

    /// From here on the guest handles its interrupts: reads ICC_IAR1_EL1, does this to the device, writes ICC_EOIR1_EL1, and
    /// calls the hypervisor.
    fn handle(&mut self, mut satisfy: impl FnMut(u64) + Send + 'static) {
        let mut step = 0;
        self.process
            .set_guest(self.handle, move |cpu, event| {
                match event {
                    GuestEvent::Interrupt(kind) => {
                        assert_eq!((kind, step), (InterruptType::Irq, 0));
                        step = 1;
                        return GuestStep::mrs(x(0), SysReg::ICC_IAR1_EL1);
                    }
                    GuestEvent::Resumed => step += 1,
                }
                match step {
                    2 => {
                        satisfy(cpu.x(x(0)));
                        GuestStep::msr(SysReg::ICC_EOIR1_EL1, x(0))
                    }
                    _ => {
                        step = 0;
                        GuestStep::Trap(Trap::Hvc(cpu.x(x(0)) as u16))
                    }
                }
            })
            .unwrap();
    }
}

#[test]
fn what_the_guest_does_with_the_gic_and_with_devices_is_served() {
    let mut machine = machine(on_the_gic);
    machine.boot();
    let before = machine.process.hv_vcpu_get_reg(machine.handle, Reg::Pc).unwrap();
    machine.scratch.0.store(0x8000_0080, Ordering::SeqCst);
    let load = |len, operand, access| Trap::Mmio {
        address: DEVICE,
        len,
        operand,
        access,
    };
    let signed = |to_64_bits| MmioAccess::LoadSigned { to_64_bits };
    machine.execute([
        (0, load(4, Some(x(2)), MmioAccess::Load)),
        (0, load(1, Some(x(3)), signed(true))),
        (0, load(1, Some(x(4)), signed(false))),
        (0, load(4, None, MmioAccess::Load)),
        (0, load(2, Some(x(5)), MmioAccess::Load)),
    ]);
    let register = |number| {
        machine
            .process
            .hv_vcpu_get_reg(machine.handle, Reg::X(x(number)))
            .unwrap()
    };
    assert_eq!(register(2), 0x8000_0080);
    assert_eq!(register(3), 0xffff_ffff_ffff_ff80);
    assert_eq!(register(4), 0xffff_ff80);
    assert_eq!(register(5), 0x0080);
    let pc = machine.process.hv_vcpu_get_reg(machine.handle, Reg::Pc).unwrap();
    assert_eq!(pc - before, 5 * 4, "behind each of them");

    machine.execute([(7, store(DEVICE, x(1)))]);
    assert_eq!(machine.scratch.0.load(Ordering::SeqCst), 7);
    let zero = Trap::Mmio {
        address: DEVICE,
        len: 4,
        operand: None,
        access: MmioAccess::Store,
    };
    machine.execute([(7, zero)]);
    assert_eq!(machine.scratch.0.load(Ordering::SeqCst), 0, "the zero register");
}

#[test]
fn what_is_not_of_the_gic_or_the_bus_is_the_embedders() {
    let mut machine = machine(on_the_gic);
    let unknown = Trap::SysReg {
        register: SysReg::new(3, 3, 9, 12, 0), // PMCR_EL0
        operand: Some(x(2)),
        is_read: true,
    };
    let written = |register| Trap::SysReg {
        register,
        operand: Some(x(1)),
        is_read: false,
    };
    let (unknown_write, read_only) = (written(SysReg::new(3, 3, 9, 12, 0)), written(SysReg::ICC_IAR1_EL1));
    let nowhere = store(0x0b00_0000, x(1));
    let mut pc = machine.process.hv_vcpu_get_reg(machine.handle, Reg::Pc).unwrap();
    let wait = Trap::Wait { for_event: false };
    for trap in [unknown, unknown_write, read_only, nowhere, wait, Trap::Smc(0)] {
        assert_eq!(machine.execute([(0, trap)]), trap);
        let now = machine.process.hv_vcpu_get_reg(machine.handle, Reg::Pc).unwrap();
        assert_eq!(now, pc, "{trap:?} is not skipped");
        machine.vcpu.skip().unwrap();
        pc += 4;
    }
    machine.process.hv_vcpus_exit(&[machine.handle]).unwrap();
    assert_eq!(machine.vcpu.run(), Ok(VcpuExit::Canceled));
}

#[test]
fn a_level_interrupt_is_taken_through_our_gic_until_its_cause_goes() {
    let mut machine = machine(on_the_gic);
    machine.boot();
    let line = Arc::new(machine.gic.level_line(Spi(1)).unwrap());
    let rounds = AtomicU32::new(0);
    let device = Arc::clone(&line);
    machine.handle(move |intid| {
        assert_eq!(intid, 33);
        if rounds.fetch_add(1, Ordering::SeqCst) == 1 {
            device.clear().unwrap();
        }
    });
    thread::scope(|scope| {
        scope.spawn(|| line.trigger().unwrap());
        // A line that rises stops a vCPU that runs.
        loop {
            let (process, handle) = (Arc::clone(&machine.process), machine.handle);
            match not_for_ever(&process, handle, || machine.vcpu.run()).unwrap() {
                VcpuExit::Canceled => {}
                exit => break assert!(is_trap(exit)),
            }
        }
    });
    assert_eq!(
        machine.run(),
        Trap::Hvc(33),
        "the second time, and then the line is down"
    );
    machine.process.hv_vcpus_exit(&[machine.handle]).unwrap();
    assert_eq!(machine.vcpu.run(), Ok(VcpuExit::Canceled));
}

#[test]
fn the_virtual_timer_is_a_level_until_the_guest_is_done_with_it() {
    let mut machine = machine(on_the_gic);
    machine.boot();
    let process = Arc::clone(&machine.process);
    let handle = machine.handle;
    let rounds = AtomicU32::new(0);
    machine.handle(move |intid| {
        assert_eq!(intid, TIMER);
        // The first time it comes back with the timer still due, as from a handler that has not set it on.
        if rounds.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
            process.set_vtimer(handle, false).unwrap();
        }
    });
    for _ in 0..3 {
        machine.process.set_vtimer(handle, true).unwrap();
        assert_eq!(machine.run(), Trap::Hvc(TIMER as u16));
        assert_eq!(
            machine.process.hv_vcpu_get_vtimer_mask(handle),
            Ok(true),
            "it is still due"
        );
        assert_eq!(machine.run(), Trap::Hvc(TIMER as u16));
        // Done: the next run lets it fire again.
        machine.process.hv_vcpus_exit(&[handle]).unwrap();
        assert_eq!(machine.vcpu.run(), Ok(VcpuExit::Canceled));
        assert_eq!(machine.process.hv_vcpu_get_vtimer_mask(handle), Ok(false));
    }
}

#[test]
fn a_timer_whose_line_refuses_fires_again() {
    let refusals = Arc::new(AtomicU32::new(3));
    let count = Arc::clone(&refusals);
    let mut machine = machine(move |gic| {
        let line = gic.ppi_line(CpuId(0), Ppi(11)).unwrap();
        Box::new(level_from_fn(move |up| {
            match count.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
                Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
                Err(_) if up => line.trigger(),
                Err(_) => line.clear(),
            }
        }))
    });
    machine.boot();
    let (process, handle) = (Arc::clone(&machine.process), machine.handle);
    let (count, mut first) = (Arc::clone(&refusals), true);
    machine.handle(move |_| {
        process.set_vtimer(handle, false).unwrap();
        if std::mem::take(&mut first) {
            assert_eq!(count.swap(2, Ordering::SeqCst), 0, "the rise was told in the end");
        }
    });
    machine.process.set_vtimer(handle, true).unwrap();
    assert_eq!(machine.run(), Trap::Hvc(TIMER as u16));
    assert_eq!(
        machine.run(),
        Trap::Hvc(TIMER as u16),
        "the fall was refused twice, and is told in the end"
    );
    assert_eq!(refusals.load(Ordering::SeqCst), 0);
    machine.process.hv_vcpus_exit(&[handle]).unwrap();
    assert_eq!(machine.vcpu.run(), Ok(VcpuExit::Canceled));
}

#[test]
fn another_thread_sends_an_sgi_to_a_vcpu_that_sleeps() {
    let mut machine = machine(on_the_gic);
    machine.boot();
    let redistributor = machine.gic.redistributor(CpuId(0)).unwrap();
    for offset in [0x1_0080, 0x1_0100] {
        redistributor.write(offset, &(1_u32 << TIMER | 1 << 5).to_le_bytes());
    }
    machine.handle(|intid| assert_eq!(intid, 5));
    let sender = machine.gic.cpu_interface(CpuId(0)).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || sender.write_sysreg(SysReg::ICC_SGI1R_EL1, 5 << 24 | 1).unwrap());
        loop {
            let (process, handle) = (Arc::clone(&machine.process), machine.handle);
            match not_for_ever(&process, handle, || machine.vcpu.run()).unwrap() {
                VcpuExit::Canceled => {}
                exit => break assert!(is_trap(exit)),
            }
        }
    });
}

/// A framework whose virtual timer has stopped the vCPU, and in which the guest then has `CNTV_CTL_EL0` so.
struct Timed {
    control: u64,
    exits: Mutex<VecDeque<VcpuExit>>,
    masks: Mutex<Vec<bool>>,
}

impl HvVcpus for Timed {
    fn hv_vcpu_run(&self, _: VcpuHandle) -> Result<VcpuExit, HvError> {
        Ok(self.exits.lock().unwrap().pop_front().unwrap_or(VcpuExit::Canceled))
    }
    fn hv_vcpu_get_sys_reg(&self, _: VcpuHandle, register: SysReg) -> Result<u64, HvError> {
        assert_eq!(register, SysReg::CNTV_CTL_EL0);
        Ok(self.control)
    }
    fn hv_vcpu_set_vtimer_mask(&self, _: VcpuHandle, masked: bool) -> Result<(), HvError> {
        self.masks.lock().unwrap().push(masked);
        Ok(())
    }
    fn hv_vcpu_get_vtimer_mask(&self, _: VcpuHandle) -> Result<bool, HvError> {
        Err(HvError::Unsupported)
    }
    fn hv_vcpu_set_pending_interrupt(&self, _: VcpuHandle, _: InterruptType, _: bool) -> Result<(), HvError> {
        Ok(())
    }
    fn hv_vcpu_get_pending_interrupt(&self, _: VcpuHandle, _: InterruptType) -> Result<bool, HvError> {
        Err(HvError::Unsupported)
    }
    fn hv_vcpus_exit(&self, _: &[VcpuHandle]) -> Result<(), HvError> {
        Ok(())
    }
}

#[test]
fn the_timers_line_is_up_while_it_is_enabled_and_due_and_the_guest_does_not_mask_it() {
    for control in 0..8 {
        let framework = Arc::new(Timed {
            control,
            exits: Mutex::new([VcpuExit::VtimerActivated].into()),
            masks: Mutex::default(),
        });
        let level = Arc::new(Mutex::new(None));
        let told = Arc::clone(&level);
        let inputs = VcpuInputs::new(Arc::clone(&framework), VcpuHandle(7));
        let output = || Box::new(level_from_fn(|_| Ok(())));
        let outputs = CpuOutputs {
            irq: output(),
            fiq: output(),
        };
        let gic = GicV3::new(GicV3Config::new(1), vec![outputs]).unwrap();
        let parts = SoftwareVcpuParts {
            interface: gic.cpu_interface(CpuId(0)).unwrap(),
            timer: Box::new(level_from_fn(move |up| {
                *told.lock().unwrap() = Some(up);
                Ok(())
            })),
            bus: Bus::new(),
        };
        assert_eq!(SoftwareVcpu::new(inputs, parts).run(), Ok(VcpuExit::Canceled));
        // ENABLE and ISTATUS, without IMASK.
        let fires = control == 0b101;
        assert_eq!(*level.lock().unwrap(), Some(fires), "{control:#b}");
        let unmasked: &[bool] = if fires { &[] } else { &[false] };
        assert_eq!(*framework.masks.lock().unwrap(), unmasked, "{control:#b}");
    }
}
