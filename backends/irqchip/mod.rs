//! Interrupt controllers in this process, for hypervisors that bring none.
