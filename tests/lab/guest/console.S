# SPDX-License-Identifier: GPL-2.0-or-later
#
# Lines on COM1, whole ones even when several vCPUs write.  Every routine spoils RAX, RCX and RDX only.

.include "layout.inc"

.code64
.text

.global lock_console
lock_console:
        mov $1, %ecx
        xchg %ecx, console_lock
        test %ecx, %ecx
        jz 1f
        pause
        jmp lock_console
1:      ret

# Sends the line in one instruction, for that is one exit to the host, and lets the next vCPU write.
.global end_line
end_line:
        mov $'\n', %al
        call put_char
        push %rsi
        mov $line, %esi
        mov line_length, %ecx
        mov $COM1, %edx
        rep outsb
        pop %rsi
        movl $0, line_length
        movl $0, console_lock
        ret

# Adds to the line.  In: AL
.global put_char
put_char:
        mov line_length, %ecx
        mov %al, line(%rcx)
        incl line_length
        ret

# A space and one hexadecimal digit.  In: EAX
.global put_index
put_index:
        push %rax
        mov $' ', %al
        call put_char
        pop %rax
        movzbl digits(%rax), %eax
        jmp put_char

# A space and sixteen hexadecimal digits.  In: RAX
.global put_quad
put_quad:
        push %rbx
        push %rbp
        mov %rax, %rbx
        mov $' ', %al
        call put_char
        mov $16, %ebp
1:      rol $4, %rbx
        mov %ebx, %eax
        and $15, %eax
        movzbl digits(%rax), %eax
        call put_char
        dec %ebp
        jnz 1b
        pop %rbp
        pop %rbx
        ret

.section .rodata
digits: .ascii "0123456789abcdef"

.data
console_lock:
        .long 0
line_length:
        .long 0
line:   .skip 128
