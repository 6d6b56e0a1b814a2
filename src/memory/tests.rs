use std::sync::Arc;

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, Permissions,
    bitmap::{AtomicBitmap, Bitmap},
};

use super::*;

fn two_regions() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), 0x1000),
        (GuestAddress(0x1000), 0x1000),
        (GuestAddress(0x8000), 0x1000),
    ])
    .unwrap()
}

#[test]
fn bytes_across_regions_are_read_written_and_lent() {
    let pin = Memory::new(Arc::new(two_regions())).pin();
    pin.write(0xffd, b"across").unwrap();
    let mut back = [0; 6];
    pin.read(0xffd, &mut back).unwrap();
    assert_eq!(&back, b"across");
    let mut segments = [Segment::new(0xffd, 6), Segment::new(0x8000, 0)].into_iter();
    let lens = pin.lend(&mut segments, Permissions::Read, &mut Scratch::default(), |slices| {
        slices.iter().map(|slice| slice.len()).collect::<Vec<_>>()
    });
    assert_eq!(lens.unwrap(), [3, 3]);
}

#[test]
fn what_is_not_all_in_memory_is_refused() {
    let pin = Memory::new(Arc::new(two_regions())).pin();
    for (address, len) in [(0x1ffe, 4), (0x2000, 1), (0x7fff, 2), (u64::MAX, 2), (0x8000, 0x1001)] {
        let checked = pin.check(&mut Segment::new(address, len), Permissions::Read);
        assert_eq!(
            checked,
            Err(Outside {
                address,
                len: len.into()
            })
        );
    }
    pin.check(&mut Segment::new(0x8000, 0x1000), Permissions::Write)
        .unwrap();
}

#[test]
fn a_map_that_was_replaced_is_no_longer_current_and_counts_until_it_is_let_go() {
    let space = GuestMemoryAtomic::new(two_regions());
    let memory = Memory::new(space.clone());
    let old = memory.pin();
    assert!(memory.is_current(&old));
    assert_eq!(memory.old_maps_held(), 0);
    space.lock().unwrap().replace(two_regions());
    assert!(!memory.is_current(&old));
    let new = memory.pin();
    assert!(memory.is_current(&new));
    assert_eq!(memory.old_maps_held(), 1);
    drop(old);
    assert_eq!(memory.old_maps_held(), 0);
}

#[test]
fn writes_and_lent_slices_are_marked_and_reads_are_not() {
    let ram = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&[(GuestAddress(0), 0x5000)]).unwrap();
    let ram = Arc::new(ram);
    let pin = Memory::new(ram.clone()).pin();
    let dirty = |page: usize| {
        ram.find_region(GuestAddress(0))
            .unwrap()
            .bitmap()
            .dirty_at(0x1000 * page)
    };
    pin.read(0, &mut [0; 8]).unwrap();
    pin.write(0x1ffc, &[1; 8]).unwrap();
    pin.write(0x4fff, &[1]).unwrap();
    assert_eq!([0, 1, 2, 3, 4].map(dirty), [false, true, true, false, true]);
    for (page, access) in [(0, Permissions::Read), (3, Permissions::Write)] {
        let mut segments = [Segment::new(0x1000 * page, 4)].into_iter();
        pin.lend(&mut segments, access, &mut Scratch::default(), |_| ())
            .unwrap();
    }
    assert_eq!([0, 3].map(dirty), [false, true]);
    let _ = ram.read_obj::<u8>(GuestAddress(0));
}

/// A region of which the host address that it says is not where its bytes are.
struct Stray(GuestMemoryMmap);

impl Stray {
    fn region(&self) -> &vm_memory::GuestRegionMmap {
        self.0.iter().next().unwrap()
    }
}

impl vm_memory::GuestMemoryRegionBytes for Stray {}

impl GuestMemoryRegion for Stray {
    type B = ();

    fn len(&self) -> u64 {
        0x1000
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(0)
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, address: vm_memory::MemoryRegionAddress) -> vm_memory::guest_memory::Result<*mut u8> {
        Ok(self.region().get_host_address(address)?.wrapping_add(0x1000))
    }

    fn get_slice(
        &self,
        offset: vm_memory::MemoryRegionAddress,
        count: usize,
    ) -> vm_memory::guest_memory::Result<VolatileSlice<'_>> {
        self.region().get_slice(offset, count)
    }
}

#[test]
fn a_region_is_where_its_slices_are_whatever_host_address_it_says() {
    let backing = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
    let stray = vm_memory::GuestRegionCollection::from_regions(vec![Stray(backing.clone())]).unwrap();
    let pin = Memory::new(Arc::new(stray)).pin();
    pin.write(0, &[7]).unwrap();
    let bytes = [0, 0x1000].map(|address| backing.read_obj::<u8>(GuestAddress(address)).unwrap());
    assert_eq!(bytes, [7, 0]);
}

// Translated.

/// What it is told of, the last first, by addresses and permissions.
#[derive(Default)]
struct Pages(Mutex<Vec<Piece>>);

impl Pages {
    fn map(&self, start: u64, len: u64, physical: u64, access: Permissions) {
        let last = start + (len - 1);
        lock(&self.0).push(Piece {
            start,
            last,
            physical,
            access,
        });
    }
}

impl Translate for Pages {
    fn translate(&self, address: u64, _: u64, access: Permissions, found: &mut dyn FnMut(Piece)) -> Asked {
        let pages = lock(&self.0);
        let mut pages = pages.iter().rev();
        let piece = pages.find(|piece| (piece.start..=piece.last).contains(&address) && piece.access.allow(access));
        match piece.copied().map(found) {
            Some(()) => Asked::Found,
            None => Asked::Refused,
        }
    }
}

