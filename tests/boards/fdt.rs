//! Device trees.

use devisor::description::{
    Part,
    fdt::{Boot, build},
};

use crate::{
    parts,
    tools::{Scratch, run},
};

fn boot() -> Boot {
    Boot {
        compatible: vec!["linux,dummy-virt".into()],
        model: "devisor".into(),
        command_line: "console=ttyAMA0 panic=1".into(),
        initrd: Some(0x4800_0000..0x4812_3456),
    }
}

/// The tree as source, by dtc, which must not have had anything to say.
fn source(parts: &[Part]) -> Option<String> {
    let blob = build(parts, &boot()).expect("a board");
    let scratch = Scratch::new();
    scratch.file("board.dtb", &blob);
    let arguments = ["-I", "dtb", "-O", "dts", "-o", "board.dts", "board.dtb"];
    let (content, said) = run(&scratch, "dtc", "device-tree-compiler", &arguments)?;
    assert!(content && said.is_empty(), "{said}");
    Some(std::fs::read_to_string(scratch.path().join("board.dts")).expect("dtc wrote it"))
}

/// The tool does look: a warning would be one.
#[test]
fn a_tree_with_a_reference_to_nobody_is_warned_of() {
    let parts = [Part::new("oddity")
        .memory(0x1000, 0x10)
        .node(&["vendor,oddity"], |node| node.number("clocks", 77))];
    let scratch = Scratch::new();
    scratch.file("board.dtb", &build(&parts, &boot()).unwrap());
    let arguments = ["-I", "dtb", "-O", "dts", "-o", "board.dts", "board.dtb"];
    if let Some((_, said)) = run(&scratch, "dtc", "device-tree-compiler", &arguments) {
        assert!(said.contains("clocks_property"), "{said}");
    }
}

/// The lines of the node that begins with `heading`, without those of its children.
fn node(source: &str, heading: &str) -> Vec<String> {
    let start = source
        .find(&format!("{heading} {{"))
        .unwrap_or_else(|| panic!("no {heading} in\n{source}"));
    let mut depth = 0;
    let mut lines = Vec::new();
    for line in source[start..].lines() {
        let line = line.trim();
        if line.ends_with('{') {
            depth += 1;
        } else if line == "};" {
            depth -= 1;
        } else if depth == 1 && !line.is_empty() {
            lines.push(line.to_owned());
        }
        if depth == 0 {
            break;
        }
    }
    lines
}

#[test]
fn the_tree_of_an_arm64_board_is_read_without_a_warning() {
    let Some(source) = source(&parts::virt()) else { return };
    for (heading, expected) in [
        ("chosen", "stdout-path = \"/serial@9000000\";"),
        ("chosen", "linux,initrd-end = <0x00 0x48123456>;"),
        ("memory@40000000", "reg = <0x00 0x40000000 0x01 0x00>;"),
        ("cpu@100", "reg = <0x100>;"),
        ("psci", "method = \"hvc\";"),
        (
            "timer",
            "interrupts = <0x01 0x0d 0x04 0x01 0x0e 0x04 0x01 0x0b 0x04 0x01 0x0a 0x04>;",
        ),
        (
            "interrupt-controller@8000000",
            "reg = <0x00 0x8000000 0x00 0x10000 0x00 0x80a0000 0x00 0x60000>;",
        ),
        ("msi-controller@8080000", "reg = <0x00 0x8080000 0x00 0x20000>;"),
        ("flash@0", "bank-width = <0x04>;"),
        ("serial@9000000", "compatible = \"arm,pl011\\0arm,primecell\";"),
        ("serial@9000000", "interrupts = <0x00 0x01 0x04>;"),
        ("serial@9100000", "reg-shift = <0x02>;"),
        ("virtio_mmio@a000200", "interrupts = <0x00 0x11 0x04>;"),
        ("fw-cfg@9020000", "compatible = \"qemu,fw-cfg-mmio\";"),
        ("poweroff", "linux,code = <0x74>;"),
        (
            "pcie@3f000000",
            "ranges = <0x1000000 0x00 0x00 0x00 0x3eff0000 0x00 0x10000 \
             0x2000000 0x00 0x10000000 0x00 0x10000000 0x00 0x2eff0000 \
             0x3000000 0x80 0x00 0x80 0x00 0x80 0x00>;",
        ),
    ] {
        let node = node(&source, heading);
        assert!(node.iter().any(|line| line == expected), "{heading}: {node:#?}");
    }
    let phandle = |heading| {
        let node = node(&source, heading);
        let line = node.iter().find_map(|line| line.strip_prefix("phandle = <"));
        line.expect("it has one").trim_end_matches(">;").to_owned()
    };
    let (gic, its, gpio) = (
        phandle("interrupt-controller@8000000"),
        phandle("msi-controller@8080000"),
        phandle("gpio@9030000"),
    );
    let pcie = node(&source, "pcie@3f000000");
    assert!(
        pcie.contains(&format!("msi-map = <0x00 {its} 0x00 0x10000>;")),
        "{pcie:#?}"
    );
    let map = pcie.iter().find(|line| line.starts_with("interrupt-map = "));
    // INTB of device 1 is where INTC of device 0 is: SPI 5.
    let row = format!("0x800 0x00 0x00 0x02 {gic} 0x00 0x00 0x00 0x05 0x04");
    assert!(map.is_some_and(|map| map.contains(&row)), "{pcie:#?}");
    let key = node(&source, "poweroff");
    assert!(key.contains(&format!("gpios = <{gpio} 0x03 0x00>;")), "{key:#?}");
}

