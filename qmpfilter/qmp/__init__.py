# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations that are begun over QMP: the QEMUs at both ends, asked and told."""
