// QEMU's `virt` with a GICv3 and an ITS, `highmem=off`: where things are, and how to reach them.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define GICD 0x08000000ul
#define GITS 0x08080000ul
#define GITS_TRANSLATER (GITS + 0x10040)
#define GICR(cpu) (0x080a0000ul + 0x20000ul * (cpu))
#define UART 0x09000000ul
#define RTC 0x09010000ul
#define GPIO 0x09030000ul
#define PCI_MEMORY 0x10000000ul
#define PCI_CONFIG(slot) (0x3f000000ul + ((u64)(slot) << 15))

// RAM that the program hands to the GIC, and the log.
#define DEVICE_TABLE 0x41000000ul
#define COLLECTION_TABLE 0x41100000ul
#define COMMANDS 0x41200000ul
#define PROPERTIES 0x41300000ul
#define PENDING(cpu) (0x41400000ul + 0x10000ul * (cpu))
#define ITT(device) (0x41600000ul + 0x40000ul * (device))
#define LOG_START 0x42000000ul
#define LOG_END 0x43f00000ul

#define MAX_CPUS 8

static inline u64 load(u64 address, u32 size) {
    switch (size) {
    case 1: return *(volatile u8 *)address;
    case 2: return *(volatile u16 *)address;
    case 4: return *(volatile u32 *)address;
    default: return *(volatile u64 *)address;
    }
}

static inline void store(u64 address, u32 size, u64 value) {
    switch (size) {
    case 1: *(volatile u8 *)address = value; break;
    case 2: *(volatile u16 *)address = value; break;
    case 4: *(volatile u32 *)address = value; break;
    default: *(volatile u64 *)address = value; break;
    }
    asm volatile("dsb sy" ::: "memory");
}

static inline u32 this_cpu(void) {
    u64 cpu;
    asm volatile("mrs %0, tpidr_el1" : "=r"(cpu));
    return cpu;
}

static inline u64 semihosting(u64 operation, const void *argument) {
    register u64 x0 asm("x0") = operation;
    register const void *x1 asm("x1") = argument;
    asm volatile("hlt #0xf000" : "+r"(x0) : "r"(x1) : "memory");
    return x0;
}

// Every system register of the CPU interface that exists at EL1 with 32 priorities: name in the log, name in the assembler.
#define ICC_REGISTERS(X) \
    X(PMR, icc_pmr_el1) X(IAR0, icc_iar0_el1) X(EOIR0, icc_eoir0_el1) X(HPPIR0, icc_hppir0_el1) X(BPR0, icc_bpr0_el1) \
    X(AP0R0, icc_ap0r0_el1) X(AP1R0, icc_ap1r0_el1) X(AP0R1, icc_ap0r1_el1) X(AP1R3, icc_ap1r3_el1) \
    X(DIR, icc_dir_el1) X(RPR, icc_rpr_el1) X(SGI1R, icc_sgi1r_el1) X(ASGI1R, icc_asgi1r_el1) X(SGI0R, icc_sgi0r_el1) \
    X(IAR1, icc_iar1_el1) X(EOIR1, icc_eoir1_el1) X(HPPIR1, icc_hppir1_el1) X(BPR1, icc_bpr1_el1) X(CTLR, icc_ctlr_el1) \
    X(SRE, icc_sre_el1) X(IGRPEN0, icc_igrpen0_el1) X(IGRPEN1, icc_igrpen1_el1)

#define X(name, register) name,
enum icc { ICC_REGISTERS(X) };
#undef X
