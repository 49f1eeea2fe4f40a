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

/* Tell them, of the frames down to `end` (exclusive; NULL for all).  These are
 * told: profile functions, of sys.setprofile() and in C; trace functions in C,
 * but not of sys.settrace(), among which are debuggers that would stop at such
 * events; the profiler of sys.monitoring.  What goes wrong is reported as
 * unraisable.  Runs Python code. */
void gb_tools_tell(PyThreadState *ts, const struct _PyInterpreterFrame *end,
                   gb_tools_event event);

#endif
