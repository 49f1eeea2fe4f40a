#include "gb_drive.h"

#include "gb_cpython.h"

/* Whether `object` is a generator that types.coroutine() has blessed. */
static inline bool
is_generator_coroutine(PyObject *object)
{
    return PyGen_CheckExact(object)
           && (gb_compat_generator_flags(object) & CO_ITERABLE_COROUTINE) != 0;
}

/* 1 if `object` is a collections.abc.Coroutine, 0 if not, -1 with an
 * exception.  A look at `send` spares most awaitables the slow question. */
static int
is_abstract_coroutine(gb_state *st, PyObject *object)
{
    PyObject *send;
    int found = PyObject_GetOptionalAttr(object, st->str_send, &send);
    if (found <= 0) {
        return found;
    }
    Py_DECREF(send);
    return PyObject_IsInstance(object, st->abc_coroutine);
}

/* `await` refuses a coroutine that something else awaits already. */
static int
refuse_awaited_coroutine(gb_state *st, PyObject *coroutine)
{
    PyObject *awaiting;
    if (GB_LIKELY(gb_cpython_coroutine_stage(coroutine)
                  == GB_COROUTINE_CREATED)) {
        return 0;
    }
    awaiting = PyObject_GetAttr(coroutine, st->str_cr_await);
    if (awaiting == NULL) {
        return -1;
    }
    Py_DECREF(awaiting);
    if (awaiting != Py_None) {
        PyErr_SetString(PyExc_RuntimeError,
                        "coroutine is being awaited already");
        return -1;
    }
    return 0;
}

GB_HOT PyObject *
gb_drive_iterator(gb_state *st, PyObject *awaitable)
{
    PyTypeObject *type = Py_TYPE(awaitable);
    PyObject *iterator;
    int is_coroutine;

    if (PyCoro_CheckExact(awaitable)) {
        return refuse_awaited_coroutine(st, awaitable) < 0
                   ? NULL
                   : Py_NewRef(awaitable);
    }
    if (is_generator_coroutine(awaitable)) {
        return Py_NewRef(awaitable);
    }
    is_coroutine = is_abstract_coroutine(st, awaitable);
    if (is_coroutine != 0) {
        return is_coroutine < 0 ? NULL : Py_NewRef(awaitable);
    }
    if (type->tp_as_async == NULL || type->tp_as_async->am_await == NULL) {
        gb_compat_refuse_awaitable(type);
        return NULL;
    }
    iterator = type->tp_as_async->am_await(awaitable);
    if (iterator == NULL) {
        return NULL;
    }
    is_coroutine
        = PyCoro_CheckExact(iterator) || is_generator_coroutine(iterator);
    if (is_coroutine || !PyIter_Check(iterator)) {
        gb_compat_refuse_await_result(type, Py_TYPE(iterator), is_coroutine);
        Py_CLEAR(iterator);
    }
    return iterator;
}

PySendResult
gb_drive_sort_result(PyObject *returned, PyObject **result)
{
    PyObject *exc, *value;

    *result = returned;
    if (returned != NULL) {
        return PYGEN_NEXT;
    }
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        return PYGEN_ERROR;
    }
    exc = PyErr_GetRaisedException();
    value = ((PyStopIterationObject *)exc)->value;
    *result = Py_NewRef(value == NULL ? Py_None : value);
    Py_DECREF(exc);
    return PYGEN_RETURN;
}

PyObject *
gb_drive_to_method_result(PySendResult status, PyObject *result)
{
    if (status != PYGEN_RETURN) {
        return result; /* NULL for PYGEN_ERROR */
    }
    if (result == Py_None) {
        PyErr_SetNone(PyExc_StopIteration);
    }
    else {
        /* Made here, since a tuple or an exception as the value would be
         * taken apart if the interpreter made the instance. */
        PyObject *exc = PyObject_CallOneArg(PyExc_StopIteration, result);
        if (exc != NULL) {
            PyErr_SetRaisedException(exc);
        }
    }
    Py_DECREF(result);
    return NULL;
}

