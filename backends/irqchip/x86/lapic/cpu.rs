//! One local APIC as its vCPU uses it.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    config::{ApicId, CpuEvent, GeneralProtection, LocalApicError, Request},
    model::Model,
    presence::Mode,
    registers::*,
    set::{LocalApics, Shared},
};
use crate::{
    backends::irqchip::CpuId,
    bus::{BusDevice, read_le, write_le},
};

/// The local APIC of one CPU, and its register page as a [`BusDevice`] of [`SIZE`](Self::SIZE) bytes at
/// [`base_address`](Self::base_address).
///
/// The vCPU's thread asks, before it enters the guest: [`next_event`](Self::next_event) until there is none, then, if
/// the guest takes interrupts, [`acknowledge`](Self::acknowledge), and injects what it is given. If the guest does not
/// take interrupts now but [`request`](Self::request) has one, it asks its hypervisor for an exit as soon as it does.
/// Halted, it waits for the wake line while [`needs_attention`](Self::needs_attention) is false. Nothing is
/// acknowledged that is not injected, so the spurious vector is never seen.
///
/// ```
/// # use devisor::{
/// #     backends::irqchip::{CpuId, lapic::{ApicId, LocalApicParts, LocalApics, LocalApicsConfig}},
/// #     interrupt::NoInterrupt,
/// #     time::ManualClock,
/// # };
/// use devisor::backends::irqchip::lapic::{CpuEvent, Request, Vector};
/// # use std::sync::Arc;
/// # let parts = [0, 1].map(|id| LocalApicParts { id: ApicId(id), wake: Box::new(NoInterrupt), alarm: Box::new(()) });
/// # let clock = Arc::new(ManualClock::default());
/// # let apics = LocalApics::new(LocalApicsConfig::default(), clock, parts.into())?;
/// let (boot, other) = (apics.cpu(CpuId(0))?, apics.cpu(CpuId(1))?);
///
/// // The boot CPU enters x2APIC mode and starts the other one, which does the same; then it interrupts it.
/// boot.write_msr(0x1b, 0xfee0_0d00)?; // IA32_APIC_BASE
/// boot.write_msr(0x830, 1 << 32 | 0x4500)?; // ICR: INIT
/// boot.write_msr(0x830, 1 << 32 | 0x4608)?; // ICR: start-up
/// assert_eq!(other.next_event(), Some(CpuEvent::Init));
/// assert_eq!(other.next_event(), Some(CpuEvent::StartUp(Vector(0x08))), "real mode, at 0x8000");
/// other.write_msr(0x1b, 0xfee0_0c00)?;
/// other.write_msr(0x80f, 0x1ff)?; // SVR
/// boot.write_msr(0x830, 1 << 32 | 0x41)?;
/// assert!(other.needs_attention());
/// assert_eq!(other.acknowledge(), Some(Request::Vector(Vector(0x41))));
/// other.write_msr(0x80b, 0)?; // EOI
///
/// // A reserved register: inject #GP.
/// assert!(boot.read_msr(0x80e).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct LocalApic {
    apics: Arc<Shared>,
    cpu: usize,
}

/// What there is for a CPU, as [`LocalApic::pending`] sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// [`LocalApic::next_event`] has one: to be served before the guest runs, and before the CPU waits.
    pub event: bool,
    /// [`LocalApic::request`] has one: to be taken as soon as the guest takes interrupts.
    pub request: bool,
}

impl LocalApics {
    /// The local APIC of `cpu`, in the order in which they were given.
    ///
    /// # Errors
    /// [`LocalApicError::NoSuchCpu`].
    pub fn cpu(&self, cpu: CpuId) -> Result<LocalApic, LocalApicError> {
        let cpu = self.shared.index(cpu)?;
        let apics = Arc::clone(&self.shared);
        Ok(LocalApic { apics, cpu })
    }
}

impl LocalApic {
    /// Size of the register page in bytes.
    pub const SIZE: u64 = PAGE_SIZE;

