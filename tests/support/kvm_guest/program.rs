//! The program of a few dozen instructions that the guest runs, and what it finds in its memory.

use std::{error::Error, slice};

use devisor::{backends::kvm::Gsi, bus::Bus};
use kvm_bindings::kvm_segment;
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// How many wires there are: the pins of the IOAPIC, of which the two 8259 have the first sixteen.
pub const WIRES: usize = 24;

/// The guest's interrupt controller, both in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Controller {
    /// Two 8259, through the local APIC's LINT0.
    #[default]
    Pic,
    /// The IOAPIC and the local APIC.
    IoApic,
}

/// How a pin of the controller is programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sensing {
    /// A rise interrupts.
    Edge,
    /// The wire interrupts as long as it is up.
    Level,
    /// There is no wire: a message with the vector [`Controller::vector`] interrupts. With the IOAPIC, whose local APIC the
    /// guest tells of the end.
    Message,
}

/// What the guest does for a device, one access each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Writes a byte to a port.
    OutByte { port: u16, value: u8 },
    /// Writes 8 bits to memory or to a device.
    WriteByte { address: u32, value: u8 },
    /// Writes 16 bits.
    WriteWord { address: u32, value: u16 },
    /// Writes 32 bits.
    WriteLong { address: u32, value: u32 },
    /// Reads 32 bits and writes them elsewhere: an interrupt status to the register that acknowledges it.
    CopyLong { from: u32, to: u32 },
}

/// A wire that the guest listens to.
#[derive(Clone, Debug)]
pub struct Wire {
    /// Which one. The 8259 have the first sixteen.
    pub gsi: Gsi,
    /// How its pin is programmed.
    pub sensing: Sensing,
    /// What the guest does between taking the interrupt and ending it.
    pub handler: Vec<Action>,
}

/// What the guest is to do, and what it finds there.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Where the wires end.
    pub controller: Controller,
    /// Those that are enabled.
    pub wires: Vec<Wire>,
    /// What the guest does once its controller is programmed, before it takes interrupts.
    pub boot: Vec<Action>,
    /// The devices in memory. An access to none of them reads as ones.
    pub mmio: Bus,
    /// The devices at ports. Ports from 0xd00 on are the program's own.
    pub ports: Bus,
}

// The guest's memory. Everything in the first 64 KiB.

/// Interrupt descriptor table: 256 gates of 8 bytes.
const IDT: u32 = 0x1000;
/// Global descriptor table: nothing, code, data.
const GDT: u32 = 0x1800;
/// What `lidt` loads: limit and base of the IDT.
const IDT_POINTER: u32 = 0x1840;
/// Pointers to lists of actions: the one of the boot, then one for each wire.
const LISTS: u32 = 0x2000;
/// The lists themselves, up to the stack.
const ACTIONS: u32 = 0x2100;
const STACK_LIMIT: u32 = 0x7000;
const STACK_TOP: u32 = 0x8000;
/// The program.
const CODE: u32 = 0x8000;

/// Selectors of the flat segments in the GDT.
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;

/// Where the program reports: that it is ready, that it took a wire's interrupt, and that it has ended it.
pub const PORT_READY: u16 = 0xd00;
pub const PORT_TAKEN: u16 = 0xd04;
pub const PORT_DONE: u16 = 0xd08;

/// The vector of the first wire; that of the others follows from it.
const FIRST_VECTOR: u8 = 0x20;
/// The vector for interrupts of the local APIC that have gone away.
const SPURIOUS_VECTOR: u8 = 0xff;

/// Each stub of the program has this size.
const STUB_SIZE: u32 = 16;

