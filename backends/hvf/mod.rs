//! Hypervisor.framework (macOS on Apple silicon): its interrupt calls as traits, devisor's lines and messages on top of
//! them, and a [`mock`] that runs anywhere. No bindings.
//!
//! | you have | you get |
//! |---|---|
//! | [`HvGic`], the framework's own GIC (macOS 15) | [`Gic`]: a [`LevelLine`] or [`EdgeLine`] for each SPI, an [`MsiFrame`] |
//! | [`HvVcpus`] and a controller of [`irqchip`](crate::backends::irqchip) | [`VcpuInputs`]: IRQ and FIQ of a vCPU |
//! | neither: another system | [`mock::Process`], which is both |
//!
//! # On macOS
//!
//! Implement the traits with whatever bindings you use: a method is the call of its name. This is all of it for
//! [`HvGic`]; [`HvVcpus`] is of the same kind.
//!
//! ```no_run,standalone_crate
//! use devisor::backends::{hvf::{GicConfig, HvError, HvGic, HvReturn, IntIdRange, MsiConfig, VcpuHandle}, irqchip::IntId};
//!
//! mod sys { // your bindings
//!     use std::ffi::c_void;
//!
//!     unsafe extern "C" {
//!         pub fn hv_gic_get_distributor_size(size: *mut usize) -> i32;
//!         pub fn hv_gic_get_distributor_base_alignment(alignment: *mut usize) -> i32;
//!         pub fn hv_gic_get_redistributor_size(size: *mut usize) -> i32;
//!         pub fn hv_gic_get_redistributor_region_size(size: *mut usize) -> i32;
//!         pub fn hv_gic_get_redistributor_base_alignment(alignment: *mut usize) -> i32;
//!         pub fn hv_gic_get_msi_region_size(size: *mut usize) -> i32;
//!         pub fn hv_gic_get_msi_region_base_alignment(alignment: *mut usize) -> i32;
//!         pub fn hv_gic_get_spi_interrupt_range(first: *mut u32, count: *mut u32) -> i32;
//!         pub fn hv_gic_config_create() -> *mut c_void;
//!         pub fn hv_gic_config_set_distributor_base(config: *mut c_void, base: u64) -> i32;
//!         pub fn hv_gic_config_set_redistributor_base(config: *mut c_void, base: u64) -> i32;
//!         pub fn hv_gic_config_set_msi_region_base(config: *mut c_void, base: u64) -> i32;
//!         pub fn hv_gic_config_set_msi_interrupt_range(config: *mut c_void, first: u32, count: u32) -> i32;
//!         pub fn hv_gic_create(config: *mut c_void) -> i32;
//!         pub fn hv_gic_set_spi(intid: u32, level: bool) -> i32;
//!         pub fn hv_gic_send_msi(address: u64, intid: u32) -> i32;
//!         pub fn hv_gic_get_redistributor_base(vcpu: u64, base: *mut u64) -> i32;
//!         pub fn hv_gic_reset() -> i32;
//!         pub fn hv_gic_state_create() -> *mut c_void;
//!         pub fn hv_gic_state_get_size(state: *mut c_void, size: *mut usize) -> i32;
//!         pub fn hv_gic_state_get_data(state: *mut c_void, data: *mut c_void) -> i32;
//!         pub fn hv_gic_set_state(data: *const c_void, size: usize) -> i32;
//!         pub fn os_release(object: *mut c_void);
//!     }
//! }
//!
//! struct Framework;
//!
//! fn size(call: unsafe extern "C" fn(*mut usize) -> i32) -> Result<u64, HvError> {
//!     let mut size = 0;
//!     // SAFETY: the call writes one size.
//!     HvReturn(unsafe { call(&mut size) }).check()?;
//!     Ok(size as u64)
//! }
//!
//! impl HvGic for Framework {
//!     fn hv_gic_get_distributor_size(&self) -> Result<u64, HvError> {
//!         size(sys::hv_gic_get_distributor_size)
//!     }
//!     fn hv_gic_get_distributor_base_alignment(&self) -> Result<u64, HvError> {
//!         size(sys::hv_gic_get_distributor_base_alignment)
//!     }
//!     fn hv_gic_get_redistributor_size(&self) -> Result<u64, HvError> {
//!         size(sys::hv_gic_get_redistributor_size)
//!     }
//!     fn hv_gic_get_redistributor_region_size(&self) -> Result<u64, HvError> {
//!         size(sys::hv_gic_get_redistributor_region_size)
//!     }
//!     fn hv_gic_get_redistributor_base_alignment(&self) -> Result<u64, HvError> {
//!         size(sys::hv_gic_get_redistributor_base_alignment)
//!     }
//!     fn hv_gic_get_msi_region_size(&self) -> Result<u64, HvError> {
//!         size(sys::hv_gic_get_msi_region_size)
//!     }
//!     fn hv_gic_get_msi_region_base_alignment(&self) -> Result<u64, HvError> {
//!         size(sys::hv_gic_get_msi_region_base_alignment)
//!     }
//!     fn hv_gic_get_spi_interrupt_range(&self) -> Result<IntIdRange, HvError> {
//!         let mut range = IntIdRange { first: IntId(0), count: 0 };
//!         // SAFETY: the call writes two numbers.
//!         HvReturn(unsafe { sys::hv_gic_get_spi_interrupt_range(&mut range.first.0, &mut range.count) }).check()?;
//!         Ok(range)
//!     }
//!     fn hv_gic_create(&self, config: &GicConfig) -> Result<(), HvError> {
//!         // SAFETY: the object is ours from here to its release.
//!         unsafe {
//!             let object = sys::hv_gic_config_create();
//!             let create = || {
//!                 HvReturn(sys::hv_gic_config_set_distributor_base(object, config.distributor_base)).check()?;
//!                 HvReturn(sys::hv_gic_config_set_redistributor_base(object, config.redistributor_base)).check()?;
//!                 if let Some(MsiConfig { region_base, interrupts: IntIdRange { first, count } }) = config.msi {
//!                     HvReturn(sys::hv_gic_config_set_msi_region_base(object, region_base)).check()?;
//!                     HvReturn(sys::hv_gic_config_set_msi_interrupt_range(object, first.0, count)).check()?;
//!                 }
//!                 HvReturn(sys::hv_gic_create(object)).check()
//!             };
//!             let result = create();
//!             sys::os_release(object);
//!             result
//!         }
//!     }
//!     fn hv_gic_set_spi(&self, intid: IntId, level: bool) -> Result<(), HvError> {
//!         // SAFETY: no pointers.
//!         HvReturn(unsafe { sys::hv_gic_set_spi(intid.0, level) }).check()
//!     }
//!     fn hv_gic_send_msi(&self, address: u64, intid: IntId) -> Result<(), HvError> {
//!         // SAFETY: no pointers.
//!         HvReturn(unsafe { sys::hv_gic_send_msi(address, intid.0) }).check()
//!     }
//!     fn hv_gic_get_redistributor_base(&self, vcpu: VcpuHandle) -> Result<u64, HvError> {
//!         let mut base = 0;
//!         // SAFETY: the call writes one address.
//!         HvReturn(unsafe { sys::hv_gic_get_redistributor_base(vcpu.0, &mut base) }).check()?;
//!         Ok(base)
//!     }
//!     fn hv_gic_reset(&self) -> Result<(), HvError> {
//!         // SAFETY: no pointers.
//!         HvReturn(unsafe { sys::hv_gic_reset() }).check()
//!     }
//!     fn hv_gic_state_create(&self) -> Result<Vec<u8>, HvError> {
//!         // SAFETY: the object is ours from here to its release, and the bytes are as many as it says.
//!         unsafe {
//!             let object = sys::hv_gic_state_create();
//!             let read = || {
//!                 let mut size = 0;
//!                 HvReturn(sys::hv_gic_state_get_size(object, &mut size)).check()?;
//!                 let mut data = vec![0; size];
//!                 HvReturn(sys::hv_gic_state_get_data(object, data.as_mut_ptr().cast())).check()?;
//!                 Ok(data)
//!             };
//!             let result = read();
//!             sys::os_release(object);
//!             result
//!         }
//!     }
//!     fn hv_gic_set_state(&self, state: &[u8]) -> Result<(), HvError> {
//!         // SAFETY: pointer and length are of one slice.
//!         HvReturn(unsafe { sys::hv_gic_set_state(state.as_ptr().cast(), state.len()) }).check()
//!     }
//! }
//!
//! fn main() {}
//! ```
//!
//! Then, in this order: `hv_vm_create`; [`Gic::create`]; one thread for each vCPU, on which it is created, given its
//! `MPIDR_EL1` and run. KVM's order is the other one (its GIC is initialized after the vCPUs): a board that is
//! configured, then gets its vCPUs and then its devices fits both.
//!
//! Devices get their lines from [`Gic`] and may drive them from any thread. The guest's interrupts do not stop a vCPU;
//! [`HvVcpus::hv_vcpus_exit`] does.

mod api;
mod error;
mod gic;
mod icc;
pub mod mock;
mod software;
mod trap;
mod vcpu;

pub use api::{
    DistributorReg, GeneralReg, GicConfig, GicInterrupt, HvGic, HvVcpus, IntIdRange, InterruptType, MsiConfig,
    RedistributorReg, Reg, SysReg, VcpuExit, VcpuHandle,
};
pub use error::{HvError, HvReturn};
pub use gic::{EdgeLine, Gic, GicError, LevelLine, MsiFrame};
pub use icc::IccState;
pub use software::{SoftwareVcpu, SoftwareVcpuParts};
pub use trap::{MmioAccess, Trap};
pub use vcpu::{VcpuInput, VcpuInputs};
