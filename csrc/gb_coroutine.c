/* The retyped coroutine: a coroutine of the user's which has become an
 * instance of our subclass of the coroutine type.  Its object stays the very
 * same, so that whoever looks at the task sees the user's coroutine; the loop
 * that drives it drives the portal.  The portal hangs in the field that holds
 * the coroutine's origin, and keeps the origin meanwhile.
 *
 * Ownership: the coroutine owns the portal, the portal borrows the coroutine.
 * Detaching gives the coroutine its type and origin back. */
#include "gb_coroutine.h"

#include "gb_drive.h"
#include "gb_orphans.h"
#include "gb_standin.h"

static PyTypeObject retyped_type;

static inline bool
is_retyped(PyObject *self)
{
    return Py_IS_TYPE(self, &retyped_type);
}

static PortalObject *
portal_of(PyObject *self)
{
    assert(is_retyped(self));
    return (PortalObject *)*gb_cpython_origin_slot(self);
}

/* ------------------------------------------------------------- native side */

static sendfunc coroutine_am_send; /* the slot of native coroutines */

static inline PySendResult
native_send(PyObject *self, PyObject *value, PyObject **result)
{
    return coroutine_am_send(self, value, result);
}

static PySendResult
native_throw(gb_state *st, PyObject *self, PyObject *exc, PyObject **result)
{
    PyObject *args[] = {self, exc};
    return gb_drive_sort_result(
        PyObject_Vectorcall(st->coroutine_throw, args, 2, NULL), result);
}

static GB_HOT PySendResult
form_send(PortalObject *p, PyObject *value, PyObject **result)
{
    return native_send(p->p_coroutine, value, result);
}

static PySendResult
form_throw(PortalObject *p, PyObject *exc, PyObject **result)
{
    return native_throw(p->p_st, p->p_coroutine, exc, result);
}

static PySendResult
form_close(PortalObject *p, PyObject **result)
{
    *result = PyObject_CallOneArg(p->p_st->coroutine_close, p->p_coroutine);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

static bool
form_goes_on(PortalObject *p)
{
    return gb_cpython_coroutine_stage(p->p_coroutine) != GB_COROUTINE_FINISHED;
}

static void
form_detach(PortalObject *p)
{
    PyObject *coroutine = p->p_coroutine;
    *gb_cpython_origin_slot(coroutine) = p->p_origin;
    Py_SET_TYPE(coroutine, &PyCoro_Type);
    p->p_origin = NULL;
    p->p_coroutine = NULL;
    Py_DECREF(p);
}

static const gb_form retyped_form = {
    .send = form_send,
    .throw = form_throw,
    .close = form_close,
    .goes_on = form_goes_on,
    .detach = form_detach,
};

/* ------------------------------------------------------------------- steps */

/* A portal that has not begun its work: decide what the first step is to be.
 * 1 a step of the portal, 0 a native one (the portal has been detached), -1
 * neither, with an exception. */
static int
prepare_first_step(PyObject *self, gb_op op, PyObject *argument)
{
    PortalObject *p = portal_of(self);
    gb_coroutine_stage stage = gb_cpython_coroutine_stage(self);

    if (stage == GB_COROUTINE_EXECUTING) { /* bestowed in this very step */
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return -1;
    }
    if (stage == GB_COROUTINE_FINISHED) { /* in the step that bestowed it */
        gb_portal_detach(p);
        return 0;
    }
    if (stage == GB_COROUTINE_CREATED) {
        if (op == GB_OP_SEND && argument != Py_None) {
            PyErr_SetString(PyExc_TypeError,
                            "can't send non-None value to a just-started "
                            "coroutine");
            return -1;
        }
        if (op != GB_OP_SEND) { /* ends without running anything */
            gb_portal_detach(p);
            return 0;
        }
    }
    if (p->p_state == PORTAL_NEW) {
        if (gb_portal_here(p->p_st, PyThreadState_Get()) != NULL) {
            /* The portal that is there already does. */
            gb_portal_detach(p);
            return 0;
        }
        if (PyErr_Occurred()) {
            return -1;
        }
    }
    return 1;
}

/* All driving of a retyped coroutine comes through here; returns as
 * PyIter_Send does. */
static GB_HOT PySendResult
drive(PyObject *self, gb_op op, PyObject *argument, PyObject **result)
{
    PortalObject *p = portal_of(self);
    gb_state *st = p->p_st;
    PySendResult status;
    int prepared = 1;

    Py_INCREF(self); /* the loop's reference may go away during the step */
    if (GB_UNLIKELY(p->p_state < PORTAL_IDLE)) {
        prepared = prepare_first_step(self, op, argument);
    }
    if (GB_LIKELY(prepared > 0)) {
        status = gb_portal_step(p, op, argument, result);
        gb_orphans_look(st);
        Py_DECREF(self);
        return status;
    }
    /* It is the caller's to keep a native coroutine.  This may be a step of
     * another portal, and the garbage collector would not see our reference
     * while that is suspended. */
    Py_DECREF(self);
    *result = NULL;
    if (prepared < 0) {
        return PYGEN_ERROR;
    }
    return op == GB_OP_SEND ? native_send(self, argument, result)
                            : native_throw(st, self, argument, result);
}

static GB_HOT PySendResult
retyped_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    return drive(self, GB_OP_SEND, value, result);
}

