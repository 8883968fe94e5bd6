# SPDX-License-Identifier: GPL-2.0-or-later
#
# L1 as a hypervisor: builds VMCB12, runs its L2 for ever, and proves at each exit that its own state came back.

.include "layout.inc"

.code64
.text

# In: ESI = letter.  Out: EAX = bits of the mode.  An unknown letter is a mistake of the command line: stops.
.global mode_of_letter
mode_of_letter:
        mov $mode_table, %ecx
1:      mov (%rcx), %edx
        test %edx, %edx
        jz 2f
        mov 4(%rcx), %eax
        add $8, %ecx
        cmp %esi, %edx
        jne 1b
        ret
2:      hlt
        jmp 2b

# A vCPU that stays in L1: its MSRs get the L1 values, then it does a worker's rounds itself.
# In: EDI = index, ESI = mode letter, EAX = bits of the mode.  Does not return.
.global run_l1_only
run_l1_only:
        mov %edi, %ebx
        mov %eax, mode_bits(, %rbx, 4)
        mov %esi, %eax
        call announce
        mov %ebx, %edi
        mov $1, %esi
        call prepare_context
        mov mode_bits(, %rbx, 4), %eax
        mov %eax, CTX_MODE(%r12)
        call load_l1_msrs
        mov %r12, %rsp
        jmp worker

# A vCPU that runs an L2.  RBX keeps the index, R13 VMCB12, R14 the page that holds L1's own VMLOAD state.
# In: EDI = index, ESI = mode letter, EAX = bits of the mode.  Does not return.
.global run_l1_with_l2
run_l1_with_l2:
        mov %edi, %ebx
        mov %eax, mode_bits(, %rbx, 4)
        mov %eax, %ebp
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
        mov mode_bits(, %rbx, 4), %eax
        mov %eax, CTX_MODE(%r12)
        call build_vmcb12
        call load_l1_msrs
        mov %r14, %rax
        vmsave
        mov mode_bits(, %rbx, 4), %ebp
        test $MODE_32BIT, %ebp
        jz 1f
        call prepare_context32
1:      test $MODE_SMI, %ebp
        jz 1f
        mov $smi_handler, %esi
        mov $SMI_ENTRY, %edi
        mov $smi_handler_end - smi_handler, %ecx
        rep movsb
1:      test $MODE_NMI, %ebp
        jz 1f
        mov $LAPIC, %eax
        movl $0x400, 0x360(%rax)        # LINT1 delivers NMIs
        mov $0xff, %al                  # the BIOS's timer interrupt never comes through, but KVM waits for it with a
        out %al, $0x21                  # V_IRQ of its own, which then stands in nested state
        out %al, $0xa1
1:      test $MODE_IF_L1, %ebp
        jz 1f
        sti
1:      test $MODE_INJECT, %ebp
        jnz inject
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
        testl $MODE_PAE, mode_bits(, %rbx, 4)
        jz 1f
        # The emulator of the laboratory sets an accessed bit in these, which KVM holds for a reserved one.
        mov %ebx, %eax
        shl $5, %eax
        .irp at, 0, 8, 16, 24
        mov pae_pdpt + \at, %rcx
        mov %rcx, pae_pdpts + \at(%rax)
        .endr
1:      testl $MODE_NO_DR | MODE_DR7, mode_bits(, %rbx, 4)
        jz 1f
        mov $DR7_OF_L1, %eax
        mov %rax, %dr7
1:      clgi
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
        testl $MODE_32BIT, mode_bits(, %rbx, 4)
        jz enter_l2
        call report32
        jmp enter_l2

# In: RAX = exit code, RBX = index.  Does not return.
.global unexpected_exit
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
.global l1_corrupted
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

# In: RBX = index, EBP = bits of the mode, R12 = the L2's context, R13 = VMCB12.
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
        test $MODE_UNMASKED, %ebp
        jz 1f
        movl $0x00000003, VMCB_INT_CTL(%r13)
1:      test $MODE_VGIF, %ebp
        jz 1f
        orl $0x02000200, VMCB_INT_CTL(%r13)     # V_GIF_ENABLE, V_GIF
1:      test $MODE_CLGI, %ebp
        jz 1f
        andl $~0x30, VMCB_WORD4(%r13)           # STGI, CLGI
1:      test $MODE_NMI, %ebp
        jz 1f
        andl $~0x2, VMCB_WORD3(%r13)            # NMI
1:      test $MODE_NESTED, %ebp
        jz 1f
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
        movq $DR7_IN_VMCB12, VMCB_DR7(%r13)     # never read back: KVM mixes up DR7 of L1 and L2
        mov $0xffff0ff0, %eax
        mov %rax, VMCB_DR6(%r13)
        movq $0x2, VMCB_RFLAGS(%r13)
        movq $worker, VMCB_RIP(%r13)
        mov %r12, VMCB_RSP(%r13)
        mov $0x0007040600070106, %rax           # with WC as entry 1
        mov %rax, VMCB_G_PAT(%r13)

        test $MODE_IF_L2, %ebp
        jz 1f
        orl $0x200, VMCB_RFLAGS(%r13)
1:      test $MODE_NMI | MODE_INJECT, %ebp
        jz 1f
        call build_l2_idt
        movl $l2_idt_limit, VMCB_IDTR + 4(%r13)
        movq $l2_idt, VMCB_IDTR + 8(%r13)
1:      test $MODE_32BIT, %ebp
        jz 1f
        movl $0x0c9b0018, VMCB_CS(%r13)
        movl $0x1001, VMCB_EFER(%r13)           # SCE and SVME
        movq $worker32, VMCB_RIP(%r13)
        mov %ebx, %eax
        shl $5, %eax
        add $pae_pdpts, %eax
        mov %rax, VMCB_CR3(%r13)
        test $MODE_PAE, %ebp
        jnz 1f
        movl $0x610, VMCB_CR4(%r13)             # PSE in place of PAE
        movq $legacy_directory, VMCB_CR3(%r13)
1:
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

# Letter and bits of each mode.  2, n and 1 have been there from the first recordings on.
.section .rodata
.align 8
mode_table:
        .long '2', 0
        .long 'n', MODE_NESTED
        .long '1', MODE_L1
        .long '0', MODE_L1 | MODE_CLGI
        .long 'p', MODE_NESTED | MODE_32BIT | MODE_PAE
        .long 'P', MODE_32BIT | MODE_PAE
        .long 'w', MODE_NESTED | MODE_32BIT
        .long 'W', MODE_32BIT | MODE_UNMASKED
        .long 'c', MODE_CLGI
        .long 'v', MODE_NESTED | MODE_VGIF | MODE_CLGI
        .long 'V', MODE_NESTED | MODE_VGIF
        .long 'i', MODE_IF_L2
        .long 'I', MODE_NESTED | MODE_IF_L1
        .long 'd', MODE_NESTED | MODE_NO_DR
        .long 'D', MODE_NESTED | MODE_DR7
        .long 'N', MODE_NESTED | MODE_NMI
        .long 'r', MODE_NESTED | MODE_INJECT
        .long 's', MODE_SMI
        .long 0

# Copied to SMI_ENTRY: stays in SMM for long, then goes back.
.code16
smi_handler:
        mov $SMI_LOOP, %ecx
1:      addr32 loop 1b
        rsm
smi_handler_end:
.code64

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
.global exits
exits:  .skip CPUS_MAX * 8
mode_bits:
        .skip CPUS_MAX * 4
