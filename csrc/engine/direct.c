/* The fast engine: a step runs on the loop's own C stack, like any call.  Only
 * an await_ that has to wait cuts the slice of the stack between itself and
 * the portal's step() out to the heap, and gives the thread state back to the
 * loop; the next step puts the slice back at the same addresses.
 *
 * A StepStack is what a portal needs for that.  Its states:
 *   pooled     in the free list, no portal knows it
 *   running    p_engine_data of a portal whose step is under way; the stack
 *              below slice.high is the step's
 *   suspended  p_engine_data of a portal with p_waits set: slice.copy is the
 *              slice, `python` holds what the interpreter had of it
 * A portal between steps with nothing suspended has none. */
#include "gb_collector.h"
#include "gb_cpython.h"
#include "gb_portal.h"

#include "engine/anchor.h"
#include "engine/foreign.h"
#include "engine/greenlet_api.h"
#include "engine/slabs.h"
#include "engine/stack.h"

#if GB_CPYTHON_STACKS_KNOWN && GB_STACK_CPU_KNOWN

typedef struct StepStack {
    gb_stack_slice slice;
    PortalObject *portal;   /* borrowed: the portal owns us */
    PyObject *home;         /* owned: the greenlet of the step; NULL: the main
                               one, as greenlet was not loaded */
    ForeignObject *foreign; /* NULL, or for await_ in other greenlets */
    uint64_t thread;        /* PyThreadState_GetID of its thread */
    bool suspended;         /* set where the step is left in suspend() */
    bool traversed;         /* while suspended: the collector has looked at
                               what it owns */
    char *large_copy;       /* NULL, or owned: where slice.copy is if it does
                               not fit behind the frames */
    size_t large_copy_size;
    struct StepStack *next_free;
    gb_cpython_stack python; /* what each step needs is at its head */
} StepStack;

enum {
    FREE_STACKS = 16,       /* kept for later steps; each may keep a slab */
    KEPT_COPY_SIZE = 16384, /* bytes; larger copies are freed early */
    GRANULE = 256,          /* such memory comes in multiples of this */
    SUSPEND_MARGIN = 256,   /* of stack below suspend_stack's frame address:
                               the frame and what gb_stack_suspend saves */
};

/* A block holds the StepStack and, from here to its end, a chunk for Python
 * frames.  While the stack is suspended the copy of the slice is there too,
 * above the frames: in that time none are made. */
#define CHUNK_OFFSET ((sizeof(StepStack) + 15) / 16 * 16)

static StepStack *free_stacks = NULL;
static int free_count = 0;

/* Steps under way on this thread's stack. */
static GB_THREAD_LOCAL int steps_below GB_TLS_MODEL = 0;

static struct {
    unsigned long suspensions, foreign_suspensions, resumptions, overlaps;
} counters;

/* -------------------------------------------------------------- step stacks */

