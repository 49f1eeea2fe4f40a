#include "gb_factory.h"

/* Calls what makes a task, and puts a portal on the task's coroutine before.
 * There are two uses:
 *
 * - a task factory: each task gets a portal; m_trees.variable is NULL
 * - in the place of a loop's create_task() while task trees are open on it:
 *   the tasks that belong to one get a portal */
typedef struct {
    PyObject_HEAD
    vectorcallfunc m_call;
    gb_state *m_st;
    PyObject *m_make; /* owned; None: asyncio.Task, called as a factory is */
    Py_ssize_t m_at;  /* which of the arguments is the coroutine */
    gb_trees m_trees;
    PyObject *m_replaced; /* owned: for those who put this in a place, what has
                             been there; NULL as None */
    Py_ssize_t m_open;    /* for them, too: how many trees are open */
    /* Owned; if m_make is None, otherwise NULL. */
    PyObject *m_str_task, *m_str_loop;
    PyObject *m_names; /* of the keyword arguments of the last call, or NULL */
} MakerObject;

/* ----------------------------------------------- a portal before the task */

/* Whether asyncio makes tasks of `object`.  1 or 0, or -1 with an exception.
 * May run Python code. */
static int
is_coroutine(gb_state *st, PyObject *object)
{
    PyObject *asyncio, *answer;
    int result;
    if (PyCoro_CheckExact(object)) {
        return 1;
    }
    asyncio = gb_loop_imported_module(st, st->str_asyncio);
    if (asyncio == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    answer = PyObject_CallMethod(asyncio, "iscoroutine", "(O)", object);
    result = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    Py_DECREF(asyncio);
    return result;
}

/* What a task has to be made of instead of `coroutine`, so that it has a
 * portal from the start, a new reference: `coroutine` itself, retyped or not,
 * or a stand-in.  *added: there is a new portal in it.  NULL with an
 * exception. */
static PyObject *
equip(gb_state *st, PyObject *coroutine, bool *added)
{
    int rc;

    *added = false;
    if (gb_coroutine_portal(st, coroutine) != NULL) {
        return Py_NewRef(coroutine);
    }
    if (PyCoro_CheckExact(coroutine)) {
        gb_coroutine_stage stage = gb_cpython_coroutine_stage(coroutine);
        if (stage == GB_COROUTINE_FINISHED
            || stage == GB_COROUTINE_EXECUTING) {
            return Py_NewRef(coroutine); /* its task will fail */
        }
    }
    if (gb_coroutine_may_retype(st, coroutine)) {
        if (gb_coroutine_retype(st, coroutine, PORTAL_BESTOWED, NULL) < 0) {
            return NULL;
        }
        *added = true;
        return Py_NewRef(coroutine);
    }
    rc = gb_stand_in_equip(st, coroutine, PORTAL_BESTOWED, NULL);
    if (rc != 0) {
        *added = rc > 0;
        return rc < 0 ? NULL : Py_NewRef(coroutine);
    }
    rc = is_coroutine(st, coroutine);
    if (rc <= 0) { /* asyncio says best what is wrong with it */
        return rc < 0 ? NULL : Py_NewRef(coroutine);
    }
    *added = true;
    return gb_stand_in_new(st, coroutine, PORTAL_BESTOWED, NULL);
}

/* Take the portal off again that equip() has added, if it has not been used.
 * Keeps a pending exception, runs no Python code. */
static void
unequip(gb_state *st, PyObject *coroutine)
{
    PortalObject *p = gb_coroutine_portal(st, coroutine);
    if (p != NULL && p->p_state == PORTAL_BESTOWED) {
        gb_portal_detach(p);
    }
}

/* `task` has been made, `coroutine` got its portal by equip().  A factory may
 * have made the task of something else that awaits `coroutine`: then it is
 * that which needs the portal.  0, or -1 with an exception.  May run Python
 * code. */
static int
settle(MakerObject *m, PyObject *task, PyObject *coroutine)
{
    gb_state *st = m->m_st;
    PyObject *of_task;
    PortalObject *p = gb_coroutine_portal(st, coroutine);

    if (p == NULL) {
        return 0; /* an eager task that has ended */
    }
    if (m->m_make == Py_None) { /* no need to ask */
        p->p_task = task;
        return 0;
    }
    of_task = gb_asyncio_loop.coroutine(st, task);
    p = gb_coroutine_portal(st, coroutine);
    if (p != NULL && of_task == coroutine) {
        p->p_task = task;
    }
    else if (p != NULL && of_task != NULL
             && of_task != Py_None
             /* Once it waits, its stack must not get below another portal's:
              * then what wraps it does without (an eager task). */
             && p->p_state != PORTAL_SUSPENDED
             && gb_task_bestow(st, task) == 0) {
        unequip(st, coroutine);
    }
    Py_XDECREF(of_task);
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception)) {
        /* What a factory gives need not be a task.  Its coroutine has a
         * portal, and that is all we can do. */
        PyErr_Clear();
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* ------------------------------------------------------------------- calls */

#define SMALL_CALL 8 /* arguments that need no memory of their own */

/* asyncio.Task, a new reference; NULL with an exception. */
static PyObject *
task_class(MakerObject *m)
{
    PyObject *class, *tasks;
    tasks = gb_loop_imported_module(m->m_st, m->m_st->str_asyncio_tasks);
    if (tasks == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_RuntimeError,
                            "asyncio has not been imported");
        }
        return NULL;
    }
    class = PyObject_GetAttr(tasks, m->m_str_task);
    Py_DECREF(tasks);
    return class;
}

