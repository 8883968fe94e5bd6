# SPDX-License-Identifier: GPL-2.0-or-later
#
# From the multiboot loader to long mode, on every vCPU, and the reading of the command line:
#
#   vcpus=LETTERS   one letter per vCPU: a mode of mode_table in l1.S, or - for a vCPU that is never started
#   dirty=PAGES     pages each worker writes to at every verification (default 0)
#   spin=COUNT      iterations between two verifications (default 400000)

.include "layout.inc"

.section .text.boot, "ax"
.code32
.align 4
multiboot_header:
        .long 0x1badb002
        .long 0
        .long -0x1badb002

.global _start
_start:
        cli
        mov $l1_stacks + 4096, %esp
        mov 16(%ebx), %eax              # multiboot information: address of the command line
        mov %eax, command_line

        # Identity maps of the first 4 GiB: L1's, L2's, and the nested one with 2 MiB pages, then those of a 32-bit
        # L2, with PAE and without.  They share no page, because KVM write-protects the tables it shadows, and a walk
        # of the one map that sets accessed bits in a table of the other would then fault without end.
        mov $l1_pml4, %edi
        call build_map
        mov $l2_pml4, %edi
        call build_map
        mov $npt_pml4, %edi
        call build_map
        mov $pae_pdpt, %edi
        mov $1, %eax                    # present; the other bits are reserved here
        call build_directories
        mov $legacy_directory, %edi
        mov $0xe7, %eax                 # as in build_directories, 4 MiB
        mov $1024, %ecx
1:      mov %eax, (%edi)
        add $4, %edi
        add $0x400000, %eax
        loop 1b
        jmp enter_long_mode

# In: EDI = PML4, followed by the page directory pointers and four page directories.
build_map:
        lea 4096 + 0x67(%edi), %eax     # present, writable, user (nested walks are user accesses), accessed, dirty
        mov %eax, (%edi)
        add $4096, %edi
        mov $0x67, %eax

# In: EDI = page directory pointers, followed by four page directories; EAX = low bits of a pointer.
build_directories:
        lea 4096(%edi, %eax), %eax
        mov $4, %ecx
1:      mov %eax, (%edi)
        add $4096, %eax
        add $8, %edi
        loop 1b
        add $4096 - 4 * 8, %edi
        mov $0xe7, %eax                 # the same, 2 MiB
        mov $4 * 512, %ecx
1:      mov %eax, (%edi)
        add $8, %edi
        add $0x200000, %eax
        loop 1b
        ret

enter_long_mode:
        mov $l1_pml4, %eax
        mov %eax, %cr3
        mov $0x6e8, %eax                # DE, PAE, MCE, PGE, OSFXSR, OSXMMEXCPT; KVM may set MCE anyway
        mov %eax, %cr4
        mov $0xc0000080, %ecx
        mov $0x1901, %eax               # EFER: SCE, LME, NXE, SVME
        xor %edx, %edx
        wrmsr
        mov $0x80010033, %eax           # CR0: PG, WP, NE, ET, MP, PE
        mov %eax, %cr0
        lgdt gdtr
        ljmp $0x08, $long_mode

.code64
long_mode:
        mov $0x10, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %ss
        xor %eax, %eax
        mov %eax, %fs
        mov %eax, %gs
        mov $LAPIC, %ebp
        mov 0x20(%rbp), %edi            # APIC id; equals the vCPU's index
        shr $24, %edi
        mov %edi, %esp                  # stack of vCPU N ends where its stacks[N] does
        inc %esp
        shl $12, %esp
        add $l1_stacks, %esp
        test %edi, %edi
        jnz run_vcpu
        call parse_command_line
        call start_others
        xor %edi, %edi
        jmp run_vcpu

# In: EDI = index.  Does not return.
run_vcpu:
        movzbl modes(%rdi), %esi
        call mode_of_letter
        test $MODE_L1, %eax
        jnz run_l1_only
        jmp run_l1_with_l2

# Sends INIT, SIPI, SIPI to every vCPU on the command line that is to run.
start_others:
        mov $trampoline, %esi
        mov $TRAMPOLINE, %edi
        mov $trampoline_end - trampoline, %ecx
        rep movsb
        mov $1, %ebx
