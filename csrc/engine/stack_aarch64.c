/* Stack slices on AArch64 with the AAPCS64 calling convention (ELF and
 * Mach-O; source: Procedure Call Standard for the Arm 64-bit Architecture).
 *
 * enter, suspend and resume save the same 176 bytes: x19 to x30, d8 to d15,
 * and FPCR.  At the top of every slice is a word that points at the loop's
 * side, for debuggers and unwinders (the CFA is what it points at, plus
 * 176). */
#include "engine/stack.h"

#if GB_STACK_CPU_KNOWN && defined(__aarch64__)

#if defined(__APPLE__)
#define SYMBOL(name) "_" #name
#define FUNCTION(name)                                                     \
    ".text\n.p2align 4\n.globl " SYMBOL(name) "\n.private_extern " SYMBOL( \
        name) "\n" SYMBOL(name) ":\n"
#define END(name) ""
#else
#define SYMBOL(name) #name
#define FUNCTION(name)                                                     \
    ".text\n.p2align 4\n.globl " #name "\n.hidden " #name "\n.type " #name \
    ",%function\n" #name ":\n"
#define END(name) ".size " #name ",.-" #name "\n"
#endif

/* hint 34 is `bti c`: a valid target of indirect calls; else a no-op. */
#define SAVE_REGISTERS                                 \
    "  hint #34\n"                                     \
    "  sub sp, sp, #176\n  .cfi_def_cfa_offset 176\n"  \
    "  stp x19, x20, [sp]\n"                           \
    "  stp x21, x22, [sp, #16]\n"                      \
    "  stp x23, x24, [sp, #32]\n"                      \
    "  stp x25, x26, [sp, #48]\n"                      \
    "  stp x27, x28, [sp, #64]\n"                      \
    "  stp x29, x30, [sp, #80]\n"                      \
    "  stp d8, d9, [sp, #96]\n"                        \
    "  stp d10, d11, [sp, #112]\n"                     \
    "  stp d12, d13, [sp, #128]\n"                     \
    "  stp d14, d15, [sp, #144]\n"                     \
    "  mrs x9, fpcr\n"                                 \
    "  str x9, [sp, #160]\n"                           \
    "  .cfi_offset 19, -176\n  .cfi_offset 20, -168\n" \
    "  .cfi_offset 21, -160\n  .cfi_offset 22, -152\n" \
    "  .cfi_offset 23, -144\n  .cfi_offset 24, -136\n" \
    "  .cfi_offset 25, -128\n  .cfi_offset 26, -120\n" \
    "  .cfi_offset 27, -112\n  .cfi_offset 28, -104\n" \
    "  .cfi_offset 29, -96\n  .cfi_offset 30, -88\n"   \
    "  .cfi_offset 72, -80\n  .cfi_offset 73, -72\n"   \
    "  .cfi_offset 74, -64\n  .cfi_offset 75, -56\n"   \
    "  .cfi_offset 76, -48\n  .cfi_offset 77, -40\n"   \
    "  .cfi_offset 78, -32\n  .cfi_offset 79, -24\n"

#define RESTORE_FPCR         \
    "  ldr x9, [sp, #160]\n" \
    "  msr fpcr, x9\n"

#define RESTORE_REGISTERS          \
    "  ldp x19, x20, [sp]\n"       \
    "  ldp x21, x22, [sp, #16]\n"  \
    "  ldp x23, x24, [sp, #32]\n"  \
    "  ldp x25, x26, [sp, #48]\n"  \
    "  ldp x27, x28, [sp, #64]\n"  \
    "  ldp x29, x30, [sp, #80]\n"  \
    "  ldp d8, d9, [sp, #96]\n"    \
    "  ldp d10, d11, [sp, #112]\n" \
    "  ldp d12, d13, [sp, #128]\n" \
    "  ldp d14, d15, [sp, #144]\n" \
    "  add sp, sp, #176\n  .cfi_def_cfa sp, 0\n"

/* DW_CFA_def_cfa_expression: { DW_OP_breg<reg> 0, DW_OP_deref,
 * DW_OP_plus_uconst 176 }, that is *reg + 176, for sp (31) and x19. */
