/* How much is on a frame's value stack, told from the bytecode: up to CPython
 * 3.13 a frame that has called a C function does not say. */
#ifndef GB_BYTECODE_H
#define GB_BYTECODE_H

#include "gb_compat.h"

#if PY_VERSION_HEX < 0x030e0000 && !defined(Py_GIL_DISABLED)
#define GB_BYTECODE_NEEDED 1
#else
#define GB_BYTECODE_NEEDED 0
#endif

#if GB_BYTECODE_NEEDED

/* A frame of `code` is executing the instruction at code unit `index`: how
 * many values lie below those that the instruction itself works on, which it
 * may have given up already.  0 if nothing is known.  If the instruction is a
 * call f(*args, **kwargs), *operands is how many values it works on, f being
 * the second of them; else 0.  Runs no Python code, keeps no exception. */
Py_ssize_t gb_bytecode_values_below(PyCodeObject *code, Py_ssize_t index,
                                    int *operands);

#endif

/* To be called once.  Cannot fail: without it nothing is known. */
void gb_bytecode_init(void);

#endif
