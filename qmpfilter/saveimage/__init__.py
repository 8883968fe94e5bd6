# SPDX-License-Identifier: GPL-2.0-or-later
"""Where streams come from: libvirt save images (``virsh save``), bare recordings, compressed or not."""
