/* await_(): drive an awaitable on behalf of sync code. */
#ifndef GB_AWAIT_H
#define GB_AWAIT_H

#include "gb_task.h"

/* A call that isn't known: see gb_await. */
#define GB_NO_CALL ((gb_call){NULL, NULL, 0, NULL})

/* What `await awaitable` would give, a new reference; NULL with an exception.
 * `call` is the call from Python code in which that is done, for the garbage
 * collector (its `outer` is ignored).  `steal` tells whether the reference to
 * the awaitable is ours.
 * Runs Python code; may suspend the step and with it the C stack of the
 * caller, while other tasks run. */
PyObject *gb_await(gb_state *st, PyObject *awaitable, gb_call call,
                   bool steal);

/* The same for the result of a call to C code: steals `awaitable`, and passes
 * NULL with its exception on. */
static inline PyObject *
gb_await_result(gb_state *st, PyObject *awaitable, gb_call call)
{
    return awaitable == NULL ? NULL : gb_await(st, awaitable, call, true);
}

#endif
