# SPDX-License-Identifier: GPL-2.0-or-later
#
# The work of a 32-bit L2: hold known values in the general registers and verify them.  L1 prints for it.

.include "layout.inc"

.code32
.text

# ESP = context.  Calls L1 each ROUNDS_PER_EXIT rounds, with the values in the registers.
.global worker32
worker32:
        mov spin_count, %eax
        mov %eax, CTX_LEFT(%esp)
        mov CTX_EXPECTED + 0x00(%esp), %eax
        mov CTX_EXPECTED + 0x04(%esp), %ecx
        mov CTX_EXPECTED + 0x08(%esp), %edx
        mov CTX_EXPECTED + 0x0c(%esp), %ebx
        mov CTX_EXPECTED + 0x14(%esp), %ebp
        mov CTX_EXPECTED + 0x18(%esp), %esi
        mov CTX_EXPECTED + 0x1c(%esp), %edi
        testl $ROUNDS_PER_EXIT - 1, CTX_ROUND(%esp)
        jnz hold32
        vmmcall
hold32: decl CTX_LEFT(%esp)
        jnz hold32

        mov %eax, CTX_FOUND + 0x00(%esp)
        mov %ecx, CTX_FOUND + 0x04(%esp)
        mov %edx, CTX_FOUND + 0x08(%esp)
        mov %ebx, CTX_FOUND + 0x0c(%esp)
        mov %esp, CTX_FOUND + 0x10(%esp)
        mov %ebp, CTX_FOUND + 0x14(%esp)
        mov %esi, CTX_FOUND + 0x18(%esp)
        mov %edi, CTX_FOUND + 0x1c(%esp)

        # sum = round; for each value: sum = (rotate left(sum, 7) xor value) * MIX32
        incl CTX_ROUND(%esp)
        mov CTX_ROUND(%esp), %eax
        mov $MIX32, %ecx
        xor %ebp, %ebp
1:      mov CTX_FOUND(%esp, %ebp, 4), %edx
        cmp CTX_EXPECTED(%esp, %ebp, 4), %edx
        jne corrupted32
        rol $7, %eax
        xor %edx, %eax
        imul %ecx, %eax
        inc %ebp
        cmp $SLOTS32, %ebp
        jb 1b
        mov %eax, CTX_SUM(%esp)

        mov dirty_pages, %ecx
        mov CTX_DIRTY(%esp), %edi
        test %ecx, %ecx
        jz worker32
1:      incl (%edi)
        add $4096, %edi
        loop 1b
        jmp worker32

# EBP = slot
corrupted32:
        inc %ebp
        mov %ebp, CTX_BAD(%esp)
        vmmcall
1:      hlt
        jmp 1b

.code64

# In: EBX = index, R12 = context as prepare_context left it.
.global prepare_context32
prepare_context32:
        movl $3, CTX_LEVEL(%r12)
        movl $ROUNDS_PER_EXIT - ROUNDS_PER_LINE, CTX_ROUND(%r12)        # so that the first line comes soon
        mov $3, %edi
        mov %ebx, %esi
        xor %edx, %edx
1:      call slot_value
        shr $32, %rax
        mov %eax, CTX_EXPECTED(%r12, %rdx, 4)
        inc %edx
        cmp $SLOTS32, %edx
        jb 1b
        mov %r12d, CTX_EXPECTED + 0x10(%r12)
        ret

# "3 INDEX ROUND SUM", or "! INDEX 3 SLOT EXPECTED FOUND" and then nothing more from this vCPU.
# In: EBX = index.  Spoils R12 and RBP.
.global report32
report32:
        lea 1(%rbx, %rbx), %r12d
        shl $12, %r12d
        lea contexts(%r12), %r12
        mov CTX_BAD(%r12), %ebp
        test %ebp, %ebp
        jnz 2f
        call lock_console
        mov $'3', %al
        call put_char
        mov %ebx, %eax
        call put_index
        mov CTX_ROUND(%r12), %eax
        call put_quad
        mov CTX_SUM(%r12), %eax
        call put_quad
        call end_line
        ret
2:      dec %ebp
        call lock_console
        mov $'!', %al
        call put_char
        mov %ebx, %eax
        call put_index
        mov $3, %eax
        call put_index
        mov %rbp, %rax
        call put_quad
        mov CTX_EXPECTED(%r12, %rbp, 4), %eax
        call put_quad
        mov CTX_FOUND(%r12, %rbp, 4), %eax
        call put_quad
        call end_line
3:      hlt
        jmp 3b
