# SPDX-License-Identifier: GPL-2.0-or-later
"""Sockets to sockets: the only place that touches migration sockets."""
