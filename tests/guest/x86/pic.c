// The two 8259 (8259A data sheet), with the registers that make their inputs level-triggered (ELCR).

#include "guest.h"

static const u16 command[] = {0x20, 0xa0}, data[] = {0x21, 0xa1}, elcr[] = {0x4d0, 0x4d1};
#define EOI_COMMAND 0x20
#define CASCADE 2

void line(u32 pin, u32 level) { out8(0x2000 + pin, level); }

void pulse(u32 pin) {
    line(pin, 1);
    line(pin, 0);
}

/// All inputs masked and edge-triggered.
void pic_init(u8 icw4) {
    static const u8 icw3[] = {1 << CASCADE, CASCADE};
    for (u32 chip = 0; chip < 2; chip++) {
        out8(elcr[chip], 0);
        out8(command[chip], 0x11);
        out8(data[chip], PIC_BASE + 8 * chip);
        out8(data[chip], icw3[chip]);
        out8(data[chip], icw4);
        out8(data[chip], 0xff);
        // The data sheet does not promise that nothing is in service now.
        for (u32 irq = 0; irq < 8; irq++) out8(command[chip], 0x60 | irq);
    }
}

void pic_eoi(u32 irq) {
    if (irq >= 8) out8(command[1], EOI_COMMAND);
    out8(command[0], EOI_COMMAND);
}

/// Unmasks these inputs, and lets the local APIC pass them on.
static void pic_open(u16 irqs, u16 level) {
    out8(elcr[0], level);
    out8(elcr[1], level >> 8);
    if (irqs >> 8) irqs |= 1 << CASCADE;
    out8(data[0], ~irqs);
    out8(data[1], ~(irqs >> 8));
    for (u32 irq = 0; irq < 16; irq++) vectors[PIC_BASE + irq].end = END_PIC;
    lapic_write(LVT_LINT0, LVT_EXTINT);
}

static u32 pic_irr(u32 chip) {
    out8(command[chip], 0x0a);
    return in8(command[chip]);
}

static u32 pic_isr(u32 chip) {
    out8(command[chip], 0x0b);
    return in8(command[chip]);
}

/// Lets interrupts in, from within a handler.
static void window(void) {
    enable();
    poke();
    poke();
    disable();
}

// In which order interrupts came, one hexadecimal digit each.
static volatile u32 order;
static void log_order(u32 vector) { order = order << 4 | (vector - PIC_BASE); }
static void log_orders(void) {
    order = 0;
    for (u32 irq = 0; irq < 16; irq++) vectors[PIC_BASE + irq].hook = log_order;
}

static void mask_register(void) {
    for (u32 chip = 0; chip < 2; chip++) {
        out8(data[chip], 0xa5);
        expect("IMR", in8(data[chip]), 0xa5);
        out8(data[chip], 0xff);
        expect("IMR", in8(data[chip]), 0xff);
    }
}

static void elcr_fixed(void) {
    out8(elcr[0], 0xff);
    out8(elcr[1], 0xff);
    expect("ELCR 1", in8(elcr[0]), 0xf8);
    expect("ELCR 2", in8(elcr[1]), 0xde);
    out8(elcr[0], 0);
    out8(elcr[1], 0);
    expect("ELCR 1", in8(elcr[0]), 0);
}

static void edge(void) {
    pic_open(1 << 5, 0);
    pulse(5);
    settle();
    expect_taken(PIC_BASE + 5, 1);
    pulse(5);
    settle();
    expect_taken(PIC_BASE + 5, 2);
}

static void edge_held(void) {
    pic_open(1 << 5, 0);
    line(5, 1);
    settle();
    expect_taken(PIC_BASE + 5, 1);
    line(5, 1);
    settle();
    expect_taken(PIC_BASE + 5, 1);
    line(5, 0);
    line(5, 1);
    settle();
    expect_taken(PIC_BASE + 5, 2);
}

static void edge_stays(void) {
    // Pulsed while masked, with interrupts off: IRR keeps it until it is acknowledged.
    pic_open(0, 0);
    pulse(5);
    expect("IRR", pic_irr(0) >> 5 & 1, 1);
    settle();
    expect_taken(PIC_BASE + 5, 0);
    pic_open(1 << 5, 0);
    settle();
    expect_taken(PIC_BASE + 5, 1);
    expect("IRR", pic_irr(0) >> 5 & 1, 0);
}

