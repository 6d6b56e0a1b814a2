use crate::*;

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
        [InterruptType::Irq, InterruptType::Fiq].map(|kind| process.hv_vcpu_get_pending_interrupt(vcpu, kind).unwrap())
    };
    process.set_guest(vcpu, |_cpu, _event| GuestStep::hvc()).unwrap();
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
fn a_timer_that_the_guest_masks_neither_stops_the_vcpu_nor_interrupts() {
    const IMASK: u64 = 1 << 1;
    let mask = |process: &Process, vcpu, value| {
        process.hv_vcpu_set_sys_reg(vcpu, SysReg::CNTV_CTL_EL0, value).unwrap();
    };
    let alone = process();
    let vcpu = alone.hv_vcpu_create().unwrap();
    alone.set_vtimer(vcpu, true).unwrap();
    mask(&alone, vcpu, IMASK);
    alone.hv_vcpus_exit(&[vcpu]).unwrap();
    assert_eq!(run(&alone, vcpu), VcpuExit::Canceled);
    assert_eq!(alone.hv_vcpu_get_sys_reg(vcpu, SysReg::CNTV_CTL_EL0), Ok(0b111));
    mask(&alone, vcpu, 0);
    assert_eq!(run(&alone, vcpu), VcpuExit::VtimerActivated);
    drop(alone);

    let (with_gic, _gic, vcpu) = machine();
    let cpu = with_gic.guest_cpu(vcpu).unwrap();
    cpu.enable(IntId(27), TriggerMode::Level);
    mask(&with_gic, vcpu, IMASK);
    with_gic.set_vtimer(vcpu, true).unwrap();
    assert_eq!(cpu.acknowledge(), None);
    mask(&with_gic, vcpu, 0);
    assert_eq!(cpu.acknowledge(), Some(IntId(27)));
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
    process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0).unwrap();
    process.set_vtimer(vcpu, true).unwrap();
    assert_eq!(run(&process, vcpu), VcpuExit::VtimerActivated);
}

#[test]
fn a_guest_that_ignores_its_interrupt_can_still_be_stopped() {
    let (process, _gic, vcpu) = machine();
    process.guest_cpu(vcpu).unwrap().enable(UART, TriggerMode::Level);
    let (sender, receiver) = mpsc::sync_channel(0);
    process
        .set_guest(vcpu, move |_cpu, _event| {
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
        .set_guest(vcpu, move |_cpu, _event| {
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
