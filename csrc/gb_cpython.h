/* CPython's insides, per minor version: thread state, coroutine layout,
 * contexts, the garbage collector.  No other file knows them. */
#ifndef GB_CPYTHON_H
#define GB_CPYTHON_H

#include "gb_frames.h"

/* What is left of the recursion limits, as the loop's stack had it. */
typedef struct {
    int python;
    int c;
} gb_recursion_budget;

/* Where a coroutine stands, by its own frame. */
typedef enum {
    GB_COROUTINE_CREATED,
    GB_COROUTINE_SUSPENDED,
    GB_COROUTINE_EXECUTING,
    GB_COROUTINE_FINISHED,
} gb_coroutine_stage;

/* ------------------------------------------------- thread state, inlined */

/* The Context that is entered now.  Borrowed; NULL if there is none yet. */
static inline PyObject *
gb_cpython_context(PyThreadState *ts)
{
    return ts->context;
}

/* Make `context` (borrowed, may be NULL) the entered one, without the checks
 * of PyContext_Enter.  May run Python code: the old one may die. */
static inline void
gb_cpython_set_context(PyThreadState *ts, PyObject *context)
{
    PyObject *old = ts->context;
    ts->context = Py_XNewRef(context);
    ts->context_ver++;
    Py_XDECREF(old);
}

/* Hide the Python frames of this stack: until they are shown again the thread
 * seems to run none.  What is returned is for gb_cpython_show_frames. */
static inline struct _PyInterpreterFrame *
gb_cpython_hide_frames(PyThreadState *ts)
{
#if PY_VERSION_HEX >= 0x030d0000
    struct _PyInterpreterFrame **current = &ts->current_frame;
#else
    struct _PyInterpreterFrame **current = &ts->cframe->current_frame;
#endif
    struct _PyInterpreterFrame *frames = *current;
#if PY_VERSION_HEX >= 0x030f0000
    *current = ts->base_frame; /* where the chain of every thread ends */
#else
    *current = NULL;
#endif
    return frames;
}

static inline void
gb_cpython_show_frames(PyThreadState *ts, struct _PyInterpreterFrame *frames)
{
#if PY_VERSION_HEX >= 0x030d0000
    ts->current_frame = frames;
#else
    ts->cframe->current_frame = frames;
#endif
}

/* A free-threaded build locks objects also where the GIL is on, and lists
 * these locks on the C stack: this stack gives its own up before another one
 * goes on, and takes them again afterwards. */
#ifdef Py_GIL_DISABLED
uintptr_t gb_cpython_unlock(void);
void gb_cpython_lock_again(uintptr_t locks);
#else
static inline uintptr_t
gb_cpython_unlock(void)
{
    return 0;
}

static inline void
gb_cpython_lock_again(uintptr_t Py_UNUSED(locks))
{
}
#endif

static inline gb_recursion_budget
gb_cpython_recursion_budget(PyThreadState *ts)
{
    gb_recursion_budget budget = {0, 0};
#if PY_VERSION_HEX >= 0x030c0000
    budget.python = ts->py_recursion_remaining;
#if PY_VERSION_HEX < 0x030e0000
    budget.c = ts->c_recursion_remaining;
#endif
#else
    budget.python = ts->recursion_remaining;
#endif
    return budget;
}

static inline void
gb_cpython_set_recursion_budget(PyThreadState *ts, gb_recursion_budget budget)
{
#if PY_VERSION_HEX >= 0x030c0000
    ts->py_recursion_remaining = budget.python;
#if PY_VERSION_HEX < 0x030e0000
    ts->c_recursion_remaining = budget.c;
#endif
#else
    ts->recursion_remaining = budget.python;
#endif
}

/* The exception that is being handled now.  New reference, NULL for none. */
static inline PyObject *
gb_cpython_handled_exception(PyThreadState *ts)
{
    for (_PyErr_StackItem *item = ts->exc_info; item != NULL;
         item = item->previous_item) {
        if (item->exc_value != NULL && item->exc_value != Py_None) {
            return Py_NewRef(item->exc_value);
        }
    }
    return NULL;
}

/* Set what the outermost frames of this stack see as being handled; steals
 * `exc`, NULL for nothing.  May run Python code: the old one may die. */
static inline void
gb_cpython_set_outermost_handled_exception(PyThreadState *ts, PyObject *exc)
{
    PyObject *old = ts->exc_state.exc_value;
    ts->exc_state.exc_value = exc;
    Py_XDECREF(old);
}

