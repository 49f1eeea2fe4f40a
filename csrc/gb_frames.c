#include "gb_internal.h" /* first */

#include "gb_bytecode.h"
#include "gb_frames.h"

#if GB_FRAMES_KNOWN

/* The bit in the garbage collector's header of an object which says that its
 * finalizer has been called. */
static inline uintptr_t *
finalized_word(PyObject *object)
{
    return &_Py_AS_GC(object)->_gc_prev;
}

static void
set_finalized(PyObject *object, bool finalized)
{
    if (finalized) {
        *finalized_word(object) |= (uintptr_t)_PyGC_PREV_MASK_FINALIZED;
    }
    else {
        *finalized_word(object) &= ~(uintptr_t)_PyGC_PREV_MASK_FINALIZED;
    }
}

/* The generator or coroutine that `frame` belongs to, borrowed; NULL if it is
 * a function's, or if its type is one of ours, which knows what to do. */
static PyObject *
native_generator_of(_PyInterpreterFrame *frame)
{
    PyObject *generator
        = (PyObject *)((char *)frame - offsetof(PyGenObject, gi_iframe));
    if (frame->owner != FRAME_OWNED_BY_GENERATOR
        || (!PyGen_CheckExact(generator) && !PyCoro_CheckExact(generator)
            && !PyAsyncGen_CheckExact(generator))) {
        return NULL;
    }
    return generator;
}

#if PY_VERSION_HEX >= 0x030e0000

/* References in frames are tagged; those that own nothing are left out. */
static int
visit_stackref(_PyStackRef ref, visitproc visit, void *arg)
{
    if (!PyStackRef_IsNull(ref) && !PyStackRef_IsTaggedInt(ref)
        && PyStackRef_RefcountOnObject(ref)) {
        Py_VISIT(PyStackRef_AsPyObjectBorrow(ref));
    }
    return 0;
}

/* The stack pointer of a frame that calls something is always kept. */
static int
visit_frame(_PyInterpreterFrame *frame, gb_calls Py_UNUSED(calls),
            _PyInterpreterFrame *Py_UNUSED(callee), visitproc visit, void *arg)
{
    int rc = 0;
    if (frame->owner == FRAME_OWNED_BY_GENERATOR
        || frame->stackpointer == NULL) {
        return 0; /* its generator visits all */
    }
    Py_VISIT(frame->f_locals);
    Py_VISIT((PyObject *)frame->frame_obj);
    rc = visit_stackref(frame->f_executable, visit, arg);
    if (rc == 0) {
        rc = visit_stackref(frame->f_funcobj, visit, arg);
    }
    for (_PyStackRef *ref = frame->localsplus;
         rc == 0 && ref < frame->stackpointer; ref++) {
        rc = visit_stackref(*ref, visit, arg);
    }
    return rc;
}

#else

/* The one of `calls` that is outside of `call`, or NULL. */
static const gb_call *
next_call(gb_calls calls, const gb_call *call)
{
    return call->outer == NULL
               ? NULL
               : (const gb_call *)((const char *)call->outer + calls.moved);
}

/* Where the value stack of `frame` ends if it makes one of `calls`; NULL if it
 * makes none.  A call from Python code has its callable and its arguments on
 * the frame's own value stack; C code could have lent it others. */
static PyObject *const *
end_of_call(_PyInterpreterFrame *frame, PyCodeObject *code, gb_calls calls)
{
    PyObject *const *values = frame->localsplus + code->co_nlocalsplus;
    for (const gb_call *call = calls.innermost; call != NULL;
         call = next_call(calls, call)) {
        PyObject *const *args = call->args, *const *end = args + call->count;
        if (args < values + 2 || end > values + code->co_stacksize) {
            continue;
        }
#if PY_VERSION_HEX >= 0x030d0000
        if (args[-1] == NULL) { /* where `self` of a method would be */
            args--;
        }
#endif
        return args[-1] == call->callable ? end : NULL;
    }
    return NULL;
}

/* What the frame that has called `frame` (NULL: none) has among its operands
 * for it: the generator, the object whose attribute is asked for, ...; NULL if
 * there is nothing. */
static PyObject *
operand_for(_PyInterpreterFrame *frame)
{
    PyObject *generator = frame == NULL ? NULL : native_generator_of(frame);
    if (generator != NULL || frame == NULL
        || frame->owner == FRAME_OWNED_BY_GENERATOR
        || gb_internal_code_of(frame)->co_argcount == 0) {
        return generator;
    }
    return frame->localsplus[0];
}

static inline PyObject *
function_of(_PyInterpreterFrame *frame)
{
#if PY_VERSION_HEX >= 0x030c0000
    return frame->f_funcobj;
#else
    return (PyObject *)frame->f_func;
#endif
}

static bool
is_among(PyObject *object, PyObject *const *values, PyObject *const *end)
{
    for (; values < end; values++) {
        if (*values == object) {
            return true;
        }
    }
    return false;
}

