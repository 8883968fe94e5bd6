# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the daemon's log goes: to the journal with fields of its own, or to stderr as text or JSON.

A record about a session carries its name as ``session`` (``extra={"session": name}``): in the journal that is
``QMPFILTER_SESSION``, so that ``journalctl QMPFILTER_SESSION=...`` shows one migration.

Source: systemd 252, systemd.exec(5) for JOURNAL_STREAM, systemd.journal-fields(7), and JOURNAL_NATIVE_PROTOCOL of its
documentation for the datagrams.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

__all__ = ["Form", "JournalHandler", "JsonFormatter", "configure"]

JOURNAL: Final = "/run/systemd/journal/socket"
_IDENTIFIER: Final = "qmpfilter"
# Longer datagrams would have to be passed as files.
_LONGEST: Final = 1 << 16
# syslog(3).
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG: Final = 7


class Form(enum.Enum):
    """What the log is to be."""

    AUTO = "auto"
    """To the journal where stderr goes there too, otherwise text."""
    JOURNAL = "journal"
    TEXT = "text"
    JSON = "json"


def configure(form: Form, environment: Mapping[str, str]) -> None:
    """Set the root logger up, instead of what it was."""
    handler: logging.Handler = logging.StreamHandler()
    if form is Form.JOURNAL or (form is Form.AUTO and _is_journal(environment.get("JOURNAL_STREAM", ""))):
        handler = JournalHandler()
        # Level and logger are fields of their own.
        handler.setFormatter(logging.Formatter())
    elif form is Form.JSON:
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


class JsonFormatter(logging.Formatter):
    """One object a line: ``at``, ``level``, ``message``, and ``session`` where it is about one."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": super().format(record),
        }
        if session := getattr(record, "session", ""):
            told["session"] = session
        return json.dumps(told, ensure_ascii=False)


class JournalHandler(logging.Handler):
    """Speaks the journal's own protocol. When it does not listen, stderr is told instead."""

    def __init__(self, path: str = JOURNAL) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        fields = {
            "MESSAGE": message.encode(errors="replace")[: _LONGEST // 2],
            "PRIORITY": str(_priority(record.levelno)).encode(),
            "SYSLOG_IDENTIFIER": _IDENTIFIER.encode(),
            "CODE_FUNC": record.funcName.encode(),
            "LOGGER": record.name.encode(),
        }
        if session := getattr(record, "session", ""):
            fields["QMPFILTER_SESSION"] = str(session).encode()
        try:
            self._socket.sendto(b"".join(_field(name, value) for name, value in fields.items()), self._path)
        except OSError:
            with contextlib.suppress(OSError):
                print(f"{record.levelname}: {message}", file=sys.stderr)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def _priority(level: int) -> int:
    return next((priority for least, priority in _PRIORITIES if level >= least), _DEBUG)


def _is_journal(stream: str) -> bool:
    """Whether stderr is still what JOURNAL_STREAM names: ``device:inode``."""
    with contextlib.suppress(OSError):
        told = os.fstat(sys.stderr.fileno())
        return stream == f"{told.st_dev}:{told.st_ino}"
    return False
