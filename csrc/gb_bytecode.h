/* How much is on a frame's value stack, told from the bytecode: up to CPython
 * 3.13 a frame that has called a C function does not say. */
#ifndef GB_BYTECODE_H
#define GB_BYTECODE_H

#include "gb_compat.h"

#if PY_VERSION_HEX < 0x030e0000
#define GB_BYTECODE_NEEDED 1
#else
#define GB_BYTECODE_NEEDED 0
#endif

#if GB_BYTECODE_NEEDED

/* A frame of `code` is executing the instruction at code unit `index`: how
 * many values lie below those that the instruction itself works on, which it
 * may have given up already.  0 if nothing is known.  *keeps tells whether the
 * first of the latter is given up only after all calls that the instruction
 * makes: what is awaited, iterated over, or asked for an attribute.
 * Runs no Python code, keeps no exception. */
Py_ssize_t gb_bytecode_values_below(PyCodeObject *code, Py_ssize_t index,
                                    bool *keeps);

#endif

/* To be called once.  Cannot fail: without it nothing is known. */
void gb_bytecode_init(void);

#endif
