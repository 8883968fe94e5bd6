// SPDX-License-Identifier: GPL-2.0
/*
 * svm2: L2's state, emitted and consumed with KVM_GET_NESTED_STATE and
 * KVM_SET_NESTED_STATE.
 *
 * Legacy state has VMCB12's control area and L1's save area; L2's registers are
 * the vCPU's, where some of them are changed, shared with L1, or missing.  The
 * record adds VMCB12's save area as vmcb02 has it, and on the way in L2 is
 * loaded from it by the code that VMRUN uses.
 *
 * Included by nested.c, before svm_get_nested_state: it needs static functions
 * that stand above.
 */
#include <linux/crc32.h>
#include <linux/moduleparam.h>

#include "svm2.h"

static bool svm2 = true;
module_param(svm2, bool, 0644);
MODULE_PARM_DESC(svm2, "Emit and consume svm2 records with nested state");

/* The page that userspace keeps: legacy state, and the record behind it. */
struct svm2_page {
	u8 base[SVM2_RECORD_OFFSET];
	struct svm2_record record;
};

static_assert(sizeof(struct svm2_page) == KVM_STATE_NESTED_SVM_VMCB_SIZE);
static_assert(sizeof(struct vmcb_save_area) <= sizeof_field(struct svm2_record, save));

#ifdef KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT	/* Linux 7.2 and later */

static bool svm2_has_own_pat(struct vcpu_svm *svm)
{
	return l2_has_separate_pat(&svm->vcpu);
}

static bool svm2_check_save(struct kvm_vcpu *vcpu, struct vmcb_save_area_cached *save)
{
	return nested_vmcb_check_save(vcpu, save, false);
}

static void svm2_prepare_save(struct vcpu_svm *svm, struct vmcb *vmcb12)
{
	nested_vmcb02_prepare_save(svm);
}

#else

/* L2 shares L1's, always. */
static bool svm2_has_own_pat(struct vcpu_svm *svm)
{
	return false;
}

static bool svm2_check_save(struct kvm_vcpu *vcpu, struct vmcb_save_area_cached *save)
{
	return __nested_vmcb_check_save(vcpu, save);
}

static void svm2_prepare_save(struct vcpu_svm *svm, struct vmcb *vmcb12)
{
	nested_vmcb02_prepare_save(svm, vmcb12);
}

#endif

static u32 svm2_crc(const void *data, size_t size)
{
	return ~crc32_le(~0, data, size);
}

static u32 svm2_record_crc(const struct svm2_record *record)
{
	static const u8 zero[sizeof(record->record_crc)];
	const u8 *start = (const u8 *)record;
	size_t end = offsetofend(struct svm2_record, record_crc);
	u32 crc;

	crc = crc32_le(~0, start, offsetof(struct svm2_record, record_crc));
	crc = crc32_le(crc, zero, sizeof(zero));
	return ~crc32_le(crc, start + end, sizeof(*record) - end);
}

/* While userspace has breakpoints of its own, vmcb02's DR7 is not L2's. */
static bool svm2_has_l2_dr7(struct vcpu_svm *svm)
{
	return !(svm->vcpu.guest_debug & KVM_GUESTDBG_USE_HW_BP);
}