/* What is known to be owned of a frame's locals and values. */
typedef struct {
    PyObject *const *end; /* of those without a gap */
    PyObject *operand;    /* one more, borrowed, or NULL */
} known_values;

/* For `frame`, which has called `callee` (NULL: C code). */
static known_values
find_values(_PyInterpreterFrame *frame, gb_calls calls,
            _PyInterpreterFrame *callee)
{
    PyCodeObject *code = gb_internal_code_of(frame);
    PyObject *const *values = frame->localsplus + code->co_nlocalsplus;
    PyObject *const *end;
    PyObject *operand;
    gb_values at_instruction;

    if (frame->stacktop >= 0) { /* it calls a Python function */
        return (known_values){frame->localsplus + frame->stacktop, NULL};
    }
    end = end_of_call(frame, code, calls);
    if (end != NULL) {
        return (known_values){end, NULL};
    }
    at_instruction
        = gb_bytecode_values(code, gb_internal_instruction_of(frame));
    end = values + at_instruction.below;
    /* If the callee were the finalizer of the first operand, given up, that
     * would have a reference more, so that it is never visited too often. */
    operand = operand_for(callee);
    if (operand != NULL
        && (at_instruction.first == GB_OPERAND_TAKEN || *end != operand
            || is_among(operand, values, end))) {
        operand = NULL;
    }
    /* An exception that is raised in a frame puts it into its traceback.  Then
     * the callee may be the finalizer of one of the values that the exception
     * has given up, each after those above it; or is what the instruction has
     * called, as with a generator that is its first operand. */
    if (frame->frame_obj != NULL
        && (operand == NULL || native_generator_of(callee) == NULL)) {
        return (known_values){values + at_instruction.safe, operand};
    }
    if (operand == NULL && at_instruction.first == GB_OPERAND_LEFT) {
        operand = *end;
    }
    return (known_values){end, operand};
}

static int
visit_frame(_PyInterpreterFrame *frame, gb_calls calls,
            _PyInterpreterFrame *callee, visitproc visit, void *arg)
{
    known_values known = find_values(frame, calls, callee);

    if (frame->owner == FRAME_OWNED_BY_GENERATOR) {
        if (frame->stacktop >= 0) {
            return 0; /* its generator visits all */
        }
    }
    else {
        Py_VISIT((PyObject *)gb_internal_code_of(frame));
        Py_VISIT(function_of(frame));
        Py_VISIT(frame->f_locals);
        Py_VISIT((PyObject *)frame->frame_obj);
    }
    for (PyObject *const *value = frame->localsplus; value < known.end;
         value++) {
        Py_VISIT(*value);
    }
    Py_VISIT(known.operand);
    return 0;
}

#endif

int
gb_frames_visit(_PyInterpreterFrame *frame, gb_calls calls, visitproc visit,
                void *arg)
{
    _PyInterpreterFrame *callee = NULL;
    /* Before 3.11.2 a frame was still in the chain while what it owned was
     * given up. */
    if (Py_Version < 0x030b0200) {
        return 0;
    }
    for (; frame != NULL; frame = frame->previous) {
        PyObject *generator;
        int rc;
        if (gb_internal_is_entry_frame(frame)) {
            continue;
        }
        generator = native_generator_of(frame);
        if (generator != NULL) {
            set_finalized(generator, true);
        }
        rc = visit_frame(frame, calls, callee, visit, arg);
        if (rc != 0) {
            return rc;
        }
        callee = frame;
    }
    return 0;
}

void
gb_frames_let_finalize(_PyInterpreterFrame *frame)
{
    for (; frame != NULL; frame = frame->previous) {
        PyObject *generator = gb_internal_is_entry_frame(frame)
                                  ? NULL
                                  : native_generator_of(frame);
        if (generator != NULL) {
            set_finalized(generator, false);
        }
    }
}

void
gb_frames_forget_finalized(PyObject *object)
{
    set_finalized(object, false);
}

#else /* free-threaded, or too new */

int
gb_frames_visit(_PyInterpreterFrame *Py_UNUSED(frame),
                gb_calls Py_UNUSED(calls), visitproc Py_UNUSED(visit),
                void *Py_UNUSED(arg))
{
    return 0;
}

void
gb_frames_let_finalize(_PyInterpreterFrame *Py_UNUSED(frame))
{
}

void
gb_frames_forget_finalized(PyObject *Py_UNUSED(object))
{
}

#endif

void
gb_frames_init(void)
{
    gb_bytecode_init();
}

PyObject *
gb_frames_values_below(PyCodeObject *code, Py_ssize_t index)
{
#if GB_BYTECODE_NEEDED
    return PyLong_FromLong(gb_bytecode_values(code, index).below);
#else
    (void)code;
    (void)index;
    Py_RETURN_NONE;
#endif
}
