/* An orphan is a portal in state SUSPENDED whose coroutine's owner (p_owner,
 * a reference) is kept alive by the list st->orphans.  Those that can be
 * unwound are looked for (gb_orphans_reap)
 *   - on the collector's thread when a collection has ended;
 *   - on every thread after the next step when there is a new one;
 *   - in the main thread soon, if that is theirs;
 *   - on a thread that ends.
 * The list is the interpreter's, guarded by the GIL. */
#include "gb_orphans.h"

#include "gb_collector.h"

/* How often a coroutine that goes on awaiting when told to exit is told
 * again, before its stack is given up. */
enum { UNWINDING_ATTEMPTS = 10 };

unsigned gb_orphans_count = 0;
GB_THREAD_LOCAL unsigned gb_orphans_seen GB_TLS_MODEL = 0;

/* ------------------------------------------------------------------- fates */

void
gb_orphans_leak(PortalObject *p)
{
    PyObject *pending, *owner = Py_NewRef(p->p_coroutine); /* for ever */
    if (Py_IsFinalizing()) {
        return; /* nobody is there to be warned */
    }
    pending = PyErr_GetRaisedException();
    if (PyErr_ResourceWarning(
            owner, 1,
            "%R was dropped while suspended in await_() where it can't be "
            "resumed; its finally blocks will not run",
            owner)
        < 0) {
        PyErr_WriteUnraisable(owner);
    }
    PyErr_SetRaisedException(pending);
}

/* Unwind what waits for `p`, or close its coroutine.  Returns false if
 * something still waits.  Runs Python code; switches stacks. */
static bool
unwind(PortalObject *p, PyObject *owner)
{
    for (int i = 0; i < UNWINDING_ATTEMPTS; i++) {
        uint64_t thread;
        if (p->p_state == PORTAL_SUSPENDED
            && p->p_st->engine->may_unwind(p, &thread) != GB_UNWIND_NOW) {
            break;
        }
        if (gb_portal_close(p) == 0) {
            break;
        }
        PyErr_WriteUnraisable(owner);
        if (p->p_state != PORTAL_SUSPENDED) {
            break;
        }
    }
    return p->p_state != PORTAL_SUSPENDED;
}

/* The orphan whose turn it is, taken from the list; NULL if there is none. */
static PortalObject *
take_orphan(gb_state *st)
{
    PortalObject **link = &st->orphans;
    while (*link != NULL) {
        PortalObject *p = *link;
        uint64_t thread;
        if (p->p_state != PORTAL_SUSPENDED
            || st->engine->may_unwind(p, &thread) != GB_UNWIND_LATER) {
            *link = p->p_next_orphan;
            p->p_next_orphan = NULL;
            return p;
        }
        link = &p->p_next_orphan;
    }
    return NULL;
}

void
gb_orphans_reap(gb_state *st)
{
    PyObject *pending;
    PortalObject *p;
    gb_orphans_seen = gb_orphans_count;
    if (st->orphans == NULL) {
        return;
    }
    pending = PyErr_GetRaisedException();
    while ((p = take_orphan(st)) != NULL) {
        PyObject *owner = p->p_owner;
        p->p_owner = NULL;
        Py_INCREF(p);
        if (p->p_state == PORTAL_SUSPENDED && !unwind(p, owner)) {
            gb_orphans_leak(p);
        }
        /* If somebody goes on with it, it may be dropped once more. */
        gb_frames_forget_finalized(owner);
        Py_DECREF(p);
        Py_DECREF(owner);
    }
    PyErr_SetRaisedException(pending);
}

/* Who is to reap later has a reference to a function of the module's, which
 * keeps the module and its state alive. */
static PyObject *
keep_state(gb_state *st)
{
    return Py_NewRef(st->note_collection);
}

/* Takes over that reference. */
static void
reap_and_let_go(PyObject *function)
{
    gb_orphans_reap(PyModule_GetState(PyCFunction_GET_SELF(function)));
    Py_DECREF(function);
}

static int
reap_pending(void *function)
{
    reap_and_let_go(function);
    return 0;
}

/* ---------------------------------------------------------- a thread's end */

/* In the dict of a thread: reaps when that is cleared. */
static void
watch_free(PyObject *capsule)
{
    PyObject *function = PyCapsule_GetContext(capsule);
    if (function != NULL && !Py_IsFinalizing()) {
        reap_and_let_go(function);
    }
}

int
gb_orphans_watch(gb_state *st, PyThreadState *ts)
{
    PyObject *capsule, *function, *dict = gb_cpython_thread_dict(ts);
    int rc = dict == NULL ? -1 : PyDict_Contains(dict, st->str_orphans);
    if (rc != 0) {
        return rc < 0 ? -1 : 0;
    }
    capsule = PyCapsule_New(&st->orphans, NULL, watch_free);
    if (capsule == NULL) {
        return -1;
    }
    function = keep_state(st);
    if (PyCapsule_SetContext(capsule, function) < 0) {
        Py_DECREF(function);
        rc = -1;
    }
    else {
        rc = PyDict_SetItem(dict, st->str_orphans, capsule);
    }
    Py_DECREF(capsule);
    return rc;
}

/* ----------------------------------------------------------------- new ones */

/* Keep `p` until it can be unwound, which `thread` can.  Runs no Python
 * code. */
static void
adopt(PortalObject *p, uint64_t thread)
{
    gb_state *st = p->p_st;
    PyThreadState *ts = gb_cpython_find_thread(thread);

    p->p_owner = Py_NewRef(p->p_coroutine);
    p->p_next_orphan = st->orphans;
    st->orphans = p;
    gb_orphans_count++;
    if (ts == NULL || ts == PyThreadState_GetUnchecked()
        || st->note_collection == NULL) {
        return; /* the collector's end or the next step will do; or the
                   interpreter is ending */
    }
    if (gb_cpython_is_main_thread(ts)) {
        PyObject *function = keep_state(st);
        if (Py_AddPendingCall(reap_pending, function) < 0) {
            Py_DECREF(function); /* too many: at its next step, then */
        }
    }
    else if (gb_orphans_watch(st, ts) < 0) {
        PyErr_WriteUnraisable(p->p_owner);
    }
}

bool
gb_orphans_finalize(PortalObject *p)
{
    PyObject *pending;
    uint64_t thread = 0;
    bool done;

    if (p->p_state != PORTAL_IDLE && p->p_state != PORTAL_SUSPENDED) {
        return true;
    }
    pending = PyErr_GetRaisedException();
    Py_INCREF(p);
    done = unwind(p, p->p_coroutine);
    if (!done) {
        if (p->p_st->engine->may_unwind(p, &thread) == GB_UNWIND_LATER) {
            adopt(p, thread);
        }
        else {
            gb_orphans_leak(p);
        }
    }
    Py_DECREF(p);
    PyErr_SetRaisedException(pending);
    return done;
}
