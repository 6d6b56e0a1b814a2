//! The firmware configuration device, read as a guest would, by ports, by memory and by DMA.

use std::sync::{Arc, Mutex};

use devisor::{
    bus::BusDevice,
    platform::fw_cfg::{FwCfg, FwCfgError, FwCfgMmio, FwCfgPorts, FwCfgStateError, Key},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 1 << 20;
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// A guest with memory, whose DMA commands are at 0x1000.
struct Guest {
    memory: Arc<GuestMemoryMmap>,
    fw_cfg: FwCfg,
    ports: FwCfgPorts,
    mmio: FwCfgMmio,
}

const COMMAND: u64 = 0x1000;
const BUFFER: u64 = 0x2000;

impl Guest {
    fn new() -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let fw_cfg = FwCfg::new(Arc::clone(&memory));
        let (ports, mmio) = (fw_cfg.ports(), fw_cfg.mmio());
        Self {
            memory,
            fw_cfg,
            ports,
            mmio,
        }
    }

    fn select(&self, key: Key) {
        self.ports.write(0, &key.0.to_le_bytes());
    }

    fn read(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xa5; len];
        bytes.chunks_mut(1).for_each(|byte| self.ports.read(1, byte));
        bytes
    }

    fn item(&self, key: Key, len: usize) -> Vec<u8> {
        self.select(key);
        self.read(len)
    }

    /// A command, and how it ends.
    fn dma(&self, control: u32, length: u32, address: u64) -> u32 {
        let mut command = control.to_be_bytes().to_vec();
        command.extend(length.to_be_bytes());
        command.extend(address.to_be_bytes());
        self.memory.write_slice(&command, GuestAddress(COMMAND)).unwrap();
        self.ports.write(4, &0_u32.to_be_bytes());
        self.ports.write(8, &(COMMAND as u32).to_be_bytes());
        self.ended()
    }

    fn ended(&self) -> u32 {
        let mut control = [0; 4];
        self.memory.read_slice(&mut control, GuestAddress(COMMAND)).unwrap();
        u32::from_be_bytes(control)
    }

    fn memory(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

fn selected(key: Key) -> u32 {
    u32::from(key.0) << 16 | SELECT
}

// Items.

#[test]
fn a_guest_finds_the_device_by_its_signature_and_what_it_can_do() {
    let guest = Guest::new();
    assert_eq!(guest.item(Key::SIGNATURE, 4), b"QEMU");
    assert_eq!(guest.item(Key::ID, 4), [3, 0, 0, 0]);
    let ports = FwCfg::without_dma().ports();
    ports.write(0, &[1, 0]);
    let mut byte = [0];
    ports.read(1, &mut byte);
    assert_eq!(byte, [1]);
}

#[test]
fn an_item_is_read_from_its_start_and_is_zero_past_its_end() {
    let guest = Guest::new();
    guest
        .fw_cfg
        .set_item(Key::RAM_SIZE, 0x1_2345_6789_u64.to_le_bytes())
        .unwrap();
    guest.select(Key::RAM_SIZE);
    assert_eq!(guest.read(4), [0x89, 0x67, 0x45, 0x23]);
    assert_eq!(guest.read(8), [1, 0, 0, 0, 0, 0, 0, 0]);
    guest.select(Key::RAM_SIZE);
    assert_eq!(guest.read(1), [0x89]);
    assert_eq!(guest.item(Key(0x1f), 4), [0; 4], "there is none");
}

#[test]
fn the_selector_of_memory_has_its_highest_byte_first_and_data_keep_their_order() {
    let guest = Guest::new();
    let key = guest.fw_cfg.add_file("etc/eight", b"abcdefgh").unwrap();
    guest.mmio.write(8, &key.0.to_be_bytes());
    for expected in [&b"ab"[..], b"c", b"defg", b"h\0\0\0\0\0\0\0"] {
        let mut data = vec![0xa5; expected.len()];
        guest.mmio.read(0, &mut data);
        assert_eq!(data, expected);
    }
}

#[test]
fn bit_14_of_a_selector_is_no_part_of_the_key() {
    let guest = Guest::new();
    assert_eq!(guest.item(Key(0x4000), 4), b"QEMU");
    assert_eq!(guest.item(Key(0x8000), 4), [0; 4], "bit 15 is");
}

#[test]
fn files_are_in_the_directory() {
    let guest = Guest::new();
    assert_eq!(guest.item(Key::FILE_DIR, 8), [0; 8]);
    guest
        .fw_cfg
        .add_file("bootorder", b"/rom@genroms/linuxboot.bin\0")
        .unwrap();
    let long = "x".repeat(55);
    assert_eq!(guest.fw_cfg.add_file(&long, [7; 3]), Ok(Key(0x21)));
    let directory = guest.item(Key::FILE_DIR, 4 + 2 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 2]);
    assert_eq!(directory[4..12], [0, 0, 0, 27, 0, 0x20, 0, 0]);
    assert_eq!(&directory[12..22], b"bootorder\0");
    assert_eq!(directory[68..76], [0, 0, 0, 3, 0, 0x21, 0, 0]);
    assert_eq!(directory[76..], [long.as_bytes(), &[0]].concat());
    assert_eq!(guest.item(Key(0x21), 4), [7, 7, 7, 0]);
}

