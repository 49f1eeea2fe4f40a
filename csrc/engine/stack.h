/* Cutting a part of the running C stack out, and putting it back: what is
 * the same on every CPU.  Each CPU has a C file with its assembly.
 *
 * A slice is the part of the stack between the address at which a step was
 * entered (high) and the stack pointer where it was suspended (low); stacks
 * grow downwards.  It is only ever put back where it was.  The loop's side is
 * what is above, or below if the slice is resumed from a deeper stack: then
 * the loop's live stack is moved aside for the time of the step. */
#ifndef GB_STACK_H
#define GB_STACK_H

#include "gb_compat.h"

#if (defined(__x86_64__) || defined(__aarch64__)) \
    && (defined(__linux__) || defined(__APPLE__)) && !defined(__ILP32__)
#define GB_STACK_CPU_KNOWN 1
#else
#define GB_STACK_CPU_KNOWN 0
#endif

/* The assembly knows the offsets of the first four fields. */
typedef struct {
    char *loop_sp;     /* stack pointer of the loop's side, during a step */
    char *low;         /* while suspended, and since then */
    size_t aside_size; /* bytes of the loop's stack that are moved aside now */
    char *high;        /* set before a step is entered */
    char *copy;        /* the slice while it is suspended */
    char *aside;       /* what is moved aside; owned */
    size_t aside_capacity;
} gb_stack_slice;

/* What gb_stack_resume can need of stack below the address of its caller's
 * frame, apart from the slice. */
enum { GB_STACK_MARGIN = 1024 };

/* Call body(argument) with the stack pointer at slice->high (16-byte aligned,
 * below the caller's frame).  Returns when it has returned `slice`, or when
 * gb_stack_suspend is called, which may be later, in another call of
 * gb_stack_resume. */
void gb_stack_enter(gb_stack_slice *slice, gb_stack_slice *(*body)(void *),
                    void *argument);

/* Copy the slice from here to slice->high away, and return from the call of
 * gb_stack_enter or gb_stack_resume that is under way.  Returns when the
 * slice has been resumed.  slice->copy must be large enough. */
void gb_stack_suspend(gb_stack_slice *slice);

/* Put the slice back in place and go on with it.  Returns as gb_stack_enter
 * does.  slice->aside must be large enough for what gb_stack_must_move_aside
 * tells. */
void gb_stack_resume(gb_stack_slice *slice);

/* How many bytes of the stack, below slice->high, have to be moved aside if a
 * function whose frame is at `frame` resumes the slice; 0 if none. */
static inline size_t
gb_stack_must_move_aside(const gb_stack_slice *slice, char *frame)
{
    char *live = frame - GB_STACK_MARGIN;
    return live < slice->high ? (size_t)(slice->high - live) : 0;
}

/* Whether the CPU keeps return addresses on a second stack, which we can't
 * cut.  Cannot fail. */
bool gb_stack_is_shadowed(void);

/* Called by the assembly, on scratch stack; nobody else may. */
void gb_stack_copy_out(gb_stack_slice *slice);
void gb_stack_copy_in(gb_stack_slice *slice);
void gb_stack_put_back(gb_stack_slice *slice);

#endif
