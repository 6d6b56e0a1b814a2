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
#define LOW_ACTIVE (1 << 13)
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

void ioapic_route(u32 pin, u32 low) { route(pin, 0, low); }

void ioapic_init(void) {
    // Edge-triggered, which clears Remote IRR.
    for (u32 pin = 0; pin < PINS; pin++) route(pin, 0, MASKED);
}

static u32 entry(u32 pin) { return ioapic_read(IOREDTBL + 2 * pin); }

static u32 remote_irr(u32 pin) { return !!(entry(pin) & REMOTE_IRR); }

static void identification(void) {
    u32 before = ioapic_read(0);
    ioapic_write(0, 5 << 24);
    expect("ID", ioapic_read(0) >> 24 & 0xf, 5);
    ioapic_write(0, before);
    u32 version = ioapic_read(1);
    expect("a known version", (version & 0xff) == 0x11 || (version & 0xff) == 0x20, 1);
    expect("last entry", version >> 16 & 0xff, PINS - 1);
    ioapic_write(1, ~version);
    expect("version once more", ioapic_read(1), version);
}

static void table(void) {
    for (u32 pin = 0; pin < PINS; pin++) route(pin, pin + 1, MASKED | (0x40 + pin));
    for (u32 pin = 0; pin < PINS; pin++) {
        expect("low half", entry(pin), MASKED | (0x40 + pin));
        expect("destination", ioapic_read(IOREDTBL + 2 * pin + 1) >> 24, pin + 1);
    }
}

static void edge(void) {
    route(5, 0, 0x45);
    pulse(5);
    settle();
    expect_taken(0x45, 1);
    pulse(5);
    settle();
    expect_taken(0x45, 2);
    expect("Remote IRR", remote_irr(5), 0);
}

static void edge_held(void) {
    route(5, 0, 0x45);
    line(5, 1);
    settle();
    expect_taken(0x45, 1);
    line(5, 0);
    line(5, 1);
    settle();
    expect_taken(0x45, 2);
}

static void every_line(void) {
    static const u8 lines[] = {3, 5, 6, 7, 10, 11, 14, 15};
    for (u32 i = 0; i < COUNT(lines); i++) route(lines[i], 0, 0x40 + lines[i]);
    for (u32 i = 0; i < COUNT(lines); i++) {
        pulse(lines[i]);
        settle();
        expect_taken(0x40 + lines[i], 1);
    }
}

static void masked_edge_lost(void) {
    route(5, 0, MASKED | 0x45);
    pulse(5);
    route(5, 0, 0x45);
    settle();
    expect_taken(0x45, 0);
    pulse(5);
    settle();
    expect_taken(0x45, 1);
}

static void edge_coalesced(void) {
    route(5, 0, 0x45);
    pulse(5);
    expect("IRR", lapic_bit(IRR, 0x45), 1);
    pulse(5);
    pulse(5);
    settle();
    expect_taken(0x45, 1);
}

static void pulse_again(u32 vector) {
    if (taken(vector) == 1) {
        pulse(5);
        pulse(5);
    }
}

static void edge_in_service(void) {
    route(5, 0, 0x45);
    vectors[0x45].hook = pulse_again;
    pulse(5);
    settle();
    expect_taken(0x45, 2);
}

static void lower_after_three(u32 vector) {
    if (taken(vector) == 3) line(5, 0);
}

static void level_retrigger(void) {
    NEEDS_IN_SERVICE();
    vectors[0x55].hook = lower_after_three;
    route(5, 0, LEVEL | 0x55);
    line(5, 1);
    settle();
    expect_taken(0x55, 3);
    expect("Remote IRR", remote_irr(5), 0);
}

static volatile u32 during;
static void lower(u32 vector) {
    (void)vector;
    line(5, 0);
    during = remote_irr(5);
}

