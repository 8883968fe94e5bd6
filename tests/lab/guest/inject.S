# SPDX-License-Identifier: GPL-2.0-or-later
#
# An L1 that does nothing but VMRUN, each time with an exception for the L2 to take, and L2's handlers.  An event
# that is lost or delivered twice shows: L2's only other instruction is invalid, and each error code is new.

.include "layout.inc"

.code64
.text

.equ EVENTS_PER_LINE,   0x400           # a power of two
.equ FRAME_ERROR_CODE,  -48             # error code, RIP, CS, RFLAGS, RSP, SS below the stack's end

# In: RBX = index, R12 = context, R13 = VMCB12.  Does not return.  GIF stays clear outside of L2.
.global inject
inject:
        xor %r15d, %r15d
        clgi
1:      add $8, %r15d
        and $0xfff8, %r15d
        movl $0x80000b0d, VMCB_EVENT_INJ(%r13)  # valid, with an error code, exception, #GP
        mov %r15d, VMCB_EVENT_INJ + 4(%r13)
        movq $nothing_injected, VMCB_RIP(%r13)
        mov %r12, VMCB_RSP(%r13)
        movq $-1, FRAME_ERROR_CODE(%r12)
        mov %r13, %rax
        vmrun
        mov VMCB_EXIT_CODE(%r13), %rax
        cmp $EXIT_VMMCALL, %rax
        jne unexpected_exit
        cmp %r15, FRAME_ERROR_CODE(%r12)
        jne 2f
        incq exits(, %rbx, 8)
        testl $EVENTS_PER_LINE - 1, exits(, %rbx, 8)
        jnz 1b
        call lock_console
        mov $'v', %al
        call put_char
        mov %ebx, %eax
        call put_index
        mov exits(, %rbx, 8), %rax
        call put_quad
        call end_line
        jmp 1b
2:      mov FRAME_ERROR_CODE(%r12), %r12
        mov $0xf4, %ebp
        jmp l1_corrupted

# L2's
nothing_injected:
        ud2
injected:
        vmmcall
        ud2

# Takes long, so that the next NMI stays pending.  The context page begins where the stack page ends.
.global nmi_taken, nmi_end
nmi_taken:
        push %rax
        push %rcx
        mov %rsp, %rax
        or $4095, %rax
        incq 1 + CTX_NMIS(%rax)
        mov $NMI_LOOP, %ecx
1:      loop 1b
        pop %rcx
        pop %rax
nmi_end:
        iretq

# L2's IDT: NMI and #GP.  Spoils RAX.
.global build_l2_idt
build_l2_idt:
        mov $nmi_taken, %eax
        mov %ax, l2_idt + 2 * 16
        movw $0x20, l2_idt + 2 * 16 + 2         # 64-bit code of L2
        movw $0x8e00, l2_idt + 2 * 16 + 4       # present interrupt gate
        shr $16, %eax
        mov %ax, l2_idt + 2 * 16 + 6
        mov $injected, %eax
        mov %ax, l2_idt + 13 * 16
        movw $0x20, l2_idt + 13 * 16 + 2
        movw $0x8e00, l2_idt + 13 * 16 + 4
        shr $16, %eax
        mov %ax, l2_idt + 13 * 16 + 6
        ret

.bss
.align 16
.global l2_idt
l2_idt: .skip 16 * 16
.global l2_idt_limit
.set l2_idt_limit, 16 * 16 - 1
