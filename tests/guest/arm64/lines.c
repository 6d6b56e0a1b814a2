#include "lines.h"
#include "log.h"

// The PMU, the virtual and the physical timer.
const u32 ppis[PPIS] = {23, 27, 30};
// PL011, PL031, INTx of the function in slot 3, PL061.
const u32 spis[SPIS] = {33, 34, 38, 39};
const u32 msi_devices[MSI_DEVICES] = {1 << 3, 2 << 3};

// QEMU's `edu`: writing to 0x60 raises its interrupt, writing to 0x64 acknowledges it.
#define EDU(slot) (PCI_MEMORY + ((u64)(slot) << 20))
#define INTX_SLOT 3

// Where the capability of a function's MSI is, in its configuration space.
static u64 msi_capability(u32 slot) {
    u32 at = load(PCI_CONFIG(slot) + 0x34, 1);
    while (at && load(PCI_CONFIG(slot) + at, 1) != 0x05)
        at = load(PCI_CONFIG(slot) + at + 1, 1);
    return at ? PCI_CONFIG(slot) + at : 0;
}

void lines_init(void) {
    for (u32 slot = 1; slot <= INTX_SLOT; slot++) {
        if (load(PCI_CONFIG(slot), 4) != 0x11e81234)
            fail("no edu in slot", slot);
        store(PCI_CONFIG(slot) + 0x10, 4, EDU(slot));
        store(PCI_CONFIG(slot) + 0x04, 2, 6); // memory and bus master
    }
    for (u32 n = 0; n < MSI_DEVICES; n++) {
        u64 msi = msi_capability(msi_devices[n] >> 3);
        if (!msi)
            fail("no MSI in function", msi_devices[n]);
        store(msi + 4, 4, GITS_TRANSLATER);
        store(msi + 8, 4, 0);
        store(msi + 2, 2, 1); // one vector, enabled
    }
    // A match in the RTC latches its raw status; the mask then is the line.
    store(RTC + 0x1c, 4, 1);
    store(RTC + 0x10, 4, 0);
    for (u32 tries = 0; !(load(RTC + 0x14, 4) & 1); tries++) {
        if (tries > 10)
            fail("the RTC does not match", 0);
        store(RTC + 0x04, 4, load(RTC, 4)); // the match register, to the present second
    }
    // A byte sent latches the transmit interrupt of the UART. Nobody listens.
    store(UART + 0x38, 4, 0);
    store(UART + 0x30, 4, 0x301);
    store(UART, 4, 0);
    if (!(load(UART + 0x3c, 4) & 0x20))
        fail("the UART latches no interrupt", 0);
    // Pin 0 of the GPIO is pulled up, an input, sensitive to level, high.
    store(GPIO + 0x400, 4, 0);
    store(GPIO + 0x410, 4, 0);
    store(GPIO + 0x404, 4, 1);
    store(GPIO + 0x40c, 4, 1);
}

void ppis_init(void) {
    // Both timers have been due since 0; the mask is the line.
    asm volatile("msr cntv_cval_el0, xzr\n msr cntp_cval_el0, xzr\n"
                 "msr cntv_ctl_el0, %0\n msr cntp_ctl_el0, %0\n isb" ::"r"(3ul));
    // The cycle counter has overflowed.
    asm volatile("msr pmintenclr_el1, %0\n msr pmovsset_el0, %0\n msr pmcr_el0, %1\n isb" ::"r"(1ul << 31), "r"(1ul));
}

void ppi_set(u32 index, u32 level) {
    u64 timer = level ? 1 : 3;
    LOG("p", this_cpu(), ppis[index], level);
    switch (index) {
    case 0:
        if (level)
            asm volatile("msr pmintenset_el1, %0\n isb" ::"r"(1ul << 31));
        else
            asm volatile("msr pmintenclr_el1, %0\n isb" ::"r"(1ul << 31));
        break;
    case 1: asm volatile("msr cntv_ctl_el0, %0\n isb" ::"r"(timer)); break;
    default: asm volatile("msr cntp_ctl_el0, %0\n isb" ::"r"(timer)); break;
    }
}

void spi_set(u32 index, u32 level) {
    LOG("l", spis[index], level);
    switch (index) {
    case 0: store(UART + 0x38, 4, level ? 0x20 : 0); break;
    case 1: store(RTC + 0x10, 4, level); break;
    case 2: store(EDU(INTX_SLOT) + (level ? 0x60 : 0x64), 4, 1); break;
    default: store(GPIO + 0x410, 4, level); break;
    }
}

void msi_send(u32 index, u32 event) {
    u32 slot = msi_devices[index] >> 3;
    LOG("v", msi_devices[index], event);
    u64 msi = msi_capability(slot);
    store(msi + 12, 2, event); // data, behind a 64-bit address
    store(EDU(slot) + 0x60, 4, 1);
    store(EDU(slot) + 0x64, 4, 1);
}