static void edge_coalesced(void) {
    pic_open(1 << 5, 0);
    pulse(5);
    pulse(5);
    pulse(5);
    settle();
    expect_taken(PIC_BASE + 5, 1);
}

static void pulse_once(u32 vector) {
    if (taken(vector) == 1) pulse(vector - PIC_BASE);
}

static void edge_in_service(void) {
    pic_open(1 << 5, 0);
    vectors[PIC_BASE + 5].hook = pulse_once;
    pulse(5);
    settle();
    expect_taken(PIC_BASE + 5, 2);
}

static void lower_after_three(u32 vector) {
    if (taken(vector) == 3) line(vector - PIC_BASE, 0);
}

static void level(void) {
    static const u8 irqs[] = {5, 11};
    for (u32 i = 0; i < COUNT(irqs); i++) {
        u32 irq = irqs[i];
        vectors[PIC_BASE + irq].hook = lower_after_three;
        pic_open(1 << irq, 1 << irq);
        line(irq, 1);
        settle();
        expect_taken(PIC_BASE + irq, 3);
    }
}

static void level_masked(void) {
    pic_open(0, 1 << 5);
    vectors[PIC_BASE + 5].hook = lower_after_three;
    line(5, 1);
    settle();
    expect_taken(PIC_BASE + 5, 0);
    pic_open(1 << 5, 1 << 5);
    settle();
    expect_taken(PIC_BASE + 5, 3);
}

static void level_gone(void) {
    pic_open(1 << 5, 1 << 5);
    line(5, 1);
    expect("IRR", pic_irr(0) >> 5 & 1, 1);
    line(5, 0);
    expect("IRR", pic_irr(0) >> 5 & 1, 0);
    settle();
    expect_taken(PIC_BASE + 5, 0);
}

static volatile u32 isr[2];
static void look_in_service(u32 vector) {
    (void)vector;
    isr[0] = pic_isr(0);
    isr[1] = pic_isr(1);
}

static void end_first_only(u32 vector) {
    look_in_service(vector);
    out8(command[0], EOI_COMMAND);
}

static void spurious(void) {
    // The request that the second 8259 passed on goes away; that it was passed on stays latched in the first.
    pic_open(1 << 11, 1 << 11);
    vectors[PIC_BASE + 15].hook = end_first_only;
    vectors[PIC_BASE + 15].end = END_NONE;
    line(11, 1);
    line(11, 0);
    settle();
    expect_taken(PIC_BASE + 15, 1);
    expect("ISR of the first", isr[0], 1 << CASCADE);
    expect("ISR of the second", isr[1], 0);
}

static void in_service(void) {
    pic_open(1 << 5 | 1 << 11, 0);
    vectors[PIC_BASE + 5].hook = look_in_service;
    vectors[PIC_BASE + 11].hook = look_in_service;
    pulse(5);
    settle();
    expect_taken(PIC_BASE + 5, 1);
    expect("ISR of the first", isr[0], 1 << 5);
    expect("ISR of the second", isr[1], 0);
    pulse(11);
    settle();
    expect_taken(PIC_BASE + 11, 1);
    expect("ISR of the first", isr[0], 1 << CASCADE);
    expect("ISR of the second", isr[1], 1 << 3);
    expect("ISR of the first after EOI", pic_isr(0), 0);
    expect("ISR of the second after EOI", pic_isr(1), 0);
}

static void priority(void) {
    pic_open(1 << 3 | 1 << 5 | 1 << 11 | 1 << 15, 0);
    log_orders();
    pulse(5);
    pulse(15);
    pulse(3);
    pulse(11);
    settle();
    for (u32 i = 3; i <= 15; i += 2) ignore_vector(PIC_BASE + i);
    expect("order", order, 0xbf35);
}

static void nest(u32 vector) {
    (void)vector;
    pulse(3);
    window();
    expect_taken(PIC_BASE + 3, 1);
    pulse(6);
    window();
    expect_taken(PIC_BASE + 6, 0);
}

static void nesting(void) {
    pic_open(1 << 3 | 1 << 5 | 1 << 6, 0);
    vectors[PIC_BASE + 5].hook = nest;
    pulse(5);
    settle();
    expect_taken(PIC_BASE + 3, 1);
    expect_taken(PIC_BASE + 5, 1);
    expect_taken(PIC_BASE + 6, 1);
}

