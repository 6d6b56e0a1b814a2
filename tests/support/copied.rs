//! Guest memory that is copied while devices write it, as the other side of a migration copies it: each page in the very moment in
//! which it is marked. What is marked before its bytes are there is not in the copy.

use std::sync::{Arc, Mutex};

use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion, VolatileSlice,
    bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice},
};

pub type Memory = GuestMemoryMmap<Copied>;

const PAGE: usize = 0x1000;

/// Takes the mark of a page away at once, and copies it.
#[derive(Clone, Debug, Default)]
pub struct Copied {
    copy: Arc<Mutex<Copy>>,
    /// Where in the region this begins.
    at: usize,
}

/// The copy of a region: of nothing, before it has begun.
#[derive(Debug, Default)]
struct Copy {
    host: Option<Host>,
    bytes: Vec<u8>,
}

/// Where the region is.
#[derive(Clone, Copy, Debug)]
struct Host(*mut u8);

// SAFETY: it leads to guest memory, which is for all threads.
unsafe impl Send for Host {}

impl Copy {
    fn copy(&mut self, from: usize, to: usize) {
        if let (Some(Host(host)), Some(bytes)) = (self.host, self.bytes.get_mut(from..to)) {
            // SAFETY: so many bytes are mapped there, as long as somebody marks pages of them.
            unsafe { VolatileSlice::new(host.add(from), bytes.len()) }.copy_to(bytes);
        }
    }
}

impl Bitmap for Copied {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let mut copy = self.copy.lock().unwrap();
        let (start, all) = (self.at + offset, copy.bytes.len());
        let end = (start + len).next_multiple_of(PAGE).min(all);
        if len != 0 {
            copy.copy(start / PAGE * PAGE, end);
        }
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            copy: Arc::clone(&self.copy),
            at: self.at + offset,
        }
    }
}

impl WithBitmapSlice<'_> for Copied {
    type S = Self;
}

impl BitmapSlice for Copied {}

impl NewBitmap for Copied {
    fn with_len(_: usize) -> Self {
        Self::default()
    }
}

fn regions(memory: &Memory) -> impl Iterator<Item = (u64, &MmapRegion<Copied>)> {
    memory.iter().map(|region| (region.start_addr().0, &**region))
}

/// Copies all of it, and from here on what is marked.
pub fn begin(memory: &Memory) {
    for (_, region) in regions(memory) {
        let mut copy = region.bitmap().copy.lock().unwrap();
        *copy = Copy {
            host: Some(Host(region.as_ptr())),
            bytes: vec![0; region.size()],
        };
        copy.copy(0, region.size());
    }
}

/// The pages whose copy is not what they are.
pub fn missing(memory: &Memory) -> Vec<u64> {
    let mut missing = Vec::new();
    for (start, region) in regions(memory) {
        let mut now = Copy {
            host: Some(Host(region.as_ptr())),
            bytes: vec![0; region.size()],
        };
        now.copy(0, region.size());
        let copy = region.bitmap().copy.lock().unwrap();
        let pages = now.bytes.chunks(PAGE).zip(copy.bytes.chunks(PAGE)).enumerate();
        let differ = pages.filter(|(_, (now, copy))| now != copy);
        missing.extend(differ.map(|(page, _)| start + (page * PAGE) as u64));
    }
    missing
}
