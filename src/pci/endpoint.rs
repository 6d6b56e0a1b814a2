//! A function of type 0 without the device in it: configuration space, where the BARs decode, and the ways to interrupt.

use std::{fmt, sync::Mutex};

use super::{
    address::DeviceFunction,
    bar::{Bar, BarIndex},
    config::{EndpointConfig, MsiLayout},
    error::StateError,
    intx::Intx,
    messages::Messages,
    msi::{Msi, MsiControl},
    msix::{Control, MsiX, MsiXState},
    registers::*,
    slot::Slot,
    space::ConfigSpace,
};
use crate::{
    interrupt::{MsiMessage, NoInterrupt},
    sync::lock,
};

/// What a device on the bus is built around: its configuration space and its interrupts.
///
/// The device keeps one, hands it out as [`Function::endpoint`](super::Function::endpoint), and asks it which interrupt to use at the moment of
/// signalling: [`msix`](Self::msix), whose `trigger` says so if the guest has not enabled it, or [`intx`](Self::intx).
///
/// # Threads
/// Every method may be called from any thread, also from within a line or a vector: none of them is called with anything
/// locked that these methods want.
///
/// ```
/// use devisor::{interrupt::NoInterrupt, pci::*};
/// use std::sync::Arc;
///
/// let mut config = EndpointConfig::new(Identity { vendor: 0x1af4, device: 0x1042, ..Identity::default() })?;
/// config.bar(BarIndex::Bar0, Bar::memory32(0x1000))?;
/// let address = DeviceFunction::new(3, 0).unwrap();
/// let endpoint = Endpoint::new(config, Slot::new(address, Box::new(NoInterrupt), Arc::new(NoMessages)));
///
/// // The guest sizes BAR 0, places it, and lets it decode.
/// endpoint.write_config(0x10, &[0xff; 4]);
/// let mut size = [0; 4];
/// endpoint.read_config(0x10, &mut size);
/// assert_eq!(u32::from_le_bytes(size), 0xffff_f000);
/// endpoint.write_config(0x10, &0x4000_0000u32.to_le_bytes());
/// assert_eq!(endpoint.decoded(BarIndex::Bar0), None);
/// endpoint.write_config(0x04, &[2]);
/// assert_eq!(endpoint.decoded(BarIndex::Bar0), Some(0x4000_0000));
/// # Ok::<(), ConfigError>(())
/// ```
pub struct Endpoint {
    // What is plugged in.
    slot: Slot,

    // What the guest can change. The interrupts take over what the registers say while these are locked.
    registers: Mutex<ConfigSpace>,
    intx: Intx,
    msix: Option<MsiX>,
    msi: Option<Msi>,
    /// Where the BARs decode: what `registers` says, for those who must not wait for them.
    windows: Mutex<Windows>,
}

/// A BAR for each register, at the address where it decodes now.
pub(super) type Windows = [Option<(Bar, u64)>; BarIndex::COUNT];

/// What has to be told after the unlock.
#[derive(Clone, Copy, Debug, Default)]
struct Changed {
    windows: bool,
    msix: bool,
    msi: bool,
}

/// A function as it is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointState {
    /// Configuration space as it was written, without what is derived at each read: Interrupt Status, the pending bits
    /// of MSI, the multi-function bit.
    pub config: [u8; SPACE],
    /// The causes of [`Intx`].
    pub causes: u8,
    /// The pending bits of MSI, vector 0 lowest.
    pub msi_pending: u32,
    /// MSI-X, if the function has it.
    pub msix: Option<MsiXState>,
}

impl Endpoint {
    /// A function out of reset, in `slot`. A pin in `config` is connected to the slot's line.
    pub fn new(config: EndpointConfig, mut slot: Slot) -> Self {
        let line = slot.take_line(config.pin).unwrap_or_else(|| Box::new(NoInterrupt));
        let requester = slot.address().requester();
        let messages = |count| Messages::new(requester, slot.vectors(), count);
        let endpoint = Self {
            intx: Intx::new(line),
            msix: config.msix.map(|layout| MsiX::new(layout, messages(layout.count))),
            msi: config.msi.map(|layout| Msi::new(messages(layout.count))),
            windows: Mutex::default(),
            registers: Mutex::new(ConfigSpace::new(config)),
            slot,
        };
        endpoint.change(|_| ());
        endpoint
    }

    /// Where the function is.
    pub fn address(&self) -> DeviceFunction {
        self.slot.address()
    }

    /// The legacy interrupt. Of a function without a [`pin`](EndpointConfig::pin) it has causes, and reaches nobody.
    #[inline]
    pub fn intx(&self) -> &Intx {
        &self.intx
    }

