# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a destination host, and its form as JSON, schema ``qmpfilter.host/1``.

Every fact may be missing: None, or empty for a collection. A rule that needs a missing fact answers
"unknown"; nothing is filled in by guess.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NoReturn

from qmpfilter.errors import HostError, PolicyError
from qmpfilter.verdict.cpuid import Cpuid, CpuidRow
from qmpfilter.verdict.version import Version

__all__ = ["SCHEMA", "HostFacts", "QemuBinary"]

SCHEMA: Final = "qmpfilter.host/1"

_SET, _CLEAR = {"1", "Y", "y"}, {"0", "N", "n"}
_REGISTERS: Final = ("eax", "ebx", "ecx", "edx")
_U32: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """A QEMU that the host has: absolute path, and the version it says; None where it could not be asked."""

    path: str
    version: Version | None


@dataclass(frozen=True)
class HostFacts:
    """What is known of one host.

    :param kernel_release: ``uname -r``
    :param kernel: its upstream version (:func:`qmpfilter.verdict.version.kernel_version`)
    :param kernel_package: the distribution's version of the package, ``6.1.192-2``
    :param parameters: of kernel modules as /sys/module/MODULE/parameters has them, by module and name
    :param nested_state_size: KVM_CHECK_EXTENSION(KVM_CAP_NESTED_STATE)
    :param quirks: KVM_CHECK_EXTENSION(KVM_CAP_DISABLE_QUIRKS2): the quirks that can be disabled
    :param supported_cpuid: KVM_GET_SUPPORTED_CPUID
    :param guest_cpuid: what the guest was or will be given; a host does not know it, and where it is None the
        guest is taken to have what it had at the source, within what the host supports
    :param maxphyaddr: bits of the guest's physical addresses, where `guest_cpuid` does not tell
    :param qemu: the host's QEMUs, the one that would be used first
    :param formats: nested state formats that the host's side takes: ``legacy``, ``annex``, ``svm2``
    :ivar answers: what :class:`~qmpfilter.verdict.attempt.Attempt` has worked out from these facts alone
    """

    kernel_release: str | None = None
    kernel: Version | None = None
    kernel_package: str | None = None
    parameters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    nested_state_size: int | None = None
    quirks: int | None = None
    supported_cpuid: Cpuid | None = None
    guest_cpuid: Cpuid | None = None
    maxphyaddr: int | None = None
    qemu: tuple[QemuBinary, ...] = ()
    formats: tuple[str, ...] = ()
    answers: dict[Hashable, tuple[Any, frozenset[str], bool]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def flag(self, module: str, parameter: str) -> bool | None:
        """A parameter that is on or off; None where it is not known, or neither."""
        text = self.parameters.get(module, {}).get(parameter)
        return True if text in _SET else False if text in _CLEAR else None

    @property
    def nested(self) -> bool | None:
        """kvm_amd's nested."""
        return self.flag("kvm_amd", "nested")

    @property
    def npt(self) -> bool | None:
        """kvm_amd's npt."""
        return self.flag("kvm_amd", "npt")

    @property
    def qemu_version(self) -> Version | None:
        """The version of the first QEMU."""
        return self.qemu[0].version if self.qemu else None

    def to_json(self) -> dict[str, Any]:
        """The facts of the host for :func:`json.dumps`; what belongs to a guest is not among them."""
        cpuid = self.supported_cpuid
        return {
            "schema": SCHEMA,
            "kernel": {
                "release": self.kernel_release,
                "version": None if self.kernel is None else str(self.kernel),
                "package": self.kernel_package,
            },
            "kvm": {
                "parameters": {module: dict(values) for module, values in self.parameters.items()},
                "nested_state_size": self.nested_state_size,
                "quirks": self.quirks,
            },
            "cpu": {"supported_cpuid": None if cpuid is None else [asdict(row) for row in cpuid.rows]},
            "qemu": [
                {"path": binary.path, "version": None if binary.version is None else str(binary.version)}
                for binary in self.qemu
            ],
            "formats": list(self.formats),
        }

    @classmethod
    def from_json(cls, text: str | bytes) -> HostFacts:
        """The facts that :meth:`to_json` wrote. Keys that are missing are facts not known; keys that are not
        known are passed over, so that a newer file of the same schema can be read.

        :raises HostError: not JSON, not a file of facts, or a value is of the wrong kind
        """
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise HostError(f"not a file of host facts: it is no JSON ({error})") from None
        top = _Object("", whole)
        schema = top.text("schema")
        if schema != SCHEMA:
            found = "has no schema" if schema is None else f"is of schema {schema!r}"
            raise HostError(f"not a file of host facts: expected schema {SCHEMA!r}, the file {found}")
        kernel, kvm, cpu = top.object("kernel"), top.object("kvm"), top.object("cpu")
        return cls(
            kernel_release=kernel.text("release"),
            kernel=kernel.version("version"),
            kernel_package=kernel.text("package"),
            parameters={
                module: {name: values.required_text(name) for name in values.names()}
                for module, values in kvm.object("parameters").objects()
            },
            nested_state_size=kvm.number("nested_state_size"),
            quirks=kvm.number("quirks"),
            supported_cpuid=_cpuid(cpu),
            qemu=tuple(QemuBinary(row.required_text("path"), row.version("version")) for row in top.rows("qemu")),
            formats=tuple(top.texts("formats")),
        )


def _cpuid(cpu: _Object) -> Cpuid | None:
    if not cpu.has("supported_cpuid"):
        return None
    return Cpuid(
        tuple(
            CpuidRow(
                row.required_number("function"),
                row.number("index") or 0,
                row.number("flags") or 0,
                *(row.required_number(name) for name in _REGISTERS),
            )
            for row in cpu.rows("supported_cpuid")
        )
    )


class _Object:
    """A JSON object that knows where it stands in the file."""

    def __init__(self, path: str, value: Any) -> None:
        if not isinstance(value, dict):
            self._fail(path or "the whole file", "an object", value)
        self._path = path
        self._value: dict[str, Any] = value

    def has(self, name: str) -> bool:
        return self._value.get(name) is not None

    def names(self) -> list[str]:
        return list(self._value)

    def object(self, name: str) -> _Object:
        value = self._value.get(name)
        return _Object(self._at(name), {} if value is None else value)

    def objects(self) -> list[tuple[str, _Object]]:
        return [(name, self.object(name)) for name in self._value]

    def rows(self, name: str) -> list[_Object]:
        return [_Object(f"{self._at(name)}[{number}]", row) for number, row in enumerate(self._list(name))]

    def texts(self, name: str) -> list[str]:
        rows = self._list(name)
        if not all(isinstance(row, str) for row in rows):
            self._fail(self._at(name), "a list of texts", rows)
        return rows

    def text(self, name: str) -> str | None:
        value = self._value.get(name)
        if value is not None and not isinstance(value, str):
            self._fail(self._at(name), "a text", value)
        return value

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            self._fail(self._at(name), "a text", value)
        return value

    def number(self, name: str) -> int | None:
        value = self._value.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _U32):
            self._fail(self._at(name), "a number of 32 bits", value)
        return value

    def required_number(self, name: str) -> int:
        value = self.number(name)
        if value is None:
            self._fail(self._at(name), "a number of 32 bits", value)
        return value

    def version(self, name: str) -> Version | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            return Version.parse(text)
        except PolicyError:
            self._fail(self._at(name), "a version", text)

    def _list(self, name: str) -> list[Any]:
        value = self._value.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self._fail(self._at(name), "a list", value)
        return value

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    @staticmethod
    def _fail(path: str, expected: str, found: Any) -> NoReturn:
        shown = json.dumps(found)
        shown = shown if len(shown) <= 40 else f"{shown[:40]} ..."
        raise HostError(f"damaged file of host facts: {path}: expected {expected}, found {shown}")
