//! Hypervisor.framework's interrupt calls as a trait, and a mock of it: no bindings.
