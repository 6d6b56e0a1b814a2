// Secondary CPUs: how they are started and given work, and interrupts between CPUs.

#include "guest.h"

u32 cpus = 1;
volatile u32 starting;
static volatile u32 started[MAX_CPUS];
static void (*volatile work[MAX_CPUS])(void);

extern u8 trampoline[], trampoline_end[];

static u32 fw_cfg(u16 key, u32 bytes) {
    u32 value = 0;
    out16(0x510, key);
    for (u32 i = 0; i < bytes; i++) value |= (u32)in8(0x511) << (8 * i);
    return value;
}

/// What fw_cfg says, where there is one: one CPU else.
u32 fw_cfg_cpus(void) { return fw_cfg(0, 4) == 0x554d4551 ? fw_cfg(5, 2) : 1; }

/// Called by the assembly.
void secondary(u32 cpu) {
    lapic_init();
    started[cpu]++;
    for (;;) {
        void (*function)(void) = work[cpu];
        if (function) {
            function();
            disable();
            work[cpu] = NULL;
        } else {
            enable_and_halt();
        }
    }
}

static bool wait_for(volatile u32 *value, u32 want) {
    u64 start = rdtsc(), length = microseconds(5000000);
    while (*value != want && rdtsc() - start < length) relax();
    return *value == want;
}

void start_cpu(u32 cpu) {
    u32 before = started[cpu];
    starting = cpu;
    ipi(cpu, ICR_INIT | ICR_ASSERT | ICR_LEVEL);
    pass(200);
    ipi(cpu, ICR_STARTUP | ICR_ASSERT | TRAMPOLINE >> 12);
    if (!wait_for(&started[cpu], before + 1)) print("FAIL CPU %u does not start\n", cpu);
}

void secondaries_start(void) {
    u8 *page = (u8 *)TRAMPOLINE;
    for (u8 *from = trampoline; from < trampoline_end; from++) *page++ = *from;
    for (u32 cpu = 1; cpu < cpus; cpu++) start_cpu(cpu);
}

void run_on(u32 cpu, void (*function)(void)) {
    work[cpu] = function;
    ipi(cpu, WAKE);
    if (!wait_for((volatile u32 *)&work[cpu], 0)) fail("a CPU does not answer", cpu, 0);
}

static void nmi_self(void) {
    for (u32 i = 0; i < 3; i++) {
        ipi(lapic_id(), ICR_NMI);
        settle();
    }
    expect_taken(NMI, 3);
}

static void nmi_other(void) {
    for (u32 i = 0; i < 3; i++) {
        ipi(1, ICR_NMI);
        settle();
    }
    expect_taken_on(1, NMI, 3);
}

const struct check smp_checks[] = {
    {"nmi-self", nmi_self, 1},
    {"nmi-other", nmi_other, 2},
    {0},
};
