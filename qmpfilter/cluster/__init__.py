# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts of a cluster together: what they publish, what they agree on, and where it is kept."""
