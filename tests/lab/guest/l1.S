# SPDX-License-Identifier: GPL-2.0-or-later
#
# L1 as a hypervisor: builds VMCB12, runs its L2 for ever, and proves at each exit that its own state came back.

.include "layout.inc"

.code64
.text

# A vCPU that stays in L1: its MSRs get the L1 values, then it does a worker's rounds itself.
# In: EDI = index.  Does not return.
.global run_l1_only
run_l1_only:
        mov %edi, %ebx
        mov $'1', %al
        call announce
        mov %ebx, %edi
        mov $1, %esi
        call prepare_context
        call load_l1_msrs
        mov %r12, %rsp
        jmp worker

# A vCPU that runs an L2.  RBX keeps the index, R13 VMCB12, R14 the page that holds L1's own VMLOAD state.
# In: EDI = index, ESI = mode letter.  Does not return.
.global run_l1_with_l2
run_l1_with_l2:
        mov %edi, %ebx
        mov %esi, %ebp
        mov %esi, %eax
        call announce
        mov %ebx, %eax
        shl $12, %eax
        lea hsave_pages(%rax), %ecx
        lea vmcb12_pages(%rax), %r13d
        lea host_pages(%rax), %r14d
        mov %ecx, %eax
        xor %edx, %edx
        mov $0xc0010117, %ecx           # VM_HSAVE_PA
        wrmsr
        mov %ebx, %edi
        mov $2, %esi
        call prepare_context
        call build_vmcb12
        call load_l1_msrs
        mov %r14, %rax
        vmsave
        jmp enter_l2

# The loop.  The L2's registers other than RAX and RSP lie in l2_registers between an exit and the next entry.
enter_l2:
        mov %ebx, %eax
        shl $7, %eax
        lea l2_registers(%rax), %r15
        push %rbx
        push %r13
        push %r14
        push %r15
        clgi
        mov %r13, %rax
        vmload
        mov 0x00(%r15), %rcx
        mov 0x08(%r15), %rdx
        mov 0x10(%r15), %rbx
        mov 0x18(%r15), %rbp
        mov 0x20(%r15), %rsi
        mov 0x28(%r15), %rdi
        mov 0x30(%r15), %r8
        mov 0x38(%r15), %r9
        mov 0x40(%r15), %r10
        mov 0x48(%r15), %r11
        mov 0x50(%r15), %r12
        mov 0x58(%r15), %r13
        mov 0x60(%r15), %r14
        mov 0x68(%r15), %r15
        vmrun
        vmsave
        xchg %r15, (%rsp)               # R15 = l2_registers; L2's R15 takes its place on the stack
        mov %rcx, 0x00(%r15)
        mov %rdx, 0x08(%r15)
        mov %rbx, 0x10(%r15)
        mov %rbp, 0x18(%r15)
        mov %rsi, 0x20(%r15)
        mov %rdi, 0x28(%r15)
        mov %r8, 0x30(%r15)
        mov %r9, 0x38(%r15)
        mov %r10, 0x40(%r15)
        mov %r11, 0x48(%r15)
        mov %r12, 0x50(%r15)
        mov %r13, 0x58(%r15)
        mov %r14, 0x60(%r15)
        popq 0x68(%r15)
        mov %rax, %r12                  # VMRUN brings L1's RAX back: the address of VMCB12
        pop %r14
        pop %r13
        pop %rbx
        mov %r14, %rax
        vmload
        stgi

        mov $0xf0, %ebp                 # what is wrong, should verify_l1 not be reached
        cmp %r13, %r12
        jne l1_corrupted
        call verify_l1
        mov VMCB_EXIT_CODE(%r13), %rax
        cmp $EXIT_VMMCALL, %rax
        jne unexpected_exit
        addq $3, VMCB_RIP(%r13)         # length of VMMCALL
        incq exits(, %rbx, 8)
        call lock_console
        mov $'v', %al
        call put_char
        mov %ebx, %eax
        call put_index
        mov exits(, %rbx, 8), %rax
        call put_quad
        call end_line
        jmp enter_l2

