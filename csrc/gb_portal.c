#include "gb_portal.h"

GB_THREAD_LOCAL PortalObject *gb_portal_running GB_TLS_MODEL = NULL;

PortalObject *
gb_portal_new(gb_state *st, const gb_form *form, PyObject *coroutine,
              gb_portal_state state, PyObject *task)
{
    PortalObject *p = PyObject_GC_New(PortalObject, st->PortalType);
    if (p == NULL) {
        return NULL;
    }
    p->p_st = st;
    p->p_form = form;
    p->p_coroutine = coroutine;
    p->p_origin = NULL;
    p->p_task = task;
    p->p_engine_data = NULL;
    p->p_waits = false;
    p->p_awaiting = NULL;
    p->p_await_frames = NULL;
    p->p_stack = NULL;
    p->p_owner = NULL;
    p->p_next_orphan = NULL;
    p->p_forbidden = NULL;
    p->p_outer = NULL;
    p->p_context = NULL;
    p->p_argument = NULL;
    p->p_result = NULL;
    p->p_status = PYGEN_ERROR;
    p->p_op = GB_OP_SEND;
    p->p_state = (unsigned char)state;
    p->p_remove = false;
    PyObject_GC_Track((PyObject *)p);
    return p;
}

void
gb_portal_detach(PortalObject *p)
{
    assert(p->p_state != PORTAL_RUNNING && p->p_state != PORTAL_SUSPENDED);
    p->p_state = PORTAL_DETACHED;
    p->p_form->detach(p);
}

/* ------------------------------------------------------------------ steps */

static PySendResult
drive_body(PortalObject *p, PyObject **result)
{
    switch (p->p_op) {
        case GB_OP_SEND:
            return p->p_form->send(p, p->p_argument, result);
        case GB_OP_THROW:
            return p->p_form->throw(p, p->p_argument, result);
        default:
            return p->p_form->close(p, result);
    }
}

/* The coroutine has yielded a trap where it must not: tell it so, until it
 * does something else.  As PyIter_Send.  Runs Python code; may switch
 * stacks. */
static GB_NOINLINE PySendResult
refuse_trap(PortalObject *p, PyObject **result)
{
    PySendResult status = PYGEN_NEXT;
    while (status == PYGEN_NEXT && p->p_forbidden != NULL) {
        PyObject *exc
            = PyObject_CallOneArg(PyExc_RuntimeError, p->p_forbidden);
        Py_CLEAR(*result);
        if (exc == NULL) { /* no memory: that will do as well */
            exc = PyErr_GetRaisedException();
        }
        status = p->p_form->throw(p, exc, result);
        Py_DECREF(exc);
    }
    return status;
}

GB_HOT PySendResult
gb_engine_body(PortalObject *p, PyObject **result)
{
    PySendResult status = drive_body(p, result);
    if (GB_UNLIKELY(status == PYGEN_NEXT && p->p_forbidden != NULL)) {
        return refuse_trap(p, result);
    }
    return status;
}

/* What becomes of the portal when the engine has returned. */
static inline void
end_step(PortalObject *p, int rc, gb_portal_state before)
{
    if (rc < 0) {
        p->p_state = (unsigned char)before;
        return;
    }
    if (p->p_status == PYGEN_NEXT
        || GB_UNLIKELY(p->p_op == GB_OP_CLOSE && p->p_form->goes_on(p))) {
        p->p_state = p->p_waits ? PORTAL_SUSPENDED : PORTAL_IDLE;
        if (p->p_remove && p->p_state == PORTAL_IDLE) {
            gb_portal_detach(p);
        }
        return;
    }
    p->p_state = PORTAL_IDLE;
    gb_portal_detach(p);
}

/* Whether a step may begin; false with an exception. */
static bool
may_step(PortalObject *p)
{
    switch (p->p_state) {
        case PORTAL_RUNNING:
            PyErr_SetString(PyExc_ValueError, "coroutine already executing");
            return false;
        case PORTAL_DETACHED:
            PyErr_SetString(PyExc_RuntimeError,
                            "cannot reuse already awaited coroutine");
            return false;
        default:
            return true;
    }
}

GB_HOT PySendResult
gb_portal_step(PortalObject *p, gb_op op, PyObject *argument,
               PyObject **result)
{
    PyThreadState *ts = PyThreadState_GetUnchecked();
    PyObject *executor;
    PortalObject *outer;
    gb_portal_state before = (gb_portal_state)p->p_state;
    PySendResult status;
    int rc;

    *result = NULL;
    if (GB_UNLIKELY(before != PORTAL_IDLE && before != PORTAL_SUSPENDED)
        && !may_step(p)) {
        return PYGEN_ERROR;
    }
    Py_INCREF(p);
    p->p_outer = (PortalObject *)Py_XNewRef((PyObject *)gb_portal_running);
    gb_portal_running = p;
    p->p_state = PORTAL_RUNNING;
    p->p_context = gb_cpython_context(ts);
    p->p_op = (unsigned char)op;
    p->p_argument = argument;

    executor = gb_cpython_hold_executor(ts);
    rc = p->p_st->engine->step(p, ts); /* all may have changed, but p */
    Py_XDECREF(executor);

    /* An outer step that has ended meanwhile (its greenlet went on while we
     * ran) is not running any more. */
    outer = p->p_outer;
    p->p_outer = NULL;
    gb_portal_running
        = outer != NULL && outer->p_state == PORTAL_RUNNING ? outer : NULL;
    p->p_context = NULL;
    p->p_argument = NULL;
    status = rc < 0 ? PYGEN_ERROR : (PySendResult)p->p_status;
    *result = p->p_result;
    p->p_result = NULL;
    end_step(p, rc, before);
    Py_XDECREF(outer);
    Py_DECREF(p);
    return status;
}

