//! The framework without macOS: it enforces the rules of the interrupt calls, and delivers interrupts with a controller
//! of our own.
//!
//! A [`Process`] answers every call of [`HvGic`] and [`HvVcpus`](super::HvVcpus), and those that make a VM and its vCPUs,
//! which are methods of the same names. What it refuses, the framework refuses: calls out of order, on the wrong thread
//! or with arguments out of range. Where Apple does not say with which code, [`Codes`] lets you choose.
//!
//! It executes no instructions. A closure plays the guest: see [`Process::set_guest`].
//!
//! The framework's GIC is our GICv3 here, so a guest finds what that one has. A host without it, as macOS 14 is, is
//! [`Config::gic`]: then [`SoftwareVcpu`](super::SoftwareVcpu) puts our GICv3 in front of the vCPUs.

mod config;
mod guest;
mod model;
mod outside;
mod registers;
mod vcpu;

use std::{
    fmt,
    sync::{Arc, Mutex},
};

pub use config::{Codes, Config, ConfigError};
pub use guest::{GuestCpu, GuestEvent, GuestStep};
use model::{Model, read_frame, write_frame};
use vcpu::{Seat, Vcpu};

use super::{
    DistributorReg, GicConfig, GicInterrupt, HvError, HvGic, IntIdRange, RedistributorReg, SysReg, VcpuHandle,
    icc::ICC_REGISTERS,
};
use crate::{
    backends::irqchip::{CpuId, IntId},
    interrupt::MsiMessage,
    sync::lock,
};

/// A process with the framework in it.
///
/// The framework has one VM in a process, and names it in no call. So that tests can run side by side, a process is an
/// object here; it has one VM, as the real one.
pub struct Process {
    config: Config,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    vm: Option<Vm>,
    /// How many vCPUs there ever were.
    handles: u64,
}

struct Vm {
    gic: Option<Gic>,
    vcpus: Vec<Arc<Vcpu>>,
    /// By CPU of the GIC, for all that there could be.
    seats: Vec<Arc<Seat>>,
    /// A vCPU has run: the topology is frozen.
    started: bool,
}

#[derive(Clone)]
struct Gic {
    config: GicConfig,
    model: Arc<Model>,
}

impl Process {
    /// A process on a host as many are.
    pub fn new() -> Self {
        Self {
            config: Config::default(),
            state: Mutex::default(),
        }
    }

    /// A process on a host of your choice.
    ///
    /// # Errors
    /// [`ConfigError`] with what was refused and what is accepted.
    pub fn with_config(config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        let state = Mutex::default();
        Ok(Self { config, state })
    }

    /// What it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Makes the VM: one at a time.
    ///
    /// # Errors
    /// [`Codes::second_vm`].
    pub fn hv_vm_create(&self) -> Result<(), HvError> {
        let mut state = lock(&self.state);
        if state.vm.is_some() {
            return Err(self.config.codes.second_vm);
        }
        state.vm = Some(Vm {
            gic: None,
            vcpus: Vec::new(),
            seats: (0..self.config.vcpus).map(|_| Arc::default()).collect(),
            started: false,
        });
        Ok(())
    }

    /// Destroys the VM and its GIC, after its vCPUs.
    ///
    /// # Errors
    /// [`Codes::no_vm`], [`Codes::vm_in_use`].
    pub fn hv_vm_destroy(&self) -> Result<(), HvError> {
        let codes = &self.config.codes;
        let mut state = lock(&self.state);
        let vm = match &state.vm {
            None => return Err(codes.no_vm),
            Some(vm) if !vm.vcpus.is_empty() => return Err(codes.vm_in_use),
            Some(_) => state.vm.take(),
        };
        drop(state);
        drop(vm);
        Ok(())
    }

    /// Makes a vCPU that belongs to the thread that calls, which has no other.
    ///
    /// # Errors
    /// [`Codes::no_vm`], [`Codes::second_vcpu_of_thread`], [`Codes::vcpu_after_run`], [`Codes::too_many_vcpus`].
    pub fn hv_vcpu_create(&self) -> Result<VcpuHandle, HvError> {
        let codes = &self.config.codes;
        let mut state = lock(&self.state);
        let State { vm, handles } = &mut *state;
        let vm = vm.as_mut().ok_or(codes.no_vm)?;
        if vm.vcpus.iter().any(|vcpu| vcpu.is_mine()) {
            return Err(codes.second_vcpu_of_thread);
        }
        if vm.started {
            return Err(codes.vcpu_after_run);
        }
        if vm.vcpus.len() >= self.config.vcpus as usize {
            return Err(codes.too_many_vcpus);
        }
        *handles += 1;
        // Not an index, and nothing that could pass for one.
        let handle = VcpuHandle(0x6000_0000_0000 + *handles * 0x1170);
        vm.vcpus.push(Arc::new(Vcpu::new(handle)));
        Ok(handle)
    }

