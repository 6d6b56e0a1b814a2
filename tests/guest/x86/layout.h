// What the assembly and the C share.

#define CODE_SELECTOR 0x08
#define DATA_SELECTOR 0x10
#define CODE16_SELECTOR 0x18

#define MAX_CPUS 8
#define STACK_SHIFT 13
#define STACK_SIZE (1 << STACK_SHIFT)
#define STUB_SIZE 16

// Below 1 MiB: the page where secondary CPUs start, and a few bytes of stack for each CPU in real mode.
#define TRAMPOLINE 0x8000
#define REAL_STACKS 0x7000
