/* The portable engine: each step runs in a worker greenlet.
 *
 * A worker belongs to one thread.  Its states:
 *   pooled    nobody else knows its greenlet; w_portal and w_hub are NULL
 *   stepping  w_portal is set, w_hub is the greenlet that waits for the step
 *   waiting   w_portal is set, w_hub is NULL; w_waiting is the greenlet that
 *             waits in suspend(): the worker's own, or one that was started
 *             in the step
 *   kept      w_portal is set, w_hub and w_waiting are NULL: between steps,
 *             but user code holds a reference to the greenlet, most likely as
 *             the parent of others (SQLAlchemy's), and must find it current
 *             again in the portal's next step
 *   ended     w_ended is true: the greenlet is dead
 *
 * The portal's p_engine_data owns the worker in the states with w_portal set.
 * As a rule a step ends with the worker in the pool of its thread, so that a
 * portal between steps has no greenlet. */
#include "gb_collector.h"
#include "gb_cpython.h"
#include "gb_orphans.h"
#include "gb_portal.h"
#include "gb_tools.h"

#include "engine/greenlet_api.h"

typedef struct {
    PyObject_HEAD
    PyObject *w_greenlet;         /* owned; its run attribute owns us */
    PortalObject *w_portal;       /* borrowed: the portal owns us meanwhile */
    PyObject *w_hub;              /* borrowed from step()'s frame */
    PyObject *w_waiting;          /* owned */
    char *w_base;                 /* about where its C stack begins */
    uint64_t w_thread;            /* PyThreadState_GetID of its thread */
    gb_recursion_budget w_budget; /* of the loop, for the step */
    PyObject *w_handled; /* owned: the exception that the loop handles */
    bool w_done;         /* the step has ended or has been suspended */
    bool w_ended;
} WorkerObject;

/* A worker is used where its stack begins below the caller's frame, else
 * greenlet would have to move the caller's live stack away at each switch
 * (slow, and fatal for C code that holds pointers into that stack), but not
 * so far below that the stack might end.  New workers leave room, so that
 * they fit steps that begin somewhat deeper, too. */
enum {
    POOL_SIZE = 32,
    ROOM_OUTERMOST = 16 * 1024, /* bytes, for steps that aren't nested */
    ROOM_NESTED = 2 * 1024,
    ROOM_LEAST = 1024,
    REACH = 128 * 1024,
};

typedef struct {
    int count;
    bool owned;  /* the thread's dict holds the capsule that empties us */
    bool closed; /* that has been done: the thread ends */
    WorkerObject *workers[POOL_SIZE];
    /* Set by step() for the greenlet that it wakes: tells it from others who
     * switch there. */
    PortalObject *handover;
} worker_pool;

static GB_THREAD_LOCAL worker_pool pool GB_TLS_MODEL;

static PyTypeObject worker_type;

/* ----------------------------------------------------------------- workers */

/* Whether anyone else holds a reference to the greenlet of `w`, apart from
 * `known` references. */
static bool
worker_is_referenced(WorkerObject *w, Py_ssize_t known)
{
    return Py_REFCNT(w->w_greenlet) > known;
}

/* Let the greenlet of `w`, which has nothing to do, end here and now: others
 * may keep it alive. */
static void
worker_end(WorkerObject *w)
{
    PyObject *returned = NULL, *current = gb_greenlet_current();
    if (current != NULL
        && gb_greenlet_set_parent(w->w_greenlet, current) == 0) {
        returned = gb_greenlet_switch(w->w_greenlet);
    }
    if (returned == NULL) {
        PyErr_WriteUnraisable(w->w_greenlet);
    }
    Py_XDECREF(returned);
    Py_XDECREF(current);
}

/* Drop `w` (stolen); what runs in it gets GreenletExit.  Keeps a pending
 * exception.  Runs Python code; switches stacks. */