/* Whether `names` is the tuple `kwnames` (or NULL) with a name before. */
static bool
has_names(PyObject *names, PyObject *kwnames)
{
    Py_ssize_t count = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    if (names == NULL || PyTuple_GET_SIZE(names) != count + 1) {
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (PyTuple_GET_ITEM(names, i + 1) != PyTuple_GET_ITEM(kwnames, i)) {
            return false;
        }
    }
    return true;
}

/* Names of keyword arguments, with "loop" before them; a new reference, NULL
 * with an exception. */
static PyObject *
names_with_loop(MakerObject *m, PyObject *kwnames)
{
    Py_ssize_t count = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    PyObject *names;
    if (has_names(m->m_names, kwnames)) {
        return Py_NewRef(m->m_names);
    }
    names = PyTuple_New(count + 1);
    if (names == NULL) {
        return NULL;
    }
    PyTuple_SET_ITEM(names, 0, Py_NewRef(m->m_str_loop));
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (PyUnicode_Compare(name, m->m_str_loop) == 0) {
            PyErr_SetString(PyExc_TypeError,
                            "a task factory gets the event loop once");
            Py_DECREF(names);
            return NULL;
        }
        PyTuple_SET_ITEM(names, i + 1, Py_NewRef(name));
    }
    Py_XSETREF(m->m_names, Py_NewRef(names));
    return names;
}

/* What asyncio.Task raises for something that is no loop names an attribute
 * which that has not. */
static void
explain_wrong_loop(PyObject *loop)
{
    PyObject *exc = PyErr_GetRaisedException();
    if (PyErr_GivenExceptionMatches(exc, PyExc_AttributeError)
        && loop != Py_None && !PyObject_HasAttrString(loop, "call_soon")) {
        PyErr_Format(PyExc_TypeError,
                     "a task factory is called with an event loop and a "
                     "coroutine; %.200s is no event loop",
                     Py_TYPE(loop)->tp_name);
        Py_DECREF(exc);
        return;
    }
    PyErr_SetRaisedException(exc);
}

/* Task(coroutine, loop=loop, **kwargs) for factory(loop, coroutine,
 * **kwargs); `args` may be changed. */
static PyObject *
call_task_class(MakerObject *m, PyObject **args, Py_ssize_t nargs,
                PyObject *kwnames)
{
    PyObject *class, *names, *loop, *task = NULL;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError,
                        "a task factory is called with an event loop and a "
                        "coroutine");
        return NULL;
    }
    class = task_class(m);
    names = class == NULL ? NULL : names_with_loop(m, kwnames);
    if (names != NULL) {
        loop = args[0];
        args[0] = args[1];
        args[1] = loop;
        task = PyObject_Vectorcall(class, args, 1, names);
        if (task == NULL) {
            explain_wrong_loop(loop);
        }
    }
    Py_XDECREF(names);
    Py_XDECREF(class);
    return task;
}