    /// Destroys a vCPU: its owner does.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU, [`Codes::foreign_thread`], [`HvError::Busy`] while it
    /// runs.
    pub fn hv_vcpu_destroy(&self, vcpu: VcpuHandle) -> Result<(), HvError> {
        let mine = self.mine(vcpu)?;
        if mine.is_running() {
            return Err(HvError::Busy);
        }
        self.with_vm(|vm| {
            vm.vcpus.retain(|other| other.handle != vcpu);
            if let Some(cpu) = mine.cpu() {
                vm.seats[cpu.0 as usize].leave();
            }
            Ok(())
        })
    }

    /// Freezes the topology.
    fn about_to_run(&self, vcpu: &Vcpu) -> Result<(), HvError> {
        self.with_vm(|vm| {
            if vm.gic.is_some() && lock(&vcpu.registers).mpidr().is_none() {
                return Err(self.config.codes.no_mpidr);
            }
            vm.started = true;
            Ok(())
        })
    }

    fn with_vm<T>(&self, with: impl FnOnce(&mut Vm) -> Result<T, HvError>) -> Result<T, HvError> {
        let mut state = lock(&self.state);
        with(state.vm.as_mut().ok_or(self.config.codes.no_vm)?)
    }

    fn vcpu(&self, handle: VcpuHandle) -> Result<Arc<Vcpu>, HvError> {
        self.with_vm(|vm| {
            let vcpu = vm.vcpus.iter().find(|vcpu| vcpu.handle == handle);
            vcpu.cloned().ok_or(HvError::BadArgument)
        })
    }

    fn gic(&self) -> Result<Gic, HvError> {
        self.has_gic()?;
        self.with_vm(|vm| vm.gic.clone().ok_or(self.config.codes.no_gic))
    }

    fn model(&self) -> Result<Arc<Model>, HvError> {
        Ok(self.gic()?.model)
    }

    /// Whether the host knows the calls of the GIC.
    fn has_gic(&self) -> Result<(), HvError> {
        match self.config.gic {
            true => Ok(()),
            false => Err(HvError::Unsupported),
        }
    }

    /// The GIC, and what the CPU of a vCPU of this thread's is called there.
    fn mine_in_gic(&self, vcpu: VcpuHandle) -> Result<(Arc<Model>, CpuId), HvError> {
        let model = self.model()?;
        let cpu = self.mine(vcpu)?.cpu().ok_or(HvError::BadArgument)?;
        Ok((model, cpu))
    }

    fn check_address(&self, base: u64) -> Result<(), HvError> {
        match base.is_multiple_of(self.config.alignment) {
            true => Ok(()),
            false => Err(HvError::BadArgument),
        }
    }
}

