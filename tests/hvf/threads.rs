use crate::*;

#[test]
fn what_belongs_to_the_owner_of_a_vcpu_is_refused_on_another_thread() {
    let (process, _gic, vcpu) = machine();
    let foreign = Err(process.config().codes.foreign_thread);
    elsewhere(|| {
        assert_eq!(process.hv_vcpu_run(vcpu).map(drop), foreign);
        assert_eq!(process.hv_vcpu_destroy(vcpu), foreign);
        assert_eq!(process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 1), foreign);
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
