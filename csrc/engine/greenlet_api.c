/* The only file that includes greenlet.h. */
#include "engine/greenlet_api.h"

#include <greenlet.h>

#include "gb_cpython.h"

/* Made once, kept. */
static PyObject *no_arguments; /* for PyGreenlet_Switch */
static PyObject *settrace, *gettrace;

gb_greenlet_sight gb_greenlet_seen = {false, 0};

/* The first number of the version of `module`; -1 with an exception. */
static long
major_version(PyObject *module)
{
    PyObject *version = PyObject_GetAttrString(module, "__version__");
    const char *digits = version == NULL ? NULL : PyUnicode_AsUTF8(version);
    long major = digits == NULL ? -1 : strtol(digits, NULL, 10);
    Py_XDECREF(version);
    return major;
}

/* Use the API of `module`.  0, or -1 with an exception. */
static int
use_module(PyObject *module)
{
    /* Older ones have taken the result of a switch before they call the trace
     * function (2), or lack functions of the API (1). */
    long major = major_version(module);
    if (major < 3) {
        if (major >= 0) {
            PyErr_SetString(PyExc_ImportError,
                            "greenlet is older than 3.0; upgrade it");
        }
        return -1;
    }
    if (settrace == NULL) {
        settrace = PyObject_GetAttrString(module, "settrace");
    }
    if (settrace != NULL && gettrace == NULL) {
        gettrace = PyObject_GetAttrString(module, "gettrace");
    }
    if (settrace == NULL || gettrace == NULL) {
        return -1;
    }
    if (no_arguments == NULL) {
        no_arguments = PyTuple_New(0);
        if (no_arguments == NULL) {
            return -1;
        }
    }
    PyGreenlet_Import(); /* tells nothing: look at the pointer */
    if (_PyGreenlet_API == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ImportError,
                            "greenlet is installed without its C API; "
                            "reinstall it");
        }
        return -1;
    }
    gb_greenlet_seen.loaded = true;
    return 0;
}

int
gb_greenlet_import(void)
{
    int rc;
    PyObject *module = PyImport_ImportModule("greenlet");
    if (module == NULL) {
        return -1;
    }
    rc = use_module(module);
    Py_DECREF(module);
    return rc;
}

bool
gb_greenlet_look_for(PyObject *modules)
{
    PyObject *module, *pending = PyErr_GetRaisedException();
    gb_greenlet_seen.modules = PyDict_GET_SIZE(modules);
    module = PyDict_GetItemString(modules, "greenlet"); /* borrowed */
    if (module != NULL && module != Py_None) {
        Py_INCREF(module);
        if (use_module(module) < 0) {
            /* Only if it is half imported it is worth while to look again. */
            if (!PyErr_ExceptionMatches(PyExc_ImportError)) {
                gb_greenlet_seen.modules = 0;
            }
            PyErr_Clear();
        }
        Py_DECREF(module);
    }
    PyErr_SetRaisedException(pending);
    return gb_greenlet_seen.loaded;
}

bool
gb_greenlet_is_main(PyObject *greenlet)
{
    return PyGreenlet_MAIN((PyGreenlet *)greenlet);
}

bool
gb_greenlet_is_active(PyObject *greenlet)
{
    return PyGreenlet_ACTIVE((PyGreenlet *)greenlet);
}

PyObject *
gb_greenlet_current(void)
{
    PyObject *current = (PyObject *)PyGreenlet_GetCurrent();
    if (current == NULL && !PyErr_Occurred()) {
        PyErr_SetString(PyExc_RuntimeError,
                        "greenlets can't be used any more: the interpreter "
                        "is shutting down");
    }
    return current;
}

PyObject *
gb_greenlet_main_of(PyObject *greenlet)
{
    PyGreenlet *g = (PyGreenlet *)Py_NewRef(greenlet), *parent;
    while ((parent = PyGreenlet_GetParent(g)) != NULL) {
        Py_SETREF(g, parent);
    }
    return (PyObject *)g;
}

int
gb_greenlet_set_parent(PyObject *greenlet, PyObject *parent)
{
    return PyGreenlet_SetParent((PyGreenlet *)greenlet, (PyGreenlet *)parent);
}

PyObject *
gb_greenlet_new(PyObject *run, PyObject *parent)
{
    return (PyObject *)PyGreenlet_New(run, (PyGreenlet *)parent);
}

PyObject *
gb_greenlet_switch(PyObject *greenlet)
{
    return gb_greenlet_switch_with(greenlet, no_arguments);
}

PyObject *
gb_greenlet_switch_with(PyObject *greenlet, PyObject *arguments)
{
    uintptr_t locks = gb_cpython_unlock();
    PyObject *switched_back
        = PyGreenlet_Switch((PyGreenlet *)greenlet, arguments, NULL);
    gb_cpython_lock_again(locks);
    return switched_back;
}

int
gb_greenlet_set_tracer(PyObject *tracer, PyObject **old)
{
    PyObject *before
        = PyObject_CallOneArg(settrace, tracer == NULL ? Py_None : tracer);
    if (before == NULL) {
        return -1;
    }
    if (old != NULL) {
        *old = before == Py_None ? NULL : Py_NewRef(before);
    }
    Py_DECREF(before);
    return 0;
}

PyObject *
gb_greenlet_tracer(void)
{
    PyObject *tracer = PyObject_CallNoArgs(gettrace);
    if (tracer == Py_None) {
        Py_CLEAR(tracer);
    }
    return tracer;
}
