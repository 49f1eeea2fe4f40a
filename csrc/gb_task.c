#include "gb_task.h"

#include "gb_drive.h"

/* Whether greenback._threads has to be asked: no loop of ours runs here, and
 * the interpreter is not about to end.  1 or 0, or -1 with an exception. */
static int
is_for_threads(gb_state *st)
{
    return Py_IsFinalizing() ? 0 : gb_loop_is_unknown(st);
}

/* Call a function of greenback._threads, which knows what can be done in
 * threads where no loop of ours runs.  A new reference, or NULL with an
 * exception.  Runs Python code. */
static PyObject *
ask_threads(const char *function, PyObject *arg)
{
    PyObject *result = NULL;
    PyObject *module = PyImport_ImportModule("greenback._threads");
    if (module != NULL) {
        /* without an argument if it is NULL */
        result = PyObject_CallMethod(module, function,
                                     arg == NULL ? NULL : "(O)", arg);
        Py_DECREF(module);
    }
    return result;
}

/* The portal on the coroutine that `task` is made of: the one that bestowing
 * puts there, not one further in.  Borrowed from *coroutine, a new reference
 * (None if the task has none any more).  NULL with or without an exception;
 * *coroutine is NULL in the former case. */
static PortalObject *
portal_of_task(gb_state *st, const gb_loop *loop, PyObject *task,
               PyObject **coroutine)
{
    *coroutine = loop->coroutine(st, task);
    if (*coroutine == NULL) {
        return NULL;
    }
    return gb_coroutine_portal(st, *coroutine);
}

static int
put_portal(gb_state *st, const gb_loop *loop, PyObject *task,
           PyObject *coroutine)
{
    PyObject *stand_in;
    int rc;

    if (PyCoro_CheckExact(coroutine)
        && gb_cpython_coroutine_stage(coroutine) == GB_COROUTINE_FINISHED) {
        return 0; /* Trio keeps it */
    }
    if (gb_coroutine_may_retype(st, coroutine)) {
        if (gb_coroutine_retype(st, coroutine, PORTAL_BESTOWED, task) < 0) {
            return -1;
        }
        if (loop->coroutine_retyped(st, task, coroutine) < 0) {
            gb_portal_detach(gb_coroutine_portal(st, coroutine));
            return -1;
        }
        return 0;
    }
    rc = gb_stand_in_equip(st, coroutine, PORTAL_BESTOWED, task);
    if (rc != 0) { /* there is a stand-in already */
        return rc < 0 ? -1 : 0;
    }
    stand_in = gb_stand_in_new(st, coroutine, PORTAL_BESTOWED, task);
    if (stand_in == NULL) {
        return -1;
    }
    rc = loop->replace_coroutine(st, task, coroutine, stand_in);
    Py_DECREF(stand_in);
    return rc;
}

int
gb_task_bestow(gb_state *st, PyObject *task)
{
    PyObject *coroutine = NULL;
    PortalObject *p;
    int rc = 0;
    const gb_loop *loop;

    p = gb_portal_here(st, PyThreadState_Get());
    if (p != NULL && !p->p_remove) {
        PyObject *current = gb_loop_current_task(st, NULL);
        bool is_current = current == task;
        Py_XDECREF(current);
        if (is_current) {
            return 0; /* in with_portal_run(): lasts as long as that call */
        }
    }
    if (PyErr_Occurred()) {
        return -1;
    }
    loop = gb_loop_of_task(st, task);
    if (loop == NULL) {
        return -1;
    }
    p = portal_of_task(st, loop, task, &coroutine);
    if (coroutine == NULL) {
        return -1;
    }
    if (p != NULL) {
        p->p_remove = false;
    }
    else if (coroutine != Py_None) { /* None: an eager task that has ended */
        rc = put_portal(st, loop, task, coroutine);
    }
    Py_DECREF(coroutine);
    return rc;
}

int
gb_task_remove(gb_state *st, PyObject *task)
{
    PyObject *coroutine = NULL;
    PortalObject *p;
    const gb_loop *loop = gb_loop_of_task(st, task);

    if (loop == NULL) {
        return -1;
    }
    p = portal_of_task(st, loop, task, &coroutine);
    if (coroutine == NULL) {
        return -1;
    }
    if (p != NULL && p->p_state != PORTAL_RUNNING
        && p->p_state != PORTAL_SUSPENDED) {
        gb_portal_detach(p);
    }
    else if (p != NULL) {
        p->p_remove = true;
    }
    Py_DECREF(coroutine);
    return 0;
}

