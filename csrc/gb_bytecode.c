#include "gb_bytecode.h"

#if GB_BYTECODE_NEEDED

#include <limits.h>
#include <opcode.h>

#if PY_VERSION_HEX >= 0x030c0000
#define request_extra_index PyUnstable_Eval_RequestCodeExtraIndex
#define get_extra PyUnstable_Code_GetExtra
#define set_extra PyUnstable_Code_SetExtra
#else
#define request_extra_index _PyEval_RequestCodeExtraIndex
#define get_extra _PyCode_GetExtra
#define set_extra _PyCode_SetExtra
#endif

/* What hangs on a code object, once it has been asked for. */
typedef struct {
    Py_ssize_t count; /* of code units; 0 if we don't understand them */
    gb_values values[];
} value_table;

enum {
    UNKNOWN = -1,       /* a depth: this code unit hasn't been reached */
    DEEPEST = SHRT_MAX, /* value stack */
    LONGEST = 100000,   /* code units; the time it takes must have a limit */
};

static Py_ssize_t extra_index = -1; /* none */

void
gb_bytecode_init(void)
{
    if (extra_index < 0) {
        extra_index = request_extra_index(PyMem_Free);
    }
}

/* ------------------------------------------------------------ instructions */

typedef struct {
    int opcode;
    int oparg;
    Py_ssize_t next; /* code unit behind it and its caches */
} instruction;

/* The one at code unit `i`, which may be an EXTENDED_ARG. */
static instruction
instruction_at(const unsigned char *units, Py_ssize_t count, Py_ssize_t i)
{
    instruction ins = {units[2 * i], units[2 * i + 1], i + 1};
    while (ins.opcode == EXTENDED_ARG && ins.next < count) {
        ins.opcode = units[2 * ins.next];
        ins.oparg = ins.oparg << 8 | units[2 * ins.next + 1];
        ins.next++;
    }
    while (ins.next < count && units[2 * ins.next] == CACHE) {
        ins.next++;
    }
    return ins;
}

/* Whether `ins` may jump; *target is where to. */
static bool
may_jump(instruction ins, Py_ssize_t *target)
{
    switch (ins.opcode) {
        case JUMP_BACKWARD:
        case JUMP_BACKWARD_NO_INTERRUPT:
#if PY_VERSION_HEX < 0x030c0000
        case POP_JUMP_BACKWARD_IF_FALSE:
        case POP_JUMP_BACKWARD_IF_TRUE:
        case POP_JUMP_BACKWARD_IF_NONE:
        case POP_JUMP_BACKWARD_IF_NOT_NONE:
#endif
            *target = ins.next - ins.oparg;
            return true;
        case JUMP_FORWARD:
        case FOR_ITER:
        case SEND:
#if PY_VERSION_HEX < 0x030c0000
        case JUMP_IF_FALSE_OR_POP:
        case JUMP_IF_TRUE_OR_POP:
        case POP_JUMP_FORWARD_IF_FALSE:
        case POP_JUMP_FORWARD_IF_TRUE:
        case POP_JUMP_FORWARD_IF_NONE:
        case POP_JUMP_FORWARD_IF_NOT_NONE:
#else
        case POP_JUMP_IF_FALSE:
        case POP_JUMP_IF_TRUE:
        case POP_JUMP_IF_NONE:
        case POP_JUMP_IF_NOT_NONE:
#endif
            *target = ins.next + ins.oparg;
            return true;
        default:
            return false;
    }
}

/* Whether what follows `ins` is not executed after it. */
static bool
never_goes_on(int opcode)
{
    switch (opcode) {
        case JUMP_BACKWARD:
        case JUMP_BACKWARD_NO_INTERRUPT:
        case JUMP_FORWARD:
        case RETURN_VALUE:
#if PY_VERSION_HEX >= 0x030c0000
        case RETURN_CONST:
        case INTERPRETER_EXIT:
#endif
        case RAISE_VARARGS:
        case RERAISE:
            return true;
        default:
            return false;
    }
}

/* How many values lie below those that `ins` works on, of `before`; `after` is
 * the depth after it. */
