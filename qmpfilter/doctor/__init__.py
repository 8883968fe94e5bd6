# SPDX-License-Identifier: GPL-2.0-or-later
"""What this host is fit for: its facts gathered, checks over them, and the lines that say so."""
