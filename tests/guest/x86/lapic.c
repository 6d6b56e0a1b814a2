// The local APIC (Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller").

#include "guest.h"

bool x2apic_modes[MAX_CPUS], ends_on_delivery;

u32 lapic_read(u32 reg) { return x2apic ? (u32)rdmsr(0x800 + (reg >> 4)) : read32(LAPIC + reg); }

void lapic_write(u32 reg, u32 value) {
    if (x2apic) wrmsr(0x800 + (reg >> 4), value);
    else write32(LAPIC + reg, value);
}

u32 lapic_bit(u32 reg, u32 vector) { return lapic_read(reg + (vector >> 5) * 16) >> (vector & 31) & 1; }

u32 lapic_id(void) { return x2apic ? lapic_read(ID) : lapic_read(ID) >> 24; }

void lapic_eoi(void) { lapic_write(EOI, 0); }

void ipi(u32 destination, u32 low) {
    if (x2apic) {
        wrmsr(0x830, (u64)destination << 32 | low);
        return;
    }
    lapic_write(ICR_HIGH, destination << 24);
    lapic_write(ICR, low);
    for (u32 patience = 1000; patience && lapic_read(ICR) & ICR_PENDING; patience--) relax();
}

static const u16 lvts[] = {LVT_TIMER, LVT_LINT0, LVT_LINT1, LVT_ERROR};

void lapic_init(void) {
    lapic_write(SVR, 0x100 | SPURIOUS);
    lapic_write(TIMER_INITIAL, 0);
    for (u32 i = 0; i < COUNT(lvts); i++) lapic_write(lvts[i], LVT_MASKED);
    lapic_write(TPR, 0);
    if (!x2apic) {
        lapic_write(DFR, 0xffffffff);
        lapic_write(LDR, 1u << (24 + cpu_number()));
    }
    // What is in service is ended, and what is pending is taken and forgotten.
    for (u32 round = 0; round < 32; round++) {
        u32 busy = 0;
        for (u32 i = 0; i < 8; i++) busy |= lapic_read(ISR + i * 16);
        if (!busy) break;
        lapic_eoi();
    }
    enable();
    poke();
    poke();
    disable();
}

// ---- Checks

static volatile u32 seen, seen_too;

static void look_in_service(u32 vector) { seen = lapic_bit(ISR, vector); }

bool find_ends_on_delivery(void) {
    vectors[0x60].hook = look_in_service;
    seen = 2;
    ipi(0, ICR_SELF | 0x60);
    wait_until(&vectors[0x60].taken[0], 1);
    return ends_on_delivery = seen == 0;
}

static void version(void) {
    u32 version = lapic_read(VERSION);
    expect("an integrated APIC", (version & 0xf0), 0x10);
    expect("at least four LVTs", (version >> 16 & 0xff) >= 3, 1);
}

static void self_ipi(void) {
    ipi(0, ICR_SELF | 0x61);
    wait_until(&vectors[0x61].taken[0], 1);
    settle();
    expect_taken_on(0, 0x61, 1);
}

const struct check lapic_checks[] = {
    {"lapic-version", version, 1},
    {"lapic-self-ipi", self_ipi, 1},
    {0},
};