/* Whether there is a portal on `coroutine` (stolen) or on one that it awaits
 * in turn.  1 or 0, or -1 with an exception. */
static int
portal_in_await_chain(gb_state *st, PyObject *coroutine)
{
    int found = 0;
    while (coroutine != NULL) {
        PyObject *next = NULL;
        PortalObject *p = gb_coroutine_portal(st, coroutine);
        if (p != NULL) {
            found = 1;
        }
        else {
            found
                = PyObject_GetOptionalAttr(coroutine, st->str_cr_await, &next);
            if (found == 0) {
                found = PyObject_GetOptionalAttr(coroutine,
                                                 st->str_gi_yieldfrom, &next);
            }
            found = found < 0 ? -1 : 0;
        }
        if (next == Py_None) {
            Py_CLEAR(next);
        }
        Py_SETREF(coroutine, next);
    }
    return found;
}

/* Whether await_ works here since this is a thread that works for a loop in
 * another one.  1 or 0, or -1 with an exception. */
static int
works_in_thread(gb_state *st)
{
    PyObject *answer;
    int works = is_for_threads(st);
    if (works <= 0) {
        return works;
    }
    answer = ask_threads("await_works", NULL);
    works = answer == NULL ? -1 : answer == Py_True;
    Py_XDECREF(answer);
    return works;
}

int
gb_task_has_portal(gb_state *st, PyObject *task)
{
    PyObject *current, *coroutine;
    const gb_loop *loop;
    bool here, is_current;
    int runs;

    here = gb_portal_here(st, PyThreadState_Get()) != NULL;
    if (PyErr_Occurred()) {
        return -1;
    }
    if (task == NULL) {
        return here ? 1 : works_in_thread(st);
    }
    current = gb_loop_current_task(st, NULL);
    if (current == NULL && PyErr_Occurred()) {
        return -1;
    }
    is_current = current == task;
    Py_XDECREF(current);
    if (is_current) {
        return here; /* one that is there but not active doesn't count */
    }
    runs = gb_portal_runs_task(st, task);
    if (runs != 0) {
        return runs;
    }
    loop = gb_loop_of_task(st, task);
    if (loop == NULL) { /* no task of any kind: no portal */
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) {
            return -1;
        }
        PyErr_Clear();
        return 0;
    }
    coroutine = loop->coroutine(st, task);
    return coroutine == NULL ? -1 : portal_in_await_chain(st, coroutine);
}

void
gb_task_raise_no_portal(gb_state *st)
{
    const gb_loop *loop = NULL;
    PyObject *coroutine;
    PortalObject *p;
    PyObject *task;

    if (PyErr_Occurred()) {
        return;
    }
    task = gb_loop_require_current_task(st, &loop);
    if (task == NULL) {
        return;
    }
    p = portal_of_task(st, loop, task, &coroutine);
    Py_DECREF(task);
    if (coroutine == NULL) {
        return;
    }
    if (p != NULL && p->p_state == PORTAL_BESTOWED) {
        PyErr_Format(PyExc_RuntimeError,
                     "the greenback portal of this task is not active yet: "
                     "you must yield to the event loop (try 'await "
                     "%s.sleep(0)') after calling greenback.bestow_portal() "
                     "on the current task",
                     loop->name);
    }
    else {
        PyErr_SetString(PyExc_RuntimeError,
                        "You must create a greenback portal for this task "
                        "before using greenback.await_(): try 'await "
                        "greenback.ensure_portal()' or 'await "
                        "greenback.with_portal_run(fn, *args)'");
    }
    Py_DECREF(coroutine);
}

/* Whether there is recursion depth left for what greenback._threads and the
 * loops do for a thread: after an error half-way, a loop may not know what to
 * do, or a thread may wait for ever. */
static bool
has_room_for_threads(void)
{
    return gb_cpython_recursion_budget(PyThreadState_Get()).python >= 100;
}

PyObject *
gb_task_await_without_portal(gb_state *st, PyObject *awaitable)
{
    if (!PyErr_Occurred()) {
        int is_for_them = is_for_threads(st);
        if (is_for_them == 0) {
            gb_task_raise_no_portal(st);
        }
        else if (is_for_them > 0 && !has_room_for_threads()) {
            PyErr_SetString(PyExc_RecursionError,
                            "maximum recursion depth exceeded while await_() "
                            "was looking for an event loop");
        }
        else if (is_for_them > 0) {
            return ask_threads("await_from_thread", awaitable);
        }
    }
    gb_drive_discard(st, awaitable);
    return NULL;
}

/* ------------------------------------------------------- module functions */

