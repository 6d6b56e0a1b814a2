// Entry of every CPU, and its exception vectors. MMU and caches stay off: all memory is Device memory.

    .section .text.start, "ax"
    .global _start
_start:
    mov     x0, #0
    .global secondary
secondary:                          // PSCI passes the number of the CPU in x0
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el1, x1
    msr     tpidr_el1, x0
    adrp    x1, stacks
    add     x1, x1, :lo12:stacks
    add     x2, x0, #1
    add     x1, x1, x2, lsl #14     // 16 KiB each, downwards
    mov     sp, x1
    isb
    b       run

// Saves what the procedure call standard lets a function change; the handler returns whether to skip an instruction.
.macro vector handler
    .balign 128
    stp     x29, x30, [sp, #-192]!
    stp     x0, x1, [sp, #16]
    stp     x2, x3, [sp, #32]
    stp     x4, x5, [sp, #48]
    stp     x6, x7, [sp, #64]
    stp     x8, x9, [sp, #80]
    stp     x10, x11, [sp, #96]
    b       \handler
.endm

.macro entry name function
\name:
    stp     x12, x13, [sp, #112]
    stp     x14, x15, [sp, #128]
    stp     x16, x17, [sp, #144]
    str     x18, [sp, #160]
    bl      \function
    ldp     x12, x13, [sp, #112]
    ldp     x14, x15, [sp, #128]
    ldp     x16, x17, [sp, #144]
    ldr     x18, [sp, #160]
    b       leave
.endm

    .text
    .balign 2048
vectors:
    .rept 4                         // not taken: the program runs at EL1 with SP_EL1
    vector  sync
    .endr
    vector  sync
    vector  irq
    vector  fiq
    vector  sync
    .rept 8
    vector  sync
    .endr

    entry   sync, on_sync
    entry   irq, on_irq
    entry   fiq, on_fiq

leave:
    ldp     x0, x1, [sp, #16]
    ldp     x2, x3, [sp, #32]
    ldp     x4, x5, [sp, #48]
    ldp     x6, x7, [sp, #64]
    ldp     x8, x9, [sp, #80]
    ldp     x10, x11, [sp, #96]
    ldp     x29, x30, [sp], #192
    eret

    .bss
    .balign 16
stacks:
    .skip   8 << 14
