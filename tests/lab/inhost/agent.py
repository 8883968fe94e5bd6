# SPDX-License-Identifier: GPL-2.0-or-later
"""The one program an emulated host starts: takes jobs from a virtio-serial port and answers with results.

A message, either way, is a header (be32 length of a JSON object, be64 length of a tar archive), the JSON and
the tar.  A job's JSON is ``{"argv": [...], "timeout": seconds}`` and its tar is unpacked into an empty
directory in which argv runs; the reply's JSON is ``{"returncode": int, "output": text}``, with returncode -9 and a
remark in the output when the time ran out, and its tar holds what the job left in its directory ``out``.

This file is part of the host's image and is used from outside for its framing alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

HEADER = Struct(">IQ")
PORT = Path("/dev/vport0p1")
JOB = Path("/job")
Port = BinaryIO | io.BufferedRWPair


def send_message(port: Port, fields: dict[str, Any], archive: bytes) -> None:
    """Writes one message and flushes it."""
    text = json.dumps(fields).encode()
    port.write(HEADER.pack(len(text), len(archive)))
    port.write(text)
    port.write(archive)
    port.flush()


def receive_message(port: Port) -> tuple[dict[str, Any], bytes]:
    """Reads one message; raises EOFError if the port ends before its last byte."""
    text_length, archive_length = HEADER.unpack(_read_exactly(port, HEADER.size))
    fields = json.loads(_read_exactly(port, text_length))
    return fields, _read_exactly(port, archive_length)


def pack_directory(directory: Path) -> bytes:
    """A tar archive of what the directory holds, by names relative to it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(directory, arcname=".")
    return buffer.getvalue()


def unpack(archive: bytes, directory: Path) -> None:
    """Unpacks a tar archive made by pack_directory."""
    subprocess.run(["tar", "-xf", "-", "-C", directory], input=archive, check=True)


def _read_exactly(port: Port, count: int) -> bytes:
    parts: list[bytes] = []
    missing = count
    while missing:
        part = port.read(min(missing, 1 << 20))
        if not part:
            raise EOFError(f"the port ended {missing} bytes before the end of a block of {count}")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _run(argv: list[str], timeout: float) -> dict[str, Any]:
    log = Path("/run/job.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, cwd=JOB, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            returncode = process.wait(timeout)
        except subprocess.TimeoutExpired:
            returncode = -signal.SIGKILL
            output.write(f"\nthe job ran into its deadline of {timeout:g} s\n".encode())
        finally:
            # What the job started and left behind goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {"returncode": returncode, "output": log.read_text(errors="replace")}


def serve(port: Port) -> None:
    """Says hello, then does jobs until the port ends."""
    send_message(port, {"hello": os.uname().release}, b"")
    while True:
        job, archive = receive_message(port)
        shutil.rmtree(JOB, ignore_errors=True)
        (JOB / "out").mkdir(parents=True)
        unpack(archive, JOB)
        reply = _run(job["argv"], job["timeout"])
        send_message(port, reply, pack_directory(JOB / "out"))


if __name__ == "__main__":
    with PORT.open("r+b", buffering=0) as raw:
        try:
            # One write to the port takes 32 KiB at most; the pair writes the rest.
            serve(io.BufferedRWPair(raw, raw))
        except EOFError as end:
            sys.exit(str(end))