// 32-bit code, copied to `CODE`: position independent but for the tables, whose addresses it gets as constants.
std::arch::global_asm!(
    ".code32",
    "devisor_guest_start:",
    "    mov esp, {stack_top}",
    "    lidt [{idt_pointer}]",
    "    mov esi, [{lists}]",
    "    call 30f",
    "    mov dx, {ready}",
    "    out dx, al",
    "    sti",
    "20: hlt",
    "    jmp 20b",
    // One stub a wire: it says which, in the dword above the registers that the handler saves.
    ".balign {stub_size}",
    "devisor_guest_stubs:",
    ".set devisor_guest_wire, 0",
    ".rept {wires}",
    "    .balign {stub_size}",
    "    push devisor_guest_wire",
    "    jmp 25f",
    "    .set devisor_guest_wire, devisor_guest_wire + 1",
    ".endr",
    ".balign {stub_size}",
    // Not `iretd`: some hosts run a guest's kernel code on KVM's instruction emulator, which has none in protected mode.
    // Code segment and flags are what the handler has too, but for the interrupt flag.
    "devisor_guest_spurious:",
    "    sti",
    "    ret 8",
    // The handler of all wires.
    "25: pushad",
    "    mov eax, [esp + 32]",
    "    mov dx, {taken}",
    "    out dx, eax",
    "    mov esi, [{lists} + 4 + eax * 4]",
    "    call 30f",
    "    mov eax, [esp + 32]",
    "    mov dx, {done}",
    "    out dx, eax",
    "    popad",
    "    add esp, 4",
    "    sti",
    "    ret 8",
    // Does the actions of the list at esi: dwords of kind and two operands, up to a kind of zero.
    "30: mov ecx, [esi]",
    "    mov edx, [esi + 4]",
    "    mov eax, [esi + 8]",
    "    add esi, 12",
    "    cmp ecx, {out_byte}",
    "    je 31f",
    "    cmp ecx, {write_long}",
    "    je 32f",
    "    cmp ecx, {copy_long}",
    "    je 33f",
    "    cmp ecx, {write_byte}",
    "    je 34f",
    "    cmp ecx, {write_word}",
    "    je 35f",
    "    ret",
    "31: out dx, al",
    "    jmp 30b",
    "32: mov [edx], eax",
    "    jmp 30b",
    "33: mov ebx, [edx]",
    "    mov [eax], ebx",
    "    jmp 30b",
    "34: mov [edx], al",
    "    jmp 30b",
    "35: mov [edx], ax",
    "    jmp 30b",
    "devisor_guest_end:",
    ".code64",
    stack_top = const STACK_TOP,
    idt_pointer = const IDT_POINTER,
    lists = const LISTS,
    ready = const PORT_READY,
    taken = const PORT_TAKEN,
    done = const PORT_DONE,
    wires = const WIRES,
    stub_size = const STUB_SIZE,
    out_byte = const OUT_BYTE,
    write_long = const WRITE_LONG,
    copy_long = const COPY_LONG,
    write_byte = const WRITE_BYTE,
    write_word = const WRITE_WORD,
);

unsafe extern "C" {
    static devisor_guest_start: u8;
    static devisor_guest_stubs: u8;
    static devisor_guest_spurious: u8;
    static devisor_guest_end: u8;
}

/// The kinds of actions in the lists.
const OUT_BYTE: u32 = 1;
const WRITE_LONG: u32 = 2;
const COPY_LONG: u32 = 3;
const WRITE_BYTE: u32 = 4;
const WRITE_WORD: u32 = 5;

impl Action {
    fn encode(self) -> [u32; 3] {
        match self {
            Self::OutByte { port, value } => [OUT_BYTE, port.into(), value.into()],
            Self::WriteByte { address, value } => [WRITE_BYTE, address, value.into()],
            Self::WriteWord { address, value } => [WRITE_WORD, address, value.into()],
            Self::WriteLong { address, value } => [WRITE_LONG, address, value],
            Self::CopyLong { from, to } => [COPY_LONG, from, to],
        }
    }
}