    fn with<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        self.apics.with(self.cpu, false, change)
    }

    fn with_time<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        self.apics.with(self.cpu, true, change)
    }

    /// The ID that it was made with.
    pub fn id(&self) -> ApicId {
        self.apics.cpus[self.cpu].id
    }

    /// The next of the events that come before interrupts. While the CPU waits for its start-up, NMI and SMI stay.
    pub fn next_event(&self) -> Option<CpuEvent> {
        self.with(|model| model.next_event())
    }

    /// What the CPU would take now if its interrupts are enabled.
    pub fn request(&self) -> Option<Request> {
        self.with(|model| model.request())
    }

    /// The CPU takes the request: a vector is in service from now on, until its EOI.
    pub fn acknowledge(&self) -> Option<Request> {
        self.with(|model| model.acknowledge())
    }

    /// Whether there is an event or a request: whether a halted CPU is to go on.
    pub fn needs_attention(&self) -> bool {
        self.with(|model| model.has_event() || model.request().is_some())
    }

    /// Whether there is an event, and whether a request, in one look: the vCPU's last one before it runs the guest or waits.
    pub fn pending(&self) -> Pending {
        self.with(|model| Pending {
            event: model.has_event(),
            request: model.request().is_some(),
        })
    }

    /// Whether the CPU waits for a start-up message, and runs nothing meanwhile.
    pub fn waits_for_start_up(&self) -> bool {
        self.with(|model| model.waits_for_start_up)
    }

    /// A reset of the machine: as after power-up, in xAPIC mode. Pins, time and the time-stamp counter stay.
    pub fn reset(&self) {
        self.with_time(|model| model.power_up());
    }

    /// The deadline that the alarm was told has passed: asks the vCPU to look. From any thread; at any other time it
    /// does no harm.
    pub fn expire(&self) {
        self.apics.cpus[self.cpu].expire();
    }

    /// When [`expire`](Self::expire) needs to be called next, on the clock's scale: what the alarm was told. Once it was
    /// called, there is no deadline until the vCPU has looked.
    pub fn deadline(&self) -> Option<Duration> {
        self.apics.cpus[self.cpu].deadline()
    }

    /// How often the wake line refused.
    pub fn wake_failures(&self) -> u64 {
        self.apics.cpus[self.cpu].inbox.failures()
    }

    /// Where the register page is, or `None` while there is none: the APIC is disabled, or in x2APIC mode. The guest
    /// may move it, by writing IA32_APIC_BASE.
    pub fn base_address(&self) -> Option<u64> {
        self.with(|model| (model.mode() == Mode::XApic).then_some(model.base & BASE_ADDRESS))
    }

    /// Where an address is in the register page, if it is in it: each vCPU looks here before it goes to the bus, for each has
    /// its own.
    pub fn page_offset(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.base_address()?)?;
        (offset < Self::SIZE).then_some(offset)
    }

    /// The task priority as CR8 has it.
    pub fn cr8(&self) -> u64 {
        self.with(|model| u64::from(model.tpr >> 4))
    }

    /// The guest writes CR8.
    ///
    /// # Errors
    /// A value above 15 raises #GP.
    pub fn set_cr8(&self, value: u64) -> Result<(), GeneralProtection> {
        if value > 15 {
            return Err(GeneralProtection);
        }
        self.with(|model| model.tpr = (value as u8) << 4);
        Ok(())
    }

    /// Whether [`read_msr`](Self::read_msr) and [`write_msr`](Self::write_msr) answer for this MSR: IA32_APIC_BASE,
    /// IA32_TSC_DEADLINE, and 0x800 to 0x8ff.
    pub const fn has_msr(msr: u32) -> bool {
        matches!(
            msr,
            IA32_APIC_BASE | IA32_TSC_DEADLINE | X2APIC_MSR_BASE..=X2APIC_MSR_LAST
        )
    }

    /// RDMSR.
    ///
    /// # Errors
    /// The MSR is not one of [`has_msr`](Self::has_msr), is write-only, or is not there in this mode.
    pub fn read_msr(&self, msr: u32) -> Result<u64, GeneralProtection> {
        match msr {
            IA32_APIC_BASE => Ok(self.with(|model| model.base)),
            IA32_TSC_DEADLINE => Ok(self.with_time(|model| model.read_tsc_deadline())),
            X2APIC_MSR_BASE..=X2APIC_MSR_LAST => {
                let index = msr - X2APIC_MSR_BASE;
                self.access(index, |model| model.read_x2apic(index))
            }
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR.
    ///
    /// # Errors
    /// As [`read_msr`](Self::read_msr), with read-only for write-only; or a reserved bit is set, or the APIC cannot go
    /// from its mode to the one in `value`.
    pub fn write_msr(&self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        match msr {
            IA32_APIC_BASE => self.with_time(|model| model.write_base(value)),
            IA32_TSC_DEADLINE => {
                self.with_time(|model| model.write_tsc_deadline(value));
                Ok(())
            }
            X2APIC_MSR_BASE..=X2APIC_MSR_LAST => {
                let index = msr - X2APIC_MSR_BASE;
                self.access(index, |model| model.write_x2apic(index, value))
            }
            _ => Err(GeneralProtection),
        }
    }

    /// An access to a register, with the time if it is one of those that depend on it.
    fn access<T>(&self, index: u32, access: impl FnOnce(&mut Model) -> T) -> T {
        let timed = matches!(
            Register::at(index),
            Some(
                Register::Lvt(Lvt::Timer)
                    | Register::InitialCount
                    | Register::CurrentCount
                    | Register::Divide
                    | Register::Svr
            )
        );
        self.apics.with(self.cpu, timed, access)
    }

    /// The time-stamp counter that the TSC deadline is compared with.
    pub fn tsc(&self) -> u64 {
        self.with_time(|model| model.timer.tsc(model.now))
    }

    /// Makes the time-stamp counter read `tsc` now: to agree with the vCPU's own, and when the guest writes IA32_TSC or
    /// IA32_TSC_ADJUST.
    pub fn set_tsc(&self, tsc: u64) {
        self.with_time(|model| {
            model.timer.set_tsc(tsc, model.now);
            model.advance(model.now);
        });
    }

    pub(super) fn shared(&self) -> (&Shared, usize) {
        (&self.apics, self.cpu)
    }
}

/// Registers answer to accesses of 4 bytes at multiples of 16; others read as zero and write nothing. While there is no
/// page, reads are all ones, as of a bus with nothing there.
impl BusDevice for LocalApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let register = register(offset, data.len());
        let (there, value) = self.access(register.unwrap_or(u32::MAX), |model| {
            let there = model.mode() == Mode::XApic;
            let value = register.filter(|_| there).map_or(0, |index| model.read_page(index));
            (there, value)
        });
        if there {
            write_le(data, value.into());
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(index) = register(offset, data.len()) else {
            return;
        };
        let value = read_le(data) as u32;
        self.access(index, |model| {
            if model.mode() == Mode::XApic {
                model.write_page(index, value);
            }
        });
    }
}

/// The index of the register that an access reaches.
fn register(offset: u64, len: usize) -> Option<u32> {
    let allowed = len == 4 && offset.is_multiple_of(16) && offset < PAGE_SIZE;
    allowed.then_some((offset / 16) as u32)
}

impl fmt::Debug for LocalApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalApic")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
