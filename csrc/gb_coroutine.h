/* The two forms in which a portal is put in place: a coroutine whose type we
 * have changed, and a stand-in for everything else. */
#ifndef GB_COROUTINE_H
#define GB_COROUTINE_H

#include "gb_portal.h"

/* The portal in `object`, borrowed: `object` is a retyped coroutine or a
 * stand-in that still has one.  NULL without an exception if not. */
PortalObject *gb_coroutine_portal(gb_state *st, PyObject *object);

/* Whether a portal can be put into `object` without a stand-in. */
bool gb_coroutine_may_retype(gb_state *st, PyObject *object);

/* Put a new portal into an exact coroutine.  0, or -1 with an exception. */
int gb_coroutine_retype(gb_state *st, PyObject *coroutine,
                        gb_portal_state state, PyObject *task);

int gb_coroutine_add_types(PyObject *module, gb_state *st);

#endif
