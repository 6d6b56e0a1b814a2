//! What `lspci` makes of a function's configuration space.

use std::{
    fmt::Write,
    fs,
    io::ErrorKind,
    process::{self, Command},
    sync::Arc,
};

use devisor::{
    pci::{Endpoint, EndpointConfig, Function},
    virtio::{VirtioPci, entropy::Entropy},
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{skip::skipped, world::*};

/// The dump that `lspci -F` reads: the function's address, then lines of 16 bytes, of `size` bytes.
fn dump(endpoint: &Endpoint, size: u64) -> String {
    let mut text = String::from("00:03.1 function\n");
    for row in (0..size).step_by(16) {
        let mut bytes = [0; 16];
        endpoint.read_config(row, &mut bytes);
        let bytes = bytes.map(|byte| format!("{byte:02x}")).join(" ");
        writeln!(text, "{row:02x}: {bytes}").unwrap();
    }
    text
}

/// What `lspci` says, or none if it is missing, which is said.
fn lspci(name: &str, dump: String) -> Option<String> {
    let file = Dump(std::env::temp_dir().join(format!("devisor-lspci-{name}-{}", process::id())));
    fs::write(&file.0, dump).unwrap();
    let output = match Command::new("lspci")
        .arg("-F")
        .arg(&file.0)
        .args(["-n", "-vv"])
        .output()
    {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skipped("lspci is missing (package pciutils)");
            return None;
        }
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
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

    let Some(text) = lspci("conventional", dump(&world.endpoint, 0x100)) else {
        return;
    };
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

#[test]
fn lspci_reads_a_function_of_pci_express_to_the_end_of_its_space() {
    let mut config = EndpointConfig::new(IDENTITY).unwrap();
    config.express().unwrap();
    let endpoint = Endpoint::new(config, silent_slot(at(3, 1)));
    let Some(text) = lspci("express", dump(&endpoint, 0x1000)) else {
        return;
    };
    for line in [
        "Capabilities: [40] Express (v2) Root Complex Integrated Endpoint, MSI 00",
        "ExtTag- RBE+ FLReset-",
        "RlxdOrd+ ExtTag- PhantFunc- AuxPwr- NoSnoop+",
        "MaxPayload 128 bytes, MaxReadReq 512 bytes",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert_eq!(
        text.matches("Capabilities:").count(),
        1,
        "none in the extended space: {text}"
    );
}

#[test]
fn lspci_finds_the_structures_of_a_virtio_device() {
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
    let device = VirtioPci::new(Entropy::seeded(1), memory, silent_slot(at(3, 1))).unwrap();
    device.write_config(0x10, &0x4000_0000u32.to_le_bytes());
    device.write_config(0x14, &0x4000_4000u32.to_le_bytes());
    device.write_config(COMMAND, &(MEMORY_SPACE | BUS_MASTER).to_le_bytes());
    device.write_config(MSIX_CONTROL, &ENABLE.to_le_bytes());
    let Some(text) = lspci("virtio", dump(device.endpoint(), 0x100)) else {
        return;
    };
    for line in [
        "00:03.1 ff00: 1af4:1044 (rev 01)",
        "Region 0: Memory at 40000000 (32-bit, non-prefetchable)",
        "Region 1: Memory at 40004000 (32-bit, non-prefetchable)",
        "Capabilities: [40] MSI-X: Enable+ Count=2 Masked-",
        "Vector table: BAR=1 offset=00000000",
        "Capabilities: [4c] Vendor Specific Information: VirtIO: CommonCfg",
        "BAR=0 offset=00000000 size=0000003c",
        "Capabilities: [5c] Vendor Specific Information: VirtIO: ISR",
        "BAR=0 offset=00001000 size=00000001",
        "Capabilities: [6c] Vendor Specific Information: VirtIO: DeviceCfg",
        "BAR=0 offset=00002000 size=00001000",
        "Capabilities: [7c] Vendor Specific Information: VirtIO: Notify",
        "BAR=0 offset=00003000 size=00000004 multiplier=00000004",
        // The window, which this lspci has no name for.
        "Capabilities: [90] Vendor Specific Information: VirtIO: <unknown>",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
}
