/* Is the garbage collector at work below us on this C stack?  It keeps the
 * heads of its lists there, so that no stack may be cut then. */
#ifndef GB_COLLECTOR_H
#define GB_COLLECTOR_H

#include "gb_cpython.h"
#include "gb_state.h"

/* Whether a collection is under way on this thread.  Cannot fail. */
bool gb_collector_runs_here(gb_state *st, PyThreadState *ts);

/* Have gc.callbacks tell this module of collections; `ended` is called on the
 * collector's thread after each, may run Python code and switch stacks, and
 * keeps a pending exception.  0, or -1 with an exception. */
int gb_collector_watch(PyObject *module, gb_state *st,
                       void (*ended)(gb_state *));

#endif
