//! The bus that decodes addresses.

use std::sync::{Arc, Mutex};

use devisor::bus::{Bus, BusDevice, BusError, Unclaimed, read_le, write_le};
use proptest::prelude::*;

/// Answers every byte of a read with its name, and logs accesses as (offset, length).
struct Named {
    name: u8,
    reads: Mutex<Vec<(u64, usize)>>,
    writes: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl BusDevice for Named {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.reads.lock().unwrap().push((offset, data.len()));
        data.fill(self.name);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.writes.lock().unwrap().push((offset, data.to_vec()));
    }
}

fn named(name: u8) -> Arc<Named> {
    Arc::new(Named {
        name,
        reads: Mutex::default(),
        writes: Mutex::default(),
    })
}

fn unclaimed<T>(address: u64, len: usize) -> Result<T, Unclaimed> {
    Err(Unclaimed { address, len })
}

#[test]
fn a_device_has_its_first_byte_its_last_and_no_other() {
    let (device, mut bus) = (named(7), Bus::new());
    bus.insert(0x1000, 0x100, device.clone()).unwrap();
    let mut data = [0; 4];
    bus.read(0x1000, &mut data).unwrap();
    bus.read(0x10fc, &mut data).unwrap();
    bus.read(0x10ff, &mut data[..1]).unwrap();
    assert_eq!(*device.reads.lock().unwrap(), [(0, 4), (0xfc, 4), (0xff, 1)]);
    for (address, len) in [(0xfff, 1), (0x1100, 1), (0xffc, 4), (0, 4), (u64::MAX, 1)] {
        data.fill(0);
        assert_eq!(bus.read(address, &mut data[..len]), unclaimed(address, len));
        assert_eq!(data[..len], [0xff; 4][..len]);
        assert_eq!(bus.write(address, &data[..len]), unclaimed(address, len));
    }
    assert_eq!(device.reads.lock().unwrap().len(), 3);
    assert!(device.writes.lock().unwrap().is_empty());
}

#[test]
fn an_access_that_leaves_its_device_reaches_none() {
    let (low, high, mut bus) = (named(1), named(2), Bus::new());
    bus.insert(0x1000, 0x10, low.clone()).unwrap();
    bus.insert(0x1010, 0x10, high.clone()).unwrap();
    let mut data = [0; 4];
    for address in [0xffe, 0x100d, 0x100e, 0x100f, 0x101e] {
        data.fill(0);
        assert_eq!(bus.read(address, &mut data), unclaimed(address, 4), "{address:#x}");
        assert_eq!(data, [0xff; 4], "no byte of a device is in it");
        assert_eq!(bus.write(address, &[1; 4]), unclaimed(address, 4));
    }
    for device in [low, high] {
        assert!(device.reads.lock().unwrap().is_empty() && device.writes.lock().unwrap().is_empty());
    }
}

#[test]
fn a_write_brings_the_offset_and_all_its_bytes() {
    let (device, mut bus) = (named(1), Bus::new());
    bus.insert(0x4000, 0x20, device.clone()).unwrap();
    bus.write(0x4008, &[1, 2, 3]).unwrap();
    assert_eq!(*device.writes.lock().unwrap(), [(8, vec![1, 2, 3])]);
}

#[test]
fn an_access_of_no_bytes_is_claimed_where_a_device_is_and_nowhere_else() {
    let mut bus = Bus::new();
    bus.insert(0x1000, 0x10, named(1)).unwrap();
    assert_eq!(bus.read(0x100f, &mut []), Ok(()));
    assert_eq!(bus.write(0x1000, &[]), Ok(()));
    assert_eq!(bus.read(0x1010, &mut []), unclaimed(0x1010, 0));
    assert_eq!(bus.write(0xfff, &[]), unclaimed(0xfff, 0));
}

#[test]
fn a_device_may_end_with_the_address_space_and_an_access_may_not_pass_it() {
    let (device, mut bus) = (named(3), Bus::new());
    bus.insert(u64::MAX - 7, 8, device.clone()).unwrap();
    let mut data = [0; 8];
    bus.read(u64::MAX - 7, &mut data).unwrap();
    bus.read(u64::MAX, &mut data[..1]).unwrap();
    assert_eq!(bus.read(u64::MAX, &mut data[..2]), unclaimed(u64::MAX, 2));
    assert_eq!(bus.read(u64::MAX - 6, &mut data), unclaimed(u64::MAX - 6, 8));
    assert_eq!(*device.reads.lock().unwrap(), [(0, 8), (7, 1)]);
}

#[test]
fn a_device_may_have_all_of_the_address_space_but_its_last_byte() {
    let (device, mut bus) = (named(3), Bus::new());
    bus.insert(0, u64::MAX, device.clone()).unwrap();
    bus.read(u64::MAX - 4, &mut [0; 4]).unwrap();
    assert_eq!(*device.reads.lock().unwrap(), [(u64::MAX - 4, 4)]);
    assert_eq!(bus.read(u64::MAX, &mut [0]), unclaimed(u64::MAX, 1));
    bus.insert(u64::MAX, 1, named(4)).unwrap();
    bus.read(u64::MAX, &mut [0]).unwrap();
}

#[test]
fn a_region_without_bytes_or_past_the_end_is_refused_by_name() {
    let mut bus = Bus::new();
    for (base, len) in [(0x1000, 0), (u64::MAX, 2), (2, u64::MAX), (u64::MAX, u64::MAX)] {
        let error = bus.insert(base, len, named(1)).unwrap_err();
        assert_eq!(error, BusError::Bounds { base, len });
        assert!(error.to_string().contains(&format!("{base:#x}")), "{error}");
    }
}

