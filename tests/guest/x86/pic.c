// The two 8259 (8259A data sheet), with the registers that make their inputs level-triggered (ELCR).

#include "guest.h"

static const u16 command[] = {0x20, 0xa0}, data[] = {0x21, 0xa1}, elcr[] = {0x4d0, 0x4d1};
#define EOI_COMMAND 0x20
#define CASCADE 2

void line(u32 pin, u32 level) { out8(0x2000 + pin, level); }

void pulse(u32 pin) {
    line(pin, 1);
    line(pin, 0);
}

/// All inputs masked and edge-triggered.
void pic_init(u8 icw4) {
    static const u8 icw3[] = {1 << CASCADE, CASCADE};
    for (u32 chip = 0; chip < 2; chip++) {
        out8(elcr[chip], 0);
        out8(command[chip], 0x11);
        out8(data[chip], PIC_BASE + 8 * chip);
        out8(data[chip], icw3[chip]);
        out8(data[chip], icw4);
        out8(data[chip], 0xff);
    }
}

void pic_eoi(u32 irq) {
    if (irq >= 8) out8(command[1], EOI_COMMAND);
    out8(command[0], EOI_COMMAND);
}

/// Unmasks these inputs, and lets the local APIC pass them on.
static void pic_open(u16 irqs, u16 level) {
    out8(elcr[0], level);
    out8(elcr[1], level >> 8);
    if (irqs >> 8) irqs |= 1 << CASCADE;
    out8(data[0], ~irqs);
    out8(data[1], ~(irqs >> 8));
    for (u32 irq = 0; irq < 16; irq++) vectors[PIC_BASE + irq].end = END_PIC;
    lapic_write(LVT_LINT0, LVT_EXTINT);
}

static void edge(void) {
    pic_open(1 << 5, 0);
    pulse(5);
    settle();
    expect_taken(PIC_BASE + 5, 1);
}

const struct check pic_checks[] = {
    {"pic-edge", edge, 1},
    {0},
};
