// x2APIC mode. The first of these checks enters it on all CPUs, and the last leaves it.

#include "guest.h"

#define MSR(reg) (0x800 + ((reg) >> 4))
#define SELF_IPI_MSR 0x83f

static bool missing(void) {
    if (!(cpuid(1).ecx >> 21 & 1)) {
        absent("no x2APIC mode");
        return true;
    }
    return false;
}

static void enter_here(void) {
    wrmsr(APIC_BASE_MSR, rdmsr(APIC_BASE_MSR) | APIC_BASE_ENABLE | APIC_BASE_X2);
    x2apic = true;
    lapic_init();
}

static void enter(void) {
    if (missing()) return;
    expect("its MSRs are not there before", rdmsr_faults(MSR(ID)), 1);
    for (u32 cpu = 1; cpu < cpus; cpu++) run_on(cpu, enter_here);
    enter_here();
    expect("mode", rdmsr(APIC_BASE_MSR) & 0xd00, 0xd00);
    expect("ID", lapic_read(ID), 0);
    ipi(0, 0x61);
    settle();
    expect_taken_on(0, 0x61, 1);
}

static void identity(void) {
    if (missing()) return;
    struct cpuid topology = cpuid(0xb);
    if (cpuid(0).eax >= 0xb) expect("ID", lapic_read(ID), topology.edx);
    u32 id = lapic_read(ID);
    expect("LDR", lapic_read(LDR), (id >> 4) << 16 | 1u << (id & 15));
}

static void faults(void) {
    if (missing()) return;
    expect("a write of the ID", wrmsr_faults(MSR(ID), 0), 1);
    expect("a write of the LDR", wrmsr_faults(MSR(LDR), 0), 1);
    expect("a read of the DFR", rdmsr_faults(MSR(DFR)), 1);
    expect("a read of EOI", rdmsr_faults(MSR(EOI)), 1);
    expect("a read of self IPI", rdmsr_faults(SELF_IPI_MSR), 1);
    expect("a second half of the ICR", rdmsr_faults(MSR(ICR_HIGH)), 1);
    expect("back to xAPIC mode", wrmsr_faults(APIC_BASE_MSR, rdmsr(APIC_BASE_MSR) & ~(u64)APIC_BASE_X2), 1);
    expect("mode", rdmsr(APIC_BASE_MSR) & 0xd00, 0xd00);
}

static void reserved_bits(void) {
    if (missing()) return;
    bool eoi = wrmsr_faults(MSR(EOI), 1), tpr = wrmsr_faults(MSR(TPR), 0x100);
    if (!eoi && !tpr) {
        absent("reserved bits are not looked at here");
        return;
    }
    expect("an EOI of 1", eoi, 1);
    expect("a TPR of 0x100", tpr, 1);
    expect("an SVR of 0x10000", wrmsr_faults(MSR(SVR), 0x10000), 1);
    expect("an ESR of 1", wrmsr_faults(MSR(ESR), 1), 1);
    expect("a divide configuration of 0x10", wrmsr_faults(MSR(TIMER_DIVIDE), 0x10), 1);
    expect("a self IPI of 0x100", wrmsr_faults(SELF_IPI_MSR, 0x100), 1);
}

static void self_ipi(void) {
    if (missing()) return;
    for (u32 i = 1; i <= 3; i++) {
        wrmsr(SELF_IPI_MSR, 0x61);
        expect("IRR", lapic_bit(IRR, 0x61), 1);
        settle();
        expect_taken_on(0, 0x61, i);
    }
}

static void command(void) {
    if (missing()) return;
    ipi(0, ICR_SELF | 0x61);
    settle();
    expect_taken_on(0, 0x61, 1);
    ipi(0xffffffff, 0x62);
    for (u32 cpu = 0; cpu < cpus; cpu++) wait_until(&vectors[0x62].taken[cpu], 1);
    settle();
    for (u32 cpu = 0; cpu < cpus; cpu++) expect_taken_on(cpu, 0x62, 1);
    u64 value = 3ull << 32 | ICR_LOGICAL | 0x63;
    wrmsr(MSR(ICR), value);
    for (u32 cpu = 0; cpu < cpus; cpu++) wait_until(&vectors[0x63].taken[cpu], 1);
    settle();
    for (u32 cpu = 0; cpu < cpus; cpu++) expect_taken_on(cpu, 0x63, cpu < 2);
    expect("ICR", (u32)rdmsr(MSR(ICR)), (u32)value);
    expect("destination", (u32)(rdmsr(MSR(ICR)) >> 32), 3);
}

static void other(void) {
    if (missing()) return;
    for (u32 i = 1; i <= 10; i++) {
        ipi(1, 0x61);
        wait_until(&vectors[0x61].taken[1], i);
    }
    settle();
    expect_taken_on(1, 0x61, 10);
    expect_taken(0x61, 10);
}

static void task_priority(void) {
    if (missing()) return;
    lapic_write(TPR, 0x60);
    ipi(0, ICR_SELF | 0x61);
    settle();
    expect_taken(0x61, 0);
    lapic_write(TPR, 0);
    settle();
    expect_taken(0x61, 1);
}

static void message(void) {
    if (missing()) return;
    ioapic_route(5, 0x61);
    pulse(5);
    settle();
    expect_taken_on(0, 0x61, 1);
}

static void timer(void) {
    if (missing()) return;
    lapic_write(TIMER_DIVIDE, 0xb);
    lapic_write(LVT_TIMER, 0x61);
    lapic_write(TIMER_INITIAL, 100000);
    wait_until(&vectors[0x61].taken[0], 1);
    settle();
    expect_taken(0x61, 1);
    expect("current count", lapic_read(TIMER_CURRENT), 0);
}

static void leave_here(void) {
    wrmsr(APIC_BASE_MSR, rdmsr(APIC_BASE_MSR) & ~(u64)(APIC_BASE_X2 | APIC_BASE_ENABLE));
    x2apic = false;
    wrmsr(APIC_BASE_MSR, rdmsr(APIC_BASE_MSR) | APIC_BASE_ENABLE);
    lapic_init();
}

static void leave(void) {
    if (missing()) return;
    for (u32 cpu = 1; cpu < cpus; cpu++) run_on(cpu, leave_here);
    leave_here();
    expect("mode", rdmsr(APIC_BASE_MSR) & 0xd00, 0x900);
    expect("its MSRs are gone", rdmsr_faults(MSR(ID)), 1);
    expect("ID", lapic_id(), 0);
    for (u32 cpu = 0; cpu < cpus; cpu++) {
        ipi(cpu, 0x61);
        wait_until(&vectors[0x61].taken[cpu], 1);
    }
    settle();
    for (u32 cpu = 0; cpu < cpus; cpu++) expect_taken_on(cpu, 0x61, 1);
}

const struct check x2apic_checks[] = {
    {"x2apic-enter", enter, 1},
    {"x2apic-identity", identity, 1},
    {"x2apic-faults", faults, 1},
    {"x2apic-reserved-bits", reserved_bits, 1},
    {"x2apic-self-ipi", self_ipi, 1},
    {"x2apic-command", command, 1},
    {"x2apic-other", other, 2},
    {"x2apic-task-priority", task_priority, 1},
    {"x2apic-message", message, 1},
    {"x2apic-timer", timer, 1},
    {"x2apic-leave", leave, 1},
    {0},
};
