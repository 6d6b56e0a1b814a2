//! Small guests: a few instructions each, in the formats that the VMM loads.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    slice,
};

use crate::scratch;

/// What ends the guest with a status: `v` becomes (v << 1) | 1.
pub const fn status(v: u8) -> i32 {
    (v as i32) << 1 | 1
}

macro_rules! guest {
    ($name:ident: $start:ident, $end:ident; $($line:literal),* $(,)?) => {
        std::arch::global_asm!(
            concat!(stringify!($start), ":"),
            $($line,)*
            concat!(stringify!($end), ":"),
            ".code64",
        );

        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                static $start: u8;
                static $end: u8;
            }
            let (start, end) = (&raw const $start, &raw const $end);
            // SAFETY: the labels are the first byte of the program and the one after the last, in memory that nobody writes to.
            unsafe { slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
        }
    };
}

// Says which mode it runs in, with a string instruction, and ends with 3.
guest!(hello_code: devisor_hello, devisor_hello_end;
    ".code16",
    "    xor ax, ax",
    "    mov ds, ax",
    "    mov es, ax",
    "    call 1f",
    "    .ascii \"real mode\\n\"",
    "1:  pop si",
    "    mov cx, 10",
    "    mov dx, 0x3f8",
    "    cld",
    "    rep outsb",
    "    mov al, 3",
    "    out 0xf4, al",
    "2:  jmp 2b",
);

// Looks for its ACPI tables as a kernel does: the RSDP, the XSDT, the MADT, and there the IOAPIC. Ends with 7 if it is at 0xfec00000,
// and otherwise with what it has not found.
guest!(tables_code: devisor_tables, devisor_tables_end;
    ".code16",
    "    mov ax, 0xe000",
    "    mov ds, ax",
    "    xor si, si",
    "1:  mov al, 1",
    "    cmp dword ptr [si], 0x20445352",
    "    je 2f",
    "    add si, 16",
    "    jnz 1b",
    "    jmp 6f",
    "2:  mov al, 2",
    "    mov bx, [si + 24]",
    "    cmp dword ptr [bx], 0x54445358",
    "    jne 6f",
    "    mov cx, [bx + 4]",
    "    add cx, bx",
    "    lea si, [bx + 36]",
    "3:  mov al, 3",
    "    cmp si, cx",
    "    jae 6f",
    "    mov di, [si]",
    "    add si, 8",
    "    cmp dword ptr [di], 0x43495041",
    "    jne 3b",
    "    mov cx, [di + 4]",
    "    add cx, di",
    "    add di, 44",
    "4:  mov al, 4",
    "    cmp di, cx",
    "    jae 6f",
    "    cmp byte ptr [di], 1",
    "    je 5f",
    "    movzx bx, byte ptr [di + 1]",
    "    add di, bx",
    "    jmp 4b",
    "5:  mov al, 5",
    "    cmp dword ptr [di + 4], 0xfec00000",
    "    jne 6f",
    "    mov al, 7",
    "6:  out 0xf4, al",
    "7:  jmp 7b",
);

// Powers off by ACPI: SLP_EN, with the SLP_TYP of \_S5.
guest!(power_off_code: devisor_power_off, devisor_power_off_end;
    ".code16",
    "    mov dx, 0x604",
    "    mov ax, 0x2000",
    "    out dx, ax",
    "1:  jmp 1b",
);

// Echoes what is typed, up to a `q`.
guest!(echo_code: devisor_echo, devisor_echo_end;
    ".code16",
    "    mov dx, 0x3fa",
    "    mov al, 0x01",
    "    out dx, al",
    "    mov al, 'r'",
    "    mov dx, 0x3f8",
    "    out dx, al",
    "1:  mov dx, 0x3fd",
    "    in al, dx",
    "    test al, 1",
    "    jz 1b",
    "    mov dx, 0x3f8",
    "    in al, dx",
    "    out dx, al",
    "    cmp al, 'q'",
    "    jne 1b",
    "    xor al, al",
    "    out 0xf4, al",
    "2:  jmp 2b",
);

// A division by zero with no descriptor table to handle it.
guest!(triple_fault_code: devisor_fault, devisor_fault_end;
    ".code32",
    "    push 0",
    "    push 0",
    "    lidt [esp]",
    "    xor ecx, ecx",
    "    div ecx",
    "1:  jmp 1b",
);

