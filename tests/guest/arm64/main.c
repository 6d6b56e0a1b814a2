// Random accesses to a GICv3 with an ITS, from as many CPUs as there are, one at a time; every answer goes into the log.
//
// Command line: SEED STEPS CPUS. What the architecture calls UNPREDICTABLE is left out, so that every model that keeps
// to it answers alike.
#include "its.h"
#include "lines.h"
#include "log.h"
#include "random.h"
#include "steps.h"

u64 random_state;
static u32 cpus;
static volatile u32 steps_left, turn, ready;

extern volatile u32 undefined;
extern void secondary(void);

static u64 psci_cpu_on(u64 cpu) {
    register u64 x0 asm("x0") = 0xc4000003;
    register u64 x1 asm("x1") = cpu;
    register u64 x2 asm("x2") = (u64)secondary;
    register u64 x3 asm("x3") = cpu;
    asm volatile("hvc #0" : "+r"(x0) : "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}

static void leave_instruction(u32 skip, u64 mask) {
    u64 elr, spsr;
    asm volatile("mrs %0, elr_el1\n mrs %1, spsr_el1" : "=r"(elr), "=r"(spsr));
    asm volatile("msr elr_el1, %0\n msr spsr_el1, %1" ::"r"(elr + skip), "r"(spsr | mask));
}

void on_sync(void) {
    u64 syndrome, elr;
    asm volatile("mrs %0, esr_el1\n mrs %1, elr_el1" : "=r"(syndrome), "=r"(elr));
    if (syndrome >> 26) {
        LOG("! exception", syndrome, elr);
        finish(1);
    }
    undefined = 1;
    leave_instruction(4, 0);
}

// One exception is taken in a window: both stay masked on return.
void on_irq(void) {
    taken(1);
    leave_instruction(0, 0xc0);
}

void on_fiq(void) {
    taken(0);
    leave_instruction(0, 0xc0);
}

static void pass(u32 cpu) {
    asm volatile("dsb sy" ::: "memory");
    turn = cpu;
}

static void wait(void) {
    while (turn != this_cpu())
        asm volatile("yield");
    asm volatile("dsb sy" ::: "memory");
}

void run(u64 cpu) {
    asm volatile("msr daifset, #0xf");
    if (cpu == 0) {
        random_state = argument(0) * 0x9e3779b97f4a7c15ul | 1;
        steps_left = argument(1);
        cpus = argument(2);
        LOG("cpus", cpus);
        lines_init();
        dist_init();
    }
    cpu_init(cpus);
    ready++;
    if (ready < cpus) {
        turn = ready;
        if (psci_cpu_on(ready))
            fail("no CPU", ready);
    } else {
        // All are there.
        its_init(cpus);
        pass(0);
    }
    for (;;) {
        wait();
        do {
            if (steps_left-- == 0) {
                final_reads();
                finish(0);
            }
            step();
        } while (!one_in(4));
        pass(below(cpus));
    }
}
