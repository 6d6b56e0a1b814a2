//! Puts a kernel into the guest's memory, and says where and how a CPU is to begin with it.

use std::{
    fs,
    io::{self, Cursor},
    ops::Range,
    path::Path,
};

use devisor::bus::read_le;
use linux_loader::{
    bootparam::{boot_e820_entry, boot_params},
    loader::{KernelLoader, bzimage::BzImage},
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use crate::options::Error;

/// Where a CPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Real mode, at 0:`ip`.
    Real { ip: u16 },
    /// 32-bit protected mode, flat, without paging.
    Protected { eip: u32, eax: u32, ebx: u32, esi: u32 },
}

// The low megabyte. Conventional memory ends where a PC has its extended BIOS data.
const BOOT_SECTOR: u64 = 0x7c00;
/// What the loader tells the kernel, and the end of conventional memory.
const BOOT_INFO: Range<u64> = 0x9_0000..0x9_fc00;
/// The descriptors that a CPU in protected mode begins with.
pub const GDT: u64 = 0x9_7000;
const COMMAND_LINE: u64 = 0x9_8000;
const COMMAND_LINE_MAX: usize = 0x7000;
const HIGH_MEMORY: u64 = 0x10_0000;

pub struct Loader<'a> {
    pub memory: &'a GuestMemoryMmap,
    pub memory_size: u64,
    pub command_line: &'a str,
}

