use crate::*;

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
    process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0).unwrap();
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
    process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0).unwrap();
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
    refused(&good[..good.len() - 8]);
    refused(&[&good[..], &[0]].concat());
    refused(&[&good[..], &[0; 8]].concat());
    for byte in 0..24 {
        let mut other = good.clone();
        other[byte] ^= 1;
        refused(&other);
    }
    // The first interrupt of CPU 0, behind four words of header and two of the CPU: bits that stand for nothing.
    for bit in [6, 7, 16, 63] {
        let mut other = good.clone();
        other[48 + bit / 8] ^= 1 << (bit % 8);
        refused(&other);
    }
    let mut all_ones = good.clone();
    all_ones[24..].fill(0xff);
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
    assert_eq!(read_le(&control), 0x50, "GICD_CTLR: DS and ARE, which are fixed");
    cpu.start();
    cpu.enable(IntId(34), TriggerMode::Edge);
    assert_eq!(cpu.acknowledge(), None, "neither the enable bit nor the pulse is left");
    cpu.enable(UART, TriggerMode::Level);
    assert_eq!(cpu.acknowledge(), Some(UART), "the device still drives its line");
}
