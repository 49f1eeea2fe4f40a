/* A stand-in takes the place of a task's coroutine that is not an exact
 * coroutine object: compiled by Cython, generator-based, an instance of
 * collections.abc.Coroutine.  To those who look at the task it answers as
 * what it wraps would; the loop that drives it drives the portal.
 *
 * Ownership: the stand-in owns both the portal and the wrapped object.  It
 * stays in its place when the portal is gone, and forwards. */
#include "gb_standin.h"

#include "gb_drive.h"
#include "gb_orphans.h"

typedef struct {
    PyObject_HEAD
    PortalObject *s_portal; /* owned; NULL when detached */
    PyObject *s_wrapped;
    gb_state *s_st;
    PyObject *s_weakrefs;
} StandInObject;

/* -------------------------------------------------------------------- form */

/* A portal's p_coroutine is the stand-in: that is what owns the portal. */
static PyObject *
wrapped_of(PortalObject *p)
{
    return ((StandInObject *)p->p_coroutine)->s_wrapped;
}

static PySendResult
form_send(PortalObject *p, PyObject *value, PyObject **result)
{
    return gb_drive_send(wrapped_of(p), value, result);
}

static PySendResult
form_throw(PortalObject *p, PyObject *exc, PyObject **result)
{
    return gb_drive_throw(p->p_st, wrapped_of(p), exc, result);
}

static PySendResult
form_close(PortalObject *p, PyObject **result)
{
    if (gb_drive_close(p->p_st, wrapped_of(p)) < 0) {
        *result = NULL;
        return PYGEN_ERROR;
    }
    *result = Py_NewRef(Py_None);
    return PYGEN_RETURN;
}

/* Other types than the native one don't tell. */
static bool
form_goes_on(PortalObject *p)
{
    PyObject *wrapped = wrapped_of(p);
    return PyCoro_CheckExact(wrapped)
           && gb_cpython_coroutine_stage(wrapped) != GB_COROUTINE_FINISHED;
}

static void
form_detach(PortalObject *p)
{
    ((StandInObject *)p->p_coroutine)->s_portal = NULL;
    p->p_coroutine = NULL;
    Py_DECREF(p);
}

static const gb_form stand_in_form = {
    .send = form_send,
    .throw = form_throw,
    .close = form_close,
    .goes_on = form_goes_on,
    .detach = form_detach,
};

/* ------------------------------------------------------------------- steps */

static PySendResult
drive(PyObject *self, gb_op op, PyObject *argument, PyObject **result)
{
    StandInObject *s = (StandInObject *)self;
    gb_state *st = s->s_st;
    PySendResult status;

    Py_INCREF(self);
    *result = NULL;
    if (s->s_portal != NULL && s->s_portal->p_state == PORTAL_NEW
        && gb_portal_here(s->s_st, PyThreadState_Get()) != NULL) {
        gb_portal_detach(s->s_portal); /* the one that is there will do */
    }
    if (PyErr_Occurred()) { /* the look-up failed */
        status = PYGEN_ERROR;
    }
    else if (s->s_portal != NULL) {
        status = gb_portal_step(s->s_portal, op, argument, result);
    }
    else { /* nothing is held that the collector can't see, see gb_coroutine.c
            */
        PyObject *wrapped = s->s_wrapped;
        Py_DECREF(self);
        return op == GB_OP_SEND
                   ? gb_drive_send(wrapped, argument, result)
                   : gb_drive_throw(st, wrapped, argument, result);
    }
    gb_orphans_look(st);
    Py_DECREF(self);
    return status;
}

static PySendResult
stand_in_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    return drive(self, GB_OP_SEND, value, result);
}

static PyObject *
stand_in_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = drive(self, GB_OP_SEND, value, &result);
    return gb_drive_to_method_result(status, result);
}

static PyObject *
stand_in_tp_iternext(PyObject *self)
{
    PyObject *result;
    PySendResult status = drive(self, GB_OP_SEND, Py_None, &result);
    return gb_drive_to_next_result(status, result);
}

static PyObject *
stand_in_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *result;
    PySendResult status;
    PyObject *exc = gb_drive_exception_from_args(args, nargs);
    if (exc == NULL) {
        return NULL;
    }
    status = drive(self, GB_OP_THROW, exc, &result);
    Py_DECREF(exc);
    return gb_drive_to_method_result(status, result);
}

static PyObject *
stand_in_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    StandInObject *s = (StandInObject *)self;
    int rc;
    Py_INCREF(self);
    rc = s->s_portal != NULL ? gb_portal_close(s->s_portal)
                             : gb_drive_close(s->s_st, s->s_wrapped);
    Py_DECREF(self);
    return rc < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
stand_in_await(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(self);
}

/* ---------------------------------------------------------- introspection */

/* The name of a coroutine's attribute, and of a generator's that means the
 * same. */
