/* greenlet's C API, as far as we use it.  Greenlets are plain objects here:
 * greenlet.h keeps a static pointer per C file, so that only one includes it.
 */
#ifndef GB_GREENLET_API_H
#define GB_GREENLET_API_H

#include "gb_compat.h"

/* Import greenlet and its API.  0, or -1 with an exception. */
int gb_greenlet_import(void);

/* The running greenlet, a new reference; NULL with an exception. */
PyObject *gb_greenlet_current(void);

/* The main greenlet of the thread that `greenlet` belongs to, a new
 * reference. */
PyObject *gb_greenlet_main_of(PyObject *greenlet);

/* Let what ends `greenlet` arrive in `parent`.  0, or -1 with an exception. */
int gb_greenlet_set_parent(PyObject *greenlet, PyObject *parent);

/* A greenlet that will call `run`; NULL with an exception. */
PyObject *gb_greenlet_new(PyObject *run, PyObject *parent);

/* Switch to `greenlet` with no arguments.  What is switched back to us with,
 * a new reference, or NULL with an exception.  Switches stacks: runs any
 * Python code, and comes back whenever someone switches here. */
PyObject *gb_greenlet_switch(PyObject *greenlet);

#endif
