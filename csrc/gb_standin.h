/* What stands in for a coroutine where that can't be retyped, and the
 * iterator that a retyped coroutine's __await__() gives. */
#ifndef GB_STANDIN_H
#define GB_STANDIN_H

#include "gb_portal.h"

/* A stand-in with a new portal for any object that has send, throw and close;
 * NULL with an exception. */
PyObject *gb_stand_in_new(gb_state *st, PyObject *wrapped,
                          gb_portal_state state, PyObject *task);

/* Give a stand-in that has lost its portal a new one.  1 done, 0 if `object`
 * is no stand-in, -1 with an exception. */
int gb_stand_in_equip(gb_state *st, PyObject *object, gb_portal_state state,
                      PyObject *task);

/* The portal of a stand-in, borrowed; NULL without an exception if `object`
 * is none or has lost its portal. */
PortalObject *gb_stand_in_portal(gb_state *st, PyObject *object);

/* An iterator that drives `coroutine` through its own methods; NULL with an
 * exception. */
PyObject *gb_coroutine_wrapper_new(gb_state *st, PyObject *coroutine);

int gb_stand_in_add_types(PyObject *module, gb_state *st);

#endif