/* The methods, unlike the slots, may find that the coroutine has no portal any
 * more: whoever has got hold of coroutine.send can call it at any time. */

static PyObject *
retyped_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = is_retyped(self)
                              ? drive(self, GB_OP_SEND, value, &result)
                              : native_send(self, value, &result);
    return gb_drive_to_method_result(status, result);
}

static PyObject *
retyped_tp_iternext(PyObject *self)
{
    PyObject *result;
    PySendResult status = drive(self, GB_OP_SEND, Py_None, &result);
    return gb_drive_to_next_result(status, result);
}

static PyObject *
retyped_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *result;
    PySendResult status;
    PyObject *exc = gb_drive_exception_from_args(args, nargs);
    if (exc == NULL) {
        return NULL;
    }
    if (is_retyped(self)) { /* asked late: constructors have run */
        status = drive(self, GB_OP_THROW, exc, &result);
        result = gb_drive_to_method_result(status, result);
    }
    else {
        result = PyObject_CallMethod(self, "throw", "O", exc);
    }
    Py_DECREF(exc);
    return result;
}

static PyObject *
retyped_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PortalObject *p = is_retyped(self) ? portal_of(self) : NULL;
    PyObject *result = NULL;
    int prepared = p != NULL;

    Py_INCREF(self);
    if (p != NULL && p->p_state < PORTAL_IDLE) {
        prepared = prepare_first_step(self, GB_OP_CLOSE, NULL);
    }
    if (prepared > 0) {
        result = gb_portal_close(p) < 0 ? NULL : Py_NewRef(Py_None);
    }
    else if (prepared == 0) { /* it has the type of a native one now */
        result = PyObject_CallMethod(self, "close", NULL);
    }
    Py_DECREF(self);
    return result;
}

/* ---------------------------------------------------------- introspection */

/* The attribute as a native coroutine gives it. */
static PyObject *
native_attribute(PyObject *self, const char *name)
{
    PyObject *value = NULL;
    PyObject *descriptor
        = PyObject_GetAttrString((PyObject *)&PyCoro_Type, name);
    if (descriptor != NULL) {
#if GB_CPYTHON_GETTERS_WANT_EXACT_TYPE
        PyTypeObject *type = Py_TYPE(self);
        Py_SET_TYPE(self, &PyCoro_Type);
#endif
        value = Py_TYPE(descriptor)
                    ->tp_descr_get(descriptor, self, (PyObject *)&PyCoro_Type);
#if GB_CPYTHON_GETTERS_WANT_EXACT_TYPE
        Py_SET_TYPE(self, type);
#endif
        Py_DECREF(descriptor);
    }
    return value;
}

#if GB_CPYTHON_GETTERS_WANT_EXACT_TYPE
static PyObject *
retyped_get_unchanged(PyObject *self, void *name)
{
    return native_attribute(self, name);
}
#endif

static PyObject *
retyped_get_cr_running(PyObject *self, void *Py_UNUSED(closure))
{
    /* While sync frames wait in await_, the interpreter takes the coroutine
     * to be executing. */
    if (portal_of(self)->p_state == PORTAL_SUSPENDED) {
        Py_RETURN_FALSE;
    }
    return native_attribute(self, "cr_running");
}

static PyObject *
retyped_get_cr_suspended(PyObject *self, void *Py_UNUSED(closure))
{
    if (portal_of(self)->p_state == PORTAL_SUSPENDED) {
        Py_RETURN_TRUE;
    }
    return native_attribute(self, "cr_suspended");
}