static int
values_below(instruction ins, int before, int after)
{
    int below = before < after ? before : after;
    switch (ins.opcode) {
        case SEND: /* takes what is awaited and what to send */
            return before >= 2 ? before - 2 : 0;
        /* These take more than one value and push more than one. */
        case CHECK_EG_MATCH:
#if PY_VERSION_HEX >= 0x030c0000
        case LOAD_SUPER_ATTR:
        case CLEANUP_THROW:
#endif
            return below >= 3 ? below - 3 : 0;
        /* All others take one value at most, or push one at most. */
        default:
            return below >= 1 ? below - 1 : 0;
    }
}

static gb_operand
first_operand(int opcode)
{
    switch (opcode) {
        case SEND:
#if PY_VERSION_HEX >= 0x030c0000
            return GB_OPERAND_LEFT; /* for END_SEND */
#endif
        case FOR_ITER:
        case LOAD_ATTR:
#if PY_VERSION_HEX < 0x030c0000
        case LOAD_METHOD:
#endif
            return GB_OPERAND_KEPT;
        default:
            return GB_OPERAND_TAKEN;
    }
}

/* ------------------------------------------------------------------ depths */

/* Depths at code units, as far as known. */
typedef struct {
    PyCodeObject *code;
    const unsigned char *units;
    Py_ssize_t count;
    int *depth;
    bool changed;
    bool consistent;
} analysis;

static void
reach(analysis *a, Py_ssize_t index, int depth)
{
    if (index < 0 || index >= a->count || depth < 0
        || depth > a->code->co_stacksize) {
        a->consistent = false;
    }
    else if (a->depth[index] == UNKNOWN) {
        a->depth[index] = depth;
        a->changed = true;
    }
    else if (a->depth[index] != depth) {
        a->consistent = false;
    }
}

/* Follow the instruction at `i`, which has been reached.  Returns the next
 * one. */
static Py_ssize_t
follow(analysis *a, Py_ssize_t i)
{
    instruction ins = instruction_at(a->units, a->count, i);
    Py_ssize_t target;
    int depth = a->depth[i], effect;

    if (depth == UNKNOWN) {
        return ins.next;
    }
    if (may_jump(ins, &target)) {
        effect = PyCompile_OpcodeStackEffectWithJump(ins.opcode, ins.oparg, 1);
        reach(a, target, depth + effect);
    }
    if (!never_goes_on(ins.opcode)) {
        effect = PyCompile_OpcodeStackEffectWithJump(ins.opcode, ins.oparg, 0);
        reach(a, ins.next, depth + effect);
    }
    return ins.next;
}

/* An entry of an exception table; positions are code units. */
typedef struct {
    Py_ssize_t start, end; /* of the instructions that it is for */
    Py_ssize_t handler;
    int depth; /* how many values the handler finds below what is pushed */
    bool pushes_instruction; /* besides the exception */
} exception_entry;

static unsigned
read_varint(const unsigned char **p, const unsigned char *end)
{
    unsigned value = 0;
    bool more = true;
    while (more && *p < end) {
        unsigned char byte = *(*p)++;
        value = value << 6 | (byte & 63);
        more = (byte & 64) != 0;
    }
    return value;
}

/* The next entry of the table at *p; false at its end. */
static bool
read_entry(const unsigned char **p, const unsigned char *end,
           exception_entry *entry)
{
    unsigned depth_and_flag;
    if (*p >= end) {
        return false;
    }
    entry->start = (Py_ssize_t)read_varint(p, end);
    entry->end = entry->start + (Py_ssize_t)read_varint(p, end);
    entry->handler = (Py_ssize_t)read_varint(p, end);
    depth_and_flag = read_varint(p, end);
    entry->depth = (int)(depth_and_flag >> 1);
    entry->pushes_instruction = (depth_and_flag & 1) != 0;
    return true;
}

static const unsigned char *
exception_table(PyCodeObject *code, const unsigned char **end)
{
    const unsigned char *start
        = (const unsigned char *)PyBytes_AS_STRING(code->co_exceptiontable);
    *end = start + PyBytes_GET_SIZE(code->co_exceptiontable);
    return start;
}

/* Exception handlers are reached with the depth that their entry in the
 * exception table says. */
