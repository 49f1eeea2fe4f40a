/* The extension module: knows all types, has no logic. */
#include "gb_await.h"
#include "gb_collector.h"
#include "gb_factory.h"
#include "gb_function.h"
#include "gb_guard.h"
#include "gb_orphans.h"
#include "gb_tools.h"
#include "gb_wrappers.h"

/* ------------------------------------------------------------------- state */

/* An attribute of a module, a new reference; NULL with an exception. */
static PyObject *
import_attribute(const char *module_name, const char *name)
{
    PyObject *attribute = NULL;
    PyObject *module = PyImport_ImportModule(module_name);
    if (module != NULL) {
        attribute = PyObject_GetAttrString(module, name);
        Py_DECREF(module);
    }
    return attribute;
}

typedef struct {
    size_t offset; /* of a member of gb_state */
    const char *text;
} interned_name;

#define NAME(member, text) {offsetof(gb_state, member), text}
static const interned_name names[] = {
    NAME(str_send, "send"),
    NAME(str_throw, "throw"),
    NAME(str_close, "close"),
    NAME(str_name, "name"),
    NAME(str_aw, "aw"),
    NAME(str_coro, "coro"),
    NAME(str_context, "context"),
    NAME(str_done, "done"),
    NAME(str_get_coro, "get_coro"),
    NAME(str_get_context, "get_context"),
    NAME(str_get_running_loop, "_get_running_loop"),
    NAME(str_current_task, "current_task"),
    NAME(str_asyncio, "asyncio"),
    NAME(str_asyncio_tasks, "asyncio.tasks"),
    NAME(str_trio_lowlevel, "trio.lowlevel"),
    NAME(str_next_send_fn, "_next_send_fn"),
    NAME(str_cr_await, "cr_await"),
    NAME(str_gi_yieldfrom, "gi_yieldfrom"),
    NAME(str_asend, "asend"),
    NAME(str_athrow, "athrow"),
    NAME(str_aclose, "aclose"),
    NAME(str_aiter, "__aiter__"),
    NAME(str_anext, "__anext__"),
    NAME(str_aenter, "__aenter__"),
    NAME(str_aexit, "__aexit__"),
    NAME(str_annotations, "__annotations__"),
    NAME(str_qualname, "__qualname__"),
    NAME(str_orphans, "greenback.orphans"),
};
#undef NAME

static int
add_names(gb_state *st)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
        PyObject *name = PyUnicode_InternFromString(names[i].text);
        if (name == NULL) {
            return -1;
        }
        *(PyObject **)((char *)st + names[i].offset) = name;
    }
    return 0;
}

typedef struct {
    size_t offset; /* of a member of gb_state */
    const char *module;
    const char *name;
} imported_object;

#define IMPORT(member, module, name) {offsetof(gb_state, member), module, name}
static const imported_object imports[] = {
    IMPORT(modules, "sys", "modules"),
    IMPORT(abc_coroutine, "collections.abc", "Coroutine"),
    IMPORT(update_wrapper, "functools", "update_wrapper"),
    IMPORT(sniffio_thread_local, "sniffio", "thread_local"),
    IMPORT(sniffio_library_variable, "sniffio", "current_async_library_cvar"),
    IMPORT(sniffio_current_async_library, "sniffio", "current_async_library"),
};
#undef IMPORT

static int
add_imports(gb_state *st)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(imports); i++) {
        PyObject *object
            = import_attribute(imports[i].module, imports[i].name);
        if (object == NULL) {
            return -1;
        }
        *(PyObject **)((char *)st + imports[i].offset) = object;
    }
    st->coroutine_throw
        = PyObject_GetAttrString((PyObject *)&PyCoro_Type, "throw");
    st->coroutine_close
        = PyObject_GetAttrString((PyObject *)&PyCoro_Type, "close");
    return st->coroutine_throw == NULL || st->coroutine_close == NULL ? -1 : 0;
}

/* ----------------------------------------------------------------- methods */

static PyObject *
module_waiting_stack(PyObject *module, PyObject *coroutine)
{
    gb_state *st = gb_state_of_module(module);
    PortalObject *p = gb_coroutine_portal(st, coroutine);
    if (p == NULL) {
        Py_RETURN_NONE;
    }
    return st->engine->waiting_stack(p);
}

static PyObject *
module_innermost_awaited(PyObject *module, PyObject *coroutine)
{
    PortalObject *p
        = gb_coroutine_portal(gb_state_of_module(module), coroutine);
    if (p == NULL || p->p_state != PORTAL_SUSPENDED || p->p_awaiting == NULL) {
        Py_RETURN_NONE;
    }
    return Py_NewRef(p->p_awaiting);
}

static PyObject *
module_engine_counters(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    return gb_state_of_module(module)->engine->counters();
}

static PyObject *
module_values_below(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *code;
    Py_ssize_t index;
    if (!PyArg_ParseTuple(args, "O!n:values_below", &PyCode_Type, &code,
                          &index)) {
        return NULL;
    }
    return gb_frames_values_below((PyCodeObject *)code, index);
}

PyDoc_STRVAR(waiting_stack_doc,
"waiting_stack($module, coroutine, /)\n"
"--\n"
"\n"
"What waits in await_() for a coroutine's next step: a tuple (innermost frame\n"
"on the step's own stack or None, greenlet that waits or None, greenlet that\n"
"ends its chain of parents or None); None if nothing waits.");

PyDoc_STRVAR(engine_counters_doc,
"engine_counters($module, /)\n"
"--\n"
"\n"
"For tests: how often the engine did what, as a dict of ints.");

