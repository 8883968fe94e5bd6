# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of migrations that are over, as a person reads them: text, and pages that need nothing else."""
