use crate::*;

#[test]
fn every_code_of_the_header_goes_there_and_back() {
    let named = [
        (1, HvError::Error),
        (2, HvError::Busy),
        (3, HvError::BadArgument),
        (4, HvError::IllegalGuestState),
        (5, HvError::NoResources),
        (6, HvError::NoDevice),
        (7, HvError::Denied),
        (0xf, HvError::Unsupported),
    ];
    for (offset, error) in named {
        let code = 0xFAE9_4000 + offset;
        assert_eq!(HvReturn(code as i32).check(), Err(error));
        assert_eq!(error.code(), code);
    }
    assert_eq!(HvReturn(0).check(), Ok(()));
    assert_eq!(HvReturn(-1).check(), Err(HvError::Other(u32::MAX)));
    assert_eq!(HvError::Other(7).code(), 7);
}

#[test]
fn an_error_becomes_an_io_error_of_its_kind_that_still_knows_the_code() {
    let error = io::Error::from(HvError::Denied);
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let inner = error.get_ref().unwrap().downcast_ref::<HvError>();
    assert_eq!(inner, Some(&HvError::Denied));
}

#[test]
fn codes_that_apple_does_not_document_are_the_embedders_to_choose() {
    let codes = Codes {
        second_vm: HvError::Other(1),
        no_gic: HvError::Other(2),
        pending_with_gic: HvError::Other(3),
        ..Codes::default()
    };
    let config = Config {
        codes,
        ..Config::default()
    };
    let process = Process::with_config(config).unwrap();
    process.hv_vm_create().unwrap();
    assert_eq!(process.hv_vm_create(), Err(HvError::Other(1)));
    assert_eq!(process.hv_gic_set_spi(UART, true), Err(HvError::Other(2)));
    process.hv_gic_create(&GIC).unwrap();
    let vcpu = process.hv_vcpu_create().unwrap();
    let pending = process.hv_vcpu_set_pending_interrupt(vcpu, InterruptType::Irq, true);
    assert_eq!(pending, Err(HvError::Other(3)));
}

#[test]
fn a_host_that_the_mock_cannot_be_is_refused() {
    let with = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        Process::with_config(config).err()
    };
    assert_eq!(with(|c| c.vcpus = 0), Some(ConfigError::Vcpus(0)));
    assert_eq!(with(|c| c.vcpus = 513), Some(ConfigError::Vcpus(513)));
    assert_eq!(with(|c| c.cpus_per_cluster = 0), Some(ConfigError::Cluster(0)));
    assert_eq!(with(|c| c.cpus_per_cluster = 257), Some(ConfigError::Cluster(257)));
    let crowded = |c: &mut Config| (c.vcpus, c.cpus_per_cluster) = (512, 1);
    assert_eq!(with(crowded), Some(ConfigError::Cluster(1)), "Aff1 has 256 values");
    assert_eq!(with(|c| c.spis = 989), Some(ConfigError::Spis(989)));
    assert_eq!(with(|c| c.spis = 33), Some(ConfigError::Spis(33)));
    assert_eq!(with(|c| c.alignment = 0x800), Some(ConfigError::Alignment(0x800)));
    assert_eq!(with(|c| c.alignment = 0), Some(ConfigError::Alignment(0)));
    assert_eq!(with(|c| (c.vcpus, c.spis, c.alignment) = (1, 32, 0x1000)), None);
}