/* As PyThreadState_GetID. */
static inline uint64_t
gb_cpython_thread_id(PyThreadState *ts)
{
    return ts->id;
}

/* Whether the getters of coroutines insist on the exact type, in debug builds.
 * In older versions making what they return may run the garbage collector,
 * which must not meet a coroutine of ours with another type. */
#define GB_CPYTHON_GETTERS_WANT_EXACT_TYPE (PY_VERSION_HEX >= 0x030e0000)

/* Whether the running stack made its first frame in the datastack chunk
 * `first`, an identity. */
static inline bool
gb_cpython_is_stack(PyThreadState *ts, const void *first)
{
    _PyStackChunk *chunk = ts->datastack_chunk;
    while (chunk != NULL && chunk != first) {
        chunk = chunk->previous;
    }
    return chunk != NULL;
}

/* -------------------------------------------- what each C stack has of its own
 *
 * For engines that cut C stacks apart: the thread state describes the stack
 * that runs, and must be changed whenever another one goes on. */

/* Whether we know all that a stack has of its own in this CPython. */
#if PY_VERSION_HEX < 0x03100000 && !defined(Py_GIL_DISABLED)
#define GB_CPYTHON_STACKS_KNOWN 1
#else
#define GB_CPYTHON_STACKS_KNOWN 0
#endif

#if GB_CPYTHON_STACKS_KNOWN

#if PY_VERSION_HEX < 0x030d0000
#define GB_CPYTHON_HAS_CFRAME 1 /* the running frame hangs in a C struct */
#define GB_CPYTHON_HAS_TRASH_NESTING 1
#else
#define GB_CPYTHON_HAS_CFRAME 0
#define GB_CPYTHON_HAS_TRASH_NESTING 0
#endif
#if PY_VERSION_HEX >= 0x030c0000 && PY_VERSION_HEX < 0x030e0000
#define GB_CPYTHON_HAS_C_RECURSION 1 /* later: the stack pointer tells */
#else
#define GB_CPYTHON_HAS_C_RECURSION 0
#endif

/* Where the thread state has the objects whose deallocation was put off, as
 * the stack had become too deep: they are linked, in a way that is the
 * interpreter's own. */
#if PY_VERSION_HEX < 0x030c0000
#define GB_CPYTHON_PUT_OFF(ts) ((ts)->trash_delete_later)
#elif PY_VERSION_HEX < 0x030d0000
#define GB_CPYTHON_PUT_OFF(ts) ((ts)->trash.delete_later)
#else
#define GB_CPYTHON_PUT_OFF(ts) ((ts)->delete_later)
#endif

/* The fields of the thread state which belong to the C stack that runs. */
typedef struct {
    struct _PyInterpreterFrame *frame; /* innermost */
    _PyErr_StackItem *exc_info;
    _PyStackChunk *datastack_chunk;
    PyObject **datastack_top;
    PyObject **datastack_limit;
    int python_depth;
    int recursion_headroom;
    int tracing;
#if GB_CPYTHON_HAS_C_RECURSION
    int c_recursion_remaining;
#endif
    int what_event; /* that is being traced or monitored */
#if GB_CPYTHON_HAS_TRASH_NESTING
    int trash_nesting;
#endif
    PyObject *put_off; /* first object whose deallocation was put off */
#if GB_CPYTHON_HAS_CFRAME
    _PyCFrame *cframe;
#endif
#if PY_VERSION_HEX >= 0x030e0000
    PyObject *current_executor;
#endif
} gb_stack_fields;

/* A link from a frame to the frame that called it, which is cut while the
 * frame's stack is away. */
typedef struct {
    struct _PyInterpreterFrame *frame;
    struct _PyInterpreterFrame *caller;
} gb_frame_link;

typedef struct {
    int count;
    int capacity;         /* of `more`, when that is used */
    gb_frame_link few[3]; /* enough for most stacks */
    gb_frame_link *more;  /* NULL, or owned: all of them */
} gb_frame_links;

/* A step's C stack, as far as the interpreter is concerned.  It begins where
 * the loop's ends: its Python frames, exceptions being handled and counters
 * go on from those of the loop. */