static void unended(u32 vector) {
    (void)vector;
    vectors[PIC_BASE + 3].end = END_NONE;
    pulse(3);
    window();
    expect("ISR with two", pic_isr(0), 1 << 5 | 1 << 3);
    out8(command[0], 0x60 | 5);
    expect("ISR without 5", pic_isr(0), 1 << 3);
    out8(command[0], 0x60 | 3);
    expect("ISR", pic_isr(0), 0);
}

static void specific_eoi(void) {
    pic_open(1 << 3 | 1 << 5, 0);
    vectors[PIC_BASE + 5].hook = unended;
    vectors[PIC_BASE + 5].end = END_NONE;
    pulse(5);
    settle();
    expect_taken(PIC_BASE + 3, 1);
    expect_taken(PIC_BASE + 5, 1);
}

static void rotation(void) {
    pic_open(1 << 3 | 1 << 5 | 1 << 6 | 1 << 7, 0);
    for (u32 irq = 3; irq < 8; irq++) ignore_vector(PIC_BASE + irq);
    log_orders();
    // Set priority: 5 is the lowest, so 6 the highest.
    out8(command[0], 0xc0 | 5);
    pulse(5);
    pulse(3);
    pulse(6);
    pulse(7);
    settle();
    expect("order with 5 lowest", order, 0x6735);
    // Rotate on a non-specific EOI: the one that ends becomes the lowest.
    out8(command[0], 0xc0 | 7);
    order = 0;
    vectors[PIC_BASE + 5].end = END_NONE;
    pulse(5);
    settle();
    out8(command[0], 0xa0);
    vectors[PIC_BASE + 5].end = END_PIC;
    pulse(5);
    pulse(3);
    pulse(6);
    settle();
    expect("order with 5 lowest again", order, 0x5635);
    // Rotate on a specific EOI.
    order = 0;
    vectors[PIC_BASE + 6].end = END_NONE;
    pulse(6);
    settle();
    out8(command[0], 0xe0 | 6);
    vectors[PIC_BASE + 6].end = END_PIC;
    pulse(6);
    pulse(7);
    settle();
    expect("order with 6 lowest", order, 0x676);
}

static void automatic_eoi(void) {
    pic_init(3);
    pic_open(1 << 5, 0);
    vectors[PIC_BASE + 5].end = END_NONE;
    vectors[PIC_BASE + 5].hook = look_in_service;
    isr[0] = 0xff;
    for (u32 i = 1; i <= 3; i++) {
        pulse(5);
        settle();
        expect_taken(PIC_BASE + 5, i);
    }
    expect("ISR", isr[0], 0);
}

static void special_mask(u32 vector) {
    (void)vector;
    out8(data[0], in8(data[0]) | 1 << 3);
    pulse(5);
    window();
    expect_taken(PIC_BASE + 5, 0);
    out8(command[0], 0x68);
    // Some 8259 look at their requests only when the mask is written.
    out8(data[0], in8(data[0]));
    window();
    if (taken(PIC_BASE + 5)) expect_taken(PIC_BASE + 5, 1);
    else absent("special mask mode changes nothing here");
    out8(command[0], 0x60 | 5);
    out8(command[0], 0x48);
    out8(command[0], 0x60 | 3);
}

static void masked_others(void) {
    // What is masked holds back nothing, however urgent it is.
    pic_open(1 << 5 | 1 << 11, 0);
    pulse(3);
    pulse(10);
    pulse(5);
    pulse(11);
    settle();
    expect_taken(PIC_BASE + 5, 1);
    expect_taken(PIC_BASE + 11, 1);
    expect_taken(PIC_BASE + 3, 0);
    expect_taken(PIC_BASE + 10, 0);
}

static void special_mask_mode(void) {
    pic_open(1 << 3 | 1 << 5, 0);
    vectors[PIC_BASE + 3].hook = special_mask;
    vectors[PIC_BASE + 3].end = vectors[PIC_BASE + 5].end = END_NONE;
    pulse(3);
    settle();
    expect_taken(PIC_BASE + 3, 1);
    expect_taken(PIC_BASE + 5, 1);
}

static u32 poll(u32 chip) {
    out8(command[chip], 0x0c);
    return in8(command[chip]);
}

