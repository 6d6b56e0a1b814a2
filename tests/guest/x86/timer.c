// The local APIC's timer, and the 8254 as an interrupt source.

#include "guest.h"

#define PERIODIC (1 << 17)
#define TSC_DEADLINE (2 << 17)
#define TSC_DEADLINE_MSR 0x6e0
#define DIVIDE_1 0xb
#define DIVIDE_2 0x0
#define DIVIDE_128 0xa
#define VECTOR 0x71

/// How much the timer counts in a millisecond, divided by one.
static u32 per_ms;

static void timer(u32 lvt, u32 divide, u32 count) {
    lapic_write(TIMER_DIVIDE, divide);
    lapic_write(LVT_TIMER, lvt);
    lapic_write(TIMER_INITIAL, count);
}

static u32 current_count(void) { return lapic_read(TIMER_CURRENT); }

/// How much of a long count goes by in a millisecond.
static u32 rate(u32 divide) {
    timer(LVT_MASKED | VECTOR, divide, 0xffffffff);
    struct sample before = sample(current_count);
    pass(2000);
    struct sample after = sample(current_count);
    lapic_write(TIMER_INITIAL, 0);
    u32 counted = before.count - after.count, us = microseconds_between(before, after);
    return counted < 4000000 ? counted * 1000 / us : counted / us * 1000;
}

static void count(void) {
    timer(LVT_MASKED | VECTOR, DIVIDE_1, 0xffffffff);
    expect("initial count", lapic_read(TIMER_INITIAL), 0xffffffff);
    u32 before = lapic_read(TIMER_CURRENT);
    pass(20);
    expect("it counts down", lapic_read(TIMER_CURRENT) < before, 1);
    lapic_write(TIMER_INITIAL, 0);
    expect("a count of 0 stops it", lapic_read(TIMER_CURRENT), 0);
    settle();
}

static void divide(void) {
    u32 slow = rate(DIVIDE_128);
    u32 ratio = slow ? rate(DIVIDE_2) / slow : 0;
    expect("64 times as fast", ratio >= 50 && ratio <= 80, 1);
}

static void one_shot(void) {
    u64 start = rdtsc();
    timer(VECTOR, DIVIDE_1, per_ms * 2);
    wait_until(&vectors[VECTOR].taken[0], 1);
    expect("not before its time", rdtsc() - start > microseconds(1000), 1);
    expect("current count", lapic_read(TIMER_CURRENT), 0);
    pass(3000);
    settle();
    expect_taken(VECTOR, 1);
}

static void one_shot_again(void) {
    // A new count replaces the old one.
    timer(VECTOR, DIVIDE_1, per_ms * 4000);
    timer(VECTOR, DIVIDE_1, per_ms);
    wait_until(&vectors[VECTOR].taken[0], 1);
    pass(2000);
    settle();
    expect_taken(VECTOR, 1);
}

static volatile u32 late;
static void stop_after_five(u32 vector) {
    if (taken(vector) != 5) return;
    lapic_write(TIMER_INITIAL, 0);
    // If the host was slow, one more may be on its way already.
    late = lapic_bit(IRR, vector);
}

static void periodic(void) {
    vectors[VECTOR].hook = stop_after_five;
    u64 start = rdtsc();
    timer(PERIODIC | VECTOR, DIVIDE_1, per_ms * 5);
    wait_until(&vectors[VECTOR].taken[0], 5);
    u64 length = rdtsc() - start;
    expect("not before their time", length > microseconds(18000), 1);
    pass(12000);
    settle();
    expect_taken(VECTOR, 5 + late);
}

static void periodic_reloads(void) {
    timer(PERIODIC | LVT_MASKED | VECTOR, DIVIDE_1, per_ms);
    pass(3500);
    u32 current = lapic_read(TIMER_CURRENT);
    expect("current count", current > 0 && current <= per_ms, 1);
    lapic_write(TIMER_INITIAL, 0);
    settle();
}

static void masked(void) {
    timer(LVT_MASKED | VECTOR, DIVIDE_1, per_ms);
    pass(3000);
    settle();
    expect_taken(VECTOR, 0);
}

