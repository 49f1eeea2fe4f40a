/* Shows the fields of the thread state that a suspension must keep or put
 * back, so that the driver can compare them.  Also calls with big C frames. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

typedef struct {
    const char *name;
    long long (*read)(PyThreadState *ts);
} field;

#define FIELD(label, expression)                     \
    static long long read_##label(PyThreadState *ts) \
    {                                                \
        return (long long)(expression);              \
    }

FIELD(tracing, ts->tracing)
FIELD(exc_info, (intptr_t)ts->exc_info)
/* Nothing is handled: NULL or None. */
FIELD(exc_value, ts->exc_info->exc_value == Py_None
                     ? 0
                     : (intptr_t)ts->exc_info->exc_value)
FIELD(exc_previous, (intptr_t)ts->exc_info->previous_item)
FIELD(gilstate_counter, ts->gilstate_counter)
FIELD(origin_depth, ts->coroutine_origin_tracking_depth)
FIELD(firstiter, (intptr_t)ts->async_gen_firstiter)
FIELD(context, (intptr_t)ts->context)
FIELD(datastack_chunk, (intptr_t)ts->datastack_chunk)
FIELD(datastack_top, (intptr_t)ts->datastack_top)
FIELD(datastack_limit, (intptr_t)ts->datastack_limit)
#if PY_VERSION_HEX < 0x030C0000
FIELD(py_recursion, ts->recursion_remaining)
FIELD(recursion_limit, ts->recursion_limit)
FIELD(recursion_headroom, ts->recursion_headroom)
FIELD(what_event, ts->tracing_what)
FIELD(raised, (intptr_t)ts->curexc_type)
FIELD(trash_nesting, ts->trash_delete_nesting)
FIELD(trash_later, (intptr_t)ts->trash_delete_later)
#else
FIELD(py_recursion, ts->py_recursion_remaining)
FIELD(recursion_limit, ts->py_recursion_limit)
FIELD(recursion_headroom, ts->recursion_headroom)
FIELD(what_event, ts->what_event)
FIELD(raised, (intptr_t)ts->current_exception)
#if PY_VERSION_HEX < 0x030D0000
FIELD(trash_nesting, ts->trash.delete_nesting)
FIELD(trash_later, (intptr_t)ts->trash.delete_later)
#else
FIELD(trash_nesting, 0)
FIELD(trash_later, (intptr_t)ts->delete_later)
#endif
#endif
#if PY_VERSION_HEX >= 0x030C0000 && PY_VERSION_HEX < 0x030E0000
FIELD(c_recursion, ts->c_recursion_remaining)
#else
FIELD(c_recursion, 0)
#endif
#if PY_VERSION_HEX < 0x030D0000
FIELD(cframe, (intptr_t)ts->cframe)
FIELD(current_frame, (intptr_t)ts->cframe->current_frame)
FIELD(critical_section, 0)
#else
FIELD(cframe, 0)
FIELD(current_frame, (intptr_t)ts->current_frame)
FIELD(critical_section, ts->critical_section)
#endif
#if PY_VERSION_HEX < 0x030D0000
FIELD(executor, 0)
#elif PY_VERSION_HEX < 0x030E0000
FIELD(executor, (intptr_t)ts->previous_executor)
#else
FIELD(executor, (intptr_t)ts->current_executor)
#endif

#define ENTRY(label) {#label, read_##label},
static const field fields[] = {
    ENTRY(tracing) ENTRY(exc_info) ENTRY(exc_value) ENTRY(exc_previous)
        ENTRY(gilstate_counter) ENTRY(origin_depth) ENTRY(firstiter)
            ENTRY(context) ENTRY(datastack_chunk) ENTRY(datastack_top)
                ENTRY(datastack_limit) ENTRY(py_recursion)
                    ENTRY(recursion_limit) ENTRY(recursion_headroom)
                        ENTRY(what_event) ENTRY(raised) ENTRY(trash_nesting)
                            ENTRY(trash_later) ENTRY(c_recursion) ENTRY(cframe)
                                ENTRY(current_frame) ENTRY(critical_section)
                                    ENTRY(executor)};

