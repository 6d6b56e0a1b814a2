//! Offsets, fields and masks of a type 0 function, by the sections of *PCI Local Bus Specification 3.0*, whose names
//! and layout *PCI Express Base Specification* (7.5.1) keeps.

/// Bytes of the configuration space that every function has.
pub(super) const SPACE: usize = 256;
/// Bytes that the ECAM gives a function (PCI Express 7.2.2). Those above [`SPACE`] belong to PCI Express alone.
pub(super) const ECAM_FUNCTION: u64 = 4096;

/// The addresses of the bytes of an access. None wraps: beyond the last address there is nothing.
pub(super) fn addresses(offset: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |byte| offset.saturating_add(byte))
}

/// A register of the type 0 header: where it is, and which of its bits the guest writes.
pub(super) struct Register {
    pub offset: usize,
    pub writable: &'static [u8],
}

// Section 6.1, the header.
pub(super) const VENDOR_ID: usize = 0x00;
pub(super) const DEVICE_ID: usize = 0x02;
pub(super) const COMMAND: usize = 0x04;
pub(super) const STATUS: usize = 0x06;
pub(super) const REVISION_ID: usize = 0x08;
/// Programming interface, sub-class and class, from the low byte up.
pub(super) const CLASS_CODE: usize = 0x09;
pub(super) const CACHE_LINE_SIZE: usize = 0x0c;
pub(super) const HEADER_TYPE: usize = 0x0e;
pub(super) const BARS: usize = 0x10;
pub(super) const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
pub(super) const SUBSYSTEM_ID: usize = 0x2e;
pub(super) const CAPABILITIES_POINTER: usize = 0x34;
pub(super) const INTERRUPT_LINE: usize = 0x3c;
pub(super) const INTERRUPT_PIN: usize = 0x3d;
/// Where the header ends and capabilities may lie (section 6.7).
pub(super) const HEADER_END: usize = 0x40;

/// What the guest writes in every function. BARs and capabilities bring their own masks, and the decode bits of the
/// command register come with a BAR of their kind.
///
/// The error bits of the status register, written to be cleared, are never set: nothing here sees a parity error or an abort.
pub(super) const HEADER: &[Register] = &[
    Register {
        offset: COMMAND,
        writable: &(BUS_MASTER | PARITY_ERROR_RESPONSE | SERR_ENABLE | INTX_DISABLE).to_le_bytes(),
    },
    Register {
        offset: CACHE_LINE_SIZE,
        writable: &[0xff],
    },
    Register {
        offset: INTERRUPT_LINE,
        writable: &[0xff],
    },
];

// Section 6.2.2, the command register.
pub(super) const IO_SPACE: u16 = 1 << 0;
pub(super) const MEMORY_SPACE: u16 = 1 << 1;
pub(super) const BUS_MASTER: u16 = 1 << 2;
pub(super) const PARITY_ERROR_RESPONSE: u16 = 1 << 6;
pub(super) const SERR_ENABLE: u16 = 1 << 8;
pub(super) const INTX_DISABLE: u16 = 1 << 10;

// Section 6.2.3, the status register.
pub(super) const INTERRUPT_STATUS: u8 = 1 << 3;
pub(super) const CAPABILITIES_LIST: u16 = 1 << 4;

/// Section 6.2.1: the device has functions besides this one.
pub(super) const MULTI_FUNCTION: u8 = 1 << 7;

// Section 6.2.5.1, the low bits of a BAR.
pub(super) const BAR_IO: u32 = 1 << 0;
pub(super) const BAR_64: u32 = 2 << 1;
pub(super) const BAR_PREFETCHABLE: u32 = 1 << 3;

// Appendix H, capability IDs.
pub(super) const MSI_ID: u8 = 0x05;
pub(super) const MSIX_ID: u8 = 0x11;

/// Message Control follows the ID and the next pointer, in MSI (6.8.1.3) and in MSI-X (6.8.2.3).
pub(super) const MESSAGE_CONTROL: usize = 2;

// Section 6.8.1, the MSI capability with 64-bit addresses and masks.
pub(super) const MSI_ENABLE: u16 = 1 << 0;
pub(super) const MSI_MULTIPLE_CAPABLE_SHIFT: u32 = 1;
pub(super) const MSI_MULTIPLE_ENABLE: u16 = 7 << MSI_MULTIPLE_ENABLE_SHIFT;
pub(super) const MSI_MULTIPLE_ENABLE_SHIFT: u32 = 4;
pub(super) const MSI_64_BIT: u16 = 1 << 7;
pub(super) const MSI_MASKABLE: u16 = 1 << 8;
pub(super) const MSI_ADDRESS: usize = 0x04;
pub(super) const MSI_DATA: usize = 0x0c;
pub(super) const MSI_MASK: usize = 0x10;
pub(super) const MSI_PENDING: usize = 0x14;
/// Bytes of the capability.
pub(super) const MSI_LEN: usize = 0x18;
/// The most vectors that Multiple Message Capable can name.
pub(super) const MSI_VECTORS: u16 = 32;

// PCI Express Base Specification, section 7.5.3, the PCI Express capability: the registers that an integrated endpoint has.
pub(super) const EXPRESS_ID: u8 = 0x10;
/// Bytes of the capability, version 2.
pub(super) const EXPRESS_LEN: usize = 0x3c;
pub(super) const EXPRESS_CAPABILITIES: usize = 0x02;
/// Version 2; a root complex integrated endpoint, which has no link.
pub(super) const EXPRESS_INTEGRATED: u16 = 2 | 9 << 4;
pub(super) const EXPRESS_DEVICE_CAPABILITIES: usize = 0x04;
pub(super) const EXPRESS_ROLE_BASED_ERRORS: u32 = 1 << 15;
pub(super) const EXPRESS_DEVICE_CONTROL: usize = 0x08;
/// Relaxed ordering and no snoop may be used; a read asks for up to 512 bytes.
pub(super) const EXPRESS_CONTROL_RESET: u16 = 1 << 4 | 1 << 11 | 2 << 12;
/// Error reporting, relaxed ordering, payload size, no snoop, read size. None of it moves anything here.
pub(super) const EXPRESS_CONTROL_WRITABLE: u16 = 0x1f | 7 << 5 | 1 << 11 | 7 << 12;

// Section 6.8.2, MSI-X.
pub(super) const MSIX_ENABLE: u16 = 1 << 15;
pub(super) const MSIX_FUNCTION_MASK: u16 = 1 << 14;
/// The most vectors that Table Size can name.
pub(super) const MSIX_VECTORS: u16 = 2048;
/// Bytes of a table entry: address, upper address, data, vector control.
pub(super) const MSIX_ENTRY: u64 = 16;
/// Vector control: the one bit that exists.
pub(super) const MSIX_VECTOR_MASKED: u32 = 1 << 0;
