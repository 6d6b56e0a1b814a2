//! Kicks: trapped, and caught by the platform.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use devisor::{
    bus::{DoorbellStore, Doorbells, Space},
    pci::Function,
    virtio::{QueueIndex, VirtioTransport, features, transport::pci::VirtioPciOptions},
};

use crate::{
    driver::*,
    ring::{Ring, writable},
};

#[derive(Default)]
struct Log {
    /// By number: where each is caught now.
    caught: BTreeMap<u16, u64>,
    /// How often the platform was asked.
    asked: u32,
}

/// A platform that catches stores, or refuses to.
#[derive(Clone, Default)]
struct Platform {
    log: Arc<Mutex<Log>>,
    refuse: Arc<AtomicBool>,
}

struct Caught {
    platform: Platform,
    number: u16,
}

impl Drop for Caught {
    fn drop(&mut self) {
        self.platform.log.lock().unwrap().caught.remove(&self.number);
    }
}

impl Doorbells for Platform {
    fn catch(&self, number: u16, store: DoorbellStore) -> io::Result<Box<dyn Send + Sync>> {
        let mut log = self.log.lock().unwrap();
        log.asked += 1;
        if self.refuse.load(SeqCst) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let DoorbellStore {
            space,
            address,
            len,
            value,
        } = store;
        assert_eq!((space, len, value), (Space::Memory, None, None));
        assert!(
            !log.caught.values().any(|&taken| taken == address),
            "two doorbells at one address"
        );
        assert_eq!(log.caught.insert(number, address), None, "caught twice");
        Ok(Box::new(Caught {
            platform: self.clone(),
            number,
        }))
    }
}

impl Platform {
    fn caught(&self) -> Vec<(u16, u64)> {
        let log = self.log.lock().unwrap();
        log.caught.iter().map(|(&number, &address)| (number, address)).collect()
    }

    fn asked(&self) -> u32 {
        self.log.lock().unwrap().asked
    }

    fn driver(&self) -> Driver {
        let driver = Driver::build(Probe::default(), VirtioPciOptions::default(), |pci| {
            pci.with_caught_doorbells(self.clone())
        });
        let driver = driver.unwrap();
        driver.place();
        driver
    }
}

/// Where the doorbells of both queues are for BAR 0 at this address.
fn both(bar: u64) -> Vec<(u16, u64)> {
    vec![(0, bar + NOTIFY), (1, bar + NOTIFY + 4)]
}

#[test]
fn a_store_of_any_width_and_value_rings_the_doorbell_that_it_begins_at() {
    for (len, value) in [(1, 0), (2, 1), (4, 0xdead_0007), (8, u64::MAX), (2, 0)] {
        let driver = Driver::new();
        let [mut first, mut second] = driver.start();
        first.request(&[writable(0x8000, 1)]);
        second.request(&[writable(0x8000, 1)]);
        driver.set_bar(STRUCTURES, NOTIFY + 4, len, value);
        assert_eq!((first.used().len(), second.used().len()), (0, 1), "{len} bytes");
        for (offset, len) in [(1, 1), (2, 2), (3, 4), (6, 2), (8, 2), (0xffc, 4)] {
            driver.set_bar(STRUCTURES, NOTIFY + offset, len, 0);
        }
        assert_eq!(
            (first.used().len(), second.used().len()),
            (0, 0),
            "beside the doorbells"
        );
        assert_eq!(driver.bar(STRUCTURES, NOTIFY, 4), 0, "write-only");
    }
}

