// What the checks are written with: access to the machine, the counts of interrupts, and the report.

#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef _Bool bool;
#define true 1
#define false 0
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

// ---- The processor (cpu.c)

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory"); }
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory"); }
static inline u8 in8(u16 port) {
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}
// One `mov` each, of which the emulators of all hypervisors know the simple forms.
static inline void write32(u32 address, u32 value) {
    __asm__ volatile("movl %0, (%1)" : : "a"(value), "d"(address) : "memory");
}
static inline u32 read32(u32 address) {
    u32 value;
    __asm__ volatile("movl (%1), %0" : "=a"(value) : "d"(address) : "memory");
    return value;
}
static inline void disable(void) { __asm__ volatile("cli" : : : "memory"); }
// The instruction after `sti` still runs with interrupts off.
static inline void enable(void) { __asm__ volatile("sti; nop" : : : "memory"); }
static inline void enable_and_halt(void) { __asm__ volatile("sti; hlt; cli" : : : "memory"); }
static inline void relax(void) { __asm__ volatile("pause" : : : "memory"); }
static inline u64 rdtsc(void) {
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}
static inline u64 rdmsr(u32 msr) {
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
    return (u64)high << 32 | low;
}
static inline void wrmsr(u32 msr, u64 value) {
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}
struct cpuid { u32 eax, ebx, ecx, edx; };
struct cpuid cpuid(u32 leaf);
/// Whether the write ended in a general protection fault.
bool wrmsr_faults(u32 msr, u64 value);
bool rdmsr_faults(u32 msr);

u32 cpu_number(void);
extern u32 cpus;
void interrupts_init(void);
void idt_load(void);

// ---- Time (time.c). Microseconds of the time stamp counter, as the 8254 shows them.

void time_init(void);
u64 microseconds(u32 count);
/// Lets time pass, with interrupts as they are.
void pass(u32 us);
/// Makes what is pending happen.
void poke(void);
/// Whether `*value` got to `want` before the patience ended. Interrupts are on meanwhile, and off afterwards.
bool wait_until(volatile u32 *value, u32 want);
/// The same for the interrupts at a vector, on whatever CPU.
bool wait_taken(u32 vector, u32 want);
/// Long enough for what was asked for to happen, or to happen once too often. Interrupts are on meanwhile.
void settle(void);
extern u32 tsc_per_us;
/// A counter's value, and when it was that.
struct sample { u64 tsc; u32 count; };
/// Of several looks, the one that was disturbed least.
struct sample sample(u32 (*read)(void));
/// How long between two samples, less than a second apart.
u32 microseconds_between(struct sample first, struct sample second);

// ---- Interrupts

#define VECTORS 256
/// How an interrupt is ended once its hook has run.
enum end { END_APIC, END_PIC, END_NONE };
struct vector {
    volatile u32 taken[MAX_CPUS];
    void (*hook)(u32 vector);
    u8 end;
    /// Whether a check has looked at the count.
    u8 known;
};
extern struct vector vectors[VECTORS];
u32 taken(u32 vector);

#define NMI 2
#define PIC_BASE 0x30
#define WAKE 0xf0
#define SPURIOUS 0xff

// ---- The report (report.c)

void print(const char *format, ...);
void fail(const char *what, u32 got, u32 want);
#define expect(what, got, want) \
    do { \
        u32 got_ = (got), want_ = (want); \
        if (got_ != want_) fail(what, got_, want_); \
    } while (0)
/// The interrupts at a vector since the check began, on all CPUs.
void expect_taken(u32 vector, u32 want);
void expect_taken_on(u32 cpu, u32 vector, u32 want);
/// What is not counted in this check.
void ignore_vector(u32 vector);
/// This machine does not have it.
void absent(const char *reason);
/// It cannot be judged on this machine.
void skip(const char *reason);

struct check {
    const char *name;
    void (*run)(void);
    u32 cpus;
};
extern const struct check pic_checks[], ioapic_checks[], lapic_checks[], timer_checks[], smp_checks[], mixed_checks[], x2apic_checks[];

// ---- Local APIC (lapic.c)

enum lapic {
    ID = 0x20, VERSION = 0x30, TPR = 0x80, PPR = 0xa0, EOI = 0xb0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0, ISR = 0x100,
    TMR = 0x180, IRR = 0x200, ESR = 0x280, ICR = 0x300, ICR_HIGH = 0x310, LVT_TIMER = 0x320, LVT_LINT0 = 0x350,
    LVT_LINT1 = 0x360, LVT_ERROR = 0x370, TIMER_INITIAL = 0x380, TIMER_CURRENT = 0x390, TIMER_DIVIDE = 0x3e0,
};
#define LAPIC 0xfee00000
#define LVT_MASKED (1 << 16)
#define LVT_EXTINT 0x700
#define ICR_NMI (4 << 8)
#define ICR_INIT (5 << 8)
#define ICR_STARTUP (6 << 8)
#define ICR_LOWEST (1 << 8)
#define ICR_LOGICAL (1 << 11)
#define ICR_PENDING (1 << 12)
#define ICR_ASSERT (1 << 14)
#define ICR_LEVEL (1 << 15)
#define ICR_SELF (1 << 18)
#define ICR_ALL (2 << 18)
#define ICR_OTHERS (3 << 18)
#define APIC_BASE_MSR 0x1b
#define APIC_BASE_X2 (1 << 10)
#define APIC_BASE_ENABLE (1 << 11)

/// The mode of this CPU's APIC.
extern bool x2apic_modes[MAX_CPUS];
#define x2apic x2apic_modes[cpu_number()]
u32 lapic_read(u32 reg);
void lapic_write(u32 reg, u32 value);
/// The bit of a vector in ISR, TMR or IRR.
u32 lapic_bit(u32 reg, u32 vector);
u32 lapic_id(void);
void lapic_eoi(void);
/// Writes the ICR and waits until it is idle.
void ipi(u32 destination, u32 low);
/// Software-enabled, all LVTs masked, nothing pending or in service.
void lapic_init(void);
/// A fact of some hosts: an interrupt is no longer in service once it has been delivered.
extern bool ends_on_delivery;
#define NEEDS_IN_SERVICE() \
    do { \
        if (ends_on_delivery) { skip("this CPU ends interrupts on delivery"); return; } \
    } while (0)

// ---- 8259 (pic.c), IOAPIC (ioapic.c), 8254 (time.c), secondary CPUs (smp.c)

void line(u32 pin, u32 level);
void pulse(u32 pin);
void pic_init(u8 icw4);
void pic_eoi(u32 irq);
void ioapic_init(void);
/// An entry for CPU 0.
void ioapic_route(u32 pin, u32 low);
void pit_one_shot(u16 ticks);
void pit_stop(void);

u32 fw_cfg_cpus(void);
void secondaries_start(void);
void start_cpu(u32 cpu);
/// Runs a function on another CPU, with interrupts off there, and waits until it has returned.
void run_on(u32 cpu, void (*function)(void));
/// The two halves of that.
void begin_on(u32 cpu, void (*function)(void));
void end_on(u32 cpu);
