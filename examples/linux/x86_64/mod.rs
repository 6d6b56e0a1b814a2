//! Debian's kernel for x86_64: one to four cores, local APICs, an IOAPIC, 8259s, an 8254, a 16550, a CMOS clock, a keyboard
//! controller, and ACPI's power management.

mod acpi;
mod board;
mod chipset;
mod clock;
mod controller;
mod faults;
mod machine;
mod vectors;

pub use board::{HIGH, ROOM};

/// Bytes of RAM.
pub const RAM: u64 = board::RAM.len;

use std::{error::Error, fs, path::Path, sync::Arc, time::Duration};

use devisor::{backends::recorder::Recorder, platform::fw_cfg::FwCfg};
use rsemu::{
    core::{
        device::Device,
        props::{Media, Props, Value},
        space::RequesterId,
    },
    dev::linuxboot::LinuxBoot,
};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    devices::Devices,
    firmware,
    options::{Chips, Options},
    ram::Ram,
    virtio::Transport,
    wing::{Facts, Plan, PowerRequest, Uart, Wing},
};
use board::Board;
use machine::{Cores, Machine};

pub struct X86_64 {
    machine: Machine,
    board: Board,
    recorder: Recorder,
}

impl X86_64 {
    pub fn new(plan: &Plan<'_>) -> Result<Self, Box<dyn Error>> {
        let ram = plan.options.devices.memory(&board::ROOM, &plan.options.initrd)?;
        let cores = Cores::new(&plan.options.engine, plan.options.cpus)?;
        let clock = Arc::clone(cores.clock());
        let recorder = Recorder::builder().clock(clock.clone()).capacity(1 << 20).build();
        let fw_cfg = plan
            .options
            .firmware
            .as_ref()
            .map(|_| fw_cfg(plan.options, &ram))
            .transpose()?;
        let (board, around) = Board::new(plan, &ram, &clock, cores.attention(), &recorder, fw_cfg)?;
        let machine = Machine::new(cores, &ram, around)?;
        match &plan.options.firmware {
            None => load(plan.options, &ram, &machine)?,
            Some(image) => machine.plug_code(firmware_code(image)?)?,
        }
        Ok(Self {
            machine,
            board,
            recorder,
        })
    }
}

impl Wing for X86_64 {
    fn run(&self, quantum: Duration) {
        self.machine.run(quantum, self.board.deadline());
    }

    fn time(&self) -> Duration {
        self.machine.time()
    }

    fn let_time_pass(&self) {
        self.board.let_time_pass(self.machine.time());
    }

    fn sleeps(&self) -> bool {
        self.machine.sleeps()
    }

    fn deadline(&self) -> Option<Duration> {
        self.board.deadline()
    }

    fn sleep_until(&self, time: Duration) {
        self.machine.sleep_until(time);
    }

    fn forget_translations(&self) {
        self.machine.forget_translations();
    }

    fn power_request(&self) -> Option<PowerRequest> {
        self.board.power_request()
    }

    fn devices(&self) -> &Devices {
        &self.board.devices
    }

    fn uart(&self) -> &dyn Uart {
        &*self.board.uart
    }

    fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    fn accesses(&self) -> Vec<(&'static str, u64)> {
        self.machine.accesses()
    }

    fn facts(&self, options: &Options) -> Facts {
        board::facts(options)
    }
}

/// Puts kernel, initial RAM disk and tables into RAM, and what makes the first core begin with the kernel where it comes out of its
/// reset.
fn load(options: &Options, ram: &Ram, machine: &Machine) -> Result<(), Box<dyn Error>> {
    const RESET: u64 = 0xffff_fff0;
    let tables = acpi::build(board::TABLES.base, options)?.bytes();
    if tables.len() as u64 > board::TABLES.len {
        return Err(format!("{} bytes of tables do not fit below 1 MiB", tables.len()).into());
    }
    ram.memory().write_slice(&tables, GuestAddress(board::TABLES.base))?;

    let read = |file: &Path| fs::read(file).map_err(|error| format!("{}: {error}", file.display()));
    let mut what = Props::new();
    what.insert("kernel", Media::new("kernel", read(&options.kernel)?));
    what.insert("initrd", Media::new("initrd", read(&options.initrd)?));
    what.insert("cmdline", command_line(options).as_str());
    what.insert("basemem", Value::Size(board::CONVENTIONAL));
    what.insert("extmem", Value::Size(board::RAM.len - board::HIGH));
    let loader = LinuxBoot::new(&what)?;
    loader.load_into(machine.space(), RequesterId::ANONYMOUS)?;
    let reset = loader.region("reset").ok_or("rsemu's loader has no reset vector")?;
    machine.space().topology().map(reset, RESET)?;
    Ok(())
}

/// What firmware asks for, with the tables among it.
fn fw_cfg(options: &Options, ram: &Ram) -> Result<FwCfg, Box<dyn Error>> {
    let fw_cfg = firmware::fw_cfg(options, ram, &command_line(options))?;
    for (name, bytes) in acpi::files(options)? {
        fw_cfg.add_file(name, bytes)?;
    }
    Ok(fw_cfg)
}

fn firmware_code(image: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let code = fs::read(image).map_err(|error| format!("{}: {error}", image.display()))?;
    match code.len().is_multiple_of(4096) && board::settings(code.len() as u64).is_some() {
        true => Ok(code),
        false => Err(format!("{} is no code of OVMF: OVMF_CODE.fd is", image.display()).into()),
    }
}

pub fn command_line(options: &Options) -> String {
    // The kernel's self-tests of its ciphers take as long as all the rest of its boot, and test nothing of ours; nor is there
    // anything to mitigate.
    let mut line = "console=ttyS0 panic=1 nokaslr cryptomgr.notests mitigations=off".to_owned();
    line += options.devices.command_line();
    if options.cpus > 1 {
        // Cores take turns, so that their counters are up to a quantum apart.
        line += " tsc=reliable";
    }
    if options.chips == Chips::Pic {
        line += " nolapic";
    }
    if options.transport == Transport::PciIntx {
        line += " pci=nomsi";
    }
    line + options.of_measurement()
}