// Waits for ever.
guest!(halt_code: devisor_halt, devisor_halt_end;
    ".code16",
    "1:  cli",
    "    hlt",
    "    jmp 1b",
);

// Prints for ever.
guest!(flood_code: devisor_flood, devisor_flood_end;
    ".code16",
    "    xor si, si",
    "    mov ds, si",
    "    mov dx, 0x3f8",
    "1:  mov cx, 0x4000",
    "    rep outsb",
    "    jmp 1b",
);

// The keyboard controller's way out.
guest!(reset_code: devisor_reset, devisor_reset_end;
    ".code16",
    "    mov al, 0xfe",
    "    out 0x64, al",
    "1:  jmp 1b",
);

// Counts in the memory of the clock how often it has begun, says so, and resets the machine in another way each time: by port A, by the
// keyboard controller, by the reset control, and, in protected mode without a descriptor table, by a triple fault. Then it ends with 7.
guest!(reboot_code: devisor_reboot, devisor_reboot_end;
    ".code16",
    "    cli",
    "    mov al, 0x40",
    "    out 0x70, al",
    "    in al, 0x71",
    "    mov bl, al",
    "    inc al",
    "    out 0x71, al",
    "    mov al, bl",
    "    add al, '0'",
    "    mov dx, 0x3f8",
    "    out dx, al",
    "    cmp bl, 0",
    "    jne 1f",
    "    mov al, 1",
    "    out 0x92, al",
    "9:  jmp 9b",
    "1:  cmp bl, 1",
    "    jne 2f",
    "    mov al, 0xfe",
    "    out 0x64, al",
    "9:  jmp 9b",
    "2:  cmp bl, 2",
    "    jne 3f",
    "    mov dx, 0xcf9",
    "    mov al, 2",
    "    out dx, al",
    "    mov al, 6",
    "    out dx, al",
    "9:  jmp 9b",
    "3:  cmp bl, 3",
    "    jne 4f",
    // A table of no descriptors, at 0x7000, where there are zeros.
    "    xor ax, ax",
    "    mov ds, ax",
    "    mov bx, 0x7000",
    "    lidt [bx]",
    "    mov eax, cr0",
    "    or al, 1",
    "    mov cr0, eax",
    "    xor cx, cx",
    "    div cx",
    "9:  jmp 9b",
    "4:  mov al, 7",
    "    out 0xf4, al",
    "9:  jmp 9b",
);

// Says in one letter each which of x2APIC, CX16, XSAVE, and SSE3 there are, a capital for one that is.
guest!(features_code: devisor_features, devisor_features_end;
    ".code16",
    "    mov eax, 1",
    "    cpuid",
    "    mov dx, 0x3f8",
    "    mov al, 'x'",
    "    bt ecx, 21",
    "    jnc 1f",
    "    mov al, 'X'",
    "1:  out dx, al",
    "    mov al, 'c'",
    "    bt ecx, 13",
    "    jnc 1f",
    "    mov al, 'C'",
    "1:  out dx, al",
    "    mov al, 's'",
    "    bt ecx, 26",
    "    jnc 1f",
    "    mov al, 'S'",
    "1:  out dx, al",
    "    mov al, 'e'",
    "    bt ecx, 0",
    "    jnc 1f",
    "    mov al, 'E'",
    "1:  out dx, al",
    "    xor al, al",
    "    out 0xf4, al",
    "9:  jmp 9b",
);

// Reads and writes each port in all three widths, but for those that end it, with different values.
guest!(ports_code: devisor_ports, devisor_ports_end;
    ".code16",
    "    cli",
    "    xor ax, ax",
    "    mov ss, ax",
    "    mov sp, 0x7000",
    "    xor ebx, ebx",
    "    xor dx, dx",
    "1:  cmp dx, 0x64",
    "    je 4f",
    "    cmp dx, 0x92",
    "    je 4f",
    "    cmp dx, 0xcf9",
    "    je 4f",
    "    cmp dx, 0xf4",
    "    jb 3f",
    "    cmp dx, 0xf8",
    "    jb 4f",
    "3:  in eax, dx",
    "    in ax, dx",
    "    in al, dx",
    "    imul ebx, ebx, 0x19660d",
    "    add ebx, 0x3c6ef35f",
    "    mov eax, ebx",
    "    out dx, al",
    "    shr eax, 3",
    "    out dx, ax",
    "    shr eax, 3",
    "    out dx, eax",
    "4:  inc dx",
    "    cmp dx, 0x2100",
    "    jne 1b",
    "    mov al, 5",
    "    out 0xf4, al",
    "5:  jmp 5b",
);

