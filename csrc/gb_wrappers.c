#include "gb_wrappers.h"

/* Special methods are looked up on the type, as the interpreter does.  A new
 * reference; NULL without an exception if there is none. */
static PyObject *
special_method(PyObject *object, PyObject *name)
{
    PyObject *method;
    return PyObject_GetOptionalAttr((PyObject *)Py_TYPE(object), name, &method)
                   > 0
               ? method
               : NULL;
}

/* ------------------------------------------------------------ async_context */

typedef struct {
    PyObject_HEAD
    PyObject *c_manager;
    PyObject *c_aexit; /* as found on entry; NULL before */
    gb_state *c_st;
    PyObject *c_weakrefs;
} AsyncContextObject;

static int
context_tp_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"cm", NULL};
    AsyncContextObject *c = (AsyncContextObject *)self;
    PyObject *manager;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:async_context", keywords,
                                     &manager)) {
        return -1;
    }
    c->c_st = gb_state_of_type(Py_TYPE(self));
    if (c->c_st == NULL) {
        return -1;
    }
    Py_XSETREF(c->c_manager, Py_NewRef(manager));
    return 0;
}

static PyObject *
context_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    AsyncContextObject *c = (AsyncContextObject *)self;
    PyObject *aenter = NULL, *aexit = NULL, *awaitable = NULL;
    PyObject *manager = Py_XNewRef(c->c_manager); /* __init__ may come again */
    gb_state *st = c->c_st;

    if (manager == NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "async_context.__init__() was not called");
        return NULL;
    }
    aenter = special_method(manager, c->c_st->str_aenter);
    if (aenter == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_TypeError,
                         "'%.200s' object does not support the asynchronous "
                         "context manager protocol",
                         Py_TYPE(manager)->tp_name);
        }
        goto done;
    }
    aexit = special_method(manager, c->c_st->str_aexit);
    if (aexit == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_TypeError,
                         "'%.200s' object does not support the asynchronous "
                         "context manager protocol (missed __aexit__ method)",
                         Py_TYPE(manager)->tp_name);
        }
        goto done;
    }
    Py_XSETREF(c->c_aexit, Py_NewRef(aexit));
    awaitable = PyObject_CallOneArg(aenter, manager);

done:
    Py_XDECREF(aenter);
    Py_XDECREF(aexit);
    Py_DECREF(manager);
    /* Nothing is held while we wait that the garbage collector can't see. */
    return gb_await_result(st, awaitable);
}

static PyObject *
context_exit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    AsyncContextObject *c = (AsyncContextObject *)self;
    PyObject *full[4], *aexit, *manager, *awaitable;
    gb_state *st = c->c_st;

    if (nargs != 3) {
        PyErr_Format(PyExc_TypeError,
                     "__exit__() takes 3 arguments (%zd given)", nargs);
        return NULL;
    }
    if (c->c_aexit == NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "async_context was not entered before __exit__()");
        return NULL;
    }
    /* Both may be replaced by what is called. */
    aexit = Py_NewRef(c->c_aexit);
    manager = Py_NewRef(c->c_manager);
    full[0] = manager;
    full[1] = args[0];
    full[2] = args[1];
    full[3] = args[2];
    awaitable = PyObject_Vectorcall(aexit, full, 4, NULL);
    Py_DECREF(manager);
    Py_DECREF(aexit);
    return gb_await_result(st, awaitable);
}

