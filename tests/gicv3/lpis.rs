//! LPIs by the redistributors' own registers, with their tables in guest memory.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        CpuId, IntId,
        gicv3::{CpuOutputs, GicV3, GicV3Config, LpiSupport, SysReg},
    },
    bus::BusDevice,
    interrupt::NoInterrupt,
};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fn direct(cpus: u32) -> GicV3Config {
    GicV3Config {
        lpis: LpiSupport::Direct,
        ..config(cpus)
    }
}

fn set_pending(cpu: &Cpu, intid: u64) {
    cpu.set_redistributor(GICR_SETLPIR, 8, intid);
}

#[test]
fn an_lpi_is_signalled_acknowledged_and_ended_without_an_active_state() {
    let guest = Guest::with_lpis(direct(2));
    let [cpu, other] = &guest.cpus[..] else { panic!() };
    set_pending(cpu, 8192);
    assert!(cpu.irq() && !other.irq());
    assert_eq!(cpu.read(SysReg::ICC_HPPIR1_EL1), 8192);
    assert_eq!(cpu.acknowledge(), 8192);
    assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), 0xa0);
    assert!(!cpu.irq());
    set_pending(cpu, 8192);
    assert!(!cpu.irq(), "its own priority holds it off");
    cpu.end(8192);
    assert!(cpu.irq(), "a message that came while it was handled");
    assert_eq!(cpu.acknowledge(), 8192);
    cpu.write(SysReg::ICC_CTLR_EL1, EOI_MODE);
    cpu.end(8192);
    assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), IDLE);
    cpu.write(SysReg::ICC_DIR_EL1, 8192);
    guest.gic.send_lpi(CpuId(1), IntId(65535)).unwrap();
    assert_eq!(other.acknowledge(), 65535);
}

#[test]
fn an_embedder_names_only_lpis() {
    let guest = Guest::with_lpis(direct(1));
    for intid in [0, 32, 8191, 65536, u32::MAX] {
        let refusal = guest.gic.send_lpi(CpuId(0), IntId(intid)).unwrap_err();
        assert!(refusal.to_string().contains("8192 to 65535"), "{refusal}");
    }
    assert!(guest.gic.send_lpi(CpuId(1), IntId(8192)).is_err());
    for nobody in [0, 32, 8191, 65536, u64::MAX >> 32, u64::MAX] {
        set_pending(&guest.cpus[0], nobody);
        guest.cpus[0].set_redistributor(GICR_INVLPIR, 8, nobody);
        guest.cpus[0].set_redistributor(GICR_CLRLPIR, 8, nobody);
    }
    set_pending(&guest.cpus[0], 8193 << 32);
    guest.cpus[0].set_redistributor(GICR_SETLPIR + 4, 4, 8193);
    assert!(!guest.cpus[0].irq());
}

#[test]
fn the_configuration_is_read_when_it_is_invalidated() {
    let guest = Guest::with_lpis(direct(1));
    let cpu = &guest.cpus[0];
    let configure = |intid: u64, byte| guest.write_memory(PROPERTIES + intid - 8192, byte);
    set_pending(cpu, 8200);
    configure(8200, 0xa0);
    assert!(cpu.irq(), "the copy still says enabled");
    cpu.set_redistributor(GICR_INVLPIR, 8, 8200);
    assert!(!cpu.irq());
    configure(8200, 0x43);
    configure(8201, 0x21);
    set_pending(cpu, 8201);
    cpu.set_redistributor(GICR_INVALLR, 4, 0);
    assert_eq!(cpu.redistributor(GICR_SYNCR, 4), 0);
    assert_eq!(cpu.acknowledge(), 8201);
    assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), 0x20);
    cpu.end(8201);
    assert_eq!(cpu.acknowledge(), 8200);
    assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), 0x40);
    cpu.end(8200);
    set_pending(cpu, 8200);
    cpu.set_redistributor(GICR_CLRLPIR, 8, 8200);
    assert!(!cpu.irq(), "taken back");
}