typedef struct {
    const char *coroutine;
    const char *generator;
} attribute_names;

static attribute_names const names_frame = {"cr_frame", "gi_frame"};
static attribute_names const names_code = {"cr_code", "gi_code"};
static attribute_names const names_await = {"cr_await", "gi_yieldfrom"};
static attribute_names const names_running = {"cr_running", "gi_running"};
static attribute_names const names_suspended
    = {"cr_suspended", "gi_suspended"};
static attribute_names const names_origin = {"cr_origin", NULL};

static PyObject *
stand_in_get_attribute(PyObject *self, void *closure)
{
    const attribute_names *names = (const attribute_names *)closure;
    PyObject *wrapped = ((StandInObject *)self)->s_wrapped;
    PyObject *value;
    int found
        = PyObject_GetOptionalAttrString(wrapped, names->coroutine, &value);
    if (found == 0 && names->generator != NULL) {
        found = PyObject_GetOptionalAttrString(wrapped, names->generator,
                                               &value);
    }
    if (found < 0) {
        return NULL;
    }
    return found > 0 ? value : Py_NewRef(Py_None);
}

static bool
is_suspended(PyObject *self)
{
    PortalObject *p = ((StandInObject *)self)->s_portal;
    return p != NULL && p->p_state == PORTAL_SUSPENDED;
}

static bool
is_running(PyObject *self)
{
    PortalObject *p = ((StandInObject *)self)->s_portal;
    return p != NULL && p->p_state == PORTAL_RUNNING;
}

static PyObject *
stand_in_get_cr_running(PyObject *self, void *closure)
{
    if (is_suspended(self) || is_running(self)) {
        return PyBool_FromLong(is_running(self));
    }
    return stand_in_get_attribute(self, closure);
}

static PyObject *
stand_in_get_cr_suspended(PyObject *self, void *closure)
{
    StandInObject *s = (StandInObject *)self;
    if (is_suspended(self) || is_running(self)) {
        return PyBool_FromLong(is_suspended(self));
    }
    /* Those that don't tell have been started if their portal has: such a
     * thing must not be taken for created, or a cancel would kill it. */
    if (s->s_portal != NULL && s->s_portal->p_state == PORTAL_IDLE) {
        Py_RETURN_TRUE;
    }
    return stand_in_get_attribute(self, closure);
}

#if GB_HAVE_CR_STATE
/* As inspect.getcoroutinestate() put it together before 3.15. */
static PyObject *
stand_in_get_cr_state(PyObject *self, void *Py_UNUSED(closure))
{
    static const char *const names[]
        = {"CORO_CREATED", "CORO_CLOSED", "CORO_SUSPENDED", "CORO_RUNNING"};
    int state;
    PyObject *frame = NULL, *suspended = NULL, *running = NULL;
    PyObject *name = NULL;

    frame = stand_in_get_attribute(self, (void *)&names_frame);
    suspended = stand_in_get_cr_suspended(self, (void *)&names_suspended);
    running = stand_in_get_cr_running(self, (void *)&names_running);
    if (frame != NULL && suspended != NULL && running != NULL) {
        state = running == Py_True     ? 3
                : suspended == Py_True ? 2
                : frame == Py_None     ? 1
                                       : 0;
        name = PyUnicode_InternFromString(names[state]);
    }
    Py_XDECREF(frame);
    Py_XDECREF(suspended);
    Py_XDECREF(running);
    return name;
}
#endif

static PyObject *
stand_in_get_cr_await(PyObject *self, void *closure)
{
    PortalObject *p = ((StandInObject *)self)->s_portal;
    if (is_suspended(self) && p->p_awaiting != NULL) {
        return Py_NewRef(p->p_awaiting);
    }
    return stand_in_get_attribute(self, closure);
}

static PyObject *
stand_in_get_name(PyObject *self, void *closure)
{
    StandInObject *s = (StandInObject *)self;
    PyObject *name;
    int found
        = PyObject_GetOptionalAttrString(s->s_wrapped, (char *)closure, &name);
    if (found != 0) {
        return found < 0 ? NULL : name;
    }
    return PyUnicode_FromString(Py_TYPE(s->s_wrapped)->tp_name);
}

static int
stand_in_set_name(PyObject *self, PyObject *value, void *closure)
{
    StandInObject *s = (StandInObject *)self;
    if (value == NULL) {
        return PyObject_DelAttrString(s->s_wrapped, (char *)closure);
    }
    return PyObject_SetAttrString(s->s_wrapped, (char *)closure, value);
}

/* isinstance() believes __class__: inspect.iscoroutine must be true. */
static PyObject *
stand_in_get_class(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    return Py_NewRef((PyObject *)&PyCoro_Type);
}

static PyObject *
stand_in_get_wrapped(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(((StandInObject *)self)->s_wrapped);
}

