use crate::*;

/// Inputs of a vCPU whose guest traps at every interrupt, without the framework's GIC.
fn trapping() -> (Arc<Process>, VcpuHandle, VcpuInputs<Process>) {
    let process = process();
    let vcpu = process.hv_vcpu_create().unwrap();
    process
        .set_guest(vcpu, |_cpu, event| match event {
            GuestEvent::Interrupt(kind) => GuestStep::Trap(Trap::Hvc(kind as u16)),
            GuestEvent::Resumed => GuestStep::Continue,
        })
        .unwrap();
    let inputs = VcpuInputs::new(process.clone(), vcpu);
    (process, vcpu, inputs)
}

fn trap(kind: InterruptType) -> VcpuExit {
    VcpuExit::Exception {
        syndrome: Trap::Hvc(kind as u16).syndrome().unwrap(),
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
        fn hv_vcpu_set_pending_interrupt(&self, _: VcpuHandle, kind: InterruptType, up: bool) -> Result<(), HvError> {
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
