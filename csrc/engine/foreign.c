/* A step runs in the greenlet `home`, whose C stack is the one that we can
 * cut.  User code has started the greenlet F in the step; `home` waits in
 * F.switch() (or deeper) while F calls await_.
 *
 * F can't cut its own stack.  It asks `home` to: it installs a trace function
 * of ours (the hook) and switches home.  greenlet calls the trace function in
 * `home`, on top of its frames, before F.switch() returns there.  The hook
 * suspends `home` as usual, and when the loop comes back it switches to F.
 *
 * What switches home for good, or ends F, arrives in the hook as well.  It
 * must be what the user's F.switch() returns: F has switched with a tuple of
 * one value, the carrier, which greenlet has noted as the result of
 * F.switch(); the hook puts the real one into it, or raises.
 *
 * While `home` waits in the hook (f_hooked), F, or another greenlet below it,
 * just switches home to suspend again. */
#include "engine/foreign.h"

#include "engine/greenlet_api.h"

struct ForeignObject {
    PyObject_HEAD
    PortalObject *f_portal; /* borrowed; NULL when the step is over */
    PyObject *f_home;       /* owned */
    gb_foreign_suspend_home f_suspend_home;
    PyObject *f_asking;  /* borrowed: greenlet that is on its way home */
    PyObject *f_trap;    /* owned; set with f_asking */
    PyObject *f_waiting; /* an identity: greenlet which is in await_ */
    PyObject *f_refusal; /* owned: why it can't wait */
    bool f_hooked;
    bool f_woken; /* it is us who have woken f_waiting */
};

typedef struct {
    PyObject_HEAD
    ForeignObject *h_foreign; /* owned */
    PyObject *h_carrier;      /* owned */
    PyObject *h_displaced;    /* owned: the user's trace function, or NULL */
    bool h_fired;
    bool h_reinstall; /* greenlet will drop the user's when it drops us */
} HookObject;

static PyTypeObject foreign_type, hook_type;

/* ------------------------------------------------------------- in `home` */

/* Give up a reference to a greenlet.  That may end it, and what runs then
 * must not be taken for the one that asks. */
static void
drop_greenlet(ForeignObject *f, PyObject *greenlet)
{
    PyObject *asking = f->f_asking, *trap = f->f_trap, *waiting = f->f_waiting,
             *pending = PyErr_GetRaisedException();
    f->f_asking = f->f_trap = f->f_waiting = NULL;
    Py_DECREF(greenlet);
    f->f_asking = asking;
    f->f_trap = trap;
    f->f_waiting = waiting;
    PyErr_SetRaisedException(pending);
}

/* Wait for the loop on behalf of the greenlet that asks.  0, or -1 with an
 * exception if that one no longer waits.  Switches stacks. */
static int
wait_for(ForeignObject *f, PyObject *asking)
{
    PortalObject *p = f->f_portal;
    PyObject *trap = f->f_trap;
    f->f_asking = f->f_trap = NULL;
    if (f->f_suspend_home(p, trap) < 0) {
        f->f_refusal = PyErr_GetRaisedException();
    }
    if (f->f_waiting == asking) {
        return 0;
    }
    Py_CLEAR(f->f_refusal);
    if (p->p_op == GB_OP_THROW) {
        PyErr_SetRaisedException(Py_NewRef(p->p_argument));
    }
    else {
        PyErr_SetString(PyExc_RuntimeError,
                        "a greenlet that waits in await_() was switched to "
                        "by something else than its event loop");
    }
    return -1;
}

/* Serve those who ask, until somebody switches home for good.  What
 * F.switch() shall return, a new reference; NULL with an exception. */
static PyObject *
serve(ForeignObject *f)
{
    for (;;) {
        PyObject *result, *served = Py_NewRef(f->f_asking);
        bool ignored;
        if (wait_for(f, served) < 0) {
            drop_greenlet(f, served);
            return NULL;
        }
        f->f_hooked = f->f_woken = true;
        result = gb_greenlet_switch(served);
        f->f_hooked = false;
        if (f->f_asking != NULL) {
            if (result == NULL) {
                PyErr_WriteUnraisable((PyObject *)f);
            }
            Py_XDECREF(result);
            drop_greenlet(f, served);
            continue;
        }
        ignored = f->f_woken;
        f->f_woken = false;
        Py_CLEAR(f->f_refusal);
        drop_greenlet(f, served);
        if (ignored && result != NULL) {
            Py_CLEAR(result);
            PyErr_SetString(PyExc_RuntimeError,
                            "a greenlet that waits in await_() did not wake");
        }
        return result;
    }
}

