/* What the assembly leaves to C.  Nothing here may touch anything but the
 * slice: other parts of the stack may not be what they seem. */
#include "engine/stack.h"

#if GB_STACK_CPU_KNOWN

/* Called from assembly that the compiler doesn't see. */
#define FOR_ASSEMBLY __attribute__((used, visibility("hidden")))

FOR_ASSEMBLY GB_HOT void
gb_stack_copy_out(gb_stack_slice *slice)
{
    memcpy(slice->copy, slice->low, (size_t)(slice->high - slice->low));
}

FOR_ASSEMBLY GB_HOT void
gb_stack_copy_in(gb_stack_slice *slice)
{
    slice->aside_size = 0;
    if (slice->loop_sp < slice->high) {
        slice->aside_size = (size_t)(slice->high - slice->loop_sp);
        memcpy(slice->aside, slice->loop_sp, slice->aside_size);
    }
    memcpy(slice->low, slice->copy, (size_t)(slice->high - slice->low));
}

FOR_ASSEMBLY void
gb_stack_put_back(gb_stack_slice *slice)
{
    memcpy(slice->loop_sp, slice->aside, slice->aside_size);
    slice->aside_size = 0;
}

#endif
