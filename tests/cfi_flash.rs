//! The flash, driven by its command set as firmware would.

use std::sync::{Arc, Mutex};

use devisor::{
    bus::BusDevice,
    platform::cfi_flash::{CfiFlash, CfiFlashConfig, CfiFlashError, CfiFlashState, Expects, ReadMode},
};

const SIZE: usize = 0x10_0000;
const READY: u8 = 0x80;
const ERASE_ERROR: u8 = 0x20;
const PROGRAM_ERROR: u8 = 0x10;
const LOCKED: u8 = 0x02;

/// What a hook was told: where, and what.
type Heard = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

struct Board {
    flash: CfiFlash,
    heard: Heard,
}

impl Board {
    fn new(config: CfiFlashConfig) -> Self {
        let heard = Heard::default();
        let log = Arc::clone(&heard);
        let contents = (0..SIZE).map(|at| at as u8 | 0x80).collect();
        let hook = move |offset, bytes: &[u8]| log.lock().unwrap().push((offset, bytes.to_vec()));
        let flash = CfiFlash::new(config, contents, hook).unwrap();
        Self { flash, heard }
    }

    fn pc() -> Self {
        Self::new(CfiFlashConfig::PC)
    }

    fn read(&self, offset: u64) -> u8 {
        let mut byte = [0xa5];
        self.flash.read(offset, &mut byte);
        byte[0]
    }

    fn word(&self, offset: u64) -> u32 {
        let mut word = [0xa5; 4];
        self.flash.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.flash.write(offset, &[*byte]));
    }

    fn words(&self, offset: u64, words: &[u32]) {
        words
            .iter()
            .for_each(|word| self.flash.write(offset, &word.to_le_bytes()));
    }

    fn contents(&self, offset: u64) -> u8 {
        self.flash.contents()[offset as usize]
    }
}

#[test]
fn a_flash_after_a_reset_shows_its_contents() {
    let board = Board::pc();
    assert_eq!(board.flash.mode(), ReadMode::Array);
    assert_eq!(board.word(0x101), 0x8483_8281);
    let mut past = [0xa5; 4];
    board.flash.read(SIZE as u64 - 2, &mut past);
    assert_eq!(past, [0xfe, 0xff, 0, 0]);
    board.flash.read(u64::MAX, &mut past);
    assert_eq!(past, [0; 4]);
}

#[test]
fn programming_clears_bits_and_sets_none() {
    for command in [0x40, 0x10] {
        let board = Board::pc();
        board.write(0x2001, &[command]);
        assert_eq!(board.read(0x2001), READY);
        board.write(0x2001, &[0x5e]);
        assert_eq!(board.read(0), READY, "it shows the status");
        board.write(0, &[0xff]);
        assert_eq!(board.read(0x2001), 0x81 & 0x5e);
        assert_eq!(*board.heard.lock().unwrap(), [(0x2001, vec![0x00])]);
    }
}

#[test]
fn erasing_sets_all_bits_of_the_block() {
    let board = Board::pc();
    board.write(0x1234, &[0x20, 0xd0]);
    assert_eq!(board.read(0x1234), READY);
    board.write(0x1234, &[0xff]);
    for (offset, expected) in [
        (0xfff, 0xff),
        (0x1000, 0xff),
        (0x1001, 0xff),
        (0x1ffe, 0xff),
        (0x2000, 0x80),
    ] {
        assert_eq!(board.read(offset), expected, "{offset:#x}");
    }
    assert_eq!(*board.heard.lock().unwrap(), [(0x1000, vec![0xff; 0x1000])]);
}

#[test]
fn what_is_not_confirmed_is_an_error_of_the_sequence_and_does_nothing() {
    let board = Board::pc();
    for setup in [0x20, 0x60] {
        board.write(0x1000, &[setup, 0x33]);
        assert_eq!(board.read(0x1000), READY | ERASE_ERROR | PROGRAM_ERROR);
        board.write(0x1000, &[0x50, 0x70]);
        assert_eq!(board.read(0x1000), 0, "the error is cleared, and more");
        board.write(0x1000, &[setup, 0xff]);
        assert_eq!(board.flash.mode(), ReadMode::Array);
    }
    assert!(board.heard.lock().unwrap().is_empty());
}

