/* Where on the stack a step is entered.
 *
 * A slice can only be put back where it was.  If steps began right below the
 * loop's frame, then a step that is resumed from a deeper stack would lie
 * over live frames of the loop.  Those can be moved aside, but C code that
 * keeps pointers into its frames (libuv's queues, the garbage collector's
 * lists) must not meet others who follow them meanwhile.  So the steps of a
 * thread begin at a few fixed addresses, well below the loop's frames. */
#ifndef GB_ANCHOR_H
#define GB_ANCHOR_H

#include "gb_compat.h"

/* Read GREENBACK_ANCHOR: 0 lets every step begin right below the loop's
 * frame, for tests. */
void gb_anchor_init(void);

/* The anchor that this thread has used last, and the addresses of frames that
 * it is for. */
typedef struct {
    char *from, *to; /* the first that it is for, the first that it is not */
    char *address;
} gb_anchor_range;
extern GB_THREAD_LOCAL gb_anchor_range gb_anchor_last GB_TLS_MODEL;

/* Steps in steps that get an anchor. */
enum { GB_ANCHOR_DEEPEST = 3 };

char *gb_anchor_look_up(char *frame, int depth, bool in_greenlet);

/* The address at which to enter a step that is started by a function whose
 * frame is at `frame`, 64-byte aligned.  `depth` is the number of steps below
 * it on this stack; `in_greenlet` tells that this is the stack of a greenlet,
 * which has to be copied at each switch, gap and all.  Cannot fail. */
static inline char *
gb_anchor_find(char *frame, int depth, bool in_greenlet)
{
    const gb_anchor_range *last = &gb_anchor_last;
    if (GB_LIKELY(frame >= last->from && frame < last->to
                  && depth <= GB_ANCHOR_DEEPEST && !in_greenlet)) {
        return last->address;
    }
    return gb_anchor_look_up(frame, depth, in_greenlet);
}

/* For tests: how many steps began right below the loop's frame. */
extern unsigned long gb_anchor_not_used;

#endif
