# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m qmpfilter``."""

import sys

from qmpfilter.cli.main import main

sys.exit(main())
