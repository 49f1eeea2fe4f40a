/* Sections in which a task must not be suspended: greenback.forbid_await(). */
#ifndef GB_GUARD_H
#define GB_GUARD_H

#include "gb_portal.h"

int gb_guard_add_types(PyObject *module, gb_state *st);

#endif
