# SPDX-License-Identifier: GPL-2.0-or-later
"""What a destination's kernel and QEMU will do with a nested state: rules in data, facts of a host, the answer."""