/// Writes program, tables and lists of actions to the guest's memory.
pub fn load(memory: &GuestMemoryMmap, program: &Program) -> Result<(), Box<dyn Error>> {
    let start = &raw const devisor_guest_start;
    // SAFETY: the program is one piece of this executable, from the one symbol to the other, and nobody writes to it.
    let code = unsafe { slice::from_raw_parts(start, (&raw const devisor_guest_end).offset_from_unsigned(start)) };
    memory.write_slice(code, GuestAddress(CODE.into()))?;
    let address_of = |label: *const u8| CODE + (label.addr() - start.addr()) as u32;

    let flat = |access: u64| 0x00cf_0000_0000_ffff | access << 40;
    for (segment, access) in [(CODE_SELECTOR, 0x9b), (DATA_SELECTOR, 0x93)] {
        memory.write_obj(flat(access), GuestAddress(u64::from(GDT) + u64::from(segment)))?;
    }

    let gate = |vector: u8, handler: u32| {
        // A present 32-bit interrupt gate of privilege 0 (Intel SDM volume 3, section 7.11).
        let low = u64::from(CODE_SELECTOR) << 16 | u64::from(handler & 0xffff);
        let high = u64::from(handler & 0xffff_0000) | 0x8e00;
        memory.write_obj(high << 32 | low, GuestAddress(u64::from(IDT) + u64::from(vector) * 8))
    };
    let stubs = address_of(&raw const devisor_guest_stubs);
    for wire in 0..WIRES as u32 {
        gate(program.controller.vector(Gsi(wire)), stubs + wire * STUB_SIZE)?;
    }
    gate(SPURIOUS_VECTOR, address_of(&raw const devisor_guest_spurious))?;
    memory.write_obj(0x7ff_u16, GuestAddress(IDT_POINTER.into()))?;
    memory.write_obj(IDT, GuestAddress(u64::from(IDT_POINTER) + 2))?;

    let mut lists = vec![vec![]; WIRES + 1];
    lists[0] = [program.controller.boot(&program.wires), program.boot.clone()].concat();
    if program.controller == Controller::Pic {
        // A request that went away from the second 8259 arrives as its last input, and the first one has to be told
        // that it is over. One that went away from the first arrives as *its* last input, and is over by itself.
        lists[16] = program.controller.end_of_interrupt(Gsi(pic::CASCADE.into()));
    }
    for wire in &program.wires {
        let pins = program.controller.pins();
        if wire.gsi.0 >= pins {
            return Err(format!(
                "{:?} has the wires 0 to {}, not {}",
                program.controller,
                pins - 1,
                wire.gsi
            )
            .into());
        }
        lists[wire.gsi.0 as usize + 1] = [&wire.handler[..], &program.controller.end_of_interrupt(wire.gsi)].concat();
    }
    let mut at = ACTIONS;
    for (list, pointer) in lists.iter().zip((LISTS..).step_by(4)) {
        memory.write_obj(at, GuestAddress(pointer.into()))?;
        for dword in list.iter().flat_map(|action| action.encode()).chain([0; 3]) {
            if at >= STACK_LIMIT {
                return Err("the handlers do too much to fit in the guest's memory".into());
            }
            memory.write_obj(dword, GuestAddress(at.into()))?;
            at += 4;
        }
    }
    Ok(())
}

/// The state in which the program starts: 32-bit protected mode, flat segments, interrupts off.
pub fn reset(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let flat = |selector: u16, type_: u8| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = flat(CODE_SELECTOR, 0xb);
    let data = flat(DATA_SELECTOR, 0x3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT.into();
    sregs.gdt.limit = 3 * 8 - 1;
    // Protection Enable; the reset value of the rest.
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)?;

    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE.into();
    // Nothing but the bit that is always set.
    regs.rflags = 2;
    vcpu.set_regs(&regs)
}

/// Registers of the local APIC (Intel SDM volume 3, section 12.4.1).
pub mod local_apic {
    /// One bit a vector, 32 of them to a register, one register each 16 bytes.
    pub const IN_SERVICE: u32 = 0xfee0_0100;
    pub const EOI: u32 = 0xfee0_00b0;
    pub const SPURIOUS_INTERRUPT_VECTOR: u32 = 0xfee0_00f0;
    /// In the spurious interrupt vector register.
    pub const SOFTWARE_ENABLE: u32 = 1 << 8;
    pub const LVT_LINT0: u32 = 0xfee0_0350;
    pub const LVT_EXTINT: u32 = 0x700;
    pub const LVT_MASKED: u32 = 1 << 16;
}

