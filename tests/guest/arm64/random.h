// One sequence of numbers for all CPUs: only the one whose turn it is draws.
#pragma once
#include "machine.h"

extern u64 random_state;

// xorshift64*.
static inline u64 draw(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1dul >> 8;
}

static inline u32 below(u32 limit) {
    return draw() % limit;
}

// True once in `n` times.
static inline u32 one_in(u32 n) {
    return below(n) == 0;
}
