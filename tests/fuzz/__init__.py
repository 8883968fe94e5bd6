# SPDX-License-Identifier: GPL-2.0-or-later
"""Damages recordings of real streams by the thousand, and demands a typed error or a whole report of each.

A failure prints the recording and the seed; ``python -m tests.fuzz.worker --fixture NAME --seed N`` repeats it.
"""
