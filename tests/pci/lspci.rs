//! What `lspci` makes of a function's configuration space.

use std::{
    fmt::Write,
    fs,
    io::ErrorKind,
    process::{self, Command},
};

use crate::{skip::skipped, world::*};

/// The dump that `lspci -F` reads: the function's address, then lines of 16 bytes.
fn dump(world: &World) -> String {
    let mut text = String::from("00:03.1 function\n");
    for row in (0..0x100).step_by(16) {
        let mut bytes = [0; 16];
        world.endpoint.read_config(row, &mut bytes);
        let bytes = bytes.map(|byte| format!("{byte:02x}")).join(" ");
        writeln!(text, "{row:02x}: {bytes}").unwrap();
    }
    text
}

/// Removed also when the test fails.
struct Dump(std::path::PathBuf);

impl Drop for Dump {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn lspci_reads_the_function_as_it_was_configured() {
    let world = World::enabled(5);
    world.write(COMMAND, IO_SPACE | MEMORY_SPACE | BUS_MASTER | INTX_DISABLE);
    // Below 4 GiB: lspci 3.9 takes an upper half that is not zero for a BAR of its own.
    world.write32(0x10, 0x8000_0000);
    world.write32(0x18, 0xc000);
    world.write32(0x1c, 0x4000_0000);
    world.write32(0x20, 0x4000_2000);
    world.endpoint.write_config(0x3c, &[11]);
    world.endpoint.intx().update(|_| 1);

    let file = Dump(std::env::temp_dir().join(format!("devisor-lspci-{}", process::id())));
    fs::write(&file.0, dump(&world)).unwrap();
    let output = match Command::new("lspci")
        .arg("-F")
        .arg(&file.0)
        .args(["-n", "-vv"])
        .output()
    {
        Err(error) if error.kind() == ErrorKind::NotFound => return skipped("lspci is missing (package pciutils)"),
        output => output.unwrap(),
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in [
        "00:03.1 0180: 1af4:1042 (rev 01) (prog-if 02)",
        "Subsystem: 1af4:0040",
        "Control: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx+",
        "INTx+",
        "Interrupt: pin A routed to IRQ 11",
        "Region 0: Memory at 80000000 (64-bit, non-prefetchable)",
        "Region 2: I/O ports at c000",
        "Region 3: Memory at 40000000 (32-bit, non-prefetchable)",
        "Region 4: Memory at 40002000 (32-bit, non-prefetchable)",
        "Capabilities: [40] MSI-X: Enable+ Count=5 Masked-",
        "Vector table: BAR=3 offset=00000000",
        "PBA: BAR=3 offset=00001000",
        "Capabilities: [4c] MSI: Enable- Count=1/8 Maskable+ 64bit+",
        "Capabilities: [64] Vendor Specific Information: Len=06",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert_eq!(text.matches("Region").count(), 4, "{text}");
}
