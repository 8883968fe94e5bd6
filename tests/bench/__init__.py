# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks: ratios against named peers, measured in one run. ``python -m tests.bench`` runs them all."""