static void
reach_handlers(analysis *a)
{
    const unsigned char *end, *p = exception_table(a->code, &end);
    exception_entry entry;
    while (read_entry(&p, end, &entry)) {
        reach(a, entry.handler,
              entry.depth + (int)entry.pushes_instruction + 1);
    }
}

static void
find_depths(analysis *a)
{
    const int generator = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR;
    int start = 0;
#if PY_VERSION_HEX < 0x030d0000
    /* The None that a generator is started with is there from the beginning;
     * later RETURN_GENERATOR pushes it. */
    start = (a->code->co_flags & generator) != 0 ? 1 : 0;
#else
    (void)generator;
#endif
    for (Py_ssize_t i = 0; i < a->count; i++) {
        a->depth[i] = UNKNOWN;
    }
    reach(a, 0, start);
    reach_handlers(a);
    while (a->changed && a->consistent) {
        Py_ssize_t i = 0;
        a->changed = false;
        while (i < a->count && a->consistent) {
            i = follow(a, i);
        }
    }
}

/* ------------------------------------------------------------------ tables */

static void
fill_table(value_table *table, const analysis *a)
{
    const unsigned char *end, *p = exception_table(a->code, &end);
    exception_entry entry;
    Py_ssize_t i = 0;
    while (i < a->count) {
        instruction ins = instruction_at(a->units, a->count, i);
        int before = a->depth[i];
        gb_values values = {0, 0, GB_OPERAND_TAKEN};
        if (before != UNKNOWN) {
            int effect = PyCompile_OpcodeStackEffectWithJump(ins.opcode,
                                                             ins.oparg, 0);
            values.below = (short)values_below(ins, before, before + effect);
            if (before > values.below) {
                values.first = first_operand(ins.opcode);
            }
        }
        /* A frame stands at the instruction itself, behind its EXTENDED_ARG;
         * it never does at caches. */
        for (; i < ins.next; i++) {
            table->values[i] = values;
        }
    }
    while (read_entry(&p, end, &entry)) {
        for (i = entry.start; i < entry.end && i < a->count; i++) {
            gb_values *values = &table->values[i];
            values->safe = (short)Py_MIN(values->below, entry.depth);
        }
    }
    table->count = a->count;
}

/* NULL without an exception if there is no memory. */
static value_table *
make_table(PyCodeObject *code)
{
    PyObject *bytes = PyCode_GetCode(code);
    analysis a = {code, NULL, 0, NULL, false, true};
    value_table *table = NULL;

    if (bytes != NULL) {
        a.units = (const unsigned char *)PyBytes_AS_STRING(bytes);
        a.count = PyBytes_GET_SIZE(bytes) / 2;
        if (a.count > LONGEST || code->co_stacksize > DEEPEST) {
            a.consistent = false;
            a.count = 0;
        }
        a.depth = PyMem_Malloc((size_t)(a.count + 1) * sizeof(int));
        table = PyMem_Malloc(sizeof(value_table)
                             + (size_t)a.count * sizeof(gb_values));
    }
    if (a.depth != NULL && table != NULL) {
        table->count = 0;
        if (a.consistent) {
            find_depths(&a);
        }
        if (a.consistent) {
            fill_table(table, &a);
        }
    }
    else {
        PyErr_Clear();
        PyMem_Free(table);
        table = NULL;
    }
    PyMem_Free(a.depth);
    Py_XDECREF(bytes);
    return table;
}

static const value_table *
table_of(PyCodeObject *code)
{
    void *table = NULL;
    if (extra_index < 0
        || get_extra((PyObject *)code, extra_index, &table) < 0) {
        PyErr_Clear();
        return NULL;
    }
    if (table == NULL) {
        table = make_table(code);
        if (table != NULL
            && set_extra((PyObject *)code, extra_index, table) < 0) {
            PyErr_Clear();
            PyMem_Free(table);
            table = NULL;
        }
    }
    return table;
}

gb_values
gb_bytecode_values(PyCodeObject *code, Py_ssize_t index)
{
    const value_table *table = table_of(code);
    if (table == NULL || index < 0 || index >= table->count) {
        return (gb_values){0, 0, GB_OPERAND_TAKEN};
    }
    return table->values[index];
}

#else

void
gb_bytecode_init(void)
{
    /* Frames say it themselves. */
}

#endif