struct Behind {
    pages: Arc<Pages>,
    translated: Arc<Translated>,
    pin: Pin,
    base: Pin,
}

fn behind() -> Behind {
    let base = Memory::new(Arc::new(
        GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap(),
    ));
    let pages = Arc::new(Pages::default());
    let asked: Weak<dyn Translate> = Arc::downgrade(&pages) as _;
    let translated = Translated::new(base.clone(), asked);
    Behind {
        pin: Memory::translated(Arc::clone(&translated)).pin(),
        pages,
        translated,
        base: base.pin(),
    }
}

/// Takes addresses back. What is there as long as they are in use.
fn take_back(
    translated: &Translated,
    addresses: std::ops::RangeInclusive<u64>,
) -> Weak<dyn std::any::Any + Send + Sync> {
    let ticket: Ticket = Arc::new(());
    let mut over = Over::default();
    translated.take_back(&addresses, &ticket, &mut over);
    Arc::downgrade(&ticket)
}

#[test]
fn what_is_mapped_to_be_read_is_not_written_by_who_could_write_what_was_there_before() {
    let Behind {
        pages,
        translated,
        pin,
        base,
    } = behind();
    pages.map(0x1_0000, 0x1000, 0x7000, Permissions::ReadWrite);
    pages.map(0x2_0000, 0x1000, 0x1000, Permissions::Write);
    pin.write(0x1_0000, b"first").unwrap();
    pin.write(0x2_0000, b"before").unwrap();
    take_back(&translated, 0x2_0000..=0x2_0fff);
    lock(&pages.0).pop();
    pages.map(0x2_0000, 0x1000, 0x2000, Permissions::Read);
    base.write(0x2000, b"read!").unwrap();
    let mut read = [0; 5];
    pin.read(0x2_0000, &mut read).unwrap();
    assert_eq!(&read, b"read!");
    // It lies where it lay for as long as somebody has the old pin.
    pin.write(0x2_0000, b"after").unwrap();
    let mut scratch = Scratch::default();
    let pieces = [Segment::new(0x2_0800, 5)].into_iter();
    pin.lend(pieces, Permissions::Write, &mut scratch, |slices| {
        slices[0].copy_from(b"after")
    })
    .unwrap();
    let mut pages = [[0; 5]; 2];
    base.read(0x2000, &mut pages[0]).unwrap();
    base.read(0x2800, &mut pages[1]).unwrap();
    assert_eq!(pages, [*b"read!", [0; 5]]);
    base.read(0x1000, &mut pages[0]).unwrap();
    base.read(0x1800, &mut pages[1]).unwrap();
    assert_eq!(pages, [*b"after"; 2]);
}

#[test]
fn who_uses_a_long_translation_beyond_the_places_is_waited_for_whatever_begins_in_it() {
    let Behind {
        pages, translated, pin, ..
    } = behind();
    // The places are full.
    for page in 0..64 {
        pages.map(page << 16, 0x10, 0, Permissions::ReadWrite);
        pin.write(page << 16, b"x").unwrap();
    }
    pages.map(0x100_0000, 0x3000, 0, Permissions::Read);
    pages.map(0x100_1000, 0x1000, 0x4000, Permissions::Write);
    let mut long = Segment::new(0x100_2800, 0x10);
    pin.check(&mut long, Permissions::Read).unwrap();
    pin.write(0x100_1000, b"x").unwrap();
    pin.enter(&[long]);
    let in_use = take_back(&translated, 0x100_2000..=0x100_2fff);
    assert!(in_use.upgrade().is_some(), "it is used");
    pin.leave(&[long]);
    assert!(in_use.upgrade().is_none(), "and now by nobody");
}

#[test]
fn who_takes_one_translation_back_does_not_wait_for_a_chain_that_lies_across_others() {
    let Behind {
        pages, translated, pin, ..
    } = behind();
    for page in [0x1_0000, 0x1_1000, 0x3_0000] {
        pages.map(page, 0x1000, page & 0x7000, Permissions::ReadWrite);
        pin.write(page, b"x").unwrap();
    }
    let view = pin.clone().view();
    let mut across = Segment::new(0x1_0f00, 0x200);
    pin.check(&mut across, Permissions::ReadWrite).unwrap();
    pin.enter(&[across]);
    pin.enter(&[across]);
    let [elsewhere, here] = [0x3_0000, 0x1_1000].map(|page| take_back(&translated, page..=page + 0xfff));
    assert!(elsewhere.upgrade().is_some(), "somebody may come to use it");
    drop(view);
    assert!(elsewhere.upgrade().is_none(), "nobody uses it");
    assert!(here.upgrade().is_some(), "it is used");
    pin.leave(&[across]);
    assert!(here.upgrade().is_some(), "it is used still");
    pin.leave(&[across]);
    assert!(here.upgrade().is_none(), "and now by nobody");
}

#[test]
fn a_viewer_that_comes_to_use_what_was_taken_back_is_waited_for() {
    let Behind {
        pages, translated, pin, ..
    } = behind();
    for page in [0x1_0000, 0x1_1000] {
        pages.map(page, 0x1000, page & 0x7000, Permissions::ReadWrite);
        pin.write(page, b"x").unwrap();
    }
    let view = pin.clone().view();
    let mut across = Segment::new(0x1_0f00, 0x200);
    pin.check(&mut across, Permissions::ReadWrite).unwrap();
    let taken = take_back(&translated, 0x1_1000..=0x1_1fff);
    pin.enter(&[across]);
    drop(view);
    assert!(taken.upgrade().is_some(), "it is used");
    pin.leave(&[across]);
    assert!(taken.upgrade().is_none(), "and now by nobody");
}