#[test]
fn what_cannot_be_an_item_or_a_file_is_refused() {
    let fw_cfg = FwCfg::without_dma();
    for key in [0x00, 0x01, 0x19, 0x20, 0x3fff, 0x4003, 0xc000] {
        assert_eq!(fw_cfg.set_item(Key(key), [0]), Err(FwCfgError::Key(Key(key))));
    }
    assert_eq!(fw_cfg.set_item(Key(0x8001), [0]), Ok(()));
    for name in [String::new(), "x".repeat(56), "a\0b".to_owned()] {
        assert_eq!(fw_cfg.add_file(&name, [0]), Err(FwCfgError::Name(name)));
    }
    fw_cfg.add_file("a", [0]).unwrap();
    assert_eq!(fw_cfg.add_file("a", [0]), Err(FwCfgError::Exists("a".to_owned())));
}

// DMA.

#[test]
fn the_address_register_reads_as_the_signature_of_dma() {
    let guest = Guest::new();
    let mut low = [0; 4];
    guest.ports.read(4, &mut low);
    assert_eq!(&low, b"QEMU");
    guest.ports.read(8, &mut low);
    assert_eq!(&low, b" CFG");
    let mut all = [0; 8];
    guest.mmio.read(16, &mut all);
    assert_eq!(&all, b"QEMU CFG");
    FwCfg::without_dma().mmio().read(16, &mut all);
    assert_eq!(all, [0; 8]);
}

#[test]
fn an_item_is_copied_to_memory_with_zeros_past_its_end() {
    let guest = Guest::new();
    let key = guest
        .fw_cfg
        .add_file("etc/table", (0..100).collect::<Vec<u8>>())
        .unwrap();
    guest.memory.write_slice(&[0xa5; 64], GuestAddress(BUFFER)).unwrap();
    assert_eq!(guest.dma(selected(key) | SKIP, 90, 0), 0);
    assert_eq!(guest.dma(READ, 16, BUFFER), 0);
    let expected = [90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 0, 0, 0, 0, 0, 0, 0xa5];
    assert_eq!(guest.memory(BUFFER, 17), expected);
    assert_eq!(guest.read(1), [0], "the data register goes on from there");
}

#[test]
fn a_command_starts_with_the_lower_half_of_its_address_or_all_at_once() {
    let guest = Guest::new();
    let command = [
        &selected(Key::SIGNATURE).wrapping_add(READ).to_be_bytes()[..],
        &4_u32.to_be_bytes(),
        &BUFFER.to_be_bytes(),
    ];
    guest
        .memory
        .write_slice(&command.concat(), GuestAddress(COMMAND))
        .unwrap();
    guest.mmio.write(16, &0_u32.to_be_bytes());
    assert_ne!(guest.ended(), 0);
    guest.mmio.write(16, &COMMAND.to_be_bytes());
    assert_eq!(guest.ended(), 0);
    assert_eq!(guest.memory(BUFFER, 4), b"QEMU");
}

#[test]
fn what_is_no_memory_ends_in_an_error() {
    let guest = Guest::new();
    assert_eq!(guest.dma(selected(Key::SIGNATURE) | READ, 4, MEMORY as u64), ERROR);
    assert_eq!(guest.dma(selected(Key::SIGNATURE) | READ, 4, u64::MAX - 1), ERROR);
    assert_eq!(guest.dma(selected(Key::SIGNATURE) | READ, u32::MAX, BUFFER), ERROR);
    // A command beyond memory has nowhere to say so.
    guest.ports.write(4, &[0xff; 4]);
    guest.ports.write(8, &[0xff; 4]);
    assert_eq!(guest.item(Key::SIGNATURE, 4), b"QEMU");
}