static int
context_tp_traverse(PyObject *self, visitproc visit, void *arg)
{
    AsyncContextObject *c = (AsyncContextObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(c->c_manager);
    Py_VISIT(c->c_aexit);
    return 0;
}

static int
context_tp_clear(PyObject *self)
{
    AsyncContextObject *c = (AsyncContextObject *)self;
    Py_CLEAR(c->c_aexit);
    Py_CLEAR(c->c_manager);
    return 0;
}

static void
context_tp_dealloc(PyObject *self)
{
    PyTypeObject *tp = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (((AsyncContextObject *)self)->c_weakrefs != NULL) {
        PyObject_ClearWeakRefs(self);
    }
    context_tp_clear(self);
    tp->tp_free(self);
    Py_DECREF(tp);
}

PyDoc_STRVAR(enter_doc,
"__enter__($self, /)\n"
"--\n"
"\n"
"Enter the async context manager; return what its ``__aenter__()`` gives.");

PyDoc_STRVAR(exit_doc,
"__exit__($self, /, *exc)\n"
"--\n"
"\n"
"Leave the async context manager; true if it swallows the exception.");

static PyMethodDef context_methods[] = {
    {"__enter__", context_enter, METH_NOARGS, enter_doc},
    {"__exit__", GB_CFUNCTION(context_exit), METH_FASTCALL, exit_doc},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef context_members[] = {
    {"_cm", T_OBJECT, offsetof(AsyncContextObject, c_manager), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET,
     offsetof(AsyncContextObject, c_weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(context_doc,
"async_context(cm)\n"
"--\n"
"\n"
"Make an async context manager usable in a plain ``with`` statement.\n"
"\n"
"Its ``__aenter__()`` and ``__aexit__()`` are awaited as :func:`await_` does, so\n"
"a portal is needed.\n"
"\n"
"Parameters\n"
"----------\n"
"cm : async context manager\n"
"    What would stand in an ``async with``.\n"
"\n"
"Raises\n"
"------\n"
"TypeError\n"
"    On entry, if ``cm`` is no async context manager.");

static PyType_Slot context_slots[] = {
    {Py_tp_doc, (void *)context_doc},
    {Py_tp_init, context_tp_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, context_tp_dealloc},
    {Py_tp_traverse, context_tp_traverse},
    {Py_tp_clear, context_tp_clear},
    {Py_tp_methods, context_methods},
    {Py_tp_members, context_members},
    {0, NULL},
};

static PyType_Spec context_spec = {
    .name = "greenback.async_context",
    .basicsize = sizeof(AsyncContextObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE
             | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = context_slots,
};

/* --------------------------------------------------------------- async_iter */

typedef struct {
    PyObject_HEAD
    PyObject *i_iterator; /* the async iterator */
    gb_state *i_st;
    PyObject *i_weakrefs;
} AsyncIterObject;

/* The async iterator of `iterable`, a new reference; NULL with TypeError. */
static PyObject *
get_async_iterator(gb_state *st, PyObject *iterable)
{
    PyObject *iterator, *anext;
    PyObject *aiter = special_method(iterable, st->str_aiter);
    if (aiter == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_TypeError,
                         "'async_iter' requires an object with __aiter__ "
                         "method, got %.200s",
                         Py_TYPE(iterable)->tp_name);
        }
        return NULL;
    }
    iterator = PyObject_CallOneArg(aiter, iterable);
    Py_DECREF(aiter);
    if (iterator == NULL) {
        return NULL;
    }
    anext = special_method(iterator, st->str_anext);
    if (anext == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_TypeError,
                         "'async_iter' received an object from __aiter__ "
                         "that does not implement __anext__: %.200s",
                         Py_TYPE(iterator)->tp_name);
        }
        Py_CLEAR(iterator);
    }
    Py_XDECREF(anext);
    return iterator;
}

/* 1 if `iterator` has what an async generator has, 0 if not, -1 with an
 * exception. */
static int
is_generator_like(gb_state *st, PyObject *iterator)
{
    PyObject *const names[] = {st->str_asend, st->str_athrow, st->str_aclose};
    int found = 1;
    for (size_t i = 0; found > 0 && i < Py_ARRAY_LENGTH(names); i++) {
        PyObject *method;
        found = PyObject_GetOptionalAttr(iterator, names[i], &method);
        Py_XDECREF(method);
    }
    return found;
}

static int
iter_tp_init(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"iterable", NULL};
    AsyncIterObject *self = (AsyncIterObject *)op;
    PyObject *iterable, *iterator;
    int generator_like = 0;
    gb_state *st = gb_state_of_type(Py_TYPE(op));

    if (st == NULL
        || !PyArg_ParseTupleAndKeywords(args, kwargs, "O:async_iter", keywords,
                                        &iterable)) {
        return -1;
    }
    iterator = get_async_iterator(st, iterable);
    if (iterator == NULL) {
        return -1;
    }
    if (Py_IS_TYPE(op, st->AsyncIterType)) {
        generator_like = is_generator_like(st, iterator);
    }
    if (generator_like < 0) {
        Py_DECREF(iterator);
        return -1;
    }
    if (generator_like > 0 && Py_IS_TYPE(op, st->AsyncIterType)) {
        /* The same layout, and more methods. */
        Py_INCREF(st->AsyncGeneratorType);
        Py_SET_TYPE(op, st->AsyncGeneratorType);
        Py_DECREF(st->AsyncIterType);
    }
    self->i_st = st;
    Py_XSETREF(self->i_iterator, iterator);
    return 0;
}

/* The async iterator, a new reference: __init__ may come again while it is in
 * use.  NULL with an exception if __init__ has not come at all. */
static PyObject *
iterator_of(PyObject *self)
{
    PyObject *iterator = Py_XNewRef(((AsyncIterObject *)self)->i_iterator);
    if (iterator == NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "async_iter.__init__() was not called");
    }
    return iterator;
}