static void
worker_kill(WorkerObject *w, PyThreadState *ts)
{
    PyObject *pending = PyErr_GetRaisedException();
    PyObject *greenlet;
    w->w_portal = NULL;
    w->w_hub = NULL;
    if (!w->w_ended && w->w_waiting == NULL && w->w_done
        && w->w_thread == PyThreadState_GetID(ts)
        && worker_is_referenced(w, 1)) {
        worker_end(w);
    }
    greenlet = w->w_greenlet;
    w->w_greenlet = NULL;
    Py_CLEAR(w->w_waiting);
    Py_XDECREF(greenlet);
    Py_DECREF(w);
    PyErr_SetRaisedException(pending);
}

static void
worker_tp_dealloc(PyObject *self)
{
    WorkerObject *w = (WorkerObject *)self;
    Py_CLEAR(w->w_waiting);
    Py_CLEAR(w->w_handled);
    Py_CLEAR(w->w_greenlet);
    PyObject_Free(self);
}

static void
pool_release(PyObject *capsule)
{
    /* By another thread than its own (at interpreter exit): leaked, as its
     * greenlets can't be reached. */
    if (PyCapsule_GetPointer(capsule, NULL) != &pool || Py_IsFinalizing()) {
        return;
    }
    pool.owned = false;
    pool.closed = true;
    while (pool.count > 0) {
        worker_kill(pool.workers[--pool.count], PyThreadState_GetUnchecked());
    }
}

/* Let the pool be emptied, and orphans be reaped, when the thread ends.  0, or
 * -1 with an exception. */
static int
pool_register(gb_state *st, PyThreadState *ts)
{
    PyObject *capsule, *thread_dict;
    int rc = -1;
    if (pool.owned) {
        return 0;
    }
    /* Now and here: in a free-threaded build what another thread puts into
     * this one's dict is given up by that other one, after this one's end. */
    if (gb_orphans_watch(st, ts) < 0) {
        return -1;
    }
    thread_dict = PyThreadState_GetDict(); /* borrowed */
    capsule = PyCapsule_New(&pool, NULL, pool_release);
    if (capsule == NULL) {
        return -1;
    }
    if (thread_dict == NULL) {
        PyErr_NoMemory();
    }
    else {
        rc = PyDict_SetItemString(thread_dict, "greenback.worker_pool",
                                  capsule);
        pool.owned = rc == 0;
    }
    Py_DECREF(capsule);
    return rc;
}

static WorkerObject *
worker_new(gb_state *st, PyThreadState *ts, PyObject *current)
{
    WorkerObject *w;
    PyObject *main_greenlet;

    if (pool_register(st, ts) < 0) {
        return NULL;
    }
    w = PyObject_New(WorkerObject, &worker_type);
    if (w == NULL) {
        return NULL;
    }
    w->w_portal = NULL;
    w->w_hub = NULL;
    w->w_waiting = NULL;
    w->w_base = NULL;
    w->w_handled = NULL;
    w->w_done = false;
    w->w_ended = false;
    w->w_thread = PyThreadState_GetID(ts);
    main_greenlet = gb_greenlet_main_of(current);
    w->w_greenlet = gb_greenlet_new((PyObject *)w, main_greenlet);
    Py_DECREF(main_greenlet);
    if (w->w_greenlet == NULL) {
        Py_CLEAR(w);
    }
    return w;
}

/* A worker from the pool that fits a step which begins at `sp`, or NULL. */
static WorkerObject *
pool_take(char *sp)
{
    for (int i = pool.count - 1; i >= 0; i--) {
        WorkerObject *w = pool.workers[i];
        ptrdiff_t room = sp - w->w_base;
        if (GB_LIKELY(room >= ROOM_LEAST && room <= REACH)) {
            pool.workers[i] = pool.workers[--pool.count];
            return w;
        }
    }
    return NULL;
}

