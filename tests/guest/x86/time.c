// Time: the 8254, and the time stamp counter by its measure.

#include "guest.h"

#define CHANNEL_0 0x40
#define CHANNEL_2 0x42
#define CONTROL 0x43
#define PORT_B 0x61
#define PORT_B_OUT2 0x20

u32 tsc_per_us = 1000;

u64 microseconds(u32 count) { return (u64)tsc_per_us * count; }

/// One-shot: mode 0, at 1.193182 MHz.
void pit_one_shot(u16 ticks) {
    out8(CONTROL, 0x30);
    out8(CHANNEL_0, ticks);
    out8(CHANNEL_0, ticks >> 8);
}

/// Counts no more.
void pit_stop(void) { out8(CONTROL, 0x30); }

/// Measures 5 ms of channel 2. Where that shows nothing sensible, a guess has to do: checks of the 8254 will tell.
void time_init(void) {
    u32 ticks = 5966;
    out8(PORT_B, (in8(PORT_B) & 0xfc) | 1);
    out8(CONTROL, 0xb0);
    out8(CHANNEL_2, ticks);
    u64 start = rdtsc();
    out8(CHANNEL_2, ticks >> 8);
    u32 patience = 1000000;
    while (patience && !(in8(PORT_B) & PORT_B_OUT2)) patience--;
    u64 passed = rdtsc() - start;
    if (patience && passed >= 5000 * 100 && passed < (u64)5000 * 20000) tsc_per_us = (u32)passed / 5000;
}

void pass(u32 us) {
    u64 start = rdtsc(), length = microseconds(us);
    while (rdtsc() - start < length) relax();
}

/// An exit to whoever emulates the machine: where a guest's code runs on an emulator, only then does it look for interrupts.
void poke(void) { in8(0x80); }

bool wait_until(volatile u32 *value, u32 want) {
    u64 start = rdtsc(), length = microseconds(5000000);
    bool there;
    enable();
    while (!(there = *value >= want) && rdtsc() - start < length) poke();
    disable();
    return there;
}

void settle(void) {
    u64 start = rdtsc(), length = microseconds(300);
    enable();
    for (u32 i = 0; i < 16; i++) poke();
    while (rdtsc() - start < length) poke();
    disable();
}
