/* THE SEAM between portals and what suspends and resumes C stacks.
 *
 * An engine runs the user's side of a step (gb_engine_body) on some stack,
 * and can leave that stack waiting in suspend() while step() returns to the
 * loop.  Nothing above this header knows which engine runs; no engine knows
 * what a portal is for.
 *
 * What passes between the two sides is in the portal: p_op and p_argument
 * going in, p_status and p_result coming out. */
#ifndef GB_ENGINE_H
#define GB_ENGINE_H

#include "gb_state.h"

typedef struct PortalObject PortalObject;

/* What the loop asks for. */
typedef enum {
    GB_OP_SEND,  /* p_argument is the value */
    GB_OP_THROW, /* p_argument is an exception instance */
    GB_OP_CLOSE, /* p_argument is NULL; never reaches a suspended await_ */
} gb_op;

/* When a suspended stack can be unwound. */
typedef enum {
    GB_UNWIND_NEVER, /* its thread has ended */
    GB_UNWIND_LATER, /* not here, or not now */
    GB_UNWIND_NOW,
} gb_unwind;

typedef struct gb_engine {
    const char *name;

    /* Why this engine can't be used here, in words; NULL if it can.  A static
     * string.  May run Python code. */
    const char *(*why_not)(void);

    /* Prepare the module `st` for this engine.  0, or -1 with an exception
     * (ImportError: can't be used here). */
    int (*init)(gb_state *st);

    /* Run one step of `p` on the thread `ts`: gb_engine_body on a stack of its
     * own, or if one waits in suspend() (p_waits), go on with that. Returns 0
     * when the step has ended: p_status tells how, p_result is set unless that
     * is PYGEN_ERROR, and then an exception is pending; p_waits tells whether
     * a stack waits now. Returns -1 with an exception if the step did not take
     * place; `p` is as it was.  Runs Python code; switches stacks. The caller
     * keeps `p` and its coroutine alive. */
    int (*step)(PortalObject *p, PyThreadState *ts);

    /* Called in a step of `p`, on the stack that wants to wait: end that step
     * with `trap` (stolen) as what it yields.  Returns 0 when the next step
     * has come, with p_op and p_argument set.
     * Returns -1 with an exception if it can't wait here, or if something
     * else than step() has woken this stack; in the latter case *woken is
     * true and `p` may be gone.  Switches stacks; other Python code runs. */
    int (*suspend)(PortalObject *p, PyObject *trap, bool *woken);

    /* Whether step() may be called from here to unwind the stack that waits in
     * suspend() for `p`.  `thread` gets the PyThreadState_GetID of the thread
     * that can.  Cannot fail. */
    gb_unwind (*may_unwind)(PortalObject *p, uint64_t *thread);

    /* The innermost frame of the loop, on which those of the step of `p` have
     * been put; NULL if theirs lead nowhere.  An identity.  Cannot fail. */
    const struct _PyInterpreterFrame *(*frame_below)(PortalObject *p);

    /* For tp_traverse: visit what the stack owns that waits in suspend() for
     * `p`, as far as that is known. */
    int (*traverse)(PortalObject *p, visitproc visit, void *arg);
    bool hides_frames; /* traverse() knows nothing of what frames own */

    /* Give up p_engine_data: `p` is done or is going to die.  A stack that
     * still waits is unwound if that can be done, otherwise leaked.  Keeps a
     * pending exception.  May run Python code and switch stacks. */
    void (*release)(PortalObject *p);

    /* For introspection: where the frames are that wait in suspend() for `p`,
     * as a tuple (innermost frame on the step's stack or None, greenlet that
     * was started in the step and waits or None, greenlet at which its chain
     * of parents reaches the step or None); None if nothing waits.  A new
     * reference; NULL with an exception. */
    PyObject *(*waiting_stack)(PortalObject *p);

    /* For tests: how often what has happened in this process, a new dict.
     * NULL with an exception. */
    PyObject *(*counters)(void);
} gb_engine;

extern const gb_engine gb_direct_engine, gb_greenlet_engine;

/* Given by the portal: what a step does on the engine's stack.  Returns as
 * PyIter_Send does.  Runs Python code; may switch stacks. */
PySendResult gb_engine_body(PortalObject *p, PyObject **result);

#endif