/* Give `w` (stolen) back.  May run Python code and switch stacks. */
static void
pool_give(WorkerObject *w)
{
    if (GB_UNLIKELY(pool.closed)) {
        worker_kill(w, PyThreadState_GetUnchecked());
        return;
    }
    if (pool.count == POOL_SIZE) {
        WorkerObject *oldest = pool.workers[0];
        pool.workers[0] = w;
        worker_kill(oldest, PyThreadState_GetUnchecked());
        return;
    }
    pool.workers[pool.count++] = w;
}

/* ----------------------------------------------------- in the worker's stack */

/* Run one step of w's portal.  Returns NULL with an exception if the worker
 * is to end with it, None if it is to end, NULL without an exception if it is
 * to go back to the hub. */
static PyObject *
worker_run_step(WorkerObject *w, PyThreadState *ts)
{
    PortalObject *p = w->w_portal;
    PyObject *result, *handled = w->w_handled;
    PySendResult status;

    w->w_handled = NULL;
    gb_cpython_set_context(ts, p->p_context);
    gb_cpython_set_outermost_handled_exception(ts, handled);
    gb_cpython_set_recursion_budget(ts, w->w_budget);

    status = gb_engine_body(p, &result);

    p = w->w_portal;
    if (GB_UNLIKELY(p == NULL || w->w_hub == NULL)) {
        /* Not woken by step(): the portal is gone, or somebody switched into
         * the greenlet that waited in await_ and its code has ended. */
        if (p != NULL) {
            p->p_engine_data = NULL;
            p->p_waits = false;
            w->w_portal = NULL;
            gb_portal_abandon(p);
            Py_DECREF(w); /* the portal's; our caller has one */
        }
        Py_XDECREF(result);
        return status == PYGEN_ERROR ? NULL : Py_NewRef(Py_None);
    }
    p->p_status = status;
    p->p_result = status == PYGEN_ERROR ? PyErr_GetRaisedException() : result;
    w->w_done = true;
    gb_cpython_set_outermost_handled_exception(ts, NULL);
    gb_cpython_set_context(ts, NULL);
    return NULL;
}

/* What the greenlet runs. */
static PyObject *
worker_tp_call(PyObject *self, PyObject *Py_UNUSED(args),
               PyObject *Py_UNUSED(kwargs))
{
    WorkerObject *w = (WorkerObject *)self;
    PyThreadState *ts = PyThreadState_GetUnchecked();
    PyObject *result = NULL;

    Py_INCREF(w);
    /* Without a hub it isn't step() that has switched here: go away. */
    while (w->w_hub != NULL) {
        result = worker_run_step(w, ts);
        if (result != NULL || PyErr_Occurred()) {
            break;
        }
        result = gb_greenlet_switch(w->w_hub);
        if (result == NULL) {
            break; /* GreenletExit: dropped */
        }
        Py_CLEAR(result);
    }
    w->w_ended = true;
    if (result == NULL && !PyErr_Occurred()) {
        result = Py_NewRef(Py_None);
    }
    Py_DECREF(w);
    return result;
}

static PyTypeObject worker_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "greenback._core.Worker",
    .tp_basicsize = sizeof(WorkerObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = worker_tp_dealloc,
    .tp_call = worker_tp_call,
};

/* ------------------------------------------------------- in the loop's stack */

/* The first switch into a worker decides where its stack begins.  These leave
 * room below the caller's frame; two functions, since a compiler makes one
 * frame of all that a function may need. */
static GB_NOINLINE PyObject *
start_worker_outermost(WorkerObject *w)
{
    volatile char room[ROOM_OUTERMOST];
    PyObject *result;
    room[0] = 0;
    w->w_base = (char *)room;
    result = gb_greenlet_switch(w->w_greenlet);
    (void)room[0]; /* keeps it alive over the switch */
    return result;
}

static GB_NOINLINE PyObject *
start_worker_nested(WorkerObject *w)
{
    volatile char room[ROOM_NESTED];
    PyObject *result;
    room[0] = 0;
    w->w_base = (char *)room;
    result = gb_greenlet_switch(w->w_greenlet);
    (void)room[0];
    return result;
}

