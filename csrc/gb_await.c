#include "gb_await.h"

#include "gb_collector.h"
#include "gb_drive.h"
#include "gb_tools.h"

/* Set the exception which says why the running code, in a step of `p` (NULL:
 * in none), can't wait. */
static GB_NOINLINE void
refuse_to_wait(gb_state *st, PortalObject *p)
{
    if (p == NULL) {
        gb_task_raise_no_portal(st);
    }
    else if (p->p_forbidden != NULL) {
        PyErr_SetObject(PyExc_RuntimeError, p->p_forbidden);
    }
    else {
        PyErr_SetString(PyExc_RuntimeError,
                        "await_() can't wait in a finalizer that the garbage "
                        "collector runs; hand the work to a task instead");
    }
}

/* Tell tools about the running stack, in a step of the portal that is
 * returned: there may be another one afterwards, or NULL.  Runs Python code,
 * which may itself wait; keeps a pending exception. */
static GB_NOINLINE PortalObject *
tell_tools(gb_state *st, gb_tools_event event)
{
    PyThreadState *ts = PyThreadState_GetUnchecked();
    PyObject *pending = PyErr_GetRaisedException();
    PortalObject *p = gb_portal_here(st, ts);

    PyErr_Clear(); /* of the look-up: the next one says it again */
    gb_tools_tell(ts, p == NULL ? NULL : st->engine->frame_below(p), event);
    p = gb_portal_here(st, ts);
    if (pending != NULL) {
        PyErr_SetRaisedException(pending);
    }
    return p;
}

/* Hand `trap` (stolen) to the loop and wait for its answer: a value, or an
 * exception if *is_exc.  If that can't be done, the answer is the exception
 * which says so, and *refused is true.  A new reference.
 * Switches stacks: everything may have changed when this returns. */
static inline PyObject *
ask_loop(gb_state *st, gb_await_frame *frame, PyObject *trap, bool *is_exc,
         bool *refused)
{
    PyThreadState *ts = PyThreadState_GetUnchecked();
    /* Looked up anew: the code that yielded the trap may have moved this
     * stack to another step than the one it began in. */
    PortalObject *p = GB_UNLIKELY(gb_tools_watch(ts, st->monitors))
                          ? tell_tools(st, GB_TOOLS_LEAVE)
                          : gb_portal_here(st, ts);
    PyObject *given = NULL;
    PyObject *executor = gb_cpython_hold_executor(ts);
    uintptr_t version = gb_tools_version(ts);
    bool woken = false;

    if (GB_UNLIKELY(p == NULL || p->p_forbidden != NULL
                    || gb_collector_runs_here(st, ts))) {
        Py_DECREF(trap);
        refuse_to_wait(st, p);
    }
    else {
        /* Only while waiting: this is what the task awaits. */
        p->p_awaiting = frame->iterator;
        if (GB_LIKELY(st->engine->suspend(p, trap, &woken) == 0)) {
            *is_exc = p->p_op == GB_OP_THROW;
            given = Py_NewRef(p->p_argument);
        }
        if (!woken) { /* else the engine has done it */
            p->p_awaiting = NULL;
        }
        gb_tools_catch_up(ts, version);
    }
    Py_XDECREF(executor);
    if (GB_UNLIKELY(given == NULL)) {
        *is_exc = *refused = true;
        given = PyErr_GetRaisedException();
    }
    /* Not earlier: they may wait, too, and get answers of their own. */
    if (GB_UNLIKELY(gb_tools_watch(ts, st->monitors))) {
        (void)tell_tools(st, GB_TOOLS_ENTER);
        PyErr_Clear(); /* of its look-up */
    }
    return given;
}

/* Pass an exception from the loop on, as `yield from` does.  Runs Python code.
 */
static GB_NOINLINE PySendResult
pass_exception_on(gb_state *st, PyObject *iterator, PyObject *given,
                  PyObject **result)
{
    if (PyErr_GivenExceptionMatches(given, PyExc_GeneratorExit)) {
        *result = NULL;
        if (gb_drive_close(st, iterator) == 0) {
            PyErr_SetRaisedException(Py_NewRef(given));
        }
        return PYGEN_ERROR;
    }
    return gb_drive_throw(st, iterator, given, result);
}

/* An awaitable that goes on yielding after it was told that nobody listens:
 * end it.  Sets an exception. */
static GB_NOINLINE void
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
    bool is_exc, refused = false;
    PySendResult status = gb_drive_send(frame->iterator, Py_None, &result);
    while (status == PYGEN_NEXT) {
        PyObject *given;
        if (refused) {
            give_up(st, frame->iterator, result);
            return NULL;
        }
        given = ask_loop(st, frame, result, &is_exc, &refused);
        frame->given = given;
        status = GB_LIKELY(!is_exc)
                     ? gb_drive_send(frame->iterator, given, &result)
                     : pass_exception_on(st, frame->iterator, given, &result);
        frame->given = NULL;
        Py_DECREF(given);
    }
    return result;
}

/* The await_ in which that of `frame` is under way, or NULL. */
static inline gb_await_frame *
outer_frame(gb_await_frame *frame)
{
    return (gb_await_frame *)frame->call.outer; /* its first member */
}

GB_HOT PyObject *
gb_await(gb_state *st, PyObject *awaitable, PyObject *callable,
         PyObject *const *args, Py_ssize_t count, bool steal)
{
    PyThreadState *ts = PyThreadState_GetUnchecked();
    PyObject *result = NULL;
    gb_await_frame frame = {{callable, args, count, NULL}, NULL, NULL};
    PortalObject *p = gb_portal_here(st, ts);
    bool noted;

    if (p == NULL) {
        result = gb_task_await_without_portal(st, awaitable);
    }
    else {
        result = NULL;
        frame.iterator = gb_drive_iterator(st, awaitable);
    }
    if (steal) {
        Py_DECREF(awaitable);
    }
    if (frame.iterator == NULL) {
        return result;
    }
    /* On another stack than the step's own, the end may come when the step is
     * over; that stack is nothing that the collector can look into anyway. */
    noted = gb_cpython_is_stack(ts, p->p_stack);
    if (noted) {
        frame.call.outer
            = p->p_await_frames == NULL ? NULL : &p->p_await_frames->call;
        p->p_await_frames = &frame;
    }
    result = drive(st, &frame);
    if (noted) {
        p->p_await_frames = outer_frame(&frame);
    }
    Py_DECREF(frame.iterator);
    return result;
}