int
gb_portal_close(PortalObject *p)
{
    PyObject *exc = NULL, *result;
    PySendResult status;

    if (p->p_state == PORTAL_DETACHED) {
        return 0;
    }
    if (p->p_state == PORTAL_SUSPENDED) {
        exc = PyObject_CallNoArgs(PyExc_GeneratorExit);
        if (exc == NULL) {
            return -1;
        }
        status = gb_portal_step(p, GB_OP_THROW, exc, &result);
        Py_DECREF(exc);
    }
    else {
        status = gb_portal_step(p, GB_OP_CLOSE, NULL, &result);
    }
    switch (status) {
        case PYGEN_RETURN:
            Py_DECREF(result);
            return 0;
        case PYGEN_NEXT:
            Py_DECREF(result);
            PyErr_SetString(PyExc_RuntimeError,
                            "coroutine ignored GeneratorExit");
            return -1;
        default:
            if (exc != NULL
                && (PyErr_ExceptionMatches(PyExc_GeneratorExit)
                    || PyErr_ExceptionMatches(PyExc_StopIteration))) {
                PyErr_Clear();
                return 0;
            }
            return -1;
    }
}

void
gb_portal_abandon(PortalObject *p)
{
    assert(p->p_state == PORTAL_SUSPENDED && !p->p_waits);
    p->p_state = PORTAL_IDLE;
    p->p_awaiting = NULL;
    gb_portal_detach(p);
}

/* ----------------------------------------------------------------- look-up */

/* Whether the running portal `p` serves `task` of the loop `loop`.  A portal
 * of with_portal_run does not know its task: asking costs more than the rest
 * of its first step.  But the step began in the task's Context, and no other
 * task can have entered that. */
static gb_answer
serves(PortalObject *p, gb_state *st, const gb_loop *loop, PyObject *task)
{
    gb_answer answer;
    if (p->p_task != NULL) {
        return p->p_task == task ? GB_ANSWER_YES : GB_ANSWER_NO;
    }
    answer = gb_loop_task_has_context(st, loop, task, p->p_context);
    if (answer == GB_ANSWER_YES) {
        p->p_task = task;
    }
    return answer;
}

PortalObject *
gb_portal_of_running_task(gb_state *st, PortalObject *running)
{
    /* Another Context than the step's: user code inside a Context.run of its
     * own, which is fine, or another task that was started inside the step
     * (eager tasks, loops run in loops) and has no portal. */
    const gb_loop *loop;
    bool ours = false;
    PyObject *task = gb_loop_current_task(st, &loop);

    if (task != NULL) {
        gb_answer answer = serves(running, st, loop, task);
        /* Not known in 3.11 alone, where there are no eager tasks yet. */
        ours = answer == GB_ANSWER_YES || answer == GB_ANSWER_UNKNOWN;
    }
    else if (!PyErr_Occurred() && running->p_task == NULL) {
        ours = gb_loop_is_unknown(st) > 0;
    }
    Py_XDECREF(task);
    /* Looking up has run Python code. */
    return ours && gb_portal_running == running ? running : NULL;
}

int
gb_portal_runs_task(gb_state *st, PyObject *task)
{
    PortalObject *p;
    const gb_loop *loop;
    if (gb_portal_running == NULL) {
        return 0;
    }
    loop = gb_loop_of_task(st, task);
    if (loop == NULL) { /* no task of any kind */
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) {
            return -1;
        }
        PyErr_Clear();
        return 0;
    }
    for (p = gb_portal_running; p != NULL; p = p->p_outer) {
        gb_answer answer = serves(p, st, loop, task);
        if (answer == GB_ANSWER_YES || answer == GB_ANSWER_FAILED) {
            return answer;
        }
    }
    return 0;
}

/* -------------------------------------------------------------------- type */

static int
portal_tp_traverse(PyObject *self, visitproc visit, void *arg)
{
    PortalObject *p = (PortalObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(p->p_result);
    Py_VISIT(p->p_origin);
    Py_VISIT(p->p_forbidden);
    return p->p_waits ? p->p_st->engine->traverse(p, visit, arg) : 0;
}

static int
portal_tp_clear(PyObject *self)
{
    PortalObject *p = (PortalObject *)self;
    Py_CLEAR(p->p_result);
    Py_CLEAR(p->p_origin);
    Py_CLEAR(p->p_forbidden);
    return 0;
}

static void
portal_tp_dealloc(PyObject *self)
{
    PortalObject *p = (PortalObject *)self;
    PyTypeObject *tp = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (p->p_engine_data != NULL) {
        p->p_st->engine->release(p);
    }
    portal_tp_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(tp);
}

static PyType_Slot portal_slots[] = {
    {Py_tp_doc, (void *)"What stands between an event loop and the coroutine "
                        "of a task, so that await_() works in it."},
    {Py_tp_dealloc, portal_tp_dealloc},
    {Py_tp_traverse, portal_tp_traverse},
    {Py_tp_clear, portal_tp_clear},
    {0, NULL},
};

static PyType_Spec portal_spec = {
    .name = "greenback._core.Portal",
    .basicsize = sizeof(PortalObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
             | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = portal_slots,
};

int
gb_portal_add_types(PyObject *module, gb_state *st)
{
    st->PortalType
        = (PyTypeObject *)PyType_FromModuleAndSpec(module, &portal_spec, NULL);
    return st->PortalType == NULL ? -1 : 0;
}
