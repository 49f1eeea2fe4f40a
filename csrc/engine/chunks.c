/* Chunks are carved from slabs, which are maps of their own, aligned to their
 * size: a map for each chunk would get near the kernel's limit (65,530) with
 * 100,000 suspended tasks.  A slab that has become empty is given back to the
 * system, but for one. */
#include "engine/chunks.h"

#include "engine/stack.h"

#if GB_CPYTHON_STACKS_KNOWN && GB_STACK_CPU_KNOWN
#include <sys/mman.h>

enum {
    SLAB_SIZE = 1 << 20,
    CHUNK_SIZE = GB_CPYTHON_FRAME_CHUNK_SIZE,
    SLAB_CHUNKS = SLAB_SIZE / CHUNK_SIZE - 1, /* the first holds our header */
};

typedef struct slab {
    struct slab *next, *previous; /* in the list of slabs with free chunks */
    _PyStackChunk *free;          /* linked by their `previous` */
    int used;                     /* chunks that are in use */
    int carved;                   /* chunks that have ever been */
} slab;

/* With free chunks; those in use first. */
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
    return s->free == NULL && s->carved == SLAB_CHUNKS;
}

_PyStackChunk *
gb_chunks_get(void)
{
    slab *s = slabs;
    _PyStackChunk *chunk;
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
    chunk = s->free;
    if (chunk != NULL) {
        s->free = chunk->previous;
    }
    else {
        s->carved++;
        chunk = (_PyStackChunk *)((char *)s + (size_t)s->carved * CHUNK_SIZE);
    }
    if (is_full(s)) {
        unlink_slab(s);
    }
    chunk->previous = NULL;
    chunk->size = CHUNK_SIZE;
    chunk->top = 0;
    return chunk;
}

void
gb_chunks_put(_PyStackChunk *chunk)
{
    slab *s = (slab *)((uintptr_t)chunk & ~(uintptr_t)(SLAB_SIZE - 1));
    if (is_full(s)) {
        link_slab(s);
    }
    chunk->previous = s->free;
    s->free = chunk;
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
