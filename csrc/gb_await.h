/* await_(): drive an awaitable on behalf of sync code. */
#ifndef GB_AWAIT_H
#define GB_AWAIT_H

#include "gb_task.h"

/* What `await awaitable` would give, a new reference; NULL with an exception.
 * `callable` with its `count` arguments is the call from Python code in which
 * that is done, for the garbage collector; NULL if it isn't known.  `steal`
 * tells whether the reference to the awaitable is ours.
 * Runs Python code; may suspend the step and with it the C stack of the
 * caller, while other tasks run.  Each C function on that stack costs a return
 * that the CPU can't predict: call this last. */
PyObject *gb_await(gb_state *st, PyObject *awaitable, PyObject *callable,
                   PyObject *const *args, Py_ssize_t count, bool steal);

/* The same for the result of a call to C code: steals `awaitable`, and passes
 * NULL with its exception on. */
static inline PyObject *
gb_await_result(gb_state *st, PyObject *awaitable)
{
    return awaitable == NULL ? NULL
                             : gb_await(st, awaitable, NULL, NULL, 0, true);
}

#endif
