// Several things at once, and the devices of the machine.

#include "guest.h"

#define TICK 0x90

static void shadow(void) {
    // `sti` holds interrupts back for one instruction, so these two let none in.
    ipi(0, ICR_SELF | 0x61);
    for (u32 i = 0; i < 5; i++) __asm__ volatile("sti; cli" : : : "memory");
    expect_taken(0x61, 0);
    settle();
    expect_taken(0x61, 1);
}

static void flags(void) {
    // Flags that are loaded let interrupts in as `sti` does.
    ipi(0, ICR_SELF | 0x61);
    __asm__ volatile("pushf; orl $0x200, (%%esp); popf" : : : "memory", "cc");
    poke();
    poke();
    disable();
    expect_taken(0x61, 1);
}

static void all_at_once(void) {
    // From the 8259, the IOAPIC, the timer, an IPI and an NMI.
    vectors[PIC_BASE + 7].end = END_PIC;
    out8(0x21, 0x7f);
    lapic_write(LVT_LINT0, LVT_EXTINT);
    ioapic_route(5, 0x62);
    lapic_write(TIMER_DIVIDE, 0xb);
    lapic_write(LVT_TIMER, 0x72);
    lapic_write(TIMER_INITIAL, 1);
    ipi(0, ICR_SELF | 0x82);
    pulse(7);
    pulse(5);
    ipi(lapic_id(), ICR_NMI);
    wait_until(&vectors[0x72].taken[0], 1);
    settle();
    expect_taken(PIC_BASE + 7, 1);
    expect_taken(0x62, 1);
    expect_taken(0x72, 1);
    expect_taken(0x82, 1);
    expect_taken(NMI, 1);
}

static void many_edges(void) {
    ioapic_route(5, 0x62);
    for (u32 i = 1; i <= 100; i++) {
        pulse(5);
        wait_until(&vectors[0x62].taken[0], i);
    }
    settle();
    expect_taken(0x62, 100);
}

/// Halts until the count is there. Ticks wake the CPU that would sleep forever otherwise.
static u32 halt_until(volatile u32 *value, u32 want) {
    u32 ticks = vectors[TICK].taken[cpu_number()];
    lapic_write(TIMER_DIVIDE, 0xb);
    lapic_write(LVT_TIMER, 1 << 17 | TICK);
    lapic_write(TIMER_INITIAL, 1000000000);
    for (u32 patience = 5; patience && *value < want; patience--) enable_and_halt();
    lapic_write(TIMER_INITIAL, 0);
    return vectors[TICK].taken[cpu_number()] - ticks;
}

static void pulse_from_here(void) {
    for (u32 i = 1; i <= 20; i++) {
        pulse(5);
        wait_until(&vectors[0x62].taken[0], i);
    }
}

static void halted_line(void) {
    ioapic_route(5, 0x62);
    begin_on(1, pulse_from_here);
    for (u32 i = 1; i <= 20; i++) halt_until(&vectors[0x62].taken[0], i);
    end_on(1);
    settle();
    // The ticks tell how slow the host was, not what is right.
    ignore_vector(TICK);
    expect_taken(0x62, 20);
    expect_taken_on(0, 0x62, 20);
}

static void fire_at_0(void) {
    for (u32 i = 1; i <= 50; i++) {
        ipi(0, 0x62);
        wait_until(&vectors[0x62].taken[0], i);
    }
}

static void crossfire(void) {
    begin_on(1, fire_at_0);
    for (u32 i = 1; i <= 50; i++) {
        ipi(1, 0x61);
        wait_until(&vectors[0x61].taken[1], i);
    }
    enable();
    end_on(1);
    disable();
    settle();
    expect_taken_on(1, 0x61, 50);
    expect_taken_on(0, 0x62, 50);
}

#define SERIAL 0x3f8
#define IER 1
#define IIR 2
#define MCR 4

static volatile u32 identified;
static void identify(u32 vector) {
    (void)vector;
    identified = in8(SERIAL + IIR) & 0xf;
}

static void serial(void) {
    ioapic_route(4, 0x62);
    vectors[0x62].hook = identify;
    // OUT2, which lets the interrupt out on a PC.
    out8(SERIAL + MCR, 0x0b);
    for (u32 i = 1; i <= 3; i++) {
        identified = 0;
        out8(SERIAL + IER, 2);
        settle();
        expect_taken(0x62, i);
        expect("IIR", identified, 2);
        expect("IIR, read again", in8(SERIAL + IIR) & 0xf, 1);
        out8(SERIAL + IER, 0);
    }
    settle();
    expect_taken(0x62, 3);
}

const struct check mixed_checks[] = {
    {"mixed-sti-shadow", shadow, 1},
    {"mixed-flags", flags, 1},
    {"mixed-all-at-once", all_at_once, 1},
    {"mixed-many-edges", many_edges, 1},
    {"mixed-halted-line", halted_line, 2},
    {"mixed-crossfire", crossfire, 2},
    {"serial-transmitter", serial, 1},
    {0},
};
