/* Stack slices on x86-64 with the System V calling convention (ELF and
 * Mach-O; source: System V ABI, AMD64 supplement).
 *
 * enter, suspend and resume save the same: return address, rbp, rbx, r12 to
 * r15, and the control words of SSE and x87 in the eighth word.  At the top
 * of every slice is a word that points at the loop's side, for debuggers and
 * unwinders (the CFA is what it points at, plus 64). */
#include "engine/stack.h"

#if GB_STACK_CPU_KNOWN && defined(__x86_64__)

#if defined(__APPLE__)
#define SYMBOL(name) "_" #name
#define FUNCTION(name)                                                     \
    ".text\n.p2align 4\n.globl " SYMBOL(name) "\n.private_extern " SYMBOL( \
        name) "\n" SYMBOL(name) ":\n"
#define END(name) ""
#else
#define SYMBOL(name) #name
#define FUNCTION(name)                                               \
    ".section .text.hot,\"ax\",@progbits\n.p2align 4\n.globl " #name \
    "\n.hidden " #name "\n.type " #name ",@function\n" #name ":\n"
#define END(name) ".size " #name ",.-" #name "\n.text\n"
#endif

#define SAVE_REGISTERS                                                   \
    "  pushq %rbp\n  .cfi_adjust_cfa_offset 8\n  .cfi_offset %rbp,-16\n" \
    "  pushq %rbx\n  .cfi_adjust_cfa_offset 8\n  .cfi_offset %rbx,-24\n" \
    "  pushq %r12\n  .cfi_adjust_cfa_offset 8\n  .cfi_offset %r12,-32\n" \
    "  pushq %r13\n  .cfi_adjust_cfa_offset 8\n  .cfi_offset %r13,-40\n" \
    "  pushq %r14\n  .cfi_adjust_cfa_offset 8\n  .cfi_offset %r14,-48\n" \
    "  pushq %r15\n  .cfi_adjust_cfa_offset 8\n  .cfi_offset %r15,-56\n" \
    "  subq $8,%rsp\n  .cfi_adjust_cfa_offset 8\n"                       \
    "  stmxcsr (%rsp)\n  fnstcw 4(%rsp)\n"

#define RESTORE_REGISTERS                                             \
    "  addq $8,%rsp\n  .cfi_adjust_cfa_offset -8\n"                   \
    "  popq %r15\n  .cfi_adjust_cfa_offset -8\n  .cfi_restore %r15\n" \
    "  popq %r14\n  .cfi_adjust_cfa_offset -8\n  .cfi_restore %r14\n" \
    "  popq %r13\n  .cfi_adjust_cfa_offset -8\n  .cfi_restore %r13\n" \
    "  popq %r12\n  .cfi_adjust_cfa_offset -8\n  .cfi_restore %r12\n" \
    "  popq %rbx\n  .cfi_adjust_cfa_offset -8\n  .cfi_restore %rbx\n" \
    "  popq %rbp\n  .cfi_adjust_cfa_offset -8\n  .cfi_restore %rbp\n"

/* DW_CFA_def_cfa_expression: { DW_OP_breg<reg> 0, DW_OP_deref,
 * DW_OP_plus_uconst 64 }, that is *reg + 64, for rsp (7) and rbx (3). */
#define CFA_BY_WORD_AT_RSP ".cfi_escape 0x0f,5,0x77,0,0x06,0x23,0x40\n"
#define CFA_BY_SLICE_IN_RBX ".cfi_escape 0x0f,5,0x73,0,0x06,0x23,0x40\n"

/* rsp to scratch stack below both rsp and `other` (a memory operand). */
#define TO_SCRATCH_STACK(other) \
    "  movq %rsp,%rax\n"        \
    "  cmpq " other             \
    ",%rax\n"                   \
    "  cmovaq " other           \
    ",%rax\n"                   \
    "  subq $256,%rax\n"        \
    "  andq $-16,%rax\n"        \
    "  movq %rax,%rsp\n"

__asm__(
    /* (slice rdi, body rsi, argument rdx) */
    FUNCTION(gb_stack_enter)
    "  .cfi_startproc\n"
    "  endbr64\n"
    SAVE_REGISTERS
    "  movq %rsp,(%rdi)\n"
    "  movq 24(%rdi),%rax\n"
    "  subq $16,%rax\n"
    "  movq %rsp,(%rax)\n"
    "  movq %rax,%rsp\n"
    CFA_BY_WORD_AT_RSP
    "  movq %rdx,%rdi\n"
    "  callq *%rsi\n"
    "  movq %rax,%rbx\n"
    CFA_BY_SLICE_IN_RBX
    "  cmpq $0,16(%rbx)\n"
    "  je 1f\n"
    TO_SCRATCH_STACK("(%rbx)")
    "  movq %rbx,%rdi\n"
    "  callq " SYMBOL(gb_stack_put_back) "\n"
    "1: movq (%rbx),%rsp\n"
    "  .cfi_def_cfa %rsp,64\n"
    RESTORE_REGISTERS
    "  retq\n"
    "  .cfi_endproc\n"
    END(gb_stack_enter)

    /* (slice rdi) */
    FUNCTION(gb_stack_suspend)
    "  .cfi_startproc\n"
    "  endbr64\n"
    SAVE_REGISTERS
    "  movq %rsp,8(%rdi)\n"
    "  movq %rdi,%rbx\n"
    "  callq " SYMBOL(gb_stack_copy_out) "\n"
    /* the loop's side from here on */
    CFA_BY_SLICE_IN_RBX
    "  cmpq $0,16(%rbx)\n"
    "  je 1f\n"
    TO_SCRATCH_STACK("(%rbx)")
    "  movq %rbx,%rdi\n"
    "  callq " SYMBOL(gb_stack_put_back) "\n"
    "1: movq (%rbx),%rsp\n"
    "  .cfi_def_cfa %rsp,64\n"
    "  ldmxcsr (%rsp)\n"
    "  fldcw 4(%rsp)\n"
    RESTORE_REGISTERS
    "  retq\n"
    "  .cfi_endproc\n"
    END(gb_stack_suspend)

    /* (slice rdi) */
    FUNCTION(gb_stack_resume)
    "  .cfi_startproc\n"
    "  endbr64\n"
    SAVE_REGISTERS
    "  movq %rsp,(%rdi)\n"
    "  movq %rdi,%rbx\n"
    CFA_BY_SLICE_IN_RBX
    TO_SCRATCH_STACK("8(%rbx)")
    "  callq " SYMBOL(gb_stack_copy_in) "\n"
    "  movq 24(%rbx),%rax\n"
    "  movq (%rbx),%rdx\n"
    "  movq %rdx,-16(%rax)\n"
    "  movq 8(%rbx),%rsp\n"
    "  .cfi_def_cfa %rsp,64\n"
    "  ldmxcsr (%rsp)\n"
    "  fldcw 4(%rsp)\n"
    RESTORE_REGISTERS
    "  retq\n"
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
    /* rdsspq %rax: does nothing without a shadow stack */
    unsigned long shadow_stack_pointer = 0;
    __asm__ volatile(".byte 0xf3,0x48,0x0f,0x1e,0xc8"
                     : "+a"(shadow_stack_pointer));
    return shadow_stack_pointer != 0;
}

#endif