// In protected mode: says what the loader gave it, with esi where to find the text, and ends with 4.
guest!(say_code: devisor_say, devisor_say_end;
    ".code32",
    "    mov edx, 0x3f8",
    "1:  mov al, [esi]",
    "    test al, al",
    "    jz 2f",
    "    out dx, al",
    "    inc esi",
    "    jmp 1b",
    "2:  mov al, 4",
    "    out 0xf4, al",
    "3:  jmp 3b",
);

// The beginning of it after a multiboot loader: the command line that the information names.
guest!(from_multiboot_code: devisor_from_multiboot, devisor_from_multiboot_end;
    ".code32",
    "    cmp eax, 0x2badb002",
    "    jne 9f",
    "    test dword ptr [ebx], 0x44",
    "    jz 9f",
    "    mov esi, [ebx + 16]",
    "    jmp 1f",
    "9:  mov al, 9",
    "    out 0xf4, al",
    "    jmp 9b",
    "1:",
);

// The beginning of it after the Linux boot protocol.
guest!(from_linux_code: devisor_from_linux, devisor_from_linux_end;
    ".code32",
    "    mov esi, [esi + 0x228]",
);

// Writes all over the devices in memory with different values, from the IOAPIC to the end of the local APICs; the disk too.
guest!(memory_code: devisor_memory, devisor_memory_end;
    ".code32",
    "    xor ebx, ebx",
    "    mov ebp, 20000",
    "1:  imul ebx, ebx, 0x19660d",
    "    add ebx, 0x3c6ef35f",
    "    mov edi, ebx",
    "    shr edi, 20",
    "    mov ecx, ebx",
    "    shr ecx, 9",
    "    and ecx, 3",
    "    cmp ecx, 1",
    "    jb 2f",
    "    je 3f",
    "    add edi, 0xfeb00000",
    "    jmp 4f",
    "2:  add edi, 0xfec00000",
    "    jmp 4f",
    "3:  add edi, 0xfee00000",
    // The interrupt command register: an INIT to itself would end the test before its end.
    "    mov eax, edi",
    "    and eax, 0xff0",
    "    cmp eax, 0x300",
    "    je 5f",
    "4:  mov eax, [edi]",
    "    mov al, [edi]",
    "    mov eax, ebx",
    "    mov [edi], eax",
    "    mov [edi], ax",
    "    mov [edi], al",
    "5:  dec ebp",
    "    jnz 1b",
    "    mov al, 6",
    "    out 0xf4, al",
    "6:  jmp 6b",
);

