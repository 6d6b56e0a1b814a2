//! The registers of an ITS: offsets, fields and reset values. Sections are those of IHI 0069.

/// Size of the control frame and of the translation frame in bytes (12.8).
pub(super) const FRAME_SIZE: u64 = 0x1_0000;
/// GITS_TRANSLATER, 12.19.17, in the translation frame.
pub(super) const TRANSLATER: u64 = 0x40;

/// A register of the control frame, 12.18. Those of 64 bits can also be accessed by halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// GITS_CTLR.
    Control,
    /// GITS_IIDR.
    ImplementerId,
    /// GITS_TYPER, 64 bits.
    Type,
    /// GITS_CBASER, 64 bits.
    CommandBase,
    /// GITS_CWRITER, 64 bits.
    CommandWrite,
    /// GITS_CREADR, 64 bits.
    CommandRead,
    /// GITS_BASERn, 64 bits.
    Table(usize),
    /// The identification registers.
    Identification(usize),
}

impl Register {
    /// The register of an access, and how far its first bit is into it; `None` if it is reserved or cannot be accessed so.
    ///
    /// GITS_MPAMIDR, GITS_PARTIDR, GITS_MPIDR, GITS_STATUSR, GITS_SGIR and GITS_UMSIR belong to features that GITS_TYPER
    /// says are not there: reserved.
    pub(super) fn at(offset: u64, len: usize) -> Option<(Self, u32)> {
        let (register, wide) = match offset & !7 {
            0x0000 if offset == 0 => (Self::Control, false),
            0x0000 => (Self::ImplementerId, false),
            0x0008 => (Self::Type, true),
            0x0080 => (Self::CommandBase, true),
            0x0088 => (Self::CommandWrite, true),
            0x0090 => (Self::CommandRead, true),
            0x0100..0x0140 => (Self::Table((offset - 0x0100) as usize / 8), true),
            0xffd0..0x1_0000 => (Self::Identification((offset - 0xffd0) as usize / 4), false),
            _ => return None,
        };
        let lane = if wide { (offset % 8) as u32 * 8 } else { 0 };
        let allowed = (len == 4 && offset.is_multiple_of(4)) || (len == 8 && wide && lane == 0);
        allowed.then_some((register, lane))
    }
}

/// GITS_CTLR.Enabled.
pub(super) const ENABLED: u32 = 1 << 0;
/// GITS_CTLR.Quiescent: nothing is under way, and the ITS is disabled.
pub(super) const QUIESCENT: u32 = 1 << 31;

/// GITS_IIDR: no JEP106 code, and a product number that no quirk of a known guest looks for. The revision is that of the
/// tables' format.
pub(super) const IIDR: u32 = 0xd5 << 24 | super::TABLE_FORMAT << 12;

