#include "steps.h"
#include "its.h"
#include "lines.h"
#include "log.h"
#include "random.h"

#define SGI_FRAME 0x10000
#define GICD_CTLR 0x0000
#define TYPER 0x0004
#define WAKER 0x0014
#define IGROUPR 0x0080
#define ISENABLER 0x0100
#define ICENABLER 0x0180
#define ISPENDR 0x0200
#define ICPENDR 0x0280
#define ISACTIVER 0x0300
#define ICACTIVER 0x0380
#define IPRIORITYR 0x0400
#define ITARGETSR 0x0800
#define ICFGR 0x0c00
#define IGRPMODR 0x0d00
#define NSACR 0x0e00
#define IROUTER 0x6000
#define PIDR2 0xffe8

#define SPURIOUS 1020

static u32 cpus;

// What a CPU has acknowledged and not ended, the last on top; and what has dropped its priority and is active still.
static struct taken {
    u32 depth, dropped;
    u32 intid[64], group[64], drops[64];
    u32 split;
} cpu_state[MAX_CPUS];

// A block of 32 interrupts: the SGIs and PPIs of a CPU, or SPIs. The sources are all in 0 and 1.
struct block {
    u32 number, cpu;
};

static struct block random_block(void) {
    struct block block = {0, below(cpus)};
    if (one_in(2))
        block.number = one_in(8) ? 1 + below(7) : 1;
    return block;
}

static u64 read_block(struct block block, u32 reg, u32 stride, u32 size) {
    if (block.number == 0)
        return redist_read(block.cpu, SGI_FRAME + reg, size);
    return dist_read(reg + block.number * stride, size);
}

static void write_block(struct block block, u32 reg, u32 stride, u32 size, u64 value) {
    if (block.number == 0)
        redist_write(block.cpu, SGI_FRAME + reg, size, value);
    else
        dist_write(reg + block.number * stride, size, value);
}

static u32 some_bits(void) {
    return draw() & draw() & draw();
}

// Five bits of priority are implemented, and the rest written as zero.
static u64 random_priority(void) {
    return below(32) << 3;
}

static void write_priority(struct block block) {
    u32 interrupt = below(32);
    if (one_in(2)) {
        write_block(block, IPRIORITYR + interrupt, 32, 1, random_priority());
    } else {
        u64 word = 0;
        for (u32 n = 0; n < 4; n++)
            word |= random_priority() << 8 * n;
        write_block(block, IPRIORITYR + (interrupt & ~3u), 32, 4, word);
    }
}

// Edge or level may change only where the interrupt is disabled, the group only where it is not active.
static void write_configuration(struct block block) {
    u32 half = below(2), mask = 0xffffu << 16 * half;
    if (block.number == 0 && half == 0)
        half = 1, mask = 0xffff0000; // those of SGIs are fixed
    u64 enabled = read_block(block, ISENABLER, 4, 4);
    write_block(block, ICENABLER, 4, 4, mask);
    write_block(block, ICFGR + 4 * half, 8, 4, draw() & 0xaaaaaaaa);
    write_block(block, ISENABLER, 4, 4, enabled & mask);
}

static void write_group(struct block block) {
    u64 active = read_block(block, ISACTIVER, 4, 4);
    u64 group = read_block(block, IGROUPR, 4, 4);
    u32 sgis = block.number == 0 ? 0xffff : 0;
    write_block(block, IGROUPR, 4, 4, group ^ (some_bits() & ~active & ~sgis));
}

static void write_route(void) {
    u32 intid = one_in(4) ? 32 + below(64) : spis[below(SPIS)];
    u64 affinity = one_in(8) ? 0x100 : below(cpus);
    if (one_in(3))
        dist_write(IROUTER + 8 * intid, 4, affinity);
    else
        dist_write(IROUTER + 8 * intid, 8, affinity);
    dist_read(IROUTER + 8 * intid, 8);
}

