# SPDX-License-Identifier: GPL-2.0-or-later
"""The conversions proven on this host: a small L1 and L2, stopped, converted, restored, compared."""
