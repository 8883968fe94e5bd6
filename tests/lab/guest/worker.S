# SPDX-License-Identifier: GPL-2.0-or-later
#
# The work of an L2, or of a vCPU that stays in L1: hold known values in every watched register, verify them
# again and again, and say so on the console.

.include "layout.inc"

.code64
.text

# RSP = context.  Does not return and makes no assumption on the level it runs at, besides the VMMCALL.
.global worker
worker:
        testl $MODE_CLGI, CTX_MODE(%rsp)
        jz 1f
        clgi
1:      testl $MODE_DR7, CTX_MODE(%rsp)
        jz 1f
        mov $DR7_WRITTEN, %eax
        mov %rax, %dr7
1:      testl $MODE_NO_DR, CTX_MODE(%rsp)
        jnz 2f
        mov $3, %ebp
1:      mov CTX_EXPECTED + 8 * SLOT_DR(%rsp, %rbp, 8), %rax
        call write_debug_register
        dec %ebp
        jns 1b
2:      mov CTX_EXPECTED + 8 * SLOT_CR2(%rsp), %rax
        mov %rax, %cr2
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        movups CTX_EXPECTED + 8 * SLOT_XMM + 16 * \n(%rsp), %xmm\n
        .endr

load_gprs:
        mov spin_count, %rax
        mov %rax, CTX_LEFT(%rsp)
        mov CTX_EXPECTED + 0x00(%rsp), %rax
        mov CTX_EXPECTED + 0x08(%rsp), %rcx
        mov CTX_EXPECTED + 0x10(%rsp), %rdx
        mov CTX_EXPECTED + 0x18(%rsp), %rbx
        mov CTX_EXPECTED + 0x28(%rsp), %rbp
        mov CTX_EXPECTED + 0x30(%rsp), %rsi
        mov CTX_EXPECTED + 0x38(%rsp), %rdi
        .irp n, 8, 9, 10, 11, 12, 13, 14, 15
        mov CTX_EXPECTED + 8 * \n(%rsp), %r\n
        .endr
        # The exit to L1 is made here, with the values in the registers, so that L1's saving is verified too.
        testq $ROUNDS_PER_EXIT - 1, CTX_ROUND(%rsp)
        jnz hold
        cmpq $2, CTX_LEVEL(%rsp)
        jne hold
        vmmcall
        testl $MODE_CLGI, CTX_MODE(%rsp)
        jz hold
        clgi                            # VMRUN has set it

        # Nearly all of the time passes in these two instructions.
hold:   decq CTX_LEFT(%rsp)
        jnz hold

        mov %rax, CTX_FOUND + 0x00(%rsp)
        mov %rcx, CTX_FOUND + 0x08(%rsp)
        mov %rdx, CTX_FOUND + 0x10(%rsp)
        mov %rbx, CTX_FOUND + 0x18(%rsp)
        mov %rsp, CTX_FOUND + 0x20(%rsp)
        mov %rbp, CTX_FOUND + 0x28(%rsp)
        mov %rsi, CTX_FOUND + 0x30(%rsp)
        mov %rdi, CTX_FOUND + 0x38(%rsp)
        .irp n, 8, 9, 10, 11, 12, 13, 14, 15
        mov %r\n, CTX_FOUND + 8 * \n(%rsp)
        .endr
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        movups %xmm\n, CTX_FOUND + 8 * SLOT_XMM + 16 * \n(%rsp)
        .endr
        testl $MODE_NO_DR, CTX_MODE(%rsp)
        jnz 1f                          # CTX_FOUND has what is expected, from prepare_context
        mov %dr0, %rax
        mov %rax, CTX_FOUND + 8 * SLOT_DR + 0x00(%rsp)
        mov %dr1, %rax
        mov %rax, CTX_FOUND + 8 * SLOT_DR + 0x08(%rsp)
        mov %dr2, %rax
        mov %rax, CTX_FOUND + 8 * SLOT_DR + 0x10(%rsp)
        mov %dr3, %rax
        mov %rax, CTX_FOUND + 8 * SLOT_DR + 0x18(%rsp)
1:      mov %cr2, %rax
        mov %rax, CTX_FOUND + 8 * SLOT_CR2(%rsp)
        xor %ebp, %ebp
1:      mov msr_table(, %rbp, 8), %ecx
        rdmsr
        shl $32, %rdx
        or %rdx, %rax
        mov %rax, CTX_FOUND + 8 * SLOT_MSR(%rsp, %rbp, 8)
        inc %ebp
        cmp $MSR_COUNT, %ebp
        jb 1b

        # sum = round; for each value: sum = (rotate left(sum, 7) xor value) * MIX
        incq CTX_ROUND(%rsp)
        mov CTX_ROUND(%rsp), %rax
        movabs $MIX, %rcx
        xor %ebp, %ebp
1:      mov CTX_FOUND(%rsp, %rbp, 8), %rdx
        cmp CTX_EXPECTED(%rsp, %rbp, 8), %rdx
        jne corrupted
        rol $7, %rax
        xor %rdx, %rax
        imul %rcx, %rax
        inc %ebp
        cmp $SLOTS, %ebp
        jb 1b
        mov %rax, CTX_SUM(%rsp)

        mov dirty_pages, %rcx
        mov CTX_DIRTY(%rsp), %rdi
        jrcxz 2f
1:      incq (%rdi)
        add $4096, %rdi
        loop 1b