static void masked_level(void) {
    NEEDS_IN_SERVICE();
    vectors[0x55].hook = lower;
    route(5, 0, MASKED | LEVEL | 0x55);
    line(5, 1);
    settle();
    expect_taken(0x55, 0);
    route(5, 0, LEVEL | 0x55);
    settle();
    expect_taken(0x55, 1);
    expect("Remote IRR in service", during, 1);
    expect("Remote IRR", remote_irr(5), 0);
}

static void masked_level_gone(void) {
    route(5, 0, MASKED | LEVEL | 0x55);
    line(5, 1);
    line(5, 0);
    route(5, 0, LEVEL | 0x55);
    settle();
    expect_taken(0x55, 0);
}

static void level_gone(void) {
    // What has been sent cannot be called back.
    route(5, 0, LEVEL | 0x55);
    line(5, 1);
    line(5, 0);
    expect("Remote IRR", remote_irr(5), 1);
    settle();
    expect_taken(0x55, 1);
    expect("Remote IRR", remote_irr(5), 0);
}

static void level_coalesced(void) {
    route(5, 0, LEVEL | 0x55);
    for (u32 i = 0; i < 3; i++) pulse(5);
    settle();
    expect_taken(0x55, 1);
}

static void raise_again(u32 vector) {
    // Down and up while in service: it is up at the EOI, so it comes once more.
    line(5, 0);
    if (taken(vector) == 1) line(5, 1);
}

static void level_in_service(void) {
    NEEDS_IN_SERVICE();
    vectors[0x55].hook = raise_again;
    route(5, 0, LEVEL | 0x55);
    line(5, 1);
    settle();
    expect_taken(0x55, 2);
}

static void mask_in_service(u32 vector) {
    if (taken(vector) == 1) route(5, 0, MASKED | LEVEL | 0x55);
    else line(5, 0);
}

static void level_masked_by_handler(void) {
    // As drivers do that handle an interrupt later: mask, EOI, and unmask when the device has been served.
    NEEDS_IN_SERVICE();
    vectors[0x55].hook = mask_in_service;
    route(5, 0, LEVEL | 0x55);
    line(5, 1);
    settle();
    expect_taken(0x55, 1);
    route(5, 0, LEVEL | 0x55);
    settle();
    expect_taken(0x55, 2);
}

static void remote_irr_read_only(void) {
    route(5, 0, LEVEL | REMOTE_IRR | ICR_PENDING | 0x55);
    expect("Remote IRR", remote_irr(5), 0);
    expect("Delivery Status", entry(5) & ICR_PENDING, 0);
    line(5, 1);
    line(5, 0);
    expect("Remote IRR", remote_irr(5), 1);
    route(5, 0, LEVEL | 0x55);
    expect("Remote IRR after 0", remote_irr(5), 1);
    settle();
    expect_taken(0x55, 1);
    expect("Remote IRR", remote_irr(5), 0);
}

static void remote_irr_of_edge(void) {
    route(5, 0, LEVEL | 0x55);
    line(5, 1);
    line(5, 0);
    expect("Remote IRR", remote_irr(5), 1);
    route(5, 0, MASKED | 0x55);
    expect("Remote IRR of an edge", remote_irr(5), 0);
    settle();
    expect_taken(0x55, 1);
}

static void trigger_modes(void) {
    route(5, 0, LEVEL | 0x55);
    pulse(5);
    expect("IRR", lapic_bit(IRR, 0x55), 1);
    expect("TMR of a level", lapic_bit(TMR, 0x55), 1);
    settle();
    expect_taken(0x55, 1);
    route(5, 0, 0x55);
    pulse(5);
    expect("IRR", lapic_bit(IRR, 0x55), 1);
    expect("TMR of an edge", lapic_bit(TMR, 0x55), 0);
    settle();
    expect_taken(0x55, 2);
}

static void new_vector(void) {
    // Only the route at the time of the unmask counts.
    NEEDS_IN_SERVICE();
    vectors[0x56].hook = lower;
    route(5, 0, MASKED | LEVEL | 0x55);
    line(5, 1);
    route(5, 0, MASKED | LEVEL | 0x56);
    route(5, 0, LEVEL | 0x56);
    settle();
    expect_taken(0x56, 1);
}

