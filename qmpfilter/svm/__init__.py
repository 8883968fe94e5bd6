# SPDX-License-Identifier: GPL-2.0-or-later
"""AMD SVM nested state: the VMCB, what KVM saves around it, what can be wrong. Bytes in, values out."""
