// Entry points: from the multiboot loader, of secondary CPUs, and of interrupts.
//
// No `iret` in protected mode: where /dev/kvm runs a guest's kernel code on its instruction emulator, it has none. Handlers
// return by `ret 8`: code segment and flags are known, but for the arithmetic flags, which are restored one by one.

#include "layout.h"

        .section .multiboot, "a"
        .balign 4
        .long   0x1badb002
        .long   0x3
        .long   -(0x1badb002 + 0x3)

        .text
        .code32
        .globl  _start
_start:
        cli
        cld
        // The loader's descriptor table is unknown.
        lgdt    gdt_pointer
        ljmp    $CODE_SELECTOR, $1f
1:      mov     $DATA_SELECTOR, %ecx
        mov     %ecx, %ds
        mov     %ecx, %es
        mov     %ecx, %fs
        mov     %ecx, %gs
        mov     %ecx, %ss
        mov     $stacks + STACK_SIZE, %esp
        push    %ebx
        push    %eax
        call    boot
2:      cli
        hlt
        jmp     2b

// Of a secondary CPU, in protected mode. Its number is the one that is being started.
        .globl  secondary_start
secondary_start:
        mov     $DATA_SELECTOR, %ecx
        mov     %ecx, %ds
        mov     %ecx, %es
        mov     %ecx, %fs
        mov     %ecx, %gs
        mov     %ecx, %ss
        mov     starting, %eax
        mov     %eax, %esp
        inc     %esp
        shl     $STACK_SHIFT, %esp
        add     $stacks, %esp
        push    %eax
        call    secondary
1:      cli
        hlt
        jmp     1b

// One stub a vector. Exceptions that push an error code do it; all others push the vector alone.
        .balign STUB_SIZE
        .globl  stubs
stubs:
        .set    vector, 0
        .rept   256
        .balign STUB_SIZE
        push    $vector
        .if     vector == 2
        jmp     nmi_common
        .elseif vector < 32 && vector != ILLEGAL_VECTOR
        jmp     exception_common
        .else
        jmp     interrupt_common
        .endif
        .set    vector, vector + 1
        .endr

interrupt_common:
        pusha
        mov     32(%esp), %eax
        push    %eax
        call    interrupt
        add     $4, %esp
        popa
        add     $4, %esp
        // The flags as they were, interrupts off, so that a storm of them does not eat the stack.
        push    8(%esp)
        andl    $~0x200, (%esp)
        popf
        sti
        ret     $8

nmi_common:
        pusha
        push    $2
        call    interrupt
        add     $4, %esp
        call    unblock_nmi
        popa
        add     $4, %esp
        push    8(%esp)
        popf
        ret     $8

exception_common:
        pusha
        mov     %esp, %eax
        push    %eax
        call    exception
        // It returns where to go on: the stack of the frame above the discarded error code, if there was one.
        add     $4, %esp
        popa
        // vector, error code, address, segment, flags: only a general protection fault comes back.
        add     $8, %esp
        push    8(%esp)
        popf
        ret     $8

// Ends the blocking of NMIs, which takes an `iret`: one in real mode, that the emulator has. Interrupts are off.
unblock_nmi:
        mov     %esp, %ebp
        // A real-mode stack for each CPU.
        mov     %esp, %ecx
        sub     $stacks, %ecx
        shr     $STACK_SHIFT, %ecx
        shl     $6, %ecx
        add     $REAL_STACKS + 0x40, %ecx
        ljmp    $CODE16_SELECTOR, $TRAMPOLINE + (to_real - trampoline)
from_real:
        mov     $DATA_SELECTOR, %ecx
        mov     %ecx, %ds
        mov     %ecx, %ss
        mov     %ebp, %esp
        ret

// Copied below 1 MiB: where secondary CPUs start.
        .code16
        .balign 16
        .globl  trampoline
trampoline:
        cli
        cld
        mov     %cs, %ax
        mov     %ax, %ds
        lgdtl   low_gdt_pointer - trampoline
        lidtl   low_idt_pointer - trampoline
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $CODE_SELECTOR, $secondary_start
to_real:
        mov     %cr0, %eax
        and     $0xfe, %al
        mov     %eax, %cr0
        ljmp    $0, $TRAMPOLINE + (real - trampoline)
real:
        xor     %ax, %ax
        mov     %ax, %ss
        mov     %ax, %ds
        mov     %ecx, %esp
        pushf
        push    %cs
        pushw   $TRAMPOLINE + (unblocked - trampoline)
        iretw
unblocked:
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $CODE_SELECTOR, $from_real
        .balign 4
low_gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
low_idt_pointer:
        .word   256 * 8 - 1
        .long   idt
        .globl  trampoline_end
trampoline_end:

        .data
        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
        .quad   0x00009b000000ffff
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
        .globl  idt_pointer
idt_pointer:
        .word   256 * 8 - 1
        .long   idt

        .bss
        .balign 16
        .globl  stacks
stacks:
        .skip   STACK_SIZE * MAX_CPUS
        .balign 8
        .globl  idt
idt:
        .skip   256 * 8

        .section .note.GNU-stack, "", @progbits
