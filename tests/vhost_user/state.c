// Between user-mode Linux 6.1 and the host, on a CPU whose extended state is larger than that kernel has room for: the host takes all of
// it or nothing, so what a process had is put over what it has, and the rest stays.
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PEEKTEXT = 1, PEEKUSER = 3, GETREGSET = 0x4204, SETREGSET = 0x4205, X86_XSTATE = 0x202 };

long ptrace(int request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    if (request == SETREGSET && (long)address == X86_XSTATE) {
        static __thread char state[32768] __attribute__((aligned(64)));
        struct iovec *known = data, all = {state, sizeof state};
        if (syscall(SYS_ptrace, GETREGSET, pid, address, &all) < 0)
            return -1;
        memcpy(state, known->iov_base, known->iov_len < all.iov_len ? known->iov_len : all.iov_len);
        // Tiles are not among it.
        unsigned long present;
        memcpy(&present, state + 512, sizeof present);
        present &= ~(3UL << 17);
        memcpy(state + 512, &present, sizeof present);
        return syscall(SYS_ptrace, request, pid, address, &all);
    }
    if (request >= PEEKTEXT && request <= PEEKUSER) {
        long value, result = syscall(SYS_ptrace, request, pid, address, &value);
        if (result < 0)
            return result;
        errno = 0;
        return value;
    }
    return syscall(SYS_ptrace, request, pid, address, data);
}