PySendResult
gb_drive_throw(gb_state *st, PyObject *iterator, PyObject *exc,
               PyObject **result)
{
    PyObject *throw, *returned;

    *result = NULL;
    if (PyObject_GetOptionalAttr(iterator, st->str_throw, &throw) < 0) {
        return PYGEN_ERROR;
    }
    if (throw == NULL) {
        PyErr_SetRaisedException(Py_NewRef(exc));
        return PYGEN_ERROR;
    }
    returned = PyObject_CallOneArg(throw, exc);
    Py_DECREF(throw);
    return gb_drive_sort_result(returned, result);
}

int
gb_drive_close(gb_state *st, PyObject *iterator)
{
    PyObject *close, *returned;

    if (PyObject_GetOptionalAttr(iterator, st->str_close, &close) < 0) {
        return -1;
    }
    if (close == NULL) {
        return 0;
    }
    returned = PyObject_CallNoArgs(close);
    Py_DECREF(close);
    Py_XDECREF(returned);
    return returned == NULL ? -1 : 0;
}

void
gb_drive_discard(gb_state *st, PyObject *awaitable)
{
    PyObject *pending = PyErr_GetRaisedException();
    int is_coroutine = PyCoro_CheckExact(awaitable);
    if (!is_coroutine) {
        is_coroutine = is_abstract_coroutine(st, awaitable);
    }
    if (is_coroutine < 0
        || (is_coroutine > 0 && gb_drive_close(st, awaitable) < 0)) {
        PyErr_WriteUnraisable(awaitable);
    }
    PyErr_SetRaisedException(pending);
}

PyObject *
gb_drive_exception_from_args(PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *type, *value, *traceback, *exc = NULL;

    if (nargs < 1 || nargs > 3) {
        PyErr_Format(PyExc_TypeError,
                     nargs < 1 ? "throw expected at least 1 argument, got %zd"
                               : "throw expected at most 3 arguments, got %zd",
                     nargs);
        return NULL;
    }
    if (nargs > 1 && GB_THROW_SIGNATURE_DEPRECATED
        && PyErr_WarnEx(PyExc_DeprecationWarning,
                        "the (type, exc, tb) signature of throw() is "
                        "deprecated, use the single-arg signature instead.",
                        1)
               < 0) {
        return NULL;
    }
    type = args[0];
    value = nargs > 1 && args[1] != Py_None ? args[1] : NULL;
    traceback = nargs > 2 && args[2] != Py_None ? args[2] : NULL;
    if (traceback != NULL && !PyTraceBack_Check(traceback)) {
        PyErr_SetString(PyExc_TypeError,
                        "throw() third argument must be a traceback object");
        return NULL;
    }
    if (PyExceptionInstance_Check(type)) {
        if (value != NULL) {
            PyErr_SetString(
                PyExc_TypeError,
                "instance exception may not have a separate value");
            return NULL;
        }
        exc = Py_NewRef(type);
    }
    else if (PyExceptionClass_Check(type)) {
        if (value != NULL && PyExceptionInstance_Check(value)) {
            exc = Py_NewRef(value);
        }
        else if (value != NULL && PyTuple_Check(value)) {
            exc = PyObject_CallObject(type, value);
        }
        else {
            exc = value == NULL ? PyObject_CallNoArgs(type)
                                : PyObject_CallOneArg(type, value);
        }
        if (exc != NULL && !PyExceptionInstance_Check(exc)) {
            PyErr_Format(PyExc_TypeError,
                         "calling %R should have returned an instance of "
                         "BaseException, not %.200s",
                         type, Py_TYPE(exc)->tp_name);
            Py_CLEAR(exc);
        }
    }
    else {
        PyErr_Format(PyExc_TypeError,
                     "exceptions must be classes or instances deriving from "
                     "BaseException, not %.200s",
                     Py_TYPE(type)->tp_name);
    }
    if (exc != NULL && traceback != NULL
        && PyException_SetTraceback(exc, traceback) < 0) {
        Py_CLEAR(exc);
    }
    return exc;
}
