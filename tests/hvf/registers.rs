//! Registers of vCPUs and of the framework's GIC, and what a guest's trap says.

use crate::*;

const ISENABLER1: DistributorReg = DistributorReg(0x104);
const IROUTER33: DistributorReg = DistributorReg(0x6108);
const WAKER: RedistributorReg = RedistributorReg(0x14);
const TYPER: RedistributorReg = RedistributorReg(0x08);

#[test]
fn registers_of_the_distributor_are_what_the_guest_made_them() {
    let (process, _gic, vcpu) = machine();
    process.guest_cpu(vcpu).unwrap().enable(UART, TriggerMode::Edge);
    assert_eq!(process.hv_gic_get_distributor_reg(ISENABLER1), Ok(1 << 1));
    process.hv_gic_set_distributor_reg(ISENABLER1, 1 << 2).unwrap();
    assert_eq!(process.hv_gic_get_distributor_reg(ISENABLER1), Ok(0b110));
    process.hv_gic_set_distributor_reg(IROUTER33, 3).unwrap();
    assert_eq!(process.hv_gic_get_distributor_reg(IROUTER33), Ok(3), "64 bits");
    assert_eq!(
        process.hv_gic_get_distributor_reg(DistributorReg(0x6104)),
        Err(HvError::BadArgument),
        "half a register"
    );
}

#[test]
fn a_redistributor_is_that_of_the_place_that_mpidr_names() {
    let process = process();
    process.hv_gic_create(&GIC).unwrap();
    let vcpu = process.hv_vcpu_create().unwrap();
    assert_eq!(
        process.hv_gic_get_redistributor_reg(vcpu, TYPER),
        Err(HvError::BadArgument),
        "it has none yet"
    );
    assert_eq!(
        process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0x100),
        Err(HvError::BadArgument),
        "there is no such place: 8 CPUs are all at Aff1 = 0"
    );
    process
        .hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 1 << 31 | 5)
        .unwrap();
    let typer = process.hv_gic_get_redistributor_reg(vcpu, TYPER).unwrap();
    assert_eq!(
        (typer >> 32, typer >> 8 & 0xffff),
        (5, 5),
        "affinity and processor number"
    );
    assert_eq!(
        process.hv_gic_get_redistributor_base(vcpu),
        Ok(GIC.redistributor_base + 5 * 0x2_0000)
    );
    assert_eq!(process.hv_gic_get_redistributor_reg(vcpu, WAKER), Ok(0b110), "asleep");
    process.hv_gic_set_redistributor_reg(vcpu, WAKER, 0).unwrap();
    assert_eq!(process.hv_gic_get_redistributor_reg(vcpu, WAKER), Ok(0));
}

#[test]
fn registers_of_a_vcpu_belong_to_its_thread() {
    let (process, _gic, vcpu) = machine();
    let foreign = Err(process.config().codes.foreign_thread);
    let pmr = SysReg::ICC_PMR_EL1;
    elsewhere(|| {
        assert_eq!(process.hv_gic_get_redistributor_reg(vcpu, WAKER), foreign);
        assert_eq!(
            process.hv_gic_set_redistributor_reg(vcpu, WAKER, 0),
            foreign.map(|_| ())
        );
        assert_eq!(process.hv_gic_get_icc_reg(vcpu, pmr), foreign);
        assert_eq!(process.hv_gic_set_icc_reg(vcpu, pmr, 0), foreign.map(|_| ()));
        assert_eq!(process.hv_vcpu_get_reg(vcpu, Reg::Pc), foreign);
        assert_eq!(process.hv_vcpu_set_reg(vcpu, Reg::Pc, 0), foreign.map(|_| ()));
        assert_eq!(process.hv_vcpu_get_sys_reg(vcpu, SysReg::MPIDR_EL1), foreign);
        assert_eq!(
            process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 1),
            foreign.map(|_| ())
        );
        process.hv_gic_get_distributor_reg(ISENABLER1).unwrap();
    });
    assert_eq!(process.hv_gic_get_icc_reg(vcpu, pmr), Ok(0xf8));
}

#[test]
fn only_state_can_be_read_of_a_cpu_interface() {
    let (process, gic, vcpu) = machine();
    let cpu = process.guest_cpu(vcpu).unwrap();
    cpu.enable(IntId(34), TriggerMode::Edge);
    gic.edge_line(Spi(2)).unwrap().trigger().unwrap();
    for register in [SysReg::ICC_IAR1_EL1, SysReg::ICC_EOIR1_EL1, SysReg::MPIDR_EL1] {
        assert_eq!(process.hv_gic_get_icc_reg(vcpu, register), Err(HvError::BadArgument));
        assert_eq!(process.hv_gic_set_icc_reg(vcpu, register, 0), Err(HvError::BadArgument));
    }
    assert_eq!(cpu.acknowledge(), Some(IntId(34)), "the host took nothing");
}

