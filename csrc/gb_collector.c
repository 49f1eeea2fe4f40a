#include "gb_collector.h"

/* Between "start" and "stop" of a collection on this thread. */
static GB_THREAD_LOCAL bool collecting GB_TLS_MODEL = false;

static void (*at_end)(gb_state *) = NULL;

bool
gb_collector_runs_here(gb_state *st, PyThreadState *ts)
{
    int watched;
    if (GB_LIKELY(!gb_cpython_gc_running(ts))) {
        return false;
    }
    /* The interpreter's last collections don't call our callback, and no other
     * thread runs any more. */
    if (collecting || Py_IsFinalizing()) {
        return true;
    }
    /* Another thread collects and has let us run, unless somebody has taken
     * our callback away, so that we don't know. */
    watched = PySequence_Contains(st->gc_callbacks, st->note_collection);
    if (watched < 0) {
        PyErr_Clear();
    }
    return watched <= 0;
}

/* The callback: note_collection(phase, info) */
static PyObject *
note_collection(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs > 0 && PyUnicode_Check(args[0])) {
        collecting = PyUnicode_EqualToUTF8(args[0], "start");
        if (!collecting) {
            at_end(gb_state_of_module(module));
        }
    }
    Py_RETURN_NONE;
}

static PyMethodDef note_collection_def = {
    "note_collection",
    GB_CFUNCTION(note_collection),
    METH_FASTCALL,
    PyDoc_STR("For gc.callbacks: greenback must know on which thread the "
              "garbage collector runs."),
};

int
gb_collector_watch(PyObject *module, gb_state *st, void (*ended)(gb_state *))
{
    PyObject *gc = PyImport_ImportModule("gc");
    at_end = ended;
    if (gc == NULL) {
        return -1;
    }
    st->gc_callbacks = PyObject_GetAttrString(gc, "callbacks");
    Py_DECREF(gc);
    st->note_collection
        = PyCFunction_NewEx(&note_collection_def, module, NULL);
    if (st->gc_callbacks == NULL || st->note_collection == NULL) {
        return -1;
    }
    return PyList_Append(st->gc_callbacks, st->note_collection);
}
