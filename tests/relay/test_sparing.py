# SPDX-License-Identifier: GPL-2.0-or-later
"""What strangers cause is written down for a while, what went wrong always."""

from __future__ import annotations

import io
import logging

from qmpfilter.relay.sparing import Sparing

MOST = 2000


def test_warnings_end_and_errors_do_not() -> None:
    log, text = logging.Logger("one"), io.StringIO()
    handler = logging.StreamHandler(text)
    handler.addFilter(Sparing(MOST))
    log.addHandler(handler)
    for number in range(100):
        log.warning("a connection of %s was closed", number)
    log.error("the report could not be written")
    *warnings, last, error = text.getvalue().splitlines()
    assert warnings[:2] == ["a connection of 0 was closed", "a connection of 1 was closed"]
    assert last == "there is more to warn of, and none of it is written down"
    assert error == "the report could not be written"
    assert 10 < len(warnings) < 30


def test_one_that_is_too_long_is_not_written() -> None:
    log, text = logging.Logger("one"), io.StringIO()
    handler = logging.StreamHandler(text)
    handler.addFilter(Sparing(MOST))
    log.addHandler(handler)
    log.warning("%s", "x" * MOST)
    assert len(text.getvalue()) < 100