PyDoc_STRVAR(innermost_awaited_doc,
"innermost_awaited($module, coroutine, /)\n"
"--\n"
"\n"
"What the innermost await_() drives in which a coroutine's step waits; None if\n"
"it waits in none.");

PyDoc_STRVAR(values_below_doc,
"values_below($module, code, index, /)\n"
"--\n"
"\n"
"For tests: how many values a frame of ``code`` has on its stack below those\n"
"that the instruction at code unit ``index`` works on, as the bytecode tells\n"
"(CPython 3.11 to 3.13); None where frames tell it themselves.");

static PyMethodDef module_methods[] = {
    {"waiting_stack", module_waiting_stack, METH_O, waiting_stack_doc},
    {"engine_counters", module_engine_counters, METH_NOARGS,
     engine_counters_doc},
    {"values_below", module_values_below, METH_VARARGS, values_below_doc},
    {"innermost_awaited", module_innermost_awaited, METH_O,
     innermost_awaited_doc},
    {NULL, NULL, 0, NULL},
};

/* -------------------------------------------------------------------- init */

/* Start the engine that has been chosen.  0, or -1 with an exception. */
static int
start_engine(gb_state *st)
{
    if (st->engine_reason == NULL) {
        return -1;
    }
    if (st->engine->init(st) == 0) {
        return 0;
    }
    if (PyErr_ExceptionMatches(PyExc_ModuleNotFoundError)) {
        PyErr_Format(PyExc_ImportError,
                     "greenback needs the package greenlet here, as %U; "
                     "install greenback[greenlet]",
                     st->engine_reason);
    }
    return -1;
}

/* Get the engine going that GREENBACK_ENGINE asks for.  0, or -1 with an
 * exception. */
static int
use_wanted_engine(gb_state *st, const char *wanted)
{
    static const gb_engine *const engines[]
        = {&gb_direct_engine, &gb_greenlet_engine};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(engines); i++) {
        const char *why_not;
        if (strcmp(wanted, engines[i]->name) != 0) {
            continue;
        }
        why_not = engines[i]->why_not();
        if (why_not != NULL) {
            PyErr_Format(PyExc_ImportError,
                         "GREENBACK_ENGINE=%s: the %s engine can't be used, "
                         "since %s",
                         wanted, wanted, why_not);
            return -1;
        }
        st->engine = engines[i];
        st->engine_reason
            = PyUnicode_FromFormat("GREENBACK_ENGINE=%s asks for it", wanted);
        return start_engine(st);
    }
    PyErr_Format(PyExc_ImportError,
                 "GREENBACK_ENGINE=%.100s: there is no such engine; use '%s' "
                 "or '%s'",
                 wanted, engines[0]->name, engines[1]->name);
    return -1;
}

static int
choose_engine(gb_state *st)
{
    const char *why_not, *wanted = getenv("GREENBACK_ENGINE");

    st->monitors = gb_tools_monitors();

    if (wanted != NULL && *wanted != '\0') {
        return use_wanted_engine(st, wanted);
    }
    why_not = gb_direct_engine.why_not();
    if (why_not != NULL) {
        st->engine = &gb_greenlet_engine;
        st->engine_reason = PyUnicode_FromFormat(
            "the direct engine can't be used, since %s", why_not);
    }
    else {
        st->engine = &gb_direct_engine;
        st->engine_reason = PyUnicode_FromString(
            "it is the fastest, and this CPython and this CPU allow it");
    }
    return start_engine(st);
}

static int
choose_form(gb_state *st)
{
    const char *wanted = getenv("GREENBACK_FORM");
    int layout_known = gb_cpython_check_coroutine_layout();
    if (layout_known < 0) {
        return -1;
    }
    st->may_retype
        = layout_known && (wanted == NULL || strcmp(wanted, "standin") != 0);
    return 0;
}

static int
module_exec(PyObject *module)
{
    gb_state *st = gb_state_of_module(module);

    if (!gb_cpython_is_main_interpreter()) {
        PyErr_SetString(PyExc_ImportError,
                        "greenback can't be imported in a subinterpreter");
        return -1;
    }
    gb_frames_init();
    if (add_names(st) < 0 || add_imports(st) < 0 || choose_engine(st) < 0
        || choose_form(st) < 0) {
        return -1;
    }
    if (gb_portal_add_types(module, st) < 0
        || gb_coroutine_add_types(module, st) < 0
        || gb_function_add_types(module, st) < 0
        || gb_factory_add_types(module, st) < 0
        || gb_guard_add_types(module, st) < 0
        || gb_wrappers_add_types(module, st) < 0
        || gb_collector_watch(module, st, gb_orphans_reap) < 0) {
        return -1;
    }
    if (PyModule_AddFunctions(module, gb_task_methods) < 0
        || PyModule_AddFunctions(module, gb_function_methods) < 0) {
        return -1;
    }
    if (PyModule_AddObjectRef(module, "engine_reason", st->engine_reason)
        < 0) {
        return -1;
    }
    return PyModule_AddStringConstant(module, "engine", st->engine->name);
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    gb_state *st = gb_state_of_module(module);
#define X(type, name) Py_VISIT(st->name);
    GB_STATE_OBJECTS(X)
#undef X
    return 0;
}

static int
module_clear(PyObject *module)
{
    gb_state *st = gb_state_of_module(module);
#define X(type, name) Py_CLEAR(st->name);
    GB_STATE_OBJECTS(X)
#undef X
    return 0;
}

static void
module_free(void *module)
{
    (void)module_clear((PyObject *)module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    /* greenlet isn't made for them, and the retyped coroutine is a static
     * type. */
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

struct PyModuleDef gb_module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "greenback._core",
    .m_doc = "The core of greenback, in C.",
    .m_size = sizeof(gb_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&gb_module_def);
}