/* From the loop's stack into the step's. */
static PyObject *
switch_to_step(WorkerObject *w, PyObject *target, bool fresh, bool nested,
               PyThreadState *ts)
{
    struct _PyInterpreterFrame *frames = NULL;
    PyObject *switched_back;
    /* From 3.12 on greenlet goes through all frames of the greenlet that it
     * leaves, so that they may be walked while their C stack is elsewhere:
     * 10 ns and more for each of the loop's frames.  If the step's stack
     * begins below ours, ours stays where it is: let greenlet see no frames.
     * (A greenlet of the user's has a stack that we know nothing of.) */
    bool hide
        = fresh || (target == w->w_greenlet && w->w_base < GB_STACK_ADDRESS());
    if (GB_LIKELY(hide)) {
        frames = gb_cpython_hide_frames(ts);
    }
    if (GB_LIKELY(!fresh)) {
        switched_back = gb_greenlet_switch(target);
    }
    else {
        switched_back
            = nested ? start_worker_nested(w) : start_worker_outermost(w);
    }
    if (GB_LIKELY(hide)) {
        gb_cpython_show_frames(ts, frames);
    }
    return switched_back;
}

/* The greenlet of the loop was switched to while the step was under way.  Who
 * did that has cut the user's code off: end it, and let the step fail.
 * `switched_back` (stolen) is what came, NULL with an exception. */
static void
fail_interrupted_step(PortalObject *p, WorkerObject *w,
                      PyObject *switched_back)
{
    if (switched_back != NULL) {
        Py_DECREF(switched_back);
        PyErr_SetString(PyExc_RuntimeError,
                        "a step with a greenback portal was left by a "
                        "switch to the greenlet that runs the event loop; "
                        "let the step end instead");
    }
    p->p_engine_data = NULL;
    p->p_waits = false;
    p->p_status = PYGEN_ERROR;
    Py_CLEAR(p->p_result);
    w->w_done = false; /* there is something to end */
    worker_kill(w, PyThreadState_GetUnchecked());
}

/* The greenlet that waits in suspend() for `p`, whose reference is handed
 * over; NULL with an exception if it can't be switched to. */
static PyObject *
take_waiting(PortalObject *p, WorkerObject *w, PyThreadState *ts)
{
    PyObject *waiting = w->w_waiting;
    if (w->w_thread != PyThreadState_GetID(ts)) {
        PyErr_SetString(PyExc_RuntimeError,
                        "a task suspended in await_() can only be resumed in "
                        "the thread that suspended it");
        return NULL;
    }
    if (waiting == NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "what was suspended in await_() has been woken by "
                        "greenlet.switch() and no longer waits");
        return NULL;
    }
    w->w_waiting = NULL;
    p->p_waits = false;
    pool.handover = p;
    return waiting;
}

/* Give `p`, which has nothing suspended, a worker that is ready for a step
 * which begins at `sp`; *fresh tells whether it has not been started yet.
 * 0, or -1 with an exception. */
static int
assign_worker(PortalObject *p, PyThreadState *ts, PyObject *hub, char *sp,
              bool *fresh)
{
    WorkerObject *w = p->p_engine_data;
    *fresh = false;
    if (w != NULL && (w->w_ended || w->w_thread != PyThreadState_GetID(ts))) {
        /* Kept for greenlets that are of no use here. */
        p->p_engine_data = NULL;
        worker_kill(w, ts);
        w = NULL;
    }
    if (w == NULL) {
        w = pool_take(sp);
    }
    if (GB_UNLIKELY(w == NULL)) {
        w = worker_new(p->p_st, ts, hub);
        if (w == NULL) {
            return -1;
        }
        *fresh = true;
    }
    p->p_engine_data = w;
    w->w_portal = p;
    w->w_budget = gb_cpython_recursion_budget(ts);
    return 0;
}

