/* Blocks are carved from slabs, which are maps of their own, aligned to their
 * size: a map for each block would get near the kernel's limit (65,530) with
 * 100,000 suspended tasks, and what malloc has got it hardly ever gives back.
 * A slab that has become empty is given back to the system, but for one. */
#include "engine/slabs.h"

#include "engine/stack.h"

#if GB_STACK_CPU_KNOWN
#include <sys/mman.h>

enum {
    SLAB_SIZE = 1 << 17, /* one is kept by a single block in it */
    SLAB_BLOCKS = (SLAB_SIZE - 1024) / GB_BLOCK_SIZE,
};

/* In a block that is free. */
typedef struct free_block {
    struct free_block *next;
} free_block;

/* The first 1024 bytes of a slab. */
typedef struct slab {
    struct slab *next, *previous; /* in the list of slabs with free blocks */
    free_block *free;
    int used;   /* blocks that are in use */
    int carved; /* blocks that have ever been */
} slab;

/* With free blocks; those in use first. */
static slab *slabs = NULL;
static int empty_slabs = 0;

static slab *
map_slab(void)
{
    size_t size = 2 * (size_t)SLAB_SIZE;
    char *start = mmap(NULL, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *aligned;
    slab *s;
    if (start == MAP_FAILED) {
        return NULL;
    }
    aligned = (char *)(((uintptr_t)start + SLAB_SIZE - 1)
                       & ~(uintptr_t)(SLAB_SIZE - 1));
    /* Should that fail, it costs address space. */
    if (aligned > start) {
        (void)munmap(start, (size_t)(aligned - start));
    }
    (void)munmap(aligned + SLAB_SIZE,
                 (size_t)(start + size - (aligned + SLAB_SIZE)));
    s = (slab *)aligned;
    s->next = s->previous = NULL;
    s->free = NULL;
    s->used = s->carved = 0;
    return s;
}

static void
link_slab(slab *s)
{
    s->previous = NULL;
    s->next = slabs;
    if (slabs != NULL) {
        slabs->previous = s;
    }
    slabs = s;
}

static void
unlink_slab(slab *s)
{
    if (s->previous != NULL) {
        s->previous->next = s->next;
    }
    else {
        slabs = s->next;
    }
    if (s->next != NULL) {
        s->next->previous = s->previous;
    }
}

static bool
is_full(const slab *s)
{
    return s->free == NULL && s->carved == SLAB_BLOCKS;
}

void *
gb_slabs_get(void)
{
    slab *s = slabs;
    void *block;
    if (s == NULL) {
        s = map_slab();
        if (s == NULL) {
            return NULL;
        }
        link_slab(s);
    }
    else if (s->used == 0) {
        empty_slabs--;
    }
    s->used++;
    if (s->free != NULL) {
        block = s->free;
        s->free = s->free->next;
    }
    else {
        block = (char *)s + 1024 + (size_t)s->carved * GB_BLOCK_SIZE;
        s->carved++;
    }
    if (is_full(s)) {
        unlink_slab(s);
    }
    return block;
}

void
gb_slabs_put(void *block)
{
    slab *s = (slab *)((uintptr_t)block & ~(uintptr_t)(SLAB_SIZE - 1));
    free_block *freed = block;
    if (is_full(s)) {
        link_slab(s);
    }
    freed->next = s->free;
    s->free = freed;
    s->used--;
    if (s->used == 0) {
        if (empty_slabs > 0) {
            unlink_slab(s);
            (void)munmap(s, SLAB_SIZE); /* if not, it is leaked */
        }
        else {
            empty_slabs++;
        }
    }
}

#endif