#[test]
fn the_tree_of_a_gicv2_has_its_frame_inside_and_names_cpus_in_private_interrupts() {
    let Some(source) = source(&parts::virt_gicv2()) else {
        return;
    };
    let gic = source.find("interrupt-controller@8000000 {").expect("a GIC");
    let frame = source.find("\t\tv2m@8020000 {").expect("a frame, one level in");
    assert!(gic < frame);
    let timer = node(&source, "timer");
    let expected = "interrupts = <0x01 0x0d 0x304 0x01 0x0e 0x304 0x01 0x0b 0x304 0x01 0x0a 0x304>;";
    assert!(timer.iter().any(|line| line == expected), "{timer:#?}");
    assert!(
        node(&source, "pcie@3f000000")
            .iter()
            .any(|line| line.starts_with("msi-parent = "))
    );
    // One MPIDR with Aff3 makes them all wide.
    let cpu = node(&source, "cpu@100000000");
    assert!(cpu.iter().any(|line| line == "reg = <0x01 0x00>;"), "{cpu:#?}");
}

#[test]
fn a_tree_begins_with_its_header_and_is_as_long_as_that_says() {
    let blob = build(&parts::virt(), &boot()).unwrap();
    let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), 0xd00d_feed);
    assert_eq!(word(4) as usize, blob.len());
    assert_eq!(
        (word(20), word(24)),
        (17, 16),
        "version, and the last that it is compatible with"
    );
}

#[test]
fn who_is_behind_an_iommu_refers_to_it() {
    let Some(source) = source(&parts::virt_with_iommu()) else {
        return;
    };
    let iommu = node(&source, "virtio_mmio@a000200");
    assert!(iommu.contains(&"#iommu-cells = <0x01>;".to_owned()), "{iommu:#?}");
    let phandle = iommu.iter().find_map(|line| line.strip_prefix("phandle = <"));
    let phandle = phandle.expect("it has one").trim_end_matches(">;");
    let device = node(&source, "virtio_mmio@a000000");
    assert!(
        device.contains(&format!("iommus = <{phandle} 0x10007>;")),
        "{device:#?}"
    );
    let pcie = node(&source, "pcie@3f000000");
    assert!(
        pcie.contains(&format!("iommu-map = <0x00 {phandle} 0x00 0x10000>;")),
        "{pcie:#?}"
    );
}

#[test]
fn without_an_iommu_nobody_refers_to_one() {
    let parts = parts::virt().into_iter().map(|part| match part.to_string().as_str() {
        "virtio_mmio@a000000" => part.behind_iommu(7),
        _ => part,
    });
    let parts: Vec<_> = parts.collect();
    let Some(source) = source(&parts) else { return };
    assert!(!source.contains("iommu"));
}