#[test]
fn the_pending_table_is_the_guests_while_lpis_are_off() {
    let guest = Guest::with_lpis(direct(1));
    let cpu = &guest.cpus[0];
    let byte = |intid: u64| pending_table(0) + intid / 8;
    assert_eq!(cpu.redistributor(GICR_CTLR, 4), 0b111, "IR, CES and EnableLPIs");
    set_pending(cpu, 8192);
    set_pending(cpu, 8205);
    assert_eq!(guest.read_memory(byte(8192)), 0);
    cpu.set_redistributor(GICR_CTLR, 4, 0);
    assert!(!cpu.irq());
    assert_eq!(
        (guest.read_memory(byte(8192)), guest.read_memory(byte(8205))),
        (1, 1 << 5)
    );
    set_pending(cpu, 8193);
    assert_eq!(guest.read_memory(byte(8192)), 1, "off is off");
    guest.write_memory(byte(8192), 0);
    guest.write_memory(byte(65535), 0x80);
    cpu.set_redistributor(GICR_CTLR, 4, ENABLE_LPIS);
    assert_eq!(cpu.acknowledge(), 8205);
    cpu.end(8205);
    assert_eq!(cpu.acknowledge(), 65535);
    cpu.end(65535);
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    // A table that the guest says is zero is not looked at, once.
    cpu.set_redistributor(GICR_CTLR, 4, 0);
    guest.write_memory(byte(8192), 1);
    cpu.set_redistributor(GICR_PENDBASER, 8, pending_table(0) | PTZ);
    assert_eq!(
        cpu.redistributor(GICR_PENDBASER, 8),
        pending_table(0),
        "PTZ reads as zero"
    );
    cpu.set_redistributor(GICR_CTLR, 4, ENABLE_LPIS);
    assert!(!cpu.irq());
    set_pending(cpu, 8193);
    cpu.set_redistributor(GICR_CTLR, 4, 0);
    cpu.set_redistributor(GICR_CTLR, 4, ENABLE_LPIS);
    assert_eq!(cpu.acknowledge(), 8193, "what was pending meanwhile is not lost");
}

#[test]
fn the_tables_are_frozen_while_lpis_are_on() {
    let guest = Guest::with_lpis(direct(1));
    let cpu = &guest.cpus[0];
    let before = guest.gic.save();
    cpu.set_redistributor(GICR_PROPBASER, 8, u64::MAX);
    cpu.set_redistributor(GICR_PENDBASER, 4, u64::MAX);
    assert_eq!(guest.gic.save(), before);
    cpu.set_redistributor(GICR_CTLR, 4, 0);
    cpu.set_redistributor(GICR_PROPBASER, 8, u64::MAX);
    cpu.set_redistributor(GICR_PENDBASER, 8, u64::MAX);
    assert_eq!(cpu.redistributor(GICR_PROPBASER, 8), 0x070f_ffff_ffff_ff9f);
    assert_eq!(cpu.redistributor(GICR_PENDBASER, 8), 0x070f_ffff_ffff_0f80);
    cpu.set_redistributor(GICR_PROPBASER, 4, 0);
    cpu.set_redistributor(GICR_PENDBASER, 4, 0);
    for register in [GICR_PROPBASER, GICR_PENDBASER] {
        assert_eq!(cpu.redistributor(register + 4, 4), 0x070f_ffff, "the halves are apart");
    }
}

#[test]
fn the_tables_have_room_for_as_many_as_idbits_say() {
    for (id_bits, last) in [
        (0, None),
        (12, None),
        (13, Some(16383)),
        (14, Some(32767)),
        (15, Some(65535)),
        (31, Some(65535)),
    ] {
        let guest = Guest::with_lpis(direct(1));
        let cpu = &guest.cpus[0];
        cpu.set_redistributor(GICR_CTLR, 4, 0);
        cpu.set_redistributor(GICR_PROPBASER, 8, PROPERTIES | id_bits);
        cpu.set_redistributor(GICR_CTLR, 4, ENABLE_LPIS);
        set_pending(cpu, last.map_or(8192, |last| last + 1));
        assert!(!cpu.irq(), "IDbits {id_bits}");
        if let Some(last) = last {
            set_pending(cpu, last);
            assert_eq!(cpu.acknowledge(), last);
        }
    }
}

