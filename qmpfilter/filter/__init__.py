# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream's events and what is wanted of it -> the same stream, edited, and what was found in it. Pure."""
