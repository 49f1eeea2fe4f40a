/* await_(): drive an awaitable on behalf of sync code. */
#ifndef GB_AWAIT_H
#define GB_AWAIT_H

#include "gb_task.h"

/* What `await awaitable` would give, a new reference; NULL with an exception.
 * Runs Python code; may suspend the step and with it the C stack of the
 * caller, while other tasks run. */
PyObject *gb_await(gb_state *st, PyObject *awaitable);

/* The same; steals `awaitable`, and passes NULL with its exception on. */
PyObject *gb_await_steal(gb_state *st, PyObject *awaitable);

#endif
