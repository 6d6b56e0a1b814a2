//! The process: its VM, and which vCPUs are whose.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use super::{
    super::{GicConfig, HvError, VcpuHandle},
    config::{Config, ConfigError},
    model::Model,
    vcpu::{Seat, Vcpu},
};
use crate::{backends::irqchip::CpuId, sync::lock};

/// A process with the framework in it.
///
/// The framework has one VM in a process, and names it in no call. So that tests can run side by side, a process is an
/// object here; it has one VM, as the real one.
pub struct Process {
    pub(super) config: Config,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub vm: Option<Vm>,
    /// How many vCPUs there ever were.
    pub(super) handles: u64,
}

pub(super) struct Vm {
    pub(super) gic: Option<Gic>,
    pub(super) vcpus: Vec<Arc<Vcpu>>,
    /// By CPU of the GIC, for all that there could be.
    pub(super) seats: Vec<Arc<Seat>>,
    /// A vCPU has run: the topology is frozen.
    pub(super) started: bool,
}

#[derive(Clone)]
pub(super) struct Gic {
    pub(super) config: GicConfig,
    pub(super) model: Arc<Model>,
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
    /// [`Codes::second_vm`](super::Codes::second_vm).
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
    /// [`Codes::no_vm`](super::Codes::no_vm), [`Codes::vm_in_use`](super::Codes::vm_in_use).
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
    /// [`Codes::no_vm`](super::Codes::no_vm), [`Codes::second_vcpu_of_thread`](super::Codes::second_vcpu_of_thread), [`Codes::vcpu_after_run`](super::Codes::vcpu_after_run), [`Codes::too_many_vcpus`](super::Codes::too_many_vcpus).
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
    /// [`HvError::BadArgument`] for a handle that names no vCPU, [`Codes::foreign_thread`](super::Codes::foreign_thread), [`HvError::Busy`] while it
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
    pub(super) fn about_to_run(&self, vcpu: &Vcpu) -> Result<(), HvError> {
        self.with_vm(|vm| {
            if vm.gic.is_some() && lock(&vcpu.registers).mpidr().is_none() {
                return Err(self.config.codes.no_mpidr);
            }
            vm.started = true;
            Ok(())
        })
    }

    pub(super) fn with_vm<T>(&self, with: impl FnOnce(&mut Vm) -> Result<T, HvError>) -> Result<T, HvError> {
        let mut state = lock(&self.state);
        with(state.vm.as_mut().ok_or(self.config.codes.no_vm)?)
    }

    pub(super) fn vcpu(&self, handle: VcpuHandle) -> Result<Arc<Vcpu>, HvError> {
        self.with_vm(|vm| {
            let vcpu = vm.vcpus.iter().find(|vcpu| vcpu.handle == handle);
            vcpu.cloned().ok_or(HvError::BadArgument)
        })
    }

    pub(super) fn gic(&self) -> Result<Gic, HvError> {
        self.has_gic()?;
        self.with_vm(|vm| vm.gic.clone().ok_or(self.config.codes.no_gic))
    }

    pub(super) fn model(&self) -> Result<Arc<Model>, HvError> {
        Ok(self.gic()?.model)
    }

    /// Whether the host knows the calls of the GIC.
    pub(super) fn has_gic(&self) -> Result<(), HvError> {
        match self.config.gic {
            true => Ok(()),
            false => Err(HvError::Unsupported),
        }
    }

    /// The GIC, and what the CPU of a vCPU of this thread's is called there.
    pub(super) fn mine_in_gic(&self, vcpu: VcpuHandle) -> Result<(Arc<Model>, CpuId), HvError> {
        let model = self.model()?;
        let cpu = self.mine(vcpu)?.cpu().ok_or(HvError::BadArgument)?;
        Ok((model, cpu))
    }

    pub(super) fn check_address(&self, base: u64) -> Result<(), HvError> {
        match base.is_multiple_of(self.config.alignment) {
            true => Ok(()),
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
