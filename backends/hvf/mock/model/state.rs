//! The state of the mock's controller as bytes, without the CPU interfaces: the framework's has no `ICC_*` in it.

use super::{Model, Refused};
use crate::backends::irqchip::{
    Group, InterruptState, TriggerMode,
    gicv3::{CpuState, GicV3State, SpiState},
};

/// What a state begins with: a layout, whose last digit counts up with its changes.
const LAYOUT: u64 = u64::from_le_bytes(*b"GICv3 01");

impl Model {
    pub(in crate::backends::hvf::mock) fn save(&self) -> Vec<u8> {
        let GicV3State {
            config,
            control,
            cpus,
            spis,
        } = self.gic.save();
        let mut words = vec![LAYOUT, cpus.len() as u64, config.spis.into(), control.into()];
        for cpu in cpus {
            let CpuState {
                private,
                redistributor_control,
                asleep,
                properties_base: _,
                pending_base: _,
                control: _,
                enabled_groups: _,
                priority_mask: _,
                binary_points: _,
                active_priorities: _,
            } = cpu;
            words.extend([u64::from(redistributor_control), u64::from(asleep)]);
            words.extend(private.into_iter().map(pack));
        }
        for spi in spis {
            let SpiState {
                state,
                router,
                message: _,
            } = spi;
            words.extend([pack(state), router]);
        }
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// Takes a state whole or not at all.
    pub(in crate::backends::hvf::mock) fn restore(&self, bytes: &[u8]) -> Result<(), Refused> {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || -> Result<u64, Refused> { words.next().ok_or(Refused) };
        let mut state = self.gic.save();
        for expected in [LAYOUT, state.cpus.len() as u64, u64::from(state.config.spis)] {
            if next()? != expected {
                return Err(Refused);
            }
        }
        state.control = u32::try_from(next()?)?;
        for cpu in &mut state.cpus {
            cpu.redistributor_control = u32::try_from(next()?)?;
            cpu.asleep = u8::try_from(next()?).map(|asleep| asleep != 0)?;
            for private in &mut cpu.private {
                *private = unpack(next()?)?;
            }
        }
        for spi in &mut state.spis {
            spi.state = unpack(next()?)?;
            spi.router = next()?;
        }
        if next().is_ok() || !rest.is_empty() {
            return Err(Refused);
        }
        Ok(self.gic.restore(&state)?)
    }
}

/// Flags in bits 5:0, priority in 15:8.
fn pack(state: InterruptState) -> u64 {
    let InterruptState {
        enabled,
        group,
        trigger,
        priority,
        line,
        latch,
        active,
    } = state;
    let (group, trigger) = (group == Group::One, trigger == TriggerMode::Edge);
    let flags = [enabled, group, trigger, line, latch, active];
    let flags = (0..)
        .zip(flags)
        .fold(0, |sum, (bit, flag)| sum | u64::from(flag) << bit);
    flags | u64::from(priority) << 8
}

fn unpack(word: u64) -> Result<InterruptState, Refused> {
    if word & !0xff3f != 0 {
        return Err(Refused);
    }
    let [enabled, group, trigger, line, latch, active] = [0, 1, 2, 3, 4, 5].map(|bit| word >> bit & 1 != 0);
    Ok(InterruptState {
        enabled,
        group: if group { Group::One } else { Group::Zero },
        trigger: if trigger { TriggerMode::Edge } else { TriggerMode::Level },
        priority: (word >> 8) as u8,
        line,
        latch,
        active,
    })
}