#if GB_HAVE_CR_STATE
static PyObject *
retyped_get_cr_state(PyObject *self, void *Py_UNUSED(closure))
{
    if (portal_of(self)->p_state == PORTAL_SUSPENDED) {
        return PyUnicode_InternFromString("CORO_SUSPENDED");
    }
    return native_attribute(self, "cr_state");
}
#endif

static PyObject *
retyped_get_cr_await(PyObject *self, void *Py_UNUSED(closure))
{
    PortalObject *p = portal_of(self);
    if (p->p_state == PORTAL_SUSPENDED && p->p_awaiting != NULL) {
        return Py_NewRef(p->p_awaiting);
    }
    return native_attribute(self, "cr_await");
}

static PyObject *
retyped_get_cr_origin(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *origin = portal_of(self)->p_origin;
    return Py_NewRef(origin == NULL ? Py_None : origin);
}

static PyObject *
retyped_tp_repr(PyObject *self)
{
    PyObject *qualname, *repr;
    gb_state *st = portal_of(self)->p_st;
    qualname = PyObject_GetAttr(self, st->str_qualname);
    if (qualname == NULL) {
        return NULL;
    }
    repr = PyUnicode_FromFormat("<coroutine object %S at %p>", qualname, self);
    Py_DECREF(qualname);
    return repr;
}

/* For `await`: the interpreter drives the coroutine itself. */
static PyObject *
retyped_am_await(PyObject *self)
{
    PyObject *awaiting = retyped_get_cr_await(self, NULL);
    if (awaiting == NULL) {
        return NULL;
    }
    Py_DECREF(awaiting);
    if (awaiting != Py_None) {
        PyErr_SetString(PyExc_RuntimeError,
                        "coroutine is being awaited already");
        return NULL;
    }
    return Py_NewRef(self);
}

/* For `yield from` in a generator that types.coroutine() has blessed; nobody
 * else may iterate over a coroutine. */
static PyObject *
retyped_tp_iter(PyObject *self)
{
    int flags = 0;
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get());
    if (frame != NULL) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        flags = code->co_flags;
        Py_DECREF(code);
        Py_DECREF(frame);
    }
    if (flags & CO_ITERABLE_COROUTINE) {
        return Py_NewRef(self);
    }
    PyErr_SetString(PyExc_TypeError,
                    flags & CO_GENERATOR
                        ? "cannot 'yield from' a coroutine object in a "
                          "non-coroutine generator"
                        : "'coroutine' object is not iterable");
    return NULL;
}

/* For an explicit __await__(): native coroutines give an iterator. */
static PyObject *
retyped_await(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return is_retyped(self)
               ? gb_coroutine_wrapper_new(portal_of(self)->p_st, self)
               : PyObject_CallMethod(self, "__await__", NULL);
}

/* ---------------------------------------------------------------- lifetime */

static int
retyped_tp_traverse(PyObject *self, visitproc visit, void *arg)
{
    PortalObject *p = portal_of(self);
    Py_VISIT((PyObject *)p);
    /* The coroutines that it awaits, should their finalizers come first, would
     * only find that they are being executed. */
    if (!GB_COLLECTOR_KEEPS_ORDER && gb_portal_hides_frames(p)) {
        return 0;
    }
    return PyCoro_Type.tp_traverse(self, visit, arg);
}

static void
retyped_tp_finalize(PyObject *self)
{
    PortalObject *p = portal_of(self);
    if (p->p_state == PORTAL_RUNNING) {
        return; /* the step holds references: the collector erred */
    }
    if (!gb_orphans_finalize(p)) {
        return;
    }
    if (is_retyped(self)) {
        gb_portal_detach(p);
    }
    PyCoro_Type.tp_finalize(self);
}

static void
retyped_tp_dealloc(PyObject *self)
{
    /* In the order of a native coroutine: weak references, then finalizer. */
    PyObject_GC_UnTrack(self);
    PyObject_ClearWeakRefs(self);
    PyObject_GC_Track(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0) {
        return; /* alive again */
    }
    if (is_retyped(self)) {
        /* The finalizer had its one run before this portal was put here. */
        if (portal_of(self)->p_state == PORTAL_SUSPENDED) {
            gb_orphans_leak(portal_of(self));
            return;
        }
        gb_portal_detach(portal_of(self));
    }
    PyCoro_Type.tp_dealloc(self);
}

/* -------------------------------------------------------------------- type */

static PyAsyncMethods retyped_async = {
    .am_await = retyped_am_await,
    .am_send = retyped_am_send,
};

