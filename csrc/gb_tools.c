#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for dladdr */
#endif
#include "gb_internal.h" /* first */

#include <opcode.h>

#include "gb_bytecode.h"
#include "gb_tools.h"

#ifndef _WIN32
#include <dlfcn.h>
#endif

/* A Python frame with the call that is under way in it. */
typedef struct {
    PyFrameObject *frame; /* owned */
    PyObject *function;   /* owned: the C function that it has called, or a
                             descriptor of a method in C; NULL for others */
    PyObject *self;       /* owned: for such a descriptor, or NULL */
    int offset;           /* of its instruction, in bytes */
} open_call;

typedef struct {
    open_call *calls; /* innermost first */
    Py_ssize_t count;
    Py_ssize_t capacity;
} call_list;

#if GB_TOOLS_CHECKED

uintptr_t
gb_tools_version(PyThreadState *ts)
{
#if PY_VERSION_HEX >= 0x030d0000
    return ts->interp->ceval.instrumentation_version;
#else
    return (uintptr_t)ts->interp->monitoring_version;
#endif
}

void
gb_tools_catch_up(PyThreadState *ts, uintptr_t version)
{
    PyObject *pending, *monitoring, *done = NULL;
    if (gb_tools_version(ts) == version) {
        return;
    }
    pending = PyErr_GetRaisedException();
    monitoring = PySys_GetObject("monitoring"); /* borrowed */
    if (monitoring != NULL) {
        done = PyObject_CallMethod(monitoring, "restart_events", NULL);
    }
    if (done == NULL) {
        PyErr_WriteUnraisable(NULL);
    }
    Py_XDECREF(done);
    PyErr_SetRaisedException(pending);
}

#endif

/* ----------------------------------------------------------- what is called */

#if PY_VERSION_HEX < 0x03100000 \
    && (GB_BYTECODE_NEEDED || !defined(Py_GIL_DISABLED))

#if PY_VERSION_HEX >= 0x030e0000

/* What the instruction with `units` calls, which `frame` is executing: its
 * first two operands, new references, either may be NULL. */
static void
find_operands(_PyInterpreterFrame *frame, const unsigned char *units,
              PyObject *found[2])
{
    PyCodeObject *code = gb_internal_code_of(frame);
    const _PyStackRef *first;
    if (frame->stackpointer == NULL) {
        return;
    }
    first = frame->stackpointer - units[1] - 2 - (units[0] == CALL_KW ? 1 : 0);
    for (int i = 0; i < 2; i++) {
        if (first >= frame->localsplus + code->co_nlocalsplus
            && !PyStackRef_IsNull(first[i])
            && !PyStackRef_IsTaggedInt(first[i])) {
            found[i] = Py_NewRef(PyStackRef_AsPyObjectBorrow(first[i]));
        }
    }
}

#else

/* Whether `dict` has `object`, which may be dangling, as the value of one of
 * `names`.  Runs Python code if the dict has odd keys. */
static bool
has_value(PyObject *dict, PyObject *names, PyObject *object)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (PyDict_GetItemWithError(dict, name) == object) {
            return true;
        }
        PyErr_Clear();
    }
    return false;
}

/* Whether `object`, which may be dangling, is something that the code of
 * `frame` knows by a name, or a constant: then it is alive.  May run Python
 * code. */
static bool
is_named(_PyInterpreterFrame *frame, PyObject *object)
{
    PyCodeObject *code = gb_internal_code_of(frame);
    PyObject *scopes[] = {frame->f_globals, frame->f_builtins};
    for (int i = 0; i < code->co_nlocalsplus; i++) {
        PyObject *value = frame->localsplus[i];
        if (value != NULL && PyCell_Check(value)) {
            value = PyCell_GET(value);
        }
        if (value == object) {
            return true;
        }
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(code->co_consts); i++) {
        if (PyTuple_GET_ITEM(code->co_consts, i) == object) {
            return true;
        }
    }
    for (size_t k = 0; k < Py_ARRAY_LENGTH(scopes); k++) {
        if (!PyDict_Check(scopes[k])) {
            continue;
        }
        if (has_value(scopes[k], code->co_names, object)) {
            return true;
        }
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(code->co_names); i++) {
            PyObject *value = PyDict_GetItemWithError(
                scopes[k], PyTuple_GET_ITEM(code->co_names, i));
            bool found;
            PyErr_Clear();
            if (value == NULL || !PyModule_Check(value)) {
                continue;
            }
            Py_INCREF(value);
            found = has_value(PyModule_GetDict(value), code->co_names, object);
            Py_DECREF(value);
            if (found) {
                return true;
            }
        }
    }
    return false;
}

