# SPDX-License-Identifier: GPL-2.0-or-later
"""What `qmpfilter inspect` knows of a stream: collected from events, shown as text or JSON."""
