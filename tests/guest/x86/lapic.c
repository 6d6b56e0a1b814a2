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

/// Lets interrupts in, from within a handler.
static void window(void) {
    enable();
    poke();
    poke();
    disable();
}

static void self(u32 vector) { ipi(0, ICR_SELF | vector); }

static void version(void) {
    u32 version = lapic_read(VERSION);
    expect("an integrated APIC", version & 0xf0, 0x10);
    expect("at least four LVTs", (version >> 16 & 0xff) >= 3, 1);
    lapic_write(VERSION, ~version);
    expect("version once more", lapic_read(VERSION), version);
}

static void base(void) {
    u64 base = rdmsr(APIC_BASE_MSR);
    expect("enabled, and of the bootstrap CPU", base & 0xd00, 0x900);
    expect("address", base & 0xfffff000, LAPIC);
    expect("ID", lapic_id(), cpuid(1).ebx >> 24);
}

static void registers(void) {
    lapic_write(TPR, 0xfff);
    expect("TPR", lapic_read(TPR), 0xff);
    lapic_write(TPR, 0);
    lapic_write(LDR, 0xffffffff);
    expect("LDR", lapic_read(LDR), 0xff000000);
    lapic_write(DFR, 0x0fffffff);
    expect("DFR", lapic_read(DFR), 0x0fffffff);
    lapic_write(LVT_TIMER, LVT_MASKED | 0x66);
    expect("LVT timer", lapic_read(LVT_TIMER), LVT_MASKED | 0x66);
    lapic_write(LVT_ERROR, LVT_MASKED | 0x67);
    expect("LVT error", lapic_read(LVT_ERROR), LVT_MASKED | 0x67);
    lapic_write(IRR, 0xffffffff);
    lapic_write(ISR, 0xffffffff);
    expect("IRR", lapic_read(IRR), 0);
    expect("ISR", lapic_read(ISR), 0);
    lapic_eoi();
}

static void self_ipi(void) {
    self(0x61);
    settle();
    expect_taken_on(0, 0x61, 1);
    ipi(lapic_id(), 0x61);
    settle();
    expect_taken_on(0, 0x61, 2);
}

static void every_vector(void) {
    for (u32 vector = 0x20; vector < WAKE; vector += 0xd) {
        self(vector);
        enable();
        poke();
        poke();
        disable();
        expect_taken_on(0, vector, 1);
    }
}

static void request(void) {
    self(0x61);
    expect("IRR", lapic_bit(IRR, 0x61), 1);
    expect("ISR", lapic_bit(ISR, 0x61), 0);
    settle();
    expect("IRR", lapic_bit(IRR, 0x61), 0);
    expect_taken(0x61, 1);
}

static volatile u32 priorities;
static void look(u32 vector) {
    seen = lapic_bit(ISR, vector);
    seen_too = lapic_bit(IRR, vector);
    priorities = lapic_read(PPR);
}

static void in_service(void) {
    NEEDS_IN_SERVICE();
    vectors[0x61].hook = look;
    self(0x61);
    settle();
    expect_taken(0x61, 1);
    expect("ISR in the handler", seen, 1);
    expect("IRR in the handler", seen_too, 0);
    expect("PPR in the handler", priorities & 0xf0, 0x60);
    expect("ISR after EOI", lapic_bit(ISR, 0x61), 0);
    expect("PPR after EOI", lapic_read(PPR), 0);
}

static void coalesced(void) {
    for (u32 i = 0; i < 3; i++) self(0x61);
    settle();
    expect_taken(0x61, 1);
}

static void self_twice(u32 vector) {
    if (taken(vector) != 1) return;
    self(vector);
    self(vector);
    window();
    expect_taken(vector, 1);
}

static void while_in_service(void) {
    NEEDS_IN_SERVICE();
    vectors[0x61].hook = self_twice;
    self(0x61);
    settle();
    expect_taken(0x61, 2);
}

static volatile u32 order;
static void log_order(u32 vector) { order = order << 8 | vector; }

static void highest_first(void) {
    static const u8 three[] = {0x73, 0x84, 0x62};
    order = 0;
    for (u32 i = 0; i < COUNT(three); i++) {
        vectors[three[i]].hook = log_order;
        self(three[i]);
    }
    settle();
    for (u32 i = 0; i < COUNT(three); i++) expect_taken(three[i], 1);
    expect("order", order, 0x847362);
}

static void preempt(u32 vector) {
    (void)vector;
    self(0x62);
    self(0x6f);
    window();
    expect_taken(0x62, 0);
    expect_taken(0x6f, 0);
    self(0x70);
    window();
    expect_taken(0x70, 1);
    expect("PPR", lapic_read(PPR) & 0xf0, 0x60);
}