/* NULL with an exception. */
static GB_NOINLINE StepStack *
stack_new(void)
{
    StepStack *s = gb_slabs_get();
    if (s == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memset(s, 0, sizeof(StepStack));
    s->python.chunk = (_PyStackChunk *)((char *)s + CHUNK_OFFSET);
    s->python.chunk->previous = NULL;
    s->python.chunk->size = GB_BLOCK_SIZE - CHUNK_OFFSET;
    s->python.chunk->top = 0;
    return s;
}

static GB_NOINLINE void
stack_free(StepStack *s)
{
    gb_cpython_clear_stack(&s->python);
    PyMem_Free(s->large_copy);
    PyMem_Free(s->slice.aside);
    gb_slabs_put(s);
}

static inline StepStack *
stack_take(void)
{
    StepStack *s = free_stacks;
    if (GB_UNLIKELY(s == NULL)) {
        return stack_new();
    }
    free_stacks = s->next_free;
    free_count--;
    return s;
}

/* May run Python code: a greenlet may die. */
static inline void
stack_give(StepStack *s)
{
    if (GB_UNLIKELY(s->foreign != NULL)) {
        gb_foreign_end(s->foreign);
        s->foreign = NULL;
    }
    Py_CLEAR(s->home);
    if (GB_UNLIKELY(free_count >= FREE_STACKS
                    || s->large_copy_size > KEPT_COPY_SIZE)) {
        stack_free(s);
        return;
    }
    s->next_free = free_stacks;
    free_stacks = s;
    free_count++;
}

/* Have `*memory` hold `size` bytes, what it held may be lost.  0, or -1 with
 * an exception, and nothing has changed. */
static GB_NOINLINE int
reserve(char **memory, size_t *capacity, size_t size)
{
    char *larger;
    if (size <= *capacity) {
        return 0;
    }
    size = (size + GRANULE - 1) / GRANULE * GRANULE;
    larger = PyMem_Realloc(*memory, size);
    if (larger == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    *memory = larger;
    *capacity = size;
    return 0;
}

/* Have room for a copy of the slice from `low` on.  0, or -1 with an
 * exception. */
static inline int
reserve_copy(StepStack *s, PyThreadState *ts, char *low)
{
    size_t size = (size_t)(s->slice.high - low);
    char *room = gb_cpython_room_in_chunk(ts, s->python.chunk, size);
    if (GB_LIKELY(room != NULL)) {
        s->slice.copy = room;
        return 0;
    }
    if (reserve(&s->large_copy, &s->large_copy_size, size) < 0) {
        return -1;
    }
    s->slice.copy = s->large_copy;
    return 0;
}

/* ------------------------------------------------------------------- steps */

static inline void
run_step(void *portal)
{
    PortalObject *p = portal;
    PyObject *result;
    p->p_status = gb_engine_body(p, &result);
    p->p_result = result; /* an exception stays pending */
}

static GB_NOINLINE void
run_step_on_base_frame(PortalObject *p)
{
    gb_cpython_on_base_frame(PyThreadState_GetUnchecked(), run_step, p);
}

/* What runs at the top of a slice. */
static GB_HOT gb_stack_slice *
run_body(void *argument)
{
    StepStack *s = argument;
    if (GB_UNLIKELY(s->portal->p_op == GB_OP_THROW)) {
        run_step_on_base_frame(s->portal);
    }
    else {
        run_step(s->portal);
    }
    return &s->slice;
}

/* Whether the running greenlet is one in which `s` can be resumed; then it is
 * the home of `s` from now on.  Cannot fail. */
static GB_NOINLINE bool
in_right_greenlet(StepStack *s)
{
    PyObject *current = gb_greenlet_current();
    bool right;
    if (current == NULL) { /* at interpreter exit */
        PyErr_Clear();
        return false;
    }
    /* The stack of the main greenlet has no upper end: what others have left
     * can be resumed there.  They save and restore their own part only. */
    right = s->home == current
            || (gb_greenlet_is_main(current)
                && (s->home == NULL || s->foreign == NULL));
    if (right && s->home != current) {
        Py_XSETREF(s->home, Py_NewRef(current));
    }
    Py_DECREF(current);
    return right;
}

/* Why the stack that waits for `p` can't be resumed from here, where the
 * loop's stack goes down to `frame`; NULL if it can.  Keeps no exception
 * pending. */
static inline const char *
why_not_resume(PortalObject *p, StepStack *s, PyThreadState *ts, char *frame)
{
    if (s->thread != gb_cpython_thread_id(ts)) {
        return "a task suspended in await_() can only be resumed in the "
               "thread that suspended it";
    }
    if (gb_greenlet_is_loaded(p->p_st->modules) && !in_right_greenlet(s)) {
        return "a task suspended in await_() can only be resumed in the "
               "greenlet that suspended it";
    }
    /* The collector's lists have their heads on its C stack, which must not
     * be moved away while they are in use. */
    if (gb_stack_must_move_aside(&s->slice, frame) > 0
        && gb_collector_runs_here(p->p_st, ts)) {
        return "a task suspended in await_() can't be resumed here by a "
               "finalizer that the garbage collector runs";
    }
    return NULL;
}

/* 0, or -1 with an exception, and nothing has changed. */
static GB_NOINLINE int
prepare_overlap(StepStack *s, PyThreadState *ts, char *frame, size_t size)
{
    if (reserve(&s->slice.aside, &s->slice.aside_capacity, size) < 0) {
        return -1;
    }
    counters.overlaps++;
    return gb_cpython_prepare_stack(ts, &s->python, frame - GB_STACK_MARGIN,
                                    s->slice.high);
}

/* The stack has done its work and the loop's goes on; `put_off` is what
 * gb_cpython_hand_over_put_off has returned.  May run Python code, which finds
 * the portal without a stack. */
static inline void
end_stack(PortalObject *p, StepStack *s, PyThreadState *ts, PyObject *put_off)
{
    p->p_engine_data = NULL;
    stack_give(s);
    if (GB_UNLIKELY(put_off != NULL)) {
        gb_cpython_deallocate_put_off(ts, put_off);
    }
}

/* Resume what waits for `p`.  0, or -1 with an exception if that did not take
 * place. */
static GB_HOT GB_NOINLINE int
resume_stack(PortalObject *p, StepStack *s, PyThreadState *ts)
{
    char *frame = GB_STACK_ADDRESS();
    size_t aside = gb_stack_must_move_aside(&s->slice, frame);
    const char *reason = why_not_resume(p, s, ts, frame);
    PyObject *rest = NULL;
    int rc;

    if (GB_UNLIKELY(reason != NULL)) {
        PyErr_SetString(PyExc_RuntimeError, reason);
        return -1;
    }
    rc = aside > 0 ? prepare_overlap(s, ts, frame, aside)
                   : gb_cpython_prepare_stack(ts, &s->python, NULL, NULL);
    if (rc < 0) {
        return -1;
    }
    if (GB_UNLIKELY(s->traversed)) {
        gb_frames_let_finalize(s->python.top);
        s->traversed = false;
    }
    counters.resumptions++;
    p->p_waits = false;
    s->suspended = false;
    steps_below++;
    gb_stack_resume(&s->slice);
    steps_below--;
    if (!s->suspended) {
        rest = gb_cpython_hand_over_put_off(ts, &s->python);
    }
    gb_cpython_end_stack(ts, &s->python);
    if (aside > 0) {
        gb_cpython_unbridge_frames(&s->python);
    }
    if (s->suspended) {
        p->p_waits = true;
    }
    else {
        end_stack(p, s, ts, rest);
    }
    return 0;
}

/* Note the greenlet that a step begins in.  1 it is the main one, 0 another,
 * -1 with an exception. */
static GB_NOINLINE int
note_home(StepStack *s)
{
    s->home = gb_greenlet_current();
    return s->home == NULL ? -1 : gb_greenlet_is_main(s->home);
}

/* A stack for `p`, whose step is entered from a function with its frame at
 * `frame`; NULL with an exception. */
static inline StepStack *
begin_stack(PortalObject *p, PyThreadState *ts, char *frame)
{
    int in_main_greenlet = 1;
    StepStack *s = stack_take();
    if (GB_UNLIKELY(s == NULL)) {
        return NULL;
    }
    if (GB_UNLIKELY(gb_greenlet_is_loaded(p->p_st->modules))) {
        in_main_greenlet = note_home(s);
        if (in_main_greenlet < 0) {
            stack_give(s);
            return NULL;
        }
    }
    p->p_engine_data = s;
    p->p_stack = s->python.chunk;
    s->portal = p;
    s->thread = gb_cpython_thread_id(ts);
    s->suspended = s->traversed = false;
    s->slice.high = gb_anchor_find(frame, steps_below, !in_main_greenlet);
    return s;
}

static GB_HOT int
direct_step(PortalObject *p, PyThreadState *ts)
{
    StepStack *s = p->p_engine_data;

    if (s != NULL) {
        return resume_stack(p, s, ts);
    }
    s = begin_stack(p, ts, GB_STACK_ADDRESS());
    if (GB_UNLIKELY(s == NULL)) {
        return -1;
    }
    steps_below++;
    gb_cpython_begin_stack(ts, &s->python);
    gb_stack_enter(&s->slice, run_body, s);
    steps_below--;
    if (GB_UNLIKELY(s->suspended)) {
        gb_cpython_end_stack(ts, &s->python);
        p->p_waits = true;
    }
    else {
        end_stack(p, s, ts, gb_cpython_end_whole_stack(ts, &s->python));
    }
    return 0;
}

/* Suspend the running stack, which is the step's own.  0 when the next step
 * has come; -1 with an exception, and nothing has changed.  Steals `trap`.
 * Switches stacks. */
static GB_HOT int
suspend_stack(PortalObject *p, PyObject *trap)
{
    PyThreadState *ts = PyThreadState_GetUnchecked();
    StepStack *s = p->p_engine_data;
    char *lowest = GB_STACK_ADDRESS() - SUSPEND_MARGIN;

    if (GB_UNLIKELY(!gb_cpython_on_stack(ts, &s->python))) {
        Py_DECREF(trap);
        PyErr_SetString(PyExc_RuntimeError,
                        "await_() called outside of the step that its portal "
                        "belongs to, in a greenlet that the step has left");
        return -1;
    }
    if (reserve_copy(s, ts, lowest) < 0
        || gb_cpython_leave_stack(ts, &s->python, p->p_context) < 0) {
        Py_DECREF(trap);
        return -1;
    }
    counters.suspensions++;
    p->p_result = trap;
    p->p_status = PYGEN_NEXT;
    s->suspended = true;

    gb_stack_suspend(&s->slice); /* the loop runs meanwhile */
    assert(s->slice.low >= lowest);

    gb_cpython_reenter_stack(ts, &s->python);
    return 0;
}

/* The running stack is a greenlet's.  As direct_suspend. */
static GB_NOINLINE int
suspend_foreign(PortalObject *p, PyObject *trap, bool *woken)
{
    StepStack *s = p->p_engine_data;
    counters.foreign_suspensions++;
    if (s->foreign == NULL) {
        PyObject *home = NULL;
        if (s->home != NULL) {
            home = Py_NewRef(s->home);
        }
        else if (gb_greenlet_is_loaded(p->p_st->modules)) {
            PyObject *current = gb_greenlet_current();
            home = current == NULL ? NULL : gb_greenlet_main_of(current);
            Py_XDECREF(current);
        }
        else {
            PyErr_SetString(PyExc_RuntimeError,
                            "await_() can't wait on a C stack that is neither "
                            "the event loop's nor that of a greenlet "
                            "(greenlet 3.0 or newer is needed)");
        }
        if (home != NULL) {
            s->foreign = gb_foreign_new(p, home, suspend_stack);
            Py_DECREF(home);
        }
        if (s->foreign == NULL) {
            Py_DECREF(trap);
            return -1;
        }
    }
    return gb_foreign_suspend(s->foreign, trap, woken);
}

static GB_HOT int
direct_suspend(PortalObject *p, PyObject *trap, bool *woken)
{
    StepStack *s = p->p_engine_data;
    if (GB_UNLIKELY(s == NULL || s->suspended)) {
        Py_DECREF(trap);
        PyErr_SetString(PyExc_RuntimeError,
                        "await_() called outside of the step that its portal "
                        "belongs to");
        return -1;
    }
    if (GB_LIKELY(
            gb_cpython_on_stack(PyThreadState_GetUnchecked(), &s->python))) {
        return suspend_stack(p, trap);
    }
    return suspend_foreign(p, trap, woken);
}

static gb_unwind
direct_may_unwind(PortalObject *p, uint64_t *thread)
{
    StepStack *s = p->p_engine_data;
    PyThreadState *ts = PyThreadState_GetUnchecked();
    *thread = s->thread;
    /* resume_stack's frame will be somewhat deeper than ours. */
    if (why_not_resume(p, s, ts, GB_STACK_ADDRESS() - 2 * GB_STACK_MARGIN)
        == NULL) {
        return GB_UNWIND_NOW;
    }
    return gb_cpython_find_thread(s->thread) == NULL ? GB_UNWIND_NEVER
                                                     : GB_UNWIND_LATER;
}

static const struct _PyInterpreterFrame *
direct_frame_below(PortalObject *p)
{
    StepStack *s = p->p_engine_data; /* NULL: the step has ended already */
    return s == NULL ? NULL : s->python.loop.frame;
}

static int
direct_traverse(PortalObject *p, visitproc visit, void *arg)
{
    StepStack *s = p->p_engine_data;
    gb_calls calls = {NULL, s->slice.copy - s->slice.low};
    const char *frame = (const char *)p->p_await_frames;

    /* They are in the slice. */
    while (frame != NULL) {
        const gb_await_frame *copy
            = (const gb_await_frame *)(frame + calls.moved);
        if (calls.innermost == NULL) {
            calls.innermost = &copy->call;
        }
        Py_VISIT(copy->iterator);
        Py_VISIT(copy->given);
        frame = (const char *)copy->call.outer;
    }
    s->traversed = true;
    return gb_cpython_visit_stack(&s->python, calls, visit, arg);
}

static void
direct_release(PortalObject *p)
{
    StepStack *s = p->p_engine_data;
    p->p_engine_data = NULL;
    if (s != NULL && !p->p_waits) {
        stack_give(s);
    } /* else leaked: frames and values in it may be in use */
}

static PyObject *
direct_waiting_stack(PortalObject *p)
{
    StepStack *s = p->p_engine_data;
    PyObject *frame, *stack, *greenlet = NULL;
    if (s == NULL || !p->p_waits) {
        Py_RETURN_NONE;
    }
    frame
        = gb_cpython_suspended_frame(PyThreadState_GetUnchecked(), &s->python);
    if (frame == NULL) {
        return NULL;
    }
    if (s->foreign != NULL) {
        greenlet = gb_foreign_waiting(s->foreign);
    }
    stack = PyTuple_Pack(3, frame, greenlet == NULL ? Py_None : greenlet,
                         s->home == NULL ? Py_None : s->home);
    Py_DECREF(frame);
    return stack;
}

static PyObject *
direct_counters(void)
{
    return Py_BuildValue("{s:k,s:k,s:k,s:k,s:k}", "suspensions",
                         counters.suspensions, "foreign_suspensions",
                         counters.foreign_suspensions, "resumptions",
                         counters.resumptions, "overlaps", counters.overlaps,
                         "padded", gb_anchor_not_used);
}

static const char *
direct_why_not(void)
{
    if (gb_stack_is_shadowed()) {
        return "the CPU keeps a shadow stack for this process";
    }
    return gb_cpython_why_not_cut_stacks();
}

static int
direct_init(gb_state *Py_UNUSED(st))
{
    if (gb_cpython_init_stacks() < 0) {
        return -1;
    }
    gb_anchor_init();
    gb_cpython_keep_spare_chunks();
    return gb_foreign_init();
}

#else /* not here */

static const char *
direct_why_not(void)
{
#if !GB_STACK_CPU_KNOWN
    return "it is not made for this CPU or operating system";
#else
    return gb_cpython_why_not_cut_stacks();
#endif
}

#define direct_init NULL
#define direct_step NULL
#define direct_suspend NULL
#define direct_may_unwind NULL
#define direct_frame_below NULL
#define direct_traverse NULL
#define direct_release NULL
#define direct_waiting_stack NULL
#define direct_counters NULL

#endif

const gb_engine gb_direct_engine = {
    .name = "direct",
    .why_not = direct_why_not,
    .init = direct_init,
    .step = direct_step,
    .suspend = direct_suspend,
    .may_unwind = direct_may_unwind,
    .frame_below = direct_frame_below,
    .traverse = direct_traverse,
    .release = direct_release,
    .waiting_stack = direct_waiting_stack,
    .counters = direct_counters,
};
