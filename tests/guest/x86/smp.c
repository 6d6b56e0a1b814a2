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

void begin_on(u32 cpu, void (*function)(void)) {
    work[cpu] = function;
    ipi(cpu, WAKE);
}

void end_on(u32 cpu) {
    if (!wait_for((volatile u32 *)&work[cpu], 0)) fail("a CPU does not answer", cpu, 0);
}

void run_on(u32 cpu, void (*function)(void)) {
    begin_on(cpu, function);
    end_on(cpu);
}

// ---- Checks

static void fw_cfg_count(void) {
    expect("signature", fw_cfg(0, 4), 0x554d4551);
    expect("number of CPUs", fw_cfg(5, 2), cpus);
}

static void nmi_self(void) {
    for (u32 i = 1; i <= 3; i++) {
        ipi(lapic_id(), ICR_NMI);
        settle();
        expect_taken_on(0, NMI, i);
    }
}

static void nmi_passes_all(void) {
    // Neither the interrupt flag nor the priority holds it back.
    lapic_write(TPR, 0xff);
    ipi(lapic_id(), ICR_NMI);
    poke();
    poke();
    expect_taken_on(0, NMI, 1);
}

static void nmi_other(void) {
    for (u32 i = 1; i <= 3; i++) {
        ipi(1, ICR_NMI);
        wait_until(&vectors[NMI].taken[1], i);
        pass(500);
    }
    settle();
    expect_taken_on(1, NMI, 3);
    expect_taken(NMI, 3);
}

static void other(void) {
    for (u32 i = 1; i <= 20; i++) {
        ipi(1, 0x61);
        wait_until(&vectors[0x61].taken[1], i);
    }
    settle();
    expect_taken_on(1, 0x61, 20);
    expect_taken(0x61, 20);
}

static void answer(u32 vector) {
    if (cpu_number() != 0) ipi(0, vector + 1);
}

static void ping_pong(void) {
    vectors[0x61].hook = answer;
    for (u32 i = 1; i <= 20; i++) {
        ipi(1, 0x61);
        wait_until(&vectors[0x62].taken[0], i);
    }
    settle();
    expect_taken_on(1, 0x61, 20);
    expect_taken_on(0, 0x62, 20);
}

static void wait_all(u32 vector, u32 first, u32 want) {
    for (u32 cpu = first; cpu < cpus; cpu++) wait_until(&vectors[vector].taken[cpu], want);
    settle();
}

static void all(void) {
    ipi(0, ICR_ALL | 0x61);
    wait_all(0x61, 0, 1);
    for (u32 cpu = 0; cpu < cpus; cpu++) expect_taken_on(cpu, 0x61, 1);
}

static void others(void) {
    ipi(0, ICR_OTHERS | 0x61);
    wait_all(0x61, 1, 1);
    for (u32 cpu = 0; cpu < cpus; cpu++) expect_taken_on(cpu, 0x61, cpu != 0);
}

static void broadcast(void) {
    ipi(0xff, 0x61);
    wait_all(0x61, 0, 1);
    for (u32 cpu = 0; cpu < cpus; cpu++) expect_taken_on(cpu, 0x61, 1);
}

static void flat(void) {
    ipi(2, ICR_LOGICAL | 0x61);
    wait_until(&vectors[0x61].taken[1], 1);
    settle();
    expect_taken_on(1, 0x61, 1);
    expect_taken(0x61, 1);
    ipi(3, ICR_LOGICAL | 0x61);
    wait_until(&vectors[0x61].taken[1], 2);
    settle();
    expect_taken_on(0, 0x61, 1);
    expect_taken_on(1, 0x61, 2);
}

// Cluster 3, and in it a bit for each CPU.
static void join_cluster(void) {
    lapic_write(DFR, 0x0fffffff);
    lapic_write(LDR, 0x30000000u | 1u << (24 + cpu_number()));
}

