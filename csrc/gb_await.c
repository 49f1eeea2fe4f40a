#include "gb_await.h"

#include "gb_collector.h"
#include "gb_drive.h"

/* What the loop answered to a trap: a value, or an exception if `is_exc`. */
typedef struct {
    PyObject *object; /* owned */
    bool is_exc;
} answer;

/* Hand `trap` (stolen) to the loop and wait for its answer.  If that can't be
 * done, the answer is the exception which says so, and *refused is true.
 * Switches stacks: everything may have changed when this returns. */
static answer
ask_loop(gb_state *st, PyObject *iterator, PyObject *trap, bool *refused)
{
    PyThreadState *ts = PyThreadState_GetUnchecked();
    /* Looked up anew: the code that yielded the trap may have moved this
     * stack to another step than the one it began in. */
    PortalObject *p = gb_portal_here(st, ts);
    bool woken = false;
    answer result = {NULL, true};

    if (p == NULL) {
        Py_DECREF(trap);
        gb_task_raise_no_portal(st);
    }
    else if (gb_collector_runs_here(st, ts)) {
        Py_DECREF(trap);
        PyErr_SetString(PyExc_RuntimeError,
                        "await_() can't wait in a finalizer that the garbage "
                        "collector runs; hand the work to a task instead");
    }
    else if (GB_UNLIKELY(p->p_forbidden != NULL)) {
        Py_DECREF(trap);
        PyErr_SetObject(PyExc_RuntimeError, p->p_forbidden);
    }
    else {
        /* Only while waiting: this is what the task awaits. */
        Py_XSETREF(p->p_awaiting, Py_NewRef(iterator));
        if (st->engine->suspend(p, trap, &woken) == 0) {
            result.is_exc = p->p_op == GB_OP_THROW;
            result.object = Py_NewRef(p->p_argument);
            Py_CLEAR(p->p_awaiting);
            return result;
        }
        if (!woken) {
            Py_CLEAR(p->p_awaiting);
        }
    }
    *refused = true;
    result.object = PyErr_GetRaisedException();
    return result;
}

/* Pass the loop's answer on, as `yield from` does.  Runs Python code. */
static PySendResult
pass_on(gb_state *st, PyObject *iterator, answer given, PyObject **result)
{
    if (!given.is_exc) {
        return gb_drive_send(iterator, given.object, result);
    }
    if (PyErr_GivenExceptionMatches(given.object, PyExc_GeneratorExit)) {
        *result = NULL;
        if (gb_drive_close(st, iterator) == 0) {
            PyErr_SetRaisedException(Py_NewRef(given.object));
        }
        return PYGEN_ERROR;
    }
    return gb_drive_throw(st, iterator, given.object, result);
}

/* An awaitable that goes on yielding after it was told that nobody listens:
 * end it.  Sets an exception. */
static void
give_up(gb_state *st, PyObject *iterator, PyObject *trap)
{
    Py_DECREF(trap);
    if (gb_drive_close(st, iterator) < 0) {
        PyErr_WriteUnraisable(iterator);
    }
    PyErr_SetString(PyExc_RuntimeError,
                    "await_() could not wait, and what it was awaiting went "
                    "on regardless; it has been closed");
}

GB_HOT PyObject *
gb_await(gb_state *st, PyObject *awaitable)
{
    PyObject *iterator, *result = NULL;
    PySendResult status;
    bool refused = false;

    if (gb_portal_here(st, PyThreadState_GetUnchecked()) == NULL) {
        gb_task_raise_no_portal(st);
        gb_drive_discard(st, awaitable);
        return NULL;
    }
    iterator = gb_drive_iterator(st, awaitable);
    if (iterator == NULL) {
        return NULL;
    }
    status = gb_drive_send(iterator, Py_None, &result);
    while (status == PYGEN_NEXT) {
        answer given;
        if (refused) {
            give_up(st, iterator, result);
            result = NULL;
            break;
        }
        given = ask_loop(st, iterator, result, &refused);
        status = pass_on(st, iterator, given, &result);
        Py_DECREF(given.object);
    }
    Py_DECREF(iterator);
    return result;
}

PyObject *
gb_await_steal(gb_state *st, PyObject *awaitable)
{
    PyObject *result = NULL;
    if (awaitable != NULL) {
        result = gb_await(st, awaitable);
        Py_DECREF(awaitable);
    }
    return result;
}
