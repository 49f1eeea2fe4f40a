#include "gb_internal.h" /* first */

#include <stdatomic.h>

#include "gb_cpython.h"

const size_t gb_cpython_origin_offset
    = offsetof(PyCoroObject, cr_origin_or_finalizer);

gb_coroutine_stage
gb_cpython_coroutine_stage(PyObject *coroutine)
{
    int state = ((PyCoroObject *)coroutine)->cr_frame_state;
    if (state == FRAME_CREATED) {
        return GB_COROUTINE_CREATED;
    }
    if (state == FRAME_EXECUTING) {
        return GB_COROUTINE_EXECUTING;
    }
    if (state == FRAME_CLEARED
#if PY_VERSION_HEX < 0x030f0000
        || state == FRAME_COMPLETED
#endif
    ) {
        return GB_COROUTINE_FINISHED;
    }
    return GB_COROUTINE_SUSPENDED;
}

/* A coroutine that knows where it was created, and its origin as Python sees
 * it. */
static const char probe_source[]
    = "import sys\n"
      "async def probe(): pass\n"
      "depth = sys.get_coroutine_origin_tracking_depth()\n"
      "sys.set_coroutine_origin_tracking_depth(1)\n"
      "try:\n"
      "    coroutine = probe()\n"
      "finally:\n"
      "    sys.set_coroutine_origin_tracking_depth(depth)\n"
      "origin = coroutine.cr_origin\n";

int
gb_cpython_check_coroutine_layout(void)
{
    PyObject *globals = NULL, *ran = NULL, *closed = NULL;
    PyObject *coroutine, *origin; /* borrowed from globals */
    int result = -1;

    if (PyCoro_Type.tp_basicsize
        != (Py_ssize_t)offsetof(PyCoroObject, cr_iframe)
               + (Py_ssize_t)offsetof(_PyInterpreterFrame, localsplus)) {
        return 0;
    }
    globals = PyDict_New();
    if (globals == NULL
        || PyDict_SetItemString(globals, "__builtins__", PyEval_GetBuiltins())
               < 0) {
        goto done;
    }
    ran = PyRun_String(probe_source, Py_file_input, globals, globals);
    if (ran == NULL) {
        goto done;
    }
    coroutine = PyDict_GetItemString(globals, "coroutine");
    origin = PyDict_GetItemString(globals, "origin");
    if (coroutine == NULL || origin == NULL || !PyTuple_Check(origin)) {
        result = 0;
        goto done;
    }
    result = *gb_cpython_origin_slot(coroutine) == origin
             && gb_cpython_coroutine_stage(coroutine) == GB_COROUTINE_CREATED;
    closed = PyObject_CallMethod(coroutine, "close", NULL);
    if (closed == NULL) {
        result = -1;
    }
    else if (gb_cpython_coroutine_stage(coroutine) != GB_COROUTINE_FINISHED) {
        result = 0;
    }

done:
    Py_XDECREF(closed);
    Py_XDECREF(ran);
    Py_XDECREF(globals);
    return result;
}

/* ---------------------------------------------------------------- C stacks */

#ifdef Py_GIL_DISABLED
uintptr_t
gb_cpython_unlock(void)
{
    PyThreadState *ts = PyThreadState_GetUnchecked();
    _PyCriticalSection_SuspendAll(ts);
    uintptr_t locks = ts->critical_section;
    ts->critical_section = 0;
    return locks;
}

void
gb_cpython_lock_again(uintptr_t locks)
{
    PyThreadState *ts = PyThreadState_GetUnchecked();
    ts->critical_section = locks;
    if (locks != 0) {
        _PyCriticalSection_Resume(ts);
    }
}
#endif

#if GB_CPYTHON_STACKS_KNOWN

/* Where the thread has its running frame. */
static inline _PyInterpreterFrame **
running_frame(PyThreadState *ts)
{
#if PY_VERSION_HEX >= 0x030d0000
    return &ts->current_frame;
#else
    return &ts->cframe->current_frame;
#endif
}

#if PY_VERSION_HEX < 0x030c0000
/* Of a frame that counts as incomplete, and so is not shown; made once. */
static PyCodeObject *base_code = NULL;
#endif

int
gb_cpython_init_stacks(void)
{
#if PY_VERSION_HEX < 0x030c0000
    if (base_code == NULL) {
        base_code = PyCode_NewEmpty("<greenback>", "<step>", 0);
    }
    return base_code == NULL ? -1 : 0;
#else
    return 0;
#endif
}

