/* The only file that includes greenlet.h. */
#include "engine/greenlet_api.h"

#include <greenlet.h>

static PyObject *no_arguments; /* for PyGreenlet_Switch; made once, kept */

int
gb_greenlet_import(void)
{
    PyObject *module = PyImport_ImportModule("greenlet");
    if (module == NULL) {
        return -1;
    }
    Py_DECREF(module);
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
    return 0;
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
    return PyGreenlet_Switch((PyGreenlet *)greenlet, no_arguments, NULL);
}
