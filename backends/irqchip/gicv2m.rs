//! GICv2m (Arm Server Base System Architecture): a frame that turns messages into SPIs of a GICv2.