/// As OVMF looks whether what it has before it is memory, a ROM or a flash.
#[test]
fn a_flash_of_a_pc_is_told_by_what_its_status_is_once_it_is_cleared() {
    let board = Board::pc();
    board.write(0x1000, &[0x50]);
    assert!(![0x50, 0].contains(&board.read(0x1000)), "contents");
    board.write(0x1000, &[0x70]);
    assert_eq!(board.read(0x1000), 0);
    let state = board.flash.save();
    assert_eq!(board.flash.restore(&state), Ok(()));
    board.write(0x1000, &[0xff, 0x20, 0xd0]);
    assert_eq!(board.read(0x1000), READY);

    let wide = Board::new(CfiFlashConfig::VIRT);
    wide.words(0, &[0x0050_0050, 0x0070_0070]);
    assert_eq!(wide.read(0), READY, "as the data sheet has it");
    assert!(wide.flash.restore(&state).is_err());
}

#[test]
fn a_buffer_is_programmed_once_it_is_confirmed() {
    let board = Board::pc();
    board.write(0x3000, &[0x20, 0xd0]);
    board.write(0x3000, &[0xe8]);
    assert_eq!(board.read(0x3000), READY);
    board.write(0x3000, &[2]);
    for (offset, byte) in [(0x3010, 1), (0x3012, 3), (0x3011, 2)] {
        board.write(offset, &[byte]);
        assert_eq!(board.contents(offset), 0xff);
    }
    board.write(0x3000, &[0xd0]);
    assert_eq!(board.read(0x3000), READY);
    assert_eq!(
        [0x300f, 0x3010, 0x3011, 0x3012, 0x3013].map(|offset| board.contents(offset)),
        [0xff, 1, 2, 3, 0xff]
    );
    assert_eq!(board.heard.lock().unwrap()[1..], [(0x3010, vec![1, 2, 3])]);
}

/// U-Boot takes two devices of 16 bits for one that it writes to with 16, and fills its buffer.
#[test]
fn a_device_of_16_bits_counts_the_words_of_its_buffer_with_16() {
    let wide = Board::new(CfiFlashConfig::VIRT);
    wide.words(0, &[0x0020_0020, 0x00d0_00d0]);
    let write = |offset, value: u16| wide.flash.write(offset, &value.to_le_bytes());
    write(0, 0xe8);
    write(0, 0x3ff);
    for word in 0..0x400 {
        write(u64::from(word) * 2, !word);
    }
    write(0, 0xd0);
    assert_eq!(wide.read(0), READY);
    let contents = wide.flash.contents();
    let words = contents.as_chunks().0.iter().map(|word| u16::from_le_bytes(*word));
    assert!(words.take(0x401).eq((0..0x400).map(|word: u16| !word).chain([0xffff])));

    wide.words(0, &[0x00e8_00e8, 0x0400_0400]);
    assert_eq!(
        wide.read(0),
        READY | ERASE_ERROR | PROGRAM_ERROR,
        "more than its buffer has"
    );
}

#[test]
fn a_buffer_that_leaves_its_part_of_the_flash_or_is_not_confirmed_is_an_error() {
    let board = Board::pc();
    for (second, confirm) in [(0x800, 0xd0), (0x7ff, 0x70)] {
        board.write(0, &[0x50, 0xe8, 1]);
        board.write(0x7fe, &[0]);
        board.write(second, &[0]);
        board.write(0, &[confirm]);
        assert_eq!(board.read(0), READY | ERASE_ERROR | PROGRAM_ERROR);
    }
    assert!(board.heard.lock().unwrap().is_empty());
    let wide = Board::new(CfiFlashConfig::VIRT);
    wide.words(0, &[0x00e8_00e8, 0x00ff_00ff]);
    assert_eq!(
        wide.flash.save().expects,
        Expects::Data {
            left: 256,
            buffer: vec![]
        }
    );
}

#[test]
fn a_flash_for_reading_refuses_to_change() {
    let board = Board::new(CfiFlashConfig {
        read_only: true,
        ..CfiFlashConfig::PC
    });
    board.write(0x1000, &[0x40, 0x00]);
    assert_eq!(board.read(0), READY | PROGRAM_ERROR | LOCKED);
    board.write(0x1000, &[0x50, 0x20, 0xd0]);
    assert_eq!(board.read(0), READY | ERASE_ERROR | LOCKED);
    assert!(board.heard.lock().unwrap().is_empty());
}

#[test]
fn the_query_table_says_what_the_flash_is_like() {
    let board = Board::pc();
    board.write(0x55, &[0x98]);
    assert_eq!([0x10, 0x11, 0x12].map(|index| board.read(index)), *b"QRY");
    assert_eq!(
        [0x13, 0x14, 0x15, 0x16].map(|index| board.read(index)),
        [1, 0, 0x31, 0],
        "Intel's, and its table"
    );
    assert_eq!(
        [0x27, 0x2c].map(|index| board.read(index)),
        [20, 1],
        "a mebibyte, one region"
    );
    assert_eq!(
        [0x2d, 0x2e, 0x2f, 0x30].map(|index| board.read(index)),
        [0xff, 0, 0x10, 0],
        "256 blocks of 4 KiB"
    );
    assert_eq!([0x31, 0x32, 0x33].map(|index| board.read(index)), *b"PRI");
}