static PyObject *
stand_in_tp_getattro(PyObject *self, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr(self, name);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        value = PyObject_GetAttr(((StandInObject *)self)->s_wrapped, name);
    }
    return value;
}

static PyObject *
stand_in_tp_repr(PyObject *self)
{
    return PyObject_Repr(((StandInObject *)self)->s_wrapped);
}

/* ---------------------------------------------------------------- lifetime */

static int
stand_in_tp_traverse(PyObject *self, visitproc visit, void *arg)
{
    StandInObject *s = (StandInObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)s->s_portal);
    /* It is older: its own finalizer, should the collector find both to be
     * garbage, would come first, and find that it is being executed. */
    if (s->s_portal == NULL || !gb_portal_hides_frames(s->s_portal)) {
        Py_VISIT(s->s_wrapped);
    }
    return 0;
}

/* No tp_clear: the wrapped object must stay as long as the portal may step;
 * cycles are broken by the other objects in them. */

static void
stand_in_tp_finalize(PyObject *self)
{
    StandInObject *s = (StandInObject *)self;
    if (s->s_portal == NULL || s->s_portal->p_state == PORTAL_RUNNING) {
        return;
    }
    (void)gb_orphans_finalize(s->s_portal); /* false: alive again */
}

static void
stand_in_tp_dealloc(PyObject *self)
{
    StandInObject *s = (StandInObject *)self;
    PyTypeObject *tp = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    PyObject_ClearWeakRefs(self);
    if (s->s_portal != NULL) {
        gb_portal_detach(s->s_portal);
    }
    Py_CLEAR(s->s_wrapped);
    PyObject_GC_Del(self);
    Py_DECREF(tp);
}

static PyMethodDef stand_in_methods[] = {
    {"send", stand_in_send, METH_O,
     PyDoc_STR("send($self, arg, /)\n--\n\n"
               "Send 'arg' into the coroutine; return what it yields next or "
               "raise StopIteration.")},
    {"throw", GB_CFUNCTION(stand_in_throw), METH_FASTCALL,
     PyDoc_STR("throw(value)\n"
               "Raise the exception in the coroutine; return what it yields "
               "next or raise StopIteration.")},
    {"close", stand_in_close, METH_NOARGS,
     PyDoc_STR("close($self, /)\n--\n\n"
               "Raise GeneratorExit inside the coroutine.")},
    {"__await__", stand_in_await, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef stand_in_getset[] = {
    {"cr_frame", stand_in_get_attribute, NULL, NULL, (void *)&names_frame},
    {"cr_code", stand_in_get_attribute, NULL, NULL, (void *)&names_code},
    {"cr_await", stand_in_get_cr_await, NULL, NULL, (void *)&names_await},
    {"cr_running", stand_in_get_cr_running, NULL, NULL,
     (void *)&names_running},
    {"cr_suspended", stand_in_get_cr_suspended, NULL, NULL,
     (void *)&names_suspended},
#if GB_HAVE_CR_STATE
    {"cr_state", stand_in_get_cr_state, NULL, NULL, NULL},
#endif
    {"cr_origin", stand_in_get_attribute, NULL, NULL, (void *)&names_origin},
    {"__name__", stand_in_get_name, stand_in_set_name, NULL,
     (void *)"__name__"},
    {"__qualname__", stand_in_get_name, stand_in_set_name, NULL,
     (void *)"__qualname__"},
    {"__class__", stand_in_get_class, NULL, NULL, NULL},
    {"__wrapped__", stand_in_get_wrapped, NULL,
     PyDoc_STR("The coroutine that this object stands in for."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef stand_in_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(StandInObject, s_weakrefs),
     READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot stand_in_slots[] = {
    {Py_tp_doc, (void *)"Takes the place of a task's coroutine whose type "
                        "can't be changed, to put a portal before it."},
    {Py_tp_dealloc, stand_in_tp_dealloc},
    {Py_tp_traverse, stand_in_tp_traverse},
    {Py_tp_finalize, stand_in_tp_finalize},
    {Py_tp_repr, stand_in_tp_repr},
    {Py_tp_getattro, stand_in_tp_getattro},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, stand_in_tp_iternext},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, stand_in_am_send},
    {Py_tp_methods, stand_in_methods},
    {Py_tp_getset, stand_in_getset},
    {Py_tp_members, stand_in_members},
    {0, NULL},
};

static PyType_Spec stand_in_spec = {
    .name = "greenback._core.StandIn",
    .basicsize = sizeof(StandInObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
             | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = stand_in_slots,
};

PyObject *
gb_stand_in_new(gb_state *st, PyObject *wrapped, gb_portal_state state,
                PyObject *task)
{
    StandInObject *s = PyObject_GC_New(StandInObject, st->StandInType);
    if (s == NULL) {
        return NULL;
    }
    s->s_st = st;
    s->s_wrapped = Py_NewRef(wrapped);
    s->s_weakrefs = NULL;
    s->s_portal = NULL;
    PyObject_GC_Track((PyObject *)s);
    if (gb_stand_in_equip(st, (PyObject *)s, state, task) < 0) {
        Py_CLEAR(s);
    }
    return (PyObject *)s;
}

int
gb_stand_in_equip(gb_state *st, PyObject *object, gb_portal_state state,
                  PyObject *task)
{
    StandInObject *s = (StandInObject *)object;
    if (!Py_IS_TYPE(object, st->StandInType)) {
        return 0;
    }
    assert(s->s_portal == NULL);
    s->s_portal = gb_portal_new(st, &stand_in_form, object, state, task);
    return s->s_portal == NULL ? -1 : 1;
}

PortalObject *
gb_stand_in_portal(gb_state *st, PyObject *object)
{
    return Py_IS_TYPE(object, st->StandInType)
               ? ((StandInObject *)object)->s_portal
               : NULL;
}

/* ------------------------------------------------------- coroutine wrapper */

typedef struct {
    PyObject_HEAD
    PyObject *w_coroutine;
    gb_state *w_st;
} CoroutineWrapperObject;

static PySendResult
wrapper_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    PyObject *coroutine = ((CoroutineWrapperObject *)self)->w_coroutine;
    PySendResult status;
    Py_INCREF(coroutine);
    status = gb_drive_send(coroutine, value, result);
    Py_DECREF(coroutine);
    return status;
}

static PyObject *
wrapper_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = wrapper_am_send(self, value, &result);
    return gb_drive_to_method_result(status, result);
}

static PyObject *
wrapper_tp_iternext(PyObject *self)
{
    PyObject *result;
    PySendResult status = wrapper_am_send(self, Py_None, &result);
    return gb_drive_to_next_result(status, result);
}

static PyObject *
wrapper_throw(PyObject *self, PyObject *args)
{
    CoroutineWrapperObject *w = (CoroutineWrapperObject *)self;
    PyObject *result;
    PyObject *method = PyObject_GetAttr(w->w_coroutine, w->w_st->str_throw);
    if (method == NULL) {
        return NULL;
    }
    result = PyObject_CallObject(method, args);
    Py_DECREF(method);
    return result;
}

static PyObject *
wrapper_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    CoroutineWrapperObject *w = (CoroutineWrapperObject *)self;
    return PyObject_CallMethodNoArgs(w->w_coroutine, w->w_st->str_close);
}

static int
wrapper_tp_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((CoroutineWrapperObject *)self)->w_coroutine);
    return 0;
}

