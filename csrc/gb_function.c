/* Callables that do their work in C and look like a Python function: it is
 * their __wrapped__, and they carry its name, documentation and signature.
 * Tools that ask for the code of await_ find it there, and
 * inspect.iscoroutinefunction() takes with_portal_run for the async function
 * that it wraps. */
#include "gb_function.h"

#include "gb_drive.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc f_call;
    PyObject *f_wrapped; /* a Python function; for autoawait any callable */
    gb_state *f_st;
    PyObject *f_dict;
    PyObject *f_weakrefs;
} FunctionObject;

/* ------------------------------------------------------------------- calls */

/* await_(aw) */
static GB_HOT PyObject *
call_await(PyObject *self, PyObject *const *args, size_t nargsf,
           PyObject *kwnames)
{
    FunctionObject *f = (FunctionObject *)self;
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    PyObject *misfit;

    if (GB_LIKELY(nargs == 1 && nkw == 0)) {
        return gb_await(f->f_st, args[0], self, args, 1, false);
    }
    if (nargs == 0 && nkw == 1
        && PyUnicode_Compare(PyTuple_GET_ITEM(kwnames, 0), f->f_st->str_aw)
               == 0) {
        return gb_await(f->f_st, args[0], self, args, 1, false);
    }
    /* The Python function has the same signature: let it complain. */
    misfit = PyObject_Vectorcall(f->f_wrapped, args, nargsf, kwnames);
    Py_XDECREF(misfit);
    if (misfit != NULL) {
        PyErr_SetString(PyExc_TypeError, "await_() takes one argument");
    }
    return NULL;
}

/* with_portal_run(async_fn, *args, **kwds), with_portal_run_sync(...) */
static PyObject *
call_with_portal(PyObject *self, PyObject *const *args, size_t nargsf,
                 PyObject *kwnames)
{
    FunctionObject *f = (FunctionObject *)self;
    PyObject *coroutine
        = PyObject_Vectorcall(f->f_wrapped, args, nargsf, kwnames);
    if (coroutine == NULL) {
        return NULL;
    }
    if (!gb_coroutine_may_retype(f->f_st, coroutine)) {
        PyObject *stand_in
            = gb_stand_in_new(f->f_st, coroutine, PORTAL_NEW, NULL);
        if (stand_in == NULL) {
            gb_drive_discard(f->f_st, coroutine);
        }
        Py_SETREF(coroutine, stand_in);
    }
    else if (gb_coroutine_retype(f->f_st, coroutine, PORTAL_NEW, NULL) < 0) {
        gb_drive_discard(f->f_st, coroutine);
        Py_CLEAR(coroutine);
    }
    return coroutine;
}

/* What autoawait() gives. */
static PyObject *
call_autoawait(PyObject *self, PyObject *const *args, size_t nargsf,
               PyObject *kwnames)
{
    FunctionObject *f = (FunctionObject *)self;
    gb_state *st = f->f_st; /* `self` may die while we wait */
    PyObject *awaitable
        = PyObject_Vectorcall(f->f_wrapped, args, nargsf, kwnames);
    Py_ssize_t count = PyVectorcall_NARGS(nargsf);
    if (kwnames != NULL) {
        count += PyTuple_GET_SIZE(kwnames);
    }
    return awaitable == NULL
               ? NULL
               : gb_await(st, awaitable, self, args, count, true);
}

/* -------------------------------------------------------------------- type */

static PyObject *
function_tp_descr_get(PyObject *self, PyObject *object,
                      PyObject *Py_UNUSED(type))
{
    if (object == NULL || object == Py_None) {
        return Py_NewRef(self);
    }
    return PyMethod_New(self, object);
}

static PyObject *
function_tp_repr(PyObject *self)
{
    PyObject *repr;
    FunctionObject *f = (FunctionObject *)self;
    PyObject *qualname = PyObject_GetAttr(self, f->f_st->str_qualname);
    if (qualname == NULL) {
        PyErr_Clear();
        return PyUnicode_FromFormat("<function around %R>", f->f_wrapped);
    }
    repr = PyUnicode_FromFormat("<function %S at %p>", qualname, self);
    Py_DECREF(qualname);
    return repr;
}

/* By name, as functions are pickled. */
static PyObject *
function_reduce(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyObject_GetAttr(self,
                            ((FunctionObject *)self)->f_st->str_qualname);
}