// Reads the first sector of the disk, waits for the interrupt in `hlt`, and says what it has read. Ends with 0, or with 9.
guest!(read_disk_code: devisor_read_disk, devisor_read_disk_end;
    ".code32",
    // The handler: what the device says, acknowledged. It returns without `iret`, which KVM's instruction emulator has not.
    "    call 1f",
    "    push eax",
    "    mov eax, [edi + 0x60]",
    "    mov [edi + 0x64], eax",
    "    mov [ebx + 0x3200], eax",
    "    mov al, 0x20",
    "    out 0x20, al",
    "    pop eax",
    "    ret 8",
    "1:  pop eax",
    // Its gate is that of IRQ 5, and no other IRQ is let through.
    "    mov ebx, 0x6128",
    "    mov word ptr [ebx], ax",
    "    mov word ptr [ebx + 2], 0x10",
    "    mov word ptr [ebx + 4], 0x8e00",
    "    shr eax, 16",
    "    mov word ptr [ebx + 6], ax",
    "    push 0x6000",
    "    push 0x07ff0000",
    "    lidt [esp + 2]",
    "    mov al, 0x11",
    "    out 0x20, al",
    "    mov al, 0x20",
    "    out 0x21, al",
    "    mov al, 4",
    "    out 0x21, al",
    "    mov al, 1",
    "    out 0x21, al",
    "    mov al, 0xdf",
    "    out 0x21, al",
    // The device: a block device, its reset, VERSION_1, a queue of four.
    "    mov edi, 0xfeb00000",
    "    mov ebx, 0x300000",
    "    cmp dword ptr [edi], 0x74726976",
    "    jne 9f",
    "    cmp dword ptr [edi + 8], 2",
    "    jne 9f",
    "    mov dword ptr [edi + 0x70], 0",
    "    mov dword ptr [edi + 0x70], 3",
    "    mov dword ptr [edi + 0x24], 1",
    "    mov dword ptr [edi + 0x20], 1",
    "    mov dword ptr [edi + 0x70], 11",
    "    cmp dword ptr [edi + 0x70], 11",
    "    jne 9f",
    "    mov dword ptr [edi + 0x38], 4",
    "    mov dword ptr [edi + 0x80], 0x300000",
    "    mov dword ptr [edi + 0x90], 0x301000",
    "    mov dword ptr [edi + 0xa0], 0x302000",
    "    mov dword ptr [edi + 0x44], 1",
    "    mov dword ptr [edi + 0x70], 15",
    // The request, all zeros, is a read of sector 0; then the data, then the status.
    "    mov dword ptr [ebx], 0x303000",
    "    mov dword ptr [ebx + 8], 16",
    "    mov dword ptr [ebx + 12], 0x10001",
    "    mov dword ptr [ebx + 16], 0x304000",
    "    mov dword ptr [ebx + 24], 512",
    "    mov dword ptr [ebx + 28], 0x20003",
    "    mov dword ptr [ebx + 32], 0x303100",
    "    mov dword ptr [ebx + 40], 1",
    "    mov dword ptr [ebx + 44], 2",
    "    mov byte ptr [ebx + 0x3100], 0xff",
    "    mov word ptr [ebx + 0x1002], 1",
    "    mov dword ptr [edi + 0x50], 0",
    "2:  cli",
    "    cmp dword ptr [ebx + 0x3200], 0",
    "    jne 3f",
    "    sti",
    "    hlt",
    "    jmp 2b",
    "3:  cmp dword ptr [ebx + 0x3200], 1",
    "    jne 9f",
    "    cmp word ptr [ebx + 0x2002], 1",
    "    jne 9f",
    "    cmp dword ptr [ebx + 0x2008], 513",
    "    jne 9f",
    "    cmp byte ptr [ebx + 0x3100], 0",
    "    jne 9f",
    "    mov esi, 0x304000",
    "    mov ecx, 512",
    "    mov edx, 0x3f8",
    "    cld",
    "    rep outsb",
    "    xor al, al",
    "    out 0xf4, al",
    "9:  mov al, 9",
    "    out 0xf4, al",
    "    jmp 9b",
);

// Raises and lowers each line, after writing different values to all of the redirection table: no NMI and no INIT is among them.
guest!(lines_code: devisor_lines, devisor_lines_end;
    ".code32",
    "    mov edi, 0xfec00000",
    "    xor ebx, ebx",
    "    mov ebp, 40",
    "1:  mov ecx, 0x10",
    "2:  imul ebx, ebx, 0x19660d",
    "    add ebx, 0x3c6ef35f",
    "    mov [edi], ecx",
    "    mov eax, ebx",
    "    shr eax, 7",
    "    and eax, 0xfffefbff",
    "    mov [edi + 16], eax",
    "    inc ecx",
    "    cmp ecx, 0x40",
    "    jne 2b",
    "    mov edx, 0x2000",
    "3:  mov al, 1",
    "    out dx, al",
    "    xor al, al",
    "    out dx, al",
    "    inc dx",
    "    cmp dx, 0x2018",
    "    jne 3b",
    "    dec ebp",
    "    jnz 1b",
    "    mov al, 5",
    "    out 0xf4, al",
    "4:  jmp 4b",
);

/// A file in this test's folder.
fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = scratch(name);
    fs::write(&path, content).unwrap();
    path
}

/// A boot sector.
fn boot_sector(name: &str, code: &[u8]) -> PathBuf {
    let mut sector = code.to_vec();
    assert!(sector.len() <= 510);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    file(name, &sector)
}

pub fn hello() -> PathBuf {
    boot_sector("hello", hello_code())
}

