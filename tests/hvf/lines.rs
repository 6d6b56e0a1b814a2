use crate::*;

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

#[test]
fn a_level_that_falls_while_the_guest_has_it_as_an_edge_is_down() {
    let (process, _gic, vcpu) = machine();
    let cpu = process.guest_cpu(vcpu).unwrap();
    cpu.enable(UART, TriggerMode::Level);
    process.hv_gic_set_spi(UART, true).unwrap();
    cpu.enable(UART, TriggerMode::Edge);
    process.hv_gic_set_spi(UART, false).unwrap();
    cpu.enable(UART, TriggerMode::Level);
    assert_eq!(cpu.acknowledge(), None);
}