static int
function_tp_traverse(PyObject *self, visitproc visit, void *arg)
{
    FunctionObject *f = (FunctionObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(f->f_wrapped);
    Py_VISIT(f->f_dict);
    return 0;
}

static int
function_tp_clear(PyObject *self)
{
    FunctionObject *f = (FunctionObject *)self;
    /* f_wrapped is kept: a call may be under way.  The cycle, if there is
     * one, goes through f_dict or through the wrapped function itself. */
    Py_CLEAR(f->f_dict);
    return 0;
}

static void
function_tp_dealloc(PyObject *self)
{
    FunctionObject *f = (FunctionObject *)self;
    PyTypeObject *tp = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    PyObject_ClearWeakRefs(self);
    Py_CLEAR(f->f_dict);
    Py_CLEAR(f->f_wrapped);
    PyObject_GC_Del(self);
    Py_DECREF(tp);
}

static PyMethodDef function_methods[] = {
    {"__reduce__", function_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef function_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(FunctionObject, f_call),
     READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(FunctionObject, f_dict), READONLY,
     NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(FunctionObject, f_weakrefs),
     READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

/* functools copies the annotations up to 3.13, since then only the function
 * that makes them. */
static PyObject *
function_get_annotations(PyObject *self, void *Py_UNUSED(closure))
{
    FunctionObject *f = (FunctionObject *)self;
    PyObject *annotations = NULL;
    if (f->f_dict != NULL
        && PyDict_GetItemRef(f->f_dict, f->f_st->str_annotations, &annotations)
               != 0) {
        return annotations;
    }
    return PyObject_GetAttr(f->f_wrapped, f->f_st->str_annotations);
}

static int
function_set_annotations(PyObject *self, PyObject *value,
                         void *Py_UNUSED(closure))
{
    FunctionObject *f = (FunctionObject *)self;
    if (value == NULL || f->f_dict == NULL) {
        PyErr_SetString(PyExc_AttributeError,
                        "__annotations__ can't be deleted");
        return -1;
    }
    return PyDict_SetItem(f->f_dict, f->f_st->str_annotations, value);
}

static PyGetSetDef function_getset[] = {
    {"__annotations__", function_get_annotations, function_set_annotations,
     NULL, NULL},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot function_slots[] = {
    {Py_tp_dealloc, function_tp_dealloc},
    {Py_tp_traverse, function_tp_traverse},
    {Py_tp_clear, function_tp_clear},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_descr_get, function_tp_descr_get},
    {Py_tp_repr, function_tp_repr},
    {Py_tp_methods, function_methods},
    {Py_tp_members, function_members},
    {Py_tp_getset, function_getset},
    {0, NULL},
};

static PyType_Spec function_spec = {
    .name = "greenback._core.Function",
    .basicsize = sizeof(FunctionObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
             | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR
             | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = function_slots,
};

static PyObject *
function_new(gb_state *st, vectorcallfunc call, PyObject *wrapped)
{
    PyObject *updated;
    FunctionObject *f = PyObject_GC_New(FunctionObject, st->FunctionType);
    if (f == NULL) {
        return NULL;
    }
    f->f_call = call;
    f->f_wrapped = Py_NewRef(wrapped);
    f->f_st = st;
    f->f_dict = NULL;
    f->f_weakrefs = NULL;
    PyObject_GC_Track((PyObject *)f);
    f->f_dict = PyDict_New();
    if (f->f_dict == NULL) {
        Py_DECREF(f);
        return NULL;
    }
    /* Name, documentation, module, annotations, __wrapped__, and the wrapped
     * function's own attributes. */
    updated = PyObject_CallFunctionObjArgs(st->update_wrapper, (PyObject *)f,
                                           wrapped, NULL);
    if (updated == NULL) {
        Py_CLEAR(f);
    }
    Py_XDECREF(updated);
    return (PyObject *)f;
}

/* ------------------------------------------------------- module functions */

static PyObject *
make_await(PyObject *module, PyObject *wrapped)
{
    return function_new(gb_state_of_module(module), call_await, wrapped);
}

static PyObject *
make_with_portal(PyObject *module, PyObject *wrapped)
{
    /* What inspect.iscoroutinefunction() looks at, in a function that is
     * none of Python's. */
    static const char *const names[]
        = {"__code__", "__defaults__", "__kwdefaults__"};
    PyObject *function
        = function_new(gb_state_of_module(module), call_with_portal, wrapped);
    for (size_t i = 0; function != NULL && i < Py_ARRAY_LENGTH(names); i++) {
        PyObject *value = PyObject_GetAttrString(wrapped, names[i]);
        if (value == NULL
            || PyObject_SetAttrString(function, names[i], value) < 0) {
            Py_CLEAR(function);
        }
        Py_XDECREF(value);
    }
    return function;
}

static PyObject *
make_autoawait(PyObject *module, PyObject *wrapped)
{
    return function_new(gb_state_of_module(module), call_autoawait, wrapped);
}

PyDoc_STRVAR(make_await_doc,
"make_await($module, function, /)\n"
"--\n"
"\n"
"await_() itself, in the guise of ``function``.");

PyDoc_STRVAR(make_with_portal_doc,
"make_with_portal($module, function, /)\n"
"--\n"
"\n"
"A function that calls the async function ``function`` and puts a portal in\n"
"the coroutine which that returns.");

PyDoc_STRVAR(make_autoawait_doc,
"make_autoawait($module, function, /)\n"
"--\n"
"\n"
"A function that calls ``function`` and passes the result to await_().");

PyMethodDef gb_function_methods[] = {
    {"make_await", make_await, METH_O, make_await_doc},
    {"make_with_portal", make_with_portal, METH_O, make_with_portal_doc},
    {"make_autoawait", make_autoawait, METH_O, make_autoawait_doc},
    {NULL, NULL, 0, NULL},
};

int
gb_function_add_types(PyObject *module, gb_state *st)
{
    st->FunctionType = (PyTypeObject *)PyType_FromModuleAndSpec(
        module, &function_spec, NULL);
    return st->FunctionType == NULL ? -1 : 0;
}