static PyObject *
task_bestow_portal(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"task", NULL};
    PyObject *task;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:bestow_portal", keywords,
                                     &task)) {
        return NULL;
    }
    if (gb_task_bestow(gb_state_of_module(module), task) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
task_has_portal(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"task", NULL};
    PyObject *task = Py_None;
    int has;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:has_portal", keywords,
                                     &task)) {
        return NULL;
    }
    has = gb_task_has_portal(gb_state_of_module(module),
                             task == Py_None ? NULL : task);
    return has < 0 ? NULL : PyBool_FromLong(has);
}

static PyObject *
task_remove_portal(PyObject *module, PyObject *task)
{
    if (gb_task_remove(gb_state_of_module(module), task) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
task_bestow_current(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    gb_state *st = gb_state_of_module(module);
    const gb_loop *loop = NULL;
    PyObject *name = NULL;
    PyObject *task = gb_loop_current_task(st, &loop);
    if (task == NULL && !PyErr_Occurred() && is_for_threads(st) > 0) {
        return ask_threads("refuse_portal", NULL);
    }
    if (task == NULL && !PyErr_Occurred()) {
        task = gb_loop_require_current_task(st, &loop);
    }
    if (task == NULL) {
        return NULL;
    }
    if (gb_portal_here(st, PyThreadState_Get()) != NULL
        || (!PyErr_Occurred() && gb_task_bestow(st, task) == 0)) {
        name = PyUnicode_FromString(loop->name);
    }
    Py_DECREF(task);
    return name;
}

PyDoc_STRVAR(bestow_portal_doc,
"bestow_portal($module, /, task)\n"
"--\n"
"\n"
"Give a task a portal, so that await_() works in it.\n"
"\n"
"The portal lasts as long as the task.  If the task has one already, nothing\n"
"happens.  For the current task the portal becomes usable after the task has\n"
"next yielded to the event loop; for any other task at once.\n"
"\n"
"Parameters\n"
"----------\n"
"task : asyncio.Task or trio.lowlevel.Task\n"
"    The task; on asyncio any subclass and any task of uvloop, too.\n"
"\n"
"Raises\n"
"------\n"
"TypeError\n"
"    If ``task`` is not a task.\n"
"RuntimeError\n"
"    If the task's coroutine can't be replaced.");

PyDoc_STRVAR(has_portal_doc,
"has_portal($module, /, task=None)\n"
"--\n"
"\n"
"Tell whether await_() works in a task.\n"
"\n"
"For the current task the answer is about this very moment: a portal that has\n"
"been bestowed but is not active yet doesn't count.\n"
"\n"
"Parameters\n"
"----------\n"
"task : asyncio.Task or trio.lowlevel.Task, optional\n"
"    The task to ask about; None stands for what is running now.\n"
"\n"
"Returns\n"
"-------\n"
"bool\n"
"    True also in a worker thread of asyncio, Trio or AnyIO, in which await_()\n"
"    works; False where no event loop or no task is running.");

PyDoc_STRVAR(remove_portal_doc,
"remove_portal($module, task, /)\n"
"--\n"
"\n"
"Take the portal off a task when its present step, and all await_() calls\n"
"under way in it, have ended.");

PyDoc_STRVAR(bestow_current_doc,
"bestow_current($module, /)\n"
"--\n"
"\n"
"Give the current task a portal unless await_() works in it already.\n"
"\n"
"Returns\n"
"-------\n"
"str\n"
"    The name of the library that runs the task, \"asyncio\" or \"trio\".");

static PyObject *
task_current_task(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    const gb_loop *loop = NULL;
    PyObject *task
        = gb_loop_require_current_task(gb_state_of_module(module), &loop);
    return task == NULL ? NULL : Py_BuildValue("(sN)", loop->name, task);
}

PyDoc_STRVAR(current_task_doc,
"current_task($module, /)\n"
"--\n"
"\n"
"The task that runs here: a tuple (\"asyncio\" or \"trio\", task).");

PyMethodDef gb_task_methods[] = {
    {"bestow_portal", GB_CFUNCTION(task_bestow_portal),
     METH_VARARGS | METH_KEYWORDS, bestow_portal_doc},
    {"has_portal", GB_CFUNCTION(task_has_portal), METH_VARARGS | METH_KEYWORDS,
     has_portal_doc},
    {"remove_portal", task_remove_portal, METH_O, remove_portal_doc},
    {"bestow_current", task_bestow_current, METH_NOARGS, bestow_current_doc},
    {"current_task", task_current_task, METH_NOARGS, current_task_doc},
    {NULL, NULL, 0, NULL},
};