#[test]
fn a_kick_with_notification_data_is_one_of_32_bits() {
    let driver = Driver::new();
    driver.negotiate(ALL & !features::EVENT_IDX);
    let mut ring = driver.set_up_queue(1);
    driver.go();
    ring.request(&[writable(0x8000, 1)]);
    let data = driver.get(QUEUE_NOTIFY_DATA) | 1 << 16;
    driver.set_bar(STRUCTURES, NOTIFY + 4 * driver.get(QUEUE_NOTIFY_OFF), 4, data);
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn a_kick_before_driver_ok_means_nothing() {
    let driver = Driver::new();
    driver.negotiate(ALL);
    let mut ring = driver.set_up_queue(0);
    ring.request(&[writable(0x8000, 1)]);
    driver.kick(0);
    assert_eq!(ring.used().len(), 0);
    driver.go();
    assert_eq!(ring.used().len(), 1, "every queue is looked at then");
}

#[test]
fn doorbells_are_caught_from_driver_ok_on_and_gone_after_a_reset() {
    let platform = Platform::default();
    let driver = platform.driver();
    driver.negotiate(ALL & !features::EVENT_IDX);
    driver.set_up_queue(1);
    assert_eq!(platform.caught(), []);
    driver.go();
    assert_eq!(platform.caught(), [(1, 0x4000_3004)], "queue 0 is not enabled");
    driver.set(DEVICE_STATUS, 0);
    assert_eq!(platform.caught(), []);
    driver.start();
    assert_eq!(platform.caught(), both(0x4000_0000));
    Function::reset(&*driver.pci);
    assert_eq!(platform.caught(), []);
}

#[test]
fn a_caught_store_is_looked_after_by_who_is_told() {
    let platform = Platform::default();
    let driver = platform.driver();
    let [mut ring, _] = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.pci.process(QueueIndex(0));
    assert_eq!(ring.used().len(), 1);
    // And one that was not caught.
    driver.request(0, &mut ring);
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn caught_stores_follow_the_bar_and_what_lets_it_decode() {
    let platform = Platform::default();
    let driver = platform.driver();
    driver.start();
    driver.set_config(BAR0, 4, 0x5000_0000);
    assert_eq!(platform.caught(), both(0x5000_0000));
    driver.set_config(COMMAND, 2, BUS_MASTER.into());
    assert_eq!(platform.caught(), []);
    driver.set_config(BAR0, 4, 0x6000_0000);
    assert_eq!(platform.caught(), []);
    driver.set_config(COMMAND, 1, (MEMORY_SPACE | BUS_MASTER).into());
    assert_eq!(platform.caught(), both(0x6000_0000));

    let asked = platform.asked();
    driver.set_config(COMMAND, 2, MEMORY_SPACE.into());
    driver.set_config(COMMAND, 2, (MEMORY_SPACE | BUS_MASTER).into());
    driver.set_config(BAR0 + 4, 4, 0x7000_0000);
    assert_eq!(
        (platform.caught(), platform.asked()),
        (both(0x6000_0000), asked),
        "nothing has moved"
    );
    drop(driver);
    assert_eq!(platform.caught(), []);
}

#[test]
fn the_guest_sizes_the_bar_while_it_decodes() {
    let platform = Platform::default();
    let driver = platform.driver();
    driver.start();
    driver.set_config(BAR0, 4, 0xffff_ffff);
    assert_eq!(platform.caught(), both(0xffff_c000));
    driver.set_config(BAR0, 4, 0x4000_0000);
    assert_eq!(platform.caught(), both(0x4000_0000));
}

#[test]
fn a_queue_that_is_reset_by_itself_exits_until_it_is_enabled_again() {
    let platform = Platform::default();
    let driver = platform.driver();
    driver.start();
    driver.set(QUEUE_SELECT, 0);
    driver.set(QUEUE_RESET, 1);
    assert_eq!(platform.caught(), [(1, 0x4000_3004)]);
    driver.set_up_queue(0);
    assert_eq!(platform.caught(), both(0x4000_0000));
}

#[test]
fn a_store_that_the_platform_does_not_catch_exits() {
    let platform = Platform::default();
    platform.refuse.store(true, SeqCst);
    let driver = platform.driver();
    let [mut ring, _] = driver.start();
    assert_eq!((platform.caught(), platform.asked()), (vec![], 2));
    driver.request(0, &mut ring);
    assert_eq!(ring.used().len(), 1);
    driver.set_config(COMMAND, 2, (MEMORY_SPACE | BUS_MASTER).into());
    assert_eq!(platform.asked(), 2, "not asked again for the same");
    platform.refuse.store(false, SeqCst);
    driver.set_config(BAR0, 4, 0x5000_0000);
    assert_eq!(platform.caught(), both(0x5000_0000));
}

#[test]
fn a_restored_device_has_its_doorbells_caught() {
    let driver = Driver::new();
    driver.start();
    let state = driver.saved();
    let platform = Platform::default();
    let other = Driver::build(Probe::default(), VirtioPciOptions::default(), |pci| {
        pci.with_caught_doorbells(platform.clone())
    })
    .unwrap();
    other.pci.restore(&state).unwrap();
    assert_eq!(platform.caught(), both(0x4000_0000));
    assert!(other.pci.endpoint().is_bus_master());
}

#[test]
fn a_device_with_as_many_queues_as_can_be_has_the_last_one_caught() {
    const LAST: u16 = 0xfffe;
    let platform = Platform::default();
    let probe = Probe {
        sizes: vec![SIZE; usize::from(LAST) + 1],
        ..Probe::default()
    };
    let options = VirtioPciOptions {
        vectors: Some(0),
        ..VirtioPciOptions::default()
    };
    let driver = Driver::build(probe, options, |pci| pci.with_caught_doorbells(platform.clone())).unwrap();
    driver.place();
    driver.negotiate(ALL);
    driver.set(QUEUE_SELECT, LAST.into());
    driver.write_layout(&Ring::new(&driver.memory, 0x10000, SIZE));
    driver.set(QUEUE_ENABLE, 1);
    driver.go();
    let doorbell = 0x4000_0000 + NOTIFY + 4 * u64::from(LAST);
    assert_eq!(platform.caught(), [(LAST, doorbell)]);
}