/* A StopAsyncIteration is pending: raise StopIteration with its arguments. */
static void
raise_stop_iteration(void)
{
    PyObject *stop = NULL, *exc = PyErr_GetRaisedException();
    PyObject *args = PyObject_GetAttrString(exc, "args");
    if (args != NULL) {
        stop = PyObject_CallObject(PyExc_StopIteration, args);
        Py_DECREF(args);
    }
    Py_DECREF(exc);
    if (stop != NULL) {
        PyErr_SetRaisedException(stop);
    }
}

/* Await `awaitable` (stolen; NULL with an exception) and put the end of the
 * iteration as a sync iterator does. */
static PyObject *
await_item(gb_state *st, PyObject *awaitable)
{
    PyObject *result = gb_await_result(st, awaitable);
    if (result == NULL && PyErr_ExceptionMatches(PyExc_StopAsyncIteration)) {
        raise_stop_iteration();
    }
    return result;
}

/* Await what a method of the async iterator gives for `args` (a tuple, stolen;
 * NULL for none), looked up on its type or on itself. */
static PyObject *
await_method(PyObject *self, PyObject *name, bool on_type, PyObject *args)
{
    PyObject *method, *awaitable = NULL, *iterator = iterator_of(self);
    gb_state *st = ((AsyncIterObject *)self)->i_st;

    if (iterator == NULL) {
        Py_XDECREF(args);
        return NULL;
    }
    if (on_type) {
        method = PyObject_GetAttr((PyObject *)Py_TYPE(iterator), name);
        if (method != NULL) {
            awaitable = PyObject_CallOneArg(method, iterator);
        }
    }
    else {
        method = PyObject_GetAttr(iterator, name);
        if (method != NULL) {
            awaitable = PyObject_CallObject(method, args);
        }
    }
    Py_XDECREF(method);
    Py_XDECREF(args);
    Py_DECREF(iterator);
    return await_item(st, awaitable);
}

static PyObject *
iter_tp_iternext(PyObject *self)
{
    gb_state *st = ((AsyncIterObject *)self)->i_st;
    return await_method(self, st == NULL ? NULL : st->str_anext, true, NULL);
}

static PyObject *
generator_send(PyObject *self, PyObject *value)
{
    gb_state *st = ((AsyncIterObject *)self)->i_st;
    PyObject *args = PyTuple_Pack(1, value);
    if (args == NULL) {
        return NULL;
    }
    return await_method(self, st == NULL ? NULL : st->str_asend, false, args);
}

static PyObject *
generator_throw(PyObject *self, PyObject *args)
{
    gb_state *st = ((AsyncIterObject *)self)->i_st;
    return await_method(self, st == NULL ? NULL : st->str_athrow, false,
                        Py_NewRef(args));
}

static PyObject *
generator_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    gb_state *st = ((AsyncIterObject *)self)->i_st;
    return await_method(self, st == NULL ? NULL : st->str_aclose, false, NULL);
}

