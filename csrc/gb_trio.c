/* Trio. */
#include "gb_loop.h"

/* trio.lowlevel.NAME, a new reference.  NULL without an exception if Trio
 * has not been imported, with one if it has no such name. */
static PyObject *
lowlevel_attribute(gb_state *st, const char *name)
{
    PyObject *attribute;
    PyObject *lowlevel = gb_loop_imported_module(st, st->str_trio_lowlevel);
    if (lowlevel == NULL) {
        return NULL;
    }
    attribute = PyObject_GetAttrString(lowlevel, name);
    Py_DECREF(lowlevel);
    return attribute;
}

static int
trio_owns(gb_state *st, PyObject *task)
{
    int owns;
    PyObject *type = lowlevel_attribute(st, "Task");
    if (type == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    owns = PyObject_IsInstance(task, type);
    Py_DECREF(type);
    return owns;
}

static PyObject *
trio_current_task(gb_state *st)
{
    PyObject *task = NULL;
    PyObject *function = lowlevel_attribute(st, "current_task");
    if (function != NULL) {
        task = PyObject_CallNoArgs(function);
        Py_DECREF(function);
    }
    if (task == NULL && PyErr_Occurred()
        && PyErr_ExceptionMatches(PyExc_RuntimeError)) {
        PyErr_Clear(); /* not in a task */
    }
    return task;
}

static int
trio_runs(gb_state *st)
{
    PyObject *answer = NULL;
    PyObject *function = lowlevel_attribute(st, "in_trio_run");
    if (function != NULL) {
        answer = PyObject_CallNoArgs(function);
        Py_DECREF(function);
    }
    if (answer == NULL) {
        if (PyErr_Occurred()
            && !PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return -1;
        }
        PyErr_Clear(); /* before Trio 0.23 it could not be asked */
        return 0;
    }
    Py_DECREF(answer);
    return answer == Py_True;
}

static PyObject *
trio_context(gb_state *st, PyObject *task)
{
    PyObject *context = PyObject_GetAttr(task, st->str_context);
    if (context == NULL) {
        PyErr_Clear();
    }
    return context;
}

static PyObject *
trio_coroutine(gb_state *st, PyObject *task)
{
    return PyObject_GetAttr(task, st->str_coro);
}

/* A task that is scheduled has its next step already bound: a method of the
 * coroutine that it had then, with the type it had then.  Bind it anew.
 * (trio/_core/_run.py: Task._next_send_fn) */
static int
rebind_next_step(gb_state *st, PyObject *task, PyObject *coroutine,
                 PyObject *replacement)
{
    PyObject *bound = NULL, *owner = NULL, *name = NULL, *again = NULL;
    int result = -1;

    if (PyObject_GetOptionalAttr(task, st->str_next_send_fn, &bound) < 0) {
        goto done;
    }
    if (bound == NULL || bound == Py_None) {
        result = 0; /* not scheduled */
        goto done;
    }
    if (PyObject_GetOptionalAttrString(bound, "__self__", &owner) < 0) {
        goto done;
    }
    if (owner != coroutine) {
        result = 0;
        goto done;
    }
    name = PyObject_GetAttrString(bound, "__name__");
    if (name == NULL) {
        goto done;
    }
    again = PyObject_GetAttr(replacement, name);
    if (again == NULL) {
        goto done;
    }
    result = PyObject_SetAttr(task, st->str_next_send_fn, again);

done:
    Py_XDECREF(again);
    Py_XDECREF(name);
    Py_XDECREF(owner);
    Py_XDECREF(bound);
    return result;
}

static int
trio_replace_coroutine(gb_state *st, PyObject *task, PyObject *coroutine,
                       PyObject *replacement)
{
    if (rebind_next_step(st, task, coroutine, replacement) < 0) {
        return -1;
    }
    return PyObject_SetAttr(task, st->str_coro, replacement);
}

static int
trio_coroutine_retyped(gb_state *st, PyObject *task, PyObject *coroutine)
{
    return rebind_next_step(st, task, coroutine, coroutine);
}

const gb_loop gb_trio_loop = {
    .name = "trio",
    .owns = trio_owns,
    .current_task = trio_current_task,
    .runs = trio_runs,
    .context = trio_context,
    .coroutine = trio_coroutine,
    .replace_coroutine = trio_replace_coroutine,
    .coroutine_retyped = trio_coroutine_retyped,
};
