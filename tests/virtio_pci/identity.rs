//! What a driver finds before it talks to the device: IDs, BARs, capabilities, shared memory.

use std::sync::{Arc, Mutex};

use devisor::{
    pci::{BarIndex, Function},
    virtio::transport::{
        TransportError,
        pci::{VirtioPciError, VirtioPciOptions},
    },
};

use crate::driver::*;

/// A capability as it lies in configuration space.
fn capabilities(driver: &Driver) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = driver.config(0x34, 1);
    while at != 0 {
        found.push((at, driver.config(at, 1)));
        at = driver.config(at + 1, 1);
    }
    found
}

/// `struct virtio_pci_cap`: type, BAR, ID, offset, length, capability length.
fn structures(driver: &Driver) -> Vec<[u64; 6]> {
    let vendor_specific = |&(_, id): &(u64, u64)| id == 9;
    let read = |(at, _)| {
        [
            driver.config(at + 3, 1),
            driver.config(at + 4, 1),
            driver.config(at + 5, 1),
            driver.config(at + 8, 4),
            driver.config(at + 12, 4),
            driver.config(at + 2, 1),
        ]
    };
    capabilities(driver)
        .into_iter()
        .filter(vendor_specific)
        .map(read)
        .collect()
}

fn of_type(id: u32) -> Driver {
    let probe = Probe { id, ..Probe::default() };
    Driver::with(probe, VirtioPciOptions::default()).unwrap()
}

#[test]
fn a_function_is_a_modern_device_of_its_type() {
    for (id, class) in [
        (1, 0x020000),
        (2, 0x018000),
        (3, 0x078000),
        (4, 0xff0000),
        (5, 0xff0000),
        (8, 0x010000),
        (9, 0x028000),
        (16, 0x038000),
        (18, 0x098000),
        (19, 0x078000),
        (20, 0x108000),
        (25, 0x040100),
        (26, 0x018000),
        (63, 0xff0000),
    ] {
        let driver = of_type(id);
        assert_eq!(driver.config(0, 2), 0x1af4);
        assert_eq!(driver.config(2, 2), 0x1040 + u64::from(id));
        assert_eq!(driver.config(8, 4), class << 8 | 1, "type {id}");
        assert_eq!((driver.config(0x2c, 2), driver.config(0x2e, 2)), (0x1af4, 0x40));
        assert_eq!(driver.config(0x3d, 1), 1, "INTA");
    }
}

#[test]
fn capabilities_say_where_the_structures_are() {
    let driver = Driver::cold();
    let ids: Vec<_> = capabilities(&driver).iter().map(|&(_, id)| id).collect();
    assert_eq!(ids, [0x11, 9, 9, 9, 9, 9]);
    assert_eq!(
        structures(&driver),
        [
            [1, 0, 0, 0, 0x3c, 16],
            [3, 0, 0, ISR, 1, 16],
            [4, 0, 0, CONFIG, 0x1000, 16],
            [2, 0, 0, NOTIFY, 8, 20],
            [5, 0, 0, 0, 0, 20],
        ]
    );
    let multiplier = capabilities(&driver)[4].0 + 16;
    assert_eq!(driver.config(multiplier, 4), 4);
    assert_eq!(
        driver.config(MSIX_CONTROL, 2),
        2,
        "a vector for each queue and one for the configuration"
    );
    assert_eq!(driver.config(0x44, 4), 1);
    assert_eq!(driver.config(0x48, 4), PBA | 1);
}

#[test]
fn bars_are_as_large_as_what_is_in_them() {
    let sizes = |driver: &Driver| {
        [0, 1, 2, 3].map(|bar| {
            driver.set_config(BAR0 + 4 * bar, 4, 0xffff_ffff);
            driver.config(BAR0 + 4 * bar, 4)
        })
    };
    assert_eq!(sizes(&Driver::cold()), [0xffff_c000, 0xffff_e000, 0, 0]);
    let many = Probe {
        sizes: vec![SIZE; 5000],
        ..Probe::default()
    };
    let driver = Driver::with(many, VirtioPciOptions::default()).unwrap();
    assert_eq!(sizes(&driver), [0xffff_8000, 0xffff_0000, 0, 0]);
    assert_eq!(driver.config(MSIX_CONTROL, 2), 2047);
}

