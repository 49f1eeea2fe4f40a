/* The only file that includes CPython's internal headers. */
#define Py_BUILD_CORE_MODULE 1
#include "gb_cpython.h"

#include "internal/pycore_context.h"
#include "internal/pycore_frame.h"
#include "internal/pycore_interp.h"
#if PY_VERSION_HEX >= 0x030e0000
#include "internal/pycore_interp_structs.h"
#include "internal/pycore_interpframe_structs.h"
#endif

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

bool
gb_cpython_is_main_interpreter(void)
{
    return PyInterpreterState_Get() == PyInterpreterState_Main();
}