static void cluster(void) {
    if (cpus > 4) return;
    for (u32 cpu = 1; cpu < cpus; cpu++) run_on(cpu, join_cluster);
    join_cluster();
    ipi(0x31, ICR_LOGICAL | 0x61);
    settle();
    expect_taken_on(0, 0x61, 1);
    expect_taken(0x61, 1);
    ipi(0x21, ICR_LOGICAL | 0x61);
    settle();
    expect_taken(0x61, 1);
    ipi(0x3f, ICR_LOGICAL | 0x61);
    wait_all(0x61, 1, 1);
    expect_taken_on(0, 0x61, 2);
    for (u32 cpu = 1; cpu < cpus; cpu++) expect_taken_on(cpu, 0x61, 1);
    for (u32 cpu = 1; cpu < cpus; cpu++) run_on(cpu, lapic_init);
}

static void lowest_priority(void) {
    for (u32 i = 1; i <= 4; i++) {
        ipi(0xff, ICR_LOGICAL | ICR_LOWEST | 0x61);
        wait_taken(0x61, i);
        settle();
        expect_taken(0x61, i);
    }
}

static void nobody(void) {
    ipi(0x7e, 0x61);
    ipi(0x80, ICR_LOGICAL | 0x61);
    settle();
    expect("Delivery Status", lapic_read(ICR) & ICR_PENDING, 0);
    expect_taken(0x61, 0);
}

static volatile u32 id_there;
static void find_id(void) { id_there = lapic_id(); }

static void identity(void) {
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        run_on(cpu, find_id);
        expect("APIC ID", id_there, cpu);
    }
}

static void not_bootstrap(void) { id_there = (u32)rdmsr(APIC_BASE_MSR); }

static void bootstrap(void) {
    run_on(1, not_bootstrap);
    expect("enabled, and not of the bootstrap CPU", id_there & 0xd00, 0x800);
}

static void timer_there(void) {
    lapic_write(TIMER_DIVIDE, 0xb);
    lapic_write(LVT_TIMER, 0x64);
    lapic_write(TIMER_INITIAL, 100000);
}

static void other_timer(void) {
    run_on(1, timer_there);
    wait_until(&vectors[0x64].taken[1], 1);
    settle();
    expect_taken_on(1, 0x64, 1);
    expect_taken(0x64, 1);
    run_on(1, lapic_init);
}

static void init_running(void) {
    // In the wait-for-SIPI state, with its APIC reset, it takes nothing.
    u32 before = started[1];
    ipi(1, ICR_INIT | ICR_ASSERT | ICR_LEVEL);
    pass(1000);
    ipi(1, 0x61);
    pass(3000);
    settle();
    expect_taken(0x61, 0);
    expect("started", started[1], before);
    start_cpu(1);
    expect("started again", started[1], before + 1);
    ipi(1, 0x62);
    wait_until(&vectors[0x62].taken[1], 1);
    settle();
    expect_taken_on(1, 0x62, 1);
}

static void init_deassert(void) {
    // A CPU that runs takes no notice of INIT level de-assert, nor of SIPI.
    u32 before = started[1];
    ipi(1, ICR_INIT | ICR_LEVEL);
    ipi(1, ICR_STARTUP | ICR_ASSERT | TRAMPOLINE >> 12);
    pass(3000);
    expect("started", started[1], before);
    ipi(1, 0x61);
    wait_until(&vectors[0x61].taken[1], 1);
    settle();
    expect_taken_on(1, 0x61, 1);
}

const struct check smp_checks[] = {
    {"fw-cfg-cpus", fw_cfg_count, 1},
    {"cpu-identity", identity, 2},
    {"cpu-bootstrap", bootstrap, 2},
    {"nmi-self", nmi_self, 1},
    {"nmi-passes-all", nmi_passes_all, 1},
    {"nmi-other", nmi_other, 2},
    {"ipi-other", other, 2},
    {"ipi-ping-pong", ping_pong, 2},
    {"ipi-all", all, 1},
    {"ipi-others", others, 1},
    {"ipi-broadcast", broadcast, 1},
    {"ipi-flat", flat, 2},
    {"ipi-cluster", cluster, 1},
    {"ipi-lowest-priority", lowest_priority, 1},
    {"ipi-nobody", nobody, 1},
    {"timer-of-other-cpu", other_timer, 2},
    {"init-of-running-cpu", init_running, 2},
    {"init-deassert", init_deassert, 2},
    {0},
};