#[test]
fn vectors_are_as_many_as_the_embedder_says() {
    let with = |vectors| {
        let options = VirtioPciOptions {
            vectors: Some(vectors),
            ..VirtioPciOptions::default()
        };
        Driver::with(Probe::default(), options)
    };
    assert_eq!(with(1).unwrap().config(MSIX_CONTROL, 2), 0);
    assert_eq!(with(2048).unwrap().config(MSIX_CONTROL, 2), 2047);
    assert!(matches!(with(2049), Err(VirtioPciError::Config(_))));
    let none = with(0).unwrap();
    assert!(capabilities(&none).iter().all(|&(_, id)| id == 9));
    none.set(CONFIG_MSIX_VECTOR, 0);
    assert_eq!(none.get(CONFIG_MSIX_VECTOR), NO_VECTOR);
}

#[test]
fn what_cannot_be_a_function_is_refused() {
    let refused = |probe| Driver::with(probe, VirtioPciOptions::default()).err().unwrap();
    for id in [0, 64, u32::MAX] {
        let probe = Probe { id, ..Probe::default() };
        assert_eq!(refused(probe), VirtioPciError::DeviceType(id));
    }
    let odd = Probe {
        sizes: vec![3],
        ..Probe::default()
    };
    assert_eq!(
        refused(odd),
        VirtioPciError::Transport(TransportError::QueueSize { index: 0, size: 3 })
    );
    let crowded = Probe {
        regions: (0..8).map(|id| (id, 0x1000)).collect(),
        ..Probe::default()
    };
    assert!(matches!(refused(crowded), VirtioPciError::Config(_)));
    let long = Probe {
        regions: vec![(0, 1 << 62), (7, u64::MAX)],
        ..Probe::default()
    };
    assert_eq!(refused(long), VirtioPciError::SharedMemory { id: 7, len: u64::MAX });
}

#[test]
fn shared_memory_regions_have_capabilities_and_a_bar() {
    let probe = Probe {
        regions: vec![(1, 0x3_0000_1000), (200, 0x2000)],
        ..Probe::default()
    };
    let mapped = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&mapped);
    let driver = Driver::build(probe, VirtioPciOptions::default(), |pci| {
        pci.with_shared_memory(move |id, address| log.lock().unwrap().push((id, address)))
    })
    .unwrap();
    let shared = structures(&driver).split_off(5);
    assert_eq!(
        shared,
        [[8, 2, 1, 0, 0x1000, 24], [8, 2, 200, 0x1_0000, 0x2000, 24]],
        "the low halves"
    );
    let high = |index: usize| {
        let at = capabilities(&driver)[6 + index].0;
        (driver.config(at + 16, 4), driver.config(at + 20, 4))
    };
    assert_eq!([high(0), high(1)], [(0, 3), (3, 0)]);
    driver.set_config(BAR0 + 8, 8, u64::MAX);
    assert_eq!(
        driver.config(BAR0 + 8, 8),
        0xffff_fffc_0000_000c,
        "64 bits, prefetchable"
    );

    let taken = || std::mem::take(&mut *mapped.lock().unwrap());
    driver.set_config(BAR0 + 8, 8, 0x80_0000_0000);
    assert_eq!(taken(), [], "it does not decode yet");
    driver.set_config(COMMAND, 2, MEMORY_SPACE.into());
    assert_eq!(taken(), [(1, Some(0x80_0000_0000)), (200, Some(0x83_0001_0000))]);
    driver.set_config(BAR0 + 12, 4, 0x90);
    assert_eq!(
        taken(),
        [
            (1, None),
            (200, None),
            (1, Some(0x90_0000_0000)),
            (200, Some(0x93_0001_0000))
        ]
    );
    assert_eq!(driver.bar(BarIndex::Bar2, 0, 4), 0xffff_ffff, "where nothing is mapped");
    driver.set_bar(BarIndex::Bar2, 0, 4, 0);
    driver.set_config(COMMAND, 2, 0);
    assert_eq!(taken(), [(1, None), (200, None)]);
    driver.set_config(COMMAND, 2, MEMORY_SPACE.into());
    taken();
    drop(driver);
    assert_eq!(taken(), [(1, None), (200, None)]);
}

#[test]
fn a_bar_that_is_not_there_reads_as_ones() {
    let driver = Driver::new();
    for bar in [BarIndex::Bar2, BarIndex::Bar5] {
        assert_eq!(driver.bar(bar, 0, 8), u64::MAX);
        driver.set_bar(bar, 0, 8, 0);
    }
    assert_eq!(driver.pci.endpoint().address(), address());
}
