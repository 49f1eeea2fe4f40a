/* The only file that includes CPython's internal headers; for the files that
 * know CPython's insides. */
#ifndef GB_INTERNAL_H
#define GB_INTERNAL_H

#define Py_BUILD_CORE_MODULE 1
#include "gb_compat.h"

#include "internal/pycore_code.h"
#include "internal/pycore_context.h"
#ifdef Py_GIL_DISABLED
#include "internal/pycore_critical_section.h"
#endif
#include "internal/pycore_frame.h"
#include "internal/pycore_interp.h"
#include "internal/pycore_gc.h"
#include "internal/pycore_runtime.h"
#if PY_VERSION_HEX >= 0x030c0000
#include "internal/pycore_instruments.h"
#endif
#if PY_VERSION_HEX >= 0x030e0000
#include "internal/pycore_interp_structs.h"
#include "internal/pycore_interpframe_structs.h"
#include "internal/pycore_stackref.h"
#endif

#if PY_VERSION_HEX < 0x030c0000
/* An owner that the interpreter doesn't know: see gb_cpython_on_base_frame. */
enum { GB_FRAME_ON_C_STACK = FRAME_OWNED_BY_FRAME_OBJECT + 1 };
#endif

/* Whether `frame` is not one of Python code but the mark, in a frame of the
 * interpreter's loop on the C stack, where that was entered from C. */
static inline bool
gb_internal_is_entry_frame(_PyInterpreterFrame *frame)
{
#if PY_VERSION_HEX >= 0x030e0000
    return frame->owner >= FRAME_OWNED_BY_INTERPRETER;
#elif PY_VERSION_HEX >= 0x030c0000
    return frame->owner == FRAME_OWNED_BY_CSTACK;
#else
    return frame->owner == GB_FRAME_ON_C_STACK; /* 3.11 has only ours */
#endif
}

/* The code of `frame`, which is one of Python code.  Borrowed. */
static inline PyCodeObject *
gb_internal_code_of(_PyInterpreterFrame *frame)
{
#if PY_VERSION_HEX >= 0x030e0000
    return (PyCodeObject *)PyStackRef_AsPyObjectBorrow(frame->f_executable);
#elif PY_VERSION_HEX >= 0x030d0000
    return (PyCodeObject *)frame->f_executable;
#else
    return frame->f_code;
#endif
}

/* The code unit of the instruction that `frame` is executing. */
static inline Py_ssize_t
gb_internal_instruction_of(_PyInterpreterFrame *frame)
{
    PyCodeObject *code = gb_internal_code_of(frame);
#if PY_VERSION_HEX >= 0x030d0000
    return frame->instr_ptr - _PyCode_CODE(code);
#else
    return frame->prev_instr - _PyCode_CODE(code);
#endif
}

#endif
