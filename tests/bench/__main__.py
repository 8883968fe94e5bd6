# SPDX-License-Identifier: GPL-2.0-or-later
"""Run every benchmark; fails if one falls short of what is promised."""

import sys

from tests.bench import conversion, inspect_throughput

sys.exit(0 if all([inspect_throughput.run(), conversion.run()]) else 1)
