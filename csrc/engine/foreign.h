/* await_ in a greenlet that user code has started in a step of the direct
 * engine (SQLAlchemy's greenlet_spawn). */
#ifndef GB_FOREIGN_H
#define GB_FOREIGN_H

#include "gb_portal.h"

/* What links a step to the greenlets that await_ was called in. */
typedef struct ForeignObject ForeignObject;

/* Suspends the stack of the step itself: as gb_engine.suspend, but nothing
 * else than step() can wake it. */
typedef int (*gb_foreign_suspend_home)(PortalObject *p, PyObject *trap);

/* For the step of `p` that runs in the greenlet `home`.  NULL with an
 * exception. */
ForeignObject *gb_foreign_new(PortalObject *p, PyObject *home,
                              gb_foreign_suspend_home suspend_home);

/* The step is over: whoever comes now gets an error. */
void gb_foreign_end(ForeignObject *f);

/* As gb_engine.suspend, called in another greenlet than the step's. */
int gb_foreign_suspend(ForeignObject *f, PyObject *trap, bool *woken);

/* The greenlet that waits for the loop, borrowed; NULL if none does. */
PyObject *gb_foreign_waiting(ForeignObject *f);

/* 0, or -1 with an exception. */
int gb_foreign_init(void);

#endif