static void poll_command(void) {
    pic_open(1 << 5 | 1 << 11, 0);
    expect("poll of nothing", poll(0) & 0x80, 0);
    pulse(5);
    expect("poll", poll(0), 0x85);
    if (!pic_isr(0)) {
        absent("a poll puts nothing in service here");
        return;
    }
    expect("ISR", pic_isr(0), 1 << 5);
    pic_eoi(5);
    expect("poll once more", poll(0) & 0x80, 0);
    pulse(11);
    expect("poll of the first", poll(0), 0x80 | CASCADE);
    expect("poll of the second", poll(1), 0x80 | 3);
    pic_eoi(11);
    settle();
    expect_taken(PIC_BASE + 5, 0);
    expect_taken(PIC_BASE + 11, 0);
}

/// As special fully nested mode wants it: the first only when nothing of the second is left.
static void end_nested(void) {
    out8(command[1], EOI_COMMAND);
    if (!pic_isr(1)) out8(command[0], EOI_COMMAND);
}

static u32 nested_want;
static void nest_second(u32 vector) {
    if (vector == PIC_BASE + 14) {
        pulse(11);
        window();
        expect_taken(PIC_BASE + 11, nested_want);
    }
    end_nested();
}

static void fully_nested(void) {
    for (nested_want = 0; nested_want < 2; nested_want++) {
        pic_init(nested_want ? 0x11 : 1);
        pic_open(1 << 11 | 1 << 14, 0);
        vectors[PIC_BASE + 11].hook = vectors[PIC_BASE + 14].hook = nest_second;
        vectors[PIC_BASE + 11].end = vectors[PIC_BASE + 14].end = END_NONE;
        vectors[PIC_BASE + 11].taken[0] = 0;
        pulse(14);
        settle();
        expect_taken(PIC_BASE + 11, 1);
        expect_taken(PIC_BASE + 14, nested_want + 1);
        expect("ISR of the first", pic_isr(0), 0);
    }
}

static void initialization(void) {
    out8(data[0], 0xff);
    pulse(5);
    expect("IRR before", pic_irr(0) >> 5 & 1, 1);
    out8(command[0], 0x11);
    out8(data[0], PIC_BASE);
    out8(data[0], 1 << CASCADE);
    out8(data[0], 1);
    expect("IMR", in8(data[0]), 0);
    out8(data[0], 0xff);
    expect("IRR", pic_irr(0) >> 5 & 1, 0);
}

static void virtual_wire(void) {
    pic_open(1 << 5, 0);
    lapic_write(LVT_LINT0, LVT_EXTINT | LVT_MASKED);
    pulse(5);
    settle();
    expect_taken(PIC_BASE + 5, 0);
    lapic_write(LVT_LINT0, LVT_EXTINT);
    settle();
    expect_taken(PIC_BASE + 5, 1);
}

static void any_vector(void) {
    // The task priority does not hold back what the 8259 sends.
    pic_open(1 << 5, 0);
    lapic_write(TPR, 0xf0);
    pulse(5);
    settle();
    expect_taken(PIC_BASE + 5, 1);
    lapic_write(TPR, 0);
}

const struct check pic_checks[] = {
    {"pic-mask-register", mask_register, 1},
    {"pic-elcr-fixed-bits", elcr_fixed, 1},
    {"pic-edge", edge, 1},
    {"pic-edge-held", edge_held, 1},
    {"pic-edge-stays-while-masked", edge_stays, 1},
    {"pic-edge-coalesced", edge_coalesced, 1},
    {"pic-edge-in-service", edge_in_service, 1},
    {"pic-masked-others", masked_others, 1},
    {"pic-level", level, 1},
    {"pic-level-masked", level_masked, 1},
    {"pic-level-gone", level_gone, 1},
    {"pic-spurious", spurious, 1},
    {"pic-in-service", in_service, 1},
    {"pic-priority", priority, 1},
    {"pic-nesting", nesting, 1},
    {"pic-specific-eoi", specific_eoi, 1},
    {"pic-rotation", rotation, 1},
    {"pic-automatic-eoi", automatic_eoi, 1},
    {"pic-special-mask-mode", special_mask_mode, 1},
    {"pic-poll", poll_command, 1},
    {"pic-special-fully-nested-mode", fully_nested, 1},
    {"pic-initialization", initialization, 1},
    {"pic-virtual-wire-masked", virtual_wire, 1},
    {"pic-ignores-task-priority", any_vector, 1},
    {0},
};
