/* Event loops: which one runs here, what its current task is, how to reach a
 * task's coroutine.  Knows nothing of portals.  One file implements each loop
 * and is the only one that knows it. */
#ifndef GB_LOOP_H
#define GB_LOOP_H

#include "gb_state.h"

typedef struct gb_loop {
    /* As sniffio calls it. */
    const char *name;

    /* 1 if `task` is a task of this loop's kind, 0 if not, -1 with an
     * exception.  May run Python code. */
    int (*owns)(gb_state *st, PyObject *task);

    /* The running task of this thread, a new reference; NULL without an
     * exception if there is none, with one if asking failed.  May run Python
     * code. */
    PyObject *(*current_task)(gb_state *st);

    /* Whether the loop runs on this thread, in a task or not.  1 or 0, or -1
     * with an exception. */
    int (*runs)(gb_state *st);

    /* The Context in which the task's steps run, a new reference; NULL
     * without an exception if it can't be had. */
    PyObject *(*context)(gb_state *st, PyObject *task);

    /* The task's coroutine, a new reference; None if it has none any more;
     * NULL with an exception. */
    PyObject *(*coroutine)(gb_state *st, PyObject *task);

    /* Make the loop drive `replacement` instead of `coroutine`, the task's
     * present one.  0, or -1 with an exception and nothing changed. */
    int (*replace_coroutine)(gb_state *st, PyObject *task, PyObject *coroutine,
                             PyObject *replacement);

    /* The task's coroutine has changed its type: forget what the loop has
     * looked up on it.  0, or -1 with an exception. */
    int (*coroutine_retyped)(gb_state *st, PyObject *task,
                             PyObject *coroutine);
} gb_loop;

extern const gb_loop gb_asyncio_loop;
extern const gb_loop gb_trio_loop;

/* The task that is running on this thread, a new reference, and its loop in
 * *loop (if loop is not NULL).  NULL without an exception if there is none or
 * its loop is not known to us, with one if asking failed.  Must be called
 * without an exception pending.  May run Python code. */
PyObject *gb_loop_current_task(gb_state *st, const gb_loop **loop);

/* As gb_loop_current_task, but with an exception if there is none: what
 * sniffio raises where no library runs, RuntimeError for a library that we
 * don't support or when the library runs no task here. */
PyObject *gb_loop_require_current_task(gb_state *st, const gb_loop **loop);

/* Whether what runs here is none of the loops that we know: a coroutine
 * runner of its own, or nothing.  1 or 0, or -1 with an exception. */
int gb_loop_is_unknown(gb_state *st);

typedef enum {
    GB_ANSWER_FAILED = -1, /* with an exception */
    GB_ANSWER_NO,
    GB_ANSWER_YES,
    GB_ANSWER_UNKNOWN,
} gb_answer;

/* Whether the steps of `task` are run in `context`.  Unknown where asyncio
 * doesn't tell (C tasks in 3.11), and the context is no Trio task's.  May run
 * Python code. */
gb_answer gb_loop_task_has_context(gb_state *st, const gb_loop *loop,
                                   PyObject *task, PyObject *context);

/* The loop that `task` belongs to, NULL with TypeError if it is of none. */
const gb_loop *gb_loop_of_task(gb_state *st, PyObject *task);

/* Helper for loops: sys.modules[name], a new reference; NULL without an
 * exception if it has not been imported, with one if asking failed. */
PyObject *gb_loop_imported_module(gb_state *st, PyObject *name);

#endif
