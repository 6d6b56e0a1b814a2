//! KVM: interrupts through the kernel's interrupt controller.
