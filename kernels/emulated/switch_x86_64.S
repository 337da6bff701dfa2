/* void lmhead_emulated_switch(void **save, void *load): leaves one stack and goes on on another.
 *
 * System V: rbx, rbp, r12 to r15 and the control bits of mxcsr and the x87 belong to the caller of a
 * function; the control bits are never changed by kernels and so stay as they are. */
  .text
  .globl lmhead_emulated_switch
#ifdef __ELF__
  .type lmhead_emulated_switch, @function
#endif
lmhead_emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  retq
#ifdef __ELF__
  .size lmhead_emulated_switch, .-lmhead_emulated_switch
  .section .note.GNU-stack, "", @progbits
#endif