typedef struct {
    /* used by each step */
    _PyStackChunk *chunk;  /* borrowed: where its outermost frames are */
    _PyErr_StackItem base; /* what this stack's chain of handled exceptions
                              ends in */
#if GB_CPYTHON_HAS_CFRAME
    _PyCFrame cframe; /* what this stack's chain of them ends in */
#endif
    gb_stack_fields loop; /* of the stack below, when the step began */
    /* while suspended */
    gb_stack_fields step;
    gb_frame_links cuts;
    struct _PyInterpreterFrame *top;    /* innermost frame of Python code, or
                               NULL */
    struct _PyInterpreterFrame *bottom; /* outermost frame, which may be on the
                               C stack; or NULL */
    PyObject *context;        /* owned: the innermost Context that was
                     entered on this stack, or NULL */
    PyObject *context_bottom; /* borrowed: the outermost of those */
    /* during a step: see gb_cpython_bridge_frames */
    gb_frame_links bridges;
} gb_cpython_stack;

static inline void
gb_cpython_save_fields(PyThreadState *ts, gb_stack_fields *f)
{
    f->exc_info = ts->exc_info;
    f->datastack_chunk = ts->datastack_chunk;
    f->datastack_top = ts->datastack_top;
    f->datastack_limit = ts->datastack_limit;
    f->recursion_headroom = ts->recursion_headroom;
    f->tracing = ts->tracing;
#if PY_VERSION_HEX >= 0x030c0000
    f->python_depth = ts->py_recursion_limit - ts->py_recursion_remaining;
    f->what_event = ts->what_event;
#else
    f->python_depth = ts->recursion_limit - ts->recursion_remaining;
    f->what_event = ts->tracing_what;
#endif
#if GB_CPYTHON_HAS_C_RECURSION
    f->c_recursion_remaining = ts->c_recursion_remaining;
#endif
#if PY_VERSION_HEX < 0x030c0000
    f->trash_nesting = ts->trash_delete_nesting;
#elif GB_CPYTHON_HAS_TRASH_NESTING
    f->trash_nesting = ts->trash.delete_nesting;
#endif
    f->put_off = GB_CPYTHON_PUT_OFF(ts);
#if GB_CPYTHON_HAS_CFRAME
    f->cframe = ts->cframe;
    f->frame = ts->cframe->current_frame;
#else
    f->frame = ts->current_frame;
#endif
#if PY_VERSION_HEX >= 0x030e0000
    f->current_executor = ts->current_executor;
#endif
}

static inline void
gb_cpython_restore_fields(PyThreadState *ts, const gb_stack_fields *f)
{
    ts->exc_info = f->exc_info;
    ts->datastack_chunk = f->datastack_chunk;
    ts->datastack_top = f->datastack_top;
    ts->datastack_limit = f->datastack_limit;
    ts->recursion_headroom = f->recursion_headroom;
    ts->tracing = f->tracing;
#if PY_VERSION_HEX >= 0x030c0000
    ts->py_recursion_remaining = ts->py_recursion_limit - f->python_depth;
    ts->what_event = f->what_event;
#else
    ts->recursion_remaining = ts->recursion_limit - f->python_depth;
    ts->tracing_what = f->what_event;
#endif
#if GB_CPYTHON_HAS_C_RECURSION
    ts->c_recursion_remaining = f->c_recursion_remaining;
#endif
#if PY_VERSION_HEX < 0x030c0000
    ts->trash_delete_nesting = f->trash_nesting;
#elif GB_CPYTHON_HAS_TRASH_NESTING
    ts->trash.delete_nesting = f->trash_nesting;
#endif
    GB_CPYTHON_PUT_OFF(ts) = f->put_off;
#if GB_CPYTHON_HAS_CFRAME
#if PY_VERSION_HEX < 0x030c0000
    /* Whether to trace is the thread's matter, not the stack's. */
    f->cframe->use_tracing = ts->cframe->use_tracing;
#endif
    ts->cframe = f->cframe;
#else
    ts->current_frame = f->frame;
#endif
#if PY_VERSION_HEX >= 0x030e0000
    ts->current_executor = f->current_executor;
#endif
}

/* What is counted from the outermost frame of the thread on: `f`, of a stack
 * that began on top of `before`, now goes on on top of `now`. */
static inline void
gb_cpython_rebase_fields(gb_stack_fields *f, const gb_stack_fields *before,
                         const gb_stack_fields *now)
{
    f->python_depth += now->python_depth - before->python_depth;
    f->recursion_headroom
        += now->recursion_headroom - before->recursion_headroom;
    f->tracing += now->tracing - before->tracing;
#if GB_CPYTHON_HAS_C_RECURSION
    f->c_recursion_remaining
        += now->c_recursion_remaining - before->c_recursion_remaining;
#endif
#if GB_CPYTHON_HAS_TRASH_NESTING
    f->trash_nesting += now->trash_nesting - before->trash_nesting;
#endif
}

