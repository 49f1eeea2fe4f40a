/* Suspended tasks that nobody refers to any more, found where their stack
 * can't be unwound: in another thread, below the garbage collector's frames.
 * They are kept until it can. */
#ifndef GB_ORPHANS_H
#define GB_ORPHANS_H

#include "gb_portal.h"

/* To be called by the finalizer of what owns the portal's coroutine: unwind
 * what waits in await_, or close the coroutine if it has been started.  If
 * that can't be done now, the owner is kept alive: until it can, or for ever,
 * with a ResourceWarning.  Returns false in that case.  Keeps a pending
 * exception.  Runs Python code. */
bool gb_orphans_finalize(PortalObject *p);

/* Keep the owner of the portal's coroutine alive for ever, with a
 * ResourceWarning: a stack that can't be unwound points at it.  Keeps a
 * pending exception.  May run Python code. */
void gb_orphans_leak(PortalObject *p);

/* Have orphans reaped by the thread of `ts` when it ends; with the GIL that
 * may be another one than the running one.  0, or -1 with an exception. */
int gb_orphans_watch(gb_state *st, PyThreadState *ts);

/* End all orphans that can be ended here and now.  Keeps a pending exception.
 * Runs Python code; switches stacks. */
void gb_orphans_reap(gb_state *st);

/* How many there have been, and how many this thread knew of when it last
 * reaped. */
extern unsigned gb_orphans_count;
extern GB_THREAD_LOCAL unsigned gb_orphans_seen GB_TLS_MODEL;

/* After a step: look for orphans that this thread may be able to end.
 * Keeps a pending exception.  Runs Python code; switches stacks. */
static inline void
gb_orphans_look(gb_state *st)
{
    if (GB_UNLIKELY(gb_orphans_seen != gb_orphans_count)) {
        gb_orphans_reap(st);
    }
}

#endif
