use crate::*;

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
    process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0).unwrap();
    let base = |vcpu| process.hv_gic_get_redistributor_base(vcpu).unwrap();
    assert_eq!(base(vcpu), GIC.redistributor_base);
    elsewhere(|| {
        let second = process.hv_vcpu_create().unwrap();
        assert_eq!(
            process.hv_vcpu_set_sys_reg(second, SysReg::MPIDR_EL1, 0),
            Err(HvError::BadArgument)
        );
        process.hv_vcpu_set_sys_reg(second, SysReg::MPIDR_EL1, 1).unwrap();
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

#[test]
fn no_two_vcpus_have_the_same_mpidr_also_where_there_is_no_gic() {
    let process = process();
    let set = |vcpu, mpidr| process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, mpidr);
    let vcpu = process.hv_vcpu_create().unwrap();
    set(vcpu, 3).unwrap();
    set(vcpu, 3).unwrap();
    elsewhere(|| {
        let second = process.hv_vcpu_create().unwrap();
        assert_eq!(set(second, 3), Err(HvError::BadArgument));
        set(second, 4).unwrap();
    });
}

#[test]
fn what_a_place_of_the_gic_has_pending_is_for_who_is_there_now() {
    let (process, _gic, vcpu) = machine();
    let set = |vcpu, mpidr| process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, mpidr);
    let pending = |vcpu| process.hv_vcpu_get_pending_interrupt(vcpu, InterruptType::Irq);
    process.guest_cpu(vcpu).unwrap().enable(UART, TriggerMode::Level);
    process.hv_gic_set_spi(UART, true).unwrap();
    assert_eq!(pending(vcpu), Ok(true));
    set(vcpu, 1).unwrap();
    assert_eq!(pending(vcpu), Ok(false), "it has left");
    process.hv_gic_set_spi(UART, false).unwrap();
    process.hv_gic_set_spi(UART, true).unwrap();
    assert_eq!(pending(vcpu), Ok(false));
    elsewhere(|| {
        let second = process.hv_vcpu_create().unwrap();
        set(second, 0).unwrap();
        assert_eq!(pending(second), Ok(true), "from before it came");
        let same_place = process.hv_vcpu_set_sys_reg(second, SysReg::MPIDR_EL1, 1 << 31 | 1);
        assert_eq!(same_place, Err(HvError::BadArgument), "the first is there");
        process.hv_vcpu_destroy(second).unwrap();
    });
    set(vcpu, 0).unwrap();
    assert_eq!(pending(vcpu), Ok(true), "the place was free again");
}
