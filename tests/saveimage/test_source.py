# SPDX-License-Identifier: GPL-2.0-or-later
"""One stream, however it is kept."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpfilter.errors import BugError, HostError, ImageError, StreamError, TruncatedError
from qmpfilter.saveimage.header import HEADER_SIZE, ByteOrder, SaveFormat
from qmpfilter.saveimage.identity import DomainIdentity
from qmpfilter.saveimage.source import Kind, Source, open_source
from tests.saveimage.images import (
    COMPRESSED,
    NAME,
    PADDING,
    SECRET,
    STREAM,
    UUID,
    XML,
    compress,
    contents,
    drain,
    image,
    write,
)

every_format = pytest.mark.parametrize("format_", [SaveFormat.RAW, *COMPRESSED], ids=lambda f: f.label)
every_compression = pytest.mark.parametrize("format_", COMPRESSED, ids=lambda f: f.label)


COPY = """
import sys
from qmpfilter.saveimage.source import open_source
from tests.saveimage.images import drain
with open_source("-") as source:
    sys.stdout.buffer.write(drain(source))
    print(source.size, source.position(), file=sys.stderr)
"""

# A process of its own, because the peak that the system tells is that of a program's whole life.
MEASURE = """
from pathlib import Path
from qmpfilter.saveimage.source import open_source
buffer = memoryview(bytearray(1 << 16))
total = 0
with open_source("-") as source:
    while got := source.readinto(buffer):
        total += got
