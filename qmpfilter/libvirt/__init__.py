# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt: domains, their migrations, their policies, and what happens to them."""