    /// MSI-X, if the function has it.
    #[inline]
    pub fn msix(&self) -> Option<&MsiX> {
        self.msix.as_ref()
    }

    /// MSI, if the function has it.
    pub fn msi(&self) -> Option<&Msi> {
        self.msi.as_ref()
    }

    /// The address at which `bar` decodes now, if it exists and the command register lets it. Of a BAR of ports, the
    /// first port.
    pub fn decoded(&self, bar: BarIndex) -> Option<u64> {
        self.windows()[bar as usize].map(|(_, address)| address)
    }

    /// Whether the guest lets the function write memory: the command register's Bus Master.
    pub fn is_bus_master(&self) -> bool {
        lock(&self.registers).command() & BUS_MASTER != 0
    }

    /// The guest reads configuration space. Any width and alignment answers, byte by byte; above 0xff there are ones, or
    /// zeros if the function is one of [PCI Express](EndpointConfig::express).
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let registers = lock(&self.registers);
        registers.read(offset, data);
        // What is live.
        let mut overlay = |at: usize, bits: u8| {
            let index = (at as u64)
                .checked_sub(offset)
                .and_then(|index| usize::try_from(index).ok());
            if let Some(byte) = index.and_then(|index| data.get_mut(index)) {
                *byte |= bits;
            }
        };
        if self.intx.causes() != 0 {
            overlay(STATUS, INTERRUPT_STATUS);
        }
        if let (Some(msi), Some(MsiLayout { at, .. })) = (&self.msi, registers.config().msi) {
            for (byte, bits) in msi.pending().to_le_bytes().into_iter().enumerate() {
                overlay(at + MSI_PENDING + byte, bits);
            }
        }
    }

    /// The guest writes configuration space, in any width and alignment. Whether a BAR decodes elsewhere now: who has
    /// doorbells or mapped memory registered with the hypervisor by address follows [`decoded`](Self::decoded).
    pub fn write_config(&self, offset: u64, data: &[u8]) -> bool {
        self.change(|registers| registers.write(offset, data)).windows
    }

    /// The guest reads a BAR. Whether that was answered here, because the BAR is the one of MSI-X.
    pub fn read_bar(&self, bar: BarIndex, offset: u64, data: &mut [u8]) -> bool {
        let msix = self.msix_at(bar);
        if let Some(msix) = msix {
            msix.read(offset, data);
        }
        msix.is_some()
    }

    /// The guest writes a BAR. Whether that was taken here, because the BAR is the one of MSI-X.
    pub fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]) -> bool {
        let msix = self.msix_at(bar);
        if let Some(msix) = msix {
            msix.write(offset, data);
        }
        msix.is_some()
    }

    /// Whether accesses to `bar` are answered here.
    pub(super) fn has_bar(&self, bar: BarIndex) -> bool {
        self.msix_at(bar).is_some()
    }

    fn msix_at(&self, bar: BarIndex) -> Option<&MsiX> {
        self.msix.as_ref().filter(|msix| msix.bar() == bar)
    }

    /// A reset of the function by its bus: all registers are as they were, nothing decodes, nothing interrupts, and the platform
    /// has its vectors back.
    pub fn reset(&self) {
        self.change(|registers| {
            registers.reset();
            self.intx.update(|_| 0);
            if let Some(msix) = &self.msix {
                msix.reset();
            }
        });
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.slot
    }

    pub(super) fn windows(&self) -> Windows {
        *lock(&self.windows)
    }

    /// Every change: makes it, derives all that follows, then tells it with nothing locked.
    fn change(&self, change: impl FnOnce(&mut ConfigSpace)) -> Changed {
        let changed = {
            let mut registers = lock(&self.registers);
            change(&mut registers);
            self.derive(&registers)
        };
        self.settle(changed);
        changed
    }

    /// Derives every output from the registers. Calls nobody.
    fn derive(&self, registers: &ConfigSpace) -> Changed {
        let command = registers.command();
        let masked = command & BUS_MASTER == 0;
        let config = registers.config();
        let mut messages = false;
        let mut changed = Changed::default();
        if let (Some(msix), Some(layout)) = (&self.msix, config.msix) {
            let control = registers.u16(layout.at + MESSAGE_CONTROL);
            let enabled = control & MSIX_ENABLE != 0;
            let masked = masked || control & MSIX_FUNCTION_MASK != 0;
            messages |= enabled;
            changed.msix = msix.set_control(Control { enabled, masked });
        }
        if let (Some(msi), Some(MsiLayout { at, count })) = (&self.msi, config.msi) {
            let control = registers.u16(at + MESSAGE_CONTROL);
            let enabled = control & MSI_ENABLE != 0;
            let given = 1 << ((control & MSI_MULTIPLE_ENABLE) >> MSI_MULTIPLE_ENABLE_SHIFT);
            messages |= enabled;
            changed.msi = msi.set_control(MsiControl {
                enabled,
                masked,
                message: MsiMessage {
                    address: u64::from(registers.u32(at + MSI_ADDRESS + 4)) << 32
                        | u64::from(registers.u32(at + MSI_ADDRESS)),
                    data: registers.u16(at + MSI_DATA).into(),
                },
                // More than was asked for is not defined, and neither are 64 and 128.
                allocated: count.min(given),
                mask: registers.u32(at + MSI_MASK),
            });
        }
        self.intx.gate(messages || command & INTX_DISABLE != 0);
        let decoded = BarIndex::ALL.map(|bar| registers.decoded(bar));
        changed.windows = std::mem::replace(&mut *lock(&self.windows), decoded) != decoded;
        changed
    }

    fn settle(&self, changed: Changed) {
        if changed.windows {
            self.slot.refresh();
        }
        // Refusals are counted where they happen, and tried again by the next signal.
        let _ = self.intx.settle();
        if let (Some(msix), true) = (&self.msix, changed.msix) {
            msix.settle_all();
        }
        if let (Some(msi), true) = (&self.msi, changed.msi) {
            msi.settle_all();
        }
    }

    /// The state now. Take it while no vCPU runs and nothing signals.
    pub fn save(&self) -> EndpointState {
        let Self {
            slot: _,
            registers,
            intx,
            msix,
            msi,
            windows: _,
        } = self;
        let registers = lock(registers);
        EndpointState {
            config: registers.save(),
            causes: intx.causes(),
            msi_pending: msi.as_ref().map_or(0, Msi::pending),
            msix: msix.as_ref().map(MsiX::save),
        }
    }

    /// Whether [`restore`](Self::restore) would take `state`.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be.
    pub fn check(&self, state: &EndpointState) -> Result<(), StateError> {
        self.check_locked(&lock(&self.registers), state)
    }

    fn check_locked(&self, registers: &ConfigSpace, state: &EndpointState) -> Result<(), StateError> {
        let EndpointState {
            config,
            causes: _,
            msi_pending,
            msix,
        } = state;
        let enabled = |at: usize, bit: u16| u16::from_le_bytes([config[at], config[at + 1]]) & bit != 0;
        registers.check(config)?;
        let pending = registers.config().msi.map_or(0, |MsiLayout { at, count }| {
            let on = enabled(at + MESSAGE_CONTROL, MSI_ENABLE);
            if on { u32::MAX >> (32 - u32::from(count)) } else { 0 }
        });
        if msi_pending & !pending != 0 {
            let vector = (msi_pending & !pending).trailing_zeros() as usize;
            return Err(StateError::Pending { vector });
        }
        match (&self.msix, registers.config().msix, msix) {
            (Some(msix), Some(layout), Some(state)) => {
                msix.check(state, enabled(layout.at + MESSAGE_CONTROL, MSIX_ENABLE))
            }
            (None, _, None) => Ok(()),
            (_, _, state) => Err(StateError::MsiX { found: state.is_some() }),
        }
    }

    /// Puts the function into `state`: BARs decode, the wire and the platform's vectors are what the state says, and what was
    /// pending and is masked by nothing is sent. A platform that refuses a vector is asked again by the next signal, and
    /// counted in [`MsiX::failures`].
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be, and nothing has changed.
    pub fn restore(&self, state: &EndpointState) -> Result<(), StateError> {
        let changed = {
            let mut registers = lock(&self.registers);
            self.check_locked(&registers, state)?;
            let EndpointState {
                config,
                causes,
                msi_pending,
                msix,
            } = state;
            // By way of reset, so that nothing of what was survives.
            registers.reset();
            let reset = self.derive(&registers);
            if let (Some(msix), Some(state)) = (&self.msix, msix) {
                msix.restore(state);
            }
            if let Some(msi) = &self.msi {
                msi.restore(*msi_pending);
            }
            registers.restore(config);
            let Changed { windows, msix, msi } = self.derive(&registers);
            // With its gate as it will be: causes may be kept behind messages.
            self.intx.update(|_| *causes);
            Changed {
                windows: reset.windows | windows,
                msix: reset.msix | msix,
                msi: reset.msi | msi,
            }
        };
        self.settle(changed);
        Ok(())
    }
}

/// The vectors go back to the platform with the last of them, and the line is let go with the slot's.
impl Drop for Endpoint {
    fn drop(&mut self) {
        self.reset();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address())
            .field("windows", &self.windows())
            .field("intx", &self.intx)
            .field("msix", &self.msix)
            .field("msi", &self.msi)
            .finish_non_exhaustive()
    }
}
