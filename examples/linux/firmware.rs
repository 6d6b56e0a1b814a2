//! What runs before the kernel, with `--firmware`: a flash that it keeps its settings in, the device that it asks for its machine and
//! for a kernel, and its shell, if that is what it is to come to.

use std::{error::Error, fs, path::Path, sync::Arc};

use devisor::platform::{
    cfi_flash::{CfiFlash, CfiFlashConfig, CfiFlashError},
    fw_cfg::{FwCfg, Key},
};

use crate::{
    options::{Arch, Options},
    ram::Ram,
    verdict::Check,
    virtio::Window,
    watch::{Seen, Watch},
};

/// The flash for settings: as the file beside the firmware has them that is called VARS where the firmware is called CODE, or erased as
/// it comes from the factory.
pub fn settings(firmware: &Path, window: Window, config: CfiFlashConfig) -> Result<CfiFlash, CfiFlashError> {
    let name = firmware
        .file_name()
        .map(|name| name.to_string_lossy().replace("CODE", "VARS"));
    let beside = name.and_then(|name| fs::read(firmware.with_file_name(name)).ok());
    let contents = beside.filter(|contents| contents.len() as u64 == window.len);
    let contents = contents.unwrap_or_else(|| vec![0xff; window.len as usize]);
    CfiFlash::new(config, contents, |_, _| {})
}

/// What firmware asks for. The kernel is among it, unless firmware is to come to its shell.
pub fn fw_cfg(options: &Options, ram: &Ram, command_line: &str) -> Result<FwCfg, Box<dyn Error>> {
    let fw_cfg = FwCfg::new(Arc::clone(ram.memory()));
    let cpus = (options.cpus as u16).to_le_bytes();
    fw_cfg.set_item(Key::NB_CPUS, cpus)?;
    fw_cfg.set_item(Key::MAX_CPUS, cpus)?;
    if !options.shell {
        let line = format!("{command_line}\0").into_bytes();
        let mut kernel = fs::read(&options.kernel)?;
        let rest = kernel.split_off(setup_len(options.arch, &kernel));
        for (size, data, bytes) in [
            (Key::SETUP_SIZE, Key::SETUP_DATA, kernel),
            (Key::KERNEL_SIZE, Key::KERNEL_DATA, rest),
            (Key::INITRD_SIZE, Key::INITRD_DATA, fs::read(&options.initrd)?),
            (Key::CMDLINE_SIZE, Key::CMDLINE_DATA, line),
        ] {
            fw_cfg.set_item(size, (bytes.len() as u32).to_le_bytes())?;
            fw_cfg.set_item(data, bytes)?;
        }
    }
    Ok(fw_cfg)
}

/// How many bytes of the kernel are its setup part (Linux's boot protocol of x86: `setup_sects`).
fn setup_len(arch: Arch, kernel: &[u8]) -> usize {
    const SETUP_SECTS: usize = 0x1f1;
    match (arch, kernel.get(SETUP_SECTS)) {
        (Arch::Arm64, _) | (_, None) => 0,
        (Arch::X86_64, Some(0)) => 5 * 512,
        (Arch::X86_64, Some(sectors)) => (usize::from(*sectors) + 1) * 512,
    }
    .min(kernel.len())
}

/// A firmware's shell: how it asks, and what it is told, each with what is to be in its answer.
struct Shell {
    prompt: &'static str,
    commands: &'static [(&'static str, &'static str)],
}

const SHELLS: [Shell; 2] = [
    // U-Boot. It keeps its settings in the first block of our flash, and has an ext4 of its own.
    Shell {
        prompt: "=> ",
        commands: &[
            ("version", "U-Boot 20"),
            ("virtio scan; virtio info", "Capacity: 64.0 MB"),
            ("ls virtio 0 /sbin", "init"),
            ("flinfo", "CFI conformant"),
            ("setenv greeting hello from flash; saveenv", "Writing to Flash... "),
            (
                "env default -f -a; env import -c 4000000 40000; echo $greeting, again",
                "hello from flash, again",
            ),
            ("date", "2030-01-01"),
            ("poweroff", "poweroff ..."),
        ],
    },
    // EDK2's. Under the GUID of UEFI's own variables it takes none that UEFI does not name.
    Shell {
        prompt: "Shell> ",
        commands: &[
            ("ver", "UEFI v2."),
            ("map", "BLK0: Alias(s):"),
            (
                "setvar Greeting -guid 5d3a9c1e-7b42-4f0e-9a61-c0d1e2f3a4b5 -bs -nv =0x68656c6c",
                "",
            ),
            (
                "setvar Greeting -guid 5d3a9c1e-7b42-4f0e-9a61-c0d1e2f3a4b5",
                "6C 6C 65 68",
            ),
            ("date", "01/01/2030"),
            ("reset -s", ""),
        ],
    },
];