/* Let a new stack, on top of the running one, make its frames in `chunk`
 * (s->chunk). */
static inline void
gb_cpython_begin_stack(PyThreadState *ts, gb_cpython_stack *s)
{
    gb_cpython_save_fields(ts, &s->loop);
    GB_CPYTHON_PUT_OFF(ts) = NULL;
    s->base.exc_value = NULL;
    s->base.previous_item = ts->exc_info;
    ts->exc_info = &s->base;
    ts->datastack_chunk = s->chunk;
    /* From the second place on, as in the first chunk of a thread: it is
     * never taken to be empty, and so never freed by the interpreter. */
    ts->datastack_top = &s->chunk->data[1];
    ts->datastack_limit = (PyObject **)((char *)s->chunk + s->chunk->size);
#if GB_CPYTHON_HAS_CFRAME
    s->cframe = *ts->cframe;
    ts->cframe = &s->cframe;
#endif
}

/* All calls of `s` have returned: what is still put off is left to the stack
 * below, when that goes on.  If that has some of its own, the rest is
 * returned, for gb_cpython_deallocate_put_off; mostly NULL. */
static inline PyObject *
gb_cpython_hand_over_put_off(PyThreadState *ts, gb_cpython_stack *s)
{
    PyObject *rest = GB_CPYTHON_PUT_OFF(ts);
    if (GB_UNLIKELY(rest != NULL && s->loop.put_off == NULL)) {
        s->loop.put_off = rest;
        rest = NULL;
    }
    return rest;
}

/* Deallocate `put_off` and what is linked to it, on the running stack.  Runs
 * Python code. */
void gb_cpython_deallocate_put_off(PyThreadState *ts, PyObject *put_off);

/* Back on the stack below, after all calls of `s` have returned: nothing else
 * than what gb_cpython_begin_stack has set is to be set back.  Returns as
 * gb_cpython_hand_over_put_off. */
static inline PyObject *
gb_cpython_end_whole_stack(PyThreadState *ts, gb_cpython_stack *s)
{
    PyObject *rest = gb_cpython_hand_over_put_off(ts, s);
    GB_CPYTHON_PUT_OFF(ts) = s->loop.put_off;
    ts->exc_info = s->loop.exc_info;
    ts->datastack_chunk = s->loop.datastack_chunk;
    ts->datastack_top = s->loop.datastack_top;
    ts->datastack_limit = s->loop.datastack_limit;
#if GB_CPYTHON_HAS_CFRAME
#if PY_VERSION_HEX < 0x030c0000
    s->loop.cframe->use_tracing = ts->cframe->use_tracing;
#endif
    ts->cframe = s->loop.cframe;
#endif
    return rest;
}

/* Back on the stack below, `s` is suspended or has been: give the thread
 * state back. */
static inline void
gb_cpython_end_stack(PyThreadState *ts, gb_cpython_stack *s)
{
    gb_cpython_restore_fields(ts, &s->loop);
}

/* To be called once, before stacks are cut.  0, or -1 with an exception. */
int gb_cpython_init_stacks(void);

/* Call `call(argument)` on top of a frame that belongs to this C stack.
 * throw() of a coroutine keeps the frame that was running in a C variable, and
 * makes it the running one again: that must not be a frame of the stack below,
 * which may have gone when this one goes on.  Runs what `call` runs. */
void gb_cpython_on_base_frame(PyThreadState *ts, void (*call)(void *),
                              void *argument);

/* Whether the stack that runs is `s`; if not, it is a greenlet's that was
 * started on it.  Cannot fail. */
static inline bool
gb_cpython_on_stack(PyThreadState *ts, gb_cpython_stack *s)
{
    return gb_cpython_is_stack(ts, s->chunk);
}

/* Where in `chunk` there is room for `size` bytes (16-byte aligned) as long as
 * no further frames are made on the running stack; NULL if nowhere. */
static inline char *
gb_cpython_room_in_chunk(PyThreadState *ts, _PyStackChunk *chunk, size_t size)
{
    char *room
        = (char *)(((uintptr_t)ts->datastack_top + 15) & ~(uintptr_t)15);
    if (ts->datastack_chunk != chunk
        || room + size > (char *)chunk + chunk->size) {
        return NULL;
    }
    return room;
}

/* Before the running stack `s` is put away: cut what links it to the stack
 * below, so that frames may be walked at any time.  `context` (borrowed, may
 * be NULL) is the Context that the step began in.  0, or -1 with an
 * exception, and nothing has changed. */
