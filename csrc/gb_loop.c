#include "gb_loop.h"

#include "gb_cpython.h"

static const gb_loop *const loops[] = {&gb_asyncio_loop, &gb_trio_loop};

PyObject *
gb_loop_imported_module(gb_state *st, PyObject *name)
{
    PyObject *module;
    if (PyDict_GetItemRef(st->modules, name, &module) < 0) {
        return NULL;
    }
    if (module == Py_None) { /* an import that was blocked on purpose */
        Py_CLEAR(module);
    }
    return module;
}

/* What the running library has told sniffio: its name, a new reference; NULL
 * without an exception if it has told nothing. */
static PyObject *
announced_library(gb_state *st)
{
    PyObject *name = PyObject_GetAttr(st->sniffio_thread_local, st->str_name);
    if (name == Py_None) {
        Py_CLEAR(name);
        if (PyContextVar_Get(st->sniffio_library_variable, NULL, &name) < 0) {
            return NULL;
        }
        if (name == Py_None) {
            Py_CLEAR(name);
        }
    }
    return name;
}

/* Both an asyncio and a Trio task say that they are current: one loop runs
 * inside a step of the other.  The inner one is whose Context was entered
 * last.  True if that is asyncio. */
static bool
asyncio_is_innermost(gb_state *st, PyObject *asyncio_task, PyObject *trio_task)
{
    PyThreadState *ts = PyThreadState_Get();
    PyObject *ours = gb_asyncio_loop.context(st, asyncio_task);
    PyObject *theirs = gb_trio_loop.context(st, trio_task);
    bool result;

    if (ours != NULL) {
        result = gb_cpython_innermost_context(ts, ours, theirs) == ours;
    }
    else { /* 3.11's asyncio does not tell */
        result = gb_cpython_context(ts) != theirs;
    }
    Py_XDECREF(ours);
    Py_XDECREF(theirs);
    return result;
}

static bool
is_name_of(const gb_loop *loop, PyObject *library)
{
    return PyUnicode_Check(library)
           && PyUnicode_EqualToUTF8(library, loop->name);
}

PyObject *
gb_loop_current_task(gb_state *st, const gb_loop **loop)
{
    PyObject *asyncio_task, *trio_task = NULL;
    PyObject *library = announced_library(st);
    bool trio_announced = false, other_announced = false;

    if (library != NULL) {
        trio_announced = is_name_of(&gb_trio_loop, library);
        other_announced
            = !trio_announced && !is_name_of(&gb_asyncio_loop, library);
        Py_DECREF(library);
    }
    if (other_announced || PyErr_Occurred()) {
        return NULL;
    }
    asyncio_task = gb_asyncio_loop.current_task(st);
    if (trio_announced && !PyErr_Occurred()) {
        trio_task = gb_trio_loop.current_task(st);
    }
    if (PyErr_Occurred()) {
        Py_CLEAR(asyncio_task);
        return NULL;
    }
    if (asyncio_task != NULL && trio_task != NULL) {
        if (asyncio_is_innermost(st, asyncio_task, trio_task)) {
            Py_CLEAR(trio_task);
        }
        else {
            Py_CLEAR(asyncio_task);
        }
    }
    if (loop != NULL) {
        *loop = trio_task != NULL ? &gb_trio_loop : &gb_asyncio_loop;
    }
    return trio_task != NULL ? trio_task : asyncio_task;
}

int
gb_loop_is_unknown(gb_state *st)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(loops); i++) {
        int runs = loops[i]->runs(st);
        if (runs != 0) {
            return runs < 0 ? -1 : 0;
        }
    }
    return 1;
}

gb_answer
gb_loop_task_has_context(gb_state *st, const gb_loop *loop, PyObject *task,
                         PyObject *context)
{
    gb_answer answer;
    PyObject *other, *of_task = loop->context(st, task);
    if (of_task != NULL) {
        answer = of_task == context ? GB_ANSWER_YES : GB_ANSWER_NO;
        Py_DECREF(of_task);
        return answer;
    }
    other = gb_trio_loop.current_task(st);
    if (other == NULL) {
        return PyErr_Occurred() ? GB_ANSWER_FAILED : GB_ANSWER_UNKNOWN;
    }
    of_task = gb_trio_loop.context(st, other);
    answer = of_task == context ? GB_ANSWER_NO : GB_ANSWER_UNKNOWN;
    Py_XDECREF(of_task);
    Py_DECREF(other);
    return answer;
}

PyObject *
gb_loop_require_current_task(gb_state *st, const gb_loop **loop)
{
    PyObject *library;
    PyObject *task = gb_loop_current_task(st, loop);
    if (task != NULL || PyErr_Occurred()) {
        return task;
    }
    /* AsyncLibraryNotFoundError comes from here. */
    library = PyObject_CallNoArgs(st->sniffio_current_async_library);
    if (library == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(loops); i++) {
        if (is_name_of(loops[i], library)) {
            PyErr_Format(PyExc_RuntimeError,
                         "no %s task is running here; call this from a task",
                         loops[i]->name);
            goto done;
        }
    }
    PyErr_Format(PyExc_RuntimeError, "greenback does not support %S", library);

done:
    Py_DECREF(library);
    return NULL;
}

const gb_loop *
gb_loop_of_task(gb_state *st, PyObject *task)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(loops); i++) {
        int owns = loops[i]->owns(st, task);
        if (owns != 0) {
            return owns < 0 ? NULL : loops[i];
        }
    }
    PyErr_Format(PyExc_TypeError,
                 "expected an asyncio or Trio task, not %.200s",
                 Py_TYPE(task)->tp_name);
    return NULL;
}
