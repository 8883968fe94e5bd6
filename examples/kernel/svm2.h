/* SPDX-License-Identifier: GPL-2.0 */
/*
 * svm2: nested state of an L2 guest as three whole things, carried behind the
 * legacy state in the last 0x380 bytes of the page that userspace keeps.
 */
#ifndef __KVM_X86_SVM_SVM2_H
#define __KVM_X86_SVM_SVM2_H

#include <linux/types.h>

#define SVM2_RECORD_OFFSET	0xc80
#define SVM2_MAGIC		0x324d5653	/* "SVM2" */
#define SVM2_MAJOR		2
#define SVM2_MINOR		0
#define SVM2_PRODUCER_LINUX	2
#define SVM2_PRODUCER_VERSION	1

/* Flags. */
#define SVM2_CONVERTED		BIT(0)
#define SVM2_AUTHORITATIVE	BIT(1)
#define SVM2_FLAGS		(SVM2_CONVERTED | SVM2_AUTHORITATIVE)

/* Items of the save area that are exact. */
#define SVM2_VALID_DR7		BIT_ULL(0)
#define SVM2_VALID_G_PAT	BIT_ULL(1)
#define SVM2_VALID_LBR		BIT_ULL(2)
#define SVM2_VALID_CET		BIT_ULL(3)
#define SVM2_VALID_NEXT_RIP	BIT_ULL(4)
#define SVM2_VALID_INT_STATE	BIT_ULL(5)
#define SVM2_VALID_ATTRIBS	BIT_ULL(6)
#define SVM2_VALID_SPEC_CTRL	BIT_ULL(7)
#define SVM2_VALIDITY		GENMASK_ULL(7, 0)

/* All numbers are little-endian; reserved bytes are zero in minor 0. */
struct svm2_record {
	u32 magic;
	u16 major;
	u16 minor;
	u32 length;
	u32 flags;
	u64 vmcb_pa;
	u64 validity;
	u32 base_crc;		/* of the page before the record */
	u32 record_crc;		/* of the record with this field zero */
	u16 producer;
	u16 producer_version;
	u8 reserved1[0x14];
	u64 l1_cr0;		/* as L1 would read them */
	u64 l1_cr3;
	u64 l1_cr4;
	u64 l1_efer;
	u64 l1_pat;
	u8 reserved2[0x18];
	u8 save[0x300];		/* VMCB12's save area */
} __packed;

static_assert(SVM2_RECORD_OFFSET + sizeof(struct svm2_record) == 0x1000);
static_assert(offsetof(struct svm2_record, save) == 0xd00 - SVM2_RECORD_OFFSET);

#endif /* __KVM_X86_SVM_SVM2_H */
