//! The registers of the distributor as one CPU sees them (IHI 0048B, 4.3).

use super::{
    super::gic::{
        arrays::Array,
        ids::{PRIVATE, SGIS},
    },
    model::{Model, Source, cpus_of},
    registers::{self, Distributor as Register, sgir},
};

impl Model {
    /// A read of a distributor register of 32 bits.
    pub(super) fn read_distributor(&self, cpu: usize, register: Register) -> u32 {
        match register {
            Register::Control => self.control,
            Register::Type => self.type_register(),
            Register::ImplementerId => registers::GICD_IIDR,
            Register::Array(array, first) => array.read(|index| Some(&self.source(cpu, first + index)?.state)),
            Register::Targets(_) if self.config.cpus == 1 => 0,
            Register::Targets(word) => self.bytes(cpu, word, |source| source.route.targets),
            Register::ClearSgiPending(word) | Register::SetSgiPending(word) => {
                let senders = &self.sgi_senders[cpu][word as usize * 4..][..4];
                (0..4).fold(0, |value, lane| value | u32::from(senders[lane]) << (lane * 8))
            }
            Register::Sgi => 0,
            Register::Identification(index) => registers::GICD_IDENTIFICATION[index as usize],
        }
    }

    /// A write of a distributor register. `lanes` has the bytes that are written.
    pub(super) fn write_distributor(&mut self, cpu: usize, register: Register, lanes: &[(u32, u8)]) {
        let value = lanes
            .iter()
            .fold(0, |value, &(lane, byte)| value | u32::from(byte) << (lane * 8));
        let written = lanes.iter().fold(0, |bits, &(lane, _)| bits | 0xff << (lane * 8));
        match register {
            Register::Control => self.set_control(value),
            Register::Array(array, first) => {
                for (index, change) in array.changes(value, written, self.config.priority_bits) {
                    if !is_fixed(array, first + index) {
                        self.change(cpu, first + index, |source| change.make(&mut source.state));
                    }
                }
            }
            Register::Targets(word) => self.write_targets(cpu, word, lanes),
            Register::Sgi => self.send_sgi(cpu, value),
            Register::ClearSgiPending(word) => {
                for &(lane, byte) in lanes {
                    self.change_sgi_senders(cpu, word * 4 + lane, |senders| senders & !byte);
                }
            }
            Register::SetSgiPending(word) => {
                let all = self.config.all_cpus();
                for &(lane, byte) in lanes {
                    self.change_sgi_senders(cpu, word * 4 + lane, |senders| senders | byte & all);
                }
            }
            Register::Type | Register::ImplementerId | Register::Identification(_) => {}
        }
    }

    /// GICD_TYPER (4.3.2): no Security Extensions, no lockable SPIs.
    fn type_register(&self) -> u32 {
        let lines = self.config.interrupts().div_ceil(32) - 1;
        lines | (self.config.cpus - 1) << 5
    }

    /// GICD_ITARGETSRn: those of private interrupts are read-only, and with one CPU all are RAZ/WI (4.3.12).
    fn write_targets(&mut self, cpu: usize, word: u32, lanes: &[(u32, u8)]) {
        if self.config.cpus == 1 {
            return;
        }
        let all = self.config.all_cpus();
        for &(lane, byte) in lanes {
            let intid = word * 4 + lane;
            if intid >= PRIVATE {
                self.change(cpu, intid, |source| source.route.targets = byte & all);
            }
        }
    }

    /// GICD_SGIR (4.3.15). The reserved filter sends to nobody.
    fn send_sgi(&mut self, cpu: usize, value: u32) {
        let this = 1_u8 << cpu;
        let targets = match sgir::filter(value) {
            sgir::TO_LIST => sgir::target_list(value),
            sgir::TO_OTHERS => !this,
            sgir::TO_SELF => this,
            _ => 0,
        };
        for target in cpus_of(targets & self.config.all_cpus()) {
            self.change_sgi_senders(target, value & sgir::INTID, |senders| senders | this);
        }
    }

    /// Changes who has sent an SGI to `cpu`; it is pending there while anybody has.
    fn change_sgi_senders(&mut self, cpu: usize, intid: u32, change: impl FnOnce(u8) -> u8) {
        let senders = &mut self.sgi_senders[cpu][intid as usize];
        *senders = change(*senders);
        let sent = *senders != 0;
        self.change(cpu, intid, |source| source.state.latch = sent);
    }

    /// A word with a byte for each interrupt.
    fn bytes(&self, cpu: usize, word: u32, byte: impl Fn(&Source) -> u8) -> u32 {
        let sources = self.sources(cpu, word * 4, 4).iter().enumerate();
        sources.fold(0, |value, (lane, source)| value | u32::from(byte(source)) << (lane * 8))
    }

    /// The interrupts from `first` on that exist, `count` at most. `first` is a multiple of `count`.
    fn sources(&self, cpu: usize, first: u32, count: usize) -> &[Source] {
        let (sources, first): (&[Source], _) = match first.checked_sub(PRIVATE) {
            None => (&self.private[cpu], first),
            Some(first) => (&self.shared, first),
        };
        let rest = sources.get(first as usize..).unwrap_or_default();
        &rest[..count.min(rest.len())]
    }
}

/// What cannot be changed of SGIs: whether they can be disabled is open (4.3.5), and here they cannot; they become pending
/// by GICD_SGIR and GICD_SPENDSGIRn only (4.3.7); and they are edge-triggered (4.3.13).
fn is_fixed(array: Array, intid: u32) -> bool {
    let fixed = [
        Array::ClearEnable,
        Array::SetPending,
        Array::ClearPending,
        Array::Config,
    ];
    intid < SGIS && fixed.contains(&array)
}
