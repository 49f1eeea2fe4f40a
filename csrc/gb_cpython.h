/* CPython's insides, per minor version: thread state, coroutine layout,
 * contexts, the garbage collector.  No other file knows them. */
#ifndef GB_CPYTHON_H
#define GB_CPYTHON_H

#include "gb_compat.h"

/* What is left of the recursion limits, as the loop's stack had it. */
typedef struct {
    int python;
    int c;
} gb_recursion_budget;

/* Where a coroutine stands, by its own frame. */
typedef enum {
    GB_COROUTINE_CREATED,
    GB_COROUTINE_SUSPENDED,
    GB_COROUTINE_EXECUTING,
    GB_COROUTINE_FINISHED,
} gb_coroutine_stage;

/* ------------------------------------------------- thread state, inlined */

/* The Context that is entered now.  Borrowed; NULL if there is none yet. */
static inline PyObject *
gb_cpython_context(PyThreadState *ts)
{
    return ts->context;
}

/* Make `context` (borrowed, may be NULL) the entered one, without the checks
 * of PyContext_Enter.  May run Python code: the old one may die. */
static inline void
gb_cpython_set_context(PyThreadState *ts, PyObject *context)
{
    PyObject *old = ts->context;
    ts->context = Py_XNewRef(context);
    ts->context_ver++;
    Py_XDECREF(old);
}

/* Hide the Python frames of this stack: until they are shown again the thread
 * seems to run none.  What is returned is for gb_cpython_show_frames. */
static inline struct _PyInterpreterFrame *
gb_cpython_hide_frames(PyThreadState *ts)
{
#if PY_VERSION_HEX >= 0x030d0000
    struct _PyInterpreterFrame **current = &ts->current_frame;
#else
    struct _PyInterpreterFrame **current = &ts->cframe->current_frame;
#endif
    struct _PyInterpreterFrame *frames = *current;
#if PY_VERSION_HEX >= 0x030f0000
    *current = ts->base_frame; /* where the chain of every thread ends */
#else
    *current = NULL;
#endif
    return frames;
}

static inline void
gb_cpython_show_frames(PyThreadState *ts, struct _PyInterpreterFrame *frames)
{
#if PY_VERSION_HEX >= 0x030d0000
    ts->current_frame = frames;
#else
    ts->cframe->current_frame = frames;
#endif
}

static inline gb_recursion_budget
gb_cpython_recursion_budget(PyThreadState *ts)
{
    gb_recursion_budget budget = {0, 0};
#if PY_VERSION_HEX >= 0x030c0000
    budget.python = ts->py_recursion_remaining;
#if PY_VERSION_HEX < 0x030e0000
    budget.c = ts->c_recursion_remaining;
#endif
#else
    budget.python = ts->recursion_remaining;
#endif
    return budget;
}

static inline void
gb_cpython_set_recursion_budget(PyThreadState *ts, gb_recursion_budget budget)
{
#if PY_VERSION_HEX >= 0x030c0000
    ts->py_recursion_remaining = budget.python;
#if PY_VERSION_HEX < 0x030e0000
    ts->c_recursion_remaining = budget.c;
#endif
#else
    ts->recursion_remaining = budget.python;
#endif
}

/* The exception that is being handled now.  New reference, NULL for none. */
static inline PyObject *
gb_cpython_handled_exception(PyThreadState *ts)
{
    for (_PyErr_StackItem *item = ts->exc_info; item != NULL;
         item = item->previous_item) {
        if (item->exc_value != NULL && item->exc_value != Py_None) {
            return Py_NewRef(item->exc_value);
        }
    }
    return NULL;
}

/* Set what the outermost frames of this stack see as being handled; steals
 * `exc`, NULL for nothing.  May run Python code: the old one may die. */
static inline void
gb_cpython_set_outermost_handled_exception(PyThreadState *ts, PyObject *exc)
{
    PyObject *old = ts->exc_state.exc_value;
    ts->exc_state.exc_value = exc;
    Py_XDECREF(old);
}

/* --------------------------------------------------------- coroutine layout */

/* Offset in a coroutine object of the field which holds its origin. */
extern const size_t gb_cpython_origin_offset;

/* The field of an exact coroutine (or one retyped by us) which holds its
 * origin: a tuple or NULL, and while we have retyped it the portal. */
static inline PyObject **
gb_cpython_origin_slot(PyObject *coroutine)
{
    return (PyObject **)((char *)coroutine + gb_cpython_origin_offset);
}

/* Cannot fail, runs no Python code. */
gb_coroutine_stage gb_cpython_coroutine_stage(PyObject *coroutine);

/* Prove on a coroutine made for it that the layout above is the one of the
 * running interpreter.  1 it is, 0 it is not, -1 with an exception.
 * Runs Python code. */
int gb_cpython_check_coroutine_layout(void);

/* ----------------------------------------------------------- interpreter */

/* Whether a garbage collection is under way.  Cannot fail. */
bool gb_cpython_gc_running(PyThreadState *ts);

/* Of two Contexts, the one that was entered last on this thread, NULL if
 * neither is entered.  Borrowed.  Cannot fail. */
PyObject *gb_cpython_innermost_context(PyThreadState *ts, PyObject *a,
                                       PyObject *b);

/* Whether this is the main interpreter.  Cannot fail. */
bool gb_cpython_is_main_interpreter(void);

#endif