#[test]
fn a_cpu_interface_is_saved_and_restored_beside_the_gic() {
    let set = [
        (SysReg::ICC_BPR0_EL1, 3),
        (SysReg::ICC_BPR1_EL1, 5),
        (SysReg::ICC_CTLR_EL1, 0b11),
        (SysReg::ICC_PMR_EL1, 0xa0),
        (SysReg::ICC_IGRPEN0_EL1, 0),
    ];
    let saved = elsewhere(|| {
        let (process, gic, vcpu) = machine();
        let cpu = process.guest_cpu(vcpu).unwrap();
        cpu.enable(IntId(34), TriggerMode::Edge);
        gic.edge_line(Spi(2)).unwrap().trigger().unwrap();
        assert_eq!(cpu.acknowledge(), Some(IntId(34)));
        for (register, value) in set {
            process.hv_gic_set_icc_reg(vcpu, register, value).unwrap();
        }
        let state = IccState::save(&*process, vcpu).unwrap();
        assert_eq!(state.binary_points, [3, 5], "also behind ICC_CTLR_EL1.CBPR");
        assert_eq!(state.active_priorities, [0, 1], "INTID 34 is active at priority 0");
        assert_eq!(
            process.hv_gic_get_icc_reg(vcpu, SysReg::ICC_CTLR_EL1).unwrap() & 0b11,
            0b11
        );
        (state, process.hv_gic_state_create().unwrap())
    });
    let (process, _gic, vcpu) = machine();
    process.hv_gic_set_state(&saved.1).unwrap();
    saved.0.restore(&*process, vcpu).unwrap();
    assert_eq!(IccState::save(&*process, vcpu), Ok(saved.0));
    assert_eq!(process.hv_gic_state_create().unwrap(), saved.1);
    assert_eq!(
        process.hv_gic_get_icc_reg(vcpu, SysReg::ICC_RPR_EL1),
        Ok(0),
        "what runs"
    );
}

#[test]
fn the_gic_says_which_interrupts_have_a_meaning() {
    let (process, ..) = machine();
    let intids = [
        GicInterrupt::PerformanceMonitor,
        GicInterrupt::Maintenance,
        GicInterrupt::El2PhysicalTimer,
        GicInterrupt::El1VirtualTimer,
        GicInterrupt::El1PhysicalTimer,
    ]
    .map(|interrupt| process.hv_gic_get_intid(interrupt).unwrap().0);
    assert_eq!(intids, [23, 25, 26, 27, 30]);
}

#[test]
fn a_system_without_the_gic_refuses_every_call_of_it() {
    let process = Process::with_config(Config {
        gic: false,
        ..Config::default()
    })
    .unwrap();
    process.hv_vm_create().unwrap();
    let no = HvError::Unsupported;
    assert_eq!(process.hv_gic_get_distributor_size(), Err(no));
    assert_eq!(process.hv_gic_get_spi_interrupt_range(), Err(no));
    assert_eq!(process.hv_gic_create(&GIC), Err(no));
    assert_eq!(process.hv_gic_set_spi(UART, true), Err(no));
    assert_eq!(process.hv_gic_send_msi(MSI.doorbell(), IntId(64)), Err(no));
    assert_eq!(process.hv_gic_reset(), Err(no));
    assert_eq!(process.hv_gic_state_create(), Err(no));
    assert_eq!(process.hv_gic_get_intid(GicInterrupt::Maintenance), Err(no));
    assert_eq!(process.hv_gic_get_distributor_reg(ISENABLER1), Err(no));
    let vcpu = process.hv_vcpu_create().unwrap();
    assert_eq!(process.hv_gic_get_icc_reg(vcpu, SysReg::ICC_PMR_EL1), Err(no));
    process.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0xffff).unwrap();
    process.hv_vcpus_exit(&[vcpu]).unwrap();
    assert_eq!(run(&process, vcpu), VcpuExit::Canceled);
}

/// Syndromes put together by hand from the tables of the architecture (DDI 0487, ESR_EL2).
#[test]
fn a_trap_says_what_the_guest_tried() {
    let x = |number| GeneralReg::new(number);
    let cases = [
        (0x01 << 26 | 1 << 25, Trap::Wait { for_event: false }),
        (0x01 << 26 | 1 << 25 | 1, Trap::Wait { for_event: true }),
        (0x16 << 26 | 1 << 25 | 0x1234, Trap::Hvc(0x1234)),
        (0x17 << 26 | 1 << 25 | 7, Trap::Smc(7)),
        // MRS x9, ICC_IAR1_EL1: Op0 3, Op2 0, Op1 0, CRn 12, Rt 9, CRm 12.
        (
            0x18 << 26 | 1 << 25 | 3 << 20 | 12 << 10 | 9 << 5 | 12 << 1 | 1,
            Trap::SysReg {
                register: SysReg::ICC_IAR1_EL1,
                operand: x(9),
                is_read: true,
            },
        ),
        // MSR ICC_EOIR1_EL1, xzr.
        (
            0x18 << 26 | 1 << 25 | 3 << 20 | 1 << 17 | 12 << 10 | 31 << 5 | 12 << 1,
            Trap::SysReg {
                register: SysReg::ICC_EOIR1_EL1,
                operand: None,
                is_read: false,
            },
        ),
        // STR w3 and LDRSB x4, a translation fault at level 1.
        (
            0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 3 << 16 | 1 << 6 | 5,
            Trap::Mmio {
                address: 0x0900_0000,
                len: 4,
                operand: x(3),
                access: MmioAccess::Store,
            },
        ),
        (
            0x24 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 4 << 16 | 1 << 15 | 5,
            Trap::Mmio {
                address: 0x0900_0000,
                len: 1,
                operand: x(4),
                access: MmioAccess::LoadSigned { to_64_bits: true },
            },
        ),
    ];
    for (syndrome, trap) in cases {
        assert_eq!(Trap::decode(syndrome, 0x0900_0000), trap, "{syndrome:#x}");
        assert_eq!(trap.syndrome(), Some(syndrome), "{trap:?}");
    }
    // An LDP, which the syndrome does not describe; an abort on a walk of the guest's tables; an instruction abort.
    for syndrome in [
        0x24 << 26 | 1 << 25 | 5,
        0x24 << 26 | 1 << 25 | 1 << 24 | 1 << 7 | 5,
        0x20 << 26 | 1 << 25 | 5,
    ] {
        assert_eq!(Trap::decode(syndrome, 0), Trap::Other { syndrome });
    }
}