static void masked_is_lost(void) {
    // What was masked when it was due does not come later. The timer of a busy host may be late, and due only then.
    for (u32 i = 0; i < 5; i++) {
        vectors[VECTOR].taken[0] = 0;
        timer(LVT_MASKED | VECTOR, DIVIDE_1, per_ms);
        pass(3000);
        settle();
        lapic_write(LVT_TIMER, VECTOR);
        settle();
        ignore_vector(VECTOR);
        if (!taken(VECTOR)) return;
    }
    absent("a timer that was due while masked comes later here");
}

/// Whether what takes 5 ms cannot have happened yet. If it may have, it is forgotten: the host did something else.
static bool in_time(u64 start) {
    if (rdtsc() - start < microseconds(4000)) return true;
    settle();
    vectors[VECTOR].taken[0] = 0;
    return false;
}

static void stopped(void) {
    for (u32 i = 0; i < 10; i++) {
        u64 start = rdtsc();
        timer(VECTOR, DIVIDE_1, per_ms * 5);
        lapic_write(TIMER_INITIAL, 0);
        if (in_time(start)) break;
    }
    pass(7000);
    settle();
    expect_taken(VECTOR, 0);
}

static void halted(void) {
    timer(VECTOR, DIVIDE_1, per_ms);
    for (u32 patience = 10; patience && !taken(VECTOR); patience--) enable_and_halt();
    expect_taken(VECTOR, 1);
}

static bool no_deadline(void) {
    if (cpuid(1).ecx >> 24 & 1) return false;
    absent("no TSC-deadline timer");
    return true;
}

static void deadline(void) {
    if (no_deadline()) return;
    lapic_write(LVT_TIMER, TSC_DEADLINE | VECTOR);
    u64 due = rdtsc() + microseconds(1000);
    wrmsr(TSC_DEADLINE_MSR, due);
    expect("the MSR keeps it", rdmsr(TSC_DEADLINE_MSR) == due || rdtsc() > due, 1);
    wait_until(&vectors[VECTOR].taken[0], 1);
    expect("not before its time", rdtsc() >= due, 1);
    expect("the MSR is 0 again", (u32)rdmsr(TSC_DEADLINE_MSR), 0);
    pass(2000);
    settle();
    expect_taken(VECTOR, 1);
}

static void deadline_passed(void) {
    if (no_deadline()) return;
    lapic_write(LVT_TIMER, TSC_DEADLINE | VECTOR);
    wrmsr(TSC_DEADLINE_MSR, 1);
    wait_until(&vectors[VECTOR].taken[0], 1);
    settle();
    expect_taken(VECTOR, 1);
}

static void deadline_disarmed(void) {
    if (no_deadline()) return;
    lapic_write(LVT_TIMER, TSC_DEADLINE | VECTOR);
    for (u32 i = 0; i < 10; i++) {
        u64 start = rdtsc();
        wrmsr(TSC_DEADLINE_MSR, start + microseconds(5000));
        wrmsr(TSC_DEADLINE_MSR, 0);
        if (in_time(start)) break;
    }
    // The initial count is not used in this mode.
    lapic_write(TIMER_INITIAL, per_ms);
    expect("initial count", lapic_read(TIMER_INITIAL), 0);
    pass(7000);
    settle();
    expect_taken(VECTOR, 0);
    // In the other modes, the MSR is not.
    lapic_write(LVT_TIMER, VECTOR);
    wrmsr(TSC_DEADLINE_MSR, 1);
    expect("the MSR in one-shot mode", (u32)rdmsr(TSC_DEADLINE_MSR), 0);
    settle();
    expect_taken(VECTOR, 0);
}

// ---- 8254

static u32 pit_count(void) {
    out8(0x43, 0);
    u32 low = in8(0x40);
    return low | in8(0x40) << 8;
}

static void pit_counts(void) {
    u32 passed = 0xffff;
    // Unless the host lets it wait for longer than the counter takes.
    for (u32 i = 0; i < 10 && passed > 0x8000; i++) {
        pit_one_shot(0xffff);
        u32 before = pit_count();
        pass(200);
        passed = before - pit_count();
    }
    // 239, if nobody interferes.
    expect("it counts down", passed >= 200 && passed < 0x8000, 1);
    pit_one_shot(0xffff);
    out8(0x43, 0xe2);
    expect("status: output low, both bytes, mode 0", in8(0x40) & 0xbf, 0x30);
    // KVM's counts on when a control word has stopped it, 55 ms to the end of that; on a busy host the next check is at work by then.
    pit_one_shot(1);
    settle();
    pit_stop();
}

