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

/* How long the first of the values that an instruction works on stays on the
 * frame's value stack. */
typedef enum {
    GB_OPERAND_TAKEN, /* not known: it may be given up before a call */
    GB_OPERAND_KEPT,  /* during all calls that the instruction makes, but for
                         the finalizer of the value itself: what is iterated
                         over, or asked for an attribute */
    GB_OPERAND_LEFT,  /* it is not given up at all: what is awaited */
} gb_operand;

/* What a frame has on its value stack while it executes an instruction. */
typedef struct {
    short below; /* how many values lie below those that the instruction itself
                    works on, which it may have given up already */
    short safe;  /* how many of these also an exception leaves there: it gives
                    up the others one by one */
    gb_operand first;
} gb_values;

/* For the instruction at code unit `index`; if nothing is known, as if there
 * were no values.  Runs no Python code, keeps no exception. */
gb_values gb_bytecode_values(PyCodeObject *code, Py_ssize_t index);

#endif

/* To be called once.  Cannot fail: without it nothing is known. */
void gb_bytecode_init(void);

#endif