/// Registers of the IOAPIC (82093AA data sheet, section 3).
mod ioapic {
    pub const IOREGSEL: u32 = 0xfec0_0000;
    pub const IOWIN: u32 = 0xfec0_0010;
    /// The index of the low half of the first redirection entry.
    pub const IOREDTBL: u32 = 0x10;
    /// In the low half of an entry.
    pub const LEVEL: u32 = 1 << 15;
}

/// Ports of the two 8259 (8259A data sheet) and of the registers that make their inputs level-triggered.
mod pic {
    pub const COMMAND: [u16; 2] = [0x20, 0xa0];
    pub const DATA: [u16; 2] = [0x21, 0xa1];
    pub const ELCR: [u16; 2] = [0x4d0, 0x4d1];
    /// Initialize, four words.
    pub const ICW1: u8 = 0x11;
    /// Where the second is on the first, and which input of the first the second is on.
    pub const ICW3: [u8; 2] = [1 << CASCADE, CASCADE];
    /// 8086 mode.
    pub const ICW4: u8 = 0x01;
    /// Non-specific end of interrupt.
    pub const OCW2_EOI: u8 = 0x20;
    pub const CASCADE: u8 = 2;
}

impl Controller {
    /// The vector at which the guest takes `gsi`.
    pub fn vector(self, gsi: Gsi) -> u8 {
        FIRST_VECTOR + gsi.0 as u8
    }

    fn pins(self) -> u32 {
        match self {
            Self::Pic => 16,
            Self::IoApic => WIRES as u32,
        }
    }

    /// What the guest does first: programs the controller, with `wires` enabled and all others masked.
    fn boot(self, wires: &[Wire]) -> Vec<Action> {
        let write = |address, value| Action::WriteLong { address, value };
        let out = |port, value| Action::OutByte { port, value };
        let mut boot = vec![write(
            local_apic::SPURIOUS_INTERRUPT_VECTOR,
            local_apic::SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR),
        )];
        match self {
            Self::IoApic => {
                boot.push(write(local_apic::LVT_LINT0, local_apic::LVT_MASKED));
                for wire in wires.iter().filter(|wire| wire.sensing != Sensing::Message) {
                    let mut entry = u32::from(self.vector(wire.gsi));
                    if wire.sensing == Sensing::Level {
                        entry |= ioapic::LEVEL;
                    }
                    // The high half first: the destination, the APIC 0. The low half unmasks.
                    let index = ioapic::IOREDTBL + 2 * wire.gsi.0;
                    boot.extend([write(ioapic::IOREGSEL, index + 1), write(ioapic::IOWIN, 0)]);
                    boot.extend([write(ioapic::IOREGSEL, index), write(ioapic::IOWIN, entry)]);
                }
            }
            Self::Pic => {
                boot.push(write(local_apic::LVT_LINT0, local_apic::LVT_EXTINT));
                let mut enabled = 1 << pic::CASCADE;
                let mut level = 0_u16;
                for wire in wires {
                    enabled |= 1_u16 << wire.gsi.0;
                    if wire.sensing == Sensing::Level {
                        level |= 1 << wire.gsi.0;
                    }
                }
                for (chip, vector) in [(0, self.vector(Gsi(0))), (1, self.vector(Gsi(8)))] {
                    boot.push(out(pic::COMMAND[chip], pic::ICW1));
                    for word in [vector, pic::ICW3[chip], pic::ICW4, !enabled.to_le_bytes()[chip]] {
                        boot.push(out(pic::DATA[chip], word));
                    }
                    boot.push(out(pic::ELCR[chip], level.to_le_bytes()[chip]));
                }
            }
        }
        boot
    }

    /// What the guest does last.
    fn end_of_interrupt(self, gsi: Gsi) -> Vec<Action> {
        let chips = match self {
            Self::IoApic => {
                let (address, value) = (local_apic::EOI, 0);
                return vec![Action::WriteLong { address, value }];
            }
            Self::Pic if gsi.0 < 8 => &pic::COMMAND[..1],
            Self::Pic => &pic::COMMAND[..],
        };
        let value = pic::OCW2_EOI;
        chips
            .iter()
            .rev()
            .map(|&port| Action::OutByte { port, value })
            .collect()
    }
}
