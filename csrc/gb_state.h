/* The module's state: listed once in GB_STATE_OBJECTS, from which its
 * declaration, traverse and clear are made. */
#ifndef GB_STATE_H
#define GB_STATE_H

#include "gb_compat.h"

struct gb_engine;

#define GB_STATE_OBJECTS(X)                    \
    X(PyObject, modules)                       \
    /* our types */                            \
    X(PyTypeObject, PortalType)                \
    X(PyTypeObject, CoroutineWrapperType)      \
    X(PyTypeObject, StandInType)               \
    X(PyTypeObject, FunctionType)              \
    X(PyTypeObject, AsyncContextType)          \
    X(PyTypeObject, AsyncIterType)             \
    X(PyTypeObject, AsyncGeneratorType)        \
    /* of the native coroutine type */         \
    X(PyObject, coroutine_throw)               \
    X(PyObject, coroutine_close)               \
    /* imports */                              \
    X(PyObject, abc_coroutine)                 \
    X(PyObject, sniffio_thread_local)          \
    X(PyObject, sniffio_library_variable)      \
    X(PyObject, sniffio_current_async_library) \
    X(PyObject, update_wrapper)                \
    X(PyObject, gc_callbacks)                  \
    X(PyObject, note_collection)               \
    X(PyObject, engine_reason)                 \
    /* interned names */                       \
    X(PyObject, str_send)                      \
    X(PyObject, str_throw)                     \
    X(PyObject, str_close)                     \
    X(PyObject, str_name)                      \
    X(PyObject, str_aw)                        \
    X(PyObject, str_coro)                      \
    X(PyObject, str_context)                   \
    X(PyObject, str_done)                      \
    X(PyObject, str_get_coro)                  \
    X(PyObject, str_get_context)               \
    X(PyObject, str_get_running_loop)          \
    X(PyObject, str_current_task)              \
    X(PyObject, str_asyncio)                   \
    X(PyObject, str_asyncio_tasks)             \
    X(PyObject, str_trio_lowlevel)             \
    X(PyObject, str_next_send_fn)              \
    X(PyObject, str_cr_await)                  \
    X(PyObject, str_gi_yieldfrom)              \
    X(PyObject, str_asend)                     \
    X(PyObject, str_athrow)                    \
    X(PyObject, str_aclose)                    \
    X(PyObject, str_aiter)                     \
    X(PyObject, str_anext)                     \
    X(PyObject, str_aenter)                    \
    X(PyObject, str_aexit)                     \
    X(PyObject, str_annotations)               \
    X(PyObject, str_qualname)                  \
    X(PyObject, str_orphans)

typedef struct {
    /* Which engine runs the steps. */
    const struct gb_engine *engine;
#define X(type, name) type *name;
    GB_STATE_OBJECTS(X)
#undef X
    /* The first of those that wait to be unwound (gb_orphans.c), linked by
     * p_next_orphan; NULL for none. */
    struct PortalObject *orphans;
    /* See gb_tools_watch. */
    const unsigned char *monitors;
    /* Whether coroutines may be retyped; if not, all get a stand-in. */
    bool may_retype;
} gb_state;

static inline gb_state *
gb_state_of_module(PyObject *module)
{
    gb_state *st = (gb_state *)PyModule_GetState(module);
    assert(st != NULL);
    return st;
}

/* For a type made from a spec of ours: exactly that type, not a subclass. */
static inline gb_state *
gb_state_of_class(PyTypeObject *defining_class)
{
    gb_state *st = (gb_state *)PyType_GetModuleState(defining_class);
    assert(st != NULL);
    return st;
}

extern struct PyModuleDef gb_module_def;

/* For any type that has one of ours among its bases.  NULL with an exception
 * if it has not. */
static inline gb_state *
gb_state_of_type(PyTypeObject *type)
{
    PyObject *module = PyType_GetModuleByDef(type, &gb_module_def);
    return module == NULL ? NULL : gb_state_of_module(module);
}

#endif