static void write_step(void) {
    struct block block = random_block();
    switch (below(16)) {
    case 0 ... 3: return write_block(block, ISENABLER, 4, 4, draw() & draw());
    case 4: return write_block(block, ICENABLER, 4, 4, some_bits());
    case 5 ... 6: return write_block(block, ISPENDR, 4, 4, some_bits() & draw());
    case 7: return write_block(block, ICPENDR, 4, 4, some_bits());
    case 8: return write_block(block, ISACTIVER, 4, 4, some_bits() & some_bits());
    case 9: return write_block(block, ICACTIVER, 4, 4, draw() & draw());
    case 10 ... 11: return write_priority(block);
    case 12: return write_configuration(block);
    case 13: return write_group(block);
    case 14: return write_route();
    default:
        dist_write(GICD_CTLR, 4, 0x10 | (one_in(4) ? below(4) : 3)); // ARE, and the enables of the groups
        dist_read(GICD_CTLR, 4);
    }
}

static void read_step(void) {
    static const u16 bits[] = {IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER, IGRPMODR};
    struct block block = random_block();
    switch (below(16)) {
    case 0 ... 9: read_block(block, bits[below(8)], 4, 4); return;
    case 10 ... 11: read_block(block, IPRIORITYR + 4 * below(8), 32, 4); return;
    case 12: read_block(block, IPRIORITYR + below(32), 32, 1); return;
    case 13: read_block(block, ICFGR + 4 * below(2), 8, 4); return;
    case 14: dist_read(IROUTER + 8 * (32 + below(64)), 8); return;
    default:
        // Identification, and registers that affinity routing or a single security state makes RAZ/WI.
        switch (below(8)) {
        case 0: dist_read(TYPER, 4); return;
        case 1: dist_read(GICD_CTLR, 4); return;
        case 2: dist_read(PIDR2, 4); return;
        case 3: dist_read(ITARGETSR + 4 * below(24), 4); return;
        case 4: redist_read(block.cpu, 0x0008, 8); return;
        case 5: redist_read(block.cpu, PIDR2, 4); return;
        case 6: read_block(block, NSACR + 4 * below(2), 8, 4); return;
        default: redist_read(block.cpu, WAKER, 4); return;
        }
    }
}

static void acknowledge(struct taken *mine, u32 group) {
    if (mine->depth == 64)
        return;
    u64 intid = icc_read(group ? IAR1 : IAR0);
    if (intid >= SPURIOUS && intid < 8192)
        return;
    mine->intid[mine->depth] = intid;
    mine->group[mine->depth++] = group;
}

static void end(struct taken *mine) {
    if (mine->depth == 0) {
        icc_write(below(2) ? EOIR1 : EOIR0, 1023); // has no effect
        return;
    }
    u32 intid = mine->intid[--mine->depth];
    icc_write(mine->group[mine->depth] ? EOIR1 : EOIR0, intid);
    if (mine->split && intid < 8192 && mine->dropped < 64)
        mine->drops[mine->dropped++] = intid;
}

static void deactivate(struct taken *mine) {
    if (!mine->split || mine->dropped == 0)
        return;
    u32 which = below(mine->dropped);
    u32 intid = mine->drops[which];
    mine->drops[which] = mine->drops[--mine->dropped];
    icc_write(DIR, intid);
}

// EOImode changes while nothing is active here.
static void write_control(struct taken *mine) {
    u64 value = icc_read(CTLR);
    if (one_in(2))
        value ^= 1; // CBPR
    if (mine->depth == 0) {
        while (mine->dropped)
            deactivate(mine);
        value ^= 2;
        mine->split = value >> 1 & 1;
    }
    icc_write(CTLR, value);
    icc_read(CTLR);
}

// Half of the SGIs are of Group 1 for ever. QEMU: ICC_SGI1R_EL1 reaches no SGI of Group 0, though with a single security
// state it reaches both.
#define SGIS_GROUP_1 0x00ff

static void send_sgi(void) {
    u32 reg = one_in(8) ? ASGI1R : one_in(3) ? SGI0R : SGI1R;
    u64 value = (u64)below(reg == SGI1R ? 8 : 16) << 24 | (draw() & draw() & 0xffff);
    if (one_in(3))
        value = (value & ~0xfffful) | 1ul << below(cpus);
    if (one_in(8))
        value |= 1ul << 40; // all but self
    if (one_in(8))
        value |= 1ul << (one_in(2) ? 16 : one_in(2) ? 32 : 48); // an affinity that nobody has
    icc_write(reg, value);
}