/// Types at the guest.
pub struct Typist {
    /// What the guest's question is answered with.
    word: String,
    at_shell: bool,
    commands: usize,
    heard: usize,
    typed: Vec<u8>,
}

impl Typist {
    pub fn new(word: &str, at_shell: bool) -> Self {
        Self {
            word: format!("{word}\n"),
            at_shell,
            commands: 0,
            heard: 0,
            typed: Vec::new(),
        }
    }

    /// Types on: `take` says for how many characters there was room.
    pub fn go_on(&mut self, watch: &Watch, take: impl FnOnce(&[u8]) -> usize) {
        if self.at_shell {
            self.answer_shell(watch);
        } else if watch.is_asked() {
            self.typed.extend(std::mem::take(&mut self.word).bytes());
        }
        if !self.typed.is_empty() {
            let taken = take(&self.typed);
            self.typed.drain(..taken);
        }
    }

    fn answer_shell(&mut self, watch: &Watch) {
        const LAST: usize = 64;
        let Some(end) = watch.console_end(self.heard, LAST) else {
            return;
        };
        let end = plain(&end);
        if let Some(shell) = SHELLS.iter().find(|shell| end.ends_with(shell.prompt)) {
            self.heard = watch.console_len();
            let command = shell.commands.get(self.commands).map_or("", |(command, _)| command);
            self.typed.extend(command.bytes().chain(*b"\r"));
            self.commands += 1;
        }
    }
}

/// What has come of the commands.
pub fn answers(seen: &Seen) -> Vec<(String, Check)> {
    let console = plain(&seen.console);
    let Some(shell) = SHELLS.iter().find(|shell| console.contains(shell.prompt)) else {
        return vec![("the firmware has come to its shell".into(), Err("it has not".into()))];
    };
    let mut rest = &*console;
    let mut checks = Vec::new();
    for (command, answer) in shell.commands {
        let asked = format!("{}{command}", shell.prompt);
        let check = match rest.split_once(&asked) {
            None => Err("it was not asked".into()),
            Some((_, after)) => {
                rest = after;
                let said = after.split(shell.prompt).next().unwrap_or_default();
                match said.contains(answer) {
                    true => Ok(format!("{answer:?}")),
                    false => Err(format!("{answer:?} is not in {said:?}")),
                }
            }
        };
        checks.push((format!("the shell answers {command:?}"), check));
    }
    checks
}

/// Without what moves a terminal's cursor and colours what it shows (ECMA-48, 5.4).
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\r', "");
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| ('@'..='~').contains(&c));
        plain += end.map_or("", |end| &part[end + 1..]);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(console: &str) -> Seen {
        Seen {
            console: console.into(),
            ..Seen::default()
        }
    }

    #[test]
    fn colours_are_no_part_of_what_is_said() {
        assert_eq!(plain(b"\x1b[2J\x1b[01;01H\x1b[33mShell> \x1b[0m"), "Shell> ");
        assert_eq!(plain(b"cut \x1b[3"), "cut ");
    }

    #[test]
    fn a_shell_that_is_not_come_to_or_does_not_answer_fails_the_run() {
        let failed = |console: &str| {
            answers(&seen(console))
                .into_iter()
                .filter(|(_, check)| check.is_err())
                .count()
        };
        assert_eq!(failed("nothing"), 1);
        let mut console = String::new();
        let [shell, _] = &SHELLS;
        for (command, answer) in shell.commands {
            console += &format!("{}{command}\r\n{answer}\r\n", shell.prompt);
        }
        assert_eq!(failed(&console), 0);
        assert_eq!(failed(&console.replace("\nhello from flash, again", "")), 1);
        assert_eq!(
            failed(console.split("=> flinfo").next().unwrap()),
            shell.commands.len() - 3
        );
    }
}