/* VMCB12's save area, as L2's #VMEXIT and a VMSAVE would leave it now. */
static void svm2_fill_save(struct vcpu_svm *svm, struct vmcb_save_area *to)
{
	struct vmcb *vmcb02 = svm->nested.vmcb02.ptr;
	struct kvm_vcpu *vcpu = &svm->vcpu;
	struct vmcb_save_area *from = &vmcb02->save;

	to->es = from->es;
	to->cs = from->cs;
	to->ss = from->ss;
	to->ds = from->ds;
	to->gdtr = from->gdtr;
	to->idtr = from->idtr;
	to->cpl = from->cpl;
	to->efer = vcpu->arch.efer;
	to->cr4 = kvm_read_cr4(vcpu);
	to->cr3 = kvm_read_cr3(vcpu);
	to->cr0 = kvm_read_cr0(vcpu);
	to->dr7 = svm2_has_l2_dr7(svm) ? from->dr7 : vcpu->arch.dr7;
	to->dr6 = vcpu->arch.dr6;
	to->rflags = kvm_get_rflags(vcpu);
	to->rip = kvm_rip_read(vcpu);
	to->rsp = kvm_rsp_read(vcpu);
	to->rax = vcpu->arch.regs[VCPU_REGS_RAX];
	to->cr2 = vcpu->arch.cr2;
	to->g_pat = svm2_has_own_pat(svm) ? from->g_pat : vcpu->arch.pat;
	to->s_cet = from->s_cet;
	to->ssp = from->ssp;
	to->isst_addr = from->isst_addr;
	to->dbgctl = from->dbgctl;
	to->br_from = from->br_from;
	to->br_to = from->br_to;
	to->last_excp_from = from->last_excp_from;
	to->last_excp_to = from->last_excp_to;
	to->spec_ctrl = svm->spec_ctrl;
	if (boot_cpu_has(X86_FEATURE_V_SPEC_CTRL))
		to->spec_ctrl = from->spec_ctrl;
}

/**
 * svm2_get_record - add a record to nested state of an active L2
 * @svm: the vCPU
 * @user_page: the VMCB page, where legacy state was copied to already
 *
 * Return: 0, -EFAULT or -ENOMEM.
 */
static int svm2_get_record(struct vcpu_svm *svm, void __user *user_page)
{
	struct svm2_record *record;
	struct svm2_page *page;
	struct vmcb *filled;
	int ret = -ENOMEM;

	if (!svm2)
		return 0;

	page = kzalloc(sizeof(*page), GFP_KERNEL_ACCOUNT);
	filled = kzalloc(sizeof(*filled), GFP_KERNEL_ACCOUNT);
	if (!page || !filled)
		goto out;

	ret = -EFAULT;
	if (copy_from_user(page->base, user_page, sizeof(page->base)))
		goto out;

	svm2_fill_save(svm, &filled->save);
	svm_copy_vmloadsave_state(filled, svm->vmcb01.ptr);

	record = &page->record;
	record->magic = SVM2_MAGIC;
	record->major = SVM2_MAJOR;
	record->minor = SVM2_MINOR;
	record->length = sizeof(*record);
	record->flags = SVM2_AUTHORITATIVE;
	record->vmcb_pa = svm->nested.vmcb12_gpa;
	record->validity = SVM2_VALID_LBR | SVM2_VALID_CET |
			   SVM2_VALID_NEXT_RIP | SVM2_VALID_INT_STATE |
			   SVM2_VALID_ATTRIBS | SVM2_VALID_SPEC_CTRL;
	if (svm2_has_l2_dr7(svm))
		record->validity |= SVM2_VALID_DR7;
	if (svm2_has_own_pat(svm))
		record->validity |= SVM2_VALID_G_PAT;
	record->producer = SVM2_PRODUCER_LINUX;
	record->producer_version = SVM2_PRODUCER_VERSION;
	record->l1_cr0 = svm->vmcb01.ptr->save.cr0;
	record->l1_cr3 = svm->vmcb01.ptr->save.cr3;
	record->l1_cr4 = svm->vmcb01.ptr->save.cr4;
	record->l1_efer = svm->vmcb01.ptr->save.efer;
	record->l1_pat = svm->vcpu.arch.pat;
	memcpy(record->save, &filled->save, sizeof(filled->save));
	record->base_crc = svm2_crc(page->base, sizeof(page->base));
	record->record_crc = svm2_record_crc(record);

	ret = 0;
	if (copy_to_user(user_page + SVM2_RECORD_OFFSET, record, sizeof(*record)))
		ret = -EFAULT;
out:
	kfree(filled);
	kfree(page);
	return ret;
}