static PyMethodDef retyped_methods[] = {
    {"send", retyped_send, METH_O,
     PyDoc_STR("send(arg) -> send 'arg' into the coroutine, return what it "
               "yields next or raise StopIteration.")},
    {"throw", GB_CFUNCTION(retyped_throw), METH_FASTCALL,
     PyDoc_STR("throw(value) -> raise the exception in the coroutine, return "
               "what it yields next or raise StopIteration.")},
    {"close", retyped_close, METH_NOARGS,
     PyDoc_STR("close() -> raise GeneratorExit inside the coroutine.")},
    {"__await__", retyped_await, METH_NOARGS,
     PyDoc_STR("Return an iterator to be used in an await expression.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef retyped_getset[] = {
    {"cr_running", retyped_get_cr_running, NULL, NULL, NULL},
    {"cr_suspended", retyped_get_cr_suspended, NULL, NULL, NULL},
#if GB_CPYTHON_GETTERS_WANT_EXACT_TYPE
    {"cr_frame", retyped_get_unchanged, NULL, NULL, (void *)"cr_frame"},
    {"cr_code", retyped_get_unchanged, NULL, NULL, (void *)"cr_code"},
#endif
#if GB_HAVE_CR_STATE
    {"cr_state", retyped_get_cr_state, NULL, NULL, NULL},
#endif
    {"cr_await", retyped_get_cr_await, NULL,
     PyDoc_STR("object being awaited on, or None"), NULL},
    {"cr_origin", retyped_get_cr_origin, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* Methods of retyped coroutines are methods of all coroutines to whoever binds
 * them: profilers bind them again after the call, and the call may have given
 * the coroutine its native type back.  0, or -1 with an exception. */
static int
add_methods(void)
{
    for (PyMethodDef *method = retyped_methods; method->ml_name != NULL;
         method++) {
        int rc;
        PyObject *descriptor = PyDescr_NewMethod(&PyCoro_Type, method);
        if (descriptor == NULL) {
            return -1;
        }
        rc = PyDict_SetItemString(retyped_type.tp_dict, method->ml_name,
                                  descriptor);
        Py_DECREF(descriptor);
        if (rc < 0) {
            return -1;
        }
    }
    PyType_Modified(&retyped_type);
    return 0;
}

/* Static, since the coroutine type is no acceptable base for a heap type. */
static PyTypeObject retyped_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "coroutine",
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
                | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = retyped_tp_dealloc,
    .tp_traverse = retyped_tp_traverse,
    .tp_finalize = retyped_tp_finalize,
    .tp_repr = retyped_tp_repr,
    .tp_as_async = &retyped_async,
    .tp_getset = retyped_getset,
};

bool
gb_coroutine_may_retype(gb_state *st, PyObject *object)
{
    return st->may_retype && PyCoro_CheckExact(object);
}

int
gb_coroutine_retype(gb_state *st, PyObject *coroutine, gb_portal_state state,
                    PyObject *task)
{
    PyObject **slot = gb_cpython_origin_slot(coroutine);
    PortalObject *p = gb_portal_new(st, &retyped_form, coroutine, state, task);
    if (p == NULL) {
        return -1;
    }
    p->p_origin = *slot;
    *slot = (PyObject *)p;
    Py_SET_TYPE(coroutine, &retyped_type);
    return 0;
}

PortalObject *
gb_coroutine_portal(gb_state *st, PyObject *object)
{
    if (is_retyped(object)) {
        return portal_of(object);
    }
    return gb_stand_in_portal(st, object);
}

int
gb_coroutine_add_types(PyObject *module, gb_state *st)
{
    if (!(retyped_type.tp_flags & Py_TPFLAGS_READY)) {
        coroutine_am_send = PyCoro_Type.tp_as_async->am_send;
        retyped_type.tp_base = &PyCoro_Type;
        retyped_type.tp_basicsize = PyCoro_Type.tp_basicsize;
        retyped_type.tp_itemsize = PyCoro_Type.tp_itemsize;
        if (PyType_Ready(&retyped_type) < 0 || add_methods() < 0) {
            return -1;
        }
        /* `await` insists on an iterator.  Set late: a native coroutine has
         * no __next__ and no __iter__, so there must be none here. */
        retyped_type.tp_iter = retyped_tp_iter;
        retyped_type.tp_iternext = retyped_tp_iternext;
    }
    if (PyModule_AddObjectRef(module, "Coroutine", (PyObject *)&retyped_type)
        < 0) {
        return -1;
    }
    return gb_stand_in_add_types(module, st);
}
