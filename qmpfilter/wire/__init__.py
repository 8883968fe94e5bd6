# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU migration stream, sans-IO: bytes in, events out. Knows nothing of SVM, sockets or clocks."""
