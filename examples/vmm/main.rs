//! A small VMM for x86: KVM as a CPU, devices and as many of the interrupt controllers as you like from devisor.
//!
//! ```text
//! cargo run --release --example vmm -- --irqchip software --cpus 2 KERNEL
//! cargo run --release --example vmm -- --irqchip split --firmware /usr/share/seabios/bios-256k.bin --disk IMAGE
//! ```
//!
//! One binary, three modes, the same devices: `kernel` leaves 8259, IOAPIC, 8254 and local APICs to KVM, `split` the local APICs
//! alone, `software` nothing. KERNEL is an ELF file with a multiboot header, a Linux bzImage, or a flat binary with
//! the signature of a boot sector, which runs in real mode at 0x7c00. The machine is what test kernels expect of a PC:
//!
//! | what | where |
//! |---|---|
//! | 16550 on stdin and stdout | ports 0x3f8, IRQ 4 |
//! | exit: the process ends with status (v << 1) \| 1 | port 0xf4 |
//! | line tester: a byte sets the level of pin n | port 0x2000 + n; IRQ 0 is at pin 2 |
//! | fw_cfg: RAM size, CPUs | ports 0x510 to 0x51b |
//! | debug console | port 0x402 |
//! | clock and CMOS memory | ports 0x70, 0x71, IRQ 8 |
//! | keyboard controller | ports 0x60, 0x64, IRQ 1 and 12 |
//! | reset: the process ends with status 0, or the guest begins again (`--reboot`) | ports 0x64 (0xfe), 0x92, 0xcf9 |
//! | PCI, whose bus has the disk if there is firmware | ports 0xcf8 to 0xcff |
//! | 8254 and port B; 8259 pair; IOAPIC; local APICs | where each PC has them |
//! | the disk of `--disk`: virtio-mmio | 0xfeb00000, IRQ 5; told on the command line; with firmware: virtio-pci, device 1 |
//!
//! On a terminal, Ctrl-A x ends it. Whatever is wrong is one line on stderr, and status 2.
//!
//! | file | what an embedder does there |
//! |---|---|
//! | `options.rs` | the command line |
//! | `load.rs`, `cpu.rs` | put a kernel into memory, and a CPU to where it begins |
//! | `irqchip.rs` | the three modes: lines for devices, vCPUs that take them |
//! | `machine.rs` | memory and threads; what ends the guest, and what begins it again |
//! | `board.rs` | the devices, and where they are |
//! | `tables.rs` | the ACPI tables, where there is no firmware |
//! | `devices.rs` | what test kernels expect beside them |
//! | `timers.rs`, `console.rs` | a thread for alarms, a thread for stdin |

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod board;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod console;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cpu;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod devices;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod irqchip;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod load;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod machine;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod options;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tables;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod timers;

/// The status for what is wrong: no value of the exit port leads to it.
const FAILED: u8 = 2;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> std::process::ExitCode {
    // On whatever thread: a panic's own status, 101, is one that a guest can end with.
    std::panic::set_hook(Box::new(|panic| {
        console::restore();
        complain(&panic.to_string().replace('\n', " "));
        std::process::exit(FAILED.into());
    }));
    let ended = options::Options::parse(std::env::args_os().skip(1)).and_then(|options| match options {
        Some(options) => machine::run(&options),
        None => {
            println!("{}", options::USAGE);
            Ok(0)
        }
    });
    std::process::ExitCode::from(ended.unwrap_or_else(|error| {
        complain(&error);
        FAILED
    }))
}

/// One line on stderr, or none if that is closed.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn complain(what: &dyn std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "vmm: {what}");
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() -> std::process::ExitCode {
    eprintln!("vmm: it needs KVM on x86_64");
    std::process::ExitCode::from(FAILED)
}