static void shared_vector(void) {
    route(5, 0, LEVEL | 0x55);
    route(7, 0, LEVEL | 0x55);
    pulse(5);
    pulse(7);
    expect("Remote IRR of one", remote_irr(5), 1);
    expect("Remote IRR of the other", remote_irr(7), 1);
    settle();
    expect_taken(0x55, 1);
    expect("Remote IRR of one after EOI", remote_irr(5), 0);
    expect("Remote IRR of the other after EOI", remote_irr(7), 0);
}

static void eoi_register(void) {
    if ((ioapic_read(1) & 0xff) < 0x20) {
        absent("no EOI register in this version");
        return;
    }
    route(5, 0, LEVEL | 0x55);
    line(5, 1);
    write32(IOEOI, 0x56);
    expect("Remote IRR after EOI of another", remote_irr(5), 1);
    write32(IOEOI, 0x55);
    expect("Remote IRR with the line up", remote_irr(5), 1);
    line(5, 0);
    write32(IOEOI, 0x55);
    expect("Remote IRR", remote_irr(5), 0);
    settle();
    expect_taken(0x55, 1);
}

static void suppressed_broadcast(void) {
    if (!(lapic_read(VERSION) >> 24 & 1) || (ioapic_read(1) & 0xff) < 0x20) {
        absent("EOI broadcasts cannot be suppressed");
        return;
    }
    NEEDS_IN_SERVICE();
    lapic_write(SVR, 0x1100 | SPURIOUS);
    route(5, 0, LEVEL | 0x55);
    line(5, 1);
    settle();
    expect_taken(0x55, 1);
    expect("Remote IRR", remote_irr(5), 1);
    line(5, 0);
    write32(IOEOI, 0x55);
    expect("Remote IRR after EOI", remote_irr(5), 0);
    settle();
    expect_taken(0x55, 1);
}

static void low_active(void) {
    line(5, 1);
    route(5, 0, LOW_ACTIVE | 0x45);
    line(5, 0);
    settle();
    u32 fall = taken(0x45);
    line(5, 1);
    settle();
    ignore_vector(0x45);
    if (!fall && taken(0x45) == 1) {
        absent("the polarity changes nothing here");
        return;
    }
    expect("interrupts of a fall", fall, 1);
    expect_taken(0x45, 1);
}

static void nmi(void) {
    route(5, 0, 4 << 8 | 0x45);
    pulse(5);
    settle();
    expect_taken(NMI, 1);
}

static void logical(void) {
    route(5, 1, LOGICAL | 0x45);
    pulse(5);
    settle();
    expect_taken_on(0, 0x45, 1);
    // The logical destination of nobody.
    route(5, 0x80, LOGICAL | 0x45);
    pulse(5);
    settle();
    expect_taken(0x45, 1);
}

static void logical_both(void) {
    route(5, 3, LOGICAL | 0x45);
    pulse(5);
    wait_until(&vectors[0x45].taken[1], 1);
    settle();
    expect_taken_on(0, 0x45, 1);
    expect_taken_on(1, 0x45, 1);
}

static void other_cpu(void) {
    route(5, 1, 0x45);
    for (u32 i = 1; i <= 5; i++) {
        pulse(5);
        wait_until(&vectors[0x45].taken[1], i);
    }
    settle();
    expect_taken_on(1, 0x45, 5);
    expect_taken(0x45, 5);
}

static volatile u32 go;
static void hold_until_go(void) {
    while (!go) poke();
}

static void other_cpu_level(void) {
    NEEDS_IN_SERVICE();
    vectors[0x55].hook = lower_after_three;
    route(5, 1, LEVEL | 0x55);
    // The other CPU takes it when this one has let go of the tester: not while it raises the line.
    go = 0;
    begin_on(1, hold_until_go);
    line(5, 1);
    go = 1;
    end_on(1);
    wait_until(&vectors[0x55].taken[1], 3);
    settle();
    expect_taken_on(1, 0x55, 3);
    expect_taken(0x55, 3);
}