#[test]
fn tables_outside_of_memory_are_empty_and_nothing_panics() {
    for base in [0, RAM - 0x1_0000, RAM + RAM_SIZE as u64, 0x000f_ffff_ffff_0000] {
        let guest = Guest::with_lpis(direct(1));
        let cpu = &guest.cpus[0];
        cpu.set_redistributor(GICR_CTLR, 4, 0);
        cpu.set_redistributor(GICR_PROPBASER, 8, base | 15);
        cpu.set_redistributor(GICR_PENDBASER, 8, base);
        cpu.set_redistributor(GICR_CTLR, 4, ENABLE_LPIS);
        for intid in 8192..8300 {
            set_pending(cpu, intid);
        }
        cpu.set_redistributor(GICR_INVALLR, 8, 0);
        cpu.set_redistributor(GICR_INVLPIR, 8, 8192);
        assert_eq!(guest.gic.save(), guest.gic.save());
        cpu.set_redistributor(GICR_CTLR, 4, 0);
    }
    // A table that ends in memory, and one that begins there.
    let guest = Guest::with_lpis(direct(1));
    let cpu = &guest.cpus[0];
    cpu.set_redistributor(GICR_CTLR, 4, 0);
    cpu.set_redistributor(GICR_PROPBASER, 8, (RAM + RAM_SIZE as u64 - 0x1000) | 15);
    guest.write_memory(RAM + RAM_SIZE as u64 - 0x1000, 0x41);
    cpu.set_redistributor(GICR_CTLR, 4, ENABLE_LPIS);
    set_pending(cpu, 8192);
    assert_eq!(cpu.acknowledge(), 8192, "its part of the table is there");
    set_pending(cpu, 8192 + 0x1000);
    cpu.end(8192);
    assert!(!cpu.irq(), "the next is not");
}

#[test]
fn a_pending_table_of_which_one_page_is_memory_keeps_what_is_there() {
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_1000)]).unwrap();
    memory.write_slice(&[0xa1; 0x100], GuestAddress(0)).unwrap();
    let outputs = CpuOutputs {
        irq: Box::new(NoInterrupt),
        fiq: Box::new(NoInterrupt),
    };
    let gic = GicV3::with_lpis(direct(1), vec![outputs], Arc::new(memory)).unwrap();
    let redistributor = gic.redistributor(CpuId(0)).unwrap();
    for (offset, value) in [(GICR_PROPBASER, 15_u64), (GICR_PENDBASER, 0x1_0000)] {
        redistributor.write(offset, &value.to_le_bytes());
    }
    redistributor.write(GICR_CTLR, &1_u32.to_le_bytes());
    gic.send_lpi(CpuId(0), IntId(8200)).unwrap();
    redistributor.write(GICR_CTLR, &0_u32.to_le_bytes());
    redistributor.write(GICR_CTLR, &1_u32.to_le_bytes());
    redistributor.write(0x14, &0_u32.to_le_bytes());
    gic.distributor().write(0, &2_u32.to_le_bytes());
    let cpu = gic.cpu_interface(CpuId(0)).unwrap();
    cpu.write_sysreg(SysReg::ICC_PMR_EL1, 0xff).unwrap();
    cpu.write_sysreg(SysReg::ICC_IGRPEN1_EL1, 1).unwrap();
    assert_eq!(cpu.read_sysreg(SysReg::ICC_IAR1_EL1), Some(8200));
}

#[test]
fn a_table_full_of_ones_is_taken_one_by_one() {
    let guest = Guest::with_lpis(direct(1));
    let cpu = &guest.cpus[0];
    cpu.set_redistributor(GICR_CTLR, 4, 0);
    for byte in 1024..8192 {
        guest.write_memory(pending_table(0) + byte, 0xff);
    }
    cpu.set_redistributor(GICR_CTLR, 4, ENABLE_LPIS);
    for expected in 8192..65536 {
        assert_eq!(cpu.acknowledge(), expected);
        cpu.end(expected);
    }
    assert_eq!(cpu.acknowledge(), SPURIOUS);
}

