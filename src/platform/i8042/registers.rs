//! The controller's ports and commands, named as in *IBM PS/2 Hardware Interface Technical Reference*, keyboard and auxiliary device
//! controller, which carries on that of the *PC/AT Technical Reference*.

/// The status register, a read of the command port.
pub(super) mod status {
    /// The output buffer is full.
    pub(in super::super) const OBF: u8 = 1 << 0;
    /// The system flag: bit 2 of the command byte, and set by a self-test.
    pub(in super::super) const SYS: u8 = 1 << 2;
    /// The last write was of a command, and not of data.
    pub(in super::super) const COMMAND: u8 = 1 << 3;
    /// The keyboard is not locked.
    pub(in super::super) const UNLOCKED: u8 = 1 << 4;
    /// What is in the output buffer comes from the auxiliary device.
    pub(in super::super) const AUX_OBF: u8 = 1 << 5;
}

/// The command byte.
pub(super) mod command_byte {
    /// IRQ 1 when the output buffer is full of something that is not from the auxiliary device.
    pub(in super::super) const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    /// IRQ 12 when it is from there.
    pub(in super::super) const AUX_INTERRUPT: u8 = 1 << 1;
    pub(in super::super) const SYS: u8 = 1 << 2;
    pub(in super::super) const DISABLE_KEYBOARD: u8 = 1 << 4;
    pub(in super::super) const DISABLE_AUX: u8 = 1 << 5;
    /// What comes from the keyboard is translated from scan code set 2 to set 1.
    pub(in super::super) const TRANSLATE: u8 = 1 << 6;
    /// Bit 7 is reserved.
    pub(in super::super) const WRITABLE: u8 = 0x7f;
}

/// The output port.
pub(super) mod output_port {
    /// Low: the system is reset.
    pub(in super::super) const NO_RESET: u8 = 1 << 0;
    /// Address line 20 is let through.
    pub(in super::super) const A20: u8 = 1 << 1;
    /// Those that follow the output buffer.
    pub(in super::super) const OBF: u8 = 1 << 4;
    pub(in super::super) const AUX_OBF: u8 = 1 << 5;
    /// Data and clock of both devices, which nobody holds down here.
    pub(in super::super) const ONES: u8 = 0b1100_1100;
    /// What the guest decides.
    pub(in super::super) const WRITABLE: u8 = NO_RESET | A20;
}

/// Commands, writes of the command port.
pub(super) mod command {
    /// And up to 0x3f, a byte of the controller's memory. Byte 0 is the command byte.
    pub(in super::super) const READ_MEMORY: u8 = 0x20;
    /// And up to 0x7f.
    pub(in super::super) const WRITE_MEMORY: u8 = 0x60;
    pub(in super::super) const DISABLE_AUX: u8 = 0xa7;
    pub(in super::super) const ENABLE_AUX: u8 = 0xa8;
    pub(in super::super) const TEST_AUX: u8 = 0xa9;
    pub(in super::super) const SELF_TEST: u8 = 0xaa;
    pub(in super::super) const TEST_KEYBOARD: u8 = 0xab;
    pub(in super::super) const DISABLE_KEYBOARD: u8 = 0xad;
    pub(in super::super) const ENABLE_KEYBOARD: u8 = 0xae;
    pub(in super::super) const READ_INPUT_PORT: u8 = 0xc0;
    pub(in super::super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(in super::super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub(in super::super) const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
    pub(in super::super) const WRITE_AUX_BUFFER: u8 = 0xd3;
    pub(in super::super) const WRITE_AUX: u8 = 0xd4;
    /// Not of the manual: from other makers, and in common use.
    pub(in super::super) const DISABLE_A20: u8 = 0xdd;
    pub(in super::super) const ENABLE_A20: u8 = 0xdf;
    /// And up to 0xff: those of the output port's lowest four bits that are clear are low for some microseconds.
    pub(in super::super) const PULSE_OUTPUT_PORT: u8 = 0xf0;
}

/// Bytes of the controller's memory, the command byte included.
pub(super) const MEMORY: usize = 32;
/// The answer of a self-test that finds nothing.
pub(super) const SELF_TEST_PASSED: u8 = 0x55;
/// The answer of a test of either interface that finds nothing.
pub(super) const INTERFACE_GOOD: u8 = 0x00;
/// The input port: bit 7 is the keyboard's lock, which is open; no other is wired to anything.
pub(super) const INPUT_PORT: u8 = 1 << 7;

/// What both devices answer.
pub(super) const ACK: u8 = 0xfa;
pub(super) const RESEND: u8 = 0xfe;
/// The basic assurance test has found nothing.
pub(super) const BAT_COMPLETED: u8 = 0xaa;
