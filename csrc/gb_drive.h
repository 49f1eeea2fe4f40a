/* Driving awaitables from C: what `await` does, one send or throw at a time.
 */
#ifndef GB_DRIVE_H
#define GB_DRIVE_H

#include "gb_state.h"

/* What has to be driven to await `awaitable`, a new reference: a coroutine or
 * an instance of collections.abc.Coroutine itself, else what its __await__
 * gives.  NULL with the exception that `await` would raise.
 * May run Python code. */
PyObject *gb_drive_iterator(gb_state *st, PyObject *awaitable);

/* As PyIter_Send.  Runs Python code; may switch stacks. */
static inline PySendResult
gb_drive_send(PyObject *iterator, PyObject *value, PyObject **result)
{
    return PyIter_Send(iterator, value, result);
}

/* Throw the exception instance `exc` (borrowed) into `iterator`; if that has
 * no throw(), the exception is raised.  Returns as PyIter_Send does.
 * Runs Python code; may switch stacks. */
PySendResult gb_drive_throw(gb_state *st, PyObject *iterator, PyObject *exc,
                            PyObject **result);

/* Call iterator.close() if there is one.  0, or -1 with an exception.
 * Runs Python code; may switch stacks. */
int gb_drive_close(gb_state *st, PyObject *iterator);

/* Close `awaitable` if it is a coroutine, so that it doesn't complain of never
 * having been awaited.  Keeps a pending exception.  Runs Python code. */
void gb_drive_discard(gb_state *st, PyObject *awaitable);

/* A call to a generator's method has given `returned` (stolen, NULL with an
 * exception): as PyIter_Send would put it. */
PySendResult gb_drive_sort_result(PyObject *returned, PyObject **result);

/* And back: from what PyIter_Send gave, what a send() method has to return.
 * Steals `result`. */
PyObject *gb_drive_to_method_result(PySendResult status, PyObject *result);

/* The same for tp_iternext, where no exception need tell of the end. */
static inline PyObject *
gb_drive_to_next_result(PySendResult status, PyObject *result)
{
    if (status == PYGEN_RETURN && result == Py_None) {
        Py_DECREF(result);
        return NULL;
    }
    return gb_drive_to_method_result(status, result);
}

/* The exception instance that throw(type, value, traceback) asks for, a new
 * reference; NULL with an exception.  May run Python code. */
PyObject *gb_drive_exception_from_args(PyObject *const *args,
                                       Py_ssize_t nargs);

#endif