#[test]
fn a_guest_writes_to_what_it_may_and_as_long_as_that_is() {
    let guest = Guest::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let hook = move |bytes: &[u8]| log.lock().unwrap().push(bytes.to_vec());
    let key = guest
        .fw_cfg
        .add_writable_file("etc/vmcoreinfo", vec![0; 8], hook)
        .unwrap();
    let fixed = guest.fw_cfg.add_file("etc/fixed", [1; 8]).unwrap();
    guest.memory.write_slice(b"abcdefgh!", GuestAddress(BUFFER)).unwrap();
    assert_eq!(guest.dma(selected(key) | SKIP, 2, 0), 0);
    assert_eq!(guest.dma(WRITE, 3, BUFFER), 0);
    assert_eq!(*heard.lock().unwrap(), [b"\0\0abc\0\0\0".to_vec()]);
    assert_eq!(guest.item(key, 8), b"\0\0abc\0\0\0");

    assert_eq!(guest.dma(selected(key) | WRITE, 9, BUFFER), ERROR, "it is no longer");
    assert_eq!(
        guest.dma(selected(key) | WRITE, 8, MEMORY as u64 - 4),
        ERROR,
        "not all is memory"
    );
    assert_eq!(guest.dma(selected(fixed) | WRITE, 1, BUFFER), ERROR);
    assert_eq!(guest.dma(selected(Key(0x1f)) | WRITE, 1, BUFFER), ERROR);
    assert_eq!(heard.lock().unwrap().len(), 1);
    assert_eq!(guest.item(key, 8), b"\0\0abc\0\0\0");
}

#[test]
fn the_data_register_takes_no_writes() {
    let guest = Guest::new();
    let key = guest.fw_cfg.add_writable_file("a", vec![1; 2], |_| ()).unwrap();
    guest.ports.write(0, &(key.0 | 0x4000).to_le_bytes());
    guest.ports.write(1, &[7]);
    guest.mmio.write(0, &[7]);
    assert_eq!(guest.read(2), [1, 1]);
}

#[test]
fn a_hook_may_use_the_device() {
    let guest = Guest::new();
    let (other, seen) = (guest.fw_cfg.clone(), Arc::new(Mutex::new(None)));
    let log = Arc::clone(&seen);
    let hook = move |_: &[u8]| *log.lock().unwrap() = Some(other.save().written);
    let key = guest.fw_cfg.add_writable_file("a", vec![0; 1], hook).unwrap();
    guest.memory.write_slice(&[9], GuestAddress(BUFFER)).unwrap();
    assert_eq!(guest.dma(selected(key) | WRITE, 1, BUFFER), 0);
    assert_eq!(seen.lock().unwrap().take(), Some([(key, vec![9])].into()));
}

// State.

#[test]
fn a_restored_device_goes_on_where_the_saved_one_was() {
    let (saved, restored) = (Guest::new(), Guest::new());
    let [key, _] = [&saved, &restored].map(|guest| {
        guest.fw_cfg.add_file("etc/fixed", b"abcdef").unwrap();
        guest
            .fw_cfg
            .add_writable_file("a", vec![0; 4], |_| panic!("nobody writes"))
            .unwrap()
    });
    assert_eq!(saved.item(Key(0x20), 2), b"ab");
    saved.ports.write(4, &[1, 2, 3, 4]);
    let mut state = saved.fw_cfg.save();
    assert_eq!(state.dma_high, 0x0102_0304);
    state.written.insert(key, vec![1, 2, 3, 4]);
    restored.fw_cfg.restore(&state).unwrap();
    assert_eq!(restored.fw_cfg.save(), state);
    assert_eq!(restored.read(2), b"cd");
    assert_eq!(restored.item(key, 4), [1, 2, 3, 4]);
    restored.fw_cfg.reset();
    assert_eq!(restored.read(4), b"QEMU");
}

#[test]
fn a_state_of_other_files_is_refused() {
    let guest = Guest::new();
    let key = guest.fw_cfg.add_writable_file("a", vec![0; 4], |_| ()).unwrap();
    let good = guest.fw_cfg.save();
    let mut state = good.clone();
    state.written.clear();
    let refused = FwCfgStateError::Items {
        saved: vec![],
        here: vec![key],
    };
    assert_eq!(guest.fw_cfg.restore(&state), Err(refused));
    state.written.insert(key, vec![0; 5]);
    let refused = FwCfgStateError::Length { key, saved: 5, here: 4 };
    assert_eq!(guest.fw_cfg.restore(&state), Err(refused));
    assert_eq!(guest.fw_cfg.save(), good);
}