static bool svm2_is_sound(struct svm2_page *page, u64 vmcb_pa)
{
	struct svm2_record *record = &page->record;

	if (record->major != SVM2_MAJOR || record->length != sizeof(*record) ||
	    record->record_crc != svm2_record_crc(record) ||
	    record->base_crc != svm2_crc(page->base, sizeof(page->base)) ||
	    record->vmcb_pa != vmcb_pa)
		return false;

	/* What a later minor adds is for those who know it. */
	if (record->minor != SVM2_MINOR)
		return true;

	return !(record->flags & ~SVM2_FLAGS) &&
	       !(record->validity & ~SVM2_VALIDITY) &&
	       !memchr_inv(record->reserved1, 0, sizeof(record->reserved1)) &&
	       !memchr_inv(record->reserved2, 0, sizeof(record->reserved2));
}

/*
 * What VMRUN demands of L2, and what would otherwise fail once the vCPU is in
 * guest mode already.
 */
static bool svm2_is_legal(struct kvm_vcpu *vcpu, struct vmcb_save_area *save)
{
	struct vmcb_save_area_cached cached;

	__nested_copy_vmcb_save_to_cache(&cached, save);
	return svm2_check_save(vcpu, &cached) &&
	       kvm_vcpu_is_legal_cr3(vcpu, save->cr3) &&
	       kvm_pat_valid(save->g_pat);
}

/**
 * svm2_take_record - L2 as a record in nested state has it
 * @vcpu: the vCPU
 * @user_page: the VMCB page that userspace gave
 * @vmcb_pa: of the nested state's header
 *
 * A record that is damaged, or belongs to another state, is never taken for
 * legacy state after all.
 *
 * Return: a VMCB12 with that save area, to be freed; NULL where L2 is in the
 * vCPU's registers; or an error.
 */
static struct vmcb *svm2_take_record(struct kvm_vcpu *vcpu,
				     const void __user *user_page, u64 vmcb_pa)
{
	struct svm2_page *page;
	struct vmcb *vmcb12 = NULL;

	if (!svm2)
		return NULL;

	page = memdup_user(user_page, sizeof(*page));
	if (IS_ERR(page))
		return ERR_CAST(page);

	if (page->record.magic != SVM2_MAGIC)
		goto out;

	if (!svm2_is_sound(page, vmcb_pa)) {
		vmcb12 = ERR_PTR(-EINVAL);
		goto out;
	}

	if (!(page->record.flags & SVM2_AUTHORITATIVE))
		goto out;

	vmcb12 = kzalloc(sizeof(*vmcb12), GFP_KERNEL_ACCOUNT);
	if (!vmcb12) {
		vmcb12 = ERR_PTR(-ENOMEM);
		goto out;
	}

	memcpy(&vmcb12->save, page->record.save, sizeof(vmcb12->save));
	if (!(page->record.validity & SVM2_VALID_G_PAT))
		vmcb12->save.g_pat = page->record.l1_pat;
	if (!svm2_is_legal(vcpu, &vmcb12->save)) {
		kfree(vmcb12);
		vmcb12 = ERR_PTR(-EINVAL);
	}
out:
	kfree(page);
	return vmcb12;
}

/* Before vmcb02's control area is prepared, which looks at CS and RIP. */
static void svm2_before_control(struct vcpu_svm *svm, struct vmcb *vmcb12)
{
	struct vmcb_save_area *save = &svm->nested.vmcb02.ptr->save;

	if (!vmcb12)
		return;

	save->cs = vmcb12->save.cs;
	save->rip = vmcb12->save.rip;
}

/* After it: the other half of a nested entry, and what VMLOAD would load. */
static void svm2_load_l2(struct vcpu_svm *svm, struct vmcb *vmcb12)
{
	struct kvm_vcpu *vcpu = &svm->vcpu;

	if (!vmcb12)
		return;

	/* Whatever was in vmcb02 before, all of it is loaded. */
	svm->nested.last_vmcb12_gpa = INVALID_GPA;
	nested_copy_vmcb_save_to_cache(svm, &vmcb12->save);
	svm2_prepare_save(svm, vmcb12);
	svm_copy_vmloadsave_state(svm->vmcb01.ptr, vmcb12);

	/* A nested entry leaves it L1's; but userspace may ask for it. */
	vcpu->arch.dr7 = svm->nested.vmcb02.ptr->save.dr7;

	/* Which the caller loads next. */
	vcpu->arch.cr3 = vmcb12->save.cr3;
}