static void pit_through_8259(void) {
    vectors[PIC_BASE].end = END_PIC;
    out8(0x21, 0xfe);
    lapic_write(LVT_LINT0, LVT_EXTINT);
    for (u32 i = 1; i <= 2; i++) {
        pit_one_shot(1193);
        wait_until(&vectors[PIC_BASE].taken[0], i);
        settle();
        expect_taken(PIC_BASE, i);
    }
}

static void pit_through_ioapic(void) {
    ioapic_route(2, VECTOR);
    for (u32 i = 1; i <= 2; i++) {
        pit_one_shot(1193);
        wait_until(&vectors[VECTOR].taken[0], i);
        settle();
        expect_taken(VECTOR, i);
    }
}

static void stop_pit_after_five(u32 vector) {
    if (taken(vector) != 5) return;
    ioapic_route(2, LVT_MASKED);
    late = lapic_bit(IRR, vector);
}

static void pit_periodic(void) {
    vectors[VECTOR].hook = stop_pit_after_five;
    ioapic_route(2, VECTOR);
    u64 start = rdtsc();
    // Mode 2, 5 ms.
    out8(0x43, 0x34);
    out8(0x40, 5966 & 0xff);
    out8(0x40, 5966 >> 8);
    wait_until(&vectors[VECTOR].taken[0], 5);
    expect("not before their time", rdtsc() - start > microseconds(18000), 1);
    pass(12000);
    settle();
    expect_taken(VECTOR, 5 + late);
    pit_stop();
}

static void pit_gate(void) {
    // Channel 2 counts only while its gate is open.
    u8 port = in8(0x61) & 0xfc;
    out8(0x61, port);
    out8(0x43, 0xb0);
    out8(0x42, 0x00);
    out8(0x42, 0x10);
    expect("output", in8(0x61) >> 5 & 1, 0);
    pass(5000);
    if (in8(0x61) & 0x20) absent("a closed gate stops no counting here");
}

static void pit_output(void) {
    u8 port = in8(0x61) & 0xfc;
    out8(0x61, port | 1);
    out8(0x43, 0xb0);
    out8(0x42, 0x00);
    u64 start = rdtsc();
    out8(0x42, 0x10);
    while (!(in8(0x61) & 0x20) && rdtsc() - start < microseconds(1000000)) relax();
    expect("output after 3.4 ms", in8(0x61) >> 5 & 1, 1);
    expect("not before its time", rdtsc() - start > microseconds(3000), 1);
    out8(0x61, port);
}

static void calibrate(void) {
    per_ms = rate(DIVIDE_1);
    expect("it counts", per_ms > 0, 1);
    if (!per_ms) per_ms = 1000000;
    expect("a count that does not overflow", per_ms < 1000000000, 1);
}

const struct check timer_checks[] = {
    {"timer", calibrate, 1},
    {"timer-count", count, 1},
    {"timer-divide", divide, 1},
    {"timer-one-shot", one_shot, 1},
    {"timer-one-shot-again", one_shot_again, 1},
    {"timer-periodic", periodic, 1},
    {"timer-periodic-reloads", periodic_reloads, 1},
    {"timer-masked", masked, 1},
    {"timer-masked-is-lost", masked_is_lost, 1},
    {"timer-stopped", stopped, 1},
    {"timer-wakes", halted, 1},
    {"timer-deadline", deadline, 1},
    {"timer-deadline-passed", deadline_passed, 1},
    {"timer-deadline-disarmed", deadline_disarmed, 1},
    {"pit-counts", pit_counts, 1},
    {"pit-through-8259", pit_through_8259, 1},
    {"pit-through-ioapic", pit_through_ioapic, 1},
    {"pit-periodic", pit_periodic, 1},
    {"pit-gate", pit_gate, 1},
    {"pit-output", pit_output, 1},
    {0},
};
