# SPDX-License-Identifier: GPL-2.0-or-later
"""The incremental parser of a QEMU migration stream: bytes in, events out.

::

    parser = StreamParser()
    parser.receive_data(data)              # any division of the stream
    while (event := parser.next_event()) is not NEED_DATA:
        ...
    parser.receive_eof()                   # then next_event() again until NEED_DATA

Order of a stream (QEMU 10.2.2 migration/savevm.c, migration/migration.c:3753-3869)::

    HEADER -> CONFIGURATION -> SETUP -> ITERATE -> TAIL -> DESCRIPTION -> DONE      precopy
                                           └-> PACKAGE -> POSTCOPY ----------> DONE

SETUP ends with the first PART or END; TAIL begins with the first FULL section after that; the EOF
byte ends TAIL and vmdesc follows. After a switch to postcopy the device sections come inside a
PACKAGED command, RAM goes on after it, and the stream ends with EOF, without vmdesc.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from qmpfilter.errors import (
    BugError,
    FramingError,
    LimitError,
    StreamError,
    TruncatedError,
    UnsupportedError,
)
from qmpfilter.wire import ram as ram_section
from qmpfilter.wire.events import (
    CommandReceived,
    Event,
    Header,
    IterableEnd,
    IterableStart,
    MachineConfiguration,
    PackageEnd,
)
from qmpfilter.wire.feed import NEED_DATA, Feed, Incremental, Steps
from qmpfilter.wire.footers import footer
from qmpfilter.wire.framing import (
    BE32,
    BE64,
    COMMAND_HEADER,
    COMMAND_LENGTHS,
    CPR_MAGIC,
    FOOTER_SIZE,
    MAGIC,
    MULTIFD_MAGIC,
    STREAM_VERSION,
    TLS_HANDSHAKE,
    Command,
    Configuration,
    SectionType,
    command_name,
)
from qmpfilter.wire.iterables import BodyReader, body_reader
from qmpfilter.wire.names import name_at
from qmpfilter.wire.package import package_events
from qmpfilter.wire.tail import Tail, early_section

__all__ = ["Limits", "State", "StreamParser"]

_MAX_CONFIGURATION_TEXT: Final = 4096
_MAX_CAPABILITIES: Final = 64
_MAX_ITERABLES: Final = 4096


class State(enum.Enum):
    """Where in the stream the parser is."""

    HEADER = enum.auto()
    CONFIGURATION = enum.auto()
    SETUP = enum.auto()
    ITERATE = enum.auto()
    TAIL = enum.auto()
    DESCRIPTION = enum.auto()
    PACKAGE = enum.auto()
    POSTCOPY = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()  # an error was raised


_NEXT: Final[Mapping[State, tuple[State, ...]]] = {
    State.HEADER: (State.CONFIGURATION,),
    State.CONFIGURATION: (State.SETUP,),
    State.SETUP: (State.ITERATE,),
    State.ITERATE: (State.TAIL, State.PACKAGE),
    State.TAIL: (State.DESCRIPTION,),
    State.DESCRIPTION: (State.DONE,),
    State.PACKAGE: (State.POSTCOPY,),
    State.POSTCOPY: (State.DONE,),
    State.DONE: (),
}


class Limits:
    """How much the parser may hold, in bytes. RAM and other iterables are never held.

    :param tail: device sections whose end is not known before vmdesc, vmdesc itself not counted
    :param vmdesc: the vmdesc text
    :param package: the contents of a PACKAGED command
    :param early: a device section that comes during SETUP
    """

    def __init__(
        self, *, tail: int = 16 << 20, vmdesc: int = 8 << 20, package: int = 16 << 20, early: int = 1 << 20
    ) -> None:
        self.tail = tail
        self.vmdesc = vmdesc
        self.package = package
        self.early = early


class StreamParser(Incremental[Event]):
    """Parses one main channel from its first byte to its last. Errors are final."""

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__()
        self._limits = limits or Limits()
        self._state = State.HEADER
        self._ram = ram_section.Ram()
        self._iterables: dict[int, _Iterable] = {}
        self._tail = Tail(self._limits.tail, self._limits.vmdesc)

    def __repr__(self) -> str:
        return f"<StreamParser {self.state.name} at {self._feed.offset:#x}>"

    @property
    def state(self) -> State:
        """Where in the stream the parser is."""
        return self._state if self._error is None else State.FAILED

    @property
    def offset(self) -> int:
        """Stream offset of the first byte not yet consumed; bytes held until vmdesc arrives are consumed."""
        return self._feed.offset

    def pass_pages(self, data: memoryview) -> bool:
        """Take the next bytes at once, without an event, if they are but the rest of a page and more pages.

        To be asked before :meth:`receive_data`, which takes what this did not.
        """
        if self._error is not None or self._feed.closed or self._feed.available:
            return False
        if not ram_section.pass_over(data, self._ram):
            return False
        self._feed.offset += len(data)
        return True

    def _move(self, state: State) -> None:
        if state not in _NEXT[self._state]:
            raise BugError(f"parser: {self._state.name} -> {state.name}")
        self._state = state

    def _grammar(self) -> Steps[Event, None]:
        """The whole grammar; never returns."""
        yield from self._header()
        yield from self._configuration()
        while self._state is not State.DONE:
            yield from self._part()
        while True:
            rest = yield from self._feed.take_available(1)
            if rest:
                raise FramingError(self._feed.offset - 1, "nothing after the end of the stream", bytes(rest))
            yield NEED_DATA

    def _header(self) -> Steps[Event, None]:
        magic = yield from self._feed.take(4, "the magic 51 45 56 4d (QEVM)")
        if magic != MAGIC:
            raise _no_main_channel(magic)
        version = yield from self._feed.take(4, "the stream's version")
        if BE32.unpack(version)[0] != STREAM_VERSION:
            raise FramingError(4, f"version {STREAM_VERSION} of the stream", version)
        yield Header(0, magic + version, STREAM_VERSION)
        self._move(State.CONFIGURATION)

    def _configuration(self) -> Steps[Event, None]:
        """CONFIGURATION with its subsections (savevm.c:541-559)."""
        feed = self._feed
        offset = feed.offset
        raw = yield from feed.take(1, "the CONFIGURATION section")
        if raw[0] != SectionType.CONFIGURATION:
            raise UnsupportedError(offset, "CONFIGURATION 07; do not set migration.send-configuration=off", raw)
        size = yield from feed.take(4, "the machine name's length")
        length = BE32.unpack(size)[0]
        if length > _MAX_CONFIGURATION_TEXT:
            raise LimitError(offset + 1, f"a machine name of at most {_MAX_CONFIGURATION_TEXT} bytes", size)
        name = yield from feed.take(length, "the machine name")
        raw += size + name
        capabilities: tuple[str, ...] = ()
        uuid: UUID | None = None
        page_bits: int | None = None
        seen: set[bytes] = set()
        while (yield from feed.peek(1, "a section")) == bytes([SectionType.SUBSECTION]):
            at = feed.offset
            head = yield from feed.take(2, "a subsection")
            title = yield from feed.take(head[1], "a subsection's name")
            version = yield from feed.take(4, "a subsection's version")
            raw += head + title + version
            if title in seen:
                raise FramingError(at, "each subsection of CONFIGURATION once", title)
            seen.add(title)
            if title == Configuration.PAGE_BITS.encode():
                body = yield from feed.take(4, "the target page bits")
                page_bits = BE32.unpack(body)[0]
            elif title == Configuration.CAPABILITIES.encode():
                body, capabilities = yield from self._capabilities()
            elif title == Configuration.UUID.encode():
                body = yield from feed.take(16, "the machine's UUID")
                uuid = UUID(bytes=body)
            else:
                raise FramingError(at, "a known subsection of CONFIGURATION", title)
            raw += body
        machine = name_at(name, offset + 5, "a machine type")
        yield MachineConfiguration(offset, raw, machine, capabilities, uuid, page_bits)
        if "mapped-ram" in capabilities:
            raise UnsupportedError(
                offset, "a stream; mapped-ram files keep pages outside of it: save again without mapped-ram",
                "capability mapped-ram",
            )  # fmt: skip
        self._ram.gpa_listed = "x-ignore-shared" in capabilities
        self._move(State.SETUP)

    def _capabilities(self) -> Steps[Event, tuple[bytes, tuple[str, ...]]]:
        offset = self._feed.offset
        raw = yield from self._feed.take(4, "the number of capabilities")
        count = BE32.unpack(raw)[0]
        if count > _MAX_CAPABILITIES:
            raise LimitError(offset, f"at most {_MAX_CAPABILITIES} capabilities", raw)
        names: list[str] = []
        for _ in range(count):
            at = self._feed.offset
            length = yield from self._feed.take(1, "a capability's length")
            name = yield from self._feed.take(length[0], "a capability")
            raw += length + name
            names.append(name_at(name, at + 1, "a capability"))
        return raw, tuple(names)

    def _part(self) -> Steps[Event, None]:
        """One part of the stream, chosen by its type byte."""
        feed = self._feed
        if self._state is State.DESCRIPTION:
            yield from self._tail.description(feed)
            self._move(State.DONE)
            return
        kind = (yield from feed.peek(1, "a section's type byte"))[0]
        if kind == SectionType.COMMAND:
            yield from self._command()
        elif kind == SectionType.START and self._state in (State.SETUP, State.ITERATE):
            yield from self._start()
        elif kind in (SectionType.PART, SectionType.END) and self._state in (
            State.SETUP, State.ITERATE, State.POSTCOPY
        ):  # fmt: skip
            yield from self._continuation(SectionType(kind))
        elif kind == SectionType.FULL and self._state is State.SETUP:
            yield from early_section(feed, self._limits.early, self._tail)
        elif kind in (SectionType.FULL, SectionType.EOF) and self._state is State.ITERATE:
            self._move(State.TAIL)
            yield from self._tail.sections(feed)
            self._move(State.DESCRIPTION)
        elif kind == SectionType.EOF and self._state is State.POSTCOPY:
            yield from self._tail.end(feed)
            self._move(State.DONE)
        else:
            raise FramingError(feed.offset, f"a part that may stand in {self._state.name}", bytes([kind]))

    def _start(self) -> Steps[Event, None]:
        feed = self._feed
        offset = feed.offset
        raw = yield from feed.take(6, "a section header")
        name = yield from feed.take(raw[5], "a section's name")
        numbers = yield from feed.take(8, "a section's instance and version")
        section_id = BE32.unpack_from(raw, 1)[0]
        instance_id, version_id = BE32.unpack_from(numbers)[0], BE32.unpack_from(numbers, 4)[0]
        idstr = name_at(name, offset + 6, "a section")
        if section_id in self._iterables:
            raise FramingError(offset + 1, "a section_id that is not in use", raw[1:5])
        if len(self._iterables) == _MAX_ITERABLES:
            raise LimitError(offset, f"at most {_MAX_ITERABLES} iterables", "more")
        iterable = _Iterable(section_id, idstr, instance_id, version_id)
        if idstr == ram_section.IDSTR:
            if (instance_id, version_id) != (0, ram_section.VERSION) or self._ram.blocks:
                raise FramingError(offset, f"one section 'ram' 0 of version {ram_section.VERSION}", numbers)
        else:
            iterable.reader = body_reader(idstr, offset)
        self._iterables[section_id] = iterable
        yield IterableStart(
            offset, raw + name + numbers, SectionType.START, section_id, idstr, instance_id, version_id
        )
        yield from self._body(iterable, listing=True)

    def _continuation(self, kind: SectionType) -> Steps[Event, None]:
        feed = self._feed
        offset = feed.offset
        raw = yield from feed.take(5, "a section header")
        iterable = self._iterables.get(BE32.unpack_from(raw, 1)[0])
        if iterable is None or iterable.ended:
            raise FramingError(offset + 1, "the section_id of an iterable that was started", raw[1:])
        if self._state is State.SETUP:
            self._move(State.ITERATE)
        iterable.ended = kind is SectionType.END
        yield IterableStart(
            offset, raw, kind, iterable.section_id, iterable.idstr, iterable.instance_id, iterable.version_id
        )
        yield from self._body(iterable, listing=False)

    def _body(self, iterable: _Iterable, *, listing: bool) -> Steps[Event, None]:
        feed = self._feed
        if iterable.reader is None:
            yield from ram_section.ram_body(feed, self._ram, listing=listing)
        else:
            yield from iterable.reader(feed, iterable.idstr)
        offset = feed.offset
        raw = yield from feed.take(FOOTER_SIZE, "a section's footer")
        if raw != footer(iterable.section_id):
            expected = f"footer {footer(iterable.section_id).hex(' ')} of section {iterable.idstr!r}"
            if raw[0] != SectionType.FOOTER:
                expected += " (machine types up to 2.3 write none; they are not supported)"
            raise FramingError(offset, expected, raw)
        yield IterableEnd(offset, raw, iterable.section_id, iterable.idstr)

    def _command(self) -> Steps[Event, None]:
        event = yield from read_command(self._feed)
        if event.command is Command.POSTCOPY_ADVISE and event.payload:
            # be64 OR of all block page sizes: the target page size alone means no block lists one.
            self._ram.page_sizes_listed = BE64.unpack_from(event.payload)[0] != ram_section.PAGE_SIZE
        if event.command is not Command.PACKAGED:
            yield event
            return
        if self._state is not State.ITERATE:
            raise FramingError(event.offset, f"a part that may stand in {self._state.name}", event.raw)
        size = BE32.unpack(event.payload)[0]
        if size > self._limits.package:
            raise LimitError(event.offset + 5, f"a package of at most {self._limits.package} bytes", event.payload)
        self._move(State.PACKAGE)
        yield event
        yield from self._package(size)
        yield PackageEnd(self._feed.offset)
        self._move(State.POSTCOPY)

    def _package(self, size: int) -> Steps[Event, None]:
        offset = self._feed.offset
        contents = bytearray()
        while len(contents) < size:
            more = yield from self._feed.take_available(size - len(contents))
            if not more:
                # What is there of it may still tell whoever looks at it what it was.
                with contextlib.suppress(StreamError):
                    yield from package_events(bytes(contents), offset, self._tail.seen)
                expected = f"{size - len(contents)} more bytes of a package"
                raise TruncatedError(offset + len(contents), expected, "the end of input")
            contents += more
        yield from package_events(bytes(contents), offset, self._tail.seen)


class _Iterable:
    """A handler that was STARTed; `reader` is None for RAM."""

    def __init__(self, section_id: int, idstr: str, instance_id: int, version_id: int) -> None:
        self.section_id = section_id
        self.idstr = idstr
        self.instance_id = instance_id
        self.version_id = version_id
        self.reader: BodyReader | None = None
        self.ended = False


def read_command(feed: Feed) -> Steps[Event, CommandReceived]:
    """Consume one COMMAND with its payload.

    :raises FramingError: an unknown command, or a length it never has
    :raises UnsupportedError: COLO, or a resumed postcopy stream
    """
    offset = feed.offset
    head = yield from feed.take(5, "a command")
    code, length = COMMAND_HEADER.unpack_from(head, 1)
    try:
        command = Command(code)
    except ValueError:
        raise FramingError(offset + 1, "a command from 1 to 11", head[1:3]) from None
    allowed = COMMAND_LENGTHS[command]
    if allowed is not None and length not in allowed:
        raise FramingError(offset + 3, f"the length of {command_name(code)}", head[3:5])
    if command is Command.ENABLE_COLO:
        raise UnsupportedError(offset, "a plain migration; turn x-colo off", head)
    if command in (Command.POSTCOPY_RESUME, Command.RECV_BITMAP):
        raise UnsupportedError(offset, "a migration from its start, not postcopy that is resumed", head)
    payload = yield from feed.take(length, f"the payload of {command_name(code)}")
    return CommandReceived(offset, head + payload, command, payload)


def _no_main_channel(magic: bytes) -> StreamError:
    """The first bytes are no main channel: say whose they are."""
    expected = "the magic 51 45 56 4d (QEVM) of a main channel"
    if magic == MULTIFD_MAGIC:
        return UnsupportedError(0, f"{expected}; this is an extra multifd channel, give the main one", magic)
    if magic == CPR_MAGIC:
        return UnsupportedError(0, f"{expected}; this is a CPR state, which passes file descriptors", magic)
    if magic[0] == TLS_HANDSHAKE:
        return UnsupportedError(0, f"{expected}; this is TLS: migrate without tls-creds", magic)
    if magic == b"Libv":
        return UnsupportedError(0, f"{expected}; this is a libvirt save image inside another compression", magic)
    if magic[0] == SectionType.COMMAND:
        return UnsupportedError(0, f"{expected}; this is a resumed postcopy migration", magic)
    return FramingError(0, expected, magic)
