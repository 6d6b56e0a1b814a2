// What a CPU does when it is its turn.
#pragma once
#include "machine.h"

void dist_init(void);
// CPU interface and redistributor of this CPU.
void cpu_init(u32 cpus);
void step(void);
// An exception was taken: an IRQ, or an FIQ.
void taken(u32 irq);
void final_reads(void);
