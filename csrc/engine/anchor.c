#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* pthread_getattr_np */
#endif
#include "engine/anchor.h"

#include "engine/stack.h"

#if GB_STACK_CPU_KNOWN
#include <pthread.h>

/* Distances in bytes. */
enum {
    ANCHORS = 16,
    NEAREST = 1024,             /* of an anchor to the caller's frame */
    DISTANCE_OUTERMOST = 49152, /* of a new anchor, if there is room; perf can
                                   look over less than 65,528 */
    DISTANCE_NESTED = 16384,
    DISTANCE_LEAST = 4096, /* less is not worth an anchor */
    SHARE_OUTERMOST = 8,   /* no more than 1/8 of the room */
    SHARE_NESTED = 32,
    REACH = 4,              /* an anchor is used from up to 4 times the
                               distance at which it was made */
    GAP = 2048,             /* without an anchor */
    GAP_IN_GREENLET = 8192, /* if there is ROOM_FOR_GAP */
    ROOM_FOR_GAP = 131072,
    RESERVE = 65536, /* the interpreter's own limit is about there */
};

unsigned long gb_anchor_not_used = 0;
static bool anchors_wanted = true;

typedef struct {
    char *address;
    ptrdiff_t reach;
} anchor;

typedef struct {
    bool known;
    char *low, *high; /* of the thread's stack; NULL if not to be had */
    int count;
    anchor anchors[ANCHORS]; /* by descending address */
} thread_stack;

GB_THREAD_LOCAL gb_anchor_range gb_anchor_last GB_TLS_MODEL
    = {NULL, NULL, NULL};
static GB_THREAD_LOCAL thread_stack this_thread GB_TLS_MODEL;

void
gb_anchor_init(void)
{
    const char *wanted = getenv("GREENBACK_ANCHOR");
    anchors_wanted = wanted == NULL || strcmp(wanted, "0") != 0;
}

/* Ask the system for the bounds of the running thread's stack. */
static void
find_bounds(thread_stack *t)
{
    t->known = true;
#if defined(__APPLE__)
    t->high = pthread_get_stackaddr_np(pthread_self());
    t->low = t->high - pthread_get_stacksize_np(pthread_self());
#else
    pthread_attr_t attributes;
    void *address;
    size_t size, guard;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) {
        return;
    }
    if (pthread_attr_getstack(&attributes, &address, &size) == 0
        && pthread_attr_getguardsize(&attributes, &guard) == 0) {
        t->low = (char *)address + guard;
        t->high = (char *)address + size;
    }
    (void)pthread_attr_destroy(&attributes); /* frees at most memory */
#endif
}

/* How many bytes a stack that goes down to `frame` can still grow; 0 if that
 * is not known. */
static ptrdiff_t
room_below(thread_stack *t, char *frame)
{
    if (!t->known) {
        find_bounds(t);
    }
    if (t->low == NULL || frame <= t->low + RESERVE || frame > t->high) {
        return 0;
    }
    return frame - (t->low + RESERVE);
}

static char *
align_down(char *address)
{
    return (char *)((uintptr_t)address & ~(uintptr_t)63);
}

/* Keep a new anchor in order; the deepest gives way if there are too many.
 * Returns its place. */
static int
insert_anchor(thread_stack *t, anchor a)
{
    int i = 0;
    while (i < t->count && t->anchors[i].address > a.address) {
        i++;
    }
    if (i == ANCHORS) {
        i = ANCHORS - 1;
    }
    else if (t->count < ANCHORS) {
        t->count++;
    }
    for (int j = t->count - 1; j > i; j--) {
        t->anchors[j] = t->anchors[j - 1];
    }
    t->anchors[i] = a;
    return i;
}

/* Use the anchor at place `i`, also for the next step. */
static char *
use_anchor(thread_stack *t, int i)
{
    char *address = t->anchors[i].address;
    char *to = address + t->anchors[i].reach + 1;
    if (i > 0 && t->anchors[i - 1].address + NEAREST < to) {
        to = t->anchors[i - 1].address + NEAREST;
    }
    gb_anchor_last = (gb_anchor_range){address + NEAREST, to, address};
    return address;
}

static GB_NOINLINE char *
without_anchor(thread_stack *t, char *frame, int depth, bool in_greenlet)
{
    ptrdiff_t gap = GAP;
    gb_anchor_not_used++;
    if (in_greenlet && depth == 0 && room_below(t, frame) > ROOM_FOR_GAP) {
        gap = GAP_IN_GREENLET;
    }
    return align_down(frame - gap);
}

/* Have the system map the pages between `address` and `frame`: profilers copy
 * the stack while it runs, and stop at a page that has never been used. */
static void
touch_pages(char *address, char *frame)
{
    while (frame > address) {
        (void)*(volatile char *)frame;
        frame -= 4096;
    }
}

static GB_NOINLINE char *
make_anchor(thread_stack *t, char *frame, int depth)
{
    ptrdiff_t room = room_below(t, frame);
    ptrdiff_t distance = room / (depth > 0 ? SHARE_NESTED : SHARE_OUTERMOST);
    ptrdiff_t most = depth > 0 ? DISTANCE_NESTED : DISTANCE_OUTERMOST;
    anchor a;
    if (distance > most) {
        distance = most;
    }
    if (distance < DISTANCE_LEAST) {
        return without_anchor(t, frame, depth, false);
    }
    a.address = align_down(frame - distance);
    a.reach = REACH * distance;
    touch_pages(a.address, frame);
    return use_anchor(t, insert_anchor(t, a));
}

char *
gb_anchor_look_up(char *frame, int depth, bool in_greenlet)
{
    thread_stack *t = &this_thread;
    if (in_greenlet || depth > GB_ANCHOR_DEEPEST || !anchors_wanted) {
        return without_anchor(t, frame, depth, in_greenlet);
    }
    for (int i = 0; i < t->count; i++) {
        ptrdiff_t distance = frame - t->anchors[i].address;
        if (distance >= NEAREST) {
            if (distance > t->anchors[i].reach) {
                break;
            }
            return use_anchor(t, i);
        }
    }
    return make_anchor(t, frame, depth);
}

#endif