2:
        testq $ROUNDS_PER_LINE - 1, CTX_ROUND(%rsp)
        jnz load_gprs
        mov %rsp, %r12
        call lock_console
        mov CTX_LEVEL(%r12), %eax
        add $'0', %al
        call put_char
        mov CTX_INDEX(%r12), %eax
        call put_index
        mov CTX_ROUND(%r12), %rax
        call put_quad
        mov CTX_SUM(%r12), %rax
        call put_quad
        call end_line
        testl $MODE_NMI, CTX_MODE(%r12)
        jz 1f
        call lock_console
        mov $'n', %al
        call put_char
        mov CTX_INDEX(%r12), %eax
        call put_index
        mov CTX_NMIS(%r12), %rax
        call put_quad
        call end_line
1:      testl $MODE_SMI, CTX_MODE(%r12)
        jz load_gprs
        mov $LAPIC, %ebp
        mov CTX_INDEX(%r12), %eax
        shl $24, %eax
        mov %eax, 0x310(%rbp)
        movl $0x4200, 0x300(%rbp)       # SMI, assert
        jmp load_gprs

# "! INDEX LEVEL SLOT EXPECTED FOUND", then nothing more from this vCPU.  RBP = slot.
corrupted:
        mov %rsp, %r12
        call lock_console
        mov $'!', %al
        call put_char
        mov CTX_INDEX(%r12), %eax
        call put_index
        mov CTX_LEVEL(%r12), %eax
        call put_index
        mov %rbp, %rax
        call put_quad
        mov CTX_EXPECTED(%r12, %rbp, 8), %rax
        call put_quad
        mov CTX_FOUND(%r12, %rbp, 8), %rax
        call put_quad
        call end_line
1:      hlt
        jmp 1b

# In: EBP = 0..3, RAX = value.
write_debug_register:
        cmp $1, %ebp
        jb 1f
        je 2f
        cmp $3, %ebp
        jb 3f
        mov %rax, %dr3
        ret
1:      mov %rax, %dr0
        ret
2:      mov %rax, %dr1
        ret
3:      mov %rax, %dr2
        ret

# In: EDI = index, ESI = level.  Out: R12 = context, filled.
.global prepare_context
prepare_context:
        lea 1(%rdi, %rdi), %r12d
        shl $12, %r12d
        lea contexts(%r12), %r12
        mov %rdi, CTX_INDEX(%r12)
        mov %rsi, CTX_LEVEL(%r12)
        mov %edi, %eax
        imul $DIRTY_STRIDE, %eax
        add $DIRTY_BASE, %eax
        mov %rax, CTX_DIRTY(%r12)
        mov %edi, %r8d
        mov %esi, %edi
        mov %r8d, %esi
        xor %edx, %edx
1:      call slot_value
        mov %rax, CTX_EXPECTED(%r12, %rdx, 8)
        mov %rax, CTX_FOUND(%r12, %rdx, 8)
        inc %edx
        cmp $SLOTS, %edx
        jb 1b
        mov %r12, CTX_EXPECTED + 0x20(%r12)
        ret

# The value that a slot holds at a level on a vCPU.
# In: EDI = level, ESI = index, EDX = slot.  Out: RAX.  Spoils RCX.
.global slot_value
slot_value:
        lea TAG(%rdi), %eax
        shl $8, %eax
        or %esi, %eax
        shl $8, %eax
        or %edx, %eax                   # tag, index, slot: 24 bits
        movabs $MIX, %rcx
        imul %rax, %rcx
        shr $24, %rcx
        shl $40, %rax
        or %rcx, %rax
        cmpb $SHAPE_CANONICAL, slot_shapes(%rdx)
        jb 3f
        je 2f
        cmpb $SHAPE_SHORT, slot_shapes(%rdx)
        jb 1f
        movzwl %ax, %eax
        ret
1:      shr $32, %rax
        ret
2:      sar $16, %rax                   # the tag's top bit is set, so this is the upper half
3:      ret

.section .rodata
slot_shapes:
        .skip SLOT_DR, SHAPE_FULL
        .skip 4, SHAPE_CANONICAL
        .byte SHAPE_FULL                # CR2
        .byte SHAPE_CANONICAL, SHAPE_CANONICAL, SHAPE_CANONICAL, SHAPE_FULL, SHAPE_CANONICAL, SHAPE_CANONICAL
        .byte SHAPE_WORD, SHAPE_SHORT, SHAPE_WORD, SHAPE_WORD

# Number of the MSR, and where VMLOAD finds it in VMCB12
.global msr_table
.align 8
msr_table:
        .long 0xc0000100, VMCB_FS + 8   # FS_BASE
        .long 0xc0000101, VMCB_GS + 8   # GS_BASE
        .long 0xc0000102, 0x620         # KERNEL_GS_BASE
        .long 0xc0000081, 0x600         # STAR
        .long 0xc0000082, 0x608         # LSTAR
        .long 0xc0000083, 0x610         # CSTAR
        .long 0xc0000084, 0x618         # SFMASK
        .long 0x174, 0x628              # SYSENTER_CS
        .long 0x175, 0x630              # SYSENTER_ESP
        .long 0x176, 0x638              # SYSENTER_EIP

.bss
.align 4096
.global contexts
contexts:                               # per vCPU a page of stack, then the page of the context
        .skip CPUS_MAX * 2 * 4096