/* What becomes of the worker after a step that has not been suspended.
 * `target` is what the step switched to; the step holds a reference to it. */
static void
dismiss_worker(PortalObject *p, WorkerObject *w, PyObject *target,
               PyThreadState *ts)
{
    Py_ssize_t known = target == w->w_greenlet ? 2 : 1;
    if (GB_LIKELY(!worker_is_referenced(w, known))) {
        p->p_engine_data = NULL;
        w->w_portal = NULL;
        pool_give(w);
    }
    else if (p->p_status != PYGEN_NEXT) {
        p->p_engine_data = NULL;
        worker_kill(w, ts);
    }
}

static int
greenlet_step(PortalObject *p, PyThreadState *ts)
{
    WorkerObject *w;
    PyObject *target = NULL, *switched_back, *hub = gb_greenlet_current();
    uintptr_t version = gb_tools_version(ts);
    bool fresh = false;

    if (hub == NULL) {
        return -1;
    }
    if (p->p_waits) {
        target = take_waiting(p, p->p_engine_data, ts);
    }
    else if (assign_worker(p, ts, hub, GB_STACK_ADDRESS(), &fresh) == 0) {
        target = Py_NewRef(((WorkerObject *)p->p_engine_data)->w_greenlet);
    }
    if (target == NULL) {
        Py_DECREF(hub);
        return -1;
    }
    w = (WorkerObject *)Py_NewRef((PyObject *)p->p_engine_data);
    w->w_handled = gb_cpython_handled_exception(ts);
    w->w_hub = hub;
    w->w_done = false;

    switched_back = switch_to_step(w, target, fresh, p->p_outer != NULL, ts);

    pool.handover = NULL;
    gb_tools_catch_up(ts, version); /* the loop's frames */
    if (GB_UNLIKELY(!w->w_done || switched_back == NULL)) {
        fail_interrupted_step(p, w, switched_back);
    }
    else {
        Py_DECREF(switched_back);
        w->w_hub = NULL;
        p->p_waits = w->w_waiting != NULL;
        if (!p->p_waits) {
            dismiss_worker(p, w, target, ts);
        }
        if (p->p_status == PYGEN_ERROR) {
            PyErr_SetRaisedException(p->p_result);
            p->p_result = NULL;
        }
    }
    Py_DECREF(w);
    Py_DECREF(target);
    Py_DECREF(hub);
    return 0;
}

/* Awake again in suspend(), by step(): take over what the loop's side has
 * brought. */
static void
take_up_step(PortalObject *p, WorkerObject *w, PyThreadState *ts,
             PyObject *current, bool in_steps_context)
{
    PyObject *handled = w->w_handled;
    w->w_handled = NULL;
    if (current == w->w_greenlet) {
        gb_cpython_set_outermost_handled_exception(ts, handled);
    }
    else { /* a greenlet of the user's has outermost frames of its own */
        Py_XDECREF(handled);
    }
    if (in_steps_context && gb_cpython_context(ts) != p->p_context) {
        /* The loop may have given the task another Context meanwhile; only a
         * Context.run() of the user's own keeps its Context. */
        gb_cpython_set_context(ts, p->p_context);
    }
}

