/* The portal: the object between loop and task coroutine. */
#ifndef GB_PORTAL_H
#define GB_PORTAL_H

#include "gb_cpython.h"
#include "gb_engine.h"
#include "gb_loop.h"

/* States.  Changed by gb_portal.c alone.
 *
 *   NEW       around a coroutine that has not started (with_portal_run); at
 *             its first step it turns out whether a portal is there already
 *   BESTOWED  put on a task; await_ works from the task's next step
 *   IDLE      between steps, nothing waits in await_
 *   RUNNING   a step is under way: p_context is set, the thread's running
 *             portal is this one or one whose step was started inside ours
 *   SUSPENDED between steps, a stack waits in await_: p_waits is true,
 *             p_awaiting is what the innermost await_ drives
 *   DETACHED  done with its coroutine: p_coroutine is NULL
 *
 * All but SUSPENDED may be driven by any thread that holds the GIL; a stack
 * can only be resumed by the thread it belongs to. */
typedef enum {
    PORTAL_NEW,
    PORTAL_BESTOWED,
    PORTAL_IDLE,
    PORTAL_RUNNING,
    PORTAL_SUSPENDED,
    PORTAL_DETACHED,
} gb_portal_state;

/* How a portal reaches the coroutine behind it, and how the coroutine is told
 * that its portal is gone.  One for each form in which portals are put in
 * place (gb_coroutine.c). */
typedef struct gb_form {
    /* As PyIter_Send.  Run Python code. */
    PySendResult (*send)(PortalObject *p, PyObject *value, PyObject **result);
    /* `exc` is an exception instance, borrowed. */
    PySendResult (*throw)(PortalObject *p, PyObject *exc, PyObject **result);
    /* PYGEN_RETURN or PYGEN_ERROR. */
    PySendResult (*close)(PortalObject *p, PyObject **result);
    /* Whether the coroutine has not come to its end, although close() was
     * called: it has ignored GeneratorExit.  Cannot fail. */
    bool (*goes_on)(PortalObject *p);
    /* Let the loop drive the coroutine without the portal from now on, and
     * drop the reference to `p` that the coroutine's side holds.  Cannot
     * fail, runs no Python code. */
    void (*detach)(PortalObject *p);
} gb_form;

/* A call of await_, in its C frame. */
typedef struct {
    gb_call call;       /* call.outer is in a gb_await_frame, too */
    PyObject *iterator; /* owned: what is driven */
    PyObject *given;    /* owned: what it is being given, or NULL */
} gb_await_frame;

struct PortalObject {
    PyObject_HEAD
    gb_state *p_st;
    const gb_form *p_form;
    PyObject *p_coroutine; /* borrowed: its owner owns the portal, too */
    PyObject *p_origin;    /* cr_origin of a retyped coroutine; owned */
    void *p_task;          /* the task it serves: an identity, never followed;
                              NULL: not asked yet, or the loop is unknown */
    void *p_engine_data;   /* the engine's own; NULL if it keeps nothing */
    bool p_waits;          /* set by the engine: a stack waits in suspend() */
    PyObject *p_awaiting;  /* borrowed from the innermost await_, which waits;
                              see SUSPENDED.  NULL when it goes on */
    gb_await_frame *p_await_frames; /* innermost await_ on the step's own C
                                       stack, as far as they are known */
    const void *p_stack; /* an identity: the datastack chunk in which a step's
                            own frames begin; NULL if the engine can't say */
    PyObject *p_owner;   /* owned while in st->orphans, else NULL */
    PortalObject *p_next_orphan;
    PyObject *p_forbidden; /* owned: NULL, or what a suspension has to raise
                              instead, as it is forbidden (gb_guard.c) */
    /* during a step */
    PortalObject *p_outer; /* owned: the portal that was running before */
    PyObject *p_context;   /* borrowed: the Context that the step began in */
    PyObject *p_argument;  /* borrowed from the caller of the step */
    PyObject *p_result;    /* owned */
    int p_status;          /* PySendResult */
    unsigned char p_op;    /* gb_op */
    unsigned char p_state;
    bool p_remove; /* detach as soon as a step ends with nothing suspended */
};

/* Per thread: the portal whose step runs, innermost.  Borrowed: the step
 * holds a reference.  NULL outside of all steps. */
extern GB_THREAD_LOCAL PortalObject *gb_portal_running GB_TLS_MODEL;

/* A new portal for `coroutine` (borrowed), in state NEW or BESTOWED, serving
 * `task` (an identity, may be NULL).  NULL with an exception. */
PortalObject *gb_portal_new(gb_state *st, const gb_form *form,
                            PyObject *coroutine, gb_portal_state state,
                            PyObject *task);

/* One step on behalf of the loop; as PyIter_Send.  `argument` is as p_op
 * says, borrowed.  The caller owns a reference to the coroutine.
 * Runs Python code; other tasks don't run; may detach `p`. */
PySendResult gb_portal_step(PortalObject *p, gb_op op, PyObject *argument,
                            PyObject **result);

/* As coroutine.close().  0, or -1 with an exception.  Runs Python code. */
int gb_portal_close(PortalObject *p);

/* The form's detach, after which `p` may be gone. */
void gb_portal_detach(PortalObject *p);

/* For engines: what was suspended in a step of `p` has ended without the
 * loop.  Detaches; `p` may be gone. */
void gb_portal_abandon(PortalObject *p);

/* The portal that await_ called here must use: a borrowed reference to the
 * running one if it serves the current task; NULL without an exception if
 * not, with one if the look-up failed.  Must be called without an exception
 * pending.  May run Python code. */
PortalObject *gb_portal_of_running_task(gb_state *st, PortalObject *running);

/* The same, fast. */
static inline PortalObject *
gb_portal_here(gb_state *st, PyThreadState *ts)
{
    PortalObject *p = gb_portal_running;
    /* Two running tasks never share a Context: one can't be entered twice.
     * So the step's own Context proves that this is the step's task. */
    if (GB_LIKELY(p != NULL && gb_cpython_context(ts) == p->p_context)) {
        return p;
    }
    return p == NULL ? NULL : gb_portal_of_running_task(st, p);
}

/* Whether a stack waits for `p` that the garbage collector can't look into:
 * the coroutines in it are in use, whatever the collector finds. */
static inline bool
gb_portal_hides_frames(const PortalObject *p)
{
    return p->p_waits && p->p_st->engine->hides_frames;
}

/* Whether a step of a portal that serves `task` is under way on this thread,
 * innermost or not.  1 or 0, or -1 with an exception.  May run Python code. */
int gb_portal_runs_task(gb_state *st, PyObject *task);

int gb_portal_add_types(PyObject *module, gb_state *st);

#endif