static PyObject *
snapshot(PyObject *module, PyObject *unused)
{
    PyThreadState *ts = PyThreadState_Get();
    long long values[Py_ARRAY_LENGTH(fields)];
    PyObject *result;
    /* All are read before anything is allocated. */
    for (size_t i = 0; i < Py_ARRAY_LENGTH(fields); i++) {
        values[i] = fields[i].read(ts);
    }
    result = PyTuple_New(Py_ARRAY_LENGTH(fields));
    for (size_t i = 0; result != NULL && i < Py_ARRAY_LENGTH(fields); i++) {
        PyObject *value = PyLong_FromLongLong(values[i]);
        if (value == NULL) {
            Py_CLEAR(result);
            break;
        }
        PyTuple_SET_ITEM(result, (Py_ssize_t)i, value);
    }
    return result;
}

/* How many exceptions are being handled: the length of the exc_info chain. */
static PyObject *
handled_exceptions(PyObject *module, PyObject *unused)
{
    PyObject *names = PyList_New(0);
    _PyErr_StackItem *item = PyThreadState_Get()->exc_info;
    for (; names != NULL && item != NULL; item = item->previous_item) {
        PyObject *value = item->exc_value;
        if (value != NULL && value != Py_None
            && PyList_Append(names, value) < 0) {
            Py_CLEAR(names);
        }
    }
    return names;
}

static PyObject *
stack_address(PyObject *module, PyObject *unused)
{
    char here;
    return PyLong_FromVoidPtr(&here);
}

/* call_with_big_frame(function, kilobytes): the frame holds a pattern, and a
 * list head that points at itself, as event loops written in C have them. */
enum { PIECE = 1024 };

typedef struct piece {
    struct piece *head;
    unsigned char pattern[PIECE - sizeof(struct piece *)];
} piece;

static PyObject *
call_in_pieces(PyObject *function, long pieces)
{
    piece here;
    volatile piece *check = &here;
    PyObject *result;
    here.head = &here;
    memset(here.pattern, (int)(0x40 + pieces % 64), sizeof(here.pattern));
    if (pieces > 1) {
        result = call_in_pieces(function, pieces - 1);
    }
    else {
        result = PyObject_CallNoArgs(function);
    }
    for (size_t i = 0; i < sizeof(here.pattern); i++) {
        if (check->pattern[i] != 0x40 + pieces % 64) {
            Py_FatalError("a live C frame was overwritten");
        }
    }
    if (check->head != &here) {
        Py_FatalError("a pointer in a live C frame was overwritten");
    }
    return result;
}

static PyObject *
call_with_big_frame(PyObject *module, PyObject *args)
{
    PyObject *function;
    long kilobytes;
    if (!PyArg_ParseTuple(args, "Ol", &function, &kilobytes)) {
        return NULL;
    }
    return call_in_pieces(function, kilobytes);
}

/* Fields that are counted up and down around calls in the interpreter, and
 * fields that are set.  NULL if this version has no such field. */
#if PY_VERSION_HEX < 0x030C0000
#define TRASH_NESTING(ts) (&(ts)->trash_delete_nesting)
#define WHAT_EVENT(ts) (&(ts)->tracing_what)
#elif PY_VERSION_HEX < 0x030D0000
#define TRASH_NESTING(ts) (&(ts)->trash.delete_nesting)
#define WHAT_EVENT(ts) (&(ts)->what_event)
#else
#define TRASH_NESTING(ts) NULL
#define WHAT_EVENT(ts) (&(ts)->what_event)
#endif

static int *
counter(PyThreadState *ts, const char *name)
{
    if (strcmp(name, "tracing") == 0) {
        return &ts->tracing;
    }
    if (strcmp(name, "recursion_headroom") == 0) {
        return &ts->recursion_headroom;
    }
    if (strcmp(name, "what_event") == 0) {
        return WHAT_EVENT(ts);
    }
    return strcmp(name, "trash_nesting") == 0 ? TRASH_NESTING(ts) : NULL;
}

