/* Portals for asyncio tasks that do not exist yet: the coroutine gets its
 * portal first, then the task is made of it, so that even an eager task has it
 * from its first step. */
#ifndef GB_FACTORY_H
#define GB_FACTORY_H

#include "gb_task.h"
#include "gb_tree.h"

int gb_factory_add_types(PyObject *module, gb_state *st);

#endif
