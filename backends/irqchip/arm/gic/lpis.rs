//! Locality-specific peripheral interrupts, between who translates to them (the ITS) and who keeps them (the
//! redistributors).

use crate::backends::irqchip::CpuId;

/// What an ITS asks of the redistributors (IHI 0069, 5.1 and 6.1). `lpi` is an INTID, 8192 or above.
///
/// All of it is safe with whatever a guest names: an LPI beyond what the redistributor's tables hold, or one of a
/// redistributor with its LPIs disabled, changes nothing.
pub(in super::super) trait Lpis: Send + Sync {
    /// The redistributor with this processor number (GICR_TYPER.Processor_Number), which is how the commands of an ITS
    /// with GITS_TYPER.PTA clear name it.
    fn redistributor(&self, processor_number: u32) -> Option<CpuId>;
    /// The LPI becomes pending, or is pending no more.
    fn set_pending(&self, cpu: CpuId, lpi: u32, pending: bool);
    /// What the redistributor knows of the LPI's configuration is read again from its table.
    fn invalidate(&self, cpu: CpuId, lpi: u32);
    /// The same of all LPIs.
    fn invalidate_all(&self, cpu: CpuId);
    /// If the LPI is pending at one, it is pending at the other instead.
    fn move_pending(&self, from: CpuId, to: CpuId, lpi: u32);
    /// The same of all LPIs.
    fn move_all_pending(&self, from: CpuId, to: CpuId);
}