static void other_cpu_level_at_once(void) {
    // One CPU lowers the line while another one may still be raising it. That the lowering takes a moment costs
    // interrupts, but the line ends low and the interrupts end.
    NEEDS_IN_SERVICE();
    u32 surplus = 0;
    vectors[0x55].hook = lower_after_three;
    route(5, 1, LEVEL | 0x55);
    for (u32 i = 0; i < 10; i++) {
        vectors[0x55].taken[1] = 0;
        line(5, 1);
        wait_until(&vectors[0x55].taken[1], 3);
        u32 before, rounds = 0;
        do {
            before = taken(0x55);
            for (u32 j = 0; j < 10; j++) settle();
        } while (taken(0x55) != before && ++rounds < 100);
        expect("the interrupts end", rounds < 100, 1);
        surplus += taken(0x55) - 3;
    }
    ignore_vector(0x55);
    expect("Remote IRR", remote_irr(5), 0);
    if (surplus) print("note: %u interrupts of a level that was being lowered\n", surplus);
}

static void all_cpus(void) {
    route(5, 0xff, 0x45);
    pulse(5);
    for (u32 cpu = 0; cpu < cpus; cpu++) wait_until(&vectors[0x45].taken[cpu], 1);
    settle();
    for (u32 cpu = 0; cpu < cpus; cpu++) expect_taken_on(cpu, 0x45, 1);
}

static void lowest_priority(void) {
    route(5, 0xff, LOGICAL | 1 << 8 | 0x45);
    for (u32 i = 1; i <= 4; i++) {
        pulse(5);
        wait_taken(0x45, i);
        settle();
        expect_taken(0x45, i);
    }
}

const struct check ioapic_checks[] = {
    {"ioapic-identification", identification, 1},
    {"ioapic-table", table, 1},
    {"ioapic-edge", edge, 1},
    {"ioapic-edge-held", edge_held, 1},
    {"ioapic-every-line", every_line, 1},
    {"ioapic-masked-edge-lost", masked_edge_lost, 1},
    {"ioapic-edge-coalesced", edge_coalesced, 1},
    {"ioapic-edge-in-service", edge_in_service, 1},
    {"ioapic-level-retrigger", level_retrigger, 1},
    {"ioapic-masked-level", masked_level, 1},
    {"ioapic-masked-level-gone", masked_level_gone, 1},
    {"ioapic-level-gone", level_gone, 1},
    {"ioapic-level-coalesced", level_coalesced, 1},
    {"ioapic-level-in-service", level_in_service, 1},
    {"ioapic-level-masked-by-handler", level_masked_by_handler, 1},
    {"ioapic-remote-irr-read-only", remote_irr_read_only, 1},
    {"ioapic-remote-irr-of-edge", remote_irr_of_edge, 1},
    {"ioapic-trigger-mode-register", trigger_modes, 1},
    {"ioapic-new-vector", new_vector, 1},
    {"ioapic-shared-vector", shared_vector, 1},
    {"ioapic-eoi-register", eoi_register, 1},
    {"ioapic-suppressed-eoi-broadcast", suppressed_broadcast, 1},
    {"ioapic-low-active", low_active, 1},
    {"ioapic-nmi", nmi, 1},
    {"ioapic-logical", logical, 1},
    {"ioapic-logical-both", logical_both, 2},
    {"ioapic-other-cpu", other_cpu, 2},
    {"ioapic-other-cpu-level", other_cpu_level, 2},
    {"ioapic-other-cpu-level-at-once", other_cpu_level_at_once, 2},
    {"ioapic-all-cpus", all_cpus, 1},
    {"ioapic-lowest-priority", lowest_priority, 1},
    {0},
};
