//! The state of an ITS as plain data: taken, checked and put back.

use super::{
    super::gic::check::{StateError, accept, bits},
    Its, ItsConfig, TABLE_FORMAT,
    model::Model,
    registers::{BASERS, QUEUE_OFFSET, STALLED, baser, cbaser},
};
use crate::sync::lock;

/// Everything of an [`Its`] that is not in the guest's memory: its registers. Made by [`Its::save`], taken by
/// [`Its::restore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItsState {
    /// What the ITS was made with.
    pub config: ItsConfig,
    /// The format of its tables in guest memory: [`TABLE_FORMAT`].
    pub table_format: u32,
    /// GITS_CTLR.Enabled.
    pub enabled: bool,
    /// GITS_CBASER.
    pub command_base: u64,
    /// GITS_CWRITER.
    pub command_write: u64,
    /// GITS_CREADR, with Stalled.
    pub command_read: u64,
    /// GITS_BASERn.
    pub tables: [u64; BASERS],
}

/// An [`ItsState`] cannot be restored. Nothing was changed.
pub type ItsStateError = StateError<ItsConfig>;

impl Its {
    /// Takes the state of the registers. The tables are in the guest's memory, up to date at any time. Stop the vCPUs and
    /// the devices first, or it is that of some moment in between.
    pub fn save(&self) -> ItsState {
        let model = lock(&self.shared.model);
        let Model {
            enabled,
            command_base,
            command_write,
            command_read,
            stalled,
            tables,
            // What it is plugged into, what it counts, and what follows from the tables.
            config: _,
            memory: _,
            lpis: _,
            translations: _,
            executing: _,
            under_way: _,
            refused: _,
        } = &*model;
        ItsState {
            config: self.shared.config,
            table_format: TABLE_FORMAT,
            enabled: *enabled,
            command_base: *command_base,
            command_write: *command_write,
            command_read: command_read | if *stalled { STALLED } else { 0 },
            tables: *tables,
        }
    }

    /// Puts a state back. Nothing is carried out and no interrupt comes of it, and guest memory is not looked at: it may
    /// be put back before or after, as may the GIC. What waits in the command queue is carried out with the guest's
    /// next access to it.
    ///
    /// # Errors
    /// [`ItsStateError`]: the state is refused as a whole.
    pub fn restore(&self, state: &ItsState) -> Result<(), ItsStateError> {
        state.check(self.shared.config)?;
        let ItsState {
            config: _,
            table_format: _,
            enabled,
            command_base,
            command_write,
            command_read,
            tables,
        } = state;
        let mut model = lock(&self.shared.model);
        model.command_base = *command_base;
        model.command_write = *command_write;
        model.command_read = command_read & QUEUE_OFFSET;
        model.stalled = command_read & STALLED != 0;
        model.tables = *tables;
        model.under_way = None;
        model.set_enabled(*enabled);
        Ok(())
    }
}

impl ItsState {
    fn check(&self, this: ItsConfig) -> Result<(), ItsStateError> {
        let Self {
            config: saved,
            table_format,
            enabled: _,
            command_base,
            command_write,
            command_read,
            tables,
        } = self;
        if *saved != this {
            return Err(ItsStateError::Config { saved: *saved, this });
        }
        accept(
            || "format of the tables".into(),
            (*table_format).into(),
            *table_format == TABLE_FORMAT,
            || TABLE_FORMAT.to_string(),
        )?;
        bits(|| "GITS_CBASER".into(), *command_base, cbaser::WRITABLE)?;
        bits(|| "GITS_CWRITER".into(), *command_write, QUEUE_OFFSET)?;
        bits(|| "GITS_CREADR".into(), *command_read, QUEUE_OFFSET | STALLED)?;
        let size = cbaser::queue_size(*command_base);
        accept(
            || "GITS_CREADR".into(),
            *command_read,
            command_read & QUEUE_OFFSET < size,
            || format!("an offset below {size:#x}"),
        )?;
        for (index, (value, fixed)) in tables.iter().zip(baser::FIXED).enumerate() {
            let writable = if fixed == 0 { 0 } else { baser::WRITABLE };
            accept(
                || format!("GITS_BASER{index}"),
                *value,
                value & !writable == fixed,
                || format!("{fixed:#x} with bits of {writable:#x}"),
            )?;
        }
        Ok(())
    }
}
