# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs inside an emulated host.  Standard library only, Python 3.11 or later.

The package is sent along with a job and started as ``python3 -m inhost.MODULE``; outside it is
``tests.lab.inhost``.  So it imports from itself by relative names, and from nowhere else.
"""
