use crate::*;

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