unexpected_exit:
        mov %rax, %rbp
        call lock_console
        mov $'X', %al
        call put_char
        mov %ebx, %eax
        call put_index
        mov %rbp, %rax
        call put_quad
        call end_line
1:      hlt
        jmp 1b

# Compares L1's control registers and MSRs with what L1 set.  In: RBX = index.
verify_l1:
        mov $0xf1, %ebp
        mov %cr0, %r12
        mov $0x80010033, %eax
        cmp %rax, %r12
        jne l1_corrupted
        mov $0xf2, %ebp
        mov %cr3, %r12
        cmp $l1_pml4, %r12
        jne l1_corrupted
        mov $0xf3, %ebp
        mov %cr4, %r12
        cmp $0x6e8, %r12
        jne l1_corrupted
        xor %ebp, %ebp
1:      mov msr_table(, %rbp, 8), %ecx
        rdmsr
        shl $32, %rdx
        or %rdx, %rax
        mov %rax, %r12
        mov $1, %edi
        mov %ebx, %esi
        lea SLOT_MSR(%rbp), %edx
        call slot_value
        cmp %rax, %r12
        jne 2f
        inc %ebp
        cmp $MSR_COUNT, %ebp
        jb 1b
        ret
2:      add $SLOT_MSR, %ebp
        jmp l1_corrupted

# "! INDEX 1 SLOT FOUND", then nothing more from this vCPU.
# In: RBX = index, EBP = slot or 0xf0..0xf3 for RAX, CR0, CR3, CR4 of L1, R12 = value found.  Does not return.
l1_corrupted:
        call lock_console
        mov $'!', %al
        call put_char
        mov %ebx, %eax
        call put_index
        mov $1, %eax
        call put_index
        mov %rbp, %rax
        call put_quad
        mov %r12, %rax
        call put_quad
        call end_line
1:      hlt
        jmp 1b

# Writes the L1 values to the watched MSRs.  In: RBX = index.
load_l1_msrs:
        xor %ebp, %ebp
1:      mov $1, %edi
        mov %ebx, %esi
        lea SLOT_MSR(%rbp), %edx
        call slot_value
        mov %rax, %rdx
        shr $32, %rdx
        mov msr_table(, %rbp, 8), %ecx
        wrmsr
        inc %ebp
        cmp $MSR_COUNT, %ebp
        jb 1b
        ret

# In: RBX = index, EBP = mode letter, R12 = the L2's context, R13 = VMCB12.
build_vmcb12:
        # Intercepts that the L2 does not run into, beside the two it needs: a decode of the page shows each
        # word with a value of its own.
        movl $0x01000100, VMCB_CR(%r13)         # CR8, reads and writes
        movl $0x00300030, VMCB_DR(%r13)         # DR4 and DR5
        movl $0x00040040, VMCB_EXCEPTIONS(%r13) # #UD, #MC
        movl $0xb9048002, VMCB_WORD3(%r13)      # NMI, RDPMC, CPUID, HLT, IO map, MSR map, task switch, shutdown
        movl $0x00004277, VMCB_WORD4(%r13)      # VMRUN, VMMCALL, VMLOAD, STGI, CLGI, SKINIT, WBINVD, RDPRU
        movl $0x00000004, VMCB_WORD5(%r13)      # INVPCID
        movq $io_map, VMCB_IOPM(%r13)
        movb $0xff, io_map + 0x60 / 8           # ports 0x60 to 0x67, which the L2 leaves alone
        movq $msr_map, VMCB_MSRPM(%r13)
        movb $0x03, msr_map + 0x800             # MSR 0xc0000000, which does not exist
        mov $0x123456000, %rax
        mov %rax, VMCB_TSC_OFFSET(%r13)
        lea 5(%rbx), %eax
        mov %eax, VMCB_ASID(%r13)
        movl $0x01000003, VMCB_INT_CTL(%r13)    # V_TPR 3, V_INTR_MASKING, no virtual interrupt pending
        cmp $'n', %bpl
        jne 1f
        movl $1, VMCB_NESTED_CTL(%r13)
        movq $npt_pml4, VMCB_NESTED_CR3(%r13)