pub fn tables() -> PathBuf {
    boot_sector("tables", tables_code())
}

pub fn power_off() -> PathBuf {
    boot_sector("power-off", power_off_code())
}

/// That of [`hello`], on a disk.
pub fn bootable_disk() -> PathBuf {
    let path = boot_sector("bootable-disk", hello_code());
    let disk = fs::File::options().write(true).open(&path).unwrap();
    disk.set_len(1 << 20).unwrap();
    path
}

pub fn echo() -> PathBuf {
    boot_sector("echo", echo_code())
}

pub fn triple_fault() -> PathBuf {
    multiboot("triple-fault", 0x20_0000, 0, &[&STACK, triple_fault_code()])
}

pub fn halt() -> PathBuf {
    boot_sector("halt", halt_code())
}

pub fn flood() -> PathBuf {
    boot_sector("flood", flood_code())
}

pub fn reset() -> PathBuf {
    boot_sector("reset", reset_code())
}

pub fn reboot() -> PathBuf {
    boot_sector("reboot", reboot_code())
}

pub fn features() -> PathBuf {
    boot_sector("features", features_code())
}

pub fn ports() -> PathBuf {
    boot_sector("ports", ports_code())
}

/// `mov esp, 0x80000`: a loader gives no stack.
const STACK: [u8; 5] = [0xbc, 0x00, 0x00, 0x08, 0x00];

/// The multiboot header that says itself where the file goes, with the code after it.
fn multiboot(name: &str, load: u32, bss_end: u32, code: &[&[u8]]) -> PathBuf {
    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 1 << 16 | 0b11;
    const HEADER: u32 = 32;
    let end = load + HEADER + code.iter().map(|part| part.len() as u32).sum::<u32>();
    let checksum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    let header = [MAGIC, FLAGS, checksum, load, load, end, bss_end, load + HEADER];
    let mut image: Vec<u8> = header.iter().flat_map(|field| field.to_le_bytes()).collect();
    code.iter().for_each(|part| image.extend(*part));
    file(name, &image)
}

pub fn multiboot_by_addresses() -> PathBuf {
    multiboot("multiboot", 0x20_0000, 0x30_0000, &[from_multiboot_code(), say_code()])
}

/// Its BSS ends at 200 MiB.
pub fn large() -> PathBuf {
    multiboot("large", 0x20_0000, 200 << 20, &[say_code()])
}

/// It wants to be where the boot information is.
pub fn in_the_way() -> PathBuf {
    multiboot("in-the-way", 0x9_0000, 0, &[say_code()])
}

pub fn lines() -> PathBuf {
    multiboot("lines", 0x20_0000, 0, &[lines_code()])
}

pub fn memory() -> PathBuf {
    multiboot("memory", 0x20_0000, 0, &[memory_code()])
}

/// What GRUB says on the serial port before it starts a kernel.
pub const GRUB_SAYS: &str = "GRUB starts it";

/// A disk that begins with GRUB, whose only entry is a multiboot kernel that says its command line.
///
/// # Errors
/// Why a test that needs it is skipped: what makes such disks is not here.
pub fn grub_disk(words: &str) -> Result<PathBuf, String> {
    const GRUB: &str = "/usr/lib/grub/i386-pc";
    if !Path::new(GRUB).exists() {
        return Err(format!("{GRUB} is missing: apt-get install grub-pc-bin"));
    }
    let (root, disk) = (scratch("grub"), scratch("grub-disk"));
    fs::create_dir_all(root.join("boot/grub")).unwrap();
    fs::copy(multiboot_by_addresses(), root.join("kernel")).unwrap();
    let menu = format!(
        "serial --unit=0 --speed=115200
         terminal_input serial
         terminal_output serial
         set timeout=0
         menuentry 'a kernel' {{
             echo {GRUB_SAYS}
             multiboot /kernel {words}
         }}
        "
    );
    fs::write(root.join("boot/grub/grub.cfg"), menu).unwrap();
    // Without what it does not need it starts in half the time, where its every instruction is emulated. It looks for each kind of
    // partition table by itself.
    let modules = "normal multiboot serial echo part_acorn part_amiga part_apple part_bsd part_dfly part_dvh part_gpt part_msdos \
                   part_plan part_sun part_sunpc";
    let mut mkrescue = Command::new("grub-mkrescue");
    mkrescue.args(["--directory", GRUB, "--fonts=", "--themes=", "--locales="]);
    mkrescue.arg(format!("--install-modules={modules}"));
    mkrescue.arg("--output").args([&disk, &root]);
    let why = "apt-get install grub-common mtools xorriso";
    let made = mkrescue
        .output()
        .map_err(|error| format!("grub-mkrescue: {error}: {why}"))?;
    fs::remove_dir_all(&root).unwrap();
    match made.status.success() && disk.exists() {
        true => Ok(disk),
        false => Err(format!(
            "grub-mkrescue: {}: {why}",
            String::from_utf8_lossy(&made.stderr).trim()
        )),
    }
}