print(total, Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def script(text: str, stdin: int | None, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", text],
        stdin=stdin,
        input=data,
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


@every_format
def test_bare_stream(tmp_path: Path, format_: SaveFormat) -> None:
    data = compress(STREAM, format_)
    with open_source(write(tmp_path, data)) as source:
        assert (source.kind, source.compression) == (Kind.STREAM, format_)
        assert (source.header, source.domain) == (None, None)
        assert (source.size, source.position()) == (len(data), 0)
        assert drain(source) == STREAM
        assert source.position() == len(data)
        assert source.readinto(memoryview(bytearray(1))) == 0


@every_format
@pytest.mark.parametrize("cookie", [b"", b"<cookie/>\0"], ids=["", "cookie"])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_save_image(tmp_path: Path, format_: SaveFormat, cookie: bytes, byteorder: ByteOrder) -> None:
    data = image(compress(STREAM, format_), format_, cookie=cookie, byteorder=byteorder)
    with open_source(write(tmp_path, data)) as source:
        assert (source.kind, source.compression) == (Kind.SAVE_IMAGE, format_)
        assert source.header is not None
        assert source.header.byteorder == byteorder
        assert source.header.was_running
        assert source.domain == DomainIdentity(NAME, uuid.UUID(UUID))
        assert source.position() == HEADER_SIZE + len(XML) + 1 + len(cookie) + PADDING
        assert drain(source) == STREAM


@every_format
@pytest.mark.parametrize("size", [1, 91, 93, 4096])
def test_small_buffers(tmp_path: Path, format_: SaveFormat, size: int) -> None:
    stream = STREAM[:20_000]
    assert contents(tmp_path, compress(stream, format_), size) == stream


@every_compression
def test_members_one_after_another(tmp_path: Path, format_: SaveFormat) -> None:
    half = len(STREAM) // 2
    data = compress(STREAM[:half], format_) + compress(STREAM[half:], format_)
    assert contents(tmp_path, data) == STREAM


@pytest.mark.parametrize("format_", [f for f in COMPRESSED if f is not SaveFormat.LZOP])
@pytest.mark.parametrize("zeros", [4, 512, 300_000])
def test_zeros_are_padding(tmp_path: Path, format_: SaveFormat, zeros: int) -> None:
    half = len(STREAM) // 2
    data = bytes(zeros).join([compress(STREAM[:half], format_), compress(STREAM[half:], format_), b""])
    assert contents(tmp_path, data) == STREAM


@every_compression
@pytest.mark.parametrize("left", [0.5, 0.999])
def test_cut_short(tmp_path: Path, format_: SaveFormat, left: float) -> None:
    data = compress(STREAM, format_)
    with pytest.raises(StreamError) as caught:
        contents(tmp_path, data[: int(len(data) * left)])
    assert type(caught.value) is (ImageError if format_ is SaveFormat.LZOP else TruncatedError)
    assert 0 <= caught.value.offset <= len(STREAM)


@every_compression
def test_image_without_payload(tmp_path: Path, format_: SaveFormat) -> None:
    with pytest.raises((TruncatedError, ImageError)):
        contents(tmp_path, image(b"", format_))


@every_compression
def test_damaged(tmp_path: Path, format_: SaveFormat) -> None:
    data = bytearray(compress(STREAM, format_))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    with pytest.raises(ImageError, match=f"intact {format_.label} data") as caught:
        contents(tmp_path, bytes(data))
    assert 0 <= caught.value.offset <= len(STREAM)


@every_compression
def test_payload_of_another_kind(tmp_path: Path, format_: SaveFormat) -> None:
    with pytest.raises(ImageError):
        contents(tmp_path, image(STREAM, format_))


@pytest.mark.parametrize("end", [20, 91, 92, 100, 92 + len(XML) + 5])
def test_image_cut_before_its_payload(tmp_path: Path, end: int) -> None:
    with pytest.raises(TruncatedError) as caught:
        contents(tmp_path, image(STREAM)[:end])
    assert caught.value.offset == end


def test_raw_image_without_payload_is_an_empty_stream(tmp_path: Path) -> None:
    assert contents(tmp_path, image(b"")) == b""


@pytest.mark.parametrize("data", [b"", b"Q", b"LibvirtQemud", b"something else altogether"])
def test_anything_else_is_left_to_the_parser(tmp_path: Path, data: bytes) -> None:
    assert contents(tmp_path, data) == data


def test_no_error_quotes_the_xml(tmp_path: Path) -> None:
    xml = XML.replace(b"<name>", f"<name passwd='{SECRET}'><".encode())
    with pytest.raises(ImageError) as caught:
        contents(tmp_path, image(STREAM, xml=xml))
    assert SECRET not in str(caught.value)


@every_format
@given(changes=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=settings().max_examples // 2)
def test_mutations_give_typed_errors_only(
    tmp_path_factory: pytest.TempPathFactory, format_: SaveFormat, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(image(compress(STREAM[:5000], format_), format_))
    del data[-PADDING // 2 :]
    for offset, value in changes:
        data[offset % len(data)] = value
    with contextlib.suppress(StreamError):
        contents(tmp_path_factory.mktemp("mutated"), bytes(data))


@pytest.mark.fuzz
@every_format
def test_bomb_stays_in_bounded_memory(tmp_path: Path, format_: SaveFormat) -> None:
    path = tmp_path / "bomb"
    with path.open("wb") as file:
        tool = ["cat"] if format_ is SaveFormat.RAW else [format_.label, "-1", "-c"]
        with subprocess.Popen(tool, stdin=subprocess.PIPE, stdout=file) as process:
            assert process.stdin is not None
            for _ in range(160):
                process.stdin.write(bytes(1 << 20))
    with path.open("rb") as file:
        done = script(MEASURE, file.fileno())
    total, kibibytes = map(int, done.stdout.split())
    assert total == 160 << 20
    assert kibibytes < 96 << 10


@every_format
def test_named_pipe(tmp_path: Path, format_: SaveFormat) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    plain = tmp_path / "plain"
    plain.write_bytes(image(compress(STREAM, format_), format_))
    # Small blocks, so that even the header arrives in pieces.
    writer = subprocess.Popen(["dd", f"if={plain}", f"of={path}", "bs=50", "status=none"])
    with writer, open_source(str(path)) as source:
        assert source.size is None
        assert drain(source) == STREAM
        assert source.position() == plain.stat().st_size


@every_format
def test_standard_input_is_a_pipe(format_: SaveFormat) -> None:
    data = image(compress(STREAM, format_), format_)
    done = script(COPY, None, data)
    assert done.stdout == STREAM
    assert done.stderr.split() == [b"None", str(len(data)).encode()]


def test_standard_input_is_a_file_read_in_part(tmp_path: Path) -> None:
    path = Path(write(tmp_path, b"skipped" + STREAM))
    with path.open("rb", buffering=0) as file:
        file.seek(7)
        done = script(COPY, file.fileno())
    assert done.stdout == STREAM
    assert done.stderr.split() == [str(len(STREAM)).encode()] * 2


def test_a_pipe_made_non_blocking_by_another() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    slowly = f"sleep 0.2; printf %s '{STREAM[8:60].decode()}'"
    with subprocess.Popen(["sh", "-c", slowly], stdout=writing):
        os.close(writing)
        done = script(COPY, reading)
    os.close(reading)
    assert done.stdout == STREAM[8:60]


def test_terminal_is_refused() -> None:
    try:
        master, terminal = os.openpty()
    except OSError as error:
        pytest.skip(f"no terminals here: {error}")
    done = script(COPY, terminal)
    os.close(terminal)
    os.close(master)
    assert b"HostError: standard input: a terminal" in done.stderr


@pytest.mark.parametrize(
    ("path", "reason"),
    [("missing", "No such file"), (".", "Is a directory"), ("in/side", "No such file"), ("a\0b", "null")],
)
def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HostError, match=reason) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(path)


def test_failing_read_is_a_host_error() -> None:
    with pytest.raises(HostError, match="Input/output error"):
        open_source("/proc/self/mem")


def test_empty_buffer_is_a_bug(tmp_path: Path) -> None:
    with open_source(write(tmp_path, STREAM)) as source, pytest.raises(BugError):
        source.readinto(memoryview(b""))


def test_lzop_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, compress(STREAM, SaveFormat.LZOP))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="install lzop"):
        open_source(path)


def children() -> set[str]:
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(task.read_text().split())


@pytest.mark.parametrize("read", [False, True])
def test_lzop_is_reaped_when_closed_early(tmp_path: Path, read: bool) -> None:
    before = children()
    source: Source = open_source(write(tmp_path, compress(STREAM * 4, SaveFormat.LZOP)))
    assert children() > before
    if read:
        source.readinto(memoryview(bytearray(10)))
    source.close()
    source.close()
    assert children() == before


def test_files_are_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for format_ in (SaveFormat.RAW, *COMPRESSED):
        contents(tmp_path, compress(STREAM, format_))
        with pytest.raises(StreamError):
            contents(tmp_path, image(compress(STREAM, format_), format_)[:1000])
    assert len(os.listdir("/proc/self/fd")) == before