#[test]
fn an_overlap_is_refused_and_names_what_is_there() {
    let mut bus = Bus::new();
    bus.insert(0x1000, 0x100, named(1)).unwrap();
    bus.insert(0x2000, 0x100, named(2)).unwrap();
    for (base, len, taken) in [
        (0x1000, 0x100, 0x1000..=0x10ff),
        (0x10ff, 1, 0x1000..=0x10ff),
        (0xfff, 2, 0x1000..=0x10ff),
        (0x1040, 0x10, 0x1000..=0x10ff),
        (0x0, 0x8000, 0x1000..=0x10ff),
        (0x1100, 0xf01, 0x2000..=0x20ff),
    ] {
        let error = bus.insert(base, len, named(3)).unwrap_err();
        assert_eq!(error, BusError::Overlap { base, len, taken });
    }
    bus.insert(0x1100, 0xf00, named(3)).unwrap();
    bus.insert(0xfff, 1, named(4)).unwrap();
    let mut data = [0];
    for (address, name) in [(0xfff, 4), (0x10ff, 1), (0x1100, 3), (0x1fff, 3), (0x2000, 2)] {
        bus.read(address, &mut data).unwrap();
        assert_eq!(data, [name], "{address:#x}");
    }
}

#[test]
fn a_device_that_was_removed_leaves_its_place_free() {
    let mut bus = Bus::new();
    bus.insert(0x1000, 0x100, named(1)).unwrap();
    assert!(bus.remove(0x1001).is_none(), "not where it starts");
    let removed = bus.remove(0x1000).unwrap();
    let mut data = [0];
    removed.read(0, &mut data);
    assert_eq!(data, [1]);
    assert!(bus.remove(0x1000).is_none());
    assert_eq!(bus.read(0x1000, &mut data), unclaimed(0x1000, 1));
    bus.insert(0x1080, 0x100, named(2)).unwrap();
}

#[test]
fn a_clone_shares_devices_and_not_places() {
    let mut bus = Bus::new();
    bus.insert(0x1000, 0x100, named(1)).unwrap();
    let clone = bus.clone();
    bus.remove(0x1000).unwrap();
    assert!(clone.read(0x1000, &mut [0]).is_ok());
    assert!(bus.read(0x1000, &mut [0]).is_err());
}

#[test]
fn little_endian_helpers_take_any_length() {
    for len in 0..=16_usize {
        let mut data = vec![0xaa; len];
        write_le(&mut data, 0x0807_0605_0403_0201);
        let expected: Vec<u8> = (1..=16).map(|n| if n <= 8 { n } else { 0 }).take(len).collect();
        assert_eq!(data, expected);
        let mask = u64::MAX.checked_shr(64 - 8 * len.min(8) as u32).unwrap_or(0);
        assert_eq!(read_le(&data), 0x0807_0605_0403_0201 & mask, "{len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Up to 64 regions and as many removals, against a table with one entry a byte.
    #[test]
    fn decodes_as_a_table_with_one_entry_a_byte_does(
        at_the_end in any::<bool>(),
        steps in proptest::collection::vec((0..600_u64, 0..24_u64, 0..5_u8), 1..160),
        accesses in proptest::collection::vec((0..640_u64, 0..10_usize), 100),
    ) {
        const SPACE: u64 = 640;
        // The last bytes of the address space, or the first.
        let origin = if at_the_end { u64::MAX - (SPACE - 1) } else { 0 };
        let mut table: Vec<Option<(u8, u64)>> = vec![None; SPACE as usize];
        let mut bus = Bus::new();
        let mut devices = Vec::new();
        for (base, len, kind) in steps {
            let bytes = base as usize..(base + len) as usize;
            if kind == 0 {
                let here = table[base as usize].filter(|(_, offset)| *offset == 0);
                prop_assert_eq!(bus.remove(origin + base).is_some(), here.is_some());
                if let Some((name, _)) = here {
                    table.iter_mut().filter(|entry| entry.is_some_and(|(n, _)| n == name)).for_each(|entry| *entry = None);
                }
            } else if devices.len() < 64 {
                let name = devices.len() as u8;
                let device = named(name);
                let free = len > 0 && table[bytes.clone()].iter().all(Option::is_none);
                prop_assert_eq!(bus.insert(origin + base, len, device.clone()).is_ok(), free);
                if free {
                    devices.push(device);
                    table[bytes].iter_mut().zip(0..).for_each(|(entry, offset)| *entry = Some((name, offset)));
                }
            }
        }
        for (address, len) in accesses {
            let bytes = table.get(address as usize..address as usize + len.max(1));
            let first = table[address as usize];
            let owner = first.filter(|(name, _)| {
                bytes.is_some_and(|bytes| bytes.iter().all(|entry| entry.is_some_and(|(n, _)| n == *name)))
            });
            let mut data = vec![0; len];
            let result = bus.read(origin + address, &mut data);
            prop_assert_eq!(result.is_ok(), owner.is_some());
            match owner {
                Some((name, offset)) => {
                    prop_assert_eq!(&data, &vec![name; len]);
                    let last = devices[name as usize].reads.lock().unwrap().last().copied();
                    prop_assert_eq!(last, Some((offset, len)));
                }
                None => prop_assert_eq!(&data, &vec![0xff; len]),
            }
        }
    }
}
