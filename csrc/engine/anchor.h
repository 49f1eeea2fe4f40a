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

/* The address at which to enter a step that is started by a function whose
 * frame is at `frame`, 64-byte aligned.  `depth` is the number of steps below
 * it on this stack; `in_greenlet` tells that this is the stack of a greenlet,
 * which has to be copied at each switch, gap and all.  Cannot fail. */
char *gb_anchor_find(char *frame, int depth, bool in_greenlet);

/* Counters, for tests: steps that began at an anchor, and right below. */
extern unsigned long gb_anchor_used, gb_anchor_not_used;

#endif