#[test]
fn all_devices_of_a_bank_answer() {
    let board = Board::new(CfiFlashConfig::VIRT);
    board.words(0, &[0x0098_0098]);
    assert_eq!(board.word(0x10 * 4), u32::from_le_bytes([b'Q', 0, b'Q', 0]));
    assert_eq!(
        [0x27, 0x2d, 0x2f, 0x30].map(|index| board.word(index * 4) as u8),
        [19, 3, 0x00, 0x02]
    );
    board.words(0, &[0x0090_0090]);
    assert_eq!(
        [0, 4, 8].map(|offset| board.word(offset)),
        [0x0089_0089, 0x0018_0018, 0]
    );
    board.words(0, &[0x0070_0070]);
    assert_eq!(board.word(0x2004), 0x0080_0080);
    board.words(
        0x4_0000,
        &[
            0x0060_0060,
            0x00d0_00d0,
            0x0020_0020,
            0x00d0_00d0,
            0x0040_0040,
            0x1234_5678,
            0x00ff_00ff,
        ],
    );
    assert_eq!(board.word(0x4_0000), 0x1234_5678);
    assert_eq!(board.word(0x7_fffc), u32::MAX);
}

#[test]
fn a_write_that_is_too_wide_or_past_the_end_is_none() {
    let board = Board::pc();
    let state = board.flash.save();
    for (offset, data) in [
        (0, &[0x20; 2][..]),
        (0, &[]),
        (SIZE as u64, &[0x20]),
        (u64::MAX, &[0x20]),
    ] {
        board.flash.write(offset, data);
        assert_eq!(board.flash.save(), state);
    }
}

#[test]
fn what_cannot_be_a_flash_is_refused() {
    let new = |config, size| CfiFlash::new(config, vec![0; size], |_, _| ()).map(|_| ());
    let pc = CfiFlashConfig::PC;
    assert_eq!(new(pc, 0x1000), Ok(()));
    for (size, block_size) in [
        (0, 0x1000),
        (0x1800, 0x1000),
        (0x1000, 0x80),
        (0x3000, 0x3000),
        (0x1000, 0),
    ] {
        let error = CfiFlashError::Size {
            size: size as u64,
            block_size,
        };
        assert_eq!(new(CfiFlashConfig { block_size, ..pc }, size), Err(error));
    }
    for (bank_width, device_width) in [(1, 2), (4, 4), (3, 1), (0, 0), (8, 2)] {
        let error = CfiFlashError::Width {
            bank_width,
            device_width,
        };
        let config = CfiFlashConfig {
            bank_width,
            device_width,
            ..pc
        };
        assert_eq!(new(config, 0x1000), Err(error));
    }
}

#[test]
fn a_restored_flash_goes_on_as_the_saved_one() {
    let saved = Board::pc();
    saved.write(0x100, &[0xe8, 1, 0]);
    let state = saved.flash.save();
    let restored = Board::pc();
    restored.flash.restore(&state).unwrap();
    assert_eq!(restored.flash.save(), state);
    restored.write(0x101, &[0]);
    restored.write(0, &[0xd0]);
    assert_eq!(
        [0x100, 0x101, 0x102].map(|offset| restored.contents(offset)),
        [0, 0, 0x82]
    );
    restored.flash.reset();
    assert_eq!(restored.flash.mode(), ReadMode::Array);
}

#[test]
fn a_state_that_no_flash_can_have_is_refused() {
    let board = Board::pc();
    let good = board.flash.save();
    let changes: [fn(&mut CfiFlashState); 7] = [
        |state| {
            state.expects = Expects::Data {
                left: 2049,
                buffer: vec![],
            }
        },
        |state| state.status = 0x20,
        |state| state.status = 0x81,
        |state| {
            state.expects = Expects::Data {
                left: 0,
                buffer: vec![],
            }
        },
        |state| {
            state.expects = Expects::Data {
                left: 2048,
                buffer: vec![(0, 0)],
            }
        },
        |state| state.expects = Expects::BufferConfirm { buffer: vec![] },
        |state| {
            state.expects = Expects::BufferConfirm {
                buffer: vec![(SIZE as u64, 0)],
            }
        },
    ];
    for change in changes {
        let mut state = good.clone();
        change(&mut state);
        assert!(board.flash.restore(&state).is_err(), "{state:?}");
        assert_eq!(board.flash.save(), good);
    }
}