#[test]
fn priorities_of_lpis_compete_with_all_others() {
    let guest = Guest::with_lpis(direct(1));
    let cpu = &guest.cpus[0];
    guest.write_memory(PROPERTIES, 0x93);
    cpu.set_redistributor(GICR_INVALLR, 8, 0);
    for intid in [8192, 8193] {
        set_pending(cpu, intid);
    }
    guest.set_bit(Array::SetPending, 0, 40);
    for expected in [8192, 40, 8193] {
        assert_eq!(cpu.acknowledge(), expected);
        cpu.end(expected);
    }
    cpu.write(SysReg::ICC_PMR_EL1, 0xa0);
    set_pending(cpu, 8193);
    assert!(!cpu.irq());
}

#[test]
fn with_an_its_the_direct_registers_are_not_there() {
    let guest = Guest::with_lpis(GicV3Config {
        lpis: LpiSupport::Its,
        ..config(1)
    });
    let cpu = &guest.cpus[0];
    assert_eq!(cpu.redistributor(GICR_CTLR, 4), 0b011, "CES and EnableLPIs");
    assert_eq!(cpu.redistributor(GICR_TYPER, 8) & 0b1001, 0b0001);
    set_pending(cpu, 8192);
    assert!(!cpu.irq());
    assert!(guest.gic.send_lpi(CpuId(0), IntId(8192)).is_err());
}

#[test]
fn what_is_pending_is_saved_in_the_guests_table() {
    let config = direct(2);
    let guest = Guest::with_lpis(config.clone());
    set_pending(&guest.cpus[1], 8195);
    let state = guest.gic.save();
    assert!(guest.cpus[1].irq(), "it goes on as before");
    assert_eq!(guest.read_memory(pending_table(1) + 8195 / 8), 1 << 3);
    let new = Guest::with_memory(config, guest.memory.clone(), |_| Ok(()));
    new.gic.restore(&state).unwrap();
    assert!(new.cpus[1].irq() && !new.cpus[0].irq());
    assert_eq!(new.gic.save(), state);
    assert_eq!(new.cpus[1].acknowledge(), 8195);
    new.gic.save();
    assert_eq!(new.read_memory(pending_table(1) + 8195 / 8), 0);
    new.gic.reset();
    assert_eq!(new.cpus[0].redistributor(GICR_CTLR, 4), 0b110);
    assert_eq!(new.cpus[0].redistributor(GICR_PROPBASER, 8), 0);
}

#[test]
fn memory_is_needed_exactly_where_there_are_lpis() {
    use devisor::{backends::irqchip::gicv3::CpuOutputs, interrupt::NoInterrupt};
    let outputs = || {
        vec![CpuOutputs {
            irq: Box::new(NoInterrupt),
            fiq: Box::new(NoInterrupt),
        }]
    };
    let memory = Guest::simple().memory;
    assert!(GicV3::new(direct(1), outputs()).is_err());
    let refusal = GicV3::with_lpis(config(1), outputs(), memory.clone()).unwrap_err();
    assert!(refusal.to_string().contains("with guest memory"));
    let gic = GicV3::with_lpis(direct(1), outputs(), memory).unwrap();
    let redistributor = gic.redistributor(CpuId(0)).unwrap();
    redistributor.write(GICR_CTLR, &1_u32.to_le_bytes());
    assert_eq!(read(&redistributor, GICR_CTLR, 4), 0b111, "with empty tables");
}

#[test]
fn the_two_lowest_bits_of_an_entry_are_no_priority() {
    let guest = Guest::with_lpis(GicV3Config {
        priority_bits: 8,
        ..direct(1)
    });
    let cpu = &guest.cpus[0];
    guest.write_memory(PROPERTIES, 0x97);
    cpu.set_redistributor(GICR_INVALLR, 8, 0);
    set_pending(cpu, 8192);
    assert_eq!((cpu.acknowledge(), cpu.read(SysReg::ICC_RPR_EL1)), (8192, 0x94));
}