/* Whether `object`, which may be dangling, is what one of `names` means for
 * the type of `self`.  May run Python code. */
static bool
is_attribute_of(PyObject *self, PyObject *names, PyObject *object)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        if (_PyType_Lookup(Py_TYPE(self), PyTuple_GET_ITEM(names, i))
            == object) {
            return true;
        }
    }
    return false;
}

/* The same.  Up to 3.13 the operands of a call stay where they were when they
 * have been given up, and what waits may be a finalizer which that has run; so
 * only those are found that others own, too.  May run Python code. */
static void
find_operands(_PyInterpreterFrame *frame, const unsigned char *units,
              PyObject *found[2])
{
    PyCodeObject *code = gb_internal_code_of(frame);
    gb_values values
        = gb_bytecode_values(code, gb_internal_instruction_of(frame));
    PyObject *const *first
        = frame->localsplus + code->co_nlocalsplus + values.below;
    PyObject *callable = first[0], *self = first[1];
    (void)units;
#if PY_VERSION_HEX < 0x030d0000
    if (callable == NULL) { /* not a method */
        callable = self;
        self = NULL;
    }
#endif
    if (callable == NULL) {
        return;
    }
    if (is_named(frame, callable)) {
        found[0] = Py_NewRef(callable);
    }
    else if (self != NULL && is_named(frame, self)) {
        found[1] = Py_NewRef(self);
        if (is_attribute_of(self, code->co_names, callable)) {
            found[0] = Py_NewRef(callable);
        }
    }
}

#endif

/* Fill in call->function of a frame that is waiting for C code.  0, or -1 with
 * an exception.  May run Python code. */
static int
find_function(_PyInterpreterFrame *frame, open_call *call)
{
    Py_ssize_t index = gb_internal_instruction_of(frame);
    const unsigned char *units;
    PyObject *operands[2] = {NULL, NULL};
    PyObject *bytes = PyCode_GetCode(gb_internal_code_of(frame));

    if (bytes == NULL) {
        return -1;
    }
    units = (const unsigned char *)PyBytes_AS_STRING(bytes) + 2 * index;
    /* More than 255 arguments are not worth the trouble. */
    if ((units[0] == CALL
#if PY_VERSION_HEX >= 0x030d0000
         || units[0] == CALL_KW
#endif
         )
        && (index == 0 || units[-2] != EXTENDED_ARG)) {
        find_operands(frame, units, operands);
    }
    if (operands[0] != NULL
        && (PyCFunction_Check(operands[0])
            || (Py_IS_TYPE(operands[0], &PyMethodDescr_Type)
                && operands[1] != NULL))) {
        call->function = operands[0];
        call->self = operands[1];
    }
    else {
        Py_XDECREF(operands[0]);
        Py_XDECREF(operands[1]);
    }
    Py_DECREF(bytes);
    return 0;
}

/* ---------------------------------------------------------------- open calls */

static void
free_calls(call_list *list)
{
    for (Py_ssize_t i = 0; i < list->count; i++) {
        Py_DECREF(list->calls[i].frame);
        Py_XDECREF(list->calls[i].function);
        Py_XDECREF(list->calls[i].self);
    }
    PyMem_Free(list->calls);
}

