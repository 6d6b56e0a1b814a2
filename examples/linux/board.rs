//! The board: where its devices are and which interrupts they have. The addresses are those of QEMU's `virt`, which
//! nothing asks for: the guest reads them from the device tree.

/// A region of the guest's address space.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub base: u64,
    pub len: u64,
}

const fn window(base: u64, len: u64) -> Window {
    Window { base, len }
}

pub const GIC_DISTRIBUTOR: Window = window(0x0800_0000, 0x1000);
pub const GIC_CPU_INTERFACE: Window = window(0x0801_0000, 0x2000);
pub const UART: Window = window(0x0900_0000, 0x1000);
pub const RTC: Window = window(0x0901_0000, 0x1000);
pub const BLOCK: Window = window(0x0a00_0000, 0x200);
pub const ENTROPY: Window = window(0x0a00_0200, 0x200);
/// All of the above, and nothing else.
pub const DEVICES: Window = window(0, 0x4000_0000);

pub const RAM: Window = window(0x4000_0000, 256 << 20);
/// An arm64 `Image` wants to be at a multiple of 2 MiB (plus its `text_offset`, which is 0 in each recent kernel).
pub const KERNEL: u64 = 0x4020_0000;
/// At most 2 MiB, and it must not cross a multiple of 2 MiB.
pub const DEVICE_TREE: u64 = 0x47e0_0000;
pub const INITRD: u64 = 0x4800_0000;

/// Shared interrupts, counted from 0 as in a device tree (INTID 32).
pub const UART_SPI: u32 = 1;
pub const RTC_SPI: u32 = 2;
pub const BLOCK_SPI: u32 = 16;
pub const ENTROPY_SPI: u32 = 17;
/// Private interrupts of the core's timers, counted from 0 as in a device tree (INTID 16).
pub const VIRTUAL_TIMER_PPI: u32 = 11;
pub const PHYSICAL_TIMER_PPI: u32 = 14;