static int
iter_tp_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((AsyncIterObject *)self)->i_iterator);
    return 0;
}

static int
iter_tp_clear(PyObject *self)
{
    Py_CLEAR(((AsyncIterObject *)self)->i_iterator);
    return 0;
}

static void
iter_tp_dealloc(PyObject *self)
{
    PyTypeObject *tp = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (((AsyncIterObject *)self)->i_weakrefs != NULL) {
        PyObject_ClearWeakRefs(self);
    }
    iter_tp_clear(self);
    tp->tp_free(self);
    Py_DECREF(tp);
}

static PyMethodDef iter_methods[] = {
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef iter_members[] = {
    {"_it", T_OBJECT, offsetof(AsyncIterObject, i_iterator), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(AsyncIterObject, i_weakrefs),
     READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(iter_doc,
"async_iter(iterable)\n"
"--\n"
"\n"
"Make an async iterable usable in a plain ``for`` loop, in ``yield from`` and\n"
"wherever else an iterator is expected.\n"
"\n"
"Each item is awaited as :func:`await_` does, so a portal is needed. If the async\n"
"iterator is a generator (has ``asend``, ``athrow`` and ``aclose``), the result has\n"
"``send``, ``throw`` and ``close``.\n"
"\n"
"Parameters\n"
"----------\n"
"iterable : async iterable\n"
"    What would stand in an ``async for``.\n"
"\n"
"Raises\n"
"------\n"
"TypeError\n"
"    If ``iterable`` is no async iterable.");

static PyType_Slot iter_slots[] = {
    {Py_tp_doc, (void *)iter_doc},
    {Py_tp_init, iter_tp_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, iter_tp_dealloc},
    {Py_tp_traverse, iter_tp_traverse},
    {Py_tp_clear, iter_tp_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, iter_tp_iternext},
    {Py_tp_methods, iter_methods},
    {Py_tp_members, iter_members},
    {0, NULL},
};

static PyType_Spec iter_spec = {
    .name = "greenback.async_iter",
    .basicsize = sizeof(AsyncIterObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE
             | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = iter_slots,
};

PyDoc_STRVAR(send_doc,
"send($self, val, /)\n"
"--\n"
"\n"
"Send a value into the async generator; return what it yields next.");

PyDoc_STRVAR(throw_doc,
"throw($self, /, *exc)\n"
"--\n"
"\n"
"Raise an exception in the async generator; return what it yields next.");

PyDoc_STRVAR(close_doc,
"close($self, /)\n"
"--\n"
"\n"
"Close the async generator.");

static PyMethodDef generator_methods[] = {
    {"send", generator_send, METH_O, send_doc},
    {"throw", generator_throw, METH_VARARGS, throw_doc},
    {"close", generator_close, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(generator_doc,
"async_generator(iterable)\n"
"--\n"
"\n"
"What async_iter() makes of an async generator.");

static PyType_Slot generator_slots[] = {
    {Py_tp_doc, (void *)generator_doc},
    {Py_tp_methods, generator_methods},
    {0, NULL},
};

static PyType_Spec generator_spec = {
    .name = "greenback._util.async_generator",
    .basicsize = sizeof(AsyncIterObject),
    .flags
    = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = generator_slots,
};

int
gb_wrappers_add_types(PyObject *module, gb_state *st)
{
    st->AsyncContextType = (PyTypeObject *)PyType_FromModuleAndSpec(
        module, &context_spec, NULL);
    st->AsyncIterType
        = (PyTypeObject *)PyType_FromModuleAndSpec(module, &iter_spec, NULL);
    if (st->AsyncContextType == NULL || st->AsyncIterType == NULL) {
        return -1;
    }
    st->AsyncGeneratorType = (PyTypeObject *)PyType_FromModuleAndSpec(
        module, &generator_spec, (PyObject *)st->AsyncIterType);
    if (st->AsyncGeneratorType == NULL
        || PyModule_AddType(module, st->AsyncContextType) < 0
        || PyModule_AddType(module, st->AsyncIterType) < 0) {
        return -1;
    }
    return PyModule_AddType(module, st->AsyncGeneratorType);
}
