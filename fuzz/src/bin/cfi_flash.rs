//! The flash: whoever keeps what the hook says has its contents, bits are set by erasing alone, and a state that was saved is taken
//! back.
#![no_main]

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    platform::cfi_flash::{CfiFlash, CfiFlashConfig, CfiFlashState, Expects, ReadMode},
};
use devisor_fuzz::Access;
use libfuzzer_sys::fuzz_target;

const SIZE: usize = 0x4000;

#[derive(Arbitrary, Debug)]
enum Step {
    Access(Access),
    Commands {
        at: u16,
        bytes: [u8; 2],
        width: u8,
    },
    Program {
        at: u16,
        byte: u8,
    },
    Erase(u16),
    Buffer {
        at: u16,
        bytes: Vec<u8>,
        confirm: bool,
    },
    Reset,
    Restore {
        mode: u8,
        status: u8,
        expects: u8,
        left: u16,
        buffer: Vec<(u16, u8)>,
    },
}

fuzz_target!(|input: (u8, bool, Vec<Step>)| {
    let (widths, read_only, steps) = input;
    let (bank_width, device_width) = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2)][usize::from(widths % 5)];
    let config = CfiFlashConfig {
        block_size: 0x1000,
        bank_width,
        device_width,
        read_only,
        clears_ready: widths / 5 % 2 == 0,
    };
    let kept = Arc::new(Mutex::new(vec![0x5a; SIZE]));
    let keep = Arc::clone(&kept);
    let flash = CfiFlash::new(config, vec![0x5a; SIZE], move |offset, bytes| {
        assert!(!read_only);
        keep.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    })
    .unwrap();
    let write = |at: u64, byte: u8, width: u64| flash.write(at, &[byte; 4][..width.clamp(1, 4) as usize]);
    for step in steps.iter().take(100) {
        match step {
            Step::Access(access) => access.run(&flash, SIZE as u64, bank_width),
            Step::Commands { at, bytes, width } => {
                bytes
                    .iter()
                    .for_each(|byte| write((*at).into(), *byte, u64::from(width % 4) + 1));
            }
            Step::Program { at, byte } => {
                let before = flash.contents();
                flash.reset();
                write((*at).into(), 0x40, bank_width);
                write((*at).into(), *byte, bank_width);
                let after = flash.contents();
                assert!(
                    before
                        .iter()
                        .zip(&after)
                        .all(|(before, after)| before & after == *after)
                );
            }
            Step::Erase(at) => {
                flash.reset();
                write((*at).into(), 0x20, bank_width);
                write((*at).into(), 0xd0, bank_width);
                if !read_only && usize::from(*at) + bank_width as usize <= SIZE {
                    assert!(
                        flash.contents()[usize::from(*at) & !0xfff..][..0x1000]
                            .iter()
                            .all(|byte| *byte == 0xff)
                    );
                }
            }
            Step::Buffer { at, bytes, confirm } => {
                write((*at).into(), 0xe8, bank_width);
                write((*at).into(), bytes.len() as u8, bank_width);
                for (byte, offset) in bytes.iter().zip((u64::from(*at)..).step_by(bank_width as usize)) {
                    write(offset, *byte, bank_width);
                }
                write((*at).into(), if *confirm { 0xd0 } else { 0x33 }, bank_width);
            }
            Step::Reset => flash.reset(),
            Step::Restore {
                mode,
                status,
                expects,
                left,
                buffer,
            } => {
                let buffer = buffer
                    .iter()
                    .map(|(offset, byte)| (u64::from(*offset), *byte))
                    .collect();
                let state = CfiFlashState {
                    mode: [ReadMode::Array, ReadMode::Status, ReadMode::Id, ReadMode::Query][usize::from(mode % 4)],
                    status: *status,
                    expects: match expects % 7 {
                        0 => Expects::Command,
                        1 => Expects::Word,
                        2 => Expects::EraseConfirm,
                        3 => Expects::LockConfirm,
                        4 => Expects::Count,
                        5 => Expects::Data {
                            left: (*left).into(),
                            buffer,
                        },
                        _ => Expects::BufferConfirm { buffer },
                    },
                };
                if flash.restore(&state).is_ok() {
                    assert_eq!(flash.save(), state);
                }
            }
        }
        let state = flash.save();
        flash.restore(&state).expect("it was saved");
    }
    assert_eq!(flash.contents(), *kept.lock().unwrap());
});