/* m_make, called with `args`, in which `coroutine` takes the place at `at`. */
static PyObject *
call_make(MakerObject *m, PyObject *const *args, Py_ssize_t nargs,
          PyObject *kwnames, Py_ssize_t at, PyObject *coroutine)
{
    PyObject *small[SMALL_CALL], **changed = small, *task;
    Py_ssize_t count
        = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));

    if (m->m_make != Py_None && (at < 0 || args[at] == coroutine)) {
        return PyObject_Vectorcall(m->m_make, args, (size_t)nargs, kwnames);
    }
    if (count > SMALL_CALL) {
        changed = PyMem_New(PyObject *, (size_t)count);
        if (changed == NULL) {
            return PyErr_NoMemory();
        }
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        changed[i] = i == at ? coroutine : args[i];
    }
    task = m->m_make == Py_None ? call_task_class(m, changed, nargs, kwnames)
                                : PyObject_Vectorcall(m->m_make, changed,
                                                      (size_t)nargs, kwnames);
    if (changed != small) {
        PyMem_Free(changed);
    }
    return task;
}

/* Where in `args` the argument is that is called `name` by keyword, -1 if
 * there is none. */
static Py_ssize_t
keyword_index(Py_ssize_t nargs, PyObject *kwnames, PyObject *name)
{
    Py_ssize_t count = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *keyword = PyTuple_GET_ITEM(kwnames, i);
        if (keyword == name || PyUnicode_Compare(keyword, name) == 0) {
            return nargs + i;
        }
    }
    return -1;
}

/* The task, made with a portal in the coroutine at `at`.  `mark` is NULL but
 * for strangers. */
static PyObject *
make_with_portal(MakerObject *m, PyObject *const *args, Py_ssize_t nargs,
                 PyObject *kwnames, Py_ssize_t at, PyObject *mark)
{
    gb_state *st = m->m_st;
    bool added;
    PyObject *task = NULL, *coroutine = equip(st, args[at], &added);

    if (coroutine == NULL) {
        return NULL;
    }
    if (mark == NULL
        || gb_tree_note_stranger(st, &m->m_trees, coroutine, mark) == 0) {
        task = call_make(m, args, nargs, kwnames, at, coroutine);
    }
    if (task != NULL && added && settle(m, task, coroutine) < 0) {
        Py_CLEAR(task);
    }
    if (task == NULL && mark != NULL) {
        gb_tree_forget_stranger(&m->m_trees, coroutine);
    }
    if (task == NULL && added) {
        unequip(st, coroutine);
    }
    Py_DECREF(coroutine);
    return task;
}

static PyObject *
maker_vectorcall(PyObject *self, PyObject *const *args, size_t nargsf,
                 PyObject *kwnames)
{
    MakerObject *m = (MakerObject *)self;
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    Py_ssize_t at, context_at;
    PyObject *context = NULL, *task = NULL, *mark = NULL;
    bool stranger = false;

    at = nargs > m->m_at ? m->m_at
                         : keyword_index(nargs, kwnames, m->m_st->str_coro);
    Py_INCREF(self); /* an eager task may drop the last reference */
    if (m->m_trees.variable != NULL) {
        context_at = keyword_index(nargs, kwnames, m->m_st->str_context);
        if (context_at >= 0 && args[context_at] != Py_None) {
            context = args[context_at];
        }
        mark = gb_tree_of_new_task(m->m_st, &m->m_trees, context, &stranger);
        if (mark == NULL) {
            at = -1;
        }
    }
    if (PyErr_Occurred()) { /* of the look-up */
        goto done;
    }
    task = at < 0 ? call_make(m, args, nargs, kwnames, at, NULL)
                  : make_with_portal(m, args, nargs, kwnames, at,
                                     stranger ? mark : NULL);

done:
    Py_XDECREF(mark);
    Py_DECREF(self);
    return task;
}

/* -------------------------------------------------------------- maker type */

