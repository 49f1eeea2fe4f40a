/* Tools in C that follow calls by a stack of their own: profilers, coverage.
 * A step that suspends leaves calls open, and the loop goes on beneath; such
 * tools are told what they would be of native coroutines, which yield and are
 * resumed one by one. */
#ifndef GB_TOOLS_H
#define GB_TOOLS_H

#include "gb_cpython.h"

typedef enum {
    GB_TOOLS_LEAVE, /* all that is open is being left, innermost first */
    GB_TOOLS_ENTER, /* and is being entered again, outermost first */
} gb_tools_event;

/* Where the interpreter keeps which tools of sys.monitoring want to be told of
 * yields, one bit each.  Valid as long as the interpreter. */
const unsigned char *gb_tools_monitors(void);

/* Whether there may be a tool to be told; `monitors` is from the above. */
static inline bool
gb_tools_watch(PyThreadState *ts, const unsigned char *monitors)
{
    return ts->c_profilefunc != NULL || ts->c_tracefunc != NULL
           || *monitors != 0;
}

/* Debug builds of CPython 3.12 and newer end the process if code runs that was
 * instrumented for other tools than there are now.  Where these change, what
 * runs on all threads is instrumented anew, but not what waits on a stack that
 * has been put aside. */
#if defined(Py_DEBUG) && PY_VERSION_HEX >= 0x030c0000 \
    && PY_VERSION_HEX < 0x03100000
#define GB_TOOLS_CHECKED 1
#else
#define GB_TOOLS_CHECKED 0
#endif

#if GB_TOOLS_CHECKED
/* For what code has to be instrumented now. */
uintptr_t gb_tools_version(PyThreadState *ts);

/* A stack goes on that was left at `version`: instrument it if need be.  Tools
 * are told once more of what they had enough of.  Keeps a pending exception.
 * Runs Python code. */
void gb_tools_catch_up(PyThreadState *ts, uintptr_t version);
#else
#define gb_tools_version(ts) 0
#define gb_tools_catch_up(ts, version) ((void)(version))
#endif

/* Tell them, of the frames down to `end` (exclusive; NULL for all).  These are
 * told: profile functions, of sys.setprofile() and in C; trace functions in C,
 * but not of sys.settrace(), among which are debuggers that would stop at such
 * events; the profiler of sys.monitoring.  What goes wrong is reported as
 * unraisable.  Runs Python code. */
void gb_tools_tell(PyThreadState *ts, const struct _PyInterpreterFrame *end,
                   gb_tools_event event);

#endif
