# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM itself, driven by its ioctls; knows nothing of nested state but that it is bytes."""
