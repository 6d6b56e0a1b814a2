//! Registers of the 8259A: ports and command words, named as in *8259A Programmable Interrupt Controller*, order number
//! 231468; and the ELCR, named as in *82371AB PCI-to-ISA/IDE Xcelerator (PIIX4)*, order number 290562.

/// Ports of one chip: A0 = 0 and A0 = 1.
pub(super) const COMMAND: u64 = 0;
pub(super) const CHIP_PORTS: u64 = 2;

/// With A0 = 0: ICW1 if set, else OCW2 or OCW3.
pub(super) const ICW1: u8 = 1 << 4;
pub(super) const ICW1_IC4: u8 = 1 << 0;
pub(super) const ICW1_SNGL: u8 = 1 << 1;

/// The bits of a vector that ICW2 gives, in 8086 mode.
pub(super) const ICW2_BASE: u8 = 0xf8;

pub(super) const ICW4_AEOI: u8 = 1 << 1;
pub(super) const ICW4_SFNM: u8 = 1 << 4;

/// OCW2: R, SL and EOI.
pub(super) const OCW2_COMMAND_SHIFT: u8 = 5;
pub(super) const OCW2_LEVEL: u8 = 7;
pub(super) mod ocw2 {
    pub(in super::super) const ROTATE_IN_AEOI_CLEAR: u8 = 0b000;
    pub(in super::super) const NON_SPECIFIC_EOI: u8 = 0b001;
    pub(in super::super) const SPECIFIC_EOI: u8 = 0b011;
    pub(in super::super) const ROTATE_IN_AEOI_SET: u8 = 0b100;
    pub(in super::super) const ROTATE_ON_NON_SPECIFIC_EOI: u8 = 0b101;
    pub(in super::super) const SET_PRIORITY: u8 = 0b110;
    pub(in super::super) const ROTATE_ON_SPECIFIC_EOI: u8 = 0b111;
}

/// With A0 = 0 and without ICW1: OCW3 if set, else OCW2.
pub(super) const OCW3: u8 = 1 << 3;
pub(super) const OCW3_RIS: u8 = 1 << 0;
pub(super) const OCW3_RR: u8 = 1 << 1;
pub(super) const OCW3_P: u8 = 1 << 2;
pub(super) const OCW3_SMM: u8 = 1 << 5;
pub(super) const OCW3_ESMM: u8 = 1 << 6;

/// What a poll reads while there is a request, above its number.
pub(super) const POLL_REQUEST: u8 = 1 << 7;

/// ELCR1 and ELCR2 (PIIX4, sections 4.2.7.1 and 4.2.7.2): IRQ 0, 1, 2, 8 and 13 are edges, whatever is written.
pub(super) const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// The input of the master that the slave is wired to.
pub(super) const CASCADE: u8 = 2;
/// The input whose vector stands for a request that has gone.
pub(super) const SPURIOUS: u8 = 7;