static int
wrapper_tp_clear(PyObject *self)
{
    Py_CLEAR(((CoroutineWrapperObject *)self)->w_coroutine);
    return 0;
}

static void
wrapper_tp_dealloc(PyObject *self)
{
    PyTypeObject *tp = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    wrapper_tp_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(tp);
}

static PyMethodDef wrapper_methods[] = {
    {"send", wrapper_send, METH_O, NULL},
    {"throw", wrapper_throw, METH_VARARGS, NULL},
    {"close", wrapper_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot wrapper_slots[] = {
    {Py_tp_dealloc, wrapper_tp_dealloc},
    {Py_tp_traverse, wrapper_tp_traverse},
    {Py_tp_clear, wrapper_tp_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, wrapper_tp_iternext},
    {Py_am_send, wrapper_am_send},
    {Py_tp_methods, wrapper_methods},
    {0, NULL},
};

static PyType_Spec wrapper_spec = {
    .name = "greenback._core.coroutine_wrapper",
    .basicsize = sizeof(CoroutineWrapperObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
             | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = wrapper_slots,
};

PyObject *
gb_coroutine_wrapper_new(gb_state *st, PyObject *coroutine)
{
    CoroutineWrapperObject *w
        = PyObject_GC_New(CoroutineWrapperObject, st->CoroutineWrapperType);
    if (w == NULL) {
        return NULL;
    }
    w->w_coroutine = Py_NewRef(coroutine);
    w->w_st = st;
    PyObject_GC_Track((PyObject *)w);
    return (PyObject *)w;
}

int
gb_stand_in_add_types(PyObject *module, gb_state *st)
{
    st->StandInType = (PyTypeObject *)PyType_FromModuleAndSpec(
        module, &stand_in_spec, NULL);
    if (st->StandInType == NULL) {
        return -1;
    }
    st->CoroutineWrapperType = (PyTypeObject *)PyType_FromModuleAndSpec(
        module, &wrapper_spec, NULL);
    if (st->CoroutineWrapperType == NULL) {
        return -1;
    }
    return PyModule_AddType(module, st->StandInType);
}
