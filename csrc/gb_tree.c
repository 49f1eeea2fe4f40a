#include "gb_tree.h"

/* A mark.  Contexts that were copied while its tree was open keep it: once the
 * tree has ended it must own nothing but the marks of trees around it. */
typedef struct {
    PyObject_HEAD
    PyObject *t_maker; /* owned: what makes the tree's tasks; None: ended */
    PyObject *t_outer; /* owned: mark of the tree around this one, or None */
    PyObject *t_token; /* owned: for those who set the ContextVar */
} MarkObject;

static void mark_tp_dealloc(PyObject *self);

/* ---------------------------------------------------------------- look-up */

/* Of the mark `value` and those around it the innermost whose tree is open on
 * this loop, borrowed; NULL without an exception if there is none.  `value` is
 * what the ContextVar holds, or NULL. */
static MarkObject *
open_mark(const gb_trees *trees, PyObject *value)
{
    while (value != NULL && Py_TYPE(value)->tp_dealloc == mark_tp_dealloc) {
        MarkObject *mark = (MarkObject *)value;
        if (mark->t_maker == trees->owner) {
            return mark;
        }
        value = mark->t_outer;
    }
    return NULL;
}

/* The mark in a Context, as of open_mark, but a new reference; NULL with or
 * without an exception. */
static PyObject *
mark_in_context(const gb_trees *trees, PyObject *context)
{
    PyObject *value, *mark;
    if (!PyContext_CheckExact(context)) {
        return NULL; /* asyncio will complain, or take it for what it is */
    }
    value = PyObject_CallMethod(context, "get", "(O)", trees->variable);
    mark = Py_XNewRef((PyObject *)open_mark(trees, value));
    Py_XDECREF(value);
    return mark;
}

/* The same for the task that runs here, if it has a portal: it may have left
 * its Context for the moment (Context.run), or be a stranger. */
static PyObject *
mark_of_running_task(gb_state *st, const gb_trees *trees)
{
    PyThreadState *ts = PyThreadState_Get();
    PyObject *value, *mark = NULL;
    PortalObject *p = gb_portal_here(st, ts);
    Py_ssize_t strangers;

    if (p == NULL) {
        return NULL;
    }
    if (p->p_context != NULL && p->p_context != gb_cpython_context(ts)) {
        mark = mark_in_context(trees, p->p_context);
        if (mark != NULL || PyErr_Occurred()) {
            return mark;
        }
    }
    strangers = PyObject_Size(trees->strangers);
    if (strangers <= 0 || p->p_coroutine == NULL) {
        return NULL;
    }
    value
        = PyObject_CallMethod(trees->strangers, "get", "(O)", p->p_coroutine);
    mark = Py_XNewRef((PyObject *)open_mark(trees, value));
    Py_XDECREF(value);
    return mark;
}

PyObject *
gb_tree_of_new_task(gb_state *st, const gb_trees *trees, PyObject *context,
                    bool *stranger)
{
    PyObject *value, *mark, *in_context = NULL;

    *stranger = false;
    if (PyContextVar_Get(trees->variable, NULL, &value) < 0) {
        return NULL;
    }
    mark = Py_XNewRef((PyObject *)open_mark(trees, value));
    Py_XDECREF(value);
    if (mark != NULL && context == NULL) {
        return mark;
    }
    if (context != NULL) {
        in_context = mark_in_context(trees, context);
    }
    if (mark == NULL && in_context == NULL && gb_portal_running != NULL
        && !PyErr_Occurred()) {
        mark = mark_of_running_task(st, trees);
    }
    if (PyErr_Occurred()) {
        Py_CLEAR(mark);
        Py_CLEAR(in_context);
        return NULL;
    }
    if (in_context != NULL) {
        Py_XSETREF(mark, in_context);
    }
    else {
        *stranger = mark != NULL;
    }
    return mark;
}

int
gb_tree_note_stranger(gb_state *st, const gb_trees *trees, PyObject *coroutine,
                      PyObject *mark)
{
    if (gb_coroutine_portal(st, coroutine) == NULL) {
        return 0; /* will never be looked for */
    }
    return PyObject_SetItem(trees->strangers, coroutine, mark);
}

void
gb_tree_forget_stranger(const gb_trees *trees, PyObject *coroutine)
{
    PyObject *exc = PyErr_GetRaisedException();
    if (PyObject_DelItem(trees->strangers, coroutine) < 0) {
        PyErr_Clear();
    }
    PyErr_SetRaisedException(exc);
}

/* -------------------------------------------------------------------- type */

static PyObject *
mark_tp_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    MarkObject *mark;
    PyObject *maker, *outer;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError,
                        "TreeMark() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OO:TreeMark", &maker, &outer)) {
        return NULL;
    }
    mark = (MarkObject *)type->tp_alloc(type, 0);
    if (mark != NULL) {
        mark->t_maker = Py_NewRef(maker);
        mark->t_outer = Py_NewRef(outer);
        mark->t_token = Py_NewRef(Py_None);
    }
    return (PyObject *)mark;
}

static int
mark_tp_traverse(PyObject *self, visitproc visit, void *arg)
{
    MarkObject *mark = (MarkObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(mark->t_maker);
    Py_VISIT(mark->t_outer);
    Py_VISIT(mark->t_token);
    return 0;
}

static int
mark_tp_clear(PyObject *self)
{
    MarkObject *mark = (MarkObject *)self;
    Py_CLEAR(mark->t_maker);
    Py_CLEAR(mark->t_outer);
    Py_CLEAR(mark->t_token);
    return 0;
}

static void
mark_tp_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, mark_tp_dealloc) /* of many nested trees */
        mark_tp_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
    Py_TRASHCAN_END
}

PyDoc_STRVAR(mark_doc,
"TreeMark(maker, outer, /)\n"
"--\n"
"\n"
"Tells in a Context that tasks which are made there belong to a tree, until its\n"
"``maker`` is set to None.");

static PyMemberDef mark_members[] = {
    {"maker", T_OBJECT, offsetof(MarkObject, t_maker), 0, NULL},
    {"outer", T_OBJECT, offsetof(MarkObject, t_outer), 0, NULL},
    {"token", T_OBJECT, offsetof(MarkObject, t_token), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot mark_slots[] = {
    {Py_tp_doc, (void *)mark_doc},
    {Py_tp_new, mark_tp_new},
    {Py_tp_dealloc, mark_tp_dealloc},
    {Py_tp_traverse, mark_tp_traverse},
    {Py_tp_clear, mark_tp_clear},
    {Py_tp_members, mark_members},
    {0, NULL},
};

static PyType_Spec mark_spec = {
    .name = "greenback._core.TreeMark",
    .basicsize = sizeof(MarkObject),
    .flags
    = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mark_slots,
};

int
gb_tree_add_types(PyObject *module, gb_state *Py_UNUSED(st))
{
    int rc;
    PyObject *type = PyType_FromModuleAndSpec(module, &mark_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    rc = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return rc;
}
