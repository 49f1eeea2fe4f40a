/* What differs between CPython versions in the public C API, and compiler
 * attributes.  Nothing here needs CPython's internal headers: those are known
 * to gb_cpython.c alone. */
#ifndef GB_COMPAT_H
#define GB_COMPAT_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>
#include <structmember.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vendor/pythoncapi_compat.h"

#if PY_VERSION_HEX < 0x030b0000
#error "greenback needs CPython 3.11 or newer"
#endif

#if defined(__GNUC__) || defined(__clang__)
#define GB_LIKELY(x) __builtin_expect(!!(x), 1)
#define GB_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define GB_NOINLINE __attribute__((noinline))
/* On the way of every step: the linker puts these side by side, for a loop
 * leaves little of the instruction cache to us. */
#define GB_HOT __attribute__((hot))
/* The greenlet engine only compares stack addresses, it never follows them. */
#define GB_STACK_ADDRESS() ((char *)__builtin_frame_address(0))
#elif defined(_MSC_VER)
#include <intrin.h>
#define GB_LIKELY(x) (x)
#define GB_UNLIKELY(x) (x)
#define GB_NOINLINE __declspec(noinline)
#define GB_HOT
#define GB_STACK_ADDRESS() ((char *)_AddressOfReturnAddress())
#else
#error "greenback needs GCC, Clang or MSVC"
#endif

#if defined(_MSC_VER)
#define GB_THREAD_LOCAL __declspec(thread)
#else
#define GB_THREAD_LOCAL _Thread_local
#endif
/* With glibc: read at a fixed offset, without a call.  Only for little data;
 * musl refuses to load such a module later than at the start. */
#if defined(__ELF__) && defined(__GLIBC__)
#define GB_TLS_MODEL __attribute__((tls_model("initial-exec")))
#else
#define GB_TLS_MODEL
#endif

/* Whether the garbage collector calls finalizers in the order in which the
 * objects were made. */
#if defined(Py_GIL_DISABLED)
#define GB_COLLECTOR_KEEPS_ORDER 0
#else
#define GB_COLLECTOR_KEEPS_ORDER 1
#endif

/* Exceptions as single objects came with 3.12.  Remove with 3.11. */
#if PY_VERSION_HEX < 0x030c0000
static inline PyObject *
PyErr_GetRaisedException(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (value != NULL && traceback != NULL) {
        PyException_SetTraceback(value, traceback);
    }
    Py_XDECREF(traceback);
    Py_XDECREF(type);
    return value;
}

static inline void
PyErr_SetRaisedException(PyObject *exc) /* steals */
{
    if (exc == NULL) {
        PyErr_Clear();
        return;
    }
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(exc)), exc,
                  PyException_GetTraceback(exc));
}
#endif

/* throw(type, value, traceback) of generators is deprecated since 3.12, and
 * says so there.  Remove when 3.11 is no longer supported. */
#if PY_VERSION_HEX >= 0x030c0000
#define GB_THROW_SIGNATURE_DEPRECATED 1
#else
#define GB_THROW_SIGNATURE_DEPRECATED 0
#endif

/* The co_flags of what a generator runs. */
static inline int
gb_compat_generator_flags(PyObject *generator)
{
#if PY_VERSION_HEX >= 0x030c0000
    PyCodeObject *code = PyGen_GetCode((PyGenObject *)generator);
    int flags = code->co_flags;
    Py_DECREF(code);
    return flags;
#else
    return ((PyGenObject *)generator)->gi_code->co_flags;
#endif
}

/* Coroutines tell their state in one attribute since 3.15. */
#if PY_VERSION_HEX >= 0x030f0000
#define GB_HAVE_CR_STATE 1
#else
#define GB_HAVE_CR_STATE 0
#endif

/* The words in which `await` refuses an object of `type`, and what its
 * __await__() has returned. */
static inline void
gb_compat_refuse_awaitable(PyTypeObject *type)
{
#if PY_VERSION_HEX >= 0x030e0000
    const char *format = "'%.100s' object can't be awaited";
#else
    const char *format = "object %.100s can't be used in 'await' expression";
#endif
    PyErr_Format(PyExc_TypeError, format, type->tp_name);
}

static inline void
gb_compat_refuse_await_result(PyTypeObject *type, PyTypeObject *result_type,
                              bool is_coroutine)
{
#if PY_VERSION_HEX >= 0x030f0000
    (void)is_coroutine;
    PyErr_Format(PyExc_TypeError,
                 "%N.__await__() must return an iterator, not %N", type,
                 result_type);
#else
    (void)type;
    if (is_coroutine) {
        PyErr_SetString(PyExc_TypeError, "__await__() returned a coroutine");
        return;
    }
    PyErr_Format(PyExc_TypeError,
                 "__await__() returned non-iterator of type '%.100s'",
                 result_type->tp_name);
#endif
}

/* Cast for METH_FASTCALL functions; the one function-pointer cast we allow. */
#define GB_CFUNCTION(f) ((PyCFunction)(void (*)(void))(f))

#endif