/// 0xffd0 to 0xfffc: GITS_PIDR4 to 7, GITS_PIDR0 to 3 (architecture version 3 in GITS_PIDR2), GITS_CIDR0 to 3.
pub(super) const IDENTIFICATION: [u32; 12] = [0x44, 0x00, 0x00, 0x00, 0x94, 0xb4, 0x3b, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// GITS_TYPER. PTA is clear: redistributors are named by their processor numbers. HCC is 0: collections are in memory.
/// SEIS is clear: no SError tells of a bad command. There are no virtual LPIs.
pub(super) mod typer {
    pub(crate) const PHYSICAL: u64 = 1 << 0;
    pub(crate) const ITT_ENTRY_SIZE_SHIFT: u32 = 4;
    pub(crate) const ID_BITS_SHIFT: u32 = 8;
    pub(crate) const DEV_BITS_SHIFT: u32 = 13;
    pub(crate) const CID_BITS_SHIFT: u32 = 32;
    /// CIDbits says how many bits a collection's number has.
    pub(crate) const CIL: u64 = 1 << 36;
}

/// Valid, in GITS_CBASER and GITS_BASERn, in the entry of a table, and in MAPC and MAPD.
pub(super) const VALID: u64 = 1 << 63;

/// GITS_CBASER.
pub(super) mod cbaser {
    /// Bits 51:12. The architecture wants 64 KB: what 15:12 do otherwise is up to the ITS, and here they are address bits.
    pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Number of pages of 4 KB, less one.
    pub(crate) const SIZE: u64 = 0xff;
    /// With the cacheability and shareability, which are kept and mean nothing.
    pub(crate) const WRITABLE: u64 = super::VALID | 7 << 59 | 7 << 53 | ADDRESS | 3 << 10 | SIZE;

    /// Size of the queue in bytes.
    pub(crate) fn queue_size(value: u64) -> u64 {
        ((value & SIZE) + 1) * 0x1000
    }
}

/// Offset, bits 19:5, of GITS_CWRITER and GITS_CREADR.
pub(super) const QUEUE_OFFSET: u64 = 0xf_ffe0;
/// GITS_CWRITER.Retry. Reads as zero.
pub(super) const RETRY: u64 = 1 << 0;
/// GITS_CREADR.Stalled.
pub(super) const STALLED: u64 = 1 << 0;

/// How many GITS_BASERn there are.
pub(super) const BASERS: usize = 8;
/// GITS_BASER0 is that of the device table.
pub(super) const DEVICES: usize = 0;
/// GITS_BASER1 is that of the collection table.
pub(super) const COLLECTIONS: usize = 1;

/// GITS_BASERn.
pub(super) mod baser {
    /// The table has two levels.
    pub(crate) const INDIRECT: u64 = 1 << 62;
    const TYPE_SHIFT: u32 = 56;
    const TYPE_DEVICES: u64 = 0b001;
    const TYPE_COLLECTIONS: u64 = 0b100;
    const ENTRY_SIZE: u64 = (crate::backends::irqchip::its::tables::ENTRY - 1) << 48;
    /// Bits 47:12.
    const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    const PAGE_SIZE_SHIFT: u32 = 8;
    /// Number of pages, less one.
    const PAGES: u64 = 0xff;
    /// With the cacheability and shareability, which are kept and mean nothing.
    pub(crate) const WRITABLE: u64 =
        super::VALID | INDIRECT | 7 << 59 | 7 << 53 | ADDRESS | 3 << 10 | 3 << PAGE_SIZE_SHIFT | PAGES;

    /// Type and Entry_Size, which cannot be written. Without a table all of the register reads as zero.
    pub(crate) const FIXED: [u64; super::BASERS] = [
        TYPE_DEVICES << TYPE_SHIFT | ENTRY_SIZE,
        TYPE_COLLECTIONS << TYPE_SHIFT | ENTRY_SIZE,
        0,
        0,
        0,
        0,
        0,
        0,
    ];

    /// As it is after a reset: pages of 64 KB.
    pub(crate) fn reset(table: usize) -> u64 {
        match FIXED[table] {
            0 => 0,
            fixed => fixed | 0b10 << PAGE_SIZE_SHIFT,
        }
    }

    /// The size of a page as a power of two. The reserved encoding is that of 64 KB.
    pub(crate) fn page_bits(value: u64) -> u32 {
        match value >> PAGE_SIZE_SHIFT & 0b11 {
            0b00 => 12,
            0b01 => 14,
            _ => 16,
        }
    }

    /// Where the table is. With pages of 64 KB, bits 15:12 are bits 51:48 of the address.
    pub(crate) fn address(value: u64) -> u64 {
        let low = value & ADDRESS & (u64::MAX << page_bits(value));
        match page_bits(value) {
            16 => low | (value >> 12 & 0xf) << 48,
            _ => low,
        }
    }

    /// Size of the table, the first level if it has two, in bytes.
    pub(crate) fn size(value: u64) -> u64 {
        ((value & PAGES) + 1) << page_bits(value)
    }
}
