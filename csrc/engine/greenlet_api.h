/* greenlet's C API, as far as we use it.  Greenlets are plain objects here:
 * greenlet.h keeps a static pointer per C file, so that only one includes it.
 */
#ifndef GB_GREENLET_API_H
#define GB_GREENLET_API_H

#include "gb_compat.h"

/* Import greenlet and its API.  0, or -1 with an exception. */
int gb_greenlet_import(void);

/* For gb_greenlet_is_loaded: whether greenlet has been seen, or how many
 * modules there were when it had not. */
typedef struct {
    bool loaded;
    Py_ssize_t modules;
} gb_greenlet_sight;
extern gb_greenlet_sight gb_greenlet_seen;

bool gb_greenlet_look_for(PyObject *modules);

/* Whether greenlet has been imported by anyone; if so, its API is ready.
 * Never imports it.  `modules` is sys.modules.  Cannot fail; keeps a pending
 * exception.  May run Python code when greenlet is seen for the first time. */
static inline bool
gb_greenlet_is_loaded(PyObject *modules)
{
    /* Asked at each step: looks again only when modules were imported. */
    if (GB_LIKELY(gb_greenlet_seen.loaded
                  || PyDict_GET_SIZE(modules) == gb_greenlet_seen.modules)) {
        return gb_greenlet_seen.loaded;
    }
    return gb_greenlet_look_for(modules);
}

/* Whether `greenlet` is the main one of its thread.  Cannot fail. */
bool gb_greenlet_is_main(PyObject *greenlet);

/* Whether `greenlet` has been started and has not ended.  Cannot fail. */
bool gb_greenlet_is_active(PyObject *greenlet);

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

/* The same with the arguments in a tuple. */
PyObject *gb_greenlet_switch_with(PyObject *greenlet, PyObject *arguments);

/* greenlet.settrace(): have `tracer` (NULL for none) called at each switch, in
 * the greenlet that was switched to.  0, or -1 with an exception; if `old` is
 * given, it gets the one before (a new reference, or NULL for none). */
int gb_greenlet_set_tracer(PyObject *tracer, PyObject **old);

/* greenlet.gettrace(): a new reference, NULL for none or with an exception. */
PyObject *gb_greenlet_tracer(void);

#endif