/* 0, or -1 with an exception. */
static int
add_call(call_list *list, PyFrameObject *frame, int offset)
{
    if (list->count == list->capacity) {
        Py_ssize_t capacity = list->capacity == 0 ? 16 : 2 * list->capacity;
        open_call *calls
            = PyMem_Realloc(list->calls, (size_t)capacity * sizeof(open_call));
        if (calls == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        list->calls = calls;
        list->capacity = capacity;
    }
    list->calls[list->count++] = (open_call){
        (PyFrameObject *)Py_NewRef((PyObject *)frame), NULL, NULL, offset};
    return 0;
}

/* 0, or -1 with an exception. */
static int
list_calls(PyThreadState *ts, const _PyInterpreterFrame *end, call_list *list)
{
    PyFrameObject *object = PyThreadState_GetFrame(ts), *back;
#if PY_VERSION_HEX >= 0x030d0000
    _PyInterpreterFrame *frame = ts->current_frame;
#else
    _PyInterpreterFrame *frame = ts->cframe->current_frame;
#endif
    bool in_c = true; /* the frame has called C code */
    int rc = 0;

    for (; rc == 0 && object != NULL && frame != NULL && frame != end;
         frame = frame->previous) {
        if (gb_internal_is_entry_frame(frame)) {
            in_c = true;
            continue;
        }
        if (object->f_frame != frame) { /* not yet complete */
            continue;
        }
        rc = add_call(list, object,
                      (int)(2 * gb_internal_instruction_of(frame)));
        if (rc == 0 && in_c) {
            rc = find_function(frame, &list->calls[list->count - 1]);
        }
#if PY_VERSION_HEX >= 0x030c0000
        in_c = false;
#else
        in_c = frame->is_entry;
#endif
        back = PyFrame_GetBack(object);
        Py_SETREF(object, back);
    }
    Py_XDECREF(object);
    return rc;
}

/* --------------------------------------------------------------------- tools */

/* Whether `function` is the interpreter's own, which calls the function that
 * sys.settrace() was given. */
static bool
is_of_interpreter(Py_tracefunc function)
{
#ifdef _WIN32
    (void)function;
    return true; /* not known */
#else
    Dl_info its, ours;
    return dladdr((void *)(uintptr_t)function, &its) == 0
           || dladdr((void *)(uintptr_t)PyEval_SetTrace, &ours) == 0
           || its.dli_fbase == ours.dli_fbase;
#endif
}

static void
tell_tool(Py_tracefunc function, PyObject *tool, PyFrameObject *frame,
          int what, PyObject *arg)
{
    if (function(tool, frame, what, arg) < 0) {
        PyErr_WriteUnraisable(tool);
    }
}

static void
tell_of_function(Py_tracefunc function, PyObject *tool, const open_call *call,
                 int what)
{
    PyObject *called = call->function;
    if (called == NULL) {
        return;
    }
    called = PyCFunction_Check(called)
                 ? Py_NewRef(called)
                 : Py_TYPE(called)->tp_descr_get(
                       called, call->self, (PyObject *)Py_TYPE(call->self));
    if (called == NULL) {
        PyErr_WriteUnraisable(call->function);
        return;
    }
    tell_tool(function, tool, call->frame, what, called);
    Py_DECREF(called);
}

/* What tools in C want to hear of a frame and of the C function that it has
 * called: `functions` tells whether they hear of those.  The tool may switch
 * itself off meanwhile. */
static void
tell_hook(Py_tracefunc function, PyObject *tool, const open_call *call,
          gb_tools_event event, bool functions)
{
    Py_XINCREF(tool);
    if (event == GB_TOOLS_LEAVE) {
        if (functions) {
            tell_of_function(function, tool, call, PyTrace_C_RETURN);
        }
        tell_tool(function, tool, call->frame, PyTrace_RETURN, Py_None);
    }
    else {
        tell_tool(function, tool, call->frame, PyTrace_CALL, Py_None);
        if (functions) {
            tell_of_function(function, tool, call, PyTrace_C_CALL);
        }
    }
    Py_XDECREF(tool);
}

#if PY_VERSION_HEX >= 0x030c0000

static void
call_profiler(PyThreadState *ts, int event, const open_call *call,
              PyObject *third, PyObject *fourth)
{
    PyObject *callback
        = ts->interp->monitoring_callables[PY_MONITORING_PROFILER_ID][event];
    PyObject *code, *offset, *result = NULL;
    if (callback == NULL) {
        return;
    }
    Py_INCREF(callback);
    code = (PyObject *)PyFrame_GetCode(call->frame);
    offset = PyLong_FromLong(call->offset);
    if (offset != NULL) {
        PyObject *args[] = {NULL, code, offset, third, fourth};
        size_t count = fourth != NULL ? 4 : third != NULL ? 3 : 2;
        result = PyObject_Vectorcall(
            callback, args + 1, count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    if (result == NULL) {
        PyErr_WriteUnraisable(callback);
    }
    Py_XDECREF(result);
    Py_XDECREF(offset);
    Py_DECREF(code);
    Py_DECREF(callback);
}

/* What stands for an argument that there is not.  Borrowed; NULL if it can't
 * be had. */
static PyObject *
missing_argument(void)
{
    PyObject *monitoring = PySys_GetObject("monitoring"); /* borrowed */
    PyObject *missing = monitoring == NULL
                            ? NULL
                            : PyObject_GetAttrString(monitoring, "MISSING");
    if (missing == NULL) {
        PyErr_Clear();
    }
    Py_XDECREF(missing); /* immortal */
    return missing;
}

static void
tell_profiler(PyThreadState *ts, const open_call *call, gb_tools_event event)
{
    PyObject *self = call->self;
    if (call->function != NULL && self == NULL) {
        self = missing_argument();
        if (self == NULL) {
            return;
        }
    }
    if (event == GB_TOOLS_LEAVE) {
        if (call->function != NULL) {
            call_profiler(ts, PY_MONITORING_EVENT_C_RETURN, call,
                          call->function, self);
        }
        call_profiler(ts, PY_MONITORING_EVENT_PY_YIELD, call, Py_None, NULL);
    }
    else {
        call_profiler(ts, PY_MONITORING_EVENT_PY_RESUME, call, NULL, NULL);
        if (call->function != NULL) {
            call_profiler(ts, PY_MONITORING_EVENT_CALL, call, call->function,
                          self);
        }
    }
}

static bool
has_profiler(PyThreadState *ts)
{
    return (ts->interp->monitors.tools[PY_MONITORING_EVENT_PY_YIELD]
            & (1 << PY_MONITORING_PROFILER_ID))
           != 0;
}

const unsigned char *
gb_tools_monitors(void)
{
    PyInterpreterState *interp = PyInterpreterState_Get();
    return &interp->monitors.tools[PY_MONITORING_EVENT_PY_YIELD];
}

#else /* 3.11: no sys.monitoring */

static void
tell_profiler(PyThreadState *Py_UNUSED(ts), const open_call *Py_UNUSED(call),
              gb_tools_event Py_UNUSED(event))
{
}

static bool
has_profiler(PyThreadState *Py_UNUSED(ts))
{
    return false;
}

const unsigned char *
gb_tools_monitors(void)
{
    static const unsigned char none = 0;
    return &none;
}

#endif

void
gb_tools_tell(PyThreadState *ts, const _PyInterpreterFrame *end,
              gb_tools_event event)
{
    Py_tracefunc trace = ts->c_tracefunc;
    call_list list = {NULL, 0, 0};

    if (trace != NULL && is_of_interpreter(trace)) {
        trace = NULL;
    }
    if (ts->tracing > 0
        || (trace == NULL && ts->c_profilefunc == NULL && !has_profiler(ts))) {
        return;
    }
    PyThreadState_EnterTracing(ts);
    if (list_calls(ts, end, &list) < 0) {
        PyErr_WriteUnraisable(NULL);
    }
    for (Py_ssize_t i = 0; i < list.count; i++) {
        const open_call *call
            = &list.calls[event == GB_TOOLS_LEAVE ? i : list.count - 1 - i];
        /* Asked each time: a tool may switch itself off. */
        if (trace != NULL && ts->c_tracefunc == trace) {
            tell_hook(trace, ts->c_traceobj, call, event, false);
        }
        if (ts->c_profilefunc != NULL) {
            tell_hook(ts->c_profilefunc, ts->c_profileobj, call, event, true);
        }
        if (has_profiler(ts)) {
            tell_profiler(ts, call, event);
        }
    }
    PyThreadState_LeaveTracing(ts);
    free_calls(&list);
}

#else /* too new, also for a free-threaded build */

const unsigned char *
gb_tools_monitors(void)
{
    static const unsigned char none = 0;
    return &none;
}

void
gb_tools_tell(PyThreadState *Py_UNUSED(ts),
              const _PyInterpreterFrame *Py_UNUSED(end),
              gb_tools_event Py_UNUSED(event))
{
}

#endif
