# SPDX-License-Identifier: GPL-2.0-or-later
"""qmpfilter: live migration of AMD virtual machines that run virtual machines."""

__all__ = ["__version__"]

__version__ = "0.1.0"
