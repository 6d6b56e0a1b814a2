//! What a device implements to be on a bus.

use std::sync::Arc;

use super::{bar::BarIndex, endpoint::Endpoint};

/// A function on a [`RootBus`](super::RootBus): the device behind an [`Endpoint`].
///
/// *For device authors*: implement the two accesses to your BARs; offsets, lengths and alignment come from the guest, and
/// all answer, as in [`BusDevice`](crate::bus::BusDevice). Configuration space is the endpoint's unless a capability of
/// yours does something when it is accessed. *For who calls it*: the guest reaches a BAR by
/// [`read_bar`](Endpoint::read_bar) of the endpoint first, and by this if it says no; [`RootBus`](super::RootBus) does so.
pub trait Function: Send + Sync {
    /// The endpoint, always the same.
    fn endpoint(&self) -> &Endpoint;

    /// The guest reads a BAR of the device's own. Fill all of `data`.
    fn read_bar(&self, bar: BarIndex, offset: u64, data: &mut [u8]);

    /// The guest writes a BAR of the device's own.
    fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]);

    /// The guest reads configuration space. Fill all of `data`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.endpoint().read_config(offset, data);
    }

    /// The guest writes configuration space.
    fn write_config(&self, offset: u64, data: &[u8]) {
        self.endpoint().write_config(offset, data);
    }

    /// A reset from outside: that of the [`Endpoint`], and of whatever device is behind it.
    fn reset(&self) {
        self.endpoint().reset();
    }
}

impl<T: Function + ?Sized> Function for Arc<T> {
    fn endpoint(&self) -> &Endpoint {
        (**self).endpoint()
    }

    fn read_bar(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        (**self).read_bar(bar, offset, data);
    }

    fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        (**self).write_bar(bar, offset, data);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        (**self).read_config(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        (**self).write_config(offset, data);
    }

    fn reset(&self) {
        (**self).reset();
    }
}
