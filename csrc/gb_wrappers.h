/* Async context managers and iterators for sync code. */
#ifndef GB_WRAPPERS_H
#define GB_WRAPPERS_H

#include "gb_await.h"

int gb_wrappers_add_types(PyObject *module, gb_state *st);

#endif