impl HvGic for Process {
    fn hv_gic_get_distributor_size(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.distributor_size)
    }

    fn hv_gic_get_distributor_base_alignment(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.alignment)
    }

    fn hv_gic_get_redistributor_size(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.redistributor_size)
    }

    fn hv_gic_get_redistributor_region_size(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        let Config {
            redistributor_size,
            vcpus,
            ..
        } = self.config;
        Ok(redistributor_size.saturating_mul(vcpus.into()))
    }

    fn hv_gic_get_redistributor_base_alignment(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.alignment)
    }

    fn hv_gic_get_msi_region_size(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.msi_region_size)
    }

    fn hv_gic_get_msi_region_base_alignment(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.alignment)
    }

    fn hv_gic_get_spi_interrupt_range(&self) -> Result<IntIdRange, HvError> {
        self.has_gic()?;
        Ok(Model::spis(self.config.spis))
    }

    fn hv_gic_create(&self, config: &GicConfig) -> Result<(), HvError> {
        self.has_gic()?;
        let codes = &self.config.codes;
        self.check_address(config.distributor_base)?;
        self.check_address(config.redistributor_base)?;
        if let Some(msi) = config.msi {
            self.check_address(msi.region_base)?;
            if msi.interrupts.count == 0 || !Model::spis(self.config.spis).covers(msi.interrupts) {
                return Err(HvError::BadArgument);
            }
        }
        self.with_vm(|vm| {
            if vm.gic.is_some() {
                return Err(codes.second_gic);
            }
            if !vm.vcpus.is_empty() {
                return Err(codes.gic_after_vcpu);
            }
            let outputs = vm.seats.iter().map(Seat::outputs).collect();
            let model = Model::new(config, self.config.spis, self.config.cpus_per_cluster, outputs)
                .map_err(|_| HvError::BadArgument)?;
            vm.gic = Some(Gic {
                config: *config,
                model: Arc::new(model),
            });
            Ok(())
        })
    }

    fn hv_gic_set_spi(&self, intid: IntId, level: bool) -> Result<(), HvError> {
        let Gic { config, model } = self.gic()?;
        if config.msi.is_some_and(|msi| msi.interrupts.contains(intid)) {
            return Err(HvError::BadArgument);
        }
        model.set_spi(intid, level).ok_or(HvError::BadArgument)
    }

    fn hv_gic_send_msi(&self, address: u64, intid: IntId) -> Result<(), HvError> {
        let message = MsiMessage { address, data: intid.0 };
        self.model()?.send(message).ok_or(HvError::BadArgument)
    }

    fn hv_gic_get_redistributor_base(&self, vcpu: VcpuHandle) -> Result<u64, HvError> {
        let base = self.gic()?.config.redistributor_base;
        let cpu = self.vcpu(vcpu)?.cpu().ok_or(HvError::BadArgument)?;
        let offset = self.config.redistributor_size.saturating_mul(cpu.0.into());
        Ok(base.saturating_add(offset))
    }

    fn hv_gic_reset(&self) -> Result<(), HvError> {
        self.model()?.reset();
        Ok(())
    }

    fn hv_gic_state_create(&self) -> Result<Vec<u8>, HvError> {
        Ok(self.model()?.save())
    }

    fn hv_gic_set_state(&self, state: &[u8]) -> Result<(), HvError> {
        let model = self.model()?;
        self.with_vm(|vm| match vm.vcpus.is_empty() || vm.started {
            true => Err(self.config.codes.state_out_of_order),
            false => Ok(()),
        })?;
        model.restore(state).map_err(|_| HvError::BadArgument)
    }

    fn hv_gic_get_intid(&self, interrupt: GicInterrupt) -> Result<IntId, HvError> {
        self.has_gic()?;
        Ok(interrupt.intid())
    }

    fn hv_gic_get_distributor_reg(&self, register: DistributorReg) -> Result<u64, HvError> {
        let model = self.model()?;
        read_frame(model.distributor(), register.0.into(), register.is_wide())
    }

    fn hv_gic_set_distributor_reg(&self, register: DistributorReg, value: u64) -> Result<(), HvError> {
        let model = self.model()?;
        write_frame(model.distributor(), register.0.into(), register.is_wide(), value)
    }

    fn hv_gic_get_redistributor_reg(&self, vcpu: VcpuHandle, register: RedistributorReg) -> Result<u64, HvError> {
        let (model, cpu) = self.mine_in_gic(vcpu)?;
        read_frame(model.redistributor(cpu), register.0.into(), register.is_wide())
    }

    fn hv_gic_set_redistributor_reg(
        &self,
        vcpu: VcpuHandle,
        register: RedistributorReg,
        value: u64,
    ) -> Result<(), HvError> {
        let (model, cpu) = self.mine_in_gic(vcpu)?;
        write_frame(model.redistributor(cpu), register.0.into(), register.is_wide(), value)
    }

    fn hv_gic_get_icc_reg(&self, vcpu: VcpuHandle, register: SysReg) -> Result<u64, HvError> {
        let (model, cpu) = self.mine_in_gic(vcpu)?;
        // The host looks, and acknowledges nothing by it.
        match ICC_REGISTERS.contains(&register) {
            true => model.interface(cpu).read_sysreg(register).ok_or(HvError::BadArgument),
            false => Err(HvError::BadArgument),
        }
    }

    fn hv_gic_set_icc_reg(&self, vcpu: VcpuHandle, register: SysReg, value: u64) -> Result<(), HvError> {
        let (model, cpu) = self.mine_in_gic(vcpu)?;
        match ICC_REGISTERS.contains(&register) {
            true => model
                .interface(cpu)
                .write_sysreg(register, value)
                .ok_or(HvError::BadArgument),
            false => Err(HvError::BadArgument),
        }
    }
}

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        let vm = state.vm.as_ref();
        f.debug_struct("Process")
            .field("vm", &vm.is_some())
            .field("gic", &vm.is_some_and(|vm| vm.gic.is_some()))
            .field("vcpus", &vm.map_or(0, |vm| vm.vcpus.len()))
            .finish_non_exhaustive()
    }
}