impl Loader<'_> {
    pub fn load(&self, path: &Path) -> Result<Entry, Error> {
        let name = path.display();
        let cannot_be_read = |error| format!("the kernel {name} cannot be read: {error}");
        // Of a device there may be no end.
        if !fs::metadata(path).map_err(cannot_be_read)?.is_file() {
            return Err(cannot_be_read(io::Error::other("it is no file")).into());
        }
        let image = fs::read(path).map_err(cannot_be_read)?;
        let entry = if let Some(header) = multiboot_header(&image) {
            self.load_multiboot(&image, header, path)
        } else if image.get(0x202..0x206) == Some(b"HdrS") {
            self.load_bzimage(&image)
        } else if image.get(510..512) == Some(&[0x55, 0xaa]) {
            self.load_flat(&image)
        } else {
            Err("it has neither a multiboot header, nor that of a bzImage, nor the signature of a boot sector".into())
        };
        entry.map_err(|error| format!("{name} is no kernel for this machine: {error}").into())
    }

    /// A part of the kernel, which is zero from the end of `data` up to `size` bytes, as new memory is.
    fn put(&self, data: &[u8], address: u64, size: u64) -> Result<(), Error> {
        let size = size.max(data.len() as u64);
        let end = address.checked_add(size).filter(|end| *end <= self.memory_size);
        let end = end.ok_or_else(|| {
            let memory = self.memory_size;
            format!("{size:#x} bytes of it at {address:#x} do not fit into {memory:#x} bytes of memory")
        })?;
        if address < BOOT_INFO.end && end > BOOT_INFO.start {
            return Err(
                format!("what it has at {address:#x} is where the boot information goes ({BOOT_INFO:#x?})").into(),
            );
        }
        Ok(self.memory.write_slice(data, GuestAddress(address))?)
    }

    fn put_command_line(&self, line: &str) -> Result<u32, Error> {
        if line.len() >= COMMAND_LINE_MAX {
            return Err(format!("its command line is longer than {COMMAND_LINE_MAX} bytes").into());
        }
        self.memory.write_slice(line.as_bytes(), GuestAddress(COMMAND_LINE))?;
        Ok(COMMAND_LINE as u32)
    }

    /// RAM as the guest is told of it: start and length.
    fn map(&self) -> Vec<(u64, u64)> {
        let low = (0, BOOT_INFO.end.min(self.memory_size));
        let high = (HIGH_MEMORY, self.memory_size.saturating_sub(HIGH_MEMORY));
        [low, high].into_iter().filter(|(_, len)| *len != 0).collect()
    }

    // Multiboot Specification version 0.6.96, sections 3.1 to 3.3.

    fn load_multiboot(&self, image: &[u8], header: usize, path: &Path) -> Result<Entry, Error> {
        // Pages for modules, of which there are none, and what memory there is. No video modes.
        const KNOWN_REQUIREMENTS: u64 = 0b11;
        const ADDRESSES: u64 = 1 << 16;
        let flags = number(image, header + 4, 4)?;
        if flags & 0xffff & !KNOWN_REQUIREMENTS != 0 {
            return Err(format!(
                "its multiboot header requires {flags:#x}, of which only {KNOWN_REQUIREMENTS:#x} is there"
            )
            .into());
        }
        let entry = match flags & ADDRESSES {
            0 => self.load_elf(image)?,
            _ => self.load_by_addresses(image, header)?,
        };
        Ok(Entry::Protected {
            eip: entry.try_into().map_err(|_| "its entry is above 4 GiB")?,
            eax: 0x2bad_b002,
            // As other loaders do: the first word is the kernel's name.
            ebx: self.put_multiboot_info(&format!("{} {}", path.display(), self.command_line))?,
            esi: 0,
        })
    }

    /// The header says itself what goes where.
    fn load_by_addresses(&self, image: &[u8], header: usize) -> Result<u64, Error> {
        let field = |at| number(image, header + at, 4);
        let [header_at, load, load_end, bss_end, entry] = [field(12)?, field(16)?, field(20)?, field(24)?, field(28)?];
        let before = header_at
            .checked_sub(load)
            .and_then(|before| header.checked_sub(before as usize));
        let start = before.ok_or("its multiboot header names a start before the file")?;
        let len = match load_end {
            0 => (image.len() - start) as u64,
            _ => load_end
                .checked_sub(load)
                .ok_or("its multiboot header names an end before the start")?,
        };
        self.put(part(image, start as u64, len)?, load, bss_end.saturating_sub(load))?;
        Ok(entry)
    }

    fn load_elf(&self, image: &[u8]) -> Result<u64, Error> {
        const MACHINES: [u64; 2] = [3, 62]; // 386 and x86-64
        const LOAD: u64 = 1;
        // The size of an address, from which follows where everything is.
        let unit = match image.get(..6) {
            Some(b"\x7fELF\x01\x01") => 4,
            Some(b"\x7fELF\x02\x01") => 8,
            _ => 0,
        };
        if unit == 0 || !MACHINES.contains(&number(image, 18, 2)?) {
            return Err("it is no ELF file of x86, and its multiboot header has no addresses".into());
        }
        let virtual_entry = number(image, 24, unit)?;
        let mut entry = virtual_entry;
        let headers = number(image, 24 + unit, unit)? as usize;
        let [size, count] = [number(image, 30 + 3 * unit, 2)?, number(image, 32 + 3 * unit, 2)?];
        for n in 0..count as usize {
            let header = headers.saturating_add(n * size as usize);
            if number(image, header, 4)? != LOAD {
                continue;
            }
            let field = |n| number(image, header + n * unit, unit);
            let [offset, virt, phys, in_file, in_memory] = [field(1)?, field(2)?, field(3)?, field(4)?, field(5)?];
            self.put(part(image, offset, in_file)?, phys, in_memory)?;
            if let Some(at) = virtual_entry.checked_sub(virt).filter(|at| *at < in_memory) {
                entry = phys + at;
            }
        }
        Ok(entry)
    }

    fn put_multiboot_info(&self, command_line: &str) -> Result<u32, Error> {
        const MEMORY: u32 = 1 << 0;
        const COMMAND_LINE: u32 = 1 << 2;
        const MEMORY_MAP: u32 = 1 << 6;
        const INFO_SIZE: usize = 0x100;
        let mut map = Vec::new();
        for (start, len) in self.map() {
            map.extend(20_u32.to_le_bytes()); // of what follows
            map.extend(start.to_le_bytes());
            map.extend(len.to_le_bytes());
            map.extend(1_u32.to_le_bytes()); // RAM
        }
        let mut info = vec![0; INFO_SIZE];
        for (at, value) in [
            (0, MEMORY | COMMAND_LINE | MEMORY_MAP),
            (4, (BOOT_INFO.end >> 10) as u32),
            (8, (self.memory_size.saturating_sub(HIGH_MEMORY) >> 10) as u32),
            (16, self.put_command_line(command_line)?),
            (44, map.len() as u32),
            (48, BOOT_INFO.start as u32 + INFO_SIZE as u32),
        ] {
            info[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        info.extend(map);
        self.memory.write_slice(&info, GuestAddress(BOOT_INFO.start))?;
        Ok(BOOT_INFO.start as u32)
    }

    // The Linux/x86 boot protocol (Documentation/arch/x86/boot.rst), with its 32-bit entry.

    fn load_bzimage(&self, image: &[u8]) -> Result<Entry, Error> {
        const LOADER_UNDEFINED: u8 = 0xff;
        const E820_RAM: u32 = 1;
        let mut file = Cursor::new(image);
        let start = Some(GuestAddress(HIGH_MEMORY));
        let loaded = BzImage::load(self.memory, None, &mut file, start)?;
        let header = loaded.setup_header.ok_or("it has no setup header")?;
        // What it says in paragraphs may be less than there is, and the last one need not be whole.
        if (loaded.kernel_end - loaded.kernel_load.0).div_ceil(16) < u64::from(header.syssize) {
            return Err("it is cut off".into());
        }
        let mut params = boot_params {
            hdr: header,
            ..Default::default()
        };
        params.hdr.type_of_loader = LOADER_UNDEFINED;
        params.hdr.cmd_line_ptr = self.put_command_line(self.command_line)?;
        for (entry, (addr, size)) in params.e820_table.iter_mut().zip(self.map()) {
            *entry = boot_e820_entry {
                addr,
                size,
                r#type: E820_RAM,
            };
            params.e820_entries += 1;
        }
        self.memory
            .write_slice(params.as_slice(), GuestAddress(BOOT_INFO.start))?;
        Ok(Entry::Protected {
            eip: loaded.kernel_load.0 as u32,
            eax: 0,
            ebx: 0,
            esi: BOOT_INFO.start as u32,
        })
    }

    /// As firmware does with a boot sector, but for its length.
    fn load_flat(&self, image: &[u8]) -> Result<Entry, Error> {
        self.put(image, BOOT_SECTOR, 0)?;
        Ok(Entry::Real { ip: BOOT_SECTOR as u16 })
    }
}

/// Where the header is: all of it in the first 8192 bytes, at a multiple of four, and its three words add up to nothing.
fn multiboot_header(image: &[u8]) -> Option<usize> {
    const MAGIC: u64 = 0x1bad_b002;
    let image = &image[..image.len().min(8192)];
    (0..image.len())
        .step_by(4)
        .find(|at| match [0, 4, 8].map(|n| number(image, at + n, 4)) {
            [Ok(MAGIC), Ok(flags), Ok(checksum)] => (MAGIC + flags + checksum) as u32 == 0,
            _ => false,
        })
}

fn number(image: &[u8], at: usize, len: usize) -> Result<u64, Error> {
    Ok(read_le(part(image, at as u64, len as u64)?))
}

fn part(image: &[u8], at: u64, len: u64) -> Result<&[u8], Error> {
    let end = at.checked_add(len);
    let part = end.and_then(|end| image.get(at as usize..end as usize));
    Ok(part.ok_or("it is cut off, or something is said to be beyond the file")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 2 << 20;

    fn load(image: &[u8]) -> Result<Entry, Error> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)])?;
        let (process, thread) = (std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(format!("devisor-vmm-{process}-{thread:?}"));
        fs::write(&path, image)?;
        let loader = Loader {
            memory: &memory,
            memory_size: SIZE as u64,
            command_line: "",
        };
        let entry = loader.load(&path);
        fs::remove_file(path)?;
        entry
    }

    /// A header as `fields` have it, at each of their offsets, and zeros up to `len`.
    fn image(len: usize, fields: &[(usize, u32)]) -> Vec<u8> {
        let mut image = vec![0; len];
        for (at, value) in fields {
            image[*at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        image
    }

    const MAGIC: u32 = 0x1bad_b002;

    #[test]
    fn a_multiboot_header_is_found_where_all_of_it_is_in_the_first_8192_bytes() {
        let at = |at| image(0x3000, &[(at, MAGIC), (at + 8, 0_u32.wrapping_sub(MAGIC))]);
        for (place, found) in [
            (0, true),
            (0x1ff4, true),
            (0x1ff8, false),
            (0x2000, false),
            (0x102, false),
        ] {
            assert_eq!(multiboot_header(&at(place)).is_some(), found, "{place:#x}");
        }
    }

    #[test]
    fn a_header_that_requires_what_is_not_there_is_refused() {
        let requiring = |flags: u32| {
            let mut image = elf(0x60, 0x10_0000, 0x10_0000, 0x20, 0x20);
            image[0x58..0x5c].copy_from_slice(&flags.to_le_bytes());
            image[0x5c..0x60].copy_from_slice(&0_u32.wrapping_sub(MAGIC).wrapping_sub(flags).to_le_bytes());
            load(&image)
        };
        requiring(0b11).unwrap();
        for flags in [0b100, 0b1000, 0x8000] {
            let error = requiring(flags).unwrap_err().to_string();
            assert!(error.contains("requires"), "{error}");
        }
    }

    #[test]
    fn no_number_in_a_64_bit_file_overflows() {
        const VALUES: [u64; 5] = [0, 0x40, 0x10_0000, 1 << 63, u64::MAX];
        let file = |fields: [u64; 7]| {
            let mut image = image(
                0x100,
                &[(0, 0x464c_457f), (4, 0x0102), (18, 62), (54, 1 << 16 | 56), (0x40, 1)],
            );
            for (at, value) in [24, 32, 0x48, 0x50, 0x58, 0x60, 0x68].into_iter().zip(fields) {
                image[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            image[0x80..0x84].copy_from_slice(&MAGIC.to_le_bytes());
            image[0x88..0x8c].copy_from_slice(&0_u32.wrapping_sub(MAGIC).to_le_bytes());
            load(&image)
        };
        file([0x10_0000, 0x40, 0, 0x10_0000, 0x10_0000, 0x100, 0x100]).unwrap();
        for field in 0..7 {
            for (value, entry) in VALUES.into_iter().flat_map(|value| VALUES.map(|entry| (value, entry))) {
                let mut fields = [entry, 0x40, 0, 0x10_0000, 0x10_0000, 0x100, 0x100];
                fields[field] = value;
                let _ = file(fields);
            }
        }
    }

    fn elf(offset: u32, virt: u32, phys: u32, in_file: u32, in_memory: u32) -> Vec<u8> {
        let fields = [
            (0, 0x464c_457f),
            (4, 0x0101),
            (18, 3),
            (24, virt),
            (28, 0x34),
            (42, 1 << 16 | 32),
            (0x34, 1),
            (0x38, offset),
            (0x3c, virt),
            (0x40, phys),
            (0x44, in_file),
            (0x48, in_memory),
            (0x54, MAGIC),
            (0x58, 0),
            (0x5c, 0_u32.wrapping_sub(MAGIC)),
        ];
        image(0x80, &fields)
    }

    fn by_addresses(header: u32, load: u32, load_end: u32, bss_end: u32) -> Vec<u8> {
        let flags = 1 << 16;
        let checksum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(flags);
        let fields = [MAGIC, flags, checksum, header, load, load_end, bss_end, load];
        let fields: Vec<_> = (16..).step_by(4).zip(fields).collect();
        image(0x80, &fields)
    }

    fn bzimage() -> Vec<u8> {
        let mut image = image(0x600, &[(0x202, 0x5372_6448), (0x1f4, 0x20), (0x214, 0x10_0000)]);
        image[0x1f1] = 1;
        (image[0x207], image[0x211]) = (2, 1);
        image
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_is_refused() {
        // The last paragraph of a bzImage need not be whole.
        for (whole, rest) in [
            (elf(0x60, 0x10_0000, 0x10_0000, 0x20, 0x20), 0),
            (by_addresses(0x10_0010, 0x10_0000, 0x10_0080, 0), 0),
            (bzimage(), 15),
        ] {
            load(&whole).unwrap();
            for len in 0..whole.len() - rest {
                assert!(load(&whole[..len]).is_err(), "{len} of {:#x} bytes", whole.len());
            }
        }
    }

    #[test]
    fn no_address_or_length_in_a_header_leads_beyond_the_memory_or_overflows() {
        const VALUES: [u32; 8] = [0, 1, 0x60, 0x1f_ffff, 0x20_0000, 0x8000_0000, 0xffff_ff00, u32::MAX];
        for a in VALUES {
            for b in VALUES {
                for c in VALUES {
                    for d in VALUES {
                        let _ = load(&elf(a, b, c, d, b));
                        let _ = load(&elf(0x60, a, b, c, d));
                        let _ = load(&by_addresses(a, b, c, d));
                    }
                }
            }
        }
    }

    #[test]
    fn a_kernel_where_the_loader_has_something_of_its_own_is_refused() {
        for at in [GDT, BOOT_INFO.start, COMMAND_LINE] {
            let error = load(&elf(0x60, at as u32, at as u32, 0x20, 0x20)).unwrap_err();
            assert!(error.to_string().contains("boot information"), "{at:#x}: {error}");
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
        let loader = Loader {
            memory: &memory,
            memory_size: SIZE as u64,
            command_line: "",
        };
        let error = loader.load(Path::new("/dev/null")).unwrap_err();
        assert!(error.to_string().contains("it is no file"), "{error}");
    }
}