1:
        movl $0x0c930028, VMCB_ES(%r13)         # selector and attributes
        movl $0x0a9b0020, VMCB_CS(%r13)
        movl $0x0c930028, VMCB_SS(%r13)
        movl $0x0c930028, VMCB_DS(%r13)
        movl $0xffffffff, VMCB_ES + 4(%r13)
        movl $0xffffffff, VMCB_CS + 4(%r13)
        movl $0xffffffff, VMCB_SS + 4(%r13)
        movl $0xffffffff, VMCB_DS + 4(%r13)
        movl $0x00f30033, VMCB_FS(%r13)
        movl $0x000fffff, VMCB_FS + 4(%r13)
        movl $0x00f3003b, VMCB_GS(%r13)
        movl $0x0007ffff, VMCB_GS + 4(%r13)
        movl $gdt_limit, VMCB_GDTR + 4(%r13)
        movq $gdt, VMCB_GDTR + 8(%r13)
        movl $0x0fef, VMCB_IDTR + 4(%r13)
        movq $0x7a2000, VMCB_IDTR + 8(%r13)
        movl $0x00820040, VMCB_LDTR(%r13)
        movl $0x0037, VMCB_LDTR + 4(%r13)
        movq $0x7a3000, VMCB_LDTR + 8(%r13)
        movl $0x008b0048, VMCB_TR(%r13)
        movl $0x0067, VMCB_TR + 4(%r13)
        movq $0x7a4000, VMCB_TR + 8(%r13)

        # Different from L1's in a bit each, so that no decode can take one for the other
        movl $0x1501, VMCB_EFER(%r13)           # without NXE; LMA beside LME, or VMRUN refuses
        movl $0x620, VMCB_CR4(%r13)             # without DE and PGE
        movq $l2_pml4, VMCB_CR3(%r13)
        mov $0x80050033, %eax                   # with AM
        mov %rax, VMCB_CR0(%r13)
        movq $0x700, VMCB_DR7(%r13)             # never read back: KVM mixes up DR7 of L1 and L2
        mov $0xffff0ff0, %eax
        mov %rax, VMCB_DR6(%r13)
        movq $0x2, VMCB_RFLAGS(%r13)
        movq $worker, VMCB_RIP(%r13)
        mov %r12, VMCB_RSP(%r13)
        mov $0x0007040600070106, %rax           # with WC as entry 1
        mov %rax, VMCB_G_PAT(%r13)

        # VMLOAD state: the L2's values of the watched MSRs
        xor %r15d, %r15d
1:      mov $2, %edi
        mov %ebx, %esi
        lea SLOT_MSR(%r15), %edx
        call slot_value
        mov msr_table + 4(, %r15, 8), %ecx
        mov %rax, (%r13, %rcx)
        inc %r15d
        cmp $MSR_COUNT, %r15d
        jb 1b
        ret

# "S INDEX MODE": the vCPU runs.  In: AL = mode letter, RBX = index.
announce:
        mov %eax, %r15d
        call lock_console
        mov $'S', %al
        call put_char
        mov %ebx, %eax
        call put_index
        mov $' ', %al
        call put_char
        mov %r15d, %eax
        call put_char
        jmp end_line

.bss
.align 4096
.global vmcb12_pages
vmcb12_pages:
        .skip CPUS_MAX * 4096
hsave_pages:
        .skip CPUS_MAX * 4096
host_pages:
        .skip CPUS_MAX * 4096
io_map: .skip 3 * 4096
msr_map:
        .skip 2 * 4096
l2_registers:
        .skip CPUS_MAX * 128
exits:  .skip CPUS_MAX * 8
