// What the assembly and the C share.

#define CODE_SELECTOR 0x08
#define DATA_SELECTOR 0x10
#define CODE16_SELECTOR 0x18

#define MAX_CPUS 8
#define STACK_SHIFT 13
#define STACK_SIZE (1 << STACK_SHIFT)
#define STUB_SIZE 16

// No exception of this program, and nothing that a local APIC may deliver. Some do, so it is counted as an interrupt.
#define ILLEGAL_VECTOR 5

// Below 1 MiB: the page where secondary CPUs start, and a few bytes of stack for each CPU in real mode.
#define TRAMPOLINE 0x8000
#define REAL_STACKS 0x7000
