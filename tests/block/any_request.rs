//! Random requests, in random framings, on a storage with random moods, against a model. Run over each kind of storage.

use std::sync::{Arc, atomic::Ordering};

use proptest::prelude::*;

use super::Disk;
use crate::{
    ring::{Buffer, readable},
    support::*,
};

#[derive(Clone, Debug)]
enum Request {
    Read { sector: u64, len: usize },
    Write { sector: u64, data: Vec<u8> },
    WriteZeroes { sector: u64, sectors: u32, flags: u32 },
    Discard { sector: u64, sectors: u32, flags: u32 },
    Other { kind: u32, data: Vec<u8>, room: usize },
}

const SECTORS: u64 = 24;

fn any_sector() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..SECTORS + 2, 1 => any::<u64>(), 1 => (0..4_u64).prop_map(|n| (1 << 55) + n)]
}

fn any_len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => (0..6_usize).prop_map(|sectors| sectors * 512), 1 => 0..3000_usize]
}

fn any_request() -> impl Strategy<Value = Request> {
    let flags = || prop_oneof![4 => 0..2_u32, 1 => any::<u32>()];
    let sectors = || prop_oneof![4 => 0..6_u32, 1 => any::<u32>()];
    prop_oneof![
        4 => (any_sector(), any_len()).prop_map(|(sector, len)| Request::Read { sector, len }),
        4 => (any_sector(), any_len(), any::<u8>()).prop_map(|(sector, len, seed)| Request::Write {
            sector,
            data: pattern(len).iter().map(|byte| byte ^ seed).collect(),
        }),
        2 => (any_sector(), sectors(), flags())
            .prop_map(|(sector, sectors, flags)| Request::WriteZeroes { sector, sectors, flags }),
        2 => (any_sector(), sectors(), flags())
            .prop_map(|(sector, sectors, flags)| Request::Discard { sector, sectors, flags }),
        1 => (any::<u32>(), prop::collection::vec(any::<u8>(), 0..80), 0..80_usize)
            .prop_filter("not a request that changes data", |(kind, ..)| ![T_OUT, T_DISCARD, T_WRITE_ZEROES].contains(kind))
            .prop_map(|(kind, data, room)| Request::Other { kind, data, room }),
    ]
}

/// The range in the model, if all of it is there.
fn range_of(sector: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let end = u128::from(sector) * 512 + len as u128;
    let fits = len.is_multiple_of(512) && end <= u128::from(SECTORS * 512);
    fits.then(|| sector as usize * 512..end as usize)
}

/// What a disk does, on a plain vector. `None` for a status that the model does not know.
fn model(disk: &mut [u8], request: &Request) -> (Option<u8>, Vec<u8>) {
    let zeroed = |disk: &mut [u8], sector, sectors: u32, flags: u32, known: u32| {
        let range = range_of(sector, sectors as usize * 512).filter(|_| sectors <= 4);
        match range {
            _ if flags & !known != 0 => UNSUPP,
            Some(range) => {
                disk[range].fill(0);
                OK
            }
            None => IOERR,
        }
    };
    match request {
        Request::Read { sector, len } => match range_of(*sector, *len) {
            Some(range) => (Some(OK), disk[range].to_vec()),
            None => (Some(IOERR), vec![0; *len]),
        },
        Request::Write { sector, data } => match range_of(*sector, data.len()) {
            Some(range) => {
                disk[range].copy_from_slice(data);
                (Some(OK), vec![])
            }
            None => (Some(IOERR), vec![]),
        },
        &Request::WriteZeroes { sector, sectors, flags } => (Some(zeroed(disk, sector, sectors, flags, 1)), vec![]),
        // The rigged storage discards to zeros.
        &Request::Discard { sector, sectors, flags } => (Some(zeroed(disk, sector, sectors, flags, 0)), vec![]),
        Request::Other { .. } => (None, vec![]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_requests_in_any_framing_do_what_a_model_does(
        requests in prop::collection::vec((any_request(), prop::collection::vec(0..600_u32, 0..12)), 1..24),
        at_most in prop_oneof![Just(usize::MAX), 1..2000_usize],
        interrupt_every in 0..4_usize,
    ) {
        let mut disk = Disk::over(Arc::new(Rigged::new(SECTORS as usize)), small_segments());
        disk.storage.at_most.store(at_most, Ordering::SeqCst);
        disk.storage.interrupt_every.store(if interrupt_every == 1 { 0 } else { interrupt_every }, Ordering::SeqCst);
        let mut expected = pattern(SECTORS as usize * 512);
        for (request, cuts) in requests {
            let (kind, sector, data, room) = match &request {
                Request::Read { sector, len } => (T_IN, *sector, vec![], *len),
                Request::Write { sector, data } => (T_OUT, *sector, data.clone(), 0),
                Request::WriteZeroes { sector, sectors, flags } => {
                    (T_WRITE_ZEROES, 0, segment(*sector, *sectors, *flags).to_vec(), 0)
                }
                Request::Discard { sector, sectors, flags } => {
                    (T_DISCARD, 0, segment(*sector, *sectors, *flags).to_vec(), 0)
                }
                Request::Other { kind, data, room } => (*kind, 0, data.clone(), *room),
            };
            let (status, output) = disk.request_cut(kind, sector, &data, room, &cuts);
            let (expected_status, expected_output) = model(&mut expected, &request);
            if let Some(expected_status) = expected_status {
                prop_assert_eq!((status, output), (expected_status, expected_output), "{:?}", request);
            }
            prop_assert_eq!(&disk.contents(), &expected, "{:?}", request);
        }
    }

    #[test]
    fn any_chain_is_answered_or_comes_back_empty(
        header in prop::array::uniform16(any::<u8>()),
        kind in prop_oneof![Just(None), (0..16_u8).prop_map(Some)],
        buffers in prop::collection::vec((0..MEMORY_SIZE, 0..4096_u32), 1..12),
        readable_buffers in 0..12_usize,
    ) {
        let mut disk = Disk::with(small_segments());
        let mut header = header;
        if let Some(kind) = kind {
            header[..4].copy_from_slice(&u32::from(kind).to_le_bytes());
        }
        disk.fill(HEADER, &header);
        let mut chain = vec![readable(HEADER, 16)];
        for (position, (address, len)) in buffers.into_iter().enumerate() {
            // Away from the ring, which a guest may overwrite only to its own harm, and within memory.
            let address = address.clamp(DATA, MEMORY_SIZE - 4096);
            chain.push(Buffer { address, len, writable: position >= readable_buffers });
        }
        let writable_len: u32 = chain.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.len).sum();
        disk.ring.request(&chain);
        prop_assert_eq!(disk.process(), Ok(vec![writable_len]));
        prop_assert_eq!(disk.counters().malformed, u64::from(writable_len == 0));
    }
}