static void cpu_step(struct taken *mine) {
    static const u8 reads[] = {PMR, HPPIR0, HPPIR1, BPR0, BPR1, AP0R0, AP1R0, RPR, CTLR, SRE, IGRPEN0, IGRPEN1,
                               HPPIR0, HPPIR1, RPR, AP0R0, AP1R0, AP1R0};
    switch (below(24)) {
    case 0 ... 7: icc_read(reads[below(sizeof reads)]); return;
    case 8: icc_write(PMR, one_in(3) ? draw() & 0xff : 0xf8); return;
    case 9: icc_write(one_in(2) ? BPR0 : BPR1, below(8)); return;
    case 10: icc_write(below(2) ? IGRPEN0 : IGRPEN1, !one_in(4)); return;
    case 11: return write_control(mine);
    case 12: // only what was read may be written
        if (one_in(2))
            icc_write(AP1R0, icc_read(AP1R0));
        else
            icc_write(AP0R0, icc_read(AP0R0));
        return;
    case 13:
        if (one_in(8))
            icc_read(one_in(2) ? AP0R1 : AP1R3); // undefined with 32 priorities
        return;
    case 14 ... 15: return acknowledge(mine, below(2));
    case 16 ... 19: return end(mine);
    case 20: return deactivate(mine);
    default: return send_sgi();
    }
}

static u64 outputs(void) {
    u64 isr;
    asm volatile("isb\n mrs %0, isr_el1" : "=r"(isr));
    LOG("i", this_cpu(), isr >> 6 & 1, isr >> 7 & 1);
    return isr;
}

static volatile u32 exceptions;

void taken(u32 irq) {
    exceptions++;
    LOG(irq ? "ti" : "tf", this_cpu());
    acknowledge(&cpu_state[this_cpu()], irq);
}

// Opens the masks for a moment: what the status announces is taken, and only that.
static void window(void) {
    u32 before = exceptions;
    u64 isr = outputs();
    asm volatile("msr daifclr, #3\n isb\n msr daifset, #3" ::: "memory");
    if (exceptions - before != (isr >> 6 & 3 ? 1 : 0))
        fail("the status does not say what is taken", isr);
}

void step(void) {
    struct taken *mine = &cpu_state[this_cpu()];
    switch (below(20)) {
    case 0 ... 3: write_step(); break;
    case 4 ... 5: read_step(); break;
    case 6 ... 12: cpu_step(mine); break;
    case 13: ppi_set(below(PPIS), !one_in(3)); break;
    case 14: spi_set(below(SPIS), !one_in(3)); break;
    case 15: its_step(); break;
    default:
        window();
        if (one_in(2) && mine->depth)
            end(mine);
        return;
    }
    if (one_in(2))
        outputs();
}

void dist_init(void) {
    dist_read(GICD_CTLR, 4);
    dist_read(TYPER, 4);
    dist_write(GICD_CTLR, 4, 0x13);
    dist_read(GICD_CTLR, 4);
}

void cpu_init(u32 count) {
    struct block block = {0, this_cpu()};
    cpus = count;
    redist_read(block.cpu, WAKER, 4);
    redist_write(block.cpu, WAKER, 4, 0);
    redist_read(block.cpu, WAKER, 4);
    lpis_init();
    ppis_init();
    icc_write(SRE, 7);
    icc_read(SRE);
    icc_write(PMR, 0xf8);
    icc_write(IGRPEN0, 1);
    icc_write(IGRPEN1, 1);
    for (block.number = 0; block.number < (block.cpu ? 1 : 2); block.number++) {
        write_block(block, IGROUPR, 4, 4, ((draw() | draw()) & ~0xfffful) | SGIS_GROUP_1);
        for (u32 n = 0; n < 8; n++)
            write_priority(block);
        write_block(block, ISENABLER, 4, 4, draw() | draw());
    }
}

void final_reads(void) {
    static const u16 registers[] = {IGROUPR, ISENABLER, ISPENDR, ISACTIVER};
    for (u32 n = 0; n < 4; n++) {
        for (u32 cpu = 0; cpu < cpus; cpu++)
            read_block((struct block){0, cpu}, registers[n], 4, 4);
        for (u32 number = 1; number < 8; number++)
            read_block((struct block){number, 0}, registers[n], 4, 4);
    }
}
