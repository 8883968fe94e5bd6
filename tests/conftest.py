# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about what is tested.
_ANY_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# A test that wants more examples than others, or fewer, says how many times as many.
settings.register_profile("whole", _ANY_MACHINE, max_examples=100)
settings.register_profile("quick", _ANY_MACHINE, max_examples=20)
settings.load_profile("quick")
