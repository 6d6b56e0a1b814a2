//! The way to the BARs through configuration space.

use crate::{driver::*, ring::writable};

/// The capability and its fields (virtio 1.2, section 4.1.4).
struct Window<'a> {
    driver: &'a Driver,
    at: u64,
}

impl<'a> Window<'a> {
    fn new(driver: &'a Driver) -> Self {
        let mut at = driver.config(0x34, 1);
        while driver.config(at, 1) != 9 || driver.config(at + 3, 1) != 5 {
            at = driver.config(at + 1, 1);
        }
        Self { driver, at }
    }

    fn aim(&self, bar: u64, offset: u64, len: u64) {
        self.driver.set_config(self.at + 4, 1, bar);
        self.driver.set_config(self.at + 8, 4, offset);
        self.driver.set_config(self.at + 12, 4, len);
    }

    fn read(&self, bar: u64, offset: u64, len: usize) -> u64 {
        self.aim(bar, offset, len as u64);
        self.driver.config(self.at + 16, len)
    }

    fn write(&self, bar: u64, offset: u64, len: usize, value: u64) {
        self.aim(bar, offset, len as u64);
        self.driver.set_config(self.at + 16, len, value);
    }
}

#[test]
fn the_window_reaches_every_register_that_the_bars_reach_doorbells_included() {
    let driver = Driver::with_msix();
    let [mut ring, mut other] = driver.start();
    let window = Window::new(&driver);
    for register in (0..0x3c).step_by(2) {
        for len in [1, 2, 4] {
            if register % len as u64 == 0 {
                let direct = driver.bar(STRUCTURES, register, len);
                assert_eq!(window.read(0, register, len), direct, "{len} bytes at {register:#x}");
            }
        }
    }
    assert_eq!(window.read(0, CONFIG + 4, 2), 0x0605);
    window.write(0, CONFIG, 1, 0x77);
    assert_eq!(driver.pci.with_device(|probe| probe.written.clone()), [(0, vec![0x77])]);

    ring.request(&[writable(0x8000, 1)]);
    window.write(0, NOTIFY, 2, 0);
    assert_eq!(ring.used().len(), 1, "a doorbell");
    other.request(&[writable(0x8000, 1)]);
    window.write(0, NOTIFY + 4, 4, 1);
    assert_eq!(other.used().len(), 1);

    window.write(1, 0x1c, 4, 1);
    assert_eq!(
        (window.read(1, 0x1c, 4), driver.bar(MSIX, 0x1c, 4)),
        (1, 1),
        "the table of MSI-X"
    );
    driver.request(0, &mut ring);
    assert_eq!(window.read(1, PBA, 4), 0b010);

    window.write(0, QUEUE_MSIX_VECTOR, 2, 0);
    assert_eq!(driver.get(QUEUE_MSIX_VECTOR), 0);
    window.write(0, DEVICE_STATUS, 1, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn the_window_reads_isr_as_the_bar_does() {
    let driver = Driver::new();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    let window = Window::new(&driver);
    assert_eq!(window.read(0, ISR, 1), 1);
    assert_eq!((driver.isr(), driver.heard()), (0, vec![true, false]));
}

#[test]
fn the_window_works_while_nothing_decodes() {
    let driver = Driver::cold();
    let window = Window::new(&driver);
    window.write(0, DEVICE_STATUS, 1, 1);
    assert_eq!((window.read(0, DEVICE_STATUS, 1), driver.status()), (1, 1));
}

#[test]
fn the_fields_of_the_window_read_back() {
    let driver = Driver::new();
    let window = Window::new(&driver);
    window.aim(0xff, 0xffff_ffff, 0xffff_ffff);
    assert_eq!(driver.config(window.at + 4, 4), 0xff, "ID and padding are read-only");
    assert_eq!(driver.config(window.at + 8, 8), u64::MAX);
    assert_eq!(
        driver.config(window.at, 4),
        0x0514_0009 | driver.config(window.at + 1, 1) << 8
    );
}

#[test]
fn an_aim_that_cannot_be_reads_as_zero_and_writes_nothing() {
    let driver = Driver::new();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    let window = Window::new(&driver);
    for (bar, offset, len) in [
        (0, ISR, 0),
        (0, ISR, 3),
        (0, ISR, 8),
        (0, ISR, 0xffff_ffff),
        (6, ISR, 1),
        (0xff, ISR, 1),
        (0, ISR - 1, 2),
        (0, ISR - 2, 4),
        // The device's configuration answers such an access to the BAR.
        (0, CONFIG + 5, 2),
        (0, CONFIG + 2, 4),
    ] {
        window.aim(bar, offset, len);
        for width in [1, 2, 4] {
            assert_eq!(driver.config(window.at + 16, width), 0);
            driver.set_config(window.at + 16, width, 0xffff_ffff);
        }
    }
    assert_eq!(driver.isr(), 1, "nobody has read it");
    assert_eq!(driver.status(), WORKING);
    assert!(driver.pci.with_device(|probe| probe.written.is_empty()));
}

#[test]
fn an_access_that_only_runs_into_the_window_reaches_no_register() {
    let driver = Driver::new();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    let window = Window::new(&driver);
    window.aim(0, ISR, 1);
    for (at, len) in [(12, 8), (14, 4), (17, 1), (18, 2)] {
        driver.config(window.at + at, len);
    }
    let mut dump = [0; 256];
    devisor::pci::Function::read_config(&*driver.pci, 0, &mut dump);
    assert_eq!(driver.isr(), 1);
    window.aim(0, DEVICE_STATUS, 1);
    for (at, len) in [(17, 1), (18, 2)] {
        driver.set_config(window.at + at, len, 0);
    }
    window.aim(0, CONFIG, 4);
    driver.set_config(window.at + 16, 2, 0);
    assert!(
        driver.pci.with_device(|probe| probe.written.is_empty()),
        "two bytes of four"
    );
    assert_eq!(driver.status(), WORKING);
    // A wider read than was asked for: the rest is zero.
    window.aim(0, DEVICE_STATUS, 1);
    assert_eq!(driver.config(window.at + 16, 4), WORKING);
}