/* greenlet takes a trace function away when it raises; the one that would go
 * is the user's. */
static void
note_displaced(HookObject *h)
{
    PyObject *pending = PyErr_GetRaisedException();
    Py_XSETREF(h->h_displaced, gb_greenlet_tracer());
    PyErr_Clear();
    h->h_reinstall = h->h_displaced != NULL;
    PyErr_SetRaisedException(pending);
}

/* The trace function: hook(event, (origin, target)) */
static PyObject *
hook_tp_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    HookObject *h = (HookObject *)self;
    ForeignObject *f = h->h_foreign;
    PyThreadState *ts = PyThreadState_GetUnchecked();
    PyObject *event, *origin, *target, *shown, *result;

    if (!PyArg_ParseTuple(args, "O(OO)", &event, &origin, &target)) {
        return NULL;
    }
    if (h->h_fired || f->f_asking != origin || f->f_home != target
        || f->f_portal == NULL) {
        return h->h_displaced != NULL
                   ? PyObject_Call(h->h_displaced, args, kwargs)
                   : Py_NewRef(Py_None);
    }
    h->h_fired = true;
    Py_INCREF(self);
    if (gb_greenlet_set_tracer(h->h_displaced, NULL) < 0) {
        PyErr_WriteUnraisable(self);
    }
    if (h->h_displaced != NULL) { /* show it the switch */
        shown = PyObject_Call(h->h_displaced, args, kwargs);
        if (shown == NULL) {
            PyErr_WriteUnraisable(h->h_displaced);
            if (gb_greenlet_set_tracer(NULL, NULL) < 0) {
                PyErr_WriteUnraisable(self);
            }
        }
        Py_XDECREF(shown);
    }
    /* greenlet's guard against tracing its own trace function must not hold
     * for the greenlets that go on now. */
    PyThreadState_LeaveTracing(ts);
    result = serve(f);
    PyThreadState_EnterTracing(ts);
    if (result == NULL) {
        note_displaced(h);
    }
    else {
        PyObject *old = PyTuple_GET_ITEM(h->h_carrier, 0);
        PyTuple_SET_ITEM(h->h_carrier, 0, result);
        Py_DECREF(old);
        result = Py_NewRef(Py_None);
    }
    Py_DECREF(self);
    return result;
}

static void
hook_tp_dealloc(PyObject *self)
{
    HookObject *h = (HookObject *)self;
    if (h->h_reinstall) {
        PyObject *pending = PyErr_GetRaisedException();
        PyObject *tracer = gb_greenlet_tracer();
        if (tracer == NULL
            && (PyErr_Occurred()
                || gb_greenlet_set_tracer(h->h_displaced, NULL) < 0)) {
            PyErr_WriteUnraisable(NULL);
        }
        Py_XDECREF(tracer);
        PyErr_SetRaisedException(pending);
    }
    Py_CLEAR(h->h_foreign);
    Py_CLEAR(h->h_carrier);
    Py_CLEAR(h->h_displaced);
    PyObject_Free(self);
}

static PyTypeObject hook_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "greenback._core.Hook",
    .tp_basicsize = sizeof(HookObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = hook_tp_dealloc,
    .tp_call = hook_tp_call,
};

/* ------------------------------------------------- in the other greenlet */

/* Switch home so that the hook is called there.  Returns as
 * gb_greenlet_switch does.  Switches stacks. */
static PyObject *
switch_to_hook(ForeignObject *f)
{
    PyObject *returned = NULL, *carrier = PyTuple_Pack(1, Py_None);
    HookObject *h = PyObject_New(HookObject, &hook_type);

    if (carrier == NULL || h == NULL) {
        Py_XDECREF(carrier);
        if (h != NULL) {
            PyObject_Free(h); /* nothing is in it yet */
        }
        return NULL;
    }
    h->h_foreign = (ForeignObject *)Py_NewRef((PyObject *)f);
    h->h_carrier = Py_NewRef(carrier);
    h->h_displaced = NULL;
    h->h_fired = h->h_reinstall = false;
    if (gb_greenlet_set_tracer((PyObject *)h, &h->h_displaced) == 0) {
        Py_DECREF(h); /* greenlet has it */
        returned = gb_greenlet_switch_with(f->f_home, carrier);
    }
    else {
        Py_DECREF(h);
    }
    Py_DECREF(carrier);
    return returned;
}

