/* Chunks of memory in which the interpreter makes the frames of a step. */
#ifndef GB_CHUNKS_H
#define GB_CHUNKS_H

#include "gb_cpython.h"

#if GB_CPYTHON_STACKS_KNOWN

/* A chunk of GB_CPYTHON_FRAME_CHUNK_SIZE bytes, empty.  NULL without an
 * exception if there is no memory.  Call with the GIL held. */
_PyStackChunk *gb_chunks_get(void);

/* Give `chunk` back.  Cannot fail.  Call with the GIL held. */
void gb_chunks_put(_PyStackChunk *chunk);

#endif
#endif
