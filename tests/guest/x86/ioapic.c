// The IOAPIC (82093AA data sheet, and the EOI register of later ones).

#include "guest.h"

#define IOREGSEL 0xfec00000
#define IOWIN 0xfec00010
#define IOEOI 0xfec00040
#define IOREDTBL 0x10
#define PINS 24
#define MASKED (1 << 16)
#define LEVEL (1 << 15)
#define REMOTE_IRR (1 << 14)
#define LOGICAL (1 << 11)

static u32 ioapic_read(u32 index) {
    write32(IOREGSEL, index);
    return read32(IOWIN);
}

static void ioapic_write(u32 index, u32 value) {
    write32(IOREGSEL, index);
    write32(IOWIN, value);
}

static void route(u32 pin, u32 destination, u32 low) {
    ioapic_write(IOREDTBL + 2 * pin + 1, destination << 24);
    ioapic_write(IOREDTBL + 2 * pin, low);
}

void ioapic_init(void) {
    // Edge-triggered, which clears Remote IRR.
    for (u32 pin = 0; pin < PINS; pin++) route(pin, 0, MASKED);
}

static void edge(void) {
    route(5, 0, 0x45);
    pulse(5);
    settle();
    expect_taken(0x45, 1);
}

static u32 rounds;
static void lower_after_three(u32 vector) {
    (void)vector;
    if (++rounds == 3) line(5, 0);
}

static void level_retrigger(void) {
    NEEDS_IN_SERVICE();
    rounds = 0;
    vectors[0x55].hook = lower_after_three;
    route(5, 0, LEVEL | 0x55);
    line(5, 1);
    settle();
    expect_taken(0x55, 3);
}

const struct check ioapic_checks[] = {
    {"ioapic-edge", edge, 1},
    {"ioapic-level-retrigger", level_retrigger, 1},
    {0},
};