static PyObject *
maker_tp_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    MakerObject *m;
    PyObject *make, *variable = NULL, *strangers = NULL;
    Py_ssize_t at;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError,
                        "TaskMaker() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "On|O!O:TaskMaker", &make, &at,
                          &PyContextVar_Type, &variable, &strangers)) {
        return NULL;
    }
    if (make != Py_None && !PyCallable_Check(make)) {
        PyErr_Format(PyExc_TypeError, "expected a callable, not %.200s",
                     Py_TYPE(make)->tp_name);
        return NULL;
    }
    if (at < 0 || (variable == NULL) != (strangers == NULL)) {
        PyErr_SetString(PyExc_ValueError, "bad arguments");
        return NULL;
    }
    m = (MakerObject *)type->tp_alloc(type, 0);
    if (m == NULL) {
        return NULL;
    }
    m->m_call = maker_vectorcall;
    m->m_st = gb_state_of_class(type);
    m->m_make = Py_NewRef(make);
    m->m_at = at;
    m->m_trees.owner = (PyObject *)m;
    m->m_trees.variable = Py_XNewRef(variable);
    m->m_trees.strangers = Py_XNewRef(strangers);
    if (make == Py_None) {
        m->m_str_task = PyUnicode_InternFromString("Task");
        m->m_str_loop = PyUnicode_InternFromString("loop");
        if (m->m_str_task == NULL || m->m_str_loop == NULL) {
            Py_CLEAR(m);
        }
    }
    return (PyObject *)m;
}

/* In the place of a loop's method, this shows what that shows. */
static PyObject *
maker_tp_getattro(PyObject *self, PyObject *name)
{
    MakerObject *m = (MakerObject *)self;
    PyObject *value = PyObject_GenericGetAttr(self, name);
    if (value == NULL && m->m_trees.variable != NULL
        && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        value = PyObject_GetAttr(m->m_make, name);
    }
    return value;
}

static PyObject *
maker_tp_repr(PyObject *self)
{
    MakerObject *m = (MakerObject *)self;
    if (m->m_make == Py_None) {
        return PyUnicode_FromString("<greenback task factory>");
    }
    return PyUnicode_FromFormat("<greenback task factory around %R>",
                                m->m_make);
}

static int
maker_tp_traverse(PyObject *self, visitproc visit, void *arg)
{
    MakerObject *m = (MakerObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(m->m_make);
    Py_VISIT(m->m_trees.variable);
    Py_VISIT(m->m_trees.strangers);
    Py_VISIT(m->m_replaced);
    return 0;
}

/* No tp_clear: what is called must stay; the cycle goes through the loop's
 * attributes, and is broken there. */

static void
maker_tp_dealloc(PyObject *self)
{
    MakerObject *m = (MakerObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(m->m_make);
    Py_CLEAR(m->m_trees.variable);
    Py_CLEAR(m->m_trees.strangers);
    Py_CLEAR(m->m_replaced);
    Py_CLEAR(m->m_str_task);
    Py_CLEAR(m->m_str_loop);
    Py_CLEAR(m->m_names);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(maker_doc,
"TaskMaker(make, at, variable=..., strangers=..., /)\n"
"--\n"
"\n"
"Calls ``make`` with a portal in the coroutine that is argument number ``at``;\n"
"with ``variable`` only for tasks of a tree.");

static PyMemberDef maker_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(MakerObject, m_call),
     READONLY, NULL},
    {"__wrapped__", T_OBJECT, offsetof(MakerObject, m_make), READONLY, NULL},
    {"replaced", T_OBJECT, offsetof(MakerObject, m_replaced), 0, NULL},
    {"trees", T_PYSSIZET, offsetof(MakerObject, m_open), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot maker_slots[] = {
    {Py_tp_doc, (void *)maker_doc},
    {Py_tp_new, maker_tp_new},
    {Py_tp_dealloc, maker_tp_dealloc},
    {Py_tp_traverse, maker_tp_traverse},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_getattro, maker_tp_getattro},
    {Py_tp_repr, maker_tp_repr},
    {Py_tp_members, maker_members},
    {0, NULL},
};

static PyType_Spec maker_spec = {
    .name = "greenback._core.TaskMaker",
    .basicsize = sizeof(MakerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
             | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = maker_slots,
};

int
gb_factory_add_types(PyObject *module, gb_state *st)
{
    int rc;
    PyObject *type = PyType_FromModuleAndSpec(module, &maker_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    rc = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return rc < 0 ? -1 : gb_tree_add_types(module, st);
}
