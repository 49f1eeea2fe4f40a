/* Functions in C that pass for Python functions. */
#ifndef GB_FUNCTION_H
#define GB_FUNCTION_H

#include "gb_await.h"

int gb_function_add_types(PyObject *module, gb_state *st);

extern PyMethodDef gb_function_methods[];

#endif
