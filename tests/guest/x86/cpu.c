// The processor's tables, and what comes through them.

#include "guest.h"

extern u8 stubs[], stacks[];
extern u8 idt_pointer[];
extern struct gate { u16 low, selector, access, high; } idt[VECTORS];

struct vector vectors[VECTORS];

void idt_load(void) { __asm__ volatile("lidt (%0)" : : "r"(idt_pointer) : "memory"); }

void interrupts_init(void) {
    for (u32 vector = 0; vector < VECTORS; vector++) {
        u32 stub = (u32)stubs + vector * STUB_SIZE;
        idt[vector] = (struct gate){stub, CODE_SELECTOR, 0x8e00, stub >> 16};
    }
    idt_load();
}

u32 cpu_number(void) {
    u32 here = (u32)__builtin_frame_address(0);
    return (here - (u32)stacks) >> STACK_SHIFT;
}

u32 taken(u32 vector) {
    u32 sum = 0;
    for (u32 cpu = 0; cpu < MAX_CPUS; cpu++) sum += vectors[vector].taken[cpu];
    return sum;
}

/// Called by the stubs.
void interrupt(u32 number) {
    struct vector *vector = &vectors[number];
    vector->taken[cpu_number()]++;
    if (vector->hook) vector->hook(number);
    if (number == NMI || number == SPURIOUS) return;
    if (vector->end == END_APIC) lapic_eoi();
    if (vector->end == END_PIC) pic_eoi(number - PIC_BASE);
}

// Where a general protection fault goes on, if it is expected.
static volatile u32 fixup, faulted;

/// Called by the stubs: `frame` is the registers, the vector, the error code of those that have one, and the address.
void exception(u32 *frame) {
    if (frame[8] == 13 && fixup) {
        frame[10] = fixup;
        faulted = 1;
        return;
    }
    print("FAIL exception %u on CPU %u: %x %x %x\n", frame[8], cpu_number(), frame[9], frame[10], frame[11]);
    for (;;) out8(0xf4, 1);
}

bool wrmsr_faults(u32 msr, u64 value) {
    faulted = 0;
    __asm__ volatile("movl $1f, %3; wrmsr; 1: movl $0, %3"
                     : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)), "m"(fixup) : "memory");
    return faulted;
}

bool rdmsr_faults(u32 msr) {
    u32 low, high;
    faulted = 0;
    __asm__ volatile("movl $1f, %3; rdmsr; 1: movl $0, %3" : "=a"(low), "=d"(high) : "c"(msr), "m"(fixup) : "memory");
    return faulted;
}

struct cpuid cpuid(u32 leaf) {
    struct cpuid id;
    __asm__ volatile("cpuid" : "=a"(id.eax), "=b"(id.ebx), "=c"(id.ecx), "=d"(id.edx) : "a"(leaf), "c"(0));
    return id;
}
