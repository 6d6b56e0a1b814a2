//! Partial checksums (virtio 1.2, section 5.1.6.2), for those who do not take them.

use super::Header;

/// The ones' complement sum of `bytes` as 16-bit numbers in network order, on top of `sum`.
pub(super) fn sum(bytes: &[u8], sum: u32) -> u32 {
    let mut total = u64::from(sum);
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut tail = [0; 4];
    let rest = words.remainder();
    tail[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_be_bytes(tail));
    // The carries of 32 bits are those of 16 bits, twice.
    total = (total & 0xffff_ffff) + (total >> 32);
    total = (total & 0xffff_ffff) + (total >> 32);
    let folded = (total & 0xffff) + (total >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u32
}

/// Completes the checksum that `header` tells of, if it is within the frame, and takes that out of the header.
pub(super) fn complete(header: &mut Header, frame: &mut [u8]) {
    if !header.needs_checksum() {
        return;
    }
    let start = usize::from(header.csum_start);
    let place = start + usize::from(header.csum_offset);
    if place + 2 <= frame.len() {
        let checksum = !(sum(&frame[start..], 0) as u16);
        // Of UDP, zero says that there is none; all ones is the same number (RFC 768). So it is for TCP.
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        frame[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    *header = Header {
        flags: 0,
        csum_start: 0,
        csum_offset: 0,
        ..*header
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_its_16_bit_numbers() {
        for len in 0..64usize {
            let bytes: Vec<u8> = (0..len as u32).map(|at| (at * 97 + 200) as u8).collect();
            let mut expected = 0u32;
            for pair in bytes.chunks(2) {
                expected += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
                expected = (expected & 0xffff) + (expected >> 16);
            }
            assert_eq!(sum(&bytes, 0), expected, "{len} bytes");
        }
    }

    #[test]
    fn a_checksum_is_completed_in_its_place() {
        // A UDP datagram of RFC 1071's example bytes, with the sum of a pseudo header in place.
        let mut frame = vec![0xaa; 4];
        frame.extend([0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0x12, 0x34]);
        let mut header = Header {
            flags: 1,
            csum_start: 4,
            csum_offset: 6,
            ..Header::default()
        };
        complete(&mut header, &mut frame);
        assert_eq!(header, Header::default());
        // What was there counts, and with the result all bits are set.
        let stored = u32::from(frame[10]) << 8 | u32::from(frame[11]);
        frame[10..12].copy_from_slice(&[0x12, 0x34]);
        assert_eq!(sum(&frame[4..], stored), 0xffff);
    }
}
