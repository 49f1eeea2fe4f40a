/* What suspended frames own: the garbage collector does not look into frames
 * that are being executed, as those that wait on a suspended stack are to the
 * interpreter. */
#ifndef GB_FRAMES_H
#define GB_FRAMES_H

#include "gb_compat.h"

/* Whether we know what frames own in this CPython. */
#if PY_VERSION_HEX < 0x03100000 && !defined(Py_GIL_DISABLED)
#define GB_FRAMES_KNOWN 1
#else
#define GB_FRAMES_KNOWN 0
#endif

/* A call of `callable`, as its vectorcallfunc has got it, that is under way.
 */
typedef struct gb_call {
    PyObject *callable; /* NULL if it isn't known */
    PyObject *const *args;
    Py_ssize_t count;            /* of args */
    const struct gb_call *outer; /* in which this one is under way, or NULL */
} gb_call;

/* Those that are under way on a suspended stack, innermost first; what is on
 * that stack has been moved by `moved` bytes. */
typedef struct {
    const gb_call *innermost; /* moved; or NULL */
    ptrdiff_t moved;
} gb_calls;

/* For tp_traverse: visit what `frame` owns and those that called it, all of
 * them waiting on a suspended stack.  Up to 3.13 a frame that has called a C
 * function does not tell how much is on its value stack: if it is one of
 * `calls`, that does, else the bytecode tells what is there but for the
 * operands of the call.  What isn't visited is never collected.
 *
 * Generators among the frames are kept from being finalized, which would only
 * find that they are being executed, until gb_frames_let_finalize. */
int gb_frames_visit(struct _PyInterpreterFrame *frame, gb_calls calls,
                    visitproc visit, void *arg);

/* To be called once before.  Cannot fail. */
void gb_frames_init(void);

/* For tests: how many values `code` has on its stack below the operands of the
 * instruction at code unit `index`, an int; None if frames tell it themselves.
 * A new reference; NULL with an exception. */
PyObject *gb_frames_values_below(PyCodeObject *code, Py_ssize_t index);

/* The stack with `frame` goes on: its generators may be finalized again. */
void gb_frames_let_finalize(struct _PyInterpreterFrame *frame);

/* Let the finalizer of `object` be called once more. */
void gb_frames_forget_finalized(PyObject *object);

#endif
