use crate::*;

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
