//! What is saved of a device that a back end serves, and restored.

use std::sync::atomic::Ordering::SeqCst;

use super::shared::Shared;
use crate::{
    sync::lock,
    virtio::{DeviceState, DeviceStateError},
};

/// The state of a device that a back end serves, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteState {
    /// The device type.
    pub device: u32,
    /// Size of each queue.
    pub queue_sizes: Vec<u16>,
    /// What the driver has written to the configuration space: where, and what.
    pub written: Vec<(u16, u8)>,
    /// What the back end keeps.
    pub back_end: BackEndState,
}

/// A back end's own state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackEndState {
    /// It has none that could be moved (DEVICE_STATE), or no driver has begun to use it.
    None,
    /// This, which the back end knows the format of.
    Saved(Vec<u8>),
    /// It could not be had: the reason is among the [failures](super::Remote::host_failures). Nothing can be made of such a state.
    Lost,
}

pub(super) fn save(shared: &Shared, queue_sizes: &[u16]) -> RemoteState {
    let has_state = lock(&shared.link).has_state();
    let back_end = match has_state {
        true => match shared.with_link(|link| link.save_state()) {
            Some(Some(state)) => BackEndState::Saved(state),
            Some(None) => BackEndState::None,
            None => BackEndState::Lost,
        },
        false => BackEndState::None,
    };
    RemoteState {
        device: shared.options.device.0,
        queue_sizes: queue_sizes.to_vec(),
        written: lock(&shared.link).written.all(),
        back_end,
    }
}

pub(super) fn restore(shared: &Shared, sizes: &[u16], state: &DeviceState) -> Result<(), DeviceStateError> {
    let DeviceState::Remote(RemoteState {
        device,
        queue_sizes,
        written,
        back_end,
    }) = state
    else {
        return Err(DeviceStateError::kind(state, "one of a device that a back end serves"));
    };
    let otherwise = |why: String| Err(DeviceStateError::Otherwise(why));
    let id = shared.options.device.0;
    if *device != id || **queue_sizes != *sizes {
        return otherwise(format!(
            "device type {id} with queues of {sizes:?}, where the state has {device} and {queue_sizes:?}"
        ));
    }
    if !lock(&shared.link).written.can_be(written) {
        return otherwise("the driver has written beyond its configuration space".into());
    }
    let saved = match back_end {
        BackEndState::None => None,
        BackEndState::Saved(state) => Some(state.clone()),
        BackEndState::Lost => return otherwise("the back end's own state was lost when it was to be saved".into()),
    };
    if saved.is_some() && !lock(&shared.link).has_state() {
        return otherwise("the back end takes no state (DEVICE_STATE), where there is one".into());
    }
    let loads = saved.is_some();
    // What cannot be told now is when it is back; but a state that it does not take is none.
    let config = shared.with_link(|link| {
        link.written.set(written);
        link.write_config_again()?;
        link.set_state(saved)?;
        match link.ends() {
            Some(_) => link.config_now(),
            None => Ok(None),
        }
    });
    match config {
        Some(Some(config)) => *lock(&shared.config) = config,
        Some(None) => {}
        None if loads => {
            let mut link = lock(&shared.link);
            link.written.forget();
            let _ = link.set_state(None);
            return otherwise("the back end does not take its state".into());
        }
        None => {}
    }
    shared.has_ended.store(true, SeqCst);
    Ok(())
}
