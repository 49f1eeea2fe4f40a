/* Portals and tasks: put one on a task, ask whether a task has one. */
#ifndef GB_TASK_H
#define GB_TASK_H

#include "gb_coroutine.h"
#include "gb_standin.h"

/* Put a portal on `task`, active from its next step; nothing if it has one.
 * 0, or -1 with an exception.  May run Python code. */
int gb_task_bestow(gb_state *st, PyObject *task);

/* Take the portal off `task` as soon as it ends a step with nothing waiting
 * in await_.  0, or -1 with an exception. */
int gb_task_remove(gb_state *st, PyObject *task);

/* Whether await_ would work in `task` (NULL: in what runs now); 1 or 0, or -1
 * with an exception.  May run Python code. */
int gb_task_has_portal(gb_state *st, PyObject *task);

/* Raise what await_ has to raise where gb_portal_here has found nothing; an
 * exception of the look-up stays. */
void gb_task_raise_no_portal(gb_state *st);

/* What await_ does where gb_portal_here has found nothing: await in the loop
 * that this thread works for, which blocks the thread, or raise.  A new
 * reference, or NULL with an exception; an exception of the look-up stays.
 * Runs Python code. */
PyObject *gb_task_await_without_portal(gb_state *st, PyObject *awaitable);

extern PyMethodDef gb_task_methods[];

#endif