1:      movzbl modes(%rbx), %eax
        test %eax, %eax
        jz 3f
        cmp $'-', %al
        je 2f
        mov %ebx, %edx
        shl $24, %edx
        mov $0x4500, %eax               # INIT, assert
        call send_ipi
        mov $0x4600 + TRAMPOLINE / 4096, %eax
        call send_ipi
        call send_ipi
2:      inc %ebx
        cmp $CPUS_MAX, %ebx
        jb 1b
3:      ret

# In: EAX = low half of the interrupt command, EDX = high half.  Spoils RBP.
send_ipi:
        mov $LAPIC, %ebp
        mov %edx, 0x310(%rbp)
        mov %eax, 0x300(%rbp)
1:      testl $0x1000, 0x300(%rbp)      # delivery pending
        jnz 1b
        ret

parse_command_line:
        mov command_line, %esi
next_word:
        mov (%rsi), %eax
        test %al, %al
        jz 9f
        cmp $0x75706376, %eax           # "vcpu"
        je vcpus_word
        cmp $0x74726964, %eax           # "dirt"
        je dirty_word
        cmp $0x6e697073, %eax           # "spin"
        je spin_word
        inc %rsi
        jmp next_word
9:      ret
vcpus_word:
        add $6, %rsi
        xor %ecx, %ecx
1:      lodsb
        cmp $' ', %al
        jbe 2f
        mov %al, modes(%rcx)
        inc %ecx
        cmp $CPUS_MAX, %ecx
        jb 1b
        inc %rsi
2:      dec %rsi
        jmp next_word
dirty_word:
        add $6, %rsi
        call parse_number
        mov %rax, dirty_pages
        jmp next_word
spin_word:
        add $5, %rsi
        call parse_number
        mov %rax, spin_count
        jmp next_word

# In: RSI = first digit.  Out: RAX = number, RSI = first byte that is no digit.
parse_number:
        xor %eax, %eax
1:      movzbl (%rsi), %ecx
        sub $'0', %ecx
        cmp $9, %ecx
        ja 2f
        imul $10, %rax
        add %rcx, %rax
        inc %rsi
        jmp 1b
2:      ret

# Copied to TRAMPOLINE; an application processor starts here in real mode.
.code16
trampoline:
        cli
        xor %ax, %ax
        mov %ax, %ds
        lgdtl TRAMPOLINE + (trampoline_gdtr - trampoline)
        mov %cr0, %eax
        or $1, %eax
        mov %eax, %cr0
        ljmpl $0x18, $protected_mode
trampoline_gdtr:
        .word gdt_limit
        .long gdt
trampoline_end:

.code32
protected_mode:
        mov $0x10, %eax
        mov %eax, %ds
        jmp enter_long_mode

.data
.align 8
gdt:    .quad 0
        .quad 0x00af9b000000ffff        # 08 64-bit code of L1
        .quad 0x00cf93000000ffff        # 10 data of L1
        .quad 0x00cf9b000000ffff        # 18 32-bit code on the way to long mode
        .quad 0x00af9b000000ffff        # 20 64-bit code of L2
        .quad 0x00cf93000000ffff        # 28 data of L2
gdt_end:
.global gdt, gdt_limit
.set gdt_limit, gdt_end - gdt - 1
gdtr:   .word gdt_limit
        .long gdt
command_line:
        .quad 0
.global modes
modes:  .ascii "2"
        .skip CPUS_MAX
.global dirty_pages
dirty_pages:
        .quad 0
.global spin_count
spin_count:
        .quad 400000

.bss
.align 4096
.global l2_pml4, npt_pml4
.global l1_pml4
l1_pml4:
        .skip MAP_SIZE
l2_pml4:
        .skip MAP_SIZE
npt_pml4:
        .skip MAP_SIZE
.global pae_pdpt, legacy_directory
pae_pdpt:
        .skip MAP_SIZE - 4096
legacy_directory:
        .skip 4096
.global pae_pdpts
pae_pdpts:                              # each L2's own, 32 bytes
        .skip 4096
l1_stacks:
        .skip CPUS_MAX * 4096
