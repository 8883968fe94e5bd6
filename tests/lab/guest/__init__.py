# SPDX-License-Identifier: GPL-2.0-or-later
"""The L1 guest: assembly sources, and the module that builds it."""
