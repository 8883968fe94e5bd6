# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m tests.bench.between relay|pump ...``: what is measured between a source and a destination.

``relay`` is `qmpfilter relay` with its arguments; ``pump HERE THERE`` passes one connection on as a relay does with
an extra channel. The last line on the standard error is the peak of resident bytes: what a parent could ask of a
child counts what the parent had when it forked.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from qmpfilter.cli.main import main
from qmpfilter.relay.address import parse_address, tune
from qmpfilter.relay.deadline import Deadline
from qmpfilter.relay.pump import Pump

_SECONDS = 60.0


def _say_peak() -> None:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            print(int(value.removesuffix("kB")) * 1024, file=sys.stderr)


def _pump(here: str, there: str) -> int:
    ended = threading.Event()
    errors: list[OSError] = []

    def end(error: OSError | None) -> None:
        if error is not None:
            errors.append(error)
        ended.set()

    with parse_address(here).listen() as listener:
        source, _ = listener.accept()
    destination = parse_address(there).connect(Deadline(_SECONDS, "connecting"))
    for connection in (source, destination):
        tune(connection)
    Pump(source, destination, end).start()
    ended.wait()
    return 1 if errors else 0


def _run(what: str, arguments: Sequence[str]) -> None:
    atexit.register(_say_peak)
    if what == "pump":
        sys.exit(_pump(*arguments))
    sys.exit(main([what, *arguments]))


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2:])