void
gb_cpython_on_base_frame(PyThreadState *ts, void (*call)(void *),
                         void *argument)
{
    /* As the interpreter's loop marks where it was entered from C. */
    _PyInterpreterFrame base;
    memset(&base, 0, sizeof(base));
#if PY_VERSION_HEX >= 0x030e0000
    base.f_executable = PyStackRef_None;
    base.stackpointer = base.localsplus;
    base.owner = FRAME_OWNED_BY_INTERPRETER;
#elif PY_VERSION_HEX >= 0x030d0000
    base.f_executable = Py_None;
    base.owner = FRAME_OWNED_BY_CSTACK;
#elif PY_VERSION_HEX >= 0x030c0000
    base.f_code = ts->interp->interpreter_trampoline;
    base.prev_instr = _PyCode_CODE(base.f_code);
    base.owner = FRAME_OWNED_BY_CSTACK;
#else
    base.f_code = base_code;
    base.prev_instr = _PyCode_CODE(base_code) - 1;
    base.owner = GB_FRAME_ON_C_STACK;
#endif
    base.previous = *running_frame(ts);
    *running_frame(ts) = &base;
    call(argument);
    *running_frame(ts) = base.previous; /* now; may be another than before */
}

static gb_frame_link *
link_at(gb_frame_links *links, int i)
{
    return links->more != NULL ? &links->more[i] : &links->few[i];
}