static int
greenlet_suspend(PortalObject *p, PyObject *trap, bool *woken)
{
    PyThreadState *ts = PyThreadState_GetUnchecked();
    WorkerObject *w = p->p_engine_data;
    PyObject *switched_back, *current = gb_greenlet_current();
    bool in_steps_context = gb_cpython_context(ts) == p->p_context;
    int rc = -1;

    if (current == NULL) {
        Py_DECREF(trap);
        return -1;
    }
    if (w == NULL || w->w_hub == NULL || w->w_hub == current) {
        Py_DECREF(trap);
        Py_DECREF(current);
        PyErr_SetString(PyExc_RuntimeError,
                        "await_() called outside of the step that its portal "
                        "belongs to, in a greenlet that the step has left");
        return -1;
    }
    p->p_result = trap;
    p->p_status = PYGEN_NEXT;
    Py_INCREF(w);
    w->w_waiting = Py_NewRef(current);
    w->w_done = true;
    if (current == w->w_greenlet) {
        gb_cpython_set_outermost_handled_exception(ts, NULL);
    }

    switched_back = gb_greenlet_switch(w->w_hub);

    p = pool.handover;
    pool.handover = NULL;
    if (GB_LIKELY(switched_back != NULL && p != NULL)) {
        take_up_step(p, w, ts, current, in_steps_context);
        rc = 0;
    }
    else { /* don't touch the portal that we left: it may be gone */
        *woken = true;
        if (w->w_portal != NULL) {
            w->w_portal->p_awaiting = NULL;
        }
        Py_CLEAR(w->w_waiting);
        if (switched_back != NULL) {
            PyErr_SetString(PyExc_RuntimeError,
                            "a greenlet that waits in await_() was switched "
                            "to by something else than its event loop");
        }
    }
    Py_XDECREF(switched_back);
    Py_DECREF(current);
    Py_DECREF(w);
    return rc;
}

static gb_unwind
greenlet_may_unwind(PortalObject *p, uint64_t *thread)
{
    WorkerObject *w = p->p_engine_data;
    PyThreadState *ts = PyThreadState_GetUnchecked();
    *thread = w->w_thread;
    if (w->w_waiting == NULL || Py_IsFinalizing()
        || gb_cpython_find_thread(w->w_thread) == NULL) {
        return GB_UNWIND_NEVER;
    }
    /* The collector's lists have their heads on its C stack, which must not
     * be moved away while they are in use. */
    return w->w_thread == PyThreadState_GetID(ts)
                   && (!gb_collector_runs_here(p->p_st, ts)
                       || GB_STACK_ADDRESS() > w->w_base)
               ? GB_UNWIND_NOW
               : GB_UNWIND_LATER;
}

/* The stack is greenlet's: what it owns can't be told.  (From 3.15 on greenlet
 * itself visits what its frames own.) */
static int
greenlet_traverse(PortalObject *Py_UNUSED(p), visitproc Py_UNUSED(visit),
                  void *Py_UNUSED(arg))
{
    return 0;
}

static void
greenlet_release(PortalObject *p)
{
    WorkerObject *w = p->p_engine_data;
    p->p_engine_data = NULL;
    if (w == NULL) {
        return;
    }
    w->w_portal = NULL;
    if (!Py_IsFinalizing()) {
        worker_kill(w, PyThreadState_GetUnchecked());
    }
}

static PyObject *
greenlet_waiting_stack(PortalObject *p)
{
    WorkerObject *w = p->p_engine_data;
    if (w == NULL || w->w_waiting == NULL) {
        Py_RETURN_NONE;
    }
    return PyTuple_Pack(3, Py_None, w->w_waiting, Py_None);
}

static const char *
greenlet_why_not(void)
{
    return NULL; /* init() tells whether greenlet is there */
}

static PyObject *
greenlet_counters(void)
{
    return PyDict_New();
}

static int
greenlet_init(gb_state *Py_UNUSED(st))
{
    if (gb_greenlet_import() < 0) {
        return -1;
    }
    return PyType_Ready(&worker_type);
}

/* In a greenlet the frames of a step end at the worker's. */
static const struct _PyInterpreterFrame *
greenlet_frame_below(PortalObject *Py_UNUSED(p))
{
    return NULL;
}

const gb_engine gb_greenlet_engine = {
    .name = "greenlet",
    .why_not = greenlet_why_not,
    .init = greenlet_init,
    .step = greenlet_step,
    .suspend = greenlet_suspend,
    .may_unwind = greenlet_may_unwind,
    .frame_below = greenlet_frame_below,
    .traverse = greenlet_traverse,
    .hides_frames = true,
    .release = greenlet_release,
    .waiting_stack = greenlet_waiting_stack,
    .counters = greenlet_counters,
};