/// An ELF file with a multiboot header, linked at 3 GiB and loaded at 2 MiB. `machine` and `file_size` go into its headers,
/// `unit` is the size of its addresses.
fn elf(name: &str, unit: usize, machine: u16, file_size: Option<u32>) -> PathBuf {
    const MULTIBOOT_AT: usize = 0x80;
    const CODE_AT: usize = 0x90;
    const VIRTUAL: u32 = 0xc020_0000;
    const PHYSICAL: u32 = 0x20_0000;
    let mut image = vec![0; CODE_AT];
    image[..7].copy_from_slice(b"\x7fELF\x00\x01\x01");
    image[4] = (unit / 4) as u8;
    let (headers, size) = (28 + 6 * unit, 8 + 6 * unit);
    let code = (from_multiboot_code().len() + say_code().len()) as u32;
    let segment = [
        CODE_AT as u32,
        VIRTUAL,
        PHYSICAL,
        file_size.unwrap_or(code),
        code + 0x1000,
    ];
    for (at, value) in [(18, machine), (30 + 3 * unit, size as u16), (32 + 3 * unit, 1)] {
        image[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    let multiboot = [0x1bad_b002, 0b11, 0_u32.wrapping_sub(0x1bad_b002 + 0b11)];
    let longs = [(24, VIRTUAL), (24 + unit, headers as u32), (headers, 1)].into_iter();
    let segment = (headers + unit..).step_by(unit).zip(segment);
    let multiboot = (MULTIBOOT_AT..).step_by(4).zip(multiboot);
    for (at, value) in longs.chain(segment).chain(multiboot) {
        image[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    image.extend(from_multiboot_code());
    image.extend(say_code());
    file(name, &image)
}

pub fn elf_32() -> PathBuf {
    elf("elf-32", 4, 3, None)
}

pub fn elf_64() -> PathBuf {
    elf("elf-64", 8, 62, None)
}

pub fn elf_of_another_machine() -> PathBuf {
    elf("elf-arm", 4, 40, None)
}

pub fn elf_that_is_cut_off() -> PathBuf {
    elf("elf-cut", 4, 3, Some(0x10_0000))
}

/// A bzImage: its setup is nothing but the header, its kernel says the command line.
pub fn bzimage() -> PathBuf {
    const SETUP_SECTORS: usize = 1;
    let mut image = vec![0; 512 * (1 + SETUP_SECTORS)];
    image[0x1f1] = SETUP_SECTORS as u8;
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1; // LOADED_HIGH
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    let mut code = [from_linux_code(), say_code()].concat();
    // It says its size in paragraphs, the last of which is not whole.
    code.resize(code.len().next_multiple_of(16) + 1, 0);
    image[0x1f4..0x1f8].copy_from_slice(&(code.len().div_ceil(16) as u32).to_le_bytes());
    image.extend(code);
    file("bzimage", &image)
}

pub fn no_kernel() -> PathBuf {
    file("no-kernel", &b"#!/bin/sh\necho this is a script\n".repeat(100))
}

pub fn read_disk() -> PathBuf {
    multiboot("read-disk", 0x20_0000, 0, &[&STACK, read_disk_code()])
}

/// A disk of two sectors, and what is on it.
pub fn text_disk() -> (PathBuf, String) {
    let text: String = (0..1024).map(|at| char::from(b'a' + (at / 7 % 26) as u8)).collect();
    (file("text-disk", text.as_bytes()), text)
}

pub fn disk() -> PathBuf {
    file("disk", &[0x5a; 4 * 512])
}