/* The hook has not been called: take it away if it is still there. */
static void
withdraw(ForeignObject *f)
{
    PyObject *pending = PyErr_GetRaisedException();
    PyObject *tracer = gb_greenlet_tracer();
    f->f_asking = NULL;
    Py_CLEAR(f->f_trap);
    if (tracer != NULL && Py_IS_TYPE(tracer, &hook_type)
        && gb_greenlet_set_tracer(((HookObject *)tracer)->h_displaced, NULL)
               < 0) {
        PyErr_WriteUnraisable(tracer);
    }
    PyErr_Clear();
    Py_XDECREF(tracer);
    PyErr_SetRaisedException(pending);
}

static bool
may_ask(ForeignObject *f, PyObject *current)
{
    return f->f_portal != NULL && current != f->f_home && f->f_asking == NULL
           && gb_greenlet_is_active(f->f_home);
}

int
gb_foreign_suspend(ForeignObject *f, PyObject *trap, bool *woken)
{
    PyObject *returned, *current = gb_greenlet_current();
    bool ours, unheard;
    int rc = -1;

    if (current == NULL) {
        Py_DECREF(trap);
        return -1;
    }
    if (!may_ask(f, current)) {
        Py_DECREF(trap);
        Py_DECREF(current);
        PyErr_SetString(PyExc_RuntimeError,
                        "await_() called outside of the step that its portal "
                        "belongs to, in a greenlet that the step has left");
        return -1;
    }
    Py_INCREF(f);
    f->f_asking = f->f_waiting = current;
    f->f_trap = trap;
    f->f_woken = false;

    returned = f->f_hooked ? gb_greenlet_switch(f->f_home) : switch_to_hook(f);

    ours = f->f_woken && f->f_waiting == current;
    unheard = f->f_asking == current;
    if (f->f_waiting == current) {
        f->f_waiting = NULL;
    }
    if (unheard) {
        withdraw(f);
        if (returned != NULL) {
            PyErr_SetString(PyExc_RuntimeError,
                            "await_() can't wait in this greenlet: its switch "
                            "to the greenlet of the step was not traced");
        }
    }
    else if (ours && returned != NULL) {
        f->f_woken = false;
        PyErr_SetRaisedException(f->f_refusal);
        rc = f->f_refusal == NULL ? 0 : -1;
        f->f_refusal = NULL;
    }
    else {
        *woken = true;
        if (f->f_portal != NULL) {
            f->f_portal->p_awaiting = NULL;
        }
        f->f_woken = ours ? false : f->f_woken;
        if (returned != NULL) {
            PyErr_SetString(PyExc_RuntimeError,
                            "a greenlet that waits in await_() was switched "
                            "to by something else than its event loop");
        }
    }
    Py_XDECREF(returned);
    Py_DECREF(current);
    Py_DECREF(f);
    return rc;
}

/* ------------------------------------------------------------------- type */

static void
foreign_tp_dealloc(PyObject *self)
{
    ForeignObject *f = (ForeignObject *)self;
    Py_CLEAR(f->f_home);
    Py_CLEAR(f->f_trap);
    Py_CLEAR(f->f_refusal);
    PyObject_Free(self);
}

static PyTypeObject foreign_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "greenback._core.Foreign",
    .tp_basicsize = sizeof(ForeignObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = foreign_tp_dealloc,
};

ForeignObject *
gb_foreign_new(PortalObject *p, PyObject *home,
               gb_foreign_suspend_home suspend_home)
{
    ForeignObject *f = PyObject_New(ForeignObject, &foreign_type);
    if (f != NULL) {
        f->f_portal = p;
        f->f_home = Py_NewRef(home);
        f->f_suspend_home = suspend_home;
        f->f_asking = f->f_trap = f->f_waiting = f->f_refusal = NULL;
        f->f_hooked = f->f_woken = false;
    }
    return f;
}

void
gb_foreign_end(ForeignObject *f)
{
    f->f_portal = NULL;
    Py_DECREF(f);
}

PyObject *
gb_foreign_waiting(ForeignObject *f)
{
    return f->f_waiting;
}

int
gb_foreign_init(void)
{
    return PyType_Ready(&foreign_type) < 0 || PyType_Ready(&hook_type) < 0 ? -1
                                                                           : 0;
}