/* Room for more of them.  0, or -1 with an exception. */
static GB_NOINLINE int
grow_links(gb_frame_links *links)
{
    int capacity = 4 * links->count;
    gb_frame_link *more
        = PyMem_Realloc(links->more, (size_t)capacity * sizeof(gb_frame_link));
    if (more == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (links->more == NULL) {
        memcpy(more, links->few, sizeof(links->few));
    }
    links->more = more;
    links->capacity = capacity;
    return 0;
}

/* 0, or -1 with an exception. */
static int
add_link(gb_frame_links *links, _PyInterpreterFrame *frame,
         _PyInterpreterFrame *caller)
{
    const int few = (int)Py_ARRAY_LENGTH(links->few);
    if (links->count >= (links->more != NULL ? links->capacity : few)
        && grow_links(links) < 0) {
        return -1;
    }
    *link_at(links, links->count++) = (gb_frame_link){frame, caller};
    return 0;
}

/* Let each frame have its caller again. */
static void
restore_links(gb_frame_links *links)
{
    while (links->count > 0) {
        gb_frame_link *link = link_at(links, --links->count);
        link->frame->previous = link->caller;
    }
}

/* See cut_frames. */
static GB_NOINLINE int
cut_entry_frames(gb_cpython_stack *s)
{
    _PyInterpreterFrame *frame = NULL, *caller = s->step.frame;
    _PyInterpreterFrame *loop = s->loop.frame, *bottom = NULL;

    assert(s->cuts.count == 0);
    s->top = NULL;
    while (caller != loop) {
        _PyInterpreterFrame *direct = caller;
        while (caller != loop && caller != NULL
               && gb_internal_is_entry_frame(caller)) {
            bottom = caller;
            caller = caller->previous;
        }
        if (caller == NULL && loop != NULL) {
            PyErr_SetString(PyExc_RuntimeError,
                            "await_() can't wait here: the Python frames of "
                            "this step don't lead to the event loop's");
            restore_links(&s->cuts);
            return -1;
        }
        if (frame != NULL && caller != direct) {
            if (add_link(&s->cuts, frame, direct) < 0) {
                restore_links(&s->cuts);
                return -1;
            }
            frame->previous = caller;
        }
        if (caller != loop) {
            frame = bottom = caller;
            caller = frame->previous;
            if (s->top == NULL) {
                s->top = frame;
            }
        }
    }
    if (frame != NULL) {
        frame->previous = NULL;
    }
    s->bottom = bottom;
    return 0;
}

/* Cut the frames from s->step.frame on from those of the loop, and take the
 * entry frames out of their chain: both are on C stacks.  0, or -1 with an
 * exception, and nothing has changed. */
static inline int
cut_frames(gb_cpython_stack *s)
{
    _PyInterpreterFrame *frame = s->step.frame, *last = NULL;
    while (frame != s->loop.frame) {
        if (frame == NULL || gb_internal_is_entry_frame(frame)) {
            return cut_entry_frames(s);
        }
        last = frame;
        frame = frame->previous;
    }
    s->top = last == NULL ? NULL : s->step.frame;
    s->bottom = last;
    if (last != NULL) {
        last->previous = NULL;
    }
    return 0;
}

/* The Contexts that were entered on the running stack, on top of `context`:
 * take them from the thread. */
static void
cut_contexts(PyThreadState *ts, gb_cpython_stack *s, PyObject *context)
{
    PyContext *innermost = (PyContext *)ts->context, *outermost = innermost;
    s->context = NULL;
    /* A Context that nobody has entered is the thread's own. */
    if ((PyObject *)innermost == context || innermost == NULL
        || !innermost->ctx_entered) {
        return;
    }
    while (outermost->ctx_prev != NULL
           && (PyObject *)outermost->ctx_prev != context
           && outermost->ctx_prev->ctx_entered) {
        outermost = outermost->ctx_prev;
    }
    s->context = (PyObject *)innermost;
    s->context_bottom = (PyObject *)outermost;
    /* Each owns the one below it. */
    ts->context = (PyObject *)outermost->ctx_prev;
    ts->context_ver++;
    outermost->ctx_prev = NULL;
}

static void
join_contexts(PyThreadState *ts, gb_cpython_stack *s)
{
    if (s->context != NULL) {
        ((PyContext *)s->context_bottom)->ctx_prev = (PyContext *)ts->context;
        ts->context = s->context;
        ts->context_ver++;
        s->context = NULL;
    }
}

GB_HOT int
gb_cpython_leave_stack(PyThreadState *ts, gb_cpython_stack *s,
                       PyObject *context)
{
    gb_cpython_save_fields(ts, &s->step);
    if (cut_frames(s) < 0) {
        return -1;
    }
    cut_contexts(ts, s, context);
    s->base.previous_item = NULL; /* nothing of the loop's is touched */
#if GB_CPYTHON_HAS_CFRAME
#if PY_VERSION_HEX < 0x030c0000
    s->cframe.use_tracing = ts->cframe->use_tracing;
#endif
    ts->cframe = &s->cframe; /* ours will be gone when it is looked at next */
#endif
    return 0;
}

/* While a part of the loop's stack is moved aside, let the loop's frames have
 * no links into it. */
static GB_NOINLINE int
bridge_frames(gb_cpython_stack *s, char *low, char *high,
              _PyInterpreterFrame **innermost)
{
    _PyInterpreterFrame *frame = NULL, *caller = *innermost;

    while (caller != NULL) {
        _PyInterpreterFrame *direct = caller;
        while (caller != NULL && (char *)caller >= low
               && (char *)caller < high) {
            assert(gb_internal_is_entry_frame(caller));
            caller = caller->previous;
        }
        if (caller != direct) {
            if (frame == NULL) {
                *innermost = caller;
            }
            else if (add_link(&s->bridges, frame, direct) < 0) {
                restore_links(&s->bridges);
                return -1;
            }
            else {
                frame->previous = caller;
            }
        }
        frame = caller;
        caller = frame == NULL ? NULL : frame->previous;
    }
    return 0;
}

GB_HOT int
gb_cpython_prepare_stack(PyThreadState *ts, gb_cpython_stack *s,
                         char *hidden_low, char *hidden_high)
{
    gb_stack_fields now;
    _PyInterpreterFrame *loop;

    gb_cpython_save_fields(ts, &now);
    loop = now.frame;
    if (hidden_low < hidden_high
        && bridge_frames(s, hidden_low, hidden_high, &loop) < 0) {
        return -1;
    }
    gb_cpython_rebase_fields(&s->step, &s->loop, &now);
    if (s->step.frame == s->loop.frame) { /* no frames of its own */
        s->step.frame = loop;
    }
    s->loop = now;
    s->base.previous_item = now.exc_info;
#if GB_CPYTHON_HAS_CFRAME
    s->cframe = *now.cframe;
    s->cframe.current_frame = loop;
    ts->cframe = &s->cframe;
#else
    ts->current_frame = loop; /* where gb_cpython_reenter_stack finds it */
#endif
    return 0;
}

void
gb_cpython_deallocate_put_off(PyThreadState *ts, PyObject *put_off)
{
    PyObject *kept = GB_CPYTHON_PUT_OFF(ts);
    GB_CPYTHON_PUT_OFF(ts) = put_off;
#if GB_CPYTHON_HAS_TRASH_NESTING
#if PY_VERSION_HEX < 0x030c0000
    int *nesting = &ts->trash_delete_nesting;
#else
    int *nesting = &ts->trash.delete_nesting;
#endif
    int before = *nesting;
    *nesting = 1; /* as if the outermost deallocation ended now */
    _PyTrash_end(ts);
    *nesting = before;
#else
    _PyTrash_thread_destroy_chain(ts);
#endif
    GB_CPYTHON_PUT_OFF(ts) = kept; /* there is nothing now */
}

void
gb_cpython_unbridge_frames(gb_cpython_stack *s)
{
    restore_links(&s->bridges);
}

GB_HOT void
gb_cpython_reenter_stack(PyThreadState *ts, gb_cpython_stack *s)
{
#if GB_CPYTHON_HAS_CFRAME
    _PyInterpreterFrame *loop = s->cframe.current_frame;
#else
    _PyInterpreterFrame *loop = ts->current_frame;
#endif
    restore_links(&s->cuts);
    if (s->bottom != NULL) {
        s->bottom->previous = loop;
        s->bottom = NULL;
    }
    gb_cpython_restore_fields(ts, &s->step);
    join_contexts(ts, s);
}

int
gb_cpython_visit_stack(gb_cpython_stack *s, gb_calls calls, visitproc visit,
                       void *arg)
{
    Py_VISIT(s->context);
    Py_VISIT(s->base.exc_value);
    return gb_frames_visit(s->top, calls, visit, arg);
}

PyObject *
gb_cpython_suspended_frame(PyThreadState *ts, gb_cpython_stack *s)
{
    _PyInterpreterFrame *frames;
    PyObject *object;

    if (s->top == NULL) {
        Py_RETURN_NONE;
    }
    frames = gb_cpython_hide_frames(ts);
    gb_cpython_show_frames(ts, s->top);
    object = (PyObject *)PyThreadState_GetFrame(ts);
    gb_cpython_show_frames(ts, frames);
    if (object == NULL && !PyErr_Occurred()) {
        Py_RETURN_NONE;
    }
    return object;
}

#if PY_VERSION_HEX < 0x030f0000
enum {
    SPARE_CHUNKS = 4,
    /* Of the interpreter's own; nothing else has the arena allocator give out
     * this size. */
    SPARE_CHUNK_SIZE = 16384,
};

/* Interpreters with a GIL each may use the arena allocator at the same time.
 */
static _Atomic(void *) spare_chunks[SPARE_CHUNKS];
static PyObjectArenaAllocator arenas; /* the one in whose place ours is */

static void *
alloc_arena(void *Py_UNUSED(context), size_t size)
{
    if (size == SPARE_CHUNK_SIZE) {
        for (int i = 0; i < SPARE_CHUNKS; i++) {
            void *chunk = atomic_exchange(&spare_chunks[i], NULL);
            if (chunk != NULL) {
                return chunk;
            }
        }
    }
    return arenas.alloc(arenas.ctx, size);
}

static void
free_arena(void *Py_UNUSED(context), void *arena, size_t size)
{
    if (size == SPARE_CHUNK_SIZE) {
        for (int i = 0; i < SPARE_CHUNKS; i++) {
            void *none = NULL;
            if (atomic_compare_exchange_strong(&spare_chunks[i], &none,
                                               arena)) {
                return;
            }
        }
    }
    arenas.free(arenas.ctx, arena, size);
}

void
gb_cpython_keep_spare_chunks(void)
{
    PyObjectArenaAllocator spare = {NULL, alloc_arena, free_arena};
    if (arenas.alloc == NULL) { /* not yet done in this process */
        PyObject_GetArenaAllocator(&arenas);
        PyObject_SetArenaAllocator(&spare);
    }
}
#else
void
gb_cpython_keep_spare_chunks(void)
{
    /* It does so itself. */
}
#endif

void
gb_cpython_clear_stack(gb_cpython_stack *s)
{
    PyMem_Free(s->cuts.more);
    PyMem_Free(s->bridges.more);
    s->cuts.more = s->bridges.more = NULL;
    s->cuts.count = s->bridges.count = 0;
}

#if PY_VERSION_HEX >= 0x030d0000
/* The interpreter tells profilers where its fields are. */
static bool
offsets_are_ours(void)
{
    const _Py_DebugOffsets *offsets = &_PyRuntime.debug_offsets;
#if PY_VERSION_HEX >= 0x030f0000
    if (offsets->thread_state.base_frame
        != offsetof(PyThreadState, base_frame)) {
        return false;
    }
#endif
#if PY_VERSION_HEX >= 0x030e0000
    if (offsets->interpreter_frame.stackpointer
        != offsetof(_PyInterpreterFrame, stackpointer)) {
        return false;
    }
#endif
    return offsets->free_threaded == 0
           /* 3.14 has grown at the end, behind what we use. */
           && offsets->thread_state.size
                  > offsetof(PyThreadState, dict_global_version)
           && offsets->thread_state.current_frame
                  == offsetof(PyThreadState, current_frame)
           && offsets->thread_state.datastack_chunk
                  == offsetof(PyThreadState, datastack_chunk)
           && offsets->interpreter_frame.size == sizeof(_PyInterpreterFrame)
           && offsets->interpreter_frame.previous
                  == offsetof(_PyInterpreterFrame, previous)
           && offsets->interpreter_frame.owner
                  == offsetof(_PyInterpreterFrame, owner)
           && offsets->interpreter_frame.localsplus
                  == offsetof(_PyInterpreterFrame, localsplus);
}
#else
static bool
offsets_are_ours(void)
{
    return true; /* nothing tells; 3.11 and 3.12 don't change any more */
}
#endif

/* What must hold in any thread that runs Python code. */
static bool
fields_make_sense(PyThreadState *ts)
{
    gb_stack_fields f;
    PyFrameObject *frame = PyThreadState_GetFrame(ts);
    PyObject *context = PyContext_CopyCurrent(); /* makes sure there is one */
    bool result;

    if (context == NULL) {
        PyErr_Clear();
        Py_XDECREF(frame);
        return false;
    }
    gb_cpython_save_fields(ts, &f);
    result = ts->interp == PyInterpreterState_Get()
             && ts->id == PyThreadState_GetID(ts) && f.python_depth >= 0
             && f.python_depth < Py_GetRecursionLimit() && f.tracing >= 0
             && f.tracing < 100 && f.recursion_headroom >= 0
             && f.recursion_headroom < 100 && f.exc_info != NULL
             && (frame == NULL)
                    == (f.frame == NULL || gb_internal_is_entry_frame(f.frame))
             && ts->context != NULL
             && Py_IS_TYPE(ts->context, &PyContext_Type);
    if (result && frame != NULL) {
        result = f.frame->frame_obj == frame
                 && (char *)f.datastack_top > (char *)f.datastack_chunk
                 && (char *)f.datastack_limit
                        == (char *)f.datastack_chunk + f.datastack_chunk->size
                 && f.datastack_top < f.datastack_limit;
    }
    Py_DECREF(context);
    Py_XDECREF(frame);
    return result;
}

const char *
gb_cpython_why_not_cut_stacks(void)
{
    if ((Py_Version >> 16) != (PY_VERSION_HEX >> 16)) {
        return "this CPython is not of the version that greenback was "
               "compiled for";
    }
    if (!offsets_are_ours() || !fields_make_sense(PyThreadState_Get())) {
        return "this CPython lays out its thread state in a way that "
               "greenback doesn't know";
    }
    return NULL;
}

#else /* !GB_CPYTHON_STACKS_KNOWN */

const char *
gb_cpython_why_not_cut_stacks(void)
{
#ifdef Py_GIL_DISABLED
    return "this CPython is free-threaded";
#else
    return "this CPython is newer than this greenback";
#endif
}

#endif

/* ------------------------------------------------------------- interpreter */

bool
gb_cpython_gc_running(PyThreadState *ts)
{
    return ts->interp->gc.collecting != 0;
}

PyObject *
gb_cpython_innermost_context(PyThreadState *ts, PyObject *a, PyObject *b)
{
    PyContext *context = (PyContext *)ts->context;
    while (context != NULL && (PyObject *)context != a
           && (PyObject *)context != b) {
        context = context->ctx_entered ? context->ctx_prev : NULL;
    }
    return (PyObject *)context;
}

PyThreadState *
gb_cpython_find_thread(uint64_t id)
{
    PyThreadState *ts
        = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (ts != NULL && ts->id != id) {
        ts = PyThreadState_Next(ts);
    }
    return ts;
}

bool
gb_cpython_is_main_thread(PyThreadState *ts)
{
    return ts->thread_id == _PyRuntime.main_thread;
}

PyObject *
gb_cpython_thread_dict(PyThreadState *ts)
{
    if (ts->dict == NULL) {
        ts->dict = PyDict_New();
    }
    return ts->dict;
}

bool
gb_cpython_is_main_interpreter(void)
{
    return PyInterpreterState_Get() == PyInterpreterState_Main();
}
