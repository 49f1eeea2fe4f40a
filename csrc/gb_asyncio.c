/* asyncio, and with it uvloop: its tasks are asyncio's. */
#include "gb_loop.h"

/* asyncio.NAME, a new reference.  NULL without an exception if asyncio has
 * not been imported, with one if it has no such name. */
static PyObject *
asyncio_attribute(gb_state *st, PyObject *name)
{
    PyObject *attribute;
    PyObject *asyncio = gb_loop_imported_module(st, st->str_asyncio);
    if (asyncio == NULL) {
        return NULL;
    }
    attribute = PyObject_GetAttr(asyncio, name);
    Py_DECREF(asyncio);
    return attribute;
}

/* Names of asyncio.tasks under which a task's class may stand: a Python task
 * is no instance of the C one, and programs that patch asyncio rebind Task. */
static const char *const task_classes[] = {"Task", "_CTask", "_PyTask"};

static int
asyncio_owns(gb_state *st, PyObject *task)
{
    PyObject *tasks;
    int owns = 0;

    tasks = gb_loop_imported_module(st, st->str_asyncio_tasks);
    if (tasks == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    for (size_t i = 0; owns == 0 && i < Py_ARRAY_LENGTH(task_classes); i++) {
        PyObject *class;
        owns = PyObject_GetOptionalAttrString(tasks, task_classes[i], &class);
        if (owns > 0) {
            owns = PyObject_IsInstance(task, class);
            Py_DECREF(class);
        }
    }
    Py_DECREF(tasks);
    return owns;
}

static PyObject *
asyncio_current_task(gb_state *st)
{
    PyObject *task = NULL;
    PyObject *function = asyncio_attribute(st, st->str_current_task);
    if (function != NULL) {
        task = PyObject_CallNoArgs(function);
        Py_DECREF(function);
    }
    if (task == Py_None) {
        Py_CLEAR(task);
    }
    else if (task == NULL && PyErr_Occurred()
             && PyErr_ExceptionMatches(PyExc_RuntimeError)) {
        PyErr_Clear(); /* no running loop */
    }
    return task;
}

static int
asyncio_runs(gb_state *st)
{
    PyObject *loop = NULL;
    PyObject *function = asyncio_attribute(st, st->str_get_running_loop);
    if (function != NULL) {
        loop = PyObject_CallNoArgs(function); /* None if there is none */
        Py_DECREF(function);
    }
    if (loop == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    Py_DECREF(loop);
    return loop != Py_None;
}

/* Since 3.12 tasks tell; in 3.11 Python tasks have it in an attribute. */
static PyObject *
asyncio_context(gb_state *st, PyObject *task)
{
    /* Looked for without making an AttributeError: in foreign greenlets, 3.11
     * asks at each await_. */
    PyObject *context = NULL, *get_context;
    if (PyObject_GetOptionalAttr(task, st->str_get_context, &get_context)
        > 0) {
        context = PyObject_CallNoArgs(get_context);
        Py_DECREF(get_context);
    }
    else if (!PyErr_Occurred()) {
        (void)PyObject_GetOptionalAttrString(task, "_context", &context);
    }
    if (context == NULL) {
        PyErr_Clear();
    }
    return context;
}

static PyObject *
asyncio_coroutine(gb_state *st, PyObject *task)
{
    /* Asked first, since get_coro() of an eager task that has ended crashes
     * in 3.12.0 and 3.12.1. */
    PyObject *done = PyObject_CallMethodNoArgs(task, st->str_done);
    int is_done = done == NULL ? -1 : PyObject_IsTrue(done);
    Py_XDECREF(done);
    if (is_done != 0) {
        return is_done < 0 ? NULL : Py_NewRef(Py_None);
    }
    return PyObject_CallMethodNoArgs(task, st->str_get_coro);
}

/* The C Task has no setter for its coroutine: find the field by scanning the
 * object for the pointer, and prove by get_coro() that it is the right one.
 * 1 replaced, 0 not found, -1 with an exception.  May run Python code. */
static int
replace_in_c_task(gb_state *st, PyObject *task, PyObject *coroutine,
                  PyObject *replacement)
{
    char *end = (char *)task + Py_TYPE(task)->tp_basicsize;
    PyObject **field = (PyObject **)((char *)task + sizeof(PyObject));

    for (; (char *)(field + 1) <= end; field++) {
        PyObject *present;
        if (*field != coroutine) {
            continue;
        }
        *field = Py_NewRef(replacement);
        present = asyncio_coroutine(st, task);
        if (present == replacement) {
            Py_DECREF(present);
            Py_DECREF(coroutine); /* the field's reference */
            return 1;
        }
        *field = coroutine;
        Py_DECREF(replacement);
        if (present == NULL) {
            return -1;
        }
        Py_DECREF(present);
    }
    return 0;
}

static int
asyncio_replace_coroutine(gb_state *st, PyObject *task, PyObject *coroutine,
                          PyObject *replacement)
{
    int replaced;
    if (PyObject_SetAttrString(task, "_coro", replacement) == 0) {
        return 0; /* a task implemented in Python */
    }
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return -1;
    }
    PyErr_Clear();
    replaced = replace_in_c_task(st, task, coroutine, replacement);
    if (replaced == 0) {
        PyErr_Format(PyExc_RuntimeError,
                     "can't put a portal in %R: the field of %.200s that "
                     "holds its coroutine was not found",
                     task, Py_TYPE(task)->tp_name);
    }
    return replaced > 0 ? 0 : -1;
}

static int
asyncio_coroutine_retyped(gb_state *Py_UNUSED(st), PyObject *Py_UNUSED(task),
                          PyObject *Py_UNUSED(coroutine))
{
    return 0; /* looks its send and throw up at each step */
}

const gb_loop gb_asyncio_loop = {
    .name = "asyncio",
    .owns = asyncio_owns,
    .current_task = asyncio_current_task,
    .runs = asyncio_runs,
    .context = asyncio_context,
    .coroutine = asyncio_coroutine,
    .replace_coroutine = asyncio_replace_coroutine,
    .coroutine_retyped = asyncio_coroutine_retyped,
};