int gb_cpython_leave_stack(PyThreadState *ts, gb_cpython_stack *s,
                           PyObject *context);

/* Before `s` is put back on top of the running stack; `hidden_low` to
 * `hidden_high` is the part of the running stack that will be moved aside
 * meanwhile, if it isn't empty.  0, or -1 with an exception, and nothing has
 * changed. */
int gb_cpython_prepare_stack(PyThreadState *ts, gb_cpython_stack *s,
                             char *hidden_low, char *hidden_high);

/* `s` is in place again: undo gb_cpython_leave_stack. */
void gb_cpython_reenter_stack(PyThreadState *ts, gb_cpython_stack *s);

/* After gb_cpython_end_stack of a step that was prepared with a part that
 * was moved aside. */
void gb_cpython_unbridge_frames(gb_cpython_stack *s);

/* For tp_traverse: visit what `s` owns, which is suspended.  `calls` are as
 * in gb_frames_visit. */
int gb_cpython_visit_stack(gb_cpython_stack *s, gb_calls calls,
                           visitproc visit, void *arg);

/* The innermost Python frame of `s`, which is suspended, as an object; a new
 * reference, None if there is none; NULL with an exception. */
PyObject *gb_cpython_suspended_frame(PyThreadState *ts, gb_cpython_stack *s);

/* From now on, let calls of Python functions be cheap even where their frames
 * go beyond a chunk: up to 3.14 the interpreter maps a new one for each such
 * call and unmaps it after (6 us), which is rare with its own chunks, but not
 * with ours, as they are small.  Cannot fail. */
void gb_cpython_keep_spare_chunks(void);

/* Free what `s` holds.  Cannot fail. */
void gb_cpython_clear_stack(gb_cpython_stack *s);

#endif /* GB_CPYTHON_STACKS_KNOWN */

/* Why C stacks can't be cut apart in this interpreter, in words (static); NULL
 * if they can.  Proves our knowledge of the layout on the running thread as
 * far as that goes.  May run Python code. */
const char *gb_cpython_why_not_cut_stacks(void);

/* --------------------------------------------------------- coroutine layout */

/* Offset in a coroutine object of the field which holds its origin. */
extern const size_t gb_cpython_origin_offset;

/* The field of an exact coroutine (or one retyped by us) which holds its
 * origin: a tuple or NULL, and while we have retyped it the portal. */
static inline PyObject **
gb_cpython_origin_slot(PyObject *coroutine)
{
    return (PyObject **)((char *)coroutine + gb_cpython_origin_offset);
}

/* Cannot fail, runs no Python code. */
gb_coroutine_stage gb_cpython_coroutine_stage(PyObject *coroutine);

/* Prove on a coroutine made for it that the layout above is the one of the
 * running interpreter.  1 it is, 0 it is not, -1 with an exception.
 * Runs Python code. */
int gb_cpython_check_coroutine_layout(void);

/* ----------------------------------------------------------- interpreter */

/* What the JIT has made of the code that the running stack is in, NULL if
 * nothing: a new reference.  To be held while another stack runs, since the
 * interpreter keeps only what is current on a thread from being freed. */
static inline PyObject *
gb_cpython_hold_executor(PyThreadState *ts)
{
#if PY_VERSION_HEX >= 0x030e0000 && PY_VERSION_HEX < 0x03100000
    return Py_XNewRef(ts->current_executor);
#else
    (void)ts;
    return NULL;
#endif
}

/* Whether a garbage collection is under way.  Cannot fail. */
bool gb_cpython_gc_running(PyThreadState *ts);

/* Of two Contexts, the one that was entered last on this thread, NULL if
 * neither is entered.  Borrowed.  Cannot fail. */
PyObject *gb_cpython_innermost_context(PyThreadState *ts, PyObject *a,
                                       PyObject *b);

/* The thread state whose PyThreadState_GetID is `id`; NULL if its thread has
 * ended.  Valid as long as the GIL is held.  Cannot fail. */
PyThreadState *gb_cpython_find_thread(uint64_t id);

/* Whether `ts` is that of the main thread.  Cannot fail. */
bool gb_cpython_is_main_thread(PyThreadState *ts);

/* As PyThreadState_GetDict, for any thread: a dict that is cleared when the
 * thread ends.  Borrowed; NULL with an exception. */
PyObject *gb_cpython_thread_dict(PyThreadState *ts);

/* Whether this is the main interpreter.  Cannot fail. */
bool gb_cpython_is_main_interpreter(void);

#endif