/* add(name, number): whether there is such a counter. */
static PyObject *
add(PyObject *module, PyObject *args)
{
    const char *name;
    int number, *place;
    if (!PyArg_ParseTuple(args, "si", &name, &number)) {
        return NULL;
    }
    place = counter(PyThreadState_Get(), name);
    if (place != NULL) {
        *place += number;
    }
    return PyBool_FromLong(place != NULL);
}

/* call_in_executor(function, argument): with an executor that is None, which
 * must be the one after the call, too.  Nothing but a call before 3.14. */
static PyObject *
call_in_executor(PyObject *module, PyObject *args)
{
    PyObject *function, *argument, *result;
    if (!PyArg_ParseTuple(args, "OO", &function, &argument)) {
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030E0000
    PyThreadState *ts = PyThreadState_Get();
    PyObject *before = ts->current_executor, *after;
    ts->current_executor = Py_None;
    result = PyObject_CallOneArg(function, argument);
    after = ts->current_executor;
    ts->current_executor = before;
    if (after != Py_None) {
        Py_CLEAR(result);
        PyErr_SetString(PyExc_AssertionError, "another executor");
    }
#else
    result = PyObject_CallOneArg(function, argument);
#endif
    return result;
}

/* call_with_put_off(make, function, argument): call function(argument) when
 * the deallocation of what make() returns (an object that only we know) has
 * been put off, as if the stack were too deep for it. */
static PyObject *
call_with_put_off(PyObject *module, PyObject *args)
{
    PyThreadState *ts = PyThreadState_Get();
    PyObject *make, *function, *argument, *dying;
    if (!PyArg_ParseTuple(args, "OOO", &make, &function, &argument)) {
        return NULL;
    }
    dying = PyObject_CallNoArgs(make);
    if (dying == NULL) {
        return NULL;
    }
    Py_SET_REFCNT(dying, 0);
#if PY_VERSION_HEX >= 0x030D0000
#if PY_VERSION_HEX < 0x030E0000
    PyObject_GC_UnTrack(dying);
#endif
    _PyTrash_thread_deposit_object(ts, dying);
#else
    int *nesting = counter(ts, "trash_nesting"), before = *nesting;
    PyObject_GC_UnTrack(dying);
    *nesting = 1000;
    (void)_PyTrash_begin(ts, dying);
    *nesting = before;
#endif
    return PyObject_CallOneArg(function, argument);
}

static PyMethodDef methods[] = {
    {"call_with_put_off", call_with_put_off, METH_VARARGS, NULL},
    {"add", add, METH_VARARGS, NULL},
    {"call_in_executor", call_in_executor, METH_VARARGS, NULL},
    {"snapshot", snapshot, METH_NOARGS, NULL},
    {"handled_exceptions", handled_exceptions, METH_NOARGS, NULL},
    {"stack_address", stack_address, METH_NOARGS, NULL},
    {"call_with_big_frame", call_with_big_frame, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "torture_thread_state",
    NULL,
    -1,
    methods,
    NULL,
    NULL,
    NULL,
    NULL,
};

PyMODINIT_FUNC
PyInit_torture_thread_state(void)
{
    PyObject *names, *module = PyModule_Create(&definition);
    if (module == NULL) {
        return NULL;
    }
    names = PyTuple_New(Py_ARRAY_LENGTH(fields));
    for (size_t i = 0; names != NULL && i < Py_ARRAY_LENGTH(fields); i++) {
        PyTuple_SET_ITEM(names, (Py_ssize_t)i,
                         PyUnicode_FromString(fields[i].name));
    }
    if (names == NULL || PyModule_AddObjectRef(module, "FIELDS", names) < 0) {
        Py_XDECREF(names);
        Py_DECREF(module);
        return NULL;
    }
    Py_DECREF(names);
    return module;
}
