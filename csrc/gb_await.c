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
ask_loop(gb_state *st, gb_await_frame *frame, PyObject *trap, bool *refused)
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
        p->p_awaiting = frame->iterator;
        if (st->engine->suspend(p, trap, &woken) == 0) {
            result.is_exc = p->p_op == GB_OP_THROW;
            result.object = Py_NewRef(p->p_argument);
            p->p_awaiting = NULL;
            return result;
        }
        if (!woken) { /* else the engine has done it */
            p->p_awaiting = NULL;
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

/* Drive frame->iterator to its end.  Runs Python code; switches stacks. */
static inline PyObject *
drive(gb_state *st, gb_await_frame *frame)
{
    PyObject *result = NULL;
    bool refused = false;
    PySendResult status = gb_drive_send(frame->iterator, Py_None, &result);
    while (status == PYGEN_NEXT) {
        answer given;
        if (refused) {
            give_up(st, frame->iterator, result);
            return NULL;
        }
        given = ask_loop(st, frame, result, &refused);
        frame->given = given.object;
        status = pass_on(st, frame->iterator, given, &result);
        frame->given = NULL;
        Py_DECREF(given.object);
    }
    return result;
}

GB_HOT PyObject *
gb_await(gb_state *st, PyObject *awaitable, gb_call call, bool steal)
{
    PyThreadState *ts = PyThreadState_GetUnchecked();
    PyObject *result;
    gb_await_frame frame = {call, NULL, NULL};
    PortalObject *p = gb_portal_here(st, ts);

    if (p == NULL) {
        gb_task_raise_no_portal(st);
        gb_drive_discard(st, awaitable);
    }
    else {
        frame.iterator = gb_drive_iterator(st, awaitable);
    }
    if (steal) {
        Py_DECREF(awaitable);
    }
    if (frame.iterator == NULL) {
        return NULL;
    }
    /* On another stack than the step's own, the end may come when the step is
     * over; that stack is nothing that the collector can look into anyway. */
    if (gb_cpython_is_stack(ts, p->p_stack)) {
        gb_await_frame *outer = p->p_await_frames;
        frame.call.outer = outer == NULL ? NULL : &outer->call;
        p->p_await_frames = &frame;
        result = drive(st, &frame);
        p->p_await_frames = outer;
    }
    else {
        result = drive(st, &frame);
    }
    Py_DECREF(frame.iterator);
    return result;
}
