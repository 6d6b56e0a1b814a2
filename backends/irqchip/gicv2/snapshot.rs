//! The state of a GICv2 as plain data: taken, checked and put back.
