/* Task trees on asyncio: which of the tasks that are made belong to one.
 *
 * A task has no parent there, but its Context is a copy of its creator's.  A
 * tree puts a mark into the Context in which it is opened, under a ContextVar
 * that is the same for all.  Opening and ending is up to the Python side. */
#ifndef GB_TREE_H
#define GB_TREE_H

#include "gb_coroutine.h"

/* What is common to the trees of one loop. */
typedef struct {
    PyObject *owner;     /* borrowed: what marks of open trees point at */
    PyObject *variable;  /* owned: the ContextVar; NULL: there are no trees */
    PyObject *strangers; /* owned: weak-key dict {coroutine: mark} of tasks
                            that belong to a tree but run in a Context that
                            does not tell; NULL as variable */
} gb_trees;

/* The mark of the open tree that a task belongs to which is made here to run
 * in `context` (NULL: in a copy of the current one), a new reference; NULL
 * with or without an exception.  *stranger: that Context will not tell. May
 * run Python code. */
PyObject *gb_tree_of_new_task(gb_state *st, const gb_trees *trees,
                              PyObject *context, bool *stranger);

/* Note that the task of `coroutine` will be a stranger.  0, or -1 with an
 * exception.  May run Python code. */
int gb_tree_note_stranger(gb_state *st, const gb_trees *trees,
                          PyObject *coroutine, PyObject *mark);

/* Take that back.  Keeps a pending exception.  May run Python code. */
void gb_tree_forget_stranger(const gb_trees *trees, PyObject *coroutine);

int gb_tree_add_types(PyObject *module, gb_state *st);

#endif