#define CFA_BY_WORD_AT_SP ".cfi_escape 0x0f,6,0x8f,0,0x06,0x23,0xb0,0x01\n"
#define CFA_BY_SLICE_IN_X19 ".cfi_escape 0x0f,6,0x83,0,0x06,0x23,0xb0,0x01\n"

/* sp to scratch stack below both sp and x9. */
#define TO_SCRATCH_STACK                    \
    "  mov x10, sp\n"                       \
    "  cmp x10, x9\n"                       \
    "  csel x10, x10, x9, lo\n"             \
    "  sub x10, x10, #256\n"                \
    "  and x10, x10, #0xfffffffffffffff0\n" \
    "  mov sp, x10\n"

/* From a slice whose C struct is in x19 to the loop's side. */
#define TO_LOOP_SIDE    \
    CFA_BY_SLICE_IN_X19 \
    "  ldr x9, [x19, #16]\n"                  \
    "  cbz x9, 1f\n"                          \
    "  ldr x9, [x19]\n"                       \
    TO_SCRATCH_STACK                          \
    "  mov x0, x19\n"                         \
    "  bl " SYMBOL(gb_stack_put_back) "\n"    \
    "1: ldr x9, [x19]\n"                      \
    "  mov sp, x9\n"                          \
    "  .cfi_def_cfa sp, 176\n"

__asm__(
    /* (slice x0, body x1, argument x2) */
    FUNCTION(gb_stack_enter)
    "  .cfi_startproc\n"
    SAVE_REGISTERS
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  ldr x10, [x0, #24]\n"
    "  sub x10, x10, #16\n"
    "  str x9, [x10]\n"
    "  mov sp, x10\n"
    CFA_BY_WORD_AT_SP
    "  mov x0, x2\n"
    "  blr x1\n"
    "  mov x19, x0\n"
    TO_LOOP_SIDE
    RESTORE_REGISTERS
    "  ret\n"
    "  .cfi_endproc\n"
    END(gb_stack_enter)

    /* (slice x0) */
    FUNCTION(gb_stack_suspend)
    "  .cfi_startproc\n"
    SAVE_REGISTERS
    "  mov x9, sp\n"
    "  str x9, [x0, #8]\n"
    "  mov x19, x0\n"
    "  bl " SYMBOL(gb_stack_copy_out) "\n"
    TO_LOOP_SIDE
    RESTORE_FPCR
    RESTORE_REGISTERS
    "  ret\n"
    "  .cfi_endproc\n"
    END(gb_stack_suspend)

    /* (slice x0) */
    FUNCTION(gb_stack_resume)
    "  .cfi_startproc\n"
    SAVE_REGISTERS
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov x19, x0\n"
    CFA_BY_SLICE_IN_X19
    "  ldr x9, [x0, #8]\n"
    TO_SCRATCH_STACK
    "  bl " SYMBOL(gb_stack_copy_in) "\n"
    "  ldr x10, [x19, #24]\n"
    "  ldr x9, [x19]\n"
    "  str x9, [x10, #-16]\n"
    "  ldr x9, [x19, #8]\n"
    "  mov sp, x9\n"
    "  .cfi_def_cfa sp, 176\n"
    RESTORE_FPCR
    RESTORE_REGISTERS
    "  ret\n"
    "  .cfi_endproc\n"
    END(gb_stack_resume));

_Static_assert(offsetof(gb_stack_slice, loop_sp) == 0
                   && offsetof(gb_stack_slice, low) == 8
                   && offsetof(gb_stack_slice, aside_size) == 16
                   && offsetof(gb_stack_slice, high) == 24,
               "the assembly above knows these offsets");

bool
gb_stack_is_shadowed(void)
{
    /* CHKFEAT (a hint, a no-op on older CPUs) clears the bit of the Guarded
     * Control Stack in x16 if that is in use. */
    unsigned long feature = 1;
    __asm__ volatile("mov x16, %0\n  hint #40\n  mov %0, x16"
                     : "+r"(feature)
                     :
                     : "x16");
    return feature == 0;
}

#endif
