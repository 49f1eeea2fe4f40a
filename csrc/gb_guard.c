#include "gb_guard.h"

/* A section.  What it forbids is noted in the portal (p_forbidden), since
 * that sees both kinds of suspension. */
typedef struct {
    PyObject_HEAD
    PyObject *g_reason;     /* str; NULL: none was given */
    PortalObject *g_portal; /* owned: of the section that is entered, or NULL:
                               not entered, or in a task without a portal */
    PyObject *g_message; /* owned: what is in p_forbidden during the section;
                            NULL: not entered */
    PyObject *g_outer;   /* owned: what was there before, or NULL */
} GuardObject;

static int
guard_tp_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"reason", NULL};
    GuardObject *g = (GuardObject *)self;
    PyObject *reason = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:forbid_await", keywords,
                                     &reason)) {
        return -1;
    }
    if (reason != Py_None && !PyUnicode_Check(reason)) {
        PyErr_Format(PyExc_TypeError,
                     "reason must be a str or None, not %.200s",
                     Py_TYPE(reason)->tp_name);
        return -1;
    }
    Py_XSETREF(g->g_reason, reason == Py_None ? NULL : Py_NewRef(reason));
    return 0;
}

/* What a suspension in the section raises; NULL with an exception. */
static PyObject *
make_message(PyObject *reason)
{
    PyObject *message = NULL, *where = NULL;
    PyFrameObject *frame = PyEval_GetFrame(); /* borrowed */
    PyCodeObject *code = frame == NULL ? NULL : PyFrame_GetCode(frame);

    where = code == NULL
                ? PyUnicode_FromString("an unknown place")
                : PyUnicode_FromFormat("%U, line %d", code->co_filename,
                                       PyFrame_GetLineNumber(frame));
    if (where == NULL) {
        goto done;
    }
    message = reason == NULL ? PyUnicode_FromFormat(
                                   "the task must not be suspended here: "
                                   "forbid_await() was entered at %U",
                                   where)
                             : PyUnicode_FromFormat(
                                   "the task must not be suspended here: %U "
                                   "(forbid_await() was entered at %U)",
                                   reason, where);

done:
    Py_XDECREF(where);
    Py_XDECREF(code);
    return message;
}

static PyObject *
guard_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    GuardObject *g = (GuardObject *)self;
    gb_state *st = gb_state_of_type(Py_TYPE(self));
    PortalObject *p;
    PyObject *message;

    if (st == NULL) {
        return NULL;
    }
    if (g->g_message != NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "this forbid_await() section is entered already; "
                        "make one for each with statement");
        return NULL;
    }
    p = gb_portal_here(st, PyThreadState_GetUnchecked());
    if (p == NULL && PyErr_Occurred()) {
        return NULL;
    }
    Py_XINCREF(p);
    message = make_message(g->g_reason);
    if (message == NULL) {
        Py_XDECREF(p);
        return NULL;
    }
    g->g_message = message;
    g->g_portal = p;
    if (p != NULL) {
        g->g_outer = p->p_forbidden;
        p->p_forbidden = Py_NewRef(message);
    }
    Py_RETURN_NONE;
}

static PyObject *
guard_exit(PyObject *self, PyObject *Py_UNUSED(args))
{
    GuardObject *g = (GuardObject *)self;
    PortalObject *p = g->g_portal;

    if (g->g_message == NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "this forbid_await() section has not been entered");
        return NULL;
    }
    if (p != NULL && p->p_forbidden != g->g_message) {
        PyErr_SetString(
            PyExc_RuntimeError,
            "forbid_await() sections of a task must be left in the "
            "reverse order of entering them");
        return NULL;
    }
    if (p != NULL) {
        Py_SETREF(p->p_forbidden, g->g_outer);
        g->g_outer = NULL;
    }
    Py_CLEAR(g->g_message);
    g->g_portal = NULL;
    Py_XDECREF(p);
    Py_RETURN_NONE;
}

static int
guard_tp_traverse(PyObject *self, visitproc visit, void *arg)
{
    GuardObject *g = (GuardObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(g->g_portal);
    return 0;
}

static void
guard_tp_dealloc(PyObject *self)
{
    GuardObject *g = (GuardObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(g->g_reason);
    Py_CLEAR(g->g_portal);
    Py_CLEAR(g->g_message);
    Py_CLEAR(g->g_outer);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(guard_doc,
"forbid_await(reason=None)\n"
"--\n"
"\n"
"A context manager for a section in which the current task must not be\n"
"suspended, since other tasks must not run in between.\n"
"\n"
"A suspension in the section, by :func:`await_` in code that it calls or by an\n"
"await of the task's own coroutine, raises RuntimeError there. Awaiting what is\n"
"ready is no suspension. In a task without a portal ``await_`` can't wait\n"
"anyway, and the section does nothing.\n"
"\n"
"Parameters\n"
"----------\n"
"reason : str, optional\n"
"    Why. It becomes part of the message, with the place where the section was\n"
"    entered.\n"
"\n"
"Raises\n"
"------\n"
"RuntimeError\n"
"    If sections are not left in the reverse order.");

static PyMethodDef guard_methods[] = {
    {"__enter__", guard_enter, METH_NOARGS, NULL},
    {"__exit__", guard_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot guard_slots[] = {
    {Py_tp_doc, (void *)guard_doc},
    {Py_tp_init, guard_tp_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_traverse, guard_tp_traverse},
    {Py_tp_dealloc, guard_tp_dealloc},
    {Py_tp_methods, guard_methods},
    {0, NULL},
};

static PyType_Spec guard_spec = {
    .name = "greenback.forbid_await",
    .basicsize = sizeof(GuardObject),
    .flags
    = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = guard_slots,
};

int
gb_guard_add_types(PyObject *module, gb_state *Py_UNUSED(st))
{
    int rc;
    PyObject *type = PyType_FromModuleAndSpec(module, &guard_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    rc = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return rc;
}