static void nesting(void) {
    NEEDS_IN_SERVICE();
    vectors[0x68].hook = preempt;
    self(0x68);
    settle();
    expect_taken(0x62, 1);
    expect_taken(0x6f, 1);
    expect_taken(0x70, 1);
    expect_taken(0x68, 1);
}

static void task_priority(void) {
    lapic_write(TPR, 0x60);
    expect("PPR", lapic_read(PPR), 0x60);
    self(0x6f);
    settle();
    expect_taken(0x6f, 0);
    self(0x70);
    settle();
    expect_taken(0x70, 1);
    lapic_write(TPR, 0x5f);
    settle();
    expect_taken(0x6f, 1);
    lapic_write(TPR, 0xff);
    self(0xe1);
    settle();
    expect_taken(0xe1, 0);
    lapic_write(TPR, 0);
    settle();
    expect_taken(0xe1, 1);
}

static void trigger_mode(void) {
    self(0x61);
    expect("TMR", lapic_bit(TMR, 0x61), 0);
    settle();
    expect_taken(0x61, 1);
    expect("TMR", lapic_bit(TMR, 0x61), 0);
}

static void software_disable(void) {
    lapic_write(LVT_TIMER, 0x66);
    lapic_write(SVR, SPURIOUS);
    u32 masked = lapic_read(LVT_TIMER);
    lapic_write(LVT_ERROR, 0x67);
    u32 still_masked = lapic_read(LVT_ERROR);
    self(0x61);
    settle();
    expect_taken(0x61, 0);
    lapic_write(SVR, 0x100 | SPURIOUS);
    settle();
    ignore_vector(0x61);
    if (taken(0x61) || !(masked & LVT_MASKED) || !(still_masked & LVT_MASKED)) {
        absent("software disable is not complete here");
        return;
    }
    expect_taken(0x61, 0);
    expect("LVT timer", lapic_read(LVT_TIMER), LVT_MASKED | 0x66);
}

static u32 errors(void) {
    lapic_write(ESR, 0);
    return lapic_read(ESR);
}

static void illegal_vector(void) {
    lapic_write(LVT_ERROR, 0x67);
    errors();
    self(ILLEGAL_VECTOR);
    u32 sent = errors();
    settle();
    ignore_vector(ILLEGAL_VECTOR);
    if (taken(ILLEGAL_VECTOR)) {
        absent("illegal vectors are delivered here");
        return;
    }
    if (!sent && !taken(0x67)) {
        absent("errors are not recorded here");
        return;
    }
    expect("Send Illegal Vector", sent >> 5 & 1, 1);
    expect_taken(0x67, 1);
    expect("ESR once more", errors(), 0);
}

static void illegal_register(void) {
    lapic_write(LVT_ERROR, 0x67);
    errors();
    lapic_read(0x40);
    u32 found = errors();
    settle();
    if (!found && !taken(0x67)) {
        absent("errors are not recorded here");
        return;
    }
    ignore_vector(0x67);
    expect("Illegal Register Address", found, 1 << 7);
    if (taken(0x67)) expect_taken(0x67, 1);
}

static void eoi_of_nothing(void) {
    for (u32 i = 0; i < 3; i++) lapic_eoi();
    self(0x61);
    settle();
    expect_taken(0x61, 1);
}

static void lint0_fixed(void) {
    // The 8259's output as an ordinary interrupt.
    lapic_write(LVT_LINT0, LVT_MASKED);
    out8(0x21, 0xdf);
    lapic_write(LVT_LINT0, 0x63);
    line(5, 1);
    settle();
    ignore_vector(PIC_BASE + 5);
    if (taken(0x63) && !taken(PIC_BASE + 5)) {
        expect_taken(0x63, 1);
    } else {
        ignore_vector(0x63);
        absent("LINT0 is for ExtINT alone here");
    }
    line(5, 0);
    lapic_write(LVT_LINT0, LVT_MASKED);
}

const struct check lapic_checks[] = {
    {"lapic-version", version, 1},
    {"lapic-base", base, 1},
    {"lapic-registers", registers, 1},
    {"lapic-self-ipi", self_ipi, 1},
    {"lapic-every-vector", every_vector, 1},
    {"lapic-request", request, 1},
    {"lapic-in-service", in_service, 1},
    {"lapic-coalesced", coalesced, 1},
    {"lapic-while-in-service", while_in_service, 1},
    {"lapic-highest-first", highest_first, 1},
    {"lapic-nesting", nesting, 1},
    {"lapic-task-priority", task_priority, 1},
    {"lapic-trigger-mode-register", trigger_mode, 1},
    {"lapic-software-disable", software_disable, 1},
    {"lapic-illegal-vector", illegal_vector, 1},
    {"lapic-illegal-register", illegal_register, 1},
    {"lapic-eoi-of-nothing", eoi_of_nothing, 1},
    {"lapic-lint0-fixed", lint0_fixed, 1},
    {0},
};
