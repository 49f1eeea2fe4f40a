/* Memory for stacks that may be suspended: blocks of one size, of which
 * 100,000 may be needed at once and none a moment later. */
#ifndef GB_SLABS_H
#define GB_SLABS_H

#include "gb_compat.h"

/* Bytes in a block: what a portal suspended below a few calls needs. */
enum { GB_BLOCK_SIZE = 3072 };

/* A block of GB_BLOCK_SIZE bytes, aligned to 64, contents undefined.  NULL
 * without an exception if there is no memory.  Call with the GIL held. */
void *gb_slabs_get(void);

/* Give `block` back.  Cannot fail.  Call with the GIL held. */
void gb_slabs_put(void *block);

#endif
